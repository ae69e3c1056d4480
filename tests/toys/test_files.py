"""Outputs that cannot be written, two writers, and files that appear complete or not at all."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from toys import files
from toys.files import StorageError, check_output, lock, new_file, parts_directory

SEARCH = os.pathsep.join(p for p in sys.path if p)


def assert_clear(raised, path):
    """One sentence with the file and an advice."""
    sentence = str(raised.value)
    assert str(path) in sentence and ": " in sentence and "\n" not in sentence
    assert "errno" not in sentence.lower()
    assert raised.value.__cause__ is None and (raised.value.__suppress_context__ or raised.value.__context__ is None)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "toys.h5"


# --- before a run ------------------------------------------------------------------------------------------


def test_check_output_of_a_new_file(path):
    for options in ({}, {"overwrite": True}, {"resume": True}):
        check_output(path, **options)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ValueError, match="exclude each other"):
        check_output(path, overwrite=True, resume=True)


def test_check_output_keeps_a_finished_file(path):
    path.write_text("results")
    with pytest.raises(StorageError, match="exists: pass --overwrite") as raised:
        check_output(path)
    assert_clear(raised, path)
    check_output(path, overwrite=True)
    check_output(path, resume=True)
    assert path.read_text() == "results"


def test_check_output_keeps_an_unfinished_run(path):
    part = parts_directory(path) / "toys_0000000000-0000000004.h5"
    part.parent.mkdir()
    part.touch()
    with pytest.raises(StorageError, match=r"unfinished run: pass --resume .*, --overwrite") as raised:
        check_output(path)
    assert_clear(raised, parts_directory(path))
    check_output(path, overwrite=True)
    check_output(path, resume=True)
    assert part.exists()


@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}])
def test_check_output_of_impossible_places(tmp_path, options, monkeypatch):
    def check(path, words):
        with pytest.raises(StorageError, match=words) as raised:
            check_output(path, **options)
        assert_clear(raised, path if path.parent.exists() else path.parent)

    (tmp_path / "file").touch()
    (tmp_path / "toys.h5.parts").touch()
    check(tmp_path, "is a directory: name a file in it")
    check(tmp_path / "missing" / "toys.h5", "missing, the directory of toys.h5, does not exist: create it")
    check(tmp_path / "file" / "toys.h5", "should be its directory is a file")
    check(tmp_path / "toys.h5", "toys.h5.parts is in the way")

    def read_only(*arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    check(tmp_path / "other.h5", "its disk is read-only")


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a directory where root cannot write")
def test_check_output_really_tries_to_write():
    with pytest.raises(StorageError, match=r"/proc/toys.h5 .*: "):
        check_output("/proc/toys.h5")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes whatever the permissions say")
def test_check_output_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="permission denied"):
        check_output(tmp_path / "other.h5")


# --- writing -----------------------------------------------------------------------------------------------


def test_new_file_lies_aside_until_it_is_complete(path):
    aside = path.parent / "aside"
    aside.mkdir()
    path.write_bytes(b"old")
    with new_file(path, aside=aside) as disk:
        disk.write(b"new")
        assert path.read_bytes() == b"old"
        assert [file.name for file in aside.iterdir()] == [f"toys.h5.tmp.{os.getpid()}"]
    assert path.read_bytes() == b"new" and list(aside.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_new_file_that_is_given_up_leaves_the_old_one(path, error):
    path.write_bytes(b"old")
    with pytest.raises(error), new_file(path) as disk:
        disk.write(b"new")
        raise error
    assert path.read_bytes() == b"old" and len(list(path.parent.iterdir())) == 1


def test_disk_keeps_its_first_failure_to_itself(path):
    with pytest.raises(StorageError, match="cannot be written") as raised, new_file(path) as disk:
        os.close(disk.fileno())
        descriptor = os.open(os.devnull, os.O_RDONLY)  # takes the free descriptor: writing to it fails
        assert descriptor == disk.fileno()
        assert disk.write(b"lost") == 4 and disk.truncate(2) == 2
        assert disk.failure.errno == errno.EBADF
    assert_clear(raised, path)
    assert list(path.parent.iterdir()) == []


# --- two writers -------------------------------------------------------------------------------------------

HOLDER = """
import os, sys, time
sys.path[:0] = sys.argv[1].split(os.pathsep)
from toys.files import lock
with lock(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_lock_of_another_process(path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, SEARCH, path], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            words = f"is being written by process {holder.pid} on .*: wait"
            with pytest.raises(StorageError, match=words) as raised, lock(path):
                pass
            assert_clear(raised, path)
        finally:
            holder.kill()
    # the dead process left its file
    assert path.with_name("toys.h5.lock").exists()
    with lock(path):
        with pytest.raises(StorageError, match=f"process {os.getpid()} "), lock(path):
            pass
        assert path.with_name("toys.h5.lock").exists()
    with lock(path):
        pass
    assert list(path.parent.iterdir()) == []


def test_lock_is_given_back_by_an_error(path):
    with pytest.raises(KeyboardInterrupt), lock(path):
        raise KeyboardInterrupt
    with lock(path):
        pass


def test_lock_that_was_removed_meanwhile_is_no_lock(path, monkeypatch):
    """A holder that ends between our open and our lock takes its file away: a third could lock a new one."""
    flock, calls = files.fcntl.flock, []

    def late(descriptor, operation):
        if not calls:
            path.with_name("toys.h5.lock").unlink()
        calls.append(descriptor)
        flock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    with lock(path):
        assert len(calls) == 2
        with pytest.raises(StorageError), lock(path):
            pass


def test_lock_in_a_missing_directory(tmp_path):
    with (
        pytest.raises(StorageError, match="does not exist: create it") as raised,
        lock(tmp_path / "missing" / "toys.h5"),
    ):
        pass
    assert_clear(raised, tmp_path / "missing")


def test_lock_on_a_disk_that_became_read_only(path, monkeypatch):
    """What cannot be removed any more hides no error, and holds nobody up."""

    def read_only(self, missing_ok=False):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.unlink", read_only)
        with pytest.raises(ZeroDivisionError), lock(path):
            raise ZeroDivisionError
    with lock(path):
        pass
    assert list(path.parent.iterdir()) == []


# --- signals -----------------------------------------------------------------------------------------------


class Terminated(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("number, error", [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_signal_waits_until_hdf5_has_returned(path, number, error):
    """Raised inside of a callback of HDF5 it would bring the process down."""

    def stop(number, frame):
        raise Terminated

    before = {signal.SIGINT: signal.getsignal(signal.SIGINT), signal.SIGTERM: signal.signal(signal.SIGTERM, stop)}
    try:
        with pytest.raises(error) as raised, new_file(path) as disk:
            os.kill(os.getpid(), number)
            assert disk.write(b"lost") == 4
            assert type(disk.failure) is error
            os.kill(os.getpid(), number)
        assert type(raised.value) is error
        assert signal.getsignal(signal.SIGTERM) is stop
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        signal.signal(signal.SIGTERM, before[signal.SIGTERM])
    assert list(path.parent.iterdir()) == []


def test_identity_of_a_file(path):
    assert files.identity(path) == ()
    path.write_text("a")
    first = files.identity(path)
    assert files.identity(path) == first != ()
    other = path.with_name("other")
    other.write_text("a")
    os.replace(other, path)
    assert files.identity(path) != first
