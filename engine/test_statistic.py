"""Test statistics from profile likelihood ratios, for every toy at once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.arguments import held, held_names, known, limit_arrays, one_of, per_toy, start_points
from engine.cost import Cost, check_cost
from engine.fit import check_fits, fit_batch, refit
from engine.profile import profile_of
from engine.result import FitResult
from engine.sandwich import warn_of_weights

__all__ = ["TEST_STATISTICS", "TestStatistic", "checked_poi", "lower_bounded", "test_statistic"]

#: Those of Cowan et al.: eq. 8, 11, 14, 16 and 12.
TEST_STATISTICS = ("t", "ttilde", "q", "qtilde", "q0")
WORSE = 1e-6  # errordef by which a free fit may lie above the fixed one before it is done again
ASIDE = 3.0  # errors of another parameter by which its fixed fit may leave the line along the covariance
STEPS = 17  # from the minimum to the tested value, where it has


@dataclass(frozen=True, eq=False)
class TestStatistic:
    """The test statistic of every toy, and the fits it is made of.

    Attributes
    ----------
    test_stat, poi : str
    tested : (n_toys,) float64
        Tested values of the parameter of interest.
    value : (n_toys,) float64
        The statistic, in units of a chi-square; NaN where a fit failed.
    poi_hat : (n_toys,) float64
        The parameter of interest at the minimum of the free fit.
    valid : (n_toys,) bool
        Both fits are valid; or the free fit alone, where it tells that a one-sided statistic is 0.
    free : FitResult
    fixed : FitResult or None
        The fits at the tested values; None where they were not kept.
    """

    __test__ = False  # no test, whatever pytest makes of the name

    test_stat: str
    poi: str
    tested: np.ndarray
    value: np.ndarray
    poi_hat: np.ndarray
    valid: np.ndarray
    free: FitResult
    fixed: FitResult | None

    def __len__(self) -> int:
        return len(self.value)

    def __repr__(self) -> str:
        failed = len(self) - int(self.valid.sum())
        return f"TestStatistic({self.test_stat!r} of {self.poi}, {len(self)} toys, {failed} failed)"


def test_statistic(
    cost: Cost,
    data: Any,
    poi: str,
    value: Any,
    *,
    test_stat: str = "qtilde",
    start: Any,
    limits: Mapping[str, tuple] | None = None,
    fixed: Sequence[str] | Mapping[str, Any] | None = None,
    free: FitResult | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> TestStatistic:
    """The test statistic of every toy for a hypothesis about one parameter.

    With the profile likelihood ratio lambda(mu) = L(mu, theta_hathat) / L(mu_hat, theta_hat):

    | test_stat | statistic | free fit |
    | --- | --- | --- |
    | "t" | t_mu = -2 log lambda(mu), eq. 8 | within the limits |
    | "ttilde" | the same, eq. 11 | mu >= 0 |
    | "q" | q_mu = t_mu where mu_hat <= mu, else 0, eq. 14 | within the limits |
    | "qtilde" | the same, eq. 16 | mu >= 0 |
    | "q0" | t_0 where mu_hat > 0, else 0, eq. 12 | mu >= 0, which leaves q0 as it is |

    A minimum on a limit is found exactly, so that with mu >= 0 the denominator of eq. 11 and 16 comes by itself. The
    fixed fit starts from the minimum of the free one, moved along its covariance, theta_j + V_ji / V_ii (mu - mu_hat).
    Where it fails it is repeated from `start`; where it ends below the free fit, that one was in another local minimum
    and is repeated from there.

    Parameters
    ----------
    cost : Cost
    data
        The toys, as `fit_batch` takes them.
    poi : str
        The parameter of interest.
    value : float or (n_toys,) array
        Tested values; 0 for "q0".
    test_stat : {"t", "ttilde", "q", "qtilde", "q0"}
    start, limits, fixed, backend, device
        As for `fit_batch`, for the free fits.
    free : FitResult, optional
        An earlier free fit of the same toys, so that several tested values share it. Toys for which it is not the
        minimum within the limits of this statistic are fitted again.

    Returns
    -------
    TestStatistic

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong form, the parameter of interest is unknown or fixed, a tested value is outside
        of its limits, or the free fits are not those of these toys, as the cost of the first valid one tells.

    References
    ----------
    Cowan, Cranmer, Gross & Vitells, Eur. Phys. J. C 71 (2011) 1554, arXiv:1007.1727.
    """
    check_cost(cost)
    one_of("test_stat", test_stat, TEST_STATISTICS)
    i = checked_poi(cost.names, poi, fixed)
    rows = cost.rows(data)
    n_toys = len(rows)
    tested = np.array(np.broadcast_to(per_toy("value", value, n_toys), n_toys))
    lower, upper = limit_arrays(cost.names, limits)
    if test_stat in ("ttilde", "qtilde", "q0"):
        limits = lower_bounded(limits, poi)
        lower, upper = limit_arrays(cost.names, limits)
    _check_tested(poi, tested, test_stat, lower[i], upper[i])
    points = start_points(cost.names, start, n_toys)
    points[:, i] = np.clip(points[:, i], lower[i], upper[i])
    is_free, points = held(cost.names, fixed, points)
    warn_of_weights(cost, rows, "this statistic follows no chi-square")
    options: dict[str, Any] = {"limits": limits, "backend": backend, "device": device}
    constants: dict[str, Any] = {name: points[:, j] for j, name in enumerate(cost.names) if not is_free[j]}
    if free is None:
        free = fit_batch(cost, data, points, fixed=constants, **options)
    elif not isinstance(free, FitResult):
        raise TypeError(f"free must be the FitResult of an earlier free fit, got {type(free).__name__}")
    elif free.names != cost.names or len(free) != n_toys:
        raise ValueError(
            f"free must hold the fits of these {n_toys} toys with the parameters {', '.join(cost.names)}, "
            f"got {len(free)} fits with {', '.join(free.names)}"
        )
    elif free.valid.any() and (free.free != is_free).any():
        told = ", ".join(name for name, moved in zip(free.names, free.free, strict=True) if not moved) or "nothing"
        raise ValueError(f"free must hold the fits with the same parameters held: it held {told}, got fixed={fixed!r}")

    near = np.where(free.valid[:, None], _moved(free, i, tested), points)
    near = np.clip(near, lower, upper)
    near[:, i], near[:, ~is_free] = tested, points[:, ~is_free]
    conditional = fit_batch(cost, data, near, fixed={**constants, poi: tested}, **options)
    problem = conditional.problem
    assert problem is not None  # of a fit that was just made
    check_fits(problem, free, free.values)
    unsettled = np.flatnonzero(~conditional.valid & free.valid)
    if len(unsettled):
        from_start = points[unsettled]
        from_start[:, i] = tested[unsettled]
        conditional = _better(conditional, unsettled, refit(problem, unsettled, from_start))
    with np.errstate(invalid="ignore", divide="ignore"):
        aside = np.abs(conditional.values - near) > ASIDE * free.errors
    far = np.flatnonzero(conditional.valid & free.valid & aside.any(axis=1))
    if len(far):  # they may have come into the valley of another minimum, and not along that of their own
        way = free.values[far, i, None] + (tested - free.values[:, i])[far, None] * np.linspace(0.0, 1.0, STEPS)
        own: Any = replace(free, problem=replace(problem, settings=replace(problem.settings, free=is_free)))[far]
        led = profile_of(own, poi, grid=np.clip(way, lower[i], upper[i])).values[:, -1]
        led = np.where(np.isfinite(led), led, conditional.values[far])
        conditional = _better(conditional, far, refit(problem, far, led))

    # the same toys and limits, with the parameter of interest free
    problem = replace(problem, settings=replace(problem.settings, free=is_free))
    poi_hat = free.values[:, i]
    outside = free.valid & ((poi_hat < lower[i]) | (poi_hat > upper[i]))
    outside |= free.valid & free.at_limit[:, i] & (poi_hat != lower[i]) & (poi_hat != upper[i])
    if outside.any():
        toys = np.flatnonzero(outside)
        other = refit(problem, toys, np.clip(free.values[toys], lower, upper))
        retried = np.flatnonzero(~other.valid)
        if len(retried):
            other = _better(other, retried, refit(problem, toys[retried], points[toys[retried]]))
        free = free.replaced(toys, other)
    below = conditional.valid & ~(conditional.fval >= free.fval - WORSE * cost.errordef)
    below |= conditional.valid & ~free.valid
    if below.any():
        toys = np.flatnonzero(below)
        free = _better(free, toys, refit(problem, toys, conditional.values[toys]))
    return _statistic(test_stat, poi, i, tested, free, conditional)


def checked_poi(names: tuple[str, ...], poi: Any, fixed: Any = None) -> int:
    """The position of the parameter of interest; TypeError or ValueError if it is none, or is fixed."""
    if not isinstance(poi, str):
        raise TypeError(f"poi must be the name of one parameter, got {poi!r}")
    known(names, [poi], "poi")
    if poi in held_names(names, fixed):
        raise ValueError(f"the parameter of interest {poi!r} is fixed: it must be free to be tested")
    return names.index(poi)


def lower_bounded(limits: Mapping[str, tuple] | None, poi: str) -> dict[str, Any]:
    """The limits, with the parameter of interest not below 0."""
    limits = limits or {}
    low, high = (None, None) if limits.get(poi) is None else limits[poi]
    return {**limits, poi: (0.0 if low is None else max(0.0, float(low)), high)}


def _check_tested(poi: str, tested: np.ndarray, test_stat: str, lower: float, upper: float) -> None:
    if not np.isfinite(tested).all():
        raise ValueError("tested values must be finite")
    if test_stat == "q0" and tested.any():
        raise ValueError(f"q0 tests {poi} = 0, got {tested[tested != 0][0]:g}: pass 0, or another test_stat")
    outside = (tested < lower) | (tested > upper)
    if outside.any():
        value = tested[outside][0]
        raise ValueError(
            f"the tested {poi} = {value:g} is outside of the limits ({lower:g}, {upper:g}) of {test_stat!r}"
        )


def _moved(free: FitResult, i: int, tested: np.ndarray) -> np.ndarray:
    """The minima moved along their covariance to the tested values, (n_toys, n_params)."""
    row, variance = free.covariance[:, i], free.covariance[:, i, i]
    usable = np.isfinite(row).all(axis=1) & (variance > 0)
    slope = row / np.where(usable, variance, 1.0)[:, None]
    return free.values + np.where(usable[:, None], slope * (tested - free.values[:, i])[:, None], 0.0)


def _better(fits: FitResult, toys: np.ndarray, others: FitResult) -> FitResult:
    """The fits, with those of some toys replaced by valid ones that are lower, or that failed later."""
    wins = others.valid & (~fits.valid[toys] | (others.fval < fits.fval[toys]))
    wins |= ~np.isfinite(fits.fval[toys]) & np.isfinite(others.fval)
    return fits.replaced(toys[wins], others[wins]) if wins.any() else fits  # type: ignore[arg-type]


def _statistic(
    test_stat: str, poi: str, i: int, tested: np.ndarray, free: FitResult, conditional: FitResult
) -> TestStatistic:
    poi_hat = free.values[:, i]
    with np.errstate(invalid="ignore"):
        value = (conditional.fval - free.fval) / free.errordef  # errordef 0.5 is a likelihood: twice the difference
        valid = free.valid & conditional.valid & (value >= -2.0 * WORSE)
        value = np.maximum(value, 0.0)
        if test_stat in ("q", "qtilde", "q0"):
            zero = free.valid & (poi_hat <= tested if test_stat == "q0" else poi_hat > tested)
            value, valid = np.where(zero, 0.0, value), valid | zero
    return TestStatistic(
        test_stat=test_stat,
        poi=poi,
        tested=tested,
        value=np.where(valid, value, np.nan),
        poi_hat=poi_hat,
        valid=valid,
        free=free,
        fixed=conditional,
    )
