"""exp, log, erf, lgamma and their kin for numba kernels, written so that LLVM vectorises the loop that calls them.

numba's wheels have no vector math library: a call of `math.exp` stays a scalar call and keeps the whole
loop scalar. The functions here are branch-free arithmetic, so a loop over rows that uses them becomes SIMD
code. `exp` and `log` are accurate to under 1 ulp, the others as each says; NaN, infinities and zeros are treated as
IEEE 754 does. Results and arguments below the smallest normal number (2.2e-308; 3.2e-308 for `exp`) count as zero, as
in XLA on the CPU.

Argument reduction and coefficients of `log` are those of FreeBSD's e_log.c (Sun Microsystems, 1993); `exp`
is the Taylor series on [-ln2/2, ln2/2], where 13 terms leave 1e-17. Other coefficients are Chebyshev series computed
with 60 digits, cut where the next term is below 1e-17.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core.extending import intrinsic

__all__ = [
    "COMPILE_HELPER",
    "COMPILE_ROW",
    "digamma",
    "erf",
    "erfc",
    "exp",
    "lgamma",
    "log",
    "polynomial",
    "trigamma",
    "use_wide_vectors",
]

# A caller's flags do not reach the helpers: each instruction keeps its own. Reassociation would undo the
# two-part subtractions of the argument reduction, so the helpers may only contract to FMA.
# A helper that is not inlined keeps the loop scalar.
COMPILE_HELPER = {"fastmath": {"contract"}, "error_model": "numpy", "forceinline": True}
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
def use_wide_vectors(typingctx):
    """Let LLVM use the widest vectors in the function that calls this.

    It prefers 256 bits where a processor has 512, because a program that uses a little of them runs at a lower clock
    for it. A loop over rows is nothing else: 8.5 -> 6.0 ns per event for the 5-parameter spectrum.
    """

    def codegen(context, builder, signature, args):
        # llvmlite checks the attributes that it knows; this one it only has to print
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def rint(typingctx, x):
    """Nearest integer, as the LLVM intrinsic: fast-math flags cannot take it apart."""

    def codegen(context, builder, signature, args):
        fn = builder.module.declare_intrinsic("llvm.rint", [ir.DoubleType()])
        return builder.call(fn, args)

    return types.float64(types.float64), codegen


@intrinsic
def fused(typingctx, x, y, z):
    """x * y + z with one rounding."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return types.float64(types.float64, types.float64, types.float64), codegen


@intrinsic
def _minimum(typingctx, x, y):
    """The smaller number, as the LLVM intrinsic: a comparison with a constant would become a branch."""

    def codegen(context, builder, signature, args):
        double = ir.DoubleType()
        of_two = ir.FunctionType(double, [double, double])
        fn = builder.module.declare_intrinsic("llvm.minnum", [double], of_two)
        return builder.call(fn, args)

    return types.float64(types.float64, types.float64), codegen


def polynomial(coefficients: Sequence[float]) -> Any:
    """A polynomial by Horner's rule as a helper of kernels; the constant comes first."""
    # LLVM unrolls a short loop before it vectorises the one around it
    evaluated: Any
    *lower, evaluated = coefficients
    for k in reversed(range(0, len(lower), 12)):
        evaluated = _horner(tuple(lower[k : k + 12]), evaluated)
    return evaluated


def _horner(block: tuple[float, ...], above: Any) -> Callable:
    """The coefficients of a block and, behind it, a number or a polynomial."""
    n = len(block)
    if callable(above):

        @njit(**COMPILE_HELPER)
        def evaluated(x):
            total = above(x)
            for k in range(n):
                total = total * x + block[n - 1 - k]
            return total

    else:

        @njit(**COMPILE_HELPER)
        def evaluated(x):
            total = above
            for k in range(n):
                total = total * x + block[n - 1 - k]
            return total

    return evaluated


# (exp(r) - 1 - r) / r^2
exp_series = polynomial([1.0 / math.factorial(n) for n in range(2, 14)])


@njit(**COMPILE_HELPER)
def exp(x):
    """e to the x, float64."""
    clamped = min(max(x, EXP_MIN), EXP_MAX)
    k = rint(clamped * LOG2_E)
    r = (clamped - k * LN2_HI) - k * LN2_LO
    p = exp_series(r) * (r * r) + r + 1.0
    # 2^k in two factors, since 2^1024 alone is not a number
    exponent = np.float64(k + MAGIC).view(np.int64) - MAGIC_BITS
    result = (2.0 * p) * np.int64((exponent + np.int64(1022)) << np.int64(52)).view(np.float64)
    result = result if x >= EXP_MIN else 0.0
    result = result if x <= EXP_MAX else np.inf
    return result if x == x else x


