"""Files: what goes in comes out, what is damaged is noticed, and what is killed can continue."""

import dataclasses
import errno
import os
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest

from engine.data import Ragged
from engine.minos import MinosResult
from engine.result import FitResult
from toys import hdf5, joining, layout, storage
from toys.files import StorageError, parts_directory

N_TOYS = 11
BOUNDS = [(0, 4), (4, 9), (9, 11)]
ATTRIBUTES = {
    "model": "line",
    "source": "def density(x):\n    return 1 / µ\n",
    "seed": 2**63 + 1,
    "errordef": 0.5,
    "extended": True,
    "parameters": ["slope", "n"],
    "truth": '{"slope": 0.5}',
    "start": np.array([0.5, np.nan, -0.0]),
    "comment": "",
    "long": "µ" * 100_000,
    "nothing": [],
}


def make_result(n_toys=N_TOYS, seed=0, **changed):
    """Random fits with every kind of number in them: NaN, infinity, all flags."""
    rng = np.random.default_rng(seed)
    arrays = {
        "values": rng.normal(size=(n_toys, 2)),
        "errors": rng.random((n_toys, 2)),
        "covariance": rng.random((n_toys, 2, 2)),
        "fval": rng.normal(size=n_toys),
        "edm": rng.random(n_toys),
        "valid": rng.random(n_toys) < 0.5,
        "status": rng.integers(0, 7, n_toys).astype(np.int8),
        "nfev": rng.integers(0, 2**40, n_toys),
        "at_limit": rng.random((n_toys, 2)) < 0.5,
        "has_posdef_covar": rng.random(n_toys) < 0.5,
        "rescued": rng.random(n_toys) < 0.5,
    }
    for name in ("values", "errors", "covariance", "fval", "edm"):
        arrays[name][1] = np.nan
    arrays["fval"][-1] = np.inf
    settings = {"names": ("slope", "n"), "errordef": 0.5, "backend": "numba", "device": "cpu"}
    return FitResult(**(arrays | settings | changed))


def make_ragged(lengths, d=None):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shape = offsets[-1] if d is None else (d, offsets[-1])
    return Ragged(np.random.default_rng(1).normal(size=shape), offsets)


def make_toys(kind, n_toys=N_TOYS):
    rng = np.random.default_rng(2)
    # the first toy, the last one, and all of the middle part are empty
    lengths = np.array([0, 3, 1, 6, 0, 0, 0, 0, 0, 7, 0])
    measured = rng.normal(size=(n_toys, 2))
    return {
        "ragged": lambda: {"values": make_ragged(lengths), "measured": measured},
        "two observables": lambda: {"values": make_ragged(lengths, d=2)},
        "empty": lambda: {"values": make_ragged(0 * lengths)},
        "counts": lambda: {"counts": rng.poisson(3.0, (n_toys, 20)), "measured": measured},
        "points": lambda: {"y": rng.normal(size=(n_toys, 6)), "measured": np.empty((n_toys, 0))},
        "values": lambda: {"values": rng.normal(size=(n_toys, 3, 2))},
        "weights": lambda: {"values": make_ragged(lengths), "weights": make_ragged(lengths)},
        "sum": lambda: {
            "part0/values": make_ragged(lengths),
            "part1/counts": rng.poisson(3.0, (n_toys, 20)),
            "part2/values": make_ragged(lengths[::-1] + 1, d=2),
            "part10/measured": measured,
        },
    }[kind]()


KINDS = ["ragged", "two observables", "empty", "counts", "points", "values", "weights", "sum"]
SHARED = {"part3/x": np.linspace(0.0, 1.0, 6), "part3/yerror": np.full(6, 2.0)}


def write_parts(path, toys, result, bounds=BOUNDS, attributes=ATTRIBUTES, shared=None):
    for first, stop in bounds:
        part = {name: array[first:stop] for name, array in toys.items()}
        storage.write_part(path, first, part, result[first:stop], attributes, shared)


