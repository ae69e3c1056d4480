"""Constraints and sums: closed forms, shared parameters, the rule for chi-squares among likelihoods."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine import (
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    LeastSquares,
    NormalConstraint,
    Status,
    UnbinnedNLL,
    fit_batch,
)
from engine.arguments import limit_arrays
from engine.drivers import Settings
from engine.reference import migrad
from engine.sums import observables_of
from kernels import expon, norm

RNG = np.random.default_rng(8)
EVENTS = [RNG.normal(0.3, 1.0, 100) for _ in range(20)]
MEASURED = RNG.normal(0.0, 0.05, 20)
MEAN = UnbinnedNLL(lambda x, mu: norm.pdf(x, mu, 1.0))


def test_one_rule_for_the_observables_of_a_sum():
    sum_of_two, pair, plane = MEAN + MEAN, (0.0, 1.0), ((0.0, 1.0), (2.0, 3.0))
    assert observables_of(MEAN, pair) == (pair,) and observables_of(MEAN, plane) == (plane,)
    assert observables_of(sum_of_two, pair) == (pair, pair)
    assert observables_of(sum_of_two, list(plane)) == plane
    assert observables_of(sum_of_two, (None, pair)) == (None, pair)
    assert observables_of(sum_of_two, None) == (None, None)
    for wrong, told in ((5.0, "for each of 2 costs, got 5.0"), ((pair,) * 3, "for each of 2 costs, got 3")):
        with pytest.raises(ValueError, match=told):
            observables_of(sum_of_two, wrong)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_constrained_mean_in_closed_form(backend):
    """A Gaussian mean of known width with a Gaussian constraint is their weighted mean."""
    result = fit_batch(MEAN + NormalConstraint("mu", 0.1, 0.05), EVENTS, {"mu": 0.0}, backend=backend)
    assert result.errordef == 0.5
    weight = 100.0 + 1 / 0.05**2
    expected = [(x.sum() + 0.1 / 0.05**2) / weight for x in EVENTS]
    np.testing.assert_allclose(result.values[:, 0], expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(result.errors[:, 0], 1 / np.sqrt(weight), rtol=1e-10)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_each_toy_has_its_own_measured_value(backend):
    cost = MEAN + NormalConstraint("mu", 0.0, 0.05)
    result = fit_batch(cost, (EVENTS, MEASURED), {"mu": 0.0}, backend=backend)
    expected = [(x.sum() + m / 0.05**2) / (100.0 + 1 / 0.05**2) for x, m in zip(EVENTS, MEASURED, strict=True)]
    np.testing.assert_allclose(result.values[:, 0], expected, rtol=1e-10, atol=1e-12)


def test_correlated_constraint_alone():
    covariance = np.array([[0.04, 0.01], [0.01, 0.09]])
    cost = NormalConstraint(["a", "b"], [1.0, 2.0], covariance)
    result = fit_batch(cost, np.array([[1.0, 2.0], [3.0, -1.0]]), {"a": 0.0, "b": 0.0}, backend="numba")
    assert result.errordef == 1.0
    np.testing.assert_allclose(result.values, [[1.0, 2.0], [3.0, -1.0]], rtol=1e-12)
    np.testing.assert_allclose(result.covariance[0], covariance, rtol=1e-12)


def test_chi_squares_alone_stay_chi_squares():
    x, y = np.arange(5.0), np.array([[1.0, 3.0, 2.0, 5.0, 4.0]])
    points = LeastSquares(lambda x, a, b: a + b * x)
    result = fit_batch(points + NormalConstraint("b", 1.0, 0.1), (x, y, 1.0), {"a": 0.0, "b": 0.0}, backend="numba")
    assert result.errordef == 1.0
    design = np.vstack([np.stack([np.ones(5), x], axis=1), [[0.0, 10.0]]])
    np.testing.assert_allclose(result.values[0], np.linalg.lstsq(design, np.append(y, 10.0), rcond=None)[0], rtol=1e-10)
    np.testing.assert_allclose(result.covariance[0], np.linalg.inv(design.T @ design), rtol=1e-10)


@pytest.mark.parametrize("x", [np.arange(3.0), [0.0, 1.0, 2.0], np.ones((2, 3))], ids=["array", "list", "observables"])
@pytest.mark.parametrize("first", [True, False])
def test_bare_points_of_a_sum_as_long(x, first):
    """Data of a sum of as many costs as the points have arrays."""
    y, line, slope = np.ones((4, 3)), lambda x, a, b: a + b * x, NormalConstraint("b", 1.0, 0.1)
    alike = LeastSquares(line, covariance=np.eye(3)), LeastSquares(line)
    for points, data, slopes in ((alike[0], (x, y), slope), (alike[1], (x, y, np.ones(3)), slope + slope)):
        cost = points + slopes if first else slopes + points
        nothing = (None,) * (len(cost.costs) - 1)
        whole = (data, *nothing) if first else (*nothing, data)
        for rows in (cost.rows(data), cost.rows(whole)):
            assert len(rows) == 4
            np.testing.assert_array_equal(rows.parts[0 if first else -1].columns, points.rows(data).columns)


@pytest.mark.parametrize("x", [np.arange(3.0), [0.0, 1.0, 2.0], [np.arange(3.0), np.ones(3)]])
@pytest.mark.parametrize(
    "listed", [lambda y: y, lambda y: [*y], lambda y: y.tolist()], ids=["array", "arrays", "lists"]
)
@pytest.mark.parametrize("first", [True, False])
def test_lists_of_arrays_are_points_of_a_sum(x, listed, first):
    """Of four toys, alone or next to the constraint, which takes them for its own nowhere."""
    points = LeastSquares(lambda x, a, b: a + b * jnp.sum(x), covariance=np.eye(3))
    data, slope = (x, listed(np.ones((4, 3)) * [[1.0], [2.0], [3.0], [4.0]])), NormalConstraint("b", 1.0, 0.1)
    cost = points + slope if first else slope + points
    for measured in (None, np.ones(4)):
        for entry in (data, list(data)):
            for given in (data, (entry, measured) if first else (measured, entry)):
                rows = cost.rows(given)
                assert len(rows) == 4
                np.testing.assert_array_equal(rows.parts[0 if first else -1].columns, points.rows(data).columns)


@pytest.mark.parametrize("first", [True, False])
def test_lists_of_events_of_a_sum(first):
    constraint = NormalConstraint("mu", 0.1, 0.05)
    cost = MEAN + constraint if first else constraint + MEAN
    ordered = lambda events, measured: (events, measured) if first else (measured, events)  # noqa: E731
    for n in (1, 2, 3):  # as many as costs, and others
        for data in (EVENTS[:n], [each.tolist() for each in EVENTS[:n]], ordered(EVENTS[:n], None)):
            assert len(cost.rows(data)) == n
    order = ", ".join(type(part).__name__ for part in cost.costs)
    k = int(not first)
    for data, told in (
        (ordered(None, EVENTS), rf"cost {k} of the sum needs data, got None: the order is \({order}\)"),
        ([None, EVENTS], "must be a tuple with one entry for each, None for a constraint, got list"),
        (
            tuple(EVENTS[:2]),
            rf"entry {k} of the data, of UnbinnedNLL: data of shape \(100,\) is one toy: pass \[events\]",
        ),
        (ordered(EVENTS[:2], EVENTS[:2]), f"entry {1 - k} of the data, of NormalConstraint: measured values"),
    ):
        with pytest.raises((TypeError, ValueError), match=told):
            cost.rows(data)


def simultaneous():
    """An unbinned lifetime, a histogram of the same lifetime, and a measurement of it."""
    edges = np.linspace(0.0, 10.0, 21)
    unbinned = ExtendedUnbinnedNLL(lambda x, n, tau: (n, n * expon.pdf(x, 0.0, tau)))
    binned = ExtendedBinnedNLL(lambda edge, tau, m: m * expon.cdf(edge, 0.0, tau), edges)
    cost = unbinned + binned + NormalConstraint("tau", 2.0, 0.3)
    rng = np.random.default_rng(9)
    events = [rng.exponential(2.0, rng.poisson(60)) for _ in range(12)]
    counts = np.array([np.histogram(rng.exponential(2.0, 80), edges)[0] for _ in range(12)], dtype=float)
    return cost, (events, counts, rng.normal(2.0, 0.3, 12))


def test_simultaneous_fit_against_minuit_and_between_backends():
    cost, data = simultaneous()
    assert cost.names == ("n", "tau", "m")
    start, limits = {"n": 50.0, "tau": 1.5, "m": 70.0}, {"n": (0, None), "tau": (0.01, None), "m": (0, None)}
    numba = fit_batch(cost, data, start, limits=limits, backend="numba")
    jax = fit_batch(cost, data, start, limits=limits, backend="jax")
    assert numba.valid.all()
    assert np.max(np.abs(numba.values - jax.values) / numba.errors) < 1e-6
    rows = cost.rows(data)
    settings = Settings(*limit_arrays(cost.names, limits), np.ones(3, dtype=bool), 0.5, 1e-13, 200)
    for k in range(3):
        minuit = migrad(cost, rows, k, np.array(list(start.values())), settings)
        assert np.max(np.abs(numba.values[k] - minuit.values) / numba.errors[k]) < 1e-3
        assert numba.fval[k] == pytest.approx(minuit.fval, abs=1e-8)
    # n appears in the first cost alone: its estimate is the number of events
    np.testing.assert_allclose(numba.values[:, 0], [len(x) for x in data[0]], rtol=1e-10)


def test_order_and_grouping_do_not_matter():
    a, b, c = MEAN, NormalConstraint("mu", 0.1, 0.05), UnbinnedNLL(lambda x, mu, s: norm.pdf(x, mu, s))
    first = fit_batch((a + b) + c, (EVENTS, None, EVENTS), {"mu": 0.0, "s": 1.0}, backend="numba")
    second = fit_batch(a + (b + c), (EVENTS, None, EVENTS), {"mu": 0.0, "s": 1.0}, backend="numba")
    np.testing.assert_array_equal(first.values, second.values)


def test_bad_part_is_the_toys_own_fate():
    cost, (events, counts, measured) = simultaneous()
    counts, measured = counts.copy(), measured.copy()
    counts[2, 0], measured[5] = -1.0, np.nan
    start = {"n": 50.0, "tau": 1.5, "m": 70.0}
    result = fit_batch(cost, (events, counts, measured), start, limits={"tau": (0.01, None)}, backend="numba")
    assert np.flatnonzero(result.status == Status.BAD_DATA).tolist() == [2, 5]
    assert result.valid.sum() == 10


def test_wrong_sums():
    cost = MEAN + UnbinnedNLL(lambda x, s: norm.pdf(x, 0.0, s))
    with pytest.raises(
        TypeError, match=r"a sum of 2 costs must be a tuple with one entry for each, None for a constraint, got list"
    ):
        fit_batch(cost, EVENTS, {"mu": 0, "s": 1})
    with pytest.raises(ValueError, match="the same number of toys, got 20 for cost 0, 3 for cost 1"):
        fit_batch(cost, (EVENTS, EVENTS[:3]), {"mu": 0, "s": 1})
    with pytest.raises(ValueError, match="cost 1 of the sum needs data, got None"):
        fit_batch(cost, (EVENTS, None), {"mu": 0, "s": 1})
    with pytest.raises(ValueError, match="is on 'mu0', which no other cost of the sum has: did you mean 'mu'"):
        fit_batch(MEAN + NormalConstraint("mu0", 0.0, 1.0), EVENTS, {"mu": 0.0, "mu0": 0.0})
    with pytest.raises(TypeError, match="unsupported operand"):
        MEAN + 1.0


@pytest.mark.parametrize(
    ("names", "value", "error", "sentence"),
    [
        ("a", 1.0, 0.0, "error must be 1 positive numbers"),
        ("a", 1.0, -1.0, "error must be 1 positive numbers"),
        (["a", "b"], [1.0], 1.0, "value must be 2 finite numbers for a, b"),
        (["a", "a"], [1.0, 2.0], 1.0, "names must be different"),
        (["a", "b"], [1.0, 2.0], [[1.0, 2.0], [2.0, 1.0]], "positive definite"),
        (["a", "b"], [1.0, 2.0], [[1.0, 0.5], [0.1, 1.0]], "symmetric"),
    ],
)
def test_wrong_constraints(names, value, error, sentence):
    with pytest.raises(ValueError, match=sentence):
        NormalConstraint(names, value, error)
