"""What a file of ours holds, and how rows of its tables are read and verified.

    /            attributes: those of the study, and format_version, first, stop: the range of toys
    /toys        named arrays, one row per toy; events of ragged toys as values (and weights) with offsets
    /shared      named arrays that all toys have in common (optional)
    /results     the arrays of `FitResult`, one row per toy; attributes: names, errordef, backend, device
    /results/minos  lower, upper, valid, ... of all parameters, one row per toy (on request)
    /observed    the same as /results, with /observed/minos, of the data that were observed: one row (optional, never in
                 a part)
    /validation  named arrays, one row per refitted toy (optional, never in a part)

The names are those of `toys.packing`; what belongs to the costs of a sum lies in the groups part0, part1, ... of both.
The chunks of arrays hold whole toys where there is one row per toy; where the toys are ragged, a fixed number of
events, whichever toys they belong to. Of a run that does not keep its toys, /toys holds their checksums alone, and an
attribute `kept`.

/toys, /results, /observed and their /minos are tables: each has `checksum`, one number for each toy over its row of all
arrays of the table (`toys.checksums`), and whatever is read is compared with it. /shared and /validation have one for
all their arrays, as an attribute. A chunk that is damaged, zeroed or missing is an error that names its toy.

Files of version 1 hold toys of a single unbinned cost, those up to version 2 have no checksums of toys.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np

from engine.data import Ragged
from engine.result import FitResult
from toys import hdf5
from toys.checksums import checksums, of_arrays
from toys.files import StorageError, advice, reading
from toys.packing import Arrays

__all__ = [
    "CHECKSUM",
    "FORMAT_VERSION",
    "MINOS_ARRAYS",
    "NAME",
    "RAGGED",
    "RESULT_ARRAYS",
    "RESULT_ATTRIBUTES",
    "columns",
    "is_offsets",
    "is_ragged",
    "n_toys_of",
    "offsets_of",
    "open_file",
    "read_group",
    "read_rows",
    "refuse_foreign",
    "tables",
    "write_group",
    "write_table",
]

FORMAT_VERSION = 3

RESULT_ATTRIBUTES = ("names", "errordef", "backend", "device")
NOT_STORED = ("problem",)
MINOS_ARRAYS = ("lower", "upper", "valid", "at_lower_limit", "at_upper_limit", "new_minimum", "nfev")
RESULT_ARRAYS = [f.name for f in dataclasses.fields(FitResult) if f.name not in (*RESULT_ATTRIBUTES, *NOT_STORED)]
# the first format version with a checksum of each row
CHECKSUM_SINCE = 3
CHECKSUM = "checksum"
# ragged arrays, which belong to the offsets beside them
RAGGED = ("values", "weights")
NAME = re.compile(r"(part\d+/)?[A-Za-z_]\w*")


def open_file(path: str | Path) -> hdf5.File:
    """The file, opened for reading, if it is one of ours.

    Raises
    ------
    StorageError
        If there is no such file, it is none of ours, damaged, or written by a newer version.
    """
    path = Path(path)
    file = hdf5.open_hdf5(path, remedy=None)
    with reading(path):
        # attrs.get would take a damaged attribute for a missing one
        ours = "format_version" in file.attrs
        version = file.attrs["format_version"] if ours else 0
    if ours and isinstance(version, np.integer) and version <= FORMAT_VERSION:
        return file
    file.close()
    if not ours:
        raise StorageError(f"{path} is an HDF5 file without toys: name a file that run_toys.py wrote")
    told = " ".join(str(version).split())[:40]
    raise StorageError(
        f"{path} has format version {told}, but this program reads versions up to {FORMAT_VERSION}: install a newer one"
    )


def refuse_foreign(path: Path) -> None:
    """Raise StorageError if the file that is to be replaced, if there is one, is none of ours."""
    if not path.exists():
        return
    try:
        with hdf5.open_hdf5(path) as file, reading(path):
            ours = "format_version" in file.attrs
    except StorageError:
        ours = False
    if not ours:
        raise StorageError(
            f"{path} is no file of run_toys.py, or a damaged one, and is not replaced: move it, or name another output"
        )


# --- tables ------------------------------------------------------------------------------------------------


def tables(file: hdf5.File) -> list[str]:
    """The tables of a file, which have one row per toy."""
    # to ask an array for a name is to go through all that it declares
    for name in ("toys", "results"):
        if not isinstance(file[name], hdf5.Group):
            raise ValueError(f"{name} is no table")
    found = ["toys", "results", *(["results/minos"] if "minos" in file["results"] else [])]
    if not isinstance(file[found[-1]], hdf5.Group):
        raise ValueError(f"{found[-1]} is no table")
    return found


def columns(file: hdf5.File, table: str) -> dict[str, hdf5.Dataset]:
    """The arrays of a table, offsets included, by name."""
    items = hdf5.walk(file[table]) if table == "toys" else file[table].items()
    found = {name: item for name, item in items if isinstance(item, hdf5.Dataset)}
    for item in found.values():
        hdf5.refuse_hollow(item)
    return {name: item for name, item in found.items() if name != CHECKSUM}


def n_toys_of(file: hdf5.File) -> int:
    """The number of toys; ValueError if the arrays do not agree on it."""
    lengths = {len(file[table][CHECKSUM]) for table in tables(file) if CHECKSUM in file[table]}
    for table in tables(file):
        found = columns(file, table)
        lengths |= {len(array) - is_offsets(name) for name, array in found.items() if not is_ragged(found, name)}
    (n_toys,) = lengths
    return n_toys


def read_rows(file: hdf5.File, table: str, first: int, stop: int) -> Arrays:
    """Rows first to stop - 1 of a table, verified, as its arrays; what all rows share is not read.

    Raises
    ------
    StorageError
        If a row is not what was written.
    """
    found = columns(file, table)
    rows: dict[str, np.ndarray | Ragged] = {}
    for name, array in found.items():
        if is_ragged(found, name):
            offsets = found[offsets_of(name)][first : stop + 1]
            rows[name] = Ragged(array[..., offsets[0] : offsets[-1]], offsets - offsets[0])
        elif not is_offsets(name):
            rows[name] = array[first:stop]
    if CHECKSUM not in file[table] and file.attrs["format_version"] >= CHECKSUM_SINCE:
        raise ValueError(f"{table} has lost its checksums")
    if CHECKSUM in file[table] and "kept" not in file[table].attrs:
        damaged = np.flatnonzero(checksums(rows, stop - first) != file[table][CHECKSUM][first:stop])
        if len(damaged):
            path = Path(file.filename)
            if table.startswith("observed"):
                raise StorageError(f"{path} is damaged, the fit of the observed data in it: {advice(path)}")
            what = "fit" if table == "results" else "interval" if table == "results/minos" else "data"
            toy = int(file.attrs["first"]) + first + int(damaged[0])
            raise StorageError(f"{path} is damaged, the {what} of toy {toy} in it: {advice(path)}")
    return Arrays(rows, {})


def write_table(file: hdf5.File, table: str, arrays: Mapping[str, np.ndarray | Ragged], sums: np.ndarray) -> None:
    """Write a table with the checksums of its rows."""
    group = file.require_group(table)
    for name, array in arrays.items():
        if isinstance(array, Ragged):
            if offsets_of(name) not in group:
                hdf5.write_array(group, offsets_of(name), array.offsets)
            hdf5.write_array(group, name, array.values, axis=array.values.ndim - 1)
        else:
            hdf5.write_array(group, name, array)
    hdf5.write_array(group, CHECKSUM, sums)


# --- arrays without rows -----------------------------------------------------------------------------------


def write_group(file: hdf5.File, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays that are no table, with one checksum; without arrays, nothing."""
    for each, array in arrays.items():
        hdf5.write_array(file.require_group(name), each, array)
    if arrays:
        file[name].attrs[CHECKSUM] = np.uint64(of_arrays({key: np.asarray(array) for key, array in arrays.items()}))


def read_group(file: hdf5.File, name: str) -> dict[str, np.ndarray]:
    """The arrays of `write_group`, verified. Raises StorageError as `read_rows` does."""
    if name not in file:
        return {}
    datasets = dict(hdf5.walk(file[name]))
    for dataset in datasets.values():
        hdf5.refuse_hollow(dataset)
    arrays = {each: dataset[...] for each, dataset in datasets.items()}
    if CHECKSUM in file[name].attrs and file[name].attrs[CHECKSUM] != of_arrays(arrays):
        path = Path(file.filename)
        raise StorageError(f"{path} is damaged, {name} in it: {advice(path)}")
    return arrays


# --- names -------------------------------------------------------------------------------------------------


def is_ragged(names: Container[str], name: str) -> bool:
    """Whether `name`, one of the names of a table, holds what belongs to ragged events."""
    return name.rpartition("/")[2] in RAGGED and offsets_of(name) in names


def is_offsets(name: str) -> bool:
    return name.rpartition("/")[2] == "offsets"


def offsets_of(name: str) -> str:
    return "".join((*name.rpartition("/")[:2], "offsets"))
