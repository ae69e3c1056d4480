"""The lanes and passes of a device are planned within its memory."""

import jax
import pytest

from engine.device_memory import HESSIANS, JACOBIANS, TEMPORARIES, free_memory, pad, plan


def test_a_batch_follows_the_memory_of_the_device():
    # 16384 lanes of 15 500 events take 2 GB, and the temporaries of a pass are cut to the budget
    tile, padded, lanes = plan("gpu", 15_500, 1, 1, None, memory=139 * 2**30)
    assert (padded, lanes) == (16_384, 16_384) and 8 * TEMPORARIES * tile * lanes <= 4 * 2**30
    small = plan("gpu", 15_500, 1, 1, None, memory=2**30)
    assert 8 * small[1] * small[2] <= 2**28
    assert plan("gpu", 15_500, 1, 4, None, memory=2**30)[2] == 4 * small[2]
    assert plan("gpu", 15_500, 1, 1, 100, memory=2**30)[2] == 128
    # a model with many intermediate results has shorter passes, and then fewer lanes
    tile, padded, lanes = plan("gpu", 1000, 1, 1, None, memory=139 * 2**30, temporaries=90)
    assert tile == 512 and 8 * 90 * tile * lanes <= 4 * 2**30 < 2 * 8 * 90 * tile * lanes
    # the Hessians of 201 parameters take more than the data
    lanes = plan("gpu", 100, 1, 1, None, memory=139 * 2**30, n_params=201)[2]
    assert 8 * HESSIANS * 201**2 * lanes <= 4 * 2**30
    # and so do the Jacobians of 20 000 bins
    lanes = plan("gpu", 20_000, 1, 1, None, memory=74 * 2**30, n_params=10, at_once=200_000)[2]
    assert 8 * JACOBIANS * 200_000 * lanes <= 4 * 2**30
    assert plan("cpu", 10_000, 1, 1, None, at_once=20_000_000)[2] == 8 < plan("cpu", 10_000, 1, 1, None)[2]
    # few toys of many parameters at once: a single one waits for all lanes
    assert [plan("cpu", 180, 1, 1, None, n_params=n)[2] for n in (5, 51, 264, 2000)] == [64, 64, 4, 1]


@pytest.mark.parametrize(
    ("n_devices", "room", "batch_size", "n_lanes", "most"),
    [(1, 4096, 10_000, 16_384, 4096), (1, 5000, 5000, 8192, 4096), (3, 500, 900, 1536, 768), (4, 1, 5, 8, 4)],
)
def test_a_batch_that_does_not_fit_is_refused_with_one_that_does(n_devices, room, batch_size, n_lanes, most):
    # half of the memory of a device holds `room` toys; what must fit is the lanes, a power of two for each device
    memory = 2 * room * 8 * 16_384
    told = (
        rf"^{n_lanes} toys \(batch_size {batch_size}, rounded up\) of 15500 rows need {n_lanes * 131_072 / 1e9:.3g} GB"
    )
    with pytest.raises(ValueError, match=told + rf", .* pass a batch_size of at most {most}$"):
        plan("gpu", 15_500, 1, n_devices, batch_size, memory=memory)
    with pytest.raises(ValueError, match=rf"of at most {most}$"):
        plan("gpu", 15_500, 1, n_devices, most + 1, memory=memory)
    assert plan("gpu", 15_500, 1, n_devices, most, memory=memory)[2] == most <= n_devices * room


@pytest.mark.parametrize("n_devices", [1, 4])
def test_a_toy_that_does_not_fit_is_for_the_cpu(n_devices):
    for batch_size in (None, 100):
        with pytest.raises(ValueError, match="fit them on the CPU"):
            plan("gpu", 10**9, 1, n_devices, batch_size, memory=2**30)


def test_no_row_is_lost_in_tiles():
    # a tile may be any half, quarter, ... of the rows of the longest toy, and those of a sum have other lengths
    tile, padded, _ = plan("gpu", 10_140, 1, 1, None, memory=139 * 2**30, temporaries=32)
    assert (tile, padded) == (640, 10_240)
    for tile in (512, 640, 1152, 8192):
        for n in (*range(1, 3000, 7), 9083, 15_500, 123_457):
            rows = pad(n, tile)
            assert n <= rows and (rows <= tile or rows % tile == 0) and (rows < 1.2 * n + tile)


def test_free_memory_is_that_of_the_fullest_device():
    class Device:
        platform = "gpu"

        def __init__(self, **stats):
            self.memory_stats = lambda: stats or None

    assert free_memory([Device(bytes_limit=100, bytes_in_use=30), Device(bytes_limit=90)]) == 70
    assert free_memory([Device(bytes_limit=100), Device()]) is None
    assert free_memory(jax.devices("cpu")) is None
