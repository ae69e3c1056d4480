"""Mean, width and fraction of a sample, each with its Monte Carlo error, and the pulls they are taken of."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtr, ndtri

from engine.result import FitResult

__all__ = [
    "ONE_SIGMA",
    "TOLERATED_FAILURES",
    "Moments",
    "Running",
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


class Running(NamedTuple):
    """Number, mean and sum of squared deviations of a sample that comes block after block."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, sample: np.ndarray) -> "Running":
        """With more of the sample, (n,) numbers.

        References
        ----------
        Chan, Golub & LeVeque, Am. Stat. 37 (1983) 242, eq. 2.1: no difference of large sums.
        """
        if not len(sample):
            return self
        n, mean = self.n + len(sample), float(sample.mean())
        shift, weight = mean - self.mean, len(sample) / n
        squares = float(((sample - mean) ** 2).sum()) + self.n * weight * shift * shift
        return Running(n, self.mean + shift * weight, self.squares + squares)

    @property
    def moments(self) -> Moments:
        """Of n >= 2 numbers: width / sqrt(n) and width / sqrt(2 (n - 1)) are the errors."""
        width = float(np.sqrt(self.squares / (self.n - 1)))
        return Moments(self.mean, width / np.sqrt(self.n), width, width / np.sqrt(2.0 * (self.n - 1)))


def moments(sample: np.ndarray) -> Moments:
    """Moments of (n,) numbers, n >= 2."""
    return Running().add(sample).moments


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
