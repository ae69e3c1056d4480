"""Datasets: those of other programs, and chunks that are written as HDF5 writes them."""

import h5py
import numpy as np
import pytest

from tests.toys.stored_files import assert_clear, make_result
from toys import hdf5, storage
from toys.files import StorageError


@pytest.fixture
def foreign(tmp_path):
    """A file as another program would write it."""
    path = tmp_path / "foreign.h5"
    with h5py.File(path, "w") as file:
        file["mass"] = np.array([5.0, 5.5])
        file["tree/deep/time"] = np.array([1, 2, 3], np.int16)
        file["tree/single"] = np.array([1.5], np.float32)
        file["matrix"] = np.ones((2, 2))
        file["number"] = 3.0
        file["text"] = ["a", "b"]
        file["flags"] = np.array([True])
        file["table"] = np.zeros(2, [("x", "f8")])
        file["nothing"] = h5py.Empty("f8")
    return path


def test_datasets_of_another_program(foreign):
    assert storage.dataset_names(foreign) == ["mass", "tree/deep/time", "tree/single"]
    np.testing.assert_array_equal(storage.read_dataset(foreign, "mass"), [5.0, 5.5])
    np.testing.assert_array_equal(storage.read_dataset(foreign, "tree/deep/time"), [1, 2, 3])
    for name in ("time", "tree", "tree/deep/energy"):
        with pytest.raises(StorageError, match=f"has no dataset '{name}'"):
            storage.read_dataset(foreign, name)


def test_datasets_of_our_own_file(joined):
    assert {"toys/values", "toys/offsets", "results/fval"} <= set(storage.dataset_names(joined))
    np.testing.assert_array_equal(storage.read_dataset(joined, "results/fval"), make_result().fval)


@pytest.mark.parametrize("read", [storage.dataset_names, lambda path: storage.read_dataset(path, "mass")])
def test_no_datasets(tmp_path, foreign, read):
    def check(path, words):
        with pytest.raises(StorageError, match=words) as raised:
            read(path)
        assert_clear(raised, path)
        # these are data, not results of ours
        assert "--overwrite" not in str(raised.value)

    check(tmp_path / "missing.h5", "does not exist: check the path")
    check(tmp_path, "is a directory")
    (tmp_path / "text.h5").write_text("mass,width\n1,2\n" * 1000)
    check(tmp_path / "text.h5", "not an HDF5 file: name another file, or restore a copy")
    (tmp_path / "truncated.h5").write_bytes(foreign.read_bytes()[:-100])
    check(tmp_path / "truncated.h5", "is truncated")


def test_damaged_dataset_of_another_program(tmp_path):
    path = tmp_path / "foreign.h5"
    mass = np.random.default_rng(4).random(100)
    with h5py.File(path, "w") as file:
        file.create_dataset("mass", data=mass, chunks=(100,), fletcher32=True)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(mass.tobytes())] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(StorageError, match="is damaged: name another file, or restore a copy"):
        storage.read_dataset(path, "mass")


SHAPES = [((100,), 0), ((7, 3), 0), ((2, 100), 1), ((2, 101, 3), 1), ((1,), 0), ((12,), 0)]


@pytest.mark.parametrize("dtype", [np.float64, np.int64, bool, np.uint8, np.uint64])
@pytest.mark.parametrize("shape, axis", SHAPES)
@pytest.mark.parametrize("growing", [False, True])
def test_chunks_are_those_that_hdf5_writes(path, monkeypatch, shape, axis, dtype, growing):
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 11 * np.dtype(dtype).itemsize)
    monkeypatch.setattr(hdf5, "STAGED_BYTES", 300)
    array = np.random.default_rng(1).integers(0, 200, shape).astype(dtype)
    with hdf5.new_hdf5(path) as (file, _):
        column = hdf5.create(file, "ours", shape, array.dtype, axis=axis, growing=growing)
        for piece in np.array_split(array, [0, 1, 4, 30, 33], axis=axis):
            column.append(piece)
        column.close()
        options = {"chunks": column.dataset.chunks, "maxshape": column.dataset.maxshape, "fletcher32": True}
        file.create_dataset("theirs", data=array, **options)
    with h5py.File(path) as file:
        ours, theirs = file["ours"], file["theirs"]
        np.testing.assert_array_equal(ours[...], array)
        assert ours.dtype == theirs.dtype and ours.fletcher32
        assert ours.id.get_num_chunks() == theirs.id.get_num_chunks()
        for k in range(theirs.id.get_num_chunks()):
            offset = theirs.id.get_chunk_info(k).chunk_offset
            assert ours.id.read_direct_chunk(offset) == theirs.id.read_direct_chunk(offset)


def test_an_array_that_cannot_be_reached_is_noticed(joined):
    with h5py.File(joined, "r+") as file:
        file["toys/weights"] = h5py.SoftLink("/nowhere")
    with pytest.raises(StorageError, match="is damaged"):
        storage.load_toys(joined)
