"""A graph of scalar operations, in which every expression stands once (see `kernels.graph` for how it is made).

The graph knows which nodes depend on the row (the event, bin or data point) and keeps a product in the form
`coefficient * core`, where the coefficient does not depend on the row. What does not depend on the row then
gathers in few nodes, which a loop over rows evaluates once.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["BOOLEAN", "COMMUTATIVE", "LEAVES", "Graph", "Node", "Partials", "UntranslatableError", "too_long"]


class UntranslatableError(NotImplementedError):
    """A model uses an operation that has no scalar form here; the message names it and where it stands."""


def too_long(limit: int) -> UntranslatableError:
    return UntranslatableError(
        f"the model and its derivatives make more than {limit} operations, whose compilation would take minutes"
    )


class Node(NamedTuple):
    """An operation on nodes, or a leaf.

    `table` is the number of entries of a table, where the node depends on the entry: it is evaluated for each of them,
    and a "total" is the sum of them all (see `kernels.tables`).
    """

    op: str
    args: tuple
    depends_on_row: bool
    table: int | None = None


class Partials(NamedTuple):
    """Derivatives of a node by its arguments, and by pairs of them; what is not there is zero."""

    first: dict[int, int]
    second: dict[tuple[int, int], int]

    @staticmethod
    def of(graph: "Graph", arguments: Sequence[int], outputs: Sequence[int]) -> "Partials":
        """From the nodes of the gradient and of the packed Hessian; an argument may come twice."""
        n, zero = len(arguments), graph.const(0.0)
        first: dict[int, int] = {}
        second: dict[tuple[int, int], int] = {}
        for a, d in zip(arguments, outputs[:n], strict=True):
            first[a] = graph.apply("add", first.get(a, zero), d)
        pairs = [(i, j) for i in range(n) for j in range(i + 1)]
        for (i, j), d in zip(pairs, outputs[n:], strict=True):
            a, b = sorted((arguments[i], arguments[j]))
            d = graph.apply("add", d, d) if a == b and i != j else d
            second[a, b] = graph.apply("add", second.get((a, b), zero), d)
        active = {a for a in arguments if graph.support(a)}
        return Partials(
            {a: d for a, d in first.items() if a in active and d != zero},
            {pair: d for pair, d in second.items() if active.issuperset(pair) and d != zero},
        )


_FOLD: dict[str, Callable] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "abs": abs,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "not": operator.not_,
}
COMMUTATIVE = {"add", "mul", "max", "min", "eq", "ne", "and", "or"}
# Their values are True or False.
BOOLEAN = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not", "is_finite"}
# A longer graph is given up while it grows; see also `kernels.program.MAX_LENGTH`.
MAX_NODES = 250_000
LEAVES = {"const", "theta", "aux", "row", "shared", "opaque", "table"}
# Their derivatives are zero, where they have one.
_FLAT = BOOLEAN | {"floor", "ceil", "sign"}


class Graph:
    """Scalar operations, each expression once; a node's arguments have smaller numbers than the node."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.holds_float32 = False  # an array constant of the model came in float32
        self.partials: dict[int, Partials] = {}  # of functions that bring their own rule of differentiation
        self.origins: dict[int, tuple] = {}  # the equations of the model that a node comes from
        # equations of JAX without scalar form, with the nodes of their arguments, which depend on the data alone;
        # None where they are not taken
        self.opaque: list[tuple[Any, list[np.ndarray]]] | None = None
        self.tables: dict[int, list[np.ndarray]] = {}  # by the number of entries: columns (n_entries,)
        self._columns: dict[bytes, int] = {}
        self._numbers: dict[tuple, int] = {}
        self._supports: list[int] = []
        self._of_data: list[bool] = []

    def _intern(self, op: str, args: tuple, depends_on_row: bool) -> int:
        key = (op, *(a.hex() if isinstance(a, float) else (type(a), a) for a in args))
        if key not in self._numbers:
            if len(self.nodes) >= MAX_NODES:
                raise too_long(MAX_NODES)
            table = args[0] if op == "table" else None
            if op not in LEAVES and op != "total":  # the arguments never depend on two tables
                table = next((self.nodes[a].table for a in args if self.nodes[a].table is not None), None)
            self._numbers[key] = len(self.nodes)
            self.nodes.append(Node(op, args, depends_on_row, table))
        return self._numbers[key]

    def column(self, values: Sequence[float]) -> int:
        """A number for each entry of a table."""
        array = np.array(values, dtype=np.float64)
        columns = self.tables.setdefault(len(array), [])
        position = self._columns.setdefault(array.tobytes(), len(columns))
        if position == len(columns):
            columns.append(array)
        return self._intern("table", (len(array), position), False)

    def total(self, table: int, number: int) -> int:
        """The sum of a node over all entries of a table."""
        op, args, on_row, depends_on = self.nodes[number]
        if depends_on is None:
            return self.apply("mul", self.const(float(table)), number)
        if op == "neg":
            return self.apply("neg", self.total(table, args[0]))
        for inside, outside in [args, args[::-1]] if op == "mul" else []:
            if self.nodes[outside].table is None:
                return self.apply("mul", outside, self.total(table, inside))
        return self._intern("total", (number,), on_row)

    def argument(self, kind: str, position: int) -> int:
        """An input: a parameter ("theta"), a toy's measured value ("aux") or a column of the row."""
        return self._intern(kind, (position,), kind in ("row", "shared"))

    def const(self, value: Any) -> int:
        if isinstance(value, bool | np.bool_):
            return self._intern("const", (bool(value),), False)
        if isinstance(value, int | np.integer):
            return self._intern("const", (int(value),), False)
        return self._intern("const", (float(value),), False)

    def arguments(self, number: int) -> tuple[int, ...]:
        """The nodes on which an operation acts; a leaf has none."""
        node = self.nodes[number]
        return () if node.op in LEAVES else node.args

    def value(self, number: int) -> Any:
        """The value of a constant node, None for any other."""
        node = self.nodes[number]
        return node.args[0] if node.op == "const" else None

    def on_row(self, number: int) -> bool:
        return self.nodes[number].depends_on_row

    def of_data(self, number: int) -> bool:
        """Whether a node depends neither on a parameter nor on a measured value of the toy."""
        for node in self.nodes[len(self._of_data) : number + 1]:
            of_args = node.op in LEAVES or all(self._of_data[a] for a in node.args)
            self._of_data.append(of_args and node.op not in ("theta", "aux"))
        return self._of_data[number]

    def takes_opaque(self, eqn: Any, args: list[np.ndarray]) -> bool:
        """Whether an equation of JAX is of the data alone, and its outputs may be opaque nodes."""
        if self.opaque is None or any(v.aval.dtype.kind not in "fiub" for v in eqn.outvars):
            return False
        numbers = [int(n) for array in args for n in array.ravel()]
        return all(map(self.of_data, numbers)) and any(map(self.on_row, numbers))

    def add_opaque(self, eqn: Any, args: list[np.ndarray]) -> list[np.ndarray]:
        """The outputs of such an equation."""
        assert self.opaque is not None
        self.opaque.append((eqn, args))
        k, outputs = len(self.opaque) - 1, []
        for position, variable in enumerate(eqn.outvars):
            shape = variable.aval.shape
            each = [self._intern("opaque", (k, position, place), True) for place in range(math.prod(shape))]
            outputs.append(np.array(each, dtype=np.int64).reshape(shape))
        return outputs

    def is_condition(self, number: int) -> bool:
        """Whether an opaque node is true or false."""
        k, position, _ = self.nodes[number].args
        return self.opaque is not None and self.opaque[k][0].outvars[position].aval.dtype.kind == "b"

    def support(self, number: int) -> int:
        """The parameters by which the derivative of a node may differ from zero, as a set of bits."""
        for k in range(len(self._supports), number + 1):
            node, bits = self.nodes[k], 0
            if node.op == "theta":
                bits = 1 << node.args[0]
            elif k in self.partials:
                bits = functools.reduce(operator.or_, map(self._supports.__getitem__, self.partials[k].first), 0)
            elif node.op not in LEAVES and node.op not in _FLAT:
                args = node.args[1:] if node.op == "select" else node.args
                bits = functools.reduce(operator.or_, map(self._supports.__getitem__, args))
            self._supports.append(bits)
        return self._supports[number]

    def with_partials(self, number: int, partials: Partials) -> int:
        """A node of the same value, whose derivatives are given."""
        while True:
            new = self._intern("same", (number,), self.on_row(number))
            if self.partials.setdefault(new, partials) == partials:
                return new
            number = new

    def split(self, number: int) -> tuple[int | None, int]:
        """(coefficient, core) of a node that depends on the row."""
        node = self.nodes[number]
        if node.op == "mul" and self.on_row(number) and not self.on_row(node.args[0]):
            return node.args[0], node.args[1]
        if node.op == "neg":
            return self.const(-1.0), node.args[0]
        return None, number

    def apply(self, op: str, *args: int) -> int:
        """The node of `op` on nodes, simplified."""
        values = [self.value(a) for a in args]
        if op in _FOLD and all(v is not None for v in values):
            return self.const(_FOLD[op](*values))
        simplify = getattr(self, f"_{op}", None)
        if simplify is not None:
            return simplify(*args)
        return self._plain(op, *args)

    def _plain(self, op: str, *args: int) -> int:
        if op in COMMUTATIVE and args[1] < args[0]:
            args = args[::-1]
        return self._intern(op, args, any(self.on_row(a) for a in args))

    def like(self, number: int, args: Sequence[int]) -> int:
        """The operation of a node that depends on the row, on other arguments of the same kind."""
        op = self.nodes[number].op
        ordered = op in COMMUTATIVE and self.on_row(args[0]) == self.on_row(args[1])
        return self._intern(op, tuple(sorted(args) if ordered else args), True)

    def _neg(self, a: int) -> int:
        node = self.nodes[a]
        if node.op == "neg":
            return node.args[0]
        if node.op == "sub":
            return self._sub(node.args[1], node.args[0])
        coefficient, core = self.split(a)
        if coefficient is not None and self.on_row(a):
            return self._mul(self.apply("neg", coefficient), core)
        return self._plain("neg", a)

    def _add(self, a: int, b: int) -> int:
        if self.value(a) == 0.0:
            return b
        if self.value(b) == 0.0:
            return a
        if self.nodes[b].op == "neg":
            return self._sub(a, self.nodes[b].args[0])
        if self.nodes[a].op == "neg":
            return self._sub(b, self.nodes[a].args[0])
        return self._combine("add", a, b)

    def _sub(self, a: int, b: int) -> int:
        if self.value(b) == 0.0:
            return a
        if self.value(a) == 0.0:
            return self._neg(b)
        if self.nodes[b].op == "neg":
            return self._add(a, self.nodes[b].args[0])
        return self._combine("sub", a, b)

    def _combine(self, op: str, a: int, b: int) -> int:
        """c1 * r + c2 * r = (c1 + c2) * r, for terms that depend on the row."""
        if self.on_row(a) and self.on_row(b):
            (ca, ra), (cb, rb) = self.split(a), self.split(b)
            if ra == rb and (ca is not None or cb is not None):
                one = self.const(1.0)
                return self._mul(self.apply(op, one if ca is None else ca, one if cb is None else cb), ra)
        return self._plain(op, a, b)

    def _mul(self, a: int, b: int) -> int:
        if self.on_row(a) and not self.on_row(b):
            a, b = b, a
        for one, other in ((a, b), (b, a)):
            if self.value(one) == 1.0:
                return other
            if self.value(one) == -1.0 and not self.on_row(other):
                return self._neg(other)
        if not self.on_row(b):
            for one, other in ((a, b), (b, a)):
                if self.nodes[one].op == "neg":
                    return self._neg(self._mul(self.nodes[one].args[0], other))
            return self._square(a) if a == b else self._plain("mul", a, b)
        if not self.on_row(a):
            coefficient, core = self.split(b)
            if coefficient is not None:
                return self._mul(self.apply("mul", a, coefficient), core)
            if self.value(a) == -1.0:
                return self._plain("neg", b)
            return self._intern("mul", (a, b), True)
        (ca, ra), (cb, rb) = self.split(a), self.split(b)
        core = self._square(ra) if ra == rb else self._plain("mul", ra, rb)
        for coefficient in (ca, cb):
            if coefficient is not None:
                core = self._mul(coefficient, core)
        return core

    def _square(self, a: int) -> int:
        """Of the modulus of a complex number what it is the root of, which has derivatives also at zero."""
        if self.nodes[a].op == "sqrt":
            (root_of,) = self.nodes[a].args
            node = self.nodes[root_of]
            if node.op == "add" and all(self._is_square(part) for part in node.args):
                return root_of
        return self._plain("mul", a, a)

    def _is_square(self, a: int) -> bool:
        op, args, *_ = self.nodes[a]
        if op == "const":
            return args[0] >= 0.0
        return op == "mul" and (args[0] == args[1] or all(map(self._is_square, args)))

    def _div(self, a: int, b: int) -> int:
        return self._mul(a, self._reciprocal(b))

    def _reciprocal(self, b: int) -> int:
        value = self.value(b)
        if isinstance(value, float) and value != 0.0:
            return self.const(1.0 / value)
        coefficient, core = self.split(b)
        if coefficient is not None and self.on_row(b):
            return self._mul(self._reciprocal(coefficient), self._reciprocal(core))
        if self.nodes[b].op == "neg":
            return self._neg(self._reciprocal(self.nodes[b].args[0]))
        if self.nodes[b].op == "reciprocal":
            return self.nodes[b].args[0]
        return self._plain("reciprocal", b)

    def _select(self, condition: int, if_true: int, if_false: int) -> int:
        if self.value(condition) is not None:
            return if_true if self.value(condition) else if_false
        if if_true == if_false:
            return if_true
        coefficient, core = self.split(if_true) if self.on_row(if_true) else (None, if_true)
        if coefficient is None or not self.on_row(condition) or self.value(if_false) != 0.0:
            return self._plain("select", condition, if_true, if_false)
        # a condition on a parameter may say where the coefficient is infinite, and it takes 0 there
        if self.value(coefficient) is None and not self.of_data(condition):
            return self._plain("select", condition, if_true, if_false)
        return self._mul(coefficient, self._plain("select", condition, core, if_false))

    def _log(self, a: int) -> int:
        """Of an exponential its exponent, which neither under- nor overflows; XLA does so too."""
        coefficient, core = self.split(a) if self.nodes[a].op == "mul" else (None, a)
        if self.nodes[core].op != "exp":
            return self._plain("log", a)
        (exponent,) = self.nodes[core].args
        return exponent if coefficient is None else self._add(self.apply("log", coefficient), exponent)

    def power(self, a: int, exponent: int) -> int:
        """a to an integer power, by repeated squaring."""
        if exponent < 0:
            return self.power(self._reciprocal(a), -exponent)
        result = self.const(1.0)
        while exponent:
            if exponent & 1:
                result = self.apply("mul", result, a)
            a, exponent = self.apply("mul", a, a) if exponent > 1 else a, exponent >> 1
        return result

    def live(self, outputs: Sequence[int]) -> list[int]:
        """Numbers of all nodes that the outputs need, in an order in which they can be evaluated."""
        seen: set[int] = set()
        stack = list(outputs)
        while stack:
            number = stack.pop()
            if number in seen:
                continue
            seen.add(number)
            stack.extend(self.arguments(number))
        return sorted(seen)