def assert_equal_results(left, right):
    for field in dataclasses.fields(FitResult):
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
        assert np.asarray(mine).dtype == np.asarray(theirs).dtype


def assert_equal_toys(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert type(left[name]) is type(right[name])
        for mine, theirs in zip(left[name], right[name], strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape


def assert_clear(raised, path):
    """One sentence with the file and an advice, without HDF5's own words."""
    sentence = str(raised.value)
    assert str(path) in sentence and ": " in sentence and "\n" not in sentence
    assert "synchronously" not in sentence and "errno" not in sentence.lower()
    assert raised.value.__cause__ is None and (raised.value.__suppress_context__ or raised.value.__context__ is None)


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "toys.h5"


@pytest.fixture
def joined(path):
    """A complete file of ragged toys."""
    write_parts(path, make_toys("ragged"), make_result())
    storage.join(path, ATTRIBUTES, N_TOYS)
    return path


# --- what goes in comes out --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_joined_file_equals_what_was_written(path, kind):
    toys, result = make_toys(kind), make_result()
    # the order in which parts are finished does not matter
    write_parts(path, toys, result, [BOUNDS[2], BOUNDS[0], BOUNDS[1]])
    storage.join(path, ATTRIBUTES, N_TOYS)
    assert_equal_results(storage.load(path), result)
    assert_equal_toys(storage.load_toys(path), toys)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first, stop", [(0, 1), (3, 10), (4, 9), (10, 11), (5, 5), (11, 11), (2, None)])
def test_slice_of_toys(path, kind, first, stop):
    toys = make_toys(kind)
    write_parts(path, toys, make_result())
    storage.join(path, {}, N_TOYS)
    expected = {name: array[first:stop] for name, array in toys.items()}
    assert_equal_toys(storage.load_toys(path, first, stop), expected)


def test_arrays_of_all_toys_are_held_once(path):
    toys, result = make_toys("sum"), make_result()
    write_parts(path, toys, result, shared=SHARED)
    for each in (storage.complete_parts(path)[1][2], path):
        if each == path:
            storage.join(path, {}, N_TOYS)
        read = storage.load_shared(each)
        assert read.keys() == SHARED.keys()
        for name, array in SHARED.items():
            np.testing.assert_array_equal(read[name], array)
    with h5py.File(path) as file:
        assert file["shared/part3/x"].shape == (6,) and file["shared/part3/x"].fletcher32
        assert file["toys/part2/offsets"].shape == (N_TOYS + 1,)


@pytest.mark.parametrize("other", [None, {}, SHARED | {"part3/x": np.zeros(6)}, SHARED | {"part4/x": np.zeros(6)}])
def test_parts_that_share_other_arrays_are_not_joined(path, other):
    toys, result = make_toys("sum"), make_result()
    write_parts(path, toys, result, BOUNDS[:2], shared=SHARED)
    write_parts(path, toys, result, BOUNDS[2:], shared=other)
    with pytest.raises(StorageError, match=r"differs from toys_0000000000-0000000004.h5") as raised:
        storage.join(path, {}, N_TOYS)
    assert_clear(raised, "toys_0000000009-0000000011.h5")


@pytest.mark.parametrize("first, stop", [(0, None), (3, 10), (5, 5)])
def test_data_are_those_that_the_fit_takes(path, first, stop):
    toys, last = make_toys("sum"), N_TOYS if stop is None else stop
    write_parts(path, toys | {"part3/y": np.ones((N_TOYS, 6))}, make_result(), shared=SHARED)
    storage.join(path, {}, N_TOYS)
    events, counts, plane, points, measured = storage.load_data(path, first, stop)
    assert_equal_toys(
        {"a": events, "b": plane}, {"a": toys["part0/values"][first:last], "b": toys["part2/values"][first:last]}
    )
    np.testing.assert_array_equal(counts, toys["part1/counts"][first:last])
    np.testing.assert_array_equal(points[0], SHARED["part3/x"])
    assert len(points) == 3 and points[1].shape == (last - first, 6)
    np.testing.assert_array_equal(measured, toys["part10/measured"][first:last])


def test_file_of_version_1(path):
    """Toys of one unbinned cost were the only ones, with the arrays as they are today."""
    toys, result = {"values": make_toys("ragged")["values"]}, make_result()
    with h5py.File(path, "w") as file:
        file.attrs.update({"format_version": 1, "first": 0, "stop": N_TOYS, "seed": 3})
        file["toys/values"], file["toys/offsets"] = toys["values"].values, toys["values"].offsets
        for field in dataclasses.fields(FitResult):
            value = getattr(result, field.name)
            if isinstance(value, np.ndarray):
                file[f"results/{field.name}"] = value
            elif value is not None:
                file.require_group("results").attrs[field.name] = value
    assert_equal_results(storage.load(path), result)
    assert_equal_toys(storage.load_toys(path), toys)
    assert_equal_toys({"values": storage.load_data(path, 2, 9)}, {"values": toys["values"][2:9]})
    assert storage.read_attributes(path)["seed"] == 3 and storage.load_shared(path) == {}


def test_intervals_of_held_parameters_are_left_out(path):
    """Slope is held, as the attributes say."""
    flags = np.zeros((N_TOYS, 2), dtype=bool)
    result = make_result(errors=np.tile([0.0, 2.0], (N_TOYS, 1)), at_limit=flags, valid=flags[:, 0] | True)
    number = np.arange(N_TOYS, dtype=float)[:, None]
    some = number > 4
    fields = dict.fromkeys(("valid", "at_lower_limit", "at_upper_limit", "new_minimum"), some)
    minos = MinosResult(("n",), -number, number + 1, **fields, nfev=number.astype(np.int64), result=result)
    assert storage.load_minos(write_whole(path, result, minos)) is not None
    found = storage.load_minos(path)
    assert found.names == ("n",)
    np.testing.assert_array_equal(found.lower, -number)
    np.testing.assert_array_equal(found.upper, number + 1)
    np.testing.assert_array_equal(found.at_lower_limit, some)
    np.testing.assert_array_equal(found.result.values, result.values)
    with h5py.File(path) as file:
        assert np.isnan(file["results/minos/lower"][:, 0]).all() and not file["results/minos/valid"][:, 0].any()


def write_whole(path, result, minos):
    toys = {"counts": np.ones((N_TOYS, 2))}
    for first, stop in BOUNDS:
        part = dataclasses.replace(minos, result=result[first:stop])
        part = dataclasses.replace(part, **{f: getattr(minos, f)[first:stop] for f in layout.MINOS_ARRAYS})
        counts = {name: array[first:stop] for name, array in toys.items()}
        storage.write_part(path, first, counts, result[first:stop], ATTRIBUTES | {"fixed": ["slope"]}, minos=part)
    storage.join(path, ATTRIBUTES | {"fixed": ["slope"]}, N_TOYS)
    return path


def test_slices_outside_raise(joined):
    for first, stop in [(-1, 3), (0, 12), (5, 4), (12, None)]:
        with pytest.raises(ValueError, match="<= 11"):
            storage.load_toys(joined, first, stop)


def test_part_has_the_layout_of_the_file(path):
    toys, result = make_toys("ragged"), make_result()
    part = storage.write_part(path, 512, toys, result, ATTRIBUTES)
    assert part == path.with_name("toys.h5.parts") / "toys_0000000512-0000000523.h5"
    assert storage.complete_parts(path) == [(512, 523, part)]
    assert_equal_results(storage.load(part), result)
    assert_equal_toys(storage.load_toys(part, 3, 10), {name: array[3:10] for name, array in toys.items()})


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_and_chunks_are_irrelevant(path, kind, monkeypatch):
    toys, result = make_toys(kind), make_result()
    monkeypatch.setattr(hdf5, "CHUNK_BYTES", 48)
    monkeypatch.setattr(joining, "BLOCK_BYTES", 40)
    monkeypatch.setattr(hdf5, "STAGED_BYTES", 96)
    write_parts(path, toys, result)
    storage.join(path, {}, N_TOYS)
    assert_equal_results(storage.load(path), result)
    assert_equal_toys(storage.load_toys(path), toys)


def test_join_holds_blocks_only(path, monkeypatch):
    n_toys, n_events = 80, 50_000
    toys = {"values": make_ragged([n_events] * n_toys)}
    write_parts(path, toys, make_result(n_toys), [(0, 30), (30, 80)])
    monkeypatch.setattr(joining, "BLOCK_BYTES", 2**20)
    tracemalloc.start()
    storage.join(path, {}, n_toys)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 32 MB of events, of which two blocks of whole toys may live at once
    assert peak < 3 * 2**20
    np.testing.assert_array_equal(storage.load_toys(path, 5, 6)["values"][0], toys["values"][5])


def test_attributes(joined):
    read = storage.read_attributes(joined)
    assert read.keys() == {*ATTRIBUTES, "format_version", "first", "stop"}
    assert (read["format_version"], read["first"], read["stop"]) == (storage.FORMAT_VERSION, 0, N_TOYS)
    for name, value in ATTRIBUTES.items():
        np.testing.assert_array_equal(read[name], value, err_msg=name)
    plain = {name: type(value) for name, value in ATTRIBUTES.items() if name != "start"}
    assert {name: type(read[name]) for name in plain} == plain


@pytest.mark.parametrize("value", [None, {"a": 1}, 2**64, [1, "a", None], [[1], [1, 2]]])
def test_attribute_that_cannot_be_stored(path, value):
    with pytest.raises(TypeError, match="attribute 'truth' must be"):
        storage.write_part(path, 0, {}, make_result(), {"truth": value})
    assert storage.complete_parts(path) == []


def test_validation(path, joined):
    assert storage.read_validation(path) == {}
    path.unlink()
    validation = {
        "toy": np.array([3, 7]),
        "values": np.array([[1.0, np.nan], [2.0, 3.0]]),
        "valid": np.array([True, False]),
        "difference": np.array([[1e-5, np.nan], [0, 0]], np.float32),
    }
    write_parts(path, make_toys("counts"), make_result())
    storage.join(path, {}, N_TOYS, validation)
    read = storage.read_validation(path)
    assert read.keys() == validation.keys()
    for name, array in validation.items():
        np.testing.assert_array_equal(read[name], array)
    assert read["difference"].dtype == np.float64 and read["valid"].dtype == bool


def test_parts_of_different_devices_are_all_listed(path):
    for (first, stop), backend, device in zip(BOUNDS, ["numba", "jax", "numba"], ["cpu", "gpu", "cpu"], strict=True):
        result = make_result(stop - first, backend=backend, device=device)
        storage.write_part(path, first, {}, result, {})
    storage.join(path, {}, N_TOYS)
    assert (storage.load(path).backend, storage.load(path).device) == ("jax+numba", "cpu+gpu")


# --- other programs ----------------------------------------------------------------------------------------


def test_readable_with_h5py_and_pandas(joined):
    pandas = pytest.importorskip("pandas")
    toys, result = make_toys("ragged"), make_result()
    with h5py.File(joined) as file:
        values, offsets = file["toys/values"][...], file["toys/offsets"][...]
        names, status = [name.decode() for name in file["results"].attrs["names"]], file["results/status"][...]
        table = pandas.DataFrame(file["results/values"][...], columns=names)
        measured = pandas.DataFrame(file["toys/measured"][...])
    np.testing.assert_array_equal(values[offsets[3] : offsets[4]], toys["values"][3])
    np.testing.assert_array_equal(status, result.status)
    np.testing.assert_array_equal(table["n"], result.values[:, 1])
    np.testing.assert_array_equal(measured, toys["measured"])


def test_every_array_has_a_dtype_chunks_and_a_checksum(path):
    n_toys = 3
    toys = {"values": make_ragged([100_000, 0, 200_000]), "y": np.ones((n_toys, 60_000), np.float32)}
    write_parts(path, toys, make_result(n_toys), [(0, n_toys)])
    storage.join(path, {}, n_toys, {"values": np.ones(4)})
    datasets = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: datasets.update({name: item}) if hasattr(item, "shape") else None)
        assert all(dataset.fletcher32 and dataset.compression is None for dataset in datasets.values())
        real = {name for name, dataset in datasets.items() if dataset.dtype == np.dtype("<f8")}
        assert real == {"toys/values", "toys/y", "validation/values"} | {
            f"results/{name}" for name in ("values", "errors", "covariance", "fval", "edm")
        }
        # 300 000 events in equal chunks of at most 256 KiB; whole toys of 480 kB
        assert datasets["toys/values"].chunks == (30_000,)
        assert datasets["toys/y"].chunks == (1, 60_000)


# --- damage ------------------------------------------------------------------------------------------------


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
    storage.join(path, ATTRIBUTES, N_TOYS, {"fval": np.array([1.0, 2.0])})
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


READERS = [storage.load, storage.load_toys, storage.read_attributes, storage.read_validation]


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


# --- parts that do not fit ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bounds, missing",
    [
        ([(4, 9), (9, 11)], "0 to 3"),
        ([(0, 4), (9, 11)], "4 to 8"),
        ([(0, 4), (4, 9)], "9 to 10"),
        ([], "0 to 10"),
    ],
)
def test_gap(path, bounds, missing):
    write_parts(path, make_toys("points"), make_result(), bounds)
    with pytest.raises(StorageError, match=f"toys {missing} of .* are missing: continue with --resume") as raised:
        storage.join(path, {}, N_TOYS)
    assert_clear(raised, path)
    assert not path.exists() and len(storage.complete_parts(path)) == len(bounds)


