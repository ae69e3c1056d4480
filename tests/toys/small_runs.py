"""Small runs: their options, a model of a lifetime, what a file holds, and how a run is stopped."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels import expon
from toys import storage, writer
from toys.run import Options

N_TOYS = 22
CHUNK = 8  # 22 toys are 3 chunks
OPTIONS = Options(n_toys=N_TOYS, seed=3, backend="numba", device="cpu", validate=0)


def decay(t, n, tau):
    return n, n * expon.pdf(t, 0.0, tau)


def traced_sampler(key, theta):
    """The peak, badly: a uniform number of events without a background."""
    n_key, x_key = jax.random.split(key)
    n = jax.random.randint(n_key, (), 20, 40)
    return theta[2] + theta[3] * jax.random.truncated_normal(x_key, -4.0, 4.0, (40,), jnp.float64), n


def contents(path):
    """All arrays of a file by name."""
    file = storage.load_toys(path)["values"]
    arrays = {"toys/values": file.values, "toys/offsets": file.offsets}
    return arrays | {f"results/{k}": np.asarray(v) for k, v in vars(storage.load(path)).items()}


def assert_same_contents(left, right):
    left, right = contents(left), contents(right)
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)
        assert array.dtype == right[name].dtype


def stop_after(monkeypatch, n_parts, error):
    """Let a run, which writes one part at a time, fail once it has written so many."""
    monkeypatch.setattr(writer, "AT_ONCE", 1)
    write_part = storage.write_part
    written = []

    def writing(*arguments):
        if len(written) == n_parts:
            raise error
        written.append(write_part(*arguments))

    monkeypatch.setattr(storage, "write_part", writing)
