"""Quasi-Newton steps that lead to where Newton begins, for costs whose gradient is much cheaper than their Hessian.

They start from the inverse of the Hessian that the data have on average at the start, and see values and gradients
alone (BFGS, Nocedal & Wright, Numerical Optimization, 2nd ed., algorithm 7.4). Each must bring down the cost, unless it
is too near for that to be seen, and what is still to be gained; where one does not, or nothing is left to gain, Newton
goes on. Who is put onto a limit stays there until then. The Hessian at the start counts as no evaluation: toys with the
same start share it.

`engine.approach_numba` is the same in loops, so that both drivers come to the same of several minima.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from engine.cholesky import factorise, solve
from engine.newton import moved, scale_of
from engine.rules import ACCEPT, CLOSER, MOST_APPROACH, MOST_PAIRS, NEAR, ROUNDING, SAFE
from engine.trust_region import Box

__all__ = ["ApproachState", "approach_init", "approach_step", "inverse"]


class ApproachState(NamedTuple):
    """One fit on its way. `trial` is where value and gradient are wanted next; `step` led there from `theta`."""

    theta: Array
    value: Array
    absolute: Array
    gradient: Array
    metric: Array
    steps: Array
    changes: Array
    n_pairs: Array
    gain: Array
    trial: Array
    onto: Array
    going: Array
    nfev: Array


def inverse(hessian: Array, free: Array) -> tuple[Array, Array]:
    """The inverse of the free block, zeros elsewhere, and whether it is positive definite."""
    diagonal = jnp.diagonal(hessian)
    scale = jnp.where(free & (diagonal > 0), 1.0 / jnp.sqrt(jnp.where(diagonal > 0, diagonal, 1.0)), 1.0)
    inside, eye = free & free[:, None], jnp.eye(len(free))
    factor, good = factorise(jnp.where(inside, hessian * scale * scale[:, None], eye), 0.0)
    return jnp.where(inside, solve(factor, eye) * scale * scale[:, None], 0.0), good & jnp.all((diagonal > 0) | ~free)


def approach_init(start: Array, n_params: int) -> ApproachState:
    """The state of a fit whose `start` holds the parameters, and behind them the inverse of the expected Hessian."""
    theta, zero = start[:n_params], jnp.zeros(())
    pairs = jnp.zeros((MOST_PAIRS, n_params))
    none = jnp.zeros((), dtype=jnp.int32)
    metric = start[n_params:].reshape(n_params, n_params)
    return ApproachState(
        theta, zero, zero, jnp.zeros(n_params), metric, pairs, pairs, none, zero, theta,
        jnp.asarray(False), jnp.asarray(True), none,
    )  # fmt: skip


def approach_step(state: ApproachState, outputs: Array, box: Box, *, errordef: float, edm_goal: float) -> ApproachState:
    """Judge the trial point, where value, sum of moduli and gradient are `outputs`, and go on from there or end."""
    n_params = len(state.theta)
    value, absolute, gradient = outputs[0], outputs[1], outputs[2 : 2 + n_params]
    first = state.nfev == 0
    good = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    near = jnp.maximum(NEAR * scale_of(errordef, state.absolute), 100.0 * ROUNDING * state.absolute)
    good &= first | (state.gain <= near) | (state.value - value >= ACCEPT * state.gain)

    s, y = state.trial - state.theta, gradient - state.gradient
    paired = ~first & ~state.onto
    good &= ~paired | (jnp.dot(s, y) > 0)
    place = (jnp.arange(MOST_PAIRS) == state.n_pairs)[:, None] & paired
    steps, changes = jnp.where(place, s, state.steps), jnp.where(place, y, state.changes)
    n_pairs = state.n_pairs + paired
    step = downhill(state.metric, gradient, steps, changes, n_pairs)
    gain = -0.5 * jnp.dot(step, gradient)
    good &= first | state.onto | (gain < state.gain)
    quick = first | state.onto | (gain < CLOSER * state.gain)

    choose = lambda new, old: jnp.where(good, new, old)  # noqa: E731
    theta, absolute = choose(state.trial, state.theta), choose(absolute, state.absolute)
    nfev = state.nfev + 1
    left = gain > jnp.maximum(SAFE * edm_goal * scale_of(errordef, absolute), ROUNDING * absolute)
    going = state.going & good & quick & left & (nfev < MOST_APPROACH) & (n_pairs < MOST_PAIRS)

    def crossing(metric: Array, step: Array) -> Array:
        left_out = jnp.diagonal(metric) <= 0
        return going & ~left_out & ((theta + step < box.lower) | (theta + step > box.upper))

    def hold(carry: tuple) -> tuple:
        metric, step = carry
        i = jnp.argmax(crossing(metric, step))
        wanted = jnp.where(step[i] < 0, box.lower[i], box.upper[i]) - theta[i]
        step = (step + (wanted - step[i]) / metric[i, i] * metric[i]).at[i].set(wanted)
        metric = metric - metric[:, i, None] * (metric[i] / metric[i, i])
        return metric.at[i].set(0.0).at[:, i].set(0.0), step

    onto = jnp.any(crossing(state.metric, step))
    step = jnp.where(onto, -(state.metric @ gradient), step)
    metric, step = lax.while_loop(lambda c: jnp.any(crossing(*c)), hold, (state.metric, step))
    new = ApproachState(
        theta=theta,
        value=choose(value, state.value),
        absolute=absolute,
        gradient=choose(gradient, state.gradient),
        metric=metric,
        steps=steps,
        changes=changes,
        n_pairs=jnp.where(onto, 0, n_pairs),
        gain=gain,
        trial=moved(theta, step, box),
        onto=onto,
        going=going,
        nfev=nfev,
    )
    return jax.tree.map(lambda a, b: jnp.where(state.going, a, b), new, state)


def downhill(metric: Array, gradient: Array, steps: Array, changes: Array, n_pairs: Array) -> Array:
    """The step of BFGS from the pairs so far."""
    used = jnp.arange(MOST_PAIRS) < n_pairs
    products = jnp.where(used, jnp.sum(steps * changes, axis=1), 1.0)

    def back(i: Array, carry: tuple) -> tuple:
        rest, weights = carry
        k = MOST_PAIRS - 1 - i
        weight = jnp.where(used[k], jnp.dot(steps[k], rest) / products[k], 0.0)
        return rest - weight * changes[k], weights.at[k].set(weight)

    rest, weights = lax.fori_loop(0, MOST_PAIRS, back, (gradient, jnp.zeros(MOST_PAIRS)))

    def forth(k: Array, step: Array) -> Array:
        weight = weights[k] - jnp.where(used[k], jnp.dot(changes[k], step) / products[k], 0.0)
        return step + jnp.where(used[k], weight, 0.0) * steps[k]

    return -lax.fori_loop(0, MOST_PAIRS, forth, metric @ rest)
