"""Trigonometric and hyperbolic functions and their inverses for numba kernels, branch-free as `kernels.vectormath`.

Each is accurate to 4 ulp. Sine, cosine and tangent are NaN from 2^50 on, where neighbouring float64 are 1/8 apart.

Polynomials of sine and cosine are those of FreeBSD's k_sin.c and k_cos.c (Sun Microsystems, 1993); that of the arc
tangent is a Chebyshev series computed with 60 digits.
"""

import math

import numpy as np
from numba import njit

from kernels.vectormath import COMPILE_HELPER, MAGIC, fused, polynomial, rint
from kernels.vectorpower import SINH_MAX, expm1_quarter, log1p

__all__ = [
    "acos",
    "acosh",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "cos",
    "cosh",
    "sin",
    "sinh",
    "tan",
    "tanh",
]

TWO_OVER_PI = 0.6366197723675814
# pi / 2 in three parts
HALF_PI, HALF_PI_MIDDLE, HALF_PI_LOW = 1.5707963267948966, 6.123233995736766e-17, -1.4973849048591698e-33
TRIG_MAX = 2.0**50
# (sin(r) - r + r^3 / 6) / r^5 and (cos(r) - 1 + r^2 / 2) / r^4, in r^2
SIN1 = -1.66666666666666324348e-01
_sin_series = polynomial(
    [
        8.33333333332248946124e-03,
        -1.98412698298579493134e-04,
        2.75573137070700676789e-06,
        -2.50507602534068634195e-08,
        1.58969099521155010221e-10,
    ]
)
_cos_series = polynomial(
    [
        4.16666666666666019037e-02,
        -1.38888888888741095749e-03,
        2.48015872894767294178e-05,
        -2.75573143513906633035e-07,
        2.08757232129817482790e-09,
        -1.13596475577881948265e-11,
    ]
)
# (atan(t) - t) / t^3 in t^2, for |t| <= sqrt(2) - 1
ATAN = (
    -0.3333333333333333, 0.1999999999999981, -0.14285714285661172, 0.11111111105277093, -0.09090908759150469,
    0.07692296528172463, -0.06666427474562048, 0.05878957111743898, -0.05230650445226717, 0.04552443388309336,
    -0.03459138679270591, 0.01630778798611239,
)  # fmt: skip
_atan_series = polynomial(ATAN)
SQRT2_MINUS_1 = math.sqrt(2.0) - 1.0


@njit(**COMPILE_HELPER)
def _sum(a, b):
    """The sum of two numbers, and what its rounding has lost (Knuth, 1969)."""
    total = a + b
    rounded = total - a
    return total, (a - (total - rounded)) + (b - rounded)


@njit(**COMPILE_HELPER)
def _sin_cos(x):
    """sin(r), cos(r) and k mod 4, where x = k pi / 2 + r and |r| <= pi / 4 but for rounding."""
    k = rint(x * TWO_OVER_PI)
    product, middle = k * HALF_PI, k * HALF_PI_MIDDLE
    high, low = _sum(x - product, -fused(k, HALF_PI, -product))
    high, lower = _sum(high, -middle)
    low = (low + lower) - (fused(k, HALF_PI_MIDDLE, -middle) + k * HALF_PI_LOW)
    r = high + low
    low = (high - r) + low
    z = r * r
    cube = z * r
    sine = r - ((z * (0.5 * low - cube * _sin_series(z)) - low) - cube * SIN1)
    half = 0.5 * z
    rest = 1.0 - half
    cosine = rest + (((1.0 - rest) - half) + (z * z * _cos_series(z) - r * low))
    bad = not abs(x) < TRIG_MAX
    return np.nan if bad else sine, np.nan if bad else cosine, np.float64(k + MAGIC).view(np.int64)


@njit(**COMPILE_HELPER)
def sin(x):
    """Sine, float64."""
    sine, cosine, quadrant = _sin_cos(x)
    result = cosine if quadrant & np.int64(1) else sine
    result = -result if quadrant & np.int64(2) else result
    return result if x != 0.0 else x


@njit(**COMPILE_HELPER)
def cos(x):
    """Cosine, float64."""
    sine, cosine, quadrant = _sin_cos(x)
    result = sine if quadrant & np.int64(1) else cosine
    return -result if (quadrant + np.int64(1)) & np.int64(2) else result


