"""Files: what goes in comes out, and other programs read it."""

import dataclasses
import tracemalloc

import h5py
import numpy as np
import pytest

from engine.minos import MinosResult
from engine.result import FitResult
from tests.toys.stored_files import (
    ATTRIBUTES,
    BOUNDS,
    KINDS,
    N_TOYS,
    SHARED,
    assert_clear,
    assert_equal_results,
    assert_equal_toys,
    make_ragged,
    make_result,
    make_toys,
    write_parts,
)
from toys import hdf5, joining, layout, storage
from toys.files import StorageError

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
