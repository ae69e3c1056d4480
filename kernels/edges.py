"""Rows that lie side by side, as the bins of a histogram: what belongs to an edge is the same for both of its rows.

Of a difference F(upper) - F(lower) and its derivatives, nearly all operations see one edge alone. They are done once
for each edge, and the few of their results that a row needs are kept for a block of rows.
"""

from typing import NamedTuple

from kernels.nodes import LEAVES, Graph
from kernels.program import Program

__all__ = ["LOWER", "UPPER", "Edges", "split_at_edges"]

# The shared columns with the edges of a row: the upper one of a row is the lower one of the next.
LOWER, UPPER = 0, 1


class Edges(NamedTuple):
    """A program in two parts.

    Attributes
    ----------
    numbers : list of int
        Nodes that are evaluated at each edge, in order, as if it were the lower one.
    stored : list of int
        Those of them that rows need.
    read : dict of int to (int, int)
        Node -> which of `stored` it is, and whether at the LOWER or the UPPER edge of the row.
    rest : list of int
        What is evaluated or read for each row, in order.
    """

    numbers: list[int]
    stored: list[int]
    read: dict[int, tuple[int, int]]
    rest: list[int]


def split_at_edges(program: Program) -> Edges | None:
    """The two parts; None where nothing is spared, or rows have sums over tables, which are taken for rows alone."""
    graph = program.graph
    rows = [number for number in program.live if graph.on_row(number)]
    if any(graph.nodes[number].op == "total" for number in rows):
        return None
    side: dict[int, int | None] = {}  # the only edge on which a node depends
    for number in rows:
        op, args = graph.nodes[number][:2]
        found = {args[0]} if op == "shared" else {side[a] for a in args if a in side} if op not in LEAVES else {None}
        side[number] = next(iter(found)) if len(found) == 1 and found <= {LOWER, UPPER} else None
    of_rows = [number for number in rows if side[number] is None]
    needed = {a for number in of_rows for a in graph.arguments(number)}
    read, stored, known = dict[int, tuple[int, int]](), dict[int, int](), dict[int, int]()
    for number in rows:
        at = side[number]
        if at is not None and (number in needed or number in program.cores):
            same = number if at == LOWER else _at_lower(graph, number, known)
            read[number] = stored.setdefault(same, len(stored)), at
    numbers = [number for number in graph.live(list(stored)) if graph.on_row(number)]
    return Edges(numbers, list(stored), read, sorted([*of_rows, *read])) if stored else None


def _at_lower(graph: Graph, number: int, known: dict[int, int]) -> int:
    """The node that has at the lower edge the value of this one at the upper edge."""
    for n in graph.live([number]):
        op, args, on_row = graph.nodes[n][:3]
        if n not in known and on_row:
            on_lower = graph.argument("shared", LOWER)
            known[n] = on_lower if op == "shared" else graph.like(n, [known.get(a, a) for a in args])
    return known[number]
