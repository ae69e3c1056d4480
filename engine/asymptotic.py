"""Distributions of the test statistics in the limit of large samples.

The estimate of the parameter of interest is normal around its true value mu', with a standard deviation sigma that
comes from the Asimov data of an alternative: q_A = (mu - mu_alt)^2 / sigma^2. All is written with a = mu / sigma and
b = mu' / sigma; Phi is the standard normal distribution.

References
----------
Cowan, Cranmer, Gross & Vitells, Eur. Phys. J. C 71 (2011) 1554, arXiv:1007.1727, sec. 3 and 4.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from engine.arguments import one_of
from engine.test_statistic import TEST_STATISTICS

__all__ = ["BAND", "Asymptotic"]

#: Quantiles of an expected band, in standard deviations.
BAND = (-2, -1, 0, 1, 2)


@dataclass(frozen=True)
class Asymptotic:
    """The distribution of a test statistic, from its value for the Asimov data of an alternative.

    Attributes
    ----------
    test_stat : {"t", "ttilde", "q", "qtilde", "q0"}
    value : float
        Tested value mu; 0 for "q0".
    poi_alt : float
        The alternative mu_alt.
    q_asimov : float
        The statistic of the Asimov data of the alternative, positive.

    Raises
    ------
    ValueError
        If the alternative is the tested value, or q_asimov is not positive.
    """

    test_stat: str
    value: float
    poi_alt: float
    q_asimov: float

    def __post_init__(self) -> None:
        one_of("test_stat", self.test_stat, TEST_STATISTICS)
        if self.value == self.poi_alt or not self.q_asimov > 0:
            raise ValueError(
                "the asymptotic distribution needs an alternative that can be told from the tested value, got "
                f"{self.value:g} and {self.poi_alt:g} with a statistic of {self.q_asimov:g}"
            )

    @property
    def sigma(self) -> float:
        """The standard deviation of the estimate, |mu - mu_alt| / sqrt(q_A)."""
        return abs(self.value - self.poi_alt) / np.sqrt(self.q_asimov)

    def pvalue(self, q: Any, poi_true: float | None = None) -> Any:
        """Probability of a statistic of at least q where the truth is mu', by default the tested value.

        | test_stat | P(statistic >= q), x = sqrt(q) |
        | --- | --- |
        | t | Phi(b - a - x) + Phi(a - b - x), sec. 3.3 |
        | ttilde | the same for q <= a^2, else Phi(b - a - x) + Phi((a^2 - q) / 2a - b), sec. 3.4 |
        | q | Phi(a - b - x), sec. 3.6 |
        | qtilde | the same for q <= a^2, else Phi((a^2 - q) / 2a - b), sec. 3.7 |
        | q0 | Phi(b - x), sec. 3.5 |

        As in these formulae, a one-sided statistic of 0 has the p-value of an estimate at the tested value.

        Parameters
        ----------
        q : float or array
        poi_true : float, optional

        Returns
        -------
        float or array, of the shape of q
        """
        a, b = self.value / self.sigma, (self.value if poi_true is None else poi_true) / self.sigma
        q = np.asarray(q, dtype=np.float64)
        x = np.sqrt(q)
        if self.test_stat == "q0":
            return ndtr(b - x)[()]
        below = a - b - x
        if self.test_stat in ("ttilde", "qtilde"):
            # estimates below 0 count as 0
            below = np.where(q <= a**2, below, (a**2 - q) / (2.0 * a) - b if a > 0 else -np.inf)
        above = ndtr(b - a - x) if self.test_stat in ("t", "ttilde") else 0.0
        return (ndtr(below) + above)[()]

    def significance(self, q: Any) -> Any:
        """The p-value of q as standard deviations of a normal, one-sided: Z = -Phi^-1(p), eq. 1."""
        return -ndtri(self.pvalue(q))

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """Band of p-values at the tested value and at the alternative, where the alternative is the truth.

        For a one-sided statistic the estimate is N standard deviations from the alternative: p = Phi(N - sqrt(q_A)) and
        Phi(N); for the others, the p-values of the quantiles of the statistic.

        Returns
        -------
        (5,), (5,) float64
            For N = -2, -1, 0, 1, 2: increasing p-values, as `pyhf.infer.hypotest` gives them.
        """
        n = np.array(BAND, dtype=np.float64)
        if self.test_stat not in ("t", "ttilde"):
            return ndtr(n - np.sqrt(self.q_asimov)), ndtr(n)
        from scipy.optimize import brentq  # seldom wanted, and slow to import

        # the quantile of the statistic with probability Phi(N) above it
        upper = (np.sqrt(self.q_asimov) + 10.0) ** 2 * 4.0
        above = ndtr(n)
        q = [brentq(lambda x, p=p: self.pvalue(x, self.poi_alt) - p, 0.0, upper, xtol=1e-12) for p in above]
        return self.pvalue(np.array(q)), above
