"""Bias, pulls and coverage of a batch of fits, each with its Monte Carlo error."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm

from engine.result import FitResult

__all__ = ["Calibration", "calibration", "known_pulls"]

ONE_SIGMA = float(norm.cdf(1.0) - norm.cdf(-1.0))


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
        width = float(np.std(pull, ddof=1))
        inside = int((np.abs(pull) <= 1.0).sum())
        interval = binomtest(inside, n).proportion_ci(confidence_level=ONE_SIGMA, method="wilson")
        table.append(
            Calibration(
                name=name,
                n=n,
                truth=float(truth[name]),
                bias=float(residual.mean()),
                bias_error=float(np.std(residual, ddof=1) / np.sqrt(n)),
                pull_mean=float(pull.mean()),
                pull_mean_error=width / np.sqrt(n),
                pull_width=width,
                pull_width_error=width / np.sqrt(2.0 * (n - 1)),
                coverage=inside / n,
                coverage_low=float(interval.low),
                coverage_high=float(interval.high),
            )
        )
    return table
