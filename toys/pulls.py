"""Pulls of a batch of fits: is the estimate biased, and is the error bar as wide as the estimate scatters?"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from engine.minos import MinosResult
from engine.printing import Table, pdg_format
from engine.result import FitResult
from toys.statistics import known_pulls, known_truth, moments

__all__ = ["PullRow", "Pulls", "minos_pulls", "pulls", "same_toys"]

QUANTILES = ndtr([-1.0, 0.0, 1.0])
FEWEST_FOR_SHAPE = 20  # skewness and kurtosis of fewer say nothing of their distribution


class PullRow(NamedTuple):
    """How one parameter compares with the truth, over the toys that have a pull; an `_error` is one standard deviation.

    Attributes
    ----------
    name : str
    method : str
        "hesse" or "minos", after the error in the denominator of the pull.
    n_toys, n : int
        All toys, and those that have a pull.
    missing : dict
        Why the others have none: kind -> number of toys. `n_toys == n + sum(missing.values())`.
    truth : float
        NaN where it differs from toy to toy.
    bias, residual_std : float
        Mean and standard deviation of value - truth, in the units of the parameter.
    pull_mean, pull_width : float
        Mean and standard deviation, with n - 1, which are those of a normal distribution fitted to them.
    median, robust_width : float
        The median, and half the central interval of 68.27 %, which a few pulls far out do not move.
    p_standard : float
        Kolmogorov-Smirnov p-value of the pulls against the standard normal distribution.
    p_normal : float
        p-value of their skewness and kurtosis against those of any normal distribution (D'Agostino and Pearson); NaN
        below 20 toys.
    """

    name: str
    method: str
    n_toys: int
    n: int
    missing: dict[str, int]
    truth: float
    bias: float
    bias_error: float
    residual_std: float
    residual_std_error: float
    pull_mean: float
    pull_mean_error: float
    pull_width: float
    pull_width_error: float
    median: float
    robust_width: float
    p_standard: float
    p_normal: float


@dataclass(frozen=True, eq=False)
class Pulls:
    """Pulls of every toy, and a row of their moments for each parameter and method.

    Attributes
    ----------
    names : tuple of str
        Columns of the arrays.
    truth, values, errors : (n_toys, n_params) float64
        NaN where there is no true value, no valid fit, no error.
    by_method : dict
        "hesse", and "minos" if there are such intervals -> (n_toys, n_params) float64; NaN where a toy has no pull.
    rows : list of PullRow
        Parameters with fewer than two pulls, such as those that are held, have no row.
    """

    names: tuple[str, ...]
    truth: np.ndarray
    values: np.ndarray
    errors: np.ndarray
    by_method: dict[str, np.ndarray]
    rows: list[PullRow]

    def of(self, name: str, method: str = "hesse") -> np.ndarray:
        """The pulls of one parameter, (n,), without NaN."""
        column = self.by_method[method][:, self.names.index(name)]
        return column[np.isfinite(column)]

    def table(self) -> Table:
        heading = ["", "error", "toys", "bias", "pull mean", "pull width", "median", "robust width", "p(N(0, 1))"]
        cells = [
            [
                row.name,
                row.method,
                f"{row.n}",
                " ± ".join(pdg_format(row.bias, row.bias_error)),
                f"{row.pull_mean:+.3f} ± {row.pull_mean_error:.3f}",
                f"{row.pull_width:.3f} ± {row.pull_width_error:.3f}",
                f"{row.median:+.3f}",
                f"{row.robust_width:.3f}",
                f"{row.p_standard:.2g}",
            ]
            for row in self.rows
        ]
        return Table([f"pulls of {len(self.values)} toys"], heading, cells or [["no pulls"] + [""] * 8])

    def __repr__(self) -> str:
        return self.table().text()

    def _repr_html_(self) -> str:
        return self.table().html()


def pulls(result: FitResult, truth: Mapping[str, Any], minos: MinosResult | None = None) -> Pulls:
    """Bias and pulls of every parameter that has a true value.

    The pull is g = (theta_hat - theta_true) / sigma with the error of the fit. With MINOS intervals of one standard
    deviation there is also the pull with the error on the side of the truth,

        sigma = upper where theta_true > theta_hat, else -lower.

    A side that ends on a limit is no standard deviation, so that such a toy has no MINOS pull if the truth lies there.

    Parameters
    ----------
    result : FitResult
    truth : dict name -> true value, or (n_toys,) true values
        Names that the fit does not have do no harm; parameters without a true value have no pulls.
    minos : MinosResult, optional
        Of the same toys, at one standard deviation.

    Returns
    -------
    Pulls

    Raises
    ------
    ValueError
        If a true value is not finite, or none is known, or `minos` is of other toys.

    References
    ----------
    Demortier & Lyons, Everything you always wanted to know about pulls, CDF note 5776 (2002), section 3.
    D'Agostino & Pearson, Biometrika 60 (1973) 613.
    """
    theta_true = known_truth(result, truth)
    values = np.where(result.valid[:, None], result.values, np.nan)
    errors = np.where(result.valid[:, None] & (result.errors > 0), result.errors, np.nan)
    by_method = {"hesse": known_pulls(result, truth)}
    why = np.where(result.valid[:, None], "no error: held, or at a limit", "no valid fit")
    kinds = {"hesse": np.broadcast_to(why, values.shape)}
    estimates = {"hesse": values}
    if minos is not None:
        by_method["minos"], kinds["minos"] = minos_pulls(result, theta_true, minos)
        estimates["minos"] = np.where(minos.result.valid[:, None], minos.result.values, np.nan)
    rows = []
    for i, name in enumerate(result.names):
        for method, pull in by_method.items():
            has = np.isfinite(pull[:, i])
            if has.sum() > 1:
                missing = dict(Counter(kinds[method][~has, i].tolist()))
                residual = (estimates[method] - theta_true)[has, i]
                rows.append(_row(name, method, pull[has, i], residual, theta_true[:, i], missing))
    return Pulls(result.names, theta_true, values, errors, by_method, rows)


def _row(
    name: str, method: str, pull: np.ndarray, residual: np.ndarray, truth: np.ndarray, missing: dict[str, int]
) -> PullRow:
    from scipy.stats import kstest, normaltest  # slow to import

    low, median, high = np.quantile(pull, QUANTILES)
    return PullRow(
        name,
        method,
        len(truth),
        len(pull),
        missing,
        float(truth[0]) if np.ptp(truth) == 0 else np.nan,
        *moments(residual),
        *moments(pull),
        float(median),
        float(0.5 * (high - low)),
        float(kstest(pull, "norm").pvalue),
        float(normaltest(pull).pvalue) if len(pull) >= FEWEST_FOR_SHAPE and np.ptp(pull) > 0 else np.nan,
    )


def same_toys(result: FitResult, minos: MinosResult) -> None:
    """Raise ValueError where intervals and fits are not of the same toys and parameters."""
    if len(minos.lower) != len(result):
        raise ValueError(f"minos must have an interval for each of {len(result)} toys, got {len(minos.lower)}")
    unknown = [name for name in minos.names if name not in result.names]
    if unknown:
        raise ValueError(f"minos has intervals of {', '.join(unknown)}, which the fit does not have")


def minos_pulls(result: FitResult, theta_true: np.ndarray, minos: MinosResult) -> tuple[np.ndarray, np.ndarray]:
    """(pulls, why there is none) with the MINOS error on the side of the truth, (n_toys, n_params) each."""
    same_toys(result, minos)
    pulls = np.full(result.values.shape, np.nan)
    why = np.full(result.values.shape, "no valid fit", dtype=object)
    why[minos.result.valid] = "no MINOS interval"
    for j, name in enumerate(minos.names):
        i = result.names.index(name)
        distance = minos.result.values[:, i] - theta_true[:, i]
        above = distance < 0
        sigma = np.where(above, minos.upper[:, j], -minos.lower[:, j])
        limit = np.where(above, minos.at_upper_limit[:, j], minos.at_lower_limit[:, j])
        why[minos.valid[:, j] & (limit | (sigma == 0)), i] = "the interval ends on a limit"
        usable = minos.valid[:, j] & ~limit & (sigma > 0) & np.isfinite(distance)
        np.divide(distance, sigma, out=pulls[:, i], where=usable)
    return pulls, why
