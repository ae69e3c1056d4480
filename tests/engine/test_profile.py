"""Profiles and contours: closed forms and iminuit."""

import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit
from scipy import stats

from engine import LeastSquares, NormalConstraint, PoissonNLL, contour, crossing, fit_batch, profile
from engine.test_statistic import test_statistic as statistic

COST = PoissonNLL(lambda s, b, e: jnp.stack([s * e + b, 2.0 * b])) + NormalConstraint("e", 1.0, 0.2)
LIMITS = {"s": (0, None), "b": (0, None), "e": (0, None)}
START = {"s": 3.0, "b": 10.0, "e": 1.0}
COUNTS = np.random.default_rng(1).poisson([15, 20], (30, 2)).astype(float)
COUNTS[:2] = [[7, 20], [9, 22]]  # with s on its limit


@pytest.fixture(scope="module")
def fits():
    return fit_batch(COST, COUNTS, START, limits=LIMITS)


def minuit_of(fits, k):
    def nll(theta):
        s, b, e = theta
        mu = np.array([s * e + b, 2 * b])
        return np.sum(mu - COUNTS[k] + COUNTS[k] * np.log(COUNTS[k] / mu)) + 0.5 * ((e - 1) / 0.2) ** 2

    minuit = Minuit(nll, fits.values[k], name=fits.names)
    minuit.errordef, minuit.tol, minuit.strategy = 0.5, 1e-6, 2
    minuit.limits = [(0, None)] * 3
    minuit.migrad()
    return minuit


def test_profile_is_that_of_minuit(fits):
    k = int(np.argmax(fits.values[:, 0]))  # far from the limit, where Minuit's errors are those of the covariance
    x = fits.values[k, 0] + np.linspace(-2, 2, 15) * fits.errors[k, 0]
    found = fits.profile("s", size=15)
    np.testing.assert_allclose(found.x[k], x, rtol=1e-12)
    _, theirs, good = minuit_of(fits, k).mnprofile("s", grid=x)
    assert np.all(good)
    np.testing.assert_allclose(found.fval[k], theirs, atol=1e-6)
    assert found.valid.all() and not found.new_minimum.any()
    above = fits.profile("s", size=15, subtract_min=True).fval[k]
    assert above.min() >= -1e-12 and above[7] == pytest.approx(0, abs=1e-12)


def test_profile_of_a_parameter_on_its_limit_has_a_width(fits):
    k = int(np.flatnonzero(fits.at_limit[:, 0])[0])
    found = fits.profile("s", size=9)
    assert found.x[k, 0] == 0 and found.x[k, -1] > 1
    assert np.all(np.diff(found.fval[k, 5:]) > 0)


def test_grids_and_bounds(fits):
    grid = np.linspace(1, 6, 4)
    np.testing.assert_array_equal(fits.profile("s", grid=grid).x, np.tile(grid, (30, 1)))
    own = grid + np.arange(30.0)[:, None]
    found = fits.profile("s", grid=own)
    np.testing.assert_array_equal(found.x, own)
    np.testing.assert_array_equal(found.values[:, :, 0], own)
    np.testing.assert_allclose(fits.profile("s", bound=(2, 8), size=4).x[3], [2, 4, 6, 8])
    read = profile(COST, COUNTS, fits, "s", grid=grid, limits=LIMITS)
    np.testing.assert_allclose(read.fval, fits.profile("s", grid=grid).fval, rtol=1e-12)
    by_jax = fit_batch(COST, COUNTS[:4], START, limits=LIMITS, backend="jax").profile("s", grid=grid)
    np.testing.assert_allclose(by_jax.fval, read.fval[:4], rtol=1e-9)


@pytest.mark.filterwarnings("ignore:no toy can be fitted")
def test_failed_toys_have_no_profile():
    bad = COUNTS[:3].copy()
    bad[1] = np.nan
    found = fit_batch(COST, bad, START, limits=LIMITS).profile("s", size=3)
    assert found.valid.all(axis=1).tolist() == [True, False, True] and np.isnan(found.fval[1]).all()
    none = fit_batch(COST, bad[1:2], START, limits=LIMITS)
    assert np.isnan(profile(COST, bad[1:2], none, "s", size=3, limits=LIMITS).fval).all()
    assert np.isnan(contour(COST, bad[1:2], none, "s", "b", size=3, limits=LIMITS).points).all()


def test_profile_below_the_minimum_is_told():
    wells = LeastSquares(lambda x, a: a**4 - 2 * a**2 + 0.3 * a)
    fits = fit_batch(wells, ([0.0], np.full((2, 1), -2.0), [1.0]), {"a": np.array([0.9, -0.9])})
    assert fits.profile("a", bound=(-1.5, 1.5), size=9).new_minimum.tolist() == [True, False]


def test_contour_of_a_parabola_is_its_ellipse():
    x = np.linspace(0, 1, 9)
    y = np.random.default_rng(2).normal(1 + 2 * x, 0.3, (4, 9))
    fits = fit_batch(LeastSquares(lambda x, a, b: a + b * x), (x, y, 0.3), {"a": 0.0, "b": 0.0})
    for cl, k in ((None, stats.chi2.ppf(0.68, 2)), (0.95, stats.chi2.ppf(0.95, 2)), (1, 2.295748929)):
        found = fits.contour("a", "b", cl=cl, size=12)
        away = found.points - fits.values[:, None]
        distance = np.einsum("tni,tij,tnj->tn", away, np.linalg.inv(fits.covariance), away)
        np.testing.assert_allclose(distance, k, rtol=1e-8)
    assert found.points[0, 0, 0] > fits.values[0, 0]  # the first point lies in the direction of x
    angle = np.unwrap(np.arctan2(away[0, :, 1], away[0, :, 0]))
    assert np.all(np.diff(angle) > 0)


