"""Toys of a density of any number of observables: events are drawn from the nodes over which it is normalised."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from engine.data import Ragged
from engine.ranges import NumericalIntegral, RangeIntegral
from engine.unbinned import ExtendedUnbinnedNLL, UnbinnedNLL
from kernels import randombits
from toys.counts import LARGEST_MEAN, CountTables, checked_number, poisson_tables, thresholds
from toys.drawing import Events, Sampler, checked_theta, padded_size

__all__ = ["Resampled"]

_COUNT, _EVENTS = 0, 1  # streams of a toy's key


@partial(jax.tree_util.register_dataclass, data_fields=["points", "table", "counts"], meta_fields=["most"])
@dataclass(frozen=True)
class NodeTables:
    """What is needed of the parameters.

    Attributes
    ----------
    points : (d, n_nodes) float64
    table : (n_nodes - 1,) float64
        A uniform number belongs to the node whose number is that of the entries up to it.
    counts : CountTables or None
        Of the number of events; None where it is fixed.
    most : int
        Size of padded arrays; no toy has more events.
    """

    points: np.ndarray
    table: np.ndarray
    counts: CountTables | None
    most: int


@dataclass(frozen=True)
class Resampled(Sampler):
    """Toys whose events are nodes of a cost, each with a probability in proportion to its weight times the density.

    Of a simulated sample that was accepted the toys have its efficiency, and a likelihood that is normalised over the
    same nodes is exact for them, although a node may come twice in a toy. Many more nodes than events leave no trace of
    that.

    Attributes
    ----------
    cost : UnbinnedNLL or ExtendedUnbinnedNLL
        With `nodes`.
    n_events : int, optional
        Of each toy; that of an extended likelihood has a Poisson distribution about the expected number.

    Raises
    ------
    TypeError, ValueError
        If the cost has no nodes, or the number of events is none, missing, or given to an extended likelihood.

    Examples
    --------
    >>> cost = UnbinnedNLL(amplitude_squared, nodes=accepted)
    >>> Study(cost, Resampled(cost, 5000), truth={"mass": 0.77, "width": 0.15})
    """

    cost: UnbinnedNLL | ExtendedUnbinnedNLL
    n_events: int | None = None
    form = Events()

    def __post_init__(self) -> None:
        integral = getattr(self.cost, "integral", None)
        if not isinstance(integral, NumericalIntegral) or isinstance(integral, RangeIntegral):
            raise TypeError("toys are resampled from the nodes of UnbinnedNLL(pdf, nodes=...) or ExtendedUnbinnedNLL")
        if self.cost.extended and self.n_events is not None:
            raise ValueError("an extended likelihood tells how many events are expected: leave out n_events")
        if not self.cost.extended:
            if self.n_events is None:
                raise ValueError("n_events must be given: the density tells where events are, but not how many")
            object.__setattr__(self, "n_events", checked_number(self.n_events))
        object.__setattr__(self, "names", self.cost.names)

    def prepare(self, theta: ArrayLike) -> NodeTables:
        """Probabilities of all nodes.

        Raises
        ------
        ValueError
            If theta has the wrong length or is not finite; if weight times density is negative or not finite at a node,
            or zero at all; if more than 1e9 events are expected.
        """
        theta, integral = checked_theta(theta, self.names), self.cost.integral
        assert integral is not None
        cpu = jax.devices("cpu")[0]
        with jax.enable_x64(True), jax.default_device(cpu), jax.ensure_compile_time_eval():
            contents = np.array(_contents(integral, theta, integral.points), np.float64)
        at = dict(zip(self.names, theta.tolist(), strict=True))
        wrong = np.flatnonzero(~(np.isfinite(contents) & (contents >= 0.0)))
        if len(wrong):
            k = wrong[0]
            raise ValueError(f"weight times density must not be negative, got {contents[k]:g} at node {k}, at {at}")
        total = contents.sum()
        if not 0.0 < total <= (LARGEST_MEAN if self.cost.extended else np.inf):
            raise ValueError(f"the sum over all nodes must be positive, and at most 1e9 events, got {total:g} at {at}")
        counts, most = None, self.n_events or 0
        if self.cost.extended:
            counts = poisson_tables(np.array([total]))
            most = padded_size(int(counts.least[0] + counts.offsets[1]))
        return NodeTables(integral.points[:-1], thresholds(contents), counts, most)

    def draw(self, key: Array, tables: NodeTables) -> tuple[Array, Array]:
        u = randombits.uniform(jax.random.fold_in(key, _EVENTS), tables.most)
        found = jnp.searchsorted(jnp.asarray(tables.table), u, side="right")
        values, n = jnp.asarray(tables.points)[:, found], jnp.asarray(tables.most)
        if tables.counts is not None:
            [n] = tables.counts.draw(randombits.uniform(jax.random.fold_in(key, _COUNT), 1))
        return values if len(values) > 1 else values[0], n

    def throw(self, tables: NodeTables, keys: np.ndarray) -> Ragged:
        n = np.full(len(keys), tables.most)
        if tables.counts is not None:
            n = tables.counts.throw(randombits.stream_counts, keys)[:, 0].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(n)])
        found = np.empty((1, offsets[-1]))
        randombits.map_uniforms(randombits.map_entries, tables.table, keys, _EVENTS, offsets[:-1], n, found)
        values = np.take(tables.points, found[0].astype(np.int64), axis=1)
        return Ragged(values if len(values) > 1 else values[0], offsets)

    def size(self, tables: NodeTables) -> int:
        return tables.most * len(tables.points)


@partial(jax.jit, static_argnums=0)
def _contents(integral: NumericalIntegral, theta: Any, nodes: np.ndarray) -> Array:
    """Weight times density of all nodes."""
    return integral.terms(theta, nodes)
