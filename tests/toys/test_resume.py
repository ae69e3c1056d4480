"""Runs that are stopped and continued, replaced or extended end as one that was never stopped."""

import dataclasses
import errno
import json
import os
import shutil

import numpy as np
import pytest

from tests.toys.small_runs import CHUNK, N_TOYS, OPTIONS, assert_same_contents, stop_after
from toys import joining, memory, provenance, storage
from toys import run as run_module
from toys.files import StorageError, parts_directory
from toys.models import peak
from toys.run import run
from toys.study import generate

# --- stops and errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["advance", "write_part"])
def test_interrupted_and_resumed_run_equals_the_whole(study, whole, chunks_of_8, tmp_path, monkeypatch, place):
    out = tmp_path / "toys.h5"
    n_fitted = 0

    def interrupt(n):
        nonlocal n_fitted
        n_fitted += n
        if n_fitted > 2 * CHUNK + 1:  # 1 for the compilation
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if place == "write_part":
            stop_after(patch, 2, KeyboardInterrupt())
            interrupt = None
        with pytest.raises(KeyboardInterrupt):
            run(study, out, OPTIONS, advance=interrupt or (lambda n: None))
    assert not out.exists()
    assert [(first, stop) for first, stop, _ in storage.complete_parts(out)] == [(0, 8), (8, 16)]
    with pytest.raises(StorageError, match="unfinished run: pass --resume to continue it"):
        run(study, out, OPTIONS)
    before = {part: part.stat().st_mtime_ns for _, _, part in storage.complete_parts(out)}
    fitted = []
    monkeypatch.setattr(
        run_module, "generate", lambda *arguments: fitted.append(arguments[1:4]) or generate(*arguments)
    )
    report = run(study, out, dataclasses.replace(OPTIONS, resume=True, validate=5))
    assert len(before) == 2 and report.n_resumed == 2 * CHUNK
    # the toys that were missing, and no others
    assert fitted == [(6, 3, 16)]
    assert_same_contents(out, whole[0])
    for name, array in report.validation._asdict().items():
        np.testing.assert_array_equal(array, getattr(whole[1].validation, name), err_msg=name)
    assert [file.name for file in tmp_path.iterdir()] == ["toys.h5"]


