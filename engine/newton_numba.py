"""The trust-region Newton fit as machine code: every toy in its own thread, no toy waits for another.

The algorithm is the one of `engine.newton`, in loops instead of array operations; `tests/engine/test_newton.py` holds
the two against each other. Where there are many parameters and a gradient is much cheaper than a Hessian, quasi-Newton
steps lead from the start to where Newton begins (`approach_toys`): another way to the same minimum and the same proof.
All helpers stand in this file because numba's cache on disk notices changes of one file only.
"""

import functools
from collections.abc import Callable

import numpy as np
from numba import njit, prange, types
from numba.core.sigutils import normalize_signature

from kernels.translate import KERNEL_SIGNATURE

__all__ = ["approach_toys", "evaluate_toys", "fit_toys"]

# numba takes no members of an enumeration, and notices changes of its own file only: here stand the integers of
# `engine.status.Status` (a test compares them) and the constants of the algorithm, which `engine.newton` imports.
CONVERGED, MAX_STEPS, NONFINITE, HESSIAN_NOT_POSDEF, BAD_DATA, STALLED, UNBOUNDED = range(7)
RUNNING = -1
EDM_GOAL = 1e-13  # stop at this estimated distance to the minimum, in units of errordef
ROUNDING = 8 * np.finfo(np.float64).eps  # times the sum of |term|: what the rounding of the sums may do
NEAR = 1e-3  # below this predicted gain, in units of errordef, a step may be judged by its gradient
CHI_SQUARE = 1.0  # errordef of a chi-square, whose errors may be but nominal, while those of a likelihood are not
AT_REST = 1e-8  # largest last step, relative to its parameter, where errordef is larger than a whole chi-square
PIVOT = 1e-14  # smallest pivot of a unit-diagonal matrix that counts as positive definite
ACCEPT = 1e-4  # smallest ratio of actual and predicted gain of an accepted step
FIRST_RADIUS = 4.0  # first radius where the Hessian is not positive definite, in units of |H_ii|^(-1/2)
SMALLEST_RADIUS = 1e-15
RUNAWAY = 1e15  # a parameter that has grown by this factor runs away
RADIUS_TOLERANCE = 0.1
MAX_SHIFTS = 40
LEAST_SHIFT = 1e-3  # of a step that crosses limits and is bounded, in units of the diagonal
ENOUGH = 0.1  # part of the gain of such a step with which one of negative curvature is preferred
CLOSE, PART = 1.0, 0.5  # of a limit, and of the way to one that is not
PATIENCE, MOST_ROUNDS = 3, 40  # in the search for who is on a limit
PULL = 1e-12  # of a parameter on a limit, in terms of what it is the sum of, that is none
WIDE = 8  # from so many parameters on, loops are in vectors
# the orders of `kernels.program` (a test compares them)
FIRST, SECOND, EXPECTED = 1, 2, 3
MOST_APPROACH, MOST_PAIRS = 20, 12  # evaluations and steps of the approach
CLOSER = 0.5  # by which the gain to be expected must fall in each of them
SAFE = 0.25  # part of the goal at which the approach ends: its gains are estimates

_ENTRY = {"error_model": "numpy", "cache": True, "nogil": True}
_HELPER = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **_ENTRY}  # called from here only
_SUMS = {"fastmath": {"reassoc", "contract", "nsz"}, **_HELPER}  # sums in vectors; NaN and infinity as ever


# Loops, because an assignment to a slice compiles the text of its error message too, which takes seconds.
@njit(**_HELPER)
def _copy(source, target):
    for i in range(len(source)):
        target[i] = source[i]


@njit(**_HELPER)
def _copy_matrix(source, target):
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            target[i, j] = source[i, j]


@njit(**_HELPER)
def _differ(a, b):
    different = False
    for i in range(len(a)):
        different |= a[i] != b[i]
    return different


@njit(**_HELPER)
def _fill(matrix, value):
    for i in range(matrix.shape[0]):
        for j in range(matrix.shape[1]):
            matrix[i, j] = value


# The vectors and matrices of a fit are rows of one array `work`, and named by the first of them: an array that is cut
# out of another is counted, in atomic operations, which takes longer than the work on a few parameters, and each one
# that is passed is seven numbers. FREE and MOVING are flags; a step leads from THETA, between LOW and HIGH.
# MATRIX has n_params rows, and after it come as many of the Cholesky factor and of the inverse.
THETA, GRADIENT, LOW, HIGH, FREE, STEP, SCALE, MOVING, WRONG, B, P, W, WHOLE, CLIPPED, DIRECTION, MATRIX = map(
    np.int64, range(16)
)
# not plain integers, for each of which numba would compile the helpers anew
ZERO = np.int64(0)


