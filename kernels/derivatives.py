"""Value, gradient and Hessian of a function of scalar parameters, by forward-over-forward differentiation.

One derivative is taken at a time, with all other parameters held as constants, so that JAX propagates no zeros:
the result is a program of scalars, short enough to be translated or fused.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["packed_index", "unpacked_hessian", "value_gradient_hessian"]


def packed_index(i: int, j: int) -> int:
    """Position of element (i, j) in the packed lower triangle of a symmetric matrix."""
    i, j = max(i, j), min(i, j)
    return i * (i + 1) // 2 + j


def unpacked_hessian(packed: np.ndarray, n_params: int) -> np.ndarray:
    """Symmetric matrices (n, n_params, n_params) from their packed lower triangles (n, n_params (n_params + 1) / 2)."""
    rows, columns = np.tril_indices(n_params)
    hessian = np.empty((len(packed), n_params, n_params))
    hessian[:, rows, columns] = hessian[:, columns, rows] = packed
    return hessian


def value_gradient_hessian(function: Callable, n_params: int) -> Callable:
    """A function with the value, the gradient and the Hessian of another.

    Parameters
    ----------
    function : callable
        `function(*parameters, *others) -> ()`; the first `n_params` arguments are scalars.

    Returns
    -------
    callable
        Takes the same arguments, returns a flat list: the value, n_params first derivatives, and the lower triangle
        of the Hessian row by row.
    """

    def partial(f: Callable, k: int) -> Callable:
        def derivative(*args):
            along = lambda p: f(*args[:k], p, *args[k + 1 :])  # noqa: E731
            return jax.jvp(along, (args[k],), (jnp.ones_like(args[k]),))[1]

        return derivative

    def everything(*args):
        outputs = [function(*args)]
        gradient = [partial(function, k) for k in range(n_params)]
        outputs += [g(*args) for g in gradient]
        outputs += [partial(gradient[i], j)(*args) for i in range(n_params) for j in range(i + 1)]
        return outputs

    return everything
