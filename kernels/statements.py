"""The operations of a graph of scalars as statements of numba source."""

from collections.abc import Iterable, Mapping

from kernels.nodes import BOOLEAN, Graph
from kernels.operations import OPERATIONS

__all__ = ["assignments", "constant", "is_boolean"]

MOST_TWICE = 9  # of an exponent
_ARGUMENTS = {"theta": "theta[{}]", "aux": "aux[{}]", "row": "rows[{}, i]", "shared": "shared[{}, i - first]"}
_ARGUMENTS |= {"table": "TABLE{}[{}, q]"}


def is_boolean(graph: Graph, number: int) -> bool:
    """Whether the value of a node is True or False."""
    op, args = graph.nodes[number][:2]
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


def _power(base: str, exponent: float | None) -> str | None:
    """A power by a small multiple of 1/2, in products and a square root; these take a tenth of the time."""
    twice = 0.0 if exponent is None else 2.0 * exponent
    if not twice or not float(twice).is_integer() or abs(twice) > MOST_TWICE:
        return None
    whole, half = divmod(int(abs(twice)), 2)
    product = " * ".join([base] * whole + [f"math.sqrt({base})"] * half)
    return product if twice > 0 else f"1.0 / ({product})"


def assignments(graph: Graph, numbers: Iterable[int], given: Mapping[int, str] | None = None) -> list[str]:
    """Nodes in the order in which they come; some may be given as expressions."""
    lines, given = [], given or {}
    for number in numbers:
        node = graph.nodes[number]
        if number in given:
            expression = given[number]
        elif node.op == "const":
            expression = constant(node.args[0])
        elif node.op in _ARGUMENTS:
            expression = _ARGUMENTS[node.op].format(*node.args)
        elif node.op == "pow" and (power := _power(f"v{node.args[0]}", graph.value(node.args[1]))):
            expression = power
        else:
            expression = OPERATIONS[node.op].text.format(*(f"v{a}" for a in node.args))
        lines.append(f"v{number} = {expression}")
    return lines
