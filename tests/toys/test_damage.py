"""Whatever is damaged in a file is noticed, and named."""

import os

import h5py
import numpy as np
import pytest

from engine.minos import MinosResult
from engine.result import FitResult
from tests.toys.stored_files import (
    ATTRIBUTES,
    BOUNDS,
    N_TOYS,
    SHARED,
    assert_clear,
    assert_equal_results,
    assert_equal_toys,
    make_result,
    make_toys,
    write_parts,
)
from toys import storage
from toys.files import StorageError
from toys.parts import Fitted


def test_flipped_bits_never_give_other_numbers(path):
    toys, result = make_toys("sum"), make_result()
    part = storage.write_part(path, 0, toys, result, {}, SHARED)
    whole = part.read_bytes()
    rng = np.random.default_rng(3)
    n_noticed = 0
    for position in rng.integers(0, len(whole), 300):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        part.write_bytes(damaged)
        try:
            read_result, read_toys, read_shared = storage.load(part), storage.load_toys(part), storage.load_shared(part)
        except StorageError as error:
            assert str(part) in str(error) and "without toys" not in str(error)
            n_noticed += 1
        else:
            assert_equal_results(read_result, result)
            assert_equal_toys(read_toys, toys)
            assert_equal_toys(read_shared, SHARED)
    assert n_noticed > 30


def wiped(path, name, value=0):
    """Overwrite the first chunk of an array, and HDF5's own checksum of it, as a dying disk does."""
    with h5py.File(path) as file:
        chunk = file[name].id.get_chunk_info(0)
    with path.open("r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(bytes([value]) * chunk.size)


READ_BY = {
    "toys/values": (storage.load_toys, "the data of toy 1 in it"),
    "toys/offsets": (storage.load_toys, ""),
    "toys/measured": (storage.load_toys, "the data of toy 0 in it"),
    "toys/checksum": (storage.load_toys, "the data of toy 0 in it"),
    "results/values": (storage.load, "the fit of toy 0 in it"),
    "results/covariance": (storage.load, "the fit of toy 0 in it"),
    "results/status": (storage.load, "the fit of toy . in it"),
    "results/checksum": (storage.load, "the fit of toy 0 in it"),
    "results/minos/lower": (storage.load_minos, "the interval of toy 0 in it"),
    "observed/covariance": (storage.load_observed, "the fit of the observed data in it"),
    "observed/minos/upper": (storage.load_observed_minos, "the fit of the observed data in it"),
    "shared/part3/x": (storage.load_shared, "shared in it"),
    "validation/fval": (storage.read_validation, "validation in it"),
}


@pytest.fixture
def full(path):
    """A complete file with everything in it."""
    result = make_result()
    flags = dict.fromkeys(("valid", "at_lower_limit", "at_upper_limit", "new_minimum"), result.at_limit)
    rows = np.arange(22.0).reshape(N_TOYS, 2) + 1.0
    minos = MinosResult(result.names, -rows, rows, **flags, nfev=rows.astype(np.int64), result=result)
    storage.write_part(path, 0, make_toys("ragged"), result, ATTRIBUTES, SHARED, minos)
    flags = {name: array[:1] for name, array in flags.items()}
    one = MinosResult(result.names, -rows[:1], rows[:1], **flags, nfev=np.ones((1, 2), np.int64), result=result[:1])
    observed = Fitted(result[:1], one)
    storage.join(path, ATTRIBUTES, N_TOYS, {"fval": np.array([1.0, 2.0])}, observed=observed)
    return path


@pytest.mark.parametrize("name", READ_BY)
def test_block_that_the_disk_left_empty_is_noticed(full, name):
    """The fletcher32 sum of zeros is zero: HDF5 reads such a block without an error."""
    read, words = READ_BY[name]
    read(full)
    wiped(full, name)
    with h5py.File(full) as file:
        assert not file[name][...].any()
    with pytest.raises(StorageError, match=f"toys.h5 is damaged.*{words}: name another file, restore a copy") as raised:
        read(full)
    assert_clear(raised, full)


@pytest.mark.parametrize("name", ["toys/measured", "results/fval", "results/minos/upper"])
def test_chunk_that_was_never_written_is_noticed(full, name):
    """HDF5 reads zeros where there is no chunk."""
    with h5py.File(full, "r+") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=shape, fletcher32=True)
    with pytest.raises(StorageError, match=r"is damaged"):
        {"toys": storage.load_toys, "results": storage.load_minos}[name.split("/")[0]](full)


def test_rows_that_are_missing_are_noticed(full):
    with h5py.File(full, "r+") as file:
        for group in ("toys", "results", "results/minos"):
            for name, array in list(file[group].items()):
                if isinstance(array, h5py.Dataset) and name != "values":
                    kept = array[:-1]
                    del file[group][name]
                    file[group][name] = kept
    with pytest.raises(StorageError, match="is damaged"):
        storage.load_toys(full)


