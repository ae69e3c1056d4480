"""Goodness of fit by toys: distances against scipy, published critical values, p-values of right and wrong models."""

from collections import Counter
from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from engine import (
    BinnedNLL,
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    LeastSquares,
    NormalConstraint,
    PoissonNLL,
    Ragged,
    Status,
    UnbinnedNLL,
    Weighted,
)
from kernels import norm, truncnorm
from toys import (
    Component,
    ExtendedMixture,
    Mixture,
    MultinomialCounts,
    NormalPoints,
    PoissonCounts,
    Simultaneous,
    Study,
)
from toys.distances import anderson_darling, fitted_cdf, kolmogorov_smirnov, warn_of_error
from toys.goodness_of_fit import goodness_of_fit
from toys.pool import ToyPool
from toys.study import generate
from toys.throwing import check_n_events

LOW, HIGH = -12.0, 12.0
N_EVENTS = 25


def gauss(x, mu, sigma):
    return truncnorm.pdf(x, LOW, HIGH, mu, sigma)


@cache
def normal_study():
    sampler = Mixture(("mu", "sigma"), N_EVENTS, (Component(None, truncnorm.ppf, (LOW, HIGH, "mu", "sigma")),))
    truth, limits = {"mu": 0.3, "sigma": 1.0}, {"sigma": (0.0, None)}
    return Study(UnbinnedNLL(gauss), sampler, truth, limits=limits, observable=(LOW, HIGH))


def direct(x, cdf, sf):
    """Both distances of events, by the formulae."""
    n, x = len(x), np.sort(x)
    i = np.arange(1, n + 1)
    return stats.kstest(x, cdf).statistic, -n - np.mean((2 * i - 1) * (np.log(cdf(x)) + np.log(sf(x[::-1]))))


def distances(cost, events, theta, observable=None):
    found = fitted_cdf(cost, events, np.asarray(theta, dtype=np.float64), observable)
    return kolmogorov_smirnov(*found), anderson_darling(*found)


def test_distances_of_given_parameters():
    rng = np.random.default_rng(1)
    theta = rng.uniform([-1.0, 0.3], [1.0, 2.0], (20, 2))
    events = [rng.normal(0.2, 1.0, 1 + 7 * k) for k in range(20)]
    ks, ad = distances(normal_study().cost, events, theta, (LOW, HIGH))
    for k, (x, (mu, sigma)) in enumerate(zip(events, theta, strict=True)):
        known = stats.truncnorm((LOW - mu) / sigma, (HIGH - mu) / sigma, mu, sigma)
        # far in a tail, quadrature keeps 1e-7 of it
        assert (ks[k], ad[k]) == pytest.approx(direct(x, known.cdf, known.sf), rel=1e-8, abs=1e-9)


def test_within_fit_ranges():
    """A density that needs no normalisation, given by its log, in two windows; events elsewhere do not count."""
    windows = [(-2.0, -0.5), (0.75, 3.0)]
    cost = UnbinnedNLL(lambda x, tau: 0.4 - x / tau, log=True, fit_range=windows)
    rng = np.random.default_rng(2)
    events = [rng.uniform(-4.0, 4.0, 40), np.array([0.0, 0.1]), rng.uniform(-4.0, 4.0, 15)]
    ks, ad = distances(cost, events, [[2.0], [2.0], [-3.0]])
    for k, tau in ((0, 2.0), (2, -3.0)):
        primitive = lambda x, tau=tau: -tau * np.exp(-x / tau)  # noqa: E731
        masses = [primitive(high) - primitive(low) for low, high in windows]

        def cdf(x, primitive=primitive, masses=masses):
            first = primitive(np.minimum(x, windows[0][1])) - primitive(windows[0][0])
            second = primitive(np.maximum(x, windows[1][0])) - primitive(windows[1][0])
            return (first + second) / sum(masses)

        x = events[k][[any(low <= e <= high for low, high in windows) for e in events[k]]]
        assert (ks[k], ad[k]) == pytest.approx(direct(x, cdf, lambda x, cdf=cdf: 1.0 - cdf(x)), rel=1e-9, abs=1e-9)
    assert np.isnan(ks[1]) and np.isnan(ad[1])  # no event in the windows


