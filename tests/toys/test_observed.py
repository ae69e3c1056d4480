"""Observed data: what is read, and one sentence for everything that is wrong with a file."""

import os
import sys

import h5py
import numpy as np
import pytest

from engine import ExtendedBinnedNLL, LeastSquares, NormalConstraint, PoissonNLL, UnbinnedNLL
from engine.data import Ragged
from engine.result import FitResult
from kernels import norm
from toys import storage
from toys.observed import InputError, read_data, read_observed

EVENTS = [1.5, 2.0, 8.25]


def rejected(path, column=None, observable=None):
    """The sentence that refuses a file: one line, which names it."""
    with pytest.raises(InputError) as raised:
        read_observed(path, column, observable)
    sentence = str(raised.value)
    assert sentence.startswith(str(path)) and "\n" not in sentence
    assert raised.value.__cause__ is None and (raised.value.__suppress_context__ or raised.value.__context__ is None)
    return sentence.removeprefix(str(path))


@pytest.fixture
def csv(tmp_path):
    def write(text, name="observed.csv", encoding="utf-8"):
        path = tmp_path / name
        path.write_bytes(text.encode(encoding))
        return path

    return write


# --- csv ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, column",
    [
        ("1.5\n2.0\n8.25\n", None),
        ("1.5\n2.0\n8.25\n", "1"),
        ("x\n1.5\n2.0\n8.25", None),
        ("\ufeffx\r\n1.5\r\n2.0\r\n\r\n8.25\r\n", "x"),
        (' x , "m, µ" \n1.5,7\n2e0,7\n 8.25 ,7\n\n', "x"),
        ("7,1.5\n7,2\n7,8.25\n", "2"),
        ('"a\nb",x\n7,1.5\n7,2\n7,8.25\n', "x"),
    ],
)
def test_csv(csv, text, column):
    values = read_observed(csv(text), column, (1.5, 8.25))
    np.testing.assert_array_equal(values, EVENTS)
    assert values.dtype == np.float64
    np.testing.assert_array_equal(read_observed(csv(text, "observed.TXT"), column), EVENTS)


def test_csv_with_several_columns(csv):
    path = csv("x,y\n1,2\n")
    assert rejected(path) == " has the columns x, y: choose one with --column"
    assert rejected(path, "z") == " has no column 'z', only x, y"
    assert rejected(csv("1,2\n3,4\n")) == " has the columns 1, 2: choose one with --column"
    assert rejected(csv("x,y,x\n1,2,3\n"), "x") == " has 2 columns called 'x': rename them"


@pytest.mark.parametrize(
    "text, told",
    [
        ("x\n1\n\n2\n3.a\n4\n", ", line 5: expected a number in column 'x', got '3.a'"),
        ("1\ntwo\n", ", line 2: expected a number in column '1', got 'two'"),
        ("x,y\n1,2\n3\n", ", line 3: expected a number in column 'y', got nothing"),
        ("x,y\n1,2\n3,\n", ", line 3: expected a number in column 'y', got ''"),
        ('"x\ny",y\n1,2\n3,?\n', ", line 4: expected a number in column 'y', got '?'"),
        ("x;y\n1;2\n", ", line 2: expected a number in column 'x;y', got '1;2'"),
        # a NaN of pandas in a single column, in the first line without a header, and in two columns
        ('x\n1.0\n""\n3.0\n', ", line 3: expected a number in column 'x', got ''"),
        ('""\n1.0\n', ", line 1: expected a number in column '1', got ''"),
        ("x,y\n1,2\n,\n", ", line 3: expected a number in column 'y', got ''"),
        # numpy.savetxt separates by spaces
        ("1.0 2.0\n3.0 4.0\n", ", line 1: columns are separated by commas, got '1.0 2.0'"),
        ("1.0;2.0\n3.0;4.0\n", ", line 1: columns are separated by commas, got '1.0;2.0'"),
    ],
)
def test_text_in_a_csv_names_its_line(csv, text, told):
    column = "y" if ",y" in text else None
    assert rejected(csv(text), column) == told


def test_the_column_of_rows_of_pandas_is_none_of_the_data(csv):
    np.testing.assert_array_equal(read_observed(csv(",mass\n0,1.5\n1,2.5\n"), None), [1.5, 2.5])
    assert "has the columns mass, y: choose one" in rejected(csv(",mass,y\n0,1.5,1\n1,2.5,1\n"), None)


