"""Vectors and matrices of one fit, as numba functions in loops."""

import numpy as np
from numba import njit, types
from numba.core.extending import intrinsic

from engine.rules import PIVOT, WIDE
from kernels.blocks import COLUMNS, ROWS, block_of_products

__all__ = [
    "CLIPPED",
    "CURVED",
    "DIRECTION",
    "FREE",
    "GRADIENT",
    "HELPER",
    "HIGH",
    "LOW",
    "MATRIX",
    "MOVING",
    "SCALE",
    "STEP",
    "SUMS",
    "THETA",
    "WHOLE",
    "WRONG",
    "ZERO",
    "B",
    "P",
    "W",
    "alive",
    "copy_matrix",
    "copy_row",
    "differ",
    "factorise",
    "factorised",
    "fill",
    "newton_point",
    "norm_of",
    "solve_lower",
    "solve_upper",
    "uncounted",
    "unpack",
    "write_covariance",
]

# They are compiled into what calls them, and kept on disk with that: see `engine.newton_numba`.
HELPER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy", "nogil": True}
SUMS = {"fastmath": {"reassoc", "contract", "nsz"}, **HELPER}  # sums in vectors; NaN and infinity as ever

# The vectors and matrices of a fit are rows of one array `work`, and named by the first of them: each array that is
# passed is seven numbers. FREE and MOVING are flags; a step leads from THETA, between LOW and HIGH; CURVED is the
# Hessian times the step.
# MATRIX has n_params rows, and after it come as many of the Cholesky factor, or of the inverse. Of symmetric matrices
# the upper triangle is written, of inverses the lower.
THETA, GRADIENT, LOW, HIGH, FREE, STEP, SCALE, MOVING, WRONG, B, P, W, WHOLE, CLIPPED, DIRECTION, CURVED, MATRIX = map(
    np.int64, range(17)
)
# not plain integers, for each of which numba would compile the helpers anew
ZERO = np.int64(0)

_corner = block_of_products(given=True, subtracted=True, solved=False)
_row_of_factor = block_of_products(given=True, subtracted=True, solved=True)
_row_of_inverse = block_of_products(given=False, subtracted=True, solved=True)
_products = block_of_products(given=False, subtracted=False, solved=False)


@intrinsic
def uncounted(typingctx, array):
    """The same array, whose users numba does not count, nor those of what is cut out of it.

    It counts by atomic operations, which took half of the time of a tiny fit. The array itself must live as long as
    what this returns; see `alive`.
    """

    def codegen(context, builder, signature, args):
        view = context.make_array(array)(context, builder, args[0])
        view.meminfo, view.parent = view.meminfo.type(None), view.parent.type(None)
        return view._getvalue()

    return array(array), codegen


@intrinsic
def alive(typingctx, arrays):
    """Does nothing, but what it is called with lives until then."""
    return types.void(arrays), lambda context, builder, signature, args: context.get_dummy_value()


# Loops, because an assignment to a slice compiles the text of its error message too, which takes seconds.
@njit(**HELPER)
def copy_row(source, target):
    for i in range(len(source)):
        target[i] = source[i]


@njit(**HELPER)
def copy_matrix(source, target):
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]


@njit(**HELPER)
def differ(a, b):
    different = False
    for i in range(len(a)):
        different |= a[i] != b[i]
    return different


@njit(**HELPER)
def fill(matrix, value):
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            matrix[i, j] = value


@njit(**HELPER)
def factorise(work, n, shift):
    """Cholesky factor U of MATRIX + shift * I = U^T U; False where a pivot is not positive.

    Upper triangles are read and written. The diagonal of the factor holds the inverses of its own.
    """
    factor = MATRIX + work.shape[1]
    if n >= WIDE:
        return _factorise_wide(work, n, shift, factor)
    for i in range(n):
        total = work[MATRIX + i, i] + shift
        for k in range(i):
            total -= work[factor + k, i] * work[factor + k, i]
        if not total > PIVOT * (1.0 + shift):
            return False
        inverse = 1.0 / np.sqrt(total)
        work[factor + i, i] = inverse
        for j in range(i + 1, n):
            total = work[MATRIX + i, j]
            for k in range(i):
                total -= work[factor + k, i] * work[factor + k, j]
            work[factor + i, j] = total * inverse
    return True


