"""What the two drivers have in common: the task they are given and the fits they return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.rowwise import all_of_row
from engine.rules import MOST_APPROACH, WIDE
from engine.status import Status

if TYPE_CHECKING:
    from engine.cost import Cost
    from engine.cpu import NumbaDriver
    from engine.data import Rows
    from engine.xla import XlaDriver

__all__ = ["VALID_EDM", "Fits", "Problem", "Settings", "approaches", "is_valid"]

VALID_EDM = 1e-6  # largest EDM of a valid fit, in units of errordef
FEWEST_STEPS = 2 * MOST_APPROACH  # evaluations that leave room for another way than Newton's


@dataclass(frozen=True)
class Settings:
    """Limits and stopping rules of a batch.

    Attributes
    ----------
    lower, upper : (n_params,) float64
    free : (n_params,) bool
        False for parameters that are held at their start values.
    errordef : float
    edm_goal : float
        In units of errordef.
    max_steps : int
        Evaluations per fit.
    """

    lower: np.ndarray
    upper: np.ndarray
    free: np.ndarray
    errordef: float
    edm_goal: float
    max_steps: int


def approaches(cost: Cost, rows: Rows, settings: Settings) -> bool:
    """Whether fits begin with the quasi-Newton steps of `engine.approach`."""
    return len(cost.names) >= WIDE and settings.max_steps >= FEWEST_STEPS and cost.cheap_gradient(rows)


@dataclass(frozen=True)
class Fits:
    """Raw results of a driver, one row per fit.

    `inflation` is the trace of the inverse of the free Hessian in units of its diagonal: by how much correlations
    inflate the variances, all together, and above the inverse of the smallest eigenvalue.
    """

    values: np.ndarray
    covariance: np.ndarray
    fval: np.ndarray
    edm: np.ndarray
    status: np.ndarray
    nfev: np.ndarray
    posdef: np.ndarray
    inflation: np.ndarray
    at_limit: np.ndarray

    @staticmethod
    def empty(n_toys: int, n_params: int) -> Fits:
        """Memory for fits, every row of which is still to be put in."""
        return Fits(
            values=np.empty((n_toys, n_params)),
            covariance=np.empty((n_toys, n_params, n_params)),
            fval=np.empty(n_toys),
            edm=np.empty(n_toys),
            status=np.empty(n_toys, dtype=np.int8),
            nfev=np.empty(n_toys, dtype=np.int64),
            posdef=np.empty(n_toys, dtype=bool),
            inflation=np.empty(n_toys),
            at_limit=np.empty((n_toys, n_params), dtype=bool),
        )

    def among(self, n_toys: int, rows: np.ndarray) -> Fits:
        """These fits as the given rows of all toys, of which the others have bad data."""
        fits = Fits.empty(n_toys, self.values.shape[1])
        for array in vars(fits).values():
            array[:] = np.nan if array.dtype.kind == "f" else 0
        fits.status[:] = Status.BAD_DATA
        fits.put(rows, self)
        return fits

    def put(self, rows: np.ndarray, fits: Fits) -> None:
        """Overwrite some rows."""
        for name in self.__dataclass_fields__:
            getattr(self, name)[rows] = getattr(fits, name)


@dataclass(frozen=True)
class Problem:
    """What was fitted and how, for what is asked of the fits later.

    Attributes
    ----------
    cost : Cost
    rows : Rows
    driver : NumbaDriver or XlaDriver
    settings : Settings
    toys : (n_toys,) int
        The toy of `rows` that belongs to each fit.
    """

    cost: Cost
    rows: Rows
    driver: NumbaDriver | XlaDriver
    settings: Settings
    toys: np.ndarray


def is_valid(fits: Fits, settings: Settings) -> np.ndarray:
    """Converged, EDM below 1e-6 errordef, finite, free Hessian positive definite."""
    # no covariance exceeds the larger of its two variances
    variance = np.diagonal(fits.covariance, axis1=1, axis2=2)
    finite = np.isfinite(fits.fval) & all_of_row(np.isfinite(fits.values)) & all_of_row(np.isfinite(variance))
    with np.errstate(invalid="ignore"):
        return (fits.status == Status.CONVERGED) & fits.posdef & finite & (fits.edm < VALID_EDM * settings.errordef)
