"""Fits with a closed form: toys of the extended normal distribution, and how two results must agree."""

import numpy as np

from engine import ExtendedUnbinnedNLL, fit_batch
from kernels import norm

ARRAYS = ("values", "errors", "covariance", "fval", "edm", "valid", "status", "nfev", "at_limit", "rescued")
BACKENDS = ("numba", "jax")


def scaled_normal(x, n, mu, sigma):
    return n, n * norm.pdf(x, mu, sigma)


COST = ExtendedUnbinnedNLL(scaled_normal)
START = {"n": 30.0, "mu": 0.3, "sigma": 1.2}
LIMITS = {"n": (0, None), "sigma": (0, None)}


def normal_toys(n_toys=64, seed=1):
    # 33 to 64 events, which JAX pads to 64: one compilation for most of the tests
    rng = np.random.default_rng(seed)
    return [rng.normal(0.2, 1.1, np.clip(rng.poisson(45), 33, 64)) for _ in range(n_toys)]


def closed_form(toys):
    return np.array([(len(x), x.mean(), x.std()) for x in toys])


def fit(toys, start=START, *, cost=COST, backend="numba", limits=LIMITS, **options):
    if backend == "jax":  # one number of lanes: one compilation for each model
        options.setdefault("batch_size", 2)
    return fit_batch(cost, toys, start, backend=backend, limits=limits, **options)


def assert_identical(left, right, names=ARRAYS):
    for name in names:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def assert_close(left, right, sigma):
    """Equal status, and values within so many errors."""
    np.testing.assert_array_equal(left.status, right.status)
    distance = np.abs(left.values - right.values)[left.valid]
    assert np.all(distance <= sigma * left.errors[left.valid]), np.nanmax(distance / left.errors[left.valid])
