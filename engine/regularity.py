"""Models for which the theory of maximum likelihood does not hold are noticed before they are fitted.

Errors from the Hessian, pulls and the stopping rule need a cost that is smooth in every parameter. Here what single
events (bins, points) add to the cost is scanned along each parameter, about one standard deviation of a single event
to either side of the start, for what `engine.breaks` tells from a smooth function.

References
----------
Cramer, Mathematical Methods of Statistics (1946), sec. 33.3.
"""

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from engine.binned import BinnedNLL, ExtendedBinnedNLL
from engine.breaks import breaks_near, width_of
from engine.cost import Cost
from engine.data import Rows, lane_data, shared_columns
from engine.normalisation import excess
from engine.ranges import NumericalIntegral
from engine.simulated import Template
from kernels.elementwise import elementwise
from kernels.nodes import UntranslatableError

__all__ = ["irregularities", "warn_of_irregularities"]

ROWS = 40  # that are looked at
POOL = 20000  # rows of the first toys from which they are taken
TOYS = 20
AWAY = 0.1  # parameters are moved by this, relative to themselves, from a point that may be special
LIFT = 1e-4  # of all events, that each bin has more than it expects


class _Terms(NamedTuple):
    """Some rows of a cost.

    Attributes
    ----------
    value : callable
        `value(k, t, r) -> array`: the term of row r with parameter k at t, for arrays that broadcast.
    n : int
    told : tuple of str
        What each row is.
    """

    value: Callable
    n: int
    told: tuple[str, ...]


def warn_of_irregularities(
    cost: Cost, rows: Rows, theta: np.ndarray, lower: np.ndarray, upper: np.ndarray, free: np.ndarray
) -> None:
    """Warn of what `irregularities` and `engine.normalisation.excess` find.

    Once for a cost and its free parameters, and again where the first data were but a few rows.
    """
    checked = cost.kept("regularity")
    key = (rows.form, free.tobytes(), min(int(rows.offsets[-1]), ROWS))
    if key in checked:
        return
    checked[key] = True
    rows = rows.only(np.arange(min(len(rows), max(TOYS, int(np.searchsorted(rows.offsets, POOL))))))
    for sentence in (*excess(cost, rows, theta), *irregularities(cost, rows, theta, lower, upper, free)):
        warnings.warn(sentence, stacklevel=3)


def irregularities(
    cost: Cost, rows: Rows, theta: np.ndarray, lower: np.ndarray, upper: np.ndarray, free: np.ndarray
) -> list[str]:
    """What breaks the regularity conditions near some parameters, one sentence for each; empty for a regular cost.

    Found are jumps and kinks of the cost along a parameter, a support that moves with it, and parameters on which
    the cost does not depend, here and at another point. Constraints are regular.

    Parameters
    ----------
    cost : Cost
    rows : Rows
        The data; a few dozen rows of the first toys are looked at.
    theta, lower, upper : (n_params,) float64
        Where to look, and the limits of the parameters.
    free : (n_params,) bool
        Parameters to look at.
    """
    found: dict[tuple[str, str], str] = {}
    used: set[str] = set()
    for leaf, part in zip(cost.leaves, rows.leaves, strict=True):
        if isinstance(leaf, NumericalIntegral):
            continue  # its rows are no data; the density is looked at with the events
        index = [cost.names.index(name) for name in leaf.names]
        terms = _terms(leaf, part, theta[index]) if leaf.takes_data and not leaf.regular else None
        if terms is None:
            used.update(leaf.names)
            continue
        for k, i in enumerate(index):
            name, value = leaf.names[k], lambda t, r, k=k, terms=terms: terms.value(k, t, r)
            if not free[i]:
                continue
            width, moves = width_of(value, terms.n, theta[i], lower[i], upper[i])
            breaks = breaks_near(value, terms.n, theta[i], width, lower[i], upper[i]) if width else []
            if (
                moves
                or breaks
                or _moves_elsewhere(leaf, part, k, theta[index], lower[index], upper[index], free[index])
            ):
                used.add(name)
            for kind, at, row, size in breaks:
                at = round(at, 4 - math.floor(math.log10(width))) + 0.0
                found.setdefault((name, kind), _sentence(kind, name, at, terms.told[row], size))
    flat = [
        f"the cost does not depend on '{name}' near {at:.6g}: fix it or leave it out of the model"
        for name, at, on in zip(cost.names, theta, free, strict=True)
        if on and name not in used
    ]
    return [*flat, *found.values()]


