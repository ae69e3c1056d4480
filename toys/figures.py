"""What is drawn of a toy: its data, and the model in their units."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from engine import ExtendedUnbinnedNLL, UnbinnedNLL
from engine.binned import BinnedNLL, ExtendedBinnedNLL
from engine.cost import Cost
from engine.data import Weighted
from engine.leastsquares import LeastSquares
from engine.poisson import PoissonNLL
from engine.ranges import RangeIntegral
from engine.simulated import Template
from engine.sums import SumCost, observables_of

__all__ = ["FigureError", "Picture", "picture"]

NODES_PER_BIN = 10  # of a density that is normalised over nodes


class FigureError(Exception):
    """A figure cannot be made; the sentence says why and what to do."""


class Picture(NamedTuple):
    """Data of one toy beside the model.

    Attributes
    ----------
    x, y, error : (n,) float64
        Points, or bin centres and counts.
    width : (n,) float64
        Widths of the bins; 0 for points.
    curve_x, curve_y : (m,) float64
        The model, in the units of y.
    expected : (n,) float64
        The model at the points or in the bins.
    label : str
        What y is.
    """

    x: np.ndarray
    y: np.ndarray
    error: np.ndarray
    width: np.ndarray
    curve_x: np.ndarray
    curve_y: np.ndarray
    expected: np.ndarray
    label: str


def picture(cost: Cost, data: Any, theta: np.ndarray, observable: Any, bins: int) -> Picture:
    """What there is to draw of one toy; of a sum its first cost that takes data.

    Parameters
    ----------
    cost : Cost
    data
        One toy, in the form that `fit_batch` takes.
    theta : (n_params,) float64
    observable : optional
        Range of unbinned data, as of a `Study`.
    bins : int
        Bins for unbinned data.

    Raises
    ------
    FigureError
        If there is nothing to draw against one axis.
    """
    if isinstance(cost, SumCost):
        for part, entry, own in zip(cost.costs, data, observables_of(cost, observable), strict=True):
            if part.takes_data:
                of_part = np.array([theta[cost.names.index(name)] for name in part.names])
                return picture(part, entry, of_part, own, bins)
    if isinstance(cost, UnbinnedNLL | ExtendedUnbinnedNLL):
        return _spectrum(cost, data, theta, observable, bins)
    if isinstance(cost, BinnedNLL | ExtendedBinnedNLL | PoissonNLL | Template):
        return _counts(cost, data, theta)
    if isinstance(cost, LeastSquares):
        return _points(cost, data, theta)
    raise FigureError("constraints alone have no data that could be drawn")


def _spectrum(
    cost: UnbinnedNLL | ExtendedUnbinnedNLL, data: Any, theta: np.ndarray, observable: Any, bins: int
) -> Picture:
    events, weights = data.ragged() if isinstance(data, Weighted) else (data, np.ones(data.values.shape[-1]))
    if observable is None or events.values.ndim != 1:
        raise FigureError("unbinned toys can be drawn for one observable with a range only: give it to the study")
    counts, edges = np.histogram(events.values, bins, observable, weights=weights)
    squares, _ = np.histogram(events.values, bins, observable, weights=weights**2)
    width = np.diff(edges)
    centres = edges[:-1] + 0.5 * width
    curve_x = np.linspace(observable[0], observable[1], 401)

    def density(x: np.ndarray) -> np.ndarray:
        value = np.asarray(jax.vmap(lambda x: cost.density(tuple(theta), {"x0": x}))(x))
        return np.exp(value) if cost.log else value

    with jax.enable_x64(True):
        if cost.integral is None or isinstance(cost.integral, RangeIntegral):
            curve, expected = density(curve_x), density(centres) * width
        else:  # the nodes may bring an efficiency along, which the density does not have
            x, contents = cost.integral.points[0], np.asarray(cost.integral.terms(theta, cost.integral.points))
            if len(x) < NODES_PER_BIN * bins:
                raise FigureError(
                    f"toys whose density is normalised over {len(x)} nodes cannot be drawn in {bins} bins: "
                    f"{NODES_PER_BIN * bins} would do"
                )
            expected, _ = np.histogram(x, edges, weights=contents)
            curve_x, curve = np.repeat(edges, 2)[1:-1], np.repeat(expected / width, 2)
        if isinstance(cost, UnbinnedNLL):
            fitted, total = counts.sum(), expected.sum()
            if isinstance(cost.integral, RangeIntegral):  # of any norm, and events outside of the range do not count
                fitted = weights[cost.integral.contains(events.values)].sum()
                total = float(np.exp(cost.integral.log_integral(jnp.asarray(theta))))
            curve, expected = (values * fitted / total for values in (curve, expected))
    label = f"events / {width[0]:g}"
    return Picture(centres, counts, np.sqrt(squares), width, curve_x, curve * width[0], expected, label)


def _counts(cost: BinnedNLL | ExtendedBinnedNLL | PoissonNLL | Template, data: Any, theta: np.ndarray) -> Picture:
    counts = variance = np.asarray(data, dtype=np.float64)[0]
    if counts.ndim == 2:  # sums of weights and of their squares
        counts, variance = counts.T
    with jax.enable_x64(True):
        if isinstance(cost, PoissonNLL | Template):
            edges, expected = getattr(cost, "edges", np.arange(len(counts) + 1.0)), np.asarray(cost.model(*theta))
        else:
            edges, expected = cost.edges, np.asarray(cost.contents(*theta))
    if isinstance(cost, BinnedNLL):
        used = slice(None) if cost.mask is None else cost.mask
        expected = expected * counts[used].sum() / expected[used].sum()
    width = np.diff(edges)
    steps_x, steps_y = np.repeat(edges, 2)[1:-1], np.repeat(expected, 2)
    return Picture(
        edges[:-1] + 0.5 * width, counts, np.sqrt(np.abs(variance)), width, steps_x, steps_y, expected, "events / bin"
    )


def _points(cost: LeastSquares, data: Any, theta: np.ndarray) -> Picture:
    x, y = np.asarray(data[0]), np.asarray(data[1])[0]
    x = x[0] if x.ndim == 2 and len(x) == 1 else x
    if x.ndim != 1:
        raise FigureError("points can be drawn against one x only, but these have several")
    error = np.sqrt(np.diag(cost.covariance)) if cost.covariance is not None else np.ravel(data[2])
    with jax.enable_x64(True):
        model = jax.vmap(lambda x: jnp.asarray(cost.model(x, *theta), dtype=float))
        expected = np.asarray(model(x))
        if cost.xerror:
            slope = np.asarray(jax.vmap(jax.grad(lambda x: jnp.asarray(cost.model(x, *theta), dtype=float)))(x))
            error = np.hypot(error, slope * np.ravel(data[3]))
        curve_x = np.linspace(x.min(), x.max(), 401)
        curve = np.asarray(model(curve_x))
    return Picture(x, y, np.broadcast_to(error, y.shape), np.zeros(len(y)), curve_x, curve, expected, "y")
