"""Second chances for toys whose fit failed, from the most faithful to their start to the least.

1. From their own start with the Gauss-Newton Hessian, which leaves out the second derivatives of the model: far from
   the minimum they are noise, which makes the exact one indefinite. Newton finishes with the exact Hessian.
2. From where they stood when their steps ran out, with ten times as many: a narrow curved valley is long.
3. From new starts, each the lowest of several points around the old one; by Newton, then as in 1. A toy that ends where
   it had ended before, as at a kink, has no other.
4. From MIGRAD's minimum.

Toys that fail are few, and XLA compiles for seconds for each number of them: numba fits them where the model has a
numba form, whoever fitted the others, unless so many fail that an accelerator is worth it. Who has no minimum keeps the
lowest point that was found, marked. A minimum is refused where the first fit ended at a point that is better by 5
standard deviations. All this depends on the toy, its start and the number of the retry, never on other toys.

References
----------
Nocedal & Wright, Numerical Optimization, 2nd ed., ch. 10.3. Schraudolph, Neural Comput. 14 (2002) 1723-1738, for the
Gauss-Newton matrix of any convex loss.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from engine.cost import Cost
from engine.cpu import NumbaDriver
from engine.data import Rows
from engine.devices import cpu_seconds
from engine.drivers import Fits, Settings, is_valid
from engine.reference import IndependentCost, migrad
from engine.status import Status
from engine.sums import SumCost
from engine.xla import XlaDriver
from kernels.nodes import UntranslatableError

__all__ = ["gauss_newton", "new_starts", "rescue"]

N_STARTS = 16  # points of which a retry starts from the lowest
SPREAD = (0.1, 3.0)  # standard deviation of log(new start / old start), of the first and the last of these
MORE_STEPS = 10  # times as many for a fit whose steps ran out
SAME_VALUE, SAME_COST = 0.01, 0.01  # of where two fits end, the latter in units of errordef
REFUSED = 25.0  # rise of the cost, in units of errordef, at 5 standard deviations
ENDED = (Status.MAX_STEPS, Status.HESSIAN_NOT_POSDEF, Status.STALLED)  # of points that are of use without a minimum
MOST_SECONDS = 1.0  # of plain fits on the cores, of which retries take some twenty times as long
GAUSS_NEWTON_GOAL = 1e-6  # EDM, in units of errordef, at which Newton takes over


def rescue(
    cost: Cost,
    rows: Rows,
    driver: NumbaDriver | XlaDriver,
    fits: Fits,
    good: np.ndarray,
    start: np.ndarray,
    settings: Settings,
    retries: int,
) -> np.ndarray:
    """Fit the toys that failed again, in place.

    Parameters
    ----------
    driver : NumbaDriver or XlaDriver
        The one that made `fits`.
    good : (n,) int
        Toys whose data can be fitted.
    start : (n_toys, n_params) float64
    retries : int
        Number of new starts.

    Returns
    -------
    (n_toys,) bool
        Where it helped.
    """
    rescued, settled = np.zeros((2, len(fits.status)), dtype=bool)
    failed = good[~is_valid(fits, settings)[good]]
    if not len(failed) or not settings.free.any():
        return rescued
    lowest, tried = Fits(*(array[failed] for array in vars(fits).values())), failed
    if isinstance(driver, XlaDriver):
        rows, driver = _on_cores(cost, rows, driver, failed)
    second = _GaussNewton(cost, rows, driver, settings)
    patient = replace(settings, max_steps=MORE_STEPS * settings.max_steps)

    def newton(toys: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Fit, keep what is valid, and return the toys that are not."""
        if not len(toys):
            return toys
        retried = driver.fit(toys, starts, settings)
        fits.nfev[toys] += retried.nfev
        slow = retried.status == Status.MAX_STEPS
        if slow.any():
            retried.put(slow, driver.fit(toys[slow], retried.values[slow], patient))
            fits.nfev[toys[slow]] += retried.nfev[slow]
        better = is_valid(retried, settings) & ~(retried.fval > fits.fval[toys] + REFUSED * settings.errordef)
        kept = Fits(*(getattr(retried, name)[better] for name in Fits.__dataclass_fields__))
        kept.nfev[:] = fits.nfev[toys[better]]
        fits.put(toys[better], kept)
        rescued[toys[better]] = True
        settled[toys] |= _same_place(fits, toys, retried, settings)
        place = np.searchsorted(tried, toys)
        lower = np.isin(retried.status, ENDED) & (np.fmin(lowest.fval[place], np.inf) > retried.fval)
        lowest.put(place[lower], Fits(*(array[lower] for array in vars(retried).values())))
        return toys[~better]

    def gauss_newton_first(toys: np.ndarray, starts: np.ndarray) -> np.ndarray:
        found = second.fit(toys, starts) if len(toys) else None
        if found is None:
            return toys
        fits.nfev[toys] += found.nfev
        finite = np.isfinite(found.fval)
        return np.sort(np.concatenate([newton(toys[finite], found.values[finite]), toys[~finite]]))

    begun = fits.status[failed] != Status.NONFINITE
    failed = np.sort(np.concatenate([gauss_newton_first(failed[begun], start[failed[begun]]), failed[~begun]]))
    slow = failed[fits.status[failed] == Status.MAX_STEPS]
    failed = np.sort(np.concatenate([newton(slow, fits.values[slow]), np.setdiff1d(failed, slow)]))
    settled[:] = False
    for retry in range(retries):
        starts, done, again = np.array(start), failed[settled[failed]], failed[~settled[failed]]
        starts[again] = _lowest(driver, again, new_starts(start[again], settings, retry), settings)
        again = newton(again, starts[again])
        done, again = np.concatenate([done, again[settled[again]]]), again[~settled[again]]
        failed = np.sort(np.concatenate([gauss_newton_first(again, starts[again]), done]))
    if len(failed):
        evaluate = IndependentCost(cost, rows)
        # it only has to come near the minimum
        found = np.array([migrad(cost, rows, k, start[k], settings, evaluate, quick=True).values for k in failed])
        finite = np.isfinite(found).all(axis=1)
        unlucky = newton(failed[finite], np.clip(found[finite], settings.lower, settings.upper))
        failed = np.concatenate([unlucky, failed[~finite]])
        place, nfev = np.searchsorted(tried, failed), fits.nfev[failed]
        fits.put(failed, Fits(*(array[place] for array in vars(lowest).values())))
        fits.nfev[failed] = nfev
    return rescued