def test_published_critical_values():
    """Normal with mean and width estimated: 5 % points of Lilliefors (1967), and of A^2 (1 + 0.75/n + 2.25/n^2)."""
    n_toys = 20_000
    events = generate(normal_study(), n_toys, 3).values.reshape(n_toys, N_EVENTS)
    theta = np.stack([events.mean(axis=1), events.std(axis=1, ddof=1)], axis=1)
    ks, ad = distances(normal_study().cost, events, theta, (LOW, HIGH))
    error = np.sqrt(0.05 * 0.95 / n_toys)
    # the table has three digits: 0.173, which is worth 0.001 of the probability
    assert np.mean(ks > 0.173) == pytest.approx(0.05, abs=4.0 * error + 0.002)
    assert np.mean(ad * (1.0 + 0.75 / N_EVENTS + 2.25 / N_EVENTS**2) > 0.752) == pytest.approx(0.05, abs=4.0 * error)
    # without the refit, the parameters known, 5 % would lie above 0.264
    assert np.mean(ks > stats.kstwo.isf(0.05, N_EVENTS)) < 1e-3


def test_p_values_are_uniform_for_the_right_model():
    study = normal_study()
    data = generate(study, 40, 11)
    p = [
        goodness_of_fit(study, data=data[k : k + 1], statistic="ks", n_toys=150, seed=k, backend="numba").p_value
        for k in range(40)
    ]
    # with the distribution of known parameters, none would be below 0.2
    assert stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("statistic", ["ks", "ad"])
def test_a_wrong_model_is_found_out(statistic):
    wrong = np.concatenate([np.linspace(-1.02, -0.98, 12), np.linspace(0.98, 1.02, 13)])
    found = goodness_of_fit(normal_study(), data=[wrong], statistic=statistic, n_toys=500, backend="numba")
    theta = found.fit.values
    assert theta[0] == pytest.approx([wrong.mean(), wrong.std()], rel=1e-6)
    ks, ad = distances(normal_study().cost, [wrong], theta, (LOW, HIGH))
    assert found.observed == pytest.approx((ks if statistic == "ks" else ad)[0], rel=1e-12)
    assert found.p_value == 0.0 and found.error == pytest.approx(np.sqrt(1.0 / 502 * 501.0 / 502 / 500))
    assert found.ndf is None and found.asymptotic is None and found.n_toys == 500


def test_toys_of_a_larger_number_begin_with_those_of_a_smaller():
    data = generate(normal_study(), 1, 5)
    few, many = (
        goodness_of_fit(normal_study(), data=data, statistic="ad", n_toys=n, backend="numba") for n in (30, 70)
    )
    assert np.array_equal(few.toys, many.toys[:30])


def histogram_cost(extended):
    edges = np.linspace(-3.0, 3.0, 13)
    if extended:
        return ExtendedBinnedNLL(lambda x, n, mu, sigma: n * norm.cdf(x, mu, sigma), edges)
    return BinnedNLL(lambda x, mu, sigma: norm.cdf(x, mu, sigma), edges)


@pytest.mark.parametrize("extended", [True, False])
def test_saturated_of_large_counts_is_a_chi_square(extended):
    cost = histogram_cost(extended)
    sampler = PoissonCounts.of(cost) if extended else MultinomialCounts.of(cost, 20_000)
    truth = {"n": 20_000.0, "mu": 0.1, "sigma": 1.2} if extended else {"mu": 0.1, "sigma": 1.2}
    study = Study(cost, sampler, truth, limits={"sigma": (0.0, None)})
    data = generate(study, 1, 4)
    found = goodness_of_fit(study, data=data, n_toys=2000, backend="numba")
    assert found.ndf == 12 - 3  # of a fixed total, one parameter less and one bin less
    assert found.observed == pytest.approx(2.0 * found.fit.fval[0])
    assert stats.kstest(found.toys, stats.chi2(found.ndf).cdf).pvalue > 1e-3
    assert found.asymptotic == pytest.approx(stats.chi2.sf(found.observed, 9))
    assert abs(found.p_value - found.asymptotic) < 4.0 * found.error
    assert f"{found.n_toys} toys" in found.sentence and "9 degrees of freedom" in found.sentence


