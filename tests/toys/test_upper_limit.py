import warnings
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, minimize
from scipy.stats import binom, poisson

from engine import ExtendedUnbinnedNLL, PoissonConstraint, PoissonNLL
from kernels import expon
from toys import Component, ExtendedMixture, PoissonCounts, Simultaneous, Study
from toys.limit_search import LimitSearch, Point
from toys.pool import ToyPool
from toys.upper_limit import upper_limit

B = 5.0
COUNT = PoissonNLL(lambda mu: jnp.array([1.0]) * mu + B)


def count(n, upper=None):
    return Study(COUNT, PoissonCounts.of(COUNT), {"mu": 3.0}, limits={"mu": (None, upper)}, data=np.array([[float(n)]]))


def spectrum():
    """Three bins, and a known background: the statistic takes many values."""
    signal, background = np.array([4.0, 10.0, 6.0]), np.array([40.0, 30.0, 20.0])
    cost = PoissonNLL(lambda mu: mu * signal + background)
    data = np.array([[45.0, 36.0, 22.0]])
    return Study(cost, PoissonCounts.of(cost), {"mu": 1.0}, limits={"mu": (0.0, 20.0)}, data=data)


def exact(n, cl, cls=True):
    """Where the Poisson sums P(N <= n) fall to 1 - cl, times those without signal."""
    level = (1.0 - cl) * (poisson.cdf(n, B) if cls else 1.0)
    return brentq(lambda mu: poisson.cdf(n, mu + B) - level, 0.0, 50.0)


@pytest.mark.parametrize("n, cl, cls, precision", [(2, 0.9, True, 0.05), (5, 0.95, True, 0.015), (9, 0.9, False, 0.01)])
def test_limits_of_a_count(n, cl, cls, precision):
    options = {"cl": cl, "CLs": cls, "n_toys": 1000, "precision": precision, "seed": 2, "backend": "numba"}
    found = upper_limit(count(n), poi="mu", **options)
    truth = exact(n, cl, cls)
    assert found.error <= precision * found.limit and abs(found.limit - truth) < 3.5 * found.error
    for point in found.points:
        p = poisson.cdf(n, point.value + B) / (poisson.cdf(n, B) if cls else 1.0)
        if n < point.value + B:  # else the statistic is 0
            assert abs(point.p - p) < 4.0 * point.error + 5.0 / point.n_toys
    # more toys where it matters
    near = [point.n_toys for point in found.points if abs(point.value / found.limit - 1.0) < 0.15]
    assert sum(near) > 0.3 * sum(point.n_toys for point in found.points)
    # those without signal are as many at all values that tell where the limit is
    near = {point.n_background for point in found.points if abs(point.p / (1.0 - cl) - 1.0) < 0.5}
    assert len(near) == 1 and near.pop() >= 1000
    assert f"{sum(point.n_toys for point in found.points)} toys at {len(found.points)} values of mu" in found.sentence


def test_expected_limits_of_a_count():
    found = upper_limit(count(5), poi="mu", cl=0.9, n_toys=4000, precision=0.05, backend="numba")
    # the median of the background is 5 events, one standard deviation around it 3 and 7; of other toys they vary by 3 %
    np.testing.assert_allclose(found.expected[1:4], [exact(n, 0.9) for n in (3, 5, 7)], rtol=0.12)
    assert (np.diff(found.expected) > 0).all() and found.asymptotic == pytest.approx(found.limit, rel=0.15)


def test_errors_of_expected_limits_are_their_spread_over_seeds():
    study, options = spectrum(), {"poi": "mu", "n_toys": 200, "precision": 0.5, "backend": "numba"}
    made = [upper_limit(study, seed=seed, **options) for seed in range(4)]
    expected, errors = (np.array([getattr(each, name) for each in made]) for name in ("expected", "expected_error"))
    assert np.isfinite(expected).all() and " +- " in str(made[0]).split("expected")[1]
    ratio = errors[:, 1:].mean(axis=0) / expected[:, 1:].std(axis=0, ddof=1)
    assert np.all((ratio > 0.3) & (ratio < 3.0))
    formulae = upper_limit(study, calctype="asymptotics", **options)
    assert (formulae.expected_error == 0).all()


