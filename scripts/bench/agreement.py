"""Whether an accelerator gives the numbers of the CPU."""

from typing import Any

import jax
import numpy as np
from bench.accelerator import MAIN, Bench
from bench.cases import CASES

from engine.cpu import NumbaDriver
from toys.models import peak
from toys.study import generate

__all__ = ["batches", "fits", "toys"]


def toys(bench: Bench) -> dict:
    """The same toys on both: counts equal, events to 1e-12 of the range."""
    study, n = peak(), bench.n_toys(MAIN)
    on_cpu = generate(study, n, bench.seed)
    with jax.default_device(bench.devices[0]):
        thrown: list = []
        times = bench.timed(lambda: thrown.append(generate(study, n, bench.seed, backend="jax")))
        on_device = thrown[-1]
    equal = np.array_equal(on_cpu.offsets, on_device.offsets)
    worst = float(np.abs(on_cpu.values - on_device.values).max() / 8.0) if equal else float("inf")
    return {"agree": equal and worst < 1e-12, "counts_equal": equal, "worst_event": worst, "n_toys": n} | times


def fits(bench: Bench) -> dict:
    """The fits of the device against numba's: statuses equal, values to 1e-6 sigma."""

    def compared(name: str) -> dict[str, dict]:
        _, cost, rows, start, settings = bench.problem(name, 6 if bench.quick else 200)
        toys = np.arange(len(rows))
        theirs, each = NumbaDriver(cost, rows).fit(toys, start, settings), {}
        for kernel in bench.kernels:
            ours = bench.driver(cost, rows, kernel=kernel).fit(toys, start, settings)
            worst = _worst(ours, theirs)
            same = bool(np.array_equal(ours.status, theirs.status))
            each[f"{name}, {kernel}"] = {"agree": same and worst < 1e-6, "same_status": same, "worst_sigma": worst}
        return each

    return {key: one for each in bench.together(compared, CASES) for key, one in each.items()}


def _worst(ours: Any, theirs: Any) -> float:
    """Largest difference of values, in errors."""
    sigma = np.sqrt(np.diagonal(theirs.covariance, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nanmax(np.abs(ours.values - theirs.values) / sigma))


def batches(bench: Bench) -> dict:
    """A toy's fit in batches of other sizes, and in other lanes of one batch."""
    _, cost, rows, start, settings = bench.problem(MAIN, 16 if bench.quick else 2048)
    toys = np.arange(len(rows))

    def fitted(kernel: str, size: int) -> Any:
        return bench.driver(cost, rows, batch_size=size, kernel=kernel).fit(toys, start, settings)

    def of_kernel(kernel: str) -> tuple[str, dict]:
        first, *others = bench.together(lambda size: fitted(kernel, size), [8, 16] if bench.quick else [2048, 256, 16])
        lanes = bench.driver(cost, rows, batch_size=16, kernel=kernel).fit(
            np.zeros(16, dtype=int), start[:16], settings
        )
        return kernel, {
            "agree": all(_worst(other, first) < 1e-6 for other in others),
            "worst_sigma": [_worst(other, first) for other in others],
            "bitwise": [bool(np.array_equal(other.values, first.values)) for other in others],
            "lanes_bitwise": bool((lanes.values == lanes.values[0]).all()),
        }

    return dict(bench.together(of_kernel, bench.kernels))
