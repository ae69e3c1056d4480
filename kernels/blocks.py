"""Blocks of a product of matrices, four rows by eight columns at a time, for numba functions.

A Cholesky factor, the inverse of a triangular matrix and the product of such an inverse with itself are made of one
operation: four rows of X^T Y, or of what they are taken from, with or without the solution of a triangle of four rows
for them. In loops over short triangles LLVM finds no vectors, so they are written here. The sums of a block stay in
registers, eight of 256 bits; blocks of 32 columns, for which AVX-512 has the registers, gain 20 % from 200 rows on.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic

from kernels.vectors import LANES, Vector

__all__ = ["COLUMNS", "ROWS", "block_of_products"]

ROWS, COLUMNS = 4, LANES


@functools.cache
def block_of_products(*, given: bool, subtracted: bool, solved: bool) -> Callable:
    """A function for numba: products of columns of X with rows of Y, all of them rows of one array.

    It is called with (work, source, target, column, x, y, at, n, corner): `work` is a C-contiguous array of two
    axes, all others are integers. With c from `column` to `column + 7` and r from 0 to 3 it computes

        S[r, c] = sum_k<n work[x + k, at + r] work[y + k, c]

    which is added to work[source + r, c], where that is `given`, or `subtracted`. Of R that comes out, U^-T R is taken
    if it is `solved`: U is the upper triangle of work[corner:corner + 4, at:at + 4], whose diagonal holds the inverses
    of its own. The result stands in work[target:target + 4, column:column + 8] then.
    """

    @intrinsic
    def block(typingctx, work, source, target, column, x, y, at, n, corner):
        def codegen(context, builder, signature, args):
            array = context.make_array(signature.args[0])(context, builder, args[0])
            source, target, column, x, y, at, n, corner = args[1:]
            stride = builder.extract_value(array.shape, 1)

            def place(row: Any, r: Any, start: Any, c: int = 0) -> Any:
                begin = builder.mul(builder.add(row, r), stride)
                return builder.gep(array.data, [builder.add(begin, builder.add(start, ir.IntType(64)(c)))])

            def number(row: Any, r: Any, c: int) -> Vector:
                return Vector.repeated(builder, builder.load(place(row, r, at, c)))

            rows = [ir.IntType(64)(r) for r in range(ROWS)]
            zero = Vector.zero(builder)
            first = [Vector.read(builder, place(source, r, column)) if given else zero for r in rows]
            # LLVM makes registers of them
            kept = [cgutils.alloca_once_value(builder, vector.value) for vector in first]
            with cgutils.for_range(builder, n) as loop:
                row = Vector.read(builder, place(y, loop.index, column))
                for r in range(ROWS):
                    total, product = Vector(builder, builder.load(kept[r])), number(x, loop.index, r) * row
                    builder.store((total - product if subtracted else total + product).value, kept[r])
            result = []
            for r in range(ROWS):
                total = Vector(builder, builder.load(kept[r]))
                if solved:
                    for s in range(r):
                        total = total - number(corner, rows[s], r) * result[s]
                    total = number(corner, rows[r], r) * total
                result.append(total)
            for r in range(ROWS):
                result[r].write(place(target, rows[r], column))
            return context.get_dummy_value()

        return types.void(work, *[types.int64] * 8), codegen

    return block
