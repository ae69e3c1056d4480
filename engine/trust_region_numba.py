"""The step of `engine.trust_region` as numba functions in loops."""

import numpy as np
from numba import njit

from engine.matrices_numba import (
    CLIPPED,
    CURVED,
    DIRECTION,
    FREE,
    GRADIENT,
    HELPER,
    HIGH,
    LOW,
    MATRIX,
    MOVING,
    SCALE,
    STEP,
    SUMS,
    THETA,
    WHOLE,
    WRONG,
    ZERO,
    B,
    P,
    W,
    factorise,
    newton_point,
    norm_of,
    solve_lower,
    solve_upper,
)
from engine.rules import (
    AT_REST,
    CHI_SQUARE,
    CLOSE,
    ENOUGH,
    FIRST_RADIUS,
    LEAST_SHIFT,
    MAX_SHIFTS,
    MOST_ROUNDS,
    PART,
    PATIENCE,
    PIVOT,
    PULL,
    RADIUS_TOLERANCE,
    WIDE,
)

__all__ = [
    "at_rest",
    "bounded_step",
    "move",
    "propose",
    "scale_of_cost",
    "walls",
]


@njit(**HELPER)
def scale_of_cost(errordef, absolute):
    """The scale of a cost; where errors are but nominal, errordef may exceed all of it, and tells little."""
    return min(errordef, absolute) if errordef == CHI_SQUARE else errordef


@njit(**HELPER)
def at_rest(theta, step):
    rest = True
    for i in range(len(theta)):
        rest &= abs(step[i]) <= AT_REST * abs(theta[i])
    return rest


@njit(**HELPER)
def _shifted(work, n, radius, posdef):
    """Minimise B.p + p.MATRIX.p / 2 over the ball |p| = radius (More and Sorensen 1983); P is the result.

    If MATRIX is positive definite, its factor is there. Returns the multiplier.
    """
    if radius == np.inf:
        radius = FIRST_RADIUS
    size = 0.0
    for i in range(n):
        row = 0.0
        for j in range(n):
            row += abs(work[MATRIX + min(i, j), max(i, j)])
        size = max(size, row)
    # a little above Gershgorin's bound: there the shifted matrix has pivots that count as positive
    low, high = 0.0, norm_of(work, B, n) / radius + (1.0 + 1e-6) * size + 1e-12
    shift = 1e-3 * high if not posdef else 0.0
    factorised = posdef
    for _ in range(MAX_SHIFTS):
        if shift > 0.0:
            factorised = factorise(work, n, shift)
        if not factorised:
            low = max(low, shift)
        else:
            newton_point(work, n)
            length = norm_of(work, P, n)
            if abs(length - radius) <= RADIUS_TOLERANCE * radius:
                break
            if length > radius:
                low = max(low, shift)
            else:
                high = min(high, shift)
            if high - low <= 1e-6 * high:
                break
            solve_lower(work, n, P, W)
            slope = norm_of(work, W, n)
            if slope > 0.0:
                shift += (length / slope) ** 2 * (length - radius) / radius
            else:
                shift = low
        if not factorised or not (low < shift < high):
            shift = max(np.sqrt(low * high), low + 1e-3 * (high - low))
    if not factorised:
        shift = high
        factorise(work, n, shift)
        newton_point(work, n)
    length = norm_of(work, P, n)
    if not posdef and length < (1.0 - RADIUS_TOLERANCE) * radius:
        # the hard case: the gradient has no part along the direction of negative curvature
        for i in range(n):
            work[W, i] = 1.0 + 0.1 * i
        for _ in range(6):
            solve_lower(work, n, W, DIRECTION)
            solve_upper(work, n, DIRECTION, W)
            scale = norm_of(work, W, n)
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
        length = norm_of(work, P, n)
        if length > radius:
            for i in range(n):
                work[P, i] *= radius / length
    return shift


@njit(**HELPER)
def _gain(hessian, work, step):
    """What the quadratic model falls by along a step, which is a row."""
    n_params = work.shape[1]
    if n_params >= WIDE:
        _curve_wide(hessian, work, step)
    else:
        for i in range(n_params):
            work[CURVED, i] = 0.0
            for j in range(n_params):
                work[CURVED, i] += hessian[i, j] * work[step, j]
    gain = 0.0
    for i in range(n_params):
        gain -= work[step, i] * (work[GRADIENT, i] + 0.5 * work[CURVED, i])
    return gain


@njit(**SUMS)
def _curve_wide(hessian, work, step):
    for i in range(work.shape[1]):
        total = 0.0
        for j in range(work.shape[1]):
            total += hessian[i, j] * work[step, j]
        work[CURVED, i] = total


@njit(**HELPER)
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


@njit(**HELPER)
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
            for c in range(np.uint64(r), np.uint64(n)):
                work[MATRIX + r, c] = hessian[r, c] * work[SCALE, r] * work[SCALE, c]
        else:
            for c in range(r, n):
                work[MATRIX + r, c] = hessian[i, index[c]] * work[SCALE, i] * work[SCALE, index[c]]
    return n


