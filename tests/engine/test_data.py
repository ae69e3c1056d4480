"""Toy data in every accepted form, and what is said of every other."""

import re

import numpy as np
import pandas
import pytest

from engine import ExtendedUnbinnedNLL, Ragged, UnbinnedNLL, Weighted
from engine.data import SHORT, lane_data, ragged_events

TOYS = [np.array([1.0, 2.0]), np.array([]), np.array([3.0, 4.0, 5.0])]


def assert_ragged(ragged, values, offsets):
    assert isinstance(ragged, Ragged)
    np.testing.assert_array_equal(ragged.values, values)
    np.testing.assert_array_equal(ragged.offsets, offsets)
    assert ragged.values.dtype == np.float64 and ragged.offsets.dtype == np.int64
    assert ragged.values.flags.c_contiguous


@pytest.mark.parametrize(
    "data",
    [
        TOYS,
        tuple(TOYS),
        [toy.tolist() for toy in TOYS],
        [TOYS[0].astype(np.float32), TOYS[1], TOYS[2].astype(np.int64)],
        Ragged([1, 2, 3, 4, 5], [0, 2, 2, 5]),
        Ragged(np.arange(1.0, 11.0)[::2] / 2 + 0.5, np.array([0, 2, 2, 5], np.int32)),
    ],
    ids=["list", "tuple", "lists of numbers", "mixed dtypes", "Ragged of lists", "Ragged of a strided array"],
)
def test_forms_of_ragged_toys(data):
    assert_ragged(ragged_events(data), [1, 2, 3, 4, 5], [0, 2, 2, 5])


def test_rectangular_arrays():
    array = np.arange(12.0)
    assert_ragged(ragged_events(array.reshape(3, 4)), array, [0, 4, 8, 12])
    # transposed in memory: the toys are still the rows
    assert_ragged(ragged_events(array.reshape(4, 3).T), array.reshape(4, 3).T.ravel(), [0, 4, 8, 12])
    # two observables of three events in each of two toys
    cube = array.reshape(2, 2, 3)
    assert_ragged(ragged_events(cube), [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]], [0, 3, 6])
    assert_ragged(ragged_events(list(cube)), ragged_events(cube).values, [0, 3, 6])
    assert_ragged(ragged_events(np.zeros((3, 0))), [], [0, 0, 0, 0])


def test_no_toys():
    assert len(ragged_events([])) == 0
    assert len(ragged_events(np.zeros((0, 7)))) == 0
    assert len(Ragged([], [0])) == 0


def test_forms_agree_toy_by_toy():
    rng = np.random.default_rng(1)
    toys = [rng.normal(size=(2, n)) for n in (3, 0, 5, 1)]
    ragged = ragged_events(toys)
    assert len(ragged) == 4
    for k, toy in enumerate(toys):
        np.testing.assert_array_equal(ragged[k], toy)
        np.testing.assert_array_equal(ragged[k - 4], toy)


def test_slices():
    ragged = ragged_events(TOYS)
    assert_ragged(ragged[1:], [3, 4, 5], [0, 0, 3])
    assert_ragged(ragged[:2], [1, 2], [0, 2, 2])
    assert_ragged(ragged[:], ragged.values, ragged.offsets)
    assert len(ragged[2:1]) == 0 and len(ragged[7:]) == 0
    with pytest.raises(IndexError, match="steps of 1"):
        ragged[::2]
    with pytest.raises(IndexError):
        ragged[3]