def _on_cores(cost: Cost, rows: Rows, driver: XlaDriver, toys: np.ndarray) -> tuple[Rows, NumbaDriver | XlaDriver]:
    """The rows and the numba driver for some toys; those that were given where the accelerator is worth it."""
    if driver.device != "cpu" and cpu_seconds(rows, len(cost.names), len(toys)) > MOST_SECONDS:
        return rows, driver
    there = rows.only(toys)
    try:
        return there, NumbaDriver(cost, there)
    except UntranslatableError:
        return rows, driver


def _same_place(fits: Fits, toys: np.ndarray, others: Fits, settings: Settings) -> np.ndarray:
    """Where fits failed as others of the same toys did, and there: what keeps them there is not the start."""
    before, values = fits.values[toys], others.values
    near = np.abs(values - before) <= SAME_VALUE * (np.abs(values) + np.abs(before))
    same = np.abs(others.fval - fits.fval[toys]) <= SAME_COST * settings.errordef
    return same & (near | ~settings.free).all(axis=1) & (others.status == fits.status[toys])


def new_starts(start: np.ndarray, settings: Settings, retry: int) -> np.ndarray:
    """Points around the starts of toys, (N_STARTS, n_toys, n_params), that depend on the number of the retry alone.

    A free parameter is multiplied by e^(s z), with z from a normal distribution and s from 0.1 to 3; from 0 it goes to
    s z. A start on a limit is where some fits get stuck: all keep a distance.
    """
    z = np.random.default_rng(retry).normal(size=(N_STARTS, 1, start.shape[1]))
    change = np.geomspace(*SPREAD, N_STARTS)[:, None, None] * z
    moved = np.where(start == 0.0, change, start * np.exp(change))
    distance = np.minimum(0.01 * (np.abs(start) + 1e-3), 0.5 * (settings.upper - settings.lower))
    return np.where(settings.free, np.clip(moved, settings.lower + distance, settings.upper - distance), start)


