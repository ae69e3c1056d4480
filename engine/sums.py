"""Sums of costs: simultaneous fits with shared parameters, and constraints."""

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.cost import Cost
from engine.data import Rows
from engine.leastsquares import LeastSquares
from kernels.derivatives import packed_index
from kernels.program import GRADIENT, n_outputs
from kernels.translate import compile_sum

__all__ = ["SumCost", "costs_of", "observables_of"]


class SumCost(Cost):
    """The sum of several costs, made by `a + b`; parameters with one name are shared.

    In a sum that holds a likelihood, chi-squares enter by half and `errordef` is 0.5; a sum of chi-squares is one.
    """

    def __init__(self, *costs: Cost) -> None:
        self.costs: tuple[Cost, ...] = tuple(
            part for cost in costs for part in (cost.costs if isinstance(cost, SumCost) else (cost,))
        )
        self.names = tuple(dict.fromkeys(name for part in self.costs for name in part.names))
        self.errordef = min(part.errordef for part in self.costs)
        self.factors = tuple(self.errordef / leaf.errordef for leaf in self.leaves)
        self.indices = tuple(tuple(self.names.index(name) for name in leaf.names) for leaf in self.leaves)

    @property
    def leaves(self) -> tuple[Cost, ...]:
        return tuple(leaf for part in self.costs for leaf in part.leaves)

    def rows(self, data: Any) -> Rows:
        """Rows of all parts.

        Parameters
        ----------
        data : tuple
            One entry for each cost, in order; None for a constraint that has the same value in all toys. Where only one
            cost takes data they may be given bare.
        """
        taking = [i for i, part in enumerate(self.costs) if part.takes_data]
        modelled = {name for i in taking for name in self.costs[i].names}
        unknown = [name for name in self.names if name not in modelled]
        if taking and unknown:
            close = difflib.get_close_matches(unknown[0], modelled, n=1)
            raise ValueError(
                f"a constraint is on {unknown[0]!r}, which no other cost of the sum has"
                + (f": did you mean {close[0]!r}?" if close else f", they have {', '.join(modelled)}")
            )
        entries = self._entries(data, taking)
        known = {}
        for i, entry in enumerate(entries):
            if entry is None:
                continue
            try:
                known[i] = self.costs[i].rows(entry)
            except (TypeError, ValueError) as error:
                if self.is_bare(data):
                    raise
                kind = TypeError if isinstance(error, TypeError) else ValueError
                raise kind(f"entry {i} of the data, of {type(self.costs[i]).__name__}: {error}") from None
        lengths = {len(rows) for rows in known.values()}
        if len(lengths) > 1:
            told = ", ".join(f"{len(rows)} for cost {i}" for i, rows in known.items())
            raise ValueError(f"all costs of a sum must have the same number of toys, got {told}")
        n_toys = lengths.pop() if lengths else 1
        parts = [
            known[i] if i in known else part.rows(np.tile(part.rows(None).aux, (n_toys, 1)))
            for i, part in enumerate(self.costs)
        ]
        return pack(tuple(leaf for rows in parts for leaf in rows.leaves))

    def is_bare(self, data: Any) -> bool:
        """Whether these are data of the only cost that takes any, and no tuple with an entry for each cost."""
        taking = [i for i, part in enumerate(self.costs) if part.takes_data]
        if len(taking) != 1 or not isinstance(data, tuple) or len(data) != len(self.costs):
            return len(taking) == 1
        cost, entry = self.costs[taking[0]], data[taking[0]]
        if isinstance(cost, LeastSquares):  # whose data are arrays, and bare a tuple, too
            whole = any(e is None for e in data) or len(cost.arrays) != len(data)
            return not whole and not (isinstance(entry, tuple | list) and len(entry) > 1 and _nested(entry[1]))
        return np.isscalar(entry)

    def _entries(self, data: Any, taking: list[int]) -> list:
        n = len(self.costs)
        bare = self.is_bare(data)
        if isinstance(data, tuple) and len(data) == n and not bare:
            missing = [i for i in taking if data[i] is None]
            if missing:
                order = ", ".join(type(part).__name__ for part in self.costs)
                raise ValueError(f"cost {missing[0]} of the sum needs data, got None: the order is ({order})")
            return list(data)
        # (events,) may be a tuple without the constraint, or a list of toys; of these, one is (n,)
        torn = isinstance(data, tuple | list) and any(e is None for e in data)
        torn |= isinstance(data, tuple) and len(data) == 1 and _nested(data[0])
        if bare and not torn:
            return [data if i == taking[0] else None for i in range(n)]
        raise TypeError(
            f"data of a sum of {n} costs must be a tuple with one entry for each, None for a constraint, got "
            f"{f'a tuple of {len(data)}' if isinstance(data, tuple) else type(data).__name__}"
        )

    def places(self) -> list[list[int]]:
        """For each part, where its outputs belong among those of the sum."""
        n_params = len(self.names)
        places = []
        for index in self.indices:
            gradient = [GRADIENT + i for i in index]
            hessian = [GRADIENT + n_params + packed_index(i, j) for k, i in enumerate(index) for j in index[: k + 1]]
            places.append([0, 1, *gradient, *hessian])
        return places

    def kernel(self, rows: Rows) -> Callable:
        kernels = [part.kernel(leaf) for part, leaf in zip(self.leaves, rows.parts, strict=True)]
        shapes = [(len(shared), leaf.aux.shape[1]) for shared, leaf in zip(self._shared(rows), rows.parts, strict=True)]
        filled = []
        for part in self.leaves:
            n, curved = len(part.names), part.curved()
            bent = [GRADIENT + n + packed_index(i, j) for i in range(n) for j in range(i + 1) if curved[i, j]]
            filled.append([*range(GRADIENT + n), *bent])
        return compile_sum(kernels, self.indices, self.places(), filled, self.factors, shapes, len(self.names))

    def _shared(self, rows: Rows) -> list[np.ndarray]:
        return [part.kernel_shared(leaf) for part, leaf in zip(self.leaves, rows.parts, strict=True)]

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        """The shared columns of all parts, one below the other, filled up to one length."""
        arrays = self._shared(rows)
        width = max(array.shape[1] for array in arrays)
        return np.concatenate([np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays])

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        functions = [
            part.outputs(leaf, tile, order, one_pass) for part, leaf in zip(self.leaves, rows.parts, strict=True)
        ]
        n_params = len(self.names)
        n_kept = n_outputs(n_params, order)

        def total(theta: Array, data: tuple, shared: tuple) -> Array:
            result = jnp.zeros(n_kept)
            for k, (f, index, places) in enumerate(zip(functions, self.indices, self.places(), strict=True)):
                part = f(theta[jnp.array(index)], data[k : k + 1], shared[k : k + 1])
                result = result.at[np.array(places[: len(part)])].add(self.factors[k] * part)
            return result

        return total

    def reference(self, rows: Rows) -> Callable:
        values = [part.reference(leaf) for part, leaf in zip(self.leaves, rows.parts, strict=True)]

        def total(theta: Array, data: tuple, shared: tuple) -> Array:
            result = jnp.zeros(())
            for k, (f, index) in enumerate(zip(values, self.indices, strict=True)):
                result += self.factors[k] * f(theta[jnp.array(index)], data[k : k + 1], shared[k : k + 1])
            return result

        return total

    def cheap_gradient(self, rows: Rows) -> bool:
        return all(part.cheap_gradient(leaf) for part, leaf in zip(self.leaves, rows.parts, strict=True))

    def check(self, theta: np.ndarray) -> None:
        for cost in self.costs:
            cost.check(theta[[self.names.index(name) for name in cost.names]])

    def score_covariance(self, rows: Rows) -> Callable | None:
        parts, known, first = [], [], 0
        for cost in self.costs:
            last = first + len(cost.leaves)
            own = replace(rows, parts=rows.parts[first:last]) if last - first > 1 else rows.parts[first]
            index = np.array([self.names.index(name) for name in cost.names])
            known.append(cost.score_covariance(own))
            # of a part without weights the gradient varies as its Hessian says
            f = known[-1] or jax.hessian(cost.reference(own))
            parts.append((f, slice(first, last), index, self.errordef / cost.errordef))
            first = last
        if all(f is None for f in known):
            return None

        def total(theta: Array, data: tuple, shared: tuple) -> Array:
            result = jnp.zeros((len(self.names), len(self.names)))
            for f, leaves, index, factor in parts:
                result = result.at[np.ix_(index, index)].add(factor * f(theta[index], data[leaves], shared[leaves]))
            return result

        return total


