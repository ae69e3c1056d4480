"""The loops that fill buffers: the source of a function of arrays that `kernels.arrays` has read.

Memory is written by *writes*: a sum is a write `+=` into a view with stride 0 along the summed axes, a concatenation
is one write for each piece. Each write pulls the expressions that it needs, and writes over the same range share one
loop nest. A loop whose mask of places that may differ from zero is thin runs over a table of these places. Writes that
differ in their numbers only become one loop over these numbers.
"""

import itertools
import re
from collections.abc import Sequence

import numpy as np

from kernels.buffers import CONDITIONS, MODES, Buffer, Indirect, Pool, Value, Write, address, is_thin
from kernels.operations import OPERATIONS
from kernels.rolling import alike, integer, rolled, worthwhile
from kernels.statements import constant

__all__ = ["Writer"]

_TEXT = {op: operation.text for op, operation in OPERATIONS.items()} | {
    "div": "{0} / {1}",
    "to_number": "(1.0 if {0} else 0.0)",
    "to_bool": "{0} != 0.0",
    "trunc": "np.trunc({0})",
    "copy": "{0}",
    # NaN sorts last
    "lt_to": "({0} < {1} or ({1} != {1} and {0} == {0}))",
    "le_to": "({0} <= {1} or {1} != {1})",
    "logistic": "1.0 / (1.0 + exp(-{0}))",
}
# Computed again wherever it is needed rather than stored.
_CHEAP = {"add", "sub", "mul", "div", "neg", "abs", "select", "copy", "to_number", "to_bool", "max", "min"} | CONDITIONS
# An expression of more operations than this is stored where two loops need it.
MAX_REPEATED = 24
# A sum of more terms is a write for each of them.
MOST_TERMS = 24


