"""Toys, fits and validation of a study in one HDF5 file, written part by part.

Layout of `toys.h5`, and of every part of it:

    /            attributes: those of the study, and format_version, first, stop: the range of toys
    /toys        named arrays, one row per toy; events of ragged toys as values (and weights) with offsets
    /shared      named arrays that all toys have in common (optional)
    /results     the arrays of `FitResult`, one row per toy; attributes: names, errordef, backend, device
    /results/minos  lower, upper, valid, ... of all parameters, one row per toy (on request)
    /validation  named arrays, one row per refitted toy (optional, never in a part)

The names are those of `toys.packing`; what belongs to the costs of a sum lies in the groups part0, part1, ... of both.
Real numbers are float64, integers and booleans keep their dtype. Every array carries a fletcher32 checksum,
and lies in chunks of about 1 MiB: whole toys where there is one row per toy; where the toys are ragged, a
fixed number of events, whichever toys they belong to. Nothing is compressed: random mantissas do not get
smaller. Text is UTF-8 of fixed length, which h5py returns as bytes.

While a run lasts, each part is an immutable file in `toys.h5.parts/`, written aside, synchronised to disk and
renamed: it exists complete or not at all. `join` copies the parts into `toys.h5` in the same way, which for a
moment takes the space twice. All functions take the path of the final file. Whatever goes wrong with a file
is a `StorageError` (see `toys.files`).

Files of version 1 hold toys of a single unbinned cost, in the same layout.

`dataset_names` and `read_dataset` read any HDF5 file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from engine.data import Ragged
from engine.minos import MinosResult
from engine.result import FitResult
from toys.files import (
    PART,
    Disk,
    StorageError,
    advice,
    alive,
    new_file,
    parts_directory,
    reading,
    refuse_directory,
    synchronise,
    writing,
)
from toys.packing import Arrays, unpack

__all__ = [
    "FORMAT_VERSION",
    "complete_parts",
    "dataset_names",
    "join",
    "load",
    "load_data",
    "load_minos",
    "load_shared",
    "load_toys",
    "read_attributes",
    "read_dataset",
    "read_validation",
    "remove_parts",
    "same_run",
    "write_part",
]

FORMAT_VERSION = 2

# unlike the oldest format, this one has checksums in its headers too; HDF5 1.10 (2016) and later read it
_LIBVER = ("v110", "v110")
_CHUNK_BYTES = 2**20
# copied at once by `join`: larger blocks are no faster
_BLOCK_BYTES = 8 * 2**20
# parts seldom end with a chunk: it stays here until the next part fills it
_CACHE_BYTES = 4 * 2**20

_RESULT_ATTRIBUTES = ("names", "errordef", "backend", "device")
_NOT_STORED = ("problem",)
_MINOS_ARRAYS = ("lower", "upper", "valid", "at_lower_limit", "at_upper_limit", "new_minimum", "nfev")
_RESULT_ARRAYS = [f.name for f in dataclasses.fields(FitResult) if f.name not in (*_RESULT_ATTRIBUTES, *_NOT_STORED)]
# what to do about a damaged file that is none of ours
_ANOTHER = "name another file, or restore a copy"
# ragged arrays, which belong to the offsets beside them
_RAGGED = ("values", "weights")
_NAME = re.compile(r"(part\d+/)?[A-Za-z_]\w*")
_TEMPORARY = re.compile(r".+\.tmp\.(\d+)")


def same_run(a: Mapping[str, Any], b: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Those of `keys` whose attributes differ, or are in one only: empty if the runs give the same numbers.

    The caller knows which attributes decide about numbers: model, seed, truth, sizes of parts, versions.
    NaN equals NaN, and an array equals the list of its numbers.
    """

    def comparable(attributes: Mapping[str, Any], key: str) -> str:
        return repr(np.asarray(attributes[key]).tolist()) if key in attributes else ""

    return [key for key in keys if comparable(a, key) != comparable(b, key)]


# --- parts -------------------------------------------------------------------------------------------------


