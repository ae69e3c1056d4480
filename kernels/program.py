"""A cost as a program: what to compute once, what for each row, what to sum.

Every cost is `sum over rows of term(theta, row) + rest(theta, aux)`. Its value, gradient and Hessian are traced
into one graph of scalars. Each of these outputs is then written as

    sum_m coefficient_m(theta) * sum_rows core_m(theta, row)

by multiplying out products of sums. Derivatives of one term share their cores (for a Gaussian peak of
density p: p, d p, d^2 p, ... with d = x - mu), so 22 outputs of the 5-parameter spectrum cost 26 sums of one
product each; and a factor that does not depend on the row is applied once for each toy and not for each row.

A sum with a term that does not depend on the row, such as x - mu, is never multiplied out: that would trade
(x - mu)^2 for a difference of large numbers. For the same reason a sum is left as it stands where a term of it holds
no parameter: y - f(x, theta) is a measured value minus its expectation, which nearly cancel.
"""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from kernels.derivatives import n_outputs, value_gradient_hessian
from kernels.graph import Graph, trace

__all__ = ["ABSOLUTE", "GRADIENT", "VALUE", "Program", "build_program"]

# Layout of a cost's outputs: value, sum of |term|, gradient, packed lower triangle of the Hessian.
VALUE, ABSOLUTE, GRADIENT = 0, 1, 2
# A node that multiplies out to more products than this stays one node.
MAX_PRODUCTS = 48


class Program(NamedTuple):
    """The outputs of a cost, as sums over rows.

    Output k is `rest[k] + sum over (coefficient, m) in combinations[k] of coefficient * sum_rows cores[m]`;
    all are node numbers of `graph`, a coefficient None is 1, a rest None is 0.
    """

    graph: Graph
    cores: list[int]
    combinations: list[list[tuple[int | None, int]]]
    rest: list[int | None]
    n_params: int
    n_columns: int
    n_shared: int
    n_aux: int