def test_asymptotic_limits_equal_pyhf():
    pyhf = pytest.importorskip("pyhf")
    signal, background, uncertainty = np.array([12.0, 11.0]), np.array([50.0, 52.0]), np.array([3.0, 7.0])
    factors = (background / uncertainty) ** 2
    bins = PoissonNLL(lambda mu, g1, g2: mu * signal + background * jnp.stack([g1, g2]))
    cost = bins + PoissonConstraint(("g1", "g2"), factors, factors)
    study = Study(
        cost,
        Simultaneous(cost, (PoissonCounts.of(bins), None)),
        {"mu": 1.0, "g1": 1.0, "g2": 1.0},
        limits={"mu": (0.0, 10.0), "g1": (1e-10, 10.0), "g2": (1e-10, 10.0)},
        data=np.array([[51.0, 48.0]]),
    )
    found = upper_limit(study, poi="mu", calctype="asymptotics", backend="numba")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        model = pyhf.simplemodels.uncorrelated_background(
            signal=signal.tolist(), bkg=background.tolist(), bkg_uncertainty=uncertainty.tolist()
        )
        pyhf.set_backend("numpy", pyhf.optimize.minuit_optimizer(tolerance=1e-8, strategy=2))
        data = [51.0, 48.0, *model.config.auxdata]
        limit, band = pyhf.infer.intervals.upper_limits.upper_limit(data, model, rtol=1e-9)
    assert found.limit == pytest.approx(float(limit), rel=1e-6) and found.error == 0.0 and not found.points
    np.testing.assert_allclose(found.expected, band, rtol=1e-6)


def test_few_toys_and_one_pool():
    pool = ToyPool(count(5), "mu", backend="numba")
    few = upper_limit(pool.study, poi="mu", n_toys=300, max_toys=3000, precision=0.001, pool=pool)
    assert "The Monte Carlo error is above 0.001 of the limit: raise max_toys." in few.sentence
    assert sum(point.n_toys for point in few.points) <= 3000 and few.error > 0.001 * few.limit
    thrown = {key[1] for key in pool._values}
    assert thrown == {0.0, *(point.value for point in few.points)}
    assert "at 95 % CL" in str(few) and "expected" in str(few)


def test_crossing_is_of_maximum_likelihood():
    scan = LimitSearch(ToyPool(count(5), "mu", backend="numba"), "qtilde", 0.1, True, 3.0, 1000)
    x, n, k, clb = np.array([2.6, 2.9, 3.3]), np.array([1000, 4000, 500]), np.array([130, 280, 19]), 0.6
    for value, toys, extreme in zip(x, n, k, strict=True):
        scan.points[value] = Point(
            value, extreme / toys / clb, 0.0, clb, 0.04, np.zeros(5), np.zeros(5), int(toys), 1000, 0, 0
        )

    def nll(line):
        return -binom.logpmf(k, n, 0.1 * clb * np.exp(line[0] + line[1] * (x - 3.0))).sum()

    height, slope = minimize(nll, [0.0, -2.0], method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12}).x
    limit, own, shared = scan.crossing()
    assert limit == pytest.approx(3.0 - height / slope, abs=1e-7)
    p = 0.1 * clb * np.exp(height + slope * (x - 3.0))
    design = np.stack([np.ones(3), x - limit])
    of_height, of_slope = np.sqrt(np.diag(np.linalg.inv(design * (n * p / (1.0 - p)) @ design.T)))
    flatter = -slope / (1.0 - of_slope / slope)
    assert own == pytest.approx(of_height / flatter, rel=1e-6) and shared == pytest.approx(0.04 / flatter, rel=1e-6)
    # no extreme toy at the far end: a steep line, but one with an end
    del scan.points[3.3]
    scan.points[6.0] = Point(6.0, 0.0, 0.0, clb, 0.04, np.zeros(5), np.zeros(5), 500, 1000, 0, 0)
    assert 2.95 < scan.crossing()[0] < 4.0
    # few toys let CLs seem to rise where it crosses: those further away tell that it falls
    for value, p, toys in ((2.6, 0.05, 200), (2.9, 0.12, 800), (3.3, 0.098, 200), (4.4, 0.02, 200), (6.0, 0.0, 200)):
        scan.points[value] = Point(value, p, 0.0, clb, 0.04, np.zeros(5), np.zeros(5), toys, 1000, 0, 0)
    limit, own, _ = scan.crossing()
    assert 2.6 < limit < 4.4 and own < 1.0


