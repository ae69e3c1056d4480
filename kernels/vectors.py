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
from numba.core.extending import intrinsic

__all__ = ["LANES", "over_vectors"]

LANES = 8

_DOUBLE, _INTEGER, _INDEX = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_DOUBLE, LANES)
_UNKNOWN = ir.Constant(_VECTOR, ir.Undefined)
_ALIGNMENT = 8  # bytes: a piece may begin anywhere


class _Vector(NamedTuple):
    """Eight numbers, with which a function can compute."""

    builder: Any
    value: Any

    def __add__(self, other: "_Vector") -> "_Vector":  # type: ignore[override]
        return _Vector(self.builder, self.builder.fadd(self.value, other.value, flags=("contract",)))

    def __mul__(self, other: "_Vector") -> "_Vector":  # type: ignore[override]
        return _Vector(self.builder, self.builder.fmul(self.value, other.value, flags=("contract",)))


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

    def define(n: Any, *argument_types: Any) -> tuple[Any, Callable]:
        integers = [types.int64, *(types.int64 if k % 2 else known for k, known in enumerate(argument_types[: 2 * pieces]))]
        numbers = [types.float64] * (len(names) - pieces)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            starts = [
                builder.gep(context.make_array(signature.args[k])(context, builder, args[k]).data, [args[k + 1]])
                for k in range(1, 1 + 2 * pieces, 2)
            ]
            scalars = [_repeated(builder, number) for number in args[1 + 2 * pieces :]]
            sums = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * LANES))
            with cgutils.for_range_slice(builder, _INTEGER(0), args[0], _INTEGER(LANES)) as (k, _):
                places = [builder.bitcast(builder.gep(start, [k]), _VECTOR.as_pointer()) for start in starts]
                vectors = [builder.load(place, align=_ALIGNMENT) for place in places]
                result = function(*(_Vector(builder, value) for value in (*vectors, *scalars))).value
                if summed:
                    builder.store(builder.fadd(builder.load(sums), result, flags=("contract",)), sums)
                else:
                    builder.store(result, places[0], align=_ALIGNMENT)
            return _total(builder, builder.load(sums)) if summed else context.get_dummy_value()

        return (types.float64 if summed else types.void)(*integers, *numbers), codegen

    # numba wants functions with named arguments
    made: dict[str, Any] = {"define": define}
    exec(f"def operation(typingctx, {given}): return define({given})", made)
    return intrinsic(made["operation"])


def _repeated(builder: Any, number: Any) -> Any:
    one = builder.insert_element(_UNKNOWN, number, _INDEX(0))
    return builder.shuffle_vector(one, _UNKNOWN, ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES))


def _total(builder: Any, vector: Any) -> Any:
    """The sum of the elements, of halves and halves of halves."""
    half = LANES // 2
    while half:
        order = [k + half if k < half else k for k in range(LANES)]
        moved = builder.shuffle_vector(vector, _UNKNOWN, ir.Constant(ir.VectorType(_INDEX, LANES), order))
        vector = builder.fadd(vector, moved)
        half //= 2
    return builder.extract_element(vector, _INDEX(0))
