"""The Poisson and the binomial distribution."""

import jax
import numpy as np
import pytest
import scipy.stats

from kernels import binom, poisson
from tests.kernels.density_cases import INF, of_numba_stats

pytestmark = pytest.mark.usefixtures("x64")


def test_poisson():
    rng = np.random.default_rng(2)
    mu = 10.0 ** rng.uniform(-3.0, 3.0, 400)
    k = rng.poisson(mu) + rng.integers(0, 3, 400)
    exact = scipy.stats.poisson.logpmf(k, mu)
    # scipy subtracts terms of size k log k
    error = 4e-16 * (k + 1) * np.log(k + 3) + 1e-14
    assert np.all(np.abs(np.asarray(jax.jit(poisson.logpmf)(k, mu)) - exact) <= error + 1e-14 * np.abs(exact))
    some = np.arange(9.0)
    np.testing.assert_allclose(poisson.pmf(some, 2.3), of_numba_stats("poisson").pmf(some, 2.3), rtol=1e-13)
    np.testing.assert_allclose(jax.jit(poisson.cdf)(k, mu), scipy.stats.poisson.cdf(k, mu), rtol=1e-12)
    assert poisson.pmf(0, 0.0) == 1.0 and poisson.pmf(3, 0.0) == 0.0
    assert poisson.pmf(-1, 2.0) == 0.0 and poisson.logpmf(-1, 2.0) == -INF and poisson.cdf(-1, 2.0) == 0.0
    assert all(np.isnan(f(2, -1.0)) for f in (poisson.pmf, poisson.logpmf, poisson.cdf))
    assert all(np.isnan(f(*a)) for f in (poisson.pmf, poisson.cdf) for a in ((np.nan, 1.0), (1.0, np.nan)))


def test_poisson_keeps_its_accuracy_for_many_events():
    """Next to mu = k the logarithm is -log(2 pi k) / 2 - d^2 / 2 + ..., a difference of terms of 2e9."""
    k = 1e8
    d = np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
    mu = k + np.round(d * np.sqrt(k))
    w = (mu - k) / k
    series = -(w**2) / 2 + w**3 / 3 - w**4 / 4 + w**5 / 5 - w**6 / 6
    expected = -0.5 * np.log(2 * np.pi * k) - 1 / (12 * k) + k * series
    np.testing.assert_allclose(poisson.logpmf(k, mu), expected, rtol=1e-14)


@jax.jit
def slopes_of_poisson(k, mu):
    slope = jax.grad(poisson.logpmf, argnums=1)
    return slope(k, mu), jax.grad(slope, argnums=1)(k, mu)


@pytest.mark.parametrize("k", [0.0, 3.0, 40.0, 4.7])
def test_poisson_derivatives(k):
    for mu in (0.7, 3.0, 39.9, 50.0):
        # the series about mu = k has to give the same
        slope, second = slopes_of_poisson(k, mu)
        np.testing.assert_allclose(slope, k / mu - 1.0, rtol=1e-13, atol=1e-14 * (1 + k))
        np.testing.assert_allclose(second, -k / mu**2, rtol=1e-12, atol=1e-14)
    step = jax.jit(jax.grad(poisson.cdf, argnums=1))(k, 3.0)
    np.testing.assert_allclose(step, -poisson.pmf(np.floor(k), 3.0), rtol=1e-12)


def test_binom():
    rng = np.random.default_rng(4)
    n = rng.integers(1, 2000, 300)
    p = rng.uniform(0.01, 0.99, 300)
    k = rng.binomial(n, p)
    k[:20], k[20:40] = 0, n[20:40]
    exact = scipy.stats.binom.logpmf(k, n, p)
    # numba_stats subtracts terms of size n log n
    np.testing.assert_allclose(jax.jit(binom.logpmf)(k, n, p), exact, rtol=1e-12, atol=1e-12)
    floats = [np.asarray(a, dtype=float) for a in (k, n)]
    np.testing.assert_allclose(
        binom.pmf(k[:5], n[0], 0.3),
        of_numba_stats("binom").pmf(floats[0][:5], np.full(5, float(n[0])), 0.3),
        rtol=1e-10,
    )
    np.testing.assert_allclose(jax.jit(binom.cdf)(k, n, p), scipy.stats.binom.cdf(k, n, p), rtol=1e-10, atol=1e-300)
    slope = jax.jit(jax.grad(binom.logpmf, argnums=2))
    second = jax.jit(jax.grad(slope, argnums=2))
    for k, n, p in ((3.0, 10.0, 0.3), (0.0, 7.0, 0.2), (7.0, 7.0, 0.9), (50.0, 200.0, 0.9)):
        np.testing.assert_allclose(slope(k, n, p), k / p - (n - k) / (1 - p), rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(second(k, n, p), -k / p**2 - (n - k) / (1 - p) ** 2, rtol=1e-12)
    assert binom.pmf(0, 5, 0.0) == binom.pmf(5, 5, 1.0) == 1.0
    assert binom.pmf(2, 5, 0.0) == binom.pmf(6, 5, 0.4) == binom.pmf(-1, 5, 0.4) == 0.0
    assert binom.cdf(-1, 5, 0.4) == 0.0 and binom.cdf(5, 5, 0.4) == 1.0
    for arguments in ((2.0, 5.0, -0.1), (2.0, 5.0, 1.1), (2.0, np.nan, 0.3), (np.nan, 5.0, 0.3), (2.0, -1.0, 0.3)):
        assert np.isnan(binom.pmf(*arguments)) and np.isnan(binom.cdf(*arguments))
