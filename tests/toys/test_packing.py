"""Toys as named arrays: what goes in comes out, for every cost, and what belongs to all toys is held once."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine import (
    BinnedNLL,
    ExtendedUnbinnedNLL,
    LeastSquares,
    NormalConstraint,
    PoissonNLL,
    Ragged,
    UnbinnedNLL,
    Weighted,
)
from engine.constraints import PoissonConstraint
from kernels import norm
from toys.packing import Arrays, bytes_per_toy, concatenate, describe, pack, unpack

N = 4  # toys
RNG = np.random.default_rng(1)
X, ERROR = np.linspace(0.0, 1.0, 5), np.linspace(1.0, 2.0, 5)


def line(x, a, b):
    return a + b * x


EVENTS = Ragged(RNG.normal(size=9), [0, 3, 3, 8, 9])
PLANE = Ragged(RNG.normal(size=(2, 9)), [0, 3, 3, 8, 9])
COUNTS, Y = RNG.poisson(5.0, (N, 6)).astype(float), RNG.normal(size=(N, 5))
UNBINNED = UnbinnedNLL(norm.pdf, name=["mu", "sigma"])
BINNED = BinnedNLL(norm.cdf, np.linspace(-1, 1, 7), name=["mu", "sigma"])
POISSON = PoissonNLL(lambda a, b: jnp.full(6, a + b))
POINTS, BOTH = LeastSquares(line), LeastSquares(line, xerror=True)
CORRELATED = LeastSquares(line, covariance=np.eye(5))
CONSTRAINT = NormalConstraint(["mu", "a"], [1.0, 2.0], 1.0)

# cost, data, names of the arrays of each toy and of the shared ones
FORMS = {
    "events": (UNBINNED, EVENTS, "values", ""),
    "two observables": (UNBINNED, PLANE, "values", ""),
    "weights": (UNBINNED, Weighted(EVENTS, EVENTS.values**2), "values weights", ""),
    "counts": (BINNED, COUNTS, "counts", ""),
    "templates": (POISSON, COUNTS, "counts", ""),
    "weighted counts": (POISSON, np.stack([COUNTS, 1.0 + COUNTS], axis=2), "counts", ""),
    "points": (POINTS, (X, Y, ERROR), "y", "x yerror"),
    "errors in x": (BOTH, (X + Y, Y, ERROR, 0.5 * ERROR), "x y", "yerror xerror"),
    "errors of each toy": (BOTH, (X, Y, Y**2 + 1, Y**2), "y yerror xerror", "x"),
    "several x": (POINTS, (np.stack([X, X]), Y, ERROR), "y", "x yerror"),
    "several x of each toy": (POINTS, (np.ones((N, 2, 5)), Y, ERROR), "x y", "yerror"),
    "as many x as toys": (CORRELATED, (np.ones((N, 5)), Y[:, :5]), "y", "x"),
    "correlated": (CORRELATED, (X, Y), "y", "x"),
    "measured": (CONSTRAINT, RNG.normal(size=(N, 2)), "measured", ""),
    "sum": (
        UNBINNED + UNBINNED + POINTS + CONSTRAINT,
        (EVENTS, Ragged(EVENTS.values[:5], [0, 0, 1, 2, 5]), (X, Y, ERROR), RNG.normal(size=(N, 2))),
        "part0/values part1/values part2/y part3/measured",
        "part2/x part2/yerror",
    ),
}


def equal(left, right):
    if isinstance(left, Weighted):
        assert isinstance(right, Weighted)
        return equal(left.ragged(), right.ragged())
    if isinstance(left, tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, Ragged):
        return np.array_equal(left.values, right.values) and np.array_equal(left.offsets, right.offsets)
    return np.array_equal(left, right)


@pytest.mark.parametrize("form", FORMS)
def test_what_goes_in_comes_out(form):
    cost, data, own, shared = FORMS[form]
    arrays = pack(cost, data)
    assert sorted(arrays.toys) == sorted(own.split()) and sorted(arrays.shared) == sorted(shared.split())
    assert all(len(array) == N for array in arrays.toys.values())
    assert equal(unpack(arrays, N), data)
    # toy by toy, and joined again
    single = [{name: array[k : k + 1] for name, array in arrays.toys.items()} for k in range(N)]
    assert equal(unpack(Arrays(concatenate(single), arrays.shared), N), data)
    # a cost reads from them the same rows
    rows, again = cost.rows(data), cost.rows(unpack(arrays, N))
    assert again.form == rows.form
    for name in ("columns", "offsets", "shared", "aux"):
        np.testing.assert_array_equal(getattr(again, name), getattr(rows, name))


def test_other_forms_of_the_same_data():
    array = RNG.normal(size=(N, 3))
    for given in (array, list(array)):
        assert equal(pack(UNBINNED, given).toys["values"], Ragged(array.ravel(), [0, 3, 6, 9, 12]))
    np.testing.assert_array_equal(pack(POINTS, (X, Y, 2.0)).shared["yerror"], np.full(5, 2.0))
    np.testing.assert_array_equal(pack(NormalConstraint("mu", 1, 1), np.ones(N)).toys["measured"], np.ones((N, 1)))


def test_constraint_that_does_not_vary_keeps_its_value():
    cost = UNBINNED + CONSTRAINT + PoissonConstraint("a", 7.0) + POISSON
    arrays = pack(cost, (EVENTS, None, None, COUNTS))
    assert list(arrays.toys) == ["part0/values", "part3/counts"]
    events, normal, poisson, counts = unpack(arrays, N)
    assert equal(events, EVENTS) and equal(counts, COUNTS)
    np.testing.assert_array_equal(normal, [[1.0, 2.0]] * N)
    np.testing.assert_array_equal(poisson, [[7.0]] * N)
    again, rows = cost.rows((events, normal, poisson, counts)), cost.rows((EVENTS, None, None, COUNTS))
    np.testing.assert_array_equal(again.aux, rows.aux)


def test_as_many_x_as_toys_are_no_x_of_each_toy():
    """x of shape (d, n) for d toys: read from a file, where it is told apart, it must not become one row per toy."""
    x = np.stack([X, X**2, X**3, X**4])
    cost = LeastSquares(lambda x, a, b: a + b * x[0] * x[3])
    arrays = Arrays({"y": Y}, {"x": x, "yerror": ERROR})
    rows = cost.rows(unpack(arrays, N))
    first = cost.rows(unpack(Arrays({"y": Y[:1]}, arrays.shared), 1))
    columns = dict(zip(rows.names, rows.columns, strict=False))
    for k in range(4):
        np.testing.assert_array_equal(columns[f"x{k}"].reshape(N, 5), np.tile(x[k], (N, 1)))
        np.testing.assert_array_equal(dict(zip(first.names[1:], first.shared, strict=True))[f"x{k}"], x[k])


def test_eleven_costs_keep_their_order():
    cost = BINNED
    for _ in range(10):
        cost = cost + BINNED
    data = tuple(COUNTS + k for k in range(11))
    assert equal(unpack(pack(cost, data), N), data)


@pytest.mark.parametrize("data, got", [(COUNTS, "ndarray"), ((COUNTS,), "a tuple of 1"), ([COUNTS, COUNTS], "list")])
def test_toys_of_a_sum_are_a_tuple(data, got):
    with pytest.raises(TypeError, match=f"toys of a sum of 2 costs must be a tuple with one entry for each, got {got}"):
        pack(BINNED + POISSON, data)


def test_bytes_of_a_toy():
    one = pack(UNBINNED + POINTS, (EVENTS[:1], (X, Y[:1], ERROR)))
    # 3 events, 5 points, and the covariance of 4 parameters; not what is shared
    assert bytes_per_toy(one, 4) == 8 * (3 + 5 + 16)


@pytest.mark.parametrize(
    "cost, data, words",
    [
        (UNBINNED, EVENTS, "UnbinnedNLL of 3 events"),
        (ExtendedUnbinnedNLL(norm.pdf, name=["mu", "sigma"]), EVENTS[3:], "ExtendedUnbinnedNLL of 1 event"),
        (BINNED, COUNTS, "BinnedNLL of 6 bins"),
        (BINNED, np.stack([COUNTS, COUNTS], axis=2), "BinnedNLL of 6 bins"),
        (POINTS + CONSTRAINT, ((X, Y, ERROR), None), "LeastSquares of 5 points + NormalConstraint of 2 values"),
        (CONSTRAINT, np.ones((N, 2)), "NormalConstraint of 2 values"),
    ],
)
def test_words(cost, data, words):
    assert describe(cost, pack(cost, data)) == words
