"""Gradient and Hessian of a graph of scalars, from the derivatives of its operations.

A node that depends on few parameters is differentiated forwards: its gradient and its Hessian are lists of nodes, made
of those of its arguments. For a function of many parameters, made of operations v_i = phi_i(v_j, v_k, ...), the
Hessian is

    H = sum_i a_i sum_jk (d^2 phi_i / d v_j d v_k) grad v_j (grad v_k)^T,

where a_i is the derivative of the function by v_i, from one sweep backwards through the graph down to the nodes of
few parameters, which enter with a_i times their own Hessian. Only operations that are not linear enter the sum, with
outer products of gradients: for the logarithm of a sum of components it has one term. So the result grows with the
length of the function and not with the square of the number of parameters.

References
----------
Gower & Mello, Optim. Methods Softw. 27 (2012) 251-273.
"""

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from kernels.derivatives import value_gradient_hessian
from kernels.graph import interpret
from kernels.nodes import Graph, Partials
from kernels.operations import OPERATIONS

__all__ = ["Derivatives", "Vector", "differentiate"]

# Few parameters are up to so many. A gradient of more entries is kept as one vector.
MAX_SINGLE = 12


class Vector(NamedTuple):
    """A vector over the parameters: entry k is the node entries[k], for parameter params[k]; all others are zero."""

    params: tuple[int, ...]
    entries: tuple[int, ...]
    single: bool = False  # a unit vector


Gradient = dict[Vector, int]
Hessian = dict[tuple[Vector, Vector], int]


class Derivatives(NamedTuple):
    """Gradient and Hessian of a node; all weights are nodes.

    The gradient is the sum of weight * v over (v, weight). The Hessian is the sum over ((u, v), weight) of
    weight * (u v^T + v u^T), of weight * u u^T where both are one.
    """

    gradient: Gradient
    hessian: Hessian


def differentiate(graph: Graph, output: int) -> Derivatives:
    """Gradient and Hessian of a node of a graph that was traced with `derivatives=True`.

    Where a choice leaves out a branch, nothing of this branch enters, not even where its derivatives are infinite.

    Raises
    ------
    UntranslatableError
        If the derivative of an operation has no scalar form.
    """
    differentiation = _Differentiation(graph)
    return Derivatives(differentiation.gradient(output), differentiation.hessian(output))


@functools.cache
def _rule(op: str, places: tuple[int, ...], n_active: int):
    """Value, gradient and Hessian of an operation by its first arguments, as a jaxpr.

    `places` tells which of the arguments stands where: an operation may take one of them twice.
    """
    function = lambda *distinct: OPERATIONS[op].by_jax(*(distinct[place] for place in places))  # noqa: E731
    scalars = [jax.ShapeDtypeStruct((), np.float64)] * (max(places) + 1)
    with jax.enable_x64(True):
        return jax.make_jaxpr(value_gradient_hessian(function, n_active))(*scalars)


