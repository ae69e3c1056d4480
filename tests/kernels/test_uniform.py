import jax
import numpy as np
import pytest

from kernels import uniform


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def test_closed_form():
    x = np.array([1.9, 2.0, 3.0, 6.0, 6.1])
    np.testing.assert_array_equal(uniform.pdf(x, 2.0, 4.0), [0.0, 0.25, 0.25, 0.25, 0.0])
    np.testing.assert_array_equal(uniform.logpdf(x, 2.0, 4.0), [-np.inf, *3 * [-np.log(4.0)], -np.inf])
    np.testing.assert_array_equal(uniform.cdf(x, 2.0, 4.0), [0.0, 0.0, 0.25, 1.0, 1.0])
    np.testing.assert_array_equal(uniform.ppf(np.array([0.0, 0.25, 1.0]), 2.0, 4.0), [2.0, 3.0, 6.0])


def test_integers_are_numbers():
    assert uniform.pdf(3, 2, 4) == 0.25
    assert uniform.cdf(3, 2, 4) == 0.25