def test_points_and_constraints_are_an_exact_chi_square():
    """A straight line of slope 1: linear and normal, so that the chi-square is exact."""
    x = np.linspace(0.0, 1.0, 6)
    cost = LeastSquares(lambda x, a, b: a + b * x) + NormalConstraint("b", 1.0, 0.3)
    points = NormalPoints(lambda x, a, b: a + b * x, ("a", "b"), x, 0.1)
    study = Study(cost, Simultaneous(cost, (points, "fixed")), {"a": 0.0, "b": 1.0}, start={"a": 0.5, "b": 0.5})
    y = x + 0.1 * np.array([0.3, -1.2, 0.4, 1.9, -0.1, 0.2])
    data = ((x, y[None], np.full(6, 0.1)), None)
    redrawn = goodness_of_fit(study, data=data, n_toys=3000, backend="numba")
    assert redrawn.ndf == 6 + 1 - 2
    robust = LeastSquares(lambda x, a, b: a + b * x, loss="soft_l1") + NormalConstraint("b", 1.0, 0.3)
    assert goodness_of_fit(replace(study, cost=robust), data=data, n_toys=10, backend="numba").ndf is None
    assert stats.kstest(redrawn.toys, stats.chi2(5).cdf).pvalue > 1e-3
    assert "1 constraint redrawn" in redrawn.sentence
    drawing = replace(study, sampler=Simultaneous(cost, (points, None)))
    data = (data[0], np.array([1.2]))
    fixed = goodness_of_fit(drawing, data=data, n_toys=500, auxiliary="fixed", backend="numba")
    # 4 and, of the measured slope, the part of the variance that comes from the points
    variance = 0.1**2 / np.sum((x - x.mean()) ** 2)
    expected = 4.0 + variance / (variance + 0.3**2)
    assert fixed.toys.mean() == pytest.approx(expected, abs=4.0 * np.sqrt(2.0 * 5.0 / 500))
    assert "1 constraint the observed ones" in fixed.sentence


def test_few_counts_tie_and_are_not_a_chi_square():
    cost = PoissonNLL(lambda s: s * jnp.array([0.5, 0.5]))
    study = Study(cost, PoissonCounts.of(cost), {"s": 2.0}, limits={"s": (0.0, None)}, data=np.array([[1.0, 2.0]]))
    found = goodness_of_fit(study, n_toys=4000, backend="numba")
    # of all pairs of counts around 1.5 and 1.5
    a, b = (k.ravel() for k in np.meshgrid(np.arange(30.0), np.arange(30.0)))
    mean = np.where(a + b > 0, (a + b) / 2.0, 1.0)
    logs = [np.where(k > 0, k * np.log(np.where(k > 0, k, 1.0) / mean), 0.0) for k in (a, b)]
    statistic, weight = 2.0 * (logs[0] + logs[1]), stats.poisson.pmf(a, 1.5) * stats.poisson.pmf(b, 1.5)
    exact = weight[statistic >= found.observed - 1e-6].sum()
    tied = weight[np.abs(statistic - found.observed) <= 1e-6].sum()
    assert found.failed == Counter()
    assert abs(found.p_value - exact) < 4.0 * np.sqrt(exact * (1.0 - exact) / 4000)
    assert abs(found.ties / 4000 - tied) < 4.0 * np.sqrt(tied * (1.0 - tied) / 4000)
    assert abs(found.asymptotic - exact) > 0.05


def test_toys_without_events_are_counted():
    cost = ExtendedUnbinnedNLL(lambda x, n: (n, n * truncnorm.pdf(x, -2.0, 2.0, 0.0, 1.0)))
    sampler = ExtendedMixture(("n",), (Component("n", truncnorm.ppf, (-2.0, 2.0, 0.0, 1.0)),))
    study = Study(cost, sampler, {"n": 2.0}, limits={"n": (0.0, None)}, observable=(-2.0, 2.0))
    found = goodness_of_fit(study, data=[np.array([0.3, -1.0])], statistic="ks", n_toys=1000, backend="numba")
    empty = int(np.isnan(found.toys).sum())
    assert abs(empty / 1000 - np.exp(-2.0)) < 4.0 * np.sqrt(np.exp(-2.0) / 1000)
    assert found.failed == Counter({Status.CONVERGED: empty}) and f"{empty} toys failed" in found.sentence
    assert found.p_value == pytest.approx(np.nanmean(found.toys >= found.observed) * 1000 / (1000 - empty), abs=1e-12)


def test_a_kink_is_told():
    cost = UnbinnedNLL(lambda x, a: jnp.where(x > a, 1.0, 0.5))
    with pytest.warns(UserWarning, match="has a kink or a narrow peak"):
        warn_of_error(cost, np.array([0.1234]), (0.0, 1.0))


