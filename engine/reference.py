"""The iminuit reference: MIGRAD on the same toys, from the same starts, with an independently differentiated cost.

The cost that MIGRAD sees is the sum of the model's own terms, differentiated by JAX in reverse mode. It shares no code
with the drivers' translated kernels, so that a run carries its own proof.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from iminuit import Minuit
from jax import Array

from engine.cost import Cost
from engine.data import Rows, lane_data, shared_columns
from engine.drivers import Settings
from engine.result import FitResult

__all__ = ["AGREEMENT", "IndependentCost", "ReferenceFit", "Validation", "migrad", "validate"]

STRATEGY = 2
TOLERANCE = 1e-6  # of Minuit: EDM below 2e-9 errordef
AGREEMENT = 1e-3  # largest difference from MIGRAD, in units of the error, of a parameter that agrees


class ReferenceFit(NamedTuple):
    """One fit by MIGRAD. Errors are the square roots of the covariance's diagonal, NaN where there is none."""

    values: np.ndarray
    errors: np.ndarray
    fval: float
    edm: float
    valid: bool
    nfev: int


class Validation(NamedTuple):
    """MIGRAD beside this engine, one row for each validated toy.

    Attributes
    ----------
    toy : (n,) int64
        Number of the toy.
    values, errors : (n, n_params) float64
        Of MIGRAD; where a parameter is on a limit the errors are those that the steps have led to (strategy 0).
    fval, edm : (n,) float64
    valid : (n,) bool
        Whether MIGRAD calls its fit valid.
    difference : (n, n_params) float64
        (this engine - MIGRAD) / error; NaN where there is no error, or MIGRAD ended above. 0 for fixed parameters, and
        where this engine has the value on a limit and MIGRAD within 0.05 of its own error from it.
    agrees : (n,) bool
        All differences below 1e-3 and this engine's fval is the cost at its values; or MIGRAD failed, or ended above
        this engine's minimum.
    """

    toy: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    fval: np.ndarray
    edm: np.ndarray
    valid: np.ndarray
    difference: np.ndarray
    agrees: np.ndarray

    @property
    def worst(self) -> float:
        """Largest |difference| where both fits are valid and have the same minimum; NaN if there is none."""
        compared = np.abs(self.difference[self.compared])
        return float(np.nanmax(compared)) if compared.size and np.isfinite(compared).any() else float("nan")

    @property
    def compared(self) -> np.ndarray:
        return self.valid & np.isfinite(self.difference).all(axis=1)


class IndependentCost:
    """The cost of each toy of `rows`, differentiated by JAX; compiled once."""

    def __init__(self, cost: Cost, rows: Rows) -> None:
        self.rows = rows
        compiled = cost.kept("independent")
        if rows.form not in compiled:
            f = cost.reference(rows)
            both = jax.jit(jax.value_and_grad(f)), jax.jit(functools.partial(_hessian, f))
            # of two threads the first wins, so that both use one, and one waits while the other compiles
            compiled.setdefault(rows.form, (*both, threading.Lock(), []))
        self.first_order, self.second_order, self.lock, lengths = compiled[rows.form]
        longest = [int(np.max(np.diff(leaf.offsets), initial=1)) for leaf in rows.leaves]
        fitting = (known for known in lengths if all(n <= k <= 1.2 * n for n, k in zip(longest, known, strict=True)))
        self.padded = next(fitting, None) or [_padded(n) for n in longest]
        lengths += [] if self.padded in lengths else [self.padded]
        self.shared = shared_columns(rows, self.padded)
        self.toy: int | None = None
        self.data: tuple = ()

    def __call__(self, toy: int, theta: np.ndarray) -> tuple[float, np.ndarray]:
        """(value, gradient)"""
        value, gradient = self._of_toy(self.first_order, toy, theta)
        return float(value), np.asarray(gradient)

    def prepare(self, theta: np.ndarray) -> None:
        """Compile for toys of about as many rows as these have."""
        self(0, theta)
        self.hessian(0, theta)

    def hessian(self, toy: int, theta: np.ndarray) -> np.ndarray:
        return np.asarray(self._of_toy(self.second_order, toy, theta))

    def _of_toy(self, f: Callable, toy: int, theta: np.ndarray) -> Any:
        with jax.enable_x64(True), self.lock:
            if self.toy != toy:
                leaves = zip(self.rows.leaves, self.padded, strict=True)
                lanes = [_lane(leaf, toy, n) for leaf, n in leaves]
                data = jax.tree.map(lambda a: a[0], tuple(lanes))
                self.toy, self.data = toy, jax.device_put((data, self.shared), jax.devices("cpu")[0])
            return f(np.asarray(theta, dtype=np.float64), *self.data)


