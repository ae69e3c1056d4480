"""How the fits of toys compare with the truth, counted block after block, so that no number of toys is too many."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from engine.minos import MinosResult
from engine.result import FitResult
from engine.status import Status
from toys.coverage import coverage
from toys.statistics import ONE_SIGMA, Running, fraction, known_pulls

__all__ = ["Calibration", "Tally", "calibration"]


class Calibration(NamedTuple):
    """How the fits of one parameter compare with the truth, over the valid fits that have an error.

    `bias` is the mean of value - truth, `pull` is (value - truth) / error, `coverage` the fraction with |pull| <= 1,
    which is 68.27 % for an honest error, with its Wilson interval at 68.27 %. Each `_error` is one standard deviation.
    For a parameter of the fit that the toys do not have all of these are NaN.
    """

    name: str
    n: int
    truth: float
    bias: float
    bias_error: float
    pull_mean: float
    pull_mean_error: float
    pull_width: float
    pull_width_error: float
    coverage: float
    coverage_low: float
    coverage_high: float


class Tally:
    """Counts of toys, and bias, pulls and coverage of each parameter.

    Parameters
    ----------
    truth : dict name -> true value

    Attributes
    ----------
    n_toys, n_valid, n_at_limit, n_rescued : int
    failed : Counter
        Status -> number of toys.
    intervals : Counter
        Toys by what became of their MINOS intervals; empty without any.
    backend, device : str
    """

    def __init__(self, truth: Mapping[str, float]) -> None:
        self.truth = truth
        self.names: tuple[str, ...] = ()
        self.n_toys = self.n_valid = self.n_at_limit = self.n_rescued = 0
        self.failed: Counter[Status] = Counter()
        self.intervals: Counter[str] = Counter()
        self.backend = self.device = ""
        self._n: Counter[str] = Counter()
        self._bias: defaultdict[str, Running] = defaultdict(Running)
        self._pull: defaultdict[str, Running] = defaultdict(Running)
        self._inside: Counter[tuple[str, str]] = Counter()
        self._covered: Counter[tuple[str, str]] = Counter()

    def add(self, result: FitResult, minos: MinosResult | None = None) -> None:
        """Count more toys."""
        self.names, self.backend, self.device = result.names, result.backend, result.device
        self.n_toys += len(result)
        self.n_valid += int(result.valid.sum())
        self.n_at_limit += int(result.at_limit.any(axis=1).sum())
        self.n_rescued += int(result.rescued.sum())
        self.failed.update(Status(status) for status in result.status[~result.valid].tolist())
        pulls = known_pulls(result, self.truth)
        for i, name in enumerate(result.names):
            if name not in self.truth:
                self._n[name] += int((result.valid & (result.errors[:, i] > 0)).sum())
                continue
            usable = np.isfinite(pulls[:, i])
            self._n[name] += int(usable.sum())
            self._bias[name] = self._bias[name].add(result.values[usable, i] - self.truth[name])
            self._pull[name] = self._pull[name].add(pulls[usable, i])
        known = self.truth.keys() & set(result.names)
        for row in coverage(result, self.truth, minos, (ONE_SIGMA,)).rows if known else ():
            self._inside[row.method, row.name] += row.inside
            self._covered[row.method, row.name] += row.n
        if minos is not None:
            complete = minos.valid.all(axis=1)
            self.intervals["all"] += int(complete.sum())
            self.intervals["on a limit"] += int((minos.at_lower_limit | minos.at_upper_limit).any(axis=1).sum())
            self.intervals["fitted again from a lower minimum"] += int(minos.new_minimum.any(axis=1).sum())
            self.intervals["without one of them"] += int((minos.result.valid & ~complete).sum())

    @property
    def calibration(self) -> list[Calibration]:
        """Of every parameter; those without an error (held, or always on a limit) are left out."""
        rows = []
        for name in (name for name in self.names if self._n[name] > 1):
            numbers = [np.nan] * (len(Calibration._fields) - 2)
            if name in self.truth:
                bias = self._bias[name].moments
                within = fraction(self._inside["hesse", name], self._covered["hesse", name])
                numbers = [float(self.truth[name]), bias.mean, bias.mean_error, *self._pull[name].moments, *within]
            rows.append(Calibration(name, self._n[name], *numbers))
        return rows

    @property
    def minos(self) -> dict[str, tuple[float, float, float]]:
        """Coverage of the MINOS intervals of each parameter, with its binomial interval."""
        return {
            name: fraction(self._inside[method, name], n)
            for (method, name), n in self._covered.items()
            if method == "minos" and n
        }


def calibration(result: FitResult, truth: Mapping[str, float]) -> list[Calibration]:
    """The calibration of every parameter of some fits, as `Tally` has it.

    Parameters
    ----------
    result : FitResult
    truth : dict name -> true value
        Of the toys, which may have other parameters than the fit.
    """
    tally = Tally(truth)
    tally.add(result)
    return tally.calibration
