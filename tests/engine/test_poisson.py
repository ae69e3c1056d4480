"""Template fits: counting in closed form, nuisance parameters against MIGRAD, a hundred parameters, both backends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit
from iminuit import cost as minuit_cost

from engine import ExtendedBinnedNLL, NormalConstraint, PoissonNLL, Status, fit_batch
from engine.arguments import limit_arrays
from engine.cpu import NumbaDriver
from engine.drivers import Settings
from engine.reference import migrad
from engine.xla import XlaDriver
from kernels import norm, quadrature

SIGNAL = 8 * np.exp(-0.5 * ((np.arange(20) - 12) / 2.0) ** 2)
BACKGROUND = 60 * np.exp(-np.arange(20) / 8.0)
TILT = np.linspace(-0.15, 0.15, 20)


def discriminant(mu, norm, shape):
    """nu = mu S + B with a normalisation and a shape nuisance parameter, each in units of its standard deviation."""
    return mu * SIGNAL + BACKGROUND * 1.1**norm * (1 + shape * TILT)


STRENGTH = PoissonNLL(discriminant) + NormalConstraint("norm", 0.0, 1.0) + NormalConstraint("shape", 0.0, 1.0)
START = {"mu": 1.0, "norm": 0.0, "shape": 0.0}


@pytest.fixture(scope="module")
def toys():
    return np.random.default_rng(11).poisson(SIGNAL + BACKGROUND, (40, 20)).astype(float)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_single_bin_in_closed_form(backend):
    """n = mu s + b: the estimate is (n - b) / s, its error sqrt(n) / s; with n < b the minimum is on the limit."""
    cost = PoissonNLL(lambda mu: jnp.array([mu * 5.0 + 3.0]))
    counts = np.array([[10.0], [4.5], [1.0]])
    result = fit_batch(cost, counts, {"mu": 1.0}, limits={"mu": (0, None)}, backend=backend)
    np.testing.assert_allclose(result.values[:, 0], [1.4, 0.3, 0.0], rtol=1e-10)
    np.testing.assert_allclose(result.errors[:2, 0], np.sqrt(counts[:2, 0]) / 5, rtol=1e-6)
    np.testing.assert_allclose(result.fval, [0.0, 0.0, 2.0 - np.log(3.0)], atol=1e-12)
    assert result.at_limit[:, 0].tolist() == [False, False, True]


def test_signal_strength_against_migrad_and_between_backends(toys):
    numba = fit_batch(STRENGTH, toys, START, backend="numba")
    jax = fit_batch(STRENGTH, toys, START, backend="jax")
    assert numba.valid.all()
    assert numba.errordef == 0.5
    assert np.max(np.abs(numba.values - jax.values) / numba.errors) < 1e-6
    np.testing.assert_allclose(numba.covariance, jax.covariance, rtol=1e-6, atol=1e-12)
    rows = STRENGTH.rows(toys)
    settings = Settings(*limit_arrays(STRENGTH.names, None), np.ones(3, dtype=bool), 0.5, 1e-13, 200)
    for k in range(0, 40, 5):
        minuit = migrad(STRENGTH, rows, k, np.array([1.0, 0.0, 0.0]), settings)
        assert np.max(np.abs(numba.values[k] - minuit.values) / numba.errors[k]) < 1e-3
        assert numba.fval[k] == pytest.approx(minuit.fval, abs=1e-8)
        np.testing.assert_allclose(numba.errors[k], minuit.errors, rtol=0.01)


def test_measured_nuisance_values_of_each_toy(toys):
    """A constraint far off pulls its parameter along; the others see their own value."""
    measured = np.zeros(40)
    measured[3] = 2.0
    plain = fit_batch(STRENGTH, toys, START, backend="numba")
    moved = fit_batch(STRENGTH, (toys, measured, None), START, backend="numba")
    others = np.arange(40) != 3
    np.testing.assert_array_equal(moved.values[others], plain.values[others])
    assert moved.values[3, 1] > plain.values[3, 1] + 0.1


def test_a_hundred_nuisance_parameters():
    """101 parameters and 200 bins: every fit is valid, Asimov data give the truth, the constraints' errors shrink."""
    rng = np.random.default_rng(12)
    base = rng.uniform(50, 100, 200)
    signal = 20 * np.exp(-0.5 * ((np.arange(200) - 90) / 10) ** 2)
    variations = 0.03 * rng.normal(size=(100, 200))

    def expected(*theta):
        return theta[0] * signal + base * (1 + jnp.stack(theta[1:]) @ variations)

    names = ("mu", *(f"theta{k}" for k in range(100)))
    cost = PoissonNLL(expected, name=names) + NormalConstraint(names[1:], np.zeros(100), np.ones(100))
    asimov = signal + base
    counts = np.concatenate([asimov[None], rng.poisson(asimov, (4, 200))]).astype(float)
    result = fit_batch(cost, counts, np.append(0.5, np.zeros(100)), backend="numba")
    assert result.valid.all()
    np.testing.assert_allclose(result.values[0], np.append(1.0, np.zeros(100)), atol=1e-9)
    assert np.all(result.errors[:, 1:] < 1.0)
    # linear in all parameters, so the Hessian at the Asimov minimum is J^T J / mu plus the constraints
    jacobian = np.concatenate([signal[None], base * variations])
    hessian = (jacobian / asimov) @ jacobian.T + np.diag(np.append(0.0, np.ones(100)))
    np.testing.assert_allclose(result.errors[0], np.sqrt(np.diag(np.linalg.inv(hessian))), rtol=1e-9)


