"""Workspaces of HistFactory: the same model as in pyhf, and one sentence for what is no workspace."""

import copy
import json
import warnings

import jax
import numpy as np
import pytest

from engine import fit_batch
from toys import generate, hypotest, read_workspace
from toys.cluster import Recipe
from toys.final import summary
from toys.finding import find_study
from toys.observed import InputError
from toys.run import Options, run
from toys.sample import study_of

SHAPES = {"lo_data": [38.0, 52.0, 61.0], "hi_data": [43.0, 49.0, 57.0]}
WORKSPACE = {
    "version": "1.0.0",
    "channels": [
        {
            "name": "signal region",
            "samples": [
                {
                    "name": "signal",
                    "data": [3.0, 8.0, 5.0],
                    "modifiers": [
                        {"name": "mu", "type": "normfactor", "data": None},
                        {"name": "lumi", "type": "lumi", "data": None},
                        {"name": "theory", "type": "normsys", "data": {"lo": 0.9, "hi": 1.12}},
                    ],
                },
                {
                    "name": "background",
                    "data": [40.0, 50.0, 60.0],
                    "modifiers": [
                        {"name": "k", "type": "normfactor", "data": None},
                        {"name": "scale", "type": "histosys", "data": SHAPES},
                        {"name": "theory", "type": "normsys", "data": {"lo": 1.03, "hi": 0.96}},
                        {"name": "mc", "type": "staterror", "data": [3.0, 2.0, 0.0]},
                    ],
                },
                {
                    "name": "fakes",
                    "data": [4.0, 0.0, 7.0],
                    "modifiers": [
                        {"name": "fake rate", "type": "shapesys", "data": [1.0, 0.5, 2.0]},
                        {"name": "mc", "type": "staterror", "data": [1.0, 1.0, 0.0]},
                    ],
                },
            ],
        },
        {
            "name": "control region",
            "samples": [
                {
                    "name": "background",
                    "data": [300.0, 200.0],
                    "modifiers": [
                        {"name": "k", "type": "normfactor", "data": None},
                        {"name": "lumi", "type": "lumi", "data": None},
                        # one parameter for a normalisation and a shape
                        {"name": "scale", "type": "normsys", "data": {"lo": 0.97, "hi": 1.02}},
                    ],
                },
                {
                    "name": "other",
                    "data": [20.0, 30.0],
                    "modifiers": [{"name": "free", "type": "shapefactor", "data": None}],
                },
            ],
        },
    ],
    "observations": [
        {"name": "signal region", "data": [51.0, 60.0, 70.0]},
        {"name": "control region", "data": [330.0, 226.0]},
    ],
    "measurements": [
        {
            "name": "search",
            "config": {
                "poi": "mu",
                "parameters": [
                    {"name": "lumi", "auxdata": [1.0], "sigmas": [0.02], "bounds": [[0.9, 1.1]], "inits": [1.0]},
                    {"name": "mu", "bounds": [[-5.0, 10.0]]},
                    {"name": "free", "fixed": True},
                    {"name": "of a modifier that was taken out", "inits": [1.0]},
                ],
            },
        },
        {
            "name": "other",
            "config": {
                "poi": "mu",
                "parameters": [
                    {"name": "lumi", "auxdata": [1.1], "sigmas": [0.05], "bounds": [[0.5, 1.5]], "inits": [1.1]},
                    {"name": "theory", "auxdata": [0.5], "inits": [0.5]},
                    {"name": "fake rate", "inits": [1.0, 1.0, 1.2]},
                    {"name": "scale", "fixed": True},
                ],
            },
        },
    ],
}
NAMES = ["mu", "lumi", "theory", "k", "scale", "fake rate[0]", "fake rate[2]", "free[0]", "free[1]", "mc[0]", "mc[1]"]


@pytest.fixture
def by_pyhf():
    pyhf = pytest.importorskip("pyhf")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        pyhf.set_backend("numpy", pyhf.optimize.minuit_optimizer(tolerance=1e-6, strategy=2))
        yield pyhf, pyhf.Workspace(WORKSPACE)


