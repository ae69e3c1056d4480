import jax
import numpy as np
import pytest
import scipy.special

from kernels import norm


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_lower_tail_of_cdf():
    z = -np.linspace(1.0, 37.0, 200)
    # exp(-z^2 / 2) amplifies the rounding of z^2 / 2 <= 700
    np.testing.assert_allclose(norm.cdf(10.0 + 3.0 * z, 10.0, 3.0), scipy.special.ndtr(z), rtol=4e-13)


def test_ppf_in_both_tails():
    p = np.logspace(-300, -0.4, 300)
    # the quantile is good to 4 eps of its value
    np.testing.assert_allclose(norm.ppf(p, 0.0, 1.0), scipy.special.ndtri(p), rtol=2e-15, atol=2e-16)
    p = 1.0 - np.arange(1, 100) * 2.0**-53
    np.testing.assert_allclose(norm.ppf(p, 0.0, 1.0), -scipy.special.ndtri(1.0 - p), rtol=2e-15)


def test_logpdf_where_pdf_underflows():
    assert norm.pdf(50.0, 0.0, 1.0) == 0.0
    assert norm.logpdf(50.0, 0.0, 1.0) == pytest.approx(-1250.0 - 0.5 * np.log(2 * np.pi), rel=1e-15)
