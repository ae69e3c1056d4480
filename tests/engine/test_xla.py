"""The JAX driver compiles few programs, keeps to the memory of the device, and sends data once."""

import logging
import re

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from engine import ExtendedBinnedNLL, NormalConstraint, UnbinnedNLL, devices, fit_batch, xla
from engine.drivers import Settings
from engine.lanes import Lanes
from engine.status import Status
from kernels import norm, pallas
from kernels.pallas import row_sums_pallas


def test_one_step_is_compiled_for_all_lanes_whether_new_or_refilled(monkeypatch):
    traces = []
    step = xla.newton_step
    monkeypatch.setattr(xla, "newton_step", lambda *args, **options: traces.append(1) or step(*args, **options))
    rng = np.random.default_rng(0)
    toys = [rng.normal(3.0, 2.0, n) for n in rng.integers(3, 30, 1500)]
    cost, start = UnbinnedNLL(norm.pdf), {"loc": 2, "scale": 3}
    limits = {"scale": (1e-3, None)}
    fit_batch(cost, toys[:400], start, limits=limits, backend="jax")
    once = len(traces)
    assert once > 0
    # three times as many toys as lanes, and single ones
    result = fit_batch(cost, toys, start, limits=limits, backend="jax")
    np.testing.assert_allclose(result.values[:, 0], [np.mean(x) for x in toys], atol=1e-6)
    fit_batch(cost, toys[:1], start, limits=limits, backend="jax")
    assert len(traces) == once


def test_compilations_are_bounded(monkeypatch, caplog):
    # lanes of 32 rows: 16 of them, and 4 for the last ones
    monkeypatch.setitem(xla.FEW_ROWS, "cpu", 4 * 32)
    rng = np.random.default_rng(1)
    cost = UnbinnedNLL(norm.pdf)

    def compiled(n_toys, poor):
        """Names of what is compiled for fits of which the last toys take longer than the others."""
        toys = [rng.normal(3.0, 2.0, n) for n in rng.integers(17, 30, n_toys)]
        start = np.tile([3.0, 2.0], (n_toys, 1))
        start[n_toys - poor :] = 200.0, 1e-2
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
            fit_batch(cost, toys, start, limits={"scale": (1e-3, None)}, backend="jax", batch_size=16, retries=0)
        return re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)

    names = compiled(60, poor=3)
    # two numbers of lanes, one of refilled ones, one way from 16 to 4
    assert names.count("steps") == 2 and names.count("place") == 1 and names.count("take") == 1
    assert len(names) <= 10, names
    # a start for fewer lanes, and nothing that depends on the number of toys
    compiled(3, poor=0)
    for n_toys, poor in ((60, 3), (200, 1), (33, 4), (16, 2), (1, 0), (3, 1)):
        assert compiled(n_toys, poor) == []


def test_a_first_batch_has_hardly_more_lanes_than_toys():
    mesh = Mesh(np.array(jax.devices("cpu")[:1]), ("toys",))
    lanes = Lanes(*[lambda *_: None] * 4, mesh, fewest=256)
    # on a GPU: 15 500 rows for each toy
    sizes = {n: lanes.fitting(16384, n) for n in range(1, 16384)}
    assert all(n <= size for n, size in sizes.items()) and sizes[10_000] == 10_240
    assert all(size < n + 1024 for n, size in sizes.items() if n > 4096)
    assert {size for n, size in sizes.items() if n <= 4096} == {256, 1024, 4096}
    assert len(set(sizes.values())) == 15
    # a queue fills all lanes, and where few rows make a batch, there is one number of lanes for any number of toys
    assert lanes.fitting(16384, 10**6) == 16384
    assert {lanes.fitting(256, n) for n in range(1, 400)} == {256}


@pytest.mark.parametrize(("n_toys", "sizes"), [(27, [28, 8, 2]), (32, [32, 8, 2]), (8, [8, 8, 2]), (40, [32, 32, 2])])
def test_unfinished_toys_are_regrouped_into_few_numbers_of_lanes(n_toys, sizes):
    """Each toy counts down from its start: four steps for most, eight for five of them, twelve for one."""
    mesh, used, ends = Mesh(np.array(jax.devices("cpu")[:1]), ("toys",)), [], {}
    step = lambda state, at, rules: state - (state[0] > 0) * at(state) * rules  # noqa: E731
    lanes = Lanes(lambda theta, data, shared: data[0][0][0], lambda start: start, step, lambda s: s[0] > 0, mesh, 0)
    advance = lanes.advance
    lanes.advance = lambda state, *rest: used.append(len(state)) or advance(state, *rest)
    start = np.full((n_toys, 2), 4.0)
    start[:5, 0], start[3, 0], start[:, 1] = 8.0, 12.0, np.arange(n_toys)

    def store(toys, where, state):
        ends.update(zip(toys.tolist(), np.asarray(state)[where].tolist(), strict=True))

    # one and zero: the second number of a state stays
    data_of = lambda toys: ((np.tile([[1.0, 0.0]], (len(toys), 1, 1)), np.zeros((len(toys), 0)), np.ones(len(toys))),)  # noqa: E731
    with jax.enable_x64(True):
        lanes.run(start, 32, data_of, (np.zeros((0, 2)),), 1.0, store)
    assert ends == {k: [0.0, k] for k in range(n_toys)}
    assert used == sizes


