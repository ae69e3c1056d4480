"""Models of the command line: ready-made, of a file, of every kind of cost."""

import errno
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from iminuit import Minuit

import toys
from engine import fit_batch
from tests.scripts.command_line import MY_STUDY, call, finished, plot_toys, refused, run_toys
from toys import storage
from toys.models import STUDIES

pytestmark = pytest.mark.usefixtures("empty_directory")


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