def costs_of(cost: Cost) -> tuple[Cost, ...]:
    """The costs of a sum, or the cost itself."""
    return cost.costs if isinstance(cost, SumCost) else (cost,)


def observables_of(cost: Cost, observable: Any) -> tuple:
    """The range of the observables of each cost of a sum, which may be given once for all.

    Parameters
    ----------
    cost : Cost
        Of a single cost the range may be anything that it takes, such as d pairs.
    observable : (lower, upper), or for a sum one range or None for each cost; or None

    Raises
    ------
    ValueError
        If it has no such form.
    """
    n = len(costs_of(cost))
    if observable is None or n == 1:
        return (observable,) * n
    if not np.iterable(observable):
        raise ValueError(f"observable must be (lower, upper), or one range for each of {n} costs, got {observable!r}")
    ranges = tuple(observable)
    if all(map(np.isscalar, ranges)):
        return (observable,) * n
    if len(ranges) != n:
        raise ValueError(f"observable must be one range, or one for each of {n} costs, got {len(ranges)}")
    return ranges


def _nested(entry: Any) -> bool:
    """Whether the data are those of several toys, or of several observables."""
    if isinstance(entry, list | tuple):
        return bool(entry) and isinstance(entry[0], list | tuple | np.ndarray)
    return getattr(entry, "ndim", 0) > 1