def test_bad_counts(toys):
    counts = toys[:3].copy()
    counts[1, 0] = np.nan
    assert fit_batch(STRENGTH, counts, START, backend="numba").status.tolist() == [0, Status.BAD_DATA, 0]


@pytest.mark.parametrize(
    ("expected", "kind", "sentence"),
    [
        (lambda mu: mu, ValueError, r"must return an array of shape \(n_bins,\), got \(\)"),
        (
            lambda mu: [mu, mu],
            ValueError,
            r"must return an array of shape \(n_bins,\), got list: make it one with jnp.stack",
        ),
        (lambda mu: None, ValueError, r"must return an array of shape \(n_bins,\), got NoneType$"),
        (lambda mu: mu * SIGNAL.reshape(4, 5), ValueError, r"shape \(n_bins,\), got \(4, 5\)"),
        (lambda mu: mu * SIGNAL[:0], ValueError, r"shape \(n_bins,\), got \(0,\)"),
        (lambda mu: np.exp(mu) * SIGNAL, TypeError, "cannot be evaluated for the parameters"),
        (
            lambda mu: mu[0] * SIGNAL,
            TypeError,
            r"each parameter is a number of its own: name them, as in expected\(a, b\)",
        ),
    ],
)
def test_wrong_models(expected, kind, sentence):
    with pytest.raises(kind, match=sentence):
        fit_batch(PoissonNLL(expected), np.ones((1, 20)), {"mu": 1.0})


def test_wrong_number_of_bins():
    with pytest.raises(ValueError, match=r"counts must have shape .* \(n_toys, 20\), or .* got \(2, 19\)$"):
        fit_batch(STRENGTH, np.ones((2, 19)), START)