def full(model, study, values):
    """Parameters in pyhf's order; it holds those of bins without uncertainty at 1."""
    given = dict(zip(study.cost.names, values, strict=True))
    return [given.get(name, 1.0) for name in model.config.par_names]


@pytest.mark.parametrize("measurement", ["search", "other"])
def test_likelihood_is_that_of_pyhf(by_pyhf, measurement):
    _, workspace = by_pyhf
    model = workspace.model(measurement_name=measurement)
    study = read_workspace(WORKSPACE, measurement=measurement)
    counts = study.cost.costs[0]
    assert sorted(study.cost.names) == sorted(NAMES) and study.cost.names[0] == "mu"
    unused = {"mc[2]", "fake rate[1]"}
    assert set(model.config.par_names) - set(NAMES) == unused
    for name, start, limits, fixed in zip(
        model.config.par_names,
        model.config.suggested_init(),
        model.config.suggested_bounds(),
        model.config.suggested_fixed(),
        strict=True,
    ):
        if name not in unused:
            assert (study.start[name], study.limits[name], name in study.fixed) == (start, tuple(limits), fixed)
    data = workspace.data(model)
    np.testing.assert_array_equal(study.data[0][0], data[: model.config.nmaindata])
    rng = np.random.default_rng(1)
    differences = []
    for size in (0.0, 0.02, 0.1, 0.3, 1.0):
        values = np.array(list(study.start.values())) + size * rng.uniform(-1.9, 1.9, len(NAMES)) * [
            1.0 if name in ("mu", "theory", "scale") else 0.3 for name in study.cost.names
        ]
        theirs = full(model, study, values)
        ours = dict(zip(study.cost.names, values, strict=True))
        with jax.enable_x64(True):
            expected = counts.model(*(ours[name] for name in counts.names))
        np.testing.assert_allclose(expected, model.expected_actualdata(theirs), rtol=1e-13)
        held = fit_batch(study.cost, study.data, values, fixed=study.cost.names, backend="numba")
        differences.append(held.fval[0] + model.logpdf(theirs, data)[0])
    np.testing.assert_allclose(differences, differences[0], atol=1e-10)  # a constant


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_fit_is_that_of_pyhf(by_pyhf, backend):
    pyhf, workspace = by_pyhf
    model = workspace.model()
    study = read_workspace(WORKSPACE)
    result = fit_batch(study.cost, study.data, study.start, limits=study.limits, fixed=study.fixed, backend=backend)
    assert result.valid.all()
    theirs = dict(zip(model.config.par_names, pyhf.infer.mle.fit(workspace.data(model), model), strict=True))
    free = [k for k, name in enumerate(result.names) if name not in study.fixed]
    difference = result.values[0] - [theirs[name] for name in result.names]
    assert np.abs(difference[free] / result.errors[0, free]).max() < 1e-3


def test_asymptotic_limits_are_those_of_pyhf(by_pyhf):
    pyhf, workspace = by_pyhf
    model = workspace.model()
    study = read_workspace(WORKSPACE)
    found = hypotest(study, 2.5, test_stat="q", calctype="asymptotics")
    assert found.poi == study.poi == "mu"
    cls = pyhf.infer.hypotest(2.5, workspace.data(model), model, test_stat="q")
    assert found.CLs == pytest.approx(float(cls), rel=1e-4)


def test_toys_of_a_workspace():
    """Two hundred toys, on both backends; the measured values of all constraints are drawn anew."""
    study = read_workspace(WORKSPACE)
    data = generate(study, 200, seed=3)
    assert [part.shape for part in data] == [(200, 5), (200, 5), (200, 2)]
    assert (np.std(data[1], axis=0) > 0).all() and (np.std(data[2], axis=0) > 0).all()
    options = {"limits": study.limits, "fixed": study.fixed}
    by_numba = fit_batch(study.cost, data, study.start, backend="numba", **options)
    by_jax = fit_batch(study.cost, data, study.start, backend="jax", device="cpu", **options)
    assert by_numba.valid.mean() > 0.98
    np.testing.assert_array_equal(by_numba.status, by_jax.status)
    both = by_numba.valid
    free = [k for k, name in enumerate(study.cost.names) if name not in study.fixed]
    error = np.where(by_numba.errors > 0, by_numba.errors, 1.0)[both][:, free]
    assert np.abs((by_numba.values - by_jax.values)[both][:, free] / error).max() < 1e-6
    pull = by_numba.pulls(study.truth)[both, study.cost.names.index("k")]
    assert abs(pull.mean()) < 4 / np.sqrt(both.sum()) and 0.8 < pull.std() < 1.2


