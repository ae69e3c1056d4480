"""Bernstein and Chebyshev polynomials."""

import jax
import numpy as np
import pytest
import scipy.interpolate

from kernels import bernstein, chebyshev
from tests.kernels.density_cases import of_numba_stats

pytestmark = pytest.mark.usefixtures("x64")


BETA = np.array([0.7, 2.0, 0.1, 1.3, 0.9])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_bernstein(n):
    beta, x = BETA[:n], np.linspace(-1.0, 3.0, 41)
    np.testing.assert_allclose(
        bernstein.density(x, beta, -1.0, 3.0), of_numba_stats("bernstein").density(x, beta, -1.0, 3.0), rtol=1e-14
    )
    np.testing.assert_allclose(
        bernstein.integral(x, beta, -1.0, 3.0), of_numba_stats("bernstein").integral(x, beta, -1.0, 3.0), rtol=2e-14
    )
    truth = scipy.interpolate.BPoly(beta[:, None], [-1.0, 3.0])
    for order, function in ((1, jax.grad(bernstein.density)), (2, jax.grad(jax.grad(bernstein.density)))):
        slopes = jax.vmap(lambda x: function(x, beta, -1.0, 3.0))(x)  # noqa: B023
        np.testing.assert_allclose(slopes, truth.derivative(order)(x) if order < n else 0.0 * x, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_chebyshev(n):
    beta, x = BETA[:n], np.linspace(-1.0, 3.0, 41)
    truth = np.polynomial.Chebyshev(beta, domain=[-1.0, 3.0])
    np.testing.assert_allclose(chebyshev.density(x, beta, -1.0, 3.0), truth(x), atol=1e-14)
    whole = truth.integ(lbnd=-1.0)
    np.testing.assert_allclose(chebyshev.integral(x, beta, -1.0, 3.0), whole(x), atol=1e-14)
    slopes = jax.vmap(lambda x: jax.grad(jax.grad(chebyshev.density))(x, beta, -1.0, 3.0))(x)
    np.testing.assert_allclose(slopes, truth.deriv(2)(x), atol=1e-13)


@pytest.mark.parametrize("module", [bernstein, chebyshev])
def test_polynomials_outside(module):
    assert module.density(-1.1, BETA, -1.0, 3.0) == module.density(3.1, BETA, -1.0, 3.0) == 0.0
    assert module.integral(-1.1, BETA, -1.0, 3.0) == 0.0
    assert module.integral(9.0, BETA, -1.0, 3.0) == module.integral(3.0, BETA, -1.0, 3.0)
    for function in (module.density, module.integral):
        assert np.isnan(function(0.0, BETA, 1.0, 1.0))
        assert np.isnan(function(np.nan, BETA, -1.0, 3.0))
        assert np.isnan(function(0.3, (0.7, np.nan), -1.0, 3.0))
        # a sequence of scalars, as a model has them
        assert function(0.3, tuple(BETA), -1.0, 3.0) == function(0.3, BETA, -1.0, 3.0)
        hessian = jax.hessian(lambda beta: function(0.3, beta, -1.0, 3.0))(BETA)  # noqa: B023
        assert np.all(hessian == 0.0)
