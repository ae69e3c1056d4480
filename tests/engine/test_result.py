"""Results: indexing, pulls, counts and printing."""

import dataclasses
import pickle
import sys

import numpy as np
import pytest
from iminuit import Minuit, cost

from engine import LeastSquares, fit_batch
from engine.named import NamedArray
from engine.printing import Table, pdg_format
from engine.result import Fit, FitResult, Summary
from engine.status import Status

NAMES = ("mu", "sigma", "n")


def make_result(n_toys=6, names=NAMES, **changed):
    """Toys with distinct numbers everywhere, all valid and without limits unless `changed` says so."""
    n_params = len(names)
    theta = np.arange(n_toys * n_params, dtype=float).reshape(n_toys, n_params)
    errors = 0.5 + 0.01 * theta
    arrays = {
        "values": theta,
        "errors": errors,
        "covariance": errors[:, :, None] * errors[:, None, :] * (0.2 + 0.8 * np.eye(n_params)),
        "fval": -100.0 - np.arange(n_toys),
        "edm": 1e-14 * np.arange(1, n_toys + 1),
        "valid": np.ones(n_toys, bool),
        "status": np.full(n_toys, Status.CONVERGED, np.int8),
        "nfev": 10 + np.arange(n_toys),
        "at_limit": np.zeros((n_toys, n_params), bool),
        "has_posdef_covar": np.ones(n_toys, bool),
        "rescued": np.zeros(n_toys, bool),
    }
    settings = {"names": names, "errordef": 0.5, "backend": "numba", "device": "cpu"}
    return FitResult(**(arrays | settings | changed))


def assert_equal_results(left, right):
    for field in dataclasses.fields(FitResult):
        np.testing.assert_array_equal(getattr(left, field.name), getattr(right, field.name), err_msg=field.name)


@pytest.fixture
def mixed():
    """Six toys: two valid (0, 3), one CONVERGED yet not valid, one step limit, two with bad data."""
    status = np.array([0, 0, 1, 0, 4, 4])
    valid = np.array([True, False, False, True, False, False])
    values = np.array([[1.0, 2.0, 3.0], [9, 9, 9], [9, 9, 9], [3.0, 2.0, 7.0], [np.nan] * 3, [np.nan, np.inf, 0]])
    errors = np.array([[0.5, 0.0, 2.0], [1, 1, 1], [1, 1, 1], [1.5, 0.0, 0.0], [np.nan] * 3, [np.nan] * 3])
    at_limit = np.zeros((6, 3), bool)
    at_limit[3, 2] = at_limit[2, 0] = at_limit[2, 1] = True
    rescued = np.array([True, False, False, False, False, False])
    return make_result(values=values, errors=errors, valid=valid, status=status, at_limit=at_limit, rescued=rescued)


def test_status_integers_are_the_file_format():
    assert {status.name: int(status) for status in Status} == {
        "CONVERGED": 0,
        "MAX_STEPS": 1,
        "NONFINITE": 2,
        "HESSIAN_NOT_POSDEF": 3,
        "BAD_DATA": 4,
        "STALLED": 5,
        "UNBOUNDED": 6,
    }
    sentences = {status.sentence for status in Status}
    assert len(sentences) == len(Status)
    assert all(sentence.endswith(".") and sentence.count(". ") == 0 for sentence in sentences)
    assert pickle.loads(pickle.dumps(Status.STALLED)) is Status.STALLED


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"values": np.zeros((3, 6))},
            r"values must have shape \(n_toys, n_params\) = \(3, 3\), got \(3, 6\)",
        ),
        ({"errors": np.zeros(6)}, r"errors must have shape .* = \(6, 3\), got \(6,\)"),
        ({"covariance": np.zeros((6, 3))}, r"covariance must have shape .* = \(6, 3, 3\), got \(6, 3\)"),
        ({"edm": np.zeros((6, 1))}, r"edm must have shape \(n_toys\) = \(6,\), got \(6, 1\)"),
        ({"valid": np.ones(6)}, "valid must be of dtype bool, got float64"),
        ({"nfev": np.ones(6)}, "nfev must be of dtype int64, got float64"),
        ({"status": np.full(6, 256)}, "status must hold integers of Status, 0 to 6, got"),
        ({"status": np.full(6, -1)}, "status must hold"),
        ({"names": ("a", "b", "a")}, "names must be different strings"),
        ({"names": "abc"}, "names must be different strings"),
        ({"errordef": 2.0}, "errordef must be 0.5 or 1, got 2.0"),
    ],
)
def test_constructor_names_what_is_wrong(changed, message):
    with pytest.raises(ValueError, match=message):
        make_result(**changed)


