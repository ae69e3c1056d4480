"""Vectors and matrices of one fit, as numba functions in loops."""

import numpy as np
from numba import njit

from engine.rules import PIVOT, WIDE

__all__ = [
    "CLIPPED",
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
    "unpack",
    "write_covariance",
]

# They are compiled into what calls them, and kept on disk with that: see `engine.newton_numba`.
HELPER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "error_model": "numpy", "nogil": True}
SUMS = {"fastmath": {"reassoc", "contract", "nsz"}, **HELPER}  # sums in vectors; NaN and infinity as ever

# The vectors and matrices of a fit are rows of one array `work`, and named by the first of them: an array that is cut
# out of another is counted, in atomic operations, which takes longer than the work on a few parameters, and each one
# that is passed is seven numbers. FREE and MOVING are flags; a step leads from THETA, between LOW and HIGH.
# MATRIX has n_params rows, and after it come as many of the Cholesky factor and of the inverse.
THETA, GRADIENT, LOW, HIGH, FREE, STEP, SCALE, MOVING, WRONG, B, P, W, WHOLE, CLIPPED, DIRECTION, MATRIX = map(
    np.int64, range(16)
)
# not plain integers, for each of which numba would compile the helpers anew
ZERO = np.int64(0)


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
    """Cholesky factor of MATRIX + shift * I, whose lower triangle is read; False where a pivot is not positive."""
    factor = MATRIX + work.shape[1]
    if n >= WIDE:
        return _factorise_wide(work, n, shift, factor)
    for j in range(n):
        total = work[MATRIX + j, j] + shift
        for k in range(j):
            total -= work[factor + j, k] * work[factor + j, k]
        if not total > PIVOT * (1.0 + shift):
            return False
        pivot = np.sqrt(total)
        work[factor + j, j] = pivot
        inverse = 1.0 / pivot
        for i in range(j + 1, n):
            total = work[MATRIX + i, j]
            for k in range(j):
                total -= work[factor + i, k] * work[factor + j, k]
            work[factor + i, j] = total * inverse
    return True


@njit(**SUMS)
def _factorise_wide(work, n, shift, factor):
    for j in range(n):
        total = work[MATRIX + j, j] + shift
        for k in range(j):
            total -= work[factor + j, k] * work[factor + j, k]
        if not total > PIVOT * (1.0 + shift):
            return False
        pivot = np.sqrt(total)
        work[factor + j, j] = pivot
        inverse = 1.0 / pivot
        left = j + 1 + (n - j - 1) // 4 * 4
        for i in range(j + 1, left, 4):
            # four rows share what is read of row j
            s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
            for k in range(j):
                x = work[factor + j, k]
                s0 += work[factor + i, k] * x
                s1 += work[factor + i + 1, k] * x
                s2 += work[factor + i + 2, k] * x
                s3 += work[factor + i + 3, k] * x
            work[factor + i, j] = (work[MATRIX + i, j] - s0) * inverse
            work[factor + i + 1, j] = (work[MATRIX + i + 1, j] - s1) * inverse
            work[factor + i + 2, j] = (work[MATRIX + i + 2, j] - s2) * inverse
            work[factor + i + 3, j] = (work[MATRIX + i + 3, j] - s3) * inverse
        for i in range(left, n):
            total = work[MATRIX + i, j]
            for k in range(j):
                total -= work[factor + i, k] * work[factor + j, k]
            work[factor + i, j] = total * inverse
    return True


@njit(**HELPER)
def solve_lower(work, n, b, x):
    """Solve factor x = b."""
    factor = MATRIX + work.shape[1]
    for i in range(n):
        total = work[b, i]
        for k in range(i):
            total -= work[factor + i, k] * work[x, k]
        work[x, i] = total / work[factor + i, i]


@njit(**HELPER)
def solve_upper(work, n, b, x):
    """Solve factor^T x = b, row by row of the factor; b is not kept."""
    factor = MATRIX + work.shape[1]
    for i in range(n - 1, -1, -1):
        found = work[b, i] / work[factor + i, i]
        work[x, i] = found
        for k in range(i):
            work[b, k] -= work[factor + i, k] * found