@njit(**_HELPER)
def _factorise(work, n, shift):
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


@njit(**_SUMS)
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


@njit(**_HELPER)
def _forward(work, n, b, x):
    """Solve factor x = b."""
    factor = MATRIX + work.shape[1]
    for i in range(n):
        total = work[b, i]
        for k in range(i):
            total -= work[factor + i, k] * work[x, k]
        work[x, i] = total / work[factor + i, i]


@njit(**_HELPER)
def _backward(work, n, b, x):
    """Solve factor^T x = b, row by row of the factor; b is not kept."""
    factor = MATRIX + work.shape[1]
    for i in range(n - 1, -1, -1):
        found = work[b, i] / work[factor + i, i]
        work[x, i] = found
        for k in range(i):
            work[b, k] -= work[factor + i, k] * found


@njit(**_HELPER)
def _newton(work, n):
    """P = -(factor factor^T)^-1 B."""
    _forward(work, n, B, W)
    _backward(work, n, W, P)
    for i in range(n):
        work[P, i] = -work[P, i]


@njit(**_SUMS)
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


@njit(**_HELPER)
def _norm(work, row, n):
    total = 0.0
    for i in range(n):
        total += work[row, i] * work[row, i]
    return np.sqrt(total)


@njit(**_HELPER)
def _shifted(work, n, radius, posdef):
    """Minimise B.p + p.MATRIX.p / 2 over the ball |p| = radius (More and Sorensen 1983); P is the result.

    Of MATRIX the lower triangle is read; if it is positive definite, its factor is there. Returns the multiplier.
    """
    if radius == np.inf:
        radius = FIRST_RADIUS
    size = 0.0
    for i in range(n):
        row = 0.0
        for j in range(n):
            row += abs(work[MATRIX + max(i, j), min(i, j)])
        size = max(size, row)
    # a little above Gershgorin's bound: there the shifted matrix has pivots that count as positive
    low, high = 0.0, _norm(work, B, n) / radius + (1.0 + 1e-6) * size + 1e-12
    shift = 1e-3 * high if not posdef else 0.0
    factorised = posdef
    for _ in range(MAX_SHIFTS):
        if shift > 0.0:
            factorised = _factorise(work, n, shift)
        if not factorised:
            low = max(low, shift)
        else:
            _newton(work, n)
            length = _norm(work, P, n)
            if abs(length - radius) <= RADIUS_TOLERANCE * radius:
                break
            if length > radius:
                low = max(low, shift)
            else:
                high = min(high, shift)
            if high - low <= 1e-6 * high:
                break
            _forward(work, n, P, W)
            slope = _norm(work, W, n)
            if slope > 0.0:
                shift += (length / slope) ** 2 * (length - radius) / radius
            else:
                shift = low
        if not factorised or not (low < shift < high):
            shift = max(np.sqrt(low * high), low + 1e-3 * (high - low))
    if not factorised:
        shift = high
        _factorise(work, n, shift)
        _newton(work, n)
    length = _norm(work, P, n)
    if not posdef and length < (1.0 - RADIUS_TOLERANCE) * radius:
        # the hard case: the gradient has no part along the direction of negative curvature
        for i in range(n):
            work[W, i] = 1.0 + 0.1 * i
        for _ in range(6):
            _forward(work, n, W, DIRECTION)
            _backward(work, n, DIRECTION, W)
            scale = _norm(work, W, n)
            for i in range(n):
                work[W, i] /= scale
        along = 0.0
        for i in range(n):
            along += work[B, i] * work[W, i]
        add = np.sqrt(radius * radius - length * length)
        if along > 0.0:
            add = -add
        for i in range(n):
            work[P, i] += add * work[W, i]
        length = _norm(work, P, n)
        if length > radius:
            for i in range(n):
                work[P, i] *= radius / length
    return shift


@njit(**_HELPER)
def _gain(hessian, work, step):
    """What the quadratic model falls by along a step, which is a row."""
    n_params = work.shape[1]
    if n_params >= WIDE:
        return _gain_wide(hessian, work, step)
    gain = 0.0
    for i in range(n_params):
        curved = 0.0
        for j in range(n_params):
            curved += hessian[i, j] * work[step, j]
        gain -= work[step, i] * (work[GRADIENT, i] + 0.5 * curved)
    return gain


