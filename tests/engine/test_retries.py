"""Toys that fail are fitted again, and what still fails is marked."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from engine import ExtendedUnbinnedNLL, Status, UnbinnedNLL, fit_batch
from kernels import norm
from tests.engine.normal_fits import BACKENDS, assert_identical, closed_form, normal_toys
from tests.engine.normal_fits import fit as fit_normal

# of a choice the logarithm is not that of the exponential alone, which does not underflow
CHOSEN = ExtendedUnbinnedNLL(
    lambda x, n, mu, sigma: (n, n * jnp.where(x > -1e3, norm.pdf(x, mu, sigma), 0.0)), name=["n", "mu", "sigma"]
)
fit = functools.partial(fit_normal, cost=CHOSEN)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_toy_from_a_bad_start_is_rescued(backend):
    toys = normal_toys(6)
    good = fit(toys, backend=backend)
    # beyond 38.6 widths the density underflows to 0, and its logarithm is -inf; 30 % more width, and it does not
    start = np.tile([30.0, 0.3, 1.2], (6, 1))
    start[3] = [30.0, 0.3, np.max(np.abs(toys[3] - 0.3)) / 39.5]
    left = fit(toys, start, backend=backend, retries=0)
    assert left.status[3] == Status.NONFINITE and not left.valid[3] and not left.rescued.any()
    np.testing.assert_array_equal(left.values[3], start[3])
    rescued = fit(toys, start, backend=backend)
    np.testing.assert_array_equal(rescued.rescued, np.arange(6) == 3)
    assert rescued.valid.all() and rescued.nfev[3] > left.nfev[3] and rescued.summary().n_rescued == 1
    np.testing.assert_allclose(rescued.values[3], closed_form(toys)[3], rtol=1e-9)
    others = np.arange(6) != 3
    for result in (left, rescued):
        assert_identical(result[others], good[others])


def test_retries_depend_on_their_number_alone():
    toys = normal_toys(6)
    start = np.tile([30.0, 0.3, 1.2], (6, 1))
    start[[1, 3], 2] = [np.max(np.abs(toys[k] - 0.3)) / 39.5 for k in (1, 3)]
    together = fit(toys, start)
    np.testing.assert_array_equal(np.flatnonzero(together.rescued), [1, 3])
    alone = fit(toys[3:4], start[3:4])
    assert_identical(together[3:4], alone)


def test_what_cannot_be_rescued_is_left_marked():
    toys = normal_toys(3)
    # the density is flat in b: no start helps
    cost = UnbinnedNLL(lambda x, mu, b: norm.pdf(x, mu, 1.0) + 0.0 * b)
    with pytest.warns(UserWarning, match="the cost does not depend on 'b' near 1: fix it or leave it out"):
        result = fit_batch(cost, toys, {"mu": 0.0, "b": 1.0})
    np.testing.assert_array_equal(result.status, Status.HESSIAN_NOT_POSDEF)
    assert not result.valid.any() and not result.rescued.any() and not result.has_posdef_covar.any()
    assert result.summary().failed == {Status.HESSIAN_NOT_POSDEF: 3}


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_an_empty_toy_has_no_events(backend):
    """Its yield is 0, on the limit, where the density vanishes: the cost is the yield alone."""
    cost = ExtendedUnbinnedNLL(lambda x, n: (n, n * norm.pdf(x, 0.0, 1.0)))
    toys = [np.empty(0), np.zeros(3), np.empty(0)]
    result = fit_batch(cost, toys, {"n": 1.0}, limits={"n": (0, None)}, backend=backend)
    assert result.valid.all()
    np.testing.assert_array_equal(result.at_limit[:, 0], [True, False, True])
    np.testing.assert_allclose(result.values[:, 0], [0.0, 3.0, 0.0], rtol=1e-9)
    np.testing.assert_allclose(result.errors[:, 0], [0.0, np.sqrt(3), 0.0], rtol=1e-6)
