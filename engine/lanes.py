"""Toys that step together on accelerators: whoever is finished makes room for the next.

A batch has a fixed number of lanes. Every call of the compiled program does a few steps in all lanes; then the host
takes out the finished toys and refills their lanes from the queue. When the queue is empty, the unfinished are
regrouped into a quarter of the lanes as soon as they fit: few shapes are compiled, and one slow toy does not hold a
thousand. Lanes are sharded over all devices, and nothing is exchanged between devices inside the loop.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

__all__ = ["Lanes", "bucket"]

STEPS_PER_CALL = 4
REGROUP = 4  # a batch is regrouped when this factor fewer lanes hold all unfinished toys
FIRST = 16  # parts of all lanes: more than a quarter of them start in as many parts as their toys need
FEWEST_REFILLED = 16  # lanes are refilled in batches of a power of two, each of which is compiled for, from this on


class Lanes:
    """The compiled programs that bring toys through `step`, in lanes that are refilled and regrouped.

    Parameters
    ----------
    sums : callable
        `sums(theta, data, shared) -> outputs` of one toy.
    first_state : callable
        `first_state(start) -> state` of one toy.
    step : callable
        `step(state, at, rules) -> state` of one toy, with `at(theta) -> outputs`.
    running : callable
        `running(state) -> bool`, for one toy and for all of them.
    mesh : jax.sharding.Mesh
    fewest : int
        So many lanes or fewer are never regrouped.
    """

    def __init__(
        self, sums: Callable, first_state: Callable, step: Callable, running: Callable, mesh: Mesh, fewest: int
    ) -> None:
        self.mesh = mesh
        self.fewest = fewest
        self.by_toy = NamedSharding(mesh, PartitionSpec("toys"))

        sums = jax.jit(sums)  # which is traced once, for any number of lanes

        def steps(state: Any, data: Any, shared: Any, rules: Any) -> tuple:
            def turn(_: int, state: Any) -> Any:
                # a toy that has ended has no rows: a kernel that takes toy after toy is done with it at once
                going = running(state)
                left = tuple((columns, aux, jnp.where(going, n, 0)) for columns, aux, n in data)
                return step(state, lambda theta: sums(theta, left, shared), rules)

            state = strong(jax.lax.fori_loop(0, STEPS_PER_CALL, turn, state))
            return state, running(state)

        init = lambda start: strong(first_state(start))  # noqa: E731

        lane, common = PartitionSpec("toys"), PartitionSpec()
        self.advance = jax.jit(
            jax.shard_map(
                jax.vmap(steps, in_axes=(0, 0, None, None)),
                mesh=mesh,
                in_specs=(lane, lane, common, common),
                out_specs=lane,
                check_vma=False,
            ),
            donate_argnums=0,
        )
        self.start = jax.jit(jax.vmap(init), out_shardings=self.by_toy)

        def place(state: Any, data: Any, slots: Array, start: Array, new_data: Any) -> tuple:
            put = lambda old, new: old.at[slots].set(new, mode="drop")  # noqa: E731
            return jax.tree.map(put, state, jax.vmap(init)(start)), jax.tree.map(put, data, new_data)

        def take(state: Any, data: Any, lanes: Array) -> tuple:
            return jax.tree.map(lambda a: a[lanes], (state, data))

        self.place = jax.jit(place, donate_argnums=(0, 1), out_shardings=self.by_toy)
        self.take = jax.jit(take, out_shardings=self.by_toy)

    def run(
        self, start: np.ndarray, n_lanes: int, data_of: Callable, shared: tuple, rules: Any, store: Callable
    ) -> None:
        """Run all toys to their end.

        `data_of(positions)` gives the data of toys, by their position in `start`; `store(positions, lanes, state)` is
        called with the toys that have ended and the lanes in which they are.
        """
        n_toys = len(start)
        full, n_lanes = n_lanes, self.fitting(n_lanes, n_toys)
        toy_of = np.full(n_lanes, -1)
        following = min(n_lanes, n_toys)
        toy_of[:following] = np.arange(following)
        filled = np.resize(np.arange(following), n_lanes)  # lanes without a toy repeat one and are not read
        state = self.start(start[filled])
        data = jax.device_put(data_of(filled), self.by_toy)

        while np.any(toy_of >= 0):
            state, running = self.advance(state, data, shared, rules)
            done = np.flatnonzero(~np.asarray(running) & (toy_of >= 0))
            if not len(done):
                continue
            store(toy_of[done], done, state)
            toy_of[done] = -1
            refill = np.arange(following, min(following + len(done), n_toys))
            following += len(refill)
            if len(refill):
                size = min(max(bucket(len(refill), 1), FEWEST_REFILLED), n_lanes)
                slots = np.full(size, n_lanes)  # beyond the last lane: dropped
                slots[: len(refill)] = done[: len(refill)]
                new = np.resize(refill, size)
                state, data = self.place(state, data, slots, start[new], data_of(new))
                toy_of[done[: len(refill)]] = refill
                continue
            alive = np.flatnonzero(toy_of >= 0)
            smaller = self.shrink(full, len(alive))
            if len(alive) and smaller < n_lanes:
                lanes = np.resize(alive, smaller)
                state, data = self.take(state, data, lanes)
                toy_of = np.where(np.arange(smaller) < len(alive), toy_of[lanes], -1)
                n_lanes = smaller

    def fitting(self, n_lanes: int, n_toys: int) -> int:
        """How many lanes to begin with: as `shrink`, but more than a quarter of all in steps of a sixteenth."""
        step = n_lanes // FIRST
        fine = step >= self.fewest and n_lanes % (FIRST * self.mesh.size) == 0 and n_lanes // REGROUP < n_toys
        return min(-(-n_toys // step) * step, n_lanes) if fine else self.shrink(n_lanes, n_toys)

    def shrink(self, n_lanes: int, n_toys: int) -> int:
        """The smallest of n_lanes, n_lanes / 4, n_lanes / 16, ... that holds all toys: few shapes, few compilations."""
        while n_lanes > self.fewest and n_lanes % (REGROUP * self.mesh.size) == 0 and n_lanes // REGROUP >= n_toys:
            n_lanes //= REGROUP
        return n_lanes


def strong(state: Any) -> Any:
    """The same without JAX's weak types: a state whose types change would be compiled for again."""
    numbers = lambda a: jnp.issubdtype(a.dtype, np.number) or a.dtype == bool  # noqa: E731, not keys of jax.random
    return jax.tree.map(lambda a: jax.lax.convert_element_type(a, a.dtype) if numbers(a) else a, state)


def bucket(n: int, multiple: int) -> int:
    """The smallest power of two times `multiple` that is not below n: few shapes, few compilations."""
    size = multiple
    while size < n:
        size *= 2
    return size