def test_resume_fills_a_gap_in_the_middle(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "join", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(study, out, OPTIONS)
    storage.complete_parts(out)[1][2].unlink()
    assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == N_TOYS - CHUNK
    assert_same_contents(out, whole[0])


def test_resume_with_nothing_there_starts(study, whole, tmp_path):
    out = tmp_path / "toys.h5"
    assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == 0
    assert_same_contents(out, whole[0])


def test_resume_of_a_complete_file_returns_it(study, whole, monkeypatch):
    path, report = whole
    before = path.read_bytes()
    parts_directory(path).mkdir()  # killed between its last two steps
    again = run(study, path, dataclasses.replace(OPTIONS, resume=True, command_line="another"))
    assert again.n_resumed == N_TOYS and path.read_bytes() == before
    np.testing.assert_array_equal(again.result.values, report.result.values)
    np.testing.assert_array_equal(again.validation.values, report.validation.values)
    assert again.validation.agrees.all()
    assert [file.name for file in path.parent.iterdir()] == ["toys.h5"]


OTHERS = [
    ({"seed": 4}, {}, r"seed was 3 and is now 4\. Name another output, or pass --overwrite"),
    ({"n_toys": 21}, {}, "n_toys was 22 and is now 21"),
    ({"source": "x = 1\n" * 20}, {}, "source differs"),
    ({}, {"name": "other"}, "model was peak and is now other"),
    ({}, {"limits": {}}, r"limits of ns was \[0.0, None\] and is now None; .*; 1 more of limits\. Name"),
    ({}, {"start": {"ns": 90.0, "nb": 300.0, "mu": 5.0, "sigma": 0.5, "lam": 4.0}}, r"start of ns was .*is now 90.0\."),
    # the same values in another order
    ({}, {"limits": dict(reversed(peak().limits.items()))}, "limits differs"),
]


@pytest.mark.parametrize("options, changes, words", OTHERS)
def test_another_run_is_not_continued(study, whole, options, changes, words):
    path, _ = whole
    before = path.read_bytes()
    other = dataclasses.replace(study, **changes)
    with pytest.raises(StorageError, match=f"toys.h5 belongs to another run: .*{words}"):
        run(other, path, dataclasses.replace(OPTIONS, resume=True, **options))
    report = run(study, path, dataclasses.replace(OPTIONS, resume=True))
    assert report.nothing_to_add and report.n_resumed == N_TOYS
    assert path.read_bytes() == before


def test_parts_of_another_run_are_not_continued(study, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, OPTIONS)
    for options, words in [({"seed": 4}, "seed was 3 and is now 4"), ({"n_toys": 9}, "n_toys was 22 and is now 9")]:
        with pytest.raises(StorageError, match=f"toys_0000000000-0000000008.h5 belongs to another run: {words}"):
            run(study, out, dataclasses.replace(OPTIONS, resume=True, **options))
    monkeypatch.setattr(memory, "LARGEST_CHUNK", 4)
    with pytest.raises(StorageError, match="chunk was 8 and is now 4"):
        run(study, out, dataclasses.replace(OPTIONS, resume=True))
    assert [(first, stop) for first, stop, _ in storage.complete_parts(out)] == [(0, 8)]


def test_overwrite_replaces_at_the_end_and_can_be_resumed(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    run(study, out, dataclasses.replace(OPTIONS, n_toys=3))
    old = out.read_bytes()
    with pytest.raises(StorageError, match="exists: pass --overwrite to replace it"):
        run(study, out, OPTIONS)
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, dataclasses.replace(OPTIONS, overwrite=True))
    assert out.read_bytes() == old
    # the old file is complete itself, and whoever wants it gets it
    assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == CHUNK
    assert_same_contents(out, whole[0])
    run(study, out, dataclasses.replace(OPTIONS, overwrite=True, n_toys=3))
    assert len(storage.load(out)) == 3


def test_disk_that_fills_up_loses_nothing(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    with monkeypatch.context() as patch:
        stop_after(patch, 1, StorageError("its disk is full"))
        with pytest.raises(StorageError, match="its disk is full"):
            run(study, out, OPTIONS)
    assert [(first, stop) for first, stop, _ in storage.complete_parts(out)] == [(0, 8)]
    assert not out.exists() and not out.with_name("toys.h5.lock").exists()
    run(study, out, dataclasses.replace(OPTIONS, resume=True))
    assert_same_contents(out, whole[0])


def test_final_file_that_another_program_wrote_meanwhile_is_kept(study, whole, chunks_of_8, tmp_path):
    out = tmp_path / "toys.h5"
    with pytest.raises(StorageError, match="was changed by another program meanwhile: move it, then continue"):
        run(study, out, OPTIONS, phase=lambda name, total: out.write_bytes(b"mine") if name == "join" else None)
    assert out.read_bytes() == b"mine" and len(storage.complete_parts(out)) == 3
    out.unlink()
    assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == N_TOYS
    assert_same_contents(out, whole[0])


@pytest.mark.parametrize("what", ["directory", "parts"])
def test_directory_that_is_removed_meanwhile(study, whole, chunks_of_8, tmp_path, what):
    out = tmp_path / "here" / "toys.h5"
    out.parent.mkdir()

    def remove(name, total):
        if name == "join":
            shutil.rmtree(out.parent if what == "directory" else parts_directory(out))

    with pytest.raises(StorageError, match=r"toys 0 to 21 of .* are missing: continue with --resume"):
        run(study, out, OPTIONS, phase=remove)
    out.parent.mkdir(exist_ok=True)
    run(study, out, dataclasses.replace(OPTIONS, resume=True))
    assert_same_contents(out, whole[0])


def test_final_file_grows_while_the_run_lasts(study, whole, chunks_of_8, tmp_path, monkeypatch):
    """No part is read again, but for those that a stopped run left."""
    out, read = tmp_path / "toys.h5", []
    add_file = joining._Joined.add_file
    monkeypatch.setattr(joining, "join_files", None)
    monkeypatch.setattr(
        joining._Joined, "add_file", lambda *arguments: read.append(arguments[1:3]) or add_file(*arguments)
    )
    run(study, out, OPTIONS)
    assert_same_contents(out, whole[0])
    assert read == []
    out.unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, OPTIONS)
    storage.complete_parts(out)[0][2].unlink()
    run(study, out, dataclasses.replace(OPTIONS, resume=True))
    assert_same_contents(out, whole[0])
    assert read == [(8, 16)]


def test_final_file_that_could_not_grow_is_joined(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out, tried = tmp_path / "toys.h5", []

    def fail(joined, part, source):
        tried.append(part.first)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(joining._Joined, "add_part", fail)
    run(study, out, OPTIONS)
    assert tried == [0]
    assert_same_contents(out, whole[0])
    assert [file.name for file in tmp_path.iterdir()] == ["toys.h5"]


# --- extending ---------------------------------------------------------------------------------------------

EXTEND = dataclasses.replace(OPTIONS, extend=True, validate=5)


def never(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("n_before", [3, 8, 19])
def test_extended_run_equals_the_whole(study, whole, chunks_of_8, tmp_path, monkeypatch, n_before):
    out = tmp_path / "toys.h5"
    run(study, out, dataclasses.replace(OPTIONS, n_toys=n_before))
    before = out.read_bytes()
    with monkeypatch.context() as patch:  # stopped while it throws
        stop_after(patch, 1, KeyboardInterrupt())
        patch.setattr(storage, "join", never)
        with pytest.raises(KeyboardInterrupt):
            run(study, out, EXTEND)
    with monkeypatch.context() as patch:  # and while it joins
        patch.setattr(storage, "join", never)
        with pytest.raises(KeyboardInterrupt):
            run(study, out, EXTEND)
    assert out.read_bytes() == before
    report = run(study, out, EXTEND)
    assert report.n_resumed == N_TOYS and report.tally.n_toys == N_TOYS
    assert_same_contents(out, whole[0])
    for name, array in report.validation._asdict().items():
        np.testing.assert_array_equal(array, getattr(whole[1].validation, name), err_msg=name)
    assert storage.read_attributes(out)["n_toys"] == N_TOYS
    assert [file.name for file in tmp_path.iterdir()] == ["toys.h5"]


def test_extension_may_be_resumed_as_any_run(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    run(study, out, dataclasses.replace(OPTIONS, n_toys=10))
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, EXTEND)
    assert [part[:2] for part in storage.complete_parts(out)] == [(10, 16)]
    # once, not of each part
    other = provenance.versions() | {"numpy": "0.1"}
    monkeypatch.setattr(provenance, "versions", lambda: other)
    with pytest.warns(UserWarning, match=r"was made with numpy .* \(here 0.1\): toys may differ by rounding") as told:
        assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == 16
    assert len(told) == 1
    assert json.loads(storage.read_attributes(out)["versions"])["numpy"] == np.__version__
    assert_same_contents(out, whole[0])


def test_nothing_to_add(study, whole):
    path, _ = whole
    before = path.read_bytes()
    for n_toys in (N_TOYS, 5):
        report = run(study, path, dataclasses.replace(EXTEND, n_toys=n_toys))
        assert report.nothing_to_add and report.tally.n_toys == N_TOYS and report.validation.agrees.all()
    report = run(study, path, dataclasses.replace(OPTIONS, resume=True))
    assert report.nothing_to_add and report.n_resumed == N_TOYS
    assert path.read_bytes() == before


def test_what_cannot_be_extended(study, whole, tmp_path):
    path, _ = whole
    before = path.read_bytes()
    more = dataclasses.replace(EXTEND, n_toys=30)
    with pytest.raises(StorageError, match=r"another run: seed was 3 and is now 4\. Name"):
        run(study, path, dataclasses.replace(more, seed=4))
    with pytest.raises(StorageError, match=r"another run: minos was None and is now True\. Name"):
        run(study, path, dataclasses.replace(more, minos=True))
    with pytest.raises(StorageError, match="does not exist: leave out --extend"):
        run(study, tmp_path / "toys.h5", more)
    with pytest.raises(ValueError, match="overwrite and extend exclude each other"):
        run(study, path, dataclasses.replace(more, overwrite=True))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == []
