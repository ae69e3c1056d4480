"""A program as numba source, and the source as a compiled kernel.

The source is one function: what does not depend on the row, then one loop over the rows that LLVM turns into
SIMD code, then the combination of the sums; outer products of gradients are taken by a second function, for a block of
rows at a time. It is written to a file named by the hash of everything that it depends on,
so that numba's cache on disk finds the machine code of an earlier process and never that of another model.
"""

import functools
import hashlib
import importlib.util
import os
import stat
import sys
import tempfile
import threading
import types
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import llvmlite
import numba
from llvmlite import binding

from kernels import blocks, lowering, vectormath, vectorpower, vectors, vectortrig
from kernels.graph import trace
from kernels.kernel_source import DEFINITION, kernel_source
from kernels.nodes import Graph
from kernels.program import EXPECTED, FIRST, GRADIENT, SECOND, Program, n_outputs
from kernels.statements import assignments

__all__ = [
    "KERNEL_SIGNATURE",
    "MAP_SIGNATURE",
    "cache_directory",
    "compile_kernel",
    "compile_map",
    "compile_source",
    "compile_sum",
    "compiled_by",
    "memory_of",
]

# kernel(theta, rows, shared, aux, begin, end, order, out): rows begin to end of the toy; `kernels.program` has `order`
# and `out`, which goes on with the kernel's own memory: `memory_of(kernel)` numbers, zero at the first call and kept
KERNEL_SIGNATURE = "void(f8[::1], f8[:, ::1], f8[:, ::1], f8[::1], i8, i8, i8, f8[::1])"
# map(theta, rows, begin, end): column 0 of the rows begin to end, in place
MAP_SIGNATURE = "void(f8[::1], f8[:, ::1], i8, i8)"

MOST_WRITTEN_OUT = 8  # parameters that are copied one by one, which is faster to run and slower to compile

_IMPORTING = threading.Lock()


def cache_directory() -> Path:
    """Where compiled kernels are kept; private to the user, `BATCHFIT_CACHE` overrides it.

    They are code, so that a directory which somebody else owns or may write to is not used.
    """
    root = os.environ.get("BATCHFIT_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "batchfit"
    directory = Path(root).expanduser()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK):
            raise PermissionError
        found = directory.stat()
    except OSError:  # a read-only home: compile once per process
        return _directory_of_this_process()
    if found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        warnings.warn(
            f"{directory} is not used, because others may write the code that is kept there: chmod 700 it, or name "
            "another directory with BATCHFIT_CACHE",
            stacklevel=2,
        )
        return _directory_of_this_process()
    return directory


@functools.cache
def _directory_of_this_process() -> Path:
    return Path(tempfile.mkdtemp(prefix="batchfit-"))


_HEADER = f"""import math

import numpy as np
from numba import njit

from kernels.lowering import lowered
from kernels.vectormath import COMPILE_HELPER, COMPILE_ROW, use_wide_vectors
from kernels.vectormath import digamma, erf, erfc, exp, lgamma, log, trigamma
from kernels.vectorpower import cbrt, expm1, log1p, pow
from kernels.vectortrig import acos, acosh, asin, asinh, atan, atan2, atanh, cos, cosh, sin, sinh, tan, tanh

FIRST, SECOND, EXPECTED = {FIRST}, {SECOND}, {EXPECTED}

"""


# what is compiled into kernels
_HELPERS = blocks, lowering, vectormath, vectorpower, vectors, vectortrig


def compiled_by() -> list[str]:
    """What machine code depends on besides its source."""
    return [numba.__version__, llvmlite.__version__, binding.get_host_cpu_name(), sys.version]


def import_source(source: str) -> types.ModuleType:
    """Import generated source, below the imports that all of it shares, as a module.

    Its file is named by its hash, so that numba caches it on disk.
    """
    source = _HEADER + source
    made_by = compiled_by()
    made_by += [Path(str(module.__file__)).read_text(encoding="utf-8") for module in _HELPERS]
    digest = hashlib.sha256("\0".join([source, *made_by]).encode()).hexdigest()[:24]
    name = f"batchfit_kernel_{digest}"
    with _IMPORTING:
        return sys.modules.get(name) or _imported(name, source)


def _imported(name: str, source: str) -> types.ModuleType:
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


def compile_kernel(program: Program, adjacent: bool = False):
    """The compiled kernel of `kernel_source`, of type `KERNEL_SIGNATURE`; from the cache on disk where it is there."""
    return compile_source(kernel_source(program, adjacent), "lowered")


def compile_source(source: str, compiler: str = "njit") -> Callable:
    """The compiled kernel of the source of a function `row_sums`."""
    decorator = f"@{compiler}({KERNEL_SIGNATURE!r}, cache=True, **COMPILE_ROW)\n"
    return import_source(source.lstrip().replace(DEFINITION, decorator + DEFINITION)).row_sums


