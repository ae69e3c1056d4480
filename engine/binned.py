"""Cost functions of histograms: BinnedNLL and ExtendedBinnedNLL.

Both take the saturated form of Baker & Cousins: `fval` is half the goodness-of-fit chi-square, zero where the
expectation equals the counts, and never a difference of large numbers.

References
----------
Baker & Cousins, NIM 221 (1984) 437-442.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from engine.costs import Cost, call_model, parameter_names, scalar_result
from engine.data import Rows, counts_of

__all__ = ["BinnedNLL", "ExtendedBinnedNLL", "saturated_poisson"]


def saturated_poisson(n: Any, mu: Any) -> Any:
    """mu - n + n log(n / mu), and mu where n is 0: the Poisson -log L of one bin, less its smallest value.

    Fractional counts are legal (Asimov data). NaN or infinity where mu <= 0 in a filled bin.
    """
    filled = n > 0
    log_ratio = jnp.log(jnp.where(filled, mu / jnp.where(filled, n, 1.0), 1.0))
    return (mu - n) - jnp.where(filled, n * log_ratio, 0.0)


class _Binned(Cost):
    def __init__(self, cdf: Callable, edges: Any, *, name: Sequence[str] | None = None) -> None:
        self.model = cdf
        self.names = parameter_names(cdf, name)
        self.edges = bin_edges(edges)

    def rows(self, data: Any) -> Rows:
        """Rows of histograms: every bin is a row.

        Parameters
        ----------
        data : (n_toys, n_bins) array of counts
        """
        counts = counts_of(data, len(self.edges) - 1)
        n_toys, n_bins = counts.shape
        return Rows(
            names=("n", "lower", "upper"),
            columns=counts.reshape(1, -1),
            offsets=np.arange(n_toys + 1, dtype=np.int64) * n_bins,
            shared=np.stack([self.edges[:-1], self.edges[1:]]),
            aux=self.totals(counts),
            bad=~(np.isfinite(counts) & (counts >= 0)).all(axis=1),
        )

    def totals(self, counts: np.ndarray) -> np.ndarray:
        """Measured values of each toy that every bin needs, (n_toys, n_aux)."""
        return np.zeros((len(counts), 0))

    def between(self, theta: Sequence, lower: Any, upper: Any) -> Any:
        """The model's probability, or number of events, between two edges."""
        high, low = call_model(self.model, upper, theta), call_model(self.model, lower, theta)
        scalar_result(self.model, high, "cdf")
        return high - low


class BinnedNLL(_Binned):
    """Negative log-likelihood of a histogram of fixed total, sum_k mu_k - n_k + n_k log(n_k / mu_k).

    The expectation mu_k is the total count of the toy times the model's probability of bin k within the range.

    Parameters
    ----------
    cdf : callable
        `cdf(edge, *parameters)`, in `jax.numpy`; it is called with one edge at a time. It is divided by its difference
        over the whole range, so any multiple of a cdf will do.
    edges : (n_bins + 1,) array
        Bin edges, increasing.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    Raises
    ------
    ValueError
        If the edges do not increase.
    """

    def totals(self, counts: np.ndarray) -> np.ndarray:
        return counts.sum(axis=1, keepdims=True)

    def term(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        inside = self.between(theta, row["lower"], row["upper"])
        whole = self.between(theta, float(self.edges[0]), float(self.edges[-1]))
        return saturated_poisson(row["n"], aux[0] * inside / whole)


class ExtendedBinnedNLL(_Binned):
    """Extended negative log-likelihood of a histogram, sum_k mu_k - n_k + n_k log(n_k / mu_k).

    Parameters
    ----------
    scaled_cdf : callable
        `scaled_cdf(edge, *parameters)` in events: mu_k is its difference over bin k. In `jax.numpy`; it is called with
        one edge at a time.
    edges : (n_bins + 1,) array
        Bin edges, increasing.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    Raises
    ------
    ValueError
        If the edges do not increase.
    """

    def __init__(self, scaled_cdf: Callable, edges: Any, *, name: Sequence[str] | None = None) -> None:
        super().__init__(scaled_cdf, edges, name=name)

    def term(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        return saturated_poisson(row["n"], self.between(theta, row["lower"], row["upper"]))


def bin_edges(edges: Any) -> np.ndarray:
    array = np.asarray(edges, dtype=np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"edges must have shape (n_bins + 1,) with at least one bin, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("edges must be finite")
    if not (np.diff(array) > 0).all():
        k = int(np.argmin(np.diff(array) > 0))
        raise ValueError(f"edges must increase, but edge {k + 1} is {array[k + 1]:g} after {array[k]:g}")
    return array
