"""q-Gaussian distribution: a normal distribution (q = 1) with power-law tails (1 < q < 3); Cauchy at q = 2.

f(x) = norm / sigma (1 + (q - 1) z^2 / 2)^(-1 / (q - 1)) with z = (x - mu) / sigma: Student's t with
df = (3 - q) / (q - 1) and width sigma / sqrt((3 - q) / 2). It is smooth in q at q = 1, from above.

Every function is elementwise and broadcasts; `x`, `mu` and `sigma` share one unit. NaN comes out where an argument is
NaN, sigma <= 0, q < 1 or q >= 3. Names and order of the arguments are those of `numba_stats.qgaussian`.

References
----------
Tsallis, J. Stat. Phys. 52 (1988) 479.
"""

import jax.numpy as jnp
from jax import Array

from kernels import t
from kernels._special import positive


def pdf(x: Array | float, q: Array | float, mu: Array | float, sigma: Array | float) -> Array:
    """Probability density in 1 / unit of x.

    Parameters
    ----------
    x, q, mu, sigma : any shapes that broadcast
        Point, shape, mode, width.

    Returns
    -------
    Array of the common shape. Its relative error is eps times the terms of `logpdf`.
    """
    return jnp.exp(logpdf(x, q, mu, sigma))


def logpdf(x: Array | float, q: Array | float, mu: Array | float, sigma: Array | float) -> Array:
    """Logarithm of `pdf`."""
    inverse_df, scale = _student(q, sigma)
    z = (x - mu) * (1.0 / scale)
    return t.log_kernel(z * z, inverse_df) + (t.log_norm(inverse_df) - jnp.log(scale))


def cdf(x: Array | float, q: Array | float, mu: Array | float, sigma: Array | float) -> Array:
    """Probability of a value below x; accurate for q <= 2 as `kernels.t.standard_cdf` is for df >= 1."""
    inverse_df, scale = _student(q, sigma)
    return t.standard_cdf((x - mu) * (1.0 / scale), inverse_df)


def ppf(p: Array | float, q: Array | float, mu: Array | float, sigma: Array | float) -> Array:
    """Inverse of `cdf`, as `kernels.t.ppf`."""
    inverse_df, scale = _student(q, sigma)
    return mu + scale * t.standard_ppf(p, inverse_df)


def _student(q: Array | float, sigma: Array | float) -> tuple[Array, Array]:
    """1 / df and the width of Student's t."""
    rest = positive(3.0 - jnp.where(q >= 1, q, jnp.nan))
    return (q - 1.0) / rest, positive(sigma) / jnp.sqrt(0.5 * rest)
