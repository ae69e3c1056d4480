"""Toy data as the drivers read them: columns of rows, cut into toys by offsets."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.rowwise import all_of_row

__all__ = [
    "ExpectedEvents",
    "Ragged",
    "Rows",
    "Weighted",
    "as_float64",
    "counts_of",
    "first_fault",
    "lane_data",
    "not_finite",
    "ragged_events",
    "shared_columns",
    "shown",
]

# more observables of fewer events are events and observables in the wrong order
MOST_OBSERVABLES = 16
LONGEST_SHOWN = 100
SHORT = 512  # rows up to which a toy takes longer to find than to copy
INDICES_AT_ONCE = 2**16


@dataclass(frozen=True)
class Ragged:
    """Toys with different numbers of events, one after the other in one array.

    Attributes
    ----------
    values : (n_events,) or (d, n_events) float64
        Events of all toys.
    offsets : (n_toys + 1,) int64
        Toy k owns `values[..., offsets[k]:offsets[k + 1]]`.

    Raises
    ------
    TypeError, ValueError
        If the offsets are not whole numbers, do not start at 0, decrease, or do not end at the number of events.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __post_init__(self) -> None:
        values = np.ascontiguousarray(as_float64(self.values, "values"))
        offsets = np.asarray(self.offsets)
        if offsets.dtype.kind not in "iu" and (offsets.size or offsets.dtype.kind != "f"):  # [] is of floats
            raise TypeError(f"offsets must be whole numbers, got {_kind(self.offsets)}")
        offsets = np.ascontiguousarray(offsets, dtype=np.int64)
        if values.ndim not in (1, 2) or (values.ndim == 2 and not values.shape[0]):
            raise ValueError(f"values must have shape (n_events,) or (d, n_events), got {values.shape}")
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != values.shape[-1]:
            raise ValueError(f"offsets must go from 0 to the number of events {values.shape[-1]}, got {_ends(offsets)}")
        if np.any(np.diff(offsets) < 0):
            raise ValueError(f"offsets must not decrease, but do at toy {int(np.argmax(np.diff(offsets) < 0))}")
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "offsets", offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int | slice) -> "np.ndarray | Ragged":
        """The events of one toy, or the toys of a slice."""
        if isinstance(index, slice):
            first, stop, step = index.indices(len(self))
            if step != 1:
                raise IndexError("toys can be sliced in steps of 1 only")
            offsets = self.offsets[first : max(first, stop) + 1]
            return Ragged(self.values[..., offsets[0] : offsets[-1]], offsets - offsets[0])
        k = range(len(self))[index]
        return self.values[..., self.offsets[k] : self.offsets[k + 1]]

    def take(self, toys: Sequence[int] | np.ndarray) -> "Ragged":
        """A copy of some toys."""
        some = [np.asarray(self[k]) for k in toys]
        return Ragged(np.concatenate(some, axis=-1), np.cumsum([0, *(events.shape[-1] for events in some)]))

    @property
    def not_finite(self) -> np.ndarray:
        """(n_toys,) bool, the toys with a value that is NaN or infinite."""
        return not_finite(np.atleast_2d(self.values), self.offsets)


@dataclass(frozen=True)
class Weighted:
    """Unbinned toys whose events carry weights, which may be negative.

    Attributes
    ----------
    events
        The toys, in any form of unbinned data.
    weights
        One number for each event: a list with one array per toy, an (n_toys, n_events) array, `Ragged`, or the weights
        of all toys one after the other in one array.

    References
    ----------
    Langenbruch, Eur. Phys. J. C 82 (2022) 393, for the covariance of a weighted fit.
    """

    events: Any
    weights: Any

    def ragged(self) -> "tuple[Ragged, np.ndarray]":
        """The events, and the weights of all of them one after the other.

        Raises
        ------
        TypeError, ValueError
            If there is not one weight for each event, naming the first toy that differs.
        """
        events = ragged_events(self.events)
        if self.weights is None or np.isscalar(self.weights):
            raise TypeError(f"weights must be one number for each event, got {shown(self.weights)}")
        flat = not isinstance(self.weights, Ragged | list | tuple) and np.ndim(self.weights) == 1
        weights = Ragged(self.weights, events.offsets) if flat else ragged_events(self.weights)
        if len(weights) != len(events) or weights.values.ndim != 1:
            raise ValueError(
                f"weights must be one array per toy: there are {len(events)} toys and {len(weights)} arrays"
            )
        if not np.array_equal(weights.offsets, events.offsets):
            k = int(np.argmax(np.diff(weights.offsets) != np.diff(events.offsets)))
            raise ValueError(
                f"toy {k} has {np.diff(events.offsets)[k]} events, but {np.diff(weights.offsets)[k]} weights"
            )
        return events, weights.values