@njit(**_SUMS)
def _gain_wide(hessian, work, step):
    gain = 0.0
    for i in range(work.shape[1]):
        curved = 0.0
        for j in range(work.shape[1]):
            curved += hessian[i, j] * work[step, j]
        gain -= work[step, i] * (work[GRADIENT, i] + 0.5 * curved)
    return gain


@njit(**_HELPER)
def _begin(work):
    """All but the parameters that a limit holds may MOVE, and nobody has yet; the norm of their scaled gradient."""
    slope = 0.0
    for i in range(work.shape[1]):
        work[STEP, i] = 0.0
        at_lower = work[THETA, i] <= work[LOW, i] and work[GRADIENT, i] > 0.0
        at_upper = work[THETA, i] >= work[HIGH, i] and work[GRADIENT, i] < 0.0
        work[MOVING, i] = work[FREE, i] if not at_lower and not at_upper else 0.0
        if work[MOVING, i] == 1.0:
            slope += (work[GRADIENT, i] * work[SCALE, i]) ** 2
    return np.sqrt(slope)


@njit(**_HELPER)
def _block(hessian, work, index):
    """MATRIX and B of the parameters that MOVE, given the steps of the others; returns their number."""
    n_params, n = work.shape[1], ZERO
    for i in range(n_params):
        if work[MOVING, i] == 1.0:
            index[n] = i
            n += 1
    for r in range(n):
        i = index[r]
        total = work[GRADIENT, i]
        if n < n_params:
            for j in range(n_params):
                if work[MOVING, j] == 0.0:
                    total += hessian[i, j] * work[STEP, j]
        work[B, r] = total * work[SCALE, i]
        if n == n_params:
            for c in range(r + 1):
                work[MATRIX + r, c] = hessian[r, c] * work[SCALE, r] * work[SCALE, c]
        else:
            for c in range(r + 1):
                work[MATRIX + r, c] = hessian[i, index[c]] * work[SCALE, i] * work[SCALE, index[c]]
    return n


@njit(**_HELPER)
def _pulled_away(hessian, shift, i, from_below, work):
    """Whether the model falls from a limit on which parameter i is."""
    pull, size = work[GRADIENT, i] + shift * work[STEP, i] / work[SCALE, i] ** 2, abs(work[GRADIENT, i])
    for j in range(work.shape[1]):
        pull += hessian[i, j] * work[STEP, j]
        size += abs(hessian[i, j] * work[STEP, j])
    return pull < -PULL * size if from_below else pull > PULL * size


@njit(**_HELPER)
def _within_box(hessian, shift, work, index):
    """Minimise the quadratic model, with a shift, within the limits; begins with those who MOVE.

    Whoever crosses a limit is put onto it, and whoever is pulled away from it is let go, until all are where they
    should be; only the last of them at a time where their number does not fall, which comes to an end for any positive
    definite matrix (Judice & Pires, Comput. Oper. Res. 21 (1994) 587).

    Returns (whether the first block is positive definite, whether the minimum was found).
    """
    n_params = work.shape[1]
    fewest, patience = n_params + 1, PATIENCE
    for round_ in range(MOST_ROUNDS + 2 * n_params):
        n = _block(hessian, work, index)
        if not _factorise(work, n, shift):
            return round_ > 0, False
        _newton(work, n)
        for r in range(n):
            work[STEP, index[r]] = work[P, r] * work[SCALE, index[r]]
        n_wrong, last = ZERO, ZERO
        for i in range(n_params):
            below, above, step = work[LOW, i] - work[THETA, i], work[HIGH, i] - work[THETA, i], work[STEP, i]
            if work[MOVING, i] == 1.0:
                wrong = (step < below) | (step > above)
            else:
                wrong = work[FREE, i] == 1.0 and _pulled_away(hessian, shift, i, step <= below, work)
            work[WRONG, i] = wrong
            if wrong:
                n_wrong += 1
                last = i
        if n_wrong == 0:
            return True, True
        patience = PATIENCE if n_wrong < fewest else patience - 1
        fewest = min(fewest, n_wrong)
        for i in range(n_params):
            if work[WRONG, i] == 1.0 and (patience > 0 or i == last):
                if work[MOVING, i] == 1.0:
                    below = work[LOW, i] - work[THETA, i]
                    work[STEP, i] = below if work[STEP, i] < below else work[HIGH, i] - work[THETA, i]
                work[MOVING, i] = 1.0 - work[MOVING, i]
    return True, False


