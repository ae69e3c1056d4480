"""Trust-region Newton with the exact Hessian, within limits: one pure step, and the same as an optax transformation.

At the best point so far, with gradient g and Hessian H, the step minimises g.p + p.H.p / 2 within the limits, if that
lies in a ball in the parameters scaled by |H_ii|^(-1/2) (so that nothing depends on units). The ball is infinite
until a step fails, so that near the minimum the steps are Newton's own and converge quadratically. Where it bounds
the step, or H is not positive definite, H is shifted: More & Sorensen's shift, or more where limits are crossed; and
where the gradient does not show a direction of negative curvature, as at a saddle point, the step takes one.

- A step leads onto a limit only where that is CLOSE, else half of the way there: far from the minimum the quadratic
  model says little, and limits are where other minima are (a component without events, a peak of no width).
- A step is judged by the fall of the cost, and near the minimum, where that is rounding noise, by its gradient.
- The fit ends where a full Newton step would gain less than EDM_GOAL errordef, or less than the rounding of the
  sums. The last step is taken and its result not evaluated again: it is known to that gain.
- Where errordef exceeds a whole chi-square, as of points whose errors of 1 are but nominal, it is no scale: the fit
  goes on until the step is below AT_REST of each parameter, or EDM_GOAL of the cost, or fails.
- A parameter at a limit with the gradient pushing outward takes no part; it is free again when the gradient turns.

`engine.newton_numba` is the same algorithm in loops.

References
----------
More & Sorensen, SIAM J. Sci. Stat. Comput. 4 (1983) 553-572. Judice & Pires, Comput. Oper. Res. 21 (1994) 587-596, for
the limits. Nocedal & Wright, Numerical Optimization, 2nd ed., ch. 4.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from engine.cholesky import factorise, solve, solve_lower
from engine.newton_numba import (
    ACCEPT,
    AT_REST,
    CHI_SQUARE,
    CLOSE,
    EDM_GOAL,
    ENOUGH,
    FIRST_RADIUS,
    LEAST_SHIFT,
    MAX_SHIFTS,
    MOST_ROUNDS,
    NEAR,
    PART,
    PATIENCE,
    PULL,
    RADIUS_TOLERANCE,
    ROUNDING,
    RUNAWAY,
    RUNNING,
    SMALLEST_RADIUS,
)
from engine.status import Status
from kernels.derivatives import packed_index

__all__ = [
    "Box",
    "Evaluation",
    "NewtonState",
    "covariance_of",
    "moved",
    "newton",
    "newton_init",
    "newton_step",
    "scale_of",
    "unpack",
]


class Evaluation(NamedTuple):
    """A cost at one point: value, sum of |term|, gradient (n_params,), Hessian (n_params, n_params)."""

    value: Array
    absolute: Array
    gradient: Array
    hessian: Array


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


class Box(NamedTuple):
    """Limits and free parameters, each (n_params,)."""

    lower: Any
    upper: Any
    free: Any


def unpack(outputs: Array, n_params: int) -> Evaluation:
    """The outputs of a kernel (see `kernels.program`) as an Evaluation."""
    places = np.array([[packed_index(i, j) for j in range(n_params)] for i in range(n_params)])
    return Evaluation(outputs[0], outputs[1], outputs[2 : 2 + n_params], outputs[2 + n_params + places])


def _outward(theta: Array, gradient: Array, box: Box) -> Array:
    return ((theta <= box.lower) & (gradient > 0)) | ((theta >= box.upper) & (gradient < 0))


class _Quadratic(NamedTuple):
    """The model of a cost around a point; `scaled` is the Hessian in units of its diagonal."""

    gradient: Array
    hessian: Array
    scale: Array
    scaled: Array
    below: Array
    above: Array
    free: Array
    unrolled: bool

    def gain(self, step: Array) -> Array:
        return -jnp.dot(step, self.gradient + 0.5 * self.hessian @ step)

    def length(self, step: Array) -> Array:
        return jnp.linalg.norm(step / self.scale)

    def block(self, moving: Array, step: Array) -> tuple[Array, Array]:
        """Matrix and right side of the moving parameters, given the steps of the others."""
        b = (self.gradient + self.hessian @ jnp.where(moving, 0.0, step)) * self.scale
        a = jnp.where(moving & moving[:, None], self.scaled, jnp.eye(len(step)))
        return a, jnp.where(moving, b, 0.0)

    def minimise(self, moving: Array, step: Array, shift: Array | float) -> tuple[Array, Array, Array]:
        """The step in which the moving parameters follow the others, who is then wrong, and whether it is a minimum."""
        a, b = self.block(moving, step)
        factor, good = factorise(a, shift, self.unrolled)
        step = jnp.where(moving, -solve(factor, b) * self.scale, step)
        pull = self.gradient + self.hessian @ step + shift * step / self.scale**2
        size = PULL * (jnp.abs(self.gradient) + jnp.abs(self.hessian) @ jnp.abs(step))
        inward = jnp.where(step <= self.below, pull < -size, pull > size)
        return step, jnp.where(moving, (step < self.below) | (step > self.above), self.free & inward), good

    def within_box(self, moving: Array, shift: Array | float) -> tuple[Array, Array, Array]:
        """`engine.newton_numba._within_box`: (step, whether the first block is definite, whether it was found)."""
        n = len(moving)
        step, wrong, definite = self.minimise(moving, jnp.zeros(n), shift)

        def turn(carry: tuple) -> tuple:
            moving, step, wrong, _, fewest, patience, count = carry
            n_wrong = jnp.sum(wrong)
            patience = jnp.where(n_wrong < fewest, PATIENCE, patience - 1)
            last = n - 1 - jnp.argmax(wrong[::-1])
            changed = wrong & ((patience > 0) | (jnp.arange(n) == last))
            step = jnp.where(changed & moving, jnp.clip(step, self.below, self.above), step)
            moving ^= changed
            step, wrong, good = self.minimise(moving, step, shift)
            return moving, step, wrong, good, jnp.minimum(fewest, n_wrong), patience, count + 1

        def running(carry: tuple) -> Array:
            _, _, wrong, good, _, _, count = carry
            return jnp.any(wrong) & good & (count < MOST_ROUNDS + 2 * n)

        start = (moving, step, wrong, definite, jnp.asarray(n + 1), jnp.asarray(PATIENCE), jnp.asarray(1))
        _, step, wrong, good, *_ = lax.while_loop(running, turn, start)
        return step, definite, good & ~jnp.any(wrong)


def _on_boundary(
    a: Array, b: Array, moving: Array, radius: Array, posdef: Array, inside: Array, unrolled: bool
) -> tuple[Array, Array]:
    """Minimise b.p + p.a.p / 2 over |p| = radius and the moving parameters: (p, shift); any where it ends `inside`.

    `a` has the unit matrix and `b` zeros where a parameter does not move.
    """
    bounded = jnp.where(jnp.isinf(radius), FIRST_RADIUS, radius)
    size = jnp.max(jnp.where(moving, jnp.sum(jnp.abs(jnp.where(moving, a, 0.0)), axis=1), 0.0))
    # a little above Gershgorin's bound: there the shifted matrix has pivots that count as positive
    high = jnp.linalg.norm(b) / bounded + (1.0 + 1e-6) * size + 1e-12

    def search(carry: tuple) -> tuple:
        shift, low, high, _, count, _ = carry
        factor, good = factorise(a, shift, unrolled)
        p = -solve(factor, b)
        length = jnp.linalg.norm(p)
        done = good & (jnp.abs(length - bounded) <= RADIUS_TOLERANCE * bounded)
        low = jnp.where(~good | (length > bounded), jnp.maximum(low, shift), low)
        high = jnp.where(good & (length <= bounded), jnp.minimum(high, shift), high)
        done |= good & (high - low <= 1e-6 * high)
        slope = jnp.linalg.norm(solve_lower(factor, p))
        better = shift + (length / jnp.where(slope > 0, slope, 1.0)) ** 2 * (length - bounded) / bounded
        usable = good & (slope > 0) & (low < better) & (better < high)
        middle = jnp.maximum(jnp.sqrt(low * high), low + 1e-3 * (high - low))
        following = jnp.where(done, shift, jnp.where(usable, better, middle))
        return following, low, high, shift, count + 1, done

    def running(carry: tuple) -> Array:
        return ~carry[-1] & (carry[-2] < MAX_SHIFTS)

    first = jnp.where(posdef, 0.0, 1e-3 * high)
    start = (first, jnp.zeros_like(high), high, first, 0, inside)
    _, _, high, shift, _, _ = lax.while_loop(running, search, start)
    _, good = factorise(a, shift, unrolled)
    shift = jnp.where(good, shift, high)
    factor, _ = factorise(a, shift, unrolled)
    p = -solve(factor, b)

    # the hard case: the gradient has no part along the direction of negative curvature
    length = jnp.linalg.norm(p)
    w = jnp.where(moving, 1.0 + 0.1 * (jnp.cumsum(moving) - 1), 0.0)

    def towards_negative(_: int, w: Array) -> Array:
        w = solve(factor, w)
        return w / jnp.linalg.norm(w)

    w = lax.fori_loop(0, 6, towards_negative, w)
    add = jnp.sqrt(jnp.maximum(bounded**2 - length**2, 0.0))
    along = p + jnp.where(jnp.dot(b, w) > 0, -add, add) * w
    along = along * jnp.minimum(1.0, bounded / jnp.linalg.norm(along))
    hard = ~posdef & (length < (1.0 - RADIUS_TOLERANCE) * bounded) & jnp.any(moving)
    return jnp.where(hard, along, p), shift


def _propose(theta: Array, best: Evaluation, box: Box, radius: Array, unrolled: bool) -> tuple[Array, ...]:
    """Best step within the trust region and the limits: (step, gain, length, shift, posdef, slope).

    Where the shift is 0 the step leads to the minimum of the quadratic model within the limits.
    """
    gradient, hessian = best.gradient, best.hessian
    diagonal = jnp.abs(jnp.diagonal(hessian))
    scale = jnp.where(diagonal > 0, 1.0 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    moving = box.free & ~_outward(theta, gradient, box)
    slope = jnp.linalg.norm(jnp.where(moving, gradient * scale, 0.0))
    below, above = theta - box.lower, box.upper - theta
    low = jnp.where(below**2 * diagonal <= CLOSE**2, box.lower, theta - PART * below)
    high = jnp.where(above**2 * diagonal <= CLOSE**2, box.upper, theta + PART * above)
    model = _Quadratic(
        gradient, hessian, scale, hessian * scale * scale[:, None], low - theta, high - theta, box.free, unrolled
    )  # fmt: skip
    step, posdef, found = model.within_box(moving, 0.0)
    inside = found & (model.length(step) <= radius)

    def bounded(carry: tuple) -> tuple:
        return *_bounded(model, moving, radius, posdef, inside), jnp.asarray(True)

    # a loop of one turn, and not a choice: `vmap` takes both sides of a choice, but no turn that no toy needs
    step, shift, _ = lax.while_loop(lambda c: ~c[-1], bounded, (step, jnp.zeros_like(radius), inside))
    return step, model.gain(step), model.length(step), shift, posdef, slope


def _bounded(model: _Quadratic, moving: Array, radius: Array, posdef: Array, inside: Array) -> tuple[Array, Array]:
    """The step where the trust region bounds it, or the Hessian is not definite, and the shift; any where `inside`."""
    p, shift = _on_boundary(
        *model.block(moving, jnp.zeros(len(moving))), moving, radius, posdef, inside, model.unrolled
    )
    whole = jnp.where(moving, p * model.scale, 0.0)
    room = jnp.clip(whole, model.below, model.above)
    fraction = jnp.min(jnp.where(room != whole, room / jnp.where(whole == 0, 1.0, whole), 1.0))
    shift = jnp.maximum(shift, LEAST_SHIFT)
    most = (1.0 + RADIUS_TOLERANCE) * jnp.where(jnp.isinf(radius), FIRST_RADIUS, radius)

    # from some shift on it is the way along the gradient, which never fails
    def further(carry: tuple) -> tuple:
        _, _, following, count, _ = carry
        step, _, found = model.within_box(moving, following)
        done = found & (model.length(step) <= most)
        return step, following, jnp.where(done, following, 10.0 * following), count + 1, done

    start = (whole, shift, shift, 0, inside | (fraction == 1.0))
    step, _, shift, *_ = lax.while_loop(lambda c: ~c[-1] & (c[-2] < MAX_SHIFTS), further, start)
    # from a saddle point only negative curvature leads away: along the limits, or as far as the first
    gain, other = model.gain(room), model.gain(whole * fraction)
    curved = jnp.where(gain > other, room, whole * fraction)
    enough = (fraction < 1.0) & ~posdef & (jnp.maximum(gain, other) > ENOUGH * model.gain(step))
    return jnp.where(enough, curved, step), shift


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
    moving = box.free & ~_outward(state.trial, here.gradient, box)
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
    step, gain, length, shift, posdef, slope = _propose(
        theta, best, box._replace(free=box.free & live), radius, unrolled
    )
    radius = jnp.where(~posdef & jnp.isinf(radius), FIRST_RADIUS, radius)
    full = (shift == 0.0) | ~posdef
    at_end |= (length <= SMALLEST_RADIUS) | jnp.all(jnp.abs(step) <= AT_REST * jnp.abs(theta))
    goal = edm_goal * jnp.where(at_end, errordef, scale_of(errordef, best.absolute))
    ended = (gain <= jnp.maximum(goal, ROUNDING * best.absolute)) & full
    at_end = (gain <= edm_goal * errordef) & full
    edm = jnp.where(live & ((shift == 0.0) | ended), gain, state.edm)
    status = jnp.select(
        [first & ~finite, ran_away, ended & posdef, ended, nfev >= max_steps, ~(length > SMALLEST_RADIUS)],
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
    at_limit = box.free & _outward(state.theta, state.best.gradient, box)
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


def newton(
    *,
    errordef: float = 0.5,
    lower: Any = -jnp.inf,
    upper: Any = jnp.inf,
    edm_goal: float = EDM_GOAL,
    max_steps: int = 200,
) -> optax.GradientTransformationExtraArgs:
    """Trust-region Newton as an optax transformation of one parameter vector; `vmap` it over toys.

    `update(gradient, state, params, value=..., hessian=...)` wants the value and the Hessian at `params` too, and asks
    for one evaluation per update: the point that it proposes is judged by the next call. Once `state.status` is not
    -1 the fit has ended at `state.theta`, and the updates lead there and stay.

    Parameters
    ----------
    errordef : float
        0.5 for a negative log-likelihood, 1 for a chi-square.
    lower, upper : float or (n_params,)
        Limits.
    edm_goal : float
        Estimated distance to the minimum at which to stop, in units of errordef.
    max_steps : int
        Number of evaluations after which to give up.
    """

    def update(
        gradient: Array, state: NewtonState, params: Array | None = None, *, value: Array, hessian: Array, **_: Any
    ):
        if params is None:
            raise ValueError(
                "newton needs the parameters: call update(gradient, state, params, value=..., hessian=...)"
            )
        box = Box(
            jnp.broadcast_to(jnp.asarray(lower, params.dtype), params.shape),
            jnp.broadcast_to(jnp.asarray(upper, params.dtype), params.shape),
            jnp.ones(params.shape, bool),
        )
        here = Evaluation(value, jnp.abs(value), gradient, hessian)
        state = newton_step(
            state._replace(trial=params), here, box, errordef=errordef, edm_goal=edm_goal, max_steps=max_steps
        )
        target = jnp.where(state.status == RUNNING, state.trial, state.theta)
        return target - params, state

    return optax.GradientTransformationExtraArgs(newton_init, update)
