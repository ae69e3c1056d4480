"""The trust-region Newton fit as machine code: every toy in its own thread, no toy waits for another.

The algorithm is the one of `engine.newton`, in loops instead of array operations; `tests/engine/test_newton.py` holds
the two against each other. Where there are many parameters and a gradient is much cheaper than a Hessian, quasi-Newton
steps lead from the start to where Newton begins (`approach_toys`): another way to the same minimum and the same proof.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numba import njit, prange, types
from numba.core.sigutils import normalize_signature

from engine import approach_numba, matrices_numba, rules, trust_region_numba
from engine.approach_numba import approach_some
from engine.matrices_numba import (
    CURVED,
    FREE,
    GRADIENT,
    MATRIX,
    MOVING,
    STEP,
    THETA,
    alive,
    copy_row,
    factorised,
    fill,
    uncounted,
    unpack,
    write_covariance,
)
from engine.rules import (
    ACCEPT,
    CONVERGED,
    FIRST_RADIUS,
    HESSIAN_NOT_POSDEF,
    MAX_STEPS,
    NEAR,
    NONFINITE,
    ROUNDING,
    RUNAWAY,
    RUNNING,
    SMALLEST_RADIUS,
    STALLED,
    UNBOUNDED,
)
from engine.trust_region_numba import at_rest, bounded_step, move, propose, scale_of_cost, walls
from kernels import blocks, vectors
from kernels.program import SECOND
from kernels.translate import KERNEL_SIGNATURE, import_source

__all__ = ["approach_toys", "around_the_loop", "evaluate_toys", "fingerprint", "fit_toys", "loop_of_fit"]

#: The files of all that the fit is made of.
PARTS = (
    *(str(part.__file__) for part in (blocks, vectors, rules, matrices_numba, trust_region_numba, approach_numba)),
    __file__,
)
_ENTRY = {"error_model": "numpy", "cache": True, "nogil": True}

_KERNEL = types.FunctionType(types.void(*normalize_signature(KERNEL_SIGNATURE)[0]))
_TABLE, _NUMBERS = types.f8[:, ::1], types.i8[::1]
_DATA = (_KERNEL, types.i8, _TABLE, _TABLE, _TABLE, _NUMBERS, _NUMBERS)
_BOUNDED = types.f8(_TABLE, types.f8, types.b1, _TABLE, _NUMBERS)
_BOX = (types.f8[::1], types.f8[::1], types.b1[::1])
_RESULTS = (_TABLE, types.f8[:, :, ::1], _TABLE, types.b1[:, ::1])
_SOME = (types.i8, types.i8)
_FIT_SOME = types.void(
    *_SOME, types.FunctionType(_BOUNDED), *_DATA, _TABLE, *_BOX, types.f8, types.f8, types.i8, *_RESULTS
)
_APPROACH_SOME = types.void(*_SOME, *_DATA, _TABLE, *_BOX, types.f8, types.f8, _TABLE, _NUMBERS)
_EVALUATE_SOME = types.void(*_SOME, *_DATA, _TABLE, _TABLE)


def _fit_some(
    first, last, bounded, kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit, upper_limit, free,
    errordef, edm_goal, max_steps, values, covariance, fit, at_limit,
):  # fmt: skip
    """Fit some toys one after the other, in memory that is taken once."""
    n_params = start.shape[1]
    taken = (
        np.zeros(2 + n_params + n_params * (n_params + 1) // 2 + memory), np.empty((3, n_params)),
        np.empty((2, n_params, n_params)), np.empty((MATRIX + 2 * n_params, n_params)), np.empty(n_params, np.int64),
        np.empty(n_params, np.bool_),
    )  # fmt: skip
    out, points, matrices = uncounted(taken[0]), uncounted(taken[1]), uncounted(taken[2])
    work, index, active = uncounted(taken[3]), uncounted(taken[4]), uncounted(taken[5])
    trial, trial_gradient, origin = points[0], points[1], points[2]
    hessian, trial_hessian = matrices[0], matrices[1]
    theta, gradient, step = work[THETA], work[GRADIENT], work[STEP]
    for i in range(n_params):
        work[FREE, i] = 1.0 if free[i] else 0.0
    for t in range(first, last):
        k = toys[t]
        measured, begin, end = aux[k], offsets[k], offsets[k + 1]
        inverse, outward = covariance[t], at_limit[t]
        copy_row(start[t], theta)
        copy_row(start[t], origin)
        kernel(theta, rows, shared, measured, begin, end, SECOND, out)
        nfev = 1
        value, absolute = out[0], out[1]
        status = RUNNING
        edm, posdef = np.nan, False
        if not unpack(out, gradient, hessian):
            status, value = NONFINITE, np.nan
        radius = np.inf
        at_end = False
        while status == RUNNING:
            walls(hessian, lower_limit, upper_limit, work)
            gain, length, shift, posdef, slope = propose(bounded, hessian, radius, work, index)
            if not posdef and radius == np.inf:
                radius = FIRST_RADIUS
            if shift == 0.0:
                edm = gain
            unit = scale_of_cost(errordef, absolute)
            at_end = at_end or length <= SMALLEST_RADIUS or at_rest(theta, step)
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
            if not (length > SMALLEST_RADIUS or gain > 100.0 * ROUNDING * absolute):
                status = STALLED
                break
            move(theta, step, lower_limit, upper_limit, trial)
            kernel(trial, rows, shared, measured, begin, end, SECOND, out)
            nfev += 1
            finite = unpack(out, trial_gradient, trial_hessian)
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
                copy_row(trial, theta)
                copy_row(trial_gradient, gradient)
                hessian, trial_hessian = trial_hessian, hessian
                for i in range(n_params):
                    if free[i] and abs(theta[i]) > RUNAWAY * max(abs(origin[i]), 1.0):
                        status = UNBOUNDED
                if value < -1e290:
                    status = UNBOUNDED
        if status == CONVERGED:
            # the last Newton step is taken, and its result is known well enough not to be evaluated
            for i in range(n_params):
                trial_gradient[i] = gradient[i] + work[CURVED, i]
            move(theta, step, lower_limit, upper_limit, theta)
            value -= gain
            copy_row(trial_gradient, gradient)
        # the last step has factorised the Hessian of the parameters that moved
        known = status == CONVERGED
        for i in range(n_params):
            outward_lower = theta[i] <= lower_limit[i] and gradient[i] > 0.0
            outward_upper = theta[i] >= upper_limit[i] and gradient[i] < 0.0
            outward[i] = free[i] and (outward_lower or outward_upper)
            active[i] = outward[i] or not free[i]
            known = known and active[i] == (work[MOVING, i] == 0.0)
        posdef = known or (status != NONFINITE and factorised(hessian, active, work, index))
        if posdef:
            inflation = write_covariance(active, errordef, inverse, work, index)
        else:
            fill(inverse, np.nan)
            inflation = np.nan
            if status == CONVERGED:
                status = HESSIAN_NOT_POSDEF
        copy_row(theta, values[t])
        fit[t, 0], fit[t, 1], fit[t, 2], fit[t, 3] = value, edm, status, nfev
        fit[t, 4], fit[t, 5] = 1.0 if posdef else 0.0, inflation
    alive(taken)


def _evaluate_some(first, last, kernel, memory, rows, shared, aux, offsets, toys, theta, results):
    n_outputs = results.shape[1]
    outputs = np.zeros(n_outputs + memory)
    out = uncounted(outputs)
    for t in range(first, last):
        k = toys[t]
        kernel(theta[t], rows, shared, aux[k], offsets[k], offsets[k + 1], SECOND, out)
        for i in range(n_outputs):
            results[t, i] = out[i]
    alive(outputs)


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


@functools.cache
def fingerprint() -> str:
    """A hash of the text of all that the fit is made of."""
    texts = [Path(file).read_text(encoding="utf-8") for file in PARTS]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _compiled(function: Any, signature: Any) -> Callable:
    """A function as machine code, which is kept on disk.

    numba keeps it until the file of the function changes. As what it calls stands in other files, it is given out to
    stand in one that is named by the text of all of them.
    """
    file = import_source(f"# compiled from {fingerprint()}\n").__file__
    code = function.__code__.replace(co_filename=file)
    return njit(signature, **_ENTRY)(FunctionType(code, function.__globals__, function.__name__))


def _parallel(signature: Any, toys: Callable) -> Callable:
    """`toys` as machine code: it gives `some` of this signature a range of toys, and all else."""
    given = (types.FunctionType(signature), types.i8, *signature.args[2:])
    return njit(types.void(*given), parallel=True, **_ENTRY)(toys)


@functools.cache
def loop_of_fit() -> Callable:
    """The machine code of the fit of some toys, which is half of what is compiled."""
    return _compiled(_fit_some, _FIT_SOME)


@functools.cache
def around_the_loop() -> tuple[Callable, Callable]:
    """The machine code of what the fit of some toys calls, and of what calls that fit: the other half."""
    return _compiled(bounded_step, _BOUNDED), _parallel(_FIT_SOME, _fit_toys)


@functools.cache
def fit_toys() -> Callable:
    """The compiled fit of many toys, one after the other in each thread.

    It is called with (together, kernel, memory, rows, shared, aux, offsets, toys, start, lower_limit, upper_limit,
    free, errordef, edm_goal, max_steps) and the arrays (values, covariance, fit, at_limit) for the results. A turn of
    a thread takes `together` toys, in the same memory; `memory` is `kernels.translate.memory_of` it. `toys` are
    the numbers of the toys to fit; `start` and the results have a row for each; `fit` holds
    (fval, edm, status, nfev, posdef, inflation), as `engine.drivers.Fits` has them.
    """
    some, (bounded, fit) = loop_of_fit(), around_the_loop()
    return lambda together, *arguments: fit(some, together, bounded, *arguments)


@functools.cache
def approach_toys() -> Callable:
    """The compiled approach of many toys, from where Newton goes on: for kernels with a cheap gradient.

    It is called with what `fit_toys` is up to `edm_goal`, and (values, nfev) for the results.
    """
    return functools.partial(_parallel(_APPROACH_SOME, _approach_toys), _compiled(approach_some, _APPROACH_SOME))


@functools.cache
def evaluate_toys() -> Callable:
    """The compiled evaluation of many toys, called with what `fit_toys` is up to `toys`, theta and the outputs."""
    return functools.partial(_parallel(_EVALUATE_SOME, _evaluate_toys), njit(_EVALUATE_SOME, **_ENTRY)(_evaluate_some))
