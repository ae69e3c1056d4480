"""The parts of a run: immutable files of the same layout as the final one, in `toys.h5.parts/`.

Each is written aside, synchronised to disk and renamed: it exists complete or not at all. All functions take the path
of the final file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data import Ragged
from engine.minos import MinosResult
from engine.result import FitResult
from toys import hdf5
from toys.checksums import checksums
from toys.files import PART, StorageError, advice, alive, parts_directory, reading, synchronise, writing
from toys.layout import (
    CHECKSUM,
    FORMAT_VERSION,
    MINOS_ARRAYS,
    NAME,
    RAGGED,
    RESULT_ARRAYS,
    RESULT_ATTRIBUTES,
    n_toys_of,
    open_file,
    write_group,
    write_table,
)

__all__ = [
    "Fitted",
    "Part",
    "complete_parts",
    "part_path",
    "range_attributes",
    "remove_parts",
    "write_observed",
    "write_part",
]

_TEMPORARY = re.compile(r".+\.tmp\.(\d+)")


class Fitted(NamedTuple):
    """Fits, and their MINOS intervals if these are asked for."""

    result: FitResult
    minos: MinosResult | None = None


class Part(NamedTuple):
    """What a part holds.

    Attributes
    ----------
    first, stop : int
        It holds toys `first` to `stop - 1`.
    tables : dict
        Name of a table -> (its arrays by name, their checksums).
    of_toys, of_results : dict
        Attributes of these tables.
    shared : dict
        What all toys have in common.
    """

    first: int
    stop: int
    tables: dict[str, tuple[dict[str, np.ndarray | Ragged], np.ndarray]]
    of_toys: dict[str, Any]
    of_results: dict[str, Any]
    shared: dict[str, np.ndarray]


def write_part(
    path: str | Path,
    first: int,
    toys: Mapping[str, np.ndarray | Ragged],
    result: FitResult,
    attributes: Mapping[str, Any],
    shared: Mapping[str, np.ndarray] | None = None,
    minos: MinosResult | None = None,
    save_toys: bool = True,
    told: Callable[[Part], None] = lambda part: None,
) -> Path:
    """Write toys first, first + 1, ... and their fits as one part of `path`.

    Parameters
    ----------
    path : path of the final file
    first : int
        Index of the first toy.
    toys : dict
        Arrays of shape (n_toys, ...). Ragged ones are called "values", and "weights" with the same offsets.
    result : FitResult of n_toys fits
    attributes : dict
        Text, numbers, booleans, or arrays and lists of them.
    shared : dict, optional
        Arrays that are the same in all parts.
    minos : MinosResult, optional
        Intervals of these fits.
    save_toys : bool
        False writes the checksums of the toys alone.
    told : callable
        Gets what was written, once it is on disk.

    Returns
    -------
    Path of the part.

    Raises
    ------
    ValueError, TypeError
        If arrays do not have one row per toy, or hold something that cannot be stored.
    StorageError
    """
    whole = _part(first, toys, result, shared or {}, minos, save_toys)
    directory = parts_directory(path)
    with writing(directory):
        if not directory.is_dir():
            directory.mkdir(exist_ok=True)
            synchronise(directory.parent)
    part = part_path(path, whole.first, whole.stop)
    with hdf5.new_hdf5(part) as (file, _):
        hdf5.write_attributes(file, attributes)
        hdf5.write_attributes(file, range_attributes(whole.first, whole.stop))
        for table, (rows, sums) in whole.tables.items():
            write_table(file, table, rows, sums)
        hdf5.write_attributes(file["toys"], whole.of_toys)
        hdf5.write_attributes(file["results"], whole.of_results)
        write_group(file, "shared", whole.shared)
    told(whole)
    return part


def _part(
    first: int,
    toys: Mapping[str, np.ndarray | Ragged],
    result: FitResult,
    shared: Mapping[str, np.ndarray],
    minos: MinosResult | None,
    save_toys: bool,
) -> Part:
    n_toys = len(result)
    if first < 0 or n_toys == 0:
        raise ValueError(f"a part starts at toy 0 or later and holds a toy, got first = {first}, {n_toys} toys")
    for name, array in toys.items():
        if len(array) != n_toys:
            raise ValueError(f"toys[{name!r}] must have one row for each of {n_toys} fits, got {len(array)}")
        if isinstance(array, Ragged) and name.rpartition("/")[2] not in RAGGED:
            raise ValueError(f"ragged toys must be called 'values', got {name!r}")
        if not isinstance(array, Ragged) and np.asarray(array).dtype.kind not in "fiub":
            raise TypeError(f"{name} must hold real numbers or booleans, got {np.asarray(array).dtype}")
    for name in (*toys, *shared):
        if not NAME.fullmatch(name) or name.endswith("offsets") or name == CHECKSUM:
            raise ValueError(f"toys cannot be called {name!r}")
    rows: dict[str, Any] = {name: a if isinstance(a, Ragged) else np.asarray(a) for name, a in toys.items()}
    return Part(
        first,
        first + n_toys,
        {"toys": (rows if save_toys else {}, checksums(rows, n_toys)), **_tables("results", Fitted(result, minos))},
        {} if save_toys else {"kept": False},
        _labels(result),
        dict(shared),
    )


def write_observed(file: hdf5.File, observed: Fitted) -> None:
    """Write the fit of the observed data as toys are written."""
    for table, (rows, sums) in _tables("observed", observed).items():
        write_table(file, table, rows, sums)
    hdf5.write_attributes(file["observed"], _labels(observed.result))


def _tables(name: str, fitted: Fitted) -> dict[str, tuple[dict[str, Any], np.ndarray]]:
    """The table of this name, with the fits, and that of their intervals."""
    result, minos = fitted
    arrays = {name: {each: getattr(result, each) for each in RESULT_ARRAYS}}
    if minos is not None:
        arrays[f"{name}/minos"] = {each: _of_all(minos, each) for each in MINOS_ARRAYS}
    return {table: (rows, checksums(rows, len(result))) for table, rows in arrays.items()}


def _labels(result: FitResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in RESULT_ATTRIBUTES}


def _of_all(minos: MinosResult, field: str) -> np.ndarray:
    """An array of intervals with a column for every parameter: NaN or False where there is none."""
    array, names = getattr(minos, field), minos.result.names
    whole = np.full((len(array), len(names)), np.nan if array.dtype.kind == "f" else 0, array.dtype)
    whole[:, [names.index(name) for name in minos.names]] = array
    return whole


def part_path(path: str | Path, first: int, stop: int) -> Path:
    """Where toys `first` to `stop - 1` of `path` lie."""
    return parts_directory(path) / f"toys_{first:010d}-{stop:010d}.h5"


def range_attributes(first: int, stop: int) -> dict[str, int]:
    return {"format_version": FORMAT_VERSION, "first": first, "stop": stop}


def complete_parts(path: str | Path) -> list[tuple[int, int, Path]]:
    """The parts of `path` as (first, stop, file), sorted; what dead processes left half-written is removed.

    Array contents are not read, so that this is quick: their checksums are verified when they are.

    Raises
    ------
    StorageError
        If a part cannot be opened, does not hold the toys that its name says, or overlaps another, or if
        there is a file that is none of a run.
    """
    parts, temporaries = _list_parts(path)
    for pid, temporary in temporaries:
        if not alive(pid):
            with writing(temporary):
                temporary.unlink(missing_ok=True)
    end = 0
    for first, stop, part in parts:
        if first < end:
            raise StorageError(f"{part} overlaps another part: {advice(part)}")
        end = stop
        with open_file(part) as file, reading(part):
            told = (file.attrs["first"], file.attrs["stop"])
            if told != (first, stop) or n_toys_of(file) != stop - first:
                raise StorageError(f"{part} does not hold the toys that its name says: {advice(part)}")
    return parts


def remove_parts(path: str | Path) -> None:
    """Remove all parts of `path` and their directory, which may be missing.

    Raises
    ------
    StorageError
        If the directory holds a file that is none of a run.
    """
    parts, temporaries = _list_parts(path)
    directory = parts_directory(path)
    with writing(directory):
        for file in [part for _, _, part in parts] + [temporary for _, temporary in temporaries]:
            file.unlink(missing_ok=True)
        if directory.exists():
            directory.rmdir()


def _list_parts(path: str | Path) -> tuple[list[tuple[int, int, Path]], list[tuple[int, Path]]]:
    """Parts as (first, stop, file) and half-written files as (process, file), sorted."""
    directory = parts_directory(path)
    parts, temporaries = [], []
    with reading(directory):
        files = sorted(directory.iterdir()) if directory.exists() else []
    for file in files:
        if match := PART.fullmatch(file.name):
            parts.append((int(match[1]), int(match[2]), file))
        elif match := _TEMPORARY.fullmatch(file.name):
            temporaries.append((int(match[1]), file))
        else:
            raise StorageError(f"{file} is no part of a run: move it elsewhere")
    return sorted(parts), temporaries