def test_mask_against_minuit_and_between_backends(toys):
    """50 toys with a window left out, whose counts may be anything: the fit of the remaining bins."""
    used = np.abs(np.arange(20) - 7) > 1
    cost = PoissonNLL(lambda mu, norm: mu * SIGNAL + BACKGROUND * 1.1**norm, mask=used)
    toys = np.random.default_rng(13).poisson(SIGNAL + BACKGROUND, (50, 20)).astype(float)
    counts = np.where(used, toys, -1.0)
    result = fit_batch(cost, counts, {"mu": 1.0, "norm": 0.0}, backend="numba")
    assert result.valid.all()
    for k in range(50):
        reference = minuit_cost.ExtendedBinnedNLL(
            toys[k], np.arange(21.0), lambda _, mu, norm: np.append(0, np.cumsum(mu * SIGNAL + BACKGROUND * 1.1**norm))
        )
        reference.mask = used
        minuit = Minuit(reference, 1.0, 0.0)
        minuit.strategy, minuit.tol = 2, 1e-6
        minuit.migrad()
        assert np.max(np.abs(result.values[k] - minuit.values) / result.errors[k]) < 1e-3
        assert result.fval[k] == pytest.approx(minuit.fval / 2, abs=1e-6)
        np.testing.assert_allclose(result.errors[k], np.sqrt(np.diag(minuit.covariance)), rtol=0.01)
    rows = cost.rows(counts)
    drivers = NumbaDriver(cost, rows), XlaDriver(cost, rows, jax.devices("cpu"))
    numba, xla = (driver.evaluate(np.arange(50), result.values + 0.1) for driver in drivers)
    np.testing.assert_allclose(numba, xla, rtol=1e-9, atol=1e-9)
    counts[3, 0], counts[4, 7] = np.nan, np.nan
    status = fit_batch(cost, counts, {"mu": 1.0, "norm": 0.0}, backend="numba").status
    assert np.flatnonzero(status == Status.BAD_DATA).tolist() == [3]


def test_negative_expectation_is_refused_by_both_backends():
    cost = PoissonNLL(lambda a, b: jnp.stack([a, b]))
    rows = cost.rows(np.array([[0.0, 2.0], [1.0, 2.0], [0.0, 2.0], [1.0, 2.0]]))
    theta = np.array([[-1.0, 2.0], [-1.0, 2.0], [0.0, 2.0], [0.0, 2.0]])
    for driver in (NumbaDriver(cost, rows), XlaDriver(cost, rows, jax.devices("cpu"))):
        np.testing.assert_array_equal(driver.evaluate(np.arange(4), theta)[:, 0], [np.nan, np.nan, 0.0, np.inf])


@pytest.mark.parametrize(
    ("mask", "kind", "sentence"),
    [
        ([True] * 19, ValueError, r"mask must have shape \(20,\), one value per entry, got \(19,\)"),
        ([False] * 20, ValueError, "mask leaves nothing to fit"),
        (np.ones(20), TypeError, "mask must hold True .* got an array of float64"),
    ],
)
def test_wrong_masks(mask, kind, sentence):
    with pytest.raises(kind, match=sentence):
        PoissonNLL(discriminant, mask=mask)


def test_a_density_is_integrated_in_each_bin():
    """What iminuit does with use_pdf="numerical": the fits are those with the closed integral."""
    edges = np.linspace(-3.0, 4.0, 36)
    counts = np.stack([np.histogram(x, edges)[0] for x in np.random.default_rng(6).normal(0.5, 1.2, (20, 500))])

    def expected(s, mu, sigma):
        return quadrature.integral(lambda x: s * norm.pdf(x, mu, sigma), edges[:-1], edges[1:], n=6)

    start, limits = {"s": 450.0, "mu": 0.3, "sigma": 1.0}, {"s": (0, None), "sigma": (0.1, None)}
    found = fit_batch(PoissonNLL(expected), counts.astype(float), start, limits=limits)
    closed = ExtendedBinnedNLL(lambda x, s, mu, sigma: s * norm.cdf(x, mu, sigma), edges)
    known = fit_batch(closed, counts.astype(float), start, limits=limits)
    assert found.valid.all() and known.valid.all() and found.backend == "numba"
    np.testing.assert_array_less(np.abs(found.values - known.values) / known.errors, 1e-8)
    np.testing.assert_allclose(found.errors, known.errors, rtol=1e-8)
