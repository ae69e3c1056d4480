"""Feldman-Cousins intervals of a parameter of any model, by toys, with nuisance parameters profiled.

At each tested value mu toys are thrown with the nuisance parameters of the fit to the data at mu, and ordered by

    t_mu = -2 log(L(mu, theta_hathat) / L(mu_hat, theta_hat)),

where mu_hat is the minimum within the limits of the parameter: the physical region. The interval is all mu where

    p(mu) = P(t_mu >= t_mu(data))  >  1 - cl.

References
----------
Feldman & Cousins, Phys. Rev. D57 (1998) 3873, sec. IV; Chuang & Lai, Statistica Sinica 10 (2000) 1; Cranmer,
arXiv:1503.07622, sec. 7, for the profile construction. It covers exactly where the distribution of t_mu does not depend
on the nuisance parameters, and approximately elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import gammaincinv

from engine.data import as_float64
from engine.status import Status
from toys.hypotest import tail
from toys.pool import NoFitError, ToyPool, pool_for
from toys.study import Study

__all__ = ["Interval", "Point", "feldman_cousins"]

MORE_TOYS = 8  # times n_toys, where the decision is close
CLOSE, CERTAIN = 3.0, 2.0  # errors of the p-value: where more toys are thrown, and within which nothing is decided
ROUNDING = 1e-12  # of 1 - cl, which a fraction of toys may equal
RESOLUTION = 1.0 / 128.0  # of an end, in units of the distance of the asymptotic end from the minimum
STEP = 0.25  # of that distance, outward or inward from the asymptotic end
TRIALS = 24
MINIMA = 5  # of the data, each lower than the last
SHARE = 0.2  # largest step between tested values, in units of what encloses the end
ACCEPTED, UNDECIDED, REJECTED = 1, 0, -1


class Point(NamedTuple):
    """What the toys say of one tested value.

    `t_observed` is the statistic of the data. `p_value` and its `error` are those of `tail` in toys/hypotest.py, the
    fraction of the toys with a statistic of at least this, and `critical` is the largest statistic of the data that
    would accept the value. `ties` of the n_toys toys equal the data within 1e-6 and count; `failed` have no valid fits
    and do not. On a limit at which the data cannot be fitted, such as no expected events at all where some were seen,
    the statistic is infinite, the p-value 0, and no toys are thrown.
    """

    value: float
    t_observed: float
    p_value: float
    error: float
    critical: float
    n_toys: int
    ties: int
    failed: int


@dataclass(frozen=True)
class Interval:
    """A confidence interval of one parameter, and how it was found.

    Attributes
    ----------
    poi : str
    cl : float
    lower, upper : float
        The outermost values that are accepted. Between tested values the p-value is interpolated; where it crosses
        1 - cl several times within what the toys cannot tell, the mean of the first and the last crossing.
    lower_error, upper_error : float
        The end lies between the outermost tested value that is accepted by more than 2 errors of its p-value, and the
        one beyond that is rejected by as much: their distance over sqrt(12). 0 at a limit that is accepted so.
    at_limit : (bool, bool)
        The end is a limit of the parameter, which is accepted.
    beyond : (bool, bool)
        No value was rejected on this side: the interval reaches further than what was tested, or could be, as the data
        have no fit where some parameter has no meaning.
    best : float
        The parameter at the minimum of the data, within its limits.
    points : tuple of Point
        In the order of the values.
    sentence : str
    """

    poi: str
    cl: float
    lower: float
    upper: float
    lower_error: float
    upper_error: float
    at_limit: tuple[bool, bool]
    beyond: tuple[bool, bool]
    best: float
    points: tuple[Point, ...]
    sentence: str

    def __repr__(self) -> str:
        return self.sentence


def feldman_cousins(
    study: Study,
    *,
    poi: str | None = None,
    data: Any = None,
    cl: float = 0.9,
    values: Sequence[float] | np.ndarray | None = None,
    n_toys: int = 2000,
    max_toys: int | None = None,
    seed: int = 1,
    auxiliary: str = "redrawn",
    nuisance: str = "profiled",
    backend: str = "auto",
    device: str = "auto",
    pool: ToyPool | None = None,
) -> Interval:
    """The Feldman-Cousins interval of a parameter, by toys.

    Without `values` the tested ones are found: from where t_mu(data) first is the quantile of a chi-square, outward
    until a value is rejected or the data cannot be fitted, and then between those that are accepted and those that are
    not. A value whose p-value is within 3 errors of 1 - cl gets more toys.

    Parameters
    ----------
    study : Study
        The limits of the parameter are the physical region.
    poi : str, optional
        The parameter; by default the study's parameter of interest.
    data : optional
        The observation, one toy as `fit_batch` takes it; by default the study's.
    cl : float
        Confidence level.
    values : sequence of float, optional
        Values to test, instead of those that the search finds.
    n_toys, max_toys : int
        Toys at each value, and where the decision is close; by default 8 times as many.
    seed, auxiliary, nuisance, backend, device
        As for `ToyPool`.
    pool : ToyPool, optional
        Toys that were thrown for something else; it tells the data and how they are thrown, and the arguments for that
        are not looked at.

    Returns
    -------
    Interval

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong form, a tested value is outside of the limits, a fit of the data fails between
        those that are tested, or all toys at a value do; if the data have ever lower minima.
    """
    if not isinstance(cl, float | np.floating) or not 0.0 < cl < 1.0:
        raise ValueError(f"cl must lie between 0 and 1, got {cl!r}")
    max_toys = MORE_TOYS * n_toys if max_toys is None else max_toys
    if not isinstance(max_toys, int | np.integer) or max_toys < n_toys:
        raise ValueError(f"max_toys must be a whole number of at least n_toys = {n_toys}, got {max_toys!r}")
    options = {"seed": seed, "auxiliary": auxiliary, "nuisance": nuisance, "backend": backend, "device": device}
    pool = pool_for(pool, study, poi, data, **options)
    poi = pool.poi
    tested = None if values is None else np.ravel(as_float64(values, "values")).tolist()
    if tested is not None and not tested:
        raise ValueError("values must hold at least one value to test, got none")
    for _ in range(MINIMA):
        search = _Search(pool, float(cl), n_toys, max_toys)
        try:
            if tested is None:
                for side in (-1, 1):
                    search.find_end(side)
            else:
                for value in tested:
                    search.test(value)
            return search.interval()
        except _LowerMinimumError:  # the toys are kept
            continue
    raise ValueError(
        f"the fits of the data at tested values of {poi} found {MINIMA} minima, each lower than the last: start the "
        "study near the lowest, or hold parameters that are hardly determined by Study(fixed=...)"
    )


class _LowerMinimumError(Exception):
    """A tested value led to a lower minimum of the data, so that t and the middle of the search are others."""


class _Search:
    """The tested values so far."""

    def __init__(self, pool: ToyPool, cl: float, n_toys: int, max_toys: int) -> None:
        self.pool, self.cl, self.n_toys, self.max_toys = pool, cl, n_toys, max_toys
        self.level = 1.0 - cl + ROUNDING  # p-values above it are accepted
        self.points: dict[float, Point] = {}
        self.limits = pool.limits
        self.free = free = pool.observed(pool.study.start[pool.poi], "t").free
        i = free.names.index(pool.poi)
        self.best, self.spread = float(free.values[0, i]), float(free.errors[0, i])
        self.unfitted: dict[int, float] = {}  # where a side ends as the data cannot be fitted there

    def statistic(self, value: float) -> float:
        """t of the data; infinite on a limit where they are impossible, such as events where none are expected."""
        try:
            made = self.pool.observed(value, "t")
        except NoFitError as error:
            if value not in self.limits or error.status != Status.NONFINITE:
                raise
            return np.inf
        if made.free.fval[0] < self.free.fval[0]:
            raise _LowerMinimumError
        return float(made.value[0])

    def test(self, value: float) -> int:
        """Whether a value is accepted or rejected, or its p-value too near to the level to tell."""
        if value not in self.points:
            observed, n = self.statistic(value), self.n_toys
            if np.isinf(observed):
                self.points[value] = Point(value, observed, 0.0, 0.0, np.nan, 0, 0, 0)
                return REJECTED
            while True:
                made = self.pool.statistic(value, thrown_at=value, n_toys=n, test_stat="t")
                self.points[value] = point = self._point(value, observed, made.value)
                if n >= self.max_toys or abs(point.p_value - self.level) > CLOSE * point.error:
                    break
                n = min(2 * n, self.max_toys)
        return self._verdict(self.points[value])

    def _point(self, value: float, observed: float, toys: np.ndarray) -> Point:
        found = tail(toys, observed)
        if not found.n:
            raise ValueError(f"all {len(toys)} toys at {self.pool.poi} = {value:g} failed: check the study there")
        # the value is accepted if more than (1 - cl) n toys reach the data
        at_least = min(int(np.floor(self.level * found.n)), found.n - 1)
        critical = float(np.sort(toys[np.isfinite(toys)])[::-1][at_least])
        return Point(value, observed, found.p, found.error, critical, len(toys), found.ties, found.failed)

    def find_end(self, side: int) -> None:
        """Test values until the end on one side (-1 or 1) is enclosed as closely as the toys can tell."""
        limit = self.limits[side > 0]
        if self.best == limit:
            return  # where the data have t = 0
        outside = start = reached = self._asymptotic_end(side, limit)
        scale = abs(start - self.best)
        step = STEP * scale
        if self.test(start) != ACCEPTED:
            self.test(start - side * step)  # the end is not far within
        for _ in range(TRIALS):
            try:
                if self.test(outside) == REJECTED or outside == limit:
                    break
                reached = outside
            except NoFitError:
                self.unfitted[side] = outside
            if side not in self.unfitted:
                outside = self._clipped(outside + side * step)
                step *= 2.0
            elif abs(self.unfitted[side] - reached) <= RESOLUTION * scale:
                return  # not rejected as far as there are fits
            else:
                outside = 0.5 * (reached + self.unfitted[side])
        else:
            return  # not rejected as far as one would look
        self.unfitted.pop(side, None)
        for _ in range(TRIALS):
            value, _ = self._enclosed(side)
            if len(value) < 2:
                return  # accepted up to the limit
            within, beyond = value[:2], value[-2:]
            widest = max(within, beyond, key=lambda pair: abs(pair[1] - pair[0]))
            if abs(widest[1] - widest[0]) <= max(RESOLUTION * scale, SHARE * abs(value[-1] - value[0])):
                return
            self.test(float(widest.mean()))

    def _enclosed(self, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Values and p-values from the outermost that is accepted to the first beyond that is rejected, outward.

        Between them is what the toys do not tell. If none is rejected they end with the last of all.
        """
        outward = [p for p in self.points.values() if side * (p.value - self.best) > 0]
        outward.sort(key=lambda point: side * point.value)
        # at the minimum the data have t = 0, which every toy reaches
        value = np.array([self.best, *(point.value for point in outward)])
        p = np.array([1.0, *(point.p_value for point in outward)])
        verdict = np.array([ACCEPTED, *map(self._verdict, outward)])
        first = np.flatnonzero(verdict == ACCEPTED)[-1]
        last = np.flatnonzero(verdict != REJECTED)[-1]
        return value[first : last + 2], p[first : last + 2]

    def _verdict(self, point: Point) -> int:
        distance = point.p_value - self.level
        return UNDECIDED if abs(distance) <= CERTAIN * point.error else ACCEPTED if distance > 0 else REJECTED

    def _clipped(self, value: float) -> float:
        return min(max(value, self.limits[0]), self.limits[1])

    def _asymptotic_end(self, side: int, limit: float) -> float:
        """About where t of the data first is the quantile of a chi-square with one degree of freedom, or the limit."""
        wanted = 2.0 * gammaincinv(0.5, self.cl)
        spread = self.spread if self.spread > 0 else 0.1 * max(1.0, abs(self.best))
        within, fitted = self.best, True
        beyond: float | None = None  # t is larger, or the data have no fit
        value = self._clipped(self.best + side * np.sqrt(wanted) * spread)
        for _ in range(TRIALS):
            try:
                t = self.statistic(value)
            except NoFitError:
                t = np.nan
            if abs(np.sqrt(t / wanted) - 1.0) < 0.05 or (value == limit and t < wanted):
                return value
            if t < wanted:
                within = value
            else:
                beyond, fitted = value, not np.isnan(t)
            # the root of t is about linear in the parameter
            ratio = float(np.clip(np.sqrt(wanted / max(t, 1e-9)), 0.25, 2.0)) if fitted else 0.5
            value = self._clipped(self.best + (value - self.best) * ratio)
            if beyond is not None and not 0.0 < (value - within) / (beyond - within) < 1.0:
                if abs(beyond - within) < RESOLUTION * abs(beyond - self.best):
                    break
                value = 0.5 * (within + beyond)
        return value if fitted else within

    def interval(self) -> Interval:
        points = tuple(self.points[value] for value in sorted(self.points))
        (lower, lower_error, below), (upper, upper_error, above) = self._end(-1), self._end(1)
        at_limit = (lower == self.limits[0], upper == self.limits[1])
        beyond = (below and not at_limit[0], above and not at_limit[1])
        total, failed, ties = (sum(getattr(p, name) for p in points) for name in ("n_toys", "failed", "ties"))
        told = f"{total} toys at {len(points)} values, {failed} failed, {ties} equal to the data"
        told += "".join(f", no fit of the data at {self.pool.poi} = {value:.5g}" for value in self.unfitted.values())
        ends = " to ".join(
            f"{end:.5g} (the limit)"
            if limited
            else f"{end:.5g} (not rejected)"
            if open_
            else f"{end:.5g} +- {error:.2g}"
            for end, error, limited, open_ in zip(
                (lower, upper), (lower_error, upper_error), at_limit, beyond, strict=True
            )
        )
        sentence = (
            f"{100.0 * self.cl:.4g} % Feldman-Cousins interval of {self.pool.poi}: {ends}; {told}. {self.pool.sentence}"
        )
        return Interval(
            self.pool.poi,
            self.cl,
            lower,
            upper,
            lower_error,
            upper_error,
            at_limit,
            beyond,
            self.best,
            points,
            sentence,
        )

    def _end(self, side: int) -> tuple[float, float, bool]:
        """The end on one side, its error, and whether it is the last of the values."""
        value, p = self._enclosed(side)
        error = abs(float(value[-1] - value[0])) / np.sqrt(12.0)
        if p[-1] > self.level:
            return float(value[-1]), error, True
        above = np.flatnonzero(p > self.level)
        below = np.flatnonzero(p <= self.level)
        crossings = [_crossing(value[k : k + 2], p[k : k + 2], self.level) for k in (below[0] - 1, above[-1])]
        return float(np.mean(crossings)), error, False


def _crossing(value: np.ndarray, p: np.ndarray, level: float) -> float:
    """Where the line through two points has a p-value."""
    return value[0] + (p[0] - level) / (p[0] - p[1]) * (value[1] - value[0])
