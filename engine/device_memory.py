"""What a device holds: the lanes of a batch, and the rows that a pass takes, planned before anything is sent there."""

from collections.abc import Sequence

import jax
import numpy as np

from engine.cost import Cost, summed_in_one_pass
from engine.data import Rows
from engine.lanes import bucket
from kernels.nodes import UntranslatableError
from kernels.program import n_outputs
from kernels.xla import n_intermediates

__all__ = ["free_memory", "pad", "plan", "temporaries"]

TILE = 512  # rows per pass on a CPU, where temporaries should stay in the cache
CPU_VALUES = 16384  # lanes times rows of a pass on a CPU
CPU_MATRICES = 2**19  # lanes times elements of a Hessian on a CPU: more are no faster, and keep a single toy waiting
DEVICE_BYTES = 4 * 2**30  # data of a batch, and temporaries of a pass, on an accelerator
TEMPORARIES = 16  # arrays of (lanes, rows of a pass) that a pass holds at least; the spectrum of the README holds 9
# Of the numbers of a row that are needed twice, XLA for a GPU keeps one in three to five.
KEPT = 3
HESSIANS = 12  # arrays of (lanes, n_params, n_params) that a step holds
JACOBIANS = 3  # arrays of (lanes, rows, n_params) that an evaluation holds where it takes all rows at once


def free_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that are free on each of some accelerators; None where they do not tell, as CPUs do not."""
    told = [device.memory_stats() or {} for device in devices if device.platform != "cpu"]
    if not told or not all("bytes_limit" in stats for stats in told):
        return None
    return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in told)


def temporaries(cost: Cost, rows: Rows, one_pass: bool = False) -> tuple[int, int]:
    """How many arrays of (lanes, rows of a pass) a pass may hold on an accelerator, and `at_once` of its tables."""
    most, of_toy = 1, 0
    for leaf, leaf_rows in zip(cost.leaves, rows.leaves, strict=True):
        try:
            program = leaf.program(leaf_rows)
        except UntranslatableError:  # every derivative of every row
            most = max(most, TEMPORARIES, n_outputs(len(leaf.names)))
            continue
        if not (one_pass and summed_in_one_pass(program)):
            most = max(most, TEMPORARIES, n_intermediates(program) // KEPT)
        of_toy = max(of_toy, n_intermediates(program, on_row=False) // (KEPT * JACOBIANS))
    return most, of_toy


def plan(
    platform: str,
    n_rows: int,
    n_columns: int,
    n_devices: int,
    batch_size: int | None,
    memory: int | None = None,
    *,
    n_params: int = 1,
    temporaries: int = TEMPORARIES,
    at_once: int = 0,
) -> tuple[int, int, int]:
    """(rows per pass, rows with padding, lanes) for toys of up to `n_rows` rows.

    `at_once` is the size of the Jacobians of a toy that are not taken in passes, and of the tables over which it sums.

    Rows are padded to one of eight sizes between powers of two, so that chunks of toys whose largest toys differ a
    little share a compiled program. Data, Hessians and temporaries take up to a quarter each of an accelerator's free
    memory.

    Raises
    ------
    ValueError
        If a toy, or as many as `batch_size` is rounded up to, take more than half of that memory; with the number that
        would not.
    """
    padded = pad(n_rows, TILE)
    bytes_each = 8 * max(n_columns, 1) * padded
    wanted = bucket(1 if batch_size is None else batch_size, n_devices)
    room = np.iinfo(np.int64).max if memory is None else memory // 2 // bytes_each * n_devices
    if room < wanted:
        rounded = "" if batch_size in (None, wanted) else f" (batch_size {batch_size}, rounded up)"
        raise ValueError(
            f"{wanted} toys{rounded} of {n_rows} rows need {wanted * bytes_each / 1e9:.3g} GB, and half of the "
            f"memory of the {platform} is {n_devices * memory / 2e9:.3g} GB: "  # type: ignore[operator]
            + (f"pass a batch_size of at most {bucket(room + 1, n_devices) // 2}" if room else "fit them on the CPU")
        )
    if platform == "cpu":
        tile = min(TILE, padded)
        lanes = min(CPU_VALUES // tile, CPU_MATRICES // n_params**2, DEVICE_BYTES // max(8 * JACOBIANS * at_once, 1))
        lanes = max(lanes, 1)
    else:
        budget = DEVICE_BYTES if memory is None else min(DEVICE_BYTES, memory // 4)
        tile = padded
        most_of_a_toy = max(bytes_each, 8 * HESSIANS * n_params**2, 8 * JACOBIANS * at_once)
        lanes = min(max(budget // most_of_a_toy, 1), 16384)
        while tile % 2 == 0 and tile > TILE and 8 * temporaries * tile * lanes > budget:
            tile //= 2
        # where a pass is at its shortest, fewer toys
        lanes = max(min(lanes, budget // (8 * temporaries * tile)), 1)
    power_of_two = bucket(lanes + 1, 1) // 2
    return tile, padded, power_of_two * n_devices if batch_size is None else wanted


def pad(n_rows: int, tile: int) -> int:
    """`n_rows`, rounded up: a power of two or the tile, then multiples of it, coarser for more rows."""
    if n_rows <= tile:
        return min(bucket(n_rows, 16), tile)
    granule = -(-bucket(n_rows, 1) // (16 * tile)) * tile
    return -(-n_rows // granule) * granule
