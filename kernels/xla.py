"""A program as a JAX function of one toy: all sums over rows in one pass, tile by tile.

The function evaluates the same graph as the numba kernel, so the two drivers differ by rounding only. A tile of rows
is held at a time, so that no array of (toys, rows, derivatives) is ever formed.
"""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from kernels.derivatives import value_gradient_hessian
from kernels.nodes import Graph, Node
from kernels.operations import OPERATIONS
from kernels.program import GRADIENT, Outer, Program, n_outputs
from kernels.secondorder import MAX_SINGLE

__all__ = ["Sums", "evaluate", "n_intermediates", "row_sums", "row_sums_untranslated", "value_of"]

# Columns of the Hessian of a model without scalar form that are taken at once.
COLUMNS = 8


def value_of(node: Node, values: dict[int, Any], tables: dict[int, list[np.ndarray]]) -> Any:
    """The value of an operation or of a constant; what depends on a table has an axis for its entries, in front."""
    if node.op == "const":
        return node.args[0]
    if node.op == "table":
        return tables[node.args[0]][node.args[1]][:, None]
    if node.op == "total":
        totals = jnp.sum(values[node.args[0]], axis=0)
        return totals if node.depends_on_row else totals[0]
    return OPERATIONS[node.op].by_jax(*(values[a] for a in node.args))


def evaluate(graph: Graph, numbers: list[int], values: dict[int, Array], on_row: bool) -> None:
    """Add to `values` those of the nodes that depend on the row, or of those that do not; leaves are there already."""
    for number in numbers:
        node = graph.nodes[number]
        if node.depends_on_row != on_row or number in values:
            continue
        values[number] = value_of(node, values, graph.tables)