def test_where_asymptotic_formulae_end():
    # their expected band ends beyond the upper limit of mu, the limit itself does not
    found = upper_limit(count(5, upper=7.0), poi="mu", cl=0.9, n_toys=500, precision=0.05, backend="numba")
    assert np.isinf(found.asymptotic_expected[4]) and abs(found.limit - exact(5, 0.9)) < 3.5 * found.error
    with pytest.raises(ValueError, match="no value of mu up to 3 is excluded: raise its upper limit"):
        upper_limit(count(5, upper=3.0), poi="mu", cl=0.9, calctype="asymptotics", backend="numba")

    def events(x, mu, b):
        return mu + b, (mu + b) * expon.pdf(x, 0.0, 1.0)

    components = tuple(Component(name, expon.ppf, (0.0, 1.0)) for name in ("mu", "b"))
    sampler = ExtendedMixture(("mu", "b"), components)
    study = Study(ExtendedUnbinnedNLL(events), sampler, {"mu": 3.0, "b": B}, fixed=["b"], data=[np.ones(5)])
    found = upper_limit(study, poi="mu", cl=0.9, n_toys=500, precision=0.05, backend="numba")
    assert np.isnan(found.asymptotic) and abs(found.limit - exact(5, 0.9)) < 3.5 * found.error
    assert "There are no asymptotic values: the Asimov data of the model 'events' need the finite range" in repr(found)


def test_too_few_toys_for_the_expected_band():
    """Of 10 toys none tells a CLs below 0.05."""
    few = upper_limit(count(4), poi="mu", n_toys=10, max_toys=10, backend="numba")
    assert np.isnan(few.expected).all() and np.isnan(few.expected_error).all()
    told = "No tested values enclose the limit that is expected at -2, -1, +0, +1, +2 standard deviations, which is nan"
    assert told in few.sentence
    more = upper_limit(count(4), poi="mu", n_toys=100, precision=0.3, backend="numba")
    assert np.isfinite(more.expected).all() and "enclose" not in more.sentence


def test_everything_is_excluded():
    empty = upper_limit(count(0), poi="mu", CLs=False, cl=0.9, n_toys=200, precision=0.5, backend="numba")
    # P(0 | 5) = 0.7 % < 10 %: without CLs no signal at all is excluded
    assert empty.inverted == "CLsb" and "at 90 % CL, by CLsb" in str(empty)
    assert np.isnan(empty.limit) and "Every value is excluded" in empty.sentence


@pytest.mark.filterwarnings("ignore:no toy can be fitted")
def test_all_toys_without_signal_fail():
    study = replace(count(4), sampler=lambda key, theta: jnp.where(theta > 0, 4.0, jnp.nan))
    with pytest.raises(ValueError, match="the fits of all 20 toys without signal failed, which leaves no CLs at mu = "):
        upper_limit(study, poi="mu", n_toys=20, backend="numba")


@pytest.mark.filterwarnings("ignore:no toy can be fitted")
@pytest.mark.parametrize("cls", [True, False])
def test_all_toys_with_signal_fail(cls):
    study = replace(count(4), sampler=lambda key, theta: jnp.where(theta > 0, jnp.nan, 4.0))
    with pytest.raises(ValueError, match=r"the fits of all 20 toys at mu = .* failed, which leaves no p-value: pass"):
        upper_limit(study, poi="mu", CLs=cls, n_toys=20, backend="numba")


def test_a_count_without_background():
    cost = PoissonNLL(lambda mu: jnp.array([1.0]) * mu)
    study = Study(cost, PoissonCounts.of(cost), {"mu": 3.0}, limits={"mu": (0.0, None)}, data=np.array([[2.0]]))
    found = upper_limit(study, poi="mu", cl=0.9, n_toys=1000, precision=0.03, backend="numba")
    # all toys without signal have no event, so that CLb is 1
    assert abs(found.limit - brentq(lambda mu: poisson.cdf(2, mu) - 0.1, 1.0, 20.0)) < 3.5 * found.error


@pytest.mark.parametrize(
    "study, options, sentence",
    [
        (count(4), {"test_stat": "t"}, "test_stat must be one of 'qtilde', 'q'"),
        (count(4), {"cl": 95}, "cl must be a number between 0 and 1, got 95"),
        (count(4, upper=4.0), {}, "no value of mu up to 4 is excluded: raise its upper limit"),
        (count(0), {"n_toys": 20}, "none of 20 toys without signal is as extreme as the data, .* check the data"),
        (count(4, upper=-1.0), {}, "an upper limit needs values of mu above 0, but its limits end at -1"),
    ],
)
def test_mistakes(study, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        upper_limit(study, poi="mu", backend="numba", **options)
