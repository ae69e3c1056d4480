"""Poisson and gamma constraints: closed forms, scipy, MIGRAD, and both drivers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit
from iminuit import cost as minuit_cost
from scipy import stats

from engine import LeastSquares, NormalConstraint, PoissonNLL, Status, fit_batch
from engine.constraints import GammaConstraint, PoissonConstraint
from engine.cpu import NumbaDriver
from engine.xla import XlaDriver


def numba_outputs(cost, data, theta):
    rows = cost.rows(data)
    return NumbaDriver(cost, rows).evaluate(np.arange(len(rows)), np.asarray(theta, dtype=float))


def jax_outputs(cost, data, theta):
    rows = cost.rows(data)
    return XlaDriver(cost, rows, jax.devices("cpu")).evaluate(np.arange(len(rows)), np.asarray(theta, dtype=float))


def test_on_off_problem_in_closed_form():
    """n ~ Poisson(5 mu + b) and m ~ Poisson(3 b): b = m / 3, mu = (n - b) / 5, and nothing is left over."""
    cost = PoissonNLL(lambda mu, b: jnp.stack([5 * mu + b])) + PoissonConstraint("b", 30, 3.0)
    assert cost.errordef == 0.5
    rng = np.random.default_rng(1)
    n, m = rng.poisson(60, 100).astype(float), rng.poisson(30, 100) + rng.uniform(size=100)
    result = fit_batch(cost, (n[:, None], m), {"mu": 5.0, "b": 8.0}, backend="numba")
    assert result.valid.all()
    np.testing.assert_allclose(result.values, np.stack([(n - m / 3) / 5, m / 3], axis=1), rtol=1e-9)
    np.testing.assert_allclose(result.errors, np.sqrt(np.stack([(n + m / 9) / 25, m / 9], axis=1)), rtol=1e-6)
    np.testing.assert_allclose(result.fval, 0.0, atol=1e-12)
    same = fit_batch(cost, n[:1, None], {"mu": 5.0, "b": 8.0}, backend="numba")
    np.testing.assert_allclose(same.values[0], [(n[0] - 10) / 5, 10], rtol=1e-9)


def test_gamma_alone_has_its_minimum_and_error_where_it_was_measured():
    cost = GammaConstraint(["a", "b"], [2.0, 300.0], [0.5, 20.0])
    np.testing.assert_allclose(cost.scale, [2.0 / 0.25, 300.0 / 400.0])
    measured = np.array([[2.0, 300.0], [1.0, 450.0], [0.3, 12.5]])
    result = fit_batch(cost, measured, {"a": 1.0, "b": 250.0}, backend="numba")
    np.testing.assert_allclose(result.values, measured, rtol=1e-9)
    np.testing.assert_allclose(result.errors[0], [0.5, 20.0], rtol=1e-6)
    np.testing.assert_allclose(result.errors, np.sqrt(measured / cost.scale), rtol=1e-6)
    np.testing.assert_allclose(result.covariance[:, 0, 1], 0.0)
    alone = fit_batch(cost, None, {"a": 1.0, "b": 250.0}, backend="numba")
    np.testing.assert_array_equal(alone.values[0], result.values[0])


@pytest.mark.parametrize("outputs", [numba_outputs, jax_outputs])
def test_values_and_derivatives_against_scipy(outputs):
    """-log L of the Poisson counts less its minimum, and of the gamma density of theta, n + 1 at rate scale."""
    rng = np.random.default_rng(2)
    n, scale = np.array([12.0, 0.0, 3.0]), np.array([4.0, 2.0, 0.5])
    cost, theta = PoissonConstraint(["a", "b", "c"], n, scale), rng.uniform(0.1, 6.0, (20, 3))
    out = outputs(cost, np.tile(n, (20, 1)), theta)
    expected = stats.poisson.logpmf(n, n) - stats.poisson.logpmf(n, scale * theta)
    np.testing.assert_allclose(out[:, 0], expected.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(out[:, 1], np.abs(expected).sum(axis=1), rtol=1e-12)
    by_gamma = -stats.gamma.logpdf(theta, n + 1, scale=1 / scale).sum(axis=1)
    np.testing.assert_allclose(np.diff(out[:, 0]), np.diff(by_gamma), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(out[:, 2:5], scale - n / theta, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(out[:, [5, 7, 10]], n / theta**2, rtol=1e-12)
    np.testing.assert_array_equal(out[:, [6, 8, 9]], 0.0)


@pytest.mark.parametrize("outputs", [numba_outputs, jax_outputs])
def test_at_the_edge(outputs):
    cost, theta = PoissonConstraint("a", 1.0, 2.0), np.array([[0.0], [0.0], [-1.0], [-1.0], [np.nan], [0.5]])
    value = outputs(cost, np.array([0.0, 1.0, 1.0, 0.0, 0.0, 1.0]), theta)[:, 0]
    np.testing.assert_array_equal(value, [0.0, np.inf, np.nan, np.nan, np.nan, 0.0])


def test_zero_counts_are_a_measurement():
    """Nothing was seen: the minimum is on the limit, or where the other measurement pulls it."""
    limits = {"a": (0, None)}
    result = fit_batch(PoissonConstraint("a", 0.0, 2.0), None, {"a": 1.0}, limits=limits, backend="numba")
    assert result.values[0, 0] == 0.0
    assert result.at_limit[0, 0]
    both = PoissonConstraint("a", 0.0, 2.0) + NormalConstraint("a", 5.0, 0.5)
    assert both.errordef == 0.5
    result = fit_batch(both, (None, None), {"a": 1.0}, limits=limits, backend="numba")
    np.testing.assert_allclose(result.values[0, 0], 5.0 - 2.0 * 0.25, rtol=1e-10)


def test_shape_uncertainty_of_each_bin_against_migrad():
    """HistFactory's shapesys: the background of every bin has a factor of its own; 60 toys, both backends."""
    signal, background = np.array([1.0, 4.0, 9.0, 5.0]), np.array([50.0, 40.0, 30.0, 20.0])
    tau = (1 / np.array([0.1, 0.15, 0.2, 0.3])) ** 2
    gammas = tuple(f"gamma{k}" for k in range(4))

    def expected(mu, *gamma):
        return mu * signal + background * jnp.stack(gamma)

    main = PoissonNLL(expected, name=("mu", *gammas))
    cost = main + PoissonConstraint(gammas, tau, tau) + GammaConstraint("mu", 1.2, 0.4)
    rng = np.random.default_rng(3)
    counts, auxiliary = rng.poisson(signal + background, (60, 4)), 1.0 + rng.poisson(tau, (60, 4))
    measured = rng.gamma(9.0, 1.2 / 9.0, 60)
    data, start = (counts, auxiliary, measured), np.ones(5)
    limits = dict.fromkeys(cost.names, (0, None))
    numba = fit_batch(cost, data, start, limits=limits, backend="numba")
    jax = fit_batch(cost, data, start, limits=limits, backend="jax")
    assert numba.valid.all()
    assert np.max(np.abs(numba.values - jax.values) / numba.errors) < 1e-6
    np.testing.assert_allclose(numba.covariance, jax.covariance, rtol=1e-6, atol=1e-12)

    edges = np.arange(5.0)
    for k in range(60):
        histogram = minuit_cost.ExtendedBinnedNLL(
            counts[k],
            edges,
            lambda _, *t: np.append(0.0, np.cumsum(t[0] * signal + background * t[1:])),
            name=cost.names,
        )

        def doubled(*theta, k=k, histogram=histogram):
            n = np.append(auxiliary[k], 7.5 * measured[k])  # 1.2 / 0.4^2 counts for one unit of mu
            m = np.append(tau * theta[1:], 7.5 * theta[0])
            return histogram(*theta) + 2 * np.sum(m - n + n * np.log(n / m))

        minuit = Minuit(doubled, *start, name=cost.names)
        minuit.errordef, minuit.strategy, minuit.tol = 1, 2, 1e-6
        minuit.limits = [(1e-6, None)] * 5
        minuit.migrad()
        assert np.max(np.abs(numba.values[k] - minuit.values) / numba.errors[k]) < 1e-3
        assert numba.fval[k] == pytest.approx(minuit.fval / 2, abs=1e-6)
        np.testing.assert_allclose(numba.errors[k], np.sqrt(np.diag(minuit.covariance)), rtol=0.01)


