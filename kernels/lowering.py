"""Generated source as machine code, without numba's way from Python to LLVM, which takes 10 ms for a line.

Generated functions are written in a small part of the language: numbers, whole numbers that are never negative,
conditions and arrays in C order; assignments, `if`, and loops over a `range`. Their lines become LLVM instructions one
by one. All else, as the cache on disk, the calls of other compiled functions and the optimisation, is numba's, and
numba can compile the same text with the same results (`tests/kernels/test_lowering.py`), ten times slower.
"""

import ast
import builtins
import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, typeof, types
from numba.core import cgutils
from numba.core.extending import intrinsic
from numba.np import arrayobj

__all__ = ["lowered", "named_intrinsic"]

_DOUBLE, _WHOLE, _BIT = ir.DoubleType(), ir.IntType(64), ir.IntType(1)
_MEMORY = {np.empty, np.zeros}
_REAL_OPERATIONS: dict[type[ast.AST], str] = {ast.Add: "fadd", ast.Sub: "fsub", ast.Mult: "fmul", ast.Div: "fdiv"}
_WHOLE_OPERATIONS: dict[type[ast.AST], str] = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.FloorDiv: "udiv"}
_BIT_OPERATIONS: dict[type[ast.AST], str] = {ast.BitAnd: "and_", ast.BitOr: "or_", ast.And: "and_", ast.Or: "or_"}
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}


class _Value(NamedTuple):
    """An LLVM value and its numba type: float64, uint64, boolean or an array."""

    value: Any
    type: Any


class _Array(NamedTuple):
    """An array in C order: where it begins, its lengths, and numba's type of its elements, which have 8 bytes."""

    data: Any
    shape: list
    dtype: Any


def named_intrinsic(given: str, define: Callable) -> Callable:
    """An intrinsic of numba, which wants names of arguments, made by `define` of their types."""
    made: dict[str, Any] = {"define": define}
    exec(f"def body(typingctx, {given}): return define({given})", made)
    return intrinsic(made["body"])


def lowered(*signature: str, **options: Any) -> Callable:
    """What `numba.njit` is, for a function of a file that was generated."""

    def decorate(function: Any) -> Any:
        code = function.__code__
        names = code.co_varnames[: code.co_argcount]
        lines = _definitions(code.co_filename)[function.__name__].body
        memory = [line for line in lines if _is_memory(line, function.__globals__)]
        lines = [line for line in lines if line not in memory]
        given = ", ".join([*names, *(line.targets[0].id for line in memory)])  # type: ignore[attr-defined]

        def define(*argument_types: Any) -> tuple[Any, Callable]:
            def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
                values = map(_known, arguments, signature.args)
                variables = dict(zip(given.split(", "), values, strict=True))
                _Lowering(context, builder, function.__globals__, variables).run(lines)
                return context.get_dummy_value()

            return types.void(*argument_types), codegen

        # a function that stands where numba's cache on disk looks for changes
        namespace = function.__globals__ | {"body": named_intrinsic(given, define)}
        text = [f"def {function.__name__}({', '.join(names)}):", *map(ast.unparse, memory), f"body({given})"]
        exec(compile("\n    ".join(text), code.co_filename, "exec"), namespace)
        return njit(*signature, **options)(namespace[function.__name__])

    return decorate


@functools.lru_cache(maxsize=1)  # all functions of a file are compiled one after the other
def _definitions(file: str) -> dict[str, ast.FunctionDef]:
    parsed = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {node.name: node for node in parsed.body if isinstance(node, ast.FunctionDef)}


def _is_memory(line: ast.stmt, namespace: dict) -> bool:
    """Whether memory is taken, which numba will give back at the end."""
    if not isinstance(line, ast.Assign) or not isinstance(line.value, ast.Call):
        return False
    return isinstance(line.value.func, ast.Attribute) and _named(line.value.func, namespace) in _MEMORY


def _named(node: ast.expr, namespace: dict) -> Any:
    """What a name of the module stands for, as `np.nan`."""
    if isinstance(node, ast.Name):
        return namespace[node.id] if node.id in namespace else getattr(builtins, node.id)
    assert isinstance(node, ast.Attribute)
    return getattr(_named(node.value, namespace), node.attr)


