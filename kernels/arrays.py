"""A JAX function of arrays as numba source made of loops, for models whose expectation is a vector.

The jaxpr is read into *buffers*. A pointwise operation is a buffer that holds an expression; operations that only
move elements (reshape, slice, transpose, broadcast) are views of a buffer, found by numpy's own stride arithmetic on
arrays that are never read; all others are writes into a buffer, from which `kernels.loops` makes loops. The source
then grows with the number of operations of the model, not with the length of its arrays.

Forward-mode Jacobians consist mostly of zeros: each parameter moves few templates. Every value carries a mask of the
places that may differ from zero, and a loop whose mask is thin runs over a table of these places. Such a zero stays
zero when it is multiplied by infinity or NaN.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend import core as jex_core
from numpy.lib.stride_tricks import as_strided

from kernels.graph import _CALLS, _ELEMENTWISE, _UNCHANGED, UntranslatableError, _where, scan_layout
from kernels.loops import _BOOLEAN, _MODES, _address, _Buffer, _dense, _Indirect, _Pool, _Value, _Write, _Writer
from kernels.translate import _HEADER, import_source

__all__ = ["ArrayFunction", "compile_arrays"]

# Where the result is zero: if both arguments are, if one of them is, if the first is.
_ZERO_IF_BOTH = {"add", "sub", "or", "max", "min", "lt", "gt", "ne"}
_ZERO_IF_EITHER = {"mul", "and"}
_ZERO_IF_FIRST = {"neg", "abs", "sign", "sqrt", "cbrt", "sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh"}
_ZERO_IF_FIRST |= {"expm1", "log1p", "erf", "floor", "ceil", "trunc", "copy", "to_number", "to_bool", "div", "rem"}
_REDUCTIONS = {"reduce_sum": "add", "reduce_prod": "mul", "reduce_max": "max", "reduce_min": "min"}
_REDUCTIONS |= {"reduce_and": "min", "reduce_or": "max"}
_CUMULATIVE = {"cumsum": "add", "cumprod": "mul", "cummax": "max", "cummin": "min"}
_SCATTERS = {"scatter": "set", "scatter-add": "add", "scatter_add": "add", "scatter-mul": "mul", "scatter_mul": "mul"}
_SCATTERS |= {"scatter-max": "max", "scatter_max": "max", "scatter-min": "min", "scatter_min": "min"}
# A loop of more turns is not written out.
MAX_TURNS = 64
# An operation on constants is carried out at once, unless its result is larger than this and than its arguments.
MAX_FOLDED = 1 << 18


def _collapsed(mask: np.ndarray) -> np.ndarray:
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


class _Reader:
    """Reads a jaxpr into buffers and writes."""

    def __init__(self) -> None:
        self.buffers: list[_Buffer] = []
        self.within: list = []  # the equations that the present one is part of, such as calls

    def where(self) -> str:
        return _where(*reversed(self.within))

    def buffer(self, shape: tuple, place: str, **options: Any) -> _Buffer:
        self.buffers.append(_Buffer(len(self.buffers), tuple(map(int, shape)), place, **options))
        return self.buffers[-1]

    def constant(self, values: Any) -> _Value:
        values = np.asarray(values)
        held = np.ascontiguousarray(values, dtype=np.float64).reshape(values.shape)
        buffer = self.buffer(values.shape, "c", values=held, boolean=values.dtype.kind == "b")
        return _Value(buffer, buffer.memory, _collapsed(held != 0.0))

    def zeros(self, shape: tuple, boolean: bool = False) -> _Value:
        zero = self.constant(np.zeros((), dtype=bool if boolean else float))
        return self.moved(zero, lambda a: np.broadcast_to(a, shape))

    @staticmethod
    def moved(value: _Value, move: Callable) -> _Value:
        """A view of a value; `move` acts on numpy arrays and copies nothing."""
        view = move(value.view)
        dense = value.mask.all()
        mask = _dense(view.ndim) if dense else _collapsed(move(np.broadcast_to(value.mask, value.shape)))
        return _Value(value.buffer, view, mask)

    def point(self, op: str, *args: _Value) -> _Value:
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
            mask = _dense(len(shape))
        boolean = op in _BOOLEAN or (op in ("select", "copy", "max", "min") and args[-1].buffer.boolean)
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
        buffer.op, buffer.args, buffer.mask = op, args, _collapsed(mask)
        return _Value(buffer, buffer.memory, buffer.mask)

    def assembled(self, shape: tuple, boolean: bool = False) -> _Buffer:
        """A buffer that writes fill."""
        return self.buffer(shape, "w", boolean=boolean)

    def write(self, buffer: _Buffer, view: np.ndarray, mode: str, value: _Value, **options: Any) -> None:
        buffer.writes.append(_Write(_Value(buffer, view, value.mask), mode, value, **options))

    def run(self, jaxpr: Any, consts: Sequence, args: Sequence[_Value]) -> list[_Value]:
        env: dict = {}

        def read(atom: Any) -> _Value:
            return self.constant(atom.val) if isinstance(atom, jex_core.Literal) else env[atom]

        env.update(
            zip(jaxpr.constvars, (c if isinstance(c, _Value) else self.constant(c) for c in consts), strict=True)
        )
        env.update(zip(jaxpr.invars, args, strict=True))
        for eqn in jaxpr.eqns:
            self.within.append(eqn)
            env.update(zip(eqn.outvars, self.equation(eqn, [read(atom) for atom in eqn.invars]), strict=True))
            self.within.pop()
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn: Any, args: list[_Value]) -> list[_Value]:
        name, params = eqn.primitive.name, eqn.params
        if name in _CALLS:
            inner = params[_CALLS[name]]
            return self.run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), args)
        if name in _UNCHANGED:
            return args
        method = getattr(self, f"do_{name.replace('-', '_')}", None)
        if name == "while":
            raise UntranslatableError(f"no loop form of the operation 'while'{self.where()}")
        moves = name in ("broadcast_in_dim", "reshape", "transpose", "slice", "squeeze", "expand_dims", "rev")
        known = all(a.buffer.place == "c" for a in args) and not moves and name not in ("scan", "cond")
        size, translated = sum(v.aval.size for v in eqn.outvars), method is not None or name in _ELEMENTWISE
        expands = size > max(MAX_FOLDED, sum(a.buffer.memory.size for a in args))
        if known and not (expands and translated):
            return self.folded(eqn, args)
        if name in _ELEMENTWISE or name in ("lt_to", "le_to", "logistic"):
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

    def folded(self, eqn: Any, args: list[_Value]) -> list[_Value]:
        inputs = [a.view.astype(atom.aval.dtype) for a, atom in zip(args, eqn.invars, strict=True)]
        with jax.ensure_compile_time_eval():
            outputs = eqn.primitive.bind(*inputs, **eqn.params)
        return [self.constant(np.asarray(v)) for v in (outputs if eqn.primitive.multiple_results else [outputs])]

    def elementwise(self, eqn: Any, args: list[_Value]) -> _Value:
        name = eqn.primitive.name
        op = _ELEMENTWISE.get(name, name)
        if eqn.outvars[0].aval.dtype.kind in "iu":  # held as float64
            if op in ("and", "or", "not", "pow"):
                raise UntranslatableError(f"no loop form of the operation '{name}' on integers{self.where()}")
            if op == "div":
                return self.point("trunc", self.point("div", *args))
        return self.point(op, *args)

    def reduce(self, mode: str, value: _Value, axes: Sequence[int]) -> _Value:
        axes = tuple(map(int, axes))
        kept = tuple(n for k, n in enumerate(value.shape) if k not in axes)
        if mode == "add" and not value.mask.any():
            return self.zeros(kept)
        if mode != "add":
            value = value._replace(mask=_dense(len(value.shape)))
        result = self.assembled(kept, value.buffer.boolean)
        result.start = _MODES[mode][0]
        self.write(result, np.broadcast_to(np.expand_dims(result.memory, axes), value.shape), mode, value)
        mask = _collapsed(np.asarray(value.mask.any(axes))) if mode == "add" else _dense(len(kept))
        return _Value(result, result.memory, mask)

    def cumulative(self, mode: str, value: _Value, axis: int, reverse: bool) -> _Value:
        result = self.assembled(value.shape)
        value = value._replace(mask=_dense(len(value.shape)))
        view = result.memory
        if reverse:
            value, view = self.moved(value, lambda a: np.flip(a, axis)), np.flip(view, axis)
        self.write(result, view, mode, value, before=axis)
        return _Value(result, result.memory, value.mask)

    def pieces(self, shape: tuple, cuts: Sequence[tuple], parts: Sequence[_Value]) -> _Value:
        """An array made of parts; each cut is the index that takes its part out of the whole."""
        result = self.assembled(shape, parts[0].buffer.boolean)
        mask = np.zeros(shape, dtype=bool)
        for cut, part in zip(cuts, parts, strict=True):
            if part.mask.any():
                mask[cut] = part.mask
                self.write(result, result.memory[cut], "set", part)
        return _Value(result, result.memory, _collapsed(mask)) if mask.any() else self.zeros(shape)

    def stacked(self, parts: Sequence[_Value], axis: int) -> _Value:
        """Parts of one shape along a new axis; those that lie evenly spaced in one buffer are one view of it."""
        runs: list[list[_Value]] = []
        step = None
        for part in parts:
            before = runs[-1][-1] if runs else None
            distance = None
            if before is not None and before.buffer is part.buffer and before.view.strides == part.view.strides:
                distance = _address(part.view) - _address(before.view)
            if distance is not None and step in (None, distance):
                runs[-1].append(part)
                step = distance
            else:
                runs.append([part])
                step = None
        wholes = []
        for run in runs:
            first = run[0].view
            step = _address(run[1].view) - _address(first) if len(run) > 1 else 0
            view = as_strided(first, (len(run), *first.shape), (step, *first.strides), writeable=False)
            mask = np.stack([np.broadcast_to(part.mask, first.shape) for part in run], axis)
            wholes.append(_Value(run[0].buffer, np.moveaxis(view, 0, axis), _collapsed(mask)))
        return wholes[0] if len(wholes) == 1 else self.joined(wholes, axis)

    def joined(self, parts: Sequence[_Value], axis: int) -> _Value:
        """Parts one after the other along an axis."""
        ends = [0, *itertools.accumulate(part.shape[axis] for part in parts)]
        cuts = [(slice(None),) * axis + (slice(*pair),) for pair in itertools.pairwise(ends)]
        return self.pieces((*parts[0].shape[:axis], ends[-1], *parts[0].shape[axis + 1 :]), cuts, parts)

    def do_stack(self, eqn: Any, *parts: _Value) -> list[_Value]:
        return [self.stacked(parts, int(eqn.params["axis"]))]

    def do_concatenate(self, eqn: Any, *parts: _Value) -> list[_Value]:
        axis = int(eqn.params["dimension"])
        if all(part.shape[axis] == 1 for part in parts):
            return [self.stacked([self.moved(part, lambda a: a.squeeze(axis)) for part in parts], axis)]
        return [self.joined(parts, axis)]

    def do_pad(self, eqn: Any, value: _Value, filling: _Value) -> list[_Value]:
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
        part = part._replace(mask=_dense(len(shape)))
        self.write(result, result.memory[tuple(result_cut)], "set", part, after=True)
        return [_Value(result, result.memory, part.mask)]

    def do_broadcast_in_dim(self, eqn: Any, value: _Value, *_: Any) -> list[_Value]:
        shape = tuple(eqn.params["shape"])
        position = [int(k) for k in eqn.params["broadcast_dimensions"]]
        new = tuple(k for k in range(len(shape)) if k not in position)
        return [self.moved(value, lambda a: np.broadcast_to(np.expand_dims(a, new), shape))]

    def do_reshape(self, eqn: Any, value: _Value) -> list[_Value]:
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

    def do_squeeze(self, eqn: Any, value: _Value) -> list[_Value]:
        return [self.moved(value, lambda a: np.squeeze(a, tuple(map(int, eqn.params["dimensions"]))))]

    def do_expand_dims(self, eqn: Any, value: _Value) -> list[_Value]:
        return [self.moved(value, lambda a: np.expand_dims(a, tuple(eqn.params["dimensions"])))]

    def do_transpose(self, eqn: Any, value: _Value) -> list[_Value]:
        return [self.moved(value, lambda a: np.transpose(a, eqn.params["permutation"]))]

    def do_rev(self, eqn: Any, value: _Value) -> list[_Value]:
        return [self.moved(value, lambda a: np.flip(a, tuple(map(int, eqn.params["dimensions"]))))]

    def do_slice(self, eqn: Any, value: _Value) -> list[_Value]:
        p = eqn.params
        steps = p["strides"] or (1,) * len(value.shape)
        cut = tuple(slice(*map(int, ends)) for ends in zip(p["start_indices"], p["limit_indices"], steps, strict=True))
        return [self.moved(value, lambda a: a[cut])]

    def do_split(self, eqn: Any, value: _Value) -> list[_Value]:
        axis, ends = int(eqn.params["axis"]), np.cumsum([int(n) for n in eqn.params["sizes"]])
        cuts = [slice(int(e - n), int(e)) for e, n in zip(ends, eqn.params["sizes"], strict=True)]
        return [self.moved(value, lambda a, cut=cut: a[(slice(None),) * axis + (cut,)]) for cut in cuts]

    def do_unstack(self, eqn: Any, value: _Value) -> list[_Value]:
        axis = int(eqn.params["axis"])
        take = lambda k: self.moved(value, lambda a: a[(slice(None),) * axis + (k, ...)])  # noqa: E731
        return [take(k) for k in range(value.shape[axis])]

    def do_tile(self, eqn: Any, value: _Value) -> list[_Value]:
        repeats = tuple(map(int, eqn.params["reps"]))
        around = tuple(m for pair in zip(repeats, value.shape, strict=True) for m in pair)
        wide = self.moved(
            value, lambda a: np.broadcast_to(a[tuple(x for _ in a.shape for x in (None, slice(None)))], around)
        )
        whole = self.point("copy", wide)
        return [self.moved(whole, lambda a: a.reshape(eqn.outvars[0].aval.shape))]

    def do_iota(self, eqn: Any) -> list[_Value]:
        shape, axis = tuple(eqn.params["shape"]), eqn.params["dimension"]
        index = self.constant(np.arange(shape[axis]))
        new = tuple(k for k in range(len(shape)) if k != axis)
        return [self.moved(index, lambda a: np.broadcast_to(np.expand_dims(a, new), shape))]

    def do_integer_pow(self, eqn: Any, value: _Value) -> list[_Value]:
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

    def do_one_minus_square(self, eqn: Any, value: _Value) -> list[_Value]:
        one = self.moved(self.constant(1.0), lambda a: np.broadcast_to(a, value.shape))
        return [self.point("mul", self.point("add", one, value), self.point("sub", one, value))]

    def do_square(self, eqn: Any, value: _Value) -> list[_Value]:
        return [self.point("mul", value, value)]

    def do_select_n(self, eqn: Any, which: _Value, *cases: _Value) -> list[_Value]:
        result = cases[0]
        for k, case in enumerate(cases[1:]):
            condition = which if which.buffer.boolean else self.point("gt", which, self.constant(k + 0.5))
            result = self.choice(condition, case, result)
        return [result]

    def choice(self, condition: _Value, if_true: _Value, if_false: _Value) -> _Value:
        return self.point("select", condition, if_true, if_false)

    def do_clamp(self, eqn: Any, low: _Value, value: _Value, high: _Value) -> list[_Value]:
        return [self.point("min", self.point("max", value, low), high)]

    def do_convert_element_type(self, eqn: Any, value: _Value) -> list[_Value]:
        source, target = eqn.invars[0].aval.dtype.kind, np.dtype(eqn.params["new_dtype"]).kind
        if source == target or (source in "iu" and target in "fiu"):
            return [value]
        return [self.point("to_number" if source == "b" else "to_bool" if target == "b" else "trunc", value)]

    def do_cond(self, eqn: Any, index: _Value, *args: _Value) -> list[_Value]:
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

    def do_scan(self, eqn: Any, *args: _Value) -> list[_Value]:
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

    def do_dot_general(self, eqn: Any, a: _Value, b: _Value) -> list[_Value]:
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

    def do_conv_general_dilated(self, eqn: Any, a: _Value, b: _Value) -> list[_Value]:
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

    def indirect(
        self, indices: _Value, operand: Any, sizes: Sequence, dims: Sequence, shape: tuple, batch: dict, mode: Any
    ):
        """Index columns as views over `shape`; `batch` maps axes of `shape` to axes of the indices."""
        columns = []
        for k in range(len(dims)):
            each = self.moved(indices, lambda a, k=k: a[..., k])
            order = [batch[axis] for axis in sorted(batch)]
            new = tuple(axis for axis in range(len(shape)) if axis not in batch)
            columns.append(
                self.moved(
                    each, lambda a, o=order, n=new: np.broadcast_to(np.expand_dims(np.transpose(a, o), n), shape)
                )
            )
        drop = "FILL" in str(mode)
        limits = tuple(int(operand.shape[d] - sizes[d]) for d in dims)
        return _Indirect(tuple(columns), tuple(operand.strides[d] // 8 for d in dims), limits, drop)

    def take(self, source: _Value, view: np.ndarray, indirect: _Indirect, fill: float) -> _Value:
        """Elements of a buffer at computed places."""
        buffer = self.buffer(view.shape, "w", boolean=source.buffer.boolean)
        buffer.op, buffer.args, buffer.indirect, buffer.fill = "take", indirect.indices, indirect, fill
        buffer.source = _Value(source.buffer, view, _dense(view.ndim))
        return _Value(buffer, buffer.memory, _dense(view.ndim))

    @staticmethod
    def window(operand: np.ndarray, shape: tuple, offset: dict, batch: dict) -> np.ndarray:
        """The view of an operand over the axes of a gather's result; the maps give the axis of the operand."""
        strides = [
            operand.strides[(offset | batch)[axis]] if axis in offset | batch else 0 for axis in range(len(shape))
        ]
        return as_strided(operand, shape, strides, writeable=False)

    def do_gather(self, eqn: Any, operand: _Value, indices: _Value) -> list[_Value]:
        p, shape = eqn.params, eqn.outvars[0].aval.shape
        d, sizes = p["dimension_numbers"], p["slice_sizes"]
        left = [k for k in range(len(operand.shape)) if k not in (*d.collapsed_slice_dims, *d.operand_batching_dims)]
        offset = dict(zip(d.offset_dims, left, strict=True))
        places = [axis for axis in range(len(shape)) if axis not in offset]  # of the axes of the indices
        batch = {places[s]: o for o, s in zip(d.operand_batching_dims, d.start_indices_batching_dims, strict=True)}
        if not operand.mask.any():
            return [self.zeros(shape)]
        view = self.window(operand.view, shape, offset, batch)
        columns = {axis: k for k, axis in enumerate(places)}
        found = self.indirect(indices, operand.view, sizes, d.start_index_map, shape, columns, p["mode"])
        fill = p["fill_value"]
        return [self.take(operand, view, found, math.nan if fill is None else float(fill))]

    def scatter(self, eqn: Any, mode: str, operand: _Value, indices: _Value, updates: _Value) -> _Value:
        p, shape, d = eqn.params, updates.shape, eqn.params["dimension_numbers"]
        left = [k for k in range(len(operand.shape)) if k not in (*d.inserted_window_dims, *d.operand_batching_dims)]
        offset = dict(zip(d.update_window_dims, left, strict=True))
        places = [axis for axis in range(len(shape)) if axis not in offset]
        batch = {places[s]: o for o, s in zip(d.operand_batching_dims, d.scatter_indices_batching_dims, strict=True)}
        sizes = [1] * len(operand.shape)
        for axis, dim in offset.items():
            sizes[dim] = shape[axis]
        result = self.start_from(operand)
        view = self.window(result.memory, shape, offset, batch)
        columns = {axis: k for k, axis in enumerate(places)}
        found = self.indirect(indices, result.memory, sizes, d.scatter_dims_to_operand_dims, shape, columns, p["mode"])
        if mode == "add" and not updates.mask.any():
            return operand
        self.write(result, view, mode, updates._replace(mask=_dense(len(shape))), indirect=found, after=True)
        return _Value(result, result.memory, _dense(len(operand.shape)))

    def start_from(self, operand: _Value) -> _Buffer:
        result = self.assembled(operand.shape, operand.buffer.boolean)
        if operand.mask.any():
            self.write(result, result.memory, "set", operand)
        return result

    def do_dynamic_slice(self, eqn: Any, operand: _Value, *indices: _Value) -> list[_Value]:
        shape = eqn.outvars[0].aval.shape
        view = operand.view[tuple(slice(n) for n in shape)]
        return [self.take(operand, view, self.corner(operand.view, indices, shape), math.nan)]

    def do_dynamic_update_slice(self, eqn: Any, operand: _Value, update: _Value, *indices: _Value) -> list[_Value]:
        result, shape = self.start_from(operand), update.shape
        view = result.memory[tuple(slice(n) for n in shape)]
        found = self.corner(result.memory, indices, shape)
        self.write(result, view, "set", update._replace(mask=_dense(len(shape))), indirect=found, after=True)
        return [_Value(result, result.memory, _dense(len(operand.shape)))]

    def corner(self, operand: np.ndarray, indices: Sequence[_Value], shape: tuple) -> _Indirect:
        """The computed corner of a block, kept inside; a negative index counts from there, as JAX has resolved it."""
        columns = tuple(self.moved(index, lambda a: np.broadcast_to(a, shape)) for index in indices)
        limits = tuple(n - m for n, m in zip(operand.shape, shape, strict=True))
        return _Indirect(columns, tuple(s // 8 for s in operand.strides), limits, False)


def _function_source(
    function: Callable, input_shapes: Sequence[tuple], name: str, pool: _Pool, own_memory: bool = True
) -> tuple[str, list[np.ndarray], int]:
    """The text of a function, where its outputs may differ from zero, and the length of the memory it wants."""
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, np.float64) for s in input_shapes))
        reader = _Reader()
        inputs = [reader.buffer(shape, f"x{k}") for k, shape in enumerate(input_shapes)]
        values = [_Value(b, b.memory, _dense(b.memory.ndim)) for b in inputs]
        outputs = reader.run(closed.jaxpr, closed.consts, values)
    targets = [reader.buffer(value.shape, f"y{k}") for k, value in enumerate(outputs)]
    for target, value in zip(targets, outputs, strict=True):
        reader.write(target, target.memory, "set", value)
    writer = _Writer(len(inputs), targets, pool)
    masks = [np.broadcast_to(value.mask, value.shape) for value in outputs]
    return writer.source(name, own_memory), masks, writer.n_scratch