def test_weighted_counts():
    """With weights of 1 the minimum is the same; with weights of 2 there are half as many events in effect."""
    study = read_workspace(WORKSPACE)
    counts = study.data[0]
    options = {"limits": study.limits, "fixed": study.fixed, "backend": "numba"}
    plain = fit_batch(study.cost, study.data, study.start, **options)
    same = fit_batch(study.cost, (np.stack([counts, counts], -1), None, None), study.start, **options)
    np.testing.assert_allclose(same.values, plain.values, rtol=1e-7)
    fewer = fit_batch(study.cost, (np.stack([counts, 2 * counts], -1), None, None), study.start, **options)
    ratio = fewer.errors[0, 0] / same.errors[0, 0]
    assert fewer.valid[0] and 1.2 < ratio < np.sqrt(2)


def test_a_workspace_is_a_model_of_the_command_line(tmp_path):
    path = tmp_path / "search.json"
    path.write_text(json.dumps(WORKSPACE))
    study, source = find_study(str(path))
    assert study.name == "search" and json.loads(source) == WORKSPACE
    assert study.description == "HistFactory: 2 channels, 5 bins, 11 parameters"
    assert study.truth == read_workspace(path).truth
    other, source = find_study(f"{path}:other")
    assert other.name == "search:other" and json.loads(source) == WORKSPACE
    expected = read_workspace(path, measurement="other")
    assert (other.truth, other.limits, other.poi) == (expected.truth, expected.limits, expected.poi)
    assert other.limits != study.limits
    with pytest.raises(ValueError, match="measurement must be one of search, other, got 'none'"):
        find_study(f"{path}:none")
    odd = copy.deepcopy(WORKSPACE)
    odd["measurements"][1]["name"] = "a:b"
    (tmp_path / "odd.json").write_text(json.dumps(odd))
    assert find_study(f"{tmp_path}/odd.json:a:b")[0].name == "odd:a:b"
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        find_study("nowhere.json:other")
    named = tmp_path / "a.json:b.json"  # a colon may be part of a name
    named.write_text(json.dumps(WORKSPACE))
    assert find_study(str(named))[0].name == "a.json:b"
    path.write_text("{")
    with pytest.raises(ValueError, match=r"search\.json is no JSON file: "):
        find_study(str(path))


def without(*path):
    changed = copy.deepcopy(WORKSPACE)
    entry = changed
    for key in path[:-1]:
        entry = entry[key]
    del entry[path[-1]]
    return changed


def changed(value, *path):
    workspace = copy.deepcopy(WORKSPACE)
    entry = workspace
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    return workspace


SIGNAL = ("channels", 0, "samples", 0)
BACKGROUND = ("channels", 0, "samples", 1)


