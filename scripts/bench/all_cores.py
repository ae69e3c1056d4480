"""An accelerator beside all cores of the CPU: every case, and from which size on it is faster."""

import time
from typing import Any

import jax
import numpy as np
from bench.accelerator import MAIN, Bench, seconds_of
from bench.accelerator_floors import floors_of
from bench.cases import CASES

from engine.cpu import NumbaDriver
from toys.study import generate

__all__ = ["cases", "rule"]


def cases(bench: Bench) -> dict:
    """Every case: generated and fitted on the device, fitted by all cores, and the floors of the fits."""
    found: dict[str, dict] = {}
    for name in CASES:
        if time.monotonic() > bench.end:
            break
        case, cost, rows, start, settings = bench.problem(name)
        toys, driver, cpu = np.arange(len(rows)), bench.driver(cost, rows), NumbaDriver(cost, rows)
        results = []
        times = bench.timed(lambda: results.append(driver.fit(toys, start, settings)))  # noqa: B023
        cores = bench.timed(lambda: cpu.fit(toys, start, settings))  # noqa: B023
        with jax.default_device(bench.devices[0]):
            thrown = seconds_of(lambda: generate(case.study, len(rows), bench.seed, backend="jax"))  # noqa: B023
        found[name] = {
            "n_toys": len(rows),
            "not_converged": int((results[-1].status != 0).sum()),
            "generate_first_s": thrown,
            "device": times,
            "all_cores_s": cores["warm_s"],
            "evaluations": float(results[-1].nfev.mean()),
            "send_s": seconds_of(lambda: jax.block_until_ready(jax.device_put(rows.columns))),  # noqa: B023
        } | floors_of(cost, rows, float(results[-1].nfev.sum()) / len(rows), times["warm_s"])
    return found


def rule(bench: Bench) -> dict:
    """From how many rows on the device wins over all cores, transfers included."""
    found: dict[str, Any] = {}
    for name in ("peak-480", MAIN, "counting"):
        table, wins = [], None
        for n_toys in bench.sizes([16, 64, 256, 1024, 4096, 16384]):
            _, cost, rows, start, settings = bench.problem(name, n_toys)
            toys, driver, cpu = np.arange(n_toys), bench.driver(cost, rows), NumbaDriver(cost, rows)
            device = bench.timed(lambda: driver.fit(toys, start, settings))["warm_s"]  # noqa: B023
            cores = bench.timed(lambda: cpu.fit(toys, start, settings))["warm_s"]  # noqa: B023
            n_rows = int(rows.offsets[-1])
            wins = (wins or n_rows) if device < cores else None  # from there on, not here and there
            table.append({"n_toys": n_toys, "rows": n_rows, "device_s": device, "all_cores_s": cores})
        found[name] = {"wins_from_rows": wins, "sizes": table}
    return found
