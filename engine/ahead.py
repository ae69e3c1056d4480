"""The fit compiled in another process, while this one is busy with the model.

The fit is the same for all models, and is compiled once on a machine. That takes as long as everything that a first run
compiles besides, and numba compiles one function at a time in a process.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from engine import newton_numba
from kernels.translate import cache_directory, compiled_by

__all__ = ["AHEAD", "Ahead"]

_PROGRAM = "from engine.newton_numba import fit_toys; fit_toys()"


class Ahead:
    """At most one process that compiles the fit; where an earlier one has, or there is a single core, none."""

    process: subprocess.Popen | None = None

    def begin(self) -> None:
        """Start it, if it has not been started."""
        if self.process is not None or (os.cpu_count() or 1) < 2 or _marker().exists():
            return
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        nowhere = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-P", "-c", _PROGRAM], env=environment, **nowhere)

    def end(self) -> None:
        """Wait until the machine code is on disk; if it is not, because that failed, who fits compiles it himself."""
        if self.process is not None:
            if self.process.wait() == 0:
                _marker().touch()
            self.process = None


AHEAD = Ahead()


def _marker() -> Path:
    """A file that tells that the fit was compiled."""
    source = Path(str(newton_numba.__file__)).read_text(encoding="utf-8")
    return cache_directory() / f"fit_{hashlib.sha256(chr(0).join([source, *compiled_by()]).encode()).hexdigest()[:24]}"
