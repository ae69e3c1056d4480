"""Scripts as a user calls them, in this process and in one of their own."""

import contextlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).absolute().parents[2] / "scripts"
SEARCH = os.pathsep.join([str(SCRIPTS.parent), *(p for p in sys.path if p)])
TRUTH = ["--truth", "ns=100", "nb=300"]
SMALL = ["--n", "20", *TRUTH, "--validate", "0", "--device", "cpu", "--quiet"]

MY_STUDY = """
from __future__ import annotations
from dataclasses import dataclass
import jax
import jax.numpy as jnp
from engine import ExtendedUnbinnedNLL
from kernels import expon
from toys import Study

@dataclass
class Settings:
    most: int = 80

def decay(t, n, tau):
    return n, n * expon.pdf(t, 0.0, tau)

def sampler(key, theta):
    n_key, t_key = jax.random.split(key)
    n = jnp.minimum(jax.random.poisson(n_key, theta[0]), Settings().most)
    return theta[1] * jax.random.exponential(t_key, (Settings().most,), jnp.float64), n

study = Study(cost=ExtendedUnbinnedNLL(decay), sampler=sampler, truth={"n": 30, "tau": 2.0},
              limits={"n": (0, None), "tau": (0, None)}, name="lifetime")
"""


def script(name):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    path = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = path
    return module


run_toys, plot_toys = script("run_toys"), script("plot_toys")


def call(main, *arguments):
    """(exit code, stdout, stderr) of a script in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return code, out.getvalue(), err.getvalue()


def finished(*arguments, code=0):
    """Output of a run that came to its end."""
    got, out, err = call(run_toys.main, *arguments)
    assert (got, err) == (code, "")
    return out


def refused(*arguments, main=run_toys.main):
    """The one line on stderr of a run that ends with exit code 2."""
    code, out, err = call(main, *arguments)
    assert code == 2 and out == "" and "Traceback" not in err
    prog = "run_toys.py" if main is run_toys.main else "plot_toys.py"
    assert err.startswith(f"{prog}: ") and err.count("\n") == 1 and err.endswith("\n")
    return err.removeprefix(f"{prog}: ").removesuffix("\n")


def process(*arguments, search=SEARCH, **options):
    """The script as a user starts it."""
    command = [sys.executable, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": search}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, **options)
