"""The fit compiled in another process, while this one is busy with the model.

The fit is the same for all models, and is compiled once on a machine. That takes as long as everything that a first run
compiles besides, and numba compiles one function at a time in a process.
"""

import contextlib
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numba

from engine import newton_numba
from kernels.translate import cache_directory, compiled_by

__all__ = ["AHEAD", "Ahead"]

PATIENCE_SECONDS = 120.0
_PROGRAM = "from engine.newton_numba import fit_toys; fit_toys()"


class Ahead:
    """At most one process that compiles the fit; where an earlier one has, or there is a single core, none."""

    process: subprocess.Popen | None = None

    def begin(self) -> None:
        """Start it, if it has not been started."""
        if self.process is not None or numba.get_num_threads() < 2 or _marker().exists():
            return
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        nowhere = subprocess.DEVNULL
        with contextlib.suppress(OSError):
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _PROGRAM], env=environment, stdin=nowhere, stdout=nowhere, stderr=nowhere
            )

    def end(self) -> None:
        """Wait until the machine code is on disk; if it is not, because that failed, who fits compiles it himself."""
        if self.process is None:
            return
        try:
            if self.process.wait(PATIENCE_SECONDS) == 0:
                _marker().touch()
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        except OSError:  # a full disk: the next run starts another one
            pass
        self.process = None


AHEAD = Ahead()


def _marker() -> Path:
    """A file that tells that this version of the fit was compiled; numba goes by the time of a source, too."""
    source = Path(str(newton_numba.__file__))
    told = "\0".join([str(source), str(source.stat().st_mtime_ns), newton_numba.fingerprint(), *compiled_by()])
    return cache_directory() / f"fit_{hashlib.sha256(told.encode()).hexdigest()[:24]}"
