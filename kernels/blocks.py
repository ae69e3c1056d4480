"""Blocks of a product of matrices, four rows and some vectors of columns at a time, for numba functions.

A Cholesky factor, the inverse of a triangular matrix and the product of such an inverse with itself are made of one
operation: four rows of X^T Y, or of what they are taken from, with or without the solution of a triangle of four rows
for them. In loops over short triangles LLVM finds no vectors, so they are written here. The sums of a block stay in
registers: 8 columns take 8 registers of 256 bits, 32 columns 16 of 512.
"""

import functools
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.extending import intrinsic

__all__ = ["COLUMNS", "ROWS", "WIDE_COLUMNS", "block_of_products"]

ROWS, COLUMNS = 4, 8
#: Where a processor has the registers; else as the others.
WIDE_COLUMNS = 32 if llvm.get_host_cpu_features().get("avx512f") else COLUMNS

_DOUBLE, _INTEGER, _INDEX = ir.DoubleType(), ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_DOUBLE, COLUMNS)
_ALIGNMENT = 8  # bytes, of a row that begins anywhere


@functools.cache
def block_of_products(columns: int, *, given: bool, subtracted: bool, solved: bool) -> Callable:
    """A function for numba: products of columns of X with rows of Y, all of them rows of one array.

    It is called with (work, source, target, column, x, y, at, n, corner): `work` is a C-contiguous array of two
    axes, all others are integers. With c from `column` to `column + columns` and r from 0 to 3 it computes

        S[r, c] = sum_k<n work[x + k, at + r] work[y + k, c]

    which is added to work[source + r, c], where that is `given`, or `subtracted`. Of R that comes out, U^-T R is taken
    if it is `solved`: U is the upper triangle of work[corner:corner + 4, at:at + 4], whose diagonal holds the inverses
    of its own. The result stands in work[target:target + 4, column:column + columns] then.
    """
    vectors = range(columns // COLUMNS)

    @intrinsic
    def block(typingctx, work, source, target, column, x, y, at, n, corner):
        def codegen(context, builder, signature, args):
            array = context.make_array(signature.args[0])(context, builder, args[0])
            source, target, column, x, y, at, n, corner = args[1:]
            stride = builder.extract_value(array.shape, 1)
            fuse = cgutils.get_or_insert_function(
                builder.module, ir.FunctionType(_VECTOR, [_VECTOR] * 3), f"llvm.fmuladd.v{COLUMNS}f64"
            )

            def pointer(row: Any, r: int, place: Any, c: int = 0) -> Any:
                start = builder.mul(builder.add(row, _INTEGER(r)), stride)
                return builder.gep(array.data, [builder.add(start, builder.add(place, _INTEGER(c)))])

            def vector(place: Any) -> Any:
                return builder.load(builder.bitcast(place, _VECTOR.as_pointer()), align=_ALIGNMENT)

            def repeated(number: Any) -> Any:
                one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), number, _INDEX(0))
                zeros = ir.Constant(ir.VectorType(_INDEX, COLUMNS), [0] * COLUMNS)
                return builder.shuffle_vector(one, ir.Constant(_VECTOR, ir.Undefined), zeros)

            def less(number: Any) -> Any:
                return builder.fneg(number) if subtracted else number

            zero = ir.Constant(_VECTOR, [0.0] * COLUMNS)
            first = [
                [vector(pointer(source, r, column, COLUMNS * v)) if given else zero for v in vectors]
                for r in range(ROWS)
            ]
            begins = _INTEGER(0), pointer(x, 0, at), pointer(y, 0, column)
            before, head = builder.block, builder.append_basic_block("products")
            body, behind = builder.append_basic_block("product"), builder.append_basic_block("sums")
            builder.branch(head)

            builder.position_at_end(head)
            k, of_x, of_y = (builder.phi(begin.type) for begin in begins)
            sums = [[builder.phi(_VECTOR) for _ in vectors] for _ in range(ROWS)]
            for phi, begin in zip((k, of_x, of_y), begins, strict=True):
                phi.add_incoming(begin, before)
            builder.cbranch(builder.icmp_signed("<", k, n), body, behind)

            builder.position_at_end(body)
            row = [vector(builder.gep(of_y, [_INTEGER(COLUMNS * v)])) for v in vectors]
            for r in range(ROWS):
                factor = repeated(less(builder.load(builder.gep(of_x, [_INTEGER(r)]))))
                for v in vectors:
                    sums[r][v].add_incoming(first[r][v], before)
                    sums[r][v].add_incoming(builder.call(fuse, [factor, row[v], sums[r][v]]), body)
            k.add_incoming(builder.add(k, _INTEGER(1)), body)
            of_x.add_incoming(builder.gep(of_x, [stride]), body)
            of_y.add_incoming(builder.gep(of_y, [stride]), body)
            builder.branch(head)

            builder.position_at_end(behind)
            if solved:
                for r in range(ROWS):
                    for s in range(r):
                        factor = repeated(builder.fneg(builder.load(pointer(corner, s, at, r))))
                        sums[r] = [builder.call(fuse, [factor, sums[s][v], sums[r][v]]) for v in vectors]
                    inverse = repeated(builder.load(pointer(corner, r, at, r)))
                    sums[r] = [builder.fmul(inverse, total) for total in sums[r]]
            for r in range(ROWS):
                for v in vectors:
                    place = builder.bitcast(pointer(target, r, column, COLUMNS * v), _VECTOR.as_pointer())
                    builder.store(sums[r][v], place, align=_ALIGNMENT)
            return context.get_dummy_value()

        return types.void(work, *[types.int64] * 8), codegen

    return block