def _over_tiles(tile_sums: Callable, n_rows: int, tile: int, like: Array) -> Any:
    """Sum of `tile_sums(first row)`, a tree of arrays, over all tiles."""
    if n_rows <= tile:
        return tile_sums(0)
    assert n_rows % tile == 0, f"{n_rows} rows are no whole number of tiles of {tile}"
    shapes = jax.eval_shape(tile_sums, 0)
    start = jax.tree.map(lambda s: jnp.zeros(s.shape) + 0.0 * like, shapes)  # varies over toys as the sums do
    step = lambda k, total: jax.tree.map(jnp.add, total, tile_sums(k * tile))  # noqa: E731
    return lax.fori_loop(0, n_rows // tile, step, start)


class _Products(NamedTuple):
    """The part of `outer` up to some order of derivatives."""

    outer: Outer
    order: int

    @property
    def nodes(self) -> list[int]:
        return self.outer.nodes if self.order else []

    def sums(self, values: dict[int, Array], used: Array) -> tuple[list[Array], list[Array]]:
        """Sums over the rows that are `used`: of weight * v, and of weight * u v^T."""
        outer = self.outer
        if not self.order or not outer.vectors:
            return [], []
        whole = jnp.stack([jnp.where(used, values[number], 0.0) for number in outer.nodes])
        vectors = [whole[first:last] for first, last in itertools.pairwise(outer.starts)]
        weights = whole[outer.starts[-1] :]
        gradient = [vectors[v] @ weights[g] for g, v in outer.gradient]
        pairs = outer.hessian if self.order == 2 else []
        return gradient, [(weights[g] * vectors[u]) @ vectors[v].T for g, u, v in pairs]

    def added(self, outputs: Array, sums: tuple[list[Array], list[Array]], n_params: int) -> Array:
        """The outputs with these sums in their places."""
        outer = self.outer
        for (_, v), total in zip(outer.gradient, sums[0], strict=False):
            outputs = outputs.at[GRADIENT + np.array(outer.vectors[v].params)].add(total)
        for (_, u, v), total in zip(outer.hessian, sums[1], strict=False):
            places, times = outer.places(u, v)
            outputs = outputs.at[GRADIENT + n_params + places].add(times * total)
        return outputs


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
    sums_of = Sums(program, order)
    graph, live, products = program.graph, sums_of.live, sums_of.products
    inputs = [(number, *graph.nodes[number][:2]) for number in live]

    def sums(theta: Array, columns: Array, shared: Array, aux: Array, n: Array) -> Array:
        values = sums_of.hoisted(theta, aux)

        def tile_sums(first: Array | int) -> tuple:
            given = {"row": columns, "shared": shared}
            on_rows = values | {
                number: lax.dynamic_slice_in_dim(given[op][position[0]], first, min(tile, n_rows))
                for number, op, position in inputs
                if op in given
            }
            evaluate(graph, live, on_rows, on_row=True)
            used = first + jnp.arange(min(tile, n_rows)) < n
            totals = [jnp.sum(jnp.where(used, on_rows[core], 0.0)) for core in sums_of.cores]
            return jnp.stack(totals) if totals else jnp.zeros(0), products.sums(on_rows, used)

        n_rows = columns.shape[-1] if program.n_columns else shared.shape[-1]
        totals, totals_of_products = _over_tiles(tile_sums, n_rows, tile, theta[0])
        return sums_of.outputs(values, totals, totals_of_products, n)

    return sums


class Sums:
    """What is done for each toy once, before its rows are summed and after.

    Parameters
    ----------
    program : Program
    order : {0, 1, 2}

    Attributes
    ----------
    cores : list of int
        The nodes whose sums over the rows are needed.
    live : list of int
        All nodes that are needed, in an order in which they can be evaluated.
    """

    def __init__(self, program: Program, order: int) -> None:
        self.graph, self.n_params = program.graph, program.n_params
        self.n_kept = n_outputs(program.n_params, order)
        self.combinations, self.rests = program.combinations[: self.n_kept], program.rest[: self.n_kept]
        used_cores = sorted({m for terms in self.combinations for _, m in terms})
        self.cores = [program.cores[m] for m in used_cores]
        self.place = {m: k for k, m in enumerate(used_cores)}
        self.products, self.products_of_rest = (_Products(o, order) for o in (program.outer, program.outer_rest))
        coefficients = [c for terms in self.combinations for c, _ in terms if c is not None]
        rests = [r for r in self.rests if r is not None]
        self.live = self.graph.live(
            [*self.cores, *coefficients, *rests, *self.products.nodes, *self.products_of_rest.nodes]
        )

    def hoisted(self, theta: Array, aux: Array) -> dict[int, Array]:
        """The values of all nodes that do not depend on the row."""
        given = {"theta": theta, "aux": aux}
        nodes = [(number, self.graph.nodes[number]) for number in self.live]
        values = {number: given[node.op][node.args[0]] for number, node in nodes if node.op in given}
        evaluate(self.graph, self.live, values, on_row=False)
        return values

    def outputs(
        self, values: dict[int, Array], totals: Array, of_products: tuple[list[Array], list[Array]], n: Array
    ) -> Array:
        """The outputs, from the sums of the cores over the n rows and those of the products."""
        outputs, places = [], []
        for k, (terms, rest) in enumerate(zip(self.combinations, self.rests, strict=True)):
            total = 0.0 if rest is None else values[rest]
            for coefficient, m in terms:
                of_rows = totals[self.place[m]]
                if coefficient is not None:  # without rows nothing is added, though a coefficient may be infinite
                    of_rows = jnp.where(n > 0, values[coefficient] * of_rows, 0.0)
                total = total + of_rows
            if terms or rest is not None:
                outputs.append(total)
                places.append(k)
        # a gather, which is fused with what follows, where a scatter would be a kernel of its own
        from_zero = np.full(self.n_kept, len(places))
        from_zero[places] = np.arange(len(places))
        result = jnp.stack([*outputs, jnp.zeros(())])[from_zero]
        result = self.products.added(result, of_products, self.n_params)
        of_rest = self.products_of_rest.sums(values, jnp.ones(1, dtype=bool))
        return self.products_of_rest.added(result, of_rest, self.n_params)


def n_intermediates(program: Program, on_row: bool = True) -> int:
    """How many numbers of a row are needed more than once, of which XLA keeps a part in memory; or of a toy."""
    graph = program.graph
    numbers = [number for number in program.live if graph.on_row(number) == on_row]
    uses = Counter(program.cores)
    uses.update(a for number in numbers for a in graph.arguments(number))
    return sum(graph.nodes[number].table or 1 for number in numbers if uses[number] > 1)


def row_sums_untranslated(
    term: Callable | None, rest: Callable | None, n_params: int, tile: int, order: int = 2
) -> Callable:
    """As `row_sums`, for a term that has no scalar form: JAX differentiates it as it stands.

    `term` and `rest` are those of `kernels.program.build_program`.
    """
    n_kept, zero = n_outputs(n_params, order), lambda *_: jnp.zeros(())
    few, below = n_params <= MAX_SINGLE, np.tril_indices(n_params)

    def of_few(function: Callable, theta: Array, rows: Array, aux: Array, used: Array) -> Array:
        """Every row on its own, forwards."""
        derivatives = value_gradient_hessian(function, n_params)

        def outputs(row: Array) -> Array:
            value, *others = derivatives(*theta, *row, *aux)
            return jnp.stack([value, jnp.abs(value), *others][:n_kept])

        return jnp.sum(jnp.where(used[:, None], jax.vmap(outputs, in_axes=1)(rows), 0.0), axis=0)

    def of_many(function: Callable, theta: Array, rows: Array, aux: Array, used: Array) -> Array:
        """The sum over the rows, backwards, so that no array of (rows, params, params) is held."""

        def total(theta: Array) -> tuple[Array, Array]:
            parameters = [theta[k] for k in range(n_params)]
            each = jnp.where(used, jax.vmap(lambda row: function(*parameters, *row, *aux), in_axes=1)(rows), 0.0)
            return jnp.sum(each), jnp.sum(jnp.abs(each))

        gradient = lambda t: jax.grad(total, has_aux=True)(t)[0]  # noqa: E731
        parts = [jnp.stack(total(theta))]
        parts += [gradient(theta)] if order else []
        if order == 2:
            column = lambda direction: jax.jvp(gradient, (theta,), (direction,))[1]  # noqa: E731
            parts.append(lax.map(column, jnp.eye(n_params), batch_size=COLUMNS)[below])
        return jnp.concatenate(parts)

    of_rows = of_few if few else of_many

    def sums(theta: Array, columns: Array, shared: Array, aux: Array, n: Array) -> Array:
        rows = jnp.concatenate([columns, shared]) if columns.shape[0] and shared.shape[0] else columns
        rows = rows if rows.shape[0] else shared
        n_rows = rows.shape[-1]

        def tile_sums(first: Array | int) -> Array:
            cut = lax.dynamic_slice_in_dim(rows, first, min(tile, n_rows), axis=1)
            used = first + jnp.arange(min(tile, n_rows)) < n
            # backwards, what is not finite in padding would come through: it is replaced by the first row
            part = of_rows(term or zero, theta, jnp.where(used, cut, rows[:, :1]), aux, used)
            return jnp.where(jnp.any(used), part, 0.0)

        total = _over_tiles(tile_sums, n_rows, tile, theta[0])
        if rest is not None:
            total = total + of_rows(rest, theta, rows[:, :1], aux, jnp.ones(1, dtype=bool))
        return total

    return sums
