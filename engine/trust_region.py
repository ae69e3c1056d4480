"""The step of the trust-region Newton, within limits.

At a point with gradient g and Hessian H, the step minimises g.p + p.H.p / 2 within the limits, if that lies in a ball
in the parameters scaled by |H_ii|^(-1/2) (so that nothing depends on units). Where the ball bounds the step, or H is
not positive definite, H is shifted: More & Sorensen's shift, or more where limits are crossed; and where the gradient
does not show a direction of negative curvature, as at a saddle point, the step takes one.

- A step leads onto a limit only where that is CLOSE, else half of the way there: far from the minimum the quadratic
  model says little, and limits are where other minima are (a component without events, a peak of no width).
- A parameter at a limit with the gradient pushing outward takes no part; it is free again when the gradient turns.

References
----------
More & Sorensen, SIAM J. Sci. Stat. Comput. 4 (1983) 553-572. Judice & Pires, Comput. Oper. Res. 21 (1994) 587-596, for
the limits. Nocedal & Wright, Numerical Optimization, 2nd ed., ch. 4.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from engine.cholesky import factorise, solve, solve_lower
from engine.rules import (
    CLOSE,
    ENOUGH,
    FIRST_RADIUS,
    LEAST_SHIFT,
    MAX_SHIFTS,
    MOST_ROUNDS,
    PART,
    PATIENCE,
    PULL,
    RADIUS_TOLERANCE,
)

__all__ = ["Box", "Evaluation", "outward", "propose"]


class Evaluation(NamedTuple):
    """A cost at one point: value, sum of |term|, gradient (n_params,), Hessian (n_params, n_params)."""

    value: Array
    absolute: Array
    gradient: Array
    hessian: Array


class Box(NamedTuple):
    """Limits and free parameters, each (n_params,)."""

    lower: Any
    upper: Any
    free: Any


def outward(theta: Array, gradient: Array, box: Box) -> Array:
    """Which parameters are at a limit against which the cost falls."""
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
        """`engine.trust_region_numba._within_box`: (step, is the first block definite, was it found)."""
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


def _bounded(model: _Quadratic, moving: Array, radius: Array, posdef: Array, inside: Array) -> tuple[Array, Array]:
    """The step where the trust region bounds it, or the Hessian is not definite, and the shift; any where `inside`."""
    p, shift = _on_boundary(
        *model.block(moving, jnp.zeros(len(moving))), moving, radius, posdef, inside, model.unrolled
    )
    whole = jnp.where(moving, p * model.scale, 0.0)
    room = jnp.clip(whole, model.below, model.above)
    fractions = jnp.where(room != whole, room / jnp.where(whole == 0, 1.0, whole), 1.0)
    fraction = jnp.min(fractions)
    # the first limit itself, and not next to it
    part = jnp.where((room != whole) & (fractions == fraction), room, whole * fraction)
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
    gain, other = model.gain(room), model.gain(part)
    curved = jnp.where(gain > other, room, part)
    enough = (fraction < 1.0) & ~posdef & (jnp.maximum(gain, other) > ENOUGH * model.gain(step))
    return jnp.where(enough, curved, step), shift


def propose(theta: Array, best: Evaluation, box: Box, radius: Array, unrolled: bool) -> tuple[Array, ...]:
    """Best step within the trust region and the limits: (step, gain, length, shift, posdef, slope).

    Where the shift is 0 the step leads to the minimum of the quadratic model within the limits.
    """
    gradient, hessian = best.gradient, best.hessian
    diagonal = jnp.abs(jnp.diagonal(hessian))
    scale = jnp.where(diagonal > 0, 1.0 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    moving = box.free & ~outward(theta, gradient, box)
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