@njit(**COMPILE_HELPER)
def split(x):
    """(k, f) with x = 2^k (1 + f) and sqrt(1/2) <= 1 + f < sqrt(2), for a positive normal number."""
    bits = np.float64(x).view(np.uint64) + ONE_MINUS_SQRT_HALF_BITS
    k = np.uint64((bits >> np.uint64(52)) | TWO52_BITS).view(np.float64) - (TWO52 + 1023.0)
    f = np.uint64((bits & MANTISSA_MASK) + SQRT_HALF_BITS).view(np.float64) - 1.0
    return k, f


@njit(**COMPILE_HELPER)
def log(x):
    """Natural logarithm, float64."""
    k, f = split(x)
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    t1 = w * (LG2 + w * (LG4 + w * LG6))
    t2 = z * (LG1 + w * (LG3 + w * (LG5 + w * LG7)))
    half_square = 0.5 * f * f
    result = k * LN2_HI - ((half_square - (s * (half_square + (t1 + t2)) + k * LN2_LO)) - f)
    result = result if x < np.inf else x  # infinity and NaN stay what they are
    return result if x >= SMALLEST_NORMAL or x != x else (np.nan if x <= -SMALLEST_NORMAL else -np.inf)


# (1 + 2 x) exp(x^2) erfc(x) as a polynomial in (x - 4) / (x + 4), and erf(x) / x as one in x^2 for |x| < 1
ERFCX = (
    1.2329951186255526, -0.1396211168405623, 0.015379652102619604, 0.06809705425466908, -0.10103906603630056,
    0.0937328349990944, -0.06633036581218697, 0.03716751552655567, -0.016197734059799265, 0.005031970067657489,
    -0.0007577732613730956, -0.00019925714661091188, 0.0001506214900124047, -2.4397746422436416e-05,
    -1.1221287012353486e-05, 5.706604414895734e-06, 2.919733377963012e-07, -8.210939042560568e-07,
    7.746992727017941e-08, 1.0633855618594884e-07, -2.05606492756992e-08, -1.234686604382353e-08,
    3.1695881915648173e-09, 9.311744978232572e-10, -2.659599690242689e-10,
)  # fmt: skip
ERF = (
    1.1283791670955126, -0.37612638903183543, 0.1128379167094513, -0.026866170643256995, 0.005223977607269946,
    -0.0008548325982543225, 0.00012055295112667001, -1.4924740785377576e-05, 1.6447471190594618e-06,
    -1.6208829856810202e-07, 1.3721520406351094e-08, -7.798543850549947e-10,
)  # fmt: skip
ERFC_END = 27.0  # erfc is below the smallest normal number


_erf_series = polynomial(ERF)
_erfcx_series = polynomial(ERFCX)


@njit(**COMPILE_HELPER)
def _erfc_large(a):
    """erfc of a >= 0, to 3e-16 relative from a = 0.5 on."""
    a = _minimum(a, ERFC_END)
    p = _erfcx_series((a - 4.0) / (a + 4.0))
    # exp(-a^2) = exp(-square) (1 - rest): the rounding of the square would be enlarged a^2 times
    square = a * a
    rest = fused(a, a, -square)
    return (1.0 - rest) * exp(-square) * p / (1.0 + 2.0 * a)


@njit(**COMPILE_HELPER)
def erf(x):
    """Error function, float64."""
    a = abs(x)
    small = x * _erf_series(x * x)  # both cases are computed: a choice of two numbers vectorises, a branch does not
    large = 1.0 - _erfc_large(a)
    signed = large if x > 0.0 else -large
    result = small if a < 1.0 else signed
    return result if x == x else x


@njit(**COMPILE_HELPER)
def erfc(x):
    """Complementary error function, float64."""
    a = abs(x)
    small = 1.0 - x * _erf_series(x * x)
    large = _erfc_large(a)
    signed = large if x > 0.0 else 2.0 - large
    result = small if a < 0.5 else signed
    return result if x == x else x


# log Gamma(y) / ((y - 1) (y - 2)) in y - 1.75, and sin(pi x) / x in x^2 for |x| < 1/2
GAMMA = (
    0.4501393121092563, -0.11948158662524266, 0.04452044719851499, -0.019053957830261353, 0.008776370424804928,
    -0.00422619412516532, 0.0020955338949315513, -0.0010605660943151561, 0.0005448967334933785,
    -0.00028319035422703876, 0.0001485193622424128, -7.846409510572801e-05, 4.168880318566392e-05,
    -2.226800588314595e-05, 1.2019588890883085e-05, -6.488497543800692e-06, 3.3092371814628096e-06,
    -1.7663730867731053e-06, 1.3276975968376554e-06, -7.578504570526509e-07, -1.9510237261892665e-08,
    3.517591929231489e-08, 2.741885169618582e-07, -1.581232626868646e-07,
)  # fmt: skip
SINE = (
    3.141592653589793, -5.167712780049969, 2.5501640398773007, -0.599264529318946, 0.08214588657312355,
    -0.007370430506093225, 0.00046629981702308817, -2.1903499125519212e-05, 7.697847275590284e-07,
)  # fmt: skip
HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
_gamma_series = polynomial(GAMMA)
_sine_series = polynomial(SINE)
# Bernoulli numbers, B(2 n) / (2 n (2 n - 1))
_stirling_series = polynomial([1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400])


