"""Which driver fits, on which device.

With "auto" for both, an accelerator that JAX sees is taken where the fits are worth it: it has to be started, compiled
for and sent the data, and small problems are done on the CPU before that.
"""

import os
import warnings

import jax
import numba
import numpy as np

from engine.arguments import one_of
from engine.cost import Cost
from engine.cpu import NumbaDriver
from engine.data import Rows
from engine.optimizers import MAX_STEPS, Transformation, check_optimizer, named
from engine.xla import XlaDriver, has_pallas
from kernels.nodes import UntranslatableError
from kernels.program import n_outputs

__all__ = ["cpu_seconds", "find_devices", "pick_driver", "preferred"]

# of the numba driver on one core, measured from 2 to 200 parameters: per fit, per row and number that is summed
FIT_SECONDS, SUM_SECONDS = 2e-6, 0.3e-9
EVALUATIONS = 4
# Fits that the CPU does in less time are not worth an accelerator. An H200 fitted 10 000 toys of the README's spectrum
# in 0.08 s, a third of what 16 cores take by the numbers above, once its programs were compiled in 24 s, or read back
# in 5 s by a later run.
ACCELERATOR_SECONDS = 20.0
# Toys of a model without numba form are fitted by JAX on the CPU, a few at a time: for each of 32 amplitude fits of
# 1000 events XLA takes 2 to 8 times as long as for one alone, for each of 32 fits of 60 points 7 times as for one of 8.
ROWS_TOGETHER = 512
# The environment variable that lets the kernel of `kernels.pallas` sum where it can. On an H200 it takes a third of the
# time of XLA's, and fits the README's spectrum to 6e-13 of an error; other costs have not been compared on a device.
ONE_PASS = "BATCHFIT_ONE_PASS"


def cpu_seconds(rows: Rows, n_params: int, n_toys: int) -> float:
    """About how long the numba driver takes on its threads for `n_toys` toys like these."""
    n_rows = sum(int(leaf.offsets[-1]) for leaf in rows.leaves) / max(len(rows), 1)
    one_by_one = n_toys * (FIT_SECONDS + EVALUATIONS * n_rows * n_outputs(n_params) * SUM_SECONDS)
    # which may be fewer than the cores of a machine that is shared
    return one_by_one / numba.get_num_threads()


def preferred(rows: Rows, n_params: int, n_toys: int) -> str:
    """The device for `n_toys` toys like these where it is left open: "cpu", or the accelerator that JAX sees."""
    platform = jax.devices()[0].platform
    return "cpu" if cpu_seconds(rows, n_params, n_toys) < ACCELERATOR_SECONDS else platform


def pick_driver(
    cost: Cost,
    rows: Rows,
    optimizer: str | Transformation,
    backend: str,
    device: str,
    max_steps: int | None,
    batch_size: int | None,
) -> NumbaDriver | XlaDriver:
    """The driver for what was asked; what cannot be had is an error that says what to pass or install."""
    one_of("backend", backend, ("auto", "numba", "jax"))
    one_of("device", device, ("auto", "cpu", "gpu", "tpu"))
    check_optimizer(optimizer)
    if backend == "numba" and device in ("gpu", "tpu"):
        raise ValueError(f"backend 'numba' runs on the CPU only: pass backend='jax' for device {device!r}")
    if backend == "numba" and optimizer != "newton":
        raise ValueError("backend 'numba' has the optimizer 'newton' only: pass backend='jax' for any other")
    if device == backend == "auto" and optimizer == "newton":
        device = preferred(rows, len(cost.names), len(rows))
    devices = find_devices(device) if backend != "numba" else []
    if backend == "auto":
        backend = "jax" if optimizer != "newton" or devices[0].platform != "cpu" else "numba"
        if backend == "numba":
            try:
                return NumbaDriver(cost, rows, batch_size)
            except UntranslatableError as reason:
                warnings.warn(f"the model has no numba form ({reason}); fitting with backend 'jax'", stacklevel=3)
                backend = "jax"
                most = max(int(np.max(np.diff(leaf.offsets), initial=1)) for leaf in rows.leaves)
                batch_size = batch_size or max(1, ROWS_TOGETHER // most)
    if backend == "numba":
        try:
            return NumbaDriver(cost, rows, batch_size)
        except UntranslatableError as reason:
            raise ValueError(f"the model has no numba form ({reason}): rewrite that or pass backend='jax'") from None
    if optimizer == "newton":
        one_pass = os.environ.get(ONE_PASS) and has_pallas(devices[0])
        return XlaDriver(cost, rows, devices, batch_size=batch_size, kernel="pallas" if one_pass else "xla")
    own = not isinstance(optimizer, str)
    return XlaDriver(
        cost,
        rows,
        devices,
        optimizer=optimizer if own else named(optimizer),
        scaled=not own,
        optimizer_steps=max_steps or MAX_STEPS["adam" if own else optimizer],
        batch_size=batch_size,
    )


def find_devices(device: str) -> list[jax.Device]:
    """All devices of a platform; for "auto" those that JAX takes by default.

    Raises
    ------
    ValueError
        If there are none: says what was found and what to install.
    """
    if device == "auto":
        return jax.devices()
    try:
        return jax.devices(device)
    except RuntimeError:
        found = sorted({d.platform for d in jax.devices()})
        install = {
            "gpu": "pip install 'batchfit[gpu]' on a machine with an NVIDIA GPU",
            "tpu": "pip install 'jax[tpu]'",
        }
        raise ValueError(
            f"no {device.upper()} here, JAX sees {', '.join(found)} only: pass device 'cpu', or "
            f"{install.get(device, 'check the installation of JAX')}"
        ) from None
