"""The Poisson likelihood of bins whose expectation is a vector function of the parameters: template fits."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.binned import saturated_poisson
from engine.costs import Cost, model_mistakes, parameter_names
from engine.data import Rows, counts_of
from kernels.expectation import VectorKernel, expectation_kernel

__all__ = ["PoissonNLL"]


class PoissonNLL(Cost):
    """Negative log-likelihood of Poisson counts, sum_k mu_k - n_k + n_k log(n_k / mu_k), with mu = expected(theta).

    The gradient and the exact Hessian come from the Jacobian of the expectation and, where it is not linear, from its
    second derivatives weighted by 1 - n_k / mu_k. Up to some hundred parameters and a thousand bins.

    Parameters
    ----------
    expected : callable
        `expected(*parameters) -> (n_bins,)` events, in `jax.numpy`.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them, as with `expected(*theta)`.

    References
    ----------
    Baker & Cousins, NIM 221 (1984) 437-442.
    """

    def __init__(self, expected: Callable, *, name: Sequence[str] | None = None) -> None:
        self.model = expected
        self.names = parameter_names(expected, name, skip=0)

    def rows(self, data: Any) -> Rows:
        """Rows of histograms: every bin is a row.

        Parameters
        ----------
        data : (n_toys, n_bins) array of counts
        """
        n_bins = self._n_bins()
        counts = counts_of(data, n_bins)
        return Rows(
            columns=counts.reshape(1, -1),
            offsets=np.arange(len(counts) + 1, dtype=np.int64) * n_bins,
            shared=np.zeros((0, 0)),
            aux=np.zeros((len(counts), 0)),
            bad=~(np.isfinite(counts) & (counts >= 0)).all(axis=1),
            names=("n",),
        )

    def _n_bins(self) -> int:
        with jax.enable_x64(True), model_mistakes(self.model, "the parameters", "write it with jax.numpy"):
            result = jax.eval_shape(self.model, *[jax.ShapeDtypeStruct((), np.float64)] * len(self.names))
            shape = getattr(result, "shape", None)
        if shape is None or len(shape) != 1 or not shape[0]:
            name = getattr(self.model, "__name__", "expected")
            raise ValueError(f"the model '{name}' must return an array of shape (n_bins,), got {shape}")
        return shape[0]

    def _compiled(self) -> VectorKernel:
        if "_vector_kernel" not in self.__dict__:
            self._vector_kernel = expectation_kernel(self.model, len(self.names), self._n_bins())
        return self._vector_kernel

    def kernel(self, rows: Rows) -> Callable:
        return self._compiled().kernel

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        """The arrays that the model captured."""
        return self._compiled().shared

    def outputs(self, rows: Rows, tile: int, order: int) -> Callable:
        n_params, n_bins = len(self.names), self._n_bins()
        expected = lambda theta: self.model(*[theta[i] for i in range(n_params)])  # noqa: E731
        below = np.tril_indices(n_params)

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, _, _),) = data
            n = columns[0, :n_bins]
            mu = expected(theta)
            terms = saturated_poisson(n, mu)
            parts = [jnp.stack([jnp.sum(terms), jnp.sum(jnp.abs(terms))])]
            if order >= 1:
                jacobian = jax.jacfwd(expected)(theta)
                ratio = jnp.where(n > 0, n / mu, 0.0)
                weight = 1.0 - ratio
                parts.append(weight @ jacobian)
            if order == 2:
                curved = jax.jacfwd(jax.grad(lambda t: jnp.dot(jax.lax.stop_gradient(weight), expected(t))))(theta)
                hessian = jacobian.T @ (jnp.where(n > 0, ratio / mu, 0.0)[:, None] * jacobian) + curved
                parts.append(hessian[below])
            return jnp.concatenate(parts)

        return of_leaf

    def reference(self, rows: Rows) -> Callable:
        n_bins = self._n_bins()

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, _, _),) = data
            mu = self.model(*[theta[i] for i in range(len(self.names))])
            return jnp.sum(saturated_poisson(columns[0, :n_bins], mu))

        return of_leaf
