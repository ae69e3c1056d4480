"""The checksum of HDF5's filter "fletcher32", at the speed of the memory.

HDF5 sums big-endian words of 16 bits, and these sums, modulo 65535. As 2^16 = 1 modulo 65535, swapping the bytes of a
word is a multiplication by 256: words are summed as they lie in memory, and multiplied at the end. The sum of the sums
is a sum of words with falling weights, which is taken block by block in vector registers.

References
----------
Fletcher, An arithmetic checksum for serial transmissions, IEEE Trans. Commun. 30 (1982) 247-252;
`H5_checksum_fletcher32` of HDF5 1.14.
"""

import numpy as np
from numba import njit, uint32, uint64

__all__ = ["fletcher32"]

_BLOCK = 256  # words: their weighted sum, at most 65535 * 256 * 255 / 2, fits into 32 bits
_SWAP = np.uint64(256)


@njit(nogil=True, cache=True)
def fletcher32(rows: np.ndarray, n_words: int) -> np.ndarray:
    """The checksum of the first words of each row.

    Parameters
    ----------
    rows : (n_rows, n_words or more) uint16, C-contiguous
        Words as a little-endian machine has them in memory.
    n_words : int

    Returns
    -------
    (n_rows,) uint32
    """
    sums = np.empty(len(rows), np.uint32)
    for i in range(len(rows)):
        total, weighted = uint64(0), uint64(0)
        for first in range(0, n_words, _BLOCK):
            block = rows[i, first : min(first + _BLOCK, n_words)]
            # numba gives a sum of 32 bits 64 of them, and a vector register holds half as many of these
            plain, rising = uint32(0), uint32(0)
            for j in range(len(block)):
                word = uint32(block[j])
                plain = uint32(plain + word)
                rising = uint32(rising + uint32(word * uint32(j)))
            # each word of the block adds the total of what is before it, and itself as often as words are left
            weighted = _folded(weighted + uint64(len(block)) * (total + plain) - rising)
            total = _folded(total + plain)
        sums[i] = uint32(_folded(_SWAP * weighted)) << uint32(16) | uint32(_folded(_SWAP * total))
    return sums


@njit
def _folded(x):  # type: ignore[no-untyped-def]
    """A number below 2^48 modulo 65535, below 2^17; where it is below 2^32, below 2^16; 0 of 0 alone, as in HDF5."""
    x = (x & uint64(0xFFFF)) + (x >> uint64(16))
    return (x & uint64(0xFFFF)) + (x >> uint64(16))