@pytest.mark.parametrize("text, column, name", [("0\n1.5\n-2e0\n", None, 0), (",0,1\n0,1.5,7.5\n1,2.5,8.0\n", "3", 1)])
def test_names_that_pandas_gives(csv, text, column, name):
    """It numbers the columns of arrays: what may be such a name, or a number, is not guessed."""
    assert rejected(csv(text), column) == (
        f", line 1: {name} may be the first number or, as of pandas, the name of a column: write {name}.0, or a name "
        "that starts with a letter"
    )
    for counts in ("0\n2\n1.5\n", "0.0\n2.5\n", "0\n", "1\n2.5\n"):
        assert read_observed(csv(counts))[0] == float(counts.partition("\n")[0])


@pytest.mark.parametrize(
    "text, told",
    [
        ("x\n1\nnan\n3\ninf\n", " holds 2 values that are NaN or infinite, the first is event 2: remove them"),
        ("1\n2\n-inf\n", " holds 1 values that are NaN or infinite, the first is event 3: remove them"),
        (
            "1\n9\n9.5\n0.5\n",
            " holds 2 of 4 events outside of the range 1 to 9, the first is event 3 with 9.5: "
            "cut the data to the range",
        ),
        ("", " is empty"),
        ("\n \n", " is empty"),
        ("x\n", " holds no events"),
    ],
)
def test_events_that_cannot_be_fitted(csv, text, told):
    assert rejected(csv(text), observable=(1.0, 9.0)) == told


def test_csv_that_is_no_text(tmp_path, csv):
    garbage = tmp_path / "garbage.csv"
    garbage.write_bytes(np.random.default_rng(1).bytes(1000))
    assert rejected(garbage) == " is no comma-separated text in UTF-8"
    assert rejected(csv("größe\n1\n", encoding="latin-1")) == " is no comma-separated text in UTF-8"
    assert rejected(csv("x\n1\n", encoding="utf-16")) == " is no comma-separated text in UTF-8"


# --- the file ----------------------------------------------------------------------------------------------


def test_files_that_are_no_data(tmp_path):
    assert rejected(tmp_path / "missing.csv") == ": no such file"
    assert rejected(tmp_path / "missing" / "missing.csv") == ": no such file"
    assert rejected(tmp_path) == " is a directory, not a data file"
    assert rejected(tmp_path / ("x" * 300 + ".csv")) in (": no such file", " cannot be read: File name too long")
    for name in ("data.xls", "data"):
        (tmp_path / name).write_text("1\n")
        known = "known are .csv, .txt, .npy, .h5, .hdf5, .parquet, .root"
        assert rejected(tmp_path / name) == f": unknown kind of file {(tmp_path / name).suffix!r}, {known}"
    for suffix in ("csv", "npy", "h5", "parquet"):
        (tmp_path / f"empty.{suffix}").touch()
        assert rejected(tmp_path / f"empty.{suffix}") == " is empty"


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads whatever the permissions say")
def test_data_that_may_not_be_read(csv):
    path = csv("1\n")
    path.chmod(0)
    assert rejected(path) == " cannot be read: Permission denied"


# --- npy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, ">f8"])
def test_npy(tmp_path, dtype):
    path = tmp_path / "x.npy"
    array = np.array([1, 2, 8]).astype(dtype)
    np.save(path, array)
    values = read_observed(path, None, (1.0, 9.0))
    np.testing.assert_array_equal(values, [1.0, 2.0, 8.0])
    assert values.dtype == np.float64 and values.dtype.isnative
    assert rejected(path, "x") == " is a single array: leave out --column"


def test_npy_that_is_none(tmp_path):
    path = tmp_path / "x.npy"

    class Danger:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    np.save(path, np.array([Danger(), 1], dtype=object))
    assert rejected(path) == " is no NumPy array file, or a damaged one, or one of Python objects"
    assert not (tmp_path / "executed").exists()
    for array, told in [
        (np.ones((3, 2)), ": expected one column of numbers, got an array of shape (3, 2)"),
        (np.float64(1.0), ": expected one column of numbers, got an array of shape ()"),
        (np.array(["a", "b"]), ": expected numbers, got <U1"),
        (np.ones(2, complex), ": expected numbers, got complex128"),
        (np.empty(0), " holds no events"),
        (np.array([1.0, np.nan]), " holds 1 values that are NaN or infinite, the first is event 2: remove them"),
    ]:
        np.save(path, array)
        assert rejected(path) == told
    np.save(path, np.ones(100))
    for contents in (path.read_bytes()[:-8], path.read_bytes()[:20], b"\x93NUMPY", b"text\n" * 9):
        path.write_bytes(contents)
        assert rejected(path) == " is no NumPy array file, or a damaged one, or one of Python objects"
    with path.open("wb") as file:
        np.savez(file, np.ones(3))
    assert rejected(path) == " is no NumPy array file, or a damaged one, or one of Python objects"


