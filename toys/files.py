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
import glob
import io
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
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
    "identity",
    "lock",
    "new_file",
    "parts_directory",
    "reading",
    "refuse_directory",
    "refuse_inputs",
    "remove_temporaries",
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


def check_output(path: str | Path, *, overwrite: bool = False, resume: bool = False, extend: bool = False) -> None:
    """Raise StorageError now if `path` could not be written at the end of a run; nothing is changed.

    Without `overwrite`, `resume` and `extend`, neither the file nor parts of it may exist; with `extend`, it must.

    Raises
    ------
    StorageError
    ValueError
        If `overwrite` is given with one of the others.
    """
    path, parts = Path(path), parts_directory(path)
    if overwrite and (resume or extend):
        raise ValueError(f"overwrite and {'resume' if resume else 'extend'} exclude each other")
    with writing(path):
        refuse_directory(path)
        # permission bits say nothing to root, or of a full or read-only disk: really try
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"0")
    if parts.exists() and not parts.is_dir():
        raise StorageError(f"{parts} is in the way: move it, or name another output")
    if extend and not path.exists():
        begun = (
            "is not complete: pass --resume to continue it" if parts.exists() else "does not exist: leave out --extend"
        )
        raise StorageError(f"{path} {begun}")
    if overwrite or resume or extend:
        return
    if path.exists():
        raise StorageError(
            f"{path} exists: pass --overwrite to replace it, --extend to add toys to it, or name another output"
        )
    if parts.exists():
        raise StorageError(
            f"{parts} holds an unfinished run: pass --resume to continue it, --overwrite to start anew, "
            "or name another output"
        )


def refuse_inputs(out: str | Path, inputs: Iterable[str | Path]) -> None:
    """Raise StorageError if an output is one of the files that are read, under whatever name."""
    for read in inputs:
        if os.path.exists(out) and os.path.exists(read) and os.path.samefile(out, read):
            raise StorageError(f"the output {out} is the input {read}: name another output")


def identity(path: Path) -> tuple:
    """What changes when another program replaces or writes a file; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


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
        # removed before it is given back: whoever opened it meanwhile sees that it has no name any more;
        # where that fails, as on a disk that became read-only, the next run takes it
        with contextlib.suppress(OSError):
            lock_file.unlink()
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
    """A file for HDF5 to write, which keeps the first failure, or signal, to itself until `check`.

    After a failed write HDF5 can neither close its file nor forget it, and brings the process down later.
    """

    failure: BaseException | None = None
    _on_its_way = 0

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

    def hurry(self) -> None:
        """Let the system begin to write what is new, where it can be told to: the wait at the end becomes short."""
        end = os.fstat(self.fileno()).st_size
        if hasattr(os, "posix_fadvise") and self.failure is None:
            # what is to be dropped must be on the disk: Linux begins to write it, and does not wait
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.fileno(), self._on_its_way, end - self._on_its_way, os.POSIX_FADV_DONTNEED)
        self._on_its_way = end

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


def remove_temporaries(path: Path) -> None:
    """Remove what a process that was killed left of a new file."""
    for file in path.parent.glob(f"{glob.escape(path.name)}.tmp.*"):
        pid = file.name.rpartition(".")[2]
        if pid.isdecimal() and not alive(int(pid)):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _interrupts_kept(disk: Disk) -> Iterator[None]:
    """Make Ctrl-C and SIGTERM a failure of the disk: Python would raise them inside of HDF5's calls of `Disk`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    ours: dict[int, Callable] = {number: handler for number, handler in handlers.items() if callable(handler)}

    def keep(number: int, frame: FrameType | None) -> None:
        try:
            ours[number](number, frame)
        except BaseException as error:
            disk.failure = disk.failure or error

    for number in ours:
        signal.signal(number, keep)
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


def refuse_directory(path: Path) -> None:
    """Raise OSError for a directory, of which HDF5 would say something else, and a pipe, for which it would wait."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    if path.exists() and not path.is_file():
        raise OSError(errno.ENODEV, "is a pipe or device")


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
    errno.ENODEV: "is a pipe or device: name a file",
    errno.ENAMETOOLONG: "is too long a name: name another file",
    errno.EACCES: "cannot be {done}, permission denied: change its permissions, or name another file",
    errno.EPERM: "cannot be {done}, permission denied: change its permissions, or name another file",
    errno.EROFS: "cannot be written, its disk is read-only: name another file",
    errno.ENOSPC: "cannot be written, its disk is full: free space, then continue with --resume",
    errno.EDQUOT: "cannot be written, the disk quota is used up: free space, then continue with --resume",
    errno.EFBIG: "cannot be written, it exceeds the allowed size: raise that limit, or use another disk",
    errno.EAGAIN: "is open in another program: close it there",
}


# what is read may not fit together, or be more than there is memory
UNFIT = (LookupError, ValueError, TypeError, AttributeError, MemoryError)


@contextlib.contextmanager
def _clear_errors(path: str | Path, remedy: str | None = None, *, done: str) -> Iterator[None]:
    """Turn what the system and HDF5 say of a file that is "read" or "written" into a StorageError.

    `remedy` is what to do about a damaged file, where that is not one of ours.
    """
    # HDF5 also raises KeyError, for a missing group, and what is read may not fit together: ValueError
    caught = (OSError, RuntimeError) + (UNFIT if done == "read" else ())
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
