"""Least squares: linear closed forms, the tutorial's printed numbers, x errors, correlated points, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit
from iminuit import cost as minuit_cost

from engine import LeastSquares, NormalConstraint, Status, UnbinnedNLL, fit_batch
from engine.cpu import NumbaDriver
from engine.reference import IndependentCost
from engine.xla import XlaDriver
from kernels import norm

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
        (lambda y: (X, y[0], ERROR), ValueError, r"y must have shape .*, got \(12,\): for one toy pass y\[None\]$"),
        (lambda y: (X[:5], y, ERROR), ValueError, r"x must have shape \(12,\) or \(50, 12\)"),
        (lambda y: (X, y, 0.0), ValueError, "yerror must be positive, but point 0 has 0"),
        (lambda y: (X, y, np.where(X > 1, -1.0, 1.0)), ValueError, "yerror must be positive, but point 8 has -1"),
        (lambda y: (X, y, "a"), TypeError, "yerror must hold real numbers"),
        (lambda y: (X, y, np.ones((3, 12))), ValueError, r"yerror must have shape \(12,\) or \(50, 12\) to go with y"),
        (lambda y: (np.append(X[1:], np.nan), y, ERROR), ValueError, "x must be finite, but point 11 has nan"),
        (lambda y: X, TypeError, r"data must be \(x, y, yerror\), got ndarray"),
    ],
)
def test_wrong_data(toys, data, kind, sentence):
    with pytest.raises(kind, match=sentence):
        fit_batch(LINE, data(toys), START)


# points that are correlated: V of a common normalisation, a smooth part and their own errors
COVARIANCE = np.diag(ERROR**2) + 0.3 + 0.5 * np.exp(-np.abs(X[:, None] - X) / 0.5)
CORRELATED = LeastSquares(line, covariance=COVARIANCE)
SPREAD = np.linalg.cholesky(COVARIANCE)
USED = (X < -0.2) | (X > 0.7)


def generalised(y, used=slice(None)):
    """The generalised linear fit, by the normal equations."""
    design, inverse = np.stack([np.ones_like(X), X], axis=1)[used], np.linalg.inv(COVARIANCE[used][:, used])
    covariance = np.linalg.inv(design.T @ inverse @ design)
    values = covariance @ design.T @ inverse @ y[used]
    residual = y[used] - design @ values
    return values, covariance, residual @ inverse @ residual


@pytest.fixture(scope="module")
def correlated():
    return 1.0 + 2.0 * X + np.random.default_rng(7).normal(size=(60, 12)) @ SPREAD.T


@pytest.mark.parametrize("mask", [None, USED], ids=["all", "mask"])
def test_correlated_line_in_closed_form(correlated, mask):
    cost = CORRELATED if mask is None else LeastSquares(line, covariance=COVARIANCE, mask=mask)
    y = correlated if mask is None else np.where(mask, correlated, np.nan)
    x = X if mask is None else np.where(mask, X, np.inf)
    result = fit_batch(cost, (x, y), START, backend="numba")
    assert result.valid.all()
    assert result.errordef == 1.0
    assert "bend" not in cost._compiled(cost.rows((x, y))).kernel.py_func.__globals__  # it is linear
    for k in range(60):
        values, covariance, chi2 = generalised(correlated[k], slice(None) if mask is None else mask)
        np.testing.assert_allclose(result.values[k], values, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(result.covariance[k], covariance, rtol=1e-10)
        assert result.fval[k] == pytest.approx(chi2, rel=1e-10)


def test_diagonal_covariance_is_the_plain_fit(correlated):
    for used in (None, USED):
        plain = fit_batch(LeastSquares(line, mask=used), (X, correlated, ERROR), START, backend="numba")
        diagonal = LeastSquares(line, covariance=np.diag(ERROR**2), mask=used)
        result = fit_batch(diagonal, (X, correlated), START, backend="numba")
        np.testing.assert_allclose(result.values, plain.values, rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(result.covariance, plain.covariance, rtol=1e-10)
        np.testing.assert_allclose(result.fval, plain.fval, rtol=1e-10)


def decay(x, a, tau, c):
    return a * jnp.exp(-x / tau) + c


def decay_chi2(x, y, inverse):
    def chi2(a, tau, c):
        residual = y - a * np.exp(-x / tau) - c
        return residual @ inverse @ residual

    return chi2


def test_correlated_curve_against_minuit_and_between_backends():
    """60 toys of a model that is not linear, a third of them by MIGRAD as well; masked, and without."""
    x = np.linspace(0.0, 4.0, 12)
    y = 5 * np.exp(-x / 1.5) + 1 + 0.1 * np.random.default_rng(8).normal(size=(60, 12)) @ SPREAD.T
    start = {"a": 4.0, "tau": 1.0, "c": 0.5}
    used = np.arange(12) != 4
    for mask in (None, used):
        cost = LeastSquares(decay, covariance=0.01 * COVARIANCE, mask=mask)
        numba = fit_batch(cost, (x, y), start, backend="numba")
        assert numba.valid.all()
        if mask is None:
            jax = fit_batch(cost, (x, y), start, backend="jax")
            assert np.max(np.abs(numba.values - jax.values) / numba.errors) < 1e-6
            np.testing.assert_allclose(numba.covariance, jax.covariance, rtol=1e-6, atol=1e-12)
        kept = np.ones(12, dtype=bool) if mask is None else mask
        inverse = np.linalg.inv(0.01 * COVARIANCE[np.ix_(kept, kept)])
        for k in range(0, 60, 3):
            minuit = Minuit(decay_chi2(x[kept], y[k, kept], inverse), **start)
            minuit.errordef, minuit.strategy, minuit.tol = 1, 2, 1e-6
            minuit.migrad()
            assert np.max(np.abs(numba.values[k] - minuit.values) / numba.errors[k]) < 1e-3
            assert numba.fval[k] == pytest.approx(minuit.fval, abs=1e-6)
            np.testing.assert_allclose(numba.errors[k], np.sqrt(np.diag(minuit.covariance)), rtol=0.01)


def plane(x, a, b, c):
    return a * jnp.sin(b * x[0]) + jnp.exp(c * x[1])


def test_exact_derivatives_far_from_the_minimum(correlated):
    """Two observables, as many as there are toys; value, gradient and Hessian of the residuals as they stand."""
    cost, x = LeastSquares(plane, covariance=COVARIANCE), np.stack([X, X**2])
    data, theta = (x, correlated[:2]), np.array([[1.0, 2.0, 0.3], [-0.5, 1.5, -0.7]])
    rows = cost.rows(data)
    inverse = np.linalg.inv(COVARIANCE)

    def chi2(theta, y):
        residual = y - plane(x, *theta)
        return residual @ inverse @ residual

    exact = jax.jit(lambda *args: [f(*args) for f in (chi2, jax.grad(chi2), jax.hessian(chi2))])
    for driver in (NumbaDriver(cost, rows), XlaDriver(cost, rows, jax.devices("cpu"))):
        out = driver.evaluate(np.arange(2), theta)
        for k in range(2):
            with jax.enable_x64(True):
                wanted = exact(theta[k], correlated[k])
            np.testing.assert_allclose(out[k, :2], wanted[0], rtol=1e-11)
            np.testing.assert_allclose(out[k, 2:5], wanted[1], rtol=1e-10)
            np.testing.assert_allclose(out[k, 5:], np.asarray(wanted[2])[np.tril_indices(3)], rtol=1e-10)
    value, gradient = IndependentCost(cost, rows)(1, theta[1])
    np.testing.assert_allclose([value, *gradient], [out[1, 0], *out[1, 2:5]], rtol=1e-10)


def test_correlated_points_beside_a_likelihood_enter_by_half(correlated):
    """Two fits of one mean: the constants of the line and of the events have the weighted mean."""
    constant = LeastSquares(lambda x, mu: mu, covariance=COVARIANCE)
    events = UnbinnedNLL(lambda x, mu: norm.pdf(x, mu, 1.0))
    x = np.random.default_rng(9).normal(1.0, 1.0, (60, 20))
    result = fit_batch(events + constant, (x, (X, correlated)), {"mu": 0.0}, backend="numba")
    assert result.errordef == 0.5
    weights = np.linalg.inv(COVARIANCE).sum(axis=1)
    total = 20 + weights.sum()
    np.testing.assert_allclose(result.values[:, 0], (x.sum(axis=1) + correlated @ weights) / total, rtol=1e-9)
    np.testing.assert_allclose(result.errors[:, 0], 1 / np.sqrt(total), rtol=1e-9)
    alone = fit_batch(
        constant + NormalConstraint("mu", 1.0, 0.1), ((X, correlated), None), {"mu": 0.0}, backend="numba"
    )
    assert alone.errordef == 1.0


def cauchy(squared):
    return jnp.log1p(squared)


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize(("loss", "theirs"), [("soft_l1", "soft_l1"), (cauchy, np.log1p)])
def test_loss_against_minuit(toys, loss, theirs, backend):
    """A tenth of the points are outliers, which pull the linear fit by several errors."""
    y = toys + 40.0 * ERROR * (np.random.default_rng(8).uniform(size=toys.shape) < 0.1)
    plain = fit_batch(LINE, (X, y, ERROR), START, backend="numba")
    result = fit_batch(LeastSquares(line, loss=loss), (X, y, ERROR), plain.values, backend=backend)
    truth = fit_batch(LINE, (X, toys, ERROR), START, backend="numba").values
    moved = lambda found: np.median(np.abs(found.values - truth) / plain.errors)  # noqa: E731
    assert result.valid.all() and result.errordef == 1.0 and moved(plain) > 3.0 > 4.0 * moved(result)
    for k in range(8):
        minuit = Minuit(minuit_cost.LeastSquares(X, y[k], ERROR, line, loss=theirs), *plain.values[k])
        minuit.strategy, minuit.tol = 2, 1e-6
        minuit.migrad()
        assert minuit.valid
        np.testing.assert_allclose(result.fval[k], minuit.fval, rtol=1e-8)
        np.testing.assert_allclose(result.values[k], list(minuit.values), atol=1e-3 * result.errors[k].min())
        np.testing.assert_allclose(result.errors[k], list(minuit.errors), rtol=0.01)


@pytest.mark.parametrize("with_xerror", [False, True])
def test_mask_against_minuit(toys, with_xerror):
    """Points that are not used may hold anything, in arrays that are shared and in those of each toy."""
    y, own_error = np.where(USED, toys, np.nan), np.where(USED, np.tile(ERROR, (50, 1)), -1.0)
    cost = LeastSquares(line, xerror=with_xerror, mask=USED)
    data = (np.where(USED, X, np.nan), y, own_error, np.where(USED, 0.0, -1.0))
    result = fit_batch(cost, data if with_xerror else data[:3], START, backend="numba")
    assert result.valid.all()
    for k in range(50):
        reference = minuit_cost.LeastSquares(X, toys[k], ERROR, line)
        reference.mask = USED
        minuit = Minuit(reference, **START)
        minuit.strategy, minuit.tol = 2, 1e-6
        minuit.migrad()
        assert np.max(np.abs(result.values[k] - minuit.values) / result.errors[k]) < 1e-3
        assert result.fval[k] == pytest.approx(minuit.fval, abs=1e-6)
        np.testing.assert_allclose(result.covariance[k], minuit.covariance, rtol=1e-3)


def test_a_bad_point_counts_only_where_it_is_used(toys):
    y = toys[:3].copy()
    y[0, 0], y[1, 6] = np.inf, np.inf
    assert USED[0]
    assert not USED[6]
    for cost, data in (
        (LeastSquares(line, mask=USED), (X, y, ERROR)),
        (LeastSquares(line, covariance=COVARIANCE, mask=USED), (X, y)),
    ):
        assert fit_batch(cost, data, START, backend="numba").status.tolist() == [Status.BAD_DATA, 0, 0]


def test_points_with_a_covariance_do_not_depend_on_the_other_toys():
    rng = np.random.default_rng(12)
    n, x = 64, np.linspace(0.0, 1.0, 64)
    root = rng.normal(size=(n, n))
    cost, y = LeastSquares(lambda x, a: a * x, covariance=root @ root.T + np.eye(n)), rng.normal(size=(300, n))
    whole = cost.rows((x, y)).columns[0].reshape(300, n)
    for size in (1, 7, 128):
        np.testing.assert_array_equal(cost.rows((x, y[:size])).columns[0].reshape(size, n), whole[:size])


def test_covariance_of_points_that_are_not_used_is_not_looked_at(correlated):
    partly = np.where(USED[:, None] & USED, COVARIANCE, np.nan)
    result = fit_batch(LeastSquares(line, covariance=partly, mask=USED), (X, correlated), START, backend="numba")
    np.testing.assert_allclose(result.values[5], generalised(correlated[5], USED)[0], rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"covariance": ERROR}, ValueError, r"covariance must be a matrix of shape \(n, n\), got \(12,\)"),
        ({"covariance": np.ones((3, 4))}, ValueError, r"covariance must be a matrix of shape \(n, n\), got \(3, 4\)"),
        ({"covariance": np.zeros((0, 0))}, ValueError, r"shape \(n, n\), got \(0, 0\)"),
        ({"covariance": [["a"]]}, TypeError, "covariance must hold real numbers"),
        ({"covariance": [[1.0, np.nan], [np.nan, 1.0]]}, ValueError, "covariance must be finite, with a positive diag"),
        ({"covariance": [[1.0, 0.0], [0.0, -1.0]]}, ValueError, "covariance must be finite, with a positive diagonal"),
        (
            {"covariance": [[1.0, 0.5], [0.1, 1.0]]},
            ValueError,
            r"symmetric, but element \(0, 1\) is 0.5 and \(1, 0\) is",
        ),
        ({"covariance": [[1.0, 2.0], [2.0, 1.0]]}, ValueError, "positive definite, but its correlation matrix has the"),
        ({"covariance": np.full((4, 4), 0.1)}, ValueError, "must be positive definite"),  # fully correlated
        ({"covariance": np.eye(3), "xerror": True}, ValueError, "x errors cannot be combined with a covariance"),
        ({"covariance": np.eye(3), "mask": [True, False]}, ValueError, r"mask must have shape \(3,\), one value per"),
        ({"mask": [0, 2, 3]}, TypeError, "mask must hold True .* got an array of int"),
        ({"mask": [[True, False]]}, ValueError, r"mask must have shape \(2,\), one value per entry, got \(1, 2\)"),
        ({"mask": [False, False]}, ValueError, "mask leaves nothing to fit"),
        ({"loss": "huber"}, ValueError, "loss must be one of 'linear', 'soft_l1', got 'huber'"),
        ({"loss": "soft_l1", "covariance": np.eye(3)}, ValueError, "a covariance matrix have no loss of their own"),
    ],
)
def test_wrong_covariance_or_mask(options, kind, sentence):
    with pytest.raises(kind, match=sentence):
        LeastSquares(line, **options)


@pytest.mark.parametrize(
    ("cost", "data", "kind", "sentence"),
    [
        (CORRELATED, lambda y: (X, y, ERROR), TypeError, r"data must be \(x, y\), got 3 arrays"),
        (
            CORRELATED,
            lambda y: (X[:5], y[:, :5]),
            ValueError,
            r"shape \(n_toys, 12\) as the covariance has, got \(50, 5",
        ),
        (
            CORRELATED,
            lambda y: (X[:5], y),
            ValueError,
            r"x must have shape \(12,\) or \(d, 12\) to go with y of 12 points",
        ),
        (CORRELATED, lambda y: (np.tile(X, (50, 1)), y), ValueError, "must be a number, got shape"),
        (CORRELATED, lambda y: (np.append(X[1:], np.nan), y), ValueError, "x must be finite, but point 11 has nan"),
        (LeastSquares(line, mask=[True] * 5), lambda y: (X, y, ERROR), ValueError, r"mask must have shape \(12,\)"),
        (
            LeastSquares(lambda x, a: jnp.stack([a, a])),
            lambda y: (X, y, 1.0),
            ValueError,
            "must be a number, got shape",
        ),
        (
            LeastSquares(line, loss=lambda z: 1.0 if z > 1.0 else z),
            lambda y: (X, y, ERROR),
            TypeError,
            "the loss '<lambda>' cannot be evaluated for one point .*: write it with jax.numpy",
        ),
        (
            LeastSquares(line, loss=lambda z: jnp.stack([z, z])),
            lambda y: (X, y, ERROR),
            ValueError,
            "the value that the loss '<lambda>' returns for one event must be a number",
        ),
    ],
)
def test_wrong_data_for_covariance_or_mask(toys, cost, data, kind, sentence):
    with pytest.raises(kind, match=sentence):
        fit_batch(cost, data(toys), np.zeros(len(cost.names)), backend="numba")