def write_part(
    path: str | Path,
    first: int,
    toys: Mapping[str, np.ndarray | Ragged],
    result: FitResult,
    attributes: Mapping[str, Any],
    shared: Mapping[str, np.ndarray] | None = None,
    minos: MinosResult | None = None,
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

    Returns
    -------
    Path of the part.

    Raises
    ------
    ValueError, TypeError
        If arrays do not have one row per toy, or hold something that cannot be stored.
    StorageError
    """
    n_toys = len(result)
    if first < 0 or n_toys == 0:
        raise ValueError(f"a part starts at toy 0 or later and holds a toy, got first = {first}, {n_toys} toys")
    for name, array in toys.items():
        if len(array) != n_toys:
            raise ValueError(f"toys[{name!r}] must have one row for each of {n_toys} fits, got {len(array)}")
        if isinstance(array, Ragged) and name.rpartition("/")[2] not in _RAGGED:
            raise ValueError(f"ragged toys must be called 'values', got {name!r}")
    for name in (*toys, *(shared or {})):
        if not _NAME.fullmatch(name) or name.endswith("offsets"):
            raise ValueError(f"toys cannot be called {name!r}")
    directory = parts_directory(path)
    with writing(directory):
        if not directory.is_dir():
            directory.mkdir()
            synchronise(directory.parent)
    part = directory / f"toys_{first:010d}-{first + n_toys:010d}.h5"
    with _new_file(part) as (file, _):
        _write_attributes(file, attributes)
        _write_attributes(file, _range(first, first + n_toys))
        group = file.create_group("toys")
        for name, array in toys.items():
            if isinstance(array, Ragged):
                if _offsets_of(name) not in group:
                    _write_array(group, _offsets_of(name), array.offsets)
                _write_array(group, name, array.values, axis=array.values.ndim - 1)
            else:
                _write_array(group, name, array)
        for name, array in (shared or {}).items():
            _write_array(file.require_group("shared"), name, array)
        group = file.create_group("results")
        _write_attributes(group, {name: getattr(result, name) for name in _RESULT_ATTRIBUTES})
        for name in _RESULT_ARRAYS:
            _write_array(group, name, getattr(result, name))
        if minos is not None:
            for name in _MINOS_ARRAYS:
                _write_array(group.require_group("minos"), name, _of_all(minos, name))
    return part


def _of_all(minos: MinosResult, field: str) -> np.ndarray:
    """An array of intervals with a column for every parameter: NaN or False where there is none."""
    array, names = getattr(minos, field), minos.result.names
    whole = np.full((len(array), len(names)), np.nan if array.dtype.kind == "f" else 0, array.dtype)
    whole[:, [names.index(name) for name in minos.names]] = array
    return whole


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
        with _open(part) as file, reading(part):
            told = (file.attrs["first"], file.attrs["stop"])
            if told != (first, stop) or _n_toys(file) != {stop - first}:
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


def join(
    path: str | Path,
    attributes: Mapping[str, Any],
    n_toys: int,
    validation: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Make the final file out of its parts, which must be toys 0 to n_toys - 1, and remove the parts.

    Reads and writes blocks of some MiB, whatever the number of toys. Backends or devices that differ between
    parts are all listed, as in `"jax+numba"`.

    Parameters
    ----------
    path : path of the final file
    attributes : dict, see `write_part`
    n_toys : int
    validation : dict of arrays, optional

    Raises
    ------
    StorageError
        If toys are missing, a part is damaged, or parts differ in their arrays or parameters. The parts stay.
    """
    if n_toys < 1:
        raise ValueError(f"n_toys must be at least 1, got {n_toys}")
    path, parts = Path(path), complete_parts(path)
    _check_cover(path, parts, n_toys)
    layout, n_events, result_attributes, shared = _common_layout(parts)
    with _new_file(path, aside=parts_directory(path)) as (file, disk):
        _write_attributes(file, attributes)
        _write_attributes(file, _range(0, n_toys))
        # closing a dataset empties its chunk cache: all stay open until the end
        targets = {}
        for name, (axis, dtype, shape) in layout.items():
            length = n_events[name] if _is_ragged(layout, name) else n_toys + _is_offsets(name)
            targets[name] = _create(file, name, (*shape[:axis], length, *shape[axis:]), dtype, axis=axis)
        _write_attributes(file["results"], result_attributes)
        for name, array in shared.items():
            _write_array(file.require_group("shared"), name, array)
        for name, array in (validation or {}).items():
            _write_array(file.require_group("validation"), name, array)
        first_event = dict.fromkeys(n_events, 0)
        for first, _, part in parts:
            with _open(part) as source:
                for name, (axis, _, _) in layout.items():
                    # offset 0 of a part is the last offset of the part before
                    add = first_event[_values_of(name)] if _is_offsets(name) else 0
                    at = first_event.get(name, first)
                    _copy(part, source[name], targets[name], at=at, axis=axis, add=add)
                for name in n_events:
                    first_event[name] += source[name].shape[-1]
            disk.check()
    remove_parts(path)


def _check_cover(path: Path, parts: list[tuple[int, int, Path]], n_toys: int) -> None:
    ends = [0, *(stop for _, stop, _ in parts)]
    firsts = [*(first for first, _, _ in parts), n_toys]
    for end, first in zip(ends, firsts, strict=True):
        if first > end:
            raise StorageError(f"toys {end} to {first - 1} of {path} are missing: continue with --resume")
    if ends[-1] > n_toys:
        raise StorageError(
            f"{parts_directory(path)} holds {ends[-1]} toys, more than the {n_toys} asked for: "
            "ask for as many, or pass --overwrite to start anew"
        )


def _common_layout(
    parts: list[tuple[int, int, Path]],
) -> tuple[dict[str, tuple[int, np.dtype, tuple[int, ...]]], dict[str, int], dict[str, Any], dict[str, np.ndarray]]:
    """Datasets of all parts as name -> (axis of the toys, dtype, shape of the other axes), the number of
    events in each of the ragged ones, the attributes of the results, and the shared arrays."""
    layouts: list[tuple[dict, dict, dict]] = []
    n_events, labels = dict[str, int](), {"backend": set[str](), "device": set[str]()}
    shared: dict[str, np.ndarray] = {}
    for _, _, part in parts:
        with _open(part) as file, reading(part):
            layout = {}
            for name, dataset in _datasets(file).items():
                axis = dataset.ndim - 1 if _is_ragged(file, name) else 0
                layout[name] = (axis, dataset.dtype, dataset.shape[:axis] + dataset.shape[axis + 1 :])
                if _is_ragged(file, name):
                    n_events[name] = n_events.get(name, 0) + dataset.shape[axis]
            attributes = _plain(file["results"])
            for label, texts in labels.items():
                texts.update(attributes.pop(label).split("+"))
            shared = _read_shared(file)
        numbers = {name: (array.shape, array.tobytes()) for name, array in shared.items()}
        layouts = [*layouts[:1], (layout, attributes, numbers)]
        if layouts[0] != layouts[-1]:
            raise StorageError(f"{part} differs from {parts[0][2].name} in its arrays or parameters: {advice(part)}")
    layout, attributes, _ = layouts[0]
    attributes |= {label: "+".join(sorted(texts)) for label, texts in labels.items()}
    return layout, n_events, attributes, shared


def _copy(part: Path, source: h5py.Dataset, target: h5py.Dataset, *, at: int, axis: int = 0, add: int = 0) -> None:
    """Copy all of `source` to `target`, from index `at` of the axis on, in blocks; `add` a number to each."""
    length = source.shape[axis]
    step = _per_block(_BLOCK_BYTES, source.shape, source.dtype, axis)
    before = (slice(None),) * axis
    for start in range(0, length, step):
        stop = min(start + step, length)
        with reading(part):
            block = source[(*before, slice(start, stop))]
        if add:
            block += add
        target[(*before, slice(at + start, at + stop))] = block


# --- reading -----------------------------------------------------------------------------------------------


def load(path: str | Path) -> FitResult:
    """All fits of a file.

    Raises
    ------
    StorageError
        If there is no such file, it is none of ours, damaged, or written by a newer version.
    """
    with _open(path) as file, reading(path):
        group = file["results"]
        return FitResult(**_plain(group), **{name: group[name][...] for name in _RESULT_ARRAYS})


def load_minos(path: str | Path) -> MinosResult | None:
    """The MINOS intervals of a file for the parameters that were free, None if it has none. Raises as `load` does."""
    result = load(path)
    with _open(path) as file, reading(path):
        if "minos" not in file["results"]:
            return None
        arrays = {name: file["results/minos"][name][...][:, result.free] for name in _MINOS_ARRAYS}
    names = tuple(name for name, free in zip(result.names, result.free, strict=True) if free)
    return MinosResult(names=names, **arrays, result=result)


def load_toys(path: str | Path, first: int = 0, stop: int | None = None) -> dict[str, np.ndarray | Ragged]:
    """The toys `first` to `stop - 1` of a file, by default all, as they were given to `write_part`.

    Raises
    ------
    ValueError
        If the file has no such toys.
    StorageError
        As `load`.
    """
    with _open(path) as file:
        with reading(path):
            (n_toys,) = _n_toys(file)
        stop = n_toys if stop is None else stop
        if not 0 <= first <= stop <= n_toys:
            raise ValueError(f"toys must be in 0 <= first <= stop <= {n_toys}, got {first} and {stop}")
        with reading(path):
            toys: dict[str, np.ndarray | Ragged] = {}
            for name, dataset in _walk(file["toys"]):
                if _is_ragged(file, f"toys/{name}"):
                    offsets = file["toys"][_offsets_of(name)][first : stop + 1]
                    toys[name] = Ragged(dataset[..., offsets[0] : offsets[-1]], offsets - offsets[0])
                elif not _is_offsets(f"toys/{name}"):
                    toys[name] = dataset[first:stop]
            return toys


def load_data(path: str | Path, first: int = 0, stop: int | None = None) -> Any:
    """The toys `first` to `stop - 1` of a file, by default all, in the form that `fit_batch` takes.

    Examples
    --------
    >>> fit_batch(study.cost, load_data("toys.h5"), study.start)

    Raises
    ------
    ValueError, StorageError
        As `load_toys`.
    """
    toys, shared = load_toys(path, first, stop), load_shared(path)
    with _open(path) as file, reading(path):
        (n_toys,) = _n_toys(file)
    return unpack(Arrays(toys, shared), (n_toys if stop is None else stop) - first)


def load_shared(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays that all toys of a file have in common. Raises StorageError as `load` does."""
    with _open(path) as file, reading(path):
        return _read_shared(file)


def read_attributes(path: str | Path) -> dict[str, Any]:
    """Attributes of a file or a part as text, numbers, booleans and lists.

    Raises StorageError as `load` does.
    """
    with _open(path) as file, reading(path):
        return _plain(file)


def read_validation(path: str | Path) -> dict[str, np.ndarray]:
    """Arrays of the validation, empty if there was none.

    Raises StorageError as `load` does.
    """
    with _open(path) as file, reading(path):
        return {name: dataset[...] for name, dataset in file.get("validation", {}).items()}


# --- files of other programs -------------------------------------------------------------------------------


def dataset_names(path: str | Path) -> list[str]:
    """Full names, without the leading slash, of all one-dimensional arrays of real numbers in any HDF5 file.

    Raises
    ------
    StorageError
        If the file is missing, damaged or none of HDF5.
    """
    names: list[str] = []

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.ndim == 1 and item.dtype.kind in "fiu":
            names.append(name)

    with _open_any(path) as file, reading(path, _ANOTHER):
        file.visititems(visit)
    return names


def read_dataset(path: str | Path, name: str) -> np.ndarray:
    """One of the arrays that `dataset_names` lists.

    Raises
    ------
    StorageError
        As `dataset_names`, or if there is no array of that name.
    """
    with _open_any(path) as file, reading(path, _ANOTHER):
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise StorageError(f"{path} has no dataset {name!r}")
        return dataset[...]


def _open_any(path: str | Path) -> h5py.File:
    with reading(path, _ANOTHER):
        refuse_directory(Path(path))
        return h5py.File(path, "r")


# --- HDF5 --------------------------------------------------------------------------------------------------


def _range(first: int, stop: int) -> dict[str, int]:
    return {"format_version": FORMAT_VERSION, "first": first, "stop": stop}


def _datasets(file: h5py.File) -> dict[str, h5py.Dataset]:
    """Datasets with one entry per toy."""
    return {f"{group}/{name}": dataset for group in ("toys", "results") for name, dataset in _walk(file[group])}


def _walk(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets in a group and the groups in it, by name."""
    for name, item in group.items():
        if isinstance(item, h5py.Group):
            yield from ((f"{name}/{inner}", dataset) for inner, dataset in _walk(item))
        else:
            yield name, item


def _read_shared(file: h5py.File) -> dict[str, np.ndarray]:
    return {name: dataset[...] for name, dataset in _walk(file["shared"])} if "shared" in file else {}


def _is_ragged(names: Container[str], name: str) -> bool:
    """Whether dataset `name` of a file, or of the names of its datasets, holds what belongs to ragged events."""
    in_toys = name.startswith("toys/") and name.rpartition("/")[2] in _RAGGED
    return in_toys and _offsets_of(name) in names


def _is_offsets(name: str) -> bool:
    return name.startswith("toys/") and name.endswith("/offsets")


def _offsets_of(name: str) -> str:
    return "".join((*name.rpartition("/")[:2], "offsets"))


def _values_of(name: str) -> str:
    return "".join((*name.rpartition("/")[:2], "values"))


def _n_toys(file: h5py.File) -> set[int]:
    """Numbers of toys according to each dataset: a single one, if all is well."""
    return {len(dataset) - _is_offsets(name) for name, dataset in _datasets(file).items() if not _is_ragged(file, name)}


def _per_block(n_bytes: int, shape: tuple[int, ...], dtype: np.dtype, axis: int) -> int:
    """How many entries of an axis, at least one, fit into `n_bytes`."""
    return max(1, n_bytes // max(1, dtype.itemsize * math.prod(shape[:axis] + shape[axis + 1 :])))


def _create(group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, *, axis: int) -> h5py.Dataset:
    if 0 in shape:
        # HDF5 has no chunks of nothing
        return group.create_dataset(name, shape, dtype)
    n = min(shape[axis], _per_block(_CHUNK_BYTES, shape, dtype, axis))
    chunks = (*shape[:axis], n, *shape[axis + 1 :])
    return group.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True)


def _write_array(group: h5py.Group, name: str, array: np.ndarray, *, axis: int = 0) -> None:
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers or booleans, got {array.dtype}")
    dtype = np.dtype(np.float64) if array.dtype.kind == "f" else array.dtype
    _create(group, name, array.shape, dtype, axis=axis)[...] = array


def _write_attributes(group: h5py.Group, attributes: Mapping[str, Any]) -> None:
    for name, value in attributes.items():
        try:
            array = np.asarray(value)
            if array.dtype.kind == "U":
                # of fixed length: HDF5 keeps other text without a checksum, and a flipped bit there can hang it
                array = np.char.encode(array, "utf-8")
                array = array.astype(h5py.string_dtype("utf-8", max(1, array.dtype.itemsize)))
            group.attrs[name] = array
        except (TypeError, ValueError):
            raise TypeError(
                f"attribute {name!r} must be text, a number, a boolean or an array of these, got {value!r}"
            ) from None


def _plain(group: h5py.Group) -> dict[str, Any]:
    """Attributes as Python's own text, numbers and lists."""
    attributes = {}
    for name, value in group.attrs.items():
        array = np.asarray(value)
        attributes[name] = (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).tolist()
    return attributes


def _open(path: str | Path) -> h5py.File:
    """The file, opened for reading, if it is one of ours."""
    path = Path(path)
    with reading(path):
        refuse_directory(path)
        file = h5py.File(path, "r")
        # attrs.get would take a damaged attribute for a missing one
        ours = "format_version" in file.attrs
        version = file.attrs["format_version"] if ours else 0
    if ours and isinstance(version, np.integer) and version <= FORMAT_VERSION:
        return file
    file.close()
    if not ours:
        raise StorageError(f"{path} is an HDF5 file without toys: name a file that run_toys.py wrote")
    raise StorageError(
        f"{path} has format version {version}, but this program reads versions up to {FORMAT_VERSION}: "
        "install a newer one"
    )


@contextlib.contextmanager
def _new_file(path: Path, aside: Path | None = None) -> Iterator[tuple[h5py.File, Disk]]:
    """A file that appears under `path` complete or not at all; meanwhile it lies in `aside`."""
    with (
        new_file(path, aside=aside) as disk,
        h5py.File(disk, "w", libver=_LIBVER, rdcc_nbytes=_CACHE_BYTES) as file,
    ):
        yield file, disk
