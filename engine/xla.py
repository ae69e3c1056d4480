"""The JAX driver: all toys step together on CPU, GPU or TPU, in the lanes of `engine.lanes`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from engine.approach import ApproachState, approach_init, approach_step, inverse
from engine.arguments import one_of
from engine.cost import Cost
from engine.data import Rows, lane_data, shared_columns
from engine.device_memory import TEMPORARIES, free_memory, pad, plan, temporaries
from engine.drivers import Fits, Settings, approaches
from engine.lanes import Lanes, bucket
from engine.newton import NewtonState, covariance_of, newton_init, newton_step, unpack
from engine.optimizers import FirstOrderState, Transformation, first_order_init, first_order_step
from engine.resident import sent
from engine.rules import MOST_APPROACH, RUNNING
from engine.status import Status
from engine.trust_region import Box
from kernels.derivatives import packed_index
from kernels.program import EXPECTED, FIRST, n_outputs

__all__ = ["XlaDriver", "has_pallas"]

# So few rows (of all lanes together) take less time than the compilation for another number of lanes.
FEW_ROWS = {"cpu": 2**17, "accelerator": 2**22}


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
        optimizer: Transformation | None = None,
        scaled: bool = False,
        optimizer_steps: int = 0,
        batch_size: int | None = None,
        kernel: str = "xla",
    ) -> None:
        one_of("kernel", kernel, ("xla", "pallas"))
        if kernel == "pallas" and not has_pallas(devices[0]):
            raise ValueError("kernel='pallas' is for NVIDIA GPUs: pass kernel='xla'")
        self.cost, self.rows, self.one_pass = cost, rows, kernel == "pallas"
        self.batch_size = batch_size
        self.held: tuple[np.ndarray, Any] | None = None  # toys, and their data on the first device
        self.n_params = len(cost.names)
        self.device = devices[0].platform
        self.mesh = Mesh(np.array(devices), ("toys",))
        self.optimizer, self.scaled, self.optimizer_steps = optimizer, scaled, optimizer_steps
        n_rows = [int(np.max(np.diff(leaf.offsets), initial=1)) for leaf in rows.leaves]
        n_columns = sum(max(leaf.n_columns, 1) for leaf in rows.leaves)
        memory = free_memory(devices)
        held, of_toy = temporaries(cost, rows, self.one_pass) if self.device != "cpu" else (TEMPORARIES, 0)
        self.tile, padded, self.lanes = plan(
            self.device,
            max(n_rows),
            n_columns,
            len(devices),
            batch_size,
            memory,
            n_params=self.n_params,
            temporaries=held,
            at_once=of_toy + sum(n * leaf.at_once for leaf, n in zip(cost.leaves, n_rows, strict=True)),
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
        optimizer = self.optimizer
        init = lambda start: first_order_init(start, optimizer)  # noqa: E731

        def step(state: FirstOrderState, at: Callable, rules: tuple) -> FirstOrderState:
            box, max_steps = rules
            return first_order_step(state, at, box, optimizer=optimizer, max_steps=max_steps)

        return Lanes(self._sums(1), init, step, lambda s: s.running, self.mesh, self.fewest)

    def _shared(self) -> tuple:
        return shared_columns(self.rows, self.padded)

    def _lane_data(self, toys: np.ndarray) -> tuple:
        leaves = self.sent or self.rows.leaves
        return tuple(lane_data(leaf, toys, n) for leaf, n in zip(leaves, self.padded, strict=True))


def has_pallas(device: jax.Device) -> bool:
    """Whether `kernels.pallas` compiles for a device."""
    return device.platform != "cpu" and "NVIDIA" in device.device_kind


def _diagonal(i: int, n_params: int) -> int:
    """Position of the Hessian's diagonal element i among the outputs."""
    return 2 + n_params + packed_index(i, i)
