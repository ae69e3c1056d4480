"""Toys that are thrown again: of runs that did not keep them, verified by their checksums."""

import binascii
import dataclasses
import json
import shutil
import sys
import zlib

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import LeastSquares
from engine.data import Ragged
from engine.result import FitResult
from toys import run as run_module
from toys import storage
from toys.checksums import checksums
from toys.files import StorageError
from toys.models import peak, polynomial, second_degree
from toys.observed import InputError
from toys.points import NormalPoints
from toys.regenerate import regenerate
from toys.run import Options, run
from toys.study import Study, generate

regenerating = sys.modules["toys.regenerate"]  # whose name in the package is that of its function

N_TOYS = 22
CHUNK = 8
OPTIONS = Options(n_toys=N_TOYS, seed=3, backend="numba", device="cpu", validate=0, chunk=CHUNK)


def line(x, a, b):
    return a + b * x


def sampler(key, theta):
    x = jnp.linspace(0.0, 1.0, 5)
    return x, line(x, *theta) + 0.1 * jax.random.normal(key, (5,), jnp.float64), 0.1


@pytest.fixture(scope="module")
def own():
    """A study of your own, whose toys JAX throws, and which has no name among the ready-made ones."""
    return Study(LeastSquares(line), sampler, {"a": 1.0, "b": 2.0}, name="own")


@pytest.fixture(scope="module")
def points(tmp_path_factory):
    """(study, file with toys, file without, validation of both) of points."""
    study, directory = polynomial(), tmp_path_factory.mktemp("points")
    options = dataclasses.replace(OPTIONS, validate=4)
    kept = run(study, directory / "kept.h5", options)
    bare = run(study, directory / "bare.h5", dataclasses.replace(options, save_toys=False))
    return study, directory / "kept.h5", directory / "bare.h5", kept.validation, bare.validation


def assert_same(left, right):
    for mine, theirs in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(mine, theirs)


# --- checksums ---------------------------------------------------------------------------------------------


def test_checksum_is_that_of_the_bytes_of_a_toy():
    """Written out by hand from the bytes, with another implementation of CRC-32."""
    y, flags = np.array([[1.5, np.nan], [-0.0, 1e300]]), np.array([True, False])
    events = Ragged(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), np.array([0, 1, 3]))
    found = checksums({"y": y, "b": flags, "values": events}, 2)
    for k, event in enumerate([[1.0, 4.0], [2.0, 3.0, 5.0, 6.0]]):
        data = flags[k].tobytes() + np.array(event).tobytes() + y[k].tobytes()
        assert int(found[k]) == binascii.crc32(data) << 32 | zlib.adler32(data)
    assert found.dtype == np.uint64
    # with and without ragged arrays, the same rule
    data = flags[1].tobytes() + y[1].tobytes()
    assert int(checksums({"y": y, "b": flags}, 2)[1]) == binascii.crc32(data) << 32 | zlib.adler32(data)
    single = np.array([[1.5, np.nan], [-0.0, 1e30]], np.float32)
    np.testing.assert_array_equal(checksums({"y": single}, 2), checksums({"y": single.astype(np.float64)}, 2))
    assert checksums({"y": np.zeros((2, 3))}, 2).all() and checksums({}, 2).tolist() == [1, 1]


# --- a run without its toys --------------------------------------------------------------------------------


def test_fits_are_those_of_the_run_that_keeps_its_toys(points):
    _, kept, bare, *validations = points
    for field in dataclasses.fields(FitResult):
        mine, theirs = getattr(storage.load(bare), field.name), getattr(storage.load(kept), field.name)
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
    np.testing.assert_array_equal(storage.read_checksums(bare), storage.read_checksums(kept))
    for name in validations[0]._fields:
        np.testing.assert_array_equal(*(getattr(validation, name) for validation in validations), err_msg=name)
    assert validations[0].agrees.all()
    assert bare.stat().st_size < kept.stat().st_size - 8 * 30 * N_TOYS
    assert storage.read_attributes(bare)["save_toys"] is False
    for read in (storage.load_toys, storage.load_data):
        with pytest.raises(StorageError, match=r"checksums of its toys alone: .* toys.regenerate\(file, index\)"):
            read(bare)


@pytest.mark.parametrize("index", [5, -1, slice(6, 19), slice(None, None, 7), [17, 3, 4, 3]])
def test_any_toy_comes_back(points, index):
    study, kept, bare, *_ = points
    numbers = np.arange(N_TOYS)[index]
    data = regenerate(bare, index)
    thrown = generate(study, N_TOYS, seed=3)
    expected = [np.atleast_2d(array[numbers]) if np.ndim(array) == 2 else array for array in thrown]
    assert_same(data, tuple(expected))
    assert_same(regenerate(kept, index, study), data)


def test_ragged_toys(tmp_path):
    study = peak().at({"ns": 100.0, "nb": 300.0})
    run(study, tmp_path / "toys.h5", dataclasses.replace(OPTIONS, n_toys=10, save_toys=False))
    data, thrown = regenerate(tmp_path / "toys.h5", slice(3, 10)), generate(study, 10, seed=3)
    np.testing.assert_array_equal(data.values, thrown[3:10].values)
    np.testing.assert_array_equal(data.offsets, thrown[3:10].offsets)


