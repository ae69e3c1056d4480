"""Fits that meet the criterion of convergence, though the data do not determine their parameters.

Where parameters are degenerate, as a and b in a model of their product, the Hessian is singular at the minimum, and
rounding alone decides whether it looks positive definite. It is taken once more at the minimum itself, since that of
the last step still holds the slope there, and judged by its smallest eigenvalue in units of its diagonal.
"""

import numpy as np

from engine.drivers import Fits, Problem
from engine.rowwise import all_of_row, any_of_row
from engine.rules import ROUNDING
from engine.status import Status
from kernels.derivatives import unpacked_hessian
from kernels.program import ABSOLUTE, GRADIENT

__all__ = ["mark_undetermined"]

SUSPECT = 1e4  # inflation of the variances by correlations, above which the Hessian is taken again
LARGE = 30.0  # an error in terms of its parameter, above which it is taken again
# Smallest eigenvalue of a Hessian in units of its diagonal: at the end of a fit of degenerate parameters there remain
# up to 4e-10 of either sign, and the worst of the certified regression problems has 9e-10.
DEFINED = 6e-10
FAR = 1e6  # a parameter that has grown so many times, with an error beyond itself, has run away


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
        scale = np.maximum(size, begun)
        far = good & any_of_row((size > FAR * begun) & (errors > size))
        suspect = np.flatnonzero(good & ((fits.inflation > SUSPECT) | any_of_row(errors > LARGE * scale)))
    undefined = np.zeros(len(good), dtype=bool)
    if len(suspect):
        outputs = problem.driver.evaluate(problem.toys[suspect], fits.values[suspect])
        n_params = fits.values.shape[1]
        hessian = unpacked_hessian(outputs[:, GRADIENT + n_params :], n_params)
        diagonal = np.abs(np.diagonal(hessian, axis1=1, axis2=2))
        active = settings.free & ~fits.at_limit[suspect]
        # a parameter that may change by itself, and the cost by its rounding
        noise = 10.0 * ROUNDING * (outputs[:, ABSOLUTE, None] + settings.errordef) / scale[suspect] ** 2
        singular = np.linalg.eigvalsh(_unit_diagonal(hessian, diagonal, active))[:, 0] < DEFINED
        undefined[suspect] = singular | any_of_row(active & (diagonal <= noise))
    for toys, status in ((undefined, Status.HESSIAN_NOT_POSDEF), (far, Status.UNBOUNDED)):
        fits.status[toys] = status
        fits.posdef[toys] = False
        fits.covariance[toys] = np.nan
        rescued[toys] = False


def _unit_diagonal(hessian: np.ndarray, diagonal: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Hessians of the active parameters in units of their diagonals, and the unit matrix for all others."""
    root = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    scaled = hessian / root[:, :, None] / root[:, None, :]
    return np.where(active[:, :, None] & active[:, None, :], scaled, np.eye(active.shape[1]))