@njit(**_HELPER)
def _length(work):
    total = 0.0
    for i in range(work.shape[1]):
        total += (work[STEP, i] / work[SCALE, i]) ** 2
    return np.sqrt(total)


@njit(**_HELPER)
def _propose(bounded, hessian, radius, work, index):
    """Best step within the trust region and the limits.

    `bounded` is `_bounded` as a pointer: what few steps need is compiled by itself, and these stay small.
    Returns (predicted gain, scaled length, shift, posdef of the free block, gradient norm). Where the shift is 0 the
    step leads to the minimum of the quadratic model within the limits.
    """
    for i in range(work.shape[1]):
        diagonal = abs(hessian[i, i])
        work[SCALE, i] = 1.0 / np.sqrt(diagonal) if diagonal > 0.0 else 1.0
    slope, shift = _begin(work), 0.0
    posdef, found = _within_box(hessian, 0.0, work, index)
    length = _length(work)
    if not (found and length <= radius):
        shift = bounded(hessian, radius, posdef, work, index)
        length = _length(work)
    return _gain(hessian, work, STEP), length, shift, posdef, slope


@njit(**_HELPER)
def _walls(hessian, lower_limit, upper_limit, work):
    """How far a step may go: to a limit that is CLOSE, in units of |H_ii|^(-1/2), else PART of the way there."""
    for i in range(work.shape[1]):
        theta, lower, upper, curvature = work[THETA, i], lower_limit[i], upper_limit[i], abs(hessian[i, i])
        below, above = theta - lower, upper - theta
        work[LOW, i] = lower if below * below * curvature <= CLOSE * CLOSE else theta - PART * below
        work[HIGH, i] = upper if above * above * curvature <= CLOSE * CLOSE else theta + PART * above


def _bounded(hessian, radius, posdef, work, index):
    """The step of `_propose` where the trust region bounds it, or the Hessian is not definite; returns the shift."""
    n_params = work.shape[1]
    _begin(work)
    n = _block(hessian, work, index)
    shift = _shifted(work, n, radius, posdef and _factorise(work, n, 0.0))
    for r in range(n):
        work[STEP, index[r]] = work[P, r] * work[SCALE, index[r]]
    fraction = 1.0
    for i in range(n_params):
        step = work[STEP, i]
        work[WHOLE, i] = step
        work[CLIPPED, i] = max(work[LOW, i] - work[THETA, i], min(step, work[HIGH, i] - work[THETA, i]))
        if work[CLIPPED, i] != step:
            fraction = min(fraction, work[CLIPPED, i] / step)
    if fraction == 1.0:
        return max(shift, LEAST_SHIFT)
    # from some shift on it is the way along the gradient, which never fails
    shift, most = max(shift, LEAST_SHIFT), radius if radius < np.inf else FIRST_RADIUS
    for _ in range(MAX_SHIFTS):
        _begin(work)
        _, found = _within_box(hessian, shift, work, index)
        if found and _length(work) <= (1.0 + RADIUS_TOLERANCE) * most:
            break
        shift *= 10.0
    if not posdef:
        # from a saddle point only negative curvature leads away: along the limits, or as far as the first
        for i in range(n_params):
            work[WHOLE, i] *= fraction
        gain, other = _gain(hessian, work, CLIPPED), _gain(hessian, work, WHOLE)
        if max(gain, other) > ENOUGH * _gain(hessian, work, STEP):
            best = CLIPPED if gain > other else WHOLE
            for i in range(n_params):
                work[STEP, i] = work[best, i]
    return shift


@njit(**_HELPER)
def _move(theta, step, lower_limit, upper_limit, target):
    """Take a step, onto a limit itself and not next to it: theta + (limit - theta) may be another number."""
    for i in range(len(theta)):
        if step[i] <= lower_limit[i] - theta[i]:
            target[i] = lower_limit[i]
        elif step[i] >= upper_limit[i] - theta[i]:
            target[i] = upper_limit[i]
        else:
            target[i] = theta[i] + step[i]


@njit(**_HELPER)
def _unit(errordef, absolute):
    """The scale of a cost; where errors are but nominal, errordef may exceed all of it, and tells little."""
    return min(errordef, absolute) if errordef == CHI_SQUARE else errordef