def test_run_without_toys_is_resumed_and_extended(points, tmp_path, monkeypatch):
    study, _, bare, *_ = points
    out, options = tmp_path / "toys.h5", dataclasses.replace(OPTIONS, save_toys=False)
    run(study, out, dataclasses.replace(options, n_toys=11))
    write_part = storage.write_part

    def stop(path, first, *arguments):
        if first == 16:
            raise KeyboardInterrupt
        return write_part(path, first, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_part", stop)
        with pytest.raises(KeyboardInterrupt):
            run(study, out, dataclasses.replace(options, extend=True))
    with pytest.raises(StorageError, match="another run: save_toys was False and is now None"):
        run(study, out, dataclasses.replace(OPTIONS, resume=True))
    run(study, out, dataclasses.replace(options, extend=True))
    np.testing.assert_array_equal(storage.read_checksums(out), storage.read_checksums(bare))
    np.testing.assert_array_equal(storage.load(out).values, storage.load(bare).values)
    assert_same(regenerate(out, slice(9, 20)), regenerate(bare, slice(9, 20)))


def test_study_of_your_own(own, tmp_path):
    out = tmp_path / "toys.h5"
    run(own, out, dataclasses.replace(OPTIONS, save_toys=False, source="source = 'code that is never run'", validate=2))
    assert storage.read_attributes(out)["sampled"] == "numba"
    assert_same(regenerate(out, [4, 20], own), tuple(a[[4, 20]] for a in generate(own, N_TOYS, seed=3)))
    with pytest.raises(InputError, match="is of the model 'own': pass its study, or the file that defines it"):
        regenerate(out, 4)
    with pytest.raises(ValueError, match="truth names 'a'"):
        regenerate(out, 4, peak())


def test_toys_of_jax_are_thrown_in_the_same_chunks(tmp_path):
    """Where the toys are thrown by JAX they are the same bit for bit, whichever of them are asked for."""
    study = polynomial()
    out = tmp_path / "toys.h5"
    run(study, out, dataclasses.replace(OPTIONS, n_toys=11, backend="jax", save_toys=False, validate=3))
    assert storage.read_attributes(out)["sampled"] == "jax"
    data = regenerate(out, [10, 7, 8, 9])
    assert data[1].shape == (4, 30)
    np.testing.assert_allclose(data[1], generate(study, 11, seed=3)[1][[10, 7, 8, 9]], rtol=0, atol=1e-9)


# --- what is not the same ----------------------------------------------------------------------------------


def test_other_toys_are_refused_and_the_cause_is_told(points, own, tmp_path, monkeypatch):
    study, _, bare, *_ = points
    # a study with the same parameters, but other points
    other = dataclasses.replace(
        study, sampler=NormalPoints(second_degree, ("a", "b", "c"), np.linspace(-4.0, 7.0, 30), 4.0, 0.5)
    )
    with pytest.raises(StorageError, match=r"toy 5 of .*bare.h5 is thrown otherwise here: the study is"):
        regenerate(bare, [5, 6], other)
    changed = json.loads(storage.read_attributes(bare)["versions"]) | {"jax": "0.0.1"}
    monkeypatch.setattr(regenerating, "versions", lambda: changed)
    with pytest.raises(StorageError, match=r"it was made with jax .* \(here 0.0.1\): install these versions"):
        regenerate(bare, 5, other)
    monkeypatch.setattr(regenerating, "find_study", lambda model: (other, "another source"))
    with pytest.raises(StorageError, match="the source of its model has changed since; the file holds the former text"):
        regenerate(bare, 5)


@pytest.mark.parametrize("name", ["stop", "chunk", "n_toys"])
def test_file_that_lost_an_attribute(points, tmp_path, name):
    *_, bare, _, _ = points
    shutil.copy(bare, tmp_path / "bad.h5")
    with h5py.File(tmp_path / "bad.h5", "r+") as file:
        del file.attrs[name]
    with pytest.raises(StorageError, match=r"bad.h5 is damaged: name another file"):
        regenerate(tmp_path / "bad.h5", 5)


def test_toys_of_a_shard_have_the_numbers_of_the_run(own, tmp_path):
    out = tmp_path / "toys.h5"
    run(own, out, dataclasses.replace(OPTIONS, save_toys=False, shard=(2, 2)))
    first = storage.read_attributes(out)["first"]
    assert first == CHUNK
    for index, numbers in (
        (slice(None), range(first, N_TOYS)),
        (slice(None, None, 5), range(10, N_TOYS, 5)),
        (slice(3, 11), range(first, 11)),
        (-1, [N_TOYS - 1]),
    ):
        for k, y in zip(numbers, regenerate(out, index, own)[1], strict=True):
            np.testing.assert_array_equal(y[None], generate(own, 1, OPTIONS.seed, k)[1])


def test_toys_that_are_not_there(points):
    *_, bare, _, _ = points
    for index in (N_TOYS, -N_TOYS - 1, [0, 99], slice(30, 40), []):
        with pytest.raises(IndexError, match="has the toys 0 to 21, got "):
            regenerate(bare, index)


def test_validation_notices_a_sampler_that_is_not_that_of_its_key(own, tmp_path, monkeypatch):
    """Without it, MIGRAD would be compared with the fit of another toy."""
    calls = []

    def drifting(*arguments):
        calls.append(arguments)
        x, y, error = generate(*arguments)
        return x, y + 0.1 * len(calls), error

    monkeypatch.setattr(run_module, "generate", drifting)
    with pytest.raises(StorageError, match="toy 0 is thrown otherwise than it was fitted"):
        run(own, tmp_path / "toys.h5", dataclasses.replace(OPTIONS, save_toys=False, validate=2))
