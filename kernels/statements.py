"""The operations of a graph of scalars as statements of numba source."""

from collections.abc import Mapping

from kernels.nodes import Graph

__all__ = ["BOOLEAN", "EXPRESSIONS", "assignments", "constant", "is_boolean"]

EXPRESSIONS = {
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
    "log1p": "log1p({0})",
    "expm1": "expm1({0})",
    "sqrt": "math.sqrt({0})",
    "rsqrt": "1.0 / math.sqrt({0})",
    "cbrt": "cbrt({0})",
    "sin": "sin({0})",
    "cos": "cos({0})",
    "tan": "tan({0})",
    "asin": "asin({0})",
    "acos": "acos({0})",
    "atan": "atan({0})",
    "atan2": "atan2({0}, {1})",
    "sinh": "sinh({0})",
    "cosh": "cosh({0})",
    "tanh": "tanh({0})",
    "asinh": "asinh({0})",
    "acosh": "acosh({0})",
    "atanh": "atanh({0})",
    "erf": "erf({0})",
    "erfc": "erfc({0})",
    "lgamma": "lgamma({0})",
    "digamma": "digamma({0})",
    "trigamma": "trigamma({0})",
    "floor": "np.floor({0})",
    "ceil": "np.ceil({0})",
    "pow": "pow({0}, {1})",
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
    "same": "{0}",
}
# Their values are True or False.
BOOLEAN = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "is_finite"}
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
            expression = EXPRESSIONS[node.op].format(*(f"v{a}" for a in node.args))
        lines.append(f"v{number} = {expression}")
    return lines