class _Differentiation:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.one, self.zero = graph.const(1.0), graph.const(0.0)
        self.known: dict[int, Partials] = {}
        self.gradients: dict[int, Gradient] = {}
        self.hessians: dict[int, Hessian] = {}

    def times(self, a: int, b: int) -> int:
        return self.zero if self.zero in (a, b) else self.graph.apply("mul", a, b)

    def add(self, total: dict, key: Any, term: int) -> None:
        """Add a term to an entry of a gradient or a Hessian."""
        if term != self.zero:
            total[key] = self.graph.apply("add", total[key], term) if key in total else term

    def partials(self, number: int) -> Partials:
        """Derivatives of an operation by those of its arguments that depend on a parameter."""
        if number not in self.known:
            self.known[number] = self._partials(number)
        return self.known[number]

    def _partials(self, number: int) -> Partials:
        graph, node = self.graph, self.graph.nodes[number]
        if number in graph.partials:
            return graph.partials[number]
        if not graph.support(number) or node.op == "theta":
            return Partials({}, {})
        if node.op == "select":  # what it chooses among are not products with 1 and 0: one of them may be infinite
            return Partials({a: self.one for a in node.args[1:] if graph.support(a)}, {})
        distinct = sorted(dict.fromkeys(node.args), key=lambda a: not graph.support(a))
        active = [a for a in distinct if graph.support(a)]
        rule = _rule(node.op, tuple(distinct.index(a) for a in node.args), len(active))
        outputs = interpret(graph, rule, distinct, origin=number)
        return Partials.of(graph, active, outputs[1:])

    def few(self, number: int) -> bool:
        """Whether a node depends on few parameters."""
        return self.graph.support(number).bit_count() <= MAX_SINGLE

    def linear(self, number: int) -> bool:
        return not self.partials(number).second

    def pairs(self, a: int, b: int) -> Iterator[tuple[Vector, Vector, int]]:
        """grad a (grad b)^T + grad b (grad a)^T, or grad a (grad a)^T where both are one, as (u, v, weight)."""
        left, right = self.gradient(a), self.gradient(b)
        if a == b:
            for (u, m), (v, n) in itertools.combinations_with_replacement(left.items(), 2):
                yield u, v, self.times(m, n)
        else:
            for (u, m), (v, n) in itertools.product(left.items(), right.items()):
                weight = self.times(m, n)
                yield u, v, self.graph.apply("add", weight, weight) if u == v else weight

    def gradient(self, number: int) -> Gradient:
        if number not in self.gradients:
            if self.few(number):
                self.forwards(number)
            else:
                ends, guarded = self.partials(number).first, set[int]()
                if self.linear(number):
                    _, ends, guarded = self.sweep(number, through=self.linear)
                result: Gradient = {}
                for end, weight in ends.items():
                    for vector, w in self.gradient(end).items():
                        self.add(result, vector, self.along(weight, w, end in guarded))
                self.gradients[number] = self.packed(result)
        return self.gradients[number]

    def packed(self, gradient: Gradient) -> Gradient:
        """A gradient whose entries for single parameters are one vector if they are many."""
        single = {v.params[0]: weight for v, weight in gradient.items() if v.single}
        if len(single) <= MAX_SINGLE:
            return gradient
        whole = Vector(tuple(sorted(single)), tuple(single[i] for i in sorted(single)))
        return {whole: self.one} | {v: weight for v, weight in gradient.items() if not v.single}

    def hessian(self, number: int) -> Hessian:
        if number not in self.hessians:
            self.forwards(number) if self.few(number) else self.backwards(number)
        return self.hessians[number]

    def forwards(self, output: int) -> None:
        """Gradient and Hessian of a node and of all below it."""
        needed, stack = set[int](), [output]
        while stack:
            number = stack.pop()
            if number not in needed and number not in self.hessians:
                needed.add(number)
                # a function that brings its derivatives along may not hold its arguments any more
                stack += self.graph.partials[number].first if number in self.graph.partials else ()
                stack += self.graph.arguments(number)
        for number in sorted(needed):
            self.forward(number)

    def forward(self, number: int) -> None:
        graph, node = self.graph, self.graph.nodes[number]
        gradient: Gradient = {}
        hessian: Hessian = {}
        self.gradients[number], self.hessians[number] = gradient, hessian
        if node.op == "theta":
            gradient[Vector((node.args[0],), (self.one,), single=True)] = self.one
        elif node.op == "select" and graph.support(number):
            condition, *cases = node.args
            for result, known in ((gradient, self.gradients), (hessian, self.hessians)):
                for key in dict.fromkeys([*known[cases[0]], *known[cases[1]]]):
                    chosen = graph.apply("select", condition, *(known[case].get(key, self.zero) for case in cases))
                    self.add(result, key, chosen)
        elif node.op == "total":
            [term] = node.args
            table = graph.nodes[term].table
            for result, known in ((gradient, self.gradients), (hessian, self.hessians)):
                for key, weight in known[term].items():
                    self.add(result, key, graph.total(table, weight))
        else:
            partials = self.partials(number)
            for arg, first in partials.first.items():
                for vector, w in self.gradients[arg].items():
                    self.add(gradient, vector, self.times(first, w))
                for pair, w in self.hessians[arg].items():
                    self.add(hessian, pair, self.times(first, w))
            for (a, b), second in partials.second.items():
                for u, v, weight in self.pairs(a, b):
                    self.add(hessian, _ordered(u, v), self.times(second, weight))

    def backwards(self, output: int) -> None:
        """The Hessian of a node that depends on many parameters."""
        hessian: Hessian = {}
        self.hessians[output] = hessian
        passed, ends, guarded = self.sweep(output, through=lambda number: True)
        curved = [number for number in sorted(passed) if self.partials(number).second]
        for number in sorted({arg for c in curved for arg in self.partials(c).first}):
            self.gradient(number)  # in this order no gradient asks for another that asks for another ...
        for number in curved:
            for (a, b), second in self.partials(number).second.items():
                for u, v, weight in self.pairs(a, b):
                    each = self.along(passed[number], self.times(second, weight), number in guarded)
                    self.add(hessian, _ordered(u, v), each)
        for number, adjoint in ends.items():
            for pair, weight in self.hessian(number).items():
                self.add(hessian, pair, self.along(adjoint, weight, number in guarded))

    def sweep(self, start: int, through: Callable[[int], bool]) -> tuple[dict[int, int], dict[int, int], set[int]]:
        """Derivatives of a node by those below it, as far as these depend on many parameters.

        The sweep goes `through` some nodes to their arguments and ends at all others. It also ends where the row
        enters no more: what lies behind is differentiated apart, once for all rows.

        Returns
        -------
        passed, ends : dict node -> derivative
        guarded : set
            Those behind a choice, whose derivative is zero where their branch is left out.
        """
        graph, on_row = self.graph, self.graph.on_row(start)
        weights, passed, guarded, queue = {start: self.one}, {}, set(), [-start]
        while queue:
            number = -heapq.heappop(queue)
            node, weight = graph.nodes[number], weights[number]
            if self.few(number) or graph.on_row(number) != on_row or not through(number):
                continue
            passed[number] = weights.pop(number)
            for arg, first in self.partials(number).first.items():
                if node.op == "select":
                    cases = (weight if arg == case else self.zero for case in node.args[1:])
                    each = graph.apply("select", node.args[0], *cases)
                else:
                    each = self.along(weight, first, number in guarded)
                if each == self.zero:
                    continue
                if node.op == "select" or number in guarded:
                    guarded.add(arg)
                if arg not in weights:
                    heapq.heappush(queue, -arg)
                self.add(weights, arg, each)
        return passed, weights, guarded

    def along(self, adjoint: int, derivative: int, guarded: bool) -> int:
        """Their product; `guarded` makes it zero where the adjoint is, though the derivative may be infinite."""
        product = self.times(adjoint, derivative)
        if not guarded or product == self.zero:
            return product
        return self.graph.apply("select", self.graph.apply("ne", adjoint, self.zero), product, self.zero)


def _ordered(u: Vector, v: Vector) -> tuple[Vector, Vector]:
    return (u, v) if u.params >= v.params else (v, u)
