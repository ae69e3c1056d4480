"""Exponential distribution within [xmin, xmax].

f(x) = exp(-(x - lower) / scale) / (scale (1 - exp(-(xmax - lower) / scale))) for lower <= x <= xmax.

lower = max(xmin, loc), as in `numba_stats`: nothing lies below the edge `loc` of the exponential, and where
loc <= xmin it has no influence at all. `scipy.stats.truncexpon` is the case xmin = loc. xmax may be infinite.

Every function is elementwise and broadcasts; all arguments but p share one unit. NaN comes out where an argument is
NaN, scale <= 0 or xmax <= lower. The upper edge belongs to the support, as in scipy; `numba_stats` leaves it out.
"""

import jax.numpy as jnp
from jax import Array

from kernels._special import clip, finite, log_complement, positive, probability, zero_or_nan

# exp(-1000) is 0 in float64; the square of an infinite width would make 0 * inf in the derivatives
_WIDEST = 1000.0


def pdf(x: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density in 1 / unit of x; 0 outside of [max(xmin, loc), xmax].

    Parameters
    ----------
    x, xmin, xmax, loc, scale : any shapes that broadcast
        Point, edges of the window, edge of the exponential, decay length.

    Returns
    -------
    Array of the common shape. The norm sits in the exponent, so its relative error is eps ((x - lower) / scale +
    |log norm|).
    """
    log_density, outside, zero = _parts(x, xmin, xmax, loc, scale)
    return jnp.where(outside, zero, jnp.exp(log_density))


def logpdf(
    x: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float
) -> Array:
    """Logarithm of `pdf`; -inf outside of [max(xmin, loc), xmax]."""
    log_density, outside, zero = _parts(x, xmin, xmax, loc, scale)
    return jnp.where(outside, zero - jnp.inf, log_density)


def cdf(x: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability of a value below x, the ratio of 1 - exp(-(x - lower) / scale) at x and at xmax."""
    scale, lower, _, mass = _norm(xmin, xmax, loc, scale)
    z = (clip(x, lower, xmax) - lower) * (1.0 / scale)
    zero = zero_or_nan(mass)
    return jnp.where(x <= lower, zero, jnp.where(x >= xmax, 1.0 + zero, -jnp.expm1(-z) * (1.0 / mass)))


def ppf(p: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Inverse of `cdf`: exactly an edge at p = 0 and p = 1, NaN for p outside of [0, 1].

    The smaller of 1 - exp(-z) = p mass and exp(-z) = exp(-width) + (1 - p) mass is the one that is inverted.
    """
    scale, lower, width, mass = _norm(xmin, xmax, loc, scale)
    p = probability(p)
    zero = zero_or_nan(mass)
    below = p * mass
    from_below = below < 0.5
    above = jnp.where(from_below, 1.0 - below, jnp.exp(-width) + (1.0 - p) * mass)
    z = -log_complement(above, jnp.where(from_below, below, 1.0 - above))
    x = clip(lower + scale * z, lower, xmax)
    return jnp.where(p <= 0, lower + zero, jnp.where(p >= 1, xmax + zero, x))


def _norm(
    xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float
) -> tuple[Array, Array, Array, Array]:
    """Valid scale, lower edge, width of the support in units of scale, and mass 1 - exp(-width)."""
    scale = positive(scale)
    # a NaN loc compares as if it were not there
    lower = jnp.where(xmin < loc, loc, xmin + zero_or_nan(loc))
    width = (finite(xmax) - lower) * (1.0 / scale)
    width = jnp.where(width > _WIDEST, _WIDEST, width)
    return scale, lower, width, positive(-jnp.expm1(-width))


def _parts(
    x: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float
) -> tuple[Array, Array, Array]:
    """Log density at x, or at the nearest edge; whether x is outside; 0 (NaN if a parameter is not valid)."""
    scale, lower, _, mass = _norm(xmin, xmax, loc, scale)
    z = (clip(x, lower, xmax) - lower) * (1.0 / scale)
    log_norm = -jnp.log(scale * mass)
    return log_norm - z, (x < lower) | (x > xmax), zero_or_nan(log_norm)
