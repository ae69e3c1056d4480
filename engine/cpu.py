"""The numba driver: every toy is fitted by its own thread with the translated kernel."""

from collections.abc import Callable

import numba
import numpy as np

from engine import newton_numba
from engine.ahead import AHEAD
from engine.cost import Cost
from engine.data import Rows
from engine.drivers import Fits, Settings, approaches
from engine.known import with_known
from engine.rules import MOST_APPROACH
from kernels.program import n_outputs
from kernels.threads import ONE_AT_A_TIME
from kernels.translate import memory_of

__all__ = ["NumbaDriver"]

BLOCK_ROWS = 2**20  # of all toys that are handed to numba at once
TURNS, MOST_TOGETHER = 4, 64


class NumbaDriver:
    """Fits toys of one cost on the cores of this machine.

    Raises
    ------
    kernels.nodes.UntranslatableError
        If the model has no numba form.
    """

    name = "numba"
    device = "cpu"
    optimizer = None

    def __init__(self, cost: Cost, rows: Rows, batch_size: int | None = None) -> None:
        self.cost, self.rows = cost, with_known(cost, rows)
        rows = self.rows
        self.batch_size = batch_size
        self.n_params = len(cost.names)
        self.kernel = compiled(cost, rows)
        self.memory = memory_of(self.kernel)
        # numba's types are of writable arrays
        arrays = (rows.columns, cost.kernel_shared(rows), rows.aux, rows.offsets)
        self._arrays = tuple(
            a if a.flags.writeable and a.flags.c_contiguous else np.array(a, order="C") for a in arrays
        )

    def fit(self, toys: np.ndarray, start: np.ndarray, settings: Settings, progress: Callable | None = None) -> Fits:
        """Fit the toys with these numbers, each from its row of `start`."""
        n_toys, n_params = start.shape
        fits = Fits.empty(n_toys, n_params)
        approached = approaches(self.cost, self.rows, settings)
        # in blocks, so that a progress bar moves and Ctrl-C is heard
        block = self.batch_size or max(64, n_toys // 20, self._per_block)
        for first in range(0, n_toys, block):
            part = slice(first, min(first + block, n_toys))
            raw, approach = np.empty((part.stop - part.start, 6)), np.zeros(part.stop - part.start, dtype=np.int64)
            of_part = (
                together(len(approach)),
                self.kernel,
                self.memory,
                *self._arrays,
                toys[part].astype(np.int64),
            )
            box = (settings.lower, settings.upper, settings.free, settings.errordef, settings.edm_goal)
            begin, values = np.ascontiguousarray(start[part]), fits.values[part]
            with ONE_AT_A_TIME:
                AHEAD.end()
                if approached:
                    newton_numba.approach_toys()(*of_part, begin, *box, values, approach)
                    begin = values
                max_steps = settings.max_steps - (MOST_APPROACH if approached else 0)
                results = (values, fits.covariance[part], raw, fits.at_limit[part])
                newton_numba.fit_toys()(*of_part, begin, *box, max_steps, *results)
            fits.fval[part], fits.edm[part] = raw[:, 0], raw[:, 1]
            fits.status[part], fits.nfev[part] = raw[:, 2], raw[:, 3] + approach
            fits.posdef[part], fits.inflation[part] = raw[:, 4], raw[:, 5]
            if progress is not None:
                progress(part.stop - part.start)
        return fits

    def evaluate(self, toys: np.ndarray, theta: np.ndarray) -> np.ndarray:
        """Outputs of the cost (see `kernels.program`) of these toys, each at its row of `theta`."""
        out = np.empty((len(toys), n_outputs(self.n_params)))
        for first in range(0, len(toys), max(64, self._per_block)):
            part = slice(first, first + max(64, self._per_block))
            with ONE_AT_A_TIME:
                newton_numba.evaluate_toys()(
                    together(len(toys[part])),
                    self.kernel,
                    self.memory,
                    *self._arrays,
                    toys[part].astype(np.int64),
                    np.array(theta[part], dtype=np.float64, order="C"),
                    out[part],
                )
        return out

    @property
    def _per_block(self) -> int:
        """Toys whose rows take some ms together."""
        return BLOCK_ROWS // max(1, int(self.rows.offsets[-1]) // max(1, len(self.rows)))


def together(n_toys: int) -> int:
    """How many toys a thread takes at a time, so that each thread has several turns."""
    return min(max(n_toys // (TURNS * numba.get_num_threads()), 1), MOST_TOGETHER)


def compiled(cost: Cost, rows: Rows) -> Callable:
    """The kernel of a cost, compiled once for each form of its data."""
    kernels = cost.kept("kernels")
    if rows.form not in kernels:
        kernels[rows.form] = cost.kernel(rows)
    return kernels[rows.form]