def _lowest(driver: NumbaDriver | XlaDriver, toys: np.ndarray, points: np.ndarray, settings: Settings) -> np.ndarray:
    """For each toy the point of lowest cost, of points (n_points, n_toys, n_params); the first where none is finite."""
    n_points, n_toys, n_params = points.shape
    tried = driver.fit(np.tile(toys, n_points), points.reshape(-1, n_params), replace(settings, max_steps=1))
    values = tried.fval.reshape(n_points, n_toys)
    best = np.argmin(np.where(np.isnan(values), np.inf, values), axis=0)
    return points[best, np.arange(n_toys)]


class _GaussNewton:
    """A driver with the Gauss-Newton Hessian, made like another one when it is first wanted."""

    def __init__(self, cost: Cost, rows: Rows, driver: NumbaDriver | XlaDriver, settings: Settings) -> None:
        self.cost, self.rows, self.like = cost, rows, driver
        self.settings = replace(settings, edm_goal=max(settings.edm_goal, GAUSS_NEWTON_GOAL))
        self.driver: NumbaDriver | XlaDriver | None = None

    def fit(self, toys: np.ndarray, starts: np.ndarray) -> Fits | None:
        """The fits, or None where the linearised model has no numba form."""
        if self.driver is None:
            cost = gauss_newton(self.cost)
            if isinstance(self.like, XlaDriver):
                devices = list(self.like.mesh.devices.flat)
                self.driver = XlaDriver(cost, self.rows, devices, batch_size=self.like.lanes)
            else:
                try:
                    self.driver = NumbaDriver(cost, self.rows, self.like.batch_size)
                except UntranslatableError:
                    return None
        return self.driver.fit(toys, starts, self.settings)


def gauss_newton(cost: Cost) -> Cost:
    """The same cost with a Hessian in which the second derivatives of the model are left out.

    Of sum_i h(m_i) there remains sum_i h''(m_i) grad m_i grad m_i^T, which is never indefinite where h is convex, as
    the square and -log are. Value and gradient are the same. A cost without a model is returned as it is.
    """
    made = cost.kept("gauss newton")
    if not made:
        if isinstance(cost, SumCost):
            made[()] = SumCost(*map(gauss_newton, cost.costs))
        elif hasattr(cost, "model"):
            made[()] = _copied(cost)
            made[()].model = linearised(cost.model, len(cost.names), log=getattr(cost, "log", False))
        else:
            return cost
    return made[()]


def _copied(cost: Any, **changed: Any) -> Any:
    """A cost like another, with nothing in it that belongs to the other."""
    other = copy.copy(cost)
    for name, value in vars(other).items():
        if getattr(value, "__self__", None) is cost:
            vars(other)[name] = value.__func__.__get__(other)
        elif isinstance(value, Cost) and name not in changed:
            vars(other)[name] = _copied(value, nll=other)  # the integral over a fit range
    vars(other).update(changed)
    return other


def linearised(model: Callable, n_params: int, *, log: bool = False) -> Callable:
    """The model with the same value and slopes by its last `n_params` arguments, and without second derivatives.

    With `log` the (last) result is a logarithm, and its exponential is what becomes linear.
    """

    def linear(*args: Any) -> Any:
        others, theta = args[: len(args) - n_params], args[len(args) - n_params :]
        at = tuple(jax.lax.stop_gradient(jnp.asarray(value, dtype=float)) for value in theta)
        step = tuple(value - here for value, here in zip(theta, at, strict=True))
        # an integer has no slope
        real = lambda *t: jax.tree.map(lambda a: jnp.asarray(a, float), model(*others, *t))  # noqa: E731
        value, change = jax.jvp(real, at, step)
        if not log:
            return jax.tree.map(jnp.add, value, change)
        if not isinstance(value, tuple | list):
            return value + jnp.log1p(change)
        return value[0] + change[0], value[1] + jnp.log1p(change[1])

    return linear
