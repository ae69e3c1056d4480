"""Bias, pulls and coverage of a batch of fits, each with its Monte Carlo error."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, norm

from engine.result import FitResult

__all__ = ["Calibration", "calibration"]

ONE_SIGMA = float(norm.cdf(1.0) - norm.cdf(-1.0))


class Calibration(NamedTuple):
    """How the fits of one parameter compare with the truth, over the valid fits that have an error.

    `bias` is the mean of value - truth, `pull` is (value - truth) / error, `coverage` the fraction with |pull| <= 1,
    which is 68.27 % for an honest error, with its Wilson interval at 68.27 %. Each `_error` is one standard deviation.
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


def calibration(result: FitResult, truth: Mapping[str, float]) -> list[Calibration]:
    """The calibration of every parameter; parameters without an error (held, or always on a limit) are left out.

    Parameters
    ----------
    result : FitResult
    truth : dict name -> true value
    """
    pulls = result.pulls(truth)
    table = []
    for i, name in enumerate(result.names):
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
