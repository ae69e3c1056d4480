"""Buffers, the arrays that a function of arrays reads and makes (see `kernels.arrays`), and views of them."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from kernels.nodes import BOOLEAN
from kernels.operations import OPERATIONS

__all__ = [
    "CONDITIONS",
    "MODES",
    "Buffer",
    "Buffers",
    "Indirect",
    "Pool",
    "Value",
    "Write",
    "address",
    "collapsed",
    "dense",
    "is_thin",
]

# Where the result is zero: if both arguments are, if one of them is, if the first is.
_ZERO_IF_BOTH = {"add", "sub", "or", "max", "min", "lt", "gt", "ne"}
_ZERO_IF_EITHER = {"mul", "and"}
_ZERO_IF_FIRST = {"neg", "abs", "sign", "sqrt", "cbrt", "sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh"}
_ZERO_IF_FIRST |= {"expm1", "log1p", "erf", "floor", "ceil", "trunc", "copy", "to_number", "to_bool", "div", "rem"}
# Operations whose values are true or false.
CONDITIONS = BOOLEAN | {"lt_to", "le_to", "to_bool"}
# mode of a write -> (start, how a value is added to what is there)
MODES = {
    "set": (0.0, "{1}"),
    "add": (0.0, "{0} + {1}"),
    "mul": (1.0, "{0} * {1}"),
    "max": (-math.inf, OPERATIONS["max"].text),
    "min": (math.inf, OPERATIONS["min"].text),
}


class Buffer:
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
        self.args: tuple[Value, ...] = ()
        self.indirect: Indirect | None = None
        self.source: Value | None = None  # what a "take" reads
        self.fill = math.nan
        self.mask = dense(len(shape))
        self.writes: list[Write] = []
        self.start = 0.0
        self.stored = False

    @property
    def arguments(self) -> list["Value"]:
        """What an expression reads."""
        return [*self.args, *([self.source] if self.source else [])]

    @property
    def reads(self) -> list["Value"]:
        """What an expression, or the writes into a buffer, read."""
        return [*self.arguments, *(value for write in self.writes for value in write.reads)]


class Value(NamedTuple):
    """A view of a buffer, and the places (up to broadcasting) where it may differ from zero."""

    buffer: Buffer
    view: np.ndarray
    mask: np.ndarray

    @property
    def shape(self) -> tuple:
        return self.view.shape

    @property
    def inline(self) -> bool:
        """Whether this is an expression that a loop may evaluate where it stands."""
        return bool(self.buffer.op) and not self.buffer.stored and self.view is self.buffer.memory


class Indirect(NamedTuple):
    """Computed indices: each moves the address by `stride` elements; `drop` says that they may lie outside."""

    indices: tuple[Value, ...]
    strides: tuple[int, ...]
    limits: tuple[int, ...]
    drop: bool


class Write(NamedTuple):
    target: Value
    mode: str
    value: Value
    indirect: Indirect | None = None
    before: int | None = None  # cumulative: the axis along which the element before is added
    after: bool = False  # only when the writes before it are done

    @property
    def reads(self) -> list[Value]:
        return [self.value, *(self.indirect.indices if self.indirect else ())]

    @property
    def n_elements(self) -> int:
        """How many elements are computed."""
        return int(np.count_nonzero(np.broadcast_to(self.value.mask, self.value.shape)))


class Pool:
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


def dense(n_axes: int) -> np.ndarray:
    return np.ones((1,) * n_axes, dtype=bool)


def is_thin(mask: np.ndarray) -> bool:
    """Whether a loop over the places of a mask is shorter than one over everything."""
    return bool(2 * np.count_nonzero(mask) < mask.size)


def address(view: np.ndarray) -> int:
    return view.__array_interface__["data"][0]


def collapsed(mask: np.ndarray) -> np.ndarray:
    """A mask with length 1 along the axes on which it (nearly) does not depend."""
    for axis in range(mask.ndim):
        if mask.shape[axis] > 1 and mask.strides[axis] == 0:
            mask = mask.take([0], axis)
    for axis in reversed(range(mask.ndim)):
        if mask.shape[axis] > 1:
            wide = np.asarray(mask.any(axis, keepdims=True))
            if wide.sum() * mask.shape[axis] <= 2 * mask.sum():
                mask = wide
    return mask


class Buffers:
    """The buffers of one function, and how a new one comes from those that are there."""

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def buffer(self, shape: tuple, place: str, **options: Any) -> Buffer:
        self.buffers.append(Buffer(len(self.buffers), tuple(map(int, shape)), place, **options))
        return self.buffers[-1]

    def constant(self, values: Any) -> Value:
        values = np.asarray(values)
        held = np.ascontiguousarray(values, dtype=np.float64).reshape(values.shape)
        buffer = self.buffer(values.shape, "c", values=held, boolean=values.dtype.kind == "b")
        return Value(buffer, buffer.memory, collapsed(held != 0.0))

    def zeros(self, shape: tuple, boolean: bool = False) -> Value:
        zero = self.constant(np.zeros((), dtype=bool if boolean else float))
        return self.moved(zero, lambda a: np.broadcast_to(a, shape))

    @staticmethod
    def moved(value: Value, move: Callable) -> Value:
        """A view of a value; `move` acts on numpy arrays and copies nothing."""
        view = move(value.view)
        everywhere = value.mask.all()
        mask = dense(view.ndim) if everywhere else collapsed(move(np.broadcast_to(value.mask, value.shape)))
        return Value(value.buffer, view, mask)

    def point(self, op: str, *args: Value) -> Value:
        """An operation on each element."""
        shape = np.broadcast_shapes(*(a.shape for a in args))
        args = tuple(a if a.shape == shape else self.moved(a, lambda v: np.broadcast_to(v, shape)) for a in args)
        masks = [a.mask for a in args]
        if op in _ZERO_IF_BOTH:
            mask = masks[0] | masks[1]
        elif op in _ZERO_IF_EITHER:
            mask = masks[0] & masks[1]
        elif op in _ZERO_IF_FIRST:
            mask = masks[0]
        elif op == "select":
            mask = masks[1] | masks[2]
        else:
            mask = dense(len(shape))
        boolean = op in CONDITIONS or (op in ("select", "copy", "max", "min") and args[-1].buffer.boolean)
        if not mask.any():
            return self.zeros(shape, boolean)
        if op in ("add", "sub") and not masks[1].any():
            return args[0]
        if op == "add" and not masks[0].any():
            return args[1]
        ones = [
            a.buffer.place == "c" and a.view.size and not any(a.view.strides) and a.view.flat[0] == 1.0 for a in args
        ]
        if op == "mul" and any(ones):
            return args[1] if ones[0] else args[0]
        if op == "div" and ones[1]:
            return args[0]
        buffer = self.buffer(shape, "w", boolean=boolean)
        buffer.op, buffer.args, buffer.mask = op, args, collapsed(mask)
        return Value(buffer, buffer.memory, buffer.mask)

    def assembled(self, shape: tuple, boolean: bool = False) -> Buffer:
        """A buffer that writes fill."""
        return self.buffer(shape, "w", boolean=boolean)

    def write(self, buffer: Buffer, view: np.ndarray, mode: str, value: Value, **options: Any) -> None:
        buffer.writes.append(Write(Value(buffer, view, value.mask), mode, value, **options))

    def pieces(self, shape: tuple, cuts: Sequence[tuple], parts: Sequence[Value]) -> Value:
        """An array made of parts; each cut is the index that takes its part out of the whole."""
        result = self.assembled(shape, parts[0].buffer.boolean)
        mask = np.zeros(shape, dtype=bool)
        for cut, part in zip(cuts, parts, strict=True):
            if part.mask.any():
                mask[cut] = part.mask
                self.write(result, result.memory[cut], "set", part)
        return Value(result, result.memory, collapsed(mask)) if mask.any() else self.zeros(shape)

    def stacked(self, parts: Sequence[Value], axis: int) -> Value:
        """Parts of one shape along a new axis; those that lie evenly spaced in one buffer are one view of it."""
        runs: list[list[Value]] = []
        step = None
        for part in parts:
            before = runs[-1][-1] if runs else None
            distance = None
            if before is not None and before.buffer is part.buffer and before.view.strides == part.view.strides:
                distance = address(part.view) - address(before.view)
            if distance is not None and step in (None, distance):
                runs[-1].append(part)
                step = distance
            else:
                runs.append([part])
                step = None
        wholes = []
        for run in runs:
            first = run[0].view
            step = address(run[1].view) - address(first) if len(run) > 1 else 0
            view = as_strided(first, (len(run), *first.shape), (step, *first.strides), writeable=False)
            mask = np.stack([np.broadcast_to(part.mask, first.shape) for part in run], axis)
            wholes.append(Value(run[0].buffer, np.moveaxis(view, 0, axis), collapsed(mask)))
        return wholes[0] if len(wholes) == 1 else self.joined(wholes, axis)

    def joined(self, parts: Sequence[Value], axis: int) -> Value:
        """Parts one after the other along an axis."""
        ends = [0, *itertools.accumulate(part.shape[axis] for part in parts)]
        cuts = [(slice(None),) * axis + (slice(*pair),) for pair in itertools.pairwise(ends)]
        return self.pieces((*parts[0].shape[:axis], ends[-1], *parts[0].shape[axis + 1 :]), cuts, parts)
