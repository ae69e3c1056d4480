"""The contest: who fits the same toys, how long it takes in turns, and how far from the minimum each ends."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from bench.cases import Case

from engine.result import FitResult
from kernels.derivatives import packed_index
from kernels.program import GRADIENT, VALUE

__all__ = ["AWAY", "Contender", "Outcome", "judge", "pinned", "rank", "report", "take_turns", "warm_up"]

#: A fit with a larger EDM, or with a value that is higher by more, in units of errordef, is none.
GOOD_EDM = 1e-2
#: Who ends away from the minimum more often than this is marked, and gives no ratio.
TOLERATED = 0.05
LONG = 4.0  # seconds of a turn
AWAY = "away from the minimum"


class Outcome(NamedTuple):
    """Fits of some toys, in the order and the parameters of the case.

    Attributes
    ----------
    values : (n, n_params)
    valid : (n,) bool
        What the contender says of them.
    evaluations, gradients : float
        Mean number for a fit, as the contender counts.
    """

    values: np.ndarray
    valid: np.ndarray
    evaluations: float
    gradients: float = 0.0


@dataclass
class Contender:
    """One who fits.

    Attributes
    ----------
    name, label : str
    where : str
        "one core", "all cores" or "gpu".
    fit : callable
        `fit(toys) -> Outcome`, of some numbers of toys.
    block : int
        Toys that it takes at once.
    most : int
        Toys that there are.
    way : str
        In which it is used.
    toys : sequence of int
        Those of one turn.
    first_seconds : float
        Time of the first call, which compiles or reads compiled code.
    warm_seconds : float
        Time of a fit in the best of some calls after it, from which the length of a turn follows.
    seconds : list of float
        Times of the turns.
    """

    name: str
    label: str
    where: str
    fit: Callable[[Sequence[int]], Outcome]
    block: int
    most: int
    way: str = ""
    toys: Sequence[int] = ()
    first_seconds: float = 0.0
    warm_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    outcome: Outcome | None = None

    @property
    def cores(self) -> int | None:
        """1, or None for all."""
        return 1 if self.where == "one core" else None

    def timed(self, toys: Sequence[int]) -> float:
        with pinned(self.cores):
            begin = time.perf_counter()
            self.outcome = self.fit(toys)
            return time.perf_counter() - begin


@contextmanager
def pinned(cores: int | None) -> Iterator[None]:
    """All threads of this process on one core, so that nobody has helpers there; where the system can do that."""
    if cores != 1 or not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    _place({min(allowed)})
    try:
        yield
    finally:
        _place(allowed)


def _place(cores: set[int]) -> None:
    """Put every thread of this process on these cores."""
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue


def warm_up(contender: Contender, seconds: float) -> None:
    """Compile, and choose as many toys as take about so long."""
    few = range(min(contender.block, contender.most))
    contender.first_seconds = contender.timed(few)
    tries = 3 if contender.first_seconds < seconds else 1
    contender.warm_seconds = min(contender.timed(few) for _ in range(tries)) / len(few)
    blocks = max(1, round(seconds / contender.warm_seconds / contender.block))
    contender.toys = range(min(blocks * contender.block, contender.most))


def take_turns(contenders: Sequence[Contender], repeat: int, say: Callable[[str], None]) -> None:
    """A B C A B C ..., so that a busy moment of the machine hits all of them; who is slow has one turn."""
    for turn in range(repeat):
        for contender in contenders:
            if turn and contender.seconds[0] > LONG:
                continue
            say(f"turn {turn + 1} of {repeat}: {contender.label} ({contender.where})")
            contender.seconds.append(contender.timed(contender.toys))


class Verdict(NamedTuple):
    """How far fits ended from the minimum.

    Attributes
    ----------
    edm : (n,)
        g^T H^-1 g / 2 in units of errordef, with the exact gradient and Hessian; infinite where H is not positive
        definite.
    distance : (n,)
        Largest part of the Newton step to the minimum, in units of the parameter's error.
    excess : (n,)
        Value above that of batchfit, in units of errordef.
    """

    edm: np.ndarray
    distance: np.ndarray
    excess: np.ndarray


def judge(case: Case, result: FitResult, toys: Sequence[int] | np.ndarray, values: np.ndarray) -> Verdict:
    """Where fits of some toys ended, seen by the engine's derivatives there."""
    n, n_params = values.shape
    finite = np.isfinite(values).all(axis=1)
    at = np.where(finite[:, None], values, result.values[toys])
    out = result.problem.driver.evaluate(np.asarray(toys), at)  # type: ignore[union-attr]
    gradient = out[:, GRADIENT : GRADIENT + n_params]
    hessian = np.empty((n, n_params, n_params))
    for i in range(n_params):
        for j in range(i + 1):
            hessian[:, i, j] = hessian[:, j, i] = out[:, GRADIENT + n_params + packed_index(i, j)]
    errordef, edm, distance = case.cost.errordef, np.full(n, np.inf), np.full(n, np.inf)
    judged = np.flatnonzero(finite & np.isfinite(out).all(axis=1))
    scale = np.sqrt(np.abs(np.diagonal(hessian, axis1=1, axis2=2)))[judged]
    eigenvalues, vectors = np.linalg.eigh(hessian[judged] / (scale[:, :, None] * scale[:, None, :]))
    convex = eigenvalues[:, 0] > 0
    judged, scale, eigenvalues, vectors = (a[convex] for a in (judged, scale, eigenvalues, vectors))
    along = np.einsum("kij,ki->kj", vectors, gradient[judged] / scale)
    edm[judged] = 0.5 * np.sum(along**2 / eigenvalues, axis=1) / errordef
    # the error of a parameter is the root of 2 errordef (H^-1)_ii
    step = np.einsum("kij,kj->ki", vectors, along / eigenvalues)
    variance = np.einsum("kij,kj->ki", vectors**2, 1.0 / eigenvalues)
    distance[judged] = np.max(np.abs(step) / np.sqrt(2.0 * errordef * variance), axis=1)
    return Verdict(edm, distance, np.where(finite, (out[:, VALUE] - result.fval[toys]) / errordef, np.inf))