def _known(value: Any, known: Any) -> _Value:
    """A value of numba, which has whole numbers with a sign, too."""
    return _Value(value, types.uint64 if isinstance(known, types.Integer) else known)


def _is_array(value: _Value) -> bool:
    return isinstance(value.type, types.Array)


class _Lowering:
    """Writes the instructions of a function.

    A variable that is assigned once is the value itself, since what is assigned within a loop or an `if` is not read
    outside. Any other has a place in memory, of which LLVM makes a register.
    """

    def __init__(self, context: Any, builder: Any, namespace: dict, variables: dict[str, _Value]) -> None:
        self.context = context
        self.builder = builder
        self.namespace = namespace
        self.variables = variables
        self.places: dict[str, _Value] = {}

    def run(self, body: list[ast.stmt]) -> None:
        stored = (node for line in body for node in ast.walk(line) if isinstance(node, ast.Name))
        self.assigned = Counter(node.id for node in stored if isinstance(node.ctx, ast.Store))
        # a change reads what there was
        changed = (node for line in body for node in ast.walk(line) if isinstance(node, ast.AugAssign))
        self.assigned.update(node.target.id for node in changed if isinstance(node.target, ast.Name))
        for name in [name for name in self.variables if name in self.assigned]:
            self.assigned[name] += 1
            self.set(ast.Name(name), self.variables[name])
        self.arrays = {name: self.taken_apart(value) for name, value in self.variables.items() if _is_array(value)}
        self.block(body)

    def block(self, body: list[ast.stmt]) -> None:
        for line in body:
            getattr(self, f"do_{type(line).__name__.lower()}")(line)

    def do_pass(self, line: ast.Pass) -> None:
        pass

    def do_expr(self, line: ast.Expr) -> None:
        self.get(line.value)

    def do_assign(self, line: ast.Assign) -> None:
        [target] = line.targets
        if isinstance(target, ast.Tuple) and isinstance(line.value, ast.Tuple):
            values = [self.get(value) for value in line.value.elts]
            for name, value in zip(target.elts, values, strict=True):
                self.set(name, value)
        else:
            self.set(target, self.get(line.value))

    def do_augassign(self, line: ast.AugAssign) -> None:
        self.set(line.target, self.binary(line.op, self.get(line.target), self.get(line.value), in_order=False))

    def do_if(self, line: ast.If) -> None:
        condition = self.to(self.get(line.test), types.boolean)
        with self.builder.if_else(condition) as (then, otherwise):
            with then:
                self.block(line.body)
            with otherwise:
                self.block(line.orelse)

    def do_for(self, line: ast.For) -> None:
        builder = self.builder
        assert isinstance(line.iter, ast.Call) and isinstance(line.target, ast.Name)
        first, *more = (self.to(self.get(arg), types.uint64) for arg in line.iter.args)
        zero, one = ir.Constant(_WHOLE, 0), ir.Constant(_WHOLE, 1)
        begin, end, step = (zero, first, one) if not more else (first, more[0], more[1] if more[1:] else one)
        before = builder.block
        head, body, after = (builder.append_basic_block(name) for name in ("for", "body", "after"))
        builder.branch(head)
        builder.position_at_end(head)
        k = builder.phi(_WHOLE)
        k.add_incoming(begin, before)
        builder.cbranch(builder.icmp_unsigned("<", k, end), body, after)
        builder.position_at_end(body)
        self.variables[line.target.id] = _Value(k, types.uint64)
        self.block(line.body)
        k.add_incoming(builder.add(k, step, flags=("nuw", "nsw")), builder.block)
        builder.branch(head)
        builder.position_at_end(after)

    def set(self, target: ast.expr, value: _Value) -> None:
        if isinstance(target, ast.Subscript):
            self.builder.store(self.to(value, types.float64), self.element(*self.indexed(target)))
            return
        assert isinstance(target, ast.Name)
        if self.assigned[target.id] == 1:
            self.variables[target.id] = value
            if _is_array(value):
                self.arrays[target.id] = self.taken_apart(value)
            return
        if target.id not in self.places:
            place = cgutils.alloca_once(self.builder, value.value.type)
            self.places[target.id] = _Value(place, value.type)
        place, known = self.places[target.id]
        self.builder.store(self.to(value, known), place)
        self.variables.pop(target.id, None)  # it was the index of a loop

    def get(self, node: ast.expr) -> _Value:
        return getattr(self, f"get_{type(node).__name__.lower()}")(node)

    def get_constant(self, node: ast.Constant) -> _Value:
        return self.constant(node.value)

    def get_attribute(self, node: ast.Attribute) -> _Value:
        return self.constant(_named(node, self.namespace))

    def get_name(self, node: ast.Name) -> _Value:
        if node.id in self.variables:
            return self.variables[node.id]
        if node.id in self.places:
            place, known = self.places[node.id]
            return _Value(self.builder.load(place), known)
        return self.constant(self.namespace[node.id])

    def constant(self, value: Any) -> _Value:
        if isinstance(value, bool):
            return _Value(ir.Constant(_BIT, int(value)), types.boolean)
        if isinstance(value, int | np.integer):
            return _Value(ir.Constant(_WHOLE, int(value)), types.uint64)
        if isinstance(value, float):
            return _Value(ir.Constant(_DOUBLE, float(value)), types.float64)
        return _Value(self.context.get_constant_generic(self.builder, typeof(value), value), typeof(value))

    def get_unaryop(self, node: ast.UnaryOp) -> _Value:
        value = self.get(node.operand)
        if isinstance(node.op, ast.Not):
            return _Value(self.builder.not_(self.to(value, types.boolean)), types.boolean)
        assert isinstance(node.op, ast.USub)
        return _Value(self.builder.fneg(self.to(value, types.float64)), types.float64)

    def get_binop(self, node: ast.BinOp) -> _Value:
        return self.binary(node.op, self.get(node.left), self.get(node.right))

    def get_boolop(self, node: ast.BoolOp) -> _Value:
        result, *others = (self.get(value) for value in node.values)
        for value in others:
            result = self.binary(node.op, result, value)
        return result

    def binary(self, op: ast.AST, a: _Value, b: _Value, in_order: bool = True) -> _Value:
        """An operation. Sums and differences `in_order` keep their order, whatever the function's options allow.

        (x - 1e9) - t is not x - (1e9 + t), which is rounded to the last digit of 1e9.
        """
        if type(op) in _BIT_OPERATIONS:
            known, operations = types.boolean, _BIT_OPERATIONS
        elif types.float64 in (a.type, b.type) or isinstance(op, ast.Div):
            known, operations = types.float64, _REAL_OPERATIONS
        else:
            known, operations = types.uint64, _WHOLE_OPERATIONS
        operation = getattr(self.builder, operations[type(op)])
        result = operation(self.to(a, known), self.to(b, known))
        if in_order and result.opname in ("fadd", "fsub"):
            result.flags.extend(("contract", "nsz"))  # numba adds its own where there are none
        return _Value(result, known)

    def get_compare(self, node: ast.Compare) -> _Value:
        [op], [right] = node.ops, node.comparators
        return self.compare(_COMPARISONS[type(op)], self.get(node.left), self.get(right))

    def compare(self, sign: str, a: _Value, b: _Value) -> _Value:
        if types.float64 in (a.type, b.type):
            # a NaN is different from everything, and otherwise fulfils no comparison
            compare = self.builder.fcmp_unordered if sign == "!=" else self.builder.fcmp_ordered
            return _Value(compare(sign, self.to(a, types.float64), self.to(b, types.float64)), types.boolean)
        result = self.builder.icmp_unsigned(sign, self.to(a, types.uint64), self.to(b, types.uint64))
        return _Value(result, types.boolean)

    def get_ifexp(self, node: ast.IfExp) -> _Value:
        builder = self.builder
        condition = self.to(self.get(node.test), types.boolean)
        if not any(isinstance(inner, ast.Subscript) for inner in ast.walk(node)):
            return self.select(condition, self.get(node.body), self.get(node.orelse))
        # an element is read only where it is wanted, since it may be none
        with builder.if_else(condition) as (then, otherwise):
            with then:
                a, then_block = self.to(self.get(node.body), types.float64), builder.block
            with otherwise:
                b, other_block = self.to(self.get(node.orelse), types.float64), builder.block
        result = builder.phi(_DOUBLE)
        result.add_incoming(a, then_block)
        result.add_incoming(b, other_block)
        return _Value(result, types.float64)

    def select(self, condition: Any, a: _Value, b: _Value) -> _Value:
        known = a.type if a.type == b.type else types.float64
        return _Value(self.builder.select(condition, self.to(a, known), self.to(b, known)), known)

    def get_subscript(self, node: ast.Subscript) -> _Value:
        array, indices = self.indexed(node)
        if len(indices) < len(array.shape) or any(isinstance(index, ast.Slice) for index in indices):
            return self.view(array, indices)
        return _Value(self.builder.load(self.element(array, indices)), array.dtype)

    def indexed(self, node: ast.Subscript) -> tuple[_Array, list[ast.expr]]:
        assert isinstance(node.value, ast.Name)
        array = self.arrays.get(node.value.id) or self.taken_apart(self.get(node.value))
        return array, node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]

    def taken_apart(self, array: _Value) -> _Array:
        found = self.context.make_array(array.type)(self.context, self.builder, array.value)
        return _Array(found.data, cgutils.unpack_tuple(self.builder, found.shape), array.type.dtype)

    def element(self, array: _Array, indices: list[ast.expr]) -> Any:
        """Where an element stands, or the first one behind some of its indices."""
        first, *more = (self.to(self.get(index), types.uint64) for index in indices)
        for n, index in zip(array.shape[1:], more, strict=False):
            first = self.builder.add(self.builder.mul(first, n), index)
        for n in array.shape[len(indices) :]:
            first = self.builder.mul(first, n)
        return self.builder.gep(array.data, [first], inbounds=True)

    def view(self, array: _Array, indices: list[ast.expr]) -> _Value:
        """A part of an array that is of one piece. It is not counted, as it would be by numba, which takes its time."""
        *before, last = indices
        shape = array.shape[len(indices) :]
        if isinstance(last, ast.Slice):
            assert last.lower is not None and last.upper is not None
            begin, end = (self.to(self.get(bound), types.uint64) for bound in (last.lower, last.upper))
            shape = [self.builder.sub(end, begin), *shape]
            indices = [*before, last.lower]
        known = types.Array(array.dtype, len(shape), "C")
        strides = [ir.Constant(_WHOLE, 8)]
        for n in reversed(shape[1:]):
            strides.insert(0, self.builder.mul(strides[0], n))
        made = self.context.make_array(known)(self.context, self.builder)
        arrayobj.populate_array(made, self.element(array, indices), shape, strides, ir.Constant(_WHOLE, 8), None)
        return _Value(made._getvalue(), known)

    def get_call(self, node: ast.Call) -> _Value:
        function, arguments = _named(node.func, self.namespace), [self.get(arg) for arg in node.args]
        if function in (np.uint64, int):
            return _Value(self.to(arguments[0], types.uint64), types.uint64)
        if function in (min, max):
            a, b = arguments
            chosen = self.compare("<" if function is min else ">", b, a)  # as in Python where one is NaN
            return self.select(chosen.value, b, a)
        # whole numbers in place of real ones are constants, as the 2 of a power
        if all(arg.type in (types.float64, types.uint64) for arg in arguments):
            same = types.float64 if any(arg.type == types.float64 for arg in arguments) else types.uint64
            arguments = [_Value(self.to(arg, same), same) for arg in arguments]
        known = self.context.typing_context.resolve_value_type(function)
        signature = known.get_call_type(self.context.typing_context, tuple(arg.type for arg in arguments), {})
        values = [self.context.cast(self.builder, *arg, to) for arg, to in zip(arguments, signature.args, strict=True)]
        result = self.context.get_function(known, signature)(self.builder, values)
        return _known(result, signature.return_type)

    def to(self, value: _Value, known: Any) -> Any:
        """The LLVM value as a number of another type."""
        number, builder = value.value, self.builder
        if value.type == known:
            return number
        if known == types.float64:
            return builder.uitofp(number, _DOUBLE)
        if known == types.uint64:
            return builder.fptoui(number, _WHOLE) if value.type == types.float64 else builder.zext(number, _WHOLE)
        return self.compare("!=", value, self.constant(0)).value