class Writer:
    """Writes the loops of a function; its targets are the outputs, each with the writes that fill it."""

    def __init__(self, n_inputs: int, targets: Sequence[Buffer], pool: Pool) -> None:
        self.pool = pool
        self.offsets: dict[Buffer, int] = {}
        self.n_scratch = 0
        self.n_names = 0
        self.n_inputs = n_inputs
        self.targets = targets
        self.order = self.live()
        self.rounds = self.plan()

    def live(self) -> list[Buffer]:
        """What the outputs need; counts the readers of each, and finds those that must be stored for them."""
        self.uses: dict[Buffer, int] = {}
        self.viewed: set[Buffer] = set()
        found, stack = set(self.targets), list(self.targets)
        while stack:
            for value in stack.pop().reads:
                buffer = value.buffer
                self.uses[buffer] = self.uses.get(buffer, 0) + 1
                if value.view is not buffer.memory:
                    self.viewed.add(buffer)
                if buffer not in found:
                    found.add(buffer)
                    stack.append(buffer)
        return sorted(found, key=lambda b: b.number)

    def plan(self) -> dict[tuple, list[Write]]:
        """The writes by (round, shape, mask): those of a round read only what earlier rounds have written."""
        rounds: dict[tuple, list[Write]] = {}
        cost: dict[Buffer, int] = {}
        ready: dict[Buffer, int] = {}  # the first round that may read a buffer
        for buffer in self.order:
            ready[buffer] = max((ready[v.buffer] for v in buffer.arguments), default=0)
            if buffer.op:
                cost[buffer] = 1 + sum(cost[v.buffer] for v in buffer.args if v.inline)
                # an array of mostly zeros is not worth its memory
                often = (
                    self.uses[buffer] > 1
                    and not is_thin(buffer.mask)
                    and (buffer.op not in _CHEAP or cost[buffer] > MAX_REPEATED)
                )
                if buffer in self.viewed or often:
                    itself = Value(buffer, buffer.memory, buffer.mask)
                    buffer.writes.append(Write(itself, "set", itself))
            done = ready[buffer]
            buffer.writes = [part for write in buffer.writes for part in self.split(write)]
            if buffer.op and buffer.writes and buffer.writes[0].value.buffer is not buffer:
                buffer.op, buffer.args = "", ()  # made by its terms
            for write in buffer.writes:
                when = max(ready[v.buffer] for v in write.reads)
                when = max(when, done) if write.after else when
                done = max(done, when + 1)
                mask = write.value.mask
                thin = is_thin(mask) and mask.any()
                key = (when, write.value.shape, mask.shape if thin else None, mask.tobytes() if thin else None)
                rounds.setdefault(key, []).append(write)
            if buffer.writes:
                buffer.stored = True
                ready[buffer] = done
        return rounds

    def split(self, write: Write) -> list[Write]:
        """A write of a sum as one for each term, where most terms are zero at most places, or there are very many."""
        terms = self.terms(write.value)
        sizes = [np.count_nonzero(np.broadcast_to(term.mask, term.shape)) for term in (write.value, *terms)]
        whole = len(terms) == 1 or write.mode != "set" or write.indirect or write.after
        if whole or (len(terms) <= MOST_TERMS and 2 * sum(sizes[1:]) > len(terms) * sizes[0]):
            return [write]
        target = write.target
        return [Write(Value(target.buffer, target.view, term.mask), "add", term) for term in terms]

    def terms(self, value: Value) -> list[Value]:
        """What is added to a value, if nobody else needs the sums on the way."""
        buffer = value.buffer
        if buffer.op != "add" or buffer.stored or value.view is not buffer.memory:
            return [value]
        return [
            term
            for arg in buffer.args
            for term in (self.terms(arg) if self.uses[arg.buffer] == 1 and arg.buffer not in self.viewed else [arg])
        ]

    def name(self) -> str:
        self.n_names += 1
        return f"v{self.n_names}"

    def offset(self, buffer: Buffer) -> int:
        if buffer.place == "c":
            return self.pool.offset(buffer.memory)
        if buffer.place != "w":
            return 0
        if buffer not in self.offsets:
            self.offsets[buffer] = self.n_scratch
            self.n_scratch += buffer.memory.size
        return self.offsets[buffer]

    def address(self, value: Value, extra: Sequence[str] = ()) -> str:
        """An element of a buffer, in terms of the loop indices."""
        start = (address(value.view) - address(value.buffer.memory)) // 8 + self.offset(value.buffer)
        terms = [integer(start)] if start else []
        for axis, (n, stride) in enumerate(zip(value.shape, value.view.strides, strict=True)):
            if n > 1 and stride:
                terms.append(f"i{axis}" if stride == 8 else f"{integer(stride // 8)} * i{axis}")
        return f"{value.buffer.place}[{' + '.join([*terms, *extra]) or integer(0)}]"

    def source(self, name: str) -> str:
        """The function's text: `name(c, inputs..., outputs..., w)`, all arrays flat.

        `w` is memory for `n_scratch` numbers; it and the outputs must be zero at the first call and kept.
        """
        body: list[str] = []
        # what is added up, or written at computed places, starts from zero; all else is written at the same places
        for buffer in self.order:
            if buffer.place == "w" and any(w.mode == "add" or w.indirect for w in buffer.writes):
                self.offset(buffer)
        if self.n_scratch:
            body += [f"for k in range({integer(self.n_scratch)}):", "    w[k] = 0.0"]
        for buffer in self.order:
            added = buffer.place.startswith("y") and any(write.mode == "add" for write in buffer.writes)
            if buffer.writes and (buffer.start != 0.0 or added):
                place = f"{buffer.place}[{integer(self.offset(buffer))} + k]"
                body += [f"for k in range({integer(buffer.memory.size)}):"]
                body += [f"    {place} = {constant(buffer.start)}"]
        for _, keys in itertools.groupby(sorted(self.rounds, key=lambda k: k[0]), key=lambda k: k[0]):
            body += self.round([(key[1], key[2] is not None, self.rounds[key]) for key in keys])
        arguments = ["c", *(f"x{k}" for k in range(self.n_inputs)), *(t.place for t in self.targets), "w"]
        integers = {0} | {int(n) for n in re.findall(r"\bU(\d+)\b", "\n".join(body))}
        lines = [f"U{n} = np.uint64({n})" for n in sorted(integers)]
        # parts of arrays that are handed to a function are counted, which takes as long as few bins
        lines += ["", "", "@lowered(forceinline=True, **COMPILE_ROW)", f"def {name}({', '.join(arguments)}):"]
        return "\n".join([*lines, *(f"    {line}" for line in body or ["pass"])]) + "\n"

    def round(self, nests: Sequence[tuple[tuple, bool, list[Write]]]) -> list[str]:
        """The loops of a round: (shape, whether its mask is thin, writes) of each nest."""
        nests = [nest for nest in nests if 0 not in nest[0] and any(w.value.mask.any() for w in nest[2])]
        each = [(shape, thin, write) for shape, thin, writes in nests for write in writes]
        texts = ["\n".join(self.loops(shape, w.value.mask if thin else None, [w])) for shape, thin, w in each]
        groups = [
            [texts[k] for k in group]
            for group in alike(texts)
            if worthwhile(texts[group[0]], len(group), each[group[0]][2].n_elements)
        ]
        in_groups = {text for group in groups for text in group}
        left = {id(write) for (_, _, write), text in zip(each, texts, strict=True) if text not in in_groups}
        body: list[str] = []
        for shape, thin, writes in nests:
            if alone := [write for write in writes if id(write) in left]:
                body += self.loops(shape, alone[0].value.mask if thin else None, alone)
        for group in groups:
            body += rolled(group, self.name, self.pool.offset)
        return body

    def loops(self, shape: tuple, mask: np.ndarray | None, writes: Sequence[Write]) -> list[str]:
        """One loop nest that makes some writes."""
        inline, views = self.pulled(writes)
        listed = [] if mask is None else [axis for axis, n in enumerate(mask.shape) if n > 1]
        order = [axis for axis, n in enumerate(shape) if n > 1 and axis not in listed]
        if order:  # next to each other in memory is best for the innermost loop, fixed is second
            gain = lambda axis: sum({0: 1, 8: 2, -8: 1}.get(v.strides[axis], -1) for v in views)  # noqa: E731
            innermost = max(reversed(order), key=gain)
            order = [*(axis for axis in order if axis != innermost), innermost]
        first = 1 if listed else 0
        depths = dict.fromkeys(listed, 1) | {axis: first + k + 1 for k, axis in enumerate(order)}
        nest = _Nest(self, depths)
        if mask is not None and listed:
            table = np.argwhere(mask)[:, listed].astype(np.float64)
            nest.heads.append(f"for r in range({integer(len(table))}):")
            start = self.pool.offset(table)
            for k, axis in enumerate(listed):
                place = f"{integer(start + k)} + {integer(len(listed))} * r"
                nest.lines[1].append(f"i{axis} = np.uint64(c[{place}])")
        nest.heads += [f"for i{axis} in range({integer(shape[axis])}):" for axis in order]
        for buffer in inline:
            nest.evaluate(buffer)
        for write in writes:
            nest.write(write)
        return nest.text()

    def pulled(self, writes: Sequence[Write]) -> tuple[list[Buffer], list[np.ndarray]]:
        """The expressions that some writes evaluate, in order, and all views that they read or write."""
        inline: set[Buffer] = set()
        views, stack = [], []
        for write in writes:
            views.append(write.target.view)
            if write.value.buffer is write.target.buffer:  # an expression that is stored
                inline.add(write.value.buffer)
                stack += write.value.buffer.arguments
            else:
                stack += write.reads
        while stack:
            value = stack.pop()
            if not value.inline:
                views.append(value.view)
            elif value.buffer not in inline:
                inline.add(value.buffer)
                stack += value.buffer.arguments
        return sorted(inline, key=lambda b: b.number), views


