"""The files of a run on the disk: whether they can be written, who writes them, and what went wrong, in one sentence.

Nothing here knows what a file holds. While a run writes `toys.h5`, its parts lie in `toys.h5.parts/`, and
`toys.h5.lock` keeps other processes away. A new file is written aside, synchronised to disk and renamed: it exists
complete or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Buffer  # of Python 3.12

__all__ = [
    "PART",
    "Disk",
    "StorageError",
    "advice",
    "alive",
    "check_output",
    "lock",
    "new_file",
    "parts_directory",
    "reading",
    "refuse_directory",
    "synchronise",
    "writing",
]

#: Name of a part: its first toy, and the one behind its last.
PART = re.compile(r"toys_(\d{10,})-(\d{10,})\.h5")


class StorageError(Exception):
    """A file cannot be read or written; the sentence names it and says what to do."""


# --- before a run ------------------------------------------------------------------------------------------


def parts_directory(path: str | Path) -> Path:
    """Where the parts of `path` lie while a run lasts: `toys.h5.parts` beside `toys.h5`."""
    return _beside(path, ".parts")


def check_output(path: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Raise StorageError now if `path` could not be written at the end of a run; nothing is changed.

    Without `overwrite` and `resume`, neither the file nor parts of it may exist.

    Raises
    ------
    StorageError
    ValueError
        If both `overwrite` and `resume` are given.
    """
    path, parts = Path(path), parts_directory(path)
    if overwrite and resume:
        raise ValueError("overwrite and resume exclude each other")
    with writing(path):
        refuse_directory(path)
        # permission bits say nothing to root, or of a full or read-only disk: really try
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"0")
    if parts.exists() and not parts.is_dir():
        raise StorageError(f"{parts} is in the way: move it, or name another output")
    if overwrite or resume:
        return
    if path.exists():
        raise StorageError(f"{path} exists: pass --overwrite to replace it, or name another output")
    if parts.exists():
        raise StorageError(
            f"{parts} holds an unfinished run: pass --resume to continue it, --overwrite to start anew, "
            "or name another output"
        )


