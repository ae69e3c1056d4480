"""Integrals of the densities of unbinned likelihoods: over the windows of a fit range, or over given nodes.

The integral is a sum over nodes, which are rows that all toys share.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.arguments import whole
from engine.cost import Cost, called
from engine.data import Rows, as_float64, shown
from kernels.logsum import compile_log, log_outputs

__all__ = ["N_NODES", "NumericalIntegral", "RangeIntegral", "number_of_events"]

N_NODES = 256
PER_PANEL = 16  # nodes of one panel: many short panels find a narrow peak
NODE_WEIGHT = "node_weight"  # name of the column
TOLERATED = 1e-6  # relative error of an integral that needs no warning


class NumericalIntegral(Cost):
    """Expected events, or the number of events times the log of the density's integral, as a sum over nodes.

    Parameters
    ----------
    nll : Cost
        With `density(theta, row)`, `log` and `extended`; the first form is for an extended likelihood.
    nodes : (d, n) array, or (points, weights) with weights (n,)
        Points in the space of d observables, (n,) of one, and how much each counts: by default 1 / n.

    Raises
    ------
    TypeError, ValueError
        If the nodes have another form, are not finite, or have no weights though the likelihood is extended.
    """

    takes_data = False
    may_know = True

    def __init__(self, nll: Any, nodes: Any) -> None:
        self.nll = nll
        self.names = nll.names
        points, weights = nodes if isinstance(nodes, tuple) and len(nodes) == 2 else (nodes, None)
        if isinstance(nodes, tuple | list) and len({np.shape(part) for part in nodes}) > 1 and weights is None:
            raise TypeError("points and weights of nodes must be given as a tuple of two: nodes=(points, weights)")
        if weights is None and nll.extended:
            raise ValueError(
                "the nodes of an extended likelihood need weights, whose sum is the volume of the observables: pass "
                "the tuple nodes=(points, weights)"
            )
        points = np.atleast_2d(as_float64(points, "nodes"))
        n = points.shape[-1]
        weights = np.full(n, 1.0 / max(n, 1)) if weights is None else as_float64(weights, "the weights of nodes")
        if points.ndim != 2 or not n:
            raise ValueError(f"nodes must be points of shape (n,) or (d, n), got shape {points.shape}")
        if weights.shape != (n,):
            turned = ": transpose the points" if weights.shape == points.shape[:1] else ""
            turned = turned or ": stack d observables as points of shape (d, n)" if weights.ndim == 2 else turned
            raise ValueError(f"{n} nodes must have weights of shape ({n},), got shape {weights.shape}{turned}")
        for what, array in (("point", points), ("weight", weights[None])):
            wrong = np.flatnonzero(~np.isfinite(array).all(axis=0))
            if len(wrong):
                got = ", ".join(map(str, array[:, wrong[0]]))
                raise ValueError(f"nodes must be finite, got the {what} {got} of node {wrong[0]}")
        if not weights.sum() > 0:
            raise ValueError(f"the weights of nodes must have a positive sum, got {weights.sum():g}")
        self.points = np.concatenate([points, weights[None]])

    def contains(self, observables: np.ndarray) -> np.ndarray:
        """Which events count: here all do. Raises ValueError if they have another number of observables."""
        (d, n), (own, n_nodes) = np.atleast_2d(observables).shape, self.points[:-1].shape
        if d != own:
            told = f"the nodes have {own} observable{'s' * (own > 1)}, the events {d}"
            turned = ": transpose the nodes, points have the shape (d, n)" if d == n_nodes else ""
            many = f": pass nodes of shape ({d}, n), alone or in a tuple with weights of shape (n,)"
            raise ValueError(told + (turned or many))
        return np.ones(n, dtype=bool)

    def rows(self, events: Rows) -> Rows:
        """The nodes, and the sum of weights of the events of each toy."""
        n_toys = len(events)
        aux = np.zeros((n_toys, 0))
        if not self.nll.extended:
            aux = number_of_events(events)[:, None]
        return Rows(
            names=(*(f"x{k}" for k in range(len(self.points) - 1)), NODE_WEIGHT),
            columns=np.zeros((0, 0)),
            offsets=np.arange(n_toys + 1, dtype=np.int64) * self.points.shape[1],
            shared=self.points,
            aux=aux,
            bad=np.zeros(n_toys, dtype=bool),
        )

    def term(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        density = self.nll.density(theta, {f"x{k}": row[f"x{k}"] for k in range(len(self.points) - 1)})
        return row[NODE_WEIGHT] * (jnp.exp(density) if self.nll.log else density)

    def kernel(self, rows: Rows) -> Callable:
        return super().kernel(rows) if self.nll.extended else compile_log(super().kernel(rows))

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        sums = super().outputs(rows, tile, order, one_pass)
        if self.nll.extended:
            return sums
        return lambda theta, data, shared: log_outputs(sums(theta, data, shared), data[0][1][0], len(self.names))

    def reference(self, rows: Rows) -> Callable:
        value = super().reference(rows)
        if self.nll.extended:
            return value
        return lambda theta, data, shared: data[0][1][0] * jnp.log(value(theta, data, shared))

    def terms(self, theta: Any, nodes: np.ndarray) -> Array:
        """What each node adds to the integral, in JAX; of nodes (d + 1, n), the weights behind the points."""
        parameters = [theta[i] for i in range(len(self.names))]
        names = [*(f"x{k}" for k in range(len(nodes) - 1)), NODE_WEIGHT]
        return jax.vmap(lambda row: self.term(parameters, dict(zip(names, row, strict=True)), ()), in_axes=1)(nodes)

    def log_integral(self, theta: Array) -> Array:
        """log of the integral, in JAX."""
        return jnp.log(jnp.sum(self.terms(theta, self.points)))

    def check(self, theta: np.ndarray) -> None:
        """Warn, once, where no fit can begin: at a density that is not finite at a node, or negative in all."""
        if not vars(self).setdefault("_checked", False):
            self._checked = True
            with jax.enable_x64(True):
                self.warn_of(np.asarray(jax.jit(self.terms)(theta, self.points)))

    def warn_of(self, terms: np.ndarray) -> None:
        """Warn of what nodes add to the integral at the start, if that cannot be."""
        wrong, total = np.flatnonzero(~np.isfinite(terms)), terms.sum()
        what = ""
        if len(wrong):
            at = ", ".join(f"{x:g}" for x in self.points[:-1, wrong[0]])
            what = f"is {terms[wrong[0]]:g} at x = {at}, where it is integrated"
            what += ": subtract a constant from its logarithm" if self.nll.log and np.isinf(terms[wrong[0]]) else ""
        elif not total > 0:
            what = f"has the integral {total:g}, which must be positive"
        if what:
            warnings.warn(f"the density of {called(self.nll.model)} {what}: no fit can begin", stacklevel=4)


class RangeIntegral(NumericalIntegral):
    """The integral over the windows of a fit range, by Gauss-Legendre nodes.

    Parameters
    ----------
    nll : Cost
    fit_range : (lower, upper) or sequence of such pairs
    n_nodes : int

    Raises
    ------
    TypeError, ValueError
        If the ranges are not finite, are empty or overlap, or nodes are fewer than 16 per range or more than 10^8.
    """

    def __init__(self, nll: Any, fit_range: Any, n_nodes: int) -> None:
        try:
            ranges = as_float64(fit_range, "fit_range")
        except TypeError:
            raise TypeError(f"fit_range must be (lower, upper), both finite, got {shown(fit_range)}") from None
        ranges = ranges[None] if ranges.ndim == 1 else ranges
        if ranges.ndim != 2 or ranges.shape[1] != 2 or not len(ranges):
            raise ValueError(f"fit_range must be (lower, upper) or a list of such pairs, got {shown(fit_range)}")
        ranges = ranges[np.argsort(ranges[:, 0], kind="stable")]
        flat = ranges.ravel()
        if not np.isfinite(flat).all() or not (np.diff(ranges, axis=1) > 0).all() or not (np.diff(flat) >= 0).all():
            raise ValueError(
                f"fit_range must be finite windows, lower < upper, that do not overlap, got {shown(fit_range)}"
            )
        whole("n_nodes", n_nodes, PER_PANEL * len(ranges))
        self.ranges = ranges
        self.n_nodes = int(n_nodes)
        super().__init__(nll, tuple(self.nodes(self.n_nodes)))

    def contains(self, observables: np.ndarray) -> np.ndarray:
        """Which events lie within the fit range; NaN does, so that it is found.

        Raises ValueError for events of several observables.
        """
        x = np.atleast_2d(observables)
        if len(x) != 1:
            raise ValueError(f"a fit range is for one observable, but the events have {len(x)}: pass nodes instead")
        inside = np.isnan(x[0])
        for lower, upper in self.ranges:
            inside |= (x[0] >= lower) & (x[0] <= upper)
        return inside

    def nodes(self, n_nodes: int) -> np.ndarray:
        """Gauss-Legendre nodes and weights, (2, n): panels in proportion to the windows."""
        width = np.diff(self.ranges, axis=1)[:, 0]
        panels = np.maximum(np.rint(n_nodes / PER_PANEL * width / width.sum()).astype(int), 1)
        edges = [np.linspace(low, high, n + 1) for (low, high), n in zip(self.ranges, panels, strict=True)]
        lower = np.concatenate([e[:-1] for e in edges])
        half = 0.5 * np.concatenate([np.diff(e) for e in edges])
        node, weight = np.polynomial.legendre.leggauss(PER_PANEL)
        x = (lower + half)[:, None] + half[:, None] * node
        return np.stack([x.ravel(), (half[:, None] * weight).ravel()])

    def check(self, theta: np.ndarray) -> None:
        """Warn, once, also if the integral at theta changes where the number of nodes is doubled."""
        if vars(self).get("_checked"):
            return
        once, twice = self._integrals(theta, self.n_nodes, 2 * self.n_nodes)
        if not 0 < once < np.inf:
            super().check(theta)
            return
        self._checked = True
        error = abs(once - twice) / abs(twice) if twice else np.inf
        if error > TOLERATED:
            warnings.warn(
                f"the integral of the density over the fit range is good to {error:.1g} only at the start, where "
                f"it is {twice:.6g}: {self._enough(theta, twice)}",
                stacklevel=3,
            )

    def _integrals(self, theta: np.ndarray, *numbers: int) -> list[float]:
        """The integral by some numbers of nodes; compiled, since one by one the operations take ten times as long."""
        nodes = [self.nodes(n) for n in numbers]
        with jax.enable_x64(True):
            terms = np.asarray(jax.jit(self.terms)(theta, np.concatenate(nodes, axis=1)))
        ends = np.cumsum([of_one.shape[1] for of_one in nodes])
        return [float(part.sum()) for part in np.split(terms, ends[:-1])]

    def _enough(self, theta: np.ndarray, last: float) -> str:
        """What to pass, if twice the nodes gave `last`."""
        for n in (self.n_nodes * 2**k for k in range(1, 8)):
            [twice] = self._integrals(theta, 2 * n)
            if twice and abs(twice - last) <= TOLERATED * abs(twice):
                # twice as many, since the density may be narrower at the minima
                return f"pass n_nodes={2 * n} instead of {self.n_nodes}"
            last = twice
        return "it has a kink or a pole: let two windows meet there, or take another observable, such as log x"


def number_of_events(events: Rows) -> np.ndarray:
    """The number of events of each toy, or their sum of weights, (n_toys,) float64."""
    numbers = np.diff(events.offsets).astype(np.float64)
    if "weight" in events.names:
        weights, filled = events.columns[events.names.index("weight")], numbers > 0
        with np.errstate(over="ignore", invalid="ignore"):  # of toys that are bad
            numbers[filled] = np.add.reduceat(weights, events.offsets[:-1][filled])
    return numbers
