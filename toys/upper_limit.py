"""Upper limits by inversion of tests, with more toys where they matter."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from scipy.special import ndtr

from engine.arguments import one_of
from engine.asimov import NoAsimovError
from engine.asymptotic import BAND
from toys.hypotest import CALCTYPES, asymptotic_test, no_asymptotics, plus_minus
from toys.limit_search import LARGEST, SMALLEST, STEP, LimitSearch, Point, not_excluded, within
from toys.pool import ToyPool, pool_for
from toys.study import Study

__all__ = ["UpperLimit", "upper_limit"]

LARGEST_STEP = 4  # times n_toys at once


@dataclass(frozen=True, eq=False)
class UpperLimit:
    """An upper limit on the parameter of interest.

    Attributes
    ----------
    poi : str
    cl : float
    CLs : bool
        Whether CLs was inverted, or CLsb.
    limit, error : float
        The limit and its Monte Carlo error. NaN where every value is excluded, which is possible without CLs.
    expected, expected_error : (5,) float64
        Limits at -2, -1, 0, 1 and 2 standard deviations of the background, and their Monte Carlo errors; NaN where no
        scanned values enclose one.
    asymptotic, asymptotic_expected : float, (5,) float64
        The same by asymptotic formulae; NaN without Asimov data, infinite where no value is excluded.
    points : list of Point
        All tested values, in their order; empty for asymptotic formulae.
    sentence : str
    """

    poi: str
    cl: float
    test_stat: str
    CLs: bool
    calctype: str
    limit: float
    error: float
    expected: np.ndarray
    expected_error: np.ndarray
    asymptotic: float
    asymptotic_expected: np.ndarray
    points: list[Point]
    sentence: str

    @property
    def inverted(self) -> str:
        """The p-value that is 1 - cl at the limit: "CLs" or "CLsb"."""
        return "CLs" if self.CLs else "CLsb"

    def __repr__(self) -> str:
        lines = [f"{self.poi} < {self.limit:.5g} at {100 * self.cl:g} % CL, by {self.inverted}"]
        if self.calctype == "toybased":
            lines[0] += f", +- {self.error:.2g} by the number of toys; asymptotic {self.asymptotic:.5g}"
        band = zip(BAND, self.expected, self.expected_error, strict=True)
        lines.append("expected " + ", ".join(f"{x:.4g}{plus_minus(error)} ({n:+d})" for n, x, error in band))
        return "\n".join([*lines, self.sentence])


def upper_limit(
    study: Study,
    *,
    poi: str | None = None,
    data: Any = None,
    cl: float = 0.95,
    test_stat: str = "qtilde",
    CLs: bool = True,
    calctype: str = "toybased",
    precision: float = 0.02,
    n_toys: int = 2000,
    max_toys: int = 100_000,
    seed: int = 1,
    auxiliary: str = "redrawn",
    nuisance: str = "profiled",
    pool: ToyPool | None = None,
    backend: str = "auto",
    device: str = "auto",
) -> UpperLimit:
    """The largest value of a parameter that a test at level 1 - cl does not exclude: CLs(limit) = 1 - cl.

    A scan over the asymptotic expected band gives the expected limits and brackets the observed one. Then toys are
    thrown where the limit now seems to be, each time as many as the precision still asks for. Near the limit log
    CLs is taken for a parabola in the value (a line, as long as there are few points), which the binomial numbers
    of toys tell by maximum likelihood; its error at the crossing divided by its slope, which is taken as flatter by
    its own error, is that of the limit. The toys without signal are the same for all values: their error does not
    average and is added. The expected limits are interpolated in the scan, with n_toys at each value: at -2
    standard deviations they are as noisy as the few toys that tell them.

    Parameters
    ----------
    study, poi, data, seed, auxiliary, nuisance, pool, backend, device
        See `toys.hypotest`.
    cl : float
    test_stat : {"qtilde", "q"}
    CLs : bool
        Whether CLs is inverted, or CLsb.
    calctype : {"toybased", "asymptotics"}
    precision : float
        Monte Carlo error of the limit at which to stop, as a fraction of it.
    n_toys : int
        At each value of the scan.
    max_toys : int
        Toys with signal, over all values, beyond which no more are thrown after the scan; the sentence says where that
        was too few.

    Returns
    -------
    UpperLimit

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong form, the observation cannot be fitted, no value is excluded within the limits of
        the parameter, or no toy without signal is as extreme as the observation, which leaves CLs undefined.

    References
    ----------
    Read, J. Phys. G 28 (2002) 2693. Cowan et al., Eur. Phys. J. C 71 (2011) 1554, sec. 4.
    """
    one_of("calctype", calctype, CALCTYPES)
    one_of("test_stat", test_stat, ("qtilde", "q"))
    for name, number in (("cl", cl), ("precision", precision)):
        if not isinstance(number, float) or not 0.0 < number < 1.0:
            raise ValueError(f"{name} must be a number between 0 and 1, got {number!r}")
    options = {"seed": seed, "auxiliary": auxiliary, "nuisance": nuisance, "backend": backend, "device": device}
    pool = pool_for(pool, study, poi, data, **options)
    poi = pool.poi
    told: dict[str, Any] = {"poi": poi, "cl": cl, "test_stat": test_stat, "CLs": CLs, "calctype": calctype}
    guess, without = _first_guess(pool, test_stat), ""
    try:
        asymptotic, band = _asymptotic(pool, test_stat, 1.0 - cl, CLs, guess)
    except NoAsimovError as reason:
        if calctype == "asymptotics":
            raise
        without = f" {no_asymptotics(reason)}"
        asymptotic, band = np.nan, np.full(len(BAND), np.nan)
    if calctype == "asymptotics" and np.isinf(asymptotic):
        raise ValueError(not_excluded(pool, pool.limits[1]))
    told |= {"asymptotic": asymptotic, "asymptotic_expected": band}
    if calctype == "asymptotics":
        return UpperLimit(
            **told,
            limit=asymptotic,
            error=0.0,
            expected=band,
            expected_error=np.zeros(len(band)),
            points=[],
            sentence="Asymptotic formulae, no toys.",
        )

    scan = LimitSearch(pool, test_stat, 1.0 - cl, CLs, guess, n_toys)
    known = np.append(band, asymptotic)
    scan.bracket(known[np.isfinite(known)] if np.isfinite(known).any() else guess * np.array([0.5, 1.0, 1.5]))
    limit, own, shared = scan.crossing()
    while np.isfinite(limit) and not np.hypot(own, shared) <= precision * limit and scan.n_toys < max_toys:
        each = precision * limit / np.sqrt(2.0)  # what either error may be
        scan.n_background = int(np.clip(scan.n_background * (shared / each) ** 2, scan.n_background, max_toys))
        n = int(np.clip(scan.n_near * ((own / each) ** 2 - 1.0), n_toys, LARGEST_STEP * n_toys))
        scan.test(limit, min(n, max_toys - scan.n_toys))
        scan.refresh()
        limit, own, shared = scan.crossing()
    error = float(np.hypot(own, shared))
    expected, expected_error = scan.expected()
    return UpperLimit(
        **told,
        limit=limit,
        error=error,
        expected=expected,
        expected_error=expected_error,
        points=[scan.points[value] for value in sorted(scan.points)],
        sentence=scan.told(limit, error, precision) + without,
    )


def _first_guess(pool: ToyPool, test_stat: str) -> float:
    """About two standard deviations above the estimate, from where the limit is searched."""
    if not pool.limits[1] > 0:
        raise ValueError(f"an upper limit needs values of {pool.poi} above 0, but its limits end at {pool.limits[1]:g}")
    value = within(pool, abs(pool.study.truth[pool.poi]) or 1.0)
    observed = pool.observed(value, test_stat)
    i, q = observed.free.names.index(pool.poi), float(observed.value[0])
    error = float(observed.free.errors[0, i]) or (value / np.sqrt(q) if q > 0 else value)
    return within(pool, max(float(observed.poi_hat[0]), 0.0) + 2.0 * error)


def _asymptotic(pool: ToyPool, test_stat: str, alpha: float, cls: bool, guess: float) -> tuple[float, np.ndarray]:
    """The limit and its expected band by asymptotic formulae."""
    test = cache(lambda value: asymptotic_test(pool, value, 0.0, test_stat))
    observed = _root(pool, lambda value: test(value).CLs if cls else test(value).CLsb, alpha, guess)
    # the expected CLs at N standard deviations is the p-value divided by Phi(N)
    factors = np.ones(len(BAND)) if cls else ndtr(BAND)

    def expected(k: int) -> Callable[[float], float]:
        return lambda value: test(value).expected[k] * factors[k]

    bands = [_root(pool, expected(k), alpha, guess) for k in range(len(BAND))]
    return observed, np.array(bands)


def _root(pool: ToyPool, p: Callable[[float], float], alpha: float, guess: float) -> float:
    """Where p falls to alpha; infinite where no value is excluded, NaN where all are."""
    from scipy.optimize import brentq  # slow to import

    lower, upper = pool.limits
    above = below = guess
    while not p(below) < alpha:
        if below >= min(upper, LARGEST * guess):
            return np.inf
        above, below = below, min(STEP * below, upper)
    while p(above) < alpha:
        below, above = above, above / STEP
        if above < max(lower, SMALLEST * guess):
            return np.nan
    return float(brentq(lambda value: p(value) - alpha, above, below, xtol=1e-9 * below, rtol=1e-9))