@njit(**COMPILE_HELPER)
def tan(x):
    """Tangent, float64."""
    sine, cosine, quadrant = _sin_cos(x)
    swapped = quadrant & np.int64(1)
    result = (cosine if swapped else sine) / (-sine if swapped else cosine)
    return result if x != 0.0 else x


@njit(**COMPILE_HELPER)
def atan2(y, x):
    """Angle of the point (x, y), float64."""
    a, b = abs(x), abs(y)
    both = a == np.inf and b == np.inf
    a, b = 1.0 if both else a, 1.0 if both else b
    low, high = (a, b) if b > a else (b, a)
    # tan(angle - pi/4) = (t - 1) / (t + 1) brings the upper part down; halves, so that no sum overflows
    upper = low > SQRT2_MINUS_1 * high
    above = 0.5 * low - 0.5 * high if upper else low
    below = 0.5 * low + 0.5 * high if upper else high
    t = above / (below if below > 0.0 else 1.0)
    z = t * t
    angle = t * z * _atan_series(z)
    angle = 0.25 * math.pi + (angle + (t + 0.5 * HALF_PI_MIDDLE)) if upper else angle + t
    angle = HALF_PI - (angle - HALF_PI_MIDDLE) if b > a else angle
    angle = math.pi - (angle - 2.0 * HALF_PI_MIDDLE) if math.copysign(1.0, x) < 0.0 else angle
    return math.copysign(angle, y) if x == x and y == y else np.nan


@njit(**COMPILE_HELPER)
def atan(x):
    """Arc tangent, float64."""
    return atan2(x, 1.0)


@njit(**COMPILE_HELPER)
def asin(x):
    """Arc sine, float64; NaN outside of [-1, 1]."""
    return atan2(x, math.sqrt((1.0 - x) * (1.0 + x)))


@njit(**COMPILE_HELPER)
def acos(x):
    """Arc cosine, float64; NaN outside of [-1, 1]."""
    return atan2(math.sqrt((1.0 - x) * (1.0 + x)), x)


@njit(**COMPILE_HELPER)
def sinh(x):
    """Hyperbolic sine, float64."""
    a = abs(x)
    q = expm1_quarter(a)
    result = 2.0 * q + 2.0 * q / (4.0 * q + 1.0)
    result = result if a <= SINH_MAX else np.inf
    return math.copysign(result, x) if a > 1e-17 and x == x else x


@njit(**COMPILE_HELPER)
def cosh(x):
    """Hyperbolic cosine, float64."""
    a = abs(x)
    q = expm1_quarter(a) + 0.25
    result = 2.0 * q + 0.125 / q
    result = result if a <= SINH_MAX else np.inf
    return result if x == x else x


@njit(**COMPILE_HELPER)
def tanh(x):
    """Hyperbolic tangent, float64."""
    a = abs(x)
    q = expm1_quarter(min(2.0 * a, 40.0))
    return math.copysign(q / (q + 0.5), x) if a > 1e-17 and x == x else x


@njit(**COMPILE_HELPER)
def asinh(x):
    """Inverse hyperbolic sine, float64."""
    a = abs(x)
    large = a > 2.0**28
    square = a * a
    argument = a - 1.0 if large else a + square / (1.0 + math.sqrt(square + 1.0))
    result = log1p(argument) + (math.log(2.0) if large else 0.0)
    return math.copysign(result, x) if a > 1e-17 and x == x else x


@njit(**COMPILE_HELPER)
def acosh(x):
    """Inverse hyperbolic cosine, float64; NaN below 1."""
    large = x > 2.0**28
    t = x - 1.0
    result = log1p(t if large else t + math.sqrt(t * (t + 2.0))) + (math.log(2.0) if large else 0.0)
    return result if x >= 1.0 else np.nan


@njit(**COMPILE_HELPER)
def atanh(x):
    """Inverse hyperbolic tangent, float64; NaN outside of [-1, 1]."""
    a = abs(x)
    result = 0.5 * log1p(2.0 * a / (1.0 - a))
    result = np.nan if a > 1.0 else result
    return math.copysign(result, x) if a > 1e-17 and x == x else x
