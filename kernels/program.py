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

Where there are many parameters, part of the Hessian is a sum over rows of outer products of a few gradients (see
`kernels.secondorder`), which the drivers take block by block of rows.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from kernels.derivatives import packed_index
from kernels.graph import trace
from kernels.nodes import LEAVES, Graph, too_long
from kernels.secondorder import Derivatives, Vector, differentiate
from kernels.tables import Tables

__all__ = [
    "ABSOLUTE",
    "EXPECTED",
    "FIRST",
    "GRADIENT",
    "SECOND",
    "VALUE",
    "Outer",
    "Program",
    "build_program",
    "n_outputs",
]

# Layout of a cost's outputs: value, sum of |term|, gradient, packed lower triangle of the Hessian.
VALUE, ABSOLUTE, GRADIENT = 0, 1, 2
# What is asked of a kernel: value and gradient, where the Hessian may be left as it was; all; or all, with the Hessian
# that the data have on average at theta (Fisher's information) where a cost knows it.
FIRST, SECOND, EXPECTED = 1, 2, 3
# A node that multiplies out to more products than this stays one node.
MAX_PRODUCTS = 48
# A longer program is not compiled: 1000 operations take about 3 s.
MAX_LENGTH = 8000
# A product of more factors is not taken apart.
MAX_FACTORS = 8