def test_overlap(path):
    write_parts(path, make_toys("points"), make_result(), [(0, 4), (3, 9), (9, 11)])
    for call in (storage.complete_parts, lambda path: storage.join(path, {}, N_TOYS)):
        with pytest.raises(StorageError, match="overlaps") as raised:
            call(path)
        assert_clear(raised, "toys_0000000003-0000000009.h5")


def test_more_toys_than_asked_for(path):
    write_parts(path, make_toys("points"), make_result())
    for n_toys in (9, 10):
        with pytest.raises(StorageError, match=f"holds 11 toys, more than the {n_toys} asked for"):
            storage.join(path, {}, n_toys)


def test_part_under_another_name(path):
    write_parts(path, make_toys("points"), make_result(), [(0, 4)])
    part = storage.complete_parts(path)[0][2]
    renamed = part.rename(part.with_name("toys_0000000004-0000000008.h5"))
    with pytest.raises(StorageError, match="does not hold the toys that its name says") as raised:
        storage.complete_parts(path)
    assert_clear(raised, renamed)


def test_part_of_another_study(path):
    toys, result = make_toys("points"), make_result()
    others = [
        (toys, dataclasses.replace(result, names=("a", "b"))),
        (toys, dataclasses.replace(result, errordef=1.0)),
        ({"y": toys["y"][:, :5], "measured": toys["measured"]}, result),
        ({"y": toys["y"]}, result),
        ({"y": (toys["y"] > 0), "measured": toys["measured"]}, result),
    ]
    for other_toys, other_result in others:
        write_parts(path, toys, result, BOUNDS[:2])
        write_parts(path, other_toys, other_result, BOUNDS[2:])
        with pytest.raises(StorageError, match=r"differs from toys_0000000000-0000000004.h5") as raised:
            storage.join(path, {}, N_TOYS)
        assert_clear(raised, "toys_0000000009-0000000011.h5")


