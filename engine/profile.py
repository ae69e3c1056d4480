"""Profiles and contours of the likelihood for all toys at once, one batch over toys and points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.arguments import known, whole
from engine.crossing import AT_LIMIT, FOUND, NEW_MINIMUM, Rays, blocks, crossings
from engine.data import as_float64, shown
from engine.drivers import is_valid
from engine.fit import needed_problem, problem_of
from engine.minos import at_minimum, level
from engine.result import FitResult
from engine.sandwich import warn_of_weights
from kernels.derivatives import unpacked_hessian
from kernels.program import GRADIENT, VALUE

__all__ = ["Contour", "Profile", "contour", "contour_of", "profile", "profile_of"]

CONTOUR_CL = 0.68
MOST_SWEEPS = 4  # along a profile


@dataclass(frozen=True, eq=False)
class Profile:
    """Profiles of one parameter.

    Attributes
    ----------
    name : str
    x : (n_toys, n) float64
        Values of the parameter.
    fval : (n_toys, n) float64
        Minimum of the cost over all other parameters there; NaN where there is none.
    values : (n_toys, n, n_params) float64
        All parameters of these minima.
    valid : (n_toys, n) bool
    new_minimum : (n_toys,) bool
        The profile goes below the minimum of the fit: that was not the lowest.
    """

    name: str
    x: np.ndarray
    fval: np.ndarray
    values: np.ndarray
    valid: np.ndarray
    new_minimum: np.ndarray


@dataclass(frozen=True, eq=False)
class Contour:
    """Contours of two parameters.

    Attributes
    ----------
    names : (str, str)
    points : (n_toys, n, 2) float64
        Points on the contour, counterclockwise around the minimum, the first one in the direction of x; NaN where
        there is none.
    valid : (n_toys, n) bool
    at_limit : (n_toys, n) bool
        The point lies on a limit, inside of the contour.
    """

    names: tuple[str, str]
    points: np.ndarray
    valid: np.ndarray
    at_limit: np.ndarray


def profile(
    cost: Any,
    data: Any,
    result: FitResult,
    name: str,
    *,
    size: int = 30,
    bound: float | tuple[float, float] = 2.0,
    grid: Any = None,
    subtract_min: bool = False,
    limits: Any = None,
    fixed: Sequence[str] | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> Profile:
    """Profile of a parameter for every toy, for fits that were read from a file; else `result.profile` is the same.

    F(x) = min of the cost over all other parameters, with theta_i = x held: -log of the profile likelihood, or
    chi-square, as the cost has it.

    Parameters
    ----------
    cost, data, limits, backend, device
        As they were given to `fit_batch`.
    result : FitResult
        The fits of these data.
    name : str
    size : int
        Number of points.
    bound : float or (lower, upper)
        From so many errors below the minimum to as many above it, or from one number to another; cut at the limits.
    grid : (n,) or (n_toys, n), optional
        Points, instead of size and bound.
    subtract_min : bool
        Give F(x) - F0, with F0 the minimum of the fit.
    fixed : sequence of str, optional
        As for `engine.minos`.

    Raises
    ------
    ValueError, TypeError
        If the name is unknown or of a parameter that is held, points lie outside of its limits, or an argument has the
        wrong form.
    """
    problem = problem_of(cost, data, result, limits=limits, fixed=fixed, backend=backend, device=device)
    result = dataclasses.replace(result, problem=problem)
    return profile_of(result, name, size=size, bound=bound, grid=grid, subtract_min=subtract_min)


def profile_of(
    result: FitResult,
    name: str,
    *,
    size: int = 30,
    bound: float | tuple[float, float] = 2.0,
    grid: Any = None,
    subtract_min: bool = False,
) -> Profile:
    """As `profile`, for a result that knows its cost and data."""
    problem = needed_problem(result, "profile")
    if not isinstance(subtract_min, bool | np.bool_):
        raise TypeError(f"subtract_min must be True or False, got {shown(subtract_min)}")
    i = _free(result, problem.settings.free, name, "profile")
    x = _points(result, i, size, bound, grid)
    n_toys, n = x.shape
    settings = dataclasses.replace(problem.settings, free=problem.settings.free & (np.arange(len(result.names)) != i))
    shape = (n_toys, n, len(result.names))
    values, fval, valid = np.full(shape, np.nan), np.full((n_toys, n), np.nan), np.zeros((n_toys, n), dtype=bool)

    def fit(points: np.ndarray, starts: np.ndarray) -> None:
        """Fit at these points of `valid`, flat, from (n, n_params)."""
        for some in blocks(np.arange(len(points)), 1, shape[2]):
            at, start = points[some], starts[some]
            start[:, i] = x.flat[at]
            start = np.clip(start, settings.lower, settings.upper)
            fits = problem.driver.fit(problem.toys[at // n], start, settings)
            good = is_valid(fits, settings) & ~(fits.fval >= fval.flat[at])
            values.reshape(-1, shape[2])[at[good]] = fits.values[good]
            fval.flat[at[good]] = fits.fval[good]
            valid.flat[at[good]] = True

    def cost_at(toys: np.ndarray, theta: np.ndarray) -> np.ndarray:
        parts = blocks(np.arange(len(toys)), 1, shape[2])
        found = [problem.driver.evaluate(problem.toys[toys[some]], theta[some])[:, VALUE] for some in parts]
        return np.concatenate([np.empty(0), *found])

    usable = np.flatnonzero(np.repeat(result.valid, n))
    variance = result.covariance[:, i, i]
    along = np.where(
        variance[:, None] > 0, result.covariance[:, i] / np.where(variance > 0, variance, 1.0)[:, None], 0.0
    )
    distance = (x - result.values[:, i, None])[..., None]
    guess = (result.values[:, None] + distance * along[:, None]).reshape(-1, shape[2])
    fit(usable, guess[usable])
    # what failed, or is higher than the cost beside its neighbour, starts again there, which carries good fits outwards
    for _ in range(MOST_SWEEPS if n > 1 else 0):
        changed = False
        for step in (1, -1):
            for column in range(1, n) if step == 1 else range(n - 2, -1, -1):
                # another valley is a third of an error of some parameter away, or more, from where the neighbour leads
                led = values[:, column - step] + (x[:, column] - x[:, column - step])[:, None] * along
                beside = ~(np.abs(values[:, column] - led) <= result.errors / 3.0).all(axis=1)
                toys = np.flatnonzero(valid[:, column - step] & beside)
                start = np.clip(led[toys], settings.lower, settings.upper)
                start[:, i] = x[toys, column]
                before = np.where(valid[toys, column], fval[toys, column], np.inf)
                high = before > cost_at(toys, start) + NEW_MINIMUM * result.errordef
                fit(toys[high] * n + column, start[high])
                changed |= bool(np.any(fval[toys, column] < before - NEW_MINIMUM * result.errordef))
        if not changed:
            break
    with np.errstate(invalid="ignore"):
        below = fval < (result.fval - NEW_MINIMUM * result.errordef)[:, None]
    return Profile(
        name=name,
        x=x,
        fval=fval - result.fval[:, None] if subtract_min else fval,
        values=values,
        valid=valid,
        new_minimum=np.asarray(below.any(axis=1)),
    )


def contour(
    cost: Any,
    data: Any,
    result: FitResult,
    x: str,
    y: str,
    *,
    cl: float | None = None,
    size: int = 100,
    limits: Any = None,
    fixed: Sequence[str] | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> Contour:
    """Contour of two parameters for every toy, for fits that were read from a file; else `result.contour` is the same.

    The points where F(x, y), the minimum of the cost over all other parameters, is F0 + k errordef with
    k = chi2.ppf(cl, 2), in directions from the minimum that are evenly spread where the covariance is a unit matrix.

    Parameters
    ----------
    cost, data, limits, fixed, backend, device
        As for `engine.minos`.
    result : FitResult
        The fits of these data.
    x, y : str
        Parameters.
    cl : float, optional
        Probability that the region holds both parameters, 0.68 by default; from 1 on a number of standard deviations,
        which stands for the probability that one normal variable lies within them, as for `Minuit.mncontour`.
    size : int
        Number of points.

    Raises
    ------
    ValueError, TypeError
        As `engine.minos`.
    """
    problem = problem_of(cost, data, result, limits=limits, fixed=fixed, backend=backend, device=device)
    return contour_of(dataclasses.replace(result, problem=problem), x, y, cl=cl, size=size)


def contour_of(result: FitResult, x: str, y: str, *, cl: float | None = None, size: int = 100) -> Contour:
    """As `contour`, for a result that knows its cost and data."""
    problem = needed_problem(result, "contour")
    warn_of_weights(problem.cost, problem.rows, "this contour does not cover")
    pair = [_free(result, problem.settings.free, name, "contour") for name in (x, y)]
    if x == y:
        raise ValueError(f"a contour is of two parameters, got {x!r} twice")
    whole("size", size, 3)
    k = level(CONTOUR_CL if cl is None else cl, 2)
    angle = 2 * np.pi * np.arange(size) / size
    circle = np.stack([np.cos(angle), np.sin(angle)])
    axes, n_params = _axes(result, pair), len(result.names)
    points, valid = np.full((len(result), size, 2), np.nan), np.zeros((len(result), size), dtype=bool)
    at_limit = np.zeros_like(valid)
    for toys in blocks(np.flatnonzero(result.valid), size, n_params):
        outputs = at_minimum(result, toys)
        direction = np.zeros((len(toys), size, n_params))
        direction[:, :, pair] = (axes[toys] @ circle).transpose(0, 2, 1)
        minimum = np.repeat(outputs[:, VALUE], size)
        rays = Rays(
            toys=np.repeat(problem.toys[toys], size),
            origin=np.repeat(result.values[toys], size, axis=0),
            direction=direction.reshape(-1, n_params),
            held=np.tile(np.isin(np.arange(n_params), pair), (len(minimum), 1)),
            minimum=minimum,
            level=minimum + k * result.errordef,
        )
        ends = crossings(problem.driver, rays, np.repeat(outputs, size, axis=0), problem.settings)
        on_limit = ends.status == AT_LIMIT
        good = (ends.status == FOUND) | on_limit
        ends_at = np.where(on_limit[:, None], ends.theta, rays.origin + ends.distance[:, None] * rays.direction)
        points[toys] = np.where(good[:, None], ends_at[:, pair], np.nan).reshape(-1, size, 2)
        valid[toys], at_limit[toys] = good.reshape(-1, size), on_limit.reshape(-1, size)
    return Contour((x, y), points, valid, at_limit)


def _axes(result: FitResult, pair: Sequence[int]) -> np.ndarray:
    """Cholesky factors of the covariance of some parameters, (n, k, k); where one is on a limit, from the curvature."""
    block = result.covariance[:, pair][:, :, pair]
    on_limit = result.at_limit[:, pair].any(axis=1)
    factors = np.full_like(block, np.nan)
    inside = result.valid & ~on_limit
    factors[inside] = np.linalg.cholesky(block[inside])
    toys = np.flatnonzero(result.valid & on_limit)
    if len(toys):
        n_params = len(result.names)
        hessian = unpacked_hessian(at_minimum(result, toys)[:, GRADIENT + n_params :], n_params)
        curvature = np.diagonal(hessian, axis1=1, axis2=2)[:, pair]
        positive = np.where(curvature > 0, curvature, 2.0 * result.errordef)
        factors[toys] = np.sqrt(2.0 * result.errordef / positive)[:, :, None] * np.eye(len(pair))
    return factors


def _free(result: FitResult, free: np.ndarray, name: str, what: str) -> int:
    """Position of a free parameter."""
    known(result.names, [name], what)
    i = result.names.index(name)
    if not free[i]:
        raise ValueError(f"{name!r} is held: name a free parameter")
    return i


def _points(result: FitResult, i: int, size: Any, bound: Any, grid: Any) -> np.ndarray:
    """Points of a profile, (n_toys, n)."""
    settings = needed_problem(result, "profile").settings
    n_toys, name, lower, upper = len(result), result.names[i], settings.lower[i], settings.upper[i]
    if grid is not None:
        x = as_float64(grid, "grid")
        if x.ndim not in (1, 2) or not x.size or (x.ndim == 2 and len(x) != n_toys) or not np.isfinite(x).all():
            raise ValueError(f"grid must be finite numbers of shape (n,) or (n_toys, n) = ({n_toys}, n), got {x.shape}")
        if np.min(x) < lower or np.max(x) > upper:
            raise ValueError(f"the grid must lie within the limits of {name}, ({lower:g}, {upper:g})")
        return np.array(np.broadcast_to(x, (n_toys, x.shape[-1])))
    whole("size", size, 2)
    ends = as_float64(bound, "bound")
    if not np.isfinite(ends).all() or not (
        (ends.shape == () and ends > 0) or (ends.shape == (2,) and ends[0] < ends[1])
    ):
        raise ValueError(f"bound must be a positive number of errors or (lower, upper), got {shown(bound)}")
    if ends.shape == (2,):
        x = np.tile(np.linspace(ends[0], ends[1], size), (n_toys, 1))
    else:
        spread = np.linspace(-ends, ends, size) * _axes(result, [i])[:, 0]
        x = result.values[:, i, None] + spread
    return np.clip(x, lower, upper)