@njit(**HELPER)
def _factorise_wide(work, n, shift, factor):
    for begin in range(0, n, ROWS):
        i = min(begin, n - ROWS)  # where n is no multiple of four, some rows are made twice
        at = min(i, n - COLUMNS)
        _corner(work, MATRIX + i, factor + i, at, factor, factor, i, i, ZERO)
        good, corner = _factor_of_corner(work, factor + i, i, shift)
        if not good:
            return False
        _write_corner(work, factor + i, i, corner)
        for column in range(i + ROWS, n, COLUMNS):
            at = min(column, n - COLUMNS)
            _row_of_factor(work, MATRIX + i, factor + i, at, factor, factor, i, i, factor + i)
        _write_corner(work, factor + i, i, corner)  # the last columns may have begun before it
    return True


@njit(**HELPER)
def _factor_of_corner(work, row, i, shift):
    """Factor of four rows and columns from (row, i), and whether it exists: its rows, with inverses of the diagonal."""
    least = PIVOT * (1.0 + shift)
    pivot = work[row, i] + shift
    good = pivot > least
    u00 = 1.0 / np.sqrt(pivot)
    u01, u02, u03 = work[row, i + 1] * u00, work[row, i + 2] * u00, work[row, i + 3] * u00
    pivot = work[row + 1, i + 1] + shift - u01 * u01
    good &= pivot > least
    u11 = 1.0 / np.sqrt(pivot)
    u12, u13 = (work[row + 1, i + 2] - u01 * u02) * u11, (work[row + 1, i + 3] - u01 * u03) * u11
    pivot = work[row + 2, i + 2] + shift - u02 * u02 - u12 * u12
    good &= pivot > least
    u22 = 1.0 / np.sqrt(pivot)
    u23 = (work[row + 2, i + 3] - u02 * u03 - u12 * u13) * u22
    pivot = work[row + 3, i + 3] + shift - u03 * u03 - u13 * u13 - u23 * u23
    good &= pivot > least
    return good, (u00, u01, u02, u03, u11, u12, u13, u22, u23, 1.0 / np.sqrt(pivot))


@njit(**HELPER)
def _write_corner(work, row, i, corner):
    u00, u01, u02, u03, u11, u12, u13, u22, u23, u33 = corner
    work[row, i], work[row, i + 1], work[row, i + 2], work[row, i + 3] = u00, u01, u02, u03
    work[row + 1, i + 1], work[row + 1, i + 2], work[row + 1, i + 3] = u11, u12, u13
    work[row + 2, i + 2], work[row + 2, i + 3], work[row + 3, i + 3] = u22, u23, u33


@njit(**HELPER)
def solve_lower(work, n, b, x):
    """Solve U^T x = b."""
    factor = MATRIX + work.shape[1]
    for i in range(n):
        work[x, i] = work[b, i]
    for i in range(n):
        found = work[x, i] * work[factor + i, i]
        work[x, i] = found
        for k in range(np.uint64(i + 1), np.uint64(n)):
            work[x, k] -= work[factor + i, k] * found


@njit(**HELPER)
def solve_upper(work, n, b, x):
    """Solve U x = b."""
    factor = MATRIX + work.shape[1]
    for i in range(n - 1, -1, -1):
        if n >= WIDE:
            total = work[b, i] - _dot_behind(work, factor + i, x, i + 1, n)
        else:
            total = work[b, i]
            for k in range(i + 1, n):
                total -= work[factor + i, k] * work[x, k]
        work[x, i] = total * work[factor + i, i]


@njit(**SUMS)
def _dot_behind(work, row, x, first, n):
    total = 0.0
    for k in range(np.uint64(first), np.uint64(n)):
        total += work[row, k] * work[x, k]
    return total


@njit(**HELPER)
def newton_point(work, n):
    """P = -(U^T U)^-1 B."""
    solve_lower(work, n, B, W)
    solve_upper(work, n, W, P)
    for i in range(n):
        work[P, i] = -work[P, i]


@njit(**HELPER)
def _invert(work, n):
    """The lower triangle of (U^T U)^-1, in place of the factor; that of MATRIX becomes that of U^-T."""
    factor = MATRIX + work.shape[1]
    for i in range(n):
        for c in range(n):
            work[MATRIX + i, c] = 0.0
    if n >= WIDE:
        _invert_wide(work, n, factor)
        return
    for i in range(n):
        for k in range(i):
            for c in range(k + 1):
                work[MATRIX + i, c] += work[factor + k, i] * work[MATRIX + k, c]
        inverse = work[factor + i, i]
        for c in range(i):
            work[MATRIX + i, c] *= -inverse
        work[MATRIX + i, i] = inverse
    for r in range(n):
        for c in range(r + 1):
            total = 0.0
            for k in range(r, n):
                total += work[MATRIX + k, r] * work[MATRIX + k, c]
            work[factor + r, c] = total


