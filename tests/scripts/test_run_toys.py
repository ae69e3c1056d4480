"""The command line: what it does, and one line with exit code 2 for whatever is wrong."""

import contextlib
import errno
import importlib.util
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import h5py
import jax
import numpy as np
import pytest
import scipy.stats
from iminuit import Minuit
from iminuit.cost import ExtendedUnbinnedNLL

import toys
from engine import fit_batch
from toys import storage
from toys.files import StorageError, lock, parts_directory
from toys.models import STUDIES, peak
from toys.options import validated
from toys.regenerate import regenerate
from toys.sample import study_of
from toys.study import generate

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
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
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


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # a setting of this whole process
    monkeypatch.setattr("toys.xla_cache.use_compilation_cache", lambda: None)


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A finished run of 20 toys: (path, bytes)."""
    path = tmp_path_factory.mktemp("finished") / "toys.h5"
    code, _, err = call(run_toys.main, *SMALL, "--out", path)
    assert (code, err) == (0, "")
    return path, path.read_bytes()


# --- a run -------------------------------------------------------------------------------------------------


def test_run_ends_with_a_table(tmp_path):
    out = finished("--n", "20", *TRUTH, "--validate", "3", "--device", "cpu", "--out", "my.h5")
    for words in (
        "peak: 20 toys",
        "bias",
        "pull mean",
        "pull width",
        "coverage of 68.3 %",
        "±",
        "20 valid, 0 at a limit",
    ):
        assert words in out
    assert "MIGRAD on 3 toys: 3 valid, worst difference" in out and "0 disagree" in out
    for time_of in ("start", "compile", "generate", "fit", "write", "validate", "join", "total"):
        assert f"{time_of} " in out.split("seconds: ")[1]
    assert "written: my.h5" in out and "WARNING" not in out
    result = toys.load("my.h5")
    # the table is made of the file's numbers
    pulls = result.pulls(json.loads(storage.read_attributes("my.h5")["truth"]))
    for i, name in enumerate(result.names):
        (line,) = [line for line in out.splitlines() if line.split()[:1] == [name]]
        assert f"{pulls[:, i].mean():+.3f} ± {pulls[:, i].std(ddof=1) / np.sqrt(20):.3f}" in line
        assert f"{100 * np.mean(np.abs(pulls[:, i]) <= 1):.1f} % [" in line
    assert storage.read_attributes("my.h5")["command_line"].endswith(
        "--n 20 --truth ns=100 nb=300 --validate 3 --device cpu --out my.h5"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["my.h5"]


def test_fewer_toys_are_validated_where_a_fit_of_migrad_takes_long():
    assert [validated(n) for n in (0, 1, 20, 50, 250, 500)] == [100, 100, 100, 40, 8, 5]


def test_toys_are_those_of_the_seed(finished_run):
    data = generate(peak().at({"ns": 100, "nb": 300}), 20, seed=1)
    np.testing.assert_array_equal(toys.load_toys(finished_run[0])["values"].values, data.values)
    finished(*SMALL, "--seed", "2", "--n", "1")
    other = generate(peak().at({"ns": 100, "nb": 300}), 1, seed=2)
    np.testing.assert_array_equal(toys.load_toys("toys.h5")["values"].values, other.values)


def test_truth_may_be_given_twice(finished_run):
    finished("--n", "20", "--validate", "0", "--device", "cpu", "--truth", "ns=100", "--truth", "nb=300")
    np.testing.assert_array_equal(toys.load("toys.h5").values, toys.load(finished_run[0]).values)


def test_start_is_that_of_the_fits(finished_run):
    finished(*SMALL, "--start", "ns=150", "mu=5.1")
    attributes = storage.read_attributes("toys.h5")
    assert json.loads(attributes["start"]) == json.loads(attributes["truth"]) | {"ns": 150.0, "mu": 5.1}
    assert study_of("toys.h5").start == json.loads(attributes["start"])
    first = toys.load(finished_run[0])
    assert np.all(np.abs(toys.load("toys.h5").values - first.values) < 1e-5 * first.errors)
    assert not np.array_equal(toys.load("toys.h5").nfev, first.nfev)


def test_fixed_is_held_at_its_start_or_at_the_value_given(finished_run):
    arguments = [*SMALL, "--truth", "lam=5", "--fixed", "lam", "sigma=0.6", "--minos"]
    out = finished(*arguments, "--validate", "2")
    assert "5 parameters, lam, sigma held" in out and "0 disagree" in out
    attributes, result = storage.read_attributes("toys.h5"), toys.load("toys.h5")
    truth = {"ns": 100.0, "nb": 300.0, "mu": 5.0, "sigma": 0.5, "lam": 5.0}
    assert json.loads(attributes["truth"]) == truth and attributes["fixed"] == ["lam", "sigma"]
    assert json.loads(attributes["start"]) == truth | {"sigma": 0.6}
    data = generate(peak().at(truth), 20, seed=1)
    np.testing.assert_array_equal(toys.load_data("toys.h5").values, data.values)
    held = {"sigma": 0.6, "lam": 5.0}
    again = fit_batch(peak().cost, data, truth, limits=peak().limits, fixed=held, backend="numba")
    np.testing.assert_array_equal(result.values, again.values)
    assert study_of("toys.h5").fixed == ("lam", "sigma") and study_of(finished_run[0]).fixed == ()
    assert "20 toys were there" in finished(*arguments, "--validate", "2", "--resume")
    told = refused(*arguments[:-2], "sigma=0.7", "--minos", "--validate", "2", "--resume")
    assert told.startswith("toys.h5 belongs to another run: start of sigma was 0.6 and is now 0.7. Name another")
    told = refused(*SMALL, "--truth", "lam=5", "--start", "sigma=0.6", "--minos", "--resume")
    assert "another run: fixed was ['lam', 'sigma'] and is now None. Name" in told


def test_list():
    lines = finished("--list").splitlines()
    assert [line.split()[0] for line in lines] == list(STUDIES)
    assert lines[0].split(maxsplit=1)[1].startswith("Gaussian peak over an exponential")


READY_MADE = {
    "peak-bias": ("ExtendedUnbinnedNLL of 15489 events; 5 parameters", r"lam +not in toys"),
    "histogram": ("ExtendedBinnedNLL of 1000 bins; 3 parameters", "amp"),
    "polynomial": ("LeastSquares of 30 points; 3 parameters", "c"),
    "parabola": ("LeastSquares of 128 points; 2 parameters", "b"),
    "signal-strength": ("PoissonNLL of 20 bins + NormalConstraint of 7 values; 8 parameters", "dy_shape"),
}


@pytest.mark.parametrize("model", READY_MADE)
def test_ready_made_study(model):
    """From the command to the file and the figure; and from observed data, where the study has some."""
    fitted, row = READY_MADE[model]
    common = ["--model", model, "--device", "cpu"]
    out = finished(*common, "--n", "20", "--validate", "2")
    assert f"fitted (toy 0): {fitted}" in out and re.search(row, out) and "20 valid" in out and "0 disagree" in out
    study = STUDIES[model]()
    again = fit_batch(study.cost, toys.load_data("toys.h5"), study.start, limits=study.limits, backend="numba")
    np.testing.assert_array_equal(again.values, toys.load("toys.h5").values)
    if model == "polynomial" and importlib.util.find_spec("matplotlib"):
        assert call(plot_toys.main, "toys.h5", "--toy", "7") == (0, "written: toys.png\n", "")
    if study.data is None:
        return
    if model == "histogram":
        np.savetxt("observed.csv", study.data[0])
    else:
        x, y, yerror, xerror = study.data
        columns = np.stack([x, y[0], yerror, xerror], axis=1)
        np.savetxt("observed.csv", columns, "%.17g", ",", header="x,y,yerror,xerror", comments="")
    out = finished(*common, "--n", "5", "--validate", "0", "--data", "observed.csv", "--overwrite")
    assert f"fitted to observed.csv: {fitted.split(';')[0]}; the toys are thrown from these values" in out
    (fit,) = fit_batch(study.cost, study.data, study.start, limits=study.limits, backend="numba").values
    truth = json.loads(storage.read_attributes("toys.h5")["truth"])
    np.testing.assert_array_equal([truth[name] for name in study.cost.names], fit)


@pytest.mark.parametrize("doubt", ["validation", "no reference", "failures"])
def test_doubtful_run_ends_with_exit_code_1(finished_run, monkeypatch, doubt):
    if doubt == "validation":
        monkeypatch.setattr("engine.reference.AGREEMENT", 1e-12)
        arguments, words = ["--validate", "2"], "WARNING: MIGRAD disagrees on 2 toys (0, 19)"
    elif doubt == "no reference":
        monkeypatch.setattr("engine.reference.Minuit.valid", property(lambda self: False))
        arguments, words = ["--validate", "2"], "WARNING: MIGRAD has no valid fit"
    else:
        monkeypatch.setattr("engine.fit.VALID_EDM", -1.0)
        arguments, words = ["--truth", "sigma=0.5"], "WARNING: 20 of 20 fits failed"
    out = finished(*SMALL, *arguments, code=1)
    assert words in out
    assert len(toys.load("toys.h5")) == 20


# --- models ------------------------------------------------------------------------------------------------


def test_study_of_your_own(tmp_path):
    Path("my_study.py").write_text(MY_STUDY)
    out = finished(
        "--model", "my_study.py", "--n", "30", "--validate", "2", "--device", "cpu", "--quiet", "--truth", "tau=3"
    )
    assert "lifetime: 30 toys" in out and "0 disagree" in out
    data, result = toys.load_toys("toys.h5")["values"], toys.load("toys.h5")
    np.testing.assert_allclose(result.values[:, 1], [data[k].mean() for k in range(30)], rtol=1e-9)
    attributes = storage.read_attributes("toys.h5")
    assert (attributes["model"], attributes["source"]) == ("lifetime", MY_STUDY)
    # another model in the file is another run
    Path("my_study.py").write_text(MY_STUDY + "# changed\n")
    told = refused("--model", "my_study.py", "--n", "30", "--resume", "--truth", "tau=3")
    assert "toys.h5 belongs to another run: source differs. Name" in told


BROKEN = [
    ("def f(:\n", "my_study.py: SyntaxError: "),
    ("x = 1\n", "my_study.py must define a variable 'study' that is a toys.Study"),
    ("study = 5\n", "my_study.py must define a variable 'study' that is a toys.Study"),
    ("x = 1\ny = z\n", "my_study.py, line 2: NameError: name 'z' is not defined: the file of a model must run"),
    ("import nosuchmodule\n", "my_study.py, line 1: ModuleNotFoundError: No module named 'nosuchmodule'"),
    ("import sys\nsys.exit()\n", "my_study.py, line 2: SystemExit"),
    ("\0", "my_study.py: "),
    (MY_STUDY.replace("expon.pdf", "expon.pfd"), "my_study.py, line 15: AttributeError: module 'kernels.expon' has no"),
    (MY_STUDY.replace("jax.random.split(key)", "jax.random.split(kye)"), "my_study.py, line 18: NameError: name 'kye'"),
    (MY_STUDY.replace("jnp.float64), n", "jnp.float64)"), "a sampler must return (padded values, n)"),
    (
        MY_STUDY + "\nstudy = study.at({'tua': 1})",
        "my_study.py, line 25: ValueError: truth names 'tua'",
    ),
    (
        MY_STUDY.replace('"tau": 2.0}', '"tua": 2.0}'),
        "my_study.py, line 22: ValueError: truth must have a value for each of n, tau",
    ),
    (
        MY_STUDY.replace("return n, n *", "if t > 1: n = 2 * n\n    return n, n *"),
        "cannot be evaluated for one event (",
    ),
]


@pytest.mark.parametrize("source, told", BROKEN)
def test_broken_studies(tmp_path, source, told):
    Path("my_study.py").write_text(source)
    sentence = refused("--model", "my_study.py", "--n", "5", "--device", "cpu")
    assert told in sentence
    assert [file.name for file in tmp_path.iterdir() if file.name != "__pycache__"] == ["my_study.py"]


def test_a_study_may_import_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "helper_of_my_study.py").write_text(MY_STUDY)
    (folder / "my_study.py").write_text("from helper_of_my_study import study\n")
    code, _, err = call(run_toys.main, "--model", str(folder / "my_study.py"), "--n", "5", "--device", "cpu")
    assert code == 0, err


def test_models_that_are_no_files_or_may_not_be_read(monkeypatch):
    Path("folder.py").mkdir()
    os.mkfifo("pipe.py")
    assert refused("--model", "folder.py") == "folder.py is a directory: name a file in it"
    assert refused("--model", "pipe.py") == "pipe.py is a pipe or device: name a file"
    Path("my_study.py").write_text(MY_STUDY)

    def denied(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)  # nothing is denied to root
    told = "my_study.py cannot be read, permission denied: change its permissions, or name another file"
    assert refused("--model", "my_study.py") == told


# one study of each kind, with a sampler of one's own: (cost, what the sampler returns, truth)
KINDS = {
    "counts": (
        "PoissonNLL(lambda b: b * jnp.ones(4))",
        "jax.random.poisson(key, theta[0], (4,))",
        "{'b': 20.0}",
    ),
    "histogram": (
        "BinnedNLL(lambda x, mu: norm.cdf(x, mu, 1.0), [-4.0, -1.0, 0.0, 1.0, 4.0])",
        "jnp.histogram(theta[0] + jax.random.normal(key, (50,)), jnp.array([-4.0, -1.0, 0.0, 1.0, 4.0]))[0]",
        "{'mu': 0.3}",
    ),
    "points": (
        "LeastSquares(lambda x, a, b: a + b * x)",
        "(X, theta[0] + theta[1] * X + jax.random.normal(key, (6,)), jnp.ones(6))",
        "{'a': 1.0, 'b': 2.0}",
    ),
    "events": (
        "UnbinnedNLL(lambda x, mu: norm.pdf(x, mu, 1.0))",
        "(theta[0] + jax.random.normal(key, (30,)), jnp.asarray(30))",
        "{'mu': 0.3}",
    ),
    "sum": (
        "PoissonNLL(lambda b: b * jnp.ones(4)) + NormalConstraint('b', 20.0, 2.0)",
        "(jax.random.poisson(key, theta[0], (4,)), None)",
        "{'b': 20.0}",
    ),
}
STUDY_OF_A_KIND = """
import jax
import jax.numpy as jnp
from engine import BinnedNLL, LeastSquares, NormalConstraint, PoissonNLL, UnbinnedNLL
from kernels import norm
from toys import Study

