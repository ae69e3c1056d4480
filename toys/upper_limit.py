"""Upper limits by inversion of tests, with more toys where they matter."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr

from engine.arguments import one_of
from engine.asimov import NoAsimovError
from engine.asymptotic import BAND
from toys.hypotest import (
    CALCTYPES,
    HypothesisTest,
    asymptotic_test,
    hypotest,
    no_asymptotics,
    plus_minus,
    quantile_errors,
    quantiles,
)
from toys.pool import TIE, ToyPool, pool_for
from toys.study import Study

__all__ = ["Point", "UpperLimit", "upper_limit"]

LARGEST_STEP = 4  # times n_toys at once
STEP = 1.5  # from one value to the next where the limit has not been enclosed
SMALLEST, LARGEST = 1e-4, 1e8  # of the first guess: values beyond which it is not searched


class Point(NamedTuple):
    """One tested value.

    Attributes
    ----------
    value : float
    p, error : float
        CLs, or CLsb where that was asked for, and its Monte Carlo error.
    CLb, shared : float
        CLb and its relative Monte Carlo error, from toys that all values share; 1 and 0 where CLsb was asked for.
    expected, expected_error : (5,) float64
        The same at -2, -1, 0, 1 and 2 standard deviations of the background, and its Monte Carlo errors.
    n_toys, n_background : int
        Toys at the tested value and without signal.
    ties, failed : int
        Of both.
    """

    value: float
    p: float
    error: float
    CLb: float
    shared: float
    expected: np.ndarray
    expected_error: np.ndarray
    n_toys: int
    n_background: int
    ties: int
    failed: int


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
        raise ValueError(_not_excluded(pool, pool.limits[1]))
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

    scan = _Scan(pool, test_stat, 1.0 - cl, CLs, guess, n_toys)
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
    value = _within(pool, abs(pool.study.truth[pool.poi]) or 1.0)
    observed = pool.observed(value, test_stat)
    i, q = observed.free.names.index(pool.poi), float(observed.value[0])
    error = float(observed.free.errors[0, i]) or (value / np.sqrt(q) if q > 0 else value)
    return _within(pool, max(float(observed.poi_hat[0]), 0.0) + 2.0 * error)


def _within(pool: ToyPool, value: float) -> float:
    return float(np.clip(value, *pool.limits))


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


def _not_excluded(pool: ToyPool, value: float) -> str:
    return f"no value of {pool.poi} up to {value:g} is excluded: raise its upper limit"


class _Scan:
    """Tested values with their toys, and where they cross 1 - cl."""

    def __init__(self, pool: ToyPool, test_stat: str, alpha: float, cls: bool, guess: float, n_toys: int) -> None:
        self.pool, self.test_stat, self.alpha, self.cls, self.guess = pool, test_stat, alpha, cls, guess
        self.n_scan = self.n_background = n_toys
        self.points: dict[float, Point] = {}

    @property
    def n_toys(self) -> int:
        return sum(point.n_toys for point in self.points.values())

    def test(self, value: float, n_toys: int) -> None:
        """Throw toys at a value, or as many more."""
        value = float(value)
        n_toys += self.points[value].n_toys if value in self.points else 0
        options: dict[str, Any] = {"poi": self.pool.poi, "poi_alt": 0.0, "test_stat": self.test_stat, "pool": self.pool}
        test = hypotest(self.pool.study, value, n_toys=n_toys, n_toys_alt=self.n_background, **options)
        self.points[value] = self._point(test, n_toys)

    def refresh(self) -> None:
        """Bring the points near the limit to the present number of toys without signal, which are fitted there."""
        for point in self._near():
            if point.n_background < self.n_background:
                self.test(point.value, 0)

    def _point(self, test: HypothesisTest, n_toys: int) -> Point:
        cls, thrown = self.cls, (test.q_null, test.q_alternative)
        if np.isnan(test.CLsb):
            raise ValueError(
                f"the fits of all {n_toys} toys at {test.poi} = {test.value:g} failed, which leaves no p-value: pass "
                "other starts or limits, or check the sampler"
            )
        if cls and np.isnan(test.CLb):
            raise ValueError(
                f"the fits of all {self.n_background} toys without signal failed, which leaves no CLs at {test.poi} = "
                f"{test.value:g}: pass other starts or limits, or check the sampler"
            )
        if cls and not test.CLb > 0:
            raise ValueError(
                f"none of {self.n_background} toys without signal is as extreme as the data, which leaves no CLs at "
                f"{test.poi} = {test.value:g}: raise the number of toys, or check the data"
            )
        return Point(
            value=test.value,
            p=test.CLs if cls else test.CLsb,
            error=test.CLs_error if cls else test.CLsb_error,
            CLb=test.CLb if cls else 1.0,
            shared=test.CLb_error / test.CLb if cls else 0.0,
            expected=test.expected if cls else quantiles(*thrown, ratio=False),
            expected_error=quantile_errors(*thrown, ratio=cls),
            n_toys=n_toys,
            n_background=self.n_background,
            ties=test.ties,
            failed=test.failed,
        )

    def bracket(self, values: np.ndarray) -> None:
        """Test these values and those around them, and beyond where they do not enclose the limit or its band."""
        pool, last = self.pool, 0.0
        smallest, largest = max(pool.limits[0], SMALLEST * self.guess), min(pool.limits[1], LARGEST * self.guess)
        for value in sorted([*values, 0.8 * values.min(), _within(pool, 1.2 * values.max())]):
            if value > 1.05 * last:
                self.test(value, self.n_scan)
                last = value
        observed, band = (lambda point: point.p), (lambda point: point.expected)
        while not (self._some(observed, below=True) and self._some(band, below=True)):
            if max(self.points) >= largest:
                if not self._some(observed, below=True):
                    raise ValueError(_not_excluded(pool, max(self.points)))
                break
            self.test(min(STEP * max(self.points), pool.limits[1]), self.n_scan)
        # without signal CLs is 1, but CLsb may exclude every value
        while not (self._some(observed, below=False) and (not self.cls or self._some(band, below=False))):
            if min(self.points) / STEP < smallest:
                break
            self.test(min(self.points) / STEP, self.n_scan)

    def _some(self, p: Callable[[Point], Any], *, below: bool) -> bool:
        """Whether some value has all p below the level, or from there on; or where they are unknown."""
        told = [np.asarray(p(point)) for point in self.points.values()]
        return any(bool(np.all(((each < self.alpha) == below) | np.isnan(each))) for each in told)

    def _near(self, neighbours: int = 1) -> list[Point]:
        """Points that tell where the limit is: those with p within a factor e of 1 - cl, and its neighbours."""
        points = [self.points[value] for value in sorted(self.points)]
        below = [k for k, point in enumerate(points) if point.p < self.alpha]
        above = [k for k, point in enumerate(points) if point.p >= self.alpha]
        around = range(below[0] - neighbours, max(above, default=-1) + 1 + neighbours)
        return [p for k, p in enumerate(points) if k in around or abs(self._height(p)) < 1.0]

    def _height(self, point: Point) -> float:
        return float(np.log(max(point.p, 1.0 / (point.n_toys + 2)) / self.alpha))

    @property
    def n_near(self) -> int:
        return sum(point.n_toys for point in self._near())

    def crossing(self) -> tuple[float, float, float]:
        """The limit and its Monte Carlo errors by toys of the points and by those that they share; NaN without any."""
        if all(point.p < self.alpha for point in self.points.values()):
            return np.nan, np.nan, np.nan
        middle = float("nan")
        # where few toys let p seem to rise, those further away tell the slope
        for neighbours, degree in ((1, 2), (1, 1), (2, 1), (3, 1)):
            near = self._near(neighbours)
            x = np.array([point.value for point in near])
            middle, width = np.average(x, weights=[point.n_toys for point in near]), max(np.ptp(x), 1e-9 * x[-1])
            if len(x) <= degree + 1 and degree > 1:
                continue
            curve, covariance = self._curve(near, np.vander((x - middle) / width, degree + 1))
            roots = [r.real for r in curve.roots if abs(r.imag) < 1e-12 and curve.deriv()(r.real) < 0]
            first, last = max(x[0] - width, min(self.points)), min(x[-1] + width, max(self.points))
            inside = [r for r in roots if first <= middle + width * r <= last]
            if inside:
                root = min(inside, key=abs)
                limit, slope = middle + width * root, -curve.deriv()(root) / width
                powers = np.arange(degree, -1, -1.0)
                row, along = root**powers, powers * root ** np.maximum(powers - 1.0, 0.0) / width
                # flatter by its error: else curves that seem steep would be those that end the search
                slope /= 1.0 + np.sqrt(along @ covariance @ along) / slope
                shared = near[int(np.argmin(np.abs(x - limit)))].shared
                return float(limit), float(np.sqrt(row @ covariance @ row) / slope), float(shared / slope)
        return float(middle), np.inf, 0.0

    def _curve(self, points: list[Point], design: np.ndarray) -> tuple[np.poly1d, np.ndarray]:
        """log p / (1 - cl) as a polynomial, and its covariance: maximum likelihood for the binomial numbers of toys.

        By iteratively reweighted least squares, as errors taken from the numbers themselves would favour the upward
        fluctuations (McCullagh & Nelder, Generalized Linear Models, 2nd ed., sec. 2.5).
        """
        n = np.array([point.n_toys for point in points])
        # a point without any extreme toy would make the curve fall without end
        found = np.maximum([point.p * point.CLb for point in points], 0.5 / n)
        level = self.alpha * np.array([point.CLb for point in points])
        log_p = np.array([self._height(point) for point in points])
        for _ in range(20):
            p = np.clip(level * np.exp(log_p), 0.1 / n, 1.0 - 1.0 / (n + 2))
            weights = n * p / (1.0 - p)
            covariance = np.linalg.pinv(design.T * weights @ design)
            coefficients = covariance @ (design.T * weights) @ (log_p + (found - p) / p)
            log_p = design @ coefficients
        return np.poly1d(coefficients), covariance

    def expected(self) -> tuple[np.ndarray, np.ndarray]:
        """The expected band of the limit, interpolated in the logarithm, and its errors; NaN where nothing encloses it.

        The two points of an interpolation share the toys without signal: their errors are taken for one.
        """
        points = [self.points[value] for value in sorted(self.points)]
        x, limits, errors = np.array([point.value for point in points]), *np.full((2, len(BAND)), np.nan)
        for k in range(len(BAND)):
            p = np.array([max(point.expected[k], 1.0 / (point.n_toys + 2)) for point in points])
            y = np.log(p / self.alpha)
            crossed = np.flatnonzero((y[:-1] >= 0) & (y[1:] < 0))
            if len(crossed):
                i = crossed[0]
                to_next, relative = y[i] / (y[i] - y[i + 1]), np.array([pt.expected_error[k] for pt in points]) / p
                limits[k] = x[i] + (x[i + 1] - x[i]) * to_next
                error = (1.0 - to_next) * relative[i] + to_next * relative[i + 1]
                errors[k] = error * (x[i + 1] - x[i]) / (y[i] - y[i + 1])
        return limits, errors

    def told(self, limit: float, error: float, precision: float) -> str:
        points = list(self.points.values())
        ties, failed = sum(point.ties for point in points), sum(point.failed for point in points)
        told = f"{self.pool.sentence} {self.n_toys} toys at {len(points)} values of {self.pool.poi}, "
        told += f"{self.n_background} without signal; {failed} fits of toys failed and are left out."
        if ties:
            told += f" {ties} are within {TIE:g} of the observation and count as extreme."
        unknown = [f"{n:+d}" for n, expected in zip(BAND, self.expected()[0], strict=True) if np.isnan(expected)]
        if unknown:
            told += (
                f" No tested values enclose the limit that is expected at {', '.join(unknown)} standard deviations, "
                f"which is nan: raise the number of toys, or the upper limit of {self.pool.poi}."
            )
        if not np.isfinite(limit):
            return f"{told} Every value is excluded: the interval is empty."
        if not error <= precision * limit:
            told += f" The Monte Carlo error is above {precision:g} of the limit: raise max_toys."
        return told