@njit(**HELPER)
def _pulled_away(hessian, shift, i, from_below, work):
    """Whether the model falls from a limit on which parameter i is."""
    pull, size = work[GRADIENT, i] + shift * work[STEP, i] / work[SCALE, i] ** 2, abs(work[GRADIENT, i])
    for j in range(work.shape[1]):
        pull += hessian[i, j] * work[STEP, j]
        size += abs(hessian[i, j] * work[STEP, j])
    return pull < -PULL * size if from_below else pull > PULL * size


@njit(**HELPER)
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
        if not factorise(work, n, shift):
            return round_ > 0, False
        newton_point(work, n)
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


@njit(**HELPER)
def _free_step(hessian, work, index):
    """The step of `_within_box` where nothing is held and no limit is met, in half of its time where a fit is small.

    False where that is not so, or the Hessian is not positive definite.
    """
    n = np.uint64(work.shape[1])
    factor = np.uint64(MATRIX) + n
    for i in range(n):
        if work[MOVING, i] == 0.0:
            return False
        index[i] = i
    for i in range(n):
        total, pull = hessian[i, i] * work[SCALE, i] * work[SCALE, i], work[GRADIENT, i] * work[SCALE, i]
        for k in range(i):
            total -= work[factor + k, i] * work[factor + k, i]
            pull -= work[factor + k, i] * work[W, k]
        if not total > PIVOT:
            return False
        inverse = 1.0 / np.sqrt(total)
        work[factor + i, i], work[W, i] = inverse, pull * inverse
        for j in range(i + np.uint64(1), n):
            total = hessian[i, j] * work[SCALE, i] * work[SCALE, j]
            for k in range(i):
                total -= work[factor + k, i] * work[factor + k, j]
            work[factor + i, j] = total * inverse
    inside = True
    for back in range(n):
        i = n - np.uint64(1) - back
        total = work[W, i]
        for k in range(i + np.uint64(1), n):
            total += work[factor + i, k] * work[P, k]
        work[P, i] = -total * work[factor + i, i]
        step = work[P, i] * work[SCALE, i]
        work[STEP, i] = step
        inside &= (step >= work[LOW, i] - work[THETA, i]) & (step <= work[HIGH, i] - work[THETA, i])
    return inside


@njit(**HELPER)
def _length(work):
    total = 0.0
    for i in range(work.shape[1]):
        total += (work[STEP, i] / work[SCALE, i]) ** 2
    return np.sqrt(total)


@njit(**HELPER)
def propose(bounded, hessian, radius, work, index):
    """Best step within the trust region and the limits.

    `bounded` is `bounded_step` as a pointer: what few steps need is compiled by itself, and these stay small.
    Returns (predicted gain, scaled length, shift, posdef of the free block, gradient norm). Where the shift is 0 the
    step leads to the minimum of the quadratic model within the limits.
    """
    for i in range(work.shape[1]):
        diagonal = abs(hessian[i, i])
        work[SCALE, i] = 1.0 / np.sqrt(diagonal) if diagonal > 0.0 else 1.0
    slope, shift, posdef, found = _begin(work), 0.0, True, True
    if work.shape[1] >= WIDE or not _free_step(hessian, work, index):
        posdef, found = _within_box(hessian, 0.0, work, index)
    length = _length(work)
    if not (found and length <= radius):
        shift = bounded(hessian, radius, posdef, work, index)
        length = _length(work)
    return _gain(hessian, work, STEP), length, shift, posdef, slope


@njit(**HELPER)
def walls(hessian, lower_limit, upper_limit, work):
    """How far a step may go: to a limit that is CLOSE, in units of |H_ii|^(-1/2), else PART of the way there."""
    for i in range(work.shape[1]):
        theta, lower, upper, curvature = work[THETA, i], lower_limit[i], upper_limit[i], abs(hessian[i, i])
        below, above = theta - lower, upper - theta
        work[LOW, i] = lower if below * below * curvature <= CLOSE * CLOSE else theta - PART * below
        work[HIGH, i] = upper if above * above * curvature <= CLOSE * CLOSE else theta + PART * above


def bounded_step(hessian, radius, posdef, work, index):
    """The step of `propose` where the trust region bounds it, or the Hessian is not definite; returns the shift."""
    n_params = work.shape[1]
    _begin(work)
    n = _block(hessian, work, index)
    shift = _shifted(work, n, radius, posdef and factorise(work, n, 0.0))
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
            part = work[WHOLE, i] * fraction
            # the first limit itself, and not next to it
            meets = work[CLIPPED, i] != work[WHOLE, i] and work[CLIPPED, i] / work[WHOLE, i] == fraction
            work[WHOLE, i] = work[CLIPPED, i] if meets else part
        gain, other = _gain(hessian, work, CLIPPED), _gain(hessian, work, WHOLE)
        if max(gain, other) > ENOUGH * _gain(hessian, work, STEP):
            best = CLIPPED if gain > other else WHOLE
            for i in range(n_params):
                work[STEP, i] = work[best, i]
    return shift


@njit(**HELPER)
def move(theta, step, lower_limit, upper_limit, target):
    """Take a step, onto a limit itself and not next to it: theta + (limit - theta) may be another number."""
    for i in range(len(theta)):
        if step[i] <= lower_limit[i] - theta[i]:
            target[i] = lower_limit[i]
        elif step[i] >= upper_limit[i] - theta[i]:
            target[i] = upper_limit[i]
        else:
            target[i] = theta[i] + step[i]
