"""Feldman-Cousins intervals: exact Poisson sums against the published tables, toys against the sums."""

from dataclasses import replace
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm, poisson

from engine import LeastSquares, PoissonConstraint, PoissonNLL
from engine.status import Status
from toys import NormalPoints, PoissonCounts, Simultaneous, Study, generate
from toys.feldman_cousins import feldman_cousins
from toys.models import peak
from toys.poisson_intervals import poisson_interval, poisson_p_value, poisson_statistic
from toys.pool import NoFitError, ToyPool

BACKGROUND, SCALE = 3.0, 2.0
ALL = np.arange(80)

# Phys. Rev. D57 (1998) 3873, tables II to IX: entries of the construction itself
PUBLISHED = [
    (0.9, 0.0, [(0, 2.44), (0.11, 4.36), (0.53, 5.91), (1.10, 7.42), (1.47, 8.60), (1.84, 9.99), (2.21, 11.47)]),
    (0.9, 0.5, [(0, 1.94), (0, 3.86), (0.03, 5.41), (0.60, 6.92), (1.17, 8.10), (1.53, 9.49)]),
    (0.9, 1.0, [(0, 1.61), (0, 3.36), (0, 4.91), (0.10, 6.42), (0.74, 7.60), (1.25, 8.99)]),
    (
        0.9,
        3.0,
        [None, (0, 1.88), (0, 3.04), (0, 4.42), (0, 5.60), (0, 6.99), (0.15, 8.47), (0.89, 9.53), (1.51, 10.99)],
    ),
    (0.95, 0.0, [(0, 3.09), (0.05, 5.14), (0.36, 6.72), (0.82, 8.25)]),
    (0.99, 0.0, [(0, 4.74), (0.01, 6.91), (0.15, 8.71)]),
    (0.6827, 0.0, [(0, 1.29), (0.37, 2.75), (0.74, 4.25), (1.10, 5.30), (2.34, 6.78)]),
]
# upper ends that the paper raised, so that they do not increase with the background
RAISED = [(0, 2.0, 1.26), (0, 3.0, 1.08), (0, 4.0, 1.01), (0, 5.0, 0.98), (1, 4.0, 1.39), (1, 5.0, 1.22)]


@pytest.mark.parametrize(("cl", "background", "ends"), PUBLISHED)
def test_published_intervals(cl, background, ends):
    for n, pair in enumerate(ends):
        if pair is not None:
            assert poisson_interval(n, background, cl=cl) == pytest.approx(pair, abs=0.01)


@pytest.mark.parametrize(("n", "background", "upper"), RAISED)
def test_the_monotonic_correction_gives_the_published_ends(n, background, upper):
    raised = poisson_interval(n, background, monotonic=True)[1]
    assert raised == pytest.approx(upper, abs=0.01)
    assert poisson_interval(n, background)[1] < raised - 0.015


def test_p_values_are_those_of_ordered_counts():
    counts = np.arange(200)
    for n, mu, background in [(0, 0.3, 3.0), (4, 1.7, 3.0), (9, 4.2, 0.5), (2, 0.0, 2.5), (31, 25.3, 10.2)]:
        best = np.maximum(counts, background)
        ratio = poisson.logpmf(counts, mu + background) - poisson.logpmf(counts, best)
        assert poisson_statistic(counts, mu, background) == pytest.approx(-2.0 * ratio, abs=1e-9)
        p = poisson.pmf(counts, mu + background)[ratio <= ratio[n] + 1e-9].sum()
        assert poisson_p_value(n, mu, background) == pytest.approx(p, abs=1e-12)


def test_the_exact_construction_covers():
    for mu in (0.0, 0.7, 2.4, 6.1, 11.0):
        accepted = poisson_p_value(ALL, mu, BACKGROUND) > 0.1
        assert poisson.pmf(ALL, mu + BACKGROUND)[accepted].sum() >= 0.9


@pytest.mark.parametrize(
    ("n", "background", "options", "told"),
    [
        (-1, 3.0, {}, "n must be a number of events"),
        (1.5, 3.0, {}, "n must be a number of events"),
        (1, -1.0, {}, "background must be finite and not negative"),
        (1, 1.0, {"cl": 1.0}, "cl must lie between 0 and 1"),
    ],
)
def test_wrong_arguments_of_the_sums(n, background, options, told):
    with pytest.raises(ValueError, match=told):
        poisson_interval(n, background, **options)


