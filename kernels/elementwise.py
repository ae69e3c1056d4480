"""A JAX function of scalars as a NumPy function of arrays: nothing is compiled, so it is ready at once.

For what is evaluated a few thousand times and then forgotten, such as the checks of a model before a fit.
"""

from collections.abc import Callable

import numpy as np
from scipy import special

from kernels.graph import Graph, trace

__all__ = ["NUMPY", "elementwise"]

# operation of the graph -> NumPy function; see `kernels.operations`
NUMPY: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "reciprocal": lambda a: np.divide(1.0, a),
    "abs": np.abs,
    "sign": np.sign,
    "exp": np.exp,
    "exp2": np.exp2,
    "log": np.log,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sqrt": np.sqrt,
    "rsqrt": lambda a: np.divide(1.0, np.sqrt(a)),
    "cbrt": np.cbrt,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "erf": special.erf,
    "erfc": special.erfc,
    "lgamma": special.gammaln,
    "digamma": special.digamma,
    "trigamma": lambda a: special.polygamma(1, a),
    "floor": np.floor,
    "ceil": np.ceil,
    "pow": np.power,
    "rem": np.fmod,
    "max": np.maximum,
    "min": np.minimum,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "is_finite": np.isfinite,
    "select": np.where,
    "same": lambda a: a,
}


def elementwise(function: Callable, n_arguments: int) -> Callable:
    """The function of `n_arguments` scalars as `f(*arrays) -> array`, float64, of the shape to which they broadcast.

    What depends on few of the arguments is evaluated in their own shapes. Floating-point warnings are kept quiet: NaN
    and infinity come out as IEEE has them.

    Raises
    ------
    kernels.graph.UntranslatableError
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
                op, args, _ = graph.nodes[step]
                if op == "row":
                    values[step] = arrays[args[0]]
                elif op == "const":
                    values[step] = args[0]
                else:
                    values[step] = NUMPY[op](*(values[a] for a in args))
                for a in done.get(step, ()):
                    del values[a]  # the arrays of a long function would not fit into the cache
        result = np.asarray(values[output], dtype=np.float64)
        return np.broadcast_to(result, np.broadcast_shapes(*(np.shape(a) for a in arrays)))

    return evaluate
