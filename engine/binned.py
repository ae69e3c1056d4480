"""Cost functions of histograms: BinnedNLL and ExtendedBinnedNLL.

Both take the saturated form of Baker & Cousins: `fval` is half the goodness-of-fit chi-square, zero where the
expectation equals the counts, and never a difference of large numbers.

References
----------
Baker & Cousins, NIM 221 (1984) 437-442.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.arguments import one_of, whole
from engine.cost import Cost, call_model, called, parameter_names, scalar_result
from engine.data import Rows, as_float64, counts_of
from kernels import quadrature
from kernels.expectation import VectorKernel, expectation_kernel, expectation_outputs
from kernels.nodes import UntranslatableError

__all__ = ["BinnedNLL", "ExtendedBinnedNLL", "checked_mask", "saturated_poisson"]

N_NODES = 6  # of a density in each bin


def saturated_poisson(n: Any, mu: Any) -> Any:
    """mu - n + n log(n / mu), and mu where n is 0: the Poisson -log L of one bin, less its smallest value.

    Fractional counts are legal (Asimov data). NaN or infinity where mu <= 0 in a filled bin.
    """
    filled = n > 0
    log_ratio = jnp.log(jnp.where(filled, mu / jnp.where(filled, n, 1.0), 1.0))
    return (mu - n) - jnp.where(filled, n * log_ratio, 0.0)


def scaled_poisson(n: Any, mu: Any, scale: Any) -> Any:
    """`saturated_poisson` of scale n and scale mu, for a sum of weights n, which may be negative.

    As n log n has no meaning there it is left out, which changes no derivative.

    References
    ----------
    Bohm & Zech, NIM A748 (2014) 1-6; Dembinski, Schmelling & Waldi, NIM A940 (2019) 135-141, for negative sums.
    """
    log_ratio = jnp.log(jnp.where(n != 0, mu / jnp.where(n > 0, n, 1.0 / scale), 1.0))
    return scale * ((mu - n) - n * log_ratio)


def nan_below_zero(mu: Any, size: Any) -> Any:
    """NaN where mu < 0, and 0 elsewhere, also where a difference of numbers of this size may have been rounded.

    Without it an empty bin draws its expectation below zero, and the fit with it, as far as filled ones let it.
    """
    return jnp.where(mu < -1e-12 * size, jnp.nan, 0.0)


def weighted_score_covariance(n: Any, scale: Any, mu: Any, jacobian: Any, *, fixed_total: bool) -> Any:
    """The covariance of the gradient of sum_k `scaled_poisson`, with sum w^2 = |n| / scale as the variance of n.

    The gradient is sum_k scale_k (mu_k - n_k) d log mu_k; where the mu_k add up to the sum of the n_k, it varies with
    the total, too.

    Parameters
    ----------
    n, scale, mu : (n_bins,)
    jacobian : (n_bins, n_params)
        d mu / d theta.
    """
    filled = n != 0
    slopes = scale[:, None] * jnp.where(filled[:, None], jacobian / jnp.where(filled, mu, 1.0)[:, None], 0.0)
    if fixed_total:
        slopes = slopes - scale @ jacobian / jnp.sum(mu)
    variance = jnp.where(filled, jnp.abs(n) / jnp.where(filled, scale, 1.0), 0.0)
    return slopes.T @ (variance[:, None] * slopes)


class _Binned(Cost):
    fixed_total = False

    def __init__(
        self,
        cdf: Callable,
        edges: Any,
        *,
        mask: Any = None,
        use_pdf: str = "",
        n_nodes: int = N_NODES,
        name: Sequence[str] | None = None,
    ) -> None:
        one_of("use_pdf", use_pdf, ("", "numerical", "approximate"))
        whole("n_nodes", n_nodes, 1)
        self.model, self.use_pdf = cdf, use_pdf
        self.n_nodes = 1 if use_pdf == "approximate" else n_nodes
        self.names = parameter_names(cdf, name)
        self.edges = bin_edges(edges)
        self.mask = None if mask is None else checked_mask(mask, len(self.edges) - 1)

    @property
    def adjacent(self) -> bool:  # type: ignore[override]
        if self.use_pdf:
            return False
        used = np.arange(1) if self.mask is None else np.flatnonzero(self.mask)
        return bool(used[-1] - used[0] == len(used) - 1)

    def rows(self, data: Any) -> Rows:
        """Rows of histograms: every bin that is used is a row.

        Parameters
        ----------
        data : (n_toys, n_bins) counts, or (n_toys, n_bins, 2) sums of weights and of their squares
        """
        columns, bad = counts_of(data, len(self.edges) - 1, self.mask)
        bins = np.stack([self.edges[:-1], self.edges[1:]])
        _, n_toys, n_used = columns.shape
        names, aux = ("n", "scale")[: len(columns)], self.totals(columns[0])
        if self.use_pdf and self.fixed_total:
            names, columns = (*names, "total"), np.concatenate([columns, np.broadcast_to(aux, columns[:1].shape)])
        return Rows(
            names=(*names, "lower", "upper"),
            columns=columns.reshape(len(columns), -1),
            offsets=np.arange(n_toys + 1, dtype=np.int64) * n_used,
            shared=bins if self.mask is None else bins[:, self.mask],
            aux=aux,
            bad=bad,
        )

    def term(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        mu, scale = self.expectation(theta, row, aux), [row["scale"]] if "scale" in row else []
        return self.poisson(row["n"], mu, *scale) + nan_below_zero(mu, self.size(theta, row, aux))

    def poisson(self, n: Any, mu: Any, *scale: Any) -> Any:
        return scaled_poisson(n, mu, *scale) if scale else saturated_poisson(n, mu)

    def size(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        """The numbers of whose difference the expectation of a bin is made."""
        if self.use_pdf:
            return 0.0
        return sum(jnp.abs(call_model(self.model, row[edge], theta)) for edge in ("lower", "upper"))

    def expectation(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        """Expected events of one bin."""
        return self.between(theta, row["lower"], row["upper"])

    def score_covariance(self, rows: Rows) -> Callable | None:
        if "scale" not in rows.names:
            return None
        n_bins = rows.shared.shape[1]  # not the rows, which would live as long as what is compiled

        def of_toy(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, aux, _),) = data
            (n, scale), bins = columns[:2, :n_bins], shared[0][:, :n_bins]

            def expected(theta: Array) -> Array:
                parameters = [theta[i] for i in range(len(self.names))]
                of_bin = lambda low, high: self.expectation(parameters, {"lower": low, "upper": high}, aux)  # noqa: E731
                return jax.vmap(of_bin)(*bins)

            mu, jacobian = expected(theta), jax.jacfwd(expected)(theta)
            return weighted_score_covariance(n, scale, mu, jacobian, fixed_total=self.fixed_total)

        return of_toy

    def check(self, theta: np.ndarray) -> None:
        """Warn, once, where the model falls and rises between the edges, as a density does and a cdf cannot."""
        if not self.use_pdf and not vars(self).get("_checked"):
            self._checked = True
            warn_of_density(self.model, self.edges, theta)

    # Long densities are compiled as a vector function of all bins, as in `engine.poisson`: three to five times slower.

    def contents(self, *theta: Any) -> Array:
        """What the model expects in all bins, (n_bins,), not normalised."""
        if not self.use_pdf:
            return jnp.diff(at_edges(self.model, self.edges, theta))
        density = lambda x: self.density(x, theta)  # noqa: E731
        numerical = lambda low, high: quadrature.integral(density, low, high, self.n_nodes)  # noqa: E731
        return jax.vmap(numerical)(self.edges[:-1], self.edges[1:])

    def used(self, *theta: Any) -> Array:
        """The same in the bins that are used."""
        contents = self.contents(*theta)
        return contents if self.mask is None else contents[np.flatnonzero(self.mask)]

    def expected(self, *theta: Any) -> Array:
        """The events in the bins that are used, or their shares of the total."""
        events = self.used(*theta)
        return events / jnp.sum(events) if self.fixed_total else events

    def in_vectors(self, rows: Rows) -> bool:
        """Whether all bins are computed together."""
        if not self.use_pdf:
            return False
        try:
            self.program(rows)
        except UntranslatableError:
            return True
        return False

    def _term(self, mu: Any, n: Any, *others: Any) -> Any:
        """The terms of all bins, of what is `expected` in them and the columns of a toy."""
        scale = others[: len(others) - self.fixed_total]
        mu = others[-1] * mu if self.fixed_total else mu
        return self.poisson(n, mu, *scale) + nan_below_zero(mu, others[-1] if self.fixed_total else 0.0)

    def _compiled(self, rows: Rows) -> VectorKernel:
        kernels, n_used = self.kept("vector kernels"), rows.shared.shape[1]
        if rows.form not in kernels:
            kernels[rows.form] = expectation_kernel(
                self.expected, len(self.names), n_used, term=self._term, n_columns=rows.n_columns
            )
        return kernels[rows.form]

    def kernel(self, rows: Rows) -> Callable:
        return self._compiled(rows).kernel if self.in_vectors(rows) else super().kernel(rows)

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        return self._compiled(rows).shared if self.in_vectors(rows) else super().kernel_shared(rows)

    @property
    def at_once(self) -> int:
        return len(self.names) if self.use_pdf else 0

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        if not self.in_vectors(rows):
            return super().outputs(rows, tile, order, one_pass)
        sums = expectation_outputs(self.expected, len(self.names), order, term=self._term)
        n_used = rows.shared.shape[1]

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, _, _),) = data
            return sums(theta, columns[:, :n_used])

        return of_leaf

    def reference(self, rows: Rows) -> Callable:
        if not self.use_pdf:
            return super().reference(rows)
        n_used = rows.shared.shape[1]

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, _, _),) = data
            mu = self.expected(*(theta[i] for i in range(len(self.names))))
            return jnp.sum(self._term(mu, *columns[:, :n_used]))

        return of_leaf

    def totals(self, counts: np.ndarray) -> np.ndarray:
        """Measured values of each toy that every bin needs, (n_toys, n_aux)."""
        return np.zeros((len(counts), 0))

    def between(self, theta: Sequence, lower: Any, upper: Any) -> Any:
        """The model's probability, or number of events, between two edges."""
        if self.use_pdf:
            return quadrature.written_out(lambda x: self.density(x, theta), lower, upper, self.n_nodes)
        return difference(self.model, lower, upper, theta)

    def density(self, x: Any, theta: Sequence) -> Any:
        """The model, where it is a density."""
        density = call_model(self.model, x, theta)
        scalar_result(self.model, density, "density")
        return density


