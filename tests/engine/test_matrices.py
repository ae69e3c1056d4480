"""Factors, solutions and inverses of the numba fit, against NumPy, in sizes around those of blocks."""

import numpy as np
import pytest
from numba import njit

from engine import matrices_numba
from engine.matrices_numba import MATRIX, SCALE, B, P


@njit
def factorise(work, n, shift):
    return matrices_numba.factorise(work, n, shift)


@njit
def solve(work, n):
    matrices_numba.newton_point(work, n)


@njit
def covariance_of(hessian, active, work, index, covariance):
    good = matrices_numba.factorised(hessian, active, work, index)
    return matrices_numba.write_covariance(active, 0.5, covariance, work, index) if good else np.nan


def definite(rng, n):
    """A positive definite matrix with ones on its diagonal."""
    a = rng.normal(size=(n, 2 * n))
    a = a @ a.T
    scale = 1.0 / np.sqrt(np.diag(a))
    return a * scale * scale[:, None]


def memory(n_params):
    """What a fit works in; what it reads before it is written is seen in the results."""
    return np.full((MATRIX + 2 * n_params, n_params), 1e3)


SIZES = [*range(1, 21), 31, 32, 33, 40, 44, 51, 100]


@pytest.mark.parametrize("held", [0, 3])
@pytest.mark.parametrize("n", SIZES)
def test_factor_and_solution(n, held):
    rng = np.random.default_rng(n)
    a, b, work = definite(rng, n), rng.normal(size=n), memory(n + held)
    work[MATRIX : MATRIX + n, :n] = np.triu(a) + np.tril(np.full((n, n), 1e3), -1)
    work[B, :n] = b
    assert factorise(work, n, 0.25)
    factor = np.triu(work[MATRIX + n + held : MATRIX + 2 * n + held, :n])
    factor[np.diag_indices(n)] **= -1
    np.testing.assert_allclose(factor, np.linalg.cholesky(a + 0.25 * np.eye(n)).T, rtol=1e-12, atol=1e-14)
    solve(work, n)
    np.testing.assert_allclose(work[P, :n], -np.linalg.solve(a + 0.25 * np.eye(n), b), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", SIZES)
def test_a_negative_eigenvalue_in_any_place_is_found(n):
    rng, work = np.random.default_rng(50 + n), memory(n)
    for k in range(n):
        a = definite(rng, n)
        a[k, k] = 0.5 * a[k, :k] @ np.linalg.solve(a[:k, :k], a[:k, k]) if k else -1e-3
        if k and not a[k, k] > 0.0:
            continue
        work[MATRIX : MATRIX + n] = a
        assert factorise(work, n, 0.0) == (np.linalg.eigvalsh(a)[0] > 0.0), k
        work[MATRIX : MATRIX + n] = a
        assert factorise(work, n, 4.0)
    work[MATRIX, 0] = np.nan
    assert not factorise(work, n, 0.0)


@pytest.mark.parametrize("held", [0, 1, 3])
@pytest.mark.parametrize("n", SIZES)
def test_covariance(n, held):
    rng, n_params = np.random.default_rng(100 + n), n + held
    scale = 10.0 ** rng.uniform(-3, 3, n_params)
    hessian = definite(rng, n_params) * scale * scale[:, None]
    active = np.zeros(n_params, bool)
    active[rng.choice(n_params, held, replace=False)] = True
    free = np.flatnonzero(~active)
    covariance, work = np.full((n_params, n_params), np.nan), memory(n_params)
    inflation = covariance_of(hessian, active, work, np.empty(n_params, np.int64), covariance)
    block = np.ix_(free, free)
    expected = np.zeros((n_params, n_params))
    expected[block] = np.linalg.inv(hessian[block])
    unit = scale[:, None] * scale
    np.testing.assert_allclose(covariance * unit, expected * unit, rtol=1e-9, atol=1e-11)
    np.testing.assert_array_equal(covariance, covariance.T)
    np.testing.assert_allclose(inflation, np.sum(np.diag(expected * hessian)), rtol=1e-9)
    np.testing.assert_array_equal(work[SCALE, free], 1.0 / np.sqrt(np.diag(hessian)[free]))