def test_foreign_file_among_parts_is_named_and_kept(path):
    write_parts(path, make_toys("points"), make_result())
    foreign = parts_directory(path) / "thesis.tex"
    foreign.touch()
    for call in (storage.complete_parts, storage.remove_parts):
        with pytest.raises(StorageError, match="is no part of a run: move it") as raised:
            call(path)
        assert_clear(raised, foreign)
    foreign.unlink()
    assert len(storage.complete_parts(path)) == 3
    storage.remove_parts(path)
    storage.remove_parts(path)
    assert not parts_directory(path).exists()


@pytest.mark.parametrize(
    "first, toys, words",
    [
        (-1, {}, "toy 0 or later"),
        (0, {"y": np.ones((3, 2))}, r"toys\['y'\] must have one row for each of 11 fits, got 3"),
        (0, {"values": make_ragged([1, 2])}, "one row for each of 11 fits, got 2"),
        (0, {"events": make_ragged([1] * N_TOYS)}, "must be called 'values', got 'events'"),
        (0, {"offsets": np.ones(N_TOYS)}, "cannot be called 'offsets'"),
        (0, {"a/b": np.ones(N_TOYS)}, "cannot be called 'a/b'"),
        (0, {"part1/offsets": np.ones(N_TOYS)}, "cannot be called 'part1/offsets'"),
    ],
)
def test_wrong_arguments(path, first, toys, words):
    with pytest.raises(ValueError, match=words):
        storage.write_part(path, first, toys, make_result(), {})
    assert not parts_directory(path).exists()


