"""The thread that writes a run while the next toys are thrown and fitted."""

from __future__ import annotations

import time
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


class Writer:
    """Writes one part at a time, and adds it to the final file; an error comes out at the next call.

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
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self.written: Future[Part] | None = None
        self.added: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether `put` would wait."""
        return self.added is not None and not self.added.done()

    def put(self, first: int, toys: Arrays, result: FitResult, minos: MinosResult | None) -> None:
        """Write a part once all is done with the one before, so that no more than two are in memory."""
        self.wait()
        self._wait_until_added()
        self.written = written = self.pool.submit(self._timed, self._write, first, toys, result, minos)
        self.added = self.pool.submit(self._timed, self._add, written)

    def wait(self) -> None:
        """Wait until all parts are on disk."""
        if self.written is not None:
            self.written.result()

    def complete(self, attributes: Mapping[str, Any], validation: Mapping[str, np.ndarray] | None) -> bool:
        """Complete the final file if it has grown: whether it has."""
        if self.growing is None:
            return False
        return self.pool.submit(self._timed, self.growing.complete, attributes, validation).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self.growing is not None:
                self.growing.stop()
                self.pool.submit(self.growing.give_up)
            self.wait()
        finally:
            self.pool.shutdown()

    def _wait_until_added(self) -> None:
        added, self.added, self.written = self.added, None, None
        if added is not None:
            added.result()

    def _write(self, first: int, toys: Arrays, result: FitResult, minos: MinosResult | None) -> Part:
        written: list[Part] = []
        arguments = (first, toys.toys, result, self.attributes, toys.shared, minos, self.save_toys, written.append)
        try:
            storage.write_part(self.path, *arguments)
        except StorageError:
            if self.growing is None or self.growing.given_up:
                raise
            # parts are worth more than a final file that can be made of them: it may be what fills the disk
            self.growing.give_up()
            storage.write_part(self.path, *arguments)
        return written[0]

    def _add(self, written: Future[Part]) -> None:
        if self.growing is not None and written.exception() is None:
            self.growing.add(written.result())

    def _timed(self, step: Callable, *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return step(*arguments)
        finally:
            self.seconds += time.perf_counter() - started
