"""A program as numba source, and the source as a compiled kernel.

The source is one function: what does not depend on the row, then one loop over the rows that LLVM turns into
SIMD code, then the combination of the sums. It is written to a file named by the hash of everything that it depends on,
so that numba's cache on disk finds the machine code of an earlier process and never that of another model.
"""

import hashlib
import importlib.util
import os
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding

from kernels import vectormath
from kernels.graph import Graph, trace
from kernels.program import Program

__all__ = [
    "KERNEL_SIGNATURE",
    "MAP_SIGNATURE",
    "cache_directory",
    "compile_kernel",
    "compile_map",
    "compile_source",
    "compile_sum",
    "kernel_source",
]

# kernel(theta, rows, shared, aux, begin, end, out): rows begin to end of the toy; see kernels.program for `out`
KERNEL_SIGNATURE = "void(f8[::1], f8[:, ::1], f8[:, ::1], f8[::1], i8, i8, f8[::1])"
# map(theta, rows, begin, end): column 0 of the rows begin to end, in place
MAP_SIGNATURE = "void(f8[::1], f8[:, ::1], i8, i8)"

_EXPRESSIONS = {
    "add": "{0} + {1}",
    "sub": "{0} - {1}",
    "mul": "{0} * {1}",
    "neg": "-{0}",
    "reciprocal": "1.0 / {0}",
    "abs": "math.fabs({0})",
    "sign": "({0} if {0} == 0.0 or {0} != {0} else math.copysign(1.0, {0}))",
    "exp": "exp({0})",
    "exp2": "exp({0} * 0.6931471805599453)",
    "log": "log({0})",
    "log1p": "math.log1p({0})",
    "expm1": "math.expm1({0})",
    "sqrt": "math.sqrt({0})",
    "rsqrt": "1.0 / math.sqrt({0})",
    "cbrt": "math.copysign(math.pow(math.fabs({0}), 1.0 / 3.0), {0})",
    "sin": "math.sin({0})",
    "cos": "math.cos({0})",
    "tan": "math.tan({0})",
    "asin": "math.asin({0})",
    "acos": "math.acos({0})",
    "atan": "math.atan({0})",
    "atan2": "math.atan2({0}, {1})",
    "sinh": "math.sinh({0})",
    "cosh": "math.cosh({0})",
    "tanh": "math.tanh({0})",
    "asinh": "math.asinh({0})",
    "acosh": "math.acosh({0})",
    "atanh": "math.atanh({0})",
    "erf": "erf({0})",
    "erfc": "erfc({0})",
    "lgamma": "math.lgamma({0})",
    "digamma": "digamma({0})",
    "trigamma": "trigamma({0})",
    "floor": "np.floor({0})",
    "ceil": "np.ceil({0})",
    "pow": "math.pow({0}, {1})",
    "rem": "np.fmod({0}, {1})",
    # as in JAX, a NaN on either side comes through
    "max": "({0} if {0} > {1} or {0} != {0} else {1})",
    "min": "({0} if {0} < {1} or {0} != {0} else {1})",
    "lt": "{0} < {1}",
    "le": "{0} <= {1}",
    "gt": "{0} > {1}",
    "ge": "{0} >= {1}",
    "eq": "{0} == {1}",
    "ne": "{0} != {1}",
    "and": "{0} & {1}",
    "or": "{0} | {1}",
    "not": "not {0}",
    "is_finite": "math.isfinite({0})",
    "select": "({1} if {0} else {2})",
}
_ARGUMENTS = {"theta": "theta[{}]", "aux": "aux[{}]", "row": "rows[{}, i]", "shared": "shared[{}, i - first]"}


def _constant(value: bool | int | float) -> str:
    if isinstance(value, bool | int):
        return repr(value)
    if value != value:
        return "np.nan"
    if value in (float("inf"), float("-inf")):
        return "np.inf" if value > 0 else "-np.inf"
    return repr(value)  # the shortest text that gives the same double


def _assignments(graph: Graph, numbers: list[int], on_row: bool) -> list[str]:
    lines = []
    for number in numbers:
        node = graph.nodes[number]
        if node.depends_on_row != on_row:
            continue
        if node.op == "const":
            expression = _constant(node.args[0])
        elif node.op in _ARGUMENTS:
            expression = _ARGUMENTS[node.op].format(node.args[0])
        else:
            expression = _EXPRESSIONS[node.op].format(*(f"v{a}" for a in node.args))
        lines.append(f"v{number} = {expression}")
    return lines


def kernel_source(program: Program) -> str:
    """The numba source of a program: `row_sums(theta, rows, shared, aux, begin, end, out)`."""
    graph, cores = program.graph, program.cores
    coefficients = [c for terms in program.combinations for c, _ in terms if c is not None]
    live = graph.live([*cores, *coefficients, *(r for r in program.rest if r is not None)])
    lines = ["def row_sums(theta, rows, shared, aux, begin, end, out):", "    use_wide_vectors()"]
    lines += [f"    {line}" for line in _assignments(graph, live, on_row=False)]
    lines += [f"    s{m} = 0.0" for m in range(len(cores))]
    # unsigned, or numba would look for negative indices at every row
    lines += ["    first = np.uint64(begin)", "    for i in range(first, np.uint64(end)):"]
    lines += [f"        {line}" for line in _assignments(graph, live, on_row=True)]
    lines += [f"        s{m} += v{core}" for m, core in enumerate(cores)]
    for k, (terms, rest) in enumerate(zip(program.combinations, program.rest, strict=True)):
        parts = [f"s{m}" if c is None else f"v{c} * s{m}" for c, m in terms]
        parts += [] if rest is None else [f"v{rest}"]
        lines.append(f"    out[{k}] = {' + '.join(parts) or '0.0'}")
    return "\n".join(lines) + "\n"