def memory_of(kernel: Callable) -> int:
    """How many numbers a kernel keeps behind its outputs."""
    return vars(sys.modules[kernel.py_func.__module__]).get("MEMORY", 0)  # type: ignore[attr-defined]


def compile_map(function: Callable, n_params: int, n_columns: int = 1):
    """An elementwise map of columns, compiled, of type `MAP_SIGNATURE`.

    Parameters
    ----------
    function : callable
        `function(*columns, *theta) -> ()`, all scalars; the first column is replaced by the result.
    n_params : int
        Length of theta.
    n_columns : int

    Raises
    ------
    UntranslatableError
        If an operation has no scalar form.
    """
    graph = Graph()
    arguments = [("row", k) for k in range(n_columns)] + [("theta", k) for k in range(n_params)]
    [result] = trace(lambda *scalars: [function(*scalars)], arguments, graph)
    live = graph.live([result])
    lines = ["def map_rows(theta, rows, begin, end):", "    use_wide_vectors()"]
    lines += [f"    {line}" for line in assignments(graph, [n for n in live if not graph.on_row(n)])]
    # an index that may be negative counts from the end, and LLVM would not vectorise the store
    lines += ["    for i in range(np.uint64(begin), np.uint64(end)):"]
    lines += [f"        {line}" for line in assignments(graph, [n for n in live if graph.on_row(n)])]
    lines += [f"        rows[0, i] = v{result}"]
    # nothing is summed, so nothing is gained where the order of operations is given up
    decorator = f"@lowered({MAP_SIGNATURE!r}, cache=True, nogil=True, **COMPILE_HELPER)\n"
    return import_source(decorator + "\n".join(lines) + "\n").map_rows


def compile_sum(
    kernels: Sequence[Any],
    indices: Sequence[Sequence[int]],
    places: Sequence[Sequence[int]],
    filled: Sequence[Sequence[int]],
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
    filled : sequence of sequences of int
        For each, which of its outputs may differ from zero: value, sum of moduli, gradient, then these of the Hessian.
    factors : sequence of float
    shapes : sequence of (n_shared, n_aux)
        How many shared columns and measured values each takes. They stand one after the other; before the measured
        values stand the numbers of rows of each kernel, and its rows follow those of the kernels before.
    n_params : int
    """
    n = len(kernels)
    lines = [f"from {k.py_func.__module__} import row_sums as part{p}" for p, k in enumerate(kernels)]
    n_kept = n_outputs(n_params)
    # a first part of all parameters writes its outputs where those of the sum are wanted
    whole = list(places[0]) == list(range(n_kept)) and factors[0] == 1.0
    for p, (index, place, some) in enumerate(zip(indices, places, filled, strict=True)):
        if p or not whole:
            lines += [f"ADD{p} = np.array({[(int(place[k]), int(k)) for k in some]}, dtype=np.uint64)"]
            lines += [f"INDEX{p} = np.array({list(map(int, index))}, dtype=np.uint64)"]
    lines += [f"@lowered({KERNEL_SIGNATURE!r}, cache=True, **COMPILE_ROW)"]
    lines += [DEFINITION]
    lines += [] if whole else [f"    for k in range({n_kept}):", "        out[k] = 0.0"]
    lines += ["    first = begin"]
    n_shared, n_aux, memory = 0, n, n_kept
    for p, (index, place, factor, (more_shared, more_aux)) in enumerate(
        zip(indices, places, factors, shapes, strict=True)
    ):
        theta, out, behind = "theta", "out", memory + memory_of(kernels[p])
        lines += [f"    last = first + int(aux[{p}])"]
        if p or not whole:
            theta, out, outputs = f"theta{p}", f"out{p}", memory + len(index)
            behind += len(index) + len(place)
            lines += [f"    {theta} = out[{memory}:{outputs}]", f"    {out} = out[{outputs}:{behind}]"]
            if len(index) > MOST_WRITTEN_OUT:
                lines += [f"    for k in range({len(index)}):", f"        {theta}[k] = theta[INDEX{p}[k]]"]
            else:
                lines += [f"    {theta}[{k}] = theta[{i}]" for k, i in enumerate(index)]
        given = f"shared[{n_shared}:{n_shared + more_shared}], aux[{n_aux}:{n_aux + more_aux}], first, last"
        lines += [f"    part{p}({theta}, rows, {given}, order, {out})", "    first = last"]
        if p or not whole:
            add = f"        out[ADD{p}[k, 0]] += {float(factor)!r} * {out}[ADD{p}[k, 1]]"
            lines += [f"    for k in range({GRADIENT + len(index)} if order == FIRST else {len(filled[p])}):", add]
        n_shared, n_aux, memory = n_shared + more_shared, n_aux + more_aux, behind
    lines += [f"MEMORY = {memory - n_kept}"]
    return import_source("\n".join(lines) + "\n").row_sums
