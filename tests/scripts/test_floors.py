"""Operations are counted right, and rates and growth have the form that the benchmark prints."""

import dataclasses
import importlib
import json
import math
import sys
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from engine import LeastSquares, NormalConstraint, PoissonNLL, UnbinnedNLL

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
floors, growth, rates = (importlib.import_module(f"bench.{name}") for name in ("floors", "growth", "rates"))

RATES = rates.Rates(
    multiply_adds=1e9,
    additions=1e9,
    divisions=1e8,
    square_roots=1e8,
    functions={"exp": 1e8, "log": 1e8},
    memory_bytes=1e10,
    l2_bytes=1e11,
    threefry_blocks=1e9,
)


def case(cost, data):
    return types.SimpleNamespace(cost=cost, data=data, start={}, limits={})


def exponential(x, tau):
    return -x / tau - jnp.log(tau)


def test_operations_of_a_scalar_program():
    # x times a constant and another constant added, in the value, its first and its second derivative; |value|; four
    # sums over rows
    cost = UnbinnedNLL(exponential, log=True)
    short, long = (floors.floor_of(case(cost, np.ones((3, n))), RATES) for n in (10, 30))
    assert (short.rows, long.rows, short.n_params) == (10.0, 30.0, 1)
    per_row = {op: (long.operations[op] - short.operations[op]) / 20 for op in long.operations}
    # tau is fixed while the rows are summed: no row takes a division or a logarithm
    assert per_row["divide"] == per_row["log"] == 0.0
    assert short.operations["log"] == 1.0
    assert (per_row["multiply"], per_row["add"], per_row["choose"]) == (3.0, 3.0 + 4.0, 1.0)
    assert short.bytes_own == 80.0 and long.bytes_own == 240.0


def test_operations_of_a_density():
    # value, gradient and Hessian of log(f + (1 - f) exp(-x)) share one exponential, one logarithm and one reciprocal
    cost = UnbinnedNLL(lambda x, f: f + (1.0 - f) * jnp.exp(-x))
    counted, _ = floors.count_program(cost.program(cost.rows(np.ones((1, 5)))))
    assert (counted["exp"], counted["log"], counted["divide"]) == (1, 1, 1)


def test_operations_of_an_expectation():
    n, p = 7, 3
    templates = np.arange(1.0, n * p + 1).reshape(p, n)
    cost = PoissonNLL(lambda a, b, c: a * templates[0] + b * templates[1] + c * templates[2])
    found = floors.floor_of(case(cost, np.ones((2, n))), RATES)
    # of the likelihood of a bin: a logarithm; of the expectation: three products; of the gradient: three;
    # of the Hessian: curvature times Jacobian, three, and six below the diagonal and on it
    assert found.operations["log1p"] == n
    more = PoissonNLL(lambda a, b: a * templates[0] + b * templates[1])
    fewer = floors.floor_of(case(more, np.ones((2, n))), RATES)
    assert found.operations["multiply"] - fewer.operations["multiply"] == n * (1 + 1 + 1 + 3)
    assert found.operations["log1p"] == fewer.operations["log1p"]
    assert found.bytes_own == 8.0 * n


def test_a_fit_of_templates_takes_one_hessian():
    """Of 8 parameters and more; the other evaluations take neither the Hessian nor a factorisation."""
    n, p = 40, 9
    templates = np.random.default_rng(1).uniform(5.0, 10.0, (p, n))
    cost = PoissonNLL(lambda *theta: jnp.stack(theta) @ templates, name=[f"a{k}" for k in range(p)])
    found, more = (floors.floor_of(case(cost, np.ones((2, n))), RATES, n_evaluations) for n_evaluations in (5.0, 6.0))
    assert found.operations["multiply"] - found.first_order["multiply"] == n * p + n * p * (p + 1) / 2 - p**2
    assert more.fit_seconds - found.fit_seconds == pytest.approx(
        max(floors._seconds(found.first_order, RATES).values())
    )
    assert found.fit_seconds < 5 * max(found.seconds.values())


def test_a_sum_is_the_sum_of_its_parts():
    x, y = np.linspace(0.0, 1.0, 10), np.ones((4, 10))
    line = LeastSquares(lambda x, a, b: a + b * x)
    both = line + NormalConstraint("a", 1.0, 0.1)
    alone, together = (floors.floor_of(case(cost, (x, y, np.ones(10))), RATES) for cost in (line, both))
    assert together.rows == alone.rows == 10.0
    # one deviation times its weight, which is added to the Hessian, too
    assert together.operations["multiply"] - alone.operations["multiply"] == 1.0
    assert together.operations["add"] - alone.operations["add"] == 2.0
    json.dumps(dataclasses.asdict(together))


def test_generated_loops():
    module = types.ModuleType("generated")
    module.U3, module.U4 = np.uint64(3), np.uint64(4)
    source = """
def evaluate(c, x0):
    v0 = exp(x0[U3 + U4])
    for i0 in range(U3):
        v1 = (v0 if x0[i0] > 0.0 else -v0)
        for i1 in range(U4):
            v2 = v1 * x0[i1] + 1.0 / x0[U4 * i0 + i1]
            c[i1] = v2
"""
    expected = {"exp": 1, "choose": 6, "add": 3 + 12, "multiply": 12, "divide": 12}
    original = floors.inspect.getsource
    try:
        floors.inspect.getsource = lambda _: source
        assert floors.count_source(module, "evaluate") == expected
    finally:
        floors.inspect.getsource = original


def test_the_slowest_part_of_the_machine_is_the_floor():
    cost, data = UnbinnedNLL(exponential, log=True), np.ones((3, 1000))
    found = floors.floor_of(case(cost, data), RATES, evaluations=5.0)
    least = max(found.seconds.values())
    once = found.bytes_own / RATES.memory_bytes
    assert found.fit_seconds == pytest.approx(5 * least + once)
    assert found.least_fit_seconds == pytest.approx(2 * least + once)
    assert found.fits_per_second == pytest.approx(1 / found.fit_seconds)
    slow = floors.floor_of(case(cost, data), dataclasses.replace(RATES, l2_bytes=1e6))
    assert slow.seconds["reading"] == pytest.approx(8e-3, rel=0.01) and "reading" in slow.in_words
    json.dumps(dataclasses.asdict(found))


def test_rates_are_positive(monkeypatch):
    monkeypatch.setattr(rates, "_RUNS", 1)
    monkeypatch.setattr(rates, "_SECONDS", 1e-5)
    monkeypatch.setattr(rates, "_IN_MEMORY", 2**16)
    measured = dataclasses.asdict(rates.measure_rates())
    functions = measured.pop("functions")
    assert all(math.isfinite(rate) and rate > 0 for rate in (*measured.values(), *functions.values()))
    assert {"exp", "log"} <= set(functions)


def test_growth_has_one_row_for_each_size(monkeypatch):
    monkeypatch.setattr(growth, "_EVENTS", 2000)
    monkeypatch.setattr(growth, "_N_BINS", 10)
    monkeypatch.setattr(growth, "_events", lambda quick: iter(()))  # the spectrum takes long to compile
    monkeypatch.setattr(growth, "_cores", lambda quick: iter(()))
    told = []
    rows = growth.grow(told.append, quick=True)
    assert len(rows) == len(told) == 6
    assert [row["to the first"] for row in rows[::2]] == [1.0] * 3
    assert all(row["ns per unit"] > 0 and row["not valid"] == 0 for row in rows)
    json.dumps(rows)
