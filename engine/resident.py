"""Toys on an accelerator: those that were drawn there, and those that are sent there.

Toys that are fitted where they are need not cross the bus: on their way through the host they would do so twice, and
be taken apart and padded again there, which takes far longer than their fits. Whoever asks for their values, as who
writes them to a file, gets a copy, which is made then and once.

Toys of the host are sent as they lie in memory, and padded on the accelerator, where that takes no time.
"""

from collections.abc import Sequence
from dataclasses import fields
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from engine.data import Ragged, Rows

__all__ = ["Resident", "ResidentRows", "sent"]

BYTES_AT_ONCE = 2**26  # of a copy to the host
SENT_AT_ONCE = 2**22  # numbers of a column; fewer are padded on the host, and nothing is compiled for them


class Resident(Ragged):
    """Toys in a padded array of an accelerator, which are `Ragged` for everybody else.

    The memory of the accelerator is free again when the toys, and the result of their fits, are gone.

    Parameters
    ----------
    padded : (n_rows, m) or (n_rows, d, m) float64 array of JAX
        The events of toy k stand first in row k; what stands behind them, or in further rows, has no meaning.
    n : (n_toys,) int
        Events of each toy.

    Attributes
    ----------
    padded
        As above.
    offsets : (n_toys + 1,) int64
    values : (n_events,) or (d, n_events) float64
        On the host.
    """

    padded: Array

    def __init__(self, padded: Array, n: np.ndarray) -> None:
        self.__dict__.update(padded=padded, offsets=np.concatenate([[0], np.cumsum(n, dtype=np.int64)]))

    @cached_property
    def values(self) -> np.ndarray:  # type: ignore[override]
        n, shape = np.diff(self.offsets), self.padded.shape
        values = np.empty((*shape[1:-1], self.offsets[-1]))
        step = max(1, BYTES_AT_ONCE // max(8 * int(np.prod(shape[1:])), 1))
        with jax.enable_x64(True):
            for first in range(0, len(n), step):
                # of a part: JAX keeps what was once copied to the host as long as the array itself
                part = np.asarray(self.padded[first : first + step])
                for k in range(first, min(first + step, len(n))):
                    values[..., self.offsets[k] : self.offsets[k + 1]] = part[k - first, ..., : n[k]]
        return values

    def take(self, toys: Sequence[int] | np.ndarray) -> Ragged:
        if "values" in vars(self):
            return super().take(toys)
        with jax.enable_x64(True):
            # a gather, since a slice would be compiled for each toy
            return Resident(_taken(self.padded, np.array(toys)), np.diff(self.offsets)[toys])

    @property
    def n_observables(self) -> int:
        return 1 if self.padded.ndim == 2 else self.padded.shape[1]

    @cached_property
    def not_finite(self) -> np.ndarray:  # type: ignore[override]
        with jax.enable_x64(True):
            n = np.zeros(len(self.padded), np.int64)
            n[: len(self)] = np.diff(self.offsets)
            return np.asarray(_not_finite(self.padded, n))[: len(self)]


class ResidentRows(Rows):
    """Events that stay on an accelerator, as rows without weights: `columns` are copied when they are asked for."""

    events: Resident

    def __init__(self, events: Resident) -> None:
        self.__dict__.update(
            events=events,
            offsets=events.offsets,
            shared=np.zeros((0, 0)),
            aux=np.zeros((len(events), 0)),
            bad=events.not_finite,
            names=tuple(f"x{k}" for k in range(events.n_observables)),
            parts=(),
        )

    @cached_property
    def columns(self) -> np.ndarray:  # type: ignore[override]
        return np.atleast_2d(self.events.values)

    @property
    def n_columns(self) -> int:
        return len(self.names)

    def only(self, toys: np.ndarray) -> Rows:
        n = np.zeros(len(self), dtype=np.int64)
        n[toys] = np.diff(self.offsets)[toys]
        offsets = np.concatenate([[0], np.cumsum(n)])
        return Rows(np.atleast_2d(self.events.take(toys).values), offsets, self.shared, self.aux, self.bad, self.names)

    def padded(self, toys: np.ndarray, n_padded: int) -> Any:
        with jax.enable_x64(True):
            return _padded(self.events.padded, np.diff(self.offsets)[toys], toys, n_padded)


class _SentRows(Rows):
    """Rows of the host, whose columns lie on an accelerator as well."""

    there: Array  # (n_columns, at least n_rows)

    def padded(self, toys: np.ndarray, n_padded: int) -> Any:
        return _gathered(self.there, self.offsets[toys], np.diff(self.offsets)[toys], n_padded)


def sent(rows: Rows, most_bytes: int) -> Rows:
    """Rows whose lanes are filled on the accelerator that JAX takes by default, if they are many, but not too many.

    They lie there as long as what this returns, and are not bound to it: other devices may take their lanes.
    """
    columns = rows.columns if type(rows) is Rows else np.zeros((0, 0))
    n_columns, n = columns.shape
    size = -(-n // SENT_AT_ONCE) * SENT_AT_ONCE
    if not n_columns or n < SENT_AT_ONCE or 8 * n_columns * size > most_bytes:
        return rows
    there = jnp.zeros((n_columns, size))
    for begin in range(0, n, SENT_AT_ONCE):
        begin = min(begin, n - SENT_AT_ONCE)  # all parts have one size, so that one program is compiled
        there = _placed(there, columns[:, begin : begin + SENT_AT_ONCE], begin)
    moved = _SentRows(**{field.name: getattr(rows, field.name) for field in fields(rows)})
    moved.__dict__["there"] = there
    return moved


@partial(jax.jit, donate_argnums=0)
def _placed(there: Array, part: ArrayLike, begin: int) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(there, jnp.asarray(part), begin, axis=1)


@partial(jax.jit, static_argnums=3)
def _gathered(there: Array, first: ArrayLike, n: ArrayLike, width: int) -> Array:
    """(len(first), n_columns, width): the n numbers from the first on, behind which the last is repeated, or 0."""
    first, n = jnp.asarray(first)[:, None], jnp.asarray(n)[:, None]
    index = first + jnp.minimum(jnp.arange(width), jnp.maximum(n - 1, 0))
    return jnp.where(n > 0, there.at[:, index].get(mode="clip"), 0.0).swapaxes(0, 1)


@jax.jit
def _taken(padded: Array, toys: ArrayLike) -> Array:
    return padded[jnp.asarray(toys)]


@jax.jit
def _not_finite(padded: Array, n: ArrayLike) -> Array:
    wrong = ~jnp.isfinite(padded.reshape(len(padded), -1, padded.shape[-1])).all(axis=1)
    return (wrong & (jnp.arange(padded.shape[-1]) < jnp.asarray(n)[:, None])).any(axis=1)


@partial(jax.jit, static_argnums=3)
def _padded(padded: Array, n: ArrayLike, toys: ArrayLike, width: int) -> Array:
    """(len(toys), d, width): behind the n events of a toy stands its last one, or 0 if it has none."""
    events = padded.reshape(len(padded), -1, padded.shape[-1])[:, :, :width]
    events = jnp.pad(events[toys], ((0, 0), (0, 0), (0, width - events.shape[-1])))
    n = jnp.asarray(n)[:, None, None]
    last = jnp.take_along_axis(events, jnp.maximum(n - 1, 0), axis=2)
    return jnp.where(jnp.arange(width) < n, events, jnp.where(n > 0, last, 0.0))
