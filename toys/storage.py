"""Toys, fits and validation of a study in one HDF5 file, written part by part.

`toys.layout` tells what the file holds. While a run lasts, each part is an immutable file in `toys.h5.parts/`
(`toys.parts`), and `toys.h5` grows aside, or is joined out of the parts in the end (`toys.joining`). Here is what
reads: everything that is read is compared with its checksums. Whatever goes wrong with a file is a `StorageError`
(see `toys.files`).

`dataset_names` and `read_dataset` read any HDF5 file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.data import Ragged
from engine.minos import MinosResult
from engine.result import FitResult
from toys import hdf5
from toys.files import StorageError, reading
from toys.hdf5 import dataset_names, read_dataset
from toys.joining import join, join_files
from toys.layout import (
    CHECKSUM,
    FORMAT_VERSION,
    MINOS_ARRAYS,
    RESULT_ARRAYS,
    RESULT_ATTRIBUTES,
    n_toys_of,
    open_file,
    read_group,
    read_rows,
)
from toys.packing import Arrays, unpack
from toys.parts import Fitted, complete_parts, remove_parts, write_part

__all__ = [
    "FORMAT_VERSION",
    "complete_parts",
    "dataset_names",
    "join",
    "join_files",
    "load",
    "load_blocks",
    "load_data",
    "load_minos",
    "load_observed",
    "load_observed_minos",
    "load_shared",
    "load_some",
    "load_toys",
    "read_attributes",
    "read_checksums",
    "read_dataset",
    "read_fitted",
    "read_validation",
    "remove_parts",
    "same_run",
    "write_part",
]

# rows that are read at once where a whole file is gone through
BLOCK_TOYS = 16_384


def same_run(a: Mapping[str, Any], b: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Those of `keys` whose attributes differ, or are in one only: empty if the runs give the same numbers.

    The caller knows which attributes decide about numbers: model, seed, truth, sizes of parts (`toys.provenance`).
    NaN equals NaN, and an array equals the list of its numbers.
    """

    def comparable(attributes: Mapping[str, Any], key: str) -> str:
        return repr(np.asarray(attributes[key]).tolist()) if key in attributes else ""

    return [key for key in keys if comparable(a, key) != comparable(b, key)]


# --- fits --------------------------------------------------------------------------------------------------


def load(path: str | Path, first: int = 0, stop: int | None = None) -> FitResult:
    """The fits of rows `first` to `stop - 1` of a file, by default of all; of a shard they are later toys.

    Raises
    ------
    ValueError
        If the file has no such toys.
    StorageError
        If there is no such file, it is none of ours, damaged, or written by a newer version.
    """
    with open_file(path) as file:
        first, stop = _range(path, file, first, stop)
        with reading(path):
            return _result(file, "results", first, stop)


def load_minos(path: str | Path, first: int = 0, stop: int | None = None) -> MinosResult | None:
    """The MINOS intervals of a file for all parameters but the `fixed` ones, None if it has none.

    Raises as `load` does.
    """
    result = load(path, first, stop)
    with open_file(path) as file:
        first, stop = _range(path, file, first, stop)
        with reading(path):
            return _intervals(file, "results", first, stop, result)


def load_observed(path: str | Path) -> FitResult | None:
    """The fit of the observed data from which the toys of a file were thrown, one row, None if there were none.

    Raises StorageError as `load` does.
    """
    return fitted.result if (fitted := read_fitted(path)) else None


def load_observed_minos(path: str | Path) -> MinosResult | None:
    """Its MINOS intervals, None if there are none. Raises StorageError as `load` does."""
    return fitted.minos if (fitted := read_fitted(path)) else None


def read_fitted(path: str | Path) -> Fitted | None:
    """What `load_observed` and `load_observed_minos` give, together."""
    with open_file(path) as file, reading(path):
        if "observed" not in file:
            return None
        result = _result(file, "observed", 0, 1)
        return Fitted(result, _intervals(file, "observed", 0, 1, result))


def _result(file: hdf5.File, table: str, first: int, stop: int) -> FitResult:
    labels = hdf5.plain(file[table])
    rows: dict[str, Any] = dict(read_rows(file, table, first, stop).toys)
    return FitResult(
        **{name: labels[name] for name in RESULT_ATTRIBUTES}, **{name: rows[name] for name in RESULT_ARRAYS}
    )


