"""How the time of `fit_batch` grows with toys, events, parameters and cores.

Every row is a time for each unit of work, so that an engine without overhead and without losses would give the same
number down each column of one kind.
"""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numba
import numpy as np
from bench import cases

from engine import FitResult, PoissonNLL, Ragged, UnbinnedNLL, fit_batch
from engine.cost import Cost
from kernels import expon

__all__ = ["grow"]

_RUNS = 3
_EVENTS = 600_000  # of all toys together
_N_BINS = 400


class _Work(NamedTuple):
    """Toys to be fitted, and what the time is divided by."""

    kind: str
    size: str
    unit: str
    cost: Cost
    data: Any
    start: Any
    limits: Any
    units: Callable[[FitResult], float]
    cores: int = 1


def grow(say: Callable[[str], None], quick: bool = False) -> list[dict]:
    """Time of `fit_batch` for each unit of work, on the numba backend.

    Parameters
    ----------
    say : callable
        Is told what is being timed.
    quick : bool
        The two smallest sizes of each kind, once.

    Returns
    -------
    list of dict
        "what", "size", "unit", "ns per unit" (the best of several runs), "to the first" (of the same kind),
        "not valid" (fits).
    """
    rows: list[dict] = []
    seen: dict[str, list[float]] = {}
    before = numba.get_num_threads()
    try:
        for kind in (_toys, _events, _parameters, _cores, _ragged):
            for k, work in enumerate(kind(quick)):
                if quick and k == 2:
                    break
                say(f"{work.kind}: {work.size}")
                numba.set_num_threads(work.cores)
                ns, result = _ns(work, 1 if quick else _RUNS)
                first = seen.setdefault(work.kind, [ns])[0]
                row = {"what": work.kind, "size": work.size, "unit": work.unit, "ns per unit": ns}
                rows.append(row | {"to the first": ns / first, "not valid": int(np.sum(~result.valid))})
    finally:
        numba.set_num_threads(before)
    return rows


def _ns(work: _Work, runs: int) -> tuple[float, FitResult]:
    best = math.inf
    for k in range(runs + 1):
        begin = time.perf_counter()
        result = fit_batch(
            work.cost, work.data, work.start, limits=work.limits, backend="numba", device="cpu", retries=0
        )
        seconds = time.perf_counter() - begin
        best = min(best, seconds) if k else math.inf  # the first call compiles
    return 1e9 * best / work.units(result), result


def _of_case(kind: str, size: str, unit: str, case: cases.Case, units: Callable, cores: int = 1) -> _Work:
    return _Work(kind, size, unit, case.cost, case.data, case.start, case.limits, units, cores)


def _toys(quick: bool) -> Iterator[_Work]:
    for n_toys in (100, 1000, 10_000, 100_000):
        yield _of_case("tiny toys", f"{n_toys} toys", "fit", cases.make("counting", 1, n_toys), len)


def _events(quick: bool) -> Iterator[_Work]:
    per_event = lambda case: lambda result: float(result.nfev.sum()) * case.rows  # noqa: E731
    for n in (480, 2000, 15_500, 200_000):
        case = cases.make(f"peak-{n}", 1, max(3, _EVENTS // n))
        yield _of_case("events of a toy", f"{n} events", "event and evaluation", case, per_event(case))
    for n_toys in (10, 100, 1000):
        case = cases.make("peak-15500", 1, n_toys)
        yield _of_case("toys of 15 500 events", f"{n_toys} toys", "event and evaluation", case, per_event(case))


def _parameters(quick: bool) -> Iterator[_Work]:
    generator = np.random.default_rng(1)
    for p in (1, 2, 5, 10, 20, 50, 100, 200):
        templates = generator.uniform(0.0, 200.0 / p, (p, _N_BINS)) + 10.0 * np.eye(p, _N_BINS)
        counts = generator.poisson(templates.sum(axis=0), (max(2, 2000 // p**2), _N_BINS)).astype(np.float64)
        products = _N_BINS * p * (p + 1) / 2 + p**3 / 6
        yield _Work(
            "templates, 400 bins",
            f"{p} parameters",
            "product of a Hessian and its step, and fit",
            PoissonNLL(lambda *theta, templates=templates: jnp.stack(theta) @ templates, name=_names(p)),
            counts,
            dict.fromkeys(_names(p), 1.0),
            None,
            lambda result, products=products: len(result) * products,
        )


def _names(p: int) -> list[str]:
    return [f"a{k}" for k in range(p)]


def _cores(quick: bool) -> Iterator[_Work]:
    case, most = cases.make("peak-15500", 1, 10 if quick else 100), numba.config.NUMBA_NUM_THREADS
    for cores in sorted({1, most} | {2**k for k in range(most.bit_length()) if 2**k < most}):
        # what all cores together spend on a fit
        yield _of_case("cores", f"{cores} cores", "fit and core", case, lambda result, n=cores: len(result) / n, cores)


def _ragged(quick: bool) -> Iterator[_Work]:
    """The same events of an exponential cut into few or many toys, of one length or of very different ones."""
    generator = np.random.default_rng(2)
    events = generator.exponential(2.0, _EVENTS)
    even = lambda n: np.linspace(0, _EVENTS, n + 1).astype(np.int64)  # noqa: E731
    cuts = np.sort(generator.integers(0, _EVENTS, 999))
    lengths = {
        "60 toys of 10 000": even(60),
        "1000 toys of 600": even(1000),
        "1000 toys of 0 to 5000": np.concatenate([[0], cuts, [_EVENTS]]).astype(np.int64),
        "60 000 toys of 10": even(60_000),
    }
    cost = UnbinnedNLL(lambda x, tau: expon.pdf(x, 0.0, tau))
    for size, offsets in lengths.items():
        per_event = lambda result, edges=offsets: float(result.nfev @ np.diff(edges))  # noqa: E731
        yield _Work(
            "exponential, 600 000 events", size, "event and evaluation", cost, Ragged(events, offsets), {"tau": 1.8},
            {"tau": (0.0, None)}, per_event,
        )  # fmt: skip
