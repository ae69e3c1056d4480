"""Powers, and exp and log about 1, for numba kernels, branch-free as `kernels.vectormath`."""

import math

import numpy as np
from numba import njit

from kernels.vectormath import (
    COMPILE_HELPER,
    EXP_MAX,
    LN2_HI,
    LN2_LO,
    LOG2_E,
    MAGIC,
    MAGIC_BITS,
    SMALLEST_NORMAL,
    exp,
    exp_series,
    fused,
    log,
    polynomial,
    rint,
    split,
)

__all__ = ["cbrt", "expm1", "log1p", "pow"]

# (2 artanh(s) / s - 2) / s^2 - 2/3, over s^2, and the 2/3
ARTANH = (
    0.4, 0.2857142857142937, 0.22222222221653948, 0.18181818335780495, 0.15384594925603565, 0.13334806497150287,
    0.11706192681195858, 0.11723593643104033,
)  # fmt: skip
TWO_THIRDS, TWO_THIRDS_LOW = 0.6666666666666666, 3.700743415417188e-17
SINH_MAX = 710.4758600739439  # its hyperbolic sine is the largest number
_artanh_series = polynomial(ARTANH)


@njit(**COMPILE_HELPER)
def log1p(x):
    """log(1 + x), float64, to 2 ulp."""
    u = 1.0 + x
    lost = (x - (u - 1.0)) / u  # by the rounding of u
    result = log(u) + (lost if x > -1.0 and x < np.inf else 0.0)
    return result if abs(x) > 1e-17 or x != x else x


@njit(**COMPILE_HELPER)
def expm1_quarter(x):
    """(exp(x) - 1) / 4, which does not overflow where `sinh` does not; not for NaN."""
    clamped = min(max(x, -40.0), SINH_MAX)
    k = rint(clamped * LOG2_E)
    r = (clamped - k * LN2_HI) - k * LN2_LO
    p = exp_series(r) * (r * r) + r
    exponent = np.float64(k + MAGIC).view(np.int64) - MAGIC_BITS
    scale = np.int64((exponent + np.int64(1021)) << np.int64(52)).view(np.float64)
    return scale * p + (scale - 0.25)


@njit(**COMPILE_HELPER)
def expm1(x):
    """exp(x) - 1, float64, to 2 ulp."""
    result = 4.0 * expm1_quarter(x)
    result = result if x <= EXP_MAX else np.inf
    return result if abs(x) > 1e-17 and x == x else x


@njit(**COMPILE_HELPER)
def pow(x, y):
    """x to the y, float64, to 2 ulp; special values as IEEE 754 has them."""
    a = abs(x)
    # log(a) = high + low to 2^-65: 2 artanh(s), s = f / (2 + f), in numbers of twice the length (Dekker, 1971)
    k, f = split(a)
    d = 2.0 + f
    reciprocal = 1.0 / d
    s = f * reciprocal
    s_low = (fused(-s, d, f) - s * (f - (d - 2.0))) * reciprocal
    z = s * s
    z_low = fused(s, s, -z) + 2.0 * s * s_low
    q = z * _artanh_series(z)
    t = TWO_THIRDS + q
    t_low = ((TWO_THIRDS - t) + q) + TWO_THIRDS_LOW
    cube = z * s
    cube_low = fused(z, s, -cube) + z * s_low + z_low * s
    u = cube * t
    u_low = fused(cube, t, -u) + cube * t_low + cube_low * t
    mantissa = 2.0 * s + u
    exponent = k * LN2_HI
    high = exponent + mantissa
    low = ((2.0 * s - mantissa) + u) + (u_low + 2.0 * s_low)
    low = ((exponent - high) + mantissa) + (low + k * LN2_LO)
    high, low = high + low, (high - (high + low)) + low
    high = high if a < np.inf else a
    high = high if a >= SMALLEST_NORMAL or a != a else -np.inf

    p = y * high
    p_low = fused(y, high, -p) + y * low
    result = exp(p)
    result = result + result * p_low if abs(p) < 1000.0 and result < np.inf else result
    whole, half = rint(y) == y, 0.5 * y
    result = -result if whole and rint(half) != half and math.copysign(1.0, x) < 0.0 else result
    result = np.nan if not whole and x < 0.0 and a < np.inf else result
    return 1.0 if y == 0.0 or x == 1.0 or (a == 1.0 and abs(y) == np.inf) else result


@njit(**COMPILE_HELPER)
def cbrt(x):
    """Cube root, float64."""
    a = abs(x)
    y = exp(log(a) * (1.0 / 3.0))
    square = y * y
    # one step of Newton's method, with the rounding of the cube
    cube = square * y
    rest = (cube - a) + (fused(square, y, -cube) + fused(y, y, -square) * y)
    y = y - rest / (3.0 * square)
    return math.copysign(y, x) if a > 0.0 and a < np.inf else x
