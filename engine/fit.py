"""`fit_batch`: fit all toys at once."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from engine.arguments import check_start, held, limit_arrays, start_points, whole
from engine.cost import Cost, check_cost, differentiated
from engine.data import first_fault, shown
from engine.determined import mark_undetermined
from engine.devices import pick_driver
from engine.drivers import VALID_EDM, Fits, Problem, Settings, is_valid
from engine.normalisation import warn_of_coarse_bins, warn_of_coarse_ranges
from engine.optimizers import MAX_STEPS, Transformation
from engine.regularity import warn_of_irregularities
from engine.rescue import rescue
from engine.result import FitResult
from engine.rowwise import any_of_row
from engine.rules import EDM_GOAL
from engine.sandwich import sandwich
from engine.status import Status
from kernels.program import VALUE

__all__ = ["fit_batch", "needed_problem", "problem_of", "refit"]

RETRIES = 3


def fit_batch(
    cost: Cost,
    data: Any,
    start: Mapping[str, Any] | Sequence | np.ndarray,
    *,
    limits: Mapping[str, tuple] | None = None,
    fixed: Sequence[str] | Mapping[str, Any] | None = None,
    optimizer: str | Transformation = "newton",
    backend: str = "auto",
    device: str = "auto",
    tol: float | None = None,
    max_steps: int | None = None,
    batch_size: int | None = None,
    retries: int = RETRIES,
    progress: bool | Callable[[int], None] = False,
) -> FitResult:
    """Fit every toy of a batch.

    Parameters
    ----------
    cost : Cost
        Model and cost function, for instance `ExtendedUnbinnedNLL(spectrum)`.
    data
        The toys, in the form that the cost takes (see its `rows`). Unbinned: a list of (n,) arrays, an
        (n_toys, n_events) array, or `engine.Ragged`. Binned: counts (n_toys, n_bins). A sum: a tuple with one entry
        per cost. Arrays are not copied: leave them as they are while intervals are asked of the result.
    start : dict or (n_params,) or (n_toys, n_params) array
        Where the fits start; a value of the dict may be a number or an (n_toys,) array.
    limits : dict, optional
        name -> (lower, upper), None is open.
    fixed : list of names, or dict name -> value, optional
        Parameters that are held, at their start value or at the given one (a number or an (n_toys,) array).
    optimizer : {"newton", "lbfgs", "adam"} or optax.GradientTransformation
        Newton needs the fewest evaluations by far. Any other optimiser runs first, on the JAX backend, in units of
        |H_ii|^(-1/2) if it is named here and on the parameters as they are if it is yours; Newton then brings the fit
        from where it ended to the same minimum and gives the covariance.
    backend : {"auto", "numba", "jax"}
        "auto" takes JAX where the device or the optimizer asks for it, else numba. Toys that fail on JAX are retried
        by numba where the model has a numba form, unless they are so many that an accelerator is worth it.
    device : {"auto", "cpu", "gpu", "tpu"}
        "auto" takes a GPU or TPU that JAX sees where the CPU would need more than 20 s, or where `backend` or
        `optimizer` ask for JAX; else the CPU.
    tol : float, optional
        EDM at which to stop, in units of errordef; 1e-13 by default.
    max_steps : int, optional
        Evaluations before the optimizer gives up. Newton behind another optimizer comes on top, and so do retries,
        which take as many again and, where these run out, ten times as many.
    batch_size : int, optional
        Toys that are stepped together (JAX), or fitted between two reports of progress (numba).
    retries : int
        New starts for a toy that fails again from its own with the Gauss-Newton Hessian; if all fail, MIGRAD. 0 leaves
        failed toys as they are.
    progress : bool or callable
        True shows a progress bar; a callable is called with the number of toys that were finished.

    Returns
    -------
    FitResult
        One row per toy. A toy that cannot be fitted has `valid` False and a status that tells why.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong form, names an unknown parameter, or asks for what cannot be had.
    """
    check_cost(cost)
    rows = cost.rows(data)
    start_values = start_points(cost.names, start, len(rows))
    free, start_values = held(cost.names, fixed, start_values)
    lower, upper = limit_arrays(cost.names, limits)
    check_start(cost.names, start_values, lower, upper, free)
    if tol is not None and not (isinstance(tol, float | int | np.floating) and 0.0 < tol <= VALID_EDM):
        raise ValueError(f"tol must be above 0 and at most {VALID_EDM:g} (in units of errordef), got {shown(tol)}")
    for name, value, least in (("max_steps", max_steps, 1), ("batch_size", batch_size, 1), ("retries", retries, 0)):
        if value is not None or name == "retries":
            whole(name, value, least)
    if not (callable(progress) or isinstance(progress, bool | np.bool_)):
        raise TypeError(f"progress must be True, False or a function, got {shown(progress)}")

    if len(rows):
        cost.check(start_values[0])
        warn_of_coarse_bins(cost, start_values[:1], np.ones(1, dtype=bool))
    with differentiated():
        driver = pick_driver(cost, rows, optimizer, backend, device, max_steps, batch_size)
        if len(rows):
            warn_of_irregularities(cost, rows, start_values[0], lower, upper, free)
    newton_steps = max_steps if max_steps is not None and optimizer == "newton" else MAX_STEPS["newton"]
    settings = Settings(lower, upper, free, cost.errordef, EDM_GOAL if tol is None else tol, newton_steps)

    good = np.flatnonzero(~rows.bad)
    if len(rows) and not len(good):
        warnings.warn(f"no toy can be fitted: {first_fault(rows)}", stacklevel=2)
    with differentiated(), progress_bar(progress, len(rows)) as report:
        fits = driver.fit(good, start_values[good], settings, report)
    if len(good) < len(rows):
        fits = fits.among(len(rows), good)
    driver.optimizer = None  # whoever failed is retried by Newton alone
    rescued = np.zeros(len(rows), dtype=bool)
    if retries:
        rescued = rescue(cost, rows, driver, fits, good, start_values, settings, retries)
    result = _finished(Problem(cost, rows, driver, settings, np.arange(len(rows))), fits, start_values, rescued)
    warn_of_coarse_ranges(cost, rows, result)
    warn_of_coarse_bins(cost, result.values, result.valid)
    return result


def refit(problem: Problem, toys: np.ndarray, start: np.ndarray) -> FitResult:
    """The fits of some toys of a problem's data from other starts, (n, n_params), once."""
    fits = problem.driver.fit(toys, start, problem.settings)
    return _finished(replace(problem, toys=toys), fits, start, np.zeros(len(toys), dtype=bool))


