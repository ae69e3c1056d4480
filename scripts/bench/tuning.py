"""The settings of an accelerator: kernels of one evaluation, lanes of a batch, steps between two looks at it."""

import time
from typing import Any

import jax
import numpy as np
from bench.accelerator import MAIN, Bench
from bench.accelerator_floors import floors_of

from engine import lanes as engine_lanes
from kernels.xla import row_sums

__all__ = ["lanes", "steps", "sums"]


def sums(bench: Bench) -> dict:
    """One evaluation of the main model, of data that are on the device: XLA, and the one-pass kernel's settings."""
    from kernels.pallas import row_sums_pallas

    _, cost, rows, start, _ = bench.problem(MAIN)
    driver, program = bench.driver(cost, rows), cost.program(rows)
    found: dict[str, Any] = {}
    with jax.enable_x64(True):
        ((columns, aux, n),) = jax.device_put(driver._lane_data(np.arange(len(rows))), bench.devices[0])
        theta, shared = jax.device_put((start, np.zeros((0, 0))), bench.devices[0])
        forms = {"xla": row_sums(program, driver.tile)}
        if bench.device == "gpu":
            for block in (128, 256, 512):
                for warps in (1, 2, 4, 8):
                    forms[f"pallas {block} x {warps}"] = row_sums_pallas(program, 2, block, warps)
        else:
            forms["pallas, interpreted"] = row_sums_pallas(program, 2, interpret=True)
        for name, form in forms.items():
            if time.monotonic() > bench.end:
                break
            run = jax.jit(jax.vmap(form, in_axes=(0, 0, None, 0, 0)))
            try:
                times = bench.timed(lambda: run(theta, columns, shared, aux, n).block_until_ready())  # noqa: B023
                found[name] = times | floors_of(cost, rows, 1.0, times["warm_s"])
            except jax.errors.JaxRuntimeError as error:  # a setting that takes too many registers
                found[name] = {"refused": str(error).splitlines()[0]}
    return found


def lanes(bench: Bench) -> dict:
    """Fits of the main model with other numbers of lanes."""
    _, cost, rows, start, settings = bench.problem(MAIN)
    toys, found = np.arange(len(rows)), {}
    for size in bench.sizes([8, 16] if bench.quick else [1024, 2048, 4096, 8192, 16384]):
        driver = bench.driver(cost, rows, batch_size=size)
        found[str(size)] = bench.timed(lambda: driver.fit(toys, start, settings))  # noqa: B023
    return found


def steps(bench: Bench) -> dict:
    """Fits of the main model with other numbers of steps between two looks at who has finished."""
    found, usual = {}, engine_lanes.STEPS_PER_CALL
    for name in (MAIN, "counting"):
        for size in bench.sizes([1, 4, 8]):
            _, cost, rows, start, settings = bench.problem(name)
            driver, toys = bench.driver(cost, rows), np.arange(len(rows))
            engine_lanes.STEPS_PER_CALL = size
            try:
                found[f"{name}, {size}"] = bench.timed(lambda: driver.fit(toys, start, settings))  # noqa: B023
            finally:
                engine_lanes.STEPS_PER_CALL = usual
    return found
