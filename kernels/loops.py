"""Buffers, and the loops that fill them: the source of a function of arrays that `kernels.arrays` has read.

Memory is written by *writes*: a sum is a write `+=` into a view with stride 0 along the summed axes, a concatenation
is one write for each piece. Each write pulls the expressions that it needs, and writes over the same range share one
loop nest. A loop whose mask of places that may differ from zero is thin runs over a table of these places. Writes that
differ in their numbers only become one loop over these numbers.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from kernels.rolling import alike, integer, rolled, worthwhile
from kernels.statements import BOOLEAN, EXPRESSIONS, constant

_TEXT = EXPRESSIONS | {
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
_BOOLEAN = BOOLEAN | {"lt_to", "le_to", "to_bool"}
# Computed again wherever it is needed rather than stored.
_CHEAP = {"add", "sub", "mul", "div", "neg", "abs", "select", "copy", "to_number", "to_bool", "max", "min"} | _BOOLEAN
# An expression of more operations than this is stored where two loops need it.
MAX_REPEATED = 24
# A sum of more terms is a write for each of them.
MOST_TERMS = 24
# mode of a write -> (start, how a value is added to what is there)
_MODES = {
    "set": (0.0, "{1}"),
    "add": (0.0, "{0} + {1}"),
    "mul": (1.0, "{0} * {1}"),
    "max": (-math.inf, EXPRESSIONS["max"]),
    "min": (math.inf, EXPRESSIONS["min"]),
}


class _Buffer:
    """A contiguous array: an argument "x0", constants "c", scratch "w", an output "y0", or an expression.

    The memory of a constant holds its values; that of any other is only there to be viewed.
    """

    def __init__(self, number: int, shape: tuple, place: str, *, values: np.ndarray | None = None, boolean=False):
        self.number = number
        strides = tuple(8 * math.prod(shape[k + 1 :]) for k in range(len(shape)))
        self.memory = as_strided(np.empty(1), shape, strides, writeable=False) if values is None else values
        self.place = place
        self.boolean = boolean
        self.op = ""
        self.args: tuple[_Value, ...] = ()
        self.indirect: _Indirect | None = None
        self.source: _Value | None = None  # what a "take" reads
        self.fill = math.nan
        self.mask = _dense(len(shape))
        self.writes: list[_Write] = []
        self.start = 0.0
        self.stored = False


class _Value(NamedTuple):
    """A view of a buffer, and the places (up to broadcasting) where it may differ from zero."""

    buffer: _Buffer
    view: np.ndarray
    mask: np.ndarray

    @property
    def shape(self) -> tuple:
        return self.view.shape

    @property
    def inline(self) -> bool:
        """Whether this is an expression that a loop may evaluate where it stands."""
        return bool(self.buffer.op) and not self.buffer.stored and self.view is self.buffer.memory


class _Indirect(NamedTuple):
    """Computed indices: each moves the address by `stride` elements; `drop` says that they may lie outside."""

    indices: tuple[_Value, ...]
    strides: tuple[int, ...]
    limits: tuple[int, ...]
    drop: bool


class _Write(NamedTuple):
    target: _Value
    mode: str
    value: _Value
    indirect: _Indirect | None = None
    before: int | None = None  # cumulative: the axis along which the element before is added
    after: bool = False  # only when the writes before it are done

    @property
    def n_elements(self) -> int:
        """How many elements are computed."""
        return int(np.count_nonzero(np.broadcast_to(self.value.mask, self.value.shape)))


class _Pool:
    """Constants of several functions in one flat array; equal ones are stored once."""

    def __init__(self) -> None:
        self.offsets: dict[bytes, int] = {}
        self.parts: list[np.ndarray] = []
        self.size = 0

    def offset(self, values: np.ndarray) -> int:
        key = values.tobytes()
        if key not in self.offsets:
            self.offsets[key] = self.size
            self.parts.append(values.ravel())
            self.size += values.size
        return self.offsets[key]

    def flat(self) -> np.ndarray:
        return np.concatenate([*self.parts, np.zeros(1)])


def _dense(n_axes: int) -> np.ndarray:
    return np.ones((1,) * n_axes, dtype=bool)


def _thin(mask: np.ndarray) -> bool:
    """Whether a loop over the places of a mask is shorter than one over everything."""
    return bool(2 * np.count_nonzero(mask) < mask.size)


def _arguments(buffer: _Buffer) -> list[_Value]:
    """What an expression reads."""
    return [*buffer.args, *([buffer.source] if buffer.source else [])]


def _reads(buffer: _Buffer) -> list[_Value]:
    """What an expression, or the writes into a buffer, read."""
    reads = _arguments(buffer)
    for write in buffer.writes:
        reads += [write.value, *(write.indirect.indices if write.indirect else ())]
    return reads


def _address(view: np.ndarray) -> int:
    return view.__array_interface__["data"][0]


class _Writer:
    """Writes the loops of a function; its targets are the outputs, each with the writes that fill it."""

    def __init__(self, n_inputs: int, targets: Sequence[_Buffer], pool: _Pool) -> None:
        self.pool = pool
        self.offsets: dict[_Buffer, int] = {}
        self.n_scratch = 0
        self.n_names = 0
        self.n_inputs = n_inputs
        self.targets = targets
        self.order = self.live()
        self.rounds = self.plan()

    def live(self) -> list[_Buffer]:
        """What the outputs need; counts the readers of each, and finds those that must be stored for them."""
        self.uses: dict[_Buffer, int] = {}
        self.viewed: set[_Buffer] = set()
        found, stack = set(self.targets), list(self.targets)
        while stack:
            for value in _reads(stack.pop()):
                buffer = value.buffer
                self.uses[buffer] = self.uses.get(buffer, 0) + 1
                if value.view is not buffer.memory:
                    self.viewed.add(buffer)
                if buffer not in found:
                    found.add(buffer)
                    stack.append(buffer)
        return sorted(found, key=lambda b: b.number)

    def plan(self) -> dict[tuple, list[_Write]]:
        """The writes by (round, shape, mask): those of a round read only what earlier rounds have written."""
        rounds: dict[tuple, list[_Write]] = {}
        cost: dict[_Buffer, int] = {}
        ready: dict[_Buffer, int] = {}  # the first round that may read a buffer
        for buffer in self.order:
            ready[buffer] = max((ready[v.buffer] for v in _arguments(buffer)), default=0)
            if buffer.op:
                cost[buffer] = 1 + sum(cost[v.buffer] for v in buffer.args if v.inline)
                # an array of mostly zeros is not worth its memory
                often = (
                    self.uses[buffer] > 1
                    and not _thin(buffer.mask)
                    and (buffer.op not in _CHEAP or cost[buffer] > MAX_REPEATED)
                )
                if buffer in self.viewed or often:
                    itself = _Value(buffer, buffer.memory, buffer.mask)
                    buffer.writes.append(_Write(itself, "set", itself))
            done = ready[buffer]
            buffer.writes = [part for write in buffer.writes for part in self.split(write)]
            if buffer.op and buffer.writes and buffer.writes[0].value.buffer is not buffer:
                buffer.op, buffer.args = "", ()  # made by its terms
            for write in buffer.writes:
                reads = [write.value, *(write.indirect.indices if write.indirect else ())]
                when = max(ready[v.buffer] for v in reads)
                when = max(when, done) if write.after else when
                done = max(done, when + 1)
                mask = write.value.mask
                thin = _thin(mask) and mask.any()
                key = (when, write.value.shape, mask.shape if thin else None, mask.tobytes() if thin else None)
                rounds.setdefault(key, []).append(write)
            if buffer.writes:
                buffer.stored = True
                ready[buffer] = done
        return rounds

    def split(self, write: _Write) -> list[_Write]:
        """A write of a sum as one for each term, where most terms are zero at most places, or there are very many."""
        terms = self.terms(write.value)
        sizes = [np.count_nonzero(np.broadcast_to(term.mask, term.shape)) for term in (write.value, *terms)]
        whole = len(terms) == 1 or write.mode != "set" or write.indirect or write.after
        if whole or (len(terms) <= MOST_TERMS and 2 * sum(sizes[1:]) > len(terms) * sizes[0]):
            return [write]
        target = write.target
        return [_Write(_Value(target.buffer, target.view, term.mask), "add", term) for term in terms]

    def terms(self, value: _Value) -> list[_Value]:
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

    def offset(self, buffer: _Buffer) -> int:
        if buffer.place == "c":
            return self.pool.offset(buffer.memory)
        if buffer.place != "w":
            return 0
        if buffer not in self.offsets:
            self.offsets[buffer] = self.n_scratch
            self.n_scratch += buffer.memory.size
        return self.offsets[buffer]

    def address(self, value: _Value, extra: Sequence[str] = ()) -> str:
        """An element of a buffer, in terms of the loop indices."""
        start = (_address(value.view) - _address(value.buffer.memory)) // 8 + self.offset(value.buffer)
        terms = [integer(start)] if start else []
        for axis, (n, stride) in enumerate(zip(value.shape, value.view.strides, strict=True)):
            if n > 1 and stride:
                terms.append(f"i{axis}" if stride == 8 else f"{integer(stride // 8)} * i{axis}")
        return f"{value.buffer.place}[{' + '.join([*terms, *extra]) or integer(0)}]"

    def source(self, name: str, own_memory: bool = True) -> str:
        """The function's text: `name(c, inputs..., outputs...)`, all arrays flat.

        Without memory of its own it takes `n_scratch` numbers more, `w`, and both these and the outputs must be zero at
        the first call and kept.
        """
        body: list[str] = []
        # what is added up, or written at computed places, starts from zero; all else is written at the same places
        for buffer in self.order:
            if buffer.place == "w" and any(w.mode == "add" or w.indirect for w in buffer.writes):
                self.offset(buffer)
        if self.n_scratch and not own_memory:
            body += [f"for k in range({integer(self.n_scratch)}):", "    w[k] = 0.0"]
        for buffer in self.order:
            output = buffer.place.startswith("y")
            added = output and any(write.mode == "add" for write in buffer.writes)
            thin = own_memory and output and not buffer.writes[0].value.mask.all()
            if buffer.writes and (buffer.start != 0.0 or added or thin):
                place = f"{buffer.place}[{integer(self.offset(buffer))} + k]"
                body += [f"for k in range({integer(buffer.memory.size)}):"]
                body += [f"    {place} = {constant(buffer.start)}"]
        for _, keys in itertools.groupby(sorted(self.rounds, key=lambda k: k[0]), key=lambda k: k[0]):
            body += self.round([(key[1], key[2] is not None, self.rounds[key]) for key in keys])
        arguments = ["c", *(f"x{k}" for k in range(self.n_inputs)), *(t.place for t in self.targets)]
        arguments += [] if own_memory else ["w"]
        integers = {0} | {int(n) for n in re.findall(r"\bU(\d+)\b", "\n".join(body))}
        lines = [f"U{n} = np.uint64({n})" for n in sorted(integers)]
        # parts of arrays that are handed to a function are counted, which takes as long as few bins
        inline = "" if own_memory else "forceinline=True, "
        lines += ["", "", f"@lowered({inline}**COMPILE_ROW)", f"def {name}({', '.join(arguments)}):"]
        lines += [f"    w = np.zeros({self.n_scratch})"] if self.n_scratch and own_memory else []
        return "\n".join([*lines, *(f"    {line}" for line in body or ["pass"])]) + "\n"

    def round(self, nests: Sequence[tuple[tuple, bool, list[_Write]]]) -> list[str]:
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

    def loops(self, shape: tuple, mask: np.ndarray | None, writes: Sequence[_Write]) -> list[str]:
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

    def pulled(self, writes: Sequence[_Write]) -> tuple[list[_Buffer], list[np.ndarray]]:
        """The expressions that some writes evaluate, in order, and all views that they read or write."""
        inline: set[_Buffer] = set()
        views, stack = [], []
        for write in writes:
            views.append(write.target.view)
            if write.value.buffer is write.target.buffer:  # an expression that is stored
                inline.add(write.value.buffer)
                stack += _arguments(write.value.buffer)
            else:
                stack += [write.value, *(write.indirect.indices if write.indirect else ())]
        while stack:
            value = stack.pop()
            if not value.inline:
                views.append(value.view)
            elif value.buffer not in inline:
                inline.add(value.buffer)
                stack += _arguments(value.buffer)
        return sorted(inline, key=lambda b: b.number), views


class _Nest:
    """The lines of one loop nest, by depth."""

    def __init__(self, writer: _Writer, depths: dict[int, int]) -> None:
        self.writer = writer
        self.depths = depths
        self.deepest = max(depths.values(), default=0)
        self.heads: list[str] = []
        self.lines: list[list[str]] = [[] for _ in range(self.deepest + 1)]
        self.tails: list[list[str]] = [[] for _ in range(self.deepest + 1)]
        self.values: dict[_Buffer, tuple[str, int]] = {}
        self.loaded: dict[str, tuple[str, int]] = {}

    def depth(self, view: np.ndarray) -> int:
        """The loop outside of which an element of a view does not change."""
        moving = [self.depths[axis] for axis, n in enumerate(view.shape) if n > 1 and view.strides[axis]]
        return max(moving, default=0)

    def assign(self, expression: str, depth: int) -> str:
        name = self.writer.name()
        self.lines[depth].append(f"{name} = {expression}")
        return name

    def get(self, value: _Value) -> tuple[str, int]:
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

    def evaluate(self, buffer: _Buffer) -> None:
        if buffer.source is not None and buffer.indirect is not None:
            self.values[buffer] = self.take(buffer.source, buffer.indirect, buffer.fill)
            return
        names, depths = zip(*map(self.get, buffer.args), strict=True)
        depth = max(depths)
        self.values[buffer] = (self.assign(_TEXT[buffer.op].format(*names), depth), depth)

    def indirect(self, found: _Indirect) -> tuple[list[str], list[str], int]:
        """Terms of an address, conditions that it lies inside, and the depth."""
        terms, inside, deepest = [], [], 0
        for index, stride, limit in zip(found.indices, found.strides, found.limits, strict=True):
            name, depth = self.get(index)
            deepest = max(deepest, depth)
            terms.append(f"{integer(stride)} * np.uint64(min(max({name}, 0.0), {float(limit)}))")
            inside += [f"{name} >= 0.0", f"{name} <= {float(limit)}"] if found.drop else []
        return terms, inside, deepest

    def take(self, source: _Value, found: _Indirect, fill: float) -> tuple[str, int]:
        terms, inside, depth = self.indirect(found)
        depth = max(depth, self.depth(source.view))
        text = self.writer.address(source, terms) + (" != 0.0" if source.buffer.boolean else "")
        if inside:
            text = f"{text} if {' and '.join(inside)} else {constant(fill)}"
        return self.assign(text, depth), depth

    def write(self, write: _Write) -> None:
        target, mode = write.target, _MODES[write.mode][1]
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
