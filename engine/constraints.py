"""Gaussian constraints: external measurements of parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.costs import Cost
from engine.data import Rows, as_float64
from kernels.translate import compile_source

__all__ = ["NormalConstraint"]


class NormalConstraint(Cost):
    """An external measurement of one or several parameters, (theta - value)^T V^-1 (theta - value).

    Alone it is a chi-square; in a sum with a likelihood it enters as half of that.

    Parameters
    ----------
    names : str or sequence of str
        The parameters that were measured.
    value : float or (k,)
        The measured values. A toy may bring its own: the data of this cost, (n_toys,) or (n_toys, k).
    error : float, (k,) or (k, k)
        Standard deviations, or the covariance matrix V.

    Raises
    ------
    ValueError
        If shapes do not match, an error is not positive, or the covariance is not symmetric and positive definite.
    """

    errordef = 1.0
    takes_data = False

    def __init__(self, names: str | Sequence[str], value: Any, error: Any) -> None:
        self.names = (names,) if isinstance(names, str) else tuple(names)
        k = len(self.names)
        self.value = np.atleast_1d(as_float64(value, "value"))
        error = as_float64(error, "error")
        if len(set(self.names)) != k or not k:
            raise ValueError(f"names must be different parameters, got {self.names}")
        if self.value.shape != (k,) or not np.isfinite(self.value).all():
            raise ValueError(f"value must be {k} finite numbers for {', '.join(self.names)}, got {value}")
        if error.ndim < 2:
            if error.shape not in ((), (k,)) or not (np.isfinite(error) & (error > 0)).all():
                raise ValueError(f"error must be {k} positive numbers or a ({k}, {k}) covariance matrix, got {error}")
            self.covariance = np.diag(np.broadcast_to(error, k) ** 2)
        else:
            if error.shape != (k, k) or not np.allclose(error, error.T) or not np.linalg.eigvalsh(error).min() > 0:
                raise ValueError(
                    f"error must be a symmetric, positive definite ({k}, {k}) covariance matrix, got {error.tolist()}"
                )
            self.covariance = error
        inverse = np.linalg.inv(self.covariance)
        self._inverse = 0.5 * (inverse + inverse.T)

    def rows(self, data: Any) -> Rows:
        """The measured values, which belong to no row.

        Parameters
        ----------
        data : None, (n_toys,) or (n_toys, k) array
            None: one toy, with the value of the constraint.
        """
        k = len(self.names)
        if data is None:
            measured = self.value[None]
        else:
            measured = as_float64(data, "measured values of the constraint")
            measured = measured[:, None] if measured.ndim == 1 and k == 1 else measured
            if measured.ndim != 2 or measured.shape[1] != k:
                raise ValueError(f"measured values must have shape (n_toys, {k}), got {measured.shape}")
        return Rows(
            names=(),
            columns=np.zeros((0, 0)),
            offsets=np.zeros(len(measured) + 1, dtype=np.int64),
            shared=np.zeros((0, 0)),
            aux=np.ascontiguousarray(measured),
            bad=~np.isfinite(measured).all(axis=1),
        )

    # A quadratic form: its derivatives are written down, and hundreds of parameters cost nothing to compile.

    def kernel(self, rows: Rows) -> Callable:
        return compile_source(_KERNEL)

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        """The inverse covariance matrix."""
        return self._inverse.copy()

    def outputs(self, rows: Rows, tile: int, order: int) -> Callable:
        inverse, below = self._inverse, np.tril_indices(len(self.names))

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((_, measured, _),) = data
            slope = inverse @ (theta - measured)
            chi2 = jnp.dot(theta - measured, slope)
            parts = [jnp.stack([chi2, chi2]), 2.0 * slope, jnp.asarray(2.0 * inverse[below])]
            return jnp.concatenate(parts[: order + 1])

        return of_leaf

    def reference(self, rows: Rows) -> Callable:
        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            distance = theta - data[0][1]
            return distance @ jnp.asarray(self._inverse) @ distance

        return of_leaf


_KERNEL = """
def row_sums(theta, rows, shared, aux, begin, end, out):
    n = len(theta)
    total, k = 0.0, 2 + n
    for i in range(n):
        slope = 0.0
        for j in range(n):
            slope += shared[i, j] * (theta[j] - aux[j])
        total += (theta[i] - aux[i]) * slope
        out[2 + i] = 2.0 * slope
        for j in range(i + 1):
            out[k] = 2.0 * shared[i, j]
            k += 1
    out[0] = total
    out[1] = total
"""
