"""The covariance of fits to weighted data.

The inverse Hessian is the covariance of a maximum-likelihood estimate. With weights the likelihood is none, and the
covariance is V C V with V the inverse Hessian and C the covariance of the gradient, which the weights themselves tell.
JAX computes it for both backends; its rounding depends on the number of toys.

References
----------
Langenbruch, Eur. Phys. J. C 82 (2022) 393; Huber, Proc. Fifth Berkeley Symp. 1 (1967) 221.
"""

import warnings
from collections.abc import Callable

import jax
import numpy as np

from engine.cost import Cost
from engine.data import Rows, lane_data, shared_columns
from engine.drivers import Problem
from engine.lanes import bucket

__all__ = ["sandwich", "warn_of_weights"]

VALUES_AT_ONCE = 2**22  # gradients of rows that are held at a time


def warn_of_weights(cost: Cost, rows: Rows, what: str) -> None:
    """Warn, where the errors are those of weighted data, of what is found from the rise of the cost."""
    if cost.score_covariance(rows) is not None:
        warnings.warn(
            "the data are weighted: a likelihood of weighted events rises by errordef somewhere else than at its "
            f"errors, so that {what}; use `errors`",
            stacklevel=4,
        )


def sandwich(problem: Problem, score_covariance: Callable, values: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """V C V of each toy of a problem, with `covariance` as V and the covariance C of the gradient at `values`.

    Parameters
    ----------
    score_covariance : callable
        Of the cost, for the rows of the problem.
    values : (n_toys, n_params) float64
    covariance : (n_toys, n_params, n_params) float64
        Zero where a parameter is held, which it then is in the result.
    """
    cost, rows = problem.cost, problem.rows
    if not len(values):
        return covariance
    padded = [-(-int(np.max(np.diff(leaf.offsets), initial=1)) // 64) * 64 for leaf in rows.leaves]
    lanes = max(1, min(VALUES_AT_ONCE // (sum(padded) * len(cost.names)), bucket(len(values), 1)))
    shared = shared_columns(rows, padded)
    compiled = cost.kept("sandwich")
    with jax.enable_x64(True):
        if rows.form not in compiled:
            compiled[rows.form] = jax.jit(jax.vmap(score_covariance, in_axes=(0, 0, None)))
        result = np.empty_like(covariance)
        for first in range(0, len(values), lanes):
            some = np.minimum(np.arange(first, first + lanes), len(values) - 1)
            data = tuple(lane_data(leaf, problem.toys[some], n) for leaf, n in zip(rows.leaves, padded, strict=True))
            scores = np.asarray(compiled[rows.form](values[some], data, shared))
            result[some] = covariance[some] @ scores @ covariance[some]
    return 0.5 * (result + np.swapaxes(result, 1, 2))
