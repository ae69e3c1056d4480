"""A program as numba source.

It is one function: what does not depend on the row, then one loop over the rows that LLVM turns into SIMD code, then
the combination of the sums. Outer products of gradients are taken by a second function, for a block of rows at a time.
What is summed over a table is summed for a block of rows as well, entry by entry of the table, so that LLVM's vectors
run along the rows here, too.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from kernels.edges import LOWER, UPPER, Edges, split_at_edges
from kernels.nodes import Graph
from kernels.outer import BEYOND, BLOCK, add_outer, outer_source, tables
from kernels.program import Program
from kernels.statements import assignments, constant, is_boolean

__all__ = ["DEFINITION", "kernel_source"]

DEFINITION = "def row_sums(theta, rows, shared, aux, begin, end, order, out):"
EDGES = 136  # of a block of rows, with those that fill up the last vector


def kernel_source(program: Program, adjacent: bool = False) -> str:
    """The source, whose last function is `row_sums(theta, ..., out)`, see `kernels.translate.KERNEL_SIGNATURE`.

    `adjacent` says that the rows lie side by side, see `kernels.edges`.
    """
    graph, cores, outer, outer_rest = program.graph, program.cores, program.outer, program.outer_rest
    live = program.live
    lines = ["use_wide_vectors()", *_once(graph, live)]
    lines += [f"s{m} = 0.0" for m in range(len(cores))]
    # unsigned, or numba would look for negative indices at every row
    lines += [f"for k in range({len(program.rest)}):", "    out[k] = 0.0", "first = np.uint64(begin)"]
    edges = split_at_edges(program) if adjacent and not outer.vectors else None
    if edges is not None:
        lines += _by_edges(program, edges)
    else:
        lines += _by_rows(program, live)
    if outer_rest.vectors:
        lines += [f"rest = np.zeros({len(outer_rest.nodes) + BEYOND})"]
        lines += [f"rest[{k}] = v{node}" for k, node in enumerate(outer_rest.nodes)]
        lines += [add_outer("REST", "rest", "np.uint64(1)", 1)]
    of_rows = []
    for k, (terms, rest) in enumerate(zip(program.combinations, program.rest, strict=True)):
        parts = [f"s{m}" if c is None else f"v{c} * s{m}" for c, m in terms]
        of_rows += [f"out[{k}] += {' + '.join(parts)}"] if parts else []
        lines += [] if rest is None else [f"out[{k}] += v{rest}"]
    # without rows nothing is added, though a coefficient may be infinite
    lines += ["if begin < end:", *_indented(of_rows)] if of_rows else []
    head = [_table(graph, table) for table in graph.tables]
    if outer.vectors or outer_rest.vectors:
        head += [outer_source(program.n_params), *tables(outer, "ROWS"), *tables(outer_rest, "REST")]
    return "\n".join([*head, "", "", DEFINITION, *_indented(lines)]).lstrip() + "\n"


def _table(graph: Graph, table: int) -> str:
    columns = (f"[{', '.join(map(constant, column.tolist()))}]" for column in graph.tables[table])
    return f"TABLE{table} = np.array([{', '.join(columns)}])"


class _Loop(NamedTuple):
    """A loop over the entries of a table.

    Attributes
    ----------
    totals : list of int
        What is summed.
    terms : list of int
        What is computed for each entry, in order.
    """

    table: int
    totals: list[int]
    terms: list[int]

    def lines(self, graph: Graph, inside: Iterable[str]) -> list[str]:
        """What does not depend on the row is computed before what is inside."""
        of_entry = assignments(graph, [n for n in self.terms if not graph.on_row(n)])
        return [f"for q in range({self.table}):", *_indented([*of_entry, *inside])]


def _stages(graph: Graph, live: Sequence[int], on_row: bool) -> tuple[dict[int, int], list[list[_Loop]]]:
    """How many loops over tables, one after the other, must have ended before a node is known; and these loops.

    Of all nodes that depend on the row, or of those that do not.
    """
    stage: dict[int, int] = {}
    totals: dict[tuple[int, int], list[int]] = {}
    for number in live:
        if graph.on_row(number) == on_row:
            stage[number] = max((stage.get(a, 0) for a in graph.arguments(number)), default=0)
            if graph.nodes[number].op == "total":
                table = graph.nodes[graph.nodes[number].args[0]].table
                totals.setdefault((stage[number], table or 1), []).append(number)
                stage[number] += 1
    loops: list[list[_Loop]] = [[] for _ in range(1 + max(stage.values(), default=0))]
    for (at, table), of_table in totals.items():
        terms = [n for n in graph.live([graph.nodes[t].args[0] for t in of_table]) if graph.nodes[n].table == table]
        loops[at].append(_Loop(table, of_table, terms))
    return stage, loops


def _once(graph: Graph, live: Sequence[int]) -> list[str]:
    """What does not depend on the row, with its sums over tables."""
    stage, stages = _stages(graph, live, on_row=False)
    totals = {total: f"t{total}" for loops in stages for loop in loops for total in loop.totals}
    lines: list[str] = []
    for s, loops in enumerate(stages):
        lines += assignments(graph, [n for n in live if stage.get(n) == s and graph.nodes[n].table is None], totals)
        for loop in loops:
            lines += [f"t{total} = 0.0" for total in loop.totals]
            lines += loop.lines(graph, [f"t{total} += v{graph.nodes[total].args[0]}" for total in loop.totals])
    return lines


def _by_rows(program: Program, live: Sequence[int]) -> list[str]:
    """The loop over the rows, block by block where something is done for all rows of a block."""
    graph, outer = program.graph, program.outer
    kept = _Kept(graph)
    before = kept.passes(live)
    row = kept.computed([*program.cores, *outer.nodes])
    row += [f"s{m} += v{core}" for m, core in enumerate(program.cores)]
    if not before and not outer.vectors:
        return ["for i in range(first, np.uint64(end)):", *_indented(row)]
    row += [f"work[{k * BLOCK} + b] = v{node}" for k, node in enumerate(outer.nodes)]
    lines = [f"work = np.zeros({(len(outer.nodes) + BEYOND) * BLOCK})"] if outer.vectors else []
    lines += [f"kept = np.empty({len(kept.places) * BLOCK})"] if before else []
    lines += [f"for start in range(first, np.uint64(end), np.uint64({BLOCK})):"]
    lines += [f"    n = min(np.uint64({BLOCK}), np.uint64(end) - start)"]
    lines += _indented([*before, *_for_each(row)])
    lines += [f"    {add_outer('ROWS', 'work', 'n', BLOCK)}"] if outer.vectors else []
    return lines


def _for_each(lines: Iterable[str]) -> list[str]:
    """A loop over the rows of a block."""
    return ["for b in range(n):", "    i = start + b", *_indented(lines)]


class _Kept:
    """What is kept for each row of a block: its sums over tables, and what is wanted for them or after them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.places: dict[int, int] = {}

    def place(self, number: int) -> str:
        return f"kept[{self.places.setdefault(number, len(self.places)) * BLOCK} + b]"

    def passes(self, live: Sequence[int]) -> list[str]:
        """The lines that sum over tables for a block of rows."""
        graph = self.graph
        lines: list[str] = []
        for loop in itertools.chain(*_stages(graph, live, on_row=True)[1]):
            terms = [n for n in loop.terms if graph.on_row(n)]
            wanted = {a for n in terms for a in graph.arguments(n) if graph.on_row(a)}.difference(terms)
            new = sorted(n for n in wanted if graph.arguments(n) and n not in self.places)
            if new:
                lines += _for_each([*self.computed(new), *(f"{self.place(number)} = v{number}" for number in new)])
            lines += ["for b in range(n):", *(f"    {self.place(total)} = 0.0" for total in loop.totals)]
            of_row = [*self.computed(wanted), *assignments(graph, terms)]
            of_row += [f"{self.place(total)} += v{graph.nodes[total].args[0]}" for total in loop.totals]
            lines += loop.lines(graph, _for_each(of_row))
        return lines

    def computed(self, outputs: Iterable[int]) -> list[str]:
        """The lines that compute nodes of a row, from what is kept of it."""
        graph, seen = self.graph, set[int]()
        stack = [number for number in outputs if graph.on_row(number)]
        while stack:
            number = stack.pop()
            if number not in seen:
                seen.add(number)
                if number not in self.places:
                    stack += [a for a in graph.arguments(number) if graph.on_row(a)]
        of_true = {n: " != 0.0" if is_boolean(graph, n) else "" for n in self.places}
        return assignments(graph, sorted(seen), {n: f"{self.place(n)}{of_true[n]}" for n in self.places})