@pytest.mark.parametrize(
    ("values", "offsets", "error", "message"),
    [
        (np.zeros((1, 2, 3)), [0, 3], ValueError, "values must have shape (n_events,) or (d, n_events), got (1, 2, 3)"),
        ([1.0, 2.0], [1, 2], ValueError, "offsets must go from 0 to the number of events 2, got 1 to 2"),
        ([1.0, 2.0], [0, 3], ValueError, "offsets must go from 0 to the number of events 2, got 0 to 3"),
        ([1.0, 2.0], [], ValueError, "offsets must go from 0 to the number of events 2, got shape (0,)"),
        ([1.0, 2.0], [[0, 2]], ValueError, "offsets must go from 0 to the number of events 2, got shape (1, 2)"),
        ([1.0, 2.0], [0, 2, 1, 2], ValueError, "offsets must not decrease, but do at toy 1"),
        ([1.0, 2.0], np.array([0, 0.5, 2]), TypeError, "offsets must be whole numbers, got an array of float64"),
        ([1.0, 2.0], "02", TypeError, "offsets must be whole numbers, got str"),
        (["a"], [0, 1], TypeError, "values must hold real numbers, got list"),
        ([1j], [0, 1], TypeError, "values must hold real numbers, got list"),
    ],
)
def test_wrong_ragged(values, offsets, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}$"):
        Ragged(values, offsets)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (np.zeros(5), ValueError, "data of shape (5,) is one toy: pass [events], a list with one array per toy, or an"),
        (pandas.DataFrame({"x": [1.0, 2.0]}), TypeError, "data is a table: pass [table['x'].to_numpy()], a list with"),
        ([1.0, 2.0], ValueError, "data is a list of numbers, one toy: pass [events], a list with one array per toy"),
        (np.float64(3), ValueError, "data must have shape (n_toys, n_events) or (n_toys, d, n_events), got ()"),
        (np.zeros((2, 0, 3)), ValueError, "values must have shape (n_events,) or (d, n_events), got (0, 6)"),
        (np.zeros((2, 2, 2, 2)), ValueError, "data must have shape (n_toys, n_events) or (n_toys, d, n_events), got"),
        ([TOYS[0], np.zeros((2, 3))], ValueError, "data[1] has shape (2, 3), data[0] has (2,): every toy must be (n,)"),
        ([np.zeros((2, 3)), np.zeros((3, 3))], ValueError, "data[1] has shape (3, 3), data[0] has (2, 3): every toy"),
        ([np.zeros((2, 3, 4))], ValueError, "data[0] has shape (2, 3, 4), data[0] has (2, 3, 4): every toy must be"),
        ([TOYS[0], 3.0], ValueError, "data[1] has shape (), data[0] has (2,): every toy must be (n,)"),
        ([TOYS[0], [1.0, [2.0]]], TypeError, "data[1] must hold real numbers, got list"),
        ([TOYS[0], np.array(["a"])], TypeError, "data[1] must hold real numbers, got an array of <U1"),
        ([TOYS[0], None], TypeError, "data[1] must hold real numbers, got NoneType"),
        (np.zeros((2, 3), complex), TypeError, "data must hold real numbers, got an array of complex128"),
        (None, TypeError, "data must be a list of arrays, an array (n_toys, n_events) or Ragged, got NoneType"),
        ((x for x in TOYS), TypeError, "data must be a list of arrays, an array (n_toys, n_events) or Ragged, got gen"),
        ({"x": TOYS}, TypeError, "data must be a list of arrays, an array (n_toys, n_events) or Ragged, got dict"),
    ],
)
def test_wrong_data(data, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}") as caught:
        ragged_events(data)
    assert "\n" not in str(caught.value)


def test_empty_toys_have_any_number_of_observables():
    read = ragged_events([[], np.ones((2, 3)), []])
    assert read.values.shape == (2, 3) and read.offsets.tolist() == [0, 0, 3, 3]


@pytest.mark.parametrize("weights", [2.0, None])
def test_weights_that_are_none(weights):
    with pytest.raises(TypeError, match=f"weights must be one number for each event, got {weights}"):
        Weighted([np.ones(3)], weights).ragged()