class BinnedNLL(_Binned):
    """Negative log-likelihood of a histogram of fixed total, sum_k mu_k - n_k + n_k log(n_k / mu_k).

    The expectation mu_k is the total count of the toy times the model's probability of bin k within the bins that are
    used.

    Parameters
    ----------
    cdf : callable
        `cdf(edge, *parameters)`, in `jax.numpy`; it is called with one edge at a time. It is divided by its difference
        over the whole range, so any multiple of a cdf will do.
    edges : (n_bins + 1,) array
        Bin edges, increasing.
    mask : (n_bins,) bool, optional
        Bins that are used, as in `iminuit.cost`: sidebands. Counts keep their full shape; those of other bins are not
        looked at. Every gap adds two calls of the cdf to the normalisation.
    use_pdf : {"", "numerical", "approximate"}
        "numerical": the model is a density, `pdf(x, *parameters)`, of any norm, which is integrated over each bin by
        Gauss-Legendre nodes; "approximate": by its value in the middle.
    n_nodes : int
        Nodes of each bin. A warning tells if they are too few at the start or at the minima.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    Raises
    ------
    TypeError, ValueError
        If the edges do not increase; if the mask is not of shape (n_bins,) or leaves no bin; if use_pdf is not known.

    Notes
    -----
    A weighted histogram is fitted with the scaled Poisson distribution, as `iminuit.cost` does, and its covariance is
    that of the weighted estimator, V C V (see `engine.sandwich`).
    """

    fixed_total = True

    def totals(self, counts: np.ndarray) -> np.ndarray:
        return counts.sum(axis=1, keepdims=True)

    def windows(self) -> list[tuple[float, float]]:
        """Ends of each run of adjacent bins that are used."""
        used = np.ones(len(self.edges) - 1, dtype=bool) if self.mask is None else self.mask
        turns = np.flatnonzero(np.diff(used, prepend=False, append=False))
        return [(float(self.edges[first]), float(self.edges[last])) for first, last in turns.reshape(-1, 2)]

    def expectation(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        return aux[0] * self.between(theta, row["lower"], row["upper"]) / self.norm(theta)

    def size(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        return aux[0] if self.use_pdf else super().size(theta, row, aux) * jnp.abs(aux[0] / self.norm(theta))

    def norm(self, theta: Sequence) -> Any:
        """What the model expects in all bins that are used."""
        if not self.use_pdf:
            return sum(self.between(theta, lower, upper) for lower, upper in self.windows())
        return jnp.sum(self.used(*theta))


class ExtendedBinnedNLL(_Binned):
    """Extended negative log-likelihood of a histogram, sum_k mu_k - n_k + n_k log(n_k / mu_k).

    Parameters
    ----------
    scaled_cdf : callable
        `scaled_cdf(edge, *parameters)` in events: mu_k is its difference over bin k. In `jax.numpy`; it is called with
        one edge at a time.
    edges : (n_bins + 1,) array
        Bin edges, increasing.
    mask : (n_bins,) bool, optional
        Bins that are used, as in `iminuit.cost`: sidebands. Counts keep their full shape; those of other bins are not
        looked at.
    use_pdf, n_nodes
        As of `BinnedNLL`, with a density in events.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    Raises
    ------
    TypeError, ValueError
        If the edges do not increase; if the mask is not of shape (n_bins,) or leaves no bin; if use_pdf is not known.

    Notes
    -----
    A weighted histogram is fitted with the scaled Poisson distribution, as `iminuit.cost` does, and its covariance is
    that of the weighted estimator, V C V (see `engine.sandwich`).
    """

    def __init__(
        self,
        scaled_cdf: Callable,
        edges: Any,
        *,
        mask: Any = None,
        use_pdf: str = "",
        n_nodes: int = N_NODES,
        name: Sequence[str] | None = None,
    ) -> None:
        super().__init__(scaled_cdf, edges, mask=mask, use_pdf=use_pdf, n_nodes=n_nodes, name=name)


def difference(cdf: Callable, lower: Any, upper: Any, theta: Sequence) -> Any:
    """A cdf's difference between two edges."""
    high, low = call_model(cdf, upper, theta), call_model(cdf, lower, theta)
    scalar_result(cdf, high, "cdf")
    # what is an integer or a boolean has no slope, and True - False is none
    return jnp.asarray(high, float) - jnp.asarray(low, float)


def at_edges(cdf: Callable, edges: np.ndarray, theta: Sequence) -> Array:
    """A cdf at all edges."""
    return jax.vmap(lambda edge: jnp.asarray(call_model(cdf, edge, theta), float))(jnp.asarray(edges))


def warn_of_density(cdf: Callable, edges: np.ndarray, theta: Any) -> None:
    """Warn where a model falls and rises between the edges, as a density does and a cdf cannot."""
    with jax.enable_x64(True):
        step = np.diff(np.asarray(at_edges(cdf, edges, list(theta))))
    if step.ndim == 1 and (step < 0).any() and (step > 0).any():
        k = int(np.argmax(step < 0))
        warnings.warn(
            f"{called(cdf)} falls from the edge {edges[k]:g} to {edges[k + 1]:g}, so that a bin expects less than "
            'nothing: it must be a cdf, or the density of a histogram with use_pdf="numerical"',
            stacklevel=4,
        )


def bin_edges(edges: Any) -> np.ndarray:
    array = as_float64(edges, "edges")
    if array.ndim != 1 or len(array) < 2:
        raise ValueError(f"edges must have shape (n_bins + 1,) with at least one bin, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError("edges must be finite")
    if not (np.diff(array) > 0).all():
        k = int(np.argmin(np.diff(array) > 0))
        raise ValueError(f"edges must increase, but edge {k + 1} is {array[k + 1]:g} after {array[k]:g}")
    return array


def checked_mask(mask: Any, n: int) -> np.ndarray:
    """Which of n bins or points are used, as an (n,) array of bool.

    Raises
    ------
    TypeError, ValueError
        If the mask has no such form or leaves nothing.
    """
    array = np.asarray(mask)
    if array.dtype != bool:
        raise TypeError(f"mask must hold True (used) or False for each entry, got an array of {array.dtype}")
    if array.shape != (n,):
        raise ValueError(f"mask must have shape ({n},), one value per entry, got {array.shape}")
    if not array.any():
        raise ValueError("mask leaves nothing to fit: at least one entry must be True")
    return array.copy()
