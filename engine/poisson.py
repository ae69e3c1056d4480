"""The Poisson likelihood of bins whose expectation is a vector function of the parameters: template fits."""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.binned import checked_mask, saturated_poisson, scaled_poisson, weighted_score_covariance
from engine.cost import FLOAT32, Cost, called, model_mistakes, parameter_names
from engine.data import Rows, counts_of
from kernels.expectation import VectorKernel, expectation_kernel, expectation_outputs, saturated

__all__ = ["PoissonNLL"]


class PoissonNLL(Cost):
    """Negative log-likelihood of Poisson counts, sum_k mu_k - n_k + n_k log(n_k / mu_k), with mu = expected(theta).

    The gradient and the exact Hessian come from the Jacobian of the expectation and, where it is not linear, from its
    second derivatives weighted by 1 - n_k / mu_k. Up to some hundred parameters and a thousand bins.

    Parameters
    ----------
    expected : callable
        `expected(*parameters) -> (n_bins,)` events, in `jax.numpy`.
    mask : (n_bins,) bool, optional
        Bins that are used, as in `iminuit.cost`. Counts keep their full shape; those of other bins are not looked at.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them, as with `expected(*theta)`.

    Raises
    ------
    ValueError
        If the mask is not of shape (n_bins,) or leaves no bin.

    Notes
    -----
    A weighted histogram is fitted with the scaled Poisson distribution, as `iminuit.cost` does, and its covariance is
    that of the weighted estimator, V C V (see `engine.sandwich`).

    References
    ----------
    Baker & Cousins, NIM 221 (1984) 437-442.
    """

    def __init__(self, expected: Callable, *, mask: Any = None, name: Sequence[str] | None = None) -> None:
        self.model = expected
        self.names = parameter_names(expected, name, skip=0)
        self.mask = None if mask is None else checked_mask(mask, self._n_bins)

    def rows(self, data: Any) -> Rows:
        """Rows of histograms: every bin that is used is a row.

        Parameters
        ----------
        data : (n_toys, n_bins) counts, or (n_toys, n_bins, 2) sums of weights and of their squares
        """
        columns, bad = counts_of(data, self._n_bins, self.mask)
        _, n_toys, n_used = columns.shape
        return Rows(
            names=("n", "scale")[: len(columns)],
            columns=columns.reshape(len(columns), -1),
            offsets=np.arange(n_toys + 1, dtype=np.int64) * n_used,
            shared=np.zeros((0, 0)),
            aux=np.zeros((n_toys, 0)),
            bad=bad,
        )

    def expected(self, *theta: Any) -> Any:
        """The model's events in the bins that are used."""
        mu = self.model(*theta)
        return mu if self.mask is None else mu[np.flatnonzero(self.mask)]

    @functools.cached_property
    def _n_bins(self) -> int:
        with jax.enable_x64(True), model_mistakes(self.model, "the parameters", "write it with jax.numpy"):
            scalars = [jax.ShapeDtypeStruct((), np.float64)] * len(self.names)
            traced, result = jax.make_jaxpr(self.model, return_shape=True)(*scalars)
            shape = getattr(result, "shape", None)
        if shape is None or len(shape) != 1 or not shape[0]:
            got = type(result).__name__ if shape is None else shape
            advice = ": make it one with jnp.stack" if isinstance(result, list | tuple) else ""
            raise ValueError(f"{called(self.model)} must return an array of shape (n_bins,), got {got}{advice}")
        if result.dtype.kind not in "fiub":
            raise TypeError(f"the events that {called(self.model)} returns must be real numbers, got {result.dtype}")
        captured = [np.asarray(array) for array in traced.consts]
        if any(array.dtype == np.float32 and not np.all(array == np.round(array)) for array in captured):
            warnings.warn(FLOAT32, stacklevel=5)
        return shape[0]

    def _n_used(self) -> int:
        return self._n_bins if self.mask is None else int(self.mask.sum())

    def _compiled(self, rows: Rows) -> VectorKernel:
        kernels = self.kept("vector kernels")
        n_columns = len(rows.names)
        if n_columns not in kernels:
            term = saturated if n_columns == 1 else scaled
            kernels[n_columns] = expectation_kernel(
                self.expected, len(self.names), self._n_used(), term=term, n_columns=n_columns
            )
        return kernels[n_columns]

    def kernel(self, rows: Rows) -> Callable:
        return self._compiled(rows).kernel

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        """The arrays that the model captured."""
        return self._compiled(rows).shared

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        term = saturated if len(rows.names) == 1 else scaled
        sums, n_used = expectation_outputs(self.expected, len(self.names), order, term=term), self._n_used()

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, _, _),) = data
            return sums(theta, columns[:, :n_used])

        return of_leaf

    @property
    def at_once(self) -> int:
        return len(self.names)

    def cheap_gradient(self, rows: Rows) -> bool:
        return len(rows.names) == 1

    def score_covariance(self, rows: Rows) -> Callable | None:
        if "scale" not in rows.names:
            return None
        n_used = self._n_used()
        expected = lambda theta: self.expected(*(theta[i] for i in range(len(self.names))))  # noqa: E731

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            n, scale = data[0][0][:, :n_used]
            jacobian = jax.jacfwd(expected)(theta)
            return weighted_score_covariance(n, scale, expected(theta), jacobian, fixed_total=False)

        return of_leaf

    def reference(self, rows: Rows) -> Callable:
        n_used = self._n_used()

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            n, *scale = data[0][0][:, :n_used]
            mu = self.expected(*(theta[i] for i in range(len(self.names))))
            terms = scaled_poisson(n, mu, *scale) if scale else saturated_poisson(n, mu)
            return jnp.sum(jnp.where(mu < 0, jnp.nan, terms))

        return of_leaf


def scaled(mu: Any, n: Any, scale: Any) -> Any:
    """`scaled_poisson` as a term of the expectation; NaN where mu < 0."""
    return jnp.where(mu < 0, jnp.nan, scaled_poisson(n, mu, scale))
