"""Ctrl-C and SIGTERM end a script within seconds, whatever it is doing. Nothing heavy is imported."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

GRACE = 4.0  # seconds that work which cannot be interrupted, such as a compilation, gets before the process ends


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


@contextmanager
def stoppable(last_words: Callable[[], str], end: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Raise Terminated for SIGTERM, as Python raises KeyboardInterrupt for Ctrl-C; end the process if that takes long.

    A second signal ends it at once, as does the first during an import, which may turn what is raised in it into an
    error of its own. Files that are not complete then are left for the next run to remove.

    Parameters
    ----------
    last_words : callable
        Gives what is printed on stderr where the process is ended.
    end : callable
        Takes the exit code.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping, report_unraisable = 0, sys.unraisablehook

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if not stopping:
            stopping = number
            if _in_import(frame):
                _end(number, last_words, end)
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def unheard(raised: Any) -> None:
        """The exception came while C called Python, as in an import, and is lost."""
        if stopping and isinstance(raised.exc_value, KeyboardInterrupt):
            _end(stopping, last_words, end)
        else:
            report_unraisable(raised)

    listener, speaker = socket.socketpair()
    speaker.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(listener, last_words, end), daemon=True)
    watcher.start()
    # Python's own handlers wait for the end of what runs in C, this does not
    wakeup = signal.set_wakeup_fd(speaker.fileno(), warn_on_full_buffer=False)
    sys.unraisablehook = unheard
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        sys.unraisablehook = report_unraisable
        speaker.close()
        watcher.join()
        listener.close()


def _in_import(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _watch(listener: socket.socket, last_words: Callable[[], str], end: Callable[[int], object]) -> None:
    """Wait for a signal, and then for the end of the process, the next signal or the end of grace."""
    number = 0
    while number not in (signal.SIGINT, signal.SIGTERM):
        told = listener.recv(1)
        if not told:
            return
        number = told[0]
    listener.settimeout(GRACE)
    try:
        if not listener.recv(1):
            return
    except TimeoutError:
        pass
    _end(number, last_words, end)


def _end(number: int, last_words: Callable[[], str], end: Callable[[int], object]) -> None:
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    os.write(2, f"{show_cursor}\n{last_words()}\n".encode())
    end(128 + number)