def counting(background):
    cost = PoissonNLL(lambda mu: jnp.stack([mu + background]))
    return Study(cost, PoissonCounts.of(cost), {"mu": 2.0}, limits={"mu": (0, None)})


@cache
def known_background():
    return counting(BACKGROUND)


@cache
def measured_background():
    """Background from an auxiliary count of mean SCALE b."""
    cost = PoissonNLL(lambda mu, b: jnp.stack([mu + b])) + PoissonConstraint("b", SCALE * BACKGROUND, SCALE)
    sampler = Simultaneous(cost, (PoissonCounts.of(cost.costs[0]), None))
    return Study(cost, sampler, {"mu": 2.0, "b": BACKGROUND}, limits={"mu": (0, None), "b": (0, None)})


def counts(n):
    return np.array([[float(n)]])


def interval(study, n, **options):
    data = counts(n) if len(study.cost.names) == 1 else (counts(n), None)
    return feldman_cousins(study, poi="mu", data=data, backend="numba", **options)


@pytest.mark.parametrize("n", [0, 4, 10])
def test_toys_give_the_exact_sums(n):
    found = interval(known_background(), n, values=[0.0, 0.5, 1.5, 3.0, 6.0], n_toys=4000, max_toys=4000)
    for point in found.points:
        exact = float(poisson_p_value(n, point.value, BACKGROUND))
        # binomial: a p-value that left out the ties would be off by the probability of n itself
        assert abs(point.p_value - exact) < 4.0 * np.sqrt(exact * (1.0 - exact) / 4000) + 1e-9
        assert point.t_observed == pytest.approx(float(poisson_statistic(n, point.value, BACKGROUND)), abs=1e-9)
        alike = np.abs(poisson_statistic(ALL, point.value, BACKGROUND) - point.t_observed) < 1e-6
        tied = poisson.pmf(ALL, point.value + BACKGROUND)[alike].sum()
        assert abs(point.ties / 4000 - tied) < 4.0 * np.sqrt(tied * (1.0 - tied) / 4000) + 1e-9
        assert (point.p_value > 0.1) == (point.t_observed <= point.critical + 1e-6)
        assert point.failed == 0


@pytest.mark.parametrize("n", [0, 7])
def test_ends_are_those_of_the_exact_sums(n):
    found = interval(known_background(), n, n_toys=1000)
    lower, upper = poisson_interval(n, BACKGROUND)
    assert abs(found.lower - lower) <= 4.0 * found.lower_error
    assert abs(found.upper - upper) < 4.0 * found.upper_error
    # the p-value of 7 falls from 0.1217 to 0.0998 at the upper end, and is 0.0969 at mu = 9.93: 8000 toys do not tell
    # that from 0.1
    assert found.lower_error < 0.06 and found.upper_error < 0.25
    assert found.at_limit == (lower == 0.0, False) and found.beyond == (False, False)
    assert found.best == pytest.approx(max(0.0, n - BACKGROUND), abs=1e-6)
    for point in found.points:  # more toys where the decision is close, and nowhere else
        near = abs(point.p_value - 0.1) < 3.0 * point.error
        assert point.n_toys == 8000 if near else 1000 <= point.n_toys <= 8000
    assert found.points[-1].n_toys < 8000
    assert "no nuisance parameters" in found.sentence and f"{found.upper:.5g} +-" in found.sentence


def test_no_background_at_all():
    """At mu = 0 events are impossible, so that this limit is rejected without toys."""
    study = counting(0.0)
    found = interval(study, 1, n_toys=500)
    assert (found.lower, found.upper) == pytest.approx(poisson_interval(1, 0.0), abs=0.1)
    assert found.points[0].t_observed == np.inf and found.points[0].n_toys == 0
    nothing = interval(study, 0, n_toys=500)
    assert nothing.at_limit == (True, False)
    assert abs(nothing.upper - poisson_interval(0, 0.0)[1]) < 4.0 * nothing.upper_error


def gaussian_p_value(x, mu):
    """One measurement of error 1 of mu >= 0: t = (x - mu)^2, and mu^2 - 2 x mu below 0 (the paper, sec. III B)."""
    t = (x - mu) ** 2 if x >= 0 else mu**2 - 2.0 * x * mu
    # x below mu - sqrt(t), or below (mu^2 - t) / (2 mu) where that is negative; and above mu + sqrt(t)
    low = mu - np.sqrt(t) if t <= mu**2 else (mu**2 - t) / (2.0 * mu)
    return norm.cdf(low - mu) + norm.sf(np.sqrt(t))


