"""The last step of a run: one file with all its toys.

It grows aside while the run lasts, part by part as they are written (`Growing`). Where that is not possible, or was
given up, it is made out of the parts in the end, in blocks of some MiB, whatever the number of toys (`join_files`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data import Ragged
from toys import hdf5
from toys.checksums import checksums
from toys.files import Disk, StorageError, advice, identity, parts_directory, reading
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
from toys.parts import Fitted, Part, complete_parts, part_path, range_attributes, remove_parts, write_observed

__all__ = ["Growing", "join", "join_files"]

# copied at once: larger blocks are no faster
BLOCK_BYTES = 8 * 2**20
# attributes of results, of which all that the sources have are listed
LABELS = ("backend", "device")
_FAILURES = (StorageError, OSError, RuntimeError, MemoryError)


def join(
    path: str | Path,
    attributes: Mapping[str, Any],
    n_toys: int,
    validation: Mapping[str, np.ndarray] | None = None,
    *,
    first: int = 0,
    base: int = 0,
    found: tuple | None = None,
    observed: Fitted | None = None,
    grown: Callable[[Mapping[str, Any], Mapping[str, np.ndarray] | None], bool] = lambda attributes, validation: False,
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
    observed : Fitted, optional
        The fit of the observed data.
    grown : callable, optional
        Completes the file with attributes and validation if it has grown meanwhile, and tells whether it has.

    Raises
    ------
    StorageError
        If toys are missing, a part is damaged, parts differ in their arrays or parameters, or another program has
        changed the final file meanwhile. The parts stay.
    """
    if n_toys < 1:
        raise ValueError(f"n_toys must be at least 1, got {n_toys}")
    path, begin = Path(path), max(first, base)
    if not grown(attributes, validation):
        parts = [part for part in complete_parts(path) if part[0] >= begin]
        _check_cover(path, parts, n_toys, begin)
        files = ([(0, base, path)] if base else []) + parts
        aside = parts_directory(path)
        join_files(path, files, attributes, validation, aside=aside, found=found, observed=observed)
    remove_parts(path)


def join_files(
    path: Path,
    files: Sequence[tuple[int, int, Path]],
    attributes: Mapping[str, Any],
    validation: Mapping[str, np.ndarray] | None = None,
    *,
    aside: Path | None = None,
    found: tuple | None = None,
    observed: Fitted | None = None,
) -> None:
    """Make one file out of others, which are verified and stay.

    For a moment this takes the space twice. Backends or devices that differ between files are all listed, as in
    `"jax+numba"`.

    Parameters
    ----------
    path : path of the new file
    files : sequence of (first, stop, path)
        Toys first to stop - 1 are the first rows of that file; the toys of all files follow each other.
    attributes, validation, found, observed
        As for `join`.
    aside : path, optional
        Directory where the new file lies until it is complete; by default its own.

    Raises
    ------
    StorageError
        As `join`.
    """
    with hdf5.new_hdf5(path, aside=aside) as (file, disk):
        joined = _Joined(file, disk, range(files[0][0], files[-1][1]), observed)
        for source in files:
            joined.add_file(*source)
        joined.complete(attributes, validation)
        _refuse_changed(path, found)


