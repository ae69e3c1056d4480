"""The Poisson likelihood of templates with modifiers, as in HistFactory, as one numba kernel for all models.

What a bin expects is the sum over samples of T F: T the nominal events and what the shapes add to them, F the product
of all factors. With m_i = d log F / d theta_i its derivatives are

    F (T m_i + T_i)    and    F (T m_i m_j + T_i m_j + T_j m_i) + delta_ij F (T F_ii / F - T m_i^2 + T_ii),

and most of them vanish: a parameter of one bin meets what acts on the whole sample, never that of another bin. So the
work grows with the square of those parameters only that act on whole channels. The model is read from an array of
numbers, so that no model has to be compiled.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from kernels.translate import compile_source
from kernels.vectors import LANES

__all__ = [
    "TINY",
    "Normalisation",
    "Sample",
    "Shape",
    "normalisation_polynomials",
    "packed_templates",
    "template_kernel",
]

# Where derivatives are divided by a factor, one of zero is replaced by this: what they are multiplied by has it, too.
TINY = 1e-100


class Normalisation(NamedTuple):
    """All bins are multiplied by a factor that is known where the parameter is -1 and 1."""

    parameter: Any
    low: float
    high: float


class Shape(NamedTuple):
    """Events are added that are known where the parameter is -1 and 1: (n_bins,) each."""

    parameter: Any
    low: np.ndarray
    high: np.ndarray


@dataclass
class Sample:
    """The events of one sample in one channel, and what acts on them; parameters are told by their positions.

    Attributes
    ----------
    nominal : (n_bins,) float64
    factors : list of int
        Parameters that multiply all bins.
    normalisations : list of Normalisation
    shapes : list of Shape
    of_bins : list of tuple of int
        Parameters of which each multiplies one bin, -1 where there is none. Those of two samples are the same or have
        none in common.
    """

    nominal: np.ndarray
    factors: list[Any] = field(default_factory=list)
    normalisations: list[Normalisation] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    of_bins: list[Any] = field(default_factory=list)


def normalisation_polynomials(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Coefficients of x to x^6 of the factors between -1 and 1, less one: (6, n).

    At both ends value, slope and curvature are those of low^-x and high^x (code 4 of pyhf).
    """
    k = np.arange(1, 7)
    sign = (-1.0) ** k
    rows = np.stack([k**0, sign, k, -sign * k, k * (k - 1), sign * k * (k - 1)])
    log_low, log_high = np.log(low), np.log(high)
    ends = [high - 1, low - 1, high * log_high, -low * log_low, high * log_high**2, low * log_low**2]
    return np.linalg.solve(rows, np.array(ends))


def packed_templates(channels: Sequence[Sequence[Sample]]) -> np.ndarray:
    """A model as the numbers that the kernel reads, (n,) float64.

    Parameters
    ----------
    channels : sequence of sequences of Sample
        All samples of a channel have the same bins. Parameters of bins stand behind all others.

    Notes
    -----
    The numbers, one after the other; "place" counts from 0, n is the number of bins filled up to whole vectors::

        n_channels; of all channels the most n, whole, sets, samples, acting; n_alphas; parameters with shapes (alphas)
        of each channel:
            n_bins, n_whole, n_sets, n_samples, most acting
            n_whole parameters that act on whole samples; for each set, a parameter of each bin, or -1
            of each sample:
                n_acting, n_factors, n_normalisations, n_shapes, n_of_bins; n nominal events
                places among `whole` of the n_acting parameters that act on the whole sample
                n_factors places among these
                of each normalisation: place among these, log low, log high, 6 coefficients of the polynomial
                of each shape: place among alphas, among these, among `whole`; n events at -1; n events at 1
                n_of_bins places of sets
    """
    alphas = sorted({shape.parameter for samples in channels for s in samples for shape in s.shapes})
    packed: list[Any] = [[len(alphas)], alphas]
    sizes = np.zeros((len(channels), 5), int)
    for c, samples in enumerate(channels):
        whole = [
            sorted({*s.factors, *(n.parameter for n in s.normalisations), *(p.parameter for p in s.shapes)})
            for s in samples
        ]
        local = {parameter: k for k, parameter in enumerate(sorted(set().union(*whole)))}
        sets = list(dict.fromkeys(positions for s in samples for positions in s.of_bins))
        sizes[c] = len(samples[0].nominal), len(local), len(sets), len(samples), max(map(len, whole))
        packed += [sizes[c], list(local), *sets]
        for sample, acting in zip(samples, whole, strict=True):
            parts = acting, sample.factors, sample.normalisations, sample.shapes, sample.of_bins
            packed += [[len(part) for part in parts], _filled_up(sample.nominal), [local[p] for p in acting]]
            packed += [[acting.index(p) for p in sample.factors]]
            for parameter, low, high in sample.normalisations:
                polynomial = normalisation_polynomials(np.array([low]), np.array([high]))
                packed += [[acting.index(parameter), np.log(low), np.log(high)], polynomial[:, 0]]
            for shape in sample.shapes:
                numbers = alphas.index(shape.parameter), acting.index(shape.parameter), local[shape.parameter]
                packed += [numbers, _filled_up(shape.low), _filled_up(shape.high)]
            packed += [[sets.index(positions) for positions in sample.of_bins]]
    most = sizes.max(axis=0)
    most[0] = len(_filled_up(np.zeros(most[0])))
    return np.concatenate([[len(channels)], most, *packed]).astype(np.float64)