@pytest.mark.parametrize(("x", "published"), [(-1.0, (0.0, 0.81)), (0.0, (0.0, 1.64)), (2.0, (0.58, 3.64))])
def test_a_gaussian_near_a_boundary(x, published):
    """Table X of the paper."""
    found = feldman_cousins(gaussian(), poi="mu", data=at(x), backend="numba", n_toys=500)
    for point in found.points:
        if point.value > 0:
            exact = gaussian_p_value(x, point.value)
            assert abs(point.p_value - exact) < 4.5 * np.sqrt(exact * (1.0 - exact) / point.n_toys)
    assert abs(found.lower - published[0]) <= 4.0 * found.lower_error + 0.005
    assert abs(found.upper - published[1]) <= 4.0 * found.upper_error + 0.005
    assert found.upper_error < 0.12


def at(x):
    return np.zeros(1), np.array([[x]]), np.ones(1)


@cache
def gaussian():
    cost = LeastSquares(lambda x, mu: mu + 0.0 * x)
    points = NormalPoints(lambda x, mu: mu + 0.0 * x, ("mu",), np.zeros(1), 1.0)
    return Study(cost, points, {"mu": 1.0}, limits={"mu": (0, None)})


def exact_profile_p_value(n, m, mu):
    """By the double sum over both counts, with the closed forms of the profiled background."""
    nn, mm = np.meshgrid(np.arange(60.0), np.arange(60.0), indexing="ij")

    def profiled(n, m, mu):
        half = n + m - (1.0 + SCALE) * mu
        return (half + np.sqrt(half**2 + 4.0 * (1.0 + SCALE) * m * mu)) / (2.0 * (1.0 + SCALE))

    def log_likelihood(n, m, mu, b):
        return poisson.logpmf(n, mu + b) + poisson.logpmf(m, SCALE * b)

    def t(n, m):
        excess = n > m / SCALE
        best_b = np.where(excess, m / SCALE, (n + m) / (1.0 + SCALE))
        best = log_likelihood(n, m, np.where(excess, n - m / SCALE, 0.0), best_b)
        return 2.0 * (best - log_likelihood(n, m, mu, profiled(n, m, mu)))

    b = profiled(float(n), float(m), mu)
    weight = poisson.pmf(nn, mu + b) * poisson.pmf(mm, SCALE * b)
    return weight[t(nn, mm) >= t(np.float64(n), np.float64(m)) - 1e-6].sum()


def test_a_measured_background_is_profiled():
    n, m = 7, int(SCALE * BACKGROUND)
    found = interval(measured_background(), n, values=[0.0, 0.4, 2.0, 6.0, 9.0, 10.0], n_toys=4000, max_toys=4000)
    for point in found.points:
        exact = exact_profile_p_value(n, m, point.value)
        assert abs(point.p_value - exact) < 4.0 * np.sqrt(exact * (1.0 - exact) / 4000)
    # 0.10 more than with the known background
    assert found.upper > poisson_interval(n, BACKGROUND)[1] + 0.02
    assert found.lower < poisson_interval(n, BACKGROUND)[0]
    assert "redrawn for every toy" in found.sentence and "profiled" in found.sentence
    fixed = interval(measured_background(), n, values=[2.0], n_toys=500, max_toys=500, auxiliary="fixed")
    assert "the observed one" in fixed.sentence
    assert fixed.points[0].p_value != found.points[2].p_value


def test_coverage_with_a_measured_background():
    rng = np.random.default_rng(3)
    inside = 0
    for seed in range(40):
        data = (counts(rng.poisson(2.0 + BACKGROUND)), np.array([[float(rng.poisson(SCALE * BACKGROUND))]]))
        found = feldman_cousins(
            measured_background(), poi="mu", data=data, values=[2.0], n_toys=300, max_toys=300, seed=seed,
            backend="numba",
        )  # fmt: skip
        inside += found.points[0].p_value > 0.1
    # 3 binomial errors below 0.9; a test that accepted half of the time would give 20
    assert inside >= 40 * (0.9 - 3.0 * np.sqrt(0.09 / 40))


def test_backends_and_pools_give_the_same_points():
    study = known_background()
    options = {"values": [1.5], "n_toys": 200, "max_toys": 200}
    found = interval(study, 6, **options)
    by_jax = feldman_cousins(study, poi="mu", data=counts(6), backend="jax", **options)
    assert by_jax.points[0] == pytest.approx(found.points[0], rel=1e-7)
    pool = ToyPool(study, "mu", counts(6), backend="numba")
    pool.statistic(1.5, thrown_at=1.5, n_toys=500, test_stat="t")
    assert feldman_cousins(study, poi="mu", pool=pool, **options).points == found.points
    assert interval(study, 6, seed=2, **options).points != found.points


