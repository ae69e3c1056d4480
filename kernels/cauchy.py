"""Cauchy distribution, also called Lorentz or non-relativistic Breit-Wigner; its full width at half maximum is 2 scale.

f(x) = 1 / (pi scale (1 + z^2)) with z = (x - loc) / scale.

Every function is elementwise and broadcasts; `x`, `loc` and `scale` share one unit. NaN comes out where an argument is
NaN or scale <= 0. Names and order of the arguments are those of `scipy.stats.cauchy`. `kernels.truncated.trunccauchy`
is the same within a window.
"""

import math

import jax.numpy as jnp
from jax import Array

from kernels._special import positive, probability


def pdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density 1 / (pi scale (1 + z^2)), in 1 / unit of x.

    Parameters
    ----------
    x, loc, scale : any shapes that broadcast
        Point, mode, half width at half maximum.

    Returns
    -------
    Array of the common shape.
    """
    inverse = 1.0 / positive(scale)
    z = (x - loc) * inverse
    return (inverse * (1.0 / math.pi)) / (1.0 + z * z)


def logpdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Logarithm of `pdf`, -log(1 + z^2) - log(pi scale)."""
    scale = positive(scale)
    z = (x - loc) * (1.0 / scale)
    return -jnp.log(math.pi * scale) - jnp.log(1.0 + z * z)


def cdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability of a value below x, 1/2 + atan(z) / pi, with full relative accuracy for z < 0."""
    z = (x - loc) * (1.0 / positive(scale))
    return jnp.arctan2(jnp.ones_like(z), -z) * (1.0 / math.pi)


def ppf(p: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Inverse of `cdf`: -inf at p = 0, +inf at p = 1, NaN for p outside of [0, 1].

    It is -1 / tan(pi p) on the lower side, and the same of 1 - p on the upper.
    """
    p = probability(p)
    below = p < 0.5
    tail = jnp.where(below, p, 1.0 - p)
    tiny = tail <= 0
    z = 1.0 / jnp.tan(math.pi * jnp.where(tiny, 0.5, tail))
    z = jnp.where(tiny, jnp.inf, z)
    return loc + positive(scale) * jnp.where(below, -z, z)
