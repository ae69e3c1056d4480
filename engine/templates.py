"""The Poisson likelihood of templates with modifiers: the models of HistFactory."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.data import Rows
from engine.poisson import PoissonNLL, scaled
from kernels.expectation import saturated, term_derivatives
from kernels.program import EXPECTED, SECOND
from kernels.templates import TINY, Sample, normalisation_polynomials, packed_templates, template_kernel

__all__ = ["TemplateNLL"]


class TemplateNLL(PoissonNLL):
    """A `PoissonNLL` whose expectation is the sum over samples of (nominal + shapes) times all factors.

    Its derivatives are written down for all such models (see `kernels.templates`), so that numba compiles nothing for
    one of them and what vanishes is not computed: hundreds of parameters that act on one bin each cost little.

    Parameters
    ----------
    names : sequence of str
        All parameters; behind all others those that act on one bin.
    channels : sequence of sequences of Sample
        The samples of each channel; the bins of all channels stand one after the other in the counts.

    References
    ----------
    Cranmer et al., CERN-OPEN-2012-016; the interpolation is that of pyhf, codes 4 and 4p (Heinrich et al., JOSS 6
    (2021) 2823).
    """

    regular = True

    def __init__(self, names: Sequence[str], channels: Sequence[Sequence[Sample]]) -> None:
        self.tables = _Tables(channels, len(names))
        super().__init__(self.tables.expected, name=names)
        self.channels, self.packed = channels, packed_templates(channels)

    def kernel(self, rows: Rows) -> Callable:
        return template_kernel(weighted=len(rows.names) == 2)

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        return self.packed[None]

    @property
    def at_once(self) -> int:
        return len(self.names) + len(self.tables.whole) * len(self.tables.nominal)

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        derivatives, n_bins = term_derivatives(saturated if len(rows.names) == 1 else scaled), self._n_bins

        def of_leaf(theta: Array, data: tuple, shared: tuple) -> Array:
            ((columns, _, _),) = data
            return self.tables.outputs(theta, columns[:, :n_bins], order, derivatives)

        return of_leaf


class _Layer(NamedTuple):
    """One parameter at most for each of some places, by which they are multiplied."""

    chosen: np.ndarray  # positions of the parameters, -1 where there is none
    select: np.ndarray  # the same as a matrix of zeros and ones, (n_places, n_params)


class _Tables:
    """A model in arrays: the samples of a channel in rows, the bins of all channels in columns.

    A sample of a channel is a cell, number sample * n_channels + channel. `whole` are the parameters that act on whole
    cells, in increasing order.
    """

    def __init__(self, channels: Sequence[Sequence[Sample]], n_params: int) -> None:
        ends = np.cumsum([0, *(len(samples[0].nominal) for samples in channels)])
        bins = [slice(*pair) for pair in itertools.pairwise(ends)]
        placed = [(c, s, sample) for c, samples in enumerate(channels) for s, sample in enumerate(samples)]
        shape = max(map(len, channels)), len(channels)
        self.n_params, self.n_cells = n_params, shape[0] * shape[1]
        cell = np.arange(self.n_cells).reshape(shape)

        self.nominal = np.zeros((shape[0], ends[-1]))
        self.of_channel = np.zeros((shape[1], ends[-1]))  # 1 for the bins of a channel
        for c, s, sample in placed:
            self.nominal[s, bins[c]] = sample.nominal
            self.of_channel[c, bins[c]] = 1.0

        self.factors = []
        for k in range(max(len(sample.factors) for _, _, sample in placed)):
            chosen = np.full(self.n_cells, -1)
            for c, s, sample in placed:
                chosen[cell[s, c]] = sample.factors[k] if k < len(sample.factors) else -1
            self.factors.append(self._layer(chosen))

        norms = [(cell[s, c], n) for c, s, sample in placed for n in sample.normalisations]
        self.norm_cells = np.array([k for k, _ in norms], np.int32)
        self.norms = self._layer([n.parameter for _, n in norms])
        low, high = (np.array(side, float) for side in ([n.low for _, n in norms], [n.high for _, n in norms]))
        self.known = normalisation_polynomials(low, high), np.log(low), np.log(high)

        shapes = [(s, bins[c], p) for c, s, sample in placed for p in sample.shapes]
        alphas = sorted({p.parameter for _, _, p in shapes})
        self.alphas = self._layer(alphas)
        self.low, self.high = np.zeros((2, len(alphas), *self.nominal.shape))
        for s, cut, p in shapes:
            self.low[alphas.index(p.parameter), s, cut] = p.low
            self.high[alphas.index(p.parameter), s, cut] = p.high

        self.of_bins = []
        sets = [list(dict.fromkeys(p for sample in samples for p in sample.of_bins)) for samples in channels]
        for k in range(max(map(len, sets))):
            chosen, present = np.full(ends[-1], -1), np.zeros(self.nominal.shape, bool)
            for c, s, sample in placed:
                if k < len(sets[c]) and sets[c][k] in sample.of_bins:
                    chosen[bins[c]] = sets[c][k]
                    present[s, bins[c]] = True
            self.of_bins.append((self._layer(chosen), present & (chosen >= 0)))
        used = {k for layer in (*self.factors, self.norms, self.alphas) for k in layer.chosen.tolist()} - {-1}
        self.whole = np.array(sorted(used), np.int32)

    def _layer(self, chosen: Any) -> _Layer:
        chosen = np.array(chosen, np.int32)
        return _Layer(chosen, (chosen[:, None] == np.arange(self.n_params)).astype(float))

    def row(self, chosen: np.ndarray) -> np.ndarray:
        """Where parameters stand among those that act on whole cells."""
        return np.searchsorted(self.whole, chosen).astype(np.int32)

    def events(self, theta: Array) -> Array:
        """T, the nominal events and what the shapes add, (n_samples, n_bins)."""
        events = jnp.asarray(self.nominal)
        if not len(self.low):
            return events
        below, above = _sides(self.alphas.select @ theta)
        return events + jnp.tensordot(below, self.low, 1) + jnp.tensordot(above, self.high, 1)

    def scale(self, theta: Array, least: float = 0.0) -> Array:
        """F, the product of all factors, (n_samples, n_bins), where each parameter is `least` at least in modulus."""
        per_cell = jnp.ones(self.n_cells)
        for chosen, select in self.factors:
            per_cell = per_cell * jnp.where(chosen >= 0, _away_from_zero(select @ theta, least), 1.0)
        if len(self.norm_cells):
            logs = _log_factor(self.norms.select @ theta, *self.known)
            per_cell = per_cell * jnp.exp(jnp.zeros(self.n_cells).at[self.norm_cells].add(logs))
        result = per_cell.reshape(len(self.nominal), -1) @ self.of_channel
        for (_, select), present in self.of_bins:
            result = result * jnp.where(present, _away_from_zero(select @ theta, least), 1.0)
        return result

    def expected(self, *parameters: Any) -> Array:
        theta = jnp.stack(parameters)
        return jnp.sum(self.events(theta) * self.scale(theta), axis=0)

    def slopes(self, theta: Array) -> tuple[Array, Array]:
        """d log F / d theta_i, and the second derivative of F by theta_i over F: (n_whole, n_cells) each."""
        slopes = bends = jnp.zeros((len(self.whole), self.n_cells))
        for chosen, select in self.factors:
            cells = np.flatnonzero(chosen >= 0).astype(np.int32)
            inverse = 1.0 / _away_from_zero(select @ theta, TINY)
            slopes = slopes.at[self.row(chosen[cells]), cells].add(inverse[cells])
        if len(self.norm_cells):
            at = self.row(self.norms.chosen), self.norm_cells
            value = lambda alpha: _log_factor(alpha, *self.known)  # noqa: E731
            _, first, second = term_derivatives(value)(self.norms.select @ theta)
            slopes = slopes.at[at].add(first)
            bends = bends.at[at].add(second + first * first)
        return slopes, bends

    def outputs(self, theta: Array, columns: Array, order: int, derivatives: Callable) -> Array:
        """The outputs of `kernels.program` for the rows of one toy, with the derivatives of their term."""
        events = self.events(theta)
        mu = jnp.sum(events * self.scale(theta), axis=0)
        terms, slope, curvature = derivatives(mu, *columns)
        total = jnp.stack([jnp.sum(terms), jnp.sum(jnp.abs(terms))])
        if not order:
            return total
        if order == EXPECTED:
            _, _, curvature = derivatives(mu, mu, *columns[1:])

        scale, (slopes, bends) = self.scale(theta, TINY), self.slopes(theta)
        per_cell = (len(self.whole), len(self.nominal), len(self.of_channel))
        tangents = (slopes.reshape(per_cell) @ self.of_channel) * events  # T m_i + T_i
        shaped = self.row(self.alphas.chosen)
        alpha = self.alphas.select @ theta
        _, below, bend = term_derivatives(lambda a: _sides(a)[0])(alpha)
        own = below[:, None, None] * self.low + (1.0 + below)[:, None, None] * self.high  # T_i
        tangents = tangents.at[shaped].add(own)
        jacobian = jnp.sum(scale * tangents, axis=1)
        gradient = jnp.zeros(self.n_params).at[self.whole].add(jacobian @ slope)
        single = []  # of parameters of bins: their positions, bins, 1 / theta where they act, derivatives
        for (chosen, select), present in self.of_bins:
            bins = np.flatnonzero(chosen >= 0).astype(np.int32)
            inverse = jnp.where(present, 1.0 / _away_from_zero(select @ theta, TINY), 0.0)[:, bins]
            along = jnp.sum(inverse * (scale * events)[:, bins], axis=0)
            single.append((chosen[bins], bins, inverse, along))
            gradient = gradient.at[chosen[bins]].add(along * slope[bins])
        if order < SECOND:
            return jnp.concatenate([total, gradient])

        bent = scale * slope if order == SECOND else jnp.zeros(scale.shape)
        weight = (bent * events) @ self.of_channel.T  # (n_samples, n_channels)
        flat = slopes.reshape(per_cell)
        half = jnp.einsum("isc,jsc->ij", (bent * tangents) @ self.of_channel.T, flat)
        whole = half + half.T - jnp.einsum("isc,jsc->ij", flat * weight, flat)
        diagonal = (
            (bends @ weight.ravel())
            .at[shaped]
            .add(
                jnp.sum(
                    bent
                    * (2.0 * (flat @ self.of_channel)[shaped] * own + bend[:, None, None] * (self.low + self.high)),
                    (1, 2),
                )
            )
        )
        whole = jnp.where(np.eye(len(self.whole), dtype=bool), diagonal, whole)
        hessian = jnp.zeros((self.n_params, self.n_params))
        hessian = hessian.at[np.ix_(self.whole, self.whole)].add(whole + (jacobian * curvature) @ jacobian.T)
        for k, (positions, bins, inverse, along) in enumerate(single):
            row = jnp.einsum("sb,isb->bi", inverse * bent[:, bins], tangents[:, :, bins])
            row += (curvature[bins] * along)[:, None] * jacobian[:, bins].T
            hessian = hessian.at[np.ix_(positions, self.whole)].add(row)
            hessian = hessian.at[positions, positions].add(curvature[bins] * along**2)
            for others, other_bins, other_inverse, other_along in single[:k]:
                both, here, there = np.intersect1d(bins, other_bins, return_indices=True)
                pair = jnp.sum((bent * events)[:, both] * inverse[:, here] * other_inverse[:, there], axis=0)
                pair += curvature[both] * along[here] * other_along[there]
                first, second = positions[here], others[there]
                hessian = hessian.at[np.maximum(first, second), np.minimum(first, second)].add(pair)
        return jnp.concatenate([total, gradient, hessian[np.tril_indices(self.n_params)]])


def _away_from_zero(x: Any, least: float) -> Array:
    return jnp.where(jnp.abs(x) < least, least, x)


def _sides(alpha: Any) -> tuple[Array, Array]:
    """How much of the events at -1 and 1 is added: -alpha and 0, or 0 and alpha, beyond 1.

    Between them half of the even polynomial that continues |alpha| smoothly, and half of alpha.
    """
    inside = jnp.abs(alpha) < 1.0
    near = jnp.where(inside, alpha, 0.0)
    square = near**2
    even = square * (15.0 + square * (3.0 * square - 10.0)) / 16.0
    below = jnp.where(inside, even - 0.5 * near, jnp.maximum(-alpha, 0.0))
    return below, jnp.where(inside, even + 0.5 * near, jnp.maximum(alpha, 0.0))


def _log_factor(alpha: Any, polynomial: np.ndarray, log_low: np.ndarray, log_high: np.ndarray) -> Array:
    """Logarithm of a factor: of a power beyond 1, of 1 + a polynomial between -1 and 1."""
    inside = jnp.abs(alpha) < 1.0
    near, change = jnp.where(inside, alpha, 0.0), jnp.zeros(alpha.shape)
    for coefficient in polynomial[::-1]:
        change = near * (coefficient + change)
    return jnp.where(inside, jnp.log1p(change), jnp.abs(alpha) * jnp.where(alpha > 0.0, log_high, log_low))
