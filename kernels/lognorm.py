"""Log-normal distribution: log((x - loc) / scale) is normal with mean 0 and standard deviation s.

f(x) = exp(-log(z)^2 / (2 s^2)) / (sqrt(2 pi) s scale z) with z = (x - loc) / scale, for x > loc.

Every function is elementwise and broadcasts; `x`, `loc` and `scale` share one unit, `s` has none. NaN comes out where
an argument is NaN, s <= 0 or scale <= 0. Names and order of the arguments are those of `numba_stats.lognorm` and
`scipy.stats.lognorm`.
"""

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erfc

from kernels._special import LOG_SQRT_2PI, SQRT_HALF, normal_quantile, positive, probability, zero_or_nan


def pdf(x: Array | float, s: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density in 1 / unit of x; 0 for x <= loc.

    Parameters
    ----------
    x, s, loc, scale : any shapes that broadcast
        Point, width of the logarithm, lower edge, median's distance from the edge.

    Returns
    -------
    Array of the common shape. Its relative error is eps times the terms of `logpdf`.
    """
    log_density, below, zero = _parts(x, s, loc, scale)
    return jnp.where(below, zero, jnp.exp(log_density))


def logpdf(x: Array | float, s: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Logarithm of `pdf`, -log(z)^2 / (2 s^2) - log(z) - log(sqrt(2 pi) s scale); -inf for x <= loc."""
    log_density, below, zero = _parts(x, s, loc, scale)
    return jnp.where(below, zero - jnp.inf, log_density)


def cdf(x: Array | float, s: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability of a value below x, Phi(log(z) / s), with full relative accuracy where it is small; 0 up to loc."""
    s, log_z, below = _log_z(x, s, loc, scale)
    return jnp.where(below, zero_or_nan(s + log_z), 0.5 * erfc(-log_z * (SQRT_HALF / s)))


def ppf(p: Array | float, s: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Inverse of `cdf`: loc at p = 0, +inf at p = 1, NaN for p outside of [0, 1]."""
    p = probability(p)
    return loc + positive(scale) * jnp.exp(positive(s) * normal_quantile(p, 1.0 - p))


def _log_z(
    x: Array | float, s: Array | float, loc: Array | float, scale: Array | float
) -> tuple[Array, Array, Array | bool]:
    """Valid s; log z, or 0 (NaN if a parameter is not valid) where x is not above loc; whether it is not."""
    scale = positive(scale)
    below = x <= loc
    log_z = jnp.log(jnp.where(below, scale, x - loc) * (1.0 / scale))
    return positive(s), log_z, below


def _parts(
    x: Array | float, s: Array | float, loc: Array | float, scale: Array | float
) -> tuple[Array, Array | bool, Array]:
    """Log density at x, or at loc + scale where x is not above loc; whether it is not; 0 or NaN."""
    s, log_z, below = _log_z(x, s, loc, scale)
    log_norm = -LOG_SQRT_2PI - jnp.log(s * scale)
    t = log_z * (1.0 / s)
    # one factor log z, so that an infinite one does not meet its opposite
    return log_norm - log_z * (0.5 * (t * (1.0 / s)) + 1.0), below, zero_or_nan(log_norm + log_z)