def n_outputs(n_params: int, order: int = SECOND) -> int:
    """Number of a cost's outputs, up to some order of derivatives; order 0 is the value alone."""
    return GRADIENT + (0, n_params, n_params * (n_params + 3) // 2)[min(order, SECOND)]


class Outer(NamedTuple):
    """What is added to the gradient and the Hessian for each row, as products of vectors.

    `weights[g] * v` for each (g, v) in `gradient`, and `weights[g] * (u v^T + v u^T)`, or `weights[g] * u u^T`
    where both are one, for each (g, u, v) in `hessian`; u and v count the vectors, weights are node numbers.
    """

    vectors: list[Vector]
    weights: list[int]
    gradient: list[tuple[int, int]]
    hessian: list[tuple[int, int, int]]

    @property
    def nodes(self) -> list[int]:
        """All nodes that are needed: the entries of the vectors one after the other, then the weights."""
        return [*(entry for vector in self.vectors for entry in vector.entries), *self.weights]

    @property
    def starts(self) -> list[int]:
        """The position of each vector's first entry, and the end of the last one."""
        return [0, *itertools.accumulate(len(vector.params) for vector in self.vectors)]

    def places(self, u: int, v: int) -> tuple[np.ndarray, np.ndarray]:
        """For each element of u v^T, its place in the packed lower triangle, and how often it counts there."""
        i, j = np.meshgrid(self.vectors[u].params, self.vectors[v].params, indexing="ij")
        twice = np.where(i == j, 2.0, 1.0) if u != v else np.where(i >= j, 1.0, 0.0)
        i, j = np.maximum(i, j), np.minimum(i, j)
        return i * (i + 1) // 2 + j, twice


NO_OUTER = Outer([], [], [], [])


class Program(NamedTuple):
    """The outputs of a cost, as sums over rows.

    Output k is `rest[k] + sum over (coefficient, m) in combinations[k] of coefficient * sum_rows cores[m]`;
    all are node numbers of `graph`, a coefficient None is 1, a rest None is 0. To this `outer` is added for every row,
    and `outer_rest` once.
    """

    graph: Graph
    cores: list[int]
    combinations: list[list[tuple[int | None, int]]]
    rest: list[int | None]
    n_params: int
    n_columns: int
    n_shared: int
    outer: Outer
    outer_rest: Outer

    @property
    def live(self) -> list[int]:
        """The nodes that are needed, in an order in which they can be evaluated."""
        coefficients = [c for terms in self.combinations for c, _ in terms if c is not None]
        rest = [r for r in self.rest if r is not None]
        return self.graph.live([*self.cores, *coefficients, *rest, *self.outer.nodes, *self.outer_rest.nodes])


class _Products:
    """Nodes as sums of products: {product: coefficient}, a product being the sorted tuple of its factors."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.memo: dict[int, dict[tuple[int, ...], int]] = {}
        self.emitted: dict[tuple[int, ...], int] = {}
        self.with_theta: list[bool] = []

    def expand(self, output: int) -> dict[tuple[int, ...], int]:
        for number in [] if output in self.memo else self.graph.live([output]):
            if number not in self.memo:
                self.memo[number] = self._expand(number)
        return self.memo[output]

    def _expand(self, number: int) -> dict[tuple[int, ...], int]:
        graph, node = self.graph, self.graph.nodes[number]
        whole: dict[tuple[int, ...], int] = {(number,): graph.const(1.0)}
        terms: dict[tuple[int, ...], int]
        if not node.depends_on_row:
            return {(): number}
        if node.op == "neg":
            return self.scale(graph.const(-1.0), self.memo[node.args[0]])
        if node.op in ("add", "sub") and all(graph.on_row(a) for a in node.args):
            sign = graph.const(1.0 if node.op == "add" else -1.0)
            terms = self.merge(self.memo[node.args[0]], self.scale(sign, self.memo[node.args[1]]))
            of_data = any(not any(self.on_theta(factor) for factor in product) for product in terms)
            return whole if of_data or len(terms) > MAX_PRODUCTS else terms
        if node.op == "mul":
            left, right = (self.memo[a] for a in node.args)
            longest = sum(max(map(len, terms)) for terms in (left, right))
            if len(left) * len(right) > MAX_PRODUCTS or longest > MAX_FACTORS:
                return whole
            terms = {}
            for a, ca in left.items():
                terms = self.merge(terms, {tuple(sorted(a + b)): graph.apply("mul", ca, cb) for b, cb in right.items()})
            return terms
        if node.op == "select" and graph.value(node.args[2]) == 0.0 and graph.on_row(node.args[1]):
            inside, (condition, _, zero) = self.memo[node.args[1]], node.args
            constant = all(graph.value(coefficient) is not None for coefficient in inside.values())
            if len(inside) > 1 and (constant or graph.of_data(condition)):  # as in `Graph._select`
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
        for node in self.graph.nodes[len(self.with_theta) : number + 1]:
            args = () if node.op in LEAVES else node.args
            self.with_theta.append(node.op == "theta" or any(self.with_theta[a] for a in args))
        return self.with_theta[number]

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
            first, second = next(filter(self.both_exist, _splits(factors)), (factors[:-1], factors[-1:]))
            self.emitted[factors] = self.graph.apply("mul", self.product(first), self.product(second))
        return self.emitted[factors]

    def both_exist(self, parts: tuple[tuple[int, ...], tuple[int, ...]]) -> bool:
        return all(len(part) == 1 or part in self.emitted for part in parts)


def _splits(factors: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All ways to make a product of two, those with a long first part first."""
    places = range(len(factors))
    for n in range(1, len(factors) // 2 + 1):
        for taken in itertools.combinations(places, n):
            yield tuple(factors[k] for k in places if k not in taken), tuple(factors[k] for k in taken)


def build_program(
    term: Callable | None,
    rest: Callable | None,
    *,
    n_params: int,
    n_columns: int,
    n_shared: int = 0,
    n_aux: int = 0,
    opaque: bool = False,
    adjacent: bool = False,
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
    opaque : bool
        Whether operations without scalar form may be taken as they are where they depend on the data alone, see
        `kernels.known`.
    adjacent : bool
        Whether the rows lie side by side, see `kernels.edges`.

    Raises
    ------
    UntranslatableError
        If an operation has no scalar form, or the program is too long to be compiled in reasonable time.
    IndexError
        If a model takes an observable that is not there.
    ValueError
        If `rest` depends on the row, or a model takes a sum or maximum over the single x that it is given.
    """
    graph, n = Graph(), n_outputs(n_params)
    graph.opaque = [] if opaque else None
    kinds = [("theta", k) for k in range(n_params)]
    kinds += [("row", k) for k in range(n_columns)] + [("shared", k) for k in range(n_shared)]
    kinds += [("aux", k) for k in range(n_aux)]
    tables = Tables(graph, adjacent)

    def outputs_of(function: Callable) -> tuple[dict[int, int], Outer]:
        """The outputs of a function that are not zero, and what is to be added to them."""
        [value] = trace(lambda *scalars: [function(*scalars)], kinds, graph, derivatives=True)
        value = tables.rewritten(value)
        singles, outer = _assorted(differentiate(graph, value), n_params)
        outputs = {VALUE: value, ABSOLUTE: graph.apply("abs", value), **singles}
        return {k: output for k, output in outputs.items() if graph.value(output) != 0.0}, outer

    outputs, outer = outputs_of(term) if term is not None else ({}, NO_OUTER)
    products = _Products(graph)
    expanded = {k: products.expand(output) for k, output in outputs.items()}
    needed = {p for terms in expanded.values() for p in terms}
    if len(needed) > 2 * len(outputs):  # multiplying out has not paid
        expanded = {k: {(output,): graph.const(1.0)} for k, output in outputs.items()}
        needed = {p for terms in expanded.values() for p in terms}
    # short products first: the longer ones are made of them
    position = {p: m for m, p in enumerate(sorted(needed, key=lambda p: (len(p), p)))}
    cores = [products.product(p) if p else graph.const(1.0) for p in position]
    combinations: list[list[tuple[int | None, int]]] = [[] for _ in range(n)]
    for k, terms in expanded.items():
        combinations[k] = [(None if graph.value(c) == 1.0 else c, position[p]) for p, c in terms.items()]

    rest_outputs, outer_rest = outputs_of(rest) if rest is not None else ({}, NO_OUTER)
    of_rest = [*rest_outputs.values(), *outer_rest.nodes]
    if any(graph.on_row(output) for output in of_rest):
        raise ValueError("the integral of the model depends on x: it must be a function of the parameters alone")
    sums_of_rest = [rest_outputs.get(k) for k in range(n)]
    program = Program(graph, cores, combinations, sums_of_rest, n_params, n_columns, n_shared, outer, outer_rest)
    if len(program.live) > MAX_LENGTH:
        if adjacent:  # with more of its sums over tables it may be shorter
            return build_program(
                term, rest, n_params=n_params, n_columns=n_columns, n_shared=n_shared, n_aux=n_aux, opaque=opaque
            )
        raise too_long(MAX_LENGTH)
    return program


def _assorted(derivatives: Derivatives, n_params: int) -> tuple[dict[int, int], Outer]:
    """The derivatives that are single numbers, by their place among the outputs, and those that are products."""
    singles: dict[int, int] = {}
    vectors: dict[Vector, int] = {}
    weights: dict[int, int] = {}
    gradient, hessian = [], []

    def place(known: dict, new: Any) -> int:
        return known.setdefault(new, len(known))

    for vector, weight in derivatives.gradient.items():
        if vector.single:
            singles[GRADIENT + vector.params[0]] = weight
        else:
            gradient.append((place(weights, weight), place(vectors, vector)))
    for (u, v), weight in derivatives.hessian.items():
        if u.single and v.single:
            singles[GRADIENT + n_params + packed_index(u.params[0], v.params[0])] = weight
        else:
            hessian.append((place(weights, weight), place(vectors, u), place(vectors, v)))
    return singles, Outer([*vectors], [*weights], gradient, hessian)