def _lane(leaf: Rows, toy: int, n_padded: int) -> tuple:
    columns, aux, n_rows = lane_data(leaf, np.array([toy]), n_padded)
    if n_rows[0] == 0 and leaf.columns.size:  # it is padded by 0, where the model may have no derivative
        columns = np.broadcast_to(leaf.columns[None, :, :1], columns.shape)
    return columns, aux, n_rows


def _padded(n_rows: int) -> int:
    """`n_rows` rounded up by 256 or an eighth at most, so that toys of about one length share what is compiled."""
    granule = max(256, 1 << max(n_rows.bit_length() - 4, 0))
    return -(-n_rows // granule) * granule


def _hessian(f: Callable, theta: Array, data: tuple, shared: tuple) -> Array:
    slope = jax.linearize(lambda t: jax.grad(f)(t, data, shared), theta)[1]
    return jax.vmap(slope)(jnp.eye(len(theta)))


def _inside(start: np.ndarray, evaluate: IndependentCost, toy: int, settings: Settings) -> np.ndarray:
    """The start, of which no free parameter is on a limit."""
    at_lower, at_upper = start <= settings.lower, start >= settings.upper
    if not (settings.free & (at_lower | at_upper)).any():
        return start
    gradient, curvature = evaluate(toy, start)[1], np.diagonal(evaluate.hessian(toy, start))
    with np.errstate(invalid="ignore", divide="ignore"):  # what changes the cost by errordef, by slope or curvature
        error = np.fmin(np.sqrt(2.0 * settings.errordef / curvature), settings.errordef / np.abs(gradient))
    step = 0.01 * np.fmin(np.where(error < np.inf, error, np.abs(start) + 1.0), settings.upper - settings.lower)
    return np.where(settings.free, start + np.where(at_lower, step, 0.0) - np.where(at_upper, step, 0.0), start)


def _remembering(f: Callable) -> Callable:
    """A function of parameters that is not evaluated again where it was evaluated last."""
    last: dict[bytes, Any] = {}

    def remembering(theta: np.ndarray) -> Any:
        key = np.asarray(theta, dtype=np.float64).tobytes()
        if key not in last:
            last.clear()
            last[key] = f(theta)
        return last[key]

    return remembering


@contextlib.contextmanager
def _silent(minuit: Minuit) -> Iterator[None]:
    """Without what Minuit prints of its difficulties: the status of a toy tells. Its level is that of all Minuits."""
    before = minuit.print_level
    minuit.print_level = -1
    try:
        yield
    finally:
        minuit.print_level = before


def migrad(
    cost: Cost,
    rows: Rows,
    toy: int,
    start: np.ndarray,
    settings: Settings,
    evaluate: IndependentCost | None = None,
    *,
    exact_hessian: bool = False,
    quick: bool = False,
) -> ReferenceFit:
    """Fit one toy with MIGRAD: exact gradient, strategy 2, tolerance 1e-6; with `quick` strategy 0, and one attempt.

    With `exact_hessian` it starts and ends with the Hessian of `evaluate`; where it cannot, and without, with finite
    differences. From a limit, where Minuit's own parameter has no slope, it starts a hundredth of the error inside.
    """
    evaluate = evaluate or IndependentCost(cost, rows)
    start = _inside(start, evaluate, toy, settings)
    both = _remembering(functools.partial(evaluate, toy))  # Minuit asks for value and gradient one by one
    hessian = _remembering(functools.partial(evaluate.hessian, toy))  # and twice for the Hessian of the start
    minuit = Minuit(
        lambda theta: both(theta)[0],
        np.array(start),
        grad=lambda theta: both(theta)[1],
        hessian=hessian if exact_hessian else False,
        name=cost.names,
    )
    minuit.errordef = settings.errordef
    minuit.strategy = 0 if quick else STRATEGY
    minuit.tol = TOLERANCE
    minuit.limits = list(zip(settings.lower, settings.upper, strict=True))
    minuit.fixed = list(~settings.free)
    # at a limit Minuit's own parameter has no Hessian; and where it is not positive definite, Minuit asks for its
    # diagonal, which iminuit has not: TypeError
    with _silent(minuit), contextlib.suppress(*[TypeError] * exact_hessian):
        minuit.migrad(iterate=1 if quick else 5)
    if exact_hessian and not minuit.valid:
        return migrad(cost, rows, toy, start, settings, evaluate)
    covariance = minuit.covariance
    with np.errstate(invalid="ignore"):
        errors = np.full(len(start), np.nan) if covariance is None else np.sqrt(np.diagonal(np.asarray(covariance)))
    fmin = minuit.fmin
    return ReferenceFit(
        np.array(minuit.values), errors, float(fmin.fval), float(fmin.edm), bool(minuit.valid), fmin.nfcn
    )


def validate(
    cost: Cost,
    rows: Rows,
    result: FitResult,
    toys: np.ndarray,
    start: np.ndarray,
    settings: Settings,
    progress: Callable[[int], None] | None = None,
) -> Validation:
    """Refit some toys with MIGRAD, which is given the exact Hessian, and compare.

    Parameters
    ----------
    cost, rows, result
        The cost, and the data and fits of the same toys.
    toys : (n,) int
        Which of them.
    start : (n_params,) or (n_toys, n_params)
        Start values of the toys of `rows`.
    settings : Settings
    progress : callable, optional
        Called with 1 after each toy.
    """
    evaluate = IndependentCost(cost, rows)
    starts = np.broadcast_to(start, (len(rows), len(cost.names)))
    toys = np.asarray(toys, dtype=np.int64)
    fits, ours = [], np.empty(len(toys))
    for i, k in enumerate(toys.tolist()):
        # on a limit there is no Hessian to end with, and by differences it takes thousands of gradients
        quick = bool(result.at_limit[k].any())
        fits.append(migrad(cost, rows, k, starts[k], settings, evaluate, exact_hessian=True, quick=quick))
        ours[i] = evaluate(k, result.values[k])[0]
        if progress is not None:
            progress(1)
    n_params = len(cost.names)
    values = np.array([f.values for f in fits]).reshape(-1, n_params)
    fval = np.array([f.fval for f in fits])
    valid = np.array([f.valid for f in fits], dtype=bool)
    errors = result.errors[toys]
    with np.errstate(invalid="ignore", divide="ignore"):
        difference = np.where(errors > 0, (result.values[toys] - values) / errors, np.nan)
        # no error: held, or on a limit, where MIGRAD's transformed parameter comes close but never arrives
        difference = np.where(~settings.free, 0.0, difference)
        on_limit = result.at_limit[toys]
        spread = np.array([f.errors for f in fits]).reshape(-1, n_params)
        difference = np.where(on_limit & (np.abs(result.values[toys] - values) <= 0.05 * spread), 0.0, difference)
        above = fval > ours + 1e-3 * result.errordef
        difference = np.where(above[:, None], np.nan, difference)  # it is in another minimum
        same_cost = np.abs(result.fval[toys] - ours) < 1e-3 * result.errordef
        agrees = ~valid | (same_cost & (above | (np.abs(difference) < AGREEMENT).all(axis=1)))
    return Validation(
        toy=toys,
        values=values,
        errors=np.array([f.errors for f in fits]).reshape(-1, n_params),
        fval=fval,
        edm=np.array([f.edm for f in fits]),
        valid=valid,
        difference=difference,
        agrees=agrees,
    )
