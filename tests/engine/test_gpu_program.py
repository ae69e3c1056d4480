"""The structure of the compiled GPU program, without a GPU: few kernels, little memory, float64 throughout.

XLA compiles for an NVIDIA H200 on any machine that has its CUDA plugin of the version of JAX. It takes about a minute,
so it runs when asked for:

    pip install jax-cuda13-plugin==$JAX jax-cuda13-pjrt==$JAX     # the version of jax, 400 MB
    BATCHFIT_GPU_PROGRAM=1 python -m pytest -n 0 tests/engine/test_gpu_program.py
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine import device_memory

pytestmark = pytest.mark.skipif(
    not os.environ.get("BATCHFIT_GPU_PROGRAM") or importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="compiles for an H200: install jax-cuda13-plugin and jax-cuda13-pjrt and set BATCHFIT_GPU_PROGRAM=1",
)

# Kernels of one step of which every toy takes a full Newton step, and temporary arrays of (lanes, rows of a pass).
CASES = {
    "peak": {"kernels": 110, "library": set()},
    "peak, one pass": {"kernels": 40, "library": {"__gpu$xla.gpu.triton"}},
    # its nodes are an axis of their own, over which is summed
    "convolution": {"kernels": 120, "library": set()},
    "histogram": {"kernels": 80, "library": set()},
    # 51 parameters are beyond what is written out in scalars
    "templates": {"kernels": 70, "library": {"__cublas$triangularSolve", "cusolver_potrf_ffi"}},
}


@pytest.fixture(scope="module")
def facts():
    program = Path(__file__).with_name("gpu_program.py")
    environment = os.environ | {"PYTHONPATH": str(program.parents[2])}
    done = subprocess.run(
        [sys.executable, str(program), *CASES, "toys"], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_a_step_takes_few_kernels(facts, name):
    # 30 to 60 for Newton, and 8 or so for every pass over the rows
    assert facts[name]["kernels per step"] <= CASES[name]["kernels"]
    assert set(facts[name]["library calls"]) == CASES[name]["library"]


@pytest.mark.parametrize("name", CASES)
def test_temporaries_stay_in_the_budget(facts, name):
    assert facts[name]["argument bytes"] <= device_memory.DEVICE_BYTES
    assert facts[name]["temporary bytes"] <= device_memory.DEVICE_BYTES


def test_one_pass_holds_nothing_of_a_row(facts):
    # ten arrays of (lanes, parameters, parameters) for Newton; the rows take 2 GB
    assert facts["peak, one pass"]["temporary bytes"] <= 10 * facts["peak"]["bytes of a Hessian of every toy"]


@pytest.mark.parametrize("name", CASES)
def test_everything_is_float64(facts, name):
    assert facts[name]["float32"] == []


@pytest.mark.parametrize("name", CASES)
def test_the_state_is_changed_in_place(facts, name):
    assert facts[name]["aliased"]
    # all of the state: more than the Hessians
    assert facts[name]["donated bytes"] > facts[name]["bytes of a Hessian of every toy"]


def test_toys_are_drawn_and_handed_over_in_few_kernels(facts):
    most = {"draw": 70, "placed": 1, "padded": 3, "not finite": 3, "sent": 1, "gathered": 3}
    for name, found in facts["toys"].items():
        assert found["kernels"] <= most[name] and found["float32"] == [] and found["library calls"] == []
        # nothing of the size of the toys but themselves; two chunks are drawn, each with its random bits
        assert found["temporary bytes"] <= (0.2 if name == "draw" else 0.02) * found["bytes of the toys"]
    assert facts["toys"]["placed"]["donated bytes"] == facts["toys"]["placed"]["bytes of the toys"]
