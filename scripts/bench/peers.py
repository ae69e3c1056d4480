"""Who else fits: what each peer needs, which cases it can express, and how it is called."""

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from bench.cases import Case
from bench.contest import Outcome

__all__ = ["PEERS", "Fitter", "Peer", "missing"]

MOST_WITHOUT_GRADIENT = 60  # parameters with which pyhf's NumPy library is tried


class Fitter(NamedTuple):
    """`fit(toys) -> Outcome`, and how many toys it takes at once."""

    fit: Callable[[Sequence[int]], Outcome]
    block: int = 1


class Peer(NamedTuple):
    """
    Attributes
    ----------
    label : str
    packages : sequence of str
        Modules that it needs.
    install : str
        How one gets them.
    families : sequence of str
        The cases that it can express.
    ways : callable
        `ways(case) -> names` of the ways in which it can be used; the fastest is timed.
    prepare : callable
        `prepare(case, way, errors, folder) -> Fitter`; what it does is not timed.
    """

    label: str
    packages: Sequence[str]
    install: str
    families: Sequence[str]
    ways: Callable[[Case], Sequence[str]]
    prepare: Callable[[Case, str, np.ndarray, str], Fitter]


def missing(peer: Peer) -> str | None:
    """A sentence, if a package of the peer is not installed."""
    lacking = [name for name in peer.packages if importlib.util.find_spec(name) is None]
    return f"{lacking[0].replace('_', '-')} is not installed: {peer.install}" if lacking else None


def one_by_one(case: Case, fit: Callable) -> Fitter:
    """The fits of a Minuit at a time."""

    def fits(toys: Sequence[int]) -> Outcome:
        found = [fit(case, k) for k in toys]
        return Outcome(
            np.array([each.values for each in found]),
            np.array([each.valid for each in found]),
            *(float(np.mean([getattr(each, count) for each in found])) for count in ("nfcn", "ngrad")),
        )

    return Fitter(fits)


def hand(case: Case, way: str, errors: np.ndarray, folder: str) -> Fitter:
    from bench import hand

    if way == "strategy 1 and HESSE":
        return one_by_one(case, functools.partial(hand.fit, strategy=1, errors=True))
    return one_by_one(case, hand.fit)


def minuit_costs(case: Case, way: str, errors: np.ndarray, folder: str) -> Fitter:
    from bench import minuit_costs

    return one_by_one(case, minuit_costs.fit)


def pyhf(case: Case, way: str, errors: np.ndarray, folder: str) -> Fitter:
    from bench import with_pyhf

    return Fitter(with_pyhf.prepare(case, way))


def pyhf_ways(case: Case) -> Sequence[str]:
    from bench import with_pyhf

    small = len(case.theta) <= MOST_WITHOUT_GRADIENT
    return [way for way in with_pyhf.WAYS if small or way.startswith("JAX")]


def nextstat(case: Case, way: str, errors: np.ndarray, folder: str) -> Fitter:
    from bench import with_nextstat

    return Fitter(with_nextstat.prepare(case, way, folder))


def nextstat_ways(case: Case) -> Sequence[str]:
    from bench import with_nextstat

    return tuple(with_nextstat.WAYS)


def everwillow(case: Case, way: str, errors: np.ndarray, folder: str) -> Fitter:
    from bench import with_everwillow

    return Fitter(*with_everwillow.prepare(case, errors))


def one_way(case: Case) -> Sequence[str]:
    return ("",)


EVERY = ("peak", "histogram", "templates", "line")  # a workspace nobody writes by hand
BENCH = "pip install 'batchfit[bench]'"
PEERS = {
    "hand": Peer("iminuit, hand-written", ("iminuit",), BENCH, (*EVERY, "convolution"), one_way, hand),
    "numba-stats": Peer("iminuit, numba-stats", ("iminuit", "numba_stats"), BENCH, EVERY, one_way, minuit_costs),
    "pyhf": Peer("pyhf", ("pyhf",), BENCH, ("templates", "workspace"), pyhf_ways, pyhf),
    "everwillow": Peer("everwillow", ("everwillow",), BENCH, (*EVERY, "workspace", "convolution"), one_way, everwillow),
    "nextstat": Peer(
        "NextStat",
        ("nextstat", "pyarrow"),
        "it is AGPL, and in no extra",
        ("peak", "templates", "workspace", "line"),
        nextstat_ways,
        nextstat,
    ),
}
