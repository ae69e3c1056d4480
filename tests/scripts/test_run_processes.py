"""run_toys.py as a process: its start, its threads, and what signals do to it."""

import os
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

from tests.scripts.command_line import SCRIPTS, SEARCH, SMALL, process, script
from toys import storage
from toys.files import parts_directory

pytestmark = pytest.mark.usefixtures("empty_directory")


@pytest.mark.parametrize("code", [0, 2, 130])
def test_a_thread_that_hangs_does_not_keep_the_process(code):
    program = (
        f"import sys, threading; sys.path.insert(0, {str(SCRIPTS)!r}); from arguments import leave; "
        f"threading.Thread(target=threading.Event().wait).start(); print('said'); leave({code})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "said\n", "")


def test_help_is_quick(tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['run_toys.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPTS / 'run_toys.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    heavy = {'jax', 'numba', 'numpy', 'h5py', 'rich', 'toys'} & sys.modules.keys()\n"
        "    print('heavy:', sorted(heavy))\n"
    )
    helped = process("-c", code, cwd=tmp_path)
    assert helped.returncode == 0 and helped.stderr == ""
    assert "heavy: []" in helped.stdout and "--resume" in helped.stdout and "Exit code 0: done" in helped.stdout


@pytest.mark.parametrize(
    "name, package, told",
    [
        ("toys/__init__.py", "", "another package named 'toys' at {}/toys hides batchfit's: use another environment"),
        ("toys.py", "", "another package named 'toys' at {}/toys.py hides batchfit's: use another environment"),
        ("toys.py", "import nosuchmodule", "No module named 'nosuchmodule': install the project first"),
        (
            "engine/__init__.py",
            "",
            "batchfit's toys found another package named 'engine' at {}/engine: put batchfit first",
        ),
        ("engine.py", "", "batchfit's toys found another package named 'engine' at {}/engine.py: put batchfit first"),
    ],
)
def test_another_package_of_the_same_name(tmp_path, name, package, told):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(package)
    ended = process(SCRIPTS / "run_toys.py", "--n", "1", cwd=tmp_path, search=f"{tmp_path}{os.pathsep}{SEARCH}")
    assert ended.returncode == 2 and ended.stdout == ""
    assert ended.stderr.startswith("run_toys.py: " + told.format(tmp_path)) and ended.stderr.count("\n") == 1
    assert "pip install" in ended.stderr or "environment" in ended.stderr or "uninstall" in ended.stderr


# chunks of 8 toys, and a pause until the test has sent its signal
SLOW = """
import pathlib, sys, time
sys.argv[0] = "run_toys.py"
sys.path.insert(0, {scripts!r})
import run_toys
import toys.memory, toys.run
toys.memory.LARGEST_CHUNK = 8
generate = toys.run.generate
def slow(study, n_toys, seed, first, backend):
    deadline = time.monotonic() + 60
    while first >= 16 and time.monotonic() < deadline:
        time.sleep(0.01)
    return generate(study, n_toys, seed, first, backend)
if {slow}:
    toys.run.generate = slow
sys.exit(run_toys.main())
"""


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_and_resume(tmp_path, finished_run, number, code):
    """Ctrl-C, and the end of a job in a queue."""
    command = [sys.executable, "-c", SLOW.format(scripts=str(SCRIPTS), slow=True), *SMALL]
    environment = os.environ | {"PYTHONPATH": SEARCH}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        try:
            deadline = time.monotonic() + 120
            while not list(parts_directory(tmp_path / "toys.h5").glob("toys_*.h5")):
                assert running.poll() is None and time.monotonic() < deadline
                time.sleep(0.01)
            running.send_signal(number)
            _, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == code
    assert err == "\nstopped: toys.h5 is not complete; run the same command with --resume to continue\n"
    done = storage.complete_parts(tmp_path / "toys.h5")
    assert 1 <= len(done) <= 2 and sorted(f.name for f in tmp_path.iterdir()) == ["toys.h5.parts"]
    resumed = process("-c", SLOW.format(scripts=str(SCRIPTS), slow=False), *SMALL, "--resume", cwd=tmp_path)
    assert resumed.returncode == 0 and resumed.stderr == ""
    assert f"{8 * len(done)} toys were there from an earlier run" in resumed.stdout
    with h5py.File(tmp_path / "toys.h5") as mine, h5py.File(finished_run[0]) as whole:
        names = []
        whole.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        assert {"toys/values", "results/values"} <= set(names)
        for name in names:
            np.testing.assert_array_equal(mine[name][...], whole[name][...], err_msg=name)


# work that goes on whatever is raised, as a compilation does
DEAF = """
import os, signal, sys, time
sys.path.insert(0, sys.argv[1])
import stopping
stopping.GRACE = float(sys.argv[2])
numbers = [getattr(signal, name) for name in sys.argv[3:]]
with stopping.stoppable(lambda: "last words"):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            while numbers:
                os.kill(os.getpid(), numbers.pop(0))
            time.sleep(0.01)
        except KeyboardInterrupt:
            pass
"""


@pytest.mark.parametrize(
    "grace, signals, code",
    [
        ("0.05", ["SIGINT"], 130),
        ("0.05", ["SIGTERM"], 143),
        ("60", ["SIGTERM", "SIGINT"], 143),
        ("60", ["SIGINT", "SIGINT"], 130),
    ],
)
def test_work_that_does_not_hear_of_a_signal_is_ended(tmp_path, grace, signals, code):
    """After the time of grace, or at once by a second signal."""
    ended = process("-c", DEAF, SCRIPTS, grace, *signals, cwd=tmp_path)
    assert (ended.returncode, ended.stderr) == (code, "\nlast words\n")


# the exception of a signal is lost where C calls Python, such as in a finalizer
LOST = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import stopping
class Finalized:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
with stopping.stoppable(lambda: "last words"):
    Finalized()
    print("not reached")
"""


def test_signal_that_is_lost(tmp_path):
    ended = process("-c", LOST, SCRIPTS, cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (143, "", "\nlast words\n")


# as extension modules do
SWALLOWING = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except BaseException:
    raise ImportError("an error of its own") from None
"""
IMPORTING = """
import sys
sys.path.insert(0, sys.argv[1])
import stopping
with stopping.stoppable(lambda: "last words"):
    import swallowing
"""


def test_signal_in_an_import(tmp_path):
    (tmp_path / "swallowing.py").write_text(SWALLOWING)
    ended = process("-c", IMPORTING, SCRIPTS, search=f"{tmp_path}{os.pathsep}{SEARCH}", cwd=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "\nlast words\n")


def test_time_of_grace():
    """Whatever a process is doing, it ends within 5 s."""
    stopping = script("stopping")
    assert stopping.GRACE <= 4.0
    before = signal.getsignal(signal.SIGTERM)
    with stopping.stoppable(lambda: "never said", end=lambda code: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_runs_that_are_killed(tmp_path):
    """Three of the random kills of the script; more of them take minutes."""
    ended = process(SCRIPTS / "kill_test.py", "--kills", "3", "--n", "600", "--seed", "5", cwd=tmp_path)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("3 kills of ") and "none lost or changed, every resumed file equals" in ended.stdout


# the signal arrives while HDF5 calls back into Python
JOINING = """
import os, signal, sys
sys.argv[0] = "run_toys.py"
sys.path.insert(0, {scripts!r})
import run_toys
from toys import files
class Disk(files.Disk):
    n_written = 0
    def write(self, data, /):
        Disk.n_written += "toys.h5.tmp" in str(self.name)
        if Disk.n_written == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return super().write(data)
files.Disk = Disk
sys.exit(run_toys.main())
"""


def test_ctrl_c_while_the_parts_are_joined(tmp_path):
    ended = process("-c", JOINING.format(scripts=str(SCRIPTS)), *SMALL, cwd=tmp_path)
    # an exception inside of HDF5's calls would bring the process down
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.startswith("\nstopped: ") and ended.stderr.count("\n") == 2
    assert os.listdir(tmp_path / "toys.h5.parts") == ["toys_0000000000-0000000020.h5"]
