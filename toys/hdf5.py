"""The one door to HDF5: arrays and attributes are written so that whatever is damaged is noticed when it is read.

Real numbers are float64, integers and booleans keep their dtype. Every array carries a fletcher32 checksum and lies in
chunks of about 256 KiB. Nothing is compressed: random mantissas do not get smaller. Text is UTF-8 of fixed length,
which h5py returns as bytes.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kernels.fletcher import fletcher32
from toys.files import Disk, StorageError, new_file, reading, refuse_directory

__all__ = [
    "Column",
    "Dataset",
    "File",
    "Group",
    "create",
    "dataset_names",
    "new_hdf5",
    "open_hdf5",
    "per_block",
    "plain",
    "read_dataset",
    "refuse_hollow",
    "stored_dtype",
    "walk",
    "write_array",
    "write_attributes",
]

File, Group, Dataset = h5py.File, h5py.Group, h5py.Dataset

# unlike the oldest format, this one has checksums in its headers too; HDF5 1.10 (2016) and later read it
LIBVER = ("v110", "v110")
# what fits into a core's cache is copied, summed and written fastest
CHUNK_BYTES = 2**18
# chunks are copied and summed outside of HDF5, which lets in one thread at a time: so many bytes together
STAGED_BYTES = 2**22
CHECKSUM_BYTES = 4
# deflate makes at most so little of zeros
MOST_COMPRESSED = 1100
# what to do about a damaged file that is none of ours
ANOTHER = "name another file, or restore a copy"


# --- writing -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_hdf5(path: Path, aside: Path | None = None) -> Iterator[tuple[h5py.File, Disk]]:
    """A file that appears under `path` complete or not at all; meanwhile it lies in `aside`."""
    with new_file(path, aside=aside) as disk, h5py.File(disk, "w", libver=LIBVER) as file:
        yield file, disk


def per_block(n_bytes: int, shape: tuple[int, ...], dtype: np.dtype, axis: int) -> int:
    """How many entries of an axis, at least one, fit into `n_bytes`."""
    return max(1, n_bytes // max(1, dtype.itemsize * math.prod(shape[:axis] + shape[axis + 1 :])))


def create(
    group: h5py.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    *,
    axis: int = 0,
    growing: bool = False,
) -> Column:
    """An array that is cut into chunks along an axis; of one that grows along it, `shape` is what is expected."""
    if 0 in shape and not growing:
        # HDF5 has no chunks of nothing
        return Column(group.create_dataset(name, shape, dtype), axis)
    chunks = (*shape[:axis], _per_chunk(shape, dtype, axis), *shape[axis + 1 :])
    begin, most = ((*shape[:axis], length, *shape[axis + 1 :]) for length in (0, None))
    if growing:
        made = group.create_dataset(name, begin, dtype, maxshape=most, chunks=chunks, fletcher32=True)
    else:
        made = group.create_dataset(name, shape, dtype, chunks=chunks, fletcher32=True)
    return Column(made, axis)


def _per_chunk(shape: tuple[int, ...], dtype: np.dtype, axis: int) -> int:
    """Entries of an axis in a chunk, such that the last chunk is about as full as the others."""
    most = per_block(CHUNK_BYTES, shape, dtype, axis)
    n_chunks = -(-shape[axis] // most)
    return -(-shape[axis] // n_chunks) if n_chunks else most


class Column:
    """A new dataset that is written along an axis, from its beginning on; until `close`, its last chunk is missing.

    Attributes
    ----------
    dataset : Dataset
    axis : int
    length : int
        Entries that were appended.
    rest : (n, ...) array
        Those that do not fill a chunk yet.
    """

    def __init__(self, dataset: h5py.Dataset, axis: int) -> None:
        self.dataset, self.axis, self.length = dataset, axis, 0
        self.rest = np.empty((0, *dataset.shape[:axis], *dataset.shape[axis + 1 :]), dataset.dtype)

    def append(self, array: np.ndarray) -> None:
        entries = np.moveaxis(array, self.axis, 0)
        begin, self.length = self.length - len(self.rest), self.length + len(entries)
        if self.length > self.dataset.shape[self.axis]:
            self.dataset.resize(self.length, self.axis)
        if not entries.size:
            return
        per_chunk = self.dataset.chunks[self.axis]
        missing = per_chunk - len(self.rest)
        self.rest = np.concatenate([self.rest, entries[:missing]])
        if len(self.rest) == per_chunk:
            self._write(begin, self.rest)
            entries = entries[missing:]
            n_whole = len(entries) // per_chunk * per_chunk
            self._write(begin + per_chunk, entries[:n_whole])
            self.rest = entries[n_whole:].copy()

    def close(self) -> None:
        """Write the last chunk, in which what is missing is zero; no more can be appended."""
        if self.rest.size:
            last = np.zeros((self.dataset.chunks[self.axis], *self.rest.shape[1:]), self.rest.dtype)
            last[: len(self.rest)] = self.rest
            self._write(self.length - len(self.rest), last)

    def _write(self, first: int, entries: np.ndarray) -> None:
        """Write whole chunks, which begin with entry `first`."""
        chunk, dtype, per_chunk = self.dataset.chunks, self.dataset.dtype, self.dataset.chunks[self.axis]
        n_bytes = dtype.itemsize * math.prod(chunk)
        whole = n_bytes + CHECKSUM_BYTES
        pitch = -(-whole // 8) * 8  # so that items are where numpy wants them
        at_once = min(len(entries) // per_chunk, max(1, STAGED_BYTES // pitch))
        memory = np.empty((at_once, pitch), np.uint8)
        offset = [0] * len(chunk)
        for at in range(0, len(entries), max(at_once, 1) * per_chunk):
            block = entries[at : at + at_once * per_chunk]
            n_chunks = len(block) // per_chunk
            staged = memory[:n_chunks]
            strides = (pitch, *np.empty(chunk, dtype).strides)
            chunks = np.moveaxis(np.ndarray((n_chunks, *chunk), dtype, staged, strides=strides), 1 + self.axis, 1)
            chunks[...] = block.reshape(n_chunks, per_chunk, *block.shape[1:])
            staged[:, n_bytes:] = 0  # an odd number of bytes is summed with a zero behind it
            sums = fletcher32(staged.view(np.uint16), -(-n_bytes // 2)).astype("<u4")
            staged[:, n_bytes:whole] = sums.view(np.uint8).reshape(n_chunks, CHECKSUM_BYTES)
            for k in range(n_chunks):
                offset[self.axis] = first + at + k * per_chunk
                self.dataset.id.write_direct_chunk(tuple(offset), staged[k, :whole])


def stored_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype of an array in a file."""
    return np.dtype(np.float64) if dtype.kind == "f" else dtype


