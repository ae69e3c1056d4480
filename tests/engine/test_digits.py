"""Digits that a rewriting of the model might lose, and derivatives where a part of it has none; in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import LeastSquares, PoissonNLL, UnbinnedNLL, fit_batch
from engine.cpu import NumbaDriver
from engine.xla import XlaDriver


def outputs(cost, data, theta, backend="numba"):
    """(value, gradient, Hessian) of one toy; the Hessian packed row by row."""
    rows = cost.rows(data)
    driver = NumbaDriver(cost, rows) if backend == "numba" else XlaDriver(cost, rows, jax.devices("cpu"))
    found = driver.evaluate(np.array([0]), np.array([theta], dtype=float))[0]
    return found[0], found[2 : 2 + len(theta)], found[2 + len(theta) :]


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("mu", [1e-14, 1e-17, 1e-100, 0.4, 1.0, 7.0])
def test_counts_far_above_their_expectation(mu, backend):
    cost = PoissonNLL(lambda a, b: jnp.stack([a, b]))
    value, gradient, hessian = outputs(cost, np.array([[3.0, 2.0]]), [mu, 2.0], backend)
    assert value == pytest.approx(mu - 3.0 - 3.0 * np.log(mu / 3.0), rel=1e-14)
    np.testing.assert_allclose(gradient, [1.0 - 3.0 / mu, 0.0], rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(hessian, [3.0 / mu**2, 0.0, 0.5], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("far", [lambda x, t: (x - 1.6e9) - t, lambda x, t: x - (1.6e9 + 0.5) - (t - 0.5)])
def test_times_since_1970(far):
    """The constant is subtracted from the data, of which few digits are left, and not added to the parameter."""
    x = 1.6e9 + 1.3 + np.random.default_rng(1).normal(0.0, 0.01, (1, 50))
    cost = UnbinnedNLL(lambda x, t, s: -0.5 * (far(x, t) / s) ** 2 - jnp.log(s), log=True)
    fit = fit_batch(cost, x, {"t": 1.25, "s": 0.02}, backend="numba")
    assert fit.valid.all()
    assert fit.values["t"][0] == pytest.approx((x - 1.6e9).mean(), abs=1e-12)


@pytest.mark.parametrize(
    "model, theta",
    [
        (lambda x, k: jnp.where(k * x > 0.1, jnp.sqrt(k) * x, 0.0), [-0.5]),
        (lambda x, p: jnp.where((x > 0.1) & (p > 0), x / p, 0.0), [0.0]),
        (lambda x, p, q: jnp.where(x > p, x * jnp.exp(q), 0.0), [5.0, 800.0]),
        (lambda x, p, q: jnp.where(x > p, jnp.exp(q) * jnp.sin(p * x) + jnp.cos(p * x) / q, 0.0), [5.0, 800.0]),
    ],
)
@pytest.mark.parametrize("log", [False, True])
def test_a_choice_keeps_out_what_is_not_finite(model, theta, log):
    cost = UnbinnedNLL(lambda x, *par: 0.5 + model(x, *par), name=["p", "q"][: len(theta)], log=log)
    value, gradient, hessian = outputs(cost, np.array([[0.5, 1.0]]), theta)
    assert value == pytest.approx(-1.0 if log else 2.0 * np.log(2.0), rel=1e-15)
    assert not gradient.any() and not hessian.any()


def test_a_sigmoid_that_is_nothing():
    cost = LeastSquares(lambda x, t: jax.nn.sigmoid((x - t) / 0.001))
    x, y = np.array([0.2, 1.0, 2.0]), np.array([[0.1, 0.5, 0.7]])
    value, gradient, hessian = outputs(cost, (x, y, 1.0), [1.0])
    # of the point in the middle s = 1/2 and s' = -250: s'^2 is left of the curvature, as s'' and the residual are 0
    assert value == pytest.approx(0.1**2 + 0.3**2) and gradient[0] == 0.0
    assert hessian[0] == pytest.approx(2.0 * 250.0**2)


@pytest.mark.parametrize("of_row", [False, True])
def test_amplitudes_that_are_zero(of_row):
    """|c e^ix|^2 = c^2."""
    cost = UnbinnedNLL(lambda x, c: 1.0 + 4.0 * jnp.abs(0.5 * c * jnp.exp(1j * x if of_row else 1j)) ** 2 + 0.0 * x)
    for c in (0.0, 0.5):
        value, gradient, hessian = outputs(cost, np.array([[0.2, 1.0]]), [c])
        assert value == pytest.approx(-2.0 * np.log1p(c * c), abs=1e-15)
        assert gradient[0] == pytest.approx(-4.0 * c / (1 + c * c), abs=1e-15)
        assert hessian[0] == pytest.approx(-4.0 * (1 - c * c) / (1 + c * c) ** 2)


def by_select(x, a, b):
    return jnp.select([x < 0.3, x < 0.7], [a * x + 1, b * x + 2], a * b + 1)


def by_piecewise(x, a, b):
    parts = [lambda x: a * x + 1, lambda x: b * x + 2, lambda x: a * b + 1 + 0 * x]
    return jnp.piecewise(x, [x < 0.3, (x >= 0.3) & (x < 0.7)], parts)


@pytest.mark.parametrize("model", [by_select, by_piecewise])
def test_several_cases(model):
    a, b, x = 0.5, 0.7, np.array([[0.1, 0.2, 0.3, 0.5, 0.9]])
    low, middle = x[0, :2], x[0, 2:4]
    value, gradient, _ = outputs(UnbinnedNLL(model), x, [a, b])
    assert value == pytest.approx(-np.log(a * low + 1).sum() - np.log(b * middle + 2).sum() - np.log(a * b + 1))
    of_a = -(low / (a * low + 1)).sum() - b / (a * b + 1)
    of_b = -(middle / (b * middle + 2)).sum() - a / (a * b + 1)
    np.testing.assert_allclose(gradient, [of_a, of_b], rtol=1e-13)
