"""Newton as an optax transformation, and optax transformations as what runs before Newton."""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from optax import GradientTransformation as Transformation

from engine.arguments import one_of
from engine.newton import NewtonState, newton_init, newton_step
from engine.rules import EDM_GOAL, RUNNING
from engine.trust_region import Box, Evaluation, outward

__all__ = [
    "MAX_STEPS",
    "FirstOrderState",
    "Transformation",
    "check_optimizer",
    "first_order_init",
    "first_order_step",
    "named",
    "newton",
]

MAX_STEPS = {"newton": 200, "lbfgs": 200, "adam": 2000}
FIRST_ORDER_GOAL = 1e-2  # scaled gradient at which a first-order optimiser hands over to Newton


def check_optimizer(optimizer: str | Transformation) -> None:
    """Raise ValueError for a name that is not in `MAX_STEPS`, TypeError for what is no transformation either."""
    if isinstance(optimizer, str):
        one_of("optimizer", optimizer, tuple(MAX_STEPS))
    elif not isinstance(optimizer, Transformation):
        raise TypeError(
            f"optimizer must be 'newton', 'lbfgs', 'adam' or an optax transformation, got {type(optimizer).__name__}"
        )
    elif "hessian" in inspect.signature(optimizer.update).parameters:
        raise TypeError(
            "a transformation that wants a Hessian, as engine.newton(), is for loops of your own: pass 'newton'"
        )


@cache
def named(name: str) -> Transformation:
    """The same object for the same name, so that what was compiled for it is found again."""
    make = {"lbfgs": optax.lbfgs, "adam": lambda: optax.adam(0.1)}
    return make[name]()


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


class FirstOrderState(NamedTuple):
    """A fit by an optax transformation that sees value and gradient only."""

    theta: Array
    optimizer: Any
    scale: Array
    unit: Array
    running: Array
    nfev: Array


def first_order_init(start: Array, optimizer: Transformation) -> FirstOrderState:
    """The state of a fit whose `start` holds parameters, and behind them |H_ii|^(-1/2) and the optimizer's units."""
    theta, scale, unit = jnp.split(start, 3)
    return FirstOrderState(
        theta, optimizer.init(theta / unit), scale, unit, jnp.asarray(True), jnp.zeros((), dtype=jnp.int32)
    )


def first_order_step(
    state: FirstOrderState, at: Callable, box: Box, *, optimizer: Transformation, max_steps: int
) -> FirstOrderState:
    """Let the optimizer take a step within the limits, with `at(theta) -> outputs`; who has ended stays as he is."""
    n_params = len(state.theta)
    # a lane that has ended sees a flat cost, so that its line search does not hold the others
    outputs = jnp.where(state.running, at(state.theta), 0.0)
    slope = jnp.where(box.free, outputs[2 : 2 + n_params], 0.0)
    inside = jnp.where(outward(state.theta, slope, box), 0.0, slope)
    reached = jnp.linalg.norm(inside * state.scale) < FIRST_ORDER_GOAL
    updates, inner = optax.with_extra_args_support(optimizer).update(
        slope * state.unit,
        state.optimizer,
        state.theta / state.unit,
        value=outputs[0],
        grad=slope * state.unit,
        value_fn=lambda u: jnp.where(state.running, at(jnp.clip(u * state.unit, box.lower, box.upper))[0], 0.0),
    )
    moved = jnp.clip(state.theta + jnp.where(box.free, updates * state.unit, 0.0), box.lower, box.upper)
    going = state.running & ~reached & jnp.all(jnp.isfinite(moved)) & (state.nfev < max_steps)
    new = FirstOrderState(moved, inner, state.scale, state.unit, going, state.nfev + 1)
    kept = jax.tree.map(lambda new, old: jnp.where(going, new, old), new, state)
    return kept._replace(running=going, nfev=jnp.where(state.running, state.nfev + 1, state.nfev))
