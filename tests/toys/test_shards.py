"""Shards of a run: together they are the run, and whatever does not fit together is said."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest

from toys import storage
from toys.files import StorageError
from toys.models import parabola, peak
from toys.options import Options, shard_range
from toys.run import run
from toys.shards import Merged, merge, shard_path

N_TOYS, CHUNK = 22, 4  # 6 chunks
OPTIONS = Options(n_toys=N_TOYS, seed=3, backend="numba", device="cpu", validate=5, minos=True, chunk=CHUNK)


def run_shards(study, out, n, options=OPTIONS):
    paths = [shard_path(out, i, n) for i in range(1, n + 1)]
    for i, path in enumerate(paths, 1):
        run(study, path, dataclasses.replace(options, shard=(i, n)))
    return paths


@pytest.fixture(scope="module")
def study():
    return peak().at({"ns": 100.0, "nb": 300.0})


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "toys.h5"
    run(study, path, OPTIONS)
    return path


@pytest.fixture(scope="module")
def shards(study, tmp_path_factory):
    return run_shards(study, tmp_path_factory.mktemp("shards") / "toys.h5", 3)


def arrays(path):
    """All datasets of a file by name."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[...]} if isinstance(item, h5py.Dataset) else {}))
    return found


def assert_same_file(left, right):
    left, right = arrays(left), arrays(right)
    assert left.keys() == right.keys() and {"toys/values", "results/values", "results/minos/upper"} <= left.keys()
    for name, array in left.items():
        assert array.dtype == right[name].dtype
        np.testing.assert_array_equal(array, right[name], err_msg=name)


