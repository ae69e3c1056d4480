"""Long sums whose terms differ in their constants only, as of a convolution or of an integral, as sums over a table.

A model that sums f(x, theta, c_k) over nodes c_k is traced term by term. Here the terms become one, which reads its
constants from a table, before derivatives are taken: the program is as long as that of one term.
"""

from collections.abc import Sequence

from kernels.nodes import COMMUTATIVE, LEAVES, Graph, Partials
from kernels.secondorder import MAX_SINGLE

__all__ = ["Tables"]

# Terms become one where this spares so many operations: written out, a short sum is faster.
WORTHWHILE = 150


class Tables:
    """Rewrites nodes of a graph.

    Terms are alike if they have one pattern: the same operations on the same leaves, with any constants.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.new: dict[int, int] = {}  # what stands for a node
        self.patterns: list[int] = []
        self._numbers: dict[tuple, int] = {}

    def rewritten(self, output: int) -> int:
        """The node of the same value, up to rounding, in which long sums are sums over tables.

        A sum that depends on more than `kernels.secondorder.MAX_SINGLE` parameters stays as it is.
        """
        live = self.needed(output)
        part_of_sum = self.parts_of_sums(live)
        for number in live:
            if number not in self.new:
                whole = self.is_sum(number) and number not in part_of_sum
                summed = self.summed(number, part_of_sum) if whole else None
                self.new[number] = self.again(number) if summed is None else summed
        return self.new[output]

    def parts_of_sums(self, live: list[int]) -> set[int]:
        """The nodes that nobody asks for but one sum, though it may be times a constant."""
        users: dict[int, list[int]] = {}
        for number in live:
            for part in self.parts(number):
                users.setdefault(part, []).append(number)
        found = set[int]()
        for number in reversed(live):
            match users.get(number, []):
                case [user] if self.is_sum(user) or (user in found and self.scaled(user)):
                    found.add(number)
        return found

    def is_sum(self, number: int) -> bool:
        return self.graph.nodes[number].op in ("add", "sub")

    def scaled(self, number: int) -> tuple[int, int] | None:
        """(constant, node) of which a node is the product."""
        op, args = self.graph.nodes[number][:2]
        for constant, other in [args, args[::-1]] if op == "mul" else []:
            if isinstance(self.graph.value(constant), float):
                return constant, other
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

    def summed(self, output: int, part_of_sum: set[int]) -> int | None:
        """A sum, where some of its terms become one."""
        graph = self.graph
        groups: dict[tuple[str, int], list[int]] = {}
        one = graph.const(1.0)
        stack = [("add", one, output)]
        while stack:
            sign, factor, number = stack.pop()
            op, args = graph.nodes[number][:2]
            if self.is_sum(number) and (number == output or number in part_of_sum):
                other = sign if op == "add" else {"add": "sub", "sub": "add"}[sign]
                stack += [(other, factor, args[1]), (sign, factor, args[0])]
            elif (scaled := self.scaled(number)) and scaled[1] in part_of_sum:
                stack.append((sign, graph.apply("mul", factor, scaled[0]), scaled[1]))
            else:
                number = graph.apply("mul", factor, self.new[number])
                groups.setdefault((sign, self.pattern(number)), []).append(number)
        if not any(self.worthwhile(terms) for terms in groups.values()):
            return None
        total = graph.const(0.0)
        for (sign, _), terms in groups.items():
            for term in [self.merged(terms)] if self.worthwhile(terms) else terms:
                total = graph.apply(sign, total, term)
        return total

    def worthwhile(self, terms: list[int]) -> bool:
        graph = self.graph
        if len(terms) < 2 or graph.support(terms[0]).bit_count() > MAX_SINGLE:
            return False
        [first, second] = (graph.live([term]) for term in terms[:2])
        own = [n for n in set(first).difference(second) if graph.nodes[n].op not in LEAVES]
        return (len(terms) - 1) * len(own) > WORTHWHILE

    def merged(self, terms: list[int]) -> int:
        """The sum of terms that have one pattern, as the total of one term over a table."""
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
        return graph.total(len(terms), known[tuple(terms)])

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
