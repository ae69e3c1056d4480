"""A JAX function of arrays as numba source made of loops, for models whose expectation is a vector.

The jaxpr is read into *buffers*. A pointwise operation is a buffer that holds an expression; operations that only
move elements (reshape, slice, transpose, broadcast) are views of a buffer, found by numpy's own stride arithmetic on
arrays that are never read; all others are writes into a buffer, from which `kernels.loops` makes loops. The source
then grows with the number of operations of the model, not with the length of its arrays.

Forward-mode Jacobians consist mostly of zeros: each parameter moves few templates. Every value carries a mask of the
places that may differ from zero, and a loop whose mask is thin runs over a table of these places. Such a zero stays
zero when it is multiplied by infinity or NaN.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex_core

from kernels.buffers import MODES, Pool, Value, collapsed, dense
from kernels.complexes import real_program
from kernels.gathers import Gathers
from kernels.jaxprs import CALLS, ELEMENTWISE, UNCHANGED, scan_layout, where
from kernels.loops import Writer
from kernels.nodes import UntranslatableError

__all__ = ["function_source"]

_REDUCTIONS = {"reduce_sum": "add", "reduce_prod": "mul", "reduce_max": "max", "reduce_min": "min"}
_REDUCTIONS |= {"reduce_and": "min", "reduce_or": "max"}
_CUMULATIVE = {"cumsum": "add", "cumprod": "mul", "cummax": "max", "cummin": "min"}
_SCATTERS = {"scatter": "set", "scatter-add": "add", "scatter_add": "add", "scatter-mul": "mul", "scatter_mul": "mul"}
_SCATTERS |= {"scatter-max": "max", "scatter_max": "max", "scatter-min": "min", "scatter_min": "min"}
# A loop of more turns is not written out.
MAX_TURNS = 64
# An operation on constants is carried out at once, unless its result is larger than this and than its arguments.
MAX_FOLDED = 1 << 18


class _Reader(Gathers):
    """Reads a jaxpr into buffers and writes."""

    def __init__(self) -> None:
        super().__init__()
        self.within: list = []  # the equations that the present one is part of, such as calls

    def where(self) -> str:
        return where(*reversed(self.within))

    def run(self, jaxpr: Any, consts: Sequence, args: Sequence[Value]) -> list[Value]:
        env: dict = {}

        def read(atom: Any) -> Value:
            return self.constant(atom.val) if isinstance(atom, jex_core.Literal) else env[atom]

        env.update(zip(jaxpr.constvars, (c if isinstance(c, Value) else self.constant(c) for c in consts), strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            self.within.append(eqn)
            env.update(zip(eqn.outvars, self.equation(eqn, [read(atom) for atom in eqn.invars]), strict=True))
            self.within.pop()
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[Value]) -> list[Value]:
        name, params = eqn.primitive.name, eqn.params
        if name in CALLS:
            inner = params[CALLS[name]]
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), args)
        if name in UNCHANGED:
            return args
        method = getattr(self, f"do_{name.replace('-', '_')}", None)
        if name == "while":
            raise UntranslatableError(f"no loop form of the operation 'while'{self.where()}")
        moves = name in ("broadcast_in_dim", "reshape", "transpose", "slice", "squeeze", "expand_dims", "rev")
        known = all(a.buffer.place == "c" for a in args) and not moves and name not in ("scan", "cond")
        size, translated = sum(v.aval.size for v in eqn.outvars), method is not None or name in ELEMENTWISE
        expands = size > max(MAX_FOLDED, sum(a.buffer.memory.size for a in args))
        if known and not (expands and translated):
            return self.folded(eqn, args)
        if name in ELEMENTWISE or name in ("lt_to", "le_to", "logistic"):
            return [self.elementwise(eqn, args)]
        if name in _REDUCTIONS:
            return [self.reduce(_REDUCTIONS[name], args[0], params["axes"])]
        if name in _CUMULATIVE:
            return [self.cumulative(_CUMULATIVE[name], args[0], params["axis"], params["reverse"])]
        if name in _SCATTERS:
            return [self.scatter(eqn, _SCATTERS[name], *args)]
        if method is None:
            raise UntranslatableError(f"no loop form of the operation '{name}'{self.where()}")
        return method(eqn, *args)

    def folded(self, eqn: Any, args: list[Value]) -> list[Value]:
        inputs = [a.view.astype(atom.aval.dtype) for a, atom in zip(args, eqn.invars, strict=True)]
        with jax.ensure_compile_time_eval():
            outputs = eqn.primitive.bind(*inputs, **eqn.params)
        return [self.constant(np.asarray(v)) for v in (outputs if eqn.primitive.multiple_results else [outputs])]

    def elementwise(self, eqn: Any, args: list[Value]) -> Value:
        name = eqn.primitive.name
        op = ELEMENTWISE.get(name, name)
        if eqn.outvars[0].aval.dtype.kind in "iu":  # held as float64
            if op in ("and", "or", "not", "pow"):
                raise UntranslatableError(f"no loop form of the operation '{name}' on integers{self.where()}")
            if op == "div":
                return self.point("trunc", self.point("div", *args))
        return self.point(op, *args)

    def reduce(self, mode: str, value: Value, axes: Sequence[int]) -> Value:
        axes = tuple(map(int, axes))
        kept = tuple(n for k, n in enumerate(value.shape) if k not in axes)
        if mode == "add" and not value.mask.any():
            return self.zeros(kept)
        if mode != "add":
            value = value._replace(mask=dense(len(value.shape)))
        result = self.assembled(kept, value.buffer.boolean)
        result.start = MODES[mode][0]
        self.write(result, np.broadcast_to(np.expand_dims(result.memory, axes), value.shape), mode, value)
        mask = collapsed(np.asarray(value.mask.any(axes))) if mode == "add" else dense(len(kept))
        return Value(result, result.memory, mask)

    def cumulative(self, mode: str, value: Value, axis: int, reverse: bool) -> Value:
        result = self.assembled(value.shape)
        value = value._replace(mask=dense(len(value.shape)))
        view = result.memory
        if reverse:
            value, view = self.moved(value, lambda a: np.flip(a, axis)), np.flip(view, axis)
        self.write(result, view, mode, value, before=axis)
        return Value(result, result.memory, value.mask)

    def do_stack(self, eqn: Any, *parts: Value) -> list[Value]:
        return [self.stacked(parts, int(eqn.params["axis"]))]

    def do_concatenate(self, eqn: Any, *parts: Value) -> list[Value]:
        axis = int(eqn.params["dimension"])
        if all(part.shape[axis] == 1 for part in parts):
            return [self.stacked([self.moved(part, lambda a: a.squeeze(axis)) for part in parts], axis)]
        return [self.joined(parts, axis)]

    def do_pad(self, eqn: Any, value: Value, filling: Value) -> list[Value]:
        shape, result_cut, value_cut = eqn.outvars[0].aval.shape, [], []
        for n, (low, _, step), size in zip(value.shape, eqn.params["padding_config"], shape, strict=True):
            places = [(k, int(low) + k * (int(step) + 1)) for k in range(n)]
            inside = [(k, p) for k, p in places if 0 <= p < size]
            if not inside:
                return [self.moved(filling, lambda a: np.broadcast_to(a, shape))]
            value_cut.append(slice(inside[0][0], inside[-1][0] + 1))
            result_cut.append(slice(inside[0][1], inside[-1][1] + 1, int(step) + 1))
        part = self.moved(value, lambda a: a[tuple(value_cut)])
        if not filling.mask.any():
            return [self.pieces(shape, [tuple(result_cut)], [part])]
        result = self.assembled(shape)
        self.write(result, result.memory, "set", self.moved(filling, lambda a: np.broadcast_to(a, shape)))
        part = part._replace(mask=dense(len(shape)))
        self.write(result, result.memory[tuple(result_cut)], "set", part, after=True)
        return [Value(result, result.memory, part.mask)]

    def do_broadcast_in_dim(self, eqn: Any, value: Value, *_: Any) -> list[Value]:
        shape = tuple(eqn.params["shape"])
        position = [int(k) for k in eqn.params["broadcast_dimensions"]]
        new = tuple(k for k in range(len(shape)) if k not in position)
        return [self.moved(value, lambda a: np.broadcast_to(np.expand_dims(a, new), shape))]

    def do_reshape(self, eqn: Any, value: Value) -> list[Value]:
        shape = tuple(eqn.params["new_sizes"])
        if eqn.params["dimensions"] is not None:
            value = self.moved(value, lambda a: np.transpose(a, eqn.params["dimensions"]))
        if [n for n in shape if n != 1] == [n for n in value.shape if n != 1]:  # only axes of length 1 come and go
            ones = tuple(k for k, n in enumerate(shape) if n == 1)
            old = tuple(k for k, n in enumerate(value.shape) if n == 1)
            return [self.moved(value, lambda a: np.expand_dims(np.squeeze(a, old), ones))]
        if not value.view.flags.c_contiguous:
            if value.buffer.place == "c":
                return self.folded(eqn, [value])
            value = self.point("copy", value)
        return [self.moved(value, lambda a: a.reshape(shape))]

    def do_squeeze(self, eqn: Any, value: Value) -> list[Value]:
        return [self.moved(value, lambda a: np.squeeze(a, tuple(map(int, eqn.params["dimensions"]))))]

    def do_expand_dims(self, eqn: Any, value: Value) -> list[Value]:
        return [self.moved(value, lambda a: np.expand_dims(a, tuple(eqn.params["dimensions"])))]

    def do_transpose(self, eqn: Any, value: Value) -> list[Value]:
        return [self.moved(value, lambda a: np.transpose(a, eqn.params["permutation"]))]

    def do_rev(self, eqn: Any, value: Value) -> list[Value]:
        return [self.moved(value, lambda a: np.flip(a, tuple(map(int, eqn.params["dimensions"]))))]

    def do_slice(self, eqn: Any, value: Value) -> list[Value]:
        p = eqn.params
        steps = p["strides"] or (1,) * len(value.shape)
        cut = tuple(slice(*map(int, ends)) for ends in zip(p["start_indices"], p["limit_indices"], steps, strict=True))
        return [self.moved(value, lambda a: a[cut])]

    def do_split(self, eqn: Any, value: Value) -> list[Value]:
        axis, ends = int(eqn.params["axis"]), np.cumsum([int(n) for n in eqn.params["sizes"]])
        cuts = [slice(int(e - n), int(e)) for e, n in zip(ends, eqn.params["sizes"], strict=True)]
        return [self.moved(value, lambda a, cut=cut: a[(slice(None),) * axis + (cut,)]) for cut in cuts]

    def do_unstack(self, eqn: Any, value: Value) -> list[Value]:
        axis = int(eqn.params["axis"])
        take = lambda k: self.moved(value, lambda a: a[(slice(None),) * axis + (k, ...)])  # noqa: E731
        return [take(k) for k in range(value.shape[axis])]

    def do_tile(self, eqn: Any, value: Value) -> list[Value]:
        repeats = tuple(map(int, eqn.params["reps"]))
        around = tuple(m for pair in zip(repeats, value.shape, strict=True) for m in pair)
        wide = self.moved(
            value, lambda a: np.broadcast_to(a[tuple(x for _ in a.shape for x in (None, slice(None)))], around)
        )
        whole = self.point("copy", wide)
        return [self.moved(whole, lambda a: a.reshape(eqn.outvars[0].aval.shape))]

    def do_iota(self, eqn: Any) -> list[Value]:
        shape, axis = tuple(eqn.params["shape"]), eqn.params["dimension"]
        index = self.constant(np.arange(shape[axis]))
        new = tuple(k for k in range(len(shape)) if k != axis)
        return [self.moved(index, lambda a: np.broadcast_to(np.expand_dims(a, new), shape))]

    def do_integer_pow(self, eqn: Any, value: Value) -> list[Value]:
        exponent, base, result = eqn.params["y"], value, None
        left = abs(exponent)
        while left:
            if left & 1:
                result = base if result is None else self.point("mul", result, base)
            left >>= 1
            base = self.point("mul", base, base) if left else base
        one = self.moved(self.constant(1.0), lambda a: np.broadcast_to(a, value.shape))
        result = one if result is None else result
        return [self.point("div", one, result) if exponent < 0 else result]

    def do_one_minus_square(self, eqn: Any, value: Value) -> list[Value]:
        one = self.moved(self.constant(1.0), lambda a: np.broadcast_to(a, value.shape))
        return [self.point("mul", self.point("add", one, value), self.point("sub", one, value))]

    def do_square(self, eqn: Any, value: Value) -> list[Value]:
        return [self.point("mul", value, value)]

    def do_polygamma(self, eqn: Any, order: Value, value: Value) -> list[Value]:
        if order.buffer.place != "c" or np.any(order.view != 1.0):
            raise UntranslatableError(f"a polygamma function of another order than 1{self.where()}")
        return [self.point("trigamma", value)]

    def do_select_n(self, eqn: Any, which: Value, *cases: Value) -> list[Value]:
        result = cases[0]
        for k, case in enumerate(cases[1:]):
            condition = which if which.buffer.boolean else self.point("gt", which, self.constant(k + 0.5))
            result = self.choice(condition, case, result)
        return [result]

    def choice(self, condition: Value, if_true: Value, if_false: Value) -> Value:
        return self.point("select", condition, if_true, if_false)

    def do_clamp(self, eqn: Any, low: Value, value: Value, high: Value) -> list[Value]:
        return [self.point("min", self.point("max", value, low), high)]

    def do_convert_element_type(self, eqn: Any, value: Value) -> list[Value]:
        source, target = eqn.invars[0].aval.dtype.kind, np.dtype(eqn.params["new_dtype"]).kind
        if source == target or (source in "iu" and target in "fiu"):
            return [value]
        return [self.point("to_number" if source == "b" else "to_bool" if target == "b" else "trunc", value)]

    def do_cond(self, eqn: Any, index: Value, *args: Value) -> list[Value]:
        """All branches, and a choice between their results."""
        branches = eqn.params["branches"]
        if index.buffer.place == "c":
            branch = branches[min(max(int(index.view), 0), len(branches) - 1)]
            return self.run(branch.jaxpr, branch.consts, args)
        results = self.run(branches[0].jaxpr, branches[0].consts, args)
        for k, branch in enumerate(branches[1:]):
            beyond = index if index.buffer.boolean else self.point("gt", index, self.constant(k + 0.5))
            others = self.run(branch.jaxpr, branch.consts, args)
            results = [self.choice(beyond, new, old) for new, old in zip(others, results, strict=True)]
        return results

    def do_scan(self, eqn: Any, *args: Value) -> list[Value]:
        """A loop of known length, written out."""
        body, length = eqn.params["jaxpr"], eqn.params["length"]
        first, n_carry = scan_layout(eqn)
        if length > MAX_TURNS:
            raise UntranslatableError(f"a loop of {length} turns, more than {MAX_TURNS}{self.where()}")
        consts, carry, stacked = args[:first], list(args[first : first + n_carry]), []
        for k in range(length)[::-1] if eqn.params["reverse"] else range(length):
            each = [self.moved(a, lambda v, k=k: v[k, ...]) for a in args[first + n_carry :]]
            results = self.run(body.jaxpr, body.consts, [*consts, *carry, *each])
            carry = results[:n_carry]
            stacked.append(results[n_carry:])
        order = stacked[::-1] if eqn.params["reverse"] else stacked
        return [*carry, *(self.stacked(parts, 0) for parts in zip(*order, strict=True))]

    def do_dot_general(self, eqn: Any, a: Value, b: Value) -> list[Value]:
        """The sum of a product over (batch, free of a, free of b, contracted)."""
        (contract_a, contract_b), (batch_a, batch_b) = eqn.params["dimension_numbers"]
        free_a = [k for k in range(len(a.shape)) if k not in (*contract_a, *batch_a)]
        free_b = [k for k in range(len(b.shape)) if k not in (*contract_b, *batch_b)]
        n_batch, n_a, n_b, n_sum = len(batch_a), len(free_a), len(free_b), len(contract_a)
        axes_a = tuple(range(n_batch + n_a, n_batch + n_a + n_b))
        axes_b = tuple(range(n_batch, n_batch + n_a))
        left = self.moved(a, lambda v: np.expand_dims(np.transpose(v, (*batch_a, *free_a, *contract_a)), axes_a))
        right = self.moved(b, lambda v: np.expand_dims(np.transpose(v, (*batch_b, *free_b, *contract_b)), axes_b))
        product = self.point("mul", left, right)
        kept = n_batch + n_a + n_b
        return [self.reduce("add", product, range(kept, kept + n_sum)) if n_sum else product]

    def do_conv_general_dilated(self, eqn: Any, a: Value, b: Value) -> list[Value]:
        """A convolution along one axis: the sum of a product of windows of `a` over (features, places) of `b`."""
        p, places = eqn.params, eqn.params["dimension_numbers"]
        if len(a.shape) != 3 or p["batch_group_count"] != 1 or tuple(p["lhs_dilation"]) != (1,):
            raise UntranslatableError(f"a convolution of this form{self.where()}")
        (low, high), (step,), (spread,) = p["padding"][0], p["window_strides"], p["rhs_dilation"]
        n_groups = int(p["feature_group_count"])
        a = self.moved(a, lambda v: np.transpose(v, places.lhs_spec))
        b = self.moved(b, lambda v: np.transpose(v, places.rhs_spec))
        n_batch, n_features, n = a.shape
        n_out, n_inside, n_places = b.shape
        length = (n + low + high - spread * (n_places - 1) - 1) // step + 1
        if low or high:
            cut = (slice(None), slice(None), slice(max(low, 0), max(low, 0) + n - max(-low, 0) - max(-high, 0)))
            a = self.moved(a, lambda v: v[:, :, max(-low, 0) : n - max(-high, 0)])
            a = self.pieces((n_batch, n_features, n + low + high), [cut], [a])
        ends = [(k * spread, k * spread + (length - 1) * step + 1) for k in range(n_places)]
        windows = self.stacked([self.moved(a, lambda v, e=e: v[:, :, e[0] : e[1] : step]) for e in ends], 3)
        left = self.moved(windows, lambda v: v.reshape(n_batch, n_groups, 1, n_inside, length, n_places))
        right = self.moved(
            b, lambda v: v.reshape(n_groups, n_out // n_groups, n_inside, n_places)[None, :, :, :, None, :]
        )
        whole = self.reduce("add", self.point("mul", left, right), (3, 5))
        whole = self.moved(whole, lambda v: v.reshape(n_batch, n_out, length))
        return [self.moved(whole, lambda v: np.transpose(v, np.argsort(places.out_spec)))]


def function_source(
    function: Callable, input_shapes: Sequence[tuple[int, ...]], name: str, pool: Pool
) -> tuple[str, list[np.ndarray], int]:
    """The source of a JAX function of float64 arrays of fixed shapes.

    Parameters
    ----------
    function : callable
        Takes one array for each shape, returns a tuple of arrays.
    input_shapes : sequence of tuple of int
    name : str
        What the function is called in the source.
    pool : Pool
        Takes the constants; the function wants them as its first argument.

    Returns
    -------
    text : str
        Of `name(constants, *inputs, *outputs, memory)`, all flat float64 arrays in C order. The outputs and the memory
        must be zero at the first call, and kept as they are.
    masks : list of bool arrays
        Where each output may differ from zero.
    n_memory : int
        Length of the memory.

    Raises
    ------
    UntranslatableError
        If an operation has no form here; the message names it and the line of the model.
    """
    with jax.enable_x64(True):
        closed = real_program(function, *(jax.ShapeDtypeStruct(s, np.float64) for s in input_shapes))
        reader = _Reader()
        inputs = [reader.buffer(shape, f"x{k}") for k, shape in enumerate(input_shapes)]
        values = [Value(b, b.memory, dense(b.memory.ndim)) for b in inputs]
        outputs = reader.run(closed.jaxpr, closed.consts, values)
    targets = [reader.buffer(value.shape, f"y{k}") for k, value in enumerate(outputs)]
    for target, value in zip(targets, outputs, strict=True):
        reader.write(target, target.memory, "set", value)
    writer = Writer(len(inputs), targets, pool)
    masks = [np.broadcast_to(value.mask, value.shape) for value in outputs]
    return writer.source(name), masks, writer.n_scratch
