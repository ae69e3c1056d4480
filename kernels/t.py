"""Student's t distribution.

f(x) = Gamma((df + 1) / 2) / (Gamma(df / 2) sqrt(df pi) scale) (1 + z^2 / df)^(-(df + 1) / 2), z = (x - loc) / scale.

Everything is written in 1 / df and is smooth at 1 / df = 0, the normal distribution: the ratio of gamma functions is
an asymptotic series after a shift, so that neither large df nor derivatives in df cost accuracy or need a digamma
function.

Every function is elementwise and broadcasts; `x`, `loc` and `scale` share one unit. NaN comes out where an argument is
NaN, df <= 0 or scale <= 0. Names and order of the arguments are those of `numba_stats.t` and `scipy.stats.t`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kernels._inverse import inverse
from kernels._special import LOG_SQRT_2PI, _horner, positive, probability
from kernels.quadrature import cumulative

_SHIFT = 10
# log Gamma(k + 1/2) - log Gamma(k) - log(k) / 2 = -1 / (8 k) + 1 / (192 k^3) - ..., highest power first
_STIRLING = (-5461.0 / 425984, 691.0 / 180224, -31.0 / 18432, 17.0 / 14336, -1.0 / 640, 1.0 / 192, -1.0 / 8)
# atanh(s) / s in powers of s^2, highest first
_ATANH = tuple(1.0 / (2 * j + 1) for j in range(13, -1, -1))
# (1 - exp(-t)) / t
_TAYLOR = tuple((-1.0) ** j / float(np.prod(np.arange(1.0, j + 2))) for j in range(16, -1, -1))
_SERIES_BELOW = 0.5
# where f(z) / f(0) = exp(-2) the tail is left to Gauss-Laguerre nodes
_TAIL_FROM = 2.0
_CENTRAL = np.polynomial.legendre.leggauss(40)
_LAGUERRE = tuple(a[:26] for a in np.polynomial.laguerre.laggauss(48))  # the other weights are below 1e-18


def pdf(x: Array | float, df: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density in 1 / unit of x.

    Parameters
    ----------
    x, df, loc, scale : any shapes that broadcast
        Point, degrees of freedom (any positive number), mode, width.

    Returns
    -------
    Array of the common shape. Its relative error is eps times the terms of `logpdf`.
    """
    return jnp.exp(logpdf(x, df, loc, scale))