def problem_of(
    cost: Cost,
    data: Any,
    result: FitResult,
    *,
    limits: Any = None,
    fixed: Sequence[str] | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> Problem:
    """What was fitted, for a result that was read from a file.

    Raises
    ------
    TypeError, ValueError
        If the result cannot be that of these data within these limits.
    """
    check_cost(cost)
    if not isinstance(result, FitResult):
        raise TypeError(f"result must be a FitResult, got {type(result).__name__}")
    rows = cost.rows(data)
    if cost.names != result.names:
        raise ValueError(f"the result has the parameters {', '.join(result.names)}, the cost {', '.join(cost.names)}")
    if len(rows) != len(result):
        raise ValueError(f"there must be a fit for each toy, got {len(result)} fits and {len(rows)} toys")
    lower, upper = limit_arrays(cost.names, limits)
    free, values = held(cost.names, fixed, result.values)
    if fixed is None:
        free = result.free
    elif result.valid.any() and (free != result.free).any():
        told = ", ".join(name for name, is_free in zip(cost.names, result.free, strict=True) if not is_free)
        raise ValueError(f"fixed must name what the fits held, which is {told or 'nothing'}, got {shown(fixed)}")
    values = np.where(result.valid[:, None], values, np.clip(0.0, lower, upper))
    check_start(cost.names, values, lower, upper, free, what="fitted")
    driver = pick_driver(cost, rows, "newton", backend, device, None, None)
    settings = Settings(lower, upper, free, cost.errordef, EDM_GOAL, MAX_STEPS["newton"])
    problem = Problem(cost, rows, driver, settings, np.arange(len(rows)))
    check_fits(problem, result, values)
    return problem


def check_fits(problem: Problem, result: FitResult, values: np.ndarray) -> None:
    """ValueError if the first valid fit is not of the data of the problem: if the cost at its values is another."""
    some = np.flatnonzero(result.valid)[:1]
    if not len(some):
        return
    [at], [fval] = problem.driver.evaluate(some, values[some])[:, VALUE], result.fval[some]
    if not np.isclose(at, fval, rtol=1e-9, atol=1e-3 * problem.cost.errordef):
        raise ValueError(
            f"the fits are not those of these data with this model: the cost of toy {some[0]} is {at:.10g} at its "
            f"values, and {fval:.10g} in the fit"
        )


def needed_problem(result: FitResult, what: str) -> Problem:
    """The problem of a result; ValueError if it has none."""
    if result.problem is None:
        raise ValueError(
            f"a result that was read from a file, copied or joined has no data: call engine.{what}(cost, data, result, "
            "...)"
        )
    return result.problem


def _finished(problem: Problem, fits: Fits, start: np.ndarray, rescued: np.ndarray) -> FitResult:
    """The result of raw fits, one for each toy of the problem: judged, and with the covariance of weighted events."""
    mark_undetermined(problem, fits, start, rescued)
    score_covariance = problem.cost.score_covariance(problem.rows)
    if score_covariance is not None:
        fits.covariance[:] = sandwich(problem, score_covariance, fits.values, fits.covariance)
        with np.errstate(invalid="ignore"):
            undefined = any_of_row(np.diagonal(fits.covariance, axis1=1, axis2=2) < 0.0)
        fits.status[undefined & (fits.status == Status.CONVERGED)] = Status.HESSIAN_NOT_POSDEF
        fits.posdef[undefined], fits.covariance[undefined], rescued[undefined] = False, np.nan, False
    return as_result(problem, fits, rescued)


def as_result(problem: Problem, fits: Fits, rescued: np.ndarray) -> FitResult:
    variance = np.diagonal(fits.covariance, axis1=1, axis2=2)
    with np.errstate(invalid="ignore"):
        errors = np.sqrt(variance)
    return FitResult(
        names=problem.cost.names,
        values=fits.values,
        errors=errors,
        covariance=fits.covariance,
        fval=fits.fval,
        edm=np.maximum(fits.edm, 0.0) + 0.0,  # nor -0
        valid=is_valid(fits, problem.settings),
        status=fits.status,
        nfev=fits.nfev,
        at_limit=fits.at_limit,
        has_posdef_covar=fits.posdef,
        rescued=rescued,
        errordef=problem.cost.errordef,
        backend=problem.driver.name,
        device=problem.driver.device,
        problem=problem,
    )


@contextmanager
def progress_bar(progress: bool | Callable[[int], None], total: int) -> Iterator[Callable[[int], None] | None]:
    """What reports finished toys: the caller's function, a bar, or None."""
    if callable(progress):
        yield progress
    elif not progress:
        yield None
    else:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        with Progress(TextColumn("fit"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
            task = bar.add_task("fit", total=total)
            yield lambda n: bar.advance(task, n)
