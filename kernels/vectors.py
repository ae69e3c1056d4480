"""Operations on pieces of arrays, eight numbers at a time, for numba functions.

LLVM finds vectors in a long loop. One over the bins of a channel is short, and what is left over of its vectors, or the
question whether its arrays overlap, takes longer than the work. So arrays are made longer than what is in them, to a
multiple of eight numbers, and vectors are written here.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from kernels.lowering import named_intrinsic

__all__ = ["LANES", "Vector", "over_vectors"]

LANES = 8

_INDEX = ir.IntType(32)
_VECTOR = ir.VectorType(ir.DoubleType(), LANES)
_UNKNOWN = ir.Constant(_VECTOR, ir.Undefined)
_ALIGNMENT = 8  # bytes: a piece may begin anywhere
_FUSED = ("contract",)  # a product and a sum may be one instruction


class Vector(NamedTuple):
    """Eight numbers in a function that is being written."""

    builder: Any
    value: Any

    @classmethod
    def zero(cls, builder: Any) -> "Vector":
        return cls(builder, ir.Constant(_VECTOR, [0.0] * LANES))

    @classmethod
    def repeated(cls, builder: Any, number: Any) -> "Vector":
        one = builder.insert_element(_UNKNOWN, number, _INDEX(0))
        return cls(builder, one).in_order([0] * LANES)

    @classmethod
    def read(cls, builder: Any, place: Any) -> "Vector":
        return cls(builder, builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=_ALIGNMENT))

    def write(self, place: Any) -> None:
        self.builder.store(self.value, self.builder.bitcast(place, _VECTOR.as_pointer()), align=_ALIGNMENT)

    def __add__(self, other: "Vector") -> "Vector":  # type: ignore[override]
        return Vector(self.builder, self.builder.fadd(self.value, other.value, flags=_FUSED))

    def __sub__(self, other: "Vector") -> "Vector":
        return Vector(self.builder, self.builder.fsub(self.value, other.value, flags=_FUSED))

    def __mul__(self, other: "Vector") -> "Vector":  # type: ignore[override]
        return Vector(self.builder, self.builder.fmul(self.value, other.value, flags=_FUSED))

    def in_order(self, order: list[int]) -> "Vector":
        mask = ir.Constant(ir.VectorType(_INDEX, LANES), order)
        return Vector(self.builder, self.builder.shuffle_vector(self.value, _UNKNOWN, mask))

    def total(self) -> Any:
        """The sum of all: of halves, quarters, pairs."""
        result, half = self, LANES // 2
        while half:
            result, half = result + result.in_order([k ^ half for k in range(LANES)]), half // 2
        return self.builder.extract_element(result.value, _INDEX(0))


def over_vectors(function: Callable, *, pieces: int, summed: bool = False) -> Callable:
    """A function for numba that does to pieces of arrays what `function` does to vectors.

    Parameters
    ----------
    function : callable
        Of `pieces` vectors and then of numbers, made of sums and products. The result is written where the first piece
        is.
    pieces : int
    summed : bool
        Whether the sum of the results is returned, and nothing written.

    Returns
    -------
    callable
        It is called with the length of the pieces, a multiple of `LANES`; for each piece with an array in C order, of
        float64, and the number of the element at which the piece begins; and with the numbers.
    """
    names = list(inspect.signature(function).parameters)
    given = ", ".join(["n", *(f"{name}, {name}_at" for name in names[:pieces]), *names[pieces:]])

    def define(n: Any, *known: Any) -> tuple[Any, Callable]:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            n, *args = args
            starts = [
                builder.gep(context.make_array(array)(context, builder, args[k]).data, [args[k + 1]])
                for k, array in enumerate(known[: 2 * pieces])
                if k % 2 == 0
            ]
            numbers = [Vector.repeated(builder, number) for number in args[2 * pieces :]]
            kept = cgutils.alloca_once_value(builder, Vector.zero(builder).value)
            with cgutils.for_range_slice(builder, n.type(0), n, n.type(LANES)) as (k, _):
                places = [builder.gep(start, [k]) for start in starts]
                result = function(*(Vector.read(builder, place) for place in places), *numbers)
                if summed:
                    builder.store((Vector(builder, builder.load(kept)) + result).value, kept)
                else:
                    result.write(places[0])
            return Vector(builder, builder.load(kept)).total() if summed else context.get_dummy_value()

        of_pieces = [types.int64 if k % 2 else array for k, array in enumerate(known[: 2 * pieces])]
        numbers = [types.float64] * (len(names) - pieces)
        return (types.float64 if summed else types.void)(types.int64, *of_pieces, *numbers), codegen

    return named_intrinsic(given, define)
