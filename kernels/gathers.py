"""Elements at computed places: what a function of arrays reads there, and what it writes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from kernels.buffers import Buffer, Buffers, Indirect, Value, dense

__all__ = ["Gathers"]


class Gathers(Buffers):
    """Buffers, and JAX's operations with computed indices on them."""

    def indirect(
        self, indices: Value, operand: Any, sizes: Sequence, dims: Sequence, shape: tuple, batch: dict, mode: Any
    ) -> Indirect:
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
        return Indirect(tuple(columns), tuple(operand.strides[d] // 8 for d in dims), limits, drop)

    def take(self, source: Value, view: np.ndarray, indirect: Indirect, fill: float) -> Value:
        """Elements of a buffer at computed places."""
        buffer = self.buffer(view.shape, "w", boolean=source.buffer.boolean)
        buffer.op, buffer.args, buffer.indirect, buffer.fill = "take", indirect.indices, indirect, fill
        buffer.source = Value(source.buffer, view, dense(view.ndim))
        return Value(buffer, buffer.memory, dense(view.ndim))

    @staticmethod
    def window(operand: np.ndarray, shape: tuple, offset: dict, batch: dict) -> np.ndarray:
        """The view of an operand over the axes of a gather's result; the maps give the axis of the operand."""
        strides = [
            operand.strides[(offset | batch)[axis]] if axis in offset | batch else 0 for axis in range(len(shape))
        ]
        return as_strided(operand, shape, strides, writeable=False)

    def do_gather(self, eqn: Any, operand: Value, indices: Value) -> list[Value]:
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

    def scatter(self, eqn: Any, mode: str, operand: Value, indices: Value, updates: Value) -> Value:
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
        self.write(result, view, mode, updates._replace(mask=dense(len(shape))), indirect=found, after=True)
        return Value(result, result.memory, dense(len(operand.shape)))

    def start_from(self, operand: Value) -> Buffer:
        result = self.assembled(operand.shape, operand.buffer.boolean)
        if operand.mask.any():
            self.write(result, result.memory, "set", operand)
        return result

    def do_dynamic_slice(self, eqn: Any, operand: Value, *indices: Value) -> list[Value]:
        shape = eqn.outvars[0].aval.shape
        view = operand.view[tuple(slice(n) for n in shape)]
        return [self.take(operand, view, self.corner(operand.view, indices, shape), math.nan)]

    def do_dynamic_update_slice(self, eqn: Any, operand: Value, update: Value, *indices: Value) -> list[Value]:
        result, shape = self.start_from(operand), update.shape
        view = result.memory[tuple(slice(n) for n in shape)]
        found = self.corner(result.memory, indices, shape)
        self.write(result, view, "set", update._replace(mask=dense(len(shape))), indirect=found, after=True)
        return [Value(result, result.memory, dense(len(operand.shape)))]

    def corner(self, operand: np.ndarray, indices: Sequence[Value], shape: tuple) -> Indirect:
        """The computed corner of a block, kept inside; a negative index counts from there, as JAX has resolved it."""
        columns = tuple(self.moved(index, lambda a: np.broadcast_to(a, shape)) for index in indices)
        limits = tuple(n - m for n, m in zip(operand.shape, shape, strict=True))
        return Indirect(columns, tuple(s // 8 for s in operand.strides), limits, False)