# --- HDF5 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x", "tree/x"])
def test_hdf5_with_one_dataset(tmp_path, name):
    path = tmp_path / "observed.hdf5"
    with h5py.File(path, "w") as file:
        file[name] = EVENTS
        file["table"] = np.ones((2, 2))
    for column in (None, name, f"/{name}"):
        np.testing.assert_array_equal(read_observed(path, column, (1.0, 9.0)), EVENTS)


def test_hdf5_with_other_datasets(tmp_path):
    path = tmp_path / "observed.h5"
    with h5py.File(path, "w") as file:
        file["table"] = np.ones((2, 2))
    assert rejected(path) == rejected(path, "table") == " has no dataset of numbers"
    with h5py.File(path, "a") as file:
        file["x"], file["tree/y"] = EVENTS, [1, 2]
    assert rejected(path) == " has the datasets tree/y, x: choose one with --column"
    assert rejected(path, "table") == " has no dataset 'table', only tree/y, x"
    np.testing.assert_array_equal(read_observed(path, "tree/y"), [1.0, 2.0])


def test_our_own_file(tmp_path):
    path = tmp_path / "toys.h5"
    numbers, flags = {"fval": 1.0, "edm": 0.0}, ("valid", "has_posdef_covar", "rescued")
    result = FitResult(
        names=("mu",),
        **{name: np.ones((1, 1)) for name in ("values", "errors")},
        **{name: np.full(1, value) for name, value in numbers.items()},
        **{name: np.ones(1, bool) for name in flags},
        covariance=np.ones((1, 1, 1)),
        status=np.zeros(1, int),
        nfev=np.ones(1, int),
        at_limit=np.zeros((1, 1), bool),
        errordef=0.5,
        backend="numba",
        device="cpu",
    )
    part = storage.write_part(path, 0, {"values": Ragged(EVENTS, [0, 3])}, result, {})
    np.testing.assert_array_equal(read_observed(part, "toys/values"), EVENTS)
    assert "toys/offsets, toys/values: choose one with --column" in rejected(part)


def test_hdf5_that_is_none(tmp_path):
    path = tmp_path / "observed.h5"
    with h5py.File(path, "w") as file:
        file["x"] = EVENTS
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert rejected(path) == " is truncated: name another file, or restore a copy"
    path.write_bytes(b"1.5\n2.0\n")
    assert rejected(path) == " is not an HDF5 file: name another file, or restore a copy"


# --- parquet -----------------------------------------------------------------------------------------------


@pytest.fixture
def parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(**columns):
        path = tmp_path / "observed.parquet"
        parquet.write_table(pyarrow.table(columns), path)
        return path

    return write


def test_parquet(parquet):
    np.testing.assert_array_equal(read_observed(parquet(x=EVENTS), None, (1.0, 9.0)), EVENTS)
    path = parquet(x=EVENTS, n=[1, 2, 3], text=["a", "b", "c"], gap=[1.0, None, 3.0])
    np.testing.assert_array_equal(read_observed(path, "n"), [1.0, 2.0, 3.0])
    assert rejected(path) == " has the columns x, n, text, gap: choose one with --column"
    assert rejected(path, "z") == " has no column 'z', only x, n, text, gap"
    assert rejected(path, "text") == ": expected numbers, got object"
    assert rejected(path, "gap") == " holds 1 values that are NaN or infinite, the first is event 2: remove them"
    np.testing.assert_array_equal(read_observed(parquet(**{"a.b": EVENTS, "a": [0, 0, 0]}), "a.b"), EVENTS)
    assert rejected(parquet(x=np.empty(0))) == " holds no events"


def test_parquet_that_is_none(parquet):
    path = parquet(x=EVENTS)
    whole = path.read_bytes()
    for contents in (whole[:-5], whole[:10], b"1.5\n2.0\n"):
        path.write_bytes(contents)
        assert rejected(path) == " is no parquet file that can be read"


# --- ROOT --------------------------------------------------------------------------------------------------