def _moves_elsewhere(
    leaf: Cost, part: Rows, k: int, theta: np.ndarray, lower: np.ndarray, upper: np.ndarray, free: np.ndarray
) -> bool:
    """Whether a parameter matters once the other free ones have left a special point, such as two equal peaks."""
    by = AWAY * np.sin(1.0 + np.arange(len(theta)))
    moved = np.where(free, np.clip(theta + by * np.where(theta == 0.0, 1.0, np.abs(theta)), lower, upper), theta)
    terms = _terms(leaf, part, moved)
    return terms is None or width_of(lambda t, r: terms.value(k, t, r), terms.n, moved[k], lower[k], upper[k])[1]


def _sentence(kind: str, name: str, at: float, row: str, size: float) -> str:
    if kind == "support":
        side = "above" if size > 0 else "below"
        return (
            f"the support of the model moves with '{name}': {row} is possible for {name} {side} {at:.6g} only, so "
            f"errors from the Hessian do not hold; fix '{name}', or take its interval from toys"
        )
    if kind == "jump":
        return (
            f"the cost jumps by {size:.3g} at {name} = {at:.6g} ({row}): a minimum may lie there, where no gradient "
            f"vanishes; write the model so that it is continuous in '{name}', or fix '{name}'"
        )
    return (
        f"the slope of the cost jumps by {size:.3g} at {name} = {at:.6g} ({row}): errors from the Hessian do not "
        f"hold near such a kink; make the model smooth in '{name}', or take its interval from toys"
    )


# -- terms of rows -------------------------------------------------------------------------------------------------


def _terms(leaf: Cost, part: Rows, theta: np.ndarray) -> _Terms | None:
    """Rows of a cost with data, or whole toys where the rows belong together; None if there are none."""
    good = np.flatnonzero(~part.bad & (np.diff(part.offsets) > 0))
    if not len(good):
        return None
    if leaf.term is None or getattr(leaf, "covariance", None) is not None:
        return _of_toy(leaf, part, theta, good[0])
    columns, aux, n_events = _sampled(part, good)
    if not columns.shape[1]:
        return None
    told = tuple(_told(part.names, column) for column in columns.T)
    columns = _of_whole_events(part.names, columns)
    data = np.concatenate([columns, aux.T, n_events[None]])
    made = leaf.kept("terms of rows")
    if part.form not in made:
        term, rest = _lifted(leaf, part).functions(part)
        n_params = len(leaf.names)

        def one(*args: Any) -> Any:
            *inputs, n = args
            return (0.0 if term is None else term(*inputs)) + (0.0 if rest is None else rest(*inputs) / n)

        try:
            made[part.form] = elementwise(one, n_params + len(data)), None
        except UntranslatableError:
            made[part.form] = None, _compiled(lambda theta, row: one(*theta, *row))
    by_numpy, by_jax = made[part.form]
    if by_jax is not None:
        return _Terms(_in_chunks(by_jax, theta, data.T, 1024), data.shape[1], told)

    def value(k: int, t: np.ndarray, r: np.ndarray) -> np.ndarray:
        return by_numpy(*theta[:k], t, *theta[k + 1 :], *(row[r] for row in data))

    return _Terms(value, data.shape[1], told)


def _of_whole_events(names: tuple[str, ...], columns: np.ndarray) -> np.ndarray:
    """The rows without weights, and filled bins of at least one event: with less, any edge looks as if it moved."""
    columns = np.where(np.array(names)[:, None] == "weight", 1.0, columns)
    if names[0] == "n":
        columns[0] = np.abs(columns[0])
        filled = columns[0] > 0.0
        k = names.index("scale") if "scale" in names else 0
        least = 1.0 / columns[0, filled] if k else 1.0
        columns[k, filled] = np.maximum(columns[k, filled], least)
    return columns


