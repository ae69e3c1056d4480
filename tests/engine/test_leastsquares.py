"""Least squares: linear closed forms, the tutorial's printed numbers, x errors, forms of the data."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine import LeastSquares, Status, fit_batch

X = np.linspace(-1.0, 2.0, 12)
ERROR = np.linspace(0.5, 1.5, 12)


def line(x, a, b):
    return a + b * x


LINE = LeastSquares(line)
START = {"a": 0.0, "b": 0.0}


@pytest.fixture(scope="module")
def toys():
    return 1.0 + 2.0 * X + ERROR * np.random.default_rng(5).normal(size=(50, 12))


def weighted(y, x=X, error=ERROR):
    """The weighted linear fit, by the normal equations."""
    design = np.stack([np.ones_like(x), x], axis=1) / error[:, None]
    covariance = np.linalg.inv(design.T @ design)
    return covariance @ design.T @ (y / error), covariance


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_line_in_closed_form(toys, backend):
    result = fit_batch(LINE, (X, toys, ERROR), START, backend=backend)
    assert result.valid.all()
    assert result.errordef == 1.0
    for k in range(0, 50, 7):
        values, covariance = weighted(toys[k])
        np.testing.assert_allclose(result.values[k], values, rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(result.covariance[k], covariance, rtol=1e-11)
        assert result.fval[k] == pytest.approx(np.sum(((toys[k] - line(X, *values)) / ERROR) ** 2), rel=1e-12)


def test_chi_square_is_distributed_as_one(toys):
    """Mean of the minimum over 4000 toys: 10 degrees of freedom, within 4 standard errors."""
    y = 1.0 + 2.0 * X + ERROR * np.random.default_rng(6).normal(size=(4000, 12))
    result = fit_batch(LINE, (X, y, ERROR), START, backend="numba")
    assert abs(result.fval.mean() - 10.0) < 4 * np.sqrt(20 / 4000)
    pulls = result.pulls({"a": 1.0, "b": 2.0})
    assert np.all(np.abs(pulls.std(axis=0) - 1) < 4 / np.sqrt(8000))


def test_tutorial_polynomial_with_x_errors():
    """iminuit's JAX tutorial prints FCN 23.14, the values and this covariance."""
    x = np.linspace(-4, 7, 30)
    y = x**2 + 2 * x + 3
    rng = np.random.default_rng(seed=1)
    x = x + rng.normal(0, 0.5, 30)
    y = y + rng.normal(0, 5, 30)
    cost = LeastSquares(lambda x, c2, c1, c0: jnp.polyval(jnp.stack([c2, c1, c0]), x), xerror=True)
    for backend in ("numba", "jax"):
        result = fit_batch(cost, (x, y[None], 5.0, 0.5), {"c2": 0, "c1": 0, "c0": 0}, backend=backend)
        assert result.valid.all()
        assert round(float(result.fval[0]), 2) == 23.14
        assert [round(float(v), d) for v, d in zip(result.values[0], (2, 1, 1), strict=True)] == [1.25, 1.5, 1.6]
        printed = [[0.0223, -0.039, -0.150], [-0.039, 0.24, 0.17], [-0.150, 0.17, 2.32]]
        # as many digits as are printed; HESSE's finite differences are good to 1e-3
        np.testing.assert_allclose(result.covariance[0], printed, rtol=0.02)


def test_no_x_error_is_the_plain_fit(toys):
    both = LeastSquares(line, xerror=True)
    plain = fit_batch(LINE, (X, toys, ERROR), START, backend="numba")
    zero = fit_batch(both, (X, toys, ERROR, 0.0), START, backend="numba")
    np.testing.assert_allclose(zero.values, plain.values, rtol=1e-9, atol=1e-12)


def test_forms_of_the_data_are_equal(toys):
    plain = fit_batch(LINE, (X, toys, ERROR), START, backend="numba")
    for x, error in (
        (np.tile(X, (50, 1)), ERROR),
        (X, np.tile(ERROR, (50, 1))),
        (np.tile(X, (50, 1)), np.tile(ERROR, (50, 1))),
    ):
        other = fit_batch(LINE, (x, toys, error), START, backend="numba")
        np.testing.assert_allclose(other.values, plain.values, rtol=1e-12)


def test_two_observables(toys):
    x = np.stack([X, X**2])
    cost = LeastSquares(lambda x, a, b, c: a + b * x[0] + c * x[1])
    result = fit_batch(cost, (x, toys, ERROR), {"a": 0, "b": 0, "c": 0}, backend="numba")
    design = np.stack([np.ones_like(X), X, X**2], axis=1) / ERROR[:, None]
    np.testing.assert_allclose(result.values[4], np.linalg.lstsq(design, toys[4] / ERROR, rcond=None)[0], rtol=1e-9)


def test_bad_toy(toys):
    y = toys[:3].copy()
    y[1, 2] = np.inf
    assert fit_batch(LINE, (X, y, ERROR), START, backend="numba").status.tolist() == [0, Status.BAD_DATA, 0]


@pytest.mark.parametrize(
    ("data", "kind", "sentence"),
    [
        (lambda y: (X, y), TypeError, r"data must be \(x, y, yerror\), got 2 arrays"),
        (lambda y: (X, y[0], ERROR), ValueError, r"y must have shape \(n_toys, n\), got \(12,\)"),
        (lambda y: (X[:5], y, ERROR), ValueError, r"x must have shape \(12,\) or \(50, 12\)"),
        (lambda y: (X, y, 0.0), ValueError, "yerror must be positive, but point 0 has 0"),
        (lambda y: (X, y, np.where(X > 1, -1.0, 1.0)), ValueError, "yerror must be positive, but point 8 has -1"),
        (lambda y: (X, y, "a"), TypeError, "yerror must hold real numbers"),
    ],
)
def test_wrong_data(toys, data, kind, sentence):
    with pytest.raises(kind, match=sentence):
        fit_batch(LINE, data(toys), START)
