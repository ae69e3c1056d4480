import jax.numpy as jnp
import numpy as np
import pytest

import engine
from engine import (
    BinnedNLL,
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    GammaConstraint,
    LeastSquares,
    NormalConstraint,
    PoissonConstraint,
    PoissonNLL,
    UnbinnedNLL,
    Weighted,
    fit_batch,
)
from engine.asimov import NoAsimovError, asimov
from kernels import expon, norm

EDGES = np.linspace(0.0, 4.0, 9)


def decay(x, n, tau):
    return n, n * jnp.exp(-x / tau) / tau


def density(x, tau):
    return jnp.exp(-x / tau) / tau


def log_density(x, tau):
    return -x / tau - jnp.log(tau)


def test_counts_points_and_constraints():
    counts = PoissonNLL(lambda s, b: s * jnp.array([1.0, 3.0]) + b)
    np.testing.assert_allclose(asimov(counts, {"s": 2.0, "b": 5.0}), [[7.0, 11.0]])
    extended = ExtendedBinnedNLL(lambda x, n: n * expon.cdf(x, 0.0, 1.0), EDGES)
    np.testing.assert_allclose(asimov(extended, [50.0])[0], 50.0 * np.diff(1 - np.exp(-EDGES)), rtol=1e-12)
    mask = np.arange(8) < 6
    binned = BinnedNLL(lambda x, mu: norm.cdf(x, mu, 1.0), EDGES, mask=mask)
    like = np.arange(8.0)[None]
    assert asimov(binned, [2.0], like)[0, :6].sum() == pytest.approx(15.0)
    line = LeastSquares(lambda x, a, b: a + b * x)
    x, y, yerror = asimov(line, [1.0, 2.0], (EDGES, np.zeros((1, 9)), 0.1))
    np.testing.assert_allclose(y, 1.0 + 2.0 * EDGES[None])
    assert x is EDGES and yerror == 0.1
    two = line + NormalConstraint("a", 4.0, 1.0) + NormalConstraint("b", 4.0, 1.0)  # as many as (x, y, yerror)
    np.testing.assert_array_equal(asimov(two, [1.0, 2.0], (EDGES, np.zeros((1, 9)), 0.1))[0][1], y)
    total = counts + NormalConstraint("b", 4.0, 1.0) + PoissonConstraint("s", 3.0, 2.0) + GammaConstraint("s", 3.0, 1.0)
    parts = asimov(total, {"s": 2.0, "b": 5.0})
    np.testing.assert_allclose(np.concatenate(parts, axis=1), [[7.0, 11.0, 5.0, 4.0, 2.0]])


def test_a_fit_returns_theta():
    start = {"s": 1.0, "b": 4.0}
    cost = PoissonNLL(lambda s, b: s * jnp.array([1.0, 3.0]) + b) + PoissonConstraint("b", 4.0, 2.0)
    fit = fit_batch(cost, asimov(cost, {"s": 2.0, "b": 5.5}), start, backend="numba")
    np.testing.assert_allclose(fit.values, [[2.0, 5.5]], atol=1e-7)
    assert fit.fval[0] < 1e-12
    events = ExtendedUnbinnedNLL(decay)
    weighted = asimov(events, {"n": 100.0, "tau": 0.7}, observable=(0.0, 40.0))
    fit = fit_batch(events, weighted, {"n": 80.0, "tau": 1.0}, backend="numba")
    np.testing.assert_allclose(fit.values, [[100.0, 0.7]], rtol=1e-7)
    # the expected log-likelihood in closed form: n - n (log n - log tau - 1)
    assert fit.fval[0] == pytest.approx(100.0 - 100.0 * (np.log(100.0 / 0.7) - 1.0), rel=1e-9)


