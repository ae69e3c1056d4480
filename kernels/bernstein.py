"""Bernstein polynomial as a density within [xmin, xmax].

density(x) = sum_k beta_k C(n, k) z^k (1 - z)^(n - k) with z = (x - xmin) / (xmax - xmin) and n = len(beta) - 1; it is
not negative where no beta is.

As in `numba_stats.bernstein` neither is normalised: the scale is part of beta, so use them in an extended fit without
another yield. Every function is elementwise in x; beta is a sequence of scalars or an array whose first axis counts
the coefficients. Outside of [xmin, xmax] the density is 0 (`numba_stats` continues the polynomial). NaN comes out where
an argument is NaN or xmax <= xmin. The sum has no cancellation where no beta is negative, and its derivatives in beta
do not depend on beta.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from kernels._special import clip, positive, zero_or_nan


def density(x: Array | float, beta: Array | Sequence, xmin: Array | float, xmax: Array | float) -> Array:
    """Density, in units of beta; 0 outside of [xmin, xmax].

    Parameters
    ----------
    x, xmin, xmax : any shapes that broadcast
        Point, edges of the window.
    beta : (n_coefficients,)
        Coefficients, at least one.
    """
    z, _, outside = _unit(x, xmin, xmax)
    value = _polynomial(z, beta)
    return jnp.where(outside, zero_or_nan(value), value)


def integral(x: Array | float, beta: Array | Sequence, xmin: Array | float, xmax: Array | float) -> Array:
    """Integral of the density from xmin to x, in units of beta times x; 0 below xmin, constant above xmax."""
    z, width, _ = _unit(x, xmin, xmax)
    sums = [0.0 * beta[0]]
    for k in range(len(beta)):
        sums.append(sums[-1] + beta[k])
    return (width * (1.0 / len(beta))) * _polynomial(z, sums)


def _polynomial(z: Array, beta: Array | Sequence) -> Array:
    n = len(beta) - 1
    total = 0.0 * z
    for k in range(n + 1):
        total = total + beta[k] * (math.comb(n, k) * (z**k * (1.0 - z) ** (n - k)))
    return total


def _unit(x: Array | float, xmin: Array | float, xmax: Array | float) -> tuple[Array, Array, Array | bool]:
    """Place in the window, from 0 to 1, or of its nearest edge; its width; whether x is outside."""
    width = positive(xmax - xmin)
    return (clip(x, xmin, xmax) - xmin) * (1.0 / width), width, (x < xmin) | (x > xmax)