def cache_directory() -> Path:
    """Where compiled kernels are kept; private to the user, `BATCHFIT_CACHE` overrides it."""
    root = os.environ.get("BATCHFIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "batchfit"
    directory = Path(root).expanduser()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError
    except OSError:  # a read-only home: compile once per process
        directory = Path(tempfile.mkdtemp(prefix="batchfit-"))
    return directory


_HEADER = """import math

import numpy as np
from numba import njit

from kernels.vectormath import COMPILE_HELPER, COMPILE_ROW, digamma, erf, erfc, exp, log, trigamma, use_wide_vectors

"""


def import_source(source: str) -> types.ModuleType:
    """Import generated source as a module whose file is named by its hash, so that numba caches it on disk."""
    made_by = [numba.__version__, llvmlite.__version__, binding.get_host_cpu_name(), sys.version]
    made_by.append(Path(vectormath.__file__).read_text(encoding="utf-8"))
    digest = hashlib.sha256("\0".join([source, *made_by]).encode()).hexdigest()[:24]
    name = f"batchfit_kernel_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    path = cache_directory() / f"{name}.py"
    if not path.exists():
        aside = path.with_suffix(f".{os.getpid()}.tmp")
        aside.write_text(source, encoding="utf-8")
        os.replace(aside, path)
    elif path.read_text(encoding="utf-8") != source:
        raise RuntimeError(f"{path} is not what this program wrote there: delete it and run again")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # it has a loader: the file ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:  # a half-made module must not be taken for a kernel at the next call
        del sys.modules[name]
        raise
    return module


def compile_kernel(program: Program):
    """The compiled kernel of a program, of type `KERNEL_SIGNATURE`; from the cache on disk where it is there."""
    return compile_source(kernel_source(program))


def compile_source(source: str) -> Callable:
    """The compiled kernel of the source of a function `row_sums`."""
    decorator = f"@njit({KERNEL_SIGNATURE!r}, cache=True, **COMPILE_ROW)\n"
    return import_source(_HEADER + decorator + source.lstrip()).row_sums


def compile_map(function: Callable, n_params: int):
    """An elementwise map of one column, compiled, of type `MAP_SIGNATURE`.

    Parameters
    ----------
    function : callable
        `function(u, *theta) -> ()`, all scalars; `u` is replaced by the result.
    n_params : int
        Length of theta.

    Raises
    ------
    UntranslatableError
        If an operation has no scalar form.
    """
    graph = Graph()
    arguments = [("row", 0)] + [("theta", k) for k in range(n_params)]
    [result] = trace(lambda *scalars: [function(*scalars)], arguments, graph)
    live = graph.live([result])
    lines = ["def map_rows(theta, rows, begin, end):", "    use_wide_vectors()"]
    lines += [f"    {line}" for line in _assignments(graph, live, on_row=False)]
    # an index that may be negative counts from the end, and LLVM would not vectorise the store
    lines += ["    for i in range(np.uint64(begin), np.uint64(end)):"]
    lines += [f"        {line}" for line in _assignments(graph, live, on_row=True)]
    lines += [f"        rows[0, i] = v{result}"]
    # nothing is summed, so nothing is gained where the order of operations is given up
    decorator = f"@njit({MAP_SIGNATURE!r}, cache=True, nogil=True, **COMPILE_HELPER)\n"
    return import_source(_HEADER + decorator + "\n".join(lines) + "\n").map_rows


def compile_sum(
    kernels: Sequence[Any],
    indices: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    factors: Sequence[float],
    shapes: Sequence[tuple[int, int]],
    n_params: int,
) -> Callable:
    """The kernel of a weighted sum of costs, of type `KERNEL_SIGNATURE`.

    Parameters
    ----------
    kernels : sequence of compiled kernels
    indices : sequence of sequences of int
        For each, the positions of its parameters among those of the sum.
    places : sequence of sequences of int
        For each, the positions of its outputs among those of the sum.
    factors : sequence of float
    shapes : sequence of (n_shared, n_aux)
        How many shared columns and measured values each takes. They stand one after the other; before the measured
        values stand the numbers of rows of each kernel, and its rows follow those of the kernels before.
    n_params : int
    """
    n = len(kernels)
    lines = [f"from {k.py_func.__module__} import row_sums as part{p}" for p, k in enumerate(kernels)]
    lines += [f"PLACES{p} = np.array({[int(i) for i in place]})" for p, place in enumerate(places)]
    lines += [f"@njit({KERNEL_SIGNATURE!r}, cache=True, **COMPILE_ROW)"]
    lines += ["def row_sums(theta, rows, shared, aux, begin, end, out):"]
    lines += [f"    for k in range({2 + n_params + n_params * (n_params + 1) // 2}):", "        out[k] = 0.0"]
    lines += ["    first = begin"]
    n_shared, n_aux = 0, n
    for p, (index, place, factor, (more_shared, more_aux)) in enumerate(
        zip(indices, places, factors, shapes, strict=True)
    ):
        lines += [f"    last = first + int(aux[{p}])", f"    theta{p} = np.empty({len(index)})"]
        lines += [f"    theta{p}[{k}] = theta[{i}]" for k, i in enumerate(index)]
        lines += [
            f"    out{p} = np.empty({len(place)})",
            f"    part{p}(theta{p}, rows, shared[{n_shared}:{n_shared + more_shared}], "
            f"aux[{n_aux}:{n_aux + more_aux}], first, last, out{p})",
            f"    for k in range({len(place)}):",
            f"        out[PLACES{p}[k]] += {float(factor)!r} * out{p}[k]",
            "    first = last",
        ]
        n_shared, n_aux = n_shared + more_shared, n_aux + more_aux
    return import_source(_HEADER + "\n".join(lines) + "\n").row_sums
