"""Voigt distribution: a Cauchy distribution of half width gamma, smeared by a normal resolution.

f(x) = Re w((x - loc + i gamma) / (sqrt(2) scale)) / (sqrt(2 pi) scale) with the Faddeeva function
w(z) = exp(-z^2) erfc(-i z).

As in `numba_stats` there is no cdf, which has no usable closed form; within a window, divide by
`kernels.quadrature.integral`. All else is elementwise and broadcasts; `x`, `gamma`, `loc` and `scale` share one unit.
NaN comes out where an argument is NaN, gamma < 0 or scale <= 0; gamma = 0 is the normal distribution. Names and order
of the arguments are those of `numba_stats.voigt`.

w is a trapezoidal sum for |z| < 7 and a Gauss-Hermite sum beyond, both of Lorentz curves with positive weights, so
that Re w keeps its relative accuracy where it is a small part of |w|. Derivatives follow from w' = 2 i / sqrt(pi) -
2 z w for |z| < 7, which loses |z|^2 eps at each order, and from the derivative of the sum beyond.

References
----------
Al Azah & Chandler-Wilde, SIAM J. Numer. Anal. 59 (2021) 2346, eqs. 1.6 to 1.10 (trapezoidal rules).
Abramowitz & Stegun, eq. 7.1.20 (w'), table 7.10 (Gauss-Hermite sums).
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kernels._special import SQRT_2PI, SQRT_HALF, positive

_STEP = math.sqrt(math.pi / 12.0)
_NODES = _STEP * np.arange(-13.0, 14.0)
_WEIGHTS = _STEP / math.pi * np.exp(-(_NODES**2))
_WEIGHTS_BETWEEN = _STEP / math.pi * np.exp(-((_NODES + 0.5 * _STEP) ** 2))
_FAR_SQUARE = 49.0
_HERMITE = np.polynomial.hermite.hermgauss(16)
_TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)


def pdf(x: Array | float, gamma: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Probability density in 1 / unit of x.

    Parameters
    ----------
    x, gamma, loc, scale : any shapes that broadcast
        Point, half width at half maximum of the Cauchy part, mode, standard deviation of the normal part.

    Returns
    -------
    Array of the common shape, good to 1e-14 times the density and to 1e-16 of its maximum; second derivatives to 2e-12.
    """
    inverse = 1.0 / positive(scale)
    return _real(x, gamma, loc, inverse) * (inverse * (1.0 / SQRT_2PI))


def logpdf(x: Array | float, gamma: Array | float, loc: Array | float, scale: Array | float) -> Array:
    """Logarithm of `pdf`."""
    inverse = 1.0 / positive(scale)
    return jnp.log(_real(x, gamma, loc, inverse)) + jnp.log(inverse * (1.0 / SQRT_2PI))


def _real(x: Array | float, gamma: Array | float, loc: Array | float, inverse: Array) -> Array:
    per_width = SQRT_HALF * inverse
    real = (x - loc) * per_width
    imag = jnp.where(gamma >= 0, gamma, jnp.nan) * per_width
    return faddeeva(*jnp.broadcast_arrays(real, imag))[0]


@jax.custom_jvp
def faddeeva(x: Array, y: Array) -> tuple[Array, Array]:
    """Real and imaginary part of w(x + i y) for y >= 0, to 1e-14 of |w| and its real part to 1e-14 of itself."""
    far, near_x, near_y, far_x, far_y = _regions(x, y)
    real, imag = _trapezoidal(near_x, near_y)
    far_real, far_imag = _hermite_sum(far_x, far_y, 0)
    return jnp.where(far, far_real, real), jnp.where(far, far_imag, imag)


@jax.custom_jvp
def _first(x: Array, y: Array) -> tuple[Array, Array]:
    """w'."""
    far, near_x, near_y, far_x, far_y = _regions(x, y)
    real, imag = faddeeva(near_x, near_y)
    far_real, far_imag = _hermite_sum(far_x, far_y, 1)
    return (
        jnp.where(far, far_real, -2.0 * (near_x * real - near_y * imag)),
        jnp.where(far, far_imag, _TWO_OVER_SQRT_PI - 2.0 * (near_x * imag + near_y * real)),
    )


