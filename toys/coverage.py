"""Coverage: how often the interval of a fit holds the truth, as an honest one of 68.27 % does in 68.27 % of toys."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from engine.minos import MinosResult
from engine.printing import Table
from engine.result import FitResult
from engine.status import Status
from toys.pulls import same_toys
from toys.statistics import ONE_SIGMA, fraction, known_truth

__all__ = [
    "COVERAGE_HEADER",
    "Coverage",
    "CoverageRow",
    "Outcome",
    "coverage",
    "failures",
    "percent",
    "probability",
    "regions",
]

LEVELS = (0.6827, 0.90, 0.9545)
#: What a limit and the interval that ends on it may differ by, in lengths of the interval: the rounding of a sum.
ROUNDING = 1e-9
SAME_LEVEL = 5e-4  # 0.683 is one standard deviation


class Outcome(IntEnum):
    """What became of the interval of one toy; from NO_FIT on there is none."""

    INSIDE = 0
    TOO_LOW = 1
    TOO_HIGH = 2
    NO_FIT = 3
    NO_ERROR = 4
    NO_MINOS = 5

    @property
    def sentence(self) -> str:
        return SENTENCES[self]


SENTENCES = {
    Outcome.INSIDE: "the interval holds the truth",
    Outcome.TOO_LOW: "the interval lies below the truth",
    Outcome.TOO_HIGH: "the interval lies above the truth",
    Outcome.NO_FIT: "no valid fit",
    Outcome.NO_ERROR: "no error: held, or at a limit",
    Outcome.NO_MINOS: "no MINOS interval",
}


class CoverageRow(NamedTuple):
    """Coverage of one parameter by one kind of interval at one level.

    Attributes
    ----------
    name : str
    method : str
        "hesse" or "minos".
    level : float
        The nominal coverage.
    n_toys, n : int
        All toys, and those that have an interval.
    inside, too_low, too_high : int
        How many intervals hold the truth, lie below and lie above it: their sum is n.
    coverage, low, high : float
        inside / n, with its binomial interval of 68.27 %. NaN without any interval.
    at_limit : int
        Intervals with a side that ends on a limit of the parameter, and extends to it. They are among the n.
    missing : dict
        Why the other toys have no interval: sentence -> number of toys. `n_toys == n + sum(missing.values())`.
    """

    name: str
    method: str
    level: float
    n_toys: int
    n: int
    inside: int
    too_low: int
    too_high: int
    coverage: float
    low: float
    high: float
    at_limit: int
    missing: dict[str, int]

    @property
    def distance(self) -> float:
        """coverage - level in standard deviations sqrt(level (1 - level) / n) of an honest interval."""
        return (self.coverage - self.level) / np.sqrt(self.level * (1 - self.level) / self.n) if self.n else np.nan

    @property
    def cells(self) -> list[str]:
        """The row as text, under COVERAGE_HEADER."""
        return [
            self.method,
            percent(self.level),
            f"{100 * self.coverage:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}]",
            f"{self.distance:+.1f} sigma",
            *map(str, (self.n, self.too_low, self.too_high, self.at_limit, self.n_toys - self.n)),
        ]


COVERAGE_HEADER = (
    "interval", "level", "coverage", "from nominal", "toys", "too low", "too high", "at a limit", "no interval"
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Coverage:
    """What became of every interval, and the coverage of each parameter by each method at each level.

    Attributes
    ----------
    names : tuple of str
        Parameters with a true value: the columns.
    outcomes : dict
        (method, level) -> (n_toys, n_names) int8 of `Outcome`.
    at_limit : dict
        (method, level) -> (n_toys, n_names) bool, where a side ends on a limit.
    interval : {"wilson", "clopper-pearson"}
        Of the coverage.
    """

    names: tuple[str, ...]
    outcomes: dict[tuple[str, float], np.ndarray]
    at_limit: dict[tuple[str, float], np.ndarray]
    interval: str = "wilson"

    @property
    def rows(self) -> list[CoverageRow]:
        """By parameter, then level, then method; parameters that never have an interval are left out."""
        keys = sorted(self.outcomes, key=lambda key: (key[1], key[0]))
        rows = [self._row(i, *key) for i in range(len(self.names)) for key in keys]
        held = {name for name in self.names if not any(row.n for row in rows if row.name == name)}
        return [row for row in rows if row.name not in held]

    def _row(self, column: int, method: str, level: float) -> CoverageRow:
        outcome, at_limit = self.outcomes[method, level][:, column], self.at_limit[method, level][:, column]
        inside, too_low, too_high, *without = np.bincount(outcome, minlength=len(Outcome)).tolist()
        n = inside + too_low + too_high
        return CoverageRow(
            self.names[column],
            method,
            level,
            len(outcome),
            n,
            inside,
            too_low,
            too_high,
            *fraction(inside, n, self.interval),
            int((at_limit & (outcome < Outcome.NO_FIT)).sum()),
            {kind.sentence: number for kind, number in zip(list(Outcome)[3:], without, strict=True) if number},
        )

    def row(self, name: str, method: str, level: float) -> CoverageRow:
        return self._row(self.names.index(name), method, probability(level))

    def __getitem__(self, toys: Any) -> "Coverage":
        """The coverage of some toys: a slice, a mask or indices."""
        some = [{key: array[toys] for key, array in each.items()} for each in (self.outcomes, self.at_limit)]
        return replace(self, outcomes=some[0], at_limit=some[1])

    def table(self) -> Table:
        cells = [[row.name, *row.cells] for row in self.rows]
        n_toys = max(map(len, self.outcomes.values()))
        return Table(
            [f"coverage of the intervals of {n_toys} toys"],
            ["", *COVERAGE_HEADER],
            cells or [["none"] + [""] * len(COVERAGE_HEADER)],
        )

    def __repr__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()


def probability(level: float) -> float:
    """A confidence level below 1 as it is, and a number of standard deviations from 1 on as 2 Phi(level) - 1."""
    if not 0 < level < np.inf:
        raise ValueError(f"a level must be a probability, or a number of standard deviations from 1 on, got {level}")
    return float(level) if level < 1 else float(ndtr(level) - ndtr(-level))


def percent(level: float) -> str:
    """A level as text: 68.27 %."""
    return f"{100 * level:.4g} %"


def coverage(
    result: FitResult,
    truth: Mapping[str, Any],
    minos: Mapping[float, MinosResult] | MinosResult | None = None,
    levels: Sequence[float] = LEVELS,
    *,
    interval: str = "wilson",
) -> Coverage:
    """How often the intervals of fits hold the truth.

    The Hesse interval of level c is theta_hat -+ z error with z = Phi^-1((1 + c) / 2), that of MINOS is
    [theta_hat + lower, theta_hat + upper], both closed. A side that ends on a limit extends to it. Toys without an
    interval are in `missing`, by kind, and in no fraction.

    Parameters
    ----------
    result : FitResult
    truth : dict name -> true value, or (n_toys,) true values
        Names that the fit does not have do no harm; parameters without a true value are left out.
    minos : dict level -> MinosResult, optional
        Of the same toys. A single one is taken for the default of `result.minos`, one standard deviation.
    levels : sequence of float
        Probabilities, or, from 1 on, numbers of standard deviations.
    interval : {"wilson", "clopper-pearson"}
        Binomial interval of the coverage.

    Returns
    -------
    Coverage

    Raises
    ------
    ValueError
        If a level or a true value is none, or `minos` is of other toys.
    """
    theta_true = known_truth(result, truth)
    fraction(0, 1, interval)  # refuses an unknown interval
    known = np.isfinite(theta_true).all(axis=0)
    names = tuple(name for name, has in zip(result.names, known, strict=True) if has)
    if isinstance(minos, MinosResult):
        minos = {ONE_SIGMA: minos}
    outcomes, at_limit = {}, {}
    for level in sorted({probability(level) for level in levels}):
        z = ndtri(0.5 + 0.5 * level)
        half = np.where(result.errors > 0, z * result.errors, np.nan)
        code = _outcomes(result, theta_true, -half, half, Outcome.NO_ERROR)
        outcomes["hesse", level] = code[:, known]
        at_limit["hesse", level] = np.zeros(code.shape, bool)[:, known]
    for given, found in (minos or {}).items():
        level = _nearest(probability(given), levels)
        same_toys(result, found)
        sides = np.full((2, *theta_true.shape), np.nan)
        limit = np.zeros(theta_true.shape, dtype=bool)
        columns = [result.names.index(name) for name in found.names]
        sides[:, :, columns] = np.where(found.valid, [found.lower, found.upper], np.nan)
        limit[:, columns] = found.at_lower_limit | found.at_upper_limit
        code = _outcomes(found.result, theta_true, sides[0], sides[1], Outcome.NO_MINOS)
        outcomes["minos", level], at_limit["minos", level] = code[:, known], limit[:, known]
    return Coverage(names, outcomes, at_limit, interval)


def _nearest(level: float, levels: Sequence[float]) -> float:
    """The one of `levels` that an interval is of; 0.6827 and 0.683 stand for one standard deviation."""
    nearest = min(map(probability, levels), key=lambda other: abs(other - level))
    if abs(nearest - level) > SAME_LEVEL:
        raise ValueError(
            f"minos has intervals of {level:.6g}, which is none of the levels {', '.join(map(str, levels))}"
        )
    return nearest


def _outcomes(
    result: FitResult, theta_true: np.ndarray, lower: np.ndarray, upper: np.ndarray, without: Outcome
) -> np.ndarray:
    """(n_toys, n_params) int8 of Outcome, for the intervals value + lower to value + upper."""
    slack = ROUNDING * (upper - lower)
    distance = theta_true - result.values
    code = np.full(distance.shape, Outcome.INSIDE, dtype=np.int8)
    code[distance > upper + slack] = Outcome.TOO_LOW
    code[distance < lower - slack] = Outcome.TOO_HIGH
    code[np.isnan(lower) | np.isnan(upper)] = without
    code[~result.valid] = Outcome.NO_FIT
    return code


def failures(result: FitResult, region: np.ndarray, n_regions: int) -> list[dict[str, int]]:
    """For each region, how many toys it has and how many of them failed, by kind; or are at a limit, or were rescued.

    Parameters
    ----------
    result : FitResult
    region : (n_toys,) int
        In which region a toy is, 0 to n_regions - 1.
    n_regions : int
    """
    table = []
    for k in range(n_regions):
        inside = region == k
        failed = Counter(Status(code).name for code in result.status[inside & ~result.valid].tolist())
        table.append(
            {"toys": int(inside.sum()), "failed": sum(failed.values())}
            | dict(sorted(failed.items()))
            | {
                "at a limit": int(result.at_limit[inside].any(axis=1).sum()),
                "rescued": int(result.rescued[inside].sum()),
            }
        )
    return table


def regions(values: np.ndarray, n_regions: int) -> tuple[np.ndarray, list[str]]:
    """Toys in quantiles of a fitted value, as many in each: (region of each toy, its range as text).

    A toy whose value is not finite is in the last region, "not finite", if there is one.
    """
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(len(values), dtype=np.int64), ["not finite"]
    edges = np.unique(np.quantile(values[finite], np.linspace(0.0, 1.0, n_regions + 1)))
    if len(edges) == 1:  # all are one value
        edges = np.repeat(edges, 2)
    inner = edges[1:-1]
    region = np.where(finite, np.searchsorted(inner, np.where(finite, values, 0.0), side="right"), len(inner) + 1)
    told = [f"{low:.4g} to {high:.4g}" for low, high in itertools.pairwise(edges)]
    return region, told + ([] if finite.all() else ["not finite"])
