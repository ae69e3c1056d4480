"""Parts: those that do not fit are refused, and what is killed or runs into a full disk can continue."""

import dataclasses
import errno
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.toys.stored_files import (
    ATTRIBUTES,
    BOUNDS,
    N_TOYS,
    assert_clear,
    assert_equal_results,
    assert_equal_toys,
    make_ragged,
    make_result,
    make_toys,
    run_python,
    write_parts,
)
from toys import storage
from toys.files import StorageError, parts_directory

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
from tests.toys.stored_files import *
from toys import storage
path, what = sys.argv[2:]
os.replace = lambda *names: os._exit(9)
if what == "part":
    write_parts(path, make_toys("ragged"), make_result(), BOUNDS[1:2])
else:
    storage.join(path, {}, N_TOYS)
"""
SEARCH = os.pathsep.join(p for p in sys.path if p)


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
from tests.toys.stored_files import *
from toys import storage
from toys.files import StorageError, parts_directory
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