def test_root(tmp_path):
    uproot = pytest.importorskip("uproot")
    path = tmp_path / "observed.root"
    with uproot.recreate(path) as file:
        file.mktree("decays", {"mass": "f8", "time": "f4"})
        file["decays"].extend({"mass": np.array(EVENTS), "time": np.array([1, 2, 3], np.float32)})
        file.mktree("mc/decays", {"mass": "f8"})
        file["mc/decays"].extend({"mass": np.ones(2)})
    np.testing.assert_array_equal(read_observed(path, "decays:mass", (1.0, 9.0)), EVENTS)
    for column in ("mc/decays:mass", "mc/decays/mass"):
        np.testing.assert_array_equal(read_observed(path, column), [1.0, 1.0])
    np.testing.assert_array_equal(read_observed(path, "time"), [1.0, 2.0, 3.0])
    branches = "decays:mass, decays:time, mc/decays:mass"
    assert rejected(path) == f" has the branches {branches}: choose one with --column"
    assert rejected(path, "mass") == f" has no branch 'mass', only {branches}"
    path.write_bytes(path.read_bytes()[:50])
    assert " is no ROOT file that can be read (" in rejected(path)


def test_jagged_branch(tmp_path):
    uproot, awkward = pytest.importorskip("uproot"), pytest.importorskip("awkward")
    path = tmp_path / "observed.root"
    with uproot.recreate(path) as file:
        file["decays"] = {"pt": awkward.Array([[1.0, 2.0], [], [3.0]])}
    assert rejected(path, "pt") == ": decays:pt is jagged, an array for each entry: write a flat branch"


def test_histogram_of_root(tmp_path):
    uproot = pytest.importorskip("uproot")
    path = tmp_path / "observed.root"
    edges = np.array([0.0, 1.0, 2.0, 3.0])
    with uproot.recreate(path) as file:
        file["mass"] = np.array([4, 0, 2]), edges * (1 + 1e-6)
        file["cut/wide"] = np.array([4, 0, 2]), 2 * edges
        file["weighted"] = uproot.writing.identify.to_TH1x(
            "weighted", "", np.array([0, 4.0, 0, 2, 0]), 3, 6.0, 9.0, 9.0, 15.0, np.array([0, 9.0, 0, 2, 0]),
            uproot.writing.identify.to_TAxis("x", "", 3, 0.0, 3.0),
        )  # fmt: skip
    templates = PoissonNLL(lambda n: n * np.ones(3))
    for cost in (HISTOGRAM, templates):
        np.testing.assert_array_equal(read_data(cost, [str(path)], ["mass"]), [[4.0, 0.0, 2.0]])
    np.testing.assert_array_equal(read_data(templates, [str(path)], ["cut/wide"]), [[4.0, 0.0, 2.0]])
    assert refused(HISTOGRAM, [path], ["cut/wide"]) == (
        f"{path}: cut/wide has 3 bins from 0 to 6, but the study 3 bins from 0 to 3: the edges must be the same"
    )
    assert refused(HISTOGRAM, [path], ["weighted"]) == (
        f"{path}: weighted is weighted, but the toys are counts: fill it without weights"
    )
    assert refused(HISTOGRAM, [path]) == f"{path} has the objects mass, cut/wide, weighted: choose one with --column"
    assert refused(PEAK, [path], ["mass"]) == f"{path} has no branch of numbers"  # counts are no events


def test_root_without_uproot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "uproot", None)
    path = tmp_path / "observed.root"
    path.write_bytes(b"root")
    assert rejected(path) == ": ROOT files need uproot: pip install 'batchfit[data]'"


# --- data of every cost ------------------------------------------------------------------------------------

EDGES = [0.0, 1.0, 2.0, 3.0]
PEAK = UnbinnedNLL(lambda x, mu: norm.pdf(x, mu, 1.0))
PLANE = UnbinnedNLL(lambda x, mu: norm.pdf(x[0], mu, 1.0) * norm.pdf(x[1], mu, 1.0))
HISTOGRAM = ExtendedBinnedNLL(lambda x, n, mu: n * norm.cdf(x, mu, 1.0), EDGES)
LINE, BOTH = LeastSquares(lambda x, a, b: a + b * x), LeastSquares(lambda x, a, b: a + b * x, xerror=True)
CORRELATED = LeastSquares(lambda x, a, b: a + b * x, covariance=np.eye(3))
CONSTRAINT = NormalConstraint("mu", 1.0, 1.0)