def _intervals(file: hdf5.File, table: str, first: int, stop: int, result: FitResult) -> MinosResult | None:
    if "minos" not in file[table]:
        return None
    # not from the fits, of which some rows may not have a valid one
    held = hdf5.plain(file).get("fixed", [])
    names = tuple(name for name in result.names if name not in held)
    rows: dict[str, Any] = dict(read_rows(file, f"{table}/minos", first, stop).toys)
    free = [result.names.index(name) for name in names]
    return MinosResult(names=names, **{name: rows[name][:, free] for name in MINOS_ARRAYS}, result=result)


def load_blocks(path: str | Path, *, minos: bool = False) -> Iterator[tuple[FitResult, MinosResult | None]]:
    """All fits of a file, some after the other, with their MINOS intervals if there are any and they are wanted.

    Raises as `load` does.
    """
    with open_file(path) as file, reading(path):
        n_toys = n_toys_of(file)
    for first in range(0, n_toys, BLOCK_TOYS):
        stop = min(first + BLOCK_TOYS, n_toys)
        intervals = load_minos(path, first, stop) if minos else None
        yield (intervals.result if intervals else load(path, first, stop)), intervals


# --- toys --------------------------------------------------------------------------------------------------


def load_toys(path: str | Path, first: int = 0, stop: int | None = None) -> dict[str, np.ndarray | Ragged]:
    """The toys in rows `first` to `stop - 1` of a file, by default all, as they were given to `write_part`.

    Raises
    ------
    ValueError
        If the file has no such toys.
    StorageError
        As `load`, or if the run did not keep its toys.
    """
    with open_file(path) as file:
        return _toys(path, file, *_range(path, file, first, stop))


def load_some(path: str | Path, rows: Sequence[int]) -> list[dict[str, np.ndarray | Ragged]]:
    """Some toys of a file, each as `load_toys(path, row, row + 1)` gives it. Raises as `load_toys` does."""
    with open_file(path) as file:
        _range(path, file, min(rows), max(rows) + 1)
        return [_toys(path, file, row, row + 1) for row in rows]


def load_data(path: str | Path, first: int = 0, stop: int | None = None) -> Any:
    """The toys in rows `first` to `stop - 1` of a file, by default all, in the form that `fit_batch` takes.

    Examples
    --------
    >>> fit_batch(study.cost, load_data("toys.h5"), study.start)

    Raises
    ------
    ValueError, StorageError
        As `load_toys`.
    """
    toys, shared = load_toys(path, first, stop), load_shared(path)
    with open_file(path) as file:
        first, stop = _range(path, file, first, stop)
    with reading(path):
        return unpack(Arrays(toys, shared), stop - first)


def load_shared(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays that all toys of a file have in common. Raises StorageError as `load` does."""
    with open_file(path) as file, reading(path):
        return read_group(file, "shared")


def read_checksums(path: str | Path) -> np.ndarray | None:
    """The checksum of each toy, (n_toys,) uint64 (see `toys.checksums`); None in files up to version 2.

    Raises StorageError as `load` does.
    """
    with open_file(path) as file, reading(path):
        return file["toys"][CHECKSUM][...] if CHECKSUM in file["toys"] else None


# --- the rest ----------------------------------------------------------------------------------------------


def read_attributes(path: str | Path, *needed: str) -> dict[str, Any]:
    """Attributes of a file or a part as text, numbers, booleans and lists.

    Raises StorageError as `load` does, also where one is missing that is needed.
    """
    with open_file(path) as file, reading(path):
        attributes = hdf5.plain(file)
        if missing := set(needed) - attributes.keys():
            raise KeyError(missing)
        return attributes


def read_validation(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of the validation, empty if there was none.

    Raises StorageError as `load` does.
    """
    with open_file(path) as file, reading(path):
        return read_group(file, "validation")


def _toys(path: str | Path, file: hdf5.File, first: int, stop: int) -> dict[str, np.ndarray | Ragged]:
    with reading(path):
        if "kept" in file["toys"].attrs:
            raise StorageError(
                f"{path} holds the checksums of its toys alone: throw them again with toys.regenerate(file, index)"
            )
        return read_rows(file, "toys", first, stop).toys


def _range(path: str | Path, file: hdf5.File, first: int, stop: int | None) -> tuple[int, int]:
    """Indices of rows, checked."""
    with reading(path):
        n_toys = n_toys_of(file)
        if file.attrs["stop"] - file.attrs["first"] != n_toys:
            raise ValueError("rows are missing")
    stop = n_toys if stop is None else stop
    if not 0 <= first <= stop <= n_toys:
        raise ValueError(f"toys must be in 0 <= first <= stop <= {n_toys}, got {first} and {stop}")
    return first, stop
