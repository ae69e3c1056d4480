"""The kernel of a cost whose expectation is a vector, for terms other than the Poisson likelihood of counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kernels import expectation
from kernels.expectation import expectation_kernel, expectation_outputs, saturated, term_derivatives
from kernels.program import SECOND
from kernels.translate import memory_of

N = 9


def curved(a, b, c, x, w):
    return a * jnp.exp(-b * x) + c**2 * w


def scaled_square(mu, y, error):
    """A term of two columns that is not quadratic."""
    return ((y - mu) / error) ** 2 + 0.1 * jnp.cosh(y - mu)


def test_any_term_with_columns_of_the_toy_and_shared_ones():
    """Two columns of the toy, two shared ones; rows and shared columns may be parts of larger arrays."""
    rng = np.random.default_rng(1)
    model = expectation_kernel(curved, 3, N, term=scaled_square, n_columns=2, n_shared=2)
    assert "bend" in model.kernel.py_func.__globals__
    columns, x, w = rng.uniform(0.5, 1.5, (2, N)), rng.uniform(0, 2, N), rng.normal(size=N)
    rows = np.full((3, N + 6), np.nan)
    rows[:2, 4 : 4 + N] = columns
    shared = np.full((4, max(model.shared.size, N) + 3), np.nan)
    shared[0, : model.shared.size] = model.shared[0]
    shared[1, :N], shared[2, :N] = x, w

    def cost(theta):
        return jnp.sum(scaled_square(curved(*theta, x, w), *columns))

    exact = jax.jit(lambda theta: (cost(theta), jax.grad(cost)(theta), jax.hessian(cost)(theta)))
    outputs = jax.jit(lambda theta: expectation_outputs(curved, 3, 2, term=scaled_square)(theta, columns, (x, w)))
    for theta in rng.uniform(0.3, 1.5, (3, 3)):
        out = np.zeros(2 + 3 + 6 + memory_of(model.kernel))
        model.kernel(theta, rows, shared, np.empty(0), 4, 4 + N, SECOND, out)
        out = out[: 2 + 3 + 6]
        with jax.enable_x64(True):
            value, gradient, hessian = map(np.asarray, exact(theta))
            by_jax = np.asarray(outputs(theta))
        np.testing.assert_allclose(out[:2], value, rtol=1e-13)
        np.testing.assert_allclose(out[2:5], gradient, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(out[5:], hessian[np.tril_indices(3)], rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(out, by_jax, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("columns", [1, 2, 4, 5, 64])
def test_blocks_of_the_hessian_are_those_of_all_parameters(columns, monkeypatch):
    monkeypatch.setattr(expectation, "COLUMNS", columns)
    rng = np.random.default_rng(2)
    n_params, shapes, counts = 5, rng.normal(size=(5, N)), rng.poisson(20.0, N) + 1.0
    expected = lambda *theta: 20.0 * jnp.exp(jnp.stack(theta) @ shapes)  # noqa: E731
    cost = lambda theta: jnp.sum(saturated(expected(*theta), counts))  # noqa: E731
    theta = rng.uniform(-0.2, 0.2, n_params)
    with jax.enable_x64(True):
        both = jax.jit(lambda t: (expectation_outputs(expected, n_params, 2)(t, [counts]), jax.hessian(cost)(t)))
        outputs, hessian = map(np.asarray, both(theta))
    np.testing.assert_allclose(outputs[2 + n_params :], hessian[np.tril_indices(n_params)], rtol=1e-11, atol=1e-9)


def test_orders_are_the_first_outputs():
    theta, columns, x = np.array([1.0, 0.5, 0.7]), (np.ones(N), np.ones(N)), np.linspace(0, 1, N)
    with jax.enable_x64(True):
        first, second, third = (
            np.asarray(expectation_outputs(curved, 3, order, term=scaled_square)(theta, columns, (x, x)))
            for order in (0, 1, 2)
        )
    assert [len(first), len(second), len(third)] == [2, 5, 11]
    np.testing.assert_array_equal(first, third[:2])
    np.testing.assert_allclose(second, third[:5], rtol=1e-14)  # in reverse mode, without the Jacobian


def test_saturated_term_and_its_derivatives_against_scipy():
    n, mu = np.array([0.0, 0.0, 1.0, 3.0, 250.0]), np.array([0.5, 0.0, 1.3, 3.0, 180.0])
    with jax.enable_x64(True):
        value, slope, curvature = map(np.asarray, term_derivatives(saturated)(mu, n))
    np.testing.assert_allclose(value, stats.poisson.logpmf(n, n) - stats.poisson.logpmf(n, mu), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(slope, 1 - n / np.where(n > 0, mu, 1), atol=1e-15)
    np.testing.assert_allclose(curvature, n / np.where(n > 0, mu, 1) ** 2, rtol=1e-14)
    assert not np.any(value[[1, 3]])


@pytest.mark.parametrize(("mu", "n", "expected"), [(-1.0, 0.0, np.nan), (-1.0, 2.0, np.nan), (0.0, 2.0, np.inf)])
def test_saturated_term_at_the_edge(mu, n, expected):
    np.testing.assert_equal(float(saturated(jnp.array(mu), jnp.array(n))), expected)