@pytest.mark.parametrize("fit_range", [None, (0.0, 40.0)])
@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_nodes_have_the_errors_that_events_are_expected_to_have(fit_range, backend):
    """And no warning of weights, where the cost rises as that of events does."""
    cost, truth = ExtendedUnbinnedNLL(decay, fit_range=fit_range), {"n": 100.0, "tau": 0.7}
    data = asimov(cost, truth, observable=(0.0, 40.0))
    assert not cost.rows(data).weighted  # or no test would take them as an observation
    fit = fit_batch(cost, data, truth, backend=backend)
    np.testing.assert_allclose(fit.errors, [[10.0, 0.07]], rtol=1e-6)
    tested = engine.test_statistic(cost, data, "n", 80.0, test_stat="t", start=truth, backend=backend)
    assert tested.value[0] == pytest.approx(2 * (80.0 - 100.0 - 100.0 * np.log(0.8)), rel=1e-6)
    # n - 100 log n rises by 1/2 where a Poisson interval of MINOS ends
    assert fit.minos("n").upper[0, 0] == pytest.approx(10.3361, abs=1e-3)


def test_weights_of_nodes():
    like = [np.linspace(0.1, 5.0, 40)]
    for cost in (UnbinnedNLL(density), UnbinnedNLL(log_density, log=True)):
        nodes, weights = (part[0] for part in vars(asimov(cost, [0.5], like, observable=(0.0, 30.0))).values())
        assert weights.sum() == pytest.approx(40.0) and weights @ nodes == pytest.approx(20.0, rel=1e-8)
    windows = ExtendedUnbinnedNLL(decay, fit_range=[(0.0, 1.0), (2.0, 3.0)])
    data = asimov(windows, [10.0, 1.0])
    x = data.events[0]
    assert not ((x > 1.0) & (x < 2.0)).any()
    inside = 10.0 * (1 - np.exp(-1.0) + np.exp(-2.0) - np.exp(-3.0))
    assert data.weights[0].sum() == pytest.approx(inside, rel=1e-9)
    shape = UnbinnedNLL(density, fit_range=(0.0, 1.0))
    assert asimov(shape, [1.0], like, observable=(0.0, None)).weights[0].sum() == pytest.approx(np.sum(like[0] <= 1.0))
    weighted = asimov(shape, [1.0], Weighted(like, [np.full(40, 0.5)]))
    assert weighted.weights[0].sum() == pytest.approx(0.5 * np.sum(like[0] <= 1.0))


@pytest.mark.parametrize(
    "cost, like, sentence",
    [
        (UnbinnedNLL(density), [np.ones(3)], "the Asimov data of the model 'density' need the finite range"),
        (LeastSquares(lambda x, tau: tau * x), None, "need a toy that tells its x and errors"),
        (BinnedNLL(lambda x, tau: expon.cdf(x, 0.0, tau), EDGES), None, "need a toy that tells its total count"),
    ],
)
def test_what_is_missing_is_told(cost, like, sentence):
    with pytest.raises(NoAsimovError, match=sentence):
        asimov(cost, {"tau": 1.0}, like)


EVENTS, POINTS, BINS = UnbinnedNLL(density), LeastSquares(lambda x, tau: tau * x), BinnedNLL(density, EDGES)


@pytest.mark.parametrize(
    "cost, like, sentence",
    [
        (EVENTS, [np.ones(3), np.ones(5)], "like must be one toy, which tells its number of events, got 2 toys"),
        (BINS, np.ones((3, 8)), "like must be one toy, which tells its total count, got 3 toys"),
        (POINTS, (EDGES, np.ones((2, 9)), 0.1), "like must be one toy, which tells its x and errors, got 2 toys"),
        (POINTS, EDGES, r"data must be \(x, y, yerror\), got ndarray"),
        (POINTS, (EDGES,), r"data must be \(x, y, yerror\), got 1 arrays"),
        (POINTS, 3.0, r"data must be \(x, y, yerror\), got float"),
        (BINS, np.ones((0, 8)), "like must be one toy, which tells its total count, got 0 toys"),
        (BINS, np.ones(8), r"counts must have shape \(n_toys, n_bins\) = \(n_toys, 8\)"),
    ],
)
def test_what_is_not_one_toy_is_told(cost, like, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        asimov(cost, {"tau": 1.0}, like, observable=(0.0, 30.0))


@pytest.mark.parametrize("observable", [5.0, (0.0, np.inf), ("a", "b")])
def test_wrong_observables_are_told(observable):
    with pytest.raises((TypeError, ValueError), match="observable"):
        asimov(EVENTS + NormalConstraint("tau", 1.0, 0.1), {"tau": 1.0}, [np.ones(3)], observable=observable)