def write_array(group: h5py.Group, name: str, array: np.ndarray, *, axis: int = 0) -> None:
    """Write an array; TypeError if it does not hold real numbers or booleans."""
    array = np.asarray(array)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name} must hold real numbers or booleans, got {array.dtype}")
    column = create(group, name, array.shape, stored_dtype(array.dtype), axis=axis)
    column.append(array)
    column.close()


def write_attributes(group: h5py.Group, attributes: Mapping[str, Any]) -> None:
    """Write text, numbers, booleans, and arrays and lists of them; TypeError for anything else."""
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


# --- reading -----------------------------------------------------------------------------------------------


def open_hdf5(path: str | Path, remedy: str | None = ANOTHER) -> h5py.File:
    """Any HDF5 file, opened for reading; StorageError if it is missing, damaged or none of HDF5."""
    with reading(path, remedy):
        refuse_directory(Path(path))
        return h5py.File(path, "r")


def plain(group: h5py.Group) -> dict[str, Any]:
    """Attributes as Python's own text, numbers and lists."""
    attributes = {}
    for name, value in group.attrs.items():
        array = np.asarray(value)
        attributes[name] = (np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).tolist()
    return attributes


def walk(group: h5py.Group, depth: int = 1) -> Iterator[tuple[str, h5py.Dataset]]:
    """All datasets in a group and the groups in it, by name; ValueError if it is none, or deeper, as one in itself."""
    if not isinstance(group, h5py.Group) or depth < 0:
        raise ValueError(f"{group.name} is no group of arrays")
    for name in group:
        item = group[name]  # of one that is damaged, `items` gives None
        if isinstance(item, h5py.Group):
            yield from ((f"{name}/{inner}", dataset) for inner, dataset in walk(item, depth - 1))
        else:
            yield name, item


def refuse_hollow(dataset: h5py.Dataset) -> None:
    """Raise ValueError for an array of which more is declared than the file holds: it would be read as zeros."""
    stored = dataset.id.get_storage_size()
    most = stored if dataset.compression is None else MOST_COMPRESSED * stored
    if dataset.external or dataset.is_virtual or dataset.size * dataset.dtype.itemsize > most:
        raise ValueError(f"{dataset.name} is not in the file")


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

    with open_hdf5(path) as file, reading(path, ANOTHER):
        file.visititems(visit)
    return names


def read_dataset(path: str | Path, name: str) -> np.ndarray:
    """One of the arrays that `dataset_names` lists.

    Raises
    ------
    StorageError
        As `dataset_names`, or if there is no array of that name.
    """
    with open_hdf5(path) as file, reading(path, ANOTHER):
        dataset = file.get(name)
        if not isinstance(dataset, h5py.Dataset):
            raise StorageError(f"{path} has no dataset {name!r}")
        refuse_hollow(dataset)
        return dataset[...]
