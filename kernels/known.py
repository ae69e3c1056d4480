"""What of a program has no scalar form, but depends on the data alone, such as an efficiency that is interpolated.

It is computed by JAX, once for each row, and becomes a column of the rows. What has a scalar form stays in the program
whatever it depends on: numba computes it five times in the time that JAX takes for once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kernels.nodes import BOOLEAN, LEAVES, Graph, Node, UntranslatableError
from kernels.program import Program
from kernels.xla import value_of

__all__ = ["Known", "separated"]

AT_ONCE = 2**14  # rows that are computed together
MOST_COLUMNS = 32
_QUICK = {"add", "sub", "mul", "neg", "abs", "max", "min"}


class Known(NamedTuple):
    """Columns that belong to rows.

    Attributes
    ----------
    n : int
    compute : callable
        (n_columns, n_rows) array of the data -> (n, n_rows).
    """

    n: int
    compute: Callable[[np.ndarray], np.ndarray]


def separated(program: Program) -> tuple[Program, Known | None]:
    """A program that takes columns more, and what computes them; None where it needs none.

    The graph of the program is changed.

    Raises
    ------
    UntranslatableError
        If a condition has no scalar form, there are too many columns, or rows of two kinds.
    """
    graph, opaque = program.graph, program.graph.opaque or []
    chosen = _chosen(graph, [*program.cores, *program.outer.nodes])
    if not chosen:
        return program, None
    if len(chosen) > MOST_COLUMNS or (program.n_columns and program.n_shared):
        raise UntranslatableError(f"{len(chosen)} numbers of each row have no scalar form")
    before = [*graph.nodes]
    kind, n = ("row", program.n_columns) if program.n_columns else ("shared", program.n_shared)
    for k, number in enumerate(chosen):
        graph.nodes[number] = Node(kind, (n + k,), True)
    n += len(chosen)
    program = program._replace(n_columns=n) if program.n_columns else program._replace(n_shared=n)
    return program, Known(len(chosen), _computing(before, graph.tables, opaque, chosen))


def _chosen(graph: Graph, outputs: list[int]) -> list[int]:
    """The nodes that become columns: those of the data alone that others ask for, where they need an opaque one."""
    live, needs = graph.live(outputs), dict[int, bool]()
    for number in live:
        op, args = graph.nodes[number][:2]
        needs[number] = op == "opaque" or (op not in LEAVES and any(needs[a] for a in args))
    stack = [n for n in outputs if needs[n]]
    chosen, seen = set[int](), set[int]()
    while stack:
        number = stack.pop()
        if number in seen:
            continue
        seen.add(number)
        op, args = graph.nodes[number][:2]
        if op == "opaque" and graph.is_condition(number):
            raise UntranslatableError("a condition has no scalar form")
        needed = [] if op == "opaque" else [a for a in args if needs[a]]
        # of a single one, what is quickly done is done at every step
        of_data = graph.of_data(number) and graph.nodes[number].table is None
        if of_data and op not in BOOLEAN and not (op in _QUICK and len(needed) == 1):
            chosen.add(number)
        else:
            stack += needed
    return sorted(chosen)


def _computing(
    nodes: list[Node], tables: dict[int, list[np.ndarray]], opaque: list, chosen: list[int]
) -> Callable[[np.ndarray], np.ndarray]:
    needed, stack = set[int](), [*chosen]
    while stack:
        number = stack.pop()
        if number not in needed:
            needed.add(number)
            op, args = nodes[number][:2]
            if op == "opaque":
                stack += [int(n) for array in opaque[args[0]][1] for n in array.ravel()]
            elif op not in LEAVES:
                stack += args

    @jax.jit
    def computed(columns: Array) -> Array:
        values: dict[int, Any] = {}
        of_opaque: dict[int, list[Array]] = {}
        n_rows = columns.shape[1]
        for number in sorted(needed):
            op, args = nodes[number][:2]
            if op in ("row", "shared"):
                values[number] = columns[args[0]]
            elif op == "opaque":
                k, output, place = args
                if k not in of_opaque:
                    eqn, numbers = opaque[k]
                    of_opaque[k] = _of_equation(eqn, numbers, values, n_rows)
                values[number] = of_opaque[k][output].reshape(n_rows, -1)[:, place]
            else:
                values[number] = value_of(nodes[number], values, tables)
        return jnp.stack([jnp.asarray(values[number], jnp.float64) for number in chosen])

    def compute(columns: np.ndarray) -> np.ndarray:
        n_rows = columns.shape[1]
        found = np.empty((len(chosen), n_rows))
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            for first in range(0, n_rows, AT_ONCE):
                some = columns[:, first : first + AT_ONCE]
                n = some.shape[1]
                # of one shape, so that it is compiled once
                found[:, first : first + n] = computed(np.pad(some, ((0, 0), (0, AT_ONCE - n)), mode="edge"))[:, :n]
        return found

    return compute


def _of_equation(eqn: Any, numbers: list[np.ndarray], values: dict[int, Any], n_rows: int) -> list[Array]:
    """The outputs of an equation of JAX, for each row."""
    inputs, axes = list[Any](), list[int | None]()
    for array, atom in zip(numbers, eqn.invars, strict=True):
        elements, dtype = [values[int(n)] for n in array.ravel()], atom.aval.dtype
        if any(isinstance(element, Array) for element in elements):
            columns = [jnp.broadcast_to(jnp.asarray(element, dtype), (n_rows,)) for element in elements]
            inputs.append(jnp.stack(columns, axis=1).reshape(n_rows, *array.shape))
            axes.append(0)
        else:  # a table is the same for all rows
            inputs.append(jnp.asarray(np.array(elements, dtype=dtype).reshape(array.shape)))
            axes.append(None)

    def of_row(*row: Array) -> list[Array]:
        outputs = eqn.primitive.bind(*row, **eqn.primitive.get_bind_params(eqn.params))
        return outputs if eqn.primitive.multiple_results else [outputs]

    return jax.vmap(of_row, in_axes=tuple(axes))(*inputs)