@njit(**_HELPER)
def _at_rest(theta, step):
    rest = True
    for i in range(len(theta)):
        rest &= abs(step[i]) <= AT_REST * abs(theta[i])
    return rest


@njit(**_HELPER)
def _unpack(out, gradient, hessian):
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


@njit(**_HELPER)
def _factorised(hessian, active, work, index):
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
    return _factorise(work, n, 0.0)


@njit(**_HELPER)
def _covariance(active, errordef, covariance, work, index):
    """2 errordef times the inverse of the Hessian of which `work` has the factor; returns the inflation."""
    n_params = len(active)
    n = ZERO
    for i in range(n_params):
        n += not active[i]
    if n < n_params:
        _fill(covariance, 0.0)
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


@njit(**_SUMS)
def _apply(metric, vector, result):
    """result = metric vector, of a symmetric matrix."""
    for i in range(len(vector)):
        total = 0.0
        for j in range(len(vector)):
            total += metric[i, j] * vector[j]
        result[i] = total


@njit(**_SUMS)
def _dot(a, b):
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(**_SUMS)
def _add(factor, a, b):
    """b += factor a"""
    for i in range(len(a)):
        b[i] += factor * a[i]


@njit(**_HELPER)
def _downhill(metric, gradient, steps, changes, weights, n_pairs, work, step):
    """The step of BFGS from the pairs of steps and changes of the gradient, of which `metric` is the first inverse.

    Nocedal & Wright, algorithm 7.4. Returns what a step of this kind gains.
    """
    rest = work[B]
    _copy(gradient, rest)
    for k in range(n_pairs - 1, -1, -1):
        weights[k] = _dot(steps[k], rest) / _dot(steps[k], changes[k])
        _add(-weights[k], changes[k], rest)
    _apply(metric, rest, step)
    for k in range(n_pairs):
        back = _dot(changes[k], step) / _dot(steps[k], changes[k])
        _add(weights[k] - back, steps[k], step)
    for i in range(len(step)):
        step[i] = -step[i]
    return -0.5 * _dot(step, gradient)


@njit(**_HELPER)
def _hold(metric, i):
    """Make the inverse of a matrix that of its block without parameter i."""
    pivot = 1.0 / metric[i, i]
    for j in range(len(metric)):
        if j != i:
            _add(-metric[j, i] * pivot, metric[i], metric[j])
    for j in range(len(metric)):
        metric[i, j] = 0.0
        metric[j, i] = 0.0


@njit(**_HELPER)
def _crossing(theta, step, lower_limit, upper_limit, metric):
    """The first parameter of the metric that would leave its limits, or -1."""
    for i in range(len(theta)):
        if metric[i, i] > 0.0 and (theta[i] + step[i] < lower_limit[i] or theta[i] + step[i] > upper_limit[i]):
            return i
    return -1


@njit(**_HELPER)
def _slopes(out, gradient):
    """Copy the gradient; whether it and the value are finite."""
    finite = np.isfinite(out[0])
    for i in range(len(gradient)):
        gradient[i] = out[2 + i]
        finite &= np.isfinite(gradient[i])
    return finite