@njit(**HELPER)
def _invert_wide(work, n, factor):
    for begin in range(0, n, ROWS):
        i = min(begin, n - ROWS)
        for column in range(0, i, COLUMNS):
            at = min(column, n - COLUMNS)
            _row_of_inverse(work, ZERO, MATRIX + i, at, factor + at, MATRIX + at, i, i - at, factor + i)
        _inverse_of_corner(work, factor + i, MATRIX + i, i)
    for begin in range(0, n, ROWS):
        i = min(begin, n - ROWS)
        for column in range(0, i + ROWS, COLUMNS):
            _products(work, ZERO, factor + i, min(column, n - COLUMNS), MATRIX + i, MATRIX + i, i, n - i, ZERO)


@njit(**HELPER)
def _inverse_of_corner(work, row, target, i):
    """Write the inverse of the transposed corner of the factor."""
    u01, u02, u03 = work[row, i + 1], work[row, i + 2], work[row, i + 3]
    u12, u13, u23 = work[row + 1, i + 2], work[row + 1, i + 3], work[row + 2, i + 3]
    w00, w11, w22, w33 = work[row, i], work[row + 1, i + 1], work[row + 2, i + 2], work[row + 3, i + 3]
    w10, w21, w32 = -w11 * u01 * w00, -w22 * u12 * w11, -w33 * u23 * w22
    w20, w31 = -w22 * (u02 * w00 + u12 * w10), -w33 * (u13 * w11 + u23 * w21)
    w30 = -w33 * (u03 * w00 + u13 * w10 + u23 * w20)
    work[target, i] = w00
    work[target + 1, i], work[target + 1, i + 1] = w10, w11
    work[target + 2, i], work[target + 2, i + 1], work[target + 2, i + 2] = w20, w21, w22
    work[target + 3, i], work[target + 3, i + 1], work[target + 3, i + 2], work[target + 3, i + 3] = w30, w31, w32, w33


@njit(**HELPER)
def norm_of(work, row, n):
    total = 0.0
    for i in range(n):
        total += work[row, i] * work[row, i]
    return np.sqrt(total)


@njit(**HELPER)
def unpack(out, gradient, hessian):
    n_params = len(gradient)
    finite, narrow = np.isfinite(out[0]), n_params < WIDE
    k = np.uint64(2 + n_params)
    for i in range(n_params):
        gradient[i] = out[2 + i]
        finite &= np.isfinite(gradient[i])
        for j in range(np.uint64(i + 1)):
            hessian[i, j] = out[k + j]
            if narrow:
                hessian[j, i] = out[k + j]
            finite &= np.isfinite(out[k + j])
        k += np.uint64(i + 1)
    if not narrow:
        _mirror(hessian, ZERO, n_params)
    return finite


@njit(**HELPER)
def _mirror(matrix, first, n):
    """Copy the lower triangle of n rows to the upper, some columns at a time: rows are far from each other."""
    for begin in range(ZERO, n, COLUMNS):
        end = min(begin + COLUMNS, n)
        for j in range(end):
            for i in range(np.uint64(max(begin, j)), np.uint64(end)):
                matrix[first + j, i] = matrix[np.uint64(first) + i, j]


@njit(**HELPER)
def factorised(hessian, active, work, index):
    """Make the factor of the scaled block of the Hessian that is not active; False if it is not positive definite."""
    n = ZERO
    for i in range(len(active)):
        if not active[i]:
            if not hessian[i, i] > 0.0:
                return False
            work[SCALE, i] = 1.0 / np.sqrt(hessian[i, i])
            index[n] = i
            n += 1
    for r in range(n):
        i = index[r]
        for c in range(r, n):
            work[MATRIX + r, c] = hessian[i, index[c]] * work[SCALE, i] * work[SCALE, index[c]]
    return factorise(work, n, 0.0)


@njit(**HELPER)
def write_covariance(active, errordef, covariance, work, index):
    """2 errordef times the inverse of the Hessian of which `work` has the factor; returns the inflation."""
    n_params = len(active)
    n = ZERO
    for i in range(n_params):
        n += not active[i]
    _invert(work, n)
    inverse, inflation = MATRIX + n_params, 0.0
    _mirror(work, inverse, n)
    if n < n_params:
        fill(covariance, 0.0)
    for r in range(n):
        inflation += work[inverse + r, r]
        scale = work[SCALE, index[r]]
        if n == n_params:
            for c in range(n):
                covariance[r, c] = 2.0 * errordef * work[inverse + r, c] * (scale * work[SCALE, c])
        else:
            for c in range(n):
                value = 2.0 * errordef * work[inverse + r, c]
                covariance[index[r], index[c]] = value * (scale * work[SCALE, index[c]])
    return inflation
