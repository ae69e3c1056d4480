"""Observed data on the command line: fitted first, and the toys thrown from the fit."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from iminuit import Minuit
from iminuit.cost import ExtendedUnbinnedNLL

import toys
from engine import FitResult, fit_batch
from tests.scripts.command_line import SMALL, finished, refused
from toys import storage
from toys.models import peak
from toys.shards import merge
from toys.study import generate

pytestmark = pytest.mark.usefixtures("empty_directory")


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


def assert_same_fit(mine, theirs):
    for field in dataclasses.fields(FitResult):
        if field.name != "problem":
            np.testing.assert_array_equal(getattr(mine, field.name), getattr(theirs, field.name), err_msg=field.name)


def test_the_fit_of_the_data_is_in_the_file():
    """It is that of `fit_batch`, and stays where a run is resumed, extended, or merged out of shards."""
    events = generate(peak().at({"ns": 120, "nb": 280}), 1, seed=11)[0]
    np.savetxt("good.csv", events)
    start = {**peak().start, "ns": 100.0, "nb": 300.0}
    fit = fit_batch(peak().cost, [events], start, limits=peak().limits, fixed=["lam"], backend="numba")
    minos = fit.minos()
    of_run = ["--validate", "0", "--device", "cpu", "--start", "ns=100", "nb=300", "--fixed", "lam", "--minos"]
    options = [*of_run, "--data", "good.csv", "--chunk", "4"]

    def check(path):
        found, intervals = toys.load_observed(path), toys.load_observed_minos(path)
        assert_same_fit(found, fit)
        assert_same_fit(intervals.result, fit)
        assert intervals.names == minos.names == ("ns", "nb", "mu", "sigma")
        for name in ("lower", "upper", "valid", "at_lower_limit", "at_upper_limit", "new_minimum", "nfev"):
            np.testing.assert_array_equal(getattr(intervals, name), getattr(minos, name), err_msg=name)
        assert len(toys.load(path)) == storage.read_attributes(path)["stop"] - storage.read_attributes(path)["first"]

    out = finished(*options, "--n", "8")
    printed = [" ".join(line.split()) for line in out.splitlines()]
    assert "│ Name │ MINOS - │ MINOS + │ Note │" in printed
    assert f"│ ns │ {minos.lower['ns'][0]:.4g} │ {minos.upper['ns'][0]:+.4g} │ │" in printed
    check("toys.h5")
    finished(*options, "--n", "8", "--resume")
    check("toys.h5")
    finished(*options, "--n", "12", "--extend")
    check("toys.h5")
    truth = [f"{name}={value!r}" for name, value in json.loads(storage.read_attributes("toys.h5")["truth"]).items()]
    # without the data, it is kept
    finished(*of_run, "--chunk", "4", "--n", "16", "--extend", "--truth", *truth)
    check("toys.h5")
    for shard in ("1/2", "2/2"):
        finished(*options, "--n", "8", "--shard", shard, "--out", "part.h5")
    merge("merged.h5", ["part.shard-2-of-2.h5", "part.shard-1-of-2.h5"])
    check("merged.h5")
    finished("--n", "2", "--validate", "0", "--device", "cpu", "--data", "good.csv", "--out", "hesse.h5")
    assert toys.load_observed("hesse.h5").valid.all() and toys.load_observed_minos("hesse.h5") is None
    finished("--n", "2", "--validate", "0", "--device", "cpu", "--out", "none.h5")
    assert toys.load_observed("none.h5") is None and toys.load_observed_minos("none.h5") is None


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