@njit(**_HELPER)
def _approach(
    kernel, rows, shared, measured, begin, end, out, theta, lower_limit, upper_limit, errordef, edm_goal, common, own,
    steps, changes, weights, gradient, trial, trial_gradient, step, work,
):  # fmt: skip
    """`engine.approach`, from `theta` and `common`, the inverse of the expected Hessian there; all behind is memory.

    `theta` is where it ends; returns the number of evaluations.
    """
    kernel(theta, rows, shared, measured, begin, end, FIRST, out)
    nfev = 1
    n_pairs, metric = ZERO, common
    value, absolute = out[0], out[1]
    if not _slopes(out, gradient):
        return nfev
    gain = _downhill(metric, gradient, steps, changes, weights, n_pairs, work, step)
    while nfev < MOST_APPROACH and n_pairs < MOST_PAIRS:
        unit = _unit(errordef, absolute)
        if not gain > max(SAFE * edm_goal * unit, ROUNDING * absolute):
            break
        i = _crossing(theta, step, lower_limit, upper_limit, metric)
        onto = i >= 0
        if onto:
            if metric is common:
                _copy_matrix(common, own)
                metric = own
            n_pairs = ZERO
            _downhill(metric, gradient, steps, changes, weights, n_pairs, work, step)
            i = _crossing(theta, step, lower_limit, upper_limit, metric)
        while i >= 0:
            wanted = (lower_limit[i] if step[i] < 0.0 else upper_limit[i]) - theta[i]
            _add((wanted - step[i]) / metric[i, i], metric[i], step)
            step[i] = wanted
            _hold(metric, i)
            i = _crossing(theta, step, lower_limit, upper_limit, metric)
        _move(theta, step, lower_limit, upper_limit, trial)
        kernel(trial, rows, shared, measured, begin, end, FIRST, out)
        nfev += 1
        if not _slopes(out, trial_gradient):
            break
        rounding = 100.0 * ROUNDING * absolute
        near = max(NEAR * unit, rounding)
        if gain > near and value - out[0] < ACCEPT * gain:
            break
        if not onto:
            for i in range(len(theta)):
                steps[n_pairs, i] = trial[i] - theta[i]
                changes[n_pairs, i] = trial_gradient[i] - gradient[i]
            if not _dot(steps[n_pairs], changes[n_pairs]) > 0.0:
                break
            n_pairs += 1
        left = _downhill(metric, trial_gradient, steps, changes, weights, n_pairs, work, step)
        if not (left < gain or onto):
            break
        quick = left < CLOSER * gain or onto
        gain, value, absolute = left, out[0], out[1]
        _copy(trial, theta)
        _copy(trial_gradient, gradient)
        if not quick:
            break
    return nfev


_KERNEL = types.FunctionType(types.void(*normalize_signature(KERNEL_SIGNATURE)[0]))
_TABLE, _NUMBERS = types.f8[:, ::1], types.i8[::1]
_DATA = (_KERNEL, types.i8, _TABLE, _TABLE, _TABLE, _NUMBERS, _NUMBERS)
_BOUNDED = types.f8(_TABLE, types.f8, types.b1, _TABLE, _NUMBERS)
_BOX = (types.f8[::1], types.f8[::1], types.b1[::1])
_RESULTS = (_TABLE, types.f8[:, :, ::1], _TABLE, types.b1[:, ::1])