def test_dtypes_and_status_comparison():
    result = make_result(status=np.array([0, 6, 0, 0, 1, 6]), nfev=np.arange(6, dtype=np.int32))
    assert result.status.dtype == np.int8
    assert result.nfev.dtype == np.int64
    np.testing.assert_array_equal(result.status == Status.UNBOUNDED, [False, True, False, False, False, True])


def test_arrays_are_read_only_but_the_callers_stay_writeable():
    values = np.zeros((6, 3))
    result = make_result(values=values)
    for array in (result.values, result.status, result[2:4].covariance, result[0].values):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 1
    values[0] = 1.0
    copy = result.values.copy()
    copy[0] = 7.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.fval = None


@pytest.mark.parametrize("index", [2, -4, np.int64(2), np.int8(-4)])
def test_one_fit_is_its_row(index):
    result = make_result(status=np.array([0, 0, 5, 0, 0, 0]))
    fit = result[index]
    assert isinstance(fit, Fit)
    for field in dataclasses.fields(FitResult):
        if field.name == "problem":
            continue  # of the batch
        got, whole = getattr(fit, field.name), getattr(result, field.name)
        expected = whole[2] if isinstance(whole, np.ndarray) else whole
        np.testing.assert_array_equal(got, expected, err_msg=field.name)
    assert fit.status is Status.STALLED
    assert type(fit.valid) is bool and type(fit.fval) is float and type(fit.nfev) is int


@pytest.mark.parametrize("index", [6, -7, 100])
def test_there_is_no_such_toy(index):
    with pytest.raises(IndexError, match=f"there is no toy {index}: the result holds 6 toys"):
        make_result()[index]


@pytest.mark.parametrize("key", ["mu", (0, 1), (slice(None), 0), True, None, [True] * 5, 1.5])
def test_other_keys_are_refused(key):
    with pytest.raises(IndexError):
        make_result()[key]


@pytest.mark.parametrize(
    ("key", "toys"),
    [
        (slice(1, 4), [1, 2, 3]),
        (slice(None, None, -2), [5, 3, 1]),
        (slice(9, None), []),
        (np.array([True, False, False, True, False, True]), [0, 3, 5]),
        (np.array([5, 0, -1, 5]), [5, 0, 5, 5]),
        ([4, 2], [4, 2]),
        ([], []),
    ],
)
def test_selection_equals_fits_one_by_one(key, toys):
    result = make_result(rescued=np.array([1, 0, 0, 1, 0, 0], bool))
    part = result[key]
    assert isinstance(part, FitResult)
    assert len(part) == len(toys)
    for fit, toy in zip(part, toys, strict=True):
        np.testing.assert_array_equal(fit.covariance, result.covariance[toy])
        np.testing.assert_array_equal(fit.values, result.values[toy])
        assert (fit.fval, fit.nfev, fit.rescued) == (result.fval[toy], result.nfev[toy], result.rescued[toy])


def test_concatenation_undoes_slicing():
    result = make_result()
    assert_equal_results(FitResult.concatenate([result[:2], result[2:2], result[2:]]), result)
    assert_equal_results(FitResult.concatenate(result[i : i + 1] for i in range(6)), result)


def test_concatenation_names_the_difference():
    result = make_result()
    with pytest.raises(ValueError, match=r"agree in names: result 0 has \('mu', .* result 1 has \('mu', 'x', 'n'\)"):
        FitResult.concatenate([result, make_result(names=("mu", "x", "n"))])
    with pytest.raises(ValueError, match=r"agree in errordef: result 0 has 0\.5, result 2 has 1\.0"):
        FitResult.concatenate([result, result, make_result(errordef=1.0)])
    with pytest.raises(ValueError, match="at least one"):
        FitResult.concatenate([])
    for other in (3, result[0]):
        with pytest.raises(TypeError, match=f"joins FitResults, but result 1 is {type(other).__name__}"):
            FitResult.concatenate([result, other])
    both = FitResult.concatenate([result, make_result(backend="jax", device="gpu"), make_result(backend="jax")])
    assert (both.backend, both.device) == ("jax+numba", "cpu+gpu")
    assert FitResult.concatenate([both, result]).backend == "jax+numba"


