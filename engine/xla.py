"""The JAX driver: all toys step together on CPU, GPU or TPU, in the lanes of `engine.lanes`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh

from engine.approach import ApproachState, approach_init, approach_step, inverse
from engine.arguments import one_of
from engine.cost import Cost, summed_in_one_pass
from engine.data import Rows, lane_data, shared_columns
from engine.drivers import Fits, Settings, approaches
from engine.lanes import Lanes, bucket
from engine.newton import Box, NewtonState, covariance_of, newton_init, newton_step, unpack
from engine.newton_numba import MOST_APPROACH, RUNNING
from engine.resident import sent
from engine.status import Status
from kernels.derivatives import packed_index
from kernels.nodes import UntranslatableError
from kernels.program import EXPECTED, FIRST, n_outputs
from kernels.xla import n_intermediates

__all__ = ["XlaDriver"]

# So few rows (of all lanes together) take less time than the compilation for another number of lanes.
FEW_ROWS = {"cpu": 2**17, "accelerator": 2**22}
TILE = 512  # rows per pass on a CPU, where temporaries should stay in the cache
CPU_VALUES = 16384  # lanes times rows of a pass on a CPU
CPU_MATRICES = 2**19  # lanes times elements of a Hessian on a CPU: more are no faster, and keep a single toy waiting
DEVICE_BYTES = 4 * 2**30  # data of a batch, and temporaries of a pass, on an accelerator
TEMPORARIES = 16  # arrays of (lanes, rows of a pass) that a pass holds at least; the spectrum of the README holds 9
# Of the numbers of a row that are needed twice, XLA for a GPU keeps one in three to five.
KEPT = 3
HESSIANS = 12  # arrays of (lanes, n_params, n_params) that a step holds
JACOBIANS = 3  # arrays of (lanes, rows, n_params) that an evaluation holds where it takes all rows at once
FIRST_ORDER_GOAL = 1e-2  # scaled gradient at which a first-order optimiser hands over to Newton


class FirstOrderState(NamedTuple):
    """A fit by an optax transformation that sees value and gradient only."""

    theta: Array
    optimizer: Any
    scale: Array
    unit: Array
    running: Array
    nfev: Array


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
    kernel : {"xla", "pallas"}
        What sums over the rows: XLA, or, on an NVIDIA GPU, `kernels.pallas` for the costs that it has a kernel of.

    Raises
    ------
    ValueError
        If the toys do not fit into the device's memory, or the kernel is not there for this device.
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
        kernel: str = "xla",
    ) -> None:
        one_of("kernel", kernel, ("xla", "pallas"))
        if kernel == "pallas" and not has_pallas(devices[0]):
            raise ValueError("kernel='pallas' is for NVIDIA GPUs: pass kernel='xla'")
        self.cost, self.rows, self.one_pass = cost, rows, kernel == "pallas"
        self.held: tuple[np.ndarray, Any] | None = None  # toys, and their data on the first device
        self.n_params = len(cost.names)
        self.device = devices[0].platform
        self.mesh = Mesh(np.array(devices), ("toys",))
        self.optimizer, self.scaled, self.optimizer_steps = optimizer, scaled, optimizer_steps
        n_rows = [int(np.max(np.diff(leaf.offsets), initial=1)) for leaf in rows.leaves]
        n_columns = sum(max(leaf.n_columns, 1) for leaf in rows.leaves)
        memory = free_memory(devices)
        self.tile, padded, self.lanes = plan(
            self.device,
            max(n_rows),
            n_columns,
            len(devices),
            batch_size,
            memory,
            n_params=self.n_params,
            temporaries=temporaries(cost, rows, self.one_pass) if self.device != "cpu" else TEMPORARIES,
            at_once=sum(n * leaf.at_once for leaf, n in zip(cost.leaves, n_rows, strict=True)),
        )
        self.padded = [padded if n == max(n_rows) else pad(n, self.tile) for n in n_rows]
        self.room = 0 if memory is None else memory // 4  # for toys that are sent to the device as they lie in memory
        self.sent: tuple[Rows, ...] = ()
        self.fewest = FEW_ROWS["cpu" if self.device == "cpu" else "accelerator"] // sum(self.padded)

    def fit(self, toys: np.ndarray, start: np.ndarray, settings: Settings, progress: Callable | None = None) -> Fits:
        """Fit the toys with these numbers, each from its row of `start`."""
        fits = Fits.empty(len(toys), self.n_params)
        if not len(toys):
            return fits
        with jax.enable_x64(True), self._sending(toys):
            box = Box(settings.lower, settings.upper, settings.free)
            theta, nfev = start, np.zeros(len(toys), dtype=np.int64)
            if self.optimizer is not None:
                theta, nfev = self._first_order(toys, start, box)

            def store(rows: np.ndarray, lanes: np.ndarray, state: NewtonState) -> None:
                fits.put(rows, self._finished(state, lanes, box, settings.errordef))
                fits.nfev[rows] += nfev[rows]
                if progress is not None:
                    progress(len(rows))

            max_steps = settings.max_steps
            if self.optimizer is None and approaches(self.cost, self.rows, settings):
                theta, nfev = self._approach(toys, start, settings)
                max_steps -= MOST_APPROACH
            rules = (box, settings.errordef, settings.edm_goal, max_steps)
            self._run(self._newton_lanes(), toys, theta, rules, store)
        return fits

    @contextmanager
    def _sending(self, toys: np.ndarray) -> Iterator[None]:
        """With the rows of all toys on the device, where these are most of them and they lie on the host."""
        if self.room and 2 * len(toys) > len(self.rows):
            room = self.room // len(self.rows.leaves)
            self.sent = tuple(sent(leaf, room) for leaf in self.rows.leaves)
        try:
            yield
        finally:
            self.sent = ()

    def evaluate(self, toys: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Outputs of the cost (see `kernels.program`) of these toys, each at its row of `theta`."""
        with jax.enable_x64(True):
            outputs = np.empty((len(toys), n_outputs(self.n_params)))
            unique, which = np.unique(toys, return_inverse=True)
            n_lanes, n_held = (min(self.lanes, bucket(n, 1)) for n in (len(toys), len(unique)))
            for first in range(0, len(unique), n_held):
                data, lanes = self._resident(unique[first : first + n_held], n_held)
                batch = np.flatnonzero((which >= first) & (which < first + n_held))
                for start in range(0, len(batch), n_lanes):
                    part = np.resize(batch[start : start + n_lanes], n_lanes)
                    found = self._evaluated(theta[part], lanes[which[part] - first], data, self._shared())
                    outputs[part] = np.asarray(found)
            return outputs

    def _evaluated(self, *arrays: Any) -> Array:
        def make() -> Callable:
            sums = jax.vmap(self._sums(2), in_axes=(0, 0, None))
            return jax.jit(
                lambda theta, lanes, data, shared: sums(theta, jax.tree.map(lambda a: a[lanes], data), shared)
            )

        return self._compiled("evaluate", make)(*arrays)

    def _resident(self, toys: np.ndarray, n_lanes: int) -> tuple[Any, np.ndarray]:
        """The data of a batch of toys, in ascending order, on the device, and the lane of each toy.

        The batch that was asked for last stays there: what looks for crossings comes again with the same toys, and
        with fewer and fewer of them.
        """
        if self.held is None or not np.isin(toys, self.held[0]).all():
            self.held = None  # its memory is needed
            data = self._lane_data(np.resize(toys, n_lanes))
            self.held = toys, jax.device_put(data, self.mesh.devices.flat[0])
        held, data = self.held
        return data, np.searchsorted(held, toys)

    def _run(self, lanes: Lanes, toys: np.ndarray, start: np.ndarray, rules: Any, store: Callable) -> None:
        data_of = lambda positions: self._lane_data(toys[positions])  # noqa: E731
        lanes.run(start, self.lanes, data_of, self._shared(), rules, store)

    def _compiled(self, what: Any, make: Callable) -> Any:
        """What was compiled before for this cost, this form of data and these devices, else made now.

        It lives as long as the cost, and must not hold the driver, whose data take the memory of the device.
        """
        key = (what, self.rows.form, self.tile, self.one_pass, tuple(self.mesh.devices.flat))
        kept = self.cost.kept("xla")
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def _sums(self, order: int) -> Callable:
        return self.cost.outputs(self.rows, self.tile, order, self.one_pass)

    def _newton_lanes(self) -> Lanes:
        n_params, unrolled = self.n_params, self.device != "cpu"

        def step(state: NewtonState, at: Callable, rules: tuple) -> NewtonState:
            box, errordef, edm_goal, max_steps = rules
            here = unpack(at(state.trial), n_params)
            goals = {"errordef": errordef, "edm_goal": edm_goal, "max_steps": max_steps}
            return newton_step(state, here, box, **goals, unrolled=unrolled)

        return self._compiled(
            ("newton", self.fewest),
            lambda: Lanes(self._sums(2), newton_init, step, lambda s: s.status == RUNNING, self.mesh, self.fewest),
        )

    def _approach(self, toys: np.ndarray, start: np.ndarray, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
        """Where the quasi-Newton steps of `engine.approach` end, and their numbers of evaluations."""
        theta, nfev = np.array(start), np.zeros(len(toys), dtype=np.int64)
        box, n_params = Box(settings.lower, settings.upper, settings.free), self.n_params

        def step(state: ApproachState, at: Callable, rules: tuple) -> ApproachState:
            box, errordef, edm_goal = rules
            return approach_step(state, at(state.trial), box, errordef=errordef, edm_goal=edm_goal)

        def make() -> Lanes:
            init = lambda start: approach_init(start, n_params)  # noqa: E731
            return Lanes(self._sums(FIRST), init, step, lambda s: s.going, self.mesh, self.fewest)

        lanes = self._compiled(("approach", self.fewest), make)
        for first in range(0, len(toys), self.lanes):
            part = np.arange(first, min(first + self.lanes, len(toys)))
            points, which = np.unique(start[part], axis=0, return_inverse=True)
            inverses, usable = self._inverses(toys[:1], points, settings.free)
            which = which.reshape(-1)
            part, which = part[usable[which]], which[usable[which]]

            def store(rows: np.ndarray, at: np.ndarray, state: ApproachState, part: np.ndarray = part) -> None:
                theta[part[rows]], nfev[part[rows]] = np.asarray(state.theta)[at], np.asarray(state.nfev)[at]

            if len(part):
                begin = np.concatenate([start[part], inverses[which].reshape(len(part), -1)], axis=1)
                self._run(lanes, toys[part], begin, (box, settings.errordef, settings.edm_goal), store)
        return theta, nfev

    def _inverses(self, toy: np.ndarray, points: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The inverses of the expected Hessians at some points, the same for all toys, and which there are."""

        def make() -> Callable:
            sums, n_params = self._sums(EXPECTED), self.n_params
            of_point = lambda theta, data, shared, free: inverse(  # noqa: E731
                unpack(sums(theta, data, shared), n_params).hessian, free
            )
            return jax.jit(jax.vmap(of_point, in_axes=(0, None, None, None)))

        data = jax.tree.map(lambda a: a[0], self._lane_data(toy))
        padded = np.resize(points, (bucket(len(points), 1), self.n_params))
        found = self._compiled("inverses", make)(padded, data, self._shared(), free)
        inverses, usable = (np.asarray(a)[: len(points)] for a in found)
        return inverses, usable

    def _numbers(self) -> Callable:
        """What gives the fits of all lanes, as one array."""
        unrolled = self.device != "cpu"

        def numbers(state: NewtonState, box: Box, errordef: float) -> Array:
            covariance, posdef, inflation, at_limit = covariance_of(state, box, errordef, unrolled)
            ends = [state.best.value, state.edm, state.status, state.nfev, posdef, inflation]
            return jnp.concatenate([jnp.stack(ends, dtype=float), state.theta, at_limit, covariance.ravel()])

        return self._compiled("numbers", lambda: jax.jit(jax.vmap(numbers, in_axes=(0, None, None))))

    def _finished(self, state: NewtonState, lanes: np.ndarray, box: Box, errordef: float) -> Fits:
        found, n = np.asarray(self._numbers()(state, box, errordef))[lanes], self.n_params
        (fval, edm, status, nfev, posdef, inflation), fit = found[:, :6].T, found[:, 6:]
        undefined = (status == Status.CONVERGED) & (posdef == 0)
        return Fits(
            values=fit[:, :n],
            covariance=fit[:, 2 * n :].reshape(-1, n, n),
            fval=fval,
            edm=edm,
            status=np.where(undefined, Status.HESSIAN_NOT_POSDEF, status),
            nfev=nfev,
            posdef=posdef,
            inflation=inflation,
            at_limit=fit[:, n : 2 * n],
        )

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

        lanes = self._compiled(("first order", self.optimizer, self.fewest), self._first_order_lanes)
        self._run(lanes, toys, np.concatenate([start, scales, unit], axis=1), (box, self.optimizer_steps), store)
        return theta, nfev

    def _first_order_lanes(self) -> Lanes:
        optimizer, n_params = optax.with_extra_args_support(self.optimizer), self.n_params

        def init(start: Array) -> FirstOrderState:
            theta, scale, unit = jnp.split(start, 3)
            return FirstOrderState(
                theta, optimizer.init(theta / unit), scale, unit, jnp.asarray(True), jnp.zeros((), dtype=jnp.int32)
            )

        def step(state: FirstOrderState, at: Callable, rules: tuple) -> FirstOrderState:
            box, max_steps = rules
            # a lane that has ended sees a flat cost, so that its line search does not hold the others
            outputs = jnp.where(state.running, at(state.theta), 0.0)
            slope = jnp.where(box.free, outputs[2 : 2 + n_params], 0.0)
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

        return Lanes(self._sums(1), init, step, lambda s: s.running, self.mesh, self.fewest)

    def _shared(self) -> tuple:
        return shared_columns(self.rows, self.padded)

    def _lane_data(self, toys: np.ndarray) -> tuple:
        leaves = self.sent or self.rows.leaves
        return tuple(lane_data(leaf, toys, n) for leaf, n in zip(leaves, self.padded, strict=True))


def free_memory(devices: Sequence[jax.Device]) -> int | None:
    """Bytes that are free on each of some accelerators; None where they do not tell, as CPUs do not."""
    told = [device.memory_stats() or {} for device in devices if device.platform != "cpu"]
    if not told or not all("bytes_limit" in stats for stats in told):
        return None
    return min(stats["bytes_limit"] - stats.get("bytes_in_use", 0) for stats in told)


def has_pallas(device: jax.Device) -> bool:
    """Whether `kernels.pallas` compiles for a device."""
    return device.platform != "cpu" and "NVIDIA" in device.device_kind


def temporaries(cost: Cost, rows: Rows, one_pass: bool = False) -> int:
    """How many arrays of (lanes, rows of a pass) a pass may hold on an accelerator."""
    most = 1
    for leaf, leaf_rows in zip(cost.leaves, rows.leaves, strict=True):
        try:
            program = leaf.program(leaf_rows)
        except UntranslatableError:  # every derivative of every row
            most = max(most, TEMPORARIES, n_outputs(len(leaf.names)))
            continue
        if not (one_pass and summed_in_one_pass(program)):
            most = max(most, TEMPORARIES, n_intermediates(program) // KEPT)
    return most


def plan(
    platform: str,
    n_rows: int,
    n_columns: int,
    n_devices: int,
    batch_size: int | None,
    memory: int | None = None,
    *,
    n_params: int = 1,
    temporaries: int = TEMPORARIES,
    at_once: int = 0,
) -> tuple[int, int, int]:
    """(rows per pass, rows with padding, lanes) for toys of up to `n_rows` rows.

    `at_once` is the size of the Jacobians of a toy that are not taken in passes.

    Rows are padded to one of eight sizes between powers of two, so that chunks of toys whose largest toys differ a
    little share a compiled program. Data, Hessians and temporaries take up to a quarter each of an accelerator's free
    memory.

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
        lanes = min(CPU_VALUES // tile, CPU_MATRICES // n_params**2, DEVICE_BYTES // max(8 * JACOBIANS * at_once, 1))
        lanes = max(lanes, 1)
    else:
        budget = DEVICE_BYTES if memory is None else min(DEVICE_BYTES, memory // 4)
        tile = padded
        most_of_a_toy = max(bytes_each, 8 * HESSIANS * n_params**2, 8 * JACOBIANS * at_once)
        lanes = min(max(budget // most_of_a_toy, 1), 16384)
        while tile % 2 == 0 and tile > TILE and 8 * temporaries * tile * lanes > budget:
            tile //= 2
        # where a pass is at its shortest, fewer toys
        lanes = max(min(lanes, budget // (8 * temporaries * tile)), 1)
    power_of_two = bucket(lanes + 1, 1) // 2
    return tile, padded, bucket(batch_size, n_devices) if batch_size is not None else power_of_two * n_devices


def pad(n_rows: int, tile: int) -> int:
    """`n_rows`, rounded up: a power of two or the tile, then multiples of it, coarser for more rows."""
    if n_rows <= tile:
        return min(bucket(n_rows, 16), tile)
    granule = -(-bucket(n_rows, 1) // (16 * tile)) * tile
    return -(-n_rows // granule) * granule


def _diagonal(i: int, n_params: int) -> int:
    """Position of the Hessian's diagonal element i among the outputs."""
    return 2 + n_params + packed_index(i, i)