# --- two writers -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(path: str | Path) -> Iterator[None]:
    """Hold `toys.h5.lock`, so that no two processes write one output.

    The operating system gives the lock of a dead process back, whatever file it left.

    Raises
    ------
    StorageError
        If another process holds the lock, naming that process.
    """
    lock_file = _beside(path, ".lock")
    with writing(lock_file):
        descriptor = _acquire(lock_file, path)
    try:
        yield
    finally:
        # removed before it is given back: whoever opened it meanwhile sees that it has no name any more
        lock_file.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(lock_file: Path, path: str | Path) -> int:
    """Open descriptor of the lock file, locked for this process alone."""
    while True:
        descriptor = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # no name: its holder finished between our open and our lock
            if os.fstat(descriptor).st_nlink:
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()} on {socket.gethostname()}".encode())
                return descriptor
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "unknown"
            os.close(descriptor)
            raise StorageError(
                f"{path} is being written by process {holder}: wait for its end, or name another output"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


# --- writing -----------------------------------------------------------------------------------------------


class Disk(io.FileIO):
    """A file for HDF5 to write, which keeps the first failure, or Ctrl-C, to itself until `check`.

    After a failed write HDF5 can neither close its file nor forget it, and brings the process down later.
    """

    failure: OSError | KeyboardInterrupt | None = None

    def write(self, data: Buffer, /) -> int:
        left = whole = memoryview(data)
        while left and self.failure is None:
            with self._keep_failure():
                left = left[super().write(left) :]
        return len(whole)

    def truncate(self, size: int | None = None, /) -> int:
        size = self.tell() if size is None else size
        if self.failure is None:
            with self._keep_failure():
                super().truncate(size)
        return size

    @contextlib.contextmanager
    def _keep_failure(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failure = error

    def check(self) -> None:
        """Raise the failure, if there was one."""
        if self.failure is not None:
            raise self.failure


@contextlib.contextmanager
def new_file(path: Path, *, aside: Path | None = None) -> Iterator[Disk]:
    """A file that appears under `path` complete or not at all; meanwhile it lies in `aside`.

    Raises StorageError if it cannot be written.
    """
    temporary = (aside or path.parent) / f"{path.name}.tmp.{os.getpid()}"
    with writing(path):
        try:
            with Disk(temporary, "w+") as disk, _interrupts_kept(disk):
                try:
                    yield disk
                finally:
                    disk.check()
                os.fsync(disk.fileno())
                disk.check()
            os.replace(temporary, path)
            synchronise(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _interrupts_kept(disk: Disk) -> Iterator[None]:
    """Make Ctrl-C a failure of the disk: Python would raise it inside of HDF5's calls of `Disk`."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def keep(*_: object) -> None:
        disk.failure = disk.failure or KeyboardInterrupt()

    signal.signal(signal.SIGINT, keep)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def refuse_directory(path: Path) -> None:
    """Raise IsADirectoryError for a directory, of which HDF5 would say something else."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory")


def synchronise(directory: Path) -> None:
    """Wait until the names of the files in a directory are on the disk."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def alive(pid: int) -> bool:
    """Whether there is such a process on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _beside(path: str | Path, suffix: str) -> Path:
    return Path(f"{path}{suffix}")


# --- errors ------------------------------------------------------------------------------------------------

_SENTENCES = {
    errno.ENOENT: "does not exist: check the path",
    errno.ENOTDIR: "cannot exist, because what should be its directory is a file: check the path",
    errno.EISDIR: "is a directory: name a file in it",
    errno.ENAMETOOLONG: "is too long a name: name another file",
    errno.EACCES: "cannot be {done}, permission denied: change its permissions, or name another file",
    errno.EPERM: "cannot be {done}, permission denied: change its permissions, or name another file",
    errno.EROFS: "cannot be written, its disk is read-only: name another file",
    errno.ENOSPC: "cannot be written, its disk is full: free space, then continue with --resume",
    errno.EDQUOT: "cannot be written, the disk quota is used up: free space, then continue with --resume",
    errno.EFBIG: "cannot be written, it exceeds the allowed size: raise that limit, or use another disk",
    errno.EAGAIN: "is open in another program: close it there",
}


@contextlib.contextmanager
def _clear_errors(path: str | Path, remedy: str | None = None, *, done: str) -> Iterator[None]:
    """Turn what the system and HDF5 say of a file that is "read" or "written" into a StorageError.

    `remedy` is what to do about a damaged file, where that is not one of ours.
    """
    # HDF5 also raises KeyError, for a missing group, and what is read may not fit together: ValueError
    caught = (OSError, RuntimeError) + ((KeyError, ValueError, TypeError) if done == "read" else ())
    try:
        yield
    except caught as error:
        raise StorageError(_sentence(Path(path), error, done, remedy)) from None


reading = functools.partial(_clear_errors, done="read")
writing = functools.partial(_clear_errors, done="written")


def _sentence(path: Path, error: Exception, done: str, remedy: str | None) -> str:
    # HDF5 puts the number into its text only
    told = re.search(r"errno = (\d+)", str(error))
    number = int(told[1]) if told else getattr(error, "errno", None)
    if number == errno.ENOENT and not path.parent.exists():
        return f"{path.parent}, the directory of {path.name}, does not exist: create it"
    if number in _SENTENCES:
        return f"{path} " + _SENTENCES[number].format(done=done)
    if number:
        return f"{path} cannot be {done}: {os.strerror(number)}"
    if done == "written":
        return f"{path} cannot be written: {error}"
    if "file signature not found" in str(error):
        what = "is empty" if path.stat().st_size == 0 else "is not an HDF5 file"
    else:
        what = "is truncated" if "truncated file" in str(error) else "is damaged"
    return f"{path} {what}: {remedy or advice(path)}"


def advice(path: Path) -> str:
    """What to do about a damaged file of a run, or part of one."""
    if PART.fullmatch(path.name):
        return "delete it, then continue with --resume"
    return "name another file, restore a copy, or run again with --overwrite"