def rank(contenders: Sequence[Contender], case: Case, result: FitResult) -> list[dict]:
    """What each did, as JSON takes it: good fits per second, failures, evaluations, distance from the minimum."""
    rows = [report(contender, case, result) for contender in contenders]
    speed = {row["where"]: row["fits_per_second"] for row in rows if row["name"] == "batchfit"}
    for row in rows:
        mine, its = speed.get(row["where"]), row["fits_per_second"]
        comparable = row["name"] != "batchfit" and mine and its and not row["away"]
        row["batchfit_is_faster_by"] = mine / its if comparable else None
    return rows


def report(contender: Contender, case: Case, result: FitResult) -> dict:
    outcome, toys = contender.outcome, np.asarray(contender.toys)
    if outcome is None:
        raise ValueError(f"{contender.label} has not fitted yet")
    verdict = judge(case, result, toys, outcome.values)
    there = (verdict.edm < GOOD_EDM) & (verdict.excess < GOOD_EDM)
    good, astray = outcome.valid & there, outcome.valid & ~there
    seconds = statistics.median(contender.seconds)
    return {
        "name": contender.name,
        "label": contender.label,
        "where": contender.where,
        "n_fits": len(toys),
        "said_to_have_failed": int(np.sum(~outcome.valid)),
        "ended_away": int(np.sum(astray)),
        "found_a_lower_minimum": int(np.sum(good & (verdict.excess < -GOOD_EDM))),
        "away": bool(np.mean(astray) > TOLERATED),
        "fits_per_second": float(np.sum(good)) / seconds,  # a failed fit takes time and is none
        "median_seconds": seconds,
        "seconds": contender.seconds,
        "first_seconds": contender.first_seconds,
        "evaluations": outcome.evaluations,
        "gradients": outcome.gradients,
        "median_edm": float(np.median(verdict.edm[good])) if good.any() else None,
        "worst_edm": float(np.max(verdict.edm[good])) if good.any() else None,
        "worst_distance": float(np.max(verdict.distance[good])) if good.any() else None,
    }
