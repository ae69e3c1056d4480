"""Blocks of products against NumPy, in all that they can be, at places that are not aligned."""

import itertools

import numpy as np
import pytest
from numba import njit

from kernels.blocks import COLUMNS, ROWS, block_of_products


@pytest.mark.parametrize(("given", "subtracted", "solved"), list(itertools.product([False, True], repeat=3)))
def test_a_block(given, subtracted, solved):
    block = block_of_products(given=given, subtracted=subtracted, solved=solved)

    @njit
    def run(work, source, target, column, x, y, at, n, corner):
        block(work, source, target, column, x, y, at, n, corner)

    rng = np.random.default_rng(7)
    for n, column, at in [(0, 0, 0), (1, 3, 5), (9, 2, 40)]:
        work = rng.normal(size=(50, 47))
        before = work.copy()
        source, target, x, y, corner = 0, 5, 10, 20, 40
        run(work, source, target, column, x, y, at, n, corner)
        place = slice(column, column + COLUMNS)
        products = before[x : x + n, at : at + ROWS].T @ before[y : y + n, place]
        expected = given * before[source : source + ROWS, place] + (-products if subtracted else products)
        if solved:
            upper = np.triu(before[corner : corner + ROWS, at : at + ROWS])
            upper[np.diag_indices(ROWS)] **= -1
            expected = np.linalg.solve(upper.T, expected)
        np.testing.assert_allclose(work[target : target + ROWS, place], expected, rtol=1e-10, atol=1e-12)
        work[target : target + ROWS, place] = before[target : target + ROWS, place]
        np.testing.assert_array_equal(work, before)