class ArrayFunction(NamedTuple):
    """A compiled function of arrays.

    Attributes
    ----------
    call : numba function
        `call(constants, *inputs, *outputs)`, all flat float64 arrays in C order; writes the outputs.
    constants : (n,) float64
        What the function captured, to be passed to `call`.
    zero : list of bool
        For each output, whether it is zero whatever the inputs.
    """

    call: Callable
    constants: np.ndarray
    zero: list[bool]


def compile_arrays(function: Callable, input_shapes: Sequence[tuple[int, ...]]) -> ArrayFunction:
    """Compile a JAX function of float64 arrays of fixed shapes.

    Parameters
    ----------
    function : callable
        Takes one array for each shape, returns a tuple of arrays.
    input_shapes : sequence of tuple of int

    Raises
    ------
    UntranslatableError
        If an operation has no form here; the message names it and the line of the model.
    """
    pool = _Pool()
    text, masks, _ = _function_source(function, input_shapes, "evaluate", pool)
    zero = [not mask.any() for mask in masks]
    signature = f"void({', '.join(['f8[::1]'] * (1 + len(input_shapes) + len(zero)))})"
    text = text.replace("@lowered(**", f"@lowered({signature!r}, cache=True, **")
    return ArrayFunction(import_source(_HEADER + text).evaluate, pool.flat(), zero)
