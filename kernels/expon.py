"""Exponential distribution.

f(x) = exp(-z) / scale with z = (x - loc) / scale, for x >= loc.

Every function is elementwise and broadcasts; `x`, `loc` and `scale` share one unit. NaN comes out where an argument is
NaN or scale <= 0. Names and order of the arguments are those of `numba_stats.expon` and `scipy.stats.expon`.
"""

import jax.numpy as jnp
from jax import Array

from kernels._special import log_complement, positive, probability, zero_or_nan


def pdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density exp(-z) / scale, in 1 / unit of x; 0 for x < loc.

    Parameters
    ----------
    x, loc, scale : any shapes that broadcast
        Point, lower edge, mean distance from the edge.

    Returns
    -------
    Array of the common shape. The norm sits in the exponent, so its relative error is eps (z + |log scale|).
    """
    log_density, below, zero = _parts(x, loc, scale)
    return jnp.where(below, zero, jnp.exp(log_density))


def logpdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Logarithm of `pdf`, -z - log(scale); -inf for x < loc."""
    log_density, below, zero = _parts(x, loc, scale)
    return jnp.where(below, zero - jnp.inf, log_density)


def cdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability of a value below x, 1 - exp(-z), with full relative accuracy at small z; 0 for x <= loc."""
    scale = positive(scale)
    z = (jnp.where(x < loc, loc, x) - loc) * (1.0 / scale)
    return jnp.where(x <= loc, zero_or_nan(scale), -jnp.expm1(-z))


def ppf(p: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Inverse of `cdf`, loc - scale log(1 - p): loc at p = 0, +inf at p = 1, NaN for p outside of [0, 1]."""
    p = probability(p)
    return loc - positive(scale) * log_complement(1.0 - p, p)


def _parts(x: Array | float, loc: Array | float, scale: Array | float) -> tuple[Array, Array | bool, Array]:
    """Log density at x, or at loc where x is below it; whether x is below; 0 (NaN if a parameter is not valid)."""
    scale = positive(scale)
    below = x < loc
    z = (jnp.where(below, loc, x) - loc) * (1.0 / scale)
    log_norm = -jnp.log(scale)
    return log_norm - z, below, zero_or_nan(log_norm)