def test_named_access():
    result = make_result()
    fit = result[1]
    assert fit.values["sigma"] == fit.values[1] == result.values[1, 1]
    assert fit.covariance["n", "mu"] == result.covariance[1, 2, 0]
    np.testing.assert_array_equal(fit.covariance["n"], result.covariance[1, 2])
    assert not fit.at_limit["mu"]
    assert list(fit.values) == result.values[1].tolist()
    assert fit.values.to_dict() == {"mu": 3.0, "sigma": 4.0, "n": 5.0}
    assert repr(fit.values) == "<mu=3.0 sigma=4.0 n=5.0>"
    with pytest.raises(KeyError, match="no parameter is called 'tau'; there are mu, sigma, n"):
        fit.values["tau"]


def test_arrays_of_all_toys_take_names():
    result = make_result()
    np.testing.assert_array_equal(result.values["sigma"], result.values[:, 1])
    np.testing.assert_array_equal(result.covariance["n", "mu"], result.covariance[:, 2, 0])
    assert result.errors[1, "n"] == result.errors[1, 2]
    np.testing.assert_array_equal(result.at_limit[[1, 0], "mu"], result.at_limit[[1, 0], 0])
    np.testing.assert_array_equal(result[1:].values["n"], result.values[1:, 2])
    assert repr(result.values) == repr(np.array(result.values))
    for derived in (result.values["mu"], result.values * 2, result.values[0], result.values[result.valid]):
        assert type(derived) is np.ndarray
    with pytest.raises(KeyError, match="no parameter is called 'tau'; there are mu, sigma, n"):
        result.values["tau"]
    for array, key in ((result.values, ("mu", "n")), (result.values, ("mu", 0)), (result.covariance, ("mu", 1))):
        with pytest.raises(IndexError, match="names stand for the last"):
            array[key]
    with pytest.raises(IndexError, match="names stand for the last 0 of 2 axes"):
        result.values.T["mu"]
    with pytest.raises(ValueError, match="read-only"):
        np.asarray(result.values)[0] = 0.0


def test_arithmetic_leaves_the_names_behind():
    fit = make_result()[1]
    for derived in (fit.values - 1, fit.values[1:], fit.values[[2, 0]], np.sqrt(fit.values), fit.values > 3):
        assert type(derived) is np.ndarray
    assert isinstance(fit.values.sum(), float)
    assert fit.values.sum() == 12.0
    again = pickle.loads(pickle.dumps(fit))
    assert isinstance(again.values, NamedArray)
    assert again.values["n"] == 5.0


@pytest.mark.parametrize("shift", [0.0, 10.0, -5.0])
def test_pulls_of_known_deviations(shift):
    rng = np.random.default_rng(3)
    truth = np.array([1.0, -2.0, 30.0])
    deviations, errors = rng.normal(size=(6, 3)), rng.uniform(0.1, 3.0, size=(6, 3))
    result = make_result(values=truth + shift + deviations * errors, errors=errors)
    # one rounding of values up to 40, divided by errors of at least 0.1
    close = {"rtol": 0, "atol": 1e-12}
    theta_true = truth + shift
    np.testing.assert_allclose(result.pulls(theta_true), deviations, **close)
    np.testing.assert_allclose(result.pulls(np.tile(theta_true, (6, 1))), deviations, **close)
    # the order of the dict is not that of the parameters
    named = {"n": theta_true[2], "mu": np.full(6, theta_true[0]), "sigma": theta_true[1]}
    np.testing.assert_allclose(result.pulls(named), deviations, **close)


def test_pulls_are_nan_where_there_is_no_error(mixed):
    expected = np.full((6, 3), np.nan)
    expected[0] = [(1.0 - 2.0) / 0.5, np.nan, (3.0 - 4.0) / 2.0]
    expected[3] = [(3.0 - 2.0) / 1.5, np.nan, np.nan]
    np.testing.assert_array_equal(mixed.pulls([2.0, 2.0, 4.0]), expected)


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"mu": 1.0, "tau": 2.0}, "truth names 'tau', but the parameters are mu, sigma, n"),
        (
            {"mu": np.ones(5), "sigma": 1.0, "n": 1.0},
            r"truth\['mu'\] must be a number or have shape \(n_toys,\) = \(6,\), got \(5,\)",
        ),
        (np.ones(6), r"truth must have shape \(3,\) or \(n_toys, 3\) = \(6, 3\), got \(6,\)"),
        (1.0, r"got \(\)"),
        ([1.0, np.nan, 1.0], "truth values must be finite, but sigma is nan"),
    ],
)
def test_pulls_refuse_a_wrong_truth(truth, message):
    with pytest.raises(ValueError, match=message):
        make_result().pulls(truth)