@pytest.mark.parametrize(
    ("workspace", "sentence"),
    [
        ({}, "workspace must have an entry 'measurements'"),
        (changed([], "channels"), r"workspace: channels must be a list of one or more, got \[\]"),
        (changed({}, "channels"), r"workspace: channels must be a list of one or more, got {}"),
        (changed(None, "channels", 1), r"workspace: channels\[1\] must be an object with 'name', got None"),
        (without(*SIGNAL, "data"), r"workspace: channels\[0\].samples\[0\] must have an entry 'data'"),
        (
            changed([1, 2], *SIGNAL, "data"),
            r"samples\[1\].data must be a list of 2 finite numbers, got \[40.0, 50.0, 60.0\]",
        ),
        (
            changed([1, 2, "x"], *SIGNAL, "data"),
            r"samples\[0\].data must be a list of 3 finite numbers, got \[1, 2, 'x'\]",
        ),
        (changed([1, 2, np.nan], *SIGNAL, "data"), r"samples\[0\].data must be a list of 3 finite numbers"),
        (changed("no", *SIGNAL, "modifiers", 0, "type"), r"modifiers\[0\].type must be one of normfactor, lumi, "),
        (changed(7, *SIGNAL, "modifiers", 0, "name"), r"modifiers\[0\].name must be a text, got 7"),
        (changed({"lo": 0.0, "hi": 1.0}, *SIGNAL, "modifiers", 2, "data"), r"data.lo must be positive, got 0.0"),
        (changed({"lo": 0.9}, *SIGNAL, "modifiers", 2, "data"), r"modifiers\[2\].data must have an entry 'hi'"),
        (
            changed([0.1], *BACKGROUND, "modifiers", 3, "data"),
            r"modifiers\[3\].data must be a list of 3 finite numbers",
        ),
        (
            changed("k", *SIGNAL, "modifiers", 2, "name"),
            r"modifiers\[2\]: 'k' is the name of modifiers of another type",
        ),
        (
            changed(WORKSPACE["channels"][0]["samples"][0]["modifiers"][0], *SIGNAL, "modifiers", 1),
            r"modifiers\[1\]: the sample has a normfactor 'mu' already",
        ),
        (
            changed({"name": "fake rate", "type": "shapesys", "data": [1, 1, 1]}, *SIGNAL, "modifiers", 1),
            r"samples\[2\].modifiers\[0\]: another sample has a shapesys 'fake rate'",
        ),
        (
            changed({"name": "free", "type": "shapefactor", "data": None}, *SIGNAL, "modifiers", 1),
            r"modifiers\[1\]: 'free' is the name of 2 parameters, not 3",
        ),
        (
            changed(WORKSPACE["channels"][0], "channels", 1),
            r"workspace: channels\[1\]: another entry has the name 'signal region'",
        ),
        (changed("fakes", *SIGNAL, "name"), r"samples\[2\]: another entry has the name 'fakes'"),
        (changed("2.0.0", "version"), r"workspace: version must be '1.0.0', got '2.0.0'"),
        (changed(["3.0", "8.0", "5.0"], *SIGNAL, "data"), r"samples\[0\].data must be a list of 3 finite numbers"),
        (changed([10**400, 1, 2], *SIGNAL, "data"), r"samples\[0\].data must be a list of 3 finite numbers"),
        (changed([-1.0, 5.0], "observations", 1, "data"), r"observations\[1\].data must not be negative"),
        (
            changed({"name": "mu", "bound": [[-5, 5]]}, "measurements", 0, "config", "parameters", 1),
            r"parameters\[1\]: the parameter 'mu' has no bound",
        ),
        (
            changed({"name": "mu", "inits": [11.0]}, "measurements", 0, "config", "parameters", 1),
            r"parameters\[1\]: inits of 'mu' must lie within its bounds",
        ),
        (
            changed({"name": "theory", "sigmas": [0.0]}, "measurements", 0, "config", "parameters", 1),
            r"parameters\[1\]: sigmas of 'theory' must be positive",
        ),
        (
            changed({"name": "mc", "inits": [1.0, 1.0, 1.5]}, "measurements", 0, "config", "parameters", 1),
            r"parameters\[1\]: a bin without uncertainty has no parameter, and its factor is 1",
        ),
        (without("observations", 1), r"workspace: observations must have the channel 'control region'"),
        (
            changed([1.0], "observations", 1, "data"),
            r"observations\[1\].data must be a list of 2 finite numbers, got \[1.0\]",
        ),
        (changed("nu", "measurements", 0, "config", "poi"), r"config.poi must be the name of a parameter that is one"),
        (changed("mc", "measurements", 0, "config", "poi"), r"config.poi must be the name of a parameter that is one"),
        (
            changed([], "measurements", 0, "config", "parameters"),
            r"measurements\[0\].config must have inits, bounds, auxdata and sigmas of the parameter 'lumi'",
        ),
        (
            changed({"name": "mu", "sigmas": [1.0]}, "measurements", 0, "config", "parameters", 1),
            r"parameters\[1\]: the parameter 'mu' has no sigmas",
        ),
        (
            changed({"name": "k", "inits": [1.0, 2.0]}, "measurements", 0, "config", "parameters", 1),
            r"parameters\[1\].inits must be a list of 1 finite numbers, got \[1.0, 2.0\]",
        ),
        (
            changed({"name": "k", "fixed": "yes"}, "measurements", 0, "config", "parameters", 1),
            r"parameters\[1\].fixed must be true or false, got 'yes'",
        ),
    ],
)
def test_what_is_no_workspace(workspace, sentence):
    with pytest.raises(ValueError, match=sentence):
        read_workspace(workspace)