def _by_edges(program: Program, edges: Edges) -> list[str]:
    """The loop over the rows, block by block: first over the edges of a block, then over its rows."""
    graph = program.graph
    at_edge = {graph.argument("shared", LOWER): f"work[{len(edges.stored) * EDGES} + b]"}
    of_edge = [
        *assignments(graph, edges.numbers, at_edge),
        *(f"work[{k * EDGES} + b] = v{number}" for k, number in enumerate(edges.stored)),
    ]
    at_row = {
        number: f"work[{k * EDGES + side} + b]{' != 0.0' if is_boolean(graph, number) else ''}"
        for number, (k, side) in edges.read.items()
    }
    of_row = [
        "i = start + b",
        *assignments(graph, edges.rest, at_row),
        *(f"s{m} += v{core}" for m, core in enumerate(program.cores)),
    ]
    begin = f"work[{len(edges.stored) * EDGES}"
    # as many as fill vectors of 8: what is left of a loop is as slow as a vector for each of its turns
    return [
        f"work = np.empty({(len(edges.stored) + 1) * EDGES})",
        f"for start in range(first, np.uint64(end), np.uint64({EDGES - 8})):",
        f"    n = min(np.uint64({EDGES - 8}), np.uint64(end) - start)",
        "    whole = (n // np.uint64(8) + np.uint64(1)) * np.uint64(8)",
        "    for b in range(n):",
        f"        {begin} + b] = shared[{LOWER}, start - first + b]",
        "    for b in range(n, whole):",
        f"        {begin} + b] = shared[{UPPER}, start - first + n - np.uint64(1)]",
        "    for b in range(whole):",
        *_indented(of_edge, 2),
        "    for b in range(n):",
        *_indented(of_row, 2),
    ]


def _indented(lines: Iterable[str], depth: int = 1) -> list[str]:
    return ["    " * depth + line for line in lines]