def _lifted(leaf: Cost, part: Rows) -> Cost:
    """A histogram with a few more events, the same in each bin.

    Far from its events the difference of a cdf at two edges is mostly rounding, whose steps look like jumps.
    """
    if isinstance(leaf, Template):
        return leaf.without_uncertainty(LIFT)
    if not isinstance(leaf, BinnedNLL | ExtendedBinnedNLL):
        return leaf
    lifted, between = copy.copy(leaf), leaf.between
    lifted.size = lambda theta, row, aux: math.inf  # type: ignore[method-assign]  # an empty bin is always possible
    if leaf.use_pdf:  # no differences; and the norm has thousands of nodes, all of which stand in rows, too
        lifted.norm = lambda theta: 1.0  # type: ignore[union-attr, method-assign]
        return lifted
    first, last = part.shared[0, 0], part.shared[1, -1]
    lifted.between = lambda theta, lower, upper: (  # type: ignore[method-assign, assignment, misc]
        between(theta, lower, upper) + LIFT * between(theta, first, last)
    )
    return lifted


def _sampled(part: Rows, good: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns, measured values and number of events of the toy, of rows spread over the first toys by quantiles."""
    sizes = np.diff(part.offsets)[good[:TOYS]]
    pool = np.unique(np.linspace(0, sizes.sum() - 1, POOL).astype(np.int64))
    ends = np.cumsum(sizes)
    which = np.searchsorted(ends, pool, side="right")
    within, toys = pool - (ends - sizes)[which], good[which]
    own = part.columns[:, part.offsets[toys] + within] if part.columns.size else np.zeros((0, len(pool)))
    columns = np.concatenate([own, part.shared[:, within]]) if part.shared.size else own
    if len(pool) <= ROWS:
        return columns, part.aux[toys], sizes[which].astype(np.float64)
    looked_at = [c for c, name in zip(columns, part.names, strict=True) if name != "weight" and np.ptp(c) > 0.0]
    if not looked_at:
        looked_at = [columns[0]]
    places = np.linspace(0, len(pool) - 1, ROWS // len(looked_at)).astype(np.int64)
    rows = np.unique([np.argsort(column, kind="stable")[places] for column in looked_at])
    return columns[:, rows], part.aux[toys[rows]], sizes[which[rows]].astype(np.float64)


def _told(names: tuple[str, ...], row: np.ndarray) -> str:
    one = names.count("x1") == 0
    return ", ".join(
        f"{'x' if one and name == 'x0' else name} = {value:.6g}" for name, value in zip(names, row, strict=True)
    )


def _of_toy(leaf: Cost, part: Rows, theta: np.ndarray, toy: int) -> _Terms:
    """One toy as two rows; its data are moved a little, since a kink does not show where data equal expectation."""
    n = int(part.offsets[toy + 1] - part.offsets[toy])
    columns, aux, _ = lane_data(part, np.array([toy]), n)
    wiggle = 0.5 * np.sin(np.arange(n)) / np.sqrt(1.0 + np.abs(columns))
    (shared,) = shared_columns(part, [n])
    moved = np.concatenate([columns * (1.0 + wiggle), columns * (1.0 - wiggle)])
    data = (moved, *(np.stack([array] * 2) for array in (aux[0], shared)))
    made = leaf.kept("terms of toy")
    if part.form not in made:
        reference = leaf.reference(part)
        made[part.form] = _compiled(
            lambda theta, data: reference(theta, ((data[0], data[1], data[0].shape[-1]),), (data[2],))
        )
    return _Terms(_in_chunks(made[part.form], theta, data, 64), 2, ("in the first toy",) * 2)


def _compiled(function: Callable) -> Callable:
    take = lambda data, r: jax.tree.map(lambda a: a[r], data)  # noqa: E731
    return jax.jit(jax.vmap(lambda theta, r, data: function(theta, take(data, r)), in_axes=(0, 0, None)))


def _in_chunks(function: Callable, theta: np.ndarray, data: Any, chunk: int) -> Callable:
    """`value` of `_Terms` by a compiled function, which is called with one shape only."""

    def value(k: int, t: np.ndarray, r: np.ndarray) -> np.ndarray:
        t, r = np.broadcast_arrays(t, r)
        result = np.empty(t.size)
        with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
            for first in range(0, t.size, chunk):
                part = np.minimum(np.arange(first, first + chunk), t.size - 1)
                thetas = np.tile(theta, (chunk, 1))
                thetas[:, k] = t.flat[part]
                result[first : first + chunk] = np.asarray(function(thetas, r.flat[part], data))[: t.size - first]
        return result.reshape(t.shape)

    return value
