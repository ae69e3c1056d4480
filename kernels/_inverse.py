"""Numerical inverse of a monotone function, for quantiles without a closed form."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax

# Bisection alone halves the bracket at every turn; Newton's step takes over as soon as it stays within.
_TURNS = 60


def inverse(function: Callable, target: Array, lower: Array, upper: Array, *theta: Array | float) -> Array:
    """The x in [lower, upper] where an increasing function takes the value `target`, by 60 steps.

    A fixed number of Newton steps, each replaced by a bisection where it leaves the bracket or is longer than half the
    step before. First derivatives in theta and the target are right: one last step, which moves x by rounding only,
    carries them, and the others are constants.

    Parameters
    ----------
    function : callable
        `function(x, *theta) -> (value, slope)`, elementwise.
    target, lower, upper : arrays of one shape
        Value sought, bracket; finite.
    theta : Array
        Everything that the function needs and that may be differentiated.

    Returns
    -------
    Array of the common shape; NaN where the function or the target is NaN.
    """

    def newton(x: Array, target: Array, theta: tuple) -> tuple[Array, Array, Array]:
        value, slope = function(x, *theta)
        rises = slope > 0
        return value > target, rises, (value - target) / jnp.where(rises, slope, jnp.inf)

    def turn(_: int, state: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, x, last = state
        above, rises, step = newton(x, *fixed)
        low, high = jnp.where(above, low, x), jnp.where(above, x, high)
        good = rises & (x - step >= low) & (x - step <= high) & (jnp.abs(step) <= 0.5 * last)
        new = jnp.where(good, x - step, 0.5 * (low + high))
        return low, high, new, jnp.abs(new - x)

    fixed = jax.tree.map(lax.stop_gradient, (target, theta))
    start = jax.tree.map(lax.stop_gradient, (lower, upper, 0.5 * (lower + upper), upper - lower))
    x = lax.fori_loop(0, _TURNS, turn, start)[2]
    return x - newton(x, target, theta)[2]
