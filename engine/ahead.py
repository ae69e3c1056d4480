"""The fit compiled in two other processes, while this one is busy with the model.

The fit is the same for all models, and is compiled once on a machine. That takes three times as long as everything that
a first run compiles besides, and numba compiles one function at a time in a process.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import numba

from engine import newton_numba
from kernels.translate import cache_directory, compiled_by

__all__ = ["AHEAD", "Ahead"]

PATIENCE_SECONDS = 120.0
_PROGRAMS = [f"from engine import newton_numba; newton_numba.{half}()" for half in ("loop_of_fit", "around_the_loop")]


class Ahead:
    """Processes that compile the fit, one for each half; none where earlier ones have, or there is a single core."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen] = []

    def begin(self) -> None:
        """Start them, if they have not been started."""
        if self.processes or numba.get_num_threads() < 2 or _marker().exists():
            return
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        nowhere = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            for program in _PROGRAMS:
                command = [sys.executable, "-P", "-c", program]
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdin=nowhere, stdout=nowhere, stderr=nowhere)
                )

    def end(self) -> None:
        """Wait until the machine code is on disk; if it is not, because that failed, who fits compiles it himself."""
        if not self.processes:
            return
        patient_until = time.monotonic() + PATIENCE_SECONDS
        for process in self.processes:
            try:
                process.wait(max(patient_until - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if [process.returncode for process in self.processes] == [0] * len(_PROGRAMS):
            with contextlib.suppress(OSError):  # a full disk: the next run starts others
                _marker().touch()
        self.processes = []


AHEAD = Ahead()


def _marker() -> Path:
    """A file that tells that this version of the fit was compiled; numba goes by the time of a source, too."""
    source = Path(str(newton_numba.__file__))
    told = "\0".join([str(source), str(source.stat().st_mtime_ns), newton_numba.fingerprint(), *compiled_by()])
    return cache_directory() / f"fit_{hashlib.sha256(told.encode()).hexdigest()[:24]}"
