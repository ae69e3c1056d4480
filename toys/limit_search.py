"""Tested values with their toys, and where p crosses 1 - cl among them: what an upper limit is found from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from engine.asymptotic import BAND
from toys.hypotest import HypothesisTest, hypotest, quantile_errors, quantiles
from toys.pool import TIE, ToyPool

__all__ = ["LARGEST", "SMALLEST", "STEP", "LimitSearch", "Point", "not_excluded", "within"]

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


def within(pool: ToyPool, value: float) -> float:
    return float(np.clip(value, *pool.limits))


def not_excluded(pool: ToyPool, value: float) -> str:
    return f"no value of {pool.poi} up to {value:g} is excluded: raise its upper limit"


class LimitSearch:
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
        for value in sorted([*values, 0.8 * values.min(), within(pool, 1.2 * values.max())]):
            if value > 1.05 * last:
                self.test(value, self.n_scan)
                last = value
        observed, band = (lambda point: point.p), (lambda point: point.expected)
        while not (self._some(observed, below=True) and self._some(band, below=True)):
            if max(self.points) >= largest:
                if not self._some(observed, below=True):
                    raise ValueError(not_excluded(pool, max(self.points)))
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