class Growing:
    """The final file of a run while the run lasts. Where it cannot grow, it is given up without a word.

    Everything but `stop` is called by one thread.

    Parameters
    ----------
    path : path of the final file
    toys : range
        All toys of the file.
    there : sequence of (first, stop, path)
        Files with toys that are there already, as for `join_files`.
    found, observed
        As for `join`.
    """

    def __init__(
        self,
        path: Path,
        toys: range,
        there: Sequence[tuple[int, int, Path]] = (),
        found: tuple | None = None,
        observed: Fitted | None = None,
    ) -> None:
        self.path, self.toys, self.there, self.found, self.observed = path, toys, list(there), found, observed
        self.stack = contextlib.ExitStack()
        self.disk: Disk | None = None
        self.joined: _Joined | None = None
        self.given_up = False

    def add(self, part: Part) -> None:
        """Add a part that is on disk; the parts come in the order of their toys."""
        self._attempt(lambda: self._add(part))

    def complete(self, attributes: Mapping[str, Any], validation: Mapping[str, np.ndarray] | None = None) -> bool:
        """Give the file its name: whether that could be done."""
        return self.joined is not None and self._attempt(lambda: self._complete(attributes, validation))

    def give_up(self) -> None:
        """Remove what has grown, unless it has its name."""
        self.stop()
        self._attempt(lambda: None)

    def stop(self) -> None:
        """Let what another thread does here come to nothing, soon."""
        self.given_up = True
        if self.disk is not None:
            self.disk.failure = self.disk.failure or InterruptedError()

    def _add(self, part: Part) -> None:
        if self.joined is None:
            file, self.disk = self.stack.enter_context(hdf5.new_hdf5(self.path, aside=parts_directory(self.path)))
            self.joined = _Joined(file, self.disk, self.toys, self.observed)
        self._add_there(self.joined, part.first)
        self.joined.add_part(part, part_path(self.path, part.first, part.stop))
        self.joined.disk.hurry()

    def _complete(self, attributes: Mapping[str, Any], validation: Mapping[str, np.ndarray] | None) -> None:
        if self.joined is not None:
            self._add_there(self.joined, self.toys.stop)
            self.joined.complete(attributes, validation)
            _refuse_changed(self.path, self.found)
            self.stack.close()

    def _add_there(self, joined: _Joined, stop: int) -> None:
        """Add what was there of the toys before `stop`."""
        while self.there and self.there[0][0] < stop:
            joined.add_file(*self.there.pop(0))
            joined.disk.hurry()

    def _attempt(self, step: Callable[[], None]) -> bool:
        if not self.given_up:
            try:
                step()
                return True
            except _FAILURES:
                pass
        # the disk, which may not have been open when another thread gave up, has a failure: what is closed is removed
        self.stop()
        with contextlib.suppress(*_FAILURES):
            self.stack.close()
        return False


class _Layout(NamedTuple):
    """How a source is laid out.

    Attributes
    ----------
    tables : list
        Their names.
    arrays : dict
        (table, name) -> (axis of the toys or events, dtype, shape of the other axes).
    n_events : dict
        (table, name) -> number of events, of each ragged array.
    of_toys, of_results : dict
        Attributes of these tables.
    shared : dict
        The shared arrays.
    """

    tables: list[str]
    arrays: dict[tuple[str, str], tuple[int, np.dtype, tuple[int, ...]]]
    n_events: dict[tuple[str, str], int]
    of_toys: dict[str, Any]
    of_results: dict[str, Any]
    shared: dict[str, np.ndarray]

    def common(self) -> tuple:
        """What is the same in all sources of a file."""
        of_results = {name: value for name, value in self.of_results.items() if name not in LABELS}
        numbers = {name: (array.shape, array.tobytes()) for name, array in self.shared.items()}
        return self.tables, self.arrays, self.of_toys, of_results, numbers


