"""Whether a density integrates to what the model says, checked numerically before anything is fitted, and after.

Afterwards it is the nodes of a fit range, or of bins, that are checked: a fit may end at a peak that falls between
them.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeGuard

import jax
import numpy as np

from engine.cost import Cost, called
from engine.data import Rows, as_float64
from engine.ranges import RangeIntegral, number_of_events
from engine.result import FitResult
from engine.sums import costs_of, observables_of
from engine.unbinned import ExtendedUnbinnedNLL, UnbinnedNLL
from kernels.elementwise import elementwise
from kernels.nodes import UntranslatableError
from kernels.quadrature import over_box

__all__ = ["check_integral", "excess", "warn_of_coarse_bins", "warn_of_coarse_ranges"]

TOLERATED = 1e-3  # relative difference of the integral and what the model says
MAX_DIMENSIONS = 3
SAMPLE = 100000  # events of which the range is taken
GAP = 1 / 64  # of the range: no density is expected in it if it holds no event
MAX_WINDOWS = 8
COARSE = 1e-3  # of a cost that changes by 0.5 within one error
COARSE_BIN = 1e-6  # of all events


def check_integral(cost: Cost, theta: Sequence[float] | np.ndarray, observable: Any) -> None:
    """Compare the integral of the density over the range of the observable with 1, or with the model's own integral.

    Only unbinned likelihoods without a fit range are checked; in a sum, each for itself.

    Parameters
    ----------
    cost : Cost
    theta : (n_params,)
    observable : (lower, upper), or d such pairs for d observables
        For a sum, one such entry for each cost: None where there is nothing to check; or a single (lower, upper) for
        all. Edges of a single observable may be infinite. More than three observables are not checked.

    Raises
    ------
    ValueError
        If the two differ by more than 1e-3, or the density is negative or not finite within the range; if a sum has
        not one entry for each cost.
    """
    theta = np.asarray(theta, dtype=np.float64)
    for part, its in zip(costs_of(cost), observables_of(cost, observable), strict=True):
        if not _is_checked(part) or its is None:
            continue
        box = np.atleast_2d(as_float64(its, "observable"))
        if len(box) > MAX_DIMENSIONS:
            continue
        value, error, expected = _integrals(part, theta[[cost.names.index(name) for name in part.names]], box)
        if not np.isfinite(value):
            raise ValueError(
                f"the density of {called(part.model)} is not finite or negative somewhere in {_told(box)}, at "
                f"{_at(cost, theta)}: it must be a density there"
            )
        if abs(value - expected) > max(TOLERATED * abs(expected), 10.0 * error):
            raise ValueError(_mismatch(part, value, expected, box))


def excess(cost: Cost, rows: Rows, theta: np.ndarray) -> list[str]:
    """Sentences on densities of one observable whose integral over where the events lie is above what the model says.

    That is only part of the observable's range, so that a smaller integral says nothing.
    """
    sentences, first = [], 0
    for part in costs_of(cost):
        leaf = rows.leaves[first]
        first += len(part.leaves)
        if not _is_checked(part) or "x1" in leaf.names:
            continue
        x = leaf.columns[leaf.names.index("x0"), :: max(1, leaf.columns.shape[1] // SAMPLE)]
        windows = _windows(x[np.isfinite(x)])
        if not 0 < len(windows) <= MAX_WINDOWS:
            continue
        own = theta[[cost.names.index(name) for name in part.names]]
        integrals = [_integrals(part, own, window[None]) for window in windows]
        value, error, expected = sum(i[0] for i in integrals), sum(i[1] for i in integrals), integrals[0][2]
        if value == -np.inf:
            sentences.append(
                f"the density of {called(part.model)} is negative somewhere in "
                f"{_told(windows[[0, -1], [0, 1]][None])}, where there are events, at {_at(cost, theta)}"
            )
        if value - expected > max(TOLERATED * abs(expected), 10.0 * error):
            sentences.append(_mismatch(part, value, expected, windows[[0, -1], [0, 1]][None]))
    return sentences


def warn_of_coarse_ranges(cost: Cost, rows: Rows, result: FitResult) -> None:
    """Warn, once for each cost, where the nodes of a fit range are too few at the minima.

    Looked at are the toys with the smallest and the largest value of each parameter: whether what twice as many nodes
    add to the cost is another within one error of a parameter, which moves the minimum or changes the error.
    """
    first = 0
    part: Any
    for part in costs_of(cost):
        place, first = first, first + len(part.leaves)
        integral = getattr(part, "integral", None)
        if not isinstance(integral, RangeIntegral) or vars(integral).get("_coarse") or not result.valid.any():
            continue
        own = [cost.names.index(name) for name in part.names]
        toys = np.flatnonzero(result.valid)
        values, errors = (array[toys][:, own] for array in (result.values, result.errors))
        some = np.unique([values.argmin(axis=0), values.argmax(axis=0)])
        steps = np.concatenate([np.zeros((1, len(own))), np.eye(len(own)), -np.eye(len(own))])
        points = values[some][:, None] + steps * errors[some][:, None]
        density = _as_numpy(part, "density", lambda *a, part=part: part.density(a[:-1], {"x0": a[-1]}), len(own), 1)
        once, twice = (
            _over_range(part, density, points.reshape(-1, len(own)), integral.nodes(n))
            for n in (integral.n_nodes, 2 * integral.n_nodes)
        )
        with np.errstate(all="ignore"):
            if part.extended:
                added = (twice - once).reshape(points.shape[:2])
            else:
                n_events = number_of_events(rows.leaves[place])[toys[some]]
                added = n_events[:, None] * np.log(twice / once).reshape(points.shape[:2])
            change = np.nan_to_num(np.abs(added[:, 1:] - added[:, :1]), nan=0.0, posinf=0.0)
        if change.max() > COARSE:
            vars(integral)["_coarse"] = True
            k, of = np.unravel_index(np.argmax(change), change.shape)
            warnings.warn(
                f"the fit range of {called(part.model)} has too few nodes: with {2 * integral.n_nodes} in place of "
                f"{integral.n_nodes} the cost of toy {toys[some][k]} changes by {change.max():.2g} within one error of "
                f"{part.names[of % len(own)]!r}, which is a change of 0.5: pass a larger n_nodes, or divide the "
                "density by its integral and leave out fit_range",
                stacklevel=3,
            )


def warn_of_coarse_bins(cost: Cost, points: np.ndarray, valid: np.ndarray) -> None:
    """Warn, once for each cost, where a density has too few nodes in a bin, at the valid ones of (n, n_params) points.

    Looked at are those with the smallest and the largest value of each parameter.
    """
    part: Any
    for part in costs_of(cost):
        if getattr(part, "use_pdf", "") != "numerical" or vars(part).get("_coarse") or not valid.any():
            continue
        values = points[valid][:, [cost.names.index(name) for name in part.names]]
        some = values[np.unique([values.argmin(axis=0), values.argmax(axis=0)])]
        density = _as_numpy(part, "density", lambda *a, part=part: part.density(a[-1], a[:-1]), some.shape[1], 1)
        once, twice = (_over_bins(part, density, some, n) for n in (part.n_nodes, 2 * part.n_nodes))
        error = np.nan_to_num(np.abs(once - twice), posinf=0.0)
        of, k = np.unravel_index(np.argmax(error), error.shape)
        if error[of, k] > COARSE_BIN * np.abs(twice[of]).sum():
            vars(part)["_coarse"] = True
            warnings.warn(
                f"the density of {called(part.model)} changes too much from {part.edges[k]:g} to {part.edges[k + 1]:g} "
                f"for {part.n_nodes} nodes, which give {once[of, k]:.6g} where twice as many give {twice[of, k]:.6g}: "
                "pass a larger n_nodes",
                stacklevel=3,
            )


def _over_range(part: Any, density: Callable, points: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """The integral by these nodes at each point, (n_points, n_params)."""
    value = density(*points.T[:, :, None], nodes[0])
    with np.errstate(all="ignore"):
        return (np.exp(value) if part.log else value) @ nodes[1]


def _over_bins(part: Any, density: Callable, points: np.ndarray, n_nodes: int) -> np.ndarray:
    """The integrals over all bins by so many nodes at each point, (n_points, n_bins)."""
    nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
    half, middle = 0.5 * np.diff(part.edges), 0.5 * (part.edges[1:] + part.edges[:-1])
    with np.errstate(all="ignore"):
        value = density(*points.T[:, :, None], (middle[:, None] + half[:, None] * nodes).ravel())
        return half * (value.reshape(len(points), len(half), n_nodes) @ weights)


def _windows(x: np.ndarray) -> np.ndarray:
    """Ranges without a large gap, (n, 2): the density may be one for the sidebands alone."""
    x = np.sort(x)
    if len(x) < 2 or max(-x[0], x[-1]) > np.finfo(float).max / 2:  # no range that a float could hold
        return np.empty((0, 2))
    gaps = np.flatnonzero(np.diff(x) > GAP * (x[-1] - x[0]))
    windows = np.stack([x[np.r_[0, gaps + 1]], x[np.r_[gaps, len(x) - 1]]], axis=1)
    return windows[windows[:, 0] < windows[:, 1]]


def _is_checked(cost: Cost) -> TypeGuard[UnbinnedNLL | ExtendedUnbinnedNLL]:
    return isinstance(cost, UnbinnedNLL | ExtendedUnbinnedNLL) and cost.integral is None


def _integrals(cost: Any, theta: np.ndarray, box: np.ndarray) -> tuple[float, float, float]:
    """Integral of the density over a box and its error, and what the model says it is.

    The integral is NaN where the density is not finite somewhere, or -inf where it is negative.
    """
    n_params, names = len(cost.names), [f"x{k}" for k in range(len(box))]
    row = lambda args: dict(zip(names, args[n_params:], strict=True))  # noqa: E731
    density = _as_numpy(cost, "density", lambda *args: cost.density(args[:n_params], row(args)), n_params, len(box))

    def integrand(x: np.ndarray) -> np.ndarray:
        value = density(*theta, *x)
        value = np.exp(value) if cost.log else value
        negative.append(bool(np.any(value < 0.0)))
        return np.where(value >= 0.0, value, np.nan)

    negative = list[bool]()
    value, error = over_box(integrand, box)
    value = -np.inf if any(negative) else value
    if not cost.extended:
        return value, error, 1.0
    whole = _as_numpy(cost, "integral", lambda *args: cost.rest(args[:n_params], row(args), ()), n_params, len(box))
    at_zero, at_one = (float(whole(*theta, *np.full(len(box), x))) for x in (0.0, 1.0))
    # the driver has its own words for an integral that depends on x
    return value, error, at_zero if at_zero == at_one else np.nan


def _as_numpy(cost: Cost, what: str, function: Callable, n_params: int, d: int) -> Callable:
    made = cost.kept("as numpy")
    if (what, d) not in made:
        try:
            made[what, d] = elementwise(function, n_params + d)
        except UntranslatableError:
            made[what, d] = _by_jax(function, n_params, d)
    return made[what, d]


def _by_jax(function: Callable, n_params: int, d: int) -> Callable:
    """The same for a model without a scalar form, compiled for one number of points."""
    chunk = 4096
    compiled = jax.jit(jax.vmap(function, in_axes=(None,) * n_params + (0,) * d))

    def evaluate(*args: np.ndarray) -> np.ndarray:
        if n_params and np.ndim(args[0]):  # at several points, (n_points, 1)
            return np.stack([evaluate(*point, *args[n_params:]) for point in np.hstack(args[:n_params])])
        theta, x = args[:n_params], np.atleast_2d(np.array(args[n_params:]).T).T
        result = np.empty(x.shape[1])
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            for first in range(0, len(result), chunk):
                part = np.minimum(np.arange(first, first + chunk), len(result) - 1)
                result[first : first + chunk] = np.asarray(compiled(*theta, *x[:, part]))[: len(result) - first]
        return result if np.ndim(args[-1]) else result[0]

    return evaluate


def _mismatch(cost: Any, value: float, expected: float, box: np.ndarray) -> str:
    found = f"the density of {called(cost.model)} integrates to {value:.6g} over {_told(box)}"
    if cost.extended:
        return f"{found}, but the integral that it returns is {expected:.6g}: return the number of events in this range"
    return (
        f"{found}, but it must integrate to 1: divide it by its integral over the range of the data (as truncnorm does "
        "and norm does not), or pass fit_range"
    )


def _told(box: np.ndarray) -> str:
    return " and ".join(
        f"{low:g} < {'x' if len(box) == 1 else f'x[{k}]'} < {high:g}" for k, (low, high) in enumerate(box)
    )


def _at(cost: Cost, theta: np.ndarray) -> str:
    return ", ".join(f"{name} = {value:.6g}" for name, value in zip(cost.names, theta, strict=True))