def test_given_values_enclose_the_end():
    found = interval(known_background(), 4, values=[0.0, 8.0, 2.0, 12.0], n_toys=500, max_toys=500)
    assert [point.value for point in found.points] == [0.0, 2.0, 8.0, 12.0]
    assert 2.0 < found.upper < 8.0 and found.upper_error == pytest.approx(6.0 / np.sqrt(12.0))
    inner, outer = found.points[1:3]
    line = np.interp(found.upper, [2.0, 8.0], [inner.p_value, outer.p_value])
    assert line == pytest.approx(0.1, abs=1e-9)
    assert found.at_limit == (True, False) and found.lower_error == 0.0


def test_values_that_do_not_reach_the_ends():
    found = interval(known_background(), 10, values=[5.0, 8.0], n_toys=200, max_toys=200)
    assert found.beyond == (True, True) and (found.lower, found.upper) == (5.0, 8.0)
    assert "not rejected" in found.sentence


@cache
def small_peak():
    """A peak whose place and width are free, so that it has none without events and may be the background, too."""
    study = peak()
    return replace(study, limits={**study.limits, "mu": (3, 7), "sigma": (0.2, 1), "lam": (1, 20)})


def of_small_peak(ns, nb, seed):
    """The observation, and the study that has it."""
    study = small_peak().at({"ns": ns, "nb": nb})
    data = generate(study, 1, seed=seed)
    return data, replace(study, data=data)


# the last leads from 12.5 to a lower minimum at 54
@pytest.mark.parametrize(("ns", "nb", "seed"), [(20, 400, 1), (50, 1000, 1), (100, 400, 0), (20, 1000, 2)])
def test_the_yield_of_a_small_peak(ns, nb, seed):
    data, study = of_small_peak(ns, nb, seed)
    found = feldman_cousins(study, poi="ns", n_toys=100, max_toys=100, backend="numba")
    # beyond the number of events there is no background left
    assert 0.0 < found.lower < found.best < found.upper < 0.5 * len(data[0])
    assert found.lower <= ns <= found.upper
    assert found.points[-1].value < len(data[0]) and not found.beyond[1]
    at_minimum = ToyPool(study, "ns", backend="numba").observed(found.best, "t")
    assert at_minimum.poi_hat[0] == pytest.approx(found.best) and at_minimum.value[0] < 1e-6
    # the peak has no place where it has no events: t does not tell that these are impossible
    assert all(np.isfinite(point.t_observed) for point in found.points)
    assert found.beyond[0] == ("(not rejected)" in found.sentence) == ("no fit of the data at ns = 0" in found.sentence)


def test_the_search_stops_where_the_data_have_no_fit():
    """Of 452 events with any width, a peak may be all: the scale of a background of none has no meaning."""
    study = peak().at({"ns": 50, "nb": 400})
    study = replace(study, data=generate(study, 1, seed=1))
    pool = ToyPool(study, "ns", backend="numba")
    with pytest.raises(NoFitError, match=r"ns = 600 failed \(A saddle or a flat direction") as failed:
        pool.observed(600.0, "t")
    assert failed.value.status == Status.HESSIAN_NOT_POSDEF
    found = feldman_cousins(study, poi="ns", n_toys=20, max_toys=20, backend="numba")
    assert found.lower < found.best < found.upper < 600.0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"cl": 90.0}, "cl must lie between 0 and 1"),
        ({"cl": 1}, "cl must lie between 0 and 1"),
        ({"n_toys": 100, "max_toys": 50}, "max_toys must be a whole number of at least n_toys"),
        ({"n_toys": 0, "values": [1.0]}, "n_toys must be a whole number of at least 1"),
        ({"values": []}, "at least one value"),
        ({"values": [-1.0]}, "outside of"),
        ({"poi": "nu"}, "poi names 'nu'"),
    ],
)
def test_wrong_arguments(options, told):
    with pytest.raises(ValueError, match=told):
        feldman_cousins(known_background(), **{"poi": "mu", "data": counts(4), "backend": "numba", **options})


def test_a_pool_of_something_else_is_refused():
    pool = ToyPool(known_background(), "mu", counts(4), backend="numba")
    with pytest.raises(ValueError, match="the pool holds the toys of its own study"):
        feldman_cousins(known_background(), poi="mu", data=counts(5), pool=pool)
