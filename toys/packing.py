"""Toys of any cost as named arrays, as the file holds them, and back again as data for `fit_batch`.

| cost | arrays |
| --- | --- |
| unbinned | `values`, ragged, and `weights` if the events have them |
| binned | `counts` |
| `LeastSquares` | `y`, `x`, and `yerror`, `xerror` where the cost takes them |
| constraint | `measured` |
| sum | those of its costs, under `part0/`, `part1/`, ... |

What differs between toys has one row per toy. What all toys share, such as the x of points, or the value of a
constraint that does not vary, is held once.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from engine import ExtendedUnbinnedNLL, UnbinnedNLL
from engine.cost import Cost
from engine.data import Ragged, Weighted, as_float64, ragged_events
from engine.leastsquares import LeastSquares
from engine.sums import SumCost

__all__ = ["POINTS", "Arrays", "bytes_per_toy", "concatenate", "describe", "pack", "parts_of", "unpack"]

#: The arrays of points, in the order in which `LeastSquares` takes them.
POINTS = ("x", "y", "yerror", "xerror")


class Arrays(NamedTuple):
    """Named arrays of some toys.

    Attributes
    ----------
    toys : dict name -> (n_toys, ...) array or Ragged
    shared : dict name -> array
        What all toys have in common.
    """

    toys: dict[str, np.ndarray | Ragged]
    shared: dict[str, np.ndarray]


def pack(cost: Cost, data: Any) -> Arrays:
    """Data of a cost, in the form that `fit_batch` takes, as named arrays.

    Parameters
    ----------
    cost : Cost
    data
        Of a sum, a tuple with one entry for each cost.

    Raises
    ------
    TypeError, ValueError
        If the data have no such form.
    """
    if isinstance(cost, SumCost):
        if not isinstance(data, tuple) or len(data) != len(cost.costs):
            got = f"a tuple of {len(data)}" if isinstance(data, tuple) else type(data).__name__
            raise TypeError(
                f"toys of a sum of {len(cost.costs)} costs must be a tuple with one entry for each, got {got}"
            )
        whole = Arrays({}, {})
        for k, (part, entry) in enumerate(zip(cost.costs, data, strict=True)):
            arrays = pack(part, entry)
            whole.toys.update({f"part{k}/{name}": array for name, array in arrays.toys.items()})
            whole.shared.update({f"part{k}/{name}": array for name, array in arrays.shared.items()})
        return whole
    if isinstance(cost, UnbinnedNLL | ExtendedUnbinnedNLL):
        if not isinstance(data, Weighted):
            return Arrays({"values": ragged_events(data)}, {})
        events, weights = data.ragged()
        return Arrays({"values": events, "weights": Ragged(weights, events.offsets)}, {})
    if isinstance(cost, LeastSquares):
        return _pack_points(data)
    if cost.takes_data:
        return Arrays({"counts": as_float64(data, "counts")}, {})
    if data is None:
        return Arrays({}, {"measured": np.atleast_1d(as_float64(cost.value, "value"))})  # type: ignore[attr-defined]
    measured = as_float64(data, "measured values")
    return Arrays({"measured": measured[:, None] if measured.ndim == 1 else measured}, {})


def _pack_points(data: Any) -> Arrays:
    given = {name: as_float64(array, name) for name, array in zip(POINTS, data, strict=False)}
    shape = given["y"].shape
    arrays = Arrays({}, {})
    for name, array in given.items():
        # with a covariance matrix, and so without errors, all toys share the x
        own = array.ndim == 3 or (array.ndim == 2 and (name != "x" or (array.shape == shape and "yerror" in given)))
        if own:
            arrays.toys[name] = array
        else:
            arrays.shared[name] = np.broadcast_to(array, shape[1:]) if array.ndim == 0 else array
    return arrays


def unpack(arrays: Arrays, n_toys: int) -> Any:
    """The inverse of `pack`: data for `fit_batch`. A constraint that does not vary gets its value in every toy."""
    toys, shared = arrays
    if parts := parts_of([*toys, *shared]):
        return tuple(unpack(_part(part, arrays), n_toys) for part in parts)
    if "values" in toys:
        return Weighted(toys["values"], toys["weights"]) if "weights" in toys else toys["values"]
    if "y" in toys:
        points = {name: toys.get(name, shared.get(name)) for name in POINTS if name in toys or name in shared}
        if "x" in shared and "yerror" in points and shared["x"].ndim == 2 and len(shared["x"]) == n_toys:
            # (d, n) for d toys would be taken for one row per toy
            points["x"] = np.broadcast_to(shared["x"], (n_toys, *shared["x"].shape))
        return tuple(points.values())
    if "measured" in shared:
        return np.tile(shared["measured"], (n_toys, 1))
    return toys["counts"] if "counts" in toys else toys["measured"]


def parts_of(names: Iterable[str]) -> list[str]:
    """The parts of a sum among the names of arrays, in order; empty for a single cost."""
    return sorted({name.split("/")[0] for name in names if "/" in name}, key=lambda part: int(part[4:]))


def _part(part: str, arrays: Arrays) -> Arrays:
    """The arrays of one cost of a sum."""

    def inside(held: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix(f"{part}/"): array for name, array in held.items() if name.startswith(f"{part}/")}

    return Arrays(inside(arrays.toys), inside(arrays.shared))


def concatenate(several: list[dict[str, np.ndarray | Ragged]]) -> dict[str, np.ndarray | Ragged]:
    """Arrays of toys, one after the other."""
    joined: dict[str, np.ndarray | Ragged] = {}
    for name, first in several[0].items():
        arrays = [toys[name] for toys in several]
        if isinstance(first, Ragged):
            lengths = np.concatenate([np.diff(array.offsets) for array in arrays])  # type: ignore[union-attr]
            values = np.concatenate([array.values for array in arrays], axis=-1)  # type: ignore[union-attr]
            joined[name] = Ragged(values, np.concatenate([[0], np.cumsum(lengths)]))
        else:
            joined[name] = np.concatenate(arrays)  # type: ignore[arg-type]
    return joined


def bytes_per_toy(arrays: Arrays, n_params: int) -> int:
    """Bytes that a toy and its fit, whose largest part is the covariance, take in memory and in the file.

    Parameters
    ----------
    arrays : Arrays
        One toy.
    n_params : int
    """
    events = (array.values if isinstance(array, Ragged) else array for array in arrays.toys.values())
    return sum(array.nbytes for array in events) + 8 * n_params**2


def describe(cost: Cost, arrays: Arrays) -> str:
    """What is fitted, in words: "PoissonNLL of 20 bins + NormalConstraint of 6 values".

    Parameters
    ----------
    cost : Cost
    arrays : Arrays
        Its first toy.
    """
    if isinstance(cost, SumCost):
        return " + ".join(describe(part, _part(f"part{k}", arrays)) for k, part in enumerate(cost.costs))
    for name, rows in (("values", "events"), ("counts", "bins"), ("y", "points"), ("measured", "values")):
        array = arrays.toys.get(name, arrays.shared.get(name))
        if array is not None:
            n = array.offsets[1] if isinstance(array, Ragged) else array.shape[0 if array.ndim == 1 else 1]
            return f"{type(cost).__name__} of {n} {rows if n != 1 else rows[:-1]}"
    raise ValueError(f"there are no toys of {type(cost).__name__}")
