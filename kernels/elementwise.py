"""A JAX function of scalars as a NumPy function of arrays: nothing is compiled, so it is ready at once.

For what is evaluated a few thousand times and then forgotten, such as the checks of a model before a fit.
"""

from collections.abc import Callable

import numpy as np

from kernels.graph import trace
from kernels.nodes import Graph
from kernels.operations import OPERATIONS

__all__ = ["elementwise"]


def elementwise(function: Callable, n_arguments: int) -> Callable:
    """The function of `n_arguments` scalars as `f(*arrays) -> array`, float64, of the shape to which they broadcast.

    What depends on few of the arguments is evaluated in their own shapes. Floating-point warnings are kept quiet: NaN
    and infinity come out as IEEE has them.

    Raises
    ------
    kernels.nodes.UntranslatableError
        If an operation has no scalar form.
    """
    graph = Graph()
    (output,) = trace(lambda *args: [function(*args)], [("row", k) for k in range(n_arguments)], graph)
    steps = graph.live([output])
    last_use = {
        a: step for step in steps if graph.nodes[step].op not in ("row", "const") for a in graph.nodes[step].args
    }
    done: dict[int, list[int]] = {}
    for a, step in last_use.items():
        done.setdefault(step, []).append(a)

    def evaluate(*arrays: np.ndarray) -> np.ndarray:
        if len(arrays) != n_arguments:
            raise TypeError(f"the function takes {n_arguments} arrays, got {len(arrays)}")
        values: dict[int, np.ndarray] = {}
        with np.errstate(all="ignore"):
            for step in steps:
                op, args = graph.nodes[step][:2]
                if op == "row":
                    values[step] = arrays[args[0]]
                elif op == "const":
                    values[step] = args[0]
                else:
                    values[step] = OPERATIONS[op].by_numpy(*(values[a] for a in args))
                for a in done.get(step, ()):
                    del values[a]  # the arrays of a long function would not fit into the cache
        result = np.asarray(values[output], dtype=np.float64)
        return np.broadcast_to(result, np.broadcast_shapes(*(np.shape(a) for a in arrays)))

    return evaluate