def test_beside_a_chi_square():
    """Points enter by half their chi-square; minimum and error of one parameter in closed form."""
    cost = LeastSquares(lambda x, a: a + 0.0 * x) + PoissonConstraint("a", 9.0, 2.0)
    assert cost.errordef == 0.5
    y = np.array([[4.0, 5.0, 6.5]])
    result = fit_batch(cost, (np.arange(3.0), y, 0.5), {"a": 1.0}, backend="numba")
    # 12 (a - mean) + 2 - 9 / a = 0
    slope = 12 * y.mean() - 2
    a = (slope + np.sqrt(slope**2 + 4 * 12 * 9)) / 24
    np.testing.assert_allclose(result.values[0, 0], a, rtol=1e-10)
    np.testing.assert_allclose(result.errors[0, 0], 1 / np.sqrt(12 + 9 / a**2), rtol=1e-6)


def test_two_hundred_parameters():
    names = [f"g{k}" for k in range(200)]
    n = np.random.default_rng(4).poisson(50, (3, 200)).astype(float)
    result = fit_batch(PoissonConstraint(names, np.full(200, 50.0), 50.0), n, np.ones(200), backend="numba")
    assert result.valid.all()
    np.testing.assert_allclose(result.values, n / 50, rtol=1e-9)
    np.testing.assert_allclose(result.errors, np.sqrt(n) / 50, rtol=1e-6)