def test_damage_is_noticed_when_parts_are_joined(path):
    toys, result = make_toys("ragged"), make_result()
    write_parts(path, toys, result)
    part = storage.complete_parts(path)[1][2]
    wiped(part, "results/fval", 0)
    with pytest.raises(
        StorageError, match="is damaged, the fit of toy 4 in it: delete it, then continue with"
    ) as raised:
        storage.join(path, {}, N_TOYS)
    assert_clear(raised, part)
    assert not path.exists() and len(storage.complete_parts(path)) == 3


def test_some_toys(full):
    toys = make_toys("ragged")
    for row, some in zip([9, 2, 3], storage.load_some(full, [9, 2, 3]), strict=True):
        assert_equal_toys(some, {name: array[row : row + 1] for name, array in toys.items()})
    with pytest.raises(ValueError, match="toys must be in 0 <= first <= stop <= 11, got 2 and 12"):
        storage.load_some(full, [2, 11])
    wiped(full, "toys/measured")
    with pytest.raises(StorageError, match="the data of toy 3 in it"):
        storage.load_some(full, [3, 2])


def test_damage_elsewhere_does_not_hide_a_toy(full):
    """Only what is read is compared."""
    wiped(full, "results/values")
    assert_equal_toys(storage.load_toys(full), make_toys("ragged"))


@pytest.mark.parametrize("first, stop", [(0, None), (3, 9), (9, 11), (5, 5)])
def test_slice_of_fits(full, monkeypatch, first, stop):
    assert_equal_results(storage.load(full, first, stop), make_result()[first:stop])
    whole, some = storage.load_minos(full), storage.load_minos(full, first, stop)
    # also where no fit is valid
    assert some.names == whole.names
    np.testing.assert_array_equal(some.lower, whole.lower[first:stop])
    monkeypatch.setattr(storage, "BLOCK_TOYS", 4)
    blocks = list(storage.load_blocks(full, minos=True))
    assert [len(result) for result, _ in blocks] == [4, 4, 3]
    assert_equal_results(FitResult.concatenate([result for result, _ in blocks]), make_result())


def test_damaged_part_is_named_and_can_be_made_again(path):
    toys, result = make_toys("counts"), make_result()
    toys["counts"] = toys["counts"].astype(float)
    write_parts(path, toys, result)
    part = storage.complete_parts(path)[1][2]
    damaged = bytearray(part.read_bytes())
    damaged[damaged.index(toys["counts"][6].tobytes())] ^= 1
    part.write_bytes(damaged)
    with pytest.raises(StorageError, match="is damaged: delete it, then continue with --resume") as raised:
        storage.join(path, {}, N_TOYS)
    assert_clear(raised, part)
    assert not path.exists() and len(storage.complete_parts(path)) == 3
    part.unlink()
    write_parts(path, toys, result, [BOUNDS[1]])
    storage.join(path, {}, N_TOYS)
    assert_equal_toys(storage.load_toys(path), toys)


@pytest.mark.parametrize("length", [0, 7, 48, 1000, -1])
def test_truncated_part_is_named(path, length):
    write_parts(path, make_toys("ragged"), make_result())
    part = storage.complete_parts(path)[1][2]
    part.write_bytes(part.read_bytes()[:length])
    with pytest.raises(StorageError, match="delete it, then continue with --resume") as raised:
        storage.complete_parts(path)
    assert_clear(raised, part)


READERS = [
    storage.load,
    storage.load_observed_minos,
    storage.load_toys,
    storage.read_attributes,
    storage.read_validation,
]


@pytest.mark.parametrize("read", READERS)
def test_files_that_are_none_of_ours(tmp_path, joined, read):
    def check(path, words):
        with pytest.raises(StorageError, match=words) as raised:
            read(path)
        assert_clear(raised, path)

    check(tmp_path / "missing.h5", "does not exist: check the path")
    with pytest.raises(StorageError, match=r"none, the directory of toys.h5, does not exist: create it"):
        read(tmp_path / "none" / "toys.h5")
    check(tmp_path, "is a directory")
    check(joined / "toys.h5", "should be its directory is a file")
    check(tmp_path / ("x" * 300), "too long")
    (tmp_path / "empty.h5").touch()
    check(tmp_path / "empty.h5", "is empty")
    (tmp_path / "text.h5").write_text("mass,width\n1,2\n" * 1000)
    check(tmp_path / "text.h5", "not an HDF5 file")
    (tmp_path / "truncated.h5").write_bytes(joined.read_bytes()[:-100])
    check(tmp_path / "truncated.h5", "is truncated")
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["toys/y"] = np.ones(3)
    check(tmp_path / "foreign.h5", "is an HDF5 file without toys")
    for version in (storage.FORMAT_VERSION + 1, "2.0"):
        with h5py.File(tmp_path / "newer.h5", "w") as file:
            file.attrs["format_version"] = version
        check(tmp_path / "newer.h5", f"has format version {version}, .*: install a newer one")


def test_file_without_results_is_damaged(joined):
    with h5py.File(joined, "r+") as file:
        del file["results"]
    for read in (storage.load, storage.load_toys):
        with pytest.raises(StorageError, match="is damaged") as raised:
            read(joined)
        assert_clear(raised, joined)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads whatever the permissions say")
def test_permissions(joined):
    joined.chmod(0)
    with pytest.raises(StorageError, match="permission denied"):
        storage.load(joined)
