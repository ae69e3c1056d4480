"""Fits that meet the criterion of convergence, though the data do not determine their parameters.

Where parameters are degenerate, as a and b in a model of their product, the Hessian is singular at the minimum, and
rounding and what is left of the slope decide whether it looks positive definite. It is taken once more at the minimum
itself, to which a step in the directions that are determined leads, and judged by its smallest eigenvalue in units of
its diagonal.
"""

import numpy as np

from engine.drivers import Fits, Problem
from engine.rowwise import all_of_row, any_of_row
from engine.rules import ROUNDING
from engine.status import Status
from kernels.derivatives import unpacked_hessian
from kernels.program import ABSOLUTE, GRADIENT, VALUE

__all__ = ["mark_undetermined"]

SUSPECT = 1e4  # inflation of the variances by correlations, above which the Hessian is taken again
LARGE = 30.0  # an error in terms of its parameter, above which it is taken again, and tried
# Smallest eigenvalue of a Hessian in units of its diagonal: at the end of a fit of degenerate parameters there remain
# up to 4e-10 of either sign, and the worst of the certified regression problems has 9e-10.
DEFINED = 6e-10
WEAK = 1e-4  # an eigenvalue below which the step to the minimum does not go
FAR = 1e6  # a parameter that has grown so many times, with an error beyond itself, may have run away
RISES = 0.1  # what the cost rises by at least, in units of errordef, one such error further away, if it has not


def mark_undetermined(problem: Problem, fits: Fits, start: np.ndarray, rescued: np.ndarray) -> None:
    """Give fits whose parameters are not determined the status that says so, in place.

    Parameters
    ----------
    problem : Problem
        Whose toys these are the fits of.
    start : (n_toys, n_params) float64
    rescued : (n_toys,) bool
        Becomes False for these toys.
    """
    settings = problem.settings
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(np.diagonal(fits.covariance, axis1=1, axis2=2))
        good = (fits.status == Status.CONVERGED) & fits.posdef & all_of_row(np.isfinite(errors))
        size, begun = np.abs(fits.values), np.maximum(np.abs(start), 1.0)
        grown = (size > FAR * begun) & (errors > size)
        tried = grown | (errors > LARGE * np.maximum(size, begun))
        suspect = np.flatnonzero(good & ((fits.inflation > SUSPECT) | any_of_row(tried)))
    undefined, far = np.zeros((2, len(good)), dtype=bool)
    if len(suspect):
        outputs = problem.driver.evaluate(problem.toys[suspect], fits.values[suspect])
        n_params = fits.values.shape[1]
        hessian = unpacked_hessian(outputs[:, GRADIENT + n_params :], n_params)
        diagonal = np.abs(np.diagonal(hessian, axis1=1, axis2=2))
        active = settings.free & ~fits.at_limit[suspect]
        step = _settling(outputs[:, GRADIENT : GRADIENT + n_params], hessian, active)
        theta = np.clip(fits.values[suspect] + step, settings.lower, settings.upper)
        settled = problem.driver.evaluate(problem.toys[suspect], theta)
        at_rest = unpacked_hessian(settled[:, GRADIENT + n_params :], n_params)
        with np.errstate(invalid="ignore"):
            undefined[suspect] = _eigen(at_rest, active)[1][:, 0] < DEFINED

        # of a parameter in large units the cost rises one error away, of one that does nothing it does not
        row, column = np.nonzero(tried[suspect] & active & (diagonal > 0))
        toys = suspect[row]
        error = np.sqrt(2.0 * settings.errordef / diagonal[row, column])
        outwards = np.where(fits.values[toys, column] < start[toys, column], -error, error)
        noise = 10.0 * ROUNDING * (outputs[row, ABSOLUTE] + settings.errordef)
        for step in (-outwards, outwards):  # `far` looks at the last: further from the start
            away = fits.values[toys]
            away[np.arange(len(toys)), column] += step
            within = ((away >= settings.lower) & (away <= settings.upper)).all(axis=1)
            rise = problem.driver.evaluate(problem.toys[toys], away)[:, VALUE] - outputs[row, VALUE]
            undefined[toys[within & (np.abs(rise) <= noise)]] = True
        far[toys[within & grown[toys, column] & (rise < RISES * settings.errordef)]] = True
    for toys, status in ((undefined, Status.HESSIAN_NOT_POSDEF), (far, Status.UNBOUNDED)):
        fits.status[toys] = status
        fits.posdef[toys] = False
        fits.covariance[toys] = np.nan
        rescued[toys] = False


def _eigen(hessian: np.ndarray, active: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of Hessians of the active parameters in units of their diagonals: those units, eigenvalues and eigenvectors."""
    diagonal = np.abs(np.diagonal(hessian, axis1=1, axis2=2))
    unit = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scaled = hessian * unit[:, :, None] * unit[:, None, :]
    scaled = np.where(active[:, :, None] & active[:, None, :], scaled, np.eye(active.shape[1]))
    usable = np.isfinite(scaled).all(axis=(1, 2), keepdims=True)
    values, vectors = np.linalg.eigh(np.where(usable, scaled, np.eye(active.shape[1])))
    return unit, values, vectors


def _settling(gradient: np.ndarray, hessian: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Newton's step in the directions that the data determine, (n, n_params)."""
    unit, values, vectors = _eigen(hessian, active)
    along = np.einsum("nij,ni->nj", vectors, np.where(active, gradient * unit, 0.0))
    step = np.where(values > WEAK, along / np.where(values > WEAK, values, 1.0), 0.0)
    return -unit * np.einsum("nij,nj->ni", vectors, step)
