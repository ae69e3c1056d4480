"""A program as a JAX function of one toy: all sums over rows in one pass, tile by tile.

The function evaluates the same graph as the numba kernel, so the two drivers differ by rounding only. A tile of rows
is held at a time, so that no array of (toys, rows, derivatives) is ever formed.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.scipy import special

from kernels.derivatives import n_outputs, value_gradient_hessian
from kernels.graph import Graph
from kernels.program import Program

__all__ = ["row_sums", "row_sums_untranslated"]

_FUNCTIONS: dict[str, Callable] = {
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "neg": jnp.negative,
    "reciprocal": lambda a: 1.0 / a,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "log": jnp.log,
    "log1p": jnp.log1p,
    "expm1": jnp.expm1,
    "sqrt": jnp.sqrt,
    "rsqrt": lax.rsqrt,
    "cbrt": jnp.cbrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "tan": jnp.tan,
    "asin": jnp.arcsin,
    "acos": jnp.arccos,
    "atan": jnp.arctan,
    "atan2": jnp.arctan2,
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "tanh": jnp.tanh,
    "asinh": jnp.arcsinh,
    "acosh": jnp.arccosh,
    "atanh": jnp.arctanh,
    "erf": special.erf,
    "erfc": special.erfc,
    "lgamma": special.gammaln,
    "digamma": special.digamma,
    "trigamma": lambda a: special.polygamma(1, a),
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "pow": jnp.power,
    "rem": lax.rem,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "lt": jnp.less,
    "le": jnp.less_equal,
    "gt": jnp.greater,
    "ge": jnp.greater_equal,
    "eq": jnp.equal,
    "ne": jnp.not_equal,
    "and": jnp.logical_and,
    "or": jnp.logical_or,
    "not": jnp.logical_not,
    "is_finite": jnp.isfinite,
    "select": jnp.where,
}


def _evaluate(graph: Graph, numbers: list[int], values: dict[int, Array], on_row: bool) -> None:
    for number in numbers:
        node = graph.nodes[number]
        if node.depends_on_row != on_row or number in values:
            continue
        if node.op == "const":
            values[number] = node.args[0]
        else:
            values[number] = _FUNCTIONS[node.op](*(values[a] for a in node.args))


def _n_kept(n_params: int, order: int) -> int:
    return {0: 2, 1: 2 + n_params, 2: 1 + n_outputs(n_params)}[order]


def _over_tiles(tile_sums: Callable, n_rows: int, tile: int, n_sums: int, like: Array) -> Array:
    """Sum of `tile_sums(first row)` over all tiles."""
    if n_rows <= tile:
        return tile_sums(0)
    start = jnp.zeros(n_sums) + 0.0 * like  # varies over toys as the sums do
    return lax.fori_loop(0, n_rows // tile, lambda k, total: total + tile_sums(k * tile), start)


def row_sums(program: Program, tile: int, order: int = 2) -> Callable:
    """The outputs of a program for one toy, as a JAX function to be vmapped over toys.

    Parameters
    ----------
    program : Program
    tile : int
        Rows per pass. A number of rows above it must be a multiple of it.
    order : {0, 1, 2}
        Highest derivative; the outputs of higher ones are left out.

    Returns
    -------
    callable
        `f(theta (n_params,), columns (n_columns, n_rows), shared (n_shared, n_rows), aux (n_aux,), n) -> (n_outputs,)`,
        where the rows from n on are padding that counts for nothing. See `kernels.program` for the outputs.
    """
    graph, n_kept = program.graph, _n_kept(program.n_params, order)
    combinations, rests = program.combinations[:n_kept], program.rest[:n_kept]
    used_cores = sorted({m for terms in combinations for _, m in terms})
    cores = [program.cores[m] for m in used_cores]
    place = {m: k for k, m in enumerate(used_cores)}
    coefficients = [c for terms in combinations for c, _ in terms if c is not None]
    live = graph.live([*cores, *coefficients, *(r for r in rests if r is not None)])
    inputs = [(number, *graph.nodes[number][:2]) for number in live]

    def sums(theta: Array, columns: Array, shared: Array, aux: Array, n: Array) -> Array:
        given = {"theta": theta, "aux": aux}
        values = {number: given[op][position[0]] for number, op, position in inputs if op in given}
        _evaluate(graph, live, values, on_row=False)

        def tile_sums(first: Array | int) -> Array:
            given = {"row": columns, "shared": shared}
            on_rows = values | {
                number: lax.dynamic_slice_in_dim(given[op][position[0]], first, min(tile, n_rows))
                for number, op, position in inputs
                if op in given
            }
            _evaluate(graph, live, on_rows, on_row=True)
            used = first + jnp.arange(min(tile, n_rows)) < n
            return jnp.stack([jnp.sum(jnp.where(used, on_rows[core], 0.0)) for core in cores])

        n_rows = columns.shape[-1] if program.n_columns else shared.shape[-1]
        totals = _over_tiles(tile_sums, n_rows, tile, len(cores), theta[0])
        outputs = []
        for terms, rest in zip(combinations, rests, strict=True):
            total = 0.0 if rest is None else values[rest]
            for coefficient, m in terms:
                total = total + (totals[place[m]] if coefficient is None else values[coefficient] * totals[place[m]])
            outputs.append(total)
        return jnp.stack(outputs)

    return sums


def row_sums_untranslated(
    term: Callable | None, rest: Callable | None, n_params: int, tile: int, order: int = 2
) -> Callable:
    """As `row_sums`, for a term that has no scalar form: JAX differentiates each row as it stands.

    `term` and `rest` are those of `kernels.program.build_program`.
    """
    n_kept = _n_kept(n_params, order)
    of_row = value_gradient_hessian(term or (lambda *_: jnp.zeros(())), n_params)

    def outputs(derivatives: Callable, *args: Array) -> Array:
        value, *others = derivatives(*args)
        return jnp.stack([value, jnp.abs(value), *others][:n_kept])

    def sums(theta: Array, columns: Array, shared: Array, aux: Array, n: Array) -> Array:
        rows = jnp.concatenate([columns, shared]) if columns.shape[0] and shared.shape[0] else columns
        rows = rows if rows.shape[0] else shared
        n_rows = rows.shape[-1]

        def tile_sums(first: Array | int) -> Array:
            cut = lax.dynamic_slice_in_dim(rows, first, min(tile, n_rows), axis=1)
            each = jax.vmap(lambda row: outputs(of_row, *theta, *row, *aux), in_axes=1)(cut)
            used = first + jnp.arange(min(tile, n_rows)) < n
            return jnp.sum(jnp.where(used[:, None], each, 0.0), axis=0)

        total = _over_tiles(tile_sums, n_rows, tile, n_kept, theta[0])
        if rest is not None:
            total = total + outputs(value_gradient_hessian(rest, n_params), *theta, *rows[:, 0], *aux)
        return total

    return sums