def test_wrong_dtype(path):
    with pytest.raises(TypeError, match="y must hold real numbers or booleans, got complex128"):
        storage.write_part(path, 0, {"y": np.ones(N_TOYS) * 1j}, make_result(), {})
    assert storage.complete_parts(path) == []


def test_no_toys(path):
    with pytest.raises(ValueError, match="n_toys must be at least 1"):
        storage.join(path, {}, 0)
    with pytest.raises(ValueError, match="0 toys"):
        storage.write_part(path, 0, {}, make_result()[:0], {})


# --- killed runs, full disks -------------------------------------------------------------------------------

# dies as if killed, with a file half-written, at the moment when it would get its name
KILLED = """
import os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_storage import *
path, what = sys.argv[2:]
os.replace = lambda *names: os._exit(9)
if what == "part":
    write_parts(path, make_toys("ragged"), make_result(), BOUNDS[1:2])
else:
    storage.join(path, {}, N_TOYS)
"""
SEARCH = os.pathsep.join([os.path.dirname(__file__), *(p for p in sys.path if p)])


@pytest.mark.parametrize("what, done", [("part", [BOUNDS[0], BOUNDS[2]]), ("join", BOUNDS)])
def test_killed_run_continues_with_the_same_numbers(path, what, done):
    toys, result = make_toys("ragged"), make_result()
    write_parts(path, toys, result, done)
    killed = run_python(KILLED, SEARCH, path, what)
    assert killed.returncode == 9, killed.stderr
    directory = parts_directory(path)
    (left,) = directory.glob("*.tmp.*")
    assert not path.exists()
    mine = directory / f"toys_0000000020-0000000030.h5.tmp.{os.getpid()}"
    mine.touch()
    assert [(first, stop) for first, stop, _ in storage.complete_parts(path)] == done
    assert not left.exists() and mine.exists()
    write_parts(path, toys, result, [bounds for bounds in BOUNDS if bounds not in done])
    storage.join(path, ATTRIBUTES, N_TOYS)
    assert_equal_results(storage.load(path), result)
    assert_equal_toys(storage.load_toys(path), toys)


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_full_disk(path, monkeypatch, place):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    toys, result = make_toys("ragged"), make_result()
    write_parts(path, toys, result, BOUNDS[:2])
    with monkeypatch.context() as patch:
        patch.setattr(os, place, full)
        with pytest.raises(StorageError, match="its disk is full: free space, then continue with --resume") as raised:
            write_parts(path, toys, result, BOUNDS[2:])
        assert_clear(raised, "toys_0000000009-0000000011.h5")
    assert [part[:2] for part in storage.complete_parts(path)] == BOUNDS[:2]
    assert len(os.listdir(parts_directory(path))) == 2
    write_parts(path, toys, result, BOUNDS[2:])
    with monkeypatch.context() as patch:
        patch.setattr(os, place, full)
        with pytest.raises(StorageError, match="its disk is full") as raised:
            storage.join(path, {}, N_TOYS)
        assert_clear(raised, path)
    assert len(storage.complete_parts(path)) == 3 and not path.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", directory]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"a disk of its own cannot be mounted: {error}")
    if mounted.returncode:
        pytest.skip(f"a disk of its own cannot be mounted: {mounted.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def test_disk_that_is_really_full(small_disk):
    """It fills up while a part is written, and while the parts are joined; space is freed, and all is there."""
    path, toys, result = small_disk / "toys.h5", {"y": np.random.default_rng(1).random((N_TOYS, 7000))}, make_result()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_200_000))
    write_parts(path, toys, result, BOUNDS[:1])
    with pytest.raises(StorageError, match="its disk is full: free space, then continue with --resume") as raised:
        write_parts(path, toys, result, BOUNDS[1:])
    assert_clear(raised, "toys_0000000004-0000000009.h5")
    assert [part[:2] for part in storage.complete_parts(path)] == BOUNDS[:1]
    ballast.write_bytes(bytes(500_000))
    write_parts(path, toys, result, BOUNDS[1:])
    with pytest.raises(StorageError, match="cannot be written, its disk is full") as raised:
        storage.join(path, {}, N_TOYS)
    assert_clear(raised, path)
    assert len(storage.complete_parts(path)) == 3 and not path.exists()
    ballast.unlink()
    storage.join(path, {}, N_TOYS)
    assert_equal_toys(storage.load_toys(path), toys)
    assert_equal_results(storage.load(path), result)


