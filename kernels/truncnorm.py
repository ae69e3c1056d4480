"""Normal distribution within [xmin, xmax].

f(x) = exp(-z^2 / 2) / (scale int_a^b exp(-t^2 / 2) dt) for xmin <= x <= xmax, with z = (x - loc) / scale and a, b the
same of xmin, xmax. An edge may be infinite.

The integral is a difference of tails, each taken on the side where it is small and relative to the highest point of
the density within the edges, so that `pdf`, `logpdf` and `cdf` hold at any distance between the edges and loc. `ppf`
needs the tail probability itself and is NaN where both edges are more than 37 scale on one side of loc. The relative
error of the integral is about eps scale / (xmax - xmin) in narrow windows.

Every function is elementwise and broadcasts; all arguments but p share one unit. NaN comes out where an argument is
NaN, scale <= 0 or xmax <= xmin. Order of the arguments as in `numba_stats.truncnorm`. The upper edge belongs to the
support, as in scipy; `numba_stats` leaves it out.
"""

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import erfc

from kernels._special import (
    SQRT_2PI,
    SQRT_HALF,
    clip,
    finite,
    normal_quantile,
    positive,
    probability,
    zero_or_nan,
)

# the continued fraction takes over where nine of its levels are exact to rounding, long before erfc underflows
_FAR = 12.0
_LEVELS = 9
# its square and fourth power are finite, and no mass is left beyond
_FARTHEST = 1e15
_PPF_REACH = 37.0


def pdf(x: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density in 1 / unit of x; 0 outside of [xmin, xmax].

    Parameters
    ----------
    x, xmin, xmax, loc, scale : any shapes that broadcast
        Point, edges of the window, mean and standard deviation of the normal distribution before truncation.

    Returns
    -------
    Array of the common shape. The norm sits in the exponent, so its relative error is eps (z^2 / 2 + |log norm|).
    """
    log_density, outside, zero = _parts(x, xmin, xmax, loc, scale)
    return jnp.where(outside, zero, jnp.exp(log_density))


def logpdf(
    x: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float
) -> Array:
    """Logarithm of `pdf`; -inf outside of [xmin, xmax]."""
    log_density, outside, zero = _parts(x, xmin, xmax, loc, scale)
    return jnp.where(outside, zero - jnp.inf, log_density)


def cdf(x: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability of a value below x, int_a^z / int_a^b of exp(-t^2 / 2); 0 up to xmin and 1 from xmax."""
    inverse, a, b = _edges(xmin, xmax, loc, scale)
    top, below, _, mass = _masses(a, b)
    z = (clip(x, xmin, xmax) - loc) * inverse
    tail = _tail(z, top)
    up_to_x = jnp.where(z < 0, tail - below, jnp.where(a >= 0, below - tail, (SQRT_2PI - below) - tail))
    zero = zero_or_nan(mass)
    return jnp.where(x <= xmin, zero, jnp.where(x >= xmax, 1.0 + zero, up_to_x * (1.0 / mass)))


def ppf(p: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Inverse of `cdf`: exactly an edge at p = 0 and p = 1, NaN for p outside of [0, 1].

    Both tails of the normal distribution at the result, Phi(a) + p mass and Phi(-b) + (1 - p) mass, are formed and
    the smaller is inverted.
    """
    _, a, b = _edges(xmin, xmax, loc, scale)
    top, below, above, mass = _masses(a, b)
    p = probability(p)
    peak = jnp.exp(-0.5 * (top * top)) * (1.0 / SQRT_2PI)
    mass = jnp.where(jnp.abs(top) < _PPF_REACH, mass * peak, jnp.nan)
    phi_a = jnp.where(a >= 0, 1.0 - below * peak, below * peak)
    phi_minus_b = jnp.where(b < 0, 1.0 - above * peak, above * peak)
    z = normal_quantile(phi_a + p * mass, phi_minus_b + (1.0 - p) * mass)
    x = clip(loc + scale * z, xmin, xmax)
    zero = zero_or_nan(mass)
    return jnp.where(p <= 0, xmin + zero, jnp.where(p >= 1, xmax + zero, x))


def _edges(
    xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float
) -> tuple[Array, Array, Array]:
    """1 / scale and both edges in standard deviations from loc."""
    inverse = 1.0 / positive(scale)
    return inverse, (finite(xmin) - loc) * inverse, (finite(xmax) - loc) * inverse


def _masses(a: Array, b: Array) -> tuple[Array, Array, Array, Array]:
    """Point of [a, b] next to 0, tails beyond |a| and |b|, and int_a^b, all three integrals relative to that point."""
    top = jnp.where(a >= 0, a, jnp.where(b < 0, b, 0.0))
    below, above = _tail(a, top), _tail(b, top)
    mass = jnp.where(a >= 0, below - above, jnp.where(b < 0, above - below, (SQRT_2PI - below) - above))
    return top, below, above, positive(mass)


def _tail(z: Array, top: Array) -> Array:
    """int_|z|^inf exp((top^2 - t^2) / 2) dt for |z| >= |top|."""
    t = jnp.where(z >= 0, z, -z)
    t = jnp.where(t > _FARTHEST, _FARTHEST, t)
    return jnp.exp(0.5 * ((top - t) * (top + t))) * _mills_ratio(t)


def _mills_ratio(t: Array) -> Array:
    """exp(t^2 / 2) int_t^inf exp(-u^2 / 2) du for t >= 0.

    References
    ----------
    Abramowitz & Stegun, eqs. 26.2.5 and 26.2.14 (continued fraction 1 / (t + 1 / (t + 2 / (t + ...)))).
    """
    is_far = t > _FAR
    near = jnp.where(is_far, 0.0, t)
    far = jnp.where(is_far, t, _FAR)
    denominator = far
    for level in range(_LEVELS, 0, -1):
        denominator = far + level / denominator
    erfc_form = (0.5 * SQRT_2PI) * (jnp.exp(0.5 * (near * near)) * erfc(near * SQRT_HALF))
    return jnp.where(is_far, 1.0 / denominator, erfc_form)


def _parts(
    x: Array | float, xmin: Array | float, xmax: Array | float, loc: Array | float, scale: Array | float
) -> tuple[Array, Array | bool, Array]:
    """Log density at x, or at the nearest edge; whether x is outside; 0 (NaN if a parameter is not valid)."""
    inverse, a, b = _edges(xmin, xmax, loc, scale)
    top, _, _, mass = _masses(a, b)
    z = (clip(x, xmin, xmax) - loc) * inverse
    log_norm = 0.5 * (top * top) - jnp.log(scale * mass)
    return log_norm - 0.5 * (z * z), (x < xmin) | (x > xmax), zero_or_nan(log_norm)
