import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import expon, truncexpon, uniform
from tests.kernels.density_cases import of_numba_stats


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("loc", [-3.0, 0.0, 1.0, 1.5, 2.9])
def test_support_starts_at_loc_or_xmin(loc):
    x = np.linspace(0.5, 3.5, 61) + 1e-3
    theta = (1.0, 3.0, loc, 0.7)
    # numba_stats subtracts two cdfs, which costs it exp((xmin - loc) / scale) = 300 eps
    theirs = of_numba_stats("truncexpon")
    np.testing.assert_allclose(truncexpon.pdf(x, *theta), theirs.pdf(x, *theta), rtol=2e-13)
    np.testing.assert_allclose(truncexpon.cdf(x, *theta), theirs.cdf(x, *theta), rtol=2e-13, atol=1e-13)
    assert truncexpon.ppf(0.0, *theta) == max(1.0, loc)


def test_loc_below_xmin_has_no_influence():
    theta = jnp.array([1.0, 3.0, -4.0, 0.7])
    for function in (truncexpon.pdf, truncexpon.logpdf, truncexpon.cdf):
        value = jax.jit(function)
        assert value(1.8, *theta) == value(1.8, 1.0, 3.0, -1e6, 0.7)
        assert jax.jit(jax.grad(lambda t: function(1.8, *t)))(theta)[2] == 0.0  # noqa: B023


def test_window_above_an_empty_one():
    """All of the window below loc: there is no distribution."""
    assert np.isnan(truncexpon.pdf(2.0, 1.0, 3.0, 3.5, 0.7))


@pytest.mark.parametrize("width", [1e-12, 1e-6, 1e-3])
def test_flat_limit(width):
    """(xmax - xmin) / scale = width << 1: uniform up to corrections of order width, all of them linear."""
    x = np.linspace(2.0, 3.0, 11)
    scale = 1.0 / width
    slope = width * (0.5 - (x - 2.0))
    # next order: width^2 / 12
    error = 1e-14 + width**2 / 6
    np.testing.assert_allclose(truncexpon.logpdf(x, 2.0, 3.0, 0.0, scale), slope, atol=error)
    p = np.linspace(0.0, 1.0, 11)
    line = uniform.ppf(p, 2.0, 1.0) - 0.5 * width * p * (1.0 - p)
    np.testing.assert_allclose(truncexpon.ppf(p, 2.0, 3.0, 0.0, scale), line, atol=error)


@pytest.mark.parametrize("width", [40.0, 1e5])
def test_wide_limit(width):
    """(xmax - xmin) / scale >> 1: the exponential, all derivatives included."""
    x = np.array([0.0, 0.5, 3.0, 30.0])
    for function in ("logpdf", "cdf"):
        plain = lambda s: getattr(expon, function)(x, 0.0, s)  # noqa: B023, E731
        wide = lambda s: getattr(truncexpon, function)(x, 0.0, width, 0.0, s)  # noqa: B023, E731
        for _ in range(3):
            # exp(-40) = 4e-18, times 40^2 in the second derivative
            ours, truth = jax.jit(lambda s: (wide(s), plain(s)))(1.0)  # noqa: B023
            np.testing.assert_allclose(ours, truth, rtol=1e-14, atol=1e-14)
            plain, wide = jax.jacfwd(plain), jax.jacfwd(wide)


@pytest.mark.parametrize("width", [1e-9, 1e-3, 0.3, 3.0, 30.0, 600.0])
def test_ppf_from_both_ends(width):
    p = np.concatenate([np.logspace(-15, -0.31, 50), 1.0 - np.logspace(-15, -0.31, 50)])
    x = np.asarray(truncexpon.ppf(p, 0.0, width, 0.0, 1.0))
    # from below by log1p of libm, from above by the mirrored distribution, in float64 where each is stable
    mass = -np.expm1(-width)
    above = np.exp(-width) + (1.0 - p) * mass
    truth = np.where(p * mass < 0.5, -np.log1p(-p * mass), -np.log(above))
    # the project's promise for events is 1e-12 of the range; 2 ulp of the result is what is reached
    np.testing.assert_allclose(x, truth, rtol=1e-15)


def test_far_from_loc():
    """50 decay lengths above loc numba_stats has lost all digits; nothing changes here."""
    x = np.linspace(50.0, 53.0, 7)
    np.testing.assert_allclose(
        truncexpon.pdf(x, 50.0, 53.0, 0.0, 1.0), truncexpon.pdf(x - 50.0, 0.0, 3.0, 0.0, 1.0), rtol=1e-15
    )
