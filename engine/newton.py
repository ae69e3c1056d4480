"""Trust-region Newton with the exact Hessian, within limits: one pure step.

From the best point so far `engine.trust_region` leads to the next, in a ball that is infinite until a step fails, so
that near the minimum the steps are Newton's own and converge quadratically.

- A step is judged by the fall of the cost, and near the minimum, where that is rounding noise, by its gradient.
- The fit ends where a full Newton step would gain less than EDM_GOAL errordef, or less than the rounding of the
  sums. The last step is taken and its result not evaluated again: it is known to that gain.
- Where errordef exceeds a whole chi-square, as of points whose errors of 1 are but nominal, it is no scale: the fit
  goes on until the step is below AT_REST of each parameter, or EDM_GOAL of the cost, or fails.

`engine.newton_numba` is the same algorithm in loops, `engine.optimizers.newton` the same as an optax transformation.

References
----------
Nocedal & Wright, Numerical Optimization, 2nd ed., ch. 4.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.cholesky import factorise, solve
from engine.rules import (
    ACCEPT,
    AT_REST,
    CHI_SQUARE,
    FIRST_RADIUS,
    NEAR,
    ROUNDING,
    RUNAWAY,
    RUNNING,
    SMALLEST_RADIUS,
)
from engine.status import Status
from engine.trust_region import Box, Evaluation, outward, propose
from kernels.derivatives import packed_index

__all__ = ["NewtonState", "covariance_of", "moved", "newton_init", "newton_step", "scale_of", "unpack"]


class NewtonState(NamedTuple):
    """One fit. `best` belongs to `theta`; `trial` is where the cost is wanted next.

    `at_end` tells that the fit ends where it is if the trial is no better.
    """

    theta: Array
    best: Evaluation
    trial: Array
    origin: Array
    radius: Array
    gain: Array
    length: Array
    slope: Array
    edm: Array
    at_end: Array
    status: Array
    nfev: Array


def unpack(outputs: Array, n_params: int) -> Evaluation:
    """The outputs of a kernel (see `kernels.program`) as an Evaluation."""
    places = np.array([[packed_index(i, j) for j in range(n_params)] for i in range(n_params)])
    return Evaluation(outputs[0], outputs[1], outputs[2 : 2 + n_params], outputs[2 + n_params + places])


def scale_of(errordef: Array | float, absolute: Array) -> Array:
    """The scale of a cost; where errors are but nominal, errordef may exceed all of it, and tells little."""
    return jnp.where(jnp.asarray(errordef) == CHI_SQUARE, jnp.minimum(errordef, absolute), errordef)


def moved(theta: Array, step: Array, box: Box) -> Array:
    """Where a step leads: onto a limit itself and not next to it, as theta + (limit - theta) may."""
    inside = jnp.where(step >= box.upper - theta, box.upper, theta + step)
    return jnp.where(step <= box.lower - theta, box.lower, inside)


def newton_init(theta: Array) -> NewtonState:
    """The state of a fit that starts at `theta` (n_params,)."""
    theta = jnp.asarray(theta)
    n_params = theta.shape[-1]
    nothing = Evaluation(
        jnp.full((), jnp.nan), jnp.full((), jnp.nan), jnp.zeros(n_params), jnp.zeros((n_params, n_params))
    )
    return NewtonState(
        theta=theta,
        best=nothing,
        trial=theta,
        origin=theta,
        radius=jnp.full((), jnp.inf),
        gain=jnp.full((), jnp.nan),
        length=jnp.full((), jnp.nan),
        slope=jnp.full((), jnp.nan),
        edm=jnp.full((), jnp.nan),
        at_end=jnp.zeros((), dtype=bool),
        status=jnp.full((), RUNNING, dtype=jnp.int32),
        nfev=jnp.zeros((), dtype=jnp.int32),
    )


def newton_step(
    state: NewtonState,
    here: Evaluation,
    box: Box,
    *,
    errordef: float,
    edm_goal: float,
    max_steps: int,
    unrolled: bool = False,
) -> NewtonState:
    """Judge the trial point, at which the cost is `here`, and propose the next; a finished fit stays as it is.

    `unrolled` is for accelerators, see `engine.cholesky`.
    """
    first, running = state.nfev == 0, state.status == RUNNING
    finite = jnp.isfinite(here.value) & jnp.all(jnp.isfinite(here.gradient)) & jnp.all(jnp.isfinite(here.hessian))

    absolute = state.best.absolute
    rounding = 100.0 * ROUNDING * absolute
    near = jnp.maximum(NEAR * scale_of(errordef, absolute), rounding)
    actual = state.best.value - here.value
    ratio = jnp.where(state.gain > rounding, actual / state.gain, 0.0)
    moving = box.free & ~outward(state.trial, here.gradient, box)
    per_diagonal = here.gradient**2 / jnp.maximum(jnp.abs(jnp.diagonal(state.best.hessian)), 1e-300)
    flatter = jnp.sqrt(jnp.sum(jnp.where(moving, per_diagonal, 0.0))) < state.slope
    ratio = jnp.where((state.gain <= near) & (actual > -near) & flatter, 1.0, ratio)
    ratio = jnp.where(finite, ratio, 0.0)
    accepted = jnp.where(first, finite, ratio > ACCEPT)
    at_end = ~first & ~accepted & state.at_end
    radius = jnp.where(
        ratio < 0.25,
        0.25 * state.length,
        jnp.where((ratio > 0.75) & (state.length > 0.5 * state.radius), 2.0 * state.radius, state.radius),
    )
    radius = jnp.where(first, jnp.inf, jnp.where(at_end, state.radius, radius))

    choose = lambda new, old: jnp.where(accepted, new, old)  # noqa: E731
    theta = choose(state.trial, state.theta)
    best = jax.tree.map(choose, here, state.best)
    nfev = state.nfev + 1
    ran_away = jnp.any(box.free & (jnp.abs(theta) > RUNAWAY * jnp.maximum(jnp.abs(state.origin), 1.0)))
    ran_away = (ran_away | (best.value < -1e290)) & ~first

    # who has ended takes no part in the loops of the others
    live = running & (finite | ~first)
    step, gain, length, shift, posdef, slope = propose(
        theta, best, box._replace(free=box.free & live), radius, unrolled
    )
    radius = jnp.where(~posdef & jnp.isinf(radius), FIRST_RADIUS, radius)
    full = (shift == 0.0) | ~posdef
    at_end |= (length <= SMALLEST_RADIUS) | jnp.all(jnp.abs(step) <= AT_REST * jnp.abs(theta))
    goal = edm_goal * jnp.where(at_end, errordef, scale_of(errordef, best.absolute))
    ended = (gain <= jnp.maximum(goal, ROUNDING * best.absolute)) & full
    at_end = (gain <= edm_goal * errordef) & full
    edm = jnp.where(live & ((shift == 0.0) | ended), gain, state.edm)
    # a parameter on which the cost depends through others alone may go far by a step of no length
    gains = gain > 100.0 * ROUNDING * best.absolute
    status = jnp.select(
        [first & ~finite, ran_away, ended & posdef, ended, nfev >= max_steps, ~((length > SMALLEST_RADIUS) | gains)],
        [
            Status.NONFINITE,
            Status.UNBOUNDED,
            Status.CONVERGED,
            Status.HESSIAN_NOT_POSDEF,
            Status.MAX_STEPS,
            Status.STALLED,
        ],
        RUNNING,
    ).astype(jnp.int32)
    trial = moved(theta, step, box)

    # the last Newton step is taken, and its result is known well enough not to be evaluated
    converged = status == Status.CONVERGED
    best = best._replace(
        value=jnp.where(converged, best.value - gain, best.value),
        gradient=jnp.where(converged, best.gradient + best.hessian @ step, best.gradient),
    )
    theta = jnp.where(converged, trial, theta)
    new = NewtonState(theta, best, trial, state.origin, radius, gain, length, slope, edm, at_end, status, nfev)
    return jax.tree.map(lambda a, b: jnp.where(running, a, b), new, state)


def covariance_of(
    state: NewtonState, box: Box, errordef: float, unrolled: bool = False
) -> tuple[Array, Array, Array, Array]:
    """(covariance, posdef, inflation, at_limit) of a fit: 2 errordef times the inverse of the free Hessian."""
    at_limit = box.free & outward(state.theta, state.best.gradient, box)
    active = at_limit | ~box.free
    diagonal = jnp.diagonal(state.best.hessian)
    positive = active | (diagonal > 0)
    scale = jnp.where(active, 1.0, 1.0 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0)))
    inside = ~active & ~active[:, None]
    eye = jnp.eye(len(scale))
    factor, posdef = factorise(jnp.where(inside, state.best.hessian * scale * scale[:, None], eye), 0.0, unrolled)
    inverse = solve(factor, eye)
    inflation = jnp.sum(jnp.where(active, 0.0, jnp.diagonal(inverse)))
    inverse = inverse * scale * scale[:, None]
    posdef &= jnp.all(positive) & (state.status != Status.NONFINITE)
    covariance = jnp.where(inside, 2.0 * errordef * 0.5 * (inverse + inverse.T), 0.0)
    return jnp.where(posdef, covariance, jnp.nan), posdef, jnp.where(posdef, inflation, jnp.nan), at_limit