@njit(**COMPILE_HELPER)
def lgamma(x):
    """log |Gamma(x)|, float64. The error is below 8 eps |lgamma| for x > 0, below 8 eps (|x log(-x)| + 3) otherwise.

    A polynomial times (y - 1) (y - 2) on [1, 2.5], where these are the zeros, and for 0 < x < 4.5 the logarithm of
    what leads there; then Stirling's series of log Gamma(x + 4) less log(x (x + 1) (x + 2) (x + 3)), from x = 8.5 on
    the series alone; and pi / sin(pi x) = Gamma(x) Gamma(1 - x) (Abramowitz & Stegun, eqs. 6.1.15, 6.1.17, 6.1.41).
    """
    positive = x > 0.0
    a = x if positive else 1.0 - x
    near, shifted = a < 4.5, a < 8.5
    y = a + 4.0 if shifted else a
    r = 1.0 / y
    stirling = (y - 0.5) * (log(y) - 1.0) + (HALF_LOG_TWO_PI - 0.5 + r * _stirling_series(r * r))
    down = 0.0 if a < 1.5 else (1.0 if a < 2.5 else (2.0 if a < 3.5 else 3.0))
    below = a - down  # y - 1, exact
    base = below * (below - 1.0) * _gamma_series(below - 0.75) if near else stirling

    # the logarithm of `factor` is to be subtracted, or added
    steps = a * (a + 1.0) * ((a + 2.0) * (a + 3.0)) if shifted else 1.0
    added = near and a >= 1.5
    factor = (1.0 if a < 2.5 else (a - 1.0 if a < 3.5 else (a - 1.0) * (a - 2.0))) if added else (a if near else steps)
    part = x - rint(x)
    sine = abs(part * _sine_series(part * part))  # of pi x
    mirrored = (math.pi if added else math.pi * factor) / (sine * factor if added else sine)
    logarithm = log(factor if positive else mirrored)
    result = base + (logarithm if added else -logarithm) if positive else logarithm - base
    result = result if a < np.inf else np.inf
    return result if x == x else x


@njit(**COMPILE_HELPER)
def digamma(x):
    """Derivative of log Gamma for x > 0, float64; NaN for x <= 0.

    The asymptotic series of psi(x + 10), less 1 / x + ... + 1 / (x + 9), below x = 10 (Abramowitz & Stegun, eqs.
    6.3.6, 6.3.18). The error is below 8 eps (1 + |digamma|).
    """
    shifted = x < 10.0
    y = x + 10.0 if shifted else x
    r = 1.0 / y
    s = r * r
    p = s * (691.0 / 32760.0 - s / 12.0) - 1.0 / 132.0
    p = s * (1.0 / 12.0 - s * (1.0 / 120.0 - s * (1.0 / 252.0 - s * (1.0 / 240.0 + s * p))))
    # the sum of reciprocals as one fraction; an argument above 10 needs none
    above, below = 1.0, x
    for j in range(1, 10):
        above, below = above * (x + j) + below, below * (x + j)
    return log(y) - 0.5 * r - p - (above / below if shifted else 0.0) if x > 0.0 else np.nan


@njit(**COMPILE_HELPER)
def trigamma(x):
    """Second derivative of log Gamma for x > 0, float64; NaN for x <= 0.

    The asymptotic series of psi'(x + 10), plus 1 / x^2 + ... + 1 / (x + 9)^2, below x = 10 (Abramowitz & Stegun, eqs.
    6.4.6, 6.4.12). The relative error is below 8 eps.
    """
    shifted = x < 10.0
    r = 1.0 / (x + 10.0 if shifted else x)
    s = r * r
    p = s * (5.0 / 66.0 - s * (691.0 / 2730.0 - s * (7.0 / 6.0))) - 1.0 / 30.0
    p = 1.0 / 6.0 - s * (1.0 / 30.0 - s * (1.0 / 42.0 + s * p))
    above, below = 1.0, x * x
    for j in range(1, 10):
        square = (x + j) * (x + j)
        above, below = above * square + below, below * square
    return r + 0.5 * s + r * s * p + (above / below if shifted else 0.0) if x > 0.0 else np.nan
