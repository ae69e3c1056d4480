"""Operations on pieces of arrays against NumPy."""

import numpy as np
import pytest
from numba import njit

from kernels.vectors import LANES, over_vectors

OPERATIONS = {
    "a copy": lambda t, x: x,
    "a multiple": lambda t, x, a: t + a * x,
    "two of them": lambda t, x, y, a, b: t + a * x - b * y,
    "a product": lambda t, x, y: t + x * y,
}


@pytest.mark.parametrize("n", [0, LANES, 3 * LANES])
@pytest.mark.parametrize("name", OPERATIONS)
def test_pieces_begin_anywhere(name, n):
    function = OPERATIONS[name]
    n_numbers = {"a multiple": 1, "two of them": 2}.get(name, 0)
    pieces = function.__code__.co_argcount - n_numbers
    operation = over_vectors(function, pieces=pieces)
    total = over_vectors(function, pieces=pieces, summed=True)
    given = ", ".join(["x, 5", "y, 1", "x, 40"][:pieces] + ["2.5", "-1.25"][:n_numbers])
    made = {"operation": operation, "total": total}
    exec(f"def change(n, x, y): operation(n, {given})\ndef summed(n, x, y): return total(n, {given})", made)
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(9, 9)), rng.normal(size=50)  # of x the elements are counted in C order
    starts = [x.ravel()[5 : 5 + n], y[1 : 1 + n], x.ravel()[40 : 40 + n]][:pieces]
    expected = function(*starts, *[2.5, -1.25][:n_numbers])
    assert njit(made["summed"])(n, x, y) == pytest.approx(np.sum(expected), rel=1e-13, abs=1e-14)
    before = x.copy()
    njit(made["change"])(n, x, y)
    before.ravel()[5 : 5 + n] = expected
    np.testing.assert_allclose(x, before, rtol=1e-15, atol=1e-15)
