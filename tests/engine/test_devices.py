"""Toys sharded over several devices give the fits of one device."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import warnings
warnings.simplefilter("error")
import jax
import jax.numpy as jnp
import numpy as np
from engine import Status, UnbinnedNLL, fit_batch, resident, xla
from engine.resident import Resident
from kernels import expon

assert len(jax.devices()) == 4
cost = UnbinnedNLL(lambda x, tau: expon.pdf(x, 0.0, tau))
rng = np.random.default_rng(11)
toys = [rng.exponential(2.0, n) for n in rng.integers(3, 40, 37)]
toys[5] = np.array([np.nan])
start = rng.uniform(0.5, 4.0, (37, 1))
with jax.enable_x64(True):
    there = jnp.stack([jnp.asarray(np.pad(toy, (0, 40 - len(toy)))) for toy in toys])
there = Resident(there, np.array([len(toy) for toy in toys]))
one = fit_batch(cost, toys, start, limits={"tau": (0.0, None)}, backend="numba")
# 8 lanes on 4 devices are refilled; 64 hold all toys at once and are regrouped into 16
for batch_size in (8, 64):
    many = fit_batch(cost, toys, start, limits={"tau": (0.0, None)}, backend="jax", batch_size=batch_size)
    np.testing.assert_array_equal(many.status, one.status)
    np.testing.assert_array_equal(many.nfev, one.nfev)
    good = one.valid
    assert good.sum() == 36 and many.status[5] == Status.BAD_DATA
    worst = np.max(np.abs(many.values - one.values)[good] / one.errors[good])
    assert worst < 1e-9, worst
    np.testing.assert_allclose(many.errors[good], one.errors[good], rtol=1e-9)
    # toys that lie on the first device are shared among all
    same = fit_batch(cost, there, start, limits={"tau": (0.0, None)}, backend="jax", batch_size=batch_size)
    np.testing.assert_array_equal(same.values, many.values)
    np.testing.assert_array_equal(same.status, many.status)
# and so are those that are sent to the first as they lie in memory
resident.SENT_AT_ONCE, xla.free_memory = 64, lambda devices: 2**30
same = fit_batch(cost, toys, start, limits={"tau": (0.0, None)}, backend="jax", batch_size=8)
np.testing.assert_array_equal(same.values, many.values)
lanes = cost.kept("xla")
assert all(len(key[-1]) == 4 for key in lanes), lanes.keys()
# a single toy, fewer than devices
single = fit_batch(cost, toys[:1], start[0], limits={"tau": (0.0, None)}, backend="jax", batch_size=8)
assert abs(single.values[0, 0] - toys[0].mean()) < 1e-9 * single.errors[0, 0]
# the program's own arrays are where and what they were
assert jnp.ones(3).dtype == np.float32 and len(jnp.ones(3).devices()) == 1
print("agreed")
"""


def test_four_devices_agree_with_one():
    root = Path(__file__).parents[2]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "agreed"
