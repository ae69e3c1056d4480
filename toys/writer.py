"""The threads that write a run while the next toys are thrown and fitted."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from engine.minos import MinosResult
from engine.result import FitResult
from toys import storage
from toys.files import StorageError
from toys.joining import Growing
from toys.packing import Arrays
from toys.parts import Part

__all__ = ["Writer"]

#: Parts that are written together: a disk may take long to tell that it has one.
AT_ONCE = 4


class Writer:
    """Writes parts, and adds those that are on disk to the final file; an error comes out at a later call.

    Parameters
    ----------
    path : path of the final file
    attributes : dict
        Of the run.
    save_toys : bool
    growing : Growing, optional
        The final file; without it, parts are all that is written.

    Attributes
    ----------
    seconds : float
        How long it wrote.
    """

    def __init__(
        self, path: Path, attributes: Mapping[str, Any], save_toys: bool, growing: Growing | None = None
    ) -> None:
        self.path, self.attributes, self.save_toys, self.growing = path, attributes, save_toys, growing
        self.seconds = 0.0
        self.pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="writer")
        self.adding = ThreadPoolExecutor(1, thread_name_prefix="adding")
        self.adding.submit(int).result()  # a thread that cannot be started is told here
        self.lock = threading.Lock()
        self.room = threading.Semaphore(AT_ONCE)
        self.begun = deque[Future[Part]]()  # parts that are not in the final file, in order
        self.failure: BaseException | None = None
        self.steps, self.since = 0, 0.0

    @property
    def busy(self) -> bool:
        """Whether `put` would wait."""
        if free := self.room.acquire(blocking=False):
            self.room.release()
        return not free

    def put(self, first: int, toys: Arrays, result: FitResult, minos: MinosResult | None) -> None:
        """Write a part, as soon as fewer than `AT_ONCE` are in memory."""
        self.room.acquire()
        self._check()
        with self.lock:
            written = self.pool.submit(self._timed, self._write, first, toys, result, minos)
            self.begun.append(written)
        written.add_done_callback(lambda written: self._add_written())

    def wait(self) -> None:
        """Wait until all parts are on disk and in the final file."""
        for _ in range(AT_ONCE):
            self.room.acquire()
        self.room.release(AT_ONCE)
        self._check()

    def complete(self, attributes: Mapping[str, Any], validation: Mapping[str, np.ndarray] | None) -> bool:
        """Complete the final file if it has grown: whether it has."""
        self.wait()
        if self.growing is None:
            return False
        return self.adding.submit(self._timed, self.growing.complete, attributes, validation).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # each of these may be interrupted again
        try:
            self._give_up()
        finally:
            try:
                self.pool.shutdown()
            finally:
                self.adding.shutdown()
        if error is None:
            self._check()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _write(self, first: int, toys: Arrays, result: FitResult, minos: MinosResult | None) -> Part:
        written: list[Part] = []
        arguments = (first, toys.toys, result, self.attributes, toys.shared, minos, self.save_toys, written.append)
        try:
            storage.write_part(self.path, *arguments)
        except StorageError:
            if self.growing is None:
                raise
            # parts are worth more than a final file that can be made of them: it may be what fills the disk
            self._give_up()
            storage.write_part(self.path, *arguments)
        return written.pop()

    def _add_written(self) -> None:
        """Add the parts that are on disk up to the first that is not."""
        with self.lock:
            while self.begun and self.begun[0].done():
                self.adding.submit(self._timed, self._add, self.begun.popleft())

    def _add(self, written: Future[Part]) -> None:
        try:
            part = written.result()
            if self.growing is not None:
                self.growing.add(part)
        except BaseException as error:
            self.failure = self.failure or error
        finally:
            self.room.release()

    def _give_up(self) -> None:
        """Remove what has grown, unless it has its name."""
        if self.growing is not None:
            self.growing.stop()
            self.adding.submit(self.growing.give_up).result()

    def _timed(self, step: Callable, *arguments: Any) -> Any:
        """Steps of several threads at the same time count once."""
        with self.lock:
            self.since = self.since if self.steps else time.perf_counter()
            self.steps += 1
        try:
            return step(*arguments)
        finally:
            with self.lock:
                self.steps -= 1
                self.seconds += 0.0 if self.steps else time.perf_counter() - self.since
