"""Chebyshev polynomial as a density within [xmin, xmax].

density(x) = sum_k beta_k T_k(z) with z = (2 x - xmin - xmax) / (xmax - xmin) in [-1, 1].

The order of beta is that of `numpy.polynomial.chebyshev`; RooFit's RooChebychev is beta = (1, c_0, c_1, ...). As in
`kernels.bernstein` nothing is normalised, the scale is part of beta; here a density may be negative. Every function is
elementwise in x; beta is a sequence of scalars or an array whose first axis counts the coefficients. Outside of
[xmin, xmax] the density is 0. NaN comes out where an argument is NaN or xmax <= xmin.
"""

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
    z, _ = _unit(x, xmin, xmax)
    value = _series(_polynomials(z, len(beta)), beta)
    return jnp.where((x < xmin) | (x > xmax), zero_or_nan(value), value)


def integral(x: Array | float, beta: Array | Sequence, xmin: Array | float, xmax: Array | float) -> Array:
    """Integral of the density from xmin to x, in units of beta times x; 0 below xmin, constant above xmax.

    Uses int T_k = (T_(k + 1) / (k + 1) - T_(k - 1) / (k - 1)) / 2.
    """
    z, half = _unit(x, xmin, xmax)
    polynomials = _polynomials(z, len(beta) + 1)
    integrals = [z + 1.0, 0.5 * (z - 1.0) * (z + 1.0)]
    for k in range(2, len(beta)):
        above, below = 0.5 / (k + 1.0), 0.5 / (k - 1.0)
        at_xmin = (above - below) * (-1.0) ** (k + 1)
        integrals.append((above * polynomials[k + 1] - below * polynomials[k - 1]) - at_xmin)
    return half * _series(integrals, beta)


def _polynomials(z: Array, n: int) -> list[Array]:
    """T_0 to T_(n - 1), by their recurrence."""
    polynomials = [jnp.ones_like(z), z]
    for _ in range(2, n):
        polynomials.append(2.0 * z * polynomials[-1] - polynomials[-2])
    return polynomials


def _series(basis: list[Array], beta: Array | Sequence) -> Array:
    total = beta[0] * basis[0]
    for k in range(1, len(beta)):
        total = total + beta[k] * basis[k]
    return total


def _unit(x: Array | float, xmin: Array | float, xmax: Array | float) -> tuple[Array, Array]:
    """Place in the window, from -1 to 1, or of its nearest edge; half its width."""
    half = 0.5 * positive(xmax - xmin)
    inside = clip(x, xmin, xmax)
    return ((inside - xmin) - (xmax - inside)) * (0.5 / half), half
