"""Command lines at random: an exit code, at most one line of what is wrong, never a traceback."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toys.charts import STYLE

MODEL = """
import jax.numpy as jnp
from engine import PoissonNLL
from toys import PoissonCounts, Study

cost = PoissonNLL(lambda mu: jnp.stack([mu, 2.0 * mu]))
study = Study(cost=cost, sampler=PoissonCounts.of(cost), truth={"mu": 9.0}, limits={"mu": (0.0, None)}, name="counting",
              data=[[7.0, 20.0]])
"""
WRONG_MODELS = {
    "raises.py": "1 / 0",
    "exits.py": "raise SystemExit(3)",
    "syntax.py": "study = (",
    "nothing.py": "",
    "text.py": "study = 'peak'",
    "encoding.py": b"# \xff\xfe\x00",
    "deep.py": MODEL.replace("2.0 * mu", "mu[3]"),
    "sampler.py": MODEL.replace("PoissonCounts.of(cost)", "lambda key, theta: 1 / 0"),
}
FILES = {
    "good.csv": "9\n18\n",
    "three.csv": "1\n2\n3\n",
    "text.csv": "a\nb\n",
    "negative.csv": "-1\n2\n",
    "empty.csv": "",
    "header.csv": "x,y\n1,2\n3,4\n",
    "not.h5": "text",
    "not.npy": "text",
}
SCRIPTS = ("run_toys", "plot_toys", "pull_study", "coverage_study", "hypotest")
OPTIONS = ["--n", "--model", "--data", "--column", "--truth", "--start", "--seed", "--out", "--validate", "--scan",
           "--optimizer", "--poi", "--value", "--test-stat", "--cl", "--toy", "--nuisance", "--levels"]  # fmt: skip
FLAGS = ["--overwrite", "--resume", "--minos", "--quiet", "--upper-limit", "--list", "--help", "--no-such", "--", "-"]
NUMBERS = ["0", "1", "2", "3", "-1", "1.5", "nan", "inf", "1e400", "1_0", "٣", "9" * 30, "", " ", "0x1"]
VALUES = ["mu=9", "mu=-1", "mu=nan", "mu", "=", "mu=", "x=1", "mu=1e308", "mu=1:2:1", "mu=0:1e9:1",
          "mu=1,1", "mu=2,3", "q", "t", "adam", "newton", "é", "\n", "a\x00b", "../..", "/", "x" * 300]  # fmt: skip
PLACES = ["toys.h5", "new.h5", "missing/new.h5", "model.py", "report", "a.png", "a.pdf", "a.gif", "good.csv"]


@pytest.fixture(scope="module")
def scripts(script, tmp_path_factory):
    """The scripts' main, in a directory with a model, a file of a run, and whatever else can be named."""
    place = tmp_path_factory.mktemp("place")
    (place / "model.py").write_text(MODEL)
    for name, text in {**WRONG_MODELS, **FILES}.items():
        (place / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    np.save(place / "good.npy", [9.0, 18.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("toys.xla_cache.use_compilation_cache", lambda: None)
        patch.setitem(STYLE, "pdf.fonttype", 3)  # fonts that are made smaller take half of a report's time
        mains = {name: script(name).main for name in SCRIPTS}
        done = call(mains["run_toys"], ["--model", "model.py", "--n", "20", "--validate", "0", *MACHINE])
        assert done == (0, "")
        yield mains


MACHINE = ["--device", "cpu", "--backend", "numba", "--quiet"]


def call(main, arguments):
    """(exit code, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = end.code
    return code, err.getvalue()


def check(name, arguments, code, told):
    assert code in (0, 1, 2, 130), (name, arguments, code, told)
    if code == 2:
        assert told.startswith(f"{name}.py: ") and told.count("\n") == 1, (name, arguments, told)
        assert "Traceback" not in told and len(told) < 2000, (name, arguments, told)
    else:
        assert told == "", (name, arguments, told)


names = [*WRONG_MODELS, *FILES, "good.npy", *PLACES]
arguments = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(OPTIONS), st.sampled_from([*NUMBERS, *VALUES, *names])),
        st.tuples(st.sampled_from(OPTIONS[:6]), st.sampled_from(NUMBERS[1:4])),
        st.tuples(st.sampled_from(FLAGS)),
        st.tuples(st.sampled_from([*NUMBERS, *VALUES, *names])),
        st.tuples(st.text(max_size=5)),
        st.tuples(st.just("--data"), st.sampled_from([*FILES, "good.npy"])),
    ),
    max_size=4,
).map(lambda groups: [word for group in groups for word in group])


# a report takes a second
TRIED = {"run_toys": 60, "plot_toys": 60, "pull_study": 20, "coverage_study": 30, "hypotest": 60}


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.filterwarnings("ignore")
def test_any_command_line(name, scripts):
    """Whatever is given beside a model of two bins and a few toys; what repeats an option counts last."""

    @settings(
        derandomize=True,
        deadline=None,
        database=None,
        max_examples=TRIED[name],
        suppress_health_check=list(HealthCheck),
    )
    @given(given=arguments)
    def tried(given):
        # a hundred toys at most, and the peak's many events only where they are asked for
        given = [word for word in given if word != "--list"]
        few = [] if name == "plot_toys" else ["--model", "model.py", "--n", "3", *MACHINE]
        first = {"plot_toys": ["toys.h5"], "hypotest": ["--poi", "mu", "--value", "1"]}.get(name, [])
        line = [*few, *first, *given]
        check(name, line, *call(scripts[name], line))

    tried()


@pytest.mark.parametrize("model", WRONG_MODELS)
@pytest.mark.parametrize("name", ["run_toys", "pull_study"])
@pytest.mark.filterwarnings("ignore")
def test_models_that_do_not_work(model, name, scripts):
    code, told = call(scripts[name], ["--model", model, "--n", "3", "--out", "unmade", *MACHINE])
    check(name, model, code, told)
    assert code == 2 and model in told


@pytest.mark.parametrize("data", [file for file in FILES if file != "good.csv"])
@pytest.mark.filterwarnings("ignore")
def test_data_that_cannot_be_fitted(data, scripts):
    line = ["--model", "model.py", "--n", "3", "--data", data, "--out", "unmade.h5", *MACHINE]
    code, told = call(scripts["run_toys"], line)
    check("run_toys", line, code, told)
    assert code == 2 and data in told