def test_bad_measurements_are_the_toys_own_fate():
    n = np.array([5.0, -1.0, np.nan, 7.0])
    for cost in (PoissonConstraint("a", 5.0), GammaConstraint("a", 5.0, 2.0)):
        result = fit_batch(cost, n, {"a": 4.0}, backend="numba")
        assert result.status.tolist() == [0, Status.BAD_DATA, Status.BAD_DATA, 0]
        np.testing.assert_allclose(result.values[[0, 3], 0], [5.0, 7.0], rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "kind", "sentence"),
    [
        (lambda: PoissonConstraint("a", -1.0), ValueError, "value must not be negative, got -1.0"),
        (lambda: PoissonConstraint("a", [1.0, 2.0]), ValueError, "value must be 1 finite numbers for a"),
        (lambda: PoissonConstraint("a", np.nan), ValueError, "value must be 1 finite numbers for a, got nan"),
        (lambda: PoissonConstraint("a", "x"), TypeError, "value must hold real numbers"),
        (lambda: PoissonConstraint("a", 1.0, 0.0), ValueError, "scale must be 1 positive numbers, got 0.0"),
        (lambda: PoissonConstraint(["a", "b"], [1, 2], [1, 2, 3]), ValueError, "scale must be 2 positive numbers"),
        (lambda: PoissonConstraint(["a", "a"], [1, 2]), ValueError, "names must be different parameters"),
        (lambda: PoissonConstraint([], []), ValueError, "names must be different parameters"),
        (lambda: PoissonConstraint([0], [1.0]), TypeError, "names must be a parameter or a sequence of parameters"),
        (lambda: GammaConstraint("a", 0.0, 1.0), ValueError, "value must be positive, got 0.0"),
        (lambda: GammaConstraint("a", 1.0, -1.0), ValueError, "error must be 1 positive numbers, got -1.0"),
        (lambda: GammaConstraint("a", 1.0, [1.0, 2.0]), ValueError, "error must be 1 positive numbers"),
        (lambda: NormalConstraint(["a", "b"], [0, 0], np.ones((3, 3))), ValueError, r"\(2, 2\) covariance matrix"),
        (lambda: NormalConstraint(["a", "b"], [0, 0], np.ones((2, 2))), ValueError, "error must be positive definite"),
        (
            lambda: NormalConstraint(["a", "b"], [0, 0], [[1e-12, 2e-13], [5e-13, 1e-12]]),
            ValueError,
            r"error must be symmetric, but element \(0, 1\) is 2e-13 and \(1, 0\) is 5e-13",
        ),
    ],
)
def test_wrong_constraints(make, kind, sentence):
    with pytest.raises(kind, match=sentence):
        make()


def test_wrong_measured_values():
    cost = PoissonConstraint(["a", "b"], [1.0, 2.0])
    with pytest.raises(ValueError, match=r"measured values must have shape \(n_toys, 2\), got \(3,\)"):
        fit_batch(cost, np.ones(3), {"a": 1.0, "b": 1.0})


@pytest.mark.parametrize("error", [1e308, 1e-200, [1.0, 1e308]])
def test_an_error_whose_square_is_no_float(error):
    names, values = (["a", "b"], [0.0, 0.0]) if isinstance(error, list) else ("a", 0.0)
    with pytest.raises(ValueError, match="the squares of error must be numbers that float64 can hold"):
        NormalConstraint(names, values, error)