class ExpectedEvents(Weighted):
    """Nodes with the numbers of events that are expected there, as Asimov data have them: not weights of events."""


@dataclass(frozen=True)
class Rows:
    """What a driver needs of the data.

    Attributes
    ----------
    columns : (n_columns, n_rows) float64
        Columns that belong to each toy, toy after toy.
    offsets : (n_toys + 1,) int64
    shared : (n_shared, n) float64
        Columns that all toys share; n is the number of rows of every toy.
    aux : (n_toys, n_aux) float64
        Measured values of each toy that belong to no row.
    bad : (n_toys,) bool
        Toys that hold a value which the cost forbids, such as NaN.
    names : tuple of str
        Names of the columns, those of each toy before those that are shared.
    parts : tuple of Rows
        The rows of each cost of a sum; empty for a single cost.
    expected : bool
        The weights are those of `ExpectedEvents`.
    """

    columns: np.ndarray
    offsets: np.ndarray
    shared: np.ndarray
    aux: np.ndarray
    bad: np.ndarray
    names: tuple[str, ...] = ()
    parts: "tuple[Rows, ...]" = ()
    expected: bool = False

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def leaves(self) -> "tuple[Rows, ...]":
        """The rows of each single cost."""
        return self.parts or (self,)

    @property
    def weighted(self) -> bool:
        """Whether events or bins carry weights."""
        return any(("weight" in leaf.names and not leaf.expected) or "scale" in leaf.names for leaf in self.leaves)

    @property
    def n_columns(self) -> int:
        return self.columns.shape[0]

    @property
    def form(self) -> tuple:
        """What a compiled cost depends on: names and numbers of columns and measured values."""
        own = (self.names, self.n_columns, self.shared.shape[0], self.aux.shape[1])
        return (own, *(part.form for part in self.parts))

    def only(self, toys: np.ndarray) -> "Rows":
        """These rows on the host; where that takes a copy, only some toys, in ascending order, keep their rows."""
        return self

    def padded(self, toys: np.ndarray, n_padded: int) -> Any:
        """The columns of some toys, (len(toys), n_columns, n_padded); padding repeats a toy's last row."""
        first, n = self.offsets[toys], np.diff(self.offsets)[toys]
        lanes = np.empty((len(toys), self.n_columns, n_padded))
        if not lanes.size:
            return lanes
        if n_padded > SHORT:
            for lane, (begin, rows) in enumerate(zip(first.tolist(), n.tolist(), strict=True)):
                lanes[lane, :, :rows] = self.columns[:, begin : begin + rows]
                lanes[lane, :, rows:] = self.columns[:, begin + rows - 1, None] if rows else 0.0
            return lanes
        step = INDICES_AT_ONCE // n_padded
        for begin in range(0, len(toys) if self.columns.size else 0, step):
            some = slice(begin, begin + step)
            index = first[some, None] + np.minimum(np.arange(n_padded), np.maximum(n[some, None] - 1, 0))
            for c, column in enumerate(self.columns):
                lanes[some, c] = column.take(index, mode="clip")  # a toy without rows may begin behind the last
        lanes[n == 0] = 0.0
        return lanes


