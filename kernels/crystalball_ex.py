"""Double-sided Crystal Ball distribution: two halves of a normal distribution, each with its own width and power law.

f(x) = exp(log_shape(z)) / norm with the log_shape of `kernels.crystalball` and z = (x - loc) / scale_left below loc,
z = (loc - x) / scale_right above, each with its own beta and m.

Every function is elementwise and broadcasts; `x`, `loc` and the scales share one unit. NaN comes out where an argument
is NaN, a beta <= 0, an m <= 1 or a scale <= 0. Names and order of the arguments are those of
`numba_stats.crystalball_ex`.
"""

import jax.numpy as jnp
from jax import Array

from kernels import crystalball
from kernels._special import SQRT_2PI, positive, probability


def pdf(
    x: Array | float,
    beta_left: Array | float,
    m_left: Array | float,
    scale_left: Array | float,
    beta_right: Array | float,
    m_right: Array | float,
    scale_right: Array | float,
    loc: Array | float,
) -> Array:
    """Probability density in 1 / unit of x.

    Parameters
    ----------
    x : any shape that broadcasts with the others
        Point.
    beta_left, m_left, scale_left, beta_right, m_right, scale_right
        Of each side: distance of the tail from the mode in units of scale, power of the tail, standard deviation.
    loc
        Mode.

    Returns
    -------
    Array of the common shape. Its relative error is eps times the terms of `logpdf`.
    """
    return jnp.exp(logpdf(x, beta_left, m_left, scale_left, beta_right, m_right, scale_right, loc))


def logpdf(
    x: Array | float,
    beta_left: Array | float,
    m_left: Array | float,
    scale_left: Array | float,
    beta_right: Array | float,
    m_right: Array | float,
    scale_right: Array | float,
    loc: Array | float,
) -> Array:
    """Logarithm of `pdf`."""
    left, right = _half(beta_left, m_left, scale_left), _half(beta_right, m_right, scale_right)
    _, z, beta, m, _ = _side(x, left, right, loc)
    return crystalball.log_shape(z, beta, m) - jnp.log(left[-1] + right[-1])


def cdf(
    x: Array | float,
    beta_left: Array | float,
    m_left: Array | float,
    scale_left: Array | float,
    beta_right: Array | float,
    m_right: Array | float,
    scale_right: Array | float,
    loc: Array | float,
) -> Array:
    """Probability of a value below x, with full relative accuracy in the left power law."""
    left, right = _half(beta_left, m_left, scale_left), _half(beta_right, m_right, scale_right)
    is_left, z, beta, m, scale = _side(x, left, right, loc)
    beyond = crystalball.integral(z, beta, m) * (scale * (1.0 / (left[-1] + right[-1])))
    return jnp.where(is_left, beyond, 1.0 - beyond)


def ppf(
    p: Array | float,
    beta_left: Array | float,
    m_left: Array | float,
    scale_left: Array | float,
    beta_right: Array | float,
    m_right: Array | float,
    scale_right: Array | float,
    loc: Array | float,
) -> Array:
    """Inverse of `cdf`: -inf at p = 0, +inf at p = 1, NaN for p outside of [0, 1]."""
    left, right = _half(beta_left, m_left, scale_left), _half(beta_right, m_right, scale_right)
    p = probability(p)
    norm = left[-1] + right[-1]
    is_left = p * norm < left[-1]
    beta, m, scale, _ = (jnp.where(is_left, a, b) for a, b in zip(left, right, strict=True))
    beyond = jnp.where(is_left, p, 1.0 - p) * (norm / scale)
    inner = crystalball.tail_integral(beta, m) + crystalball.half_integral(beta)
    z = crystalball.quantile(beyond, (inner - beyond) + 0.5 * SQRT_2PI, beta, m)
    return loc + jnp.where(is_left, z, -z) * scale


def _half(beta: Array | float, m: Array | float, scale: Array | float) -> tuple[Array, Array | float, Array, Array]:
    """Valid parameters of one side, and its integral in the unit of scale."""
    beta, scale = positive(beta), positive(scale)
    return beta, m, scale, scale * (crystalball.tail_integral(beta, m) + crystalball.half_integral(beta))


def _side(
    x: Array | float, left: tuple, right: tuple, loc: Array | float
) -> tuple[Array | bool, Array, Array, Array, Array]:
    """Whether x is on the left, its z <= 0, and the parameters beta, m, scale of its side."""
    is_left = x < loc
    beta, m, scale, _ = (jnp.where(is_left, a, b) for a, b in zip(left, right, strict=True))
    inverse = jnp.where(is_left, 1.0 / left[2], -1.0 / right[2])
    return is_left, (x - loc) * inverse, beta, m, scale
