"""Outputs that are there, that are stopped at, or that cannot be written."""

import os
import subprocess
from pathlib import Path

import h5py
import numpy as np
import pytest

import toys
from tests.scripts.command_line import MY_STUDY, SMALL, call, finished, refused, run_toys
from toys import storage
from toys.files import StorageError, lock

pytestmark = pytest.mark.usefixtures("empty_directory")


def test_output_is_kept(finished_run):
    path, contents = finished_run
    told = refused(*SMALL, "--seed", "9", "--out", path)
    assert told == f"{path} exists: pass --overwrite to replace it, --extend to add toys to it, or name another output"
    told = refused(*SMALL, "--seed", "9", "--resume", "--out", path)
    assert told == f"{path} belongs to another run: seed was 1 and is now 9. Name another output, or pass --overwrite"
    assert "20 toys were there from an earlier run" in finished(*SMALL, "--resume", "--out", path)
    assert path.read_bytes() == contents and [file.name for file in path.parent.iterdir()] == ["toys.h5"]


def test_output_of_another_kind_is_kept():
    Path("thesis.tex").write_text("important")
    assert "thesis.tex is not an HDF5 file: name another file" in refused(*SMALL, "--resume", "--out", "thesis.tex")
    assert Path("thesis.tex").read_text() == "important"


def test_overwrite():
    finished(*SMALL, "--n", "3")
    finished(*SMALL, "--n", "4", "--overwrite")
    assert len(toys.load("toys.h5")) == 4


def test_overwrite_replaces_nothing_but_a_run(finished_run):
    Path("thesis.tex").write_text("important")
    with h5py.File("data.h5", "w") as file:
        file["x"] = np.ones(3)
    Path("half.h5").write_bytes(finished_run[1][:1000])
    for name in ("thesis.tex", "data.h5", "half.h5"):
        contents = Path(name).read_bytes()
        told = refused(*SMALL, "--out", name, "--overwrite")
        assert told == (
            f"{name} is no file of run_toys.py, or a damaged one, and is not replaced: move it, or name another output"
        )
        assert Path(name).read_bytes() == contents
    assert sorted(file.name for file in Path().iterdir()) == ["data.h5", "half.h5", "thesis.tex"]


@pytest.mark.parametrize("how", ["--overwrite", "--resume"])
def test_output_that_is_read(finished_run, how):
    """A file of ours may be data, too."""
    Path("data.h5").write_bytes(finished_run[1])
    Path("link.h5").symlink_to("data.h5")
    for name in ("data.h5", "link.h5"):
        told = refused(*SMALL, how, "--out", name, "--data", "data.h5", "--column", "toys/values")
        assert told == f"the output {name} is the input data.h5: name another output"
    Path("my_study.py").write_text(MY_STUDY)
    told = refused("--n", "2", how, "--model", "my_study.py", "--out", "./my_study.py")
    assert told == "the output ./my_study.py is the input my_study.py: name another output"
    assert Path("data.h5").read_bytes() == finished_run[1] and Path("my_study.py").read_text() == MY_STUDY


def test_error_while_writing(monkeypatch):
    def full(*arguments):
        raise StorageError("toys.h5 cannot be written, its disk is full: free space, then continue with --resume")

    monkeypatch.setattr(storage, "write_part", full)
    assert "its disk is full" in refused(*SMALL)


def test_unexpected_errors_are_not_hidden(monkeypatch):
    """A bug of ours is a traceback, not a wrong argument."""
    monkeypatch.setattr("toys.run._chunk", lambda n: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        call(run_toys.main, *SMALL)


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupt_anywhere(monkeypatch, overwrite):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    def stopped(place, *extra):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            how = ["--overwrite"] if overwrite else ["--resume"]
            code, _, err = call(run_toys.main, *SMALL, "--n", "2", *how, *extra)
        assert code == 130
        return err

    early = ("toys.finding.prepare", "toys.run.compile_study", "toys.run.generate")
    for place in early:
        assert stopped(place) == "\nstopped: toys.h5 is not there yet; run the same command again\n"
    assert stopped("toys.final.summary") == "\nstopped: toys.h5 is complete\n"
    for place in early if overwrite else early[:2]:
        assert stopped(place) == "\nstopped: toys.h5 is as it was; run the same command again\n"
    instead = " instead of --overwrite" if overwrite else ""
    told = f"\nstopped: toys.h5 is not complete; run the same command with --resume{instead} to continue\n"
    Path("toys.h5").unlink()
    assert stopped("toys.run.validate_run", "--validate", "1") == told
    assert [file.name for file in Path("toys.h5.parts").iterdir()] == ["toys_0000000000-0000000002.h5"]
    # the parts are those that were there
    assert stopped("toys.run.compile_study") == "\nstopped: toys.h5 is not there yet; run the same command again\n"


def test_interrupt_of_an_extension(monkeypatch, finished_run):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    Path("toys.h5").write_bytes(finished_run[1])
    monkeypatch.setattr("toys.run.validate_run", interrupt)
    code, _, err = call(run_toys.main, *SMALL, "--n", "25", "--extend", "--validate", "1")
    assert (code, err) == (130, "\nstopped: toys.h5 is as it was; run the same command again\n")
    assert Path("toys.h5").read_bytes() == finished_run[1] and Path("toys.h5.parts").exists()


def test_output_that_another_process_writes():
    with lock("toys.h5"):
        told = refused(*SMALL)
    assert told.startswith(f"toys.h5 is being written by process {os.getpid()} on ") and "wait for its end" in told
    finished(*SMALL, "--resume")


def test_disk_that_fills_up_during_a_run(tmp_path, finished_run):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk of its own cannot be mounted: {mounted.stderr.strip()}")
    try:
        (disk / "ballast").write_bytes(bytes(400_000))
        small = [*SMALL, "--chunk", "5", "--out", disk / "toys.h5"]
        told = refused(*small)
        assert "cannot be written, its disk is full: free space, then continue with --resume" in told
        done = storage.complete_parts(disk / "toys.h5")
        assert 1 <= len(done) <= 4 and not (disk / "toys.h5").exists()
        (disk / "ballast").unlink()
        assert f"{5 * len(done)} toys were there from an earlier run" in finished(*small, "--resume")
        mine, whole = toys.load(disk / "toys.h5"), toys.load(finished_run[0])
        np.testing.assert_array_equal(mine.covariance, whole.covariance)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
