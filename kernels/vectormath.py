"""exp and log for numba kernels, written so that LLVM vectorises the loop that calls them.

numba's wheels have no vector math library: a call of `math.exp` stays a scalar call and keeps the whole
loop scalar. The functions here are branch-free arithmetic, so a loop over rows that uses them becomes SIMD
code. Both are accurate to under 1 ulp and treat NaN, infinities and zeros as IEEE 754 does. Results and
arguments below the smallest normal number (2.2e-308; 3.2e-308 for `exp`) count as zero, as in XLA on the CPU.

Argument reduction and coefficients of `log` are those of FreeBSD's e_log.c (Sun Microsystems, 1993); `exp`
is the Taylor series on [-ln2/2, ln2/2], where 13 terms leave 1e-17.
"""

import math

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.extending import intrinsic

__all__ = ["COMPILE_ROW", "exp", "log"]

# A caller's flags do not reach the helpers: each instruction keeps its own. Reassociation would undo the
# two-part subtractions of the argument reduction, so the helpers may only contract to FMA.
COMPILE_HELPER = {"fastmath": {"contract"}, "error_model": "numpy"}
# Rows may be summed in any order. No flag here lets LLVM assume away NaN or infinity.
COMPILE_ROW = {"fastmath": {"reassoc", "contract", "nsz"}, "error_model": "numpy", "nogil": True}

LOG2_E = 1.4426950408889634
LN2_HI = 6.93147180369123816490e-01
LN2_LO = 1.90821492927058770002e-10
# Adding 1.5 * 2^52 leaves an integer of up to 51 bits in the low bits of a double.
MAGIC = 6755399441055744.0
MAGIC_BITS = np.int64(np.float64(MAGIC).view(np.int64))
EXP_MAX = 709.782712893384
EXP_MIN = -708.04  # 2^-1021.5: below this the result counts as zero
SMALLEST_NORMAL = 2.2250738585072014e-308
TAYLOR = tuple(1.0 / math.factorial(n) for n in range(14))

SQRT_HALF_BITS = np.uint64(0x3FE6A09E667F3BCD)
ONE_MINUS_SQRT_HALF_BITS = np.uint64(0x3FF0000000000000 - 0x3FE6A09E667F3BCD)
MANTISSA_MASK = np.uint64(0xFFFFFFFFFFFFF)
TWO52 = 4503599627370496.0
TWO52_BITS = np.uint64(np.float64(TWO52).view(np.uint64))
LG1, LG2, LG3, LG4 = (
    6.666666666666735130e-01,
    3.999999999940941908e-01,
    2.857142874366239149e-01,
    2.222219843214978396e-01,
)
LG5, LG6, LG7 = 1.818357216161805012e-01, 1.531383769920937332e-01, 1.479819860511658591e-01


@intrinsic
def _rint(typingctx, x):
    """Nearest integer, as the LLVM intrinsic: fast-math flags cannot take it apart."""

    def codegen(context, builder, signature, args):
        fn = builder.module.declare_intrinsic("llvm.rint", [ir.DoubleType()])
        return builder.call(fn, args)

    return types.float64(types.float64), codegen


@njit(**COMPILE_HELPER)
def exp(x):
    """e to the x, float64."""
    clamped = min(max(x, EXP_MIN), EXP_MAX)
    k = _rint(clamped * LOG2_E)
    r = (clamped - k * LN2_HI) - k * LN2_LO
    p = TAYLOR[13]
    p = p * r + TAYLOR[12]
    p = p * r + TAYLOR[11]
    p = p * r + TAYLOR[10]
    p = p * r + TAYLOR[9]
    p = p * r + TAYLOR[8]
    p = p * r + TAYLOR[7]
    p = p * r + TAYLOR[6]
    p = p * r + TAYLOR[5]
    p = p * r + TAYLOR[4]
    p = p * r + TAYLOR[3]
    p = p * r + TAYLOR[2]
    p = p * (r * r) + r + 1.0
    # 2^k in two factors, since 2^1024 alone is not a number
    exponent = np.float64(k + MAGIC).view(np.int64) - MAGIC_BITS
    result = (2.0 * p) * np.int64((exponent + np.int64(1022)) << np.int64(52)).view(np.float64)
    result = result if x >= EXP_MIN else 0.0
    result = result if x <= EXP_MAX else np.inf
    return result if x == x else x


@njit(**COMPILE_HELPER)
def log(x):
    """Natural logarithm, float64."""
    bits = np.float64(x).view(np.uint64) + ONE_MINUS_SQRT_HALF_BITS
    k = np.uint64((bits >> np.uint64(52)) | TWO52_BITS).view(np.float64) - (TWO52 + 1023.0)
    f = np.uint64((bits & MANTISSA_MASK) + SQRT_HALF_BITS).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    t1 = w * (LG2 + w * (LG4 + w * LG6))
    t2 = z * (LG1 + w * (LG3 + w * (LG5 + w * LG7)))
    half_square = 0.5 * f * f
    result = k * LN2_HI - ((half_square - (s * (half_square + (t1 + t2)) + k * LN2_LO)) - f)
    result = result if x < np.inf else x  # infinity and NaN stay what they are
    return result if x >= SMALLEST_NORMAL or x != x else (np.nan if x <= -SMALLEST_NORMAL else -np.inf)
