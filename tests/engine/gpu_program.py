"""What XLA makes of the programs that draw and fit toys on an NVIDIA H200, without one: kernels and bytes, as JSON.

Run by `test_gpu_program.py` in a process of its own, since the compiler has to be chosen before JAX starts.
"""

import json
import os
import re
import sys

os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"  # what is tuned is timed, on the device

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

from engine import ExtendedBinnedNLL, ExtendedUnbinnedNLL, NormalConstraint, PoissonNLL, UnbinnedNLL, resident, xla
from engine.lanes import STEPS_PER_CALL
from engine.trust_region import Box
from kernels import truncexpon, truncnorm
from toys import drawing
from toys.models import peak

MEMORY = 150_754_820_096
H200 = f"""
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000  l2_cache_size: 62914560  device_memory_size: {MEMORY}
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 13 }}
device_description_str: "NVIDIA H200"
"""
KERNELS = {"fusion", "custom-call", "copy", "reduce", "scatter", "gather", "sort", "dot", "transpose"}


def spectrum(x, ns, nb, mu, sigma, lam):
    density = ns * truncnorm.pdf(x, 1.0, 9.0, mu, sigma) + nb * truncexpon.pdf(x, 1.0, 9.0, 0.0, lam)
    return ns + nb, density


def below(x, ns, nb, mu, sigma, lam):
    return ns * truncnorm.cdf(x, 1.0, 9.0, mu, sigma) + nb * truncexpon.cdf(x, 1.0, 9.0, 0.0, lam)


def convolved(x, mass, width, resolution):
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    at = x + resolution * nodes
    return jnp.sum(weights * width / ((at - mass) ** 2 + width**2)) / (1.0 + width)


def templates(n_nuisances=50, n_bins=50):
    x = np.linspace(0.0, 1.0, n_bins)
    shapes = jnp.asarray(np.cos(np.pi * np.outer(np.arange(1, n_nuisances + 1), x)), dtype=np.float64)
    names = ("mu", *(f"a{k}" for k in range(n_nuisances)))

    def expected(mu, *alphas):
        return mu * 50.0 * jnp.exp(-0.5 * ((x - 0.5) / 0.1) ** 2) + 100.0 * jnp.exp(0.01 * jnp.stack(alphas) @ shapes)

    constraint = NormalConstraint(names[1:], np.zeros(n_nuisances), np.ones(n_nuisances))
    return PoissonNLL(expected, name=names) + constraint, np.ones((1, n_bins))


def make(name):
    """(cost, data of one toy, other arguments of the driver)."""
    with jax.enable_x64(True):
        if name.startswith("peak"):
            options = {"kernel": "pallas"} if name == "peak, one pass" else {}
            return ExtendedUnbinnedNLL(spectrum), np.linspace(1.0, 9.0, 15_500)[None], options
        if name == "convolution":
            return UnbinnedNLL(convolved), np.linspace(0.5, 1.4, 2000)[None], {}
        if name == "histogram":
            return ExtendedBinnedNLL(below, np.linspace(1.0, 9.0, 1001)), np.ones((1, 1000)), {}
        return *templates(), {}


def compiled(driver):
    """The programs that do some steps of all lanes, and that give their fits, for arrays of the shapes of `fit`."""
    lanes, common = driver._newton_lanes(), NamedSharding(driver.mesh, PartitionSpec())

    def shapes(tree, sharding, n_lanes=None):
        cut = lambda a: a.shape if n_lanes is None else (n_lanes, *a.shape[1:])  # noqa: E731
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(cut(a), a.dtype, sharding=sharding), tree)

    with jax.enable_x64(True):
        start = jax.ShapeDtypeStruct((driver.lanes, driver.n_params), np.float64)
        state = shapes(jax.eval_shape(lanes.start, start), lanes.by_toy)
        data = shapes(driver._lane_data(np.array([0])), lanes.by_toy, driver.lanes)
        limit = np.zeros(driver.n_params)
        box = shapes(Box(limit, limit, limit > 0), common)
        steps = lanes.advance.lower(state, data, shapes(driver._shared(), common), (box, 0.5, 1e-13, 200))
        return steps.compile(), driver._numbers().lower(state, box, 0.5).compile()


