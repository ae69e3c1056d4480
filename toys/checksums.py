"""One 64-bit checksum for each toy, over the bytes of all its arrays.

HDF5's own checksum of a block of zeros is zero, so that a block which a dying disk left empty passes it, and a block
that was never written is read as zeros: neither gives the checksum of a toy.
"""

from collections.abc import Mapping
from zlib import adler32, crc32

import numpy as np

from engine.data import Ragged

__all__ = ["checksums", "of_arrays"]


def checksums(arrays: Mapping[str, np.ndarray | Ragged], n_toys: int) -> np.ndarray:
    """The checksums of some toys: CRC-32 in the upper half, Adler-32 in the lower, both those of zlib (RFC 1950).

    The bytes of a toy are those of its arrays, in the order of their sorted names, each in C order as the file holds
    it: real numbers as little-endian float64, integers and booleans as they are; of ragged arrays its own events.

    Parameters
    ----------
    arrays : dict name -> (n_toys, ...) array or Ragged
    n_toys : int

    Returns
    -------
    (n_toys,) uint64
    """
    names = sorted(arrays)
    fixed = [_rows(array) for name in names if not isinstance(array := arrays[name], Ragged)]
    if len(fixed) == len(names):
        rows = np.concatenate(fixed, axis=1) if fixed else np.zeros((n_toys, 0), np.uint8)
        sums = (crc32(row) << 32 | adler32(row) for row in rows)
    else:
        sums = (_of_one([_stored(np.asarray(arrays[name][k])) for name in names]) for k in range(n_toys))
    return np.fromiter(sums, np.uint64, n_toys)


def of_arrays(arrays: Mapping[str, np.ndarray]) -> int:
    """The checksum of whole arrays, as if they were one toy."""
    return _of_one([_stored(arrays[name]) for name in sorted(arrays)])


def _of_one(arrays: list[np.ndarray]) -> int:
    crc, adler = 0, 1
    for array in arrays:
        data = array.reshape(-1).view(np.uint8)
        crc, adler = crc32(data, crc), adler32(data, adler)
    return crc << 32 | adler


def _stored(array: np.ndarray) -> np.ndarray:
    """An array as the file holds it."""
    return np.ascontiguousarray(array, dtype="<f8" if array.dtype.kind == "f" else array.dtype)


def _rows(array: np.ndarray) -> np.ndarray:
    """The bytes of each row, (n_toys, n_bytes)."""
    stored = _stored(array)
    return stored.view(np.uint8).reshape(len(array), -1) if stored.size else np.zeros((len(array), 0), np.uint8)
