"""`fit_batch` in the program that calls it: its precision, its threads, traces and progress."""

import concurrent.futures

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import UnbinnedNLL, fit_batch
from kernels import expon, norm
from tests.engine.normal_fits import BACKENDS, assert_identical, closed_form, fit, normal_toys


@pytest.mark.parametrize("backend", BACKENDS)
def test_jax_stays_in_float32_around(backend):
    assert not jax.config.jax_enable_x64
    before = jnp.linspace(0.0, 1.0, 5)
    compiled = jax.jit(lambda a: a * 2.0)
    assert compiled(before).dtype == np.float32
    result = fit(normal_toys(4), backend=backend)
    assert result.values.dtype == np.float64 and result.valid.all()
    assert not jax.config.jax_enable_x64
    assert before.dtype == compiled(before).dtype == jnp.linspace(0.0, 1.0, 5).dtype == np.float32


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads(backend):
    toys = normal_toys(32)
    expected = fit(toys, backend=backend)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        one = pool.submit(fit, toys, backend=backend).result()
        two = list(pool.map(lambda _: fit(toys, backend=backend), range(4)))
    for result in (one, *two):
        assert_identical(result, expected)


def test_two_threads_with_a_new_cost():
    toys = normal_toys(4)
    cost = UnbinnedNLL(lambda x, mu, sigma: norm.pdf(x, mu, sigma))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: fit_batch(cost, toys, {"mu": 0.0, "sigma": 1.0}), range(4)))
    for result in results:
        np.testing.assert_allclose(result.values, closed_form(toys)[:, 1:], rtol=1e-9)
        assert_identical(result, results[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_new_data_of_the_same_form_do_not_trace_again(backend):
    calls = []

    def model(x, tau):
        calls.append(None)
        return expon.pdf(x, 0.0, tau)

    cost = UnbinnedNLL(model)
    rng = np.random.default_rng(9)
    options = {"backend": backend, "limits": {"tau": (0, None)}, "batch_size": 2}
    first = fit_batch(cost, rng.exponential(2.0, (5, 30)), {"tau": 1.0}, **options)
    traced = len(calls)
    assert traced > 0
    # other data, number of toys, start, limits, fixed parameters
    again = [
        fit_batch(cost, rng.exponential(3.0, (9, 30)), {"tau": 2.0}, **options),
        fit_batch(cost, rng.exponential(3.0, (2, 25)), {"tau": 2.0}, **(options | {"limits": None, "max_steps": 50})),
        fit_batch(cost, rng.exponential(3.0, (2, 25)), {"tau": 2.0}, fixed=["tau"], **options),
    ]
    assert len(calls) == traced
    assert all(result.valid.all() for result in (first, *again))


@pytest.mark.parametrize("backend", BACKENDS)
def test_progress(backend):
    toys = normal_toys(10)
    seen = []
    result = fit(toys, backend=backend, progress=seen.append)
    assert sum(seen) == 10
    assert_identical(result, fit(toys, backend=backend, progress=True))
