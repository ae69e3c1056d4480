"""What the final table says of a run, counted block after block, so that no number of toys is too many."""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from engine.minos import MinosResult
from engine.result import FitResult
from engine.status import Status
from toys.coverage import coverage
from toys.statistics import ONE_SIGMA, Calibration, fraction, known_pulls

__all__ = ["Tally"]


class _Running(NamedTuple):
    """Number, mean and sum of squared deviations of a sample."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, sample: np.ndarray) -> "_Running":
        """With more of the sample.

        References
        ----------
        Chan, Golub & LeVeque, Am. Stat. 37 (1983) 242, eq. 2.1: no difference of large sums.
        """
        if not len(sample):
            return self
        n, mean = self.n + len(sample), float(sample.mean())
        shift = mean - self.mean
        squares = float(((sample - mean) ** 2).sum()) + shift**2 * self.n * len(sample) / n
        return _Running(n, self.mean + shift * len(sample) / n, self.squares + squares)

    @property
    def width(self) -> float:
        return float(np.sqrt(self.squares / (self.n - 1)))


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
        self._bias: dict[str, _Running] = {}
        self._pull: dict[str, _Running] = {}
        self._inside: Counter[str] = Counter()
        self._measured: Counter[str] = Counter()
        self._minos: dict[str, tuple[int, int]] = {}

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
            self._measured[name] += int((result.valid & (result.errors[:, i] > 0)).sum())
            usable = np.isfinite(pulls[:, i])
            if name in self.truth:
                residual = result.values[usable, i] - self.truth[name]
                self._bias[name] = self._bias.get(name, _Running()).add(residual)
                self._pull[name] = self._pull.get(name, _Running()).add(pulls[usable, i])
                self._inside[name] += int((np.abs(pulls[usable, i]) <= 1.0).sum())
        if minos is not None:
            self._add_intervals(result, minos)

    def _add_intervals(self, result: FitResult, minos: MinosResult) -> None:
        known = self.truth.keys() & set(result.names)
        for row in coverage(result, self.truth, minos, (ONE_SIGMA,)).rows if known else ():
            if row.method == "minos":
                inside, n = self._minos.get(row.name, (0, 0))
                self._minos[row.name] = inside + row.inside, n + row.n
        complete = minos.valid.all(axis=1)
        self.intervals["all"] += int(complete.sum())
        self.intervals["on a limit"] += int((minos.at_lower_limit | minos.at_upper_limit).any(axis=1).sum())
        self.intervals["fitted again from a lower minimum"] += int(minos.new_minimum.any(axis=1).sum())
        self.intervals["without one of them"] += int((minos.result.valid & ~complete).sum())

    @property
    def calibration(self) -> list[Calibration]:
        """As `toys.statistics.calibration` of all toys; parameters without an error are left out."""
        rows = []
        for name in self.names:
            n = self._pull[name].n if name in self.truth else self._measured[name]
            if n < 2:
                continue
            if name not in self.truth:
                rows.append(Calibration(name, n, *[np.nan] * (len(Calibration._fields) - 2)))
                continue
            bias, pull = self._bias[name], self._pull[name]
            rows.append(
                Calibration(
                    name,
                    n,
                    float(self.truth[name]),
                    bias.mean,
                    bias.width / np.sqrt(n),
                    pull.mean,
                    pull.width / np.sqrt(n),
                    pull.width,
                    pull.width / np.sqrt(2.0 * (n - 1)),
                    *fraction(self._inside[name], n),
                )
            )
        return rows

    @property
    def minos(self) -> dict[str, tuple[float, float, float]]:
        """Coverage of the MINOS intervals of each parameter, with its binomial interval."""
        return {name: fraction(inside, n) for name, (inside, n) in self._minos.items() if n}
