"""Cost functions of unbinned data, named and called as those of `iminuit.cost`, but without the data."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.cost import Cost, call_model, called, parameter_names, scalar_result
from engine.data import ExpectedEvents, Rows, Weighted, not_finite, ragged_events
from engine.ranges import N_NODES, NumericalIntegral, RangeIntegral
from engine.resident import Resident, ResidentRows
from engine.sums import SumCost, pack
from kernels.program import Program

__all__ = ["ExtendedUnbinnedNLL", "UnbinnedNLL"]

WEIGHT = "weight"  # name of the column of weights


class _Unbinned(Cost):
    extended = False
    may_know = True

    def __init__(
        self,
        model: Callable,
        *,
        log: bool = False,
        fit_range: Any = None,
        n_nodes: int = N_NODES,
        nodes: Any = None,
        name: Sequence[str] | None = None,
    ) -> None:
        self.model = model
        self.log = log
        self.names = parameter_names(model, name)
        if fit_range is not None and nodes is not None:
            raise ValueError("fit_range has nodes of its own: pass one of fit_range and nodes")
        self.integral: NumericalIntegral | None = None
        if fit_range is not None:
            self.integral = RangeIntegral(self, fit_range, n_nodes)
        elif nodes is not None:
            self.integral = NumericalIntegral(self, nodes)

    @property
    def leaves(self) -> tuple[Cost, ...]:
        return (self,) if self.integral is None else (self, self.integral)

    def rows(self, data: Any) -> Rows:
        """Rows of unbinned data; every event is a row, its observables and its weight are the columns.

        Parameters
        ----------
        data : list of (n,) or (d, n) arrays, (n_toys, n) or (n_toys, d, n) array, `engine.Ragged` or `engine.Weighted`
            Events outside of the fit range do not count.
        """
        events, weights = data.ragged() if isinstance(data, Weighted) else (ragged_events(data), None)
        if isinstance(events, Resident) and weights is None and self.integral is None:
            return ResidentRows(events)
        columns = events.values if events.values.ndim == 2 else events.values[None]
        names: tuple[str, ...] = tuple(f"x{k}" for k in range(columns.shape[0]))
        offsets = events.offsets
        used = None
        if weights is not None:
            columns, names, used = np.concatenate([columns, weights[None]]), (*names, WEIGHT), weights != 0.0
        if self.integral is not None:
            inside = self.integral.contains(events.values)
            used = inside if used is None else used & inside
        if used is not None and not used.all():
            columns, offsets = columns[:, used], np.concatenate([[0], np.cumsum(used)])[offsets]
        n_toys = len(events)
        bad = not_finite(columns, offsets)
        expected = isinstance(data, ExpectedEvents)
        rows = Rows(columns, offsets, np.zeros((0, 0)), np.zeros((n_toys, 0)), bad, names, expected=expected)
        return rows if self.integral is None else pack((rows, self.integral.rows(rows)))

    def evaluate(self, theta: Sequence, row: dict) -> Any:
        """The model at one event."""
        observables = [value for name, value in row.items() if name != WEIGHT]
        x = observables[0] if len(observables) == 1 else jnp.stack(observables)
        return call_model(self.model, x, theta)

    def density(self, theta: Sequence, row: dict) -> Any:
        """The density, or its logarithm if that is what the model gives."""
        result = self.evaluate(theta, row)
        scalar_result(self.model, result, "density")
        return result

    def term(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        density = self.density(theta, row)
        minus_log = -density if self.log else -jnp.log(density)
        return row[WEIGHT] * minus_log if WEIGHT in row else minus_log

    def program(self, rows: Rows) -> Program:
        """As of any cost; warns, once, of observables that the model does not use."""
        program = super().program(rows)
        looked, n = self.kept("observables"), sum(name != WEIGHT for name in rows.names)
        if n == 1 or rows.form in looked or any(name.startswith("known") for name in rows.names):
            return program
        looked[rows.form] = True
        used = {node.args[0] for node in (program.graph.nodes[k] for k in program.live) if node.op == "row"}
        if unused := [k for k in range(n) if k not in used]:
            told = ", ".join(f"x[{k}]" for k in unused[:3]) + (", ..." if len(unused) > 3 else "")
            warnings.warn(
                f"{called(self.model)} does not use {told} of {n} observables: the data of each toy have the shape "
                "(d, n) for d observables of n events",
                stacklevel=2,
            )
        return program

    def check(self, theta: np.ndarray) -> None:
        if self.integral is not None:
            self.integral.check(theta)

    def score_covariance(self, rows: Rows) -> Callable | None:
        names = rows.leaves[0].names  # not the rows, which would live as long as what is compiled
        if WEIGHT not in names or rows.leaves[0].expected:
            return None
        n_params, weight = len(self.names), names.index(WEIGHT)
        slope = jax.grad(lambda theta, row: self.term(theta, dict(zip(names, row, strict=True)), ()))

        def of_toy(theta: Array, data: tuple, shared: tuple) -> Array:
            columns, _, n = data[0]
            slopes = jnp.stack(jax.vmap(slope, in_axes=(None, 1))(tuple(theta[i] for i in range(n_params)), columns), 1)
            if self.integral is not None and not self.extended:
                slopes += columns[weight][:, None] * jax.grad(self.integral.log_integral)(theta)
            slopes = jnp.where((jnp.arange(columns.shape[1]) < n)[:, None], slopes, 0.0)
            return slopes.T @ slopes

        return of_toy

    # With a fit range the rows have two parts, events and nodes of the integral: it is a sum of two costs, this one, to
    # which the sum gives events alone, and the integral.

    def kernel(self, rows: Rows) -> Callable:
        return SumCost(self).kernel(rows) if rows.parts else super().kernel(rows)

    def kernel_shared(self, rows: Rows) -> np.ndarray:
        return SumCost(self).kernel_shared(rows) if rows.parts else super().kernel_shared(rows)

    def outputs(self, rows: Rows, tile: int, order: int, one_pass: bool = False) -> Callable:
        if rows.parts:
            return SumCost(self).outputs(rows, tile, order, one_pass)
        return super().outputs(rows, tile, order, one_pass)

    def reference(self, rows: Rows) -> Callable:
        return SumCost(self).reference(rows) if rows.parts else super().reference(rows)


class UnbinnedNLL(_Unbinned):
    """Negative log-likelihood of unbinned data, -sum_i log pdf(x_i).

    Parameters
    ----------
    pdf : callable
        `pdf(x, *parameters) -> density`, normalised over the range of the data; in `jax.numpy`. It is called with one
        event: x is a scalar, or `(d,)` for d observables.
    log : bool
        True if the model returns the logarithm of the density.
    fit_range : (lower, upper) or sequence of such pairs, optional
        Where to fit: one window or several, such as sidebands. Events outside do not count, and the density is
        normalised to the windows numerically, so it may be any multiple of one.
    n_nodes : int
        Nodes of the integral over the fit range.
    nodes : (n,) or (d, n) array, or (points, weights) with weights (n,), optional
        Points over which the density is summed to be normalised, so that it may be any multiple of one: those of a
        quadrature of one or of d observables, or events that were simulated evenly in phase space and accepted, which
        bring the efficiency along. The errors do not know that a simulated sample is finite.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    Notes
    -----
    With weights the covariance is that of the weighted estimator, H^-1 C H^-1 with C = sum_i w_i^2 s_i s_i^T and
    s_i the gradient of log pdf at event i (Langenbruch, Eur. Phys. J. C 82 (2022) 393).
    """

    def __init__(
        self,
        pdf: Callable,
        *,
        log: bool = False,
        fit_range: Any = None,
        n_nodes: int = N_NODES,
        nodes: Any = None,
        name: Sequence[str] | None = None,
    ) -> None:
        super().__init__(pdf, log=log, fit_range=fit_range, n_nodes=n_nodes, nodes=nodes, name=name)


class ExtendedUnbinnedNLL(_Unbinned):
    """Extended negative log-likelihood of unbinned data, integral - sum_i log density(x_i).

    Parameters
    ----------
    scaled_pdf : callable
        `scaled_pdf(x, *parameters) -> (integral, density)`: the expected number of events in the range, and their
        density; in `jax.numpy`. It is called with one event: x is a scalar, or `(d,)` for d observables. The integral
        must not depend on x.
    log : bool
        True if the model returns the logarithm of the density.
    fit_range : (lower, upper) or sequence of such pairs, optional
        Where to fit: one window or several, such as sidebands. Events outside do not count, and the expected number of
        events in the windows is integrated numerically; that of the model, which is for the whole range, is not used
        and may be left out.
    n_nodes : int
        Nodes of the integral over the fit range.
    nodes : (points, weights), optional
        Points, (n,) or (d, n), and weights (n,): the expected number of events is the sum of weight times density, and
        that of the model is not used and may be left out. The weights sum to the volume of the observables. See
        `UnbinnedNLL`.
    name : sequence of str, optional
        Parameter names, where the signature does not tell them.

    Notes
    -----
    With weights the covariance is that of the weighted estimator, see `UnbinnedNLL`.

    References
    ----------
    Barlow, NIM A297 (1990) 496-506, eq. 1.6.
    """

    extended = True

    def __init__(
        self,
        scaled_pdf: Callable,
        *,
        log: bool = False,
        fit_range: Any = None,
        n_nodes: int = N_NODES,
        nodes: Any = None,
        name: Sequence[str] | None = None,
    ) -> None:
        super().__init__(scaled_pdf, log=log, fit_range=fit_range, n_nodes=n_nodes, nodes=nodes, name=name)
        self.rest = self._integral if self.integral is None else None

    def _pair(self, theta: Sequence, row: dict) -> tuple:
        result = self.evaluate(theta, row)
        if self.integral is not None and not isinstance(result, tuple | list):
            return None, result
        if not isinstance(result, tuple | list) or len(result) != 2:
            got = type(result).__name__ + (f" of {len(result)}" if isinstance(result, tuple | list) else "")
            got = "one array" if isinstance(result, Array) else got
            raise TypeError(f"{called(self.model)} must return (integral, density), got {got}")
        return tuple(result)

    def density(self, theta: Sequence, row: dict) -> Any:
        density = self._pair(theta, row)[1]
        scalar_result(self.model, density, "density")
        return density

    def _integral(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        integral = self._pair(theta, row)[0]
        scalar_result(self.model, integral, "integral")
        return jnp.asarray(integral, dtype=float)