def _fit_some(
    first, last, bounded, kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit, upper_limit, free,
    errordef, edm_goal, max_steps, values, covariance, fit, at_limit,
):  # fmt: skip
    """Fit some toys one after the other, in memory that is taken once."""
    n_params = start.shape[1]
    out = np.zeros(2 + n_params + n_params * (n_params + 1) // 2 + memory)
    trial, trial_gradient, origin = np.empty(n_params), np.empty(n_params), np.empty(n_params)
    hessian, trial_hessian = np.empty((n_params, n_params)), np.empty((n_params, n_params))
    work = np.empty((MATRIX + 3 * n_params, n_params))
    theta, gradient, step = work[THETA], work[GRADIENT], work[STEP]
    index = np.empty(n_params, np.int64)
    active = np.empty(n_params, np.bool_)
    for i in range(n_params):
        work[FREE, i] = 1.0 if free[i] else 0.0
    for t in range(first, last):
        k = toys[t]
        measured, begin, end = aux[k], offsets[k], offsets[k + 1]
        inverse, outward = covariance[t], at_limit[t]
        _copy(start[t], theta)
        _copy(start[t], origin)
        kernel(theta, rows, shared, measured, begin, end, SECOND, out)
        nfev = 1
        value, absolute = out[0], out[1]
        status = RUNNING
        edm, posdef = np.nan, False
        if not _unpack(out, gradient, hessian):
            status, value = NONFINITE, np.nan
        radius = np.inf
        at_end = False
        while status == RUNNING:
            _walls(hessian, lower_limit, upper_limit, work)
            gain, length, shift, posdef, slope = _propose(bounded, hessian, radius, work, index)
            if not posdef and radius == np.inf:
                radius = FIRST_RADIUS
            if shift == 0.0:
                edm = gain
            unit = _unit(errordef, absolute)
            at_end = at_end or length <= SMALLEST_RADIUS or _at_rest(theta, step)
            goal = edm_goal * (errordef if at_end else unit)
            if gain <= max(goal, ROUNDING * absolute):
                if posdef and shift == 0.0:
                    status = CONVERGED
                    break
                if not posdef:
                    status = HESSIAN_NOT_POSDEF
                    edm = gain
                    break
            if nfev >= max_steps:
                status = MAX_STEPS
                break
            if not length > SMALLEST_RADIUS:
                status = STALLED
                break
            _move(theta, step, lower_limit, upper_limit, trial)
            kernel(trial, rows, shared, measured, begin, end, SECOND, out)
            nfev += 1
            finite = _unpack(out, trial_gradient, trial_hessian)
            actual = value - out[0]
            accepted = False
            ratio = 0.0
            if finite:
                rounding = 100.0 * ROUNDING * absolute
                near = max(NEAR * unit, rounding)
                if gain > rounding:
                    ratio = actual / gain
                if gain <= near and actual > -near:
                    trial_slope = 0.0
                    for i in range(n_params):
                        outward_lower = trial[i] <= lower_limit[i] and trial_gradient[i] > 0.0
                        outward_upper = trial[i] >= upper_limit[i] and trial_gradient[i] < 0.0
                        if free[i] and not outward_lower and not outward_upper:
                            trial_slope += trial_gradient[i] ** 2 / max(abs(hessian[i, i]), 1e-300)
                    if np.sqrt(trial_slope) < slope:
                        ratio = 1.0
                accepted = ratio > ACCEPT
            at_end = not accepted and gain <= edm_goal * errordef and (shift == 0.0 or not posdef)
            if at_end:
                continue
            if ratio < 0.25:
                radius = 0.25 * length
            elif ratio > 0.75 and length > 0.5 * radius:
                radius = 2.0 * radius
            if accepted:
                value, absolute = out[0], out[1]
                _copy(trial, theta)
                _copy(trial_gradient, gradient)
                hessian, trial_hessian = trial_hessian, hessian
                for i in range(n_params):
                    if free[i] and abs(theta[i]) > RUNAWAY * max(abs(origin[i]), 1.0):
                        status = UNBOUNDED
                if value < -1e290:
                    status = UNBOUNDED
        if status == CONVERGED:
            # the last Newton step is taken, and its result is known well enough not to be evaluated
            for i in range(n_params):
                total = 0.0
                for j in range(n_params):
                    total += hessian[i, j] * step[j]
                trial_gradient[i] = gradient[i] + total
            _move(theta, step, lower_limit, upper_limit, theta)
            value -= gain
            _copy(trial_gradient, gradient)
        # the last step has factorised the Hessian of the parameters that moved
        known = status == CONVERGED
        for i in range(n_params):
            outward_lower = theta[i] <= lower_limit[i] and gradient[i] > 0.0
            outward_upper = theta[i] >= upper_limit[i] and gradient[i] < 0.0
            outward[i] = free[i] and (outward_lower or outward_upper)
            active[i] = outward[i] or not free[i]
            known = known and active[i] == (work[MOVING, i] == 0.0)
        posdef = known or (status != NONFINITE and _factorised(hessian, active, work, index))
        if posdef:
            inflation = _covariance(active, errordef, inverse, work, index)
        else:
            _fill(inverse, np.nan)
            inflation = np.nan
            if status == CONVERGED:
                status = HESSIAN_NOT_POSDEF
        _copy(theta, values[t])
        fit[t, 0], fit[t, 1], fit[t, 2], fit[t, 3] = value, edm, status, nfev
        fit[t, 4], fit[t, 5] = 1.0 if posdef else 0.0, inflation


def _approach_some(
    first, last, kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit, upper_limit, free, errordef,
    edm_goal, values, nfev,
):  # fmt: skip
    n_params = start.shape[1]
    out = np.zeros(2 + n_params + n_params * (n_params + 1) // 2 + memory)
    trial, gradient, trial_gradient = np.empty(n_params), np.empty(n_params), np.empty(n_params)
    step, weights, active = np.empty(n_params), np.empty(MOST_PAIRS), np.empty(n_params, np.bool_)
    steps, changes = np.empty((MOST_PAIRS, n_params)), np.empty((MOST_PAIRS, n_params))
    hessian, common, own = (
        np.empty((n_params, n_params)), np.empty((n_params, n_params)), np.empty((n_params, n_params))
    )  # fmt: skip
    work = np.empty((MATRIX + 3 * n_params, n_params))
    index = np.empty(n_params, np.int64)
    for i in range(n_params):
        active[i] = not free[i]
    usable = False
    for t in range(first, last):
        k = toys[t]
        measured, begin, end, theta = aux[k], offsets[k], offsets[k + 1], values[t]
        _copy(start[t], theta)
        nfev[t] = 0
        if t == first or _differ(start[t], start[t - 1]):
            kernel(theta, rows, shared, measured, begin, end, EXPECTED, out)
            _unpack(out, gradient, hessian)
            usable = _factorised(hessian, active, work, index)
            if usable:
                _covariance(active, 0.5, common, work, index)
        if usable:
            nfev[t] = _approach(
                kernel, rows, shared, measured, begin, end, out, theta, lower_limit, upper_limit, errordef, edm_goal,
                common, own, steps, changes, weights, gradient, trial, trial_gradient, step, work,
            )  # fmt: skip


def _evaluate_some(first, last, kernel, memory, rows, shared, aux, offsets, toys, theta, results):
    n_outputs = results.shape[1]
    out = np.zeros(n_outputs + memory)
    for t in range(first, last):
        k = toys[t]
        kernel(theta[t], rows, shared, aux[k], offsets[k], offsets[k + 1], SECOND, out)
        for i in range(n_outputs):
            results[t, i] = out[i]


# One call per turn, through a pointer, so that nothing is compiled twice: array expressions inside a parallel function
# would cost seconds of compilation and most of the scaling.
def _fit_toys(
    some, together, bounded, kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit, upper_limit, free,
    errordef, edm_goal, max_steps, values, covariance, fit, at_limit,
):  # fmt: skip
    n = len(toys)
    for block in prange((n + together - 1) // together):
        first = block * together
        some(
            first, min(first + together, n), bounded, kernel, memory, rows, shared, aux, offsets, toys, start,
            lower_limit, upper_limit, free, errordef, edm_goal, max_steps, values, covariance, fit, at_limit,
        )  # fmt: skip


def _approach_toys(
    some, together, kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit, upper_limit, free, errordef,
    edm_goal, values, nfev,
):  # fmt: skip
    n = len(toys)
    for block in prange((n + together - 1) // together):
        first = block * together
        some(
            first, min(first + together, n), kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit,
            upper_limit, free, errordef, edm_goal, values, nfev,
        )  # fmt: skip


def _evaluate_toys(some, together, kernel, memory, rows, shared, aux, offsets, toys, theta, results):
    n = len(toys)
    for block in prange((n + together - 1) // together):
        first = block * together
        some(first, min(first + together, n), kernel, memory, rows, shared, aux, offsets, toys, theta, results)


def _in_parallel(some: Callable, toys: Callable, arguments: tuple) -> Callable:
    """`toys` with the compiled `some`, which it gives the first toy, the one behind the last, and the arguments."""
    signature = types.void(types.i8, types.i8, *arguments)
    compiled = njit(signature, **_ENTRY)(some)
    given = (types.FunctionType(signature), types.i8, *arguments)
    return functools.partial(njit(types.void(*given), parallel=True, **_ENTRY)(toys), compiled)


@functools.cache
def fit_toys() -> Callable:
    """The compiled fit of many toys, one after the other in each thread.

    It is called with (together, kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit, upper_limit,
    free, errordef, edm_goal, max_steps) and the arrays (values, covariance, fit, at_limit) for the results. A turn of
    a thread takes `together` toys, in the same memory; `memory` is that of `kernels.translate.traits_of`. `toys` are
    the numbers of the toys to fit; `start` and the results have a row for each; `fit` holds
    (fval, edm, status, nfev, posdef, inflation), as `engine.drivers.Fits` has them.
    """
    bounded = njit(_BOUNDED, **_ENTRY)(_bounded)
    given = (types.FunctionType(_BOUNDED), *_DATA, _TABLE, *_BOX, types.f8, types.f8, types.i8, *_RESULTS)
    fit = _in_parallel(_fit_some, _fit_toys, given)
    return lambda together, *arguments: fit(together, bounded, *arguments)


@functools.cache
def approach_toys() -> Callable:
    """The compiled approach of many toys, from where Newton goes on: for kernels with a cheap gradient.

    It is called with what `fit_toys` is up to `edm_goal`, and (values, nfev) for the results.
    """
    given = (*_DATA, _TABLE, *_BOX, types.f8, types.f8, _TABLE, _NUMBERS)
    return _in_parallel(_approach_some, _approach_toys, given)


@functools.cache
def evaluate_toys() -> Callable:
    """The compiled evaluation of many toys, called with what `fit_toys` is up to `toys`, theta and the outputs."""
    return _in_parallel(_evaluate_some, _evaluate_toys, (*_DATA, _TABLE, _TABLE))
