"""The operations of a graph of scalars as statements of numba source."""

from collections.abc import Mapping

from kernels.nodes import BOOLEAN, Graph
from kernels.operations import OPERATIONS

__all__ = ["assignments", "constant", "is_boolean"]

_ARGUMENTS = {"theta": "theta[{}]", "aux": "aux[{}]", "row": "rows[{}, i]", "shared": "shared[{}, i - first]"}


def is_boolean(graph: Graph, number: int) -> bool:
    """Whether the value of a node is True or False."""
    op, args, _ = graph.nodes[number]
    if op in ("select", "same"):
        return is_boolean(graph, args[-1])
    return op in BOOLEAN or (op == "const" and isinstance(args[0], bool))


def constant(value: bool | int | float) -> str:
    if isinstance(value, bool | int):
        return repr(value)
    if value != value:
        return "np.nan"
    if value in (float("inf"), float("-inf")):
        return "np.inf" if value > 0 else "-np.inf"
    return repr(value)  # the shortest text that gives the same double


def assignments(graph: Graph, numbers: list[int], on_row: bool, given: Mapping[int, str] | None = None) -> list[str]:
    """Those of the nodes that depend on the row, or of those that do not; some may be given as expressions."""
    lines, given = [], given or {}
    for number in numbers:
        node = graph.nodes[number]
        if node.depends_on_row != on_row:
            continue
        if number in given:
            expression = given[number]
        elif node.op == "const":
            expression = constant(node.args[0])
        elif node.op in _ARGUMENTS:
            expression = _ARGUMENTS[node.op].format(node.args[0])
        else:
            expression = OPERATIONS[node.op].text.format(*(f"v{a}" for a in node.args))
        lines.append(f"v{number} = {expression}")
    return lines