def poisson_study():
    cost = histogram_cost(extended=True)
    return Study(cost, PoissonCounts.of(cost), {"n": 100.0, "mu": 0.0, "sigma": 1.0})


def with_another_sampler():
    study = normal_study()
    sampler = Mixture(("centre", "width"), 10, (Component(None, truncnorm.ppf, (LOW, HIGH, "centre", "width")),))
    return Study(study.cost, sampler, {"centre": 0.0, "width": 1.0}, start=study.truth)


EVENTS = [np.array([0.1, 0.4, -1.0])]


@pytest.mark.parametrize(
    ("study", "options", "told"),
    [
        (normal_study, {"data": EVENTS}, r"UnbinnedNLL has no saturated form.*'ad' \(--goodness-of-fit ks or ad\)"),
        (normal_study, {}, "there are no observed data"),
        (normal_study, {"data": EVENTS, "statistic": "chi2"}, "statistic must be one of"),
        (normal_study, {"data": EVENTS, "statistic": "ks", "n_toys": 0}, "n_toys must be a whole number"),
        (normal_study, {"data": EVENTS * 2, "statistic": "ks"}, "data must be one toy, got 2"),
        (normal_study, {"data": [np.array([1.0, 13.0, 0.2])], "statistic": "ks"}, "events outside of the observable"),
        (poisson_study, {"data": np.full((1, 12), 5.0), "statistic": "ad"}, "not for ExtendedBinnedNLL"),
        (poisson_study, {"data": np.full((1, 12, 2), 5.0)}, "weighted histograms have no saturated form"),
        (with_another_sampler, {"data": EVENTS, "statistic": "ks"}, "no parameter 'centre'"),
    ],
)
def test_wrong_arguments(study, options, told):
    with pytest.raises(ValueError, match=told):
        goodness_of_fit(study(), backend="numba", **options)


def test_toys_have_as_many_events_as_the_data():
    counts = histogram_cost(extended=False)
    cost = counts + NormalConstraint("mu", 0.0, 1.0)
    sampler = Simultaneous(cost, (MultinomialCounts.of(counts, 60), None))
    study = Study(cost, sampler, {"mu": 0.0, "sigma": 1.0})
    check_n_events(study, np.full((1, 12), 5.0))
    check_n_events(study, np.full((1, 12), np.nan))
    with pytest.raises(ValueError, match="throws toys of 60 events, but 36 were observed: give MultinomialCounts"):
        check_n_events(study, (np.full((1, 12), 3.0), None))
    with pytest.raises(ValueError, match="throws toys of 25 events, but 3 were observed: give Mixture this number"):
        goodness_of_fit(normal_study(), data=EVENTS, statistic="ks", backend="numba")
    # nobody observed Asimov data, and within a fit range there may be any number
    sampler = MultinomialCounts(lambda n, mu, sigma: jnp.ones(12), ("n", "mu", "sigma"), 60)
    ToyPool(replace(poisson_study(), sampler=sampler), "mu", nuisance="truth", backend="numba")
    with pytest.raises(ValueError, match="throws toys of 25 events, but 3 were observed"):
        ToyPool(normal_study(), "mu", EVENTS, nuisance="truth", backend="numba")
    check_n_events(replace(normal_study(), cost=UnbinnedNLL(gauss, fit_range=(-1.0, 1.0))), EVENTS)


@pytest.mark.parametrize(
    ("events", "observable", "told"),
    [
        (EVENTS, None, "needs the finite range"),
        (EVENTS, (-np.inf, np.inf), "needs the finite range"),
        (Weighted(EVENTS, [np.ones(3)]), (LOW, HIGH), "weighted events"),
        (Ragged(np.zeros((2, 3)), np.array([0, 3])), (LOW, HIGH), "for one observable"),
    ],
)
def test_what_has_no_distance(events, observable, told):
    with pytest.raises(ValueError, match=told):
        fitted_cdf(normal_study().cost, events, np.array([[0.0, 1.0]]), observable)


def test_a_density_over_nodes_has_no_distance():
    cost = UnbinnedNLL(gauss, nodes=np.linspace(LOW, HIGH, 500))
    with pytest.raises(ValueError, match="normalised over nodes, between which there is no cumulative distribution"):
        goodness_of_fit(replace(normal_study(), cost=cost), statistic="ks", data=EVENTS, n_toys=10)