@njit(**HELPER)
def newton_point(work, n):
    """P = -(factor factor^T)^-1 B."""
    solve_lower(work, n, B, W)
    solve_upper(work, n, W, P)
    for i in range(n):
        work[P, i] = -work[P, i]


@njit(**SUMS)
def _invert(work, n):
    """The lower triangle of (factor factor^T)^-1, behind the factor; MATRIX becomes the inverse of the factor."""
    factor, result = MATRIX + work.shape[1], MATRIX + 2 * work.shape[1]
    for i in range(n):
        for c in range(n):
            work[MATRIX + i, c] = 0.0
            work[result + i, c] = 0.0
    for i in range(n):
        done = i // 4 * 4
        for k in range(0, done, 4):
            f0, f1, f2, f3 = (
                work[factor + i, k], work[factor + i, k + 1], work[factor + i, k + 2], work[factor + i, k + 3]
            )  # fmt: skip
            for c in range(k + 4):
                work[MATRIX + i, c] += (f0 * work[MATRIX + k, c] + f1 * work[MATRIX + k + 1, c]) + (
                    f2 * work[MATRIX + k + 2, c] + f3 * work[MATRIX + k + 3, c]
                )
        for k in range(done, i):
            for c in range(k + 1):
                work[MATRIX + i, c] += work[factor + i, k] * work[MATRIX + k, c]
        inverse = 1.0 / work[factor + i, i]
        for c in range(i):
            work[MATRIX + i, c] *= -inverse
        work[MATRIX + i, i] = inverse
    done = n // 4 * 4
    for k in range(0, done, 4):
        for r in range(k + 4):
            f0, f1, f2, f3 = (
                work[MATRIX + k, r], work[MATRIX + k + 1, r], work[MATRIX + k + 2, r], work[MATRIX + k + 3, r]
            )  # fmt: skip
            for c in range(r + 1):
                work[result + r, c] += (f0 * work[MATRIX + k, c] + f1 * work[MATRIX + k + 1, c]) + (
                    f2 * work[MATRIX + k + 2, c] + f3 * work[MATRIX + k + 3, c]
                )
    for k in range(done, n):
        for r in range(k + 1):
            for c in range(r + 1):
                work[result + r, c] += work[MATRIX + k, r] * work[MATRIX + k, c]


@njit(**HELPER)
def norm_of(work, row, n):
    total = 0.0
    for i in range(n):
        total += work[row, i] * work[row, i]
    return np.sqrt(total)


@njit(**HELPER)
def unpack(out, gradient, hessian):
    n_params = len(gradient)
    finite = np.isfinite(out[0])
    k = 2 + n_params
    for i in range(n_params):
        gradient[i] = out[2 + i]
        finite &= np.isfinite(gradient[i])
        for j in range(i + 1):
            hessian[i, j] = out[k]
            hessian[j, i] = out[k]
            finite &= np.isfinite(out[k])
            k += 1
    return finite


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
        for c in range(r + 1):
            work[MATRIX + r, c] = hessian[i, index[c]] * work[SCALE, i] * work[SCALE, index[c]]
    return factorise(work, n, 0.0)


@njit(**HELPER)
def write_covariance(active, errordef, covariance, work, index):
    """2 errordef times the inverse of the Hessian of which `work` has the factor; returns the inflation."""
    n_params = len(active)
    n = ZERO
    for i in range(n_params):
        n += not active[i]
    if n < n_params:
        fill(covariance, 0.0)
    _invert(work, n)
    inverse, inflation = MATRIX + 2 * n_params, 0.0
    for r in range(n):
        i = index[r]
        inflation += work[inverse + r, r]
        for c in range(r + 1):
            j = index[c]
            value = 2.0 * errordef * work[inverse + r, c] * work[SCALE, i] * work[SCALE, j]
            covariance[i, j] = value
            covariance[j, i] = value
    return inflation
