"""MINOS intervals: closed forms, iminuit, limits, other minima, both drivers."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit
from scipy import optimize, stats

from engine import (
    LeastSquares,
    NormalConstraint,
    PoissonNLL,
    UnbinnedNLL,
    Weighted,
    crossing,
    fit,
    fit_batch,
    minos,
)
from engine import test_statistic as statistic_of
from engine.fit import EDM_GOAL
from engine.minos import level
from engine.reference import IndependentCost
from kernels import norm, truncexpon, truncnorm
from toys import generate
from toys.models import STUDIES

COUNTING = PoissonNLL(lambda mu: jnp.stack([mu]))
COUNTS = np.arange(12.0)[:, None]
POSITIVE = {"mu": (0, None)}

# signal times efficiency plus background, and a second count that tells the background
THREE = PoissonNLL(lambda s, b, e: jnp.stack([s * e + b, 2.0 * b])) + NormalConstraint("e", 1.0, 0.2)
THREE_LIMITS = {"s": (0, None), "b": (0, None), "e": (0, None)}
THREE_START = {"s": 3.0, "b": 10.0, "e": 1.0}

# two minima: the one at -1.04 is lower than the one at 0.96
WELLS = LeastSquares(lambda x, a: a**4 - 2 * a**2 + 0.3 * a)


def rise(mu: float, n: int) -> float:
    """-log L of n counts above its minimum."""
    return mu - n + (n * np.log(n / mu) if n else 0.0)


def poisson_interval(n: int, k: float) -> tuple[float, float]:
    """Where -log L has risen by k / 2, by bisection."""
    upper = optimize.brentq(lambda mu: rise(mu, n) - k / 2, max(n, 1e-9), n + 200, xtol=1e-13)
    lower = optimize.brentq(lambda mu: rise(mu, n) - k / 2, 1e-300, n, xtol=1e-14) if n else 0.0
    return lower - n, upper - n


@pytest.fixture(scope="module")
def three():
    counts = np.random.default_rng(1).poisson([13, 20], (200, 2)).astype(float)
    return counts, fit_batch(THREE, counts, THREE_START, limits=THREE_LIMITS)


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("cl", [None, 0.9, 2, 3.0, 5])
def test_poisson_counts(backend, cl):
    result = fit_batch(COUNTING, COUNTS, {"mu": 3.0}, limits=POSITIVE, backend=backend)
    found = result.minos(cl=cl)
    exact = np.array([poisson_interval(n, level(cl)) for n in range(len(COUNTS))])
    assert found.valid.all()
    np.testing.assert_allclose(found.lower[:, 0], exact[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.upper[:, 0], exact[:, 1], rtol=1e-5)
    # of no counts the interval begins at the limit, where the fit already is
    np.testing.assert_array_equal(found.at_lower_limit[:, 0], np.arange(len(COUNTS)) == 0)
    assert not found.at_upper_limit.any() and found.lower[0, 0] == 0


def test_interval_that_ends_on_a_limit_extends_to_it():
    result = fit_batch(COUNTING, COUNTS, {"mu": 3.0}, limits={"mu": (2.5, 12.0)})
    found = result.minos("mu")
    ends = result.values + np.stack([found.lower, found.upper])
    exact = np.clip([poisson_interval(n, 1.0)[0] + n for n in range(3, 12)], 2.5, None)
    np.testing.assert_allclose(ends[0, 3:, 0], exact, rtol=1e-7)
    assert (ends[0, found.at_lower_limit] == 2.5).all() and (ends[1, found.at_upper_limit] == 12.0).all()
    assert found.at_lower_limit[:5].all() and not found.at_lower_limit[5:].any()
    assert found.at_upper_limit[9:].all() and found.valid.all()


def test_intervals_of_a_parabola_are_the_errors():
    x = np.linspace(-1, 1, 9)
    y = np.random.default_rng(2).normal(1 + 2 * x, 0.3, (20, 9))
    result = fit_batch(LeastSquares(lambda x, a, b: a + b * x), (x, y, 0.3), {"a": 0.0, "b": 0.0})
    for cl, k in ((None, 1.0), (0.9, stats.norm.ppf(0.95)), (3, 3.0)):
        found = result.minos(cl=cl)
        np.testing.assert_allclose(found.upper, k * result.errors, rtol=1e-9)
        np.testing.assert_allclose(found.lower, -k * result.errors, rtol=1e-9)


def test_minuit_with_limits_of_other_parameters(three):
    counts, result = three
    found = result.minos()
    assert found.valid.all() and not found.new_minimum.any()
    assert 0.5 < found.at_lower_limit[:, 0].mean() < 0.8  # s, often on its limit or less than an error from it
    for k in range(40):

        def nll(theta, n=counts[k]):
            s, b, e = theta
            mu = np.array([s * e + b, 2 * b])
            return np.sum(mu - n + n * np.log(n / mu)) + 0.5 * ((e - 1) / 0.2) ** 2

        minuit = Minuit(nll, result.values[k], name=result.names)
        minuit.errordef, minuit.tol, minuit.strategy = 0.5, 1e-6, 2
        minuit.limits = [(0, None)] * 3
        minuit.migrad()
        minuit.minos()
        for i, name in enumerate(result.names):
            error = minuit.merrors[name]
            for theirs, good, ours in (
                (error.lower, error.lower_valid, found.lower[k, i]),
                (error.upper, error.upper_valid, found.upper[k, i]),
            ):
                # Minuit's own minimum stops short of a limit
                assert not good or abs(theirs - ours) < 1e-3 * (found.upper[k, i] - found.lower[k, i])


def test_minuit_on_the_spectrum():
    study = STUDIES["peak"]()
    data = generate(study, 3, seed=11)
    result = fit_batch(study.cost, data, study.start, limits=study.limits)
    found = result.minos()
    for ends in (found.lower, found.upper):
        for i, name in enumerate(result.names):
            height = result.profile(name, grid=(result.values + ends)[:, i : i + 1], subtract_min=True).fval
            np.testing.assert_allclose(height, 0.5, rtol=5e-6)
    evaluate = IndependentCost(study.cost, result.problem.rows)
    for k in range(2):
        minuit = Minuit(
            lambda theta, k=k: evaluate(k, theta)[0],
            result.values[k],
            grad=lambda theta, k=k: evaluate(k, theta)[1],
            name=result.names,
        )
        minuit.errordef, minuit.tol, minuit.strategy = 0.5, 1e-6, 2
        minuit.limits = [(0, None), (0, None), (None, None), (0, None), (0, None)]
        minuit.migrad()
        minuit.minos()
        theirs = np.array([(minuit.merrors[name].lower, minuit.merrors[name].upper) for name in result.names])
        assert (np.abs(found.lower[k] - theirs[:, 0]) < 1e-3 * result.errors[k]).all()
        assert (np.abs(found.upper[k] - theirs[:, 1]) < 1e-3 * result.errors[k]).all()


def test_drivers_batches_and_the_search_by_fits_agree(three, monkeypatch):
    counts, result = three
    found = result.minos("s", "e")
    one = fit_batch(THREE, counts[7:8], THREE_START, limits=THREE_LIMITS).minos("e", "s")
    np.testing.assert_allclose(one.upper[0], found.upper[7, ::-1], rtol=1e-9)
    part = fit_batch(THREE, counts[:12], THREE_START, limits=THREE_LIMITS, backend="jax").minos("s", "e")
    np.testing.assert_allclose(part.lower, found.lower[:12], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(part.upper, found.upper[:12], rtol=1e-6)
    np.testing.assert_array_equal(part.at_lower_limit, found.at_lower_limit[:12])
    monkeypatch.setattr(crossing, "MAX_EVALUATIONS", 1)
    by_fits = result[:40].minos("s", "e")
    assert by_fits.nfev.mean() > 3 * found.nfev.mean()
    np.testing.assert_allclose(by_fits.lower, found.lower[:40], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(by_fits.upper, found.upper[:40], rtol=1e-5)
    np.testing.assert_array_equal(by_fits.at_lower_limit, found.at_lower_limit[:40])


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (10.0, 1e3), (-5.0, 1e-3)])
def test_shifted_and_scaled(shift, scale):
    events = np.random.default_rng(3).normal(0, 1, (5, 40))
    result = fit_batch(
        UnbinnedNLL(norm.pdf), shift + scale * events, [shift + 0.1 * scale, 1.2 * scale], limits={"scale": (0, None)}
    )
    found = result.minos()
    # the profile of the mean in closed form: n/2 log(1 + (mean - mu)^2 / s^2)
    half = scale * np.std(events, axis=1) * np.sqrt(np.expm1(1 / 40))
    np.testing.assert_allclose(found.upper[:, 0], half, rtol=1e-7)
    np.testing.assert_allclose(found.lower[:, 0], -half, rtol=1e-7)


def test_lower_minimum_is_fitted_again(monkeypatch):
    data = ([0.0], np.full((4, 1), -2.0), [1.0])
    result = fit_batch(WELLS, data, {"a": np.array([-0.9, -0.9, 0.9, -0.9])})
    finished, again = fit._finished, []
    monkeypatch.setattr(fit, "_finished", lambda problem, *rest: again.append(problem.toys) or finished(problem, *rest))
    for toys in (slice(None), slice(2, 4)):
        found = result[toys].minos(cl=3)
        assert found.new_minimum[-2:, 0].tolist() == [True, False]
        assert found.result.values[-2, 0] == pytest.approx(result.values[3, 0], abs=1e-9)
        assert found.upper[-2, 0] == pytest.approx(found.upper[-1, 0], rel=1e-7)
    assert [toys.tolist() for toys in again] == [[2], [2]]  # that toy alone, and once
    assert result.values[2, 0] > 0.9  # the given result is left alone


@pytest.mark.filterwarnings("ignore:no toy can be fitted")
def test_failed_toys_have_no_interval():
    counts = np.array([[3.0], [np.nan], [5.0]])
    found = fit_batch(COUNTING, counts, {"mu": 3.0}, limits=POSITIVE).minos()
    assert found.valid[:, 0].tolist() == [True, False, True]
    assert np.isnan(found.lower[1, 0]) and np.isnan(found.upper[1, 0])
    assert found.upper[2, 0] == pytest.approx(poisson_interval(5, 1.0)[1])
    for data in (counts[1:2], counts[:0]):  # none is valid, which does not tell what was held
        result = fit_batch(COUNTING, data, {"mu": 3.0})
        for found in (result.minos(), minos(COUNTING, data, result), minos(COUNTING, data, result, "mu")):
            assert found.names == ("mu",) and found.upper.shape == (len(data), 1) and not found.valid.any()


def test_profile_that_never_rises_has_no_crossing():
    # beyond a = 2 the model is flat, below the level
    cost = LeastSquares(lambda x, a: jnp.tanh(a) + 0.0 * x)
    result = fit_batch(cost, ([0.0], np.array([[0.5]]), [0.4]), {"a": 0.4})
    found = result.minos(cl=2)
    assert not found.valid[0, 0] and np.isnan(found.upper[0, 0])
    assert np.tanh(result.values[0, 0] + found.lower[0, 0]) == pytest.approx(0.5 - 0.8, abs=1e-7)


def test_the_first_crossing_of_a_periodic_profile():
    """Behind a low hump lies another valley, and behind that more of both."""
    expected = lambda phi: np.array([100 + 30 * np.sin(phi), 100 + 3 * np.cos(phi)])  # noqa: E731
    cost = PoissonNLL(lambda phi: jnp.stack([100 + 30 * jnp.sin(phi), 100 + 3 * jnp.cos(phi)]))
    counts = np.random.default_rng(5).poisson(expected(1.2), (60, 2)).astype(float)
    counts[0] = 120.0, 100.0
    result = fit_batch(cost, counts, {"phi": 1.2})
    found = result.minos()
    assert result.valid.all() and found.valid.all()

    def rise(phi, n):
        return float(np.sum(expected(phi) - n * np.log(expected(phi))))

    for n, best, *ends in zip(counts, found.result.values[:, 0], -found.lower[:, 0], found.upper[:, 0], strict=True):
        for side, end in zip((-1.0, 1.0), ends, strict=True):
            way = best + side * np.linspace(0.0, 7.0, 3501)
            first = next(phi for phi in way if rise(phi, n) > rise(best, n) + 0.5)
            assert abs(end - abs(first - best)) < 0.002


def test_a_minimum_that_is_far_flatter_than_what_is_around_it():
    """By its curvature the crossing were a period away, where the profile is as high by chance."""
    cost = PoissonNLL(lambda phi: jnp.stack([100 + 12 * jnp.sin(phi)]))
    counts = np.linspace(87.87, 87.95, 9)[:, None]  # less than is expected at any phi
    result = fit_batch(cost, counts, {"phi": -1.5})
    found = result.minos()
    np.testing.assert_allclose(result.values["phi"], -np.pi / 2, atol=1e-6)
    for [n], end in zip(counts, found.upper["phi"], strict=True):
        above = lambda s, n=n: 12 * (1 - np.cos(s)) - n * np.log1p(12 * (1 - np.cos(s)) / 88) - 0.5  # noqa: E731
        assert end == pytest.approx(optimize.brentq(above, 0.01, np.pi), rel=1e-4)


def test_a_limit_where_another_parameter_loses_its_meaning():
    """Without signal its place is unknown: the height of the profile there is known all the same."""
    centre = np.linspace(101.0, 149.0, 25)
    shape = lambda m: 0.8 * np.exp(-0.5 * ((centre - m) / 2) ** 2) / np.sqrt(2 * np.pi)  # noqa: E731
    cost = PoissonNLL(lambda s, m, b: b / 25 + s * 0.8 * jnp.exp(-0.5 * ((centre - m) / 2) ** 2) / jnp.sqrt(2 * jnp.pi))
    counts = np.random.default_rng(1).poisson(np.full((100, 25), 20.0)).astype(float)
    limits = {"s": (0, None), "m": (105, 145), "b": (0, None)}
    result = fit_batch(cost, counts, {"s": 20.0, "m": 125.0, "b": 500.0}, limits=limits)
    found = result.minos("s")
    assert result.valid.all() and found.valid.all()
    on_limit = found.at_lower_limit["s"]
    assert 5 < on_limit.sum() < 50
    for k, at_limit in enumerate(on_limit):
        n, (s, m, b) = counts[k], found.result.values[k]
        nll = lambda s, m, b, n=n: np.sum(b / 25 + s * shape(m) - n * np.log(b / 25 + s * shape(m)))  # noqa: E731
        without = nll(0.0, m, n.sum()) - nll(s, m, b)  # of the number of background events that is best there
        assert (without < 0.5) == at_limit
    np.testing.assert_allclose(found.lower["s"][on_limit], -found.result.values["s"][on_limit])


def test_result_without_data(three):
    counts, result = three
    read = pickle.loads(pickle.dumps(result[:20]))
    assert read.problem is None
    with pytest.raises(ValueError, match=r"call engine\.minos\(cost, data, result"):
        read.minos()
    again = minos(THREE, counts[:20], read, "s", limits=THREE_LIMITS)
    np.testing.assert_allclose(again.upper, result[:20].minos("s").upper, rtol=1e-9)
    assert result[5:9][np.array([2])].minos("s").upper[0, 0] == pytest.approx(again.upper[7, 0], rel=1e-9)
    with pytest.raises(ValueError, match="a fit for each toy, got 20 fits and 19 toys"):
        minos(THREE, counts[:19], read, limits=THREE_LIMITS)
    with pytest.raises(ValueError, match="fits are not those of these data with this model: the cost of toy 0 is"):
        minos(THREE, counts[20:40], read, limits=THREE_LIMITS)
    with pytest.raises(ValueError, match=r"the fitted b = .* of toy 0 is outside of its limits"):
        minos(THREE, counts[:20], read, limits={"b": (0, 5)})


def test_held_parameters(three):
    counts, result = three
    fixed = fit_batch(THREE, counts[:5], THREE_START, limits=THREE_LIMITS, fixed=["e"])
    found = fixed.minos()
    assert found.names == ("s", "b")
    assert (found.upper[:, 0] < result[:5].minos("s").upper[:, 0]).all()
    with pytest.raises(ValueError, match="'e' is held"):
        fixed.minos("e")
    read = pickle.loads(pickle.dumps(fixed))
    assert minos(THREE, counts[:5], read, limits=THREE_LIMITS).names == ("s", "b")
    bad = np.concatenate([counts[:5], [[np.nan, 1.0]]])
    six = fit_batch(THREE, bad, THREE_START, limits=THREE_LIMITS, fixed=["e"])
    for held in ("e", ["e"], {"e": 1.0}):
        again = minos(THREE, bad, six, limits=THREE_LIMITS, fixed=held)
        np.testing.assert_array_equal(again.upper, six.minos().upper)
    with pytest.raises(ValueError, match="fixed names 'eb'"):
        minos(THREE, bad, six, fixed="eb")
    with pytest.raises(TypeError, match="fixed must be names, or a dict name -> value, got int"):
        minos(THREE, bad, six, fixed=3)
    with pytest.raises(ValueError, match="fits are not those of these data"):
        minos(THREE, bad, six, limits=THREE_LIMITS, fixed={"e": 2.0})
    with pytest.raises(ValueError, match=r"what the fits held, which is e, got \['b', 'e'\]"):
        minos(THREE, bad, six, limits=THREE_LIMITS, fixed=["b", "e"])
    with pytest.raises(ValueError, match=r"what the fits held, which is nothing, got \['e'\]"):
        minos(THREE, counts, result, limits=THREE_LIMITS, fixed=["e"])
    assert read.problem is None and fixed.problem.settings.edm_goal == EDM_GOAL


def test_mistakes(three):
    _, result = three
    with pytest.raises(ValueError, match="minos names 'S'"):
        result.minos("S")
    with pytest.raises(ValueError, match="must differ"):
        result.minos("s", "s")
    for cl in (0, -1, np.inf, "68", True):
        with pytest.raises(ValueError, match="cl must be a probability"):
            result.minos(cl=cl)


def test_levels():
    assert level(None) == 1 and level(0.9) == pytest.approx(2.705543454095404)
    assert level(2) == level(np.int64(2)) == 4
    assert level(0.68, 2) == pytest.approx(2.278868566, abs=1e-8)
    assert level(1, 2) == pytest.approx(2.295748929, abs=1e-8)


def test_weighted_events_are_warned_of():
    events = np.random.default_rng(4).normal(0, 1, (2, 30))
    data = Weighted(events, np.full((2, 30), 2.0))
    result = fit_batch(UnbinnedNLL(norm.pdf), data, [0.0, 1.0], limits={"scale": (0, None)})
    with pytest.warns(UserWarning, match="these intervals do not cover"):
        result.minos("loc")
    with pytest.warns(UserWarning, match="this contour does not cover"):
        result.contour("loc", "scale", size=4)
    with pytest.warns(UserWarning, match="this statistic follows no chi-square"):
        statistic_of(UnbinnedNLL(norm.pdf), data, "loc", 0.1, test_stat="t", start=[0.0, 1.0])


# --- limits of the other parameters, and profiles that bend ------------------------------------------------------


def shaped(mu, b, a):
    """A peak over a falling background, whose slope is uncertain."""
    bins = np.arange(5.0)
    peak = np.array([0.1, 1.0, 3.0, 1.0, 0.1])
    return mu * peak + b * (5.0 - bins) / 15.0 * jnp.exp(0.2 * a * (bins - 2.0))


SHAPED = PoissonNLL(shaped) + NormalConstraint("a", 0.0, 1.0)
SHAPED_LIMITS = {"mu": (0, None), "b": (0, None)}


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_ends_lie_on_the_level(backend):
    """Also from a limit, where the profile rises in a straight line, and where others meet or leave theirs."""
    rng = np.random.default_rng(8)
    counts = rng.poisson([0.3, 2.0, 1.5, 0.5, 0.1], (60, 5)).astype(float)
    counts[:2] = [[0, 4, 1, 0, 0], [1, 3, 1, 0, 0]]
    measured = rng.normal(0.0, 1.0, 60)
    measured[:2] = [2.3, 0.419]
    data = counts, measured
    start = {"mu": 1.0, "b": 3.0, "a": 0.0}
    result = fit_batch(SHAPED, data, start, limits=SHAPED_LIMITS, backend=backend)
    found = result.minos()
    assert result.valid.all() and np.any(result.at_limit[:, 1]) and np.any(result.at_limit[:, 0])
    for k, name in enumerate(result.names):
        for side, at in ((found.lower, found.at_lower_limit), (found.upper, found.at_upper_limit)):
            ended = found.valid[:, k] & ~at[:, k]
            held = {name: np.where(ended, result.values[:, k] + side[:, k], result.values[:, k])}
            there = fit_batch(SHAPED, data, start, limits=SHAPED_LIMITS, fixed=held, backend=backend)
            assert ended.sum() > 10
            np.testing.assert_allclose((there.fval - result.fval)[ended], 0.5, rtol=1e-4)


# at a mass of 4 the profile is flat
FLAT = [
    1.2627, 3.397, 1.7905, 1.6193, 0.3054, 0.1348, 2.5312, 1.5363, 3.1875, 2.1548, 0.41, 2.0815, 0.9576, 1.2954,
    0.8574, 8.3285, 2.814, 3.0587, 2.239, 3.285, 4.56, 5.3305, 5.401, 4.4635, 4.3742, 5.2367, 4.7161, 5.4428,
]  # fmt: skip


def test_a_profile_that_is_flat_above_the_level_ends_below_its_limit():
    rng = np.random.default_rng(9)
    toys = [np.concatenate([rng.exponential(3.0, 23) % 10.0, rng.normal(5.0, 0.3, 4)]) for _ in range(40)]
    toys.append(np.array(FLAT))
    pdf = lambda x, f, lam, mu: (  # noqa: E731
        f * truncnorm.pdf(x, 0.0, 10.0, mu, 0.3) + (1 - f) * truncexpon.pdf(x, 0.0, 10.0, 0.0, lam)
    )
    limits = {"f": (0, 1), "lam": (0.1, 100), "mu": (4, 6)}
    cost, start = UnbinnedNLL(pdf), {"f": 0.2, "lam": 3.0, "mu": 5.0}
    result = fit_batch(cost, toys, start, limits=limits)
    found = result.minos("mu", cl=2)
    ended = np.flatnonzero(found.valid[:, 0] & ~found.at_lower_limit[:, 0])
    assert len(ended) > 10
    ends = result.values[ended, 2] + found.lower[ended, 0]
    there = fit_batch(cost, [toys[k] for k in ended], start, limits=limits, fixed={"mu": ends})
    rise = there.fval - result.fval[ended]
    assert np.all(rise < 2.001)  # a fit from the start may find a lower minimum of the others
    assert np.mean(np.abs(rise - 2.0) < 2e-4) > 0.9
