import jax
import numpy as np
import pytest

from kernels import expon


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_small_arguments_keep_relative_accuracy():
    z = np.logspace(-300, 0, 100)
    # -expm1(-z) and -log1p(-p), which numpy takes from libm, are good to a few ulp
    np.testing.assert_allclose(expon.cdf(z, 0.0, 1.0), -np.expm1(-z), rtol=1e-15)
    p = np.logspace(-300, -0.01, 3000)
    np.testing.assert_allclose(expon.ppf(p, 0.0, 1.0), -np.log1p(-p), rtol=1e-15)


def test_ppf_near_one():
    p = 1.0 - np.arange(1, 100) * 2.0**-53
    np.testing.assert_allclose(expon.ppf(p, 0.0, 2.0), -2.0 * np.log(1.0 - p), rtol=1e-15)


def test_mean_and_width_of_quantiles():
    """Quantiles at the midpoints of n equal steps have the mean and the variance of the distribution, up to 1 / n."""
    n = 100_000
    x = np.asarray(expon.ppf((np.arange(n) + 0.5) / n, 3.0, 2.0))
    # the last step holds the tail beyond log n: the mean misses 2 log(2) / n, the square about log(n)^2 / n
    assert x.mean() == pytest.approx(5.0, abs=2e-5)
    assert x.var() == pytest.approx(4.0, abs=4e-3)