def test_contour_is_that_of_minuit(fits):
    k = int(np.argmax(fits.values[:, 0]))
    found = fits.contour("s", "b", cl=0.68, size=24)
    minuit = minuit_of(fits, k)
    level = minuit.fval + 0.5 * stats.chi2.ppf(0.68, 2)
    for point in found.points[k, ::6]:
        minuit.values["s"], minuit.values["b"] = point
        minuit.fixed["s"] = minuit.fixed["b"] = True
        minuit.migrad()
        assert minuit.fval == pytest.approx(level, abs=1e-6)
    assert found.valid.all() and found.at_limit.any()
    assert np.all(found.points[found.at_limit][:, 0] == 0)
    read = contour(COST, COUNTS, fits, "s", "b", cl=0.68, size=24, limits=LIMITS)
    np.testing.assert_allclose(read.points, found.points, rtol=1e-9)


def test_blocks_of_toys_do_not_matter(fits, monkeypatch):
    whole, along = fits.contour("s", "b", size=6), fits.profile("s", size=5)
    driver, most = fits.problem.driver, []
    for name in ("evaluate", "fit"):
        method = getattr(driver, name)
        counted = lambda toys, *rest, method=method: most.append(len(toys)) or method(toys, *rest)  # noqa: E731
        monkeypatch.setattr(driver, name, counted)
    monkeypatch.setattr(crossing, "MATRICES", 2 * 6 * 9)  # two toys of six rays
    again, once_more = fits.contour("s", "b", size=6), fits.profile("s", size=5)
    assert max(most) <= 12
    np.testing.assert_array_equal(again.points, whole.points)
    np.testing.assert_array_equal(again.at_limit, whole.at_limit)
    np.testing.assert_array_equal(once_more.values, along.values)


def test_mistakes(fits):
    with pytest.raises(ValueError, match="'q'"):
        fits.profile("q")
    with pytest.raises(ValueError, match="two parameters, got 's' twice"):
        fits.contour("s", "s")
    with pytest.raises(ValueError, match="size must be a whole number of at least 2"):
        fits.profile("s", size=1)
    with pytest.raises(ValueError, match="size must be a whole number of at least 3"):
        fits.contour("s", "b", size=2.5)
    for bound in (-1, (3, 2), np.inf):
        with pytest.raises(ValueError, match="bound must be"):
            fits.profile("s", bound=bound)
    with pytest.raises(TypeError, match="subtract_min must be True or False"):
        fits.profile("s", subtract_min=np.array([]))
    with pytest.raises(ValueError, match="within the limits of s"):
        fits.profile("s", grid=[-1.0, 2.0])
    with pytest.raises(ValueError, match="grid must be finite numbers of shape"):
        fits.profile("s", grid=np.ones((3, 2)))
    held = fit_batch(COST, COUNTS[:2], START, limits=LIMITS, fixed=["e"])
    with pytest.raises(ValueError, match="'e' is held"):
        held.profile("e")


@pytest.fixture(scope="module")
def waves():
    """Damped oscillations, few of their fits with a single minimum."""
    x = np.linspace(0.0, 10.0, 30)
    clean = 3.0 * np.exp(-x / 2.0) * np.cos(2.0 * x + 0.3)
    y = clean + np.random.default_rng(3).normal(0.0, 0.7, (400, 30))
    cost = LeastSquares(lambda x, A, tau, w, phase: A * jnp.exp(-x / tau) * jnp.cos(w * x + phase))
    start = {"A": 3.0, "tau": 2.0, "w": 2.0, "phase": 0.3}
    options = {"limits": {"tau": (0.1, 50), "A": (0, None)}}
    return cost, (x, y, 0.7), start, options, fit_batch(cost, (x, y, 0.7), start, **options)


def test_a_profile_stays_in_its_valley(waves):
    """Of the minima of the others it is the lowest that can be reached from the neighbours."""
    profile = waves[-1].profile("A")
    some = profile.valid.all(axis=1)
    assert some.mean() > 0.9
    # where two valleys cross it has a peak, but no spike that falls at once to both sides
    spikes = profile.fval[some, 1:-1] - np.maximum(profile.fval[some, :-2], profile.fval[some, 2:])
    assert spikes.max() < 0.3


def test_the_statistic_at_the_end_of_an_interval_is_one(waves):
    cost, data, start, options, result = waves
    found = result.minos("A")
    ended = result.valid & found.valid["A"]
    tested = np.where(ended, result.values["A"] + found.upper["A"], 3.0)
    value = statistic(cost, data, "A", tested, test_stat="t", start=start, free=result, **options).value
    assert ended.sum() > 350
    assert np.all(value[ended] < 1.001)  # one is lower: the profile has gone on to another valley
    assert np.mean(np.abs(value[ended] - 1.0) < 1e-4) > 0.99