class _Joined:
    """A new file to which sources are added in the order of their toys."""

    def __init__(self, file: hdf5.File, disk: Disk, toys: range, observed: Fitted | None) -> None:
        self.file, self.disk, self.toys, self.observed = file, disk, toys, observed
        self.next = toys.start
        self.first_source: tuple[Path, _Layout] | None = None
        self.labels = {label: set[str]() for label in LABELS}
        self.columns: dict[tuple[str, str], hdf5.Column] = {}

    def add_file(self, first: int, stop: int, source: Path) -> None:
        with open_file(source) as opened:
            with reading(source):
                layout = _layout_of_file(opened, stop - first)
            self._begin(layout, first, stop, source)
            for table in layout.tables:
                for rows, sums in _blocks(source, opened, table, stop - first):
                    self._append(table, rows.toys, sums)

    def add_part(self, part: Part, source: Path) -> None:
        """Add what was written to `source`, which is not read."""
        self._begin(_layout_of_part(part), part.first, part.stop, source)
        for table, (rows, sums) in part.tables.items():
            self._append(table, rows, sums)

    def complete(self, attributes: Mapping[str, Any], validation: Mapping[str, np.ndarray] | None) -> None:
        if self.first_source is None or self.next != self.toys.stop:
            raise StorageError(f"toys {self.next} to {self.toys.stop - 1} are missing: continue with --resume")
        for column in self.columns.values():
            column.close()
        layout = self.first_source[1]
        labels = {label: "+".join(sorted(texts)) for label, texts in self.labels.items()}
        hdf5.write_attributes(self.file, attributes)
        hdf5.write_attributes(self.file, range_attributes(self.toys.start, self.toys.stop))
        hdf5.write_attributes(self.file["toys"], layout.of_toys)
        hdf5.write_attributes(self.file["results"], layout.of_results | labels)
        write_group(self.file, "shared", layout.shared)
        write_group(self.file, "validation", dict(validation or {}))
        if self.observed is not None:
            write_observed(self.file, self.observed)
        self.disk.check()

    def _begin(self, layout: _Layout, first: int, stop: int, source: Path) -> None:
        """Make room for toys `first` to `stop - 1`, if they are the next."""
        if first != self.next:
            raise StorageError(f"toys {self.next} to {first - 1} are missing: continue with --resume")
        if self.first_source is None:
            self.first_source = source, layout
            self._create(layout, stop - first)
        elif layout.common() != self.first_source[1].common():
            raise StorageError(
                f"{source} differs from {self.first_source[0].name} in its arrays or parameters: {advice(source)}"
            )
        for label, texts in self.labels.items():
            texts.update(layout.of_results[label].split("+"))
        self.next = stop

    def _create(self, layout: _Layout, n_first: int) -> None:
        """Create all arrays, for as many events per toy as the first source has, of `n_first` toys."""
        n_toys = len(self.toys)
        for (table, name), (axis, dtype, shape) in layout.arrays.items():
            n_events = layout.n_events.get((table, name))
            growing = n_events is not None
            length = n_toys + is_offsets(name) if n_events is None else -(-n_events * n_toys // n_first)
            whole = (*shape[:axis], length, *shape[axis:])
            group = self.file.require_group(table)
            self.columns[table, name] = hdf5.create(group, name, whole, dtype, axis=axis, growing=growing)
        for table in layout.tables:
            sums = hdf5.create(self.file.require_group(table), CHECKSUM, (n_toys,), np.dtype(np.uint64))
            self.columns[table, CHECKSUM] = sums

    def _append(self, table: str, rows: Mapping[str, np.ndarray | Ragged], sums: np.ndarray) -> None:
        for name, array in rows.items():
            column = self.columns[table, name]
            if not isinstance(array, Ragged):
                column.append(array)
                continue
            if name.rpartition("/")[2] == "values":
                offsets = self.columns[table, offsets_of(name)]
                # the first of these is the last offset of the rows before
                offsets.append(array.offsets[bool(offsets.length) :] + column.length)
            column.append(array.values)
        self.columns[table, CHECKSUM].append(sums)
        self.disk.check()


def _layout_of_file(file: hdf5.File, n_toys: int) -> _Layout:
    """Of a file of which the first `n_toys` toys are taken."""
    arrays, n_events = {}, {}
    for table in tables(file):
        found = columns(file, table)
        for name, array in found.items():
            axis = array.ndim - 1 if is_ragged(found, name) else 0
            arrays[table, name] = (axis, array.dtype, array.shape[:axis] + array.shape[axis + 1 :])
            if is_ragged(found, name):
                n_events[table, name] = int(found[offsets_of(name)][n_toys])
    of_toys, of_results = hdf5.plain(file["toys"]), hdf5.plain(file["results"])
    return _Layout(tables(file), arrays, n_events, of_toys, of_results, read_group(file, "shared"))


def _layout_of_part(part: Part) -> _Layout:
    """That of its file."""
    arrays, n_events = dict[tuple[str, str], tuple[int, np.dtype, tuple[int, ...]]](), {}
    for table, (rows, _) in part.tables.items():
        for name, array in rows.items():
            if isinstance(array, Ragged):
                arrays[table, offsets_of(name)] = (0, array.offsets.dtype, ())
                arrays[table, name] = (array.values.ndim - 1, array.values.dtype, array.values.shape[:-1])
                n_events[table, name] = array.values.shape[-1]
            else:
                arrays[table, name] = (0, hdf5.stored_dtype(array.dtype), array.shape[1:])
    of_results = {name: np.asarray(value).tolist() for name, value in part.of_results.items()}
    shared = {name: np.asarray(array) for name, array in part.shared.items()}
    shared = {name: array.astype(hdf5.stored_dtype(array.dtype)) for name, array in shared.items()}
    return _Layout(list(part.tables), arrays, n_events, part.of_toys, of_results, shared)


def _refuse_changed(path: Path, found: tuple | None) -> None:
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


def _blocks(source: Path, file: hdf5.File, table: str, n_toys: int) -> Iterator[tuple[Arrays, np.ndarray]]:
    """The first `n_toys` rows of a table in blocks: (rows, checksums)."""
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
        yield rows, sums
