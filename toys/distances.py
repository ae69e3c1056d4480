"""Distances between unbinned toys and their fitted densities: Kolmogorov-Smirnov and Anderson-Darling.

Both compare the events x_(1) <= ... <= x_(n) of a toy with the cumulative distribution F of its own fit, which is the
integral of the density by Gauss-Legendre quadrature: over a grid of cells, and within a cell from its lower edge to the
event. They see the shape alone, not the number of events.

References
----------
Stephens, J. Am. Stat. Assoc. 69 (1974) 730, eq. 2 and 5.
"""

import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.cost import called
from engine.data import Ragged, Weighted, as_float64, ragged_events
from engine.ranges import RangeIntegral
from engine.unbinned import ExtendedUnbinnedNLL, UnbinnedNLL
from kernels.quadrature import integral

__all__ = ["DISTANCES", "anderson_darling", "check_events", "fitted_cdf", "kolmogorov_smirnov", "warn_of_error"]

CELLS = 256
NODES = 8  # of each cell
TOLERATED = 1e-6
_AT_ONCE = 1 << 14


def kolmogorov_smirnov(below: np.ndarray, above: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """sup |F_n - F| = max_i max(i / n - F(x_(i)), F(x_(i)) - (i - 1) / n) of every toy.

    Parameters
    ----------
    below, above : (n_events,) float64
        F and 1 - F of all toys; those of a toy in the order of its events, F increasing.
    offsets : (n_toys + 1,) int64

    Returns
    -------
    (n_toys,) float64; NaN for a toy without events.
    """
    i, n = _ranks(offsets)
    return _of_toys(np.maximum, np.maximum(i / n - below, below - (i - 1.0) / n), offsets)


def anderson_darling(below: np.ndarray, above: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """A^2 = -n - 1/n sum_i ((2 i - 1) log F(x_(i)) + (2 n + 1 - 2 i) log(1 - F(x_(i)))) of every toy.

    The integral of n (F_n - F)^2 / (F (1 - F)) dF, which gives weight to the tails. Parameters as above.
    """
    i, n = _ranks(offsets)
    with np.errstate(divide="ignore"):
        terms = (2.0 * i - 1.0) * np.log(below) + (2.0 * n + 1.0 - 2.0 * i) * np.log(above)
    return _of_toys(np.add, -terms / n - 1.0, offsets)


DISTANCES: dict[str, Callable] = {"ks": kolmogorov_smirnov, "ad": anderson_darling}


def _ranks(offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank within its toy, from 1, and number of events of the toy, for every event."""
    n = np.diff(offsets)
    return np.arange(1.0, offsets[-1] + 1.0) - np.repeat(offsets[:-1], n), np.repeat(n, n).astype(np.float64)


def _of_toys(reduce: np.ufunc, terms: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    result = np.full(len(offsets) - 1, np.nan)
    filled = np.diff(offsets) > 0
    if filled.any():
        result[filled] = reduce.reduceat(terms, offsets[:-1][filled])
    return result


def fitted_cdf(
    cost: UnbinnedNLL | ExtendedUnbinnedNLL, events: Any, theta: np.ndarray, observable: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F and 1 - F of the events of every toy at its own parameters, in increasing order.

    The density is divided by its integral over the fit range of the cost, outside of which events do not count, or over
    the observable.

    Parameters
    ----------
    cost : UnbinnedNLL or ExtendedUnbinnedNLL
        Of one observable.
    events
        The toys, as `fit_batch` takes them, without weights.
    theta : (n_toys, n_params) float64
    observable : (lower, upper)
        Finite; not needed for a cost with a fit range.

    Returns
    -------
    (below, above, offsets)
        What `kolmogorov_smirnov` and `anderson_darling` take. NaN where the density is none.

    Raises
    ------
    ValueError
        If the events have weights or several observables or lie outside of the observable; if there is no finite range.
    """
    low, high = _cells(cost, observable, CELLS)
    x, offsets = _sorted_events(cost, events, (low[0], high[-1]))
    contents = _contents(cost, theta, np.repeat(np.arange(len(theta)), len(low)), np.tile(low, len(theta)),
                         np.tile(high, len(theta))).reshape(len(theta), -1)  # fmt: skip
    toy = np.repeat(np.arange(len(theta)), np.diff(offsets))
    cell = np.searchsorted(low, x, side="right") - 1
    part = _contents(cost, theta, toy, low[cell], x)
    total = contents.sum(axis=1)
    up_to = np.cumsum(contents, axis=1) - contents
    # each from its own side, so that tails keep their relative accuracy
    beyond = np.cumsum(contents[:, ::-1], axis=1)[:, ::-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        below = (up_to[toy, cell] + part) / total[toy]
        above = np.maximum(beyond[toy, cell] - part, 0.0) / total[toy]
    return below, above, offsets


def check_events(cost: UnbinnedNLL | ExtendedUnbinnedNLL, events: Any, observable: Any) -> None:
    """Raise the ValueError of `fitted_cdf` where events have no distance."""
    _of_one_observable(events)
    low, high = _cells(cost, observable, CELLS)
    _sorted_events(cost, events, (low[0], high[-1]))


def _error(cost: Any, theta: np.ndarray, observable: Any) -> float:
    """How far F at (n_params,) theta moves where the number of cells is doubled, at most."""
    sums = []
    for n_cells in (CELLS, 2 * CELLS):
        low, high = _cells(cost, observable, n_cells)
        contents = _contents(cost, theta[None], np.zeros(len(low), dtype=int), low, high)
        sums.append(np.cumsum(contents) / contents.sum())
    return float(np.max(np.abs(sums[0] - sums[1][1::2])))


def warn_of_error(cost: Any, theta: np.ndarray, observable: Any) -> None:
    """Warn where the integral of the density is not good to 1e-6."""
    error = _error(cost, theta, observable)
    if not error < TOLERATED:
        warnings.warn(
            f"the cumulative distribution of {called(cost.model)} is good to {error:.1g} only: it has a kink or a "
            "narrow peak, give a narrower observable or fit range",
            stacklevel=3,
        )


def _cells(cost: Any, observable: Any, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper edges of the cells, in proportion to the windows of a fit range."""
    if isinstance(cost.integral, RangeIntegral):
        ranges = cost.integral.ranges
    elif cost.integral is not None:
        raise ValueError(
            f"the density of {called(cost.model)} is normalised over nodes, between which there is no cumulative "
            "distribution: 'ks' and 'ad' need one that is normalised itself, or by fit_range"
        )
    else:
        ranges = np.atleast_2d(as_float64(observable, "observable")) if observable is not None else np.empty((0, 2))
        if ranges.shape != (1, 2) or not np.isfinite(ranges).all():
            raise ValueError(
                f"the cumulative distribution of {called(cost.model)} needs the finite range of one observable, got "
                f"{observable!r}: give the study observable=(lower, upper)"
            )
    share = np.diff(ranges, axis=1)[:, 0] / np.diff(ranges, axis=1).sum()
    n_of = n_cells // CELLS * np.maximum(np.rint(CELLS * share).astype(int), 1)
    edges = [np.linspace(lower, upper, n + 1) for (lower, upper), n in zip(ranges, n_of, strict=True)]
    return np.concatenate([e[:-1] for e in edges]), np.concatenate([e[1:] for e in edges])


def _of_one_observable(events: Any) -> Ragged:
    if isinstance(events, Weighted):
        raise ValueError("the distribution of weighted events has no Kolmogorov-Smirnov or Anderson-Darling distance")
    data = ragged_events(events)
    if data.values.ndim == 2 and len(data.values) != 1:
        raise ValueError(f"'ks' and 'ad' are for one observable, but the events have {len(data.values)}")
    return data


def _sorted_events(cost: Any, events: Any, ends: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Events of each toy in increasing order, one toy after the other, and their offsets."""
    data = _of_one_observable(events)
    x, offsets = data.values.ravel(), data.offsets
    toy = np.repeat(np.arange(len(data)), np.diff(offsets))
    if isinstance(cost.integral, RangeIntegral):
        inside = cost.integral.contains(x)
        x, toy = x[inside], toy[inside]
        offsets = np.concatenate([[0], np.cumsum(inside)])[offsets]
    elif np.any((x < ends[0]) | (x > ends[1])):
        wrong = x[(x < ends[0]) | (x > ends[1])][0]
        raise ValueError(
            f"there are events outside of the observable {ends[0]:g} to {ends[1]:g}, such as {wrong:g}: give the study "
            "the range of all its events"
        )
    return x[np.lexsort((x, toy))], offsets


def _contents(cost: Any, theta: np.ndarray, toy: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """int_low^high of the density at theta[toy], for arrays (n,); in blocks of one shape, so that one is compiled."""
    made = cost.kept("content")
    if not made:
        made[()] = jax.jit(jax.vmap(_content(cost)))
    result = np.empty(len(toy))
    with jax.enable_x64(True):
        for first in range(0, len(toy), _AT_ONCE):
            some = np.minimum(np.arange(first, first + _AT_ONCE), len(toy) - 1)
            block = made[()](theta[toy[some]], low[some], high[some])
            result[first : first + _AT_ONCE] = np.asarray(block)[: len(toy) - first]
    return result


def _content(cost: Any) -> Callable:
    def content(theta: Array, low: Array, high: Array) -> Array:
        parameters = [theta[i] for i in range(len(cost.names))]

        def density(x: Array) -> Array:
            value = cost.density(parameters, {"x0": x})
            return jnp.exp(value) if cost.log else value

        return integral(density, low, high, n=NODES)

    return content