def test_summary_leaves_no_toy_out(mixed):
    summary = mixed.summary()
    assert isinstance(summary, Summary)
    assert (summary.n_toys, summary.n_valid, summary.n_at_limit, summary.n_rescued) == (6, 2, 2, 1)
    assert summary.failed == {Status.CONVERGED: 1, Status.MAX_STEPS: 1, Status.BAD_DATA: 2}
    assert summary.failed[Status.STALLED] == 0
    assert summary.n_valid + sum(summary.failed.values()) == summary.n_toys
    np.testing.assert_array_equal(summary.mean, [2.0, 2.0, 5.0])
    # two values a distance d apart: d / sqrt(2)
    np.testing.assert_allclose(summary.std, np.array([2.0, 0.0, 4.0]) / np.sqrt(2), rtol=1e-15)
    # sigma is fixed, n of toy 3 is at a limit
    np.testing.assert_array_equal(summary.mean_error, [1.0, np.nan, 2.0])


def test_summary_shows_failures_beside_the_numbers(mixed):
    text = str(mixed.summary())
    assert "6 toys: 2 valid, 4 failed; 2 with a parameter at a limit, 1 rescued" in text
    assert "2 BAD_DATA: The toy's data hold NaN" in text
    assert "1 CONVERGED: The iteration stopped, but the fit is not valid" in text
    assert len({len(line) for line in text.splitlines()}) == 1
    short = repr(mixed)
    assert "6 toys in mu, sigma, n: 2 valid, 2 at a limit, 1 rescued, 4 failed" in short
    assert "(1 CONVERGED, 1 MAX_STEPS, 2 BAD_DATA)" in short
    assert "numba on cpu" in short
    assert "2 BAD_DATA" in mixed._repr_html_()


def test_empty_result(mixed):
    empty = mixed[:0]
    assert len(empty) == 0
    assert list(empty) == []
    assert empty.pulls([1.0, 2.0, 3.0]).shape == (0, 3)
    assert empty.pulls(dict.fromkeys(NAMES, 1.0)).shape == (0, 3)
    summary = empty.summary()
    assert (summary.n_toys, summary.n_valid, sum(summary.failed.values())) == (0, 0, 0)
    assert np.isnan([summary.mean, summary.std, summary.mean_error]).all()
    assert "0 toys: 0 valid, 0 failed" in str(summary)
    assert "0 toys" in repr(empty)
    assert "0 toys" in empty._repr_html_()
    assert empty.to_dataframe().shape == (0, 17)
    assert_equal_results(FitResult.concatenate([empty, mixed]), mixed)
    with pytest.raises(IndexError, match="holds 0 toys"):
        empty[0]


def test_dataframe_has_every_number():
    pandas = pytest.importorskip("pandas")
    result = make_result(status=np.array([0, 6, 0, 0, 1, 6]), rescued=np.array([1, 0, 0, 0, 0, 1], bool))
    frame = result.to_dataframe()
    assert isinstance(frame, pandas.DataFrame)
    for i, name in enumerate(NAMES):
        np.testing.assert_array_equal(frame[name], result.values[:, i])
        np.testing.assert_array_equal(frame[f"{name}_error"], result.errors[:, i])
        np.testing.assert_array_equal(frame[f"{name}_at_limit"], result.at_limit[:, i])
    for column in ("fval", "edm", "valid", "status", "nfev", "has_posdef_covar", "rescued"):
        np.testing.assert_array_equal(frame[column], getattr(result, column))
    assert frame["status_name"].tolist() == [Status(s).name for s in result.status]


def test_dataframe_with_names_that_clash():
    pytest.importorskip("pandas")
    names = ("valid", "x", "x_error", "valid_value")
    result = make_result(names=names)
    frame = result.to_dataframe()
    assert frame.columns.is_unique
    for i, column in enumerate(("valid_value_value", "x", "x_error_value", "valid_value")):
        np.testing.assert_array_equal(frame[column], result.values[:, i])
    for i, name in enumerate(names):
        np.testing.assert_array_equal(frame[f"{name}_error"], result.errors[:, i])
    assert frame["valid"].dtype == bool


def test_dataframe_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'batchfit\[data\]'"):
        make_result().to_dataframe()