class _Products:
    """Nodes as sums of products: {product: coefficient}, a product being the sorted tuple of its factors."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.memo: dict[int, dict[tuple[int, ...], int]] = {}
        self.emitted: dict[tuple[int, ...], int] = {}
        self.theta_memo: dict[int, bool] = {}

    def expand(self, number: int) -> dict[tuple[int, ...], int]:
        if number not in self.memo:
            self.memo[number] = self._expand(number)
        return self.memo[number]

    def _expand(self, number: int) -> dict[tuple[int, ...], int]:
        graph, node = self.graph, self.graph.nodes[number]
        whole: dict[tuple[int, ...], int] = {(number,): graph.const(1.0)}
        terms: dict[tuple[int, ...], int]
        if not node.depends_on_row:
            return {(): number}
        if node.op == "neg":
            return self.scale(graph.const(-1.0), self.expand(node.args[0]))
        if node.op in ("add", "sub") and all(graph.on_row(a) for a in node.args):
            sign = graph.const(1.0 if node.op == "add" else -1.0)
            terms = self.merge(self.expand(node.args[0]), self.scale(sign, self.expand(node.args[1])))
            of_data = any(not any(self.on_theta(factor) for factor in product) for product in terms)
            return whole if of_data else terms
        if node.op == "mul":
            left, right = (self.expand(a) for a in node.args)
            if len(left) * len(right) > MAX_PRODUCTS:
                return whole
            terms = {}
            for a, ca in left.items():
                terms = self.merge(terms, {tuple(sorted(a + b)): graph.apply("mul", ca, cb) for b, cb in right.items()})
            return terms
        if node.op == "select" and graph.value(node.args[2]) == 0.0 and graph.on_row(node.args[1]):
            inside = self.expand(node.args[1])
            if len(inside) > 1:
                condition, _, zero = node.args
                return self.merge(
                    {},
                    {
                        (graph.apply("select", condition, self.product(p), zero),): coefficient
                        for p, coefficient in inside.items()
                    },
                )
        return whole

    def on_theta(self, number: int) -> bool:
        """Whether a node depends on a parameter."""
        if number not in self.theta_memo:
            node = self.graph.nodes[number]
            leaf = node.op in ("const", "theta", "aux", "row", "shared")
            self.theta_memo[number] = node.op == "theta" if leaf else any(map(self.on_theta, node.args))
        return self.theta_memo[number]

    def scale(self, factor: int, terms: dict) -> dict:
        return {p: self.graph.apply("mul", factor, c) for p, c in terms.items()}

    def merge(self, left: dict, right: dict) -> dict:
        merged = dict(left)
        for product, coefficient in right.items():
            merged[product] = (
                self.graph.apply("add", merged[product], coefficient) if product in merged else coefficient
            )
        return merged

    def product(self, factors: tuple[int, ...]) -> int:
        """The node of a product, made of two products that exist already where that is possible."""
        if len(factors) == 1:
            return factors[0]
        if factors not in self.emitted:
            whole = Counter(factors)
            best = None
            for known in sorted(self.emitted, key=len, reverse=True):
                if len(known) < len(factors) and not Counter(known) - whole:
                    remainder = tuple(sorted((whole - Counter(known)).elements()))
                    if len(remainder) == 1 or remainder in self.emitted:
                        best = (known, remainder)
                        break
            first, second = best or (factors[:-1], factors[-1:])
            self.emitted[factors] = self.graph.apply("mul", self.product(first), self.product(second))
        return self.emitted[factors]


def build_program(
    term: Callable | None,
    rest: Callable | None,
    *,
    n_params: int,
    n_columns: int,
    n_shared: int = 0,
    n_aux: int = 0,
) -> Program:
    """The program of a cost.

    Parameters
    ----------
    term : callable or None
        `term(*theta, *columns, *shared, *aux) -> ()`, all scalars: what one row adds to the cost.
    rest : callable or None
        `rest(*theta, *columns, *shared, *aux) -> ()`: what is added once. It may look at a row (a model gives its
        integral together with its density) but must not depend on it.
    n_params, n_columns, n_shared, n_aux : int
        Number of parameters, of columns that belong to each toy, of columns shared by all toys, of measured values.

    Raises
    ------
    UntranslatableError
        If an operation has no scalar form.
    ValueError
        If `rest` depends on the row.
    """
    graph = Graph()
    theta = [("theta", k) for k in range(n_params)]
    row = [("row", k) for k in range(n_columns)] + [("shared", k) for k in range(n_shared)]
    aux = [("aux", k) for k in range(n_aux)]

    def outputs_of(function: Callable) -> list[int]:
        traced = trace(value_gradient_hessian(function, n_params), theta + row + aux, graph)
        return [traced[0], graph.apply("abs", traced[0]), *traced[1:]]

    outputs = outputs_of(term) if term is not None else [graph.const(0.0)] * (1 + n_outputs(n_params))

    products = _Products(graph)
    expanded = [products.expand(output) for output in outputs]
    needed = {p for terms in expanded for p in terms}
    if len(needed) > 2 * len(outputs):  # multiplying out has not paid
        expanded = [{(output,): graph.const(1.0)} for output in outputs]
        needed = {p for terms in expanded for p in terms}
    # short products first: the longer ones are made of them
    position = {p: m for m, p in enumerate(sorted(needed, key=lambda p: (len(p), p)))}
    cores = [products.product(p) if p else graph.const(1.0) for p in position]
    combinations = [
        [(None if graph.value(c) == 1.0 else c, position[p]) for p, c in terms.items()] for terms in expanded
    ]

    rest_outputs: list[int | None] = [None] * len(outputs)
    if rest is not None:
        rest_outputs = [*outputs_of(rest)]
        if any(graph.on_row(output) for output in rest_outputs if output is not None):
            raise ValueError("the integral of the model depends on x: it must be a function of the parameters alone")
    return Program(graph, cores, combinations, rest_outputs, n_params, n_columns, n_shared, n_aux)