def _second(x: Array, y: Array) -> tuple[Array, Array]:
    """w''."""
    far, near_x, near_y, far_x, far_y = _regions(x, y)
    value, slope = faddeeva(near_x, near_y), _first(near_x, near_y)
    far_real, far_imag = _hermite_sum(far_x, far_y, 2)
    return (
        jnp.where(far, far_real, -2.0 * (value[0] + near_x * slope[0] - near_y * slope[1])),
        jnp.where(far, far_imag, -2.0 * (value[1] + near_x * slope[1] + near_y * slope[0])),
    )


def _along(derivative: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    (real, imag), (dx, dy) = derivative, tangents
    return real * dx - imag * dy, imag * dx + real * dy


faddeeva.defjvp(lambda primals, tangents: (faddeeva(*primals), _along(_first(*primals), tangents)))
_first.defjvp(lambda primals, tangents: (_first(*primals), _along(_second(*primals), tangents)))


def _regions(x: Array, y: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Whether |z| >= 7, and z for either formula, harmless where it is not selected."""
    far = x * x + y * y >= _FAR_SQUARE
    return far, jnp.where(far, 0.0, x), jnp.where(far, 1.0, y), jnp.where(far, x, 10.0), jnp.where(far, y, 0.0)


def _sum(term, arrays: tuple, like: Array) -> tuple[Array, Array]:
    real, imag = jax.vmap(term)(*(jnp.asarray(a, dtype=like.dtype) for a in arrays))
    return jnp.sum(real, axis=0), jnp.sum(imag, axis=0)


def _hermite_sum(x: Array, y: Array, order: int) -> tuple[Array, Array]:
    """(i / pi) sum_k weight_k / (z - node_k), or its derivative of the given order."""
    # derivatives of 1 / d: (-1)^order order! / d^(order + 1)
    factor = (1.0, -1.0, 2.0)[order] / math.pi

    def term(node: Array, weight: Array) -> tuple[Array, Array]:
        distance = x - node
        inverse = 1.0 / (distance * distance + y * y)
        real, imag = distance * inverse, -y * inverse
        a, b = real, imag
        for _ in range(order):
            a, b = a * real - b * imag, a * imag + b * real
        return -weight * b, weight * a

    nodes, weights = _HERMITE
    return _sum(term, (nodes, factor * weights), x)


def _trapezoidal(x: Array, y: Array) -> tuple[Array, Array]:
    """(i h / pi) sum_k exp(-t_k^2) / (z - t_k) plus the residue of the pole, with nodes t_k away from x."""
    cycle = x * (1.0 / _STEP)
    between = jnp.abs(cycle - jnp.floor(cycle + 0.5)) < 0.25
    shift = jnp.where(between, 0.5 * _STEP, 0.0)

    def term(node: Array, weight: Array, weight_between: Array) -> tuple[Array, Array]:
        distance = x - node - shift
        lorentz = jnp.where(between, weight_between, weight) / (distance * distance + y * y)
        return y * lorentz, distance * lorentz

    real, imag = _sum(term, (_NODES, _WEIGHTS, _WEIGHTS_BETWEEN), x)

    # 2 exp(-z^2) V / (V -+ 1) with V = exp(2 pi i z / h); it is below rounding from y = pi / h on
    needed = y < math.pi / _STEP
    low = jnp.where(needed, y, 0.0)
    sign = jnp.where(between, -1.0, 1.0)
    size = jnp.exp((-2.0 * math.pi / _STEP) * low)
    angle = (2.0 * math.pi) * cycle
    a, b = size * jnp.cos(angle), size * jnp.sin(angle)
    denominator = (size * size - 2.0 * sign * a) + 1.0
    p, q = size * size - sign * a, -sign * b
    cos, sin = jnp.cos(2.0 * x * low), jnp.sin(2.0 * x * low)
    scale = jnp.where(needed, 2.0, 0.0) * jnp.exp(low * low - x * x) / denominator
    return real + scale * (cos * p + sin * q), imag + scale * (cos * q - sin * p)
