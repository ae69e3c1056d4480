"""Long sums whose terms differ in their constants only, as of a convolution or of an integral, as sums over a table.

A model that sums f(x, theta, c_k) over nodes c_k is traced term by term. Here the terms become one, which reads its
constants from a table, before derivatives are taken: the program is as long as that of one term.
"""

import heapq
from collections import Counter
from collections.abc import Sequence

from kernels.nodes import COMMUTATIVE, LEAVES, Graph, Partials
from kernels.secondorder import MAX_SINGLE

__all__ = ["Tables"]

# Terms become one where this spares so many operations: written out, a short sum is faster; so is one of 48 nodes where
# rows lie side by side, since then each edge is computed once (see `kernels.edges`).
WORTHWHILE, WORTHWHILE_AT_EDGES = 150, 350
FEWEST = 4  # terms


class Tables:
    """Rewrites nodes of a graph; `adjacent` says that its rows lie side by side.

    Terms are alike if they have one pattern: the same operations on the same leaves, with any constants.
    """

    def __init__(self, graph: Graph, adjacent: bool = False) -> None:
        self.graph = graph
        self.least = WORTHWHILE_AT_EDGES if adjacent else WORTHWHILE
        self.new: dict[int, int] = {}  # what stands for a node
        self.patterns: list[int] = []
        self._numbers: dict[tuple, int] = {}

    def rewritten(self, output: int) -> int:
        """The node of the same value, up to rounding, in which long sums are sums over tables.

        A sum that depends on more than `kernels.secondorder.MAX_SINGLE` parameters stays as it is.
        """
        live = self.needed(output)
        sum_of = self.sums(live)
        for number in live:
            if number not in self.new:
                summed = self.summed(number, sum_of) if self.is_sum(number) and number not in sum_of else None
                self.new[number] = self.again(number) if summed is None else summed
        return self.new[output]

    def sums(self, live: list[int]) -> dict[int, int]:
        """The sum to which a node belongs, where nobody else asks for it: as a term, times constants, or as a part."""
        users: dict[int, list[int]] = {}
        for number in live:
            for part in self.parts(number):
                users.setdefault(part, []).append(number)
        sum_of: dict[int, int] = {}
        for number in reversed(live):
            found = {sum_of.get(user, user if self.is_sum(user) else None) for user in users.get(number, [])}
            linear = all(self.is_sum(user) or self.scaled(user) for user in users.get(number, []))
            if linear and len(found) == 1 and (whole := found.pop()) is not None:
                sum_of[number] = whole
        return sum_of

    def is_sum(self, number: int) -> bool:
        return self.graph.nodes[number].op in ("add", "sub")

    def scaled(self, number: int) -> tuple[float, int] | None:
        """(constant, node) of which a node is the product."""
        op, args = self.graph.nodes[number][:2]
        for constant, other in [args, args[::-1]] if op == "mul" else []:
            value = self.graph.value(constant)
            if isinstance(value, float):
                return value, other
        return None

    def needed(self, output: int) -> list[int]:
        """All nodes that a node is made of, with those of the derivatives that functions bring along."""
        seen, stack = set[int](), [output]
        while stack:
            number = stack.pop()
            if number not in seen:
                seen.add(number)
                stack += self.parts(number)
        return sorted(seen)

    def parts(self, number: int) -> list[int]:
        """The arguments of a node, and its derivatives where it brings them along."""
        graph, node = self.graph, self.graph.nodes[number]
        if node.op in LEAVES:
            return []
        if number in graph.partials:
            partials = graph.partials[number]
            return [*node.args, *partials.first, *partials.first.values(), *partials.second.values()]
        return [*node.args]

    def again(self, number: int, parts: Sequence[int] | None = None) -> int:
        """The operation of a node on other parts: by default on what stands for its own."""
        graph, own = self.graph, self.parts(number)
        parts = [self.new[part] for part in own] if parts is None else parts
        if parts == own:
            return number
        if number not in graph.partials:
            return graph.apply(graph.nodes[number].op, *parts)
        before = graph.partials[number]
        value, *others = parts
        n, zero = len(before.first), graph.const(0.0)
        arguments, first, second = others[:n], others[n : 2 * n], dict(zip(before.second, others[2 * n :], strict=True))
        pairs = [(a, b) for i, a in enumerate(before.first) for b in [*before.first][: i + 1]]
        second_of = [second.get((min(pair), max(pair)), zero) for pair in pairs]
        return graph.with_partials(value, Partials.of(graph, arguments, [*first, *second_of]))

    def terms(self, output: int, sum_of: dict[int, int]) -> tuple[dict[int, float], int]:
        """The terms of a sum, with the constants by which they are multiplied; and how many operations join them."""
        graph, found, factors, n_joining = self.graph, dict[int, float](), {output: 1.0}, 0
        queue = [-output]  # users before what they use, so that all factors of a node have come together
        while queue:
            number = -heapq.heappop(queue)
            factor, args = factors.pop(number), graph.nodes[number].args
            scaled = self.scaled(number)
            if self.is_sum(number) and (number == output or sum_of.get(number) == output):
                parts = [(args[0], factor), (args[1], factor if graph.nodes[number].op == "add" else -factor)]
            elif scaled is not None and sum_of.get(scaled[1]) == output:
                parts = [(scaled[1], factor * scaled[0])]
            else:
                constant, term = self.scaled(self.new[number]) or (1.0, self.new[number])
                found[term] = found.get(term, 0.0) + factor * constant
                continue
            n_joining += 1
            for part, its in parts:
                if part not in factors:
                    heapq.heappush(queue, -part)
                factors[part] = factors.get(part, 0.0) + its
        return found, n_joining

    def summed(self, output: int, sum_of: dict[int, int]) -> int | None:
        """A sum, where some of its terms become one; None where nothing is gained."""
        graph, groups = self.graph, dict[int, dict[int, float]]()
        found, n_joining = self.terms(output, sum_of)
        for term, factor in found.items():
            groups.setdefault(self.pattern(term), {})[term] = factor
        gains = Counter[int]()  # sums of one length are taken in one loop
        for terms in groups.values():
            gains[len(terms)] += self.gain([*terms])
        # a term that comes often, as a parameter times many constants, stands once
        if n_joining - 2 * len(found) <= self.least and not any(gain > self.least for gain in gains.values()):
            return None
        total = graph.const(0.0)
        for terms in groups.values():
            if gains[len(terms)] > self.least and self.gain([*terms]):
                total = graph.apply("add", total, self.merged([*terms], [*terms.values()]))
            else:
                for term, factor in terms.items():
                    total = graph.apply("add", total, graph.apply("mul", graph.const(factor), term))
        return total

    def gain(self, terms: list[int]) -> int:
        """How many operations are spared where terms become one; 0 where they cannot."""
        graph = self.graph
        if len(terms) < FEWEST or graph.support(terms[0]).bit_count() > MAX_SINGLE:
            return 0
        [first, second] = (graph.live([term]) for term in terms[:2])
        own = [n for n in set(first).difference(second) if graph.nodes[n].op not in LEAVES]
        return (len(terms) - 1) * (len(own) + 1)  # one for the addition

    def merged(self, terms: list[int], factors: list[float]) -> int:
        """The sum of terms that have one pattern, times their factors, as the total of one term over a table."""
        graph = self.graph
        known: dict[tuple[int, ...], int] = {}
        stack = [tuple(terms)]
        while stack:
            alike = stack[-1]
            if alike not in known and len(set(alike)) == 1:
                known[alike] = alike[0]
            elif alike not in known and graph.value(alike[0]) is not None:
                known[alike] = graph.column([graph.nodes[number].args[0] for number in alike])
            elif alike not in known:
                parts = [*zip(*map(self.in_order, alike), strict=True)]
                missing = [part for part in parts if part not in known]
                stack += missing
                if missing:
                    continue
                known[alike] = self.again(alike[0], [known[part] for part in parts])
            stack.pop()
        same = len(set(factors)) == 1
        factor = graph.const(factors[0]) if same else graph.column(factors)
        return graph.total(len(terms), graph.apply("mul", factor, known[tuple(terms)]))

    def in_order(self, number: int) -> list[int]:
        """The parts of a node, in an order that is the same in all nodes of its pattern."""
        parts = self.parts(number)
        return sorted(parts, key=self.pattern) if self.graph.nodes[number].op in COMMUTATIVE else parts

    def pattern(self, number: int) -> int:
        """Nodes of one pattern differ in their constants only."""
        for n in range(len(self.patterns), number + 1):
            op, args = self.graph.nodes[n][:2]
            if op == "const" and isinstance(args[0], float):
                key: tuple = ("const",)
            elif op in LEAVES or op == "total":
                key = (op, n)
            else:
                key = (op, *map(self.patterns.__getitem__, self.in_order(n)))
            self.patterns.append(self._numbers.setdefault(key, len(self._numbers)))
        return self.patterns[number]
