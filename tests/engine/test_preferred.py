"""Where the device is left open: an accelerator for what is worth it, the CPU for all else."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from engine import UnbinnedNLL, fit_batch
from engine.devices import cpu_seconds, preferred
from kernels import expon

COST = UnbinnedNLL(lambda x, tau: expon.pdf(x, 0.0, tau))
TOYS = np.random.default_rng(1).exponential(2.0, (8, 100))


@pytest.fixture
def gpu(monkeypatch):
    """JAX sees a GPU, on which nothing can be computed."""
    devices = jax.devices

    def seen(platform=None):
        return [SimpleNamespace(platform="gpu", memory_stats=dict)] if platform in (None, "gpu") else devices(platform)

    monkeypatch.setattr(jax, "devices", seen)
    monkeypatch.setattr("numba.get_num_threads", lambda: 16)


@pytest.mark.parametrize(
    "n_events, n_params, n_toys, expected",
    [(15_500, 5, 10_000, "cpu"), (15_500, 5, 10**6, "gpu"), (2, 3, 1_000_000, "cpu"), (100, 201, 10**6, "gpu")],
)
def test_large_problems_prefer_the_accelerator(gpu, n_events, n_params, n_toys, expected):
    rows = COST.rows(np.ones((2, n_events)))
    assert preferred(rows, n_params, n_toys) == expected


def test_the_cpu_is_as_fast_as_the_threads_that_it_may_use(monkeypatch):
    rows, seconds = COST.rows(np.ones((2, 15_500))), []
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    for n_threads in (1, 2, 16):
        monkeypatch.setattr("numba.get_num_threads", lambda n=n_threads: n)
        seconds.append(cpu_seconds(rows, 5, 10_000))
    np.testing.assert_allclose(seconds, seconds[0] / np.array([1, 2, 16]), rtol=1e-12)


def test_without_an_accelerator_it_is_the_cpu():
    assert preferred(COST.rows(np.ones((2, 15_500))), 5, 10**9) == "cpu"


def test_small_fits_stay_on_the_cpu_beside_a_gpu(gpu):
    result = fit_batch(COST, TOYS, {"tau": 1.0}, limits={"tau": (0.0, None)})
    assert (result.backend, result.device) == ("numba", "cpu") and result.valid.all()
    np.testing.assert_allclose(result.values[:, 0], TOYS.mean(axis=1), rtol=1e-9)