def _filled_up(of_bins: np.ndarray) -> np.ndarray:
    """With zeros behind, so that there are whole vectors."""
    return np.pad(of_bins, (0, -len(of_bins) % LANES))


@functools.cache
def template_kernel(weighted: bool = False) -> Callable:
    """The kernel, of type `kernels.translate.KERNEL_SIGNATURE`.

    The first row of `shared` is that of `packed_templates`; the rows of a toy are the counts of all bins or, where they
    are weighted, the sums of weights and the scales of the scaled Poisson distribution.
    """
    return compile_source(f"TINY, WEIGHTED = {TINY!r}, {weighted}\n\n{_SOURCE}")


_SOURCE = '''
from kernels.blocks import ROWS, block_of_products
from kernels.vectors import LANES, over_vectors

copy = over_vectors(lambda target, x: x, pieces=2)
add = over_vectors(lambda target, x, a: target + a * x, pieces=2)
add_two = over_vectors(lambda target, x, y, a, b: target + a * x + b * y, pieces=3)
add_product = over_vectors(lambda target, x, y: target + x * y, pieces=3)
add_product_of_two = over_vectors(lambda target, z, x, y, a, b: target + z * (a * x + b * y), pieces=4)
multiply = over_vectors(lambda target, x, y: x * y, pieces=3)
dot = over_vectors(lambda x, y: x * y, pieces=2, summed=True)
block = block_of_products(given=False, subtracted=False, solved=False)


@njit(**COMPILE_ROW)
def sides(x):
    """How much of the events at -1 and 1 is added, and two derivatives: -x and 0, or 0 and x, beyond 1."""
    if not abs(x) < 1.0:
        return (0.0, x, 0.0, 1.0, 0.0) if x > 0.0 else (-x, 0.0, -1.0, 0.0, 0.0)
    # between them half of an even polynomial, and half of x
    q = x * x
    even, slope = q * (15.0 + q * (3.0 * q - 10.0)) / 16.0, x * (30.0 + q * (18.0 * q - 40.0)) / 16.0
    return even - 0.5 * x, even + 0.5 * x, slope - 0.5, slope + 0.5, (30.0 + q * (90.0 * q - 120.0)) / 16.0


@njit(**COMPILE_ROW)
def normalisation(x, c, at):
    """A factor; the derivative of its logarithm; second derivative of the factor over the factor."""
    if not abs(x) < 1.0:
        side = c[at + 1] if x > 0.0 else -c[at]
        return exp(x * side), side, side * side
    value, slope, bend = 0.0, 0.0, 0.0
    for k in range(at + 7, at + 1, -1):
        bend = bend * x + 2.0 * slope
        slope = slope * x + value
        value = value * x + c[k]
    # the polynomial has no constant term
    bend = bend * x + 2.0 * slope
    slope = slope * x + value
    value = 1.0 + value * x
    inverse = 1.0 / value
    return value if value > 0.0 else np.nan, slope * inverse, bend * inverse


@njit(**COMPILE_ROW)
def away_from_zero(x):
    return TINY if abs(x) < TINY else x


@njit(**COMPILE_ROW)
def set_rows(rows, start, value, n):
    for k in range(np.uint64(start), np.uint64(start + n)):
        rows[k] = value


def row_sums(theta, rows, shared, aux, begin, end, order, out):
    n_params = len(theta)
    hessian = 2 + n_params
    set_rows(out, 0, 0.0, hessian if order == FIRST else hessian + n_params * (n_params + 1) // 2)
    c = shared[0]
    most_bins, most_whole, most_sets = int(c[1]), int(c[2]), int(c[3])
    most_samples, most_acting = int(c[4]), int(c[5])
    # Places in w. Rows over the bins of a channel: T and F of each sample, of which the latter has no zero and later
    # becomes the slope times F; F of one sample, F T, the expectation, slope and curvature of its term, any weight; its
    # Jacobian by the parameters of whole samples and by the sets; for each set and each of the former, what belongs in
    # the Hessian. Behind them rows over what acts on a sample: m_i and F_ii / F of each sample, and of one sum F T_i.
    events, scale, turned = 0, most_samples * most_bins, 2 * most_samples * most_bins
    factor, both, expected, slope, curvature, weight = (
        turned, turned + most_bins, turned + 2 * most_bins, turned + 3 * most_bins, turned + 4 * most_bins,
        turned + 5 * most_bins,
    )
    jacobian = turned + 6 * most_bins
    mixed = jacobian + (most_whole + most_sets) * most_bins
    slopes = mixed + (0 if order == FIRST else most_sets * most_whole * most_bins)
    bends = slopes + most_samples * most_acting
    own = bends + most_samples * most_acting
    # rows over the parameters, of which a product reads whole vectors
    wide = (most_whole + LANES - 1) // LANES * LANES
    before, behind = own + most_acting, own + most_acting + wide
    w = np.empty(behind + wide)
    # three matrices below each other: derivatives of the bins, the same times curvatures, and products of both
    matrix = np.empty((0 if order == FIRST else 2 * most_bins + wide, wide))
    products = 2 * most_bins
    place, index = np.empty((most_samples, 3), np.int64), np.empty(most_whole, np.int64)
    n_alphas = int(c[6])
    alphas = np.empty((n_alphas, 5))
    for k in range(n_alphas):
        alphas[k, 0], alphas[k, 1], alphas[k, 2], alphas[k, 3], alphas[k, 4] = sides(theta[int(c[7 + k])])
    at = 7 + n_alphas
    first = begin
    for _ in range(int(c[0])):
        n_bins, n_whole, n_sets, n_samples = int(c[at]), int(c[at + 1]), int(c[at + 2]), int(c[at + 3])
        n = (n_bins + LANES - 1) // LANES * LANES
        for i in range(n_whole):
            index[i] = int(c[at + 5 + i])
        sets = at + 5 + n_whole
        at = sets + n_sets * n_bins
        set_rows(w, expected, 0.0, n)
        set_rows(w, jacobian, 0.0, (n_whole + n_sets) * n)
        for s in range(n_samples):
            n_acting, n_factors, n_norms = int(c[at]), int(c[at + 1]), int(c[at + 2])
            n_shapes, n_of_bins = int(c[at + 3]), int(c[at + 4])
            place[s, 0] = at
            nominal, acting = at + 5, at + 5 + n
            at = acting + n_acting
            m, t, f = slopes + s * most_acting, events + s * n, scale + s * n
            set_rows(w, m, 0.0, n_acting)
            set_rows(w, bends + s * most_acting, 0.0, n_acting)
            product, safe = 1.0, 1.0
            for k in range(n_factors):
                a = int(c[at + k])
                x = theta[index[int(c[acting + a])]]
                product *= x
                safe *= away_from_zero(x)
                w[m + a] = 1.0 / away_from_zero(x)
            at += n_factors
            norm = 1.0
            for _ in range(n_norms):
                a = int(c[at])
                value, along, bend = normalisation(theta[index[int(c[acting + a])]], c, at + 1)
                norm *= value
                w[m + a] = along
                w[bends + s * most_acting + a] = bend
                at += 9
            set_rows(w, factor, product * norm, n)
            set_rows(w, f, safe * norm, n)
            copy(n, w, t, c, nominal)
            place[s, 1], place[s, 2] = at, at + n_shapes * (3 + 2 * n)
            for k in range(place[s, 2], place[s, 2] + n_of_bins):
                position = sets + int(c[k]) * n_bins
                for b in range(n_bins):
                    if c[position + b] >= 0.0:
                        x = theta[int(c[position + b])]
                        w[factor + b] *= x
                        w[f + b] *= away_from_zero(x)
            for _ in range(n_shapes):
                k, row = int(c[at]), jacobian + int(c[at + 2]) * n
                add_two(n, w, t, c, at + 3, c, at + 3 + n, alphas[k, 0], alphas[k, 1])
                add_product_of_two(n, w, row, w, f, c, at + 3, c, at + 3 + n, alphas[k, 2], alphas[k, 3])
                at += 3 + 2 * n
            multiply(n, w, both, w, f, w, t)
            add_product(n, w, expected, w, factor, w, t)
            for a in range(n_acting):
                if w[m + a] != 0.0:
                    add(n, w, jacobian + int(c[acting + a]) * n, w, both, w[m + a])
            for k in range(at, at + n_of_bins):
                position, row = sets + int(c[k]) * n_bins, jacobian + (n_whole + int(c[k])) * n
                for b in range(n_bins):
                    if c[position + b] >= 0.0:
                        w[row + b] += w[both + b] / away_from_zero(theta[int(c[position + b])])
            at += n_of_bins

        set_rows(w, slope, 0.0, n)
        set_rows(w, curvature, 0.0, n)
        for b in range(n_bins):
            count, mu = rows[0, first + b], w[expected + b]
            term, along, curved = np.nan, np.nan, np.nan
            if count > 0.0:
                near = mu > 0.5 * count
                term = (mu - count) - count * (log1p((mu - count) / count) if near else log(mu / count))
                along = (mu - count) / mu
                curved = count / (mu * mu)
            elif count == 0.0 and mu >= 0.0:
                term, along, curved = mu, 1.0, 0.0
            elif WEIGHTED and count < 0.0 and mu > 0.0:
                term = (mu - count) - count * log(mu * rows[1, first + b])
                along = (mu - count) / mu
                curved = count / (mu * mu)
            if order == EXPECTED:
                curved = 1.0 / mu if mu > 0.0 else 0.0
            if WEIGHTED:
                term *= rows[1, first + b]
                along *= rows[1, first + b]
                curved *= rows[1, first + b]
            out[0] += term
            out[1] += abs(term)
            w[slope + b], w[curvature + b] = along, curved
        first += n_bins
        for i in range(n_whole):
            out[2 + index[i]] += dot(n, w, slope, w, jacobian + i * n)
        for k in range(n_sets):
            for b in range(n_bins):
                position = sets + k * n_bins + b
                if c[position] >= 0.0:
                    out[2 + int(c[position])] += w[slope + b] * w[jacobian + (n_whole + k) * n + b]
        if order == FIRST:
            continue

        for b in range(n_bins):
            curved = w[curvature + b]
            for i in range(n_whole):
                matrix[b, i] = w[jacobian + i * n + b]
                matrix[most_bins + b, i] = curved * matrix[b, i]
        for i in range(0, n_whole, ROWS):
            for j in range(0, i + ROWS, LANES):
                block(matrix, 0, products + i, j, most_bins, 0, i, n_bins, 0)
        # derivatives by a parameter of a bin and by one of whole samples: a row over the bins for each of the latter
        for k in range(n_sets):
            multiply(n, w, weight, w, curvature, w, jacobian + (n_whole + k) * n)
            for i in range(n_whole):
                multiply(n, w, mixed + (k * n_whole + i) * n, w, weight, w, jacobian + i * n)
            for b in range(n_bins):
                position = int(c[sets + k * n_bins + b])
                for l in range(n_sets):
                    other = int(c[sets + l * n_bins + b])
                    if 0 <= other <= position:
                        place_of = hessian + position * (position + 1) // 2 + other
                        out[place_of] += w[weight + b] * w[jacobian + (n_whole + l) * n + b]
        if order == SECOND:
            set_rows(w, before, 0.0, 2 * wide)
            for s in range(n_samples):
                at_sample, shapes, of_bins = place[s, 0], place[s, 1], place[s, 2]
                n_acting, acting = int(c[at_sample]), at_sample + 5 + n
                n_of_bins = int(c[at_sample + 4])
                m, t, f = slopes + s * most_acting, events + s * n, scale + s * n
                multiply(n, w, f, w, f, w, slope)
                total = dot(n, w, f, w, t)
                set_rows(w, own, 0.0, n_acting)
                for p in range(shapes, of_bins, 3 + 2 * n):
                    k, a, i = int(c[p]), int(c[p + 1]), int(c[p + 2])
                    below, above = dot(n, w, f, c, p + 3), dot(n, w, f, c, p + 3 + n)
                    w[own + a] += alphas[k, 2] * below + alphas[k, 3] * above
                    matrix[products + i, i] += alphas[k, 4] * (below + above)
                # each with all before it
                for a in range(n_acting):
                    i, along = int(c[acting + a]), w[m + a] * total + w[own + a]
                    row = (products + i) * wide
                    add_two((i + LANES) // LANES * LANES, matrix, row, w, before, w, behind, along, w[m + a])
                    matrix[products + i, i] += w[bends + s * most_acting + a] * total + 2.0 * w[m + a] * w[own + a]
                    w[before + i], w[behind + i] = w[m + a], w[own + a]
                for a in range(n_acting):
                    i = int(c[acting + a])
                    w[before + i], w[behind + i] = 0.0, 0.0
                for q in range(of_bins, of_bins + n_of_bins):
                    k = int(c[q])
                    set_rows(w, weight, 0.0, n)
                    for b in range(n_bins):
                        if c[sets + k * n_bins + b] >= 0.0:
                            position = int(c[sets + k * n_bins + b])
                            w[weight + b] = w[f + b] / away_from_zero(theta[position])
                            for r in range(of_bins, of_bins + n_of_bins):
                                other = int(c[sets + int(c[r]) * n_bins + b])
                                if 0 <= other < position:
                                    bent = w[weight + b] * w[t + b] / away_from_zero(theta[other])
                                    out[hessian + position * (position + 1) // 2 + other] += bent
                    multiply(n, w, both, w, weight, w, t)
                    for a in range(n_acting):
                        if w[m + a] != 0.0:
                            add(n, w, mixed + (k * n_whole + int(c[acting + a])) * n, w, both, w[m + a])
                    for p in range(shapes, of_bins, 3 + 2 * n):
                        j, row = int(c[p]), mixed + (k * n_whole + int(c[p + 2])) * n
                        add_product_of_two(
                            n, w, row, w, weight, c, p + 3, c, p + 3 + n, alphas[j, 2], alphas[j, 3]
                        )
        # whole numbers without sign: one that may be negative counts from the end, which takes longer than to add
        for i in range(n_whole):
            row = np.uint64(hessian + index[i] * (index[i] + 1) // 2)
            for j in range(i + 1):
                out[row + np.uint64(index[j])] += matrix[products + i, j]
        for k in range(n_sets):
            for b in range(n_bins):
                if c[sets + k * n_bins + b] >= 0.0:
                    position = int(c[sets + k * n_bins + b])
                    row = np.uint64(hessian + position * (position + 1) // 2)
                    for i in range(n_whole):
                        out[row + np.uint64(index[i])] += w[mixed + (k * n_whole + i) * n + b]
'''
