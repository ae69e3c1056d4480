"""Quadrature against closed forms: adaptive of NumPy functions, and by Gauss and Legendre of jax.numpy functions."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from kernels import norm, quadrature
from kernels.quadrature import adaptive, over_box

INF = np.inf
CASES = {
    "smooth": (np.exp, 0.0, 1.0, np.e - 1.0),
    "narrow peak": (stats.norm(0.1234, 1e-4).pdf, -5.0, 5.0, 1.0),
    "jump": (lambda x: np.where(x < 0.3337, 1.0, 0.0), 0.0, 1.0, 0.3337),
    "kink": (lambda x: np.abs(x - 0.123), 0.0, 1.0, (0.123**2 + 0.877**2) / 2.0),
    "pole": (lambda x: 1.0 / np.sqrt(x), 0.0, 1.0, 2.0),
    "zero": (np.zeros_like, 0.0, 1.0, 0.0),
    "decay": (stats.expon(scale=1e4).pdf, 0.0, INF, 1.0),
    "to the left": (stats.norm(100.0, 3.0).pdf, -INF, 100.0, 0.5),
    "both sides": (stats.cauchy(3.0, 0.1).pdf, -INF, INF, 1.0),
}


@pytest.mark.parametrize("name", CASES)
def test_adaptive_equals_the_closed_form(name):
    function, low, high, truth = CASES[name]
    value, error = adaptive(function, low, high)
    # the promise is 1e-9 of the result; a pole adds what lies nearer to it than 2^-40 of the range
    assert abs(value - truth) < 2e-8 * max(truth, 1.0)
    assert abs(value - truth) < max(10.0 * error, 1e-14)


def test_work_follows_the_function():
    seen = []

    def counted(x):
        seen.append(x.size)
        return np.exp(x)

    adaptive(counted, 0.0, 1.0)
    assert sum(seen) == 3 * 64 * 16  # panels and their halves, once
    wave = lambda x: np.sin(1e3 * x) ** 2  # noqa: E731
    np.testing.assert_allclose(adaptive(wave, 0.0, 1.0)[0], 0.5 - np.sin(2e3) / 4e3, rtol=1e-9)


def test_what_is_not_finite_is_told():
    value, error = adaptive(lambda x: np.sqrt(x - 0.5), 0.0, 1.0)
    assert np.isnan(value) and error == INF


@pytest.mark.parametrize("d", [1, 2, 3])
def test_boxes(d):
    box = np.array([[-4.0, 6.0], [-5.0, 5.0], [-5.0, 0.0]])[:d]
    function = lambda x: np.exp(-np.sum(np.square(x), axis=0))  # noqa: E731
    value, error = over_box(function, box)
    truth = np.prod(0.5 * np.sqrt(np.pi) * np.diff(special.erf(box), axis=1))
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    assert abs(value - truth) <= error + 1e-12
    # each axis has its own range
    np.testing.assert_allclose(over_box(lambda x: np.ones(x.shape[1]), box)[0], np.prod(np.diff(box)), rtol=1e-13)


@pytest.mark.usefixtures("x64")
def test_quadrature():
    # exact for a polynomial of degree 2 n - 1, and not one above
    value = quadrature.integral(lambda x: x**9, 1.0, 2.0, n=5)
    np.testing.assert_allclose(value, (2.0**10 - 1.0) / 10.0, rtol=1e-15)
    assert quadrature.error(lambda x: x**10, 1.0, 2.0, n=5) > 1e-8
    assert quadrature.integral(lambda x: x, 2.0, 1.0) == -quadrature.integral(lambda x: x, 1.0, 2.0)
    # any shapes, and the error that is reported is that of a peak which is too narrow for its window
    widths = jnp.array([[1.0], [0.1], [0.01]])
    peaks = lambda n: quadrature.integral(lambda x: norm.pdf(x, 0.1, widths), jnp.array([-9.0, -8.0]), 9.0, n)  # noqa: E731
    reported = quadrature.error(lambda x: norm.pdf(x, 0.1, widths), jnp.array([-9.0, -8.0]), 9.0, 64)
    assert peaks(64).shape == reported.shape == (3, 2)
    found = np.abs(np.asarray(peaks(64)) - 1.0)
    assert np.all(found[0] < 1e-13) and np.all(reported[0] < 1e-13)
    # in the second window no node of either rule sees the peak
    assert np.all(found[2] > 0.01) and reported[2, 0] > 0.01