class _Nest:
    """The lines of one loop nest, by depth."""

    def __init__(self, writer: Writer, depths: dict[int, int]) -> None:
        self.writer = writer
        self.depths = depths
        self.deepest = max(depths.values(), default=0)
        self.heads: list[str] = []
        self.lines: list[list[str]] = [[] for _ in range(self.deepest + 1)]
        self.tails: list[list[str]] = [[] for _ in range(self.deepest + 1)]
        self.values: dict[Buffer, tuple[str, int]] = {}
        self.loaded: dict[str, tuple[str, int]] = {}

    def depth(self, view: np.ndarray) -> int:
        """The loop outside of which an element of a view does not change."""
        moving = [self.depths[axis] for axis, n in enumerate(view.shape) if n > 1 and view.strides[axis]]
        return max(moving, default=0)

    def assign(self, expression: str, depth: int) -> str:
        name = self.writer.name()
        self.lines[depth].append(f"{name} = {expression}")
        return name

    def get(self, value: Value) -> tuple[str, int]:
        """The name of a value's element, and the depth at which it is known."""
        buffer = value.buffer
        if value.view is buffer.memory and buffer in self.values:
            return self.values[buffer]
        depth = self.depth(value.view)
        if buffer.place == "c" and depth == 0:
            element = value.view.flat[0]
            text = f"({constant(bool(element) if buffer.boolean else float(element))})"
            return text, 0
        place = self.writer.address(value)
        text = f"{place} != 0.0" if buffer.boolean else place
        if text not in self.loaded:
            self.loaded[text] = (self.assign(text, depth), depth)
        return self.loaded[text]

    def evaluate(self, buffer: Buffer) -> None:
        if buffer.source is not None and buffer.indirect is not None:
            self.values[buffer] = self.take(buffer.source, buffer.indirect, buffer.fill)
            return
        names, depths = zip(*map(self.get, buffer.args), strict=True)
        depth = max(depths)
        self.values[buffer] = (self.assign(_TEXT[buffer.op].format(*names), depth), depth)

    def indirect(self, found: Indirect) -> tuple[list[str], list[str], int]:
        """Terms of an address, conditions that it lies inside, and the depth."""
        terms, inside, deepest = [], [], 0
        for index, stride, limit in zip(found.indices, found.strides, found.limits, strict=True):
            name, depth = self.get(index)
            deepest = max(deepest, depth)
            terms.append(f"{integer(stride)} * np.uint64(min(max({name}, 0.0), {float(limit)}))")
            inside += [f"{name} >= 0.0", f"{name} <= {float(limit)}"] if found.drop else []
        return terms, inside, deepest

    def take(self, source: Value, found: Indirect, fill: float) -> tuple[str, int]:
        terms, inside, depth = self.indirect(found)
        depth = max(depth, self.depth(source.view))
        text = self.writer.address(source, terms) + (" != 0.0" if source.buffer.boolean else "")
        if inside:
            text = f"{text} if {' and '.join(inside)} else {constant(fill)}"
        return self.assign(text, depth), depth

    def write(self, write: Write) -> None:
        target, mode = write.target, MODES[write.mode][1]
        name, _ = self.values[target.buffer] if write.value.buffer is target.buffer else self.get(write.value)
        name = f"(1.0 if {name} else 0.0)" if write.value.buffer.boolean else name
        innermost = self.lines[self.deepest]
        if write.indirect:
            terms, inside, _ = self.indirect(write.indirect)
            place = self.writer.address(target, terms)
            result = mode.format(place, name)
            outside = f" if {' and '.join(inside)} else {place}" if inside else ""
            innermost.append(f"{place} = {result}{outside}")
        elif write.before is not None:
            axis, step = write.before, target.view.strides[write.before] // 8
            place = self.writer.address(target)
            if target.shape[axis] > 1:
                before = self.assign(f"{place[:-1]} + {integer(-step)}] if i{axis} > U0 else 0.0", self.deepest)
                name = f"({mode.format(before, name)} if i{axis} > U0 else {name})"
            innermost.append(f"{place} = {name}")
        else:
            place, depth = self.writer.address(target), self.depth(target.view)
            if write.mode == "set" or depth == self.deepest:
                innermost.append(f"{place} = {mode.format(place, name)}")
            else:  # a sum in a register
                total = self.assign(constant(target.buffer.start), depth)
                innermost.append(f"{total} = {mode.format(total, name)}")
                self.tails[depth].append(f"{place} = {mode.format(place, total)}")

    def text(self) -> list[str]:
        result = []
        for depth, lines in enumerate(self.lines):
            indent = "    " * depth
            result += ["    " * (depth - 1) + self.heads[depth - 1]] if depth else []
            result += [indent + line for line in lines or (["pass"] if depth == self.deepest else [])]
        for depth in range(self.deepest, -1, -1):
            result += ["    " * depth + line for line in self.tails[depth]]
        return result
