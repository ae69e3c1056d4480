"""pull_study.py, coverage_study.py, hypotest.py: reports from files and from toys, and one line for what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

import toys
from tests.scripts.command_line import SCRIPTS, call, script
from toys.charts import STYLE

FILES = ["figures", "report.html", "tables.json"]

# 3 expected events; and two bins of signal and background, whose normalisations are measured
COUNTING = """
import jax.numpy as jnp
from engine import PoissonNLL
from toys import PoissonCounts, Study

cost = PoissonNLL(lambda mu: jnp.stack([mu]))
study = Study(cost=cost, sampler=PoissonCounts.of(cost), truth={"mu": 3.0}, limits={"mu": (0.0, None)}, name="counting")
"""
TWO_BINS = """
import jax.numpy as jnp
import numpy as np
from engine import PoissonConstraint, PoissonNLL
from toys import PoissonCounts, Simultaneous, Study

S, B = np.array([12.0, 11.0]), np.array([50.0, 52.0])
tau = (B / np.array([3.0, 7.0])) ** 2
counts = PoissonNLL(lambda mu, b0, b1: mu * S + jnp.stack([b0, b1]) * B)
cost = counts + PoissonConstraint(("b0", "b1"), tau, tau)
study = Study(cost=cost, sampler=Simultaneous(cost, (PoissonCounts.of(counts), None)),
              truth={"mu": 1.0, "b0": 1.0, "b1": 1.0}, limits={"mu": (0.0, None), "b0": (0.0, None), "b1": (0.0, None)},
              data=(np.array([[51.0, 48.0]]), tau[None]), name="two bins")