def logpdf(x: Array | float, df: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Logarithm of `pdf`."""
    scale, inverse_df = positive(scale), 1.0 / positive(df)
    z = (x - loc) * (1.0 / scale)
    return log_kernel(z * z, inverse_df) + (log_norm(inverse_df) - jnp.log(scale))


def cdf(x: Array | float, df: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability of a value below x, with full relative accuracy for z < 0; see `standard_cdf`."""
    return standard_cdf((x - loc) * (1.0 / positive(scale)), 1.0 / positive(df))


def ppf(p: Array | float, df: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Inverse of `cdf`: -inf at p = 0, +inf at p = 1, NaN for p outside of [0, 1].

    A fixed number of Newton steps on the logarithm of the tail: meant for JAX, too long when translated.
    """
    return loc + positive(scale) * standard_ppf(p, 1.0 / positive(df))


def log_kernel(square: Array, inverse_df: Array) -> Array:
    """-(df + 1) / 2 log(1 + z^2 / df) of the square of z, accurate down to inverse_df = 0."""
    w = inverse_df * square
    small = w < _SERIES_BELOW
    w_small = jnp.where(small, w, 0.0)
    s = w_small / (2.0 + w_small)
    ratio = (2.0 / (2.0 + w_small)) * _horner(_ATANH, s * s)  # log(1 + w) / w
    near = (-0.5 * (1.0 + inverse_df)) * (jnp.where(small, square, 0.0) * ratio)
    half = -0.5 - 0.5 / jnp.where(inverse_df > 0, inverse_df, 1.0)
    return jnp.where(small, near, half * jnp.log(jnp.where(small, 1.0, 1.0 + w)))


def log_norm(inverse_df: Array) -> Array:
    """log of Gamma((df + 1) / 2) / (Gamma(df / 2) sqrt(df pi)), accurate down to inverse_df = 0.

    References
    ----------
    Tricomi & Erdelyi, Pacific J. Math. 1 (1951) 133 (ratio of two gamma functions).
    """
    inverse_k = 2.0 * inverse_df
    ratio = jnp.ones_like(inverse_k)
    for j in range(_SHIFT):
        ratio = ratio * ((1.0 + j * inverse_k) / (1.0 + (j + 0.5) * inverse_k))
    shifted = 1.0 + _SHIFT * inverse_k
    r = inverse_k / shifted
    return r * _horner(_STIRLING, r * r) + (0.5 * jnp.log(shifted) + jnp.log(ratio)) - LOG_SQRT_2PI


def standard_cdf(z: Array, inverse_df: Array) -> Array:
    """Probability of a value below z at loc = 0 and scale = 1.

    Within z^2 of about 4 (more for small df) the density is integrated from 0 by Gauss-Legendre nodes; beyond, the
    tail is f(z) (1 + z^2 / df) int_0^inf exp(-v) / sqrt(z^2 + df (1 - exp(-2 v / df))) dv by Gauss-Laguerre nodes.
    The relative error is 4e-13 at df = 1, 2e-14 from df = 1.5 on, 1e-10 at df = 0.5.
    """
    return _cumulative(z, inverse_df)


def standard_ppf(p: Array | float, inverse_df: Array) -> Array:
    """Inverse of `standard_cdf`, by the variable u = asinh(z)."""
    p = probability(p)
    below = p < 0.5
    tail = jnp.where(below, p, 1.0 - p)
    inverse_df = inverse_df + jnp.zeros_like(tail)
    empty = tail <= 0
    target = -jnp.log(jnp.where(empty, 0.5, tail))

    def value_and_slope(u: Array, inverse_df: Array) -> tuple[Array, Array]:
        z = jnp.sinh(u)
        beyond = standard_cdf(-z, inverse_df)
        usable = beyond > 0
        beyond = jnp.where(usable, beyond, 1.0)
        slope = _density(z, inverse_df) * jnp.cosh(u) / beyond
        return jnp.where(usable, -jnp.log(beyond), jnp.inf), jnp.where(usable, slope, 0.0)

    # sinh(350)^2 is finite
    u = inverse(value_and_slope, target, jnp.zeros_like(target), jnp.full_like(target, 350.0), inverse_df)
    z = jnp.where(empty, jnp.inf, jnp.sinh(u)) + 0.0 * inverse_df
    return jnp.where(below, -z, z)


def _density(z: Array, inverse_df: Array) -> Array:
    return jnp.exp(log_kernel(z * z, inverse_df) + log_norm(inverse_df))


def _cdf(z: Array, inverse_df: Array) -> Array:
    below = z < 0
    distance = jnp.where(below, -z, z)
    central = log_kernel(distance * distance, inverse_df) > -_TAIL_FROM
    near = jnp.where(central, distance, 0.0)
    ended = distance == jnp.inf
    far = jnp.where(central | ended, 10.0, distance)
    norm = jnp.exp(log_norm(inverse_df))

    def at_node(node: Array, weight: Array) -> Array:
        t = near * (0.5 + 0.5 * node)
        return weight * jnp.exp(log_kernel(t * t, inverse_df))

    def at_laguerre(v: Array, weight: Array) -> Array:
        return weight / jnp.sqrt(1.0 + (2.0 * v * _decay(2.0 * v * inverse_df)) * (1.0 / (far * far)))

    dtype = jnp.result_type(near, norm)
    nodes = lambda rule: [jnp.asarray(a, dtype=dtype) for a in rule]  # noqa: E731
    half = jnp.sum(jax.vmap(at_node)(*nodes(_CENTRAL)), axis=0) * (0.5 * near) * norm
    beyond = jnp.sum(jax.vmap(at_laguerre)(*nodes(_LAGUERRE)), axis=0)
    beyond = _density(far, inverse_df) * (1.0 / far + inverse_df * far) * beyond
    tail = jnp.where(central, 0.5 - half, jnp.where(ended, 0.0, beyond))
    return jnp.where(below, tail, 1.0 - tail)


_cumulative = cumulative(_cdf, _density)


def _decay(t: Array) -> Array:
    """(1 - exp(-t)) / t for t >= 0, smooth at 0."""
    small = t < 1.0
    series = _horner(_TAYLOR, jnp.where(small, t, 0.0))
    t = jnp.where(small, 1.0, t)
    return jnp.where(small, series, (1.0 - jnp.exp(-t)) / t)
