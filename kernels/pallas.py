"""A program as one kernel of an accelerator: a toy's rows pass once, and its sums stay in registers.

XLA writes what a sum of products shares to memory and reads it again: some ten numbers for each row. Here a program of
the device runs through the rows of one toy, block by block, so that nothing but the rows is read and nothing but the
sums is written. A toy's result depends on nothing but the toy: not on the batch, nor on the padding.
"""

import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kernels.program import Program
from kernels.xla import Sums, evaluate

__all__ = ["has_kernel", "row_sums_pallas"]

# Operations on rows that Triton does not lower in float64.
_MISSING = {"erf", "erfc", "lgamma", "digamma", "trigamma"}


def has_kernel(program: Program) -> bool:
    """Whether `row_sums_pallas` takes this program."""
    return not _obstacle(program)


def _obstacle(program: Program) -> str:
    """Why there is no kernel of a program; empty if there is one."""
    if program.outer.vectors:
        return (
            f"a fit of {program.n_params} parameters, whose Hessian is summed as products of vectors, has no one-pass "
            "kernel"
        )
    if any(program.graph.nodes[number].op == "total" for number in program.live):
        return "a long sum within the model, which is summed over a table, has no one-pass kernel"
    missing = {program.graph.nodes[number].op for number in program.live if program.graph.on_row(number)} & _MISSING
    return f"the one-pass kernel has no form of {', '.join(sorted(missing))} of a row" if missing else ""


def row_sums_pallas(
    program: Program, order: int = 2, block: int = 128, num_warps: int = 4, interpret: bool = False
) -> Callable:
    """As `kernels.xla.row_sums`: a function of one toy, to be vmapped over toys.

    Parameters
    ----------
    program : Program
    order : {0, 1, 2}
        Highest derivative; the outputs of higher ones are left out.
    block : int
        Rows per turn, a power of two.
    num_warps : int
        Groups of 32 threads that share the rows of a block.
    interpret : bool
        Whether to run it on any device, slowly, for a test.

    Raises
    ------
    ValueError
        If the program holds an operation on rows that the device has no form of, or has too many parameters.
    """
    if obstacle := _obstacle(program):
        raise ValueError(f"{obstacle}: pass kernel='xla'")
    sums_of = Sums(program, order)
    graph, live, cores = program.graph, sums_of.live, sums_of.cores
    on_row = [number for number in live if graph.on_row(number)]
    leaves = [(number, graph.nodes[number].op, graph.nodes[number].args[0]) for number in on_row]
    leaves = [leaf for leaf in leaves if leaf[1] in ("row", "shared")]
    kinds = sorted({kind for _, kind, _ in leaves})
    constants = {number: graph.value(number) for number in live if graph.value(number) is not None}
    read = {a for number in on_row if graph.nodes[number].op not in ("row", "shared") for a in graph.nodes[number].args}
    hoisted = sorted(number for number in {*read, *cores} if not graph.on_row(number) and number not in constants)

    def kernel(n_ref, hoisted_ref, *refs):  # type: ignore[no-untyped-def]
        *tables, out_ref = refs
        table_of = dict(zip(kinds, tables, strict=True))
        n = n_ref[0]
        once = {**constants, **{number: hoisted_ref[k] for k, number in enumerate(hoisted)}}

        def add_block(turn: Array, totals: tuple) -> tuple:
            used = turn * block + jnp.arange(block, dtype=jnp.int32) < n
            rows = pl.ds(turn * block, block)
            values = dict(once)
            for number, kind, position in leaves:
                place = table_of[kind].at[pl.ds(position, 1), rows]
                values[number] = plt.load(place, mask=used[None], other=0.0)[0]
            evaluate(graph, live, values, on_row=True)
            return tuple(total + jnp.where(used, values[core], 0.0) for total, core in zip(totals, cores, strict=True))

        nothing = tuple(jnp.zeros(block, jnp.float64) for _ in cores)
        totals = lax.fori_loop(jnp.int32(0), (n + (block - 1)) // block, add_block, nothing)
        for k, total in enumerate(totals):
            out_ref[k] = jnp.sum(total)

    def sums(theta: Array, columns: Array, shared: Array, aux: Array, n: Array) -> Array:
        values = sums_of.hoisted(theta, aux)
        given = {"row": columns, "shared": shared}
        tables = [given[kind] for kind in kinds]
        if interpret:  # where a block beyond the end would be moved inside
            tables = [jnp.pad(table, ((0, 0), (0, -table.shape[1] % block))) for table in tables]
        scalars = jnp.stack([jnp.asarray(values[number], jnp.float64) for number in hoisted] or [jnp.zeros(())])
        totals = _call(kernel, len(cores), num_warps, interpret)(jnp.asarray(n, jnp.int32)[None], scalars, *tables)
        return sums_of.outputs(values, totals, ([], []), n)

    return sums


def _call(kernel: Callable, n_sums: int, num_warps: int, interpret: bool) -> Callable:
    out_shape = jax.ShapeDtypeStruct((n_sums,), jnp.float64)
    if interpret:
        return pl.pallas_call(kernel, out_shape=out_shape, interpret=True)
    parameters = plt.CompilerParams(num_warps=num_warps)

    def call(*arrays: Array) -> Array:
        with warnings.catch_warnings():
            # the way by Triton is to be replaced; the other one has no float64
            warnings.simplefilter("ignore", DeprecationWarning)
            return pl.pallas_call(kernel, out_shape=out_shape, compiler_params=parameters)(*arrays)

    return call
