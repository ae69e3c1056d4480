"""The JAX driver compiles few programs."""

import jax
import numpy as np
import pytest

from engine import UnbinnedNLL, fit_batch, xla
from kernels import norm


def test_one_step_is_compiled_for_all_lanes_whether_new_or_refilled(monkeypatch):
    traces = []
    step = xla.newton_step
    monkeypatch.setattr(xla, "newton_step", lambda *args, **options: traces.append(1) or step(*args, **options))
    rng = np.random.default_rng(0)
    toys = [rng.normal(3.0, 2.0, n) for n in rng.integers(3, 30, 1500)]
    cost, start = UnbinnedNLL(norm.pdf), {"loc": 2, "scale": 3}
    limits = {"scale": (1e-3, None)}
    fit_batch(cost, toys[:400], start, limits=limits, backend="jax")
    once = len(traces)
    assert once > 0
    # three times as many toys as lanes, and single ones
    result = fit_batch(cost, toys, start, limits=limits, backend="jax")
    np.testing.assert_allclose(result.values[:, 0], [np.mean(x) for x in toys], atol=1e-6)
    fit_batch(cost, toys[:1], start, limits=limits, backend="jax")
    assert len(traces) == once


def test_a_batch_follows_the_memory_of_the_device():
    # 16384 lanes of 15 500 events take 2 GB, and the temporaries of a pass are cut to the budget
    tile, padded, lanes = xla.plan("gpu", 15_500, 1, 1, None, memory=139 * 2**30)
    assert (padded, lanes) == (16_384, 16_384) and 8 * xla.TEMPORARIES * tile * lanes <= 4 * 2**30
    small = xla.plan("gpu", 15_500, 1, 1, None, memory=2**30)
    assert 8 * small[1] * small[2] <= 2**28
    assert xla.plan("gpu", 15_500, 1, 4, None, memory=2**30)[2] == 4 * small[2]
    assert xla.plan("gpu", 15_500, 1, 1, 100, memory=2**30)[2] == 128
    with pytest.raises(
        ValueError, match=r"10000 toys of 15500 rows need 1.31 GB, .* pass a batch_size of at most 4096"
    ):
        xla.plan("gpu", 15_500, 1, 1, 10_000, memory=2**30)
    with pytest.raises(ValueError, match="fit them on the CPU"):
        xla.plan("gpu", 10**9, 1, 1, None, memory=2**30)


def test_free_memory_is_that_of_the_fullest_device():
    class Device:
        platform = "gpu"

        def __init__(self, **stats):
            self.memory_stats = lambda: stats or None

    assert xla.free_memory([Device(bytes_limit=100, bytes_in_use=30), Device(bytes_limit=90)]) == 70
    assert xla.free_memory([Device(bytes_limit=100), Device()]) is None
    assert xla.free_memory(jax.devices("cpu")) is None
