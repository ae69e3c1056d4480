"""The JAX driver: all toys step together on CPU, GPU or TPU; whoever is finished makes room for the next.

A batch has a fixed number of lanes. Every call of the compiled program does a few steps in all lanes; then the host
takes out the finished toys and refills their lanes from the queue. When the queue is empty, the unfinished are
regrouped into a quarter of the lanes as soon as they fit: few shapes are compiled, and one slow toy does not hold a
thousand. Lanes are sharded over all devices, and nothing is exchanged between devices inside the loop.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from engine.cost import Cost
from engine.data import Rows, lane_data, shared_columns
from engine.drivers import Fits, Settings
from engine.newton import Box, NewtonState, covariance_of, newton_init, newton_step, unpack
from engine.newton_numba import RUNNING
from engine.status import Status
from kernels.derivatives import packed_index

__all__ = ["XlaDriver"]

STEPS_PER_CALL = 4
REGROUP = 4  # a batch is regrouped when this factor fewer lanes hold all unfinished toys
# ... unless so few rows (of all lanes together) take less time than the compilation for another number of lanes
FEW_ROWS = {"cpu": 2**17, "accelerator": 2**22}
TILE = 512  # rows per pass on a CPU, where temporaries should stay in the cache
CPU_VALUES = 16384  # lanes times rows of a pass on a CPU
DEVICE_BYTES = 4 * 2**30  # data of a batch, and temporaries of a pass, on an accelerator
TEMPORARIES = 30  # arrays of (lanes, rows of a pass) that a pass holds
FIRST_ORDER_GOAL = 1e-2  # scaled gradient at which a first-order optimiser hands over to Newton


class FirstOrderState(NamedTuple):
    """A fit by an optax transformation that sees value and gradient only."""

    theta: Array
    optimizer: Any
    scale: Array
    unit: Array
    running: Array
    nfev: Array


class _Lanes:
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
        `running(states) -> (n_lanes,) bool`.
    mesh : jax.sharding.Mesh
    fewest : int
        So many lanes or fewer are never regrouped.
    """

    def __init__(
        self, sums: Callable, first_state: Callable, step: Callable, running: Callable, mesh: Mesh, fewest: int
    ) -> None:
        self.running = running
        self.mesh = mesh
        self.fewest = fewest
        self.by_toy = NamedSharding(mesh, PartitionSpec("toys"))

        def steps(state: Any, data: Any, shared: Any, rules: Any) -> Any:
            at = lambda theta: sums(theta, data, shared)  # noqa: E731
            return _strong(jax.lax.fori_loop(0, STEPS_PER_CALL, lambda _, s: step(s, at, rules), state))

        init = lambda start: _strong(first_state(start))  # noqa: E731

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
        n_lanes = self.shrink(n_lanes, n_toys)
        toy_of = np.full(n_lanes, -1)
        following = min(n_lanes, n_toys)
        toy_of[:following] = np.arange(following)
        filled = np.resize(np.arange(following), n_lanes)  # lanes without a toy repeat one and are not read
        state = self.start(start[filled])
        data = jax.device_put(data_of(filled), self.by_toy)

        while np.any(toy_of >= 0):
            state = self.advance(state, data, shared, rules)
            done = np.flatnonzero(~np.asarray(self.running(state)) & (toy_of >= 0))
            if not len(done):
                continue
            store(toy_of[done], done, state)
            toy_of[done] = -1
            refill = np.arange(following, min(following + len(done), n_toys))
            following += len(refill)
            if len(refill):
                size = bucket(len(refill), 1)
                slots = np.full(size, n_lanes)  # beyond the last lane: dropped
                slots[: len(refill)] = done[: len(refill)]
                new = np.resize(refill, size)
                state, data = self.place(state, data, slots, start[new], data_of(new))
                toy_of[done[: len(refill)]] = refill
                continue
            alive = np.flatnonzero(toy_of >= 0)
            smaller = self.shrink(n_lanes, len(alive))
            if len(alive) and smaller < n_lanes:
                lanes = np.resize(alive, smaller)
                state, data = self.take(state, data, lanes)
                toy_of = np.where(np.arange(smaller) < len(alive), toy_of[lanes], -1)
                n_lanes = smaller

    def shrink(self, n_lanes: int, n_toys: int) -> int:
        """The smallest of n_lanes, n_lanes / 4, n_lanes / 16, ... that holds all toys: few shapes, few compilations."""
        while n_lanes > self.fewest and n_lanes % (REGROUP * self.mesh.size) == 0 and n_lanes // REGROUP >= n_toys:
            n_lanes //= REGROUP
        return n_lanes


