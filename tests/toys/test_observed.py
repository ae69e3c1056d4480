"""Observed data: what is read, and one sentence for everything that is wrong with a file."""

import os

import h5py
import numpy as np
import pytest

from engine.data import Ragged
from engine.result import FitResult
from toys import storage
from toys.observed import InputError, read_observed

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
    ],
)
def test_text_in_a_csv_names_its_line(csv, text, told):
    column = "y" if ",y" in text else None
    assert rejected(csv(text), column) == told


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
    for name in ("data.root", "data"):
        (tmp_path / name).write_text("1\n")
        known = "known are .csv, .txt, .npy, .h5, .hdf5, .parquet"
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
    assert rejected(path) == " is no NumPy array file, or one of Python objects"
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
        assert rejected(path) == " is no NumPy array file, or one of Python objects"
    with path.open("wb") as file:
        np.savez(file, np.ones(3))
    assert rejected(path) == " is no NumPy array file, or one of Python objects"


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
