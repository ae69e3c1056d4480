"""Toys thrown again from (seed, index), as the run threw them."""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from toys.packing import Arrays, concatenate, pack
from toys.study import Study, generate

__all__ = ["redraw"]


def redraw(study: Study, toys: np.ndarray, *, seed: int, sampled: str, chunk: int, n_toys: int) -> Arrays:
    """Some toys of a run, in the given order.

    Parameters
    ----------
    study : Study
        At the truth of the run.
    toys : (n,) int, n >= 1
    seed : int
    sampled : {"numba", "jax"}
        Backend that threw them.
    chunk, n_toys : int
        Of the run. The rounding of JAX depends on the shape of what it computes together, so that it throws whole
        chunks again.
    """

    @lru_cache(maxsize=1)
    def of_chunk(first: int) -> Arrays:
        return pack(study.cost, generate(study, min(chunk, n_toys - first), seed, first, sampled))

    def pieces(first: int, stop: int) -> Iterator[Arrays]:
        """Toys first to stop - 1."""
        if sampled == "numba":
            yield pack(study.cost, generate(study, stop - first, seed, first, sampled))
            return
        for start in range(first // chunk * chunk, stop, chunk):
            inside = slice(max(first - start, 0), min(stop - start, chunk))
            whole = of_chunk(start)
            yield Arrays({name: _rows(array, inside) for name, array in whole.toys.items()}, whole.shared)

    runs = np.split(toys, np.flatnonzero(np.diff(toys) != 1) + 1)
    found = [piece for run in runs for piece in pieces(int(run[0]), int(run[-1]) + 1)]
    return Arrays(concatenate([piece.toys for piece in found]), found[0].shared)


def _rows(array: Any, rows: slice) -> Any:
    return array[rows]