def ragged_events(data: Any) -> Ragged:
    """Unbinned toys in any of the accepted forms as Ragged.

    Parameters
    ----------
    data : Ragged, or (n_toys, n_events) or (n_toys, d, n_events) array, or sequence of (n,) or (d, n) arrays
        Ragged arrays of awkward are such sequences, and so are arrays of arrays (dtype object).

    Raises
    ------
    TypeError, ValueError
        If the data have no such form, naming the first toy that differs.
    """
    if isinstance(data, Ragged):
        return data
    ragged = isinstance(data, np.ndarray) and data.dtype == object and data.ndim == 1
    if ragged or type(data).__module__.partition(".")[0] == "awkward":  # it has __array__, but not for ragged ones
        data = list(data)
    if isinstance(data, Weighted):
        raise TypeError("weights can be given for unbinned data once: pass Weighted(events, weights)")
    if hasattr(data, "columns"):  # of pandas or polars, whose rows are events and not toys
        raise TypeError("data is a table: pass [table['x'].to_numpy()], a list with one array per toy")
    if isinstance(data, np.ndarray) or hasattr(data, "__array__"):
        array = as_float64(data, "data")
        if array.ndim == 1:
            raise ValueError(
                f"data of shape {array.shape} is one toy: pass [events], a list with one array per toy, "
                "or an array of shape (n_toys, n_events)"
            )
        if array.ndim not in (2, 3):
            raise ValueError(f"data must have shape (n_toys, n_events) or (n_toys, d, n_events), got {array.shape}")
        if array.ndim == 3 and array.shape[1] > MOST_OBSERVABLES >= array.shape[2]:
            raise _swapped("data", array.shape, "(n_toys, d, n)")
        n_toys, n_events = array.shape[0], array.shape[-1]
        if array.ndim == 2 and n_events == 1 < n_toys:
            told = f"data of shape {array.shape} are {n_toys} toys of one event each"
            warnings.warn(f"{told}: for one toy of {n_toys} events pass data.T", stacklevel=4)
        values = (
            array.reshape(-1)
            if array.ndim == 2
            else np.moveaxis(array, 0, 1).reshape(array.shape[1], n_toys * n_events)
        )
        return Ragged(values, np.arange(n_toys + 1, dtype=np.int64) * n_events)
    if not isinstance(data, Sequence):
        raise TypeError(
            f"data must be a list of arrays, an array (n_toys, n_events) or Ragged, got {type(data).__name__}"
        )
    toys = [as_float64(toy, f"data[{k}]") for k, toy in enumerate(data)]
    if not toys:
        return Ragged(np.empty(0), np.zeros(1, np.int64))
    if toys[0].ndim == 0:
        raise ValueError("data is a list of numbers, one toy: pass [events], a list with one array per toy")
    several = next((toy.shape[0] for toy in toys if toy.ndim == 2), 0)
    if several:  # [] has no observables
        toys = [np.zeros((several, 0)) if toy.shape == (0,) else toy for toy in toys]
    for k, toy in enumerate(toys):
        if toy.ndim != toys[0].ndim or toy.shape[:-1] != toys[0].shape[:-1] or toy.ndim > 2:
            raise ValueError(
                f"data[{k}] has shape {toy.shape}, data[0] has {toys[0].shape}: "
                "every toy must be (n,), or (d, n) with the same d"
            )
    lengths = [toy.shape[-1] for toy in toys]
    if toys[0].ndim == 2 and toys[0].shape[0] > MOST_OBSERVABLES and max(lengths) <= MOST_OBSERVABLES:
        raise _swapped("data[0]", toys[0].shape, "(d, n)")
    return Ragged(np.concatenate(toys, axis=-1), np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))


def _swapped(name: str, shape: tuple[int, ...], form: str) -> ValueError:
    ravelled = ", or ravel those of one observable" if shape[-1] == 1 else ""
    return ValueError(
        f"{name} of shape {shape} would be {shape[-1]} events of {shape[-2]} observables: the form is {form} for d "
        "observables of n events, so transpose the last two axes" + ravelled
    )


def as_float64(array: Any, name: str) -> np.ndarray:
    if np.ma.is_masked(array):
        raise TypeError(f"{name} has masked entries, which the fit would not see: leave them out")
    try:
        given = np.asarray(array)
        if given.dtype == object:  # as columns of pandas are, and arrays of lists
            given = np.asarray(given.tolist())
        if given.dtype.kind not in "fiub":
            raise TypeError
        return given.astype(np.float64, copy=False)
    except (TypeError, ValueError, np.ma.MaskError):
        raise TypeError(f"{name} must hold real numbers, got {_kind(array)}") from None


