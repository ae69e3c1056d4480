"""Uniform distribution.

f(x) = 1 / w for a <= x <= a + w.

Every function is elementwise and broadcasts; `x`, `a` and `w` share one unit. NaN comes out where an argument is NaN or
w <= 0. Names and order of the arguments are those of `numba_stats.uniform`; scipy calls them `loc` and `scale`.
"""

import jax.numpy as jnp
from jax import Array

from kernels._special import clip, positive, probability, zero_or_nan


def pdf(x: Array | float, a: Array | float, w: Array | float) -> Array:
    """Probability density 1 / w, in 1 / unit of x; 0 outside of [a, a + w].

    Parameters
    ----------
    x, a, w : any shapes that broadcast
        Point, lower edge, width.

    Returns
    -------
    Array of the common shape.
    """
    w = positive(w)
    zero = zero_or_nan(x - a)
    return zero + jnp.where((x < a) | (x > a + w), zero_or_nan(w), 1.0 / w)


def logpdf(x: Array | float, a: Array | float, w: Array | float) -> Array:
    """Logarithm of `pdf`, -log(w); -inf outside of [a, a + w]."""
    w = positive(w)
    zero = zero_or_nan(x - a)
    return zero + jnp.where((x < a) | (x > a + w), zero_or_nan(w) - jnp.inf, -jnp.log(w))


def cdf(x: Array | float, a: Array | float, w: Array | float) -> Array:
    """Probability of a value below x, (x - a) / w; 0 below a and 1 above a + w."""
    w = positive(w)
    upper = a + w
    zero = zero_or_nan(x - upper)
    within = (clip(x, a, upper) - a) * (1.0 / w)
    return zero + jnp.where(x <= a, 0.0, jnp.where(x >= upper, 1.0, within))


def ppf(p: Array | float, a: Array | float, w: Array | float) -> Array:
    """Inverse of `cdf`, a + w p; NaN for p outside of [0, 1]."""
    return a + positive(w) * probability(p)