def computations(text):
    """The lines of each computation of an HLO module; "ENTRY" is the first to run."""
    found, name = {}, None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if head:
            name = "ENTRY" if head[1] else head[2]
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


def launches(found, name):
    """Kernels of a computation: of a loop all turns, or only its condition where the number of turns is not known."""
    total = 0
    for line in found[name]:
        operation = re.search(r"[}\])] ([a-z][\w\-]*)\(", line.partition(" = ")[2])
        if operation and operation[1] == "while":
            inner = dict(re.findall(r"(body|condition)=%?([\w.\-]+)", line))
            turns = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
            total += int(turns[1]) * launches(found, inner["body"]) if turns else launches(found, inner["condition"])
        total += bool(operation) and operation[1] in KERNELS
    return total


def facts(name):
    cost, data, options = make(name)
    rows = cost.rows(data)
    driver = xla.XlaDriver(cost, rows, list(topology.devices), **options)
    found, numbers = map(seen, compiled(driver))
    for what in ("library calls", "float32"):
        found[what] = sorted({*found[what], *numbers[what]})
    return found | {
        "lanes": driver.lanes,
        "kernels per step": found["kernels"] / STEPS_PER_CALL,
        "tiles": driver.padded[0] // driver.tile,
        "bytes of a Hessian of every toy": 8 * driver.lanes * driver.n_params**2,
    }


def toys():
    """Of the main model: the programs that draw a chunk, put it in its place, and give rows to the lanes."""
    chip, sampler = SingleDeviceSharding(topology.devices[0]), peak().sampler
    shape = lambda a: jax.ShapeDtypeStruct(np.shape(a), np.asarray(a).dtype, sharding=chip)  # noqa: E731
    tables = sampler.prepare(peak().theta)
    n = drawing._NUMBERS_AT_ONCE["accelerator"] // sampler.size(tables)
    numbers = shape(np.zeros(2 * n, np.int64))
    with jax.enable_x64(True):
        drawn = (sampler.draw, sampler.form, jax.tree.map(shape, tables), shape(np.zeros((n, 2), np.uint32)))
        whole, part = (jax.ShapeDtypeStruct((m, sampler.size(tables)), np.float64, sharding=chip) for m in (2 * n, n))
        lying, sent = (
            jax.ShapeDtypeStruct((1, m), np.float64, sharding=chip) for m in (whole.size, resident.SENT_AT_ONCE)
        )
        programs = {
            "draw": drawing._draw_chunk.lower(*drawn),
            "placed": drawing._placed.lower(whole, part, 0),
            "padded": resident._padded.lower(whole, numbers, numbers, 16_384),
            "not finite": resident._not_finite.lower(whole, numbers),
            "sent": resident._placed.lower(lying, sent, 0),
            "gathered": resident._gathered.lower(lying, numbers, numbers, 16_384),
        }
        return {
            name: {"bytes of the toys": 8 * np.prod(whole.shape).item()} | seen(p.compile())
            for name, p in programs.items()
        }


def seen(program):
    text, memory = program.as_text(), program.memory_analysis()
    return {
        "kernels": launches(computations(text), "ENTRY"),
        "temporary bytes": memory.temp_size_in_bytes,
        "argument bytes": memory.argument_size_in_bytes,
        "donated bytes": memory.alias_size_in_bytes,
        "aliased": "input_output_alias" in text.partition("\n")[0],
        "float32": sorted(set(re.findall(r"= \(?(?:f32|bf16|f16)\[.*? ([a-z][\w\-]*)\(", text))),
        "library calls": sorted(set(re.findall(r'custom_call_target="([^"]+)"', text))),
    }


if __name__ == "__main__":
    topology = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    xla.free_memory = lambda devices: MEMORY  # a device that is not there does not tell
    json.dump({name: toys() if name == "toys" else facts(name) for name in sys.argv[1:]}, sys.stdout)
