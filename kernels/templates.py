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
    """
    packed: list[Any] = []
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
            packed += [[len(part) for part in parts], sample.nominal, [local[p] for p in acting]]
            packed += [[acting.index(p) for p in sample.factors]]
            for parameter, low, high in sample.normalisations:
                polynomial = normalisation_polynomials(np.array([low]), np.array([high]))
                packed += [[acting.index(parameter), np.log(low), np.log(high)], polynomial[:, 0]]
            for shape in sample.shapes:
                packed += [[acting.index(shape.parameter)], shape.low, shape.high]
            packed += [[sets.index(positions) for positions in sample.of_bins]]
    return np.concatenate([[len(channels)], sizes.max(axis=0), *packed]).astype(np.float64)


@functools.cache
def template_kernel(weighted: bool = False) -> Callable:
    """The kernel, of type `kernels.translate.KERNEL_SIGNATURE`.

    The first row of `shared` is that of `packed_templates`; the rows of a toy are the counts of all bins or, where they
    are weighted, the sums of weights and the scales of the scaled Poisson distribution.
    """
    return compile_source(f"TINY, WEIGHTED = {TINY!r}, {weighted}\n\n{_SOURCE}")


_SOURCE = '''
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
    """Logarithm of a factor; its derivative; second derivative of the factor over the factor."""
    if not abs(x) < 1.0:
        side = c[at + 1] if x > 0.0 else -c[at]
        return x * side, side, side * side
    value, slope, bend = 0.0, 0.0, 0.0
    for k in range(at + 7, at + 1, -1):
        bend = bend * x + 2.0 * slope
        slope = slope * x + value
        value = value * x + c[k]
    # the polynomial has no constant term
    bend = bend * x + 2.0 * slope
    slope = slope * x + value
    value = value * x
    return log1p(value), slope / (1.0 + value), bend / (1.0 + value)


@njit(**COMPILE_ROW)
def expand(theta, c, at, n_bins, whole, sets, events, scale, factor, slopes, bends, tangents):
    """One sample: its T and F in each bin, and m_i, F_ii / F and T m_i + T_i of what acts on all of it.

    F is in `factor`; in `scale` it has no zeros. Returns where the shapes stand, and where the next sample begins.
    """
    n_acting, n_factors, n_norms = int(c[at]), int(c[at + 1]), int(c[at + 2])
    n_shapes, n_sets = int(c[at + 3]), int(c[at + 4])
    nominal = c[at + 5 : at + 5 + n_bins]
    at += 5 + n_bins
    acting = c[at : at + n_acting]
    at += n_acting
    for a in range(n_acting):
        slopes[a] = 0.0
        bends[a] = 0.0
    product, safe, logarithm = 1.0, 1.0, 0.0
    for k in range(n_factors):
        a = int(c[at + k])
        x = theta[int(whole[int(acting[a])])]
        product *= x
        x = TINY if abs(x) < TINY else x
        safe *= x
        slopes[a] = 1.0 / x
    at += n_factors
    for _ in range(n_norms):
        a = int(c[at])
        value, slope, bend = normalisation(theta[int(whole[int(acting[a])])], c, at + 1)
        logarithm += value
        slopes[a] = slope
        bends[a] = bend
        at += 9
    norm = exp(logarithm)
    for b in range(n_bins):
        events[b] = nominal[b]
        factor[b] = product * norm
        scale[b] = safe * norm
    shapes = at
    for _ in range(n_shapes):
        x = theta[int(whole[int(acting[int(c[at])])])]
        below, above, _, _, _ = sides(x)
        low, high = c[at + 1 : at + 1 + n_bins], c[at + 1 + n_bins : at + 1 + 2 * n_bins]
        for b in range(n_bins):
            events[b] += below * low[b] + above * high[b]
        at += 1 + 2 * n_bins
    for a in range(n_acting):
        for b in range(n_bins):
            tangents[a, b] = slopes[a] * events[b]
    at = shapes
    for _ in range(n_shapes):
        a = int(c[at])
        _, _, below, above, _ = sides(theta[int(whole[int(acting[a])])])
        low, high = c[at + 1 : at + 1 + n_bins], c[at + 1 + n_bins : at + 1 + 2 * n_bins]
        for b in range(n_bins):
            tangents[a, b] += below * low[b] + above * high[b]
        at += 1 + 2 * n_bins
    for k in range(n_sets):
        first = int(c[at + k]) * n_bins
        for b in range(n_bins):
            if sets[first + b] >= 0.0:
                x = theta[int(sets[first + b])]
                factor[b] *= x
                scale[b] *= TINY if abs(x) < TINY else x
    return shapes, at + n_sets


@njit(**COMPILE_ROW)
def add_products(jacobian, curvature, n_bins, n, turned, block):
    """Add sum_b curvature_b J_b J_b^T to the lower triangle of a block; two rows at a time, and four bins."""
    for start in range(0, n_bins, 4):
        c0, c1, c2, c3 = curvature[start], 0.0, 0.0, 0.0
        b1, b2, b3 = start, start, start
        if start + 1 < n_bins:
            b1, c1 = start + 1, curvature[start + 1]
        if start + 2 < n_bins:
            b2, c2 = start + 2, curvature[start + 2]
        if start + 3 < n_bins:
            b3, c3 = start + 3, curvature[start + 3]
        j0, j1, j2, j3 = turned[0], turned[1], turned[2], turned[3]
        for i in range(n):
            j0[i], j1[i], j2[i], j3[i] = jacobian[i, start], jacobian[i, b1], jacobian[i, b2], jacobian[i, b3]
        for i in range(0, n, 2):
            last = i + 1 if i + 1 < n else i
            x0, x1, x2, x3 = c0 * j0[i], c1 * j1[i], c2 * j2[i], c3 * j3[i]
            y0, y1, y2, y3 = c0 * j0[last], c1 * j1[last], c2 * j2[last], c3 * j3[last]
            row, below = block[i], block[i + 1]
            # rows are longer than what is read of them, so that whole vectors are added
            for j in range((i + 9) // 8 * 8):
                row[j] += (x0 * j0[j] + x1 * j1[j]) + (x2 * j2[j] + x3 * j3[j])
                below[j] += (y0 * j0[j] + y1 * j1[j]) + (y2 * j2[j] + y3 * j3[j])


def row_sums(theta, rows, shared, aux, begin, end, order, out):
    c = shared[0]
    n_params = len(theta)
    hessian = 2 + n_params
    for i in range(hessian if order == FIRST else hessian + n_params * (n_params + 1) // 2):
        out[i] = 0.0
    most_bins, most_whole, most_sets = int(c[1]), int(c[2]), int(c[3])
    most_samples, most_acting = int(c[4]), int(c[5])
    events, scale = np.empty((most_samples, most_bins)), np.empty((most_samples, most_bins))
    slopes, bends = np.empty((most_samples, most_acting)), np.empty((most_samples, most_acting))
    tangents = np.empty((most_samples, most_acting, most_bins))
    factor, along = np.empty(most_bins), np.empty(most_acting)
    expected, slope, curvature = np.empty(most_bins), np.empty(most_bins), np.empty(most_bins)
    jacobian = np.empty((most_whole + most_sets, most_bins))
    width = (most_whole + 8) // 8 * 8
    block, turned = np.empty((most_whole + 1, width)), np.zeros((4, width))
    at, place = 6, np.empty((most_samples, 3), np.int64)
    first = begin
    for _ in range(int(c[0])):
        n_bins, n_whole, n_sets, n_samples = int(c[at]), int(c[at + 1]), int(c[at + 2]), int(c[at + 3])
        whole = c[at + 5 : at + 5 + n_whole]
        at += 5 + n_whole
        sets = c[at : at + n_sets * n_bins]
        at += n_sets * n_bins
        for b in range(n_bins):
            expected[b] = 0.0
        for i in range(n_whole + n_sets):
            for b in range(n_bins):
                jacobian[i, b] = 0.0
        for s in range(n_samples):
            place[s, 0] = at
            place[s, 1], at = expand(
                theta, c, at, n_bins, whole, sets, events[s], scale[s], factor, slopes[s], bends[s], tangents[s]
            )
            place[s, 2] = at
            own = place[s, 0]
            acting = c[own + 5 + n_bins : own + 5 + n_bins + int(c[own])]
            of_bins = c[at - int(c[own + 4]) : at]
            for b in range(n_bins):
                expected[b] += factor[b] * events[s, b]
            for a in range(len(acting)):
                i = int(acting[a])
                for b in range(n_bins):
                    jacobian[i, b] += scale[s, b] * tangents[s, a, b]
            for k in of_bins:
                for b in range(n_bins):
                    if sets[int(k) * n_bins + b] >= 0.0:
                        x = theta[int(sets[int(k) * n_bins + b])]
                        jacobian[n_whole + int(k), b] += scale[s, b] * events[s, b] / (TINY if abs(x) < TINY else x)

        for b in range(n_bins):
            n, mu = rows[0, first + b], expected[b]
            term, slope[b], curvature[b] = np.nan, np.nan, np.nan
            if n > 0.0:
                term = (mu - n) - n * log1p((mu - n) / n)
                slope[b] = (mu - n) / mu
                curvature[b] = n / (mu * mu)
            elif n == 0.0 and mu >= 0.0:
                term, slope[b], curvature[b] = mu, 1.0, 0.0
            elif WEIGHTED and n < 0.0 and mu > 0.0:
                term = (mu - n) - n * log(mu * rows[1, first + b])
                slope[b] = (mu - n) / mu
                curvature[b] = n / (mu * mu)
            if order == EXPECTED:
                curvature[b] = 1.0 / mu if mu > 0.0 else 0.0
            if WEIGHTED:
                term *= rows[1, first + b]
                slope[b] *= rows[1, first + b]
                curvature[b] *= rows[1, first + b]
            out[0] += term
            out[1] += abs(term)
        first += n_bins
        for i in range(n_whole):
            total = 0.0
            for b in range(n_bins):
                total += slope[b] * jacobian[i, b]
            out[2 + int(whole[i])] += total
        for k in range(n_sets):
            for b in range(n_bins):
                if sets[k * n_bins + b] >= 0.0:
                    out[2 + int(sets[k * n_bins + b])] += slope[b] * jacobian[n_whole + k, b]
        if order == FIRST:
            continue

        for i in range(n_whole + 1):
            for j in range(width):
                block[i, j] = 0.0
        add_products(jacobian, curvature, n_bins, n_whole, turned, block)
        for k in range(n_sets):
            for b in range(n_bins):
                if sets[k * n_bins + b] >= 0.0:
                    position = int(sets[k * n_bins + b])
                    row, x = hessian + position * (position + 1) // 2, curvature[b] * jacobian[n_whole + k, b]
                    for i in range(n_whole):
                        out[row + int(whole[i])] += x * jacobian[i, b]
                    for m in range(n_sets):
                        other = int(sets[m * n_bins + b])
                        if 0 <= other <= position:
                            out[row + other] += x * jacobian[n_whole + m, b]
        if order == SECOND:
            for s in range(n_samples):
                own, shapes, behind = place[s, 0], place[s, 1], place[s, 2]
                acting = c[own + 5 + n_bins : own + 5 + n_bins + int(c[own])]
                of_bins = c[behind - int(c[own + 4]) : behind]
                total = 0.0
                for b in range(n_bins):
                    scale[s, b] *= slope[b]
                    total += scale[s, b] * events[s, b]
                for a in range(len(acting)):
                    i, m = int(acting[a]), slopes[s, a]
                    along[a] = 0.0
                    for b in range(n_bins):
                        along[a] += scale[s, b] * tangents[s, a, b]
                    for d in range(a):
                        block[i, int(acting[d])] += along[a] * slopes[s, d] + m * (along[d] - total * slopes[s, d])
                    # a factor has no T_i, and T m_i would not cancel to zero where it is large
                    block[i, i] += bends[s, a] * total
                for k in range(int(c[own + 3])):
                    start = shapes + k * (1 + 2 * n_bins)
                    a = int(c[start])
                    i = int(acting[a])
                    _, _, _, _, bend = sides(theta[int(whole[i])])
                    both = 0.0
                    for b in range(n_bins):
                        both += scale[s, b] * (c[start + 1 + b] + c[start + 1 + n_bins + b])
                    block[i, i] += 2.0 * slopes[s, a] * (along[a] - slopes[s, a] * total) + bend * both
                for k in of_bins:
                    for b in range(n_bins):
                        if sets[int(k) * n_bins + b] >= 0.0:
                            position = int(sets[int(k) * n_bins + b])
                            x = theta[position]
                            row, x = hessian + position * (position + 1) // 2, TINY if abs(x) < TINY else x
                            for a in range(len(acting)):
                                out[row + int(whole[int(acting[a])])] += scale[s, b] / x * tangents[s, a, b]
                            for m in of_bins:
                                other = int(sets[int(m) * n_bins + b])
                                if 0 <= other < position:
                                    y = theta[other]
                                    out[row + other] += scale[s, b] / x / (TINY if abs(y) < TINY else y) * events[s, b]
        for i in range(n_whole):
            row = hessian + int(whole[i]) * (int(whole[i]) + 1) // 2
            for j in range(i + 1):
                out[row + int(whole[j])] += block[i, j]
'''
