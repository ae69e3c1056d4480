"""MINOS for all toys at once: where the profile likelihood has risen by errordef, on both sides of the minimum."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from scipy.special import chdtrc, chdtri, gammaincinv

from engine.arguments import known
from engine.crossing import AT_LIMIT, FAILED, FOUND, LOWER, Crossings, Rays, blocks, crossings
from engine.data import shown
from engine.drivers import Problem
from engine.fit import needed_problem, problem_of, refit
from engine.named import NamedArray
from engine.result import FitResult
from engine.sandwich import warn_of_weights
from kernels.program import GRADIENT, VALUE, n_outputs

__all__ = ["MinosResult", "at_minimum", "level", "minos", "minos_of"]

MOST_SIGMAS = 37  # beyond, the probability outside is no float
ROUNDS = 3  # so often a toy is fitted again from a lower minimum


@dataclass(frozen=True, eq=False)
class MinosResult:
    """MINOS intervals of every toy, (n_toys, n_names) each, in the order of `names`, by which they can be taken, too.

    Attributes
    ----------
    names : tuple of str
    lower, upper : float64
        Signed distances from the minimum, in the units of the parameter: `lower` is negative. NaN where there is none.
    valid : bool
        Both sides were found, or end on a limit.
    at_lower_limit, at_upper_limit : bool
        The side ends on the parameter's limit, where the profile has not risen so far: the interval extends to it.
    new_minimum : bool
        On the way a lower minimum was found, from which the toy was fitted again; the interval is that of this one.
    nfev : int64
        Evaluations of the cost, of both sides.
    result : FitResult
        The fits to which the intervals belong: those that were given, with the toys that were fitted again.
    """

    names: tuple[str, ...]
    lower: np.ndarray
    upper: np.ndarray
    valid: np.ndarray
    at_lower_limit: np.ndarray
    at_upper_limit: np.ndarray
    new_minimum: np.ndarray
    nfev: np.ndarray
    result: FitResult

    def __post_init__(self) -> None:
        for field in ("lower", "upper", "valid", "at_lower_limit", "at_upper_limit", "new_minimum"):
            object.__setattr__(self, field, NamedArray(getattr(self, field), self.names))

    def __len__(self) -> int:
        return len(self.lower)

    def __repr__(self) -> str:
        n = len(self)
        told = ", ".join(f"{name} {int(good)}" for name, good in zip(self.names, self.valid.sum(axis=0), strict=True))
        return f"<MinosResult of {n} {'toy' if n == 1 else 'toys'}; valid: {told}>"


def level(cl: float | None, n_params: int = 1) -> float:
    """By how many errordef the cost rises to the edge of a region of n_params parameters: chi2.ppf(cl, n_params).

    Parameters
    ----------
    cl : float, optional
        A probability below 1, or, from 1 on, a number of standard deviations, which stands for the probability that
        one normal variable lies within them; 1 by default.

    Raises
    ------
    ValueError
        If it is none of these.
    """
    cl = 1.0 if cl is None else cl
    if isinstance(cl, bool) or not isinstance(cl, float | int | np.floating | np.integer) or not 0 < cl <= MOST_SIGMAS:
        raise ValueError(
            f"cl must be a probability between 0 and 1, or a number of standard deviations from 1 to {MOST_SIGMAS}, "
            f"got {shown(cl)}"
        )
    if cl < 1:
        return float(2.0 * gammaincinv(0.5 * n_params, cl))
    return float(cl) ** 2 if n_params == 1 else float(chdtri(n_params, chdtrc(1, cl**2)))


def minos(
    cost: Any,
    data: Any,
    result: FitResult,
    *names: str,
    cl: float | None = None,
    limits: Any = None,
    fixed: Sequence[str] | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> MinosResult:
    """MINOS intervals of every toy, for fits that were read from a file; else `result.minos(...)` is the same.

    With F(x) the minimum of the cost over all other parameters at theta_i = x, and F0 its minimum, the interval is

        F(x) <= F0 + k errordef,    k = chi2.ppf(cl, 1), 1 by default.

    Parameters
    ----------
    cost, data, limits, backend, device
        As they were given to `fit_batch`.
    result : FitResult
        The fits of these data, at whose values the search begins.
    *names : str
        Parameters; by default all that are free.
    cl : float, optional
        A confidence level below 1, or from 1 on a number of standard deviations, as for `Minuit.minos`.
    fixed : sequence of str, optional
        Parameters that were held; by default those that have no error in any valid fit and are on no limit, and none
        where no fit is valid.

    Returns
    -------
    MinosResult
        A toy whose fit is not valid has NaN.

    Raises
    ------
    ValueError, TypeError
        If names are unknown or of parameters that are held, the data do not fit the result, or an argument cannot be
        had.

    References
    ----------
    James & Roos, Comput. Phys. Commun. 10 (1975) 343-367. The search is that of `engine.crossing`.
    """
    problem = problem_of(cost, data, result, limits=limits, fixed=fixed, backend=backend, device=device)
    return minos_of(dataclasses.replace(result, problem=problem), names, cl)


def minos_of(result: FitResult, names: Sequence[str], cl: float | None) -> MinosResult:
    """As `minos`, for a result that knows its cost and data."""
    problem = needed_problem(result, "minos")
    free = problem.settings.free
    known(result.names, names, "minos")
    held = [name for name in names if not free[result.names.index(name)]]
    if held:
        raise ValueError(f"{held[0]!r} is held, so that it has no MINOS interval: name free parameters only")
    names = tuple(names) or tuple(name for name, is_free in zip(result.names, free, strict=True) if is_free)
    if len(set(names)) < len(names):
        raise ValueError(f"names must differ, got {names}")
    warn_of_weights(problem.cost, problem.rows, "these intervals do not cover")
    columns = np.array([result.names.index(name) for name in names], dtype=np.int64)
    k, shape = level(cl), (len(result), 2, len(names))
    distance, status = np.full(shape, np.nan), np.full(shape, FAILED, np.int8)
    nfev, renewed = np.zeros(shape, np.int64), np.zeros(len(result), dtype=bool)

    def search(rows: np.ndarray) -> np.ndarray:
        """Find the intervals of some fits; returns those that met a lower minimum, and were fitted again from it."""
        nonlocal result
        ends = _ends(problem, result, rows, columns, k)
        grid = (len(rows), 2, len(names))
        distance[rows], status[rows] = ends.distance.reshape(grid), ends.status.reshape(grid)
        nfev[rows] += ends.nfev.reshape(grid)
        lower = (ends.status == LOWER).reshape(len(rows), -1)
        met = lower.any(axis=1)
        if not met.any():
            return rows[met]
        theta = ends.theta.reshape(len(rows), 2 * len(names), -1)[met, lower[met].argmax(axis=1)]
        again = refit(problem, problem.toys[rows[met]], theta)
        better = again.valid & (again.fval < result.fval[rows[met]])
        rows = rows[met][better]
        result = result.replaced(rows, cast(FitResult, again[better]))
        renewed[rows] = True
        return rows

    valid = np.flatnonzero(result.valid) if names else np.zeros(0, np.int64)
    for rows in blocks(valid, 2 * len(names), len(result.names)):
        for _ in range(ROUNDS):
            rows = search(rows)
            if not len(rows):
                break
    good = (status == FOUND) | (status == AT_LIMIT)
    distance[~good] = np.nan
    return MinosResult(
        names=names,
        lower=-distance[:, 0],
        upper=distance[:, 1],
        valid=good.all(axis=1),
        at_lower_limit=status[:, 0] == AT_LIMIT,
        at_upper_limit=status[:, 1] == AT_LIMIT,
        new_minimum=np.repeat(renewed[:, None], len(names), axis=1),
        nfev=nfev.sum(axis=1),
        result=result,
    )


def at_minimum(result: FitResult, rows: np.ndarray) -> np.ndarray:
    """Outputs of the cost (see `kernels.program`) at the values of some valid fits.

    Without weights and away from limits they are known: no slope, and the inverse of the covariance.
    """
    problem, n_params = needed_problem(result, "minos"), len(result.names)
    free, below = np.flatnonzero(problem.settings.free), np.tril_indices(n_params)
    outputs = np.zeros((len(rows), n_outputs(n_params)))
    weighted = problem.cost.score_covariance(problem.rows) is not None
    evaluated = result.at_limit[rows].any(axis=1) | weighted
    if evaluated.any():
        toys = rows[evaluated]
        outputs[evaluated] = problem.driver.evaluate(problem.toys[toys], result.values[toys])
    others = rows[~evaluated]
    hessian = np.zeros((len(others), n_params, n_params))
    covariance = result.covariance[others][:, free[:, None], free]
    hessian[:, free[:, None], free] = 2.0 * result.errordef * np.linalg.inv(covariance)
    outputs[~evaluated, VALUE] = result.fval[others]
    outputs[~evaluated, GRADIENT + n_params :] = hessian[:, below[0], below[1]]
    return outputs


def _ends(problem: Problem, result: FitResult, rows: np.ndarray, columns: np.ndarray, k: float) -> Crossings:
    """Both ends of the intervals of some fits: (fit, side, parameter), one after the other."""
    n_params = len(result.names)
    origin = result.values[rows]
    outputs = at_minimum(result, rows)
    unit = np.eye(n_params)[columns]
    directions = np.concatenate([-unit, unit])
    n_rays = len(directions)
    minimum = np.repeat(outputs[:, VALUE], n_rays)
    direction = np.tile(directions, (len(rows), 1))
    rays = Rays(
        toys=np.repeat(problem.toys[rows], n_rays),
        origin=np.repeat(origin, n_rays, axis=0),
        direction=direction,
        held=direction != 0,
        minimum=minimum,
        level=minimum + k * result.errordef,
    )
    return crossings(problem.driver, rays, np.repeat(outputs, n_rays, axis=0), problem.settings)
