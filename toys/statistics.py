"""Bias, pulls and coverage of a batch of fits, each with its Monte Carlo error."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri

from engine.result import FitResult

__all__ = [
    "ONE_SIGMA",
    "TOLERATED_FAILURES",
    "Calibration",
    "Moments",
    "calibration",
    "fraction",
    "known_pulls",
    "known_truth",
    "moments",
]

ONE_SIGMA = float(ndtr(1.0) - ndtr(-1.0))
BINOMIAL = ("wilson", "clopper-pearson")
# a study with more failed fits than this is doubtful: its script ends with exit code 1
TOLERATED_FAILURES = 0.01


class Moments(NamedTuple):
    """Mean and standard deviation (n - 1 in the denominator) of a sample, with the errors they have if it is normal."""

    mean: float
    mean_error: float
    width: float
    width_error: float


def moments(sample: np.ndarray) -> Moments:
    """Moments of (n,) numbers, n >= 2: width / sqrt(n) and width / sqrt(2 (n - 1)) are the errors."""
    n, width = len(sample), float(np.std(sample, ddof=1))
    return Moments(float(sample.mean()), width / np.sqrt(n), width, width / np.sqrt(2.0 * (n - 1)))


def fraction(k: int, n: int, interval: str = "wilson", cl: float = ONE_SIGMA) -> tuple[float, float, float]:
    """k / n with its binomial confidence interval, as (fraction, lower, upper); NaN without any trial.

    Parameters
    ----------
    k, n : int
    interval : {"wilson", "clopper-pearson"}
        Wilson's covers cl on average, Clopper and Pearson's at least cl always.
    cl : float
        Confidence level of the interval, by default that of one standard deviation.

    Raises
    ------
    ValueError
        If there is no such interval.

    References
    ----------
    Wilson, J. Am. Stat. Assoc. 22 (1927) 209; Clopper & Pearson, Biometrika 26 (1934) 404.
    """
    if interval not in BINOMIAL:
        raise ValueError(f"a binomial interval is 'wilson' or 'clopper-pearson', got {interval!r}")
    if n == 0:
        return np.nan, np.nan, np.nan
    tail = 0.5 * (1.0 - cl)
    if interval == "wilson":
        z = ndtri(tail)
        centre, half = k + 0.5 * z**2, abs(z) * np.sqrt(k * (n - k) / n + 0.25 * z**2)
        low, high = (centre - half) / (n + z**2), (centre + half) / (n + z**2)
    else:
        low, high = betaincinv(k, n - k + 1, tail), betaincinv(k + 1, n - k, 1.0 - tail)
    return k / n, float(low) if k else 0.0, float(high) if k < n else 1.0


class Calibration(NamedTuple):
    """How the fits of one parameter compare with the truth, over the valid fits that have an error.

    `bias` is the mean of value - truth, `pull` is (value - truth) / error, `coverage` the fraction with |pull| <= 1,
    which is 68.27 % for an honest error, with its Wilson interval at 68.27 %. Each `_error` is one standard deviation.
    For a parameter of the fit that the toys do not have all of these are NaN.
    """

    name: str
    n: int
    truth: float
    bias: float
    bias_error: float
    pull_mean: float
    pull_mean_error: float
    pull_width: float
    pull_width_error: float
    coverage: float
    coverage_low: float
    coverage_high: float


def known_truth(result: FitResult, truth: Mapping[str, Any]) -> np.ndarray:
    """The true values, (n_toys, n_params), with NaN for parameters without one; other names do no harm.

    Parameters
    ----------
    result : FitResult
    truth : dict name -> true value, or (n_toys,) true values

    Raises
    ------
    ValueError
        If a value is not finite, of another shape, or there is none of any parameter of the fit.
    """
    theta_true = np.full(result.values.shape, np.nan)
    named = [name for name in result.names if name in truth]
    if not named:
        raise ValueError(
            f"truth must name parameters of the fit, which are {', '.join(result.names)}: where the toys come from "
            "another model, give its sampler a component of that name with the truth 0"
        )
    for name in named:
        values = np.asarray(truth[name], dtype=np.float64)
        if values.shape not in [(), (len(result),)] or not np.isfinite(values).all():
            raise ValueError(f"truth[{name!r}] must be a finite number, or ({len(result)},) of them")
        theta_true[:, result.names.index(name)] = values
    return theta_true


def known_pulls(result: FitResult, truth: Mapping[str, float]) -> np.ndarray:
    """The pulls, (n_toys, n_params), with NaN also for parameters without a true value; other names do no harm."""
    pulls = result.pulls({name: truth.get(name, 0.0) for name in result.names})
    pulls[:, [name not in truth for name in result.names]] = np.nan
    return pulls


def calibration(result: FitResult, truth: Mapping[str, float]) -> list[Calibration]:
    """The calibration of every parameter; parameters without an error (held, or always on a limit) are left out.

    Parameters
    ----------
    result : FitResult
    truth : dict name -> true value
        Of the toys, which may have other parameters than the fit.
    """
    pulls = known_pulls(result, truth)
    table = []
    for i, name in enumerate(result.names):
        if name not in truth:
            n = int((result.valid & (result.errors[:, i] > 0)).sum())
            if n >= 2:
                table.append(Calibration(name, n, *[np.nan] * (len(Calibration._fields) - 2)))
            continue
        usable = np.isfinite(pulls[:, i])
        n = int(usable.sum())
        if n < 2:
            continue
        pull, residual = pulls[usable, i], result.values[usable, i] - truth[name]
        bias, spread = moments(residual), moments(pull)
        inside = fraction(int((np.abs(pull) <= 1.0).sum()), n)
        table.append(Calibration(name, n, float(truth[name]), bias.mean, bias.mean_error, *spread, *inside))
    return table