"""


NAMES = "run_toys", "pull_study", "coverage_study", "hypotest", "plot_toys"
run_toys, pull_study, coverage_study, hypotest, plot_toys = map(script, NAMES)


def finished(module, *arguments):
    code, out, err = call(module.main, *arguments, "--device", "cpu", "--quiet")
    assert (code, err) == (0, "")
    return out


def refused(module, *arguments):
    """The one line on stderr of a script that ends with exit code 2."""
    code, out, err = call(module.main, *arguments)
    assert code == 2 and out == "" and "Traceback" not in err
    assert err.startswith(f"{module.__name__}.py: ") and err.count("\n") == 1
    return err.removeprefix(f"{module.__name__}.py: ").removesuffix("\n")


def numbers(directory):
    return json.loads((Path(str(directory)) / "tables.json").read_text())


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # a setting of this whole process
    monkeypatch.setattr("toys.xla_cache.use_compilation_cache", lambda: None)
    monkeypatch.setitem(STYLE, "pdf.fonttype", 3)  # fonts that are made smaller take half of a report's time
    (tmp_path / "counting.py").write_text(COUNTING)
    (tmp_path / "two_bins.py").write_text(TWO_BINS)
    return tmp_path


@pytest.fixture
def toy_file():
    out = finished(run_toys, "--model", "counting.py", "--n", "200", "--seed", "4", "--validate", "0")
    on_limit = int((toys.load("toys.h5").values[:, 0] == 0.0).sum())
    assert f"mu: {on_limit} valid toys, on a limit, have no Hesse error and are in neither pulls nor coverage" in out
    return "toys.h5"


# --- pulls -------------------------------------------------------------------------------------------------


def test_pulls_of_a_file_are_those_of_the_same_toys(toy_file):
    out = finished(pull_study, toy_file, "--model", "counting.py", "--minos", "--out", "read")
    thrown = finished(pull_study, "--model", "counting.py", "--n", "200", "--seed", "4", "--minos", "--out", "thrown")
    assert sorted(file.name for file in Path("read").iterdir()) == FILES
    assert numbers("read")["pulls"] == numbers("thrown")["pulls"]
    assert numbers("read")["coverage"] == numbers("thrown")["coverage"]
    result = toys.load(toy_file)
    hesse, minos = numbers("read")["pulls"]
    pull = result.pulls({"mu": 3.0})[:, 0]
    assert hesse["pull_mean"] == pytest.approx(np.nanmean(pull), rel=1e-12)
    assert (hesse["n"], hesse["n_toys"]) == (np.isfinite(pull).sum(), 200)
    # at the limit there is no Hesse error, but the likelihood rises by 1/2 to mu = 1/2
    n_empty = int((result.values[:, 0] == 0).sum())
    assert hesse["missing"] == {"no error: held, or at a limit": n_empty} and n_empty > 0
    assert (minos["method"], minos["n"], minos["missing"]) == ("minos", 200, {})
    assert f"{hesse['pull_mean']:+.3f} ± {hesse['pull_mean_error']:.3f}" in out and "written: read/report.html" in out
    assert "were read from toys.h5, thrown there with the seed 4" in out
    assert "200 toys of the model counting were thrown with the seed 4." in thrown
    page = Path("read/report.html").read_text()
    assert "pull_study.py toys.h5 --model counting.py --minos --out read" in page
    assert numbers("read")["made"]["seed"] == "4" and "numpy" in numbers("read")["made"]["versions"]


def test_minos_of_a_file_is_used(monkeypatch):
    finished(run_toys, "--model", "counting.py", "--n", "50", "--validate", "0", "--minos")
    finished(pull_study, "toys.h5", "--model", "counting.py", "--minos", "--out", "again")
    monkeypatch.setattr(sys.modules["toys.sample"], "minos", None)  # not to be found once more
    for number, extra in enumerate(([], ["--minos"])):
        finished(pull_study, "toys.h5", "--model", "counting.py", *extra, "--out", str(number))
        assert numbers(number)["pulls"] == numbers("again")["pulls"]
        assert [row["method"] for row in numbers(number)["pulls"]] == ["hesse", "minos"]
    finished(coverage_study, "toys.h5", "--model", "counting.py", "--no-minos", "--levels", "0.9")
    assert [row["method"] for row in numbers("coverage_study")["points"][0]["coverage"]] == ["hesse"]


def test_coverage_takes_minos_of_a_file_at_its_level(monkeypatch):
    """The other levels are found, and told chunk by chunk."""
    finished(run_toys, "--model", "counting.py", "--n", "50", "--validate", "0", "--minos")
    sample, sought, done = sys.modules["toys.sample"], [], []
    found = sample.minos
    with monkeypatch.context() as patch:
        patch.setattr(sample, "MOST_TOLD", 20)
        patch.setattr(sample, "minos", lambda *data, cl, **how: sought.append(cl) or found(*data, cl=cl, **how))
        patch.setattr("toys.screen.Screen.advance", lambda screen, n: done.append(n))
        finished(coverage_study, "toys.h5", "--model", "counting.py")
    assert sought == [0.90, 0.9545] * 3 and done == [20, 20, 10]
    rows = numbers("coverage_study")["points"][0]["coverage"]
    assert [row["level"] for row in rows if row["method"] == "minos"] == [0.6827, 0.90, 0.9545]
    finished(coverage_study, "--model", "counting.py", "--n", "50", "--out", "thrown")
    assert numbers("thrown")["points"][0]["coverage"] == rows


def test_toys_that_were_not_kept_are_thrown_again(toy_file):
    finished(pull_study, toy_file, "--model", "counting.py", "--minos", "--out", "kept")
    arguments = ["--model", "counting.py", "--n", "200", "--seed", "4", "--validate", "0", "--no-save-toys"]
    finished(run_toys, *arguments, "--out", "sums.h5")
    finished(pull_study, "sums.h5", "--model", "counting.py", "--minos", "--out", "sums")
    assert numbers("sums")["pulls"] == numbers("kept")["pulls"]
    assert Path("sums/figures/profiles.png").exists()
    finished(hypotest, "sums.h5", *POINT, "--poi", "mu", "--value", "3", "--test-stat", "t")
    assert numbers("hypotest")["findings"][0]["null"]["n"] == 200
    assert call(plot_toys.main, "sums.h5", *POINT, "--toy", "3") == (0, "written: toys.png\n", "")


def test_many_failures_end_with_exit_code_1(monkeypatch):
    monkeypatch.setattr("engine.drivers.VALID_EDM", -1.0)
    code, out, err = call(pull_study.main, "--model", "counting.py", "--n", "20", "--device", "cpu")
    assert (code, err) == (1, "") and "20 of 20 fits failed" in out
    assert "20 of 20 fits failed" in Path("pull_study/report.html").read_text()


# --- coverage ----------------------------------------------------------------------------------------------


def test_coverage_against_the_truth():
    """At each true value the coverage of MINOS is the exact Poisson sum within 4 binomial errors."""
    arguments = ["--model", "counting.py", "--n", "2000", "--levels", "0.683", "0.9", "--scan", "mu=1:3:1"]
    out = finished(coverage_study, *arguments, "--interval", "clopper-pearson")
    found = numbers("coverage_study")
    assert [point["value"] for point in found["points"]] == [1.0, 2.0, 3.0] and found["scan"] == "mu"
    for point in found["points"]:
        assert point["failures"]["toys"] == 2000 and point["failures"]["failed"] == 0
        for row in point["coverage"]:
            if row["method"] == "hesse":
                continue
            mu, n = point["value"], np.arange(40)
            # the likelihood ratio of n events
            t = 2 * (mu - n + n * np.log(np.maximum(n, 1) / mu))
            exact = stats.poisson.pmf(n[t <= stats.chi2.ppf(row["level"], 1)], mu).sum()
            assert abs(row["coverage"] - exact) < 4 * np.sqrt(exact * (1 - exact) / 2000)
            assert row["low"] < row["coverage"] < row["high"] and row["n"] == row["n_toys"] == 2000
    assert sorted(file.name for file in Path("coverage_study/figures").iterdir()) == [
        "bias_mu.pdf", "bias_mu.png", "coverage_mu.pdf", "coverage_mu.png",
    ]  # fmt: skip
    assert "fits by the true value of mu" in out and "6 000 toys of the model counting" in out


def test_coverage_of_a_file_without_minos(toy_file):
    out = finished(coverage_study, toy_file, "--model", "counting.py", "--no-minos", "--levels", "0.9")
    (point,) = numbers("coverage_study")["points"]
    (row,) = point["coverage"]
    pull = toys.load(toy_file).pulls({"mu": 3.0})[:, 0]
    assert (row["method"], row["inside"]) == ("hesse", int((np.abs(pull) <= stats.norm.ppf(0.95)).sum()))
    assert "fits by the fitted value of mu" in out


def test_ctrl_c_keeps_the_points_that_are_done(monkeypatch):
    throw, seen = sys.modules["toys.scan"].throw, []

    def interrupted(*arguments, **options):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(throw(*arguments, **options))
        return seen[-1]

    monkeypatch.setattr(sys.modules["toys.scan"], "throw", interrupted)
    arguments = ["--model", "counting.py", "--n", "20", "--scan", "mu=2,4,6,8", "--device", "cpu", "--no-minos"]
    code, _, err = call(coverage_study.main, *arguments)
    told = "the numbers of 2 of 4 true values are in coverage_study/tables.json; there is no report"
    assert (code, err) == (130, f"\nstopped: {told}\n")
    assert [point["value"] for point in numbers("coverage_study")["points"]] == [2.0, 4.0]
    monkeypatch.setattr("toys.study.fit_batch", interrupted)
    code, _, err = call(pull_study.main, "--model", "counting.py", "--n", "20", "--out", "other", "--device", "cpu")
    assert (code, err) == (130, "\nstopped: other was not written\n") and not Path("other").exists()


# --- tests of hypotheses -----------------------------------------------------------------------------------


def test_two_bins():
    """The asymptotic CLs is that of pyhf 0.7.6 for the same model; the toys agree within 4 of their errors."""
    arguments = ["--model", "two_bins.py", "--poi", "mu", "--value", "1", "--n", "1000", "--goodness-of-fit"]
    out = finished(hypotest, *arguments)
    test, goodness = numbers("hypotest")["findings"]
    assert test["asymptotic"]["CLs"] == pytest.approx(0.05251497423736956, abs=1e-5)
    assert abs(test["CLs"] - 0.0525) < 4 * test["CLs_error"]
    assert goodness["statistic"] == "saturated" and goodness["ndf"] == 1
    assert "mu = 1 has the p-value" in out and "The fit describes the data with p =" in out
    assert "nuisance parameters profiled to the data" in Path("hypotest/report.html").read_text()
    stems = {file.stem for file in Path("hypotest/figures").iterdir()}
    assert stems == {"statistic_1", "goodness_saturated"}


def test_a_value_that_cannot_be_tested_loses_none_of_the_others():
    arguments = ["--model", "two_bins.py", "--poi", "mu", "--asymptotics"]
    code, out, _ = call(hypotest.main, *arguments, "--value", "1", "-20", "2")
    assert code == 1 and "mu = -20 was not tested: " in out
    assert [finding["value"] for finding in numbers("hypotest")["findings"]] == [1.0, 2.0]
    assert refused(hypotest, *arguments, "--value", "-20", "--overwrite") in out.split("mu = -20 was not tested: ")[1]


def test_fixed_parameters():
    """Without nuisance parameters the counts of two bins are Poisson: fits of toys and of files hold the same."""
    held = ["--model", "two_bins.py", "--fixed", "b0", "b1=1.1"]
    out = finished(hypotest, *held, "--poi", "mu", "--value", "1", "--asymptotics")
    signal, background, n = np.array([12.0, 11.0]), np.array([50.0, 52.0 * 1.1]), np.array([51.0, 48.0])

    def nll(mu):
        return -stats.poisson.logpmf(n, mu * signal + background).sum()

    assert "Held in the fits: b0 = 1, b1 = 1.1." in out
    assert "asymptotic" in out and "toys" not in out.replace("no toys", "").replace("own toys", "")
    # the minimum is below 0, where mu is bounded
    q = 2 * (nll(1.0) - nll(0.0))
    assert numbers("hypotest")["findings"][0]["q_observed"] == pytest.approx(q, rel=1e-9)
    finished(run_toys, *held, "--n", "30", "--validate", "0")
    finished(pull_study, "toys.h5", "--model", "two_bins.py", "--minos", "--out", "read")
    finished(pull_study, *held, "--n", "30", "--minos", "--out", "thrown")
    assert numbers("read")["pulls"] == numbers("thrown")["pulls"]
    assert {row["name"] for row in numbers("read")["pulls"]} == {"mu"}
    out = finished(coverage_study, *held, "--n", "30", "--no-minos", "--scan", "b1=1,1.2")
    assert {row["name"] for row in numbers("coverage_study")["points"][1]["coverage"]} == {"mu"}
    assert "coverage of the intervals of mu" in out


def test_fits_without_a_free_parameter(toy_file):
    held = ["--model", "counting.py", "--n", "20", "--fixed", "mu"]
    for study in (pull_study, coverage_study):
        assert "Held in the fits: mu = 3." in finished(study, *held)


def test_toys_of_a_file(toy_file):
    out = finished(hypotest, toy_file, *POINT, "--poi", "mu", "--value", "3", "--test-stat", "t")
    assert "the first 200 at mu = 3 are those of toys.h5" in out
    test = numbers("hypotest")["findings"][0]
    assert test["null"]["n"] == 200
    # the observation is the Asimov data of mu = 3: no toy is less extreme
    assert test["CLsb"] == 1.0 and test["q_observed"] == pytest.approx(0, abs=1e-9)


def test_limit_and_interval_of_no_event():
    """Of 0 counts: with CLs mu < -log(0.05) = 2.996; Feldman and Cousins at 90 % [0, 2.44], their table IV."""
    np.savetxt("none.csv", [0.0])
    common = ["--model", "counting.py", "--poi", "mu", "--data", "none.csv"]
    finished(hypotest, *common, "--upper-limit", "--n", "1000", "--out", "limit")
    (limit,) = numbers("limit")["findings"]
    # the statistic of toys without events is that of the data: CLs = exp(-mu) here
    assert abs(limit["limit"] + np.log(0.05)) < 4 * limit["error"]
    finished(hypotest, *common, "--feldman-cousins", "--cl", "0.9", "--n", "500", "--out", "interval")
    (interval,) = numbers("interval")["findings"]
    assert interval["lower"] == 0.0 and abs(interval["upper"] - 2.44) < 0.15
    stems = {file.stem for name in ("limit", "interval") for file in Path(name, "figures").iterdir()}
    assert stems == {"upper_limit", "feldman_cousins"}


# --- what is wrong -----------------------------------------------------------------------------------------

POINT = ["--model", "counting.py"]
WRONG = [
    (pull_study, ["--n", "0"], "argument --n: must be at least 1, got 0; --help shows all arguments"),
    (pull_study, ["toys.h5", "--n", "5"], "--n goes with toys that are thrown, not with those of a file"),
    (pull_study, ["toys.h5", "--seed", "0"], "--seed goes with toys that are thrown, not with those of a file"),
    (coverage_study, ["toys.h5", "--seed", "0"], "--seed goes with toys that are thrown, not with those of a file"),
    (pull_study, ["missing.h5"], "missing.h5 does not exist: check the path"),
    (pull_study, ["--model", "nosuch"], "no model named 'nosuch': --list shows the ready-made ones"),
    (pull_study, ["--model", "missing.py"], "missing.py: no such file"),
    (pull_study, [*POINT, "--truth", "nu=1"], "--truth names 'nu', but the parameters are mu"),
    (pull_study, [*POINT, "--truth", "mu"], "must be NAME=VALUE with a finite number, got 'mu'"),
    (pull_study, [*POINT, "--out", "counting.py"], "counting.py is a file: name a directory for the report"),
    (pull_study, [*POINT, "--out", "missing/study"], "missing, the directory of study, does not exist: create it"),
    (coverage_study, ["--scan", "mu=0:1"], "must be NAME=START:STOP:STEP or NAME=A,B,C with finite numbers, got 'mu=0"),
    (coverage_study, ["--scan", "mu=0:1:-1"], "must be NAME=START:STOP:STEP"),
    (coverage_study, ["--scan", "mu=0:1:1e-9"], "must be NAME=START:STOP:STEP"),
    (coverage_study, ["--scan", "mu=1,1"], "must be NAME=START:STOP:STEP"),
    (coverage_study, ["--levels", "68"], "argument --levels: must be a probability between 0 and 1, got 68"),
    (coverage_study, ["toys.h5", "--scan", "mu=1:2:1"], "--scan goes with toys that are thrown"),
    (coverage_study, [*POINT, "--scan", "nu=1:2:1"], "truth names 'nu', but the parameters are mu"),
    (hypotest, [*POINT], "nothing to do: pass --value, --upper-limit, --feldman-cousins or --goodness-of-fit"),
    (hypotest, [*POINT, "--value", "1"], "name the parameter of interest with --poi"),
    (hypotest, [*POINT, "--poi", "nu", "--value", "1"], "nu"),
    (hypotest, [*POINT, "--poi", "mu", "--test-stat", "q0", "--value", "1"], "q0 tests the value 0: leave out --value"),
    (hypotest, [*POINT, "--upper-limit", "--test-stat", "t"], "--upper-limit takes --test-stat qtilde or q, got t"),
    (hypotest, [*POINT, "--asymptotics", "--feldman-cousins"], "--asymptotics throws no toys: leave it out for"),
    (hypotest, [*POINT, "--asymptotics", "--goodness-of-fit"], "--asymptotics throws no toys: leave it out for"),
    (hypotest, [*POINT, "--poi", "mu", "--feldman-cousins", "--test-stat", "q"], "--test-stat goes with --value and"),
    (hypotest, [*POINT, "--goodness-of-fit", "--test-stat", "ttilde"], "--test-stat goes with --value and"),
    (hypotest, [*POINT, "--poi", "mu", "--value", "1", "--cl", "0.9"], "--cl goes with --upper-limit and --feldman-c"),
    (hypotest, [*POINT, "--poi", "mu", "--value", "1", "--asymptotics", "--n", "5"], "leave out --n and --seed"),
    (hypotest, [*POINT, "--poi", "mu", "--value", "1", "--asymptotics", "--seed", "0"], "leave out --n and --seed"),
    (
        hypotest,
        [*POINT, "--poi", "mu", "--value", "0"],
        "qtilde tests a value above its alternative 3, got 0: for a test of discovery pass test_stat='q0' "
        "(--test-stat q0, without --value)",
    ),
    (hypotest, ["toys.h5", *POINT, "--poi", "mu", "--value", "1", "--nuisance", "profiled"], "the toys of a file have"),
    (hypotest, ["toys.h5", *POINT, "--goodness-of-fit", "--truth", "mu=1"], "--truth goes with toys that are thrown"),
    (pull_study, ["toys.h5", "--fixed", "mu"], "--fixed goes with toys that are thrown, not with those of a file"),
    (coverage_study, ["toys.h5", "--fixed", "mu"], "--fixed goes with toys that are thrown, not with those of a file"),
    (hypotest, ["toys.h5", "--fixed", "mu", "--goodness-of-fit"], "--fixed goes with toys that are thrown, not with"),
    (hypotest, [*POINT, "--poi", "mu", "--value", "1", "--fixed", "mu=2"], "'mu' is held by --fixed: it must be free"),
    (hypotest, [*POINT, "--poi", "mu", "--upper-limit", "--fixed", "nu"], "--fixed names 'nu', but the parameters are"),
    (hypotest, [*POINT, "--column", "x", "--goodness-of-fit"], "--column goes with --data"),
    (coverage_study, [*POINT, "--scan", "mu=1,2", "--start", "mu=5"], "fits of a scan start at each true value: leave"),
    (hypotest, [*POINT, "--goodness-of-fit"], "needs observed data, which counting does not have: pass --data"),
]


@pytest.mark.parametrize("module, arguments, told", WRONG)
def test_wrong_arguments(directory, module, arguments, told):
    assert told in refused(module, *arguments)
    assert sorted(file.name for file in directory.iterdir() if file.suffix != "") == ["counting.py", "two_bins.py"]
    assert not (directory / f"{module.__name__}").exists()


def test_a_report_is_kept():
    Path("pull_study").mkdir()
    Path("pull_study/report.html").write_text("important")
    # before any work
    assert refused(pull_study, "--model", "nosuch") == (
        "pull_study exists: pass --overwrite to replace it, or name another directory"
    )
    assert Path("pull_study/report.html").read_text() == "important"
    finished(pull_study, *POINT, "--n", "20", "--overwrite")
    assert "Pull study of counting" in Path("pull_study/report.html").read_text()


def test_file_of_a_model_that_must_be_given(toy_file):
    assert refused(pull_study, toy_file) == "toys.h5 is of the model 'counting': pass its file with --model"
    told = "toys.h5 has fits of mu, but the study of ns, nb, mu, sigma, lam"
    assert refused(pull_study, toy_file, "--model", "peak") == told


@pytest.mark.parametrize("name", ["pull_study", "coverage_study", "hypotest"])
def test_help_is_quick(name):
    code = (
        "import runpy, sys\n"
        f"sys.argv = ['{name}.py', '--help']\n"
        "try:\n"
        f"    runpy.run_path({str(SCRIPTS / f'{name}.py')!r}, run_name='__main__')\n"
        "finally:\n"
        "    print('heavy:', sorted({'jax', 'numba', 'numpy', 'h5py', 'rich', 'toys'} & sys.modules.keys()))\n"
    )
    helped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, timeout=60)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "heavy: []" in helped.stdout and "--overwrite" in helped.stdout and "Exit code 0: done" in helped.stdout


def test_points_of_a_scan():
    scan = sys.modules["arguments"].scan
    assert scan("ns=0:200:20") == ("ns", [20.0 * k for k in range(11)])
    assert scan("a=0:0.3:0.1")[1] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert scan("a=3:1:-1") == ("a", [3.0, 2.0, 1.0]) and scan("a=5:5:1") == ("a", [5.0])
    assert scan("a=0:1:0.4")[1] == pytest.approx([0.0, 0.4, 0.8]) and scan("a=1,2.5") == ("a", [1.0, 2.5])