# HDF5 itself runs into a wall, early or when it closes its file: no file of this process may exceed a size
LIMITED = """
import os, resource, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
from test_storage import *
path, what, limit, n_points = sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
toys = {"y": np.ones((N_TOYS, n_points))}
if what == "join":
    write_parts(path, toys, make_result())
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    if what == "part":
        write_parts(path, toys, make_result(), [(0, N_TOYS)])
    else:
        storage.join(path, {}, N_TOYS)
except StorageError as error:
    print(error)
print(len(os.listdir(parts_directory(path))))
"""


@pytest.mark.parametrize(
    "what, limit, n_points", [("part", 10**6, 10**5), ("part", 9000, 10), ("join", 5 * 10**6, 10**5)]
)
def test_hdf5_cannot_write(path, what, limit, n_points):
    run = run_python(LIMITED, SEARCH, path, what, limit, n_points)
    # a process that HDF5 brought down would not return 0
    assert run.returncode == 0 and run.stderr == ""
    sentence, n_left = run.stdout.splitlines()
    name = "toys_0000000000-0000000011.h5" if what == "part" else "toys.h5"
    assert f"{name} cannot be written, it exceeds the allowed size: " in sentence
    assert n_left == ("0" if what == "part" else "3")


# --- continuing a run ----------------------------------------------------------------------------------------


def test_same_run(joined):
    keys = ["model", "source", "seed", "start", "parameters", "extended", "format_version"]
    mine = ATTRIBUTES | {"format_version": storage.FORMAT_VERSION}
    read = storage.read_attributes(joined)
    assert storage.same_run(read, mine, keys) == []
    other = mine | {"seed": 3, "start": np.array([0.5, np.nan, 1e-300]), "comment": "other"}
    assert storage.same_run(read, other, keys) == ["seed", "start"]
    del other["source"]
    assert storage.same_run(other, read, keys) == ["source", "seed", "start"]
    assert storage.same_run({"a": "1"}, {"a": 1}, ["a", "b"]) == ["a"]


# --- files of other programs -------------------------------------------------------------------------------


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
