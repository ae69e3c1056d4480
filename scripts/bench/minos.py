"""MINOS of all parameters of the main model, in one thread, by turns; the fits before it are not timed."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from bench import hand, minuit_costs
from bench.cases import Case
from bench.contest import pinned
from bench.peers import PEERS, missing
from iminuit import Minuit

from engine import fit_batch

__all__ = ["time_minos"]


def time_minos(case: Case, n_peers: int, repeat: int) -> list[dict]:
    """ms for a toy, of `FitResult.minos` and of `Minuit.minos` with the likelihoods of two peers.

    Parameters
    ----------
    case : Case
    n_peers : int
        Toys that iminuit takes.
    repeat : int
    """
    numba.set_num_threads(1)
    result = fit_batch(case.cost, case.data, case.start, limits=case.limits, backend="numba", device="cpu")
    ways: dict[str, Callable[[Case, int], Minuit]] = {PEERS["hand"].label: hand.hand_minuit}
    if missing(PEERS["numba-stats"]) is None:
        ways[PEERS["numba-stats"].label] = minuit_costs.minuit_of
    toys = range(min(n_peers, case.n_toys))
    ours: list[float] = []
    theirs: dict[str, list[float]] = {label: [] for label in ways}
    found: dict[str, list[tuple]] = {}
    with pinned(1):
        for turn in range(repeat + 1):  # the first compiles
            begin = time.perf_counter()
            intervals = result.minos()
            ours.append((time.perf_counter() - begin) / len(result))
            for label, make in ways.items():
                found[label] = [search(make(case, k), case.bounds) for k in (toys if turn else toys[:1])]
                theirs[label].append(statistics.fmean(each[0] for each in found[label]))
    ends = np.stack([intervals.lower, intervals.upper], axis=-1)
    mine = statistics.median(ours[1:])
    rows = [
        {
            "label": "batchfit",
            "ms_per_toy": 1e3 * mine,
            "n_toys": len(result),
            "failed": int(np.sum(~intervals.valid.all(axis=1))),
            "evaluations": float(intervals.nfev.sum(axis=1).mean()),
            "worst_difference": None,
            "batchfit_is_faster_by": None,
        }
    ]
    return rows + [compared(label, found[label], theirs[label], ends, result.errors, mine) for label in ways]


def search(minuit: Minuit, bounds: Sequence) -> tuple[float, np.ndarray, float]:
    """(seconds, intervals (n_params, 2), evaluations and gradients) of one toy; NaN where MINOS has none."""
    hand.run_minuit(minuit, bounds, strategy=1)
    before = minuit.nfcn + minuit.ngrad
    begin = time.perf_counter()
    minuit.minos()
    seconds = time.perf_counter() - begin
    ends = [
        (e.lower if e.lower_valid else np.nan, e.upper if e.upper_valid else np.nan) for e in minuit.merrors.values()
    ]
    return seconds, np.array(ends), minuit.nfcn + minuit.ngrad - before


def compared(label: str, fits: list[tuple], seconds: list[float], ends: Any, errors: Any, mine: float) -> dict:
    theirs, median = np.array([each[1] for each in fits]), statistics.median(seconds[1:])
    difference = np.abs(theirs - ends[: len(fits)]) / errors[: len(fits), :, None]
    return {
        "label": label,
        "ms_per_toy": 1e3 * median,
        "n_toys": len(fits),
        "failed": int(np.sum(np.isnan(theirs).any(axis=(1, 2)))),
        "evaluations": statistics.fmean(each[2] for each in fits),
        "worst_difference": float(np.nanmax(difference)),
        "batchfit_is_faster_by": median / mine,
    }