class XlaDriver:
    """Fits toys of one cost with JAX.

    Parameters
    ----------
    cost, rows : Cost, Rows
    devices : sequence of jax.Device
        Devices of one platform; lanes are spread over all of them.
    optimizer : optax.GradientTransformation, optional
        Runs before Newton, to which it hands over.
    scaled : bool
        Whether the optimizer sees parameters in units of |H_ii|^(-1/2) at the start, or as they are.
    optimizer_steps : int
        Evaluations after which it hands over at the latest.
    batch_size : int, optional
        Number of lanes; by default what the device holds.
    """

    name = "jax"

    def __init__(
        self,
        cost: Cost,
        rows: Rows,
        devices: Sequence[jax.Device],
        *,
        optimizer: optax.GradientTransformation | None = None,
        scaled: bool = False,
        optimizer_steps: int = 0,
        batch_size: int | None = None,
    ) -> None:
        self.cost, self.rows = cost, rows
        self.n_params = len(cost.names)
        self.device = devices[0].platform
        self.mesh = Mesh(np.array(devices), ("toys",))
        self.optimizer, self.scaled, self.optimizer_steps = optimizer, scaled, optimizer_steps
        n_rows = [int(np.max(np.diff(leaf.offsets), initial=1)) for leaf in rows.leaves]
        n_columns = sum(max(leaf.columns.shape[0], 1) for leaf in rows.leaves)
        memory = free_memory(devices)
        self.tile, padded, self.lanes = plan(self.device, max(n_rows), n_columns, len(devices), batch_size, memory)
        self.padded = [padded if n == max(n_rows) else pad(n, self.tile) for n in n_rows]
        self.fewest = FEW_ROWS["cpu" if self.device == "cpu" else "accelerator"] // sum(self.padded)

    def fit(self, toys: np.ndarray, start: np.ndarray, settings: Settings, progress: Callable | None = None) -> Fits:
        """Fit the toys with these numbers, each from its row of `start`."""
        fits = Fits.empty(len(toys), self.n_params)
        if not len(toys):
            return fits
        with jax.enable_x64(True):
            box = Box(settings.lower, settings.upper, settings.free)
            theta, nfev = start, np.zeros(len(toys), dtype=np.int64)
            if self.optimizer is not None:
                theta, nfev = self._first_order(toys, start, box)

            def store(rows: np.ndarray, lanes: np.ndarray, state: NewtonState) -> None:
                finished = self._finish(state, box, settings.errordef)
                state, (covariance, posdef, at_limit) = jax.tree.map(lambda a: np.asarray(a)[lanes], finished)
                fits.values[rows], fits.covariance[rows] = state.theta, covariance
                fits.fval[rows], fits.edm[rows] = state.best.value, state.edm
                undefined = (state.status == Status.CONVERGED) & ~posdef
                fits.status[rows] = np.where(undefined, Status.HESSIAN_NOT_POSDEF, state.status)
                fits.nfev[rows] = state.nfev + nfev[rows]
                fits.posdef[rows], fits.at_limit[rows] = posdef, at_limit
                if progress is not None:
                    progress(len(rows))

            rules = (box, settings.errordef, settings.edm_goal, settings.max_steps)
            self._run(self._newton_lanes(), toys, theta, rules, store)
        return fits

    def evaluate(self, toys: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Outputs of the cost (see `kernels.program`) of these toys, each at its row of `theta`."""
        with jax.enable_x64(True):
            evaluate = self._compiled("evaluate", lambda: jax.jit(jax.vmap(self._sums(2), in_axes=(0, 0, None))))
            parts, n_lanes = [], min(self.lanes, bucket(len(toys), 1))
            for first in range(0, len(toys), n_lanes):
                part = np.resize(np.arange(first, min(first + n_lanes, len(toys))), n_lanes)
                parts.append(np.asarray(evaluate(theta[part], self._lane_data(toys[part]), self._shared())))
            return np.concatenate(parts)[: len(toys)]

    def _run(self, lanes: _Lanes, toys: np.ndarray, start: np.ndarray, rules: Any, store: Callable) -> None:
        data_of = lambda positions: self._lane_data(toys[positions])  # noqa: E731
        lanes.run(start, self.lanes, data_of, self._shared(), rules, store)

    def _compiled(self, what: Any, make: Callable) -> Any:
        """What was compiled before for this cost, this form of data and these devices, else made now."""
        key = (what, self.rows.form, self.tile, tuple(self.mesh.devices.flat))
        kept = self.cost.__dict__.setdefault("_xla", {})
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def _sums(self, order: int) -> Callable:
        return self.cost.outputs(self.rows, self.tile, order)

    def _newton_lanes(self) -> _Lanes:
        def step(state: NewtonState, at: Callable, rules: tuple) -> NewtonState:
            box, errordef, edm_goal, max_steps = rules
            here = unpack(at(state.trial), self.n_params)
            return newton_step(state, here, box, errordef=errordef, edm_goal=edm_goal, max_steps=max_steps)

        return self._compiled(
            "newton",
            lambda: _Lanes(self._sums(2), newton_init, step, lambda s: s.status == RUNNING, self.mesh, self.fewest),
        )

    def _finish(self, state: NewtonState, box: Box, errordef: float) -> tuple:
        finish = self._compiled("finish", lambda: jax.jit(jax.vmap(covariance_of, in_axes=(0, None, None))))
        return state, finish(state, box, errordef)

    def _first_order(self, toys: np.ndarray, start: np.ndarray, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """Where the optimiser ends, and its numbers of evaluations."""
        theta, nfev = np.array(start), np.zeros(len(toys), dtype=np.int64)
        n_params = self.n_params
        diagonal = np.abs(self.evaluate(toys, start)[:, [_diagonal(i, n_params) for i in range(n_params)]])
        usable = np.isfinite(diagonal) & (diagonal > 0)
        scales = np.where(usable, 1.0 / np.sqrt(np.where(usable, diagonal, 1.0)), 1.0)
        unit = scales if self.scaled else np.ones_like(scales)

        def store(rows: np.ndarray, lanes: np.ndarray, state: FirstOrderState) -> None:
            theta[rows], nfev[rows] = np.asarray(state.theta)[lanes], np.asarray(state.nfev)[lanes]

        lanes = self._compiled(("first order", self.optimizer), self._first_order_lanes)
        self._run(lanes, toys, np.concatenate([start, scales, unit], axis=1), (box, self.optimizer_steps), store)
        return theta, nfev

    def _first_order_lanes(self) -> _Lanes:
        optimizer = optax.with_extra_args_support(self.optimizer)

        def init(start: Array) -> FirstOrderState:
            theta, scale, unit = jnp.split(start, 3)
            return FirstOrderState(
                theta, optimizer.init(theta / unit), scale, unit, jnp.asarray(True), jnp.zeros((), dtype=jnp.int32)
            )

        def step(state: FirstOrderState, at: Callable, rules: tuple) -> FirstOrderState:
            box, max_steps = rules
            # a lane that has ended sees a flat cost, so that its line search does not hold the others
            outputs = jnp.where(state.running, at(state.theta), 0.0)
            slope = jnp.where(box.free, outputs[2 : 2 + self.n_params], 0.0)
            outward = ((state.theta <= box.lower) & (slope > 0)) | ((state.theta >= box.upper) & (slope < 0))
            reached = jnp.linalg.norm(jnp.where(outward, 0.0, slope * state.scale)) < FIRST_ORDER_GOAL
            updates, inner = optimizer.update(
                slope * state.unit,
                state.optimizer,
                state.theta / state.unit,
                value=outputs[0],
                grad=slope * state.unit,
                value_fn=lambda u: jnp.where(state.running, at(jnp.clip(u * state.unit, box.lower, box.upper))[0], 0.0),
            )
            moved = jnp.clip(state.theta + jnp.where(box.free, updates * state.unit, 0.0), box.lower, box.upper)
            going = state.running & ~reached & jnp.all(jnp.isfinite(moved)) & (state.nfev < max_steps)
            new = FirstOrderState(moved, inner, state.scale, state.unit, going, state.nfev + 1)
            kept = jax.tree.map(lambda new, old: jnp.where(going, new, old), new, state)
            return kept._replace(running=going, nfev=jnp.where(state.running, state.nfev + 1, state.nfev))

        return _Lanes(self._sums(1), init, step, lambda s: s.running, self.mesh, self.fewest)

    def _shared(self) -> tuple:
        return shared_columns(self.rows, self.padded)

    def _lane_data(self, toys: np.ndarray) -> tuple:
        return tuple(lane_data(leaf, toys, n) for leaf, n in zip(self.rows.leaves, self.padded, strict=True))


def _strong(state: Any) -> Any:
    """The same without JAX's weak types: a state whose types change would be compiled for again."""
    return jax.tree.map(lambda a: jax.lax.convert_element_type(a, np.dtype(a.dtype)), state)


def bucket(n: int, multiple: int) -> int:
    """The smallest power of two times `multiple` that is not below n: few shapes, few compilations."""
    size = multiple
    while size < n:
        size *= 2
    return size


def free_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that are free on each of some accelerators; None where they do not tell, as CPUs do not."""
    told = [device.memory_stats() or {} for device in devices if device.platform != "cpu"]
    if not told or not all("bytes_limit" in stats for stats in told):
        return None
    return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in told)


def plan(
    platform: str, n_rows: int, n_columns: int, n_devices: int, batch_size: int | None, memory: int | None = None
) -> tuple[int, int, int]:
    """(rows per pass, rows with padding, lanes) for toys of up to `n_rows` rows.

    Rows are padded to one of eight sizes between powers of two, so that chunks of toys whose largest toys differ a
    little share a compiled program. Data and temporaries take up to a quarter each of an accelerator's free memory.

    Raises
    ------
    ValueError
        If a toy, or as many as `batch_size` says, take more than half of that memory; with the number that would not.
    """
    padded = pad(n_rows, TILE)
    bytes_each = 8 * max(n_columns, 1) * padded
    most = np.iinfo(np.int64).max if memory is None else memory // 2 // bytes_each * n_devices
    if most < (wanted := n_devices if batch_size is None else batch_size):
        raise ValueError(
            f"{wanted} toys of {n_rows} rows need {wanted * bytes_each / 1e9:.3g} GB, and half of the memory of the "
            f"{platform} is {n_devices * memory / 2e9:.3g} GB: "  # type: ignore[operator]
            + (f"pass a batch_size of at most {most}" if most else "fit them on the CPU")
        )
    if platform == "cpu":
        tile = min(TILE, padded)
        lanes = max(CPU_VALUES // tile, 1)
    else:
        budget = DEVICE_BYTES if memory is None else min(DEVICE_BYTES, memory // 4)
        tile = padded
        lanes = min(max(budget // bytes_each, 1), 16384)
        while tile % 2 == 0 and tile > TILE and 8 * TEMPORARIES * tile * lanes > budget:
            tile //= 2
    power_of_two = bucket(lanes + 1, 1) // 2
    return tile, padded, bucket(batch_size, n_devices) if batch_size is not None else power_of_two * n_devices


def pad(n_rows: int, tile: int) -> int:
    """`n_rows`, rounded up: a power of two up to the tile, then multiples of it, coarser for more rows."""
    if n_rows <= tile:
        return bucket(n_rows, 16)
    granule = max(bucket(n_rows, 1) // 16, tile)
    return -(-n_rows // granule) * granule


def _diagonal(i: int, n_params: int) -> int:
    """Position of the Hessian's diagonal element i among the outputs."""
    return 2 + n_params + packed_index(i, i)
