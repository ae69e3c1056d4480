"""The quasi-Newton steps of `engine.approach` as numba functions in loops."""

import numpy as np
from numba import njit

from engine.matrices_numba import (
    HELPER,
    MATRIX,
    SUMS,
    ZERO,
    B,
    alive,
    copy_matrix,
    copy_row,
    differ,
    factorised,
    uncounted,
    unpack,
    write_covariance,
)
from engine.rules import ACCEPT, CLOSER, MOST_APPROACH, MOST_PAIRS, NEAR, ROUNDING, SAFE
from engine.trust_region_numba import move, scale_of_cost
from kernels.program import EXPECTED, FIRST

__all__ = [
    "approach_some",
]


@njit(**SUMS)
def _apply(metric, vector, result):
    """result = metric vector, of a symmetric matrix."""
    for i in range(len(vector)):
        total = 0.0
        for j in range(len(vector)):
            total += metric[i, j] * vector[j]
        result[i] = total


@njit(**SUMS)
def _dot(a, b):
    total = 0.0
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@njit(**SUMS)
def _add(factor, a, b):
    """b += factor a"""
    for i in range(len(a)):
        b[i] += factor * a[i]


@njit(**HELPER)
def _downhill(metric, gradient, steps, changes, weights, n_pairs, work, step):
    """The step of BFGS from the pairs of steps and changes of the gradient, of which `metric` is the first inverse.

    Nocedal & Wright, algorithm 7.4. Returns what a step of this kind gains.
    """
    rest = work[B]
    copy_row(gradient, rest)
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


@njit(**HELPER)
def _hold(metric, i):
    """Make the inverse of a matrix that of its block without parameter i."""
    pivot = 1.0 / metric[i, i]
    for j in range(len(metric)):
        if j != i:
            _add(-metric[j, i] * pivot, metric[i], metric[j])
    for j in range(len(metric)):
        metric[i, j] = 0.0
        metric[j, i] = 0.0


@njit(**HELPER)
def _crossing(theta, step, lower_limit, upper_limit, metric):
    """The first parameter of the metric that would leave its limits, or -1."""
    for i in range(len(theta)):
        if metric[i, i] > 0.0 and (theta[i] + step[i] < lower_limit[i] or theta[i] + step[i] > upper_limit[i]):
            return i
    return -1


@njit(**HELPER)
def _slopes(out, gradient):
    """Copy the gradient; whether it and the value are finite."""
    finite = np.isfinite(out[0])
    for i in range(len(gradient)):
        gradient[i] = out[2 + i]
        finite &= np.isfinite(gradient[i])
    return finite


@njit(**HELPER)
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
        unit = scale_of_cost(errordef, absolute)
        if not gain > max(SAFE * edm_goal * unit, ROUNDING * absolute):
            break
        i = _crossing(theta, step, lower_limit, upper_limit, metric)
        onto = i >= 0
        if onto:
            if metric is common:
                copy_matrix(common, own)
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
        move(theta, step, lower_limit, upper_limit, trial)
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
        copy_row(trial, theta)
        copy_row(trial_gradient, gradient)
        if not quick:
            break
    return nfev


def approach_some(
    first, last, kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit, upper_limit, free, errordef,
    edm_goal, values, nfev,
):  # fmt: skip
    n_params = start.shape[1]
    taken = (
        np.zeros(2 + n_params + n_params * (n_params + 1) // 2 + memory), np.empty((4, n_params)),
        np.empty((2, MOST_PAIRS, n_params)), np.empty((3, n_params, n_params)),
        np.empty((MATRIX + 2 * n_params, n_params)), np.empty(MOST_PAIRS), np.empty(n_params, np.int64),
        np.empty(n_params, np.bool_),
    )  # fmt: skip
    out, vectors, pairs, matrices = uncounted(taken[0]), uncounted(taken[1]), uncounted(taken[2]), uncounted(taken[3])
    work, weights, index, active = uncounted(taken[4]), uncounted(taken[5]), uncounted(taken[6]), uncounted(taken[7])
    trial, gradient, trial_gradient, step = vectors[0], vectors[1], vectors[2], vectors[3]
    steps, changes, hessian, common, own = pairs[0], pairs[1], matrices[0], matrices[1], matrices[2]
    for i in range(n_params):
        active[i] = not free[i]
    usable = False
    for t in range(first, last):
        k = toys[t]
        measured, begin, end, theta = aux[k], offsets[k], offsets[k + 1], values[t]
        copy_row(start[t], theta)
        nfev[t] = 0
        if t == first or differ(start[t], start[t - 1]):
            kernel(theta, rows, shared, measured, begin, end, EXPECTED, out)
            unpack(out, gradient, hessian)
            usable = factorised(hessian, active, work, index)
            if usable:
                write_covariance(active, 0.5, common, work, index)
        if usable:
            nfev[t] = _approach(
                kernel, rows, shared, measured, begin, end, out, theta, lower_limit, upper_limit, errordef, edm_goal,
                common, own, steps, changes, weights, gradient, trial, trial_gradient, step, work,
            )  # fmt: skip
    alive(taken)
