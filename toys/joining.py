"""The last step of a run: its parts become one file, in blocks of some MiB, whatever the number of toys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data import Ragged
from toys import hdf5
from toys.checksums import checksums
from toys.files import StorageError, advice, identity, parts_directory, reading
from toys.layout import (
    CHECKSUM,
    columns,
    is_offsets,
    is_ragged,
    offsets_of,
    open_file,
    read_group,
    read_rows,
    tables,
    write_group,
)
from toys.packing import Arrays
from toys.parts import complete_parts, range_attributes, remove_parts

__all__ = ["join", "join_files"]

# copied at once: larger blocks are no faster
BLOCK_BYTES = 8 * 2**20


class _Layout(NamedTuple):
    """What all sources have in common.

    Attributes
    ----------
    arrays : dict
        (table, name) -> (axis of the toys, dtype, shape of the other axes).
    n_events : dict
        (table, name) -> number of events of all sources, of each ragged array.
    toys, results : dict
        Attributes of these tables.
    shared : dict
        The shared arrays.
    """

    arrays: dict[tuple[str, str], tuple[int, np.dtype, tuple[int, ...]]]
    n_events: dict[tuple[str, str], int]
    toys: dict[str, Any]
    results: dict[str, Any]
    shared: dict[str, np.ndarray]


def join(
    path: str | Path,
    attributes: Mapping[str, Any],
    n_toys: int,
    validation: Mapping[str, np.ndarray] | None = None,
    *,
    first: int = 0,
    base: int = 0,
    found: tuple | None = None,
) -> None:
    """Make the final file out of its parts, which must be toys `first` or `base` to n_toys - 1, and remove the parts.

    Parameters
    ----------
    path : path of the final file
    attributes : dict, see `write_part`
    n_toys : int
    validation : dict of arrays, optional
    first : int
        The first toy of the file.
    base : int
        So many toys are taken from the file that is there, which is valid until the new one replaces it.
    found : tuple, optional
        What `files.identity` said of `path` when the run began.

    Raises
    ------
    StorageError
        If toys are missing, a part is damaged, parts differ in their arrays or parameters, or another program has
        changed the final file meanwhile. The parts stay.
    """
    if n_toys < 1:
        raise ValueError(f"n_toys must be at least 1, got {n_toys}")
    path, begin = Path(path), max(first, base)
    parts = [part for part in complete_parts(path) if part[0] >= begin]
    _check_cover(path, parts, n_toys, begin)
    files = ([(0, base, path)] if base else []) + parts
    join_files(path, files, attributes, validation, aside=parts_directory(path), found=found)
    remove_parts(path)


def join_files(
    path: Path,
    files: Sequence[tuple[int, int, Path]],
    attributes: Mapping[str, Any],
    validation: Mapping[str, np.ndarray] | None = None,
    *,
    aside: Path | None = None,
    found: tuple | None = None,
) -> None:
    """Make one file out of others, which are verified and stay.

    For a moment this takes the space twice. Backends or devices that differ between files are all listed, as in
    `"jax+numba"`.

    Parameters
    ----------
    path : path of the new file
    files : sequence of (first, stop, path)
        Toys first to stop - 1 are the first rows of that file; the toys of all files follow each other.
    attributes, validation, found
        As for `join`.
    aside : path, optional
        Directory where the new file lies until it is complete; by default its own.

    Raises
    ------
    StorageError
        As `join`.
    """
    begin, end = files[0][0], files[-1][1]
    layout = _common_layout(files)
    with hdf5.new_hdf5(path, aside=aside) as (file, disk):
        hdf5.write_attributes(file, attributes)
        hdf5.write_attributes(file, range_attributes(begin, end))
        # closing a dataset empties its chunk cache: all stay open until the end
        targets = _targets(file, layout, end - begin)
        hdf5.write_attributes(file["toys"], layout.toys)
        hdf5.write_attributes(file["results"], layout.results)
        write_group(file, "shared", layout.shared)
        write_group(file, "validation", dict(validation or {}))
        first_event = dict.fromkeys(layout.n_events, 0)
        for first, stop, source in files:
            with open_file(source) as opened:
                for table in tables(opened):
                    for at, rows, sums in _blocks(source, opened, table, stop - first):
                        _put(targets, table, first - begin + at, rows, sums, first_event)
                        disk.check()
        if found is not None and identity(path) not in (found, ()):
            raise StorageError(f"{path} was changed by another program meanwhile: move it, then continue with --resume")


def _check_cover(path: Path, parts: list[tuple[int, int, Path]], n_toys: int, begin: int) -> None:
    ends = [begin, *(stop for _, stop, _ in parts)]
    firsts = [*(first for first, _, _ in parts), n_toys]
    for end, first in zip(ends, firsts, strict=True):
        if first > end:
            raise StorageError(f"toys {end} to {first - 1} of {path} are missing: continue with --resume")
    if ends[-1] > n_toys:
        raise StorageError(
            f"{parts_directory(path)} holds {ends[-1]} toys, more than the {n_toys} asked for: "
            "ask for as many, or pass --overwrite to start anew"
        )


def _common_layout(sources: Sequence[tuple[int, int, Path]]) -> _Layout:
    seen: list[tuple[dict, dict, dict, dict]] = []
    n_events, labels = dict[tuple[str, str], int](), {"backend": set[str](), "device": set[str]()}
    shared: dict[str, np.ndarray] = {}
    for first, stop, source in sources:
        with open_file(source) as file, reading(source):
            arrays = {}
            for table in tables(file):
                found = columns(file, table)
                for name, array in found.items():
                    axis = array.ndim - 1 if is_ragged(found, name) else 0
                    arrays[table, name] = (axis, array.dtype, array.shape[:axis] + array.shape[axis + 1 :])
                    if is_ragged(found, name):
                        length = int(found[offsets_of(name)][stop - first])
                        n_events[table, name] = n_events.get((table, name), 0) + length
            of_toys, attributes = hdf5.plain(file["toys"]), hdf5.plain(file["results"])
            for label, texts in labels.items():
                texts.update(attributes.pop(label).split("+"))
            shared = read_group(file, "shared")
        numbers = {name: (array.shape, array.tobytes()) for name, array in shared.items()}
        seen = [*seen[:1], (arrays, of_toys, attributes, numbers)]
        if seen[0] != seen[-1]:
            raise StorageError(
                f"{source} differs from {sources[0][2].name} in its arrays or parameters: {advice(source)}"
            )
    arrays, of_toys, attributes, _ = seen[0]
    attributes |= {label: "+".join(sorted(texts)) for label, texts in labels.items()}
    return _Layout(arrays, n_events, of_toys, attributes, shared)


def _targets(file: hdf5.File, layout: _Layout, n_toys: int) -> dict[tuple[str, str], hdf5.Dataset]:
    targets = {}
    for (table, name), (axis, dtype, shape) in layout.arrays.items():
        length = layout.n_events.get((table, name), n_toys + is_offsets(name))
        whole = (*shape[:axis], length, *shape[axis:])
        targets[table, name] = hdf5.create(file.require_group(table), name, whole, dtype, axis=axis)
    for table in {"toys", *(table for table, _ in layout.arrays)}:
        sums = hdf5.create(file.require_group(table), CHECKSUM, (n_toys,), np.dtype(np.uint64))
        targets[table, CHECKSUM] = sums
    return targets


def _blocks(source: Path, file: hdf5.File, table: str, n_toys: int) -> Iterator[tuple[int, Arrays, np.ndarray]]:
    """The first `n_toys` rows of a table in blocks: (index of the first, rows, checksums)."""
    with reading(source):
        found = columns(file, table)
        n_bytes = sum(array.nbytes for array in found.values())
        step = max(1, n_toys * BLOCK_BYTES // max(1, n_bytes))
    for first in range(0, n_toys, step):
        stop = min(first + step, n_toys)
        with reading(source):
            rows = read_rows(file, table, first, stop)
            kept = CHECKSUM in file[table]
            sums = file[table][CHECKSUM][first:stop] if kept else checksums(rows.toys, stop - first)
        yield first, rows, sums


def _put(
    targets: dict[tuple[str, str], hdf5.Dataset],
    table: str,
    at: int,
    rows: Arrays,
    sums: np.ndarray,
    first_event: dict[tuple[str, str], int],
) -> None:
    """Write rows from index `at` on; `first_event` tells where the events of ragged arrays go on."""
    for name, array in rows.toys.items():
        if not isinstance(array, Ragged):
            targets[table, name][at : at + len(array)] = array
            continue
        start = first_event[table, name]
        first_event[table, name] = start + array.values.shape[-1]
        targets[table, name][..., start : first_event[table, name]] = array.values
        if name.rpartition("/")[2] == "values":
            # the first of these is the last offset of the rows before
            targets[table, offsets_of(name)][at : at + len(array) + 1] = array.offsets + start
    targets[table, CHECKSUM][at : at + len(sums)] = sums