# --- what is in the files ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n_toys, chunk, n", [(22, 4, 1), (22, 4, 3), (22, 4, 6), (1, 1, 1), (10**9, 8192, 1000)])
def test_ranges_cover_the_run_in_whole_chunks(n_toys, chunk, n):
    ranges = [shard_range(n_toys, chunk, i, n) for i in range(1, n + 1)]
    assert ranges[0][0] == 0 and ranges[-1][1] == n_toys
    assert [stop for _, stop in ranges[:-1]] == [first for first, _ in ranges[1:]]
    assert all(first % chunk == 0 for first, _ in ranges)
    n_chunks = [-(-(stop - first) // chunk) for first, stop in ranges]
    assert min(n_chunks) > 0 and max(n_chunks) - min(n_chunks) <= 1


def test_shards_that_would_be_empty(study, tmp_path):
    with pytest.raises(ValueError, match="22 toys are 6 chunks of 4: ask for at most 6 shards, not 7"):
        run(study, tmp_path / "toys.h5", dataclasses.replace(OPTIONS, shard=(1, 7)))
    assert list(tmp_path.iterdir()) == []


def test_merged_shards_are_the_run(whole, shards, tmp_path):
    out = tmp_path / "toys.h5"
    ranges = [(8, 16), (0, 8), (16, 22)]
    for path, (first, stop) in zip([shards[1], shards[0], shards[2]], ranges, strict=True):
        attributes = storage.read_attributes(path)
        assert (attributes["first"], attributes["stop"], attributes["n_toys"]) == (first, stop, N_TOYS)
        np.testing.assert_array_equal(storage.load(path).values, storage.load(whole).values[first:stop])
    assert merge(out, [shards[2], shards[0], shards[1]]) == Merged(N_TOYS, 0, 5, 0)
    assert_same_file(out, whole)
    merged, made = storage.read_attributes(out), storage.read_attributes(whole)
    assert merged.keys() == made.keys()
    assert {key for key in made if merged[key] != made[key]} <= {"created"}
    assert all(path.exists() for path in shards) and [file.name for file in tmp_path.iterdir()] == ["toys.h5"]


def test_a_shard_is_resumed(study, shards, tmp_path, monkeypatch):
    out = shard_path(tmp_path / "toys.h5", 2, 3)
    assert out.name == "toys.shard-2-of-3.h5"
    options = dataclasses.replace(OPTIONS, shard=(2, 3))

    done = []

    def interrupt(n):
        done.append(n)
        if sum(done) > 1 + CHUNK:  # 1 for the compilation
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(study, out, options, advance=interrupt)
    assert [(first, stop) for first, stop, _ in storage.complete_parts(out)] == [(8, 12)]
    with pytest.raises(StorageError, match="another run: shard was 2/3 and is now 3/3"):
        run(study, out, dataclasses.replace(options, shard=(3, 3), resume=True))
    assert run(study, out, dataclasses.replace(options, resume=True)).n_resumed == CHUNK
    assert_same_file(out, shards[1])
    assert run(study, out, dataclasses.replace(options, resume=True)).n_resumed == 8
    with pytest.raises(StorageError, match="another run: shard was 2/3 and is now None"):
        run(study, out, dataclasses.replace(options, shard=None, resume=True))


def test_shards_without_toys_to_validate(whole, study, tmp_path):
    paths = run_shards(study, tmp_path / "toys.h5", 6, dataclasses.replace(OPTIONS, validate=2))
    assert [len(storage.read_validation(path)) > 0 for path in paths] == [True, False, False, False, False, True]
    assert merge(tmp_path / "toys.h5", paths) == Merged(N_TOYS, 0, 2, 0)
    np.testing.assert_array_equal(storage.read_validation(tmp_path / "toys.h5")["toy"], [0, N_TOYS - 1])
    assert merge(tmp_path / "whole.h5", [whole]) == Merged(N_TOYS, 0, 5, 0)
    assert_same_file(tmp_path / "whole.h5", whole)


# --- what does not fit together ----------------------------------------------------------------------------


def refused(out, shards, **options):
    """The sentence; nothing is written."""
    with pytest.raises(StorageError) as raised:
        merge(out, shards, **options)
    assert not list(out.parent.glob("merged*"))
    return str(raised.value)


def test_gaps(shards, tmp_path):
    out = tmp_path / "merged.h5"
    assert refused(out, shards[1:]) == "toys 0 to 7 are missing: run, or name, shard 1/3"
    assert refused(out, [shards[0], shards[2]]) == "toys 8 to 15 are missing: run, or name, shard 2/3"
    assert refused(out, shards[:1]) == "toys 8 to 21 are missing: run, or name, shard 2/3, 3/3"


def test_overlaps(shards, whole, tmp_path):
    out = tmp_path / "merged.h5"
    told = refused(out, [*shards, shards[1]])
    assert told == f"toys 8 to 15 are both in {shards[1]} and in {shards[1]}: leave out one of them"
    told = refused(out, [whole, shards[2]])
    assert told == f"toys 16 to 21 are both in {whole} and in {shards[2]}: leave out one of them"


OTHERS = [({"seed": 4}, "seed is 4 and not 3"), ({"n_toys": 24}, "n_toys is 24 and not 22")]


@pytest.mark.parametrize("change, words", OTHERS)
def test_another_run(study, shards, tmp_path, change, words):
    other = tmp_path / "other.h5"
    run(study, other, dataclasses.replace(OPTIONS, shard=(3, 3), **change))
    told = refused(tmp_path / "merged.h5", [*shards[:2], other])
    assert told == f"{other} is of another run than {shards[0]}: {words}. Merge files of one run only"


def test_other_versions_are_told(shards, tmp_path):
    other = tmp_path / "other.h5"
    shutil.copy(shards[2], other)
    with h5py.File(other, "r+") as file:
        file.attrs["versions"] = json.dumps({"numpy": "0.1"})
    with pytest.warns(
        UserWarning, match=rf"other.h5 was made with numpy 0.1 \({shards[0].name} {np.__version__}\): toys"
    ):
        merge(tmp_path / "merged.h5", [*shards[:2], other])


@pytest.mark.parametrize("versions", ["{", "[1]"])
def test_versions_that_cannot_be_read(shards, tmp_path, versions):
    first = tmp_path / "first.h5"
    shutil.copy(shards[0], first)
    with h5py.File(first, "r+") as file:
        file.attrs["versions"] = versions
    assert refused(tmp_path / "merged.h5", [first, *shards[1:]]).startswith(f"{first} is damaged")


def test_another_model(shards, tmp_path):
    other = tmp_path / "other.h5"
    options = dataclasses.replace(OPTIONS, shard=(3, 3), minos=False, validate=0, source="another" * 20)
    run(parabola(), other, options)
    told = refused(tmp_path / "merged.h5", [*shards[:2], other])
    for words in ("model is parabola and not peak; source differs; ", "minos is None and not True"):
        assert words in told


@pytest.mark.parametrize("damage", ["truncate", "flip", "fewer", "more", "foreign", "first", "jax_devices"])
def test_damaged_shard(shards, tmp_path, damage):
    bad = tmp_path / "bad.h5"
    shutil.copy(shards[1], bad)
    if damage == "truncate":
        bad.write_bytes(bad.read_bytes()[: bad.stat().st_size // 2])
    elif damage == "flip":
        with h5py.File(bad) as file:
            values = file["toys/values"]
            at = values.id.get_chunk_info(0).byte_offset + 17
        damaged = bytearray(bad.read_bytes())
        damaged[at] ^= 4
        bad.write_bytes(damaged)
    elif damage in ("first", "jax_devices"):
        with h5py.File(bad, "r+") as file:
            del file.attrs[damage]
    elif damage in ("fewer", "more"):
        with h5py.File(bad, "r+") as file:
            file.attrs["stop"] = 15 if damage == "more" else 17
    else:
        bad.write_text("x,y\n1,2\n")
    told = refused(tmp_path / "merged.h5", [shards[0], bad, shards[2]])
    assert told.startswith(f"{bad} ") and "\n" not in told


def test_missing_file_and_outputs_that_are_there(shards, whole, tmp_path):
    out = tmp_path / "merged.h5"
    assert refused(out, [*shards[:2], tmp_path / "none.h5"]) == f"{tmp_path / 'none.h5'} does not exist: check the path"
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    assert refused(out, [tmp_path / "loop.h5"]).startswith(f"{tmp_path / 'loop.h5'} cannot be read: ")
    shutil.copy(shards[0], out)
    before = out.read_bytes()
    with pytest.raises(StorageError, match=r"merged.h5 exists: pass --overwrite to replace it"):
        merge(out, shards)
    with pytest.raises(StorageError, match=r"merged.h5 is one of the files to be merged: name another output"):
        merge(out, [out, *shards[1:]], overwrite=True)
    with pytest.raises(StorageError, match="are missing"):
        merge(out, shards[:2], overwrite=True)
    assert out.read_bytes() == before
    merge(out, shards, overwrite=True)
    assert_same_file(out, whole)
    out.write_text("important")
    with pytest.raises(StorageError, match=r"merged.h5 is no file of run_toys.py, or a damaged one, and is not repla"):
        merge(out, shards, overwrite=True)
    assert out.read_text() == "important"
    with pytest.raises(ValueError, match="name the files to be merged"):
        merge(out, [])
