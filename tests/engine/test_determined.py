"""Parameters that the data do not determine: no fit of them is valid, whatever rounding makes of their Hessian."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine import ExtendedUnbinnedNLL, LeastSquares, PoissonNLL, Status, UnbinnedNLL, fit_batch
from kernels import norm

TOYS = np.random.default_rng(0).normal(0.0, 1.0, (60, 100))


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_only_a_product_is_determined(backend):
    cost = UnbinnedNLL(lambda x, a, b: norm.pdf(x, a * b, 1.0))
    result = fit_batch(cost, TOYS, {"a": 1.0, "b": 0.5}, backend=backend)
    assert not result.valid.any() and not result.rescued.any()
    assert (result.status == Status.HESSIAN_NOT_POSDEF).all()
    assert np.isnan(result.errors).all()
    held = fit_batch(cost, TOYS, {"a": 1.0, "b": 0.5}, fixed=["b"], backend=backend)
    assert held.valid.all()
    np.testing.assert_allclose(held.values[:, 0], 2 * TOYS.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_only_a_product_of_three_is_determined(backend):
    """What is left of the slope made the Hessian of a third of these fits look positive definite."""
    cost = PoissonNLL(lambda a, b, c: a * b * c * jnp.array([3.0, 5.0, 9.0]))
    counts = np.random.default_rng(3).poisson([24.0, 40.0, 72.0], (100, 3))
    result = fit_batch(cost, counts, dict.fromkeys("abc", 2.0), backend=backend)
    assert (result.status == Status.HESSIAN_NOT_POSDEF).all() and np.isnan(result.errors).all()


def test_only_a_product_of_yields_is_determined():
    cost = ExtendedUnbinnedNLL(lambda x, a, b, c: (a * b * c, a * b * c * norm.pdf(x, 0.0, 1.0)))
    assert not fit_batch(cost, TOYS, {"a": 20.0, "b": 20.0, "c": 0.5}).valid.any()


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_only_a_sum_is_determined(scale):
    cost = UnbinnedNLL(lambda x, a, b: norm.pdf(x, (a + b) / scale, 1.0))
    result = fit_batch(cost, TOYS[:10], {"a": scale, "b": 0.5 * scale})
    assert (result.status == Status.HESSIAN_NOT_POSDEF).all()


def test_a_parameter_that_enters_by_rounding_alone():
    cost = UnbinnedNLL(lambda x, mu, s: norm.pdf(x, mu, 1.0) * (s + 1) / (1 + s))
    with pytest.warns(UserWarning, match="does not depend on 's'"):
        result = fit_batch(cost, TOYS, {"mu": 0.1, "s": 0.5})
    assert not result.valid.any()


def test_the_slope_of_nothing():
    cost = LeastSquares(lambda x, a, b, c: a * jnp.exp(-b * x) + c)
    result = fit_batch(cost, (np.linspace(0, 10, 20), np.full((1, 20), 0.3), 0.15), {"a": 1.0, "b": 0.5, "c": 0.1})
    assert not result.valid[0] and result.values[0, 2] == pytest.approx(0.3, abs=0.2)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_strongly_correlated_parameters_stay_valid(scale):
    """A line far from the origin: correlation 1 - 1e-8, determined all the same."""
    x = np.linspace(1e4, 1e4 + 3, 40)
    y = 2.0 + 0.5 * (x - 1e4) + np.random.default_rng(1).normal(0, 0.1, (20, 40))
    cost = LeastSquares(lambda x, a, b: a + b / scale * x)
    result = fit_batch(cost, (x, y, 0.1), {"a": 0.0, "b": 0.0})
    design = np.stack([np.ones(40), x / scale], axis=1) / 0.1
    inverse = np.linalg.inv(design.T @ design / np.outer([1, 1 / scale], [1, 1 / scale]))
    assert result.valid.all()
    expected = np.sqrt(np.diag(inverse)) * [1, scale]
    np.testing.assert_allclose(result.errors, np.tile(expected, (20, 1)), rtol=1e-4)


def test_yields_beside_fractions_stay_valid():
    rng = np.random.default_rng(2)
    toys = [rng.normal(0, 1, rng.poisson(1000)) for _ in range(5)]
    cost = ExtendedUnbinnedNLL(lambda x, n, tiny: (1e9 * n, 1e9 * n * norm.pdf(x, 1e9 * tiny, 1.0)))
    result = fit_batch(cost, toys, {"n": 1e-6, "tiny": 1e-10})
    assert result.valid.all()
    np.testing.assert_allclose(result.values[:, 0], [1e-9 * len(x) for x in toys], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-12, 1e8, 1e11])
def test_a_line_is_valid_in_any_units(scale):
    """Also where a value is small beside its error, in units of which both are large, and the start is 0."""
    x = np.linspace(-1.0, 1.0, 20)
    y = np.random.default_rng(3).normal(0.0, 1.0, (200, 20))
    y[0] = 3.0 * x  # whose constant is 0
    cost = LeastSquares(lambda x, a, b: a + b * x)
    result, plain = (fit_batch(cost, (x, s * y, s), {"a": 0.0, "b": 0.0}) for s in (scale, 1.0))
    assert result.valid.all() and not result.rescued.any()
    np.testing.assert_allclose(result.values / scale, plain.values, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(result.errors / scale, plain.errors, rtol=1e-9)


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("scale", [1.0, 1e5])
def test_a_parameter_without_a_minimum_runs_away_in_any_units(scale, backend):
    cost = PoissonNLL(lambda t: jnp.stack([100.0 / (1.0 + (scale / t) ** 2), 50.0 + 0.0 * t]))
    result = fit_batch(cost, np.array([[120.0, 50.0], [90.0, 50.0]]), {"t": 0.1 * scale}, backend=backend)
    np.testing.assert_array_equal(result.status, [Status.UNBOUNDED, Status.CONVERGED])
    assert result.values[1, 0] == pytest.approx(3.0 * scale)
