"""Coverage against exact sums and the normal distribution, and that no toy is lost from the count."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from engine import LeastSquares, PoissonNLL
from tests.toys.test_pulls import make_minos, make_result
from toys.counts import PoissonCounts
from toys.coverage import Outcome, coverage, failures, probability, regions
from toys.points import NormalPoints
from toys.pulls import pulls
from toys.sample import first_curves, is_one_sigma, throw
from toys.scan import scan
from toys.statistics import ONE_SIGMA
from toys.study import Study
from toys.tally import Tally

LEVELS = (0.6827, 0.90, 0.9545)
EXPECTED = 3.0


@pytest.fixture(scope="module")
def counting():
    cost = PoissonNLL(lambda mu: jnp.stack([mu]))
    return Study(
        cost=cost, sampler=PoissonCounts.of(cost), truth={"mu": EXPECTED}, limits={"mu": (0.0, None)}, name="counting"
    )


@pytest.fixture(scope="module")
def counted(counting):
    return throw(counting, 10_000, seed=3, levels=LEVELS, backend="numba")


def exact_interval(n, level):
    """Where mu - n log mu is within half the quantile of its minimum; that of n = 0 begins at the limit."""
    rise = 0.5 * stats.chi2.ppf(level, 1)
    height = lambda mu: mu - n - (n * np.log(mu / n) if n else 0.0) - rise  # noqa: E731
    lower = optimize.brentq(height, 1e-12, n) if n else 0.0
    return lower, optimize.brentq(height, max(n, 1e-12), n + 20 * np.sqrt(n + 4.0))


@pytest.mark.parametrize("level", LEVELS)
def test_poisson_counting(counted, level):
    """10 000 toys with 3 expected events: MINOS covers as the exact sum over the Poisson distribution says."""
    inside = {}
    for n in range(25):
        lower, upper = exact_interval(n, level)
        inside[n] = lower <= EXPECTED <= upper
    exact = sum(stats.poisson.pmf(n, EXPECTED) for n, holds in inside.items() if holds)
    row = coverage(counted.result, counted.study.truth, counted.minos, LEVELS).row("mu", "minos", level)
    counts = np.rint(counted.result.values[:, 0]).astype(int)
    # toy by toy, and so the fraction within 3 of its binomial errors
    assert row.inside == sum(inside[n] for n in counts.tolist())
    assert row.n == row.n_toys == 10_000 and row.missing == {}
    assert abs(row.coverage - exact) < 3 * np.sqrt(exact * (1 - exact) / row.n)
    # the interval of no event ends on the limit, and extends to it
    assert row.at_limit >= (counts == 0).sum() > 100
    hesse = coverage(counted.result, counted.study.truth, levels=(level,)).row("mu", "hesse", level)
    assert hesse.missing == {"no error: held, or at a limit": (counts == 0).sum()}


def test_gaussian_mean_of_known_width():
    """Pulls and coverage are those of a normal distribution: 10 000 toys, within 3 binomial errors at each level."""
    x, n_toys = np.arange(4.0), 10_000
    cost = LeastSquares(lambda x, mean: mean + 0.0 * x)
    study = Study(
        cost=cost, sampler=NormalPoints(cost.model, ("mean",), x, np.full(4, 2.0)), truth={"mean": 7.0}, name="mean"
    )
    sample = throw(study, n_toys, seed=2, levels=LEVELS, backend="numba")
    found = coverage(sample.result, study.truth, sample.minos, LEVELS)
    for row in found.rows:
        assert row.n == n_toys and abs(row.distance) < 3
        assert row.inside + row.too_low + row.too_high == n_toys
    hesse, minos = (found.outcomes[method, 0.9] for method in ("hesse", "minos"))
    np.testing.assert_array_equal(hesse, minos)
    pull = pulls(sample.result, study.truth, sample.minos[0.6827])
    # the error of the mean of 4 points is 1, and a parabola is its own profile
    np.testing.assert_allclose(pull.by_method["hesse"], sample.result.values - 7.0, rtol=1e-9, atol=1e-9)
    z = np.sqrt(stats.chi2.ppf(0.6827, 1))
    np.testing.assert_allclose(pull.by_method["minos"], pull.by_method["hesse"] / z, rtol=1e-6, atol=1e-9)
    for row in pull.rows[:1]:
        assert row.p_standard > 1e-3 and abs(row.pull_mean) < 3 * row.pull_mean_error
        assert abs(row.pull_width - 1) < 3 * row.pull_width_error
    (curve,) = first_curves(sample, seed=2, backend="numba")
    np.testing.assert_allclose(curve.rise, curve.z**2, atol=1e-6)


def test_chunks_do_not_matter(counting, counted, monkeypatch):
    monkeypatch.setattr("toys.memory.LARGEST_CHUNK", 700)
    done = []
    some = throw(counting, 1500, seed=3, levels=(0.9,), backend="numba", advance=done.append)
    assert done == [700, 700, 100]
    np.testing.assert_array_equal(some.result.values, counted.result.values[:1500])
    np.testing.assert_array_equal(some.minos[0.9].upper, counted.minos[0.9].upper[:1500])
    assert some.result.problem is None and some.minos[0.9].result.problem is None


def test_scan(counting):
    seen = []
    points = scan(counting, "mu", [2.0, 50.0], 300, levels=(0.6827,), seed=5, backend="numba", finished=seen.append)
    assert [point.value for point in points] == [2.0, 50.0] == [point.value for point in seen]
    # point k is a run of its own, with the seed 5 + k
    alone = throw(counting.at({"mu": 50.0}), 300, seed=6, levels=(0.6827,), backend="numba")
    np.testing.assert_array_equal(points[1].pulls.values, alone.result.values)
    assert points[1].coverage.rows == coverage(alone.result, {"mu": 50.0}, alone.minos, (0.6827,)).rows
    assert {row.method for row in points[0].pulls.rows} == {"hesse", "minos"}
    assert points[0].failures == {
        "toys": 300,
        "failed": 0,
        "at a limit": points[0].failures["at a limit"],
        "rescued": 0,
    }


def test_every_toy_has_an_outcome():
    """Each way in which an interval can hold the truth, miss it or not be there."""
    values = np.array([[5.0], [4.0], [6.0], [5.0], [5.0], [np.nan], [0.0]])
    result = make_result(
        values,
        [[1.0], [0.5], [0.5], [0.0], [1.0], [np.nan], [0.0]],
        [True, True, True, True, True, False, True],
        names=("mu",),
        status=[0, 0, 0, 0, 0, 2, 0],
    )
    minos = make_minos(
        result,
        [[-1.0], [-0.5], [-0.5], [-1.0], [np.nan], [np.nan], [0.0]],
        [[1.0], [1.0], [0.5], [1.0], [np.nan], [np.nan], [5.0 - 1e-13]],
        valid=[[True], [True], [True], [True], [False], [False], [True]],
        at_lower_limit=[[False]] * 6 + [[True]],
    )
    found = coverage(result, {"mu": 5.0}, {1.0: minos}, levels=(0.6827,))
    inside, low, high, no_fit = Outcome.INSIDE, Outcome.TOO_LOW, Outcome.TOO_HIGH, Outcome.NO_FIT
    hesse = [inside, low, high, Outcome.NO_ERROR, inside, no_fit, Outcome.NO_ERROR]
    assert found.outcomes["hesse", 0.6827][:, 0].tolist() == hesse
    # closed at both ends, to rounding
    assert found.outcomes["minos", 0.6827][:, 0].tolist() == [
        inside,
        inside,
        high,
        inside,
        Outcome.NO_MINOS,
        no_fit,
        inside,
    ]
    row = found.row("mu", "minos", 0.6827)
    assert (row.n_toys, row.n, row.inside, row.too_low, row.too_high, row.at_limit) == (7, 5, 4, 0, 1, 1)
    assert row.missing == {"no valid fit": 1, "no MINOS interval": 1}
    assert row.n_toys == row.n + sum(row.missing.values())
    some = found[np.array([0, 1, 2])]
    assert some.row("mu", "hesse", 0.6827).n == 3 and some.row("mu", "hesse", 0.6827).coverage == 1 / 3
    assert "no interval" in str(found) and "<table>" in found._repr_html_()


def test_minos_belongs_to_its_own_minimum():
    """Where MINOS found a lower minimum, its interval is around that."""
    first, second = make_result([[9.0]], [[1.0]], names=("mu",)), make_result([[5.5]], [[1.0]], names=("mu",))
    found = coverage(first, {"mu": 5.0}, make_minos(second, [[-1.0]], [[1.0]]), levels=(1,))
    assert [row.inside for row in found.rows] == [0, 1]


def test_intervals_of_parameters_that_the_toys_do_not_have_are_counted():
    tally = Tally({"nu": 1.0})
    result = make_result([[5.0], [6.0]], [[1.0], [1.0]], names=("mu",))
    tally.add(result, make_minos(result, [[-1.0], [np.nan]], [[1.0], [np.nan]], valid=np.array([[True], [False]])))
    assert (tally.intervals["all"], tally.intervals["without one of them"], tally.minos) == (1, 1, {})


def test_levels():
    assert probability(0.9) == 0.9 and probability(1) == ONE_SIGMA
    assert probability(2.0) == pytest.approx(0.9544997, abs=1e-7)
    assert is_one_sigma(1) and is_one_sigma(0.683) and not is_one_sigma(0.69)
    result = make_result([[1.5]] * 2, [[1.0]] * 2, names=("mu",))
    assert [row.coverage for row in coverage(result, {"mu": 0.0}, levels=(1, 0.9)).rows] == [0.0, 1.0]
    minos = make_minos(result, [[-1.0]] * 2, [[1.0]] * 2)
    assert coverage(result, {"mu": 1.0}, minos).row("mu", "minos", 0.6827).coverage == 1.0
    with pytest.raises(ValueError, match=r"minos has intervals of 0.682689, which is none of the levels 0.9, 0.95"):
        coverage(result, {"mu": 1.0}, minos, levels=(0.9, 0.95))
    with pytest.raises(ValueError, match="a level must be a probability"):
        coverage(result, {"mu": 1.0}, levels=(-0.5,))
    with pytest.raises(ValueError, match="'wilson' or 'clopper-pearson'"):
        coverage(result, {"mu": 1.0}, interval="wald")


def test_failures_by_region():
    result = make_result(
        [[1.0], [2.0], [3.0], [4.0], [np.nan]],
        np.ones((5, 1)),
        [True, False, True, False, False],
        names=("mu",),
        status=[0, 1, 0, 2, 2],
        at_limit=[[True], [False], [False], [False], [False]],
    )
    region, told = regions(result.values[:, 0], 2)
    assert region.tolist() == [0, 0, 1, 1, 2] and told == ["1 to 2.5", "2.5 to 4", "not finite"]
    assert failures(result, region, 3) == [
        {"toys": 2, "failed": 1, "MAX_STEPS": 1, "at a limit": 1, "rescued": 0},
        {"toys": 2, "failed": 1, "NONFINITE": 1, "at a limit": 0, "rescued": 0},
        {"toys": 1, "failed": 1, "NONFINITE": 1, "at a limit": 0, "rescued": 0},
    ]
    assert regions(np.full(3, np.nan), 4) == (pytest.approx(np.zeros(3)), ["not finite"])
    region, told = regions(np.array([2.0, np.nan, 2.0]), 4)
    assert region.tolist() == [0, 1, 0] and told == ["2 to 2", "not finite"]
