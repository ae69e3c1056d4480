"""The command line: what it does, and one line with exit code 2 for whatever is wrong."""

import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import toys
from engine import fit_batch
from tests.scripts.command_line import SMALL, TRUTH, call, finished, plot_toys, refused
from toys import storage
from toys.models import peak
from toys.options import validated
from toys.regenerate import regenerate
from toys.sample import study_of
from toys.study import generate

pytestmark = pytest.mark.usefixtures("empty_directory")


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
    assert "MIGRAD on 3 toys: 3 valid, 3 in the same minimum, worst difference" in out and "0 disagree" in out
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


def test_parameters_without_pulls_are_named():
    out = finished("--n", "1", *SMALL[2:], "--fixed", "lam")
    assert "no pulls of ns, nb, mu, sigma: fewer than two valid toys have a Hesse error" in " ".join(out.split())


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


@pytest.mark.parametrize("doubt", ["validation", "no reference", "failures"])
def test_doubtful_run_ends_with_exit_code_1(finished_run, monkeypatch, doubt):
    if doubt == "validation":
        monkeypatch.setattr("engine.reference.AGREEMENT", 1e-12)
        arguments, words = ["--validate", "2"], "WARNING: MIGRAD disagrees on 2 toys (0, 19)"
    elif doubt == "no reference":
        monkeypatch.setattr("engine.reference.Minuit.valid", property(lambda self: False))
        arguments, words = ["--validate", "2"], "WARNING: MIGRAD is in the same minimum for none"
    else:
        monkeypatch.setattr("engine.drivers.VALID_EDM", -1.0)
        arguments, words = ["--truth", "sigma=0.5"], "WARNING: 20 of 20 fits failed"
    out = finished(*SMALL, *arguments, code=1)
    assert words in out
    assert len(toys.load("toys.h5")) == 20


# --- wrong arguments ---------------------------------------------------------------------------------------

WRONG = [
    (["--nosuch"], "unrecognized arguments: --nosuch; --help shows all arguments"),
    (["--n", "0"], "argument --n: must be at least 1, got 0; --help"),
    (["--n", "-5"], "argument --n: must not be negative, got -5; --help"),
    (["--n", "abc"], "argument --n: must be a whole number, got 'abc'; --help"),
    (["--n", "1.5"], "argument --n: must be a whole number, got '1.5'; --help"),
    (["--n", "1e40"], "argument --n: must be a whole number, got '1e40'; --help"),
    (["--n", "nan"], "argument --n: must be a whole number, got 'nan'; --help"),
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


# --- more toys, fewer bytes --------------------------------------------------------------------------------


def test_extend(finished_run):
    Path("more.h5").write_bytes(finished_run[1])
    more = [*SMALL, "--n", "25", "--out", "more.h5"]
    assert refused(*more).startswith("more.h5 exists: pass --overwrite to replace it, --extend to add toys to it")
    assert "20 toys were there from an earlier run" in finished(*more, "--extend")
    finished(*SMALL, "--n", "2.5e1", "--out", "whole.h5")
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