@pytest.mark.parametrize("same", [False, True])
def test_arrays_of_objects_are_what_they_hold(same):
    toys = [TOYS[0], TOYS[0] + 1.0] if same else [TOYS[0], TOYS[2]]
    made = np.array(toys, dtype=object)
    assert made.shape == ((2, 2) if same else (2,))
    read = ragged_events(made)
    np.testing.assert_array_equal(read.values, np.concatenate(toys))
    np.testing.assert_array_equal(read.offsets, np.cumsum([0, *map(len, toys)]))
    for wrong in ([None, 1.0], ["1.0", "2.0"], [[1.0], [2.0, 3.0]]):
        with pytest.raises(TypeError, match=r"data\[0\] must hold real numbers, got an array of object"):
            ragged_events([np.array([*wrong, None], dtype=object)[:2]])


def test_a_column_of_events_is_told():
    with pytest.warns(UserWarning, match=r"data of shape \(7, 1\) are 7 toys of one event each: .* pass data.T"):
        assert len(ragged_events(np.ones((7, 1)))) == 7
    assert len(ragged_events(np.ones((1, 1)))) == 1


def test_masked_arrays_are_refused():
    # the mask would be dropped in silence, and what it hides be fitted
    masked = np.ma.masked_invalid([[1.0, np.nan], [2.0, 3.0]])
    with pytest.raises(TypeError, match="data has masked entries"):
        ragged_events(masked)
    np.testing.assert_array_equal(ragged_events(np.ma.array([[1.0, 2.0]])).values, [1.0, 2.0])


@pytest.mark.parametrize("cost", [UnbinnedNLL, ExtendedUnbinnedNLL])
def test_rows_mark_the_toys_with_bad_values(cost):
    rows = cost(lambda x, mu: x).rows([[1.0], [np.nan, 2.0], [], [np.inf, -np.inf], [3.0, 1e308, 1e308]])
    np.testing.assert_array_equal(rows.bad, [False, True, False, True, False])
    assert rows.columns.shape == (1, 8) and len(rows) == 5


def test_rows_of_two_observables():
    rows = UnbinnedNLL(lambda x, mu: mu).rows(np.array([[[1.0, 2.0], [3.0, np.nan]], [[4.0, 5.0], [6.0, 7.0]]]))
    np.testing.assert_array_equal(rows.bad, [True, False])
    np.testing.assert_array_equal(rows.columns, [[1, 2, 4, 5], [3, np.nan, 6, 7]])


@pytest.mark.parametrize("d", [1, 2])
@pytest.mark.parametrize("longest", [7, 2 * SHORT])
@pytest.mark.parametrize("at_once", [1, 2**16])
def test_toys_in_lanes(d, longest, at_once, monkeypatch):
    """Some toys in any order, padded with their last row, or with 0 where there is none, be it the last toy."""
    monkeypatch.setattr("engine.data.INDICES_AT_ONCE", max(at_once, longest + 3))
    rng = np.random.default_rng(1)
    toys = [rng.normal(size=(d, n)) for n in (2, 0, longest, longest, 1, 0)]
    rows = UnbinnedNLL(lambda x, mu: mu).rows(toys)
    for which in ([0, 1, 2, 3, 4, 5], [5], [4, 2, 2, 1], []):
        columns, aux, n = lane_data(rows, np.array(which, dtype=int), longest + 3)
        assert columns.shape == (len(which), d, longest + 3) and columns.dtype == np.float64
        assert aux.shape == (len(which), 0)
        np.testing.assert_array_equal(n, [toys[k].shape[1] for k in which])
        for lane, k in zip(columns, which, strict=True):
            end = toys[k][:, -1:] if toys[k].size else np.zeros((d, 1))
            missing = longest + 3 - toys[k].shape[1]
            np.testing.assert_array_equal(lane, np.concatenate([toys[k], np.repeat(end, missing, axis=1)], axis=1))


def test_toys_without_any_rows_in_lanes():
    rows = UnbinnedNLL(lambda x, mu: x).rows([[], []])
    np.testing.assert_array_equal(lane_data(rows, np.array([1, 0]), 4)[0], np.zeros((2, 1, 4)))
