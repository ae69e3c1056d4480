"""Generalised ARGUS distribution.

f(x) = (2 x / c^2) y^p exp(-chi^2 y / 2) / G(p + 1, chi^2 / 2) with y = 1 - x^2 / c^2, for 0 < x < c, and
G(a, t) = int_0^1 s^(a - 1) exp(-t s) ds; p = 1/2 is the ARGUS distribution.

G is an incomplete gamma function without a closed form for free p; it is taken by Gauss-Legendre quadrature in
s^(1/4), 48 nodes, to 1e-13 for p <= 5 and chi <= 15. In `pdf` and `logpdf` it depends on parameters only, in
`cdf` each x costs a quadrature of its own.

Every function is elementwise and broadcasts; `x` and `c` share one unit. NaN comes out where an argument is NaN,
chi <= 0, c <= 0 or p <= -1. Names and order of the arguments are those of `numba_stats.argus`, of which the `pdf` is
the same but for the edges, which do not belong to the support here.

References
----------
ARGUS collaboration, Phys. Lett. B 241 (1990) 278.
"""

import jax.numpy as jnp
from jax import Array

from kernels._inverse import inverse
from kernels._special import positive, probability, zero_or_nan
from kernels.quadrature import integral

_NODES = 48


def pdf(x: Array | float, chi: Array | float, c: Array | float, p: Array | float) -> Array:
    """Probability density in 1 / unit of x; 0 outside of (0, c).

    Parameters
    ----------
    x, chi, c, p : any shapes that broadcast
        Point, curvature, upper edge, power.

    Returns
    -------
    Array of the common shape. Its relative error is eps times the terms of `logpdf`.
    """
    log_density, outside, zero = _parts(x, chi, c, p)
    return jnp.where(outside, zero, jnp.exp(log_density))


def logpdf(x: Array | float, chi: Array | float, c: Array | float, p: Array | float) -> Array:
    """Logarithm of `pdf`; -inf outside of (0, c)."""
    log_density, outside, zero = _parts(x, chi, c, p)
    return jnp.where(outside, zero - jnp.inf, log_density)


def cdf(x: Array | float, chi: Array | float, c: Array | float, p: Array | float) -> Array:
    """Probability of a value below x, 1 - y^(p + 1) G(p + 1, chi^2 y / 2) / G(p + 1, chi^2 / 2), to eps of 1."""
    inside, y, _, t, a = _variables(x, chi, c, p)
    whole = _incomplete(a, t)
    above = jnp.exp(a * jnp.log(y)) * _incomplete(a, t * y) * (1.0 / whole)
    zero = zero_or_nan(whole + y)
    return jnp.where(inside, 1.0 - above, jnp.where(x >= c, 1.0 + zero, zero))


def ppf(q: Array | float, chi: Array | float, c: Array | float, p: Array | float) -> Array:
    """Inverse of `cdf`, by a fixed number of Newton and bisection steps: meant for JAX, too long when translated.

    0 at q = 0 and c at q = 1, NaN for q outside of [0, 1].
    """
    q, c = probability(q), positive(c)
    chi, p = chi + jnp.zeros_like(q * c), p + jnp.zeros_like(q)
    target = q + jnp.zeros_like(chi)
    value_and_slope = lambda z, chi, p: (cdf(z, chi, 1.0, p), pdf(z, chi, 1.0, p))  # noqa: E731
    z = inverse(value_and_slope, target, jnp.zeros_like(target), jnp.ones_like(target), chi, p)
    zero = zero_or_nan(z + c)
    return jnp.where(q <= 0, zero, jnp.where(q >= 1, c + zero, c * z))


def _incomplete(a: Array, t: Array) -> Array:
    """G(a, t) = int_0^1 s^(a - 1) exp(-t s) ds, as (exp(-t) + t G(a + 1, t)) / a with the variable r = s^(1/4)."""

    def in_r(r: Array) -> Array:
        square = r * r
        return 4.0 * jnp.exp((4.0 * a + 3.0) * jnp.log(r) - t * (square * square))

    return (jnp.exp(-t) + t * integral(in_r, jnp.zeros_like(t), jnp.ones_like(t), _NODES)) / a


def _variables(x: Array | float, chi: Array | float, c: Array | float, p: Array | float) -> tuple:
    """Whether x is within (0, c); y there and 1/2 elsewhere; x, likewise, in units of c; chi^2 / 2; p + 1."""
    c, chi, a = positive(c), positive(chi), positive(p + 1.0)
    outside = (x <= 0) | (x >= c)
    z = jnp.where(outside, 0.5 * c, x) * (1.0 / c)
    return ~outside, (1.0 - z) * (1.0 + z), z, 0.5 * (chi * chi), a


def _parts(x: Array | float, chi: Array | float, c: Array | float, p: Array | float) -> tuple[Array, Array, Array]:
    """Log density at x, or at c / 2 where x is outside; whether it is; 0 (NaN if a parameter is not valid)."""
    inside, y, z, t, a = _variables(x, chi, c, p)
    log_norm = jnp.log(2.0 / c) - jnp.log(_incomplete(a, t))
    return log_norm + ((a - 1.0) * jnp.log(y) + jnp.log(z)) - t * y, ~inside, zero_or_nan(log_norm + y)