# the examples of the PDG introduction (0.827 +- 0.119 or 0.367), and the edges of its rule
@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [
        (0.827, 0.119, ("0.83", "0.12")),
        (0.827, 0.367, ("0.8", "0.4")),
        (1.23456, 0.0354, ("1.235", "0.035")),
        (1.23456, 0.0355, ("1.23", "0.04")),
        (14.674, 0.9494, ("14.7", "0.9")),
        (14.674, 0.964, ("14.7", "1.0")),
        (14.674, 0.9996, ("14.7", "1.0")),
        (15234.0, 123.0, ("15230", "120")),
        (-1.2346e-8, 1.2e-10, ("-1.235e-08", "1.2e-10")),
        (1.23456e9, 9.6e6, ("1.235e+09", "1.0e+07")),
        (0.0, 12.3, ("0", "12")),
        (3.0, 0.0, ("3", "0")),
        (np.nan, np.nan, ("nan", "nan")),
        (np.inf, 1.0, ("inf", "1")),
        (5e-324, 5e-324, ("5e-324", "5e-324")),
    ],
)
def test_pdg_rounding(value, error, expected):
    assert pdg_format(value, error) == expected


def test_pdg_rounding_agrees_with_iminuit():
    """Equal for 500 random pairs, save one unit of the last decimal where iminuit rounds twice."""
    pdg = pytest.importorskip("iminuit.pdg_format")
    rng = np.random.default_rng(1)
    same = 0
    for value, error in zip(rng.normal(0, 100, 500), 10 ** rng.uniform(-3, 2, 500), strict=True):
        ours = pdg_format(value, error)
        theirs = pdg.pdg_format(value, error).replace("\u00b1", "+/-").split("+/-")
        for our, their in zip(ours, map(str.strip, theirs), strict=True):
            last = -len(our.partition(".")[2])
            assert abs(float(our) - float(their)) <= 1.001 * 10.0**last
            same += float(our) == float(their)
    assert same >= 980


def test_fit_prints_as_a_table():
    errors = np.array([[0.0314, 0.0, 0.0]])
    result = make_result(
        1,
        values=np.array([[1.23456, 2.0, 100.0]]),
        errors=errors,
        fval=np.array([-1234.5]),
        at_limit=np.array([[False, False, True]]),
    )
    assert str(result[0]) == repr(result[0])
    lines = str(result[0]).splitlines()
    assert lines[1].startswith("│ CONVERGED: The iteration met the convergence criterion.")
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells[1:5] == [
        ["FCN = -1234.5", "Nfev = 10"],
        ["EDM = 1e-14", "errordef = 0.5"],
        ["Valid minimum", "SOME parameters at limit"],
        ["Covariance ok", "Not rescued"],
    ]
    assert cells[5:] == [
        ["Name", "Value", "Error", "Note"],
        ["mu", "1.235", "0.031", ""],
        ["sigma", "2", "0", "fixed"],
        ["n", "100", "0", "at limit"],
    ]


def test_failed_fit_says_so(mixed):
    assert "INVALID minimum" in str(mixed[1])
    assert "CONVERGED: The iteration stopped, but the fit is not valid" in str(mixed[1])
    assert "BAD_DATA: The toy's data hold NaN" in str(mixed[4])
    assert "nan" in str(mixed[4])


def test_html_is_escaped():
    result = make_result(names=("<b>mu", "a&b", "n"))
    for page in (result[0]._repr_html_(), result._repr_html_()):
        assert "&lt;b&gt;mu" in page
        assert "<b>" not in page
        assert "a&amp;b" in page
        assert page.count("<table>") == page.count("</table>")


def test_table_lines_have_one_width():
    table = Table(["a long title " * 12], ["x", "y"], [["1", "22"], ["333", "4"]])
    lines = table.text().splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[-2].split("│")[2].strip() == "4"


def test_correlation_is_that_of_iminuit():
    toys = np.random.default_rng(5).normal(1.0, 2.0, (3, 50))
    line = LeastSquares(lambda x, a, b, c: a + b * x + c * x * x)
    x = np.linspace(0.0, 1.0, 50)
    result = fit_batch(line, (x, toys, 2.0), {"a": 0.0, "b": 0.0, "c": 0.5}, fixed=["c"])
    found = result.covariance.correlation()
    assert found.shape == (3, 3, 3) and found["a", "b"].shape == (3,)
    minuit = Minuit(cost.LeastSquares(x, toys[1], 2.0, lambda x, a, b, c: a + b * x + c * x * x), a=0, b=0, c=0.5)
    minuit.fixed["c"] = True
    minuit.migrad()
    theirs = minuit.covariance.correlation()
    assert result[1].covariance.correlation()["a", "b"] == pytest.approx(theirs["a", "b"], rel=1e-6)
    np.testing.assert_allclose(found[1], [[1, theirs["a", "b"], 0], [theirs["a", "b"], 1, 0], [0, 0, 0]], rtol=1e-6)
    with pytest.raises(TypeError, match="correlation is of covariance matrices"):
        result.values.correlation()