def refused(cost, paths, columns=(), observable=None):
    with pytest.raises(InputError) as raised:
        read_data(cost, [str(path) for path in paths], list(columns), observable)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_data_of_every_cost(csv):
    events, counts = csv("x\n1.5\n2.0\n8.25\n", "events.csv"), csv("n\n4\n0\n2.5\n", "counts.csv")
    points = csv("yerror,x,y,xerror,z\n1,10,100,0.5,?\n2,20,200,0,?\n3,30,300,0.5,?\n", "points.csv")

    def read(cost, *paths, columns=()):
        return read_data(cost, [str(path) for path in paths], columns, (1.0, 9.0))

    (values,) = read(PEAK, events)
    np.testing.assert_array_equal(values, EVENTS)
    (plane,) = read(PLANE, points, columns=["x", "y"])
    np.testing.assert_array_equal(plane, [[10, 20, 30], [100, 200, 300]])
    np.testing.assert_array_equal(read(HISTOGRAM, counts), [[4.0, 0.0, 2.5]])
    np.testing.assert_array_equal(read(HISTOGRAM, points, columns=["xerror"]), [[0.5, 0.0, 0.5]])
    x, y, yerror = [10, 20, 30], [[100, 200, 300]], [1, 2, 3]
    for cost, expected in ((LINE, (x, y, yerror)), (BOTH, (x, y, yerror, [0.5, 0, 0.5])), (CORRELATED, (x, y))):
        data = read(cost, points)
        assert len(data) == len(expected)
        for mine, theirs in zip(data, expected, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    first, second, third, constraint = read(PEAK + HISTOGRAM + LINE + CONSTRAINT, events, counts, points)
    np.testing.assert_array_equal(first[0], EVENTS)
    np.testing.assert_array_equal(second, [[4.0, 0.0, 2.5]])
    assert len(third) == 3 and constraint is None
    only = read(HISTOGRAM + CONSTRAINT, counts)
    assert len(only) == 2 and only[1] is None
    one, two = read(PEAK + PEAK, points, points, columns=["yerror", "yerror"])
    np.testing.assert_array_equal(one[0], two[0])


def test_data_that_do_not_fit_the_cost(tmp_path, csv):
    events, negative = csv("x\n1.5\n2\n", "events.csv"), csv("n\n1\n-2\n-1\n", "negative.csv")
    points = csv("x,y,yerror\n1,2,3\n2,3,0\n", "points.csv")
    assert refused(HISTOGRAM, [events]) == (
        f"{events} does not fit the study: counts must have shape (n_toys, n_bins) = (n_toys, 3), or (n_toys, 3, 2) "
        "with the sums of weights and of their squares, got (1, 2)"
    )
    assert refused(HISTOGRAM, [negative]) == f"{negative} holds 2 negative counts, the first in bin 2 with -2"
    assert refused(HISTOGRAM, [points], ["x", "y"]) == f"{points}: counts are one column, got 2 --column"
    assert refused(LINE, [points]) == f"{points} does not fit the study: yerror must be positive, but point 1 has 0"
    assert refused(BOTH, [points]) == f"{points} has no column 'xerror', only x, y, yerror"
    assert refused(LINE, [events]) == f"{events} has no column 'y', only x"
    assert refused(LINE, [points], ["x"]).endswith(
        "points are read from the columns x, y, yerror, xerror: leave out --column"
    )
    np.save(tmp_path / "points.npy", np.ones(3))
    assert "is a single array: points need a file with the columns x, y, yerror" in refused(
        LINE, [tmp_path / "points.npy"]
    )
    with h5py.File(tmp_path / "points.h5", "w") as file:
        file["x"], file["y"], file["yerror"] = np.ones(3), np.ones(2), np.ones(2)
    assert "holds 3 of x, 2 of y, 2 of yerror: all must have one number" in refused(LINE, [tmp_path / "points.h5"])
    assert "must have the same length" in refused(PLANE, [tmp_path / "points.h5"], ["x", "y"])
    several = PEAK + HISTOGRAM + CONSTRAINT
    assert refused(several, [events]) == (
        "the study takes 2 sets of data (UnbinnedNLL, ExtendedBinnedNLL), got 1: repeat --data, one file for each in "
        "this order"
    )
    assert "takes 1 set of data (UnbinnedNLL), got 2: repeat --data" in refused(PEAK, [events, events])
    assert "got 1 --column for 2 sets of data" in refused(several, [events, events], ["x"])
    assert refused(CONSTRAINT, [events]) == "a study of NormalConstraint alone takes no --data"
    assert "outside of the range 3 to 4" in refused(several, [events, events], (), (3.0, 4.0))
    each = ((1.0, 9.0), None, (0.0, 1.0))
    assert "outside of the range 0 to 1" in refused(PEAK + CONSTRAINT + PEAK, [events, events], (), each)
    with pytest.raises(ValueError, match=r"must be \(lower, upper\), or one range for each of 4 costs, got 5"):
        read_data(several + PEAK, [events] * 3, (), 5.0)
    with pytest.raises(ValueError, match="observable must be one range, or one for each of 3 costs, got 2"):
        read_data(several, [str(events)] * 2, [], each[:2])
