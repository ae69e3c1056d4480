"""Densities that are normalised over given nodes: of a quadrature, or events that were simulated and accepted."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine import ExtendedUnbinnedNLL, UnbinnedNLL, Weighted, asimov, fit_batch

SIDE, SIDE_WEIGHTS = np.polynomial.legendre.leggauss(24)
PLANE = np.stack([a.ravel() for a in np.meshgrid(SIDE, SIDE, indexing="ij")])
PLANE_WEIGHTS = np.outer(SIDE_WEIGHTS, SIDE_WEIGHTS).ravel()
START = {"a": 0.2, "b": 0.1}
LIMITS = {"a": (-0.9, 0.9), "b": (-0.9, 0.9)}


def shape(x, a, b):
    return 3.0 * (1.0 + a * x[0] * x[1] + b * x[0] ** 2)


def density(x, a, b):
    return shape(x, a, b) / (3.0 * (4.0 + b * 4.0 / 3.0))


def decay(x, lam):
    return jnp.exp(-x / lam)


def thrown(n_toys, n, keep=lambda x: 1.0, seed=3):
    """Toys of the density at a = 0.4, b = 0.3, of which events are kept with some probability."""
    rng, toys = np.random.default_rng(seed), []
    for _ in range(n_toys):
        x = rng.uniform(-1, 1, (2, 8 * n))
        x = x[:, rng.uniform(0, 1.7, 8 * n) < 1.0 + 0.4 * x[0] * x[1] + 0.3 * x[0] ** 2]
        toys.append(x[:, rng.uniform(size=x.shape[1]) < keep(x)][:, : n + rng.integers(50)])
    return toys


def assert_same(found, expected):
    """To 1e-6 of an error, where fits may stop."""
    errors = np.where(expected.at_limit, 1.0, expected.errors)
    np.testing.assert_array_equal(found.status, expected.status)
    np.testing.assert_array_equal(found.at_limit, expected.at_limit)
    assert np.max(np.abs(found.values - expected.values) / errors) < 1e-6
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("log", [False, True])
def test_of_two_observables_against_the_closed_form(backend, log):
    toys = thrown(12, 400)
    model = (lambda x, a, b: jnp.log(shape(x, a, b))) if log else shape
    cost = UnbinnedNLL(model, log=log, nodes=(PLANE, PLANE_WEIGHTS))
    found = fit_batch(cost, toys, START, limits=LIMITS, backend=backend)
    closed = fit_batch(UnbinnedNLL(density), toys, START, limits=LIMITS)
    assert found.valid.all() and closed.valid.all()
    assert_same(found, closed)
    np.testing.assert_allclose(found.fval, closed.fval, rtol=1e-11)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_extended_against_the_closed_form(backend):
    toys = thrown(12, 400)
    scaled = lambda x, n, a, b: n * density(x, a, b)  # noqa: E731
    whole = lambda x, n, a, b: (n, n * density(x, a, b))  # noqa: E731
    start, limits = START | {"n": 300.0}, LIMITS | {"n": (0, None)}
    cost = ExtendedUnbinnedNLL(scaled, nodes=(PLANE, PLANE_WEIGHTS))
    found = fit_batch(cost, toys, start, limits=limits, backend=backend)
    closed = fit_batch(ExtendedUnbinnedNLL(whole), toys, start, limits=limits)
    assert found.valid.all()
    assert_same(found, closed)
    np.testing.assert_allclose(found.fval, closed.fval, rtol=1e-11)


def test_nodes_of_one_observable_are_those_of_a_fit_range():
    rng = np.random.default_rng(5)
    toys = [x[(x > 1) & (x < 5)] for x in rng.exponential(2.0, (10, 500))]
    ranged = UnbinnedNLL(decay, fit_range=(1, 5), n_nodes=64)
    given = UnbinnedNLL(decay, nodes=tuple(ranged.integral.nodes(64)))
    expected, found = (fit_batch(cost, toys, {"lam": 1.5}) for cost in (ranged, given))
    np.testing.assert_array_equal(found.values, expected.values)


def test_accepted_events_bring_the_efficiency_along():
    """As if the efficiency were in the model, which is then normalised over the sample of all simulated events."""
    efficiency = lambda x: 0.3 + 0.3 * (x[0] + 1.0) * (1.0 - 0.5 * x[1]) / 3.0  # noqa: E731
    rng = np.random.default_rng(6)
    simulated = rng.uniform(-1, 1, (2, 4000))
    accepted = simulated[:, rng.uniform(size=4000) < efficiency(simulated)]
    toys = thrown(8, 500, keep=efficiency)
    found = fit_batch(UnbinnedNLL(shape, nodes=accepted), toys, START, limits=LIMITS)
    summed = lambda x, a, b: shape(x, a, b) / jnp.mean(shape(jnp.asarray(accepted), a, b))  # noqa: E731
    expected = fit_batch(UnbinnedNLL(summed), toys, START, limits=LIMITS)
    assert found.valid.all()
    assert_same(found, expected)
    # the efficiency is seen: without it the fit ends elsewhere
    blind = fit_batch(UnbinnedNLL(density), toys, START, limits=LIMITS)
    assert abs(np.mean(blind.values[:, 0]) - np.mean(found.values[:, 0])) > 0.1


def test_weighted_events_have_the_covariance_of_the_closed_form():
    toys = thrown(6, 400)
    weights = [np.random.default_rng(k).uniform(0.5, 2.0, toy.shape[1]) for k, toy in enumerate(toys)]
    costs = UnbinnedNLL(shape, nodes=(PLANE, PLANE_WEIGHTS)), UnbinnedNLL(density)
    found, expected = (fit_batch(cost, Weighted(toys, weights), START, limits=LIMITS) for cost in costs)
    assert_same(found, expected)


def test_asimov_data_lie_at_the_nodes():
    cost = ExtendedUnbinnedNLL(lambda x, n, a, b: n * density(x, a, b), nodes=(PLANE, PLANE_WEIGHTS))
    truth = {"n": 1000.0, "a": 0.4, "b": 0.3}
    result = fit_batch(cost, asimov(cost, truth), {"n": 800.0, "a": 0.1, "b": 0.0})
    np.testing.assert_allclose(result.values[0], [1000.0, 0.4, 0.3], rtol=1e-8)


@pytest.mark.parametrize(
    "nodes, sentence",
    [
        (np.zeros((2, 3, 4)), "points of shape"),
        ((PLANE, PLANE_WEIGHTS[:-1]), r"576 nodes must have weights of shape \(576,\), got shape \(575,\)$"),
        ((PLANE.T, PLANE_WEIGHTS), r"got shape \(576,\): transpose the points"),
        ((PLANE[0], PLANE), "stack d observables"),
        ([PLANE, PLANE_WEIGHTS], r"as a tuple of two: nodes=\(points, weights\)"),
        ((SIDE, 0.0 * SIDE), "positive sum, got 0"),
        ((SIDE, -SIDE_WEIGHTS), "positive sum, got -2"),
        (np.zeros((2, 0)), "points of shape"),
        (np.array([1.0, np.nan]), "finite, got the point nan of node 1"),
        ((SIDE, np.where(SIDE > 0, np.inf, 1.0)), "finite, got the weight inf of node 12"),
        ("grid", "nodes"),
    ],
)
def test_wrong_nodes(nodes, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        UnbinnedNLL(decay, nodes=nodes)


def test_nodes_that_do_not_go_with_the_rest():
    with pytest.raises(ValueError, match="one of fit_range and nodes"):
        UnbinnedNLL(decay, nodes=SIDE, fit_range=(-1, 1))
    with pytest.raises(ValueError, match="need weights"):
        ExtendedUnbinnedNLL(decay, nodes=SIDE)
    with pytest.raises(ValueError, match=r"the nodes have 1 observable, the events 2: pass nodes of shape \(2, n\)"):
        fit_batch(UnbinnedNLL(decay, nodes=SIDE), thrown(2, 50), {"lam": 1.0})
    with pytest.raises(ValueError, match="the nodes have 576 observables, the events 2: transpose the nodes"):
        fit_batch(UnbinnedNLL(shape, nodes=PLANE.T), thrown(2, 50), START)


@pytest.mark.parametrize(
    "model, log, sentence",
    [
        (lambda x, a: jnp.where(x > 0.9, jnp.nan, 1.0 + a * x), False, "is nan at x = 0.9.*: no fit can begin"),
        (lambda x, a: 800.0 + a * x, True, "is inf at x = .*subtract a constant from its logarithm"),
        (lambda x, a: a * x - 2.0, False, "has the integral -4, which must be positive"),
    ],
)
def test_a_density_with_which_no_fit_can_begin(model, log, sentence):
    with pytest.warns(UserWarning, match=sentence):
        fit_batch(UnbinnedNLL(model, log=log, nodes=(SIDE, SIDE_WEIGHTS)), np.full((2, 5), 0.1), {"a": 0.5}, retries=0)