def test_a_measurement_that_is_not_there():
    with pytest.raises(ValueError, match="measurement must be one of search, other, got 'none'"):
        read_workspace(WORKSPACE, measurement="none")


def only(*modifiers, data=(5.0, 7.0), poi="", parameters=()):
    """One channel of one sample."""
    sample = {"name": "only", "data": list(data), "modifiers": list(modifiers)}
    return {
        "version": "1.0.0",
        "channels": [{"name": "a", "samples": [sample]}],
        "observations": [{"name": "a", "data": [6.0, 6.0][: len(data)]}],
        "measurements": [{"name": "m", "config": {"poi": poi, "parameters": list(parameters)}}],
    }


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_parameters_of_bins_alone(backend):
    study = read_workspace(only({"name": "free", "type": "shapefactor", "data": None}))
    result = fit_batch(study.cost, study.data, study.start, limits=study.limits, backend=backend, device="cpu")
    np.testing.assert_allclose(result.values, [[6 / 5, 6 / 7]], rtol=1e-10)


def test_one_bin_may_be_of_interest():
    study = read_workspace(only({"name": "f", "type": "shapefactor", "data": None}, data=[5.0], poi="f"))
    assert study.poi == study.cost.names[0] == "f[0]"


def test_a_bin_that_is_empty_on_one_side():
    """Beyond -1 its events are exactly those of the lower side, which are none."""
    high = np.random.default_rng(2).uniform(0.1, 3.0, 12)
    sides = {"lo_data": [0.0] * 12 + [7.0], "hi_data": [*high, 8.5]}
    workspace = only({"name": "a", "type": "histosys", "data": sides}, data=[0.0] * 12 + [10.0])
    workspace["observations"][0]["data"] = [0.0] * 12 + [4.0]
    study = read_workspace(workspace)
    start = {"a": -2.0}
    for backend in ("numba", "jax"):
        result = fit_batch(study.cost, study.data, start, limits=study.limits, backend=backend, device="cpu")
        assert result.valid[0] and -2.5 < result.values["a"][0] < -1.0


def test_a_parameter_without_effect_is_named():
    with pytest.warns(UserWarning, match="workspace: no events depend on 'free\\[1\\]': hold it, or leave"):
        read_workspace(only({"name": "free", "type": "shapefactor", "data": None}, data=[5.0, 0.0]))


def test_without_modifiers():
    with pytest.raises(ValueError, match="workspace has no modifiers, and so no parameters"):
        read_workspace(only())


def test_workers_in_another_directory_find_a_workspace(tmp_path, monkeypatch):
    (tmp_path / "search.json").write_text(json.dumps(WORKSPACE))
    monkeypatch.chdir(tmp_path)
    study, source = find_study("search.json:other")
    recipe = Recipe.of("search.json:other", source, study)
    monkeypatch.chdir("/")
    assert find_study(recipe.model)[0].name == "search:other"
    assert Recipe.of("peak", "", study).model == "peak"


def test_a_file_is_of_one_measurement(tmp_path):
    path, out = tmp_path / "search.json", tmp_path / "toys.h5"
    path.write_text(json.dumps(WORKSPACE))
    study, _ = find_study(f"{path}:other")
    report = run(study, out, Options(n_toys=4, backend="numba", device="cpu", validate=0))
    assert study_of(out, f"{path}:other").name == "search:other"
    with pytest.raises(InputError, match=r"is of the model 'search:other', and .* is 'search': name the measurement"):
        study_of(out, str(path))
    assert summary(study, report, out)[0].lstrip().startswith("search:other: 4 toys")
