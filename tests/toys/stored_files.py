"""Toys and fits of every kind, written as parts, and what of a file must equal them."""

import dataclasses
import subprocess
import sys

import numpy as np

from engine.data import Ragged
from engine.result import FitResult
from toys import storage

N_TOYS = 11
BOUNDS = [(0, 4), (4, 9), (9, 11)]
ATTRIBUTES = {
    "model": "line",
    "source": "def density(x):\n    return 1 / µ\n",
    "seed": 2**63 + 1,
    "errordef": 0.5,
    "extended": True,
    "parameters": ["slope", "n"],
    "truth": '{"slope": 0.5}',
    "start": np.array([0.5, np.nan, -0.0]),
    "comment": "",
    "long": "µ" * 100_000,
    "nothing": [],
}


def make_result(n_toys=N_TOYS, seed=0, **changed):
    """Random fits with every kind of number in them: NaN, infinity, all flags."""
    rng = np.random.default_rng(seed)
    arrays = {
        "values": rng.normal(size=(n_toys, 2)),
        "errors": rng.random((n_toys, 2)),
        "covariance": rng.random((n_toys, 2, 2)),
        "fval": rng.normal(size=n_toys),
        "edm": rng.random(n_toys),
        "valid": rng.random(n_toys) < 0.5,
        "status": rng.integers(0, 7, n_toys).astype(np.int8),
        "nfev": rng.integers(0, 2**40, n_toys),
        "at_limit": rng.random((n_toys, 2)) < 0.5,
        "has_posdef_covar": rng.random(n_toys) < 0.5,
        "rescued": rng.random(n_toys) < 0.5,
    }
    for name in ("values", "errors", "covariance", "fval", "edm"):
        arrays[name][1] = np.nan
    arrays["fval"][-1] = np.inf
    settings = {"names": ("slope", "n"), "errordef": 0.5, "backend": "numba", "device": "cpu"}
    return FitResult(**(arrays | settings | changed))


def make_ragged(lengths, d=None):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    shape = offsets[-1] if d is None else (d, offsets[-1])
    return Ragged(np.random.default_rng(1).normal(size=shape), offsets)


def make_toys(kind, n_toys=N_TOYS):
    rng = np.random.default_rng(2)
    # the first toy, the last one, and all of the middle part are empty
    lengths = np.array([0, 3, 1, 6, 0, 0, 0, 0, 0, 7, 0])
    measured = rng.normal(size=(n_toys, 2))
    return {
        "ragged": lambda: {"values": make_ragged(lengths), "measured": measured},
        "two observables": lambda: {"values": make_ragged(lengths, d=2)},
        "empty": lambda: {"values": make_ragged(0 * lengths)},
        "counts": lambda: {"counts": rng.poisson(3.0, (n_toys, 20)), "measured": measured},
        "points": lambda: {"y": rng.normal(size=(n_toys, 6)), "measured": np.empty((n_toys, 0))},
        "values": lambda: {"values": rng.normal(size=(n_toys, 3, 2))},
        "weights": lambda: {"values": make_ragged(lengths), "weights": make_ragged(lengths)},
        "sum": lambda: {
            "part0/values": make_ragged(lengths),
            "part1/counts": rng.poisson(3.0, (n_toys, 20)),
            "part2/values": make_ragged(lengths[::-1] + 1, d=2),
            "part10/measured": measured,
        },
    }[kind]()


KINDS = ["ragged", "two observables", "empty", "counts", "points", "values", "weights", "sum"]
SHARED = {"part3/x": np.linspace(0.0, 1.0, 6), "part3/yerror": np.full(6, 2.0)}


def write_parts(path, toys, result, bounds=BOUNDS, attributes=ATTRIBUTES, shared=None):
    for first, stop in bounds:
        part = {name: array[first:stop] for name, array in toys.items()}
        storage.write_part(path, first, part, result[first:stop], attributes, shared)


def assert_equal_results(left, right):
    for field in dataclasses.fields(FitResult):
        mine, theirs = getattr(left, field.name), getattr(right, field.name)
        np.testing.assert_array_equal(mine, theirs, err_msg=field.name)
        assert np.asarray(mine).dtype == np.asarray(theirs).dtype


def assert_equal_toys(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert type(left[name]) is type(right[name])
        for mine, theirs in zip(left[name], right[name], strict=True):
            np.testing.assert_array_equal(mine, theirs, err_msg=name)
            assert mine.dtype == theirs.dtype and mine.shape == theirs.shape


def assert_clear(raised, path):
    """One sentence with the file and an advice, without HDF5's own words."""
    sentence = str(raised.value)
    assert str(path) in sentence and ": " in sentence and "\n" not in sentence
    assert "synchronously" not in sentence and "errno" not in sentence.lower()
    assert raised.value.__cause__ is None and (raised.value.__suppress_context__ or raised.value.__context__ is None)


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