def test_data_of_toys_that_are_evaluated_again_are_not_sent_again(monkeypatch):
    sent = []
    lane_data = xla.XlaDriver._lane_data
    monkeypatch.setattr(xla.XlaDriver, "_lane_data", lambda self, toys: sent.append(len(toys)) or lane_data(self, toys))
    rng = np.random.default_rng(2)
    cost = UnbinnedNLL(norm.pdf)
    data = [rng.normal(3.0, 2.0, n) for n in rng.integers(17, 30, 12)]
    driver = xla.XlaDriver(cost, cost.rows(data), jax.devices("cpu"), batch_size=8)

    def check(toys):
        toys = np.array(toys)
        theta = np.stack([rng.uniform(2, 4, len(toys)), rng.uniform(1, 3, len(toys))], axis=1)
        value, slope = driver.evaluate(toys, theta)[:, [0, 2]].T
        pulls = [(data[k] - loc) / scale for k, (loc, scale) in zip(toys, theta, strict=True)]
        expected = [
            np.sum(p**2 / 2 + np.log(s) + np.log(2 * np.pi) / 2) for p, s in zip(pulls, theta[:, 1], strict=True)
        ]
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(slope, [-np.sum(p) / s for p, s in zip(pulls, theta[:, 1], strict=True)], rtol=1e-9)

    check([3, 1, 5, 1, 3, 9])  # rays of one toy share its data
    assert sent == [4]
    check([9, 3, 3, 5, 1, 1])
    check([5, 3])
    assert sent == [4]
    check([2, 5])
    assert sent == [4, 2]
    # more toys than lanes: batch after batch, one of which stays
    check([*range(12), *range(12)])
    assert sent == [4, 2, 8, 8]
    check([8, 10])
    assert sent == [4, 2, 8, 8]
    assert driver.evaluate(np.zeros(0, dtype=int), np.zeros((0, 2))).shape == (0, 7)


def test_a_kernel_that_is_not_there_is_refused():
    cost = UnbinnedNLL(norm.pdf)
    rows = cost.rows(np.ones((1, 20)))
    with pytest.raises(ValueError, match="kernel must be one of 'xla', 'pallas', got 'triton'"):
        xla.XlaDriver(cost, rows, jax.devices("cpu"), kernel="triton")
    with pytest.raises(ValueError, match="for NVIDIA GPUs: pass kernel='xla'"):
        xla.XlaDriver(cost, rows, jax.devices("cpu"), kernel="pallas")


def test_the_one_pass_kernel_is_had_by_an_environment_variable(monkeypatch):
    cost, toys, asked = UnbinnedNLL(norm.pdf), np.random.default_rng(6).normal(1.0, 2.0, (4, 30)), []

    def interpreted(program, order):
        asked.append(order)
        return row_sums_pallas(program, order, interpret=True)

    monkeypatch.setattr(devices, "has_pallas", lambda device: True)
    monkeypatch.setattr(xla, "has_pallas", lambda device: True)
    monkeypatch.setattr(pallas, "row_sums_pallas", interpreted)
    by_xla = fit_batch(cost, toys, {"loc": 0.5, "scale": 1.5}, backend="jax")
    assert not asked
    monkeypatch.setenv("BATCHFIT_ONE_PASS", "1")
    cost = UnbinnedNLL(norm.pdf)
    in_one_pass = fit_batch(cost, toys, {"loc": 0.5, "scale": 1.5}, backend="jax")
    assert asked
    np.testing.assert_allclose(in_one_pass.values, by_xla.values, rtol=1e-9)


def test_the_one_pass_kernel_takes_the_costs_of_a_sum_that_it_can(monkeypatch):
    asked = []

    def interpreted(program, order):
        asked.append(program)
        return row_sums_pallas(program, order, interpret=True)

    monkeypatch.setattr(xla, "has_pallas", lambda device: True)
    monkeypatch.setattr(pallas, "row_sums_pallas", interpreted)
    rng = np.random.default_rng(5)
    smooth = ExtendedBinnedNLL(lambda x, n, loc: n * norm.cdf(x, loc, 2.0), np.linspace(-9.0, 15.0, 40))
    events = UnbinnedNLL(lambda x, loc, scale: norm.pdf(x, loc, scale))
    cost = events + smooth + NormalConstraint("scale", 2.0, 0.1)
    counts = [np.histogram(rng.normal(3.0, 2.0, 300), smooth.edges)[0] for _ in range(6)]
    data = [rng.normal(3.0, 2.0, n) for n in (1, 200, 128, 0, 129, 77)], counts, None
    rows, start = cost.rows(data), np.tile([2.5, 2.1, 280.0], (6, 1))
    settings = Settings(np.array([-9.0, 0.1, 0.0]), np.full(3, np.inf), np.ones(3, dtype=bool), 0.5, 1e-13, 200)
    drivers = [xla.XlaDriver(cost, rows, jax.devices("cpu"), kernel=kernel) for kernel in ("xla", "pallas")]
    by_xla, in_one_pass = (driver.fit(np.arange(6), start, settings) for driver in drivers)
    # the error function of the histogram is not there
    assert asked == [events.program(rows.parts[0])]
    assert (by_xla.status == Status.CONVERGED).all() and (in_one_pass.status == Status.CONVERGED).all()
    errors = np.sqrt(np.diagonal(by_xla.covariance, axis1=1, axis2=2))
    assert np.max(np.abs(in_one_pass.values - by_xla.values) / errors) < 1e-9
    assert np.max(np.abs(in_one_pass.covariance - by_xla.covariance) / errors[:, None] / errors[:, :, None]) < 1e-9