def first_fault(rows: "Rows") -> str:
    """What is wrong with the first toy that cannot be fitted, as far as its numbers tell."""
    toy = int(np.flatnonzero(rows.bad)[0])
    for leaf in rows.leaves:
        if not leaf.bad[toy]:
            continue
        begin, end = leaf.offsets[toy], leaf.offsets[toy + 1]
        numbers = {name: column[begin:end] for name, column in zip(leaf.names, leaf.columns, strict=False)}
        numbers["the measured values"] = leaf.aux[toy]
        for wrong in (lambda a: ~np.isfinite(a), lambda a: a < 0.0, lambda a: a == 0.0):
            for name, values in numbers.items():
                for k in np.flatnonzero(wrong(values))[:1]:
                    return f"toy {toy} has {values[k]:g} in {name}, row {k}"
    return f"the data of toy {toy} are not finite, or negative where they must not be"


def shown(value: Any) -> str:
    """A value in one short line, for a sentence about it."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _kind(array: Any) -> str:
    return f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__


def not_finite(columns: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """(n_toys,) bool, the toys with a value that is NaN or infinite in their rows of `columns`."""
    bad = np.zeros(len(offsets) - 1, dtype=bool)
    with np.errstate(over="ignore", invalid="ignore"):
        suspect = not np.isfinite(np.sum(columns))  # one cheap pass; the second only where it must be
    if suspect:
        wrong = np.flatnonzero(~np.isfinite(columns).all(axis=0))
        bad[np.searchsorted(offsets, wrong, side="right") - 1] = True
    return bad


def lane_data(rows: Rows, toys: np.ndarray, n_padded: int) -> tuple[Any, np.ndarray, np.ndarray]:
    """(columns (n, n_columns, n_padded), aux, number of rows) of some toys; padding repeats a toy's last row."""
    return rows.padded(toys, n_padded), rows.aux[toys], np.diff(rows.offsets)[toys]


def shared_columns(rows: Rows, padded: Sequence[int]) -> tuple[np.ndarray, ...]:
    """The shared columns of each leaf, padded to a number of rows by repeating the last."""
    return tuple(
        np.pad(leaf.shared, ((0, 0), (0, n - leaf.shared.shape[1])), mode="edge")
        if leaf.shared.size
        else np.zeros((0, n))
        for leaf, n in zip(rows.leaves, padded, strict=True)
    )


def counts_of(data: Any, n_bins: int, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Histograms as columns (1 or 2, n_toys, n_used), and which toys are bad.

    The columns are the counts; or, of a weighted histogram, its sums of weights and the scale
    s = |sum w| / sum w^2 of each bin that makes s sum w a Poisson count (Bohm & Zech, NIM A748 (2014) 1-6). An empty
    bin takes the median scale of the others.

    Parameters
    ----------
    data : (n_toys, n_bins) counts, or (n_toys, n_bins, 2) sums of weights and of their squares
    n_bins : int
    mask : (n_bins,) bool, optional
        Bins that are used.

    Raises
    ------
    TypeError, ValueError
        If the data have no such form.
    """
    counts = as_float64(data, "counts")
    if counts.shape[1:] not in ((n_bins,), (n_bins, 2)):
        advice = ": for one toy pass counts[None]" if counts.shape == (n_bins,) else ""
        raise ValueError(
            f"counts must have shape (n_toys, n_bins) = (n_toys, {n_bins}), or (n_toys, {n_bins}, 2) with the sums of "
            f"weights and of their squares, got {counts.shape}{advice}"
        )
    counts = counts if mask is None else counts[:, mask]
    if counts.ndim == 2:
        return counts[None], ~all_of_row(np.isfinite(counts) & (counts >= 0))
    total, squares = counts[..., 0], counts[..., 1]
    good = np.isfinite(total) & np.isfinite(squares) & (squares >= 0) & ((squares > 0) | (total == 0))
    filled = good & (squares > 0)
    with np.errstate(over="ignore"):  # of sums that no histogram has
        scale = np.where(filled, np.abs(total) / np.where(filled, squares, 1.0), np.nan)
        for k in np.flatnonzero(~filled.all(axis=1)):
            scale[k, ~filled[k]] = np.median(scale[k, filled[k]]) if filled[k].any() else 1.0
    good &= np.isfinite(scale)
    return np.stack([total, scale]), ~all_of_row(good)


def _ends(offsets: np.ndarray) -> str:
    return f"{offsets[0]} to {offsets[-1]}" if offsets.ndim == 1 and len(offsets) else f"shape {offsets.shape}"
