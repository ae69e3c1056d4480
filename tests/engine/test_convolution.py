"""Models that are convolved by a sum over nodes: a normal peak and resolution, for which the result is known."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from engine import BinnedNLL, ExtendedUnbinnedNLL, LeastSquares, UnbinnedNLL, fit_batch
from kernels import norm

# a sum at edges is written out, and takes the compiler the longer the more terms it has
N_NODES = {norm.pdf: 30, norm.cdf: 12}
RESOLUTION = 0.3
EDGES = np.linspace(-4.0, 4.0, 41)
LIMITS = {"sigma": (0.5, 3.0)}


def convolved(function):
    nodes, weights = np.polynomial.hermite_e.hermegauss(N_NODES[function])
    weights = weights / weights.sum()
    return lambda x, mu, sigma: jnp.sum(weights * function(x + RESOLUTION * nodes, mu, sigma))


def closed(function):
    return lambda x, mu, sigma: function(x, mu, jnp.sqrt(sigma**2 + RESOLUTION**2))


def scaled(pdf):
    return lambda x, n, mu, sigma: (n, n * pdf(x, mu, sigma))


def costs(way):
    yield UnbinnedNLL(way(norm.pdf), name=["mu", "sigma"]), events(), {"mu": 0.1, "sigma": 0.9}
    yield (
        UnbinnedNLL(way(norm.pdf), name=["mu", "sigma"], fit_range=(-1.5, 2.5)),
        events(),
        {"mu": 0.1, "sigma": 0.9},
    )
    yield ExtendedUnbinnedNLL(scaled(way(norm.pdf))), events(), {"n": 200.0, "mu": 0.1, "sigma": 0.9}
    counts = np.stack([np.histogram(toy, EDGES)[0] for toy in events()])
    yield BinnedNLL(way(norm.cdf), EDGES, name=["mu", "sigma"]), counts, {"mu": 0.1, "sigma": 0.9}
    rng = np.random.default_rng(5)
    x = np.linspace(-3.0, 3.0, 31)
    y = norm.pdf(x, 0.1, 1.0) + 0.01 * rng.standard_normal((20, 31))
    yield LeastSquares(way(norm.pdf), name=["mu", "sigma"]), (x, y, np.full(31, 0.01)), {"mu": 0.1, "sigma": 0.9}


def events():
    rng = np.random.default_rng(4)
    return [rng.normal(0.1, np.hypot(1.0, RESOLUTION), n) for n in rng.poisson(300, 20)]


def fitted(way, k, backend):
    cost, data, start = list(costs(way))[k]
    return fit_batch(cost, data, start, limits=LIMITS, backend=backend)


@functools.cache
def known(k):
    return fitted(closed, k, "numba")


@pytest.mark.parametrize("k", range(5))
@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_a_convolution_that_is_known(k, backend):
    found, expected = fitted(convolved, k, backend), known(k)
    assert found.valid.all() and expected.valid.all()
    assert np.max(np.abs(found.values - expected.values) / expected.errors) < 1e-6
    assert np.max(np.abs(found.errors / expected.errors - 1.0)) < 1e-6
