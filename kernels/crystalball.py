"""Crystal Ball distribution: a normal distribution whose lower tail is a power law.

f(x) = exp(-z^2 / 2) / (scale norm) for z >= -beta and exp(-beta^2 / 2) (1 + u)^-m / (scale norm) below, with
z = (x - loc) / scale and u = (-beta - z) beta / m. Value and slope are continuous at z = -beta, the second derivative
is not.

Every function is elementwise and broadcasts; `x`, `loc` and `scale` share one unit, `beta` and `m` have none. NaN
comes out where an argument is NaN, beta <= 0, m <= 1 or scale <= 0. Names and order of the arguments are those of
`numba_stats.crystalball` and `scipy.stats.crystalball`. `kernels.truncated.trunccrystalball` is the same within a
window.

References
----------
Skwarnicki, DESY F31-86-02 (1986), appendix E.
"""

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erf, erfc

from kernels._special import SQRT_2PI, SQRT_HALF, normal_quantile, positive, probability


def pdf(x: Array | float, beta: Array | float, m: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density in 1 / unit of x.

    Parameters
    ----------
    x, beta, m, loc, scale : any shapes that broadcast
        Point, distance of the tail from the mode in units of scale, power of the tail, mode, standard deviation.

    Returns
    -------
    Array of the common shape. Its relative error is eps times the terms of `logpdf`.
    """
    return jnp.exp(logpdf(x, beta, m, loc, scale))


def logpdf(x: Array | float, beta: Array | float, m: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Logarithm of `pdf`, -z^2 / 2 or -beta^2 / 2 - m log(1 + u), minus log(scale norm)."""
    beta, scale = positive(beta), positive(scale)
    z = (x - loc) * (1.0 / scale)
    return log_shape(z, beta, m) - jnp.log(scale * (tail_integral(beta, m) + _core_integral(beta)))


def cdf(x: Array | float, beta: Array | float, m: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability of a value below x, with full relative accuracy in the power law."""
    beta = positive(beta)
    norm = tail_integral(beta, m) + _core_integral(beta)
    return integral((x - loc) * (1.0 / positive(scale)), beta, m) * (1.0 / norm)


def ppf(p: Array | float, beta: Array | float, m: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Inverse of `cdf`: -inf at p = 0, +inf at p = 1, NaN for p outside of [0, 1]."""
    beta, p = positive(beta), probability(p)
    norm = tail_integral(beta, m) + _core_integral(beta)
    return loc + positive(scale) * quantile(p * norm, (1.0 - p) * norm, beta, m)


def log_shape(z: Array, beta: Array, m: Array | float) -> Array:
    """Logarithm of the density relative to its maximum at z = 0."""
    in_tail, u = _tail(z, beta, m)
    core = jnp.where(in_tail, 0.0, z)
    return jnp.where(in_tail, -0.5 * (beta * beta) - m * jnp.log(1.0 + u), -0.5 * (core * core))


def integral(z: Array, beta: Array, m: Array | float) -> Array:
    """int_-inf^z of exp(log_shape)."""
    in_tail, u = _tail(z, beta, m)
    whole = tail_integral(beta, m)
    core = jnp.where(in_tail, 0.0, z)
    central = 0.5 * SQRT_2PI * (erfc(-core * SQRT_HALF) - erfc(beta * SQRT_HALF))
    return jnp.where(in_tail, whole * jnp.exp((1.0 - m) * jnp.log(1.0 + u)), whole + central)


def tail_integral(beta: Array, m: Array | float) -> Array:
    """int_-inf^-beta of exp(log_shape), m exp(-beta^2 / 2) / (beta (m - 1))."""
    return m / (beta * positive(m - 1.0)) * jnp.exp(-0.5 * (beta * beta))


def quantile(below: Array, above: Array, beta: Array, m: Array | float) -> Array:
    """The z with `integral` up to z equal to `below`, and the rest of it equal to `above`."""
    whole = tail_integral(beta, m)
    in_tail = below < whole
    empty = below <= 0
    ratio = jnp.where(in_tail & ~empty, below, whole) * (1.0 / whole)
    z_tail = -beta - (m / beta) * jnp.expm1(jnp.log(ratio) * (-1.0 / (m - 1.0)))
    upper = jnp.where(in_tail, 0.5, above * (1.0 / SQRT_2PI))
    lower = jnp.where(in_tail, 0.5, 0.5 * erfc(beta * SQRT_HALF) + (below - whole) * (1.0 / SQRT_2PI))
    z = jnp.where(in_tail, z_tail, normal_quantile(lower, upper))
    return jnp.where(empty, below - jnp.inf, z)


def half_integral(beta: Array) -> Array:
    """int_-beta^0 of exp(-z^2 / 2)."""
    return 0.5 * SQRT_2PI * erf(beta * SQRT_HALF)


def _core_integral(beta: Array) -> Array:
    return 0.5 * SQRT_2PI * erfc(-beta * SQRT_HALF)


def _tail(z: Array, beta: Array, m: Array | float) -> tuple[Array, Array]:
    """Whether z lies in the power law, and u there, 0 elsewhere."""
    in_tail = z < -beta
    return in_tail, jnp.where(in_tail, -beta - z, 0.0) * (beta / m)
