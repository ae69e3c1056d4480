"""What one toy of each cost looks like, and how toys become data for `fit_batch`.

A sampler is called as `sampler(key, theta)`, draws one toy and can be traced by JAX. What it returns follows from the
cost that is fitted:

| cost | one toy | data |
| --- | --- | --- |
| unbinned | `(padded values, n)`, values `(m,)` or `(d, m)`: n events | `Ragged` |
| binned | counts `(n_bins,)` | `(n_toys, n_bins)` |
| `LeastSquares` | `(x, y, yerror[, xerror])` | each with a leading toy axis |
| the same with a covariance | `(x, y)`, with one x in all toys | x as it is, y `(n_toys, n)` |
| constraint | measured values `(k,)` | `(n_toys, k)` |
| sum | a tuple with one of these for each cost; None for a constraint that does not vary | a tuple |
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine import ExtendedUnbinnedNLL, UnbinnedNLL
from engine.cost import Cost
from engine.data import Ragged
from engine.leastsquares import LeastSquares
from engine.sums import SumCost

__all__ = ["Events", "Form", "Points", "Row", "Together", "form_of"]


class Form(Protocol):
    """What one toy of a cost looks like, and how many of them become its data."""

    def check(self, drawn: Any) -> Any:
        """One toy as arrays of float64; TypeError if it is none."""

    def cut(self, drawn: Any, n: int) -> Any:
        """The first n toys of a chunk."""

    def join(self, chunks: list) -> Any:
        """Data of all chunks."""


@dataclass(frozen=True)
class Events:
    """(padded values, n): a toy of n events."""

    def check(self, drawn: Any) -> tuple[Array, Array]:
        try:
            values, n = (jnp.asarray(part) for part in drawn)
            of_events = values.ndim == 1 or (values.ndim == 2 and len(values) > 1)
            if of_events and n.ndim == 0 and jnp.issubdtype(n.dtype, jnp.integer):
                return values.astype(jnp.float64), n
            got = f"shapes {values.shape} and {n.shape} of {values.dtype} and {n.dtype}"
        except (TypeError, ValueError):
            got = type(drawn).__name__
        raise TypeError(
            "a sampler must return (padded values, n): a 1-D array, or (d, m) for d > 1 observables, and a whole "
            f"number, got {got}"
        )

    def counts(self, n: np.ndarray, most: int) -> np.ndarray:
        """The numbers of events; ValueError where there are none such in the padded values."""
        wrong = n[(n < 0) | (n > most)]
        if len(wrong):
            raise ValueError(
                f"a sampler must return (padded values, n) with 0 <= n <= {most}, the number of values, got {wrong[0]}"
            )
        return n

    def cut(self, drawn: tuple[np.ndarray, np.ndarray], n: int) -> Ragged:
        counts = self.counts(drawn[1][:n], drawn[0].shape[-1])
        values = [toy[..., :length] for toy, length in zip(drawn[0], counts, strict=False)]
        joined = np.concatenate(values, axis=-1) if n else drawn[0][0, ..., :0]
        return Ragged(joined, np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))

    def join(self, chunks: list[Ragged]) -> Ragged:
        counts = np.concatenate([np.diff(chunk.offsets) for chunk in chunks])
        values = np.concatenate([chunk.values for chunk in chunks], axis=-1)
        return Ragged(values, np.concatenate([[0], np.cumsum(counts)]))


class _Stacked:
    """Toys of one shape, stacked."""

    def cut(self, drawn: Any, n: int) -> Any:
        return jax.tree.map(lambda array: array[:n], drawn)

    def join(self, chunks: list) -> Any:
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *chunks)


@dataclass(frozen=True)
class Row(_Stacked):
    """One number for each bin, or for each parameter of a constraint."""

    what: str = "counts (n_bins,)"

    def check(self, drawn: Any) -> Array:
        [array] = _real([drawn], self.what)
        if array.ndim != 1:
            raise TypeError(f"a sampler must return {self.what}, a 1-D array, got shape {array.shape}")
        return array


@dataclass(frozen=True)
class Points(_Stacked):
    """Points with errors; an error may be one number for all points, x may hold several observables.

    Attributes
    ----------
    names : tuple of str
        Of the arrays, in order.
    """

    names: tuple[str, ...] = ("x", "y", "yerror")

    def check(self, drawn: Any) -> tuple[Array, ...]:
        what = f"({', '.join(self.names)})"
        if not isinstance(drawn, tuple) or len(drawn) != len(self.names):
            got = f"a tuple of {len(drawn)}" if isinstance(drawn, tuple) else type(drawn).__name__
            raise TypeError(f"a sampler must return {what}, a tuple of arrays, got {got}")
        arrays = dict(zip(self.names, _real(drawn, what), strict=True))
        n = arrays["y"].shape
        shapes = {"x": [n, (*arrays["x"].shape[:1], *n)], "y": [n]}
        if len(n) != 1 or not all(a.shape in shapes.get(name, [n, ()]) for name, a in arrays.items()):
            got = ", ".join(str(array.shape) for array in arrays.values())
            raise TypeError(f"a sampler must return {what}, each of the shape (n,) of y, got shapes {got}")
        return tuple(array if array.ndim else jnp.broadcast_to(array, n) for array in arrays.values())


@dataclass(frozen=True)
class CorrelatedPoints(Points):
    """Points with a covariance matrix, which is that of one x: all toys have it."""

    names: tuple[str, ...] = ("x", "y")

    def cut(self, drawn: tuple[np.ndarray, ...], n: int) -> tuple[np.ndarray, ...]:
        return _only(drawn[0]), drawn[1][:n]

    def join(self, chunks: list) -> tuple[np.ndarray, ...]:
        x, y = zip(*chunks, strict=True)
        return _only(np.stack(x)), np.concatenate(y)


def _only(x: np.ndarray) -> np.ndarray:
    """The x of all toys."""
    if not np.array_equal(x, np.broadcast_to(x[0], x.shape), equal_nan=True):
        raise ValueError(
            "a sampler of points with a covariance must return the same x in every toy, but it varies: return "
            "(x, y, yerror), and give the cost no covariance"
        )
    return x[0]


def _real(parts: Iterable, what: str) -> list[Array]:
    """Arrays of float64."""
    given = list(parts)
    try:
        arrays = [jnp.asarray(part) for part in given]
        if all(jnp.issubdtype(a.dtype, jnp.floating) or jnp.issubdtype(a.dtype, jnp.integer) for a in arrays):
            return [array.astype(jnp.float64) for array in arrays]
        got = ", ".join(str(array.dtype) for array in arrays)
    except (TypeError, ValueError):
        got = ", ".join(type(part).__name__ for part in given)
    raise TypeError(f"a sampler must return {what}, real numbers, got {got}")


@dataclass(frozen=True)
class Together:
    """A tuple with one entry for each cost of a sum; None stands for what does not vary."""

    forms: tuple[Form, ...]
    optional: tuple[bool, ...]

    def check(self, drawn: Any) -> tuple:
        if not isinstance(drawn, tuple) or len(drawn) != len(self.forms):
            got = f"a tuple of {len(drawn)}" if isinstance(drawn, tuple) else type(drawn).__name__
            raise TypeError(
                f"a sampler for a sum of {len(self.forms)} costs must return a tuple with one entry for each, got {got}"
            )
        checked = []
        for k, (form, optional, entry) in enumerate(zip(self.forms, self.optional, drawn, strict=True)):
            try:
                checked.append(None if entry is None and optional else form.check(entry))
            except TypeError as error:
                raise TypeError(f"entry {k} of the toy of a sum: {error}") from None
        return tuple(checked)

    def cut(self, drawn: tuple, n: int) -> tuple:
        pairs = zip(self.forms, drawn, strict=True)
        return tuple(None if part is None else form.cut(part, n) for form, part in pairs)

    def join(self, chunks: list[tuple]) -> tuple:
        pairs = zip(self.forms, zip(*chunks, strict=True), strict=True)
        return tuple(None if parts[0] is None else form.join(list(parts)) for form, parts in pairs)


def form_of(cost: Cost | None) -> Form:
    """The form of the toys of a cost; without one, that of unbinned data."""
    if cost is None or isinstance(cost, UnbinnedNLL | ExtendedUnbinnedNLL):
        return Events()
    if isinstance(cost, SumCost):
        return Together(tuple(map(form_of, cost.costs)), tuple(not part.takes_data for part in cost.costs))
    if isinstance(cost, LeastSquares):
        if cost.covariance is not None:
            return CorrelatedPoints()
        return Points(("x", "y", "yerror", "xerror")[: 4 if cost.xerror else 3])
    return Row() if cost.takes_data else Row(f"measured values ({len(cost.names)},)")