X = jnp.arange(6.0)

def sampler(key, theta):
    return {}

study = Study({}, sampler, truth={}, name="mine")
"""


@pytest.mark.parametrize("kind", KINDS)
def test_study_of_your_own_of_every_kind(tmp_path, kind):
    cost, drawn, truth = KINDS[kind]

    def study(cost=cost, drawn=drawn, truth=truth):
        Path("my_study.py").write_text(STUDY_OF_A_KIND.format(drawn, cost, truth))
        return ["--model", "my_study.py", "--n", "6", "--device", "cpu", "--validate", "2"]

    out = finished(*study())
    assert (
        "mine: 6 toys" in out
        and "6 valid" in out
        and "0 disagree" in out
        and f"fitted (toy 0): {cost.split('(')[0]}" in out
    )
    Path("toys.h5").unlink()
    assert "my_study.py, line 13: ValueError: truth must have a value for each of" in refused(*study(truth="{}"))
    told = refused(*study(drawn="theta"))
    assert "sampler" in told or "must be" in told or "must have shape" in told
    assert "my_study.py, line 11: " in refused(*study(drawn="nosuch(key)"))
    if kind in ("counts", "histogram"):
        told = refused(*study(drawn=f"-1.0 - {drawn}"))
        assert told.startswith("the sampler throws what the cost cannot take, such as NaN, negative counts")
    assert sorted(file.name for file in tmp_path.iterdir() if file.name != "__pycache__") == ["my_study.py"]


def test_data_of_a_sum():
    """One file for each cost that takes data, in the order of the costs."""
    cost = (
        "PoissonNLL(lambda b: b * jnp.ones(4)) + NormalConstraint('b', 9, 2) + LeastSquares(lambda x, a, b: a + b * x)"
    )
    Path("my_study.py").write_text(STUDY_OF_A_KIND.format("theta", cost, "{'a': 1, 'b': 20}"))
    Path("counts.csv").write_text("21\n18\n25\n20\n")
    Path("points.csv").write_text("x,y,yerror\n0,1,1\n1,12,1\n2,20,1\n")
    arguments = ["--model", "my_study.py", "--n", "2", "--device", "cpu", "--data", "counts.csv"]
    assert "the study takes 2 sets of data (PoissonNLL, LeastSquares), got 1" in refused(*arguments)
    code, out, err = call(run_toys.main, *arguments, "--data", "points.csv")
    told = (
        "PoissonNLL of 4 bins + NormalConstraint of 1 value + LeastSquares of 3 points; the toys are thrown from these"
    )
    assert f"fitted to counts.csv and points.csv: {told} values" in out
    assert code == 2 and err.count("\n") == 1  # the sampler then throws nothing of use

    def nll(a, b):
        chi2 = sum((y - a - b * x) ** 2 for x, y in enumerate([1, 12, 20])) + ((b - 9) / 2) ** 2
        return sum(b - n * np.log(b) for n in [21, 18, 25, 20]) + 0.5 * chi2

    minuit = Minuit(nll, a=1, b=20)
    minuit.errordef, minuit.strategy = 0.5, 2
    minuit.migrad()
    for name in "ab":
        (line,) = [line for line in out.splitlines() if line.split()[1:2] == [name] or f" {name} " in line[:20]]
        assert f"{minuit.values[name]:.1f}" in line


# --- wrong arguments ---------------------------------------------------------------------------------------

WRONG = [
    (["--nosuch"], "unrecognized arguments: --nosuch; --help shows all arguments"),
    (["--n", "0"], "argument --n: must be at least 1, got 0; --help"),
    (["--n", "-5"], "argument --n: must not be negative, got -5; --help"),
    (["--n", "abc"], "argument --n: must be a whole number, got 'abc'; --help"),
    (["--n", "1e4"], "argument --n: must be a whole number, got '1e4'; --help"),
    (["--n"], "argument --n: expected one argument; --help"),
    (["--n", str(2**32 + 1)], "the number of toys must lie in 1 to 2^32, got 4294967297"),
    (["--seed", "-1"], "argument --seed: must not be negative, got -1"),
    (["--seed", str(2**64)], f"seed must lie in 0 <= seed < 2^64, got {2**64}"),
    (["--validate", "-1"], "argument --validate: must not be negative, got -1"),
    (["--truth", "bad"], "argument --truth: must be NAME=VALUE with a finite number, got 'bad'"),
    (["--truth", "ns=nan"], "must be NAME=VALUE with a finite number, got 'ns=nan'"),
    (["--truth", "=3"], "must be NAME=VALUE with a finite number, got '=3'"),
    (
        ["--truth", "sigm=1"],
        "--truth names 'sigm', but the parameters are ns, nb, mu, sigma, lam: did you mean 'sigma'?",
    ),
    (["--start", "unknown=1"], "--start names 'unknown', but the parameters are ns, nb, mu, sigma, lam"),
    (["--fixed", "lamb"], "--fixed names 'lamb', but the parameters are ns, nb, mu, sigma, lam: did you mean 'lam'?"),
    (["--fixed", "lam="], "argument --fixed: must be NAME or NAME=VALUE with a finite number, got 'lam='"),
    (["--fixed", "=1"], "argument --fixed: must be NAME or NAME=VALUE with a finite number, got '=1'"),
    (["--fixed", ""], "argument --fixed: must be NAME or NAME=VALUE with a finite number, got ''"),
    (["--fixed", "lam=3", "--start", "lam=2"], "--start and --fixed both have a value of lam: leave it out of one"),
    (["--fixed", "ns=-3"], "the fixed ns = -3 of toy 0 is outside of its limits (0, inf)"),
    (["--start", "ns=-3"], "the start ns = -3 of toy 0 is outside of its limits (0, inf)"),
    (["--truth", "ns=-3"], "ns"),
    (["--truth", "sigma=0"], "the density of the model 'spectrum' is not finite or negative somewhere in 1 < x < 9"),
    (["--truth", "ns=1e12"], "the yield ns must lie in [0, 1e9], got 1000000000000.0"),
    (["--device", "fpga"], "argument --device: invalid choice: 'fpga'"),
    (
        ["--backend", "numba", "--optimizer", "adam"],
        "backend 'numba' has the optimizer 'newton' only: pass backend='jax'",
    ),
    (["--model", "nosuch"], "no model named 'nosuch': --list shows the ready-made ones, or give a file my_study.py"),
    (["--model", "missing.py"], "missing.py: no such file"),
    (["--column", "x"], "--column goes with --data"),
    (["--data", "missing.csv"], "missing.csv: no such file"),
    (["--data", "a.csv", "--data", "b.csv"], "the study takes 1 set of data (ExtendedUnbinnedNLL), got 2: repeat"),
    (
        ["--model", "peak-bias", "--data", "a.csv"],
        "the fit of --data has no centre, width, which the sampler of peak-bias needs: leave out --data, and give",
    ),
    (
        ["--model", "peak-bias", "--truth", "lam=4"],
        "--truth names 'lam', but the parameters are ns, nb, mu, sigma, centre",
    ),
    (
        ["--model", "peak-bias", "--start", "width=4"],
        "--start names 'width', but the parameters are ns, nb, mu, sigma, lam",
    ),
    (["--model", "histogram", "--truth", "amp=-1"], "expected counts must lie in [0, 1e+09], got -"),
    (["--resume", "--overwrite"], "overwrite and resume exclude each other"),
    (["--out", "missing/toys.h5"], "missing, the directory of toys.h5, does not exist: create it"),
    (["--out", "."], ". is a directory: name a file in it"),
]


@pytest.mark.parametrize("arguments, told", WRONG)
def test_wrong_arguments(tmp_path, arguments, told):
    assert told in refused("--device", "cpu", "--validate", "0", *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(jax.devices()[0].platform == "gpu", reason="there is a GPU")
def test_gpu_without_a_gpu():
    assert refused(*SMALL, "--device", "gpu").startswith(
        "no GPU here, JAX sees cpu only: pass device 'cpu', or pip install"
    )


@pytest.mark.parametrize("device, opened", [("cpu", ["cpu"]), ("gpu", []), ("tpu", [])])
def test_a_device_is_opened_while_the_rest_is_imported(monkeypatch, device, opened):
    if device != "cpu" and jax.devices()[0].platform == device:
        pytest.skip("there is one")
    there, put = [], jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, device: there.append(device.platform) or put(x, device))
    # an exception in the thread would be a warning, and these are errors
    sys.modules["arguments"].open_early(device).join()
    assert there == opened


@pytest.mark.parametrize("code", [0, 2, 130])
def test_a_thread_that_hangs_does_not_keep_the_process(code):
    program = (
        f"import sys, threading; sys.path.insert(0, {str(SCRIPTS)!r}); from arguments import leave; "
        f"threading.Thread(target=threading.Event().wait).start(); print('said'); leave({code})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "said\n", "")


# --- observed data -----------------------------------------------------------------------------------------


def test_toys_are_thrown_from_the_fit_of_the_data():
    events = generate(peak().at({"ns": 120, "nb": 280}), 1, seed=11)[0]
    np.savetxt("good.csv", events, header="mass", comments="")
    out = finished(
        "--data", "good.csv", "--start", "ns=100", "nb=300", "--n", "5", "--validate", "0", "--device", "cpu"
    )
    told = f"ExtendedUnbinnedNLL of {len(events)} events; the toys are thrown from these values"
    assert f"fitted to good.csv: {told}" in out
    truth = json.loads(storage.read_attributes("toys.h5")["truth"])
    # an extended fit gives the number of events back
    assert truth["ns"] + truth["nb"] == pytest.approx(len(events), rel=1e-6)

    def model(x, ns, nb, mu, sigma, lam):
        density = ns * scipy.stats.norm.pdf(x, mu, sigma) + nb * scipy.stats.expon.pdf(x, 1.0, lam) / (
            1 - np.exp(-8 / lam)
        )
        return ns + nb, density

    minuit = Minuit(ExtendedUnbinnedNLL(events, model), **truth)
    minuit.migrad()
    for name in truth:
        assert (
            abs(minuit.values[name] - truth[name]) < 0.03 * minuit.errors[name]
        )  # MIGRAD's own criterion, and tails cut at 6 sigma
    data = generate(peak().at(truth), 5, seed=1)
    np.testing.assert_array_equal(toys.load_toys("toys.h5")["values"].values, data.values)
    assert json.loads(storage.read_attributes("toys.h5")["start"])["ns"] == 100.0


def test_fixed_is_held_in_the_fit_of_the_data_too():
    events = generate(peak().at({"ns": 120, "nb": 280}), 1, seed=11)[0]
    np.savetxt("good.csv", events)
    options = ["--data", "good.csv", "--start", "ns=100", "nb=300", "mu=5.1", "--n", "3", "--validate", "0"]
    finished(*options, "--fixed", "mu", "lam=3.5", "--device", "cpu")
    start = {"ns": 100.0, "nb": 300.0, "mu": 5.1, "sigma": 0.5, "lam": 3.5}
    (fit,) = fit_batch(peak().cost, [events], start, limits=peak().limits, fixed=["mu", "lam"], backend="numba").values
    attributes = storage.read_attributes("toys.h5")
    assert json.loads(attributes["truth"]) == dict(zip(peak().cost.names, fit, strict=True))
    assert np.all(toys.load("toys.h5").values[:, [2, 4]] == [5.1, 3.5]) and fit[3] != 0.5


def test_data_of_another_number_of_events():
    Path("ten.py").write_text(
        "from engine import UnbinnedNLL\nfrom kernels import expon\nfrom toys import Component, Mixture, Study\n"
        "sampler = Mixture(('tau',), 10, (Component(None, expon.ppf, (0.0, 'tau')),))\n"
        "study = Study(UnbinnedNLL(lambda x, tau: expon.pdf(x, 0.0, tau)), sampler, {'tau': 1.0})\n"
    )
    np.savetxt("observed.csv", [0.5, 1.5])
    told = refused("--model", "ten.py", "--data", "observed.csv")
    assert told.startswith("the sampler throws toys of 10 events, but 2 were observed: give Mixture this number")


@pytest.mark.parametrize(
    "text, told",
    [
        ("", "observed.csv is empty"),
        ("mass\n", "observed.csv holds no events"),
        ("5\nnan\n", "observed.csv holds 1 values that are NaN or infinite, the first is event 2"),
        ("5\n11\n", "observed.csv holds 1 of 2 events outside of the range 1 to 9, the first is event 2 with 11"),
        ("5\nabc\n", "observed.csv, line 2: expected a number in column '1', got 'abc'"),
        ("5\n5.1\n", "the fit of observed.csv is not valid: "),
    ],
)
def test_data_that_cannot_be_used(tmp_path, text, told):
    Path("observed.csv").write_text(text)
    assert told in refused(*SMALL, "--data", "observed.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["observed.csv"]


# --- outputs that are there --------------------------------------------------------------------------------


def test_output_is_kept(finished_run):
    path, contents = finished_run
    told = refused(*SMALL, "--seed", "9", "--out", path)
    assert told == f"{path} exists: pass --overwrite to replace it, --extend to add toys to it, or name another output"
    told = refused(*SMALL, "--seed", "9", "--resume", "--out", path)
    assert told == f"{path} belongs to another run: seed was 1 and is now 9. Name another output, or pass --overwrite"
    assert "20 toys were there from an earlier run" in finished(*SMALL, "--resume", "--out", path)
    assert path.read_bytes() == contents and [file.name for file in path.parent.iterdir()] == ["toys.h5"]


def test_output_of_another_kind_is_kept():
    Path("thesis.tex").write_text("important")
    assert "thesis.tex is not an HDF5 file: name another file" in refused(*SMALL, "--resume", "--out", "thesis.tex")
    assert Path("thesis.tex").read_text() == "important"


def test_overwrite():
    finished(*SMALL, "--n", "3")
    finished(*SMALL, "--n", "4", "--overwrite")
    assert len(toys.load("toys.h5")) == 4


def test_error_while_writing(monkeypatch):
    def full(*arguments):
        raise StorageError("toys.h5 cannot be written, its disk is full: free space, then continue with --resume")

    monkeypatch.setattr(storage, "write_part", full)
    assert "its disk is full" in refused(*SMALL)


def test_unexpected_errors_are_not_hidden(monkeypatch):
    """A bug of ours is a traceback, not a wrong argument."""
    monkeypatch.setattr("toys.run._chunk", lambda n: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        call(run_toys.main, *SMALL)


@pytest.mark.parametrize("overwrite", [False, True])
def test_interrupt_anywhere(monkeypatch, overwrite):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    def stopped(place, *extra):
        with monkeypatch.context() as patch:
            patch.setattr(place, interrupt)
            how = ["--overwrite"] if overwrite else ["--resume"]
            code, _, err = call(run_toys.main, *SMALL, "--n", "2", *how, *extra)
        assert code == 130
        return err

    early = ("toys.finding.prepare", "toys.run.compile_study", "toys.run.generate")
    for place in early:
        assert stopped(place) == "\nstopped: toys.h5 is not there yet; run the same command again\n"
    assert stopped("toys.final.summary") == "\nstopped: toys.h5 is complete\n"
    for place in early if overwrite else early[:2]:
        assert stopped(place) == "\nstopped: toys.h5 is as it was; run the same command again\n"
    instead = " instead of --overwrite" if overwrite else ""
    told = f"\nstopped: toys.h5 is not complete; run the same command with --resume{instead} to continue\n"
    Path("toys.h5").unlink()
    assert stopped("toys.run.validate_run", "--validate", "1") == told
    assert [file.name for file in Path("toys.h5.parts").iterdir()] == ["toys_0000000000-0000000002.h5"]
    # the parts are those that were there
    assert stopped("toys.run.compile_study") == "\nstopped: toys.h5 is not there yet; run the same command again\n"


def test_interrupt_of_an_extension(monkeypatch, finished_run):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    Path("toys.h5").write_bytes(finished_run[1])
    monkeypatch.setattr("toys.run.validate_run", interrupt)
    code, _, err = call(run_toys.main, *SMALL, "--n", "25", "--extend", "--validate", "1")
    assert (code, err) == (130, "\nstopped: toys.h5 is as it was; run the same command again\n")
    assert Path("toys.h5").read_bytes() == finished_run[1] and Path("toys.h5.parts").exists()


def test_output_that_another_process_writes():
    with lock("toys.h5"):
        told = refused(*SMALL)
    assert told.startswith(f"toys.h5 is being written by process {os.getpid()} on ") and "wait for its end" in told
    finished(*SMALL, "--resume")


def test_disk_that_fills_up_during_a_run(tmp_path, finished_run):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a disk of its own cannot be mounted: {mounted.stderr.strip()}")
    try:
        (disk / "ballast").write_bytes(bytes(400_000))
        small = [*SMALL, "--chunk", "5", "--out", disk / "toys.h5"]
        told = refused(*small)
        assert "cannot be written, its disk is full: free space, then continue with --resume" in told
        done = storage.complete_parts(disk / "toys.h5")
        assert 1 <= len(done) <= 4 and not (disk / "toys.h5").exists()
        (disk / "ballast").unlink()
        assert f"{5 * len(done)} toys were there from an earlier run" in finished(*small, "--resume")
        mine, whole = toys.load(disk / "toys.h5"), toys.load(finished_run[0])
        np.testing.assert_array_equal(mine.covariance, whole.covariance)
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# --- more toys, fewer bytes --------------------------------------------------------------------------------


def test_extend(finished_run):
    Path("more.h5").write_bytes(finished_run[1])
    more = [*SMALL, "--n", "25", "--out", "more.h5"]
    assert refused(*more).startswith("more.h5 exists: pass --overwrite to replace it, --extend to add toys to it")
    assert "20 toys were there from an earlier run" in finished(*more, "--extend")
    finished(*SMALL, "--n", "25", "--out", "whole.h5")
    np.testing.assert_array_equal(toys.load("more.h5").values, toys.load("whole.h5").values)
    np.testing.assert_array_equal(
        toys.load_toys("more.h5")["values"].values, toys.load_toys("whole.h5")["values"].values
    )
    before = Path("more.h5").read_bytes()
    assert "nothing to add: more.h5 is complete" in finished(*more, "--extend")
    assert Path("more.h5").read_bytes() == before
    told = refused(*SMALL, "--n", "30", "--seed", "2", "--out", "more.h5", "--extend")
    assert told.startswith("more.h5 belongs to another run: seed was 1 and is now 2. Name")
    told = refused(*SMALL, "--n", "30", "--truth", "ns=500", "--chunk", "8192", "--out", "more.h5", "--extend")
    differences = "truth of ns was 100.0 and is now 500.0; start of ns was 100.0 and is now 500.0"
    assert told == f"more.h5 belongs to another run: {differences}. Name another output, or pass --overwrite"
    assert refused(*more, "--extend", "--overwrite") == "overwrite and extend exclude each other"
    assert refused(*SMALL, "--extend") == "toys.h5 does not exist: leave out --extend"


def test_run_that_does_not_save_its_toys(finished_run):
    path, contents = finished_run
    finished(*SMALL, "--no-save-toys", "--validate", "2")
    np.testing.assert_array_equal(toys.load("toys.h5").values, toys.load(path).values)
    assert Path("toys.h5").stat().st_size < len(contents) - 20 * 300 * 8
    assert call(plot_toys.main, "toys.h5") == (0, "written: toys.png\n", "")
    np.testing.assert_array_equal(regenerate("toys.h5", 3).values, toys.load_toys(path, 3, 4)["values"].values)


def test_chunk(finished_run, monkeypatch):
    finished(*SMALL, "--chunk", "7", "--out", "sevens.h5")
    np.testing.assert_array_equal(toys.load("sevens.h5").values, toys.load(finished_run[0]).values)
    assert storage.read_attributes("sevens.h5")["chunk"] == 7
    monkeypatch.setattr("toys.memory.free_bytes", lambda: 150_000)
    told = refused(*SMALL)
    assert "20 toys at once need" in told and "150 kB are free: pass --chunk 4" in told
    finished(*SMALL, "--chunk", "4")


@pytest.mark.parametrize("error", [MemoryError, jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 9 GiB")])
def test_memory_that_ends(monkeypatch, error):
    def hungry(*arguments):
        raise error

    monkeypatch.setattr("toys.run.generate", hungry)
    assert (
        refused(*SMALL)
        == "there is no more memory: free some, or pass a smaller --chunk or --n; what is complete is kept"
    )


# --- as a process ------------------------------------------------------------------------------------------


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


# --- plot_toys ---------------------------------------------------------------------------------------------


def test_plot(finished_run):
    pytest.importorskip("matplotlib")
    path, contents = finished_run
    for name, magic in [("toys.png", b"\x89PNG"), ("toys.pdf", b"%PDF"), ("toys.svg", b"<?xml")]:
        code, out, err = call(plot_toys.main, path, "--out", name, "--toy", "3")
        assert (code, out, err) == (0, f"written: {name}\n", "")
        assert Path(name).read_bytes().startswith(magic) and Path(name).stat().st_size > 5000
    assert path.read_bytes() == contents


def test_plot_that_cannot_be_made(tmp_path, finished_run, monkeypatch):
    pytest.importorskip("matplotlib")
    path, _ = finished_run

    def told(*arguments):
        return refused(*arguments, main=plot_toys.main)

    assert told("missing.h5") == "missing.h5 does not exist: check the path"
    assert told(tmp_path) == f"{tmp_path} is a directory: name a file in it"
    Path("text.h5").write_text("1,2\n" * 1000)
    assert "text.h5 is not an HDF5 file" in told("text.h5")
    assert told(path, "--toy", "20") == f"{path} has the toys 0 to 19, not 20"
    assert told(path, "--toy", "-1") == f"{path} has the toys 0 to 19, not -1"
    assert "argument --toy: invalid int value: 'x'; --help" in told(path, "--toy", "x")
    assert "the following arguments are required: file" in told()
    told_of_missing = "missing, the directory of toys.png, does not exist: create it"
    assert told(path, "--out", "missing/toys.png") == told_of_missing
    assert told(path, "--out", ".") == ". is a directory: name a file in it"
    assert call(plot_toys.main, path, "--out", "figure") == (0, "written: figure\n", "")
    assert Path("figure").read_bytes().startswith(b"\x89PNG")
    assert "Format 'docx' is not supported" in told(path, "--out", "toys.docx")
    assert told(path, "--model", "nosuch").startswith("no model named 'nosuch'")
    Path("my_study.py").write_text(MY_STUDY)
    assert "truth names 'ns', but the parameters are n, tau" in told(path, "--model", "my_study.py")
    finished("--model", "my_study.py", "--n", "2", "--validate", "0", "--device", "cpu")
    assert told("toys.h5") == "toys.h5 is of the model 'lifetime': pass its file with --model"
    assert told("toys.h5", "--model", "my_study.py").startswith("unbinned toys can be drawn for one observable with a")
    monkeypatch.setattr("toys.figures.plot_run", mock.Mock(side_effect=KeyboardInterrupt))
    assert call(plot_toys.main, path) == (130, "", "\nstopped: toys.png was not written\n")
    assert not list(tmp_path.glob("*.png"))
