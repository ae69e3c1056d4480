"""Normal distribution.

f(x) = exp(-z^2 / 2) / (scale sqrt(2 pi)) with z = (x - loc) / scale.

Every function is elementwise and broadcasts; `x`, `loc` and `scale` share one unit. NaN comes out where an argument is
NaN or scale <= 0. Names and order of the arguments are those of `numba_stats.norm` and `scipy.stats.norm`.
"""

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erfc

from kernels._special import LOG_SQRT_2PI, SQRT_HALF, normal_quantile, positive, probability


def pdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density exp(-z^2 / 2) / (scale sqrt(2 pi)), in 1 / unit of x.

    Parameters
    ----------
    x, loc, scale : any shapes that broadcast
        Point, mean, standard deviation.

    Returns
    -------
    Array of the common shape. The norm sits in the exponent, so its relative error is eps (z^2 / 2 + |log scale|).
    """
    return jnp.exp(logpdf(x, loc, scale))


def logpdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Logarithm of `pdf`, -z^2 / 2 - log(scale) - log(2 pi) / 2; finite where `pdf` underflows."""
    scale = positive(scale)
    z = (x - loc) * (1.0 / scale)
    return -0.5 * (z * z) + (-LOG_SQRT_2PI - jnp.log(scale))


def cdf(x: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability of a value below x, Phi(z) = erfc(-z / sqrt(2)) / 2, with full relative accuracy for z < 0."""
    return 0.5 * erfc((loc - x) * (SQRT_HALF / positive(scale)))


def ppf(p: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Inverse of `cdf`: -inf at p = 0, +inf at p = 1, NaN for p outside of [0, 1]."""
    p = probability(p)
    return loc + positive(scale) * normal_quantile(p, 1.0 - p)
