"""Figures of a run: the data of one toy with its fit, and the pulls of all."""

from pathlib import Path
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
from toys import storage
from toys.files import refuse_directory, refuse_inputs, writing
from toys.regenerate import stored_toys
from toys.statistics import known_pulls
from toys.study import Study
from toys.tally import calibration

__all__ = ["FigureError", "Picture", "picture", "plot_run"]


BINS = 80  # for unbinned data
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


def plot_run(study: Study, path: str | Path, out: str | Path, toy: int | None = None) -> None:
    """Draw one toy of a file with its fit, and the pulls of all fits.

    Parameters
    ----------
    study : Study
        Whose model and truth the file has.
    path : path
        The HDF5 file of a run.
    out : path
        The figure; its ending chooses the format (.png, .pdf, .svg).
    toy : int, optional
        Number of the toy; by default the first of the file.

    Raises
    ------
    FigureError, StorageError
        If matplotlib is missing, the toy has no form that can be drawn, the file has no such toy or cannot be read, or
        the figure cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise FigureError("figures need matplotlib: pip install 'batchfit[plot]'") from None
    refuse_inputs(out, [path])
    result, first = storage.load(path), storage.read_attributes(path, "first")["first"]
    toy = first if toy is None else toy
    row = toy - first
    if not 0 <= row < len(result):
        raise FigureError(f"{path} has the toys {first} to {first + len(result) - 1}, not {toy}")
    if result.names != study.cost.names:
        raise FigureError(
            f"{path} has fits of {', '.join(result.names)}, but the study of {', '.join(study.cost.names)}"
        )
    drawn = picture(study.cost, stored_toys(study, path, row, row + 1), result.values[row], study.observable, BINS)
    pull = (drawn.y - drawn.expected) / np.where(drawn.error > 0, drawn.error, 1.0)

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    data, pulls = halves
    top, bottom = data.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.errorbar(drawn.x, drawn.y, drawn.error, fmt="o", ms=3, lw=1, color="black", label=f"toy {toy}")
    top.plot(drawn.curve_x, drawn.curve_y, color="tab:red", label="fit", zorder=3)
    top.set(ylabel=drawn.label)
    if drawn.width.any():
        top.set(ylim=(0, None) if drawn.y.min() >= 0 else None, xlim=(drawn.curve_x[0], drawn.curve_x[-1]))
    top.legend(frameon=False)
    if drawn.width.any():
        bottom.bar(drawn.x, pull, drawn.width, color="tab:grey")
    else:
        bottom.plot(drawn.x, pull, "o", ms=3, color="tab:grey")
    bottom.axhline(0, color="tab:red", lw=1)
    bottom.set(xlabel="x", ylabel="pull", ylim=(-4.5, 4.5))

    table = [row for row in calibration(result, study.truth) if np.isfinite(row.truth)]
    columns = 2 if len(table) < 9 else 4
    axes = pulls.subplots(max(1, -(-len(table) // columns)), columns, squeeze=False)
    grid = np.linspace(-4, 4, 200)
    values = known_pulls(result, study.truth)
    for axis in axes.flat[len(table) :]:
        axis.set_axis_off()
    for axis, row in zip(axes.flat, table, strict=False):
        pull = values[:, result.names.index(row.name)]
        pull = pull[np.isfinite(pull)]
        axis.hist(pull, 40, range=(-4, 4), density=True, color="tab:blue", alpha=0.6)
        axis.plot(grid, np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi), color="black", lw=1)
        axis.set(yticks=[], xlim=(-4, 4))
        axis.set_title(
            f"{row.name}: {row.pull_mean:+.3f} ± {row.pull_mean_error:.3f}, width {row.pull_width:.3f}", fontsize=9
        )
    pulls.suptitle(f"pulls of {table[0].n if table else 0} valid fits, and the standard normal", fontsize=10)
    with writing(out):
        refuse_directory(Path(out))
        # of a name without an ending matplotlib would make another
        figure.savefig(out, dpi=110, format=Path(out).suffix[1:] or "png")
