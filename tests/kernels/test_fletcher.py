"""The checksum against the one that HDF5 computes itself."""

import io

import h5py
import numpy as np
import pytest

from kernels.fletcher import fletcher32

# around one and two blocks of ours, and of HDF5's own 360 words
N_WORDS = [1, 2, 255, 256, 257, 359, 361, 513, 720, 131072, 300_000]


def of_hdf5(words: np.ndarray) -> int:
    with h5py.File(io.BytesIO(), "w") as file:
        dataset = file.create_dataset("words", words.shape, words.dtype, chunks=words.shape, fletcher32=True)
        dataset[...] = words
        file.flush()
        return int(np.frombuffer(dataset.id.read_direct_chunk((0,))[1][-4:], "<u4")[0])


@pytest.mark.parametrize("n", N_WORDS)
def test_random_words_zeros_and_the_largest(n):
    rng = np.random.default_rng(n)
    rows = np.stack(
        [
            rng.integers(0, 2**16, n),
            np.zeros(n, np.int64),
            np.full(n, 2**16 - 1),
            np.where(np.arange(n) == n // 2, 0x0100, 0),
        ]
    ).astype(np.uint16)
    np.testing.assert_array_equal(fletcher32(rows, n), [of_hdf5(row) for row in rows])
    # of longer rows, their first words
    np.testing.assert_array_equal(fletcher32(np.hstack([rows, rows]), n), fletcher32(rows, n))


def test_sums_that_are_multiples_of_65535():
    rng = np.random.default_rng(3)
    for n in range(2, 40):
        words = rng.integers(0, 2**16, n)
        # as HDF5 sees them, big-endian
        words[-1] = -words[:-1].sum() % 65535
        assert words.sum() % 65535 == 0
        swapped = words.astype(np.uint16).byteswap()
        found = fletcher32(swapped[None], n)[0]
        assert found & 0xFFFF == 0xFFFF
        assert found == of_hdf5(swapped)