def pack(parts: tuple[Rows, ...]) -> Rows:
    """The rows of all parts in one array, as the numba kernel of a sum reads them.

    Rows of a toy stand part after part; the measured values begin with the number of rows of each part.
    """
    n_toys = len(parts[0])
    counts = np.stack([np.diff(part.offsets) for part in parts], axis=1)
    ends = np.cumsum(counts.ravel()).reshape(counts.shape)
    offsets = np.concatenate([[0], ends[:, -1]]).astype(np.int64)
    with_rows = [p for p in range(len(parts)) if parts[p].columns.size]
    if len(with_rows) == 1:
        columns = parts[with_rows[0]].columns
        columns = columns if columns.shape[1] == offsets[-1] else _placed(parts, counts, ends, offsets[-1])
    else:
        columns = _placed(parts, counts, ends, offsets[-1])
    return Rows(
        names=(),
        columns=columns,
        offsets=offsets,
        shared=np.zeros((0, 0)),
        aux=np.concatenate([counts.astype(np.float64), *(part.aux for part in parts)], axis=1),
        bad=np.any([part.bad for part in parts], axis=0) if n_toys else np.zeros(0, dtype=bool),
        parts=parts,
    )


def _placed(parts: tuple[Rows, ...], counts: np.ndarray, ends: np.ndarray, total: int) -> np.ndarray:
    columns = np.zeros((max((part.columns.shape[0] for part in parts), default=0), int(total)))
    for p, part in enumerate(parts):
        if part.columns.size:
            starts = ends[:, p] - counts[:, p]
            index = np.arange(part.columns.shape[1]) + np.repeat(starts - part.offsets[:-1], counts[:, p])
            columns[: part.columns.shape[0], index] = part.columns
    return columns
