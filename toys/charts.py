"""Figures of toy studies, for a thesis: pulls, residuals, errors, coverage, profiles.

All have one look: they are drawn without a screen, in colours that differ in brightness, with shapes and dashes that
differ as well, so that they can be read in grey.
"""

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from toys.coverage import percent
from toys.figures import FigureError
from toys.pulls import Pulls
from toys.sample import Curves
from toys.scan import Point

__all__ = [
    "BLUE",
    "GREY",
    "ORANGE",
    "chart",
    "coverage_chart",
    "coverage_summary_chart",
    "data_uri",
    "empty_figure",
    "error_chart",
    "new_figure",
    "profile_chart",
    "pull_charts",
    "pull_panels",
    "residual_chart",
    "save",
]

BLUE, ORANGE, GREY = "#0b4f8a", "#e08214", "0.55"
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.labelsize": 9.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "axes.linewidth": 0.7,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "lines.linewidth": 1.2,
    "lines.markersize": 4.0,
    "errorbar.capsize": 0.0,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "batchfit",  # the same figure is the same file
    "pdf.fonttype": 42,
}
METHODS = {
    "hesse": {"color": ORANGE, "marker": "s", "mfc": "white", "label": "Hesse"},
    "minos": {"color": BLUE, "marker": "o", "label": "MINOS"},
}
PANELS = 12  # of one figure of pulls
PULL_RANGE = 4.5
MOST_DOTS = 20_000


@contextmanager
def _style() -> Iterator[None]:
    try:
        from matplotlib import rc_context
    except ImportError:
        raise FigureError("figures need matplotlib: pip install 'batchfit[plot]'") from None
    with rc_context(STYLE):
        yield


def chart(draw: Callable) -> Callable:
    """Draw in the common look."""

    @wraps(draw)
    def styled(*arguments: Any, **options: Any) -> Any:
        with _style():
            return draw(*arguments, **options)

    return styled


def empty_figure(width: float, height: float) -> Any:
    """A figure of a size in inches, with a canvas that needs no screen."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Any, np.ndarray]:
    """(figure, (rows, columns) axes) of a size in inches."""
    figure = empty_figure(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _legend(figure: Any, axes: np.ndarray, ncols: int = 3) -> None:
    """One legend for all panels, above them."""
    handles, labels = axes.flat[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside upper center", ncols=ncols)
    for handle in legend.legend_handles:
        if getattr(handle, "get_marker", str)() == ".":  # dots that are many in a panel are hardly one in its legend
            handle.set(markersize=6, alpha=1)


def _place(figure: Any) -> None:
    """Find the places of axes and legends once, and not for each file."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine(None)


@chart
def save(figure: Any, stem: str | Path) -> list[Path]:
    """Write a figure as stem.png and stem.pdf; returns their paths."""
    files = [Path(f"{stem}.png"), Path(f"{stem}.pdf")]
    _place(figure)
    figure.savefig(files[0], dpi=200)
    figure.savefig(files[1], metadata={"CreationDate": None})
    return files


@chart
def data_uri(figure: Any) -> str:
    """A figure as an SVG in a `data:` address, for a page that needs no other file."""
    text = io.BytesIO()
    _place(figure)
    figure.savefig(text, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(text.getvalue()).decode()


@chart
def pull_charts(pulls: Pulls) -> list[Any]:
    """Histograms of the pulls of every parameter, with the fitted and the standard normal distribution.

    Pulls with the Hesse error are filled, those with MINOS errors a line; twelve parameters to a figure.
    """
    names = list(dict.fromkeys(row.name for row in pulls.rows))
    return [_pull_panels(pulls, names[first : first + PANELS]) for first in range(0, len(names), PANELS)]


def _pull_panels(pulls: Pulls, names: list[str]) -> Any:
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(2.45 * max(columns, 2), 2.25 * rows + 0.3, rows, columns)
    pull_panels(axes, pulls, names)
    _legend(figure, axes, ncols=4 if columns > 2 else 2)
    return figure


def pull_panels(axes: np.ndarray, pulls: Pulls, names: Sequence[str]) -> None:
    """Draw the pulls of some parameters, one on each of the axes, of which those that are left stay empty."""
    grid = np.linspace(-PULL_RANGE, PULL_RANGE, 300)
    n_bins = int(np.clip(2 * len(pulls.values) ** (1 / 3), 12, 45))
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        for row in [row for row in pulls.rows if row.name == name]:
            drawn = np.clip(pulls.of(name, row.method), -PULL_RANGE, PULL_RANGE)
            look: dict[str, Any] = (
                {"histtype": "stepfilled", "color": "0.85", "edgecolor": "0.6", "linewidth": 0.5, "label": "Hesse"}
                if row.method == "hesse"
                else {"histtype": "step", "color": BLUE, "linewidth": 1.0, "label": "MINOS"}
            )
            axis.hist(drawn, n_bins, range=(-PULL_RANGE, PULL_RANGE), density=True, **look)
            if row.method == "hesse":
                fitted = norm.pdf(grid, row.pull_mean, row.pull_width)
                axis.plot(grid, fitted, color=ORANGE, label="normal, fitted to Hesse")
                told = f"mean  {row.pull_mean:+.3f} ± {row.pull_mean_error:.3f}\n"
                told += f"width  {row.pull_width:.3f} ± {row.pull_width_error:.3f}"
                axis.set_title(told, fontsize=7.5, loc="right")
        axis.plot(grid, norm.pdf(grid), color="black", lw=0.9, ls="--", label="standard normal")
        axis.set(xlim=(-PULL_RANGE, PULL_RANGE), yticks=[], xlabel=f"pull of {name}")
        axis.set_ylim(0, 1.08 * axis.get_ylim()[1])


@chart
def error_chart(pulls: Pulls) -> Any:
    """The error against the fitted value: where they go together, pulls are skewed however good the estimate is."""
    names = list(dict.fromkeys(row.name for row in pulls.rows))[:PANELS]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(2.45 * max(columns, 2), 2.1 * rows + 0.3, rows, columns)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        i = pulls.names.index(name)
        has = np.isfinite(pulls.errors[:, i])
        values, errors = pulls.values[has, i], pulls.errors[has, i]
        some = slice(None, None, 1 + len(values) // MOST_DOTS)
        look = {"ms": 2.5, "color": GREY, "alpha": 0.6, "mew": 0, "rasterized": True, "zorder": 1}
        axis.plot(values[some], errors[some], ".", label="fits", **look)
        if np.ptp(pulls.truth[:, i]) == 0:
            axis.axvline(pulls.truth[0, i], color="black", lw=0.8, ls="--", label="truth")
        spread = np.std(values - pulls.truth[has, i], ddof=1)
        axis.axhline(spread, color=ORANGE, lw=1.2, label="standard deviation of fitted $-$ true")
        axis.set(xlabel=name, ylabel=f"error of {name}")
        axis.set_xlim(*_range(values))
        axis.set_ylim(*_range(errors))
        axis.locator_params(axis="x", nbins=3)
        axis.locator_params(axis="y", nbins=5)
    _legend(figure, axes)
    return figure


def _range(values: np.ndarray) -> tuple[float, float]:
    """Where all but one in a thousand lie, with a margin."""
    low, high = np.quantile(values, [5e-4, 1 - 5e-4])
    margin = 0.05 * (high - low) or 1e-6 + 0.1 * abs(high)
    return low - margin, high + margin


@chart
def residual_chart(points: Sequence[Point], scanned: str, name: str) -> Any:
    """Mean of value - truth of a parameter against the truth, with its error and the standard deviation of one fit."""
    rows = [
        (point.value, row) for point in points for row in point.pulls.rows if (row.name, row.method) == (name, "hesse")
    ]
    x = np.array([value for value, _ in rows])
    bias, error, spread = (
        np.array([getattr(row, field) for _, row in rows]) for field in ("bias", "bias_error", "residual_std")
    )
    figure, axes = new_figure(4.6, 4.1, 2, 1, sharex=True)
    top, bottom = axes[:, 0]
    top.fill_between(x, bias - spread, bias + spread, color="0.88", lw=0, label="standard deviation of one fit")
    top.axhline(0, color="black", lw=0.8, ls="--")
    top.errorbar(x, bias, error, fmt="o", color=BLUE, label="mean")
    top.set(ylabel=f"{name}: fitted $-$ true")
    _legend(figure, axes)
    bottom.axhline(0, color="black", lw=0.8, ls="--")
    pull, pull_error, width, width_error = (
        np.array([getattr(row, field) for _, row in rows])
        for field in ("pull_mean", "pull_mean_error", "pull_width", "pull_width_error")
    )
    bottom.axhline(1, color="black", lw=0.8, ls="--")
    bottom.errorbar(x, pull, pull_error, fmt="o", color=BLUE, label="mean")
    bottom.errorbar(x, width, width_error, fmt="s", mfc="white", color=ORANGE, label="width")
    low, high = bottom.get_ylim()
    bottom.set(xlabel=f"true {scanned}", ylabel=f"pull of {name}", ylim=(min(low, -0.3), max(high, 1.7)))
    bottom.legend(loc="upper right", ncols=2)
    return figure


@chart
def coverage_chart(points: Sequence[Point], scanned: str, name: str) -> Any:
    """Coverage of a parameter against the truth, a panel for each level, with its binomial intervals."""
    rows = [(point.value, row) for point in points for row in point.coverage.rows if row.name == name and row.n]
    levels = sorted({row.level for _, row in rows})
    figure, axes = new_figure(4.6, 0.7 + 1.75 * len(levels), len(levels), 1, sharex=True)
    steps = np.diff(np.unique([value for value, _ in rows]))
    shift = 0.06 * (steps.min() if len(steps) else 1.0)
    for axis, level in zip(axes[::-1, 0], levels, strict=True):
        axis.axhline(100 * level, color="black", lw=0.8, ls="--", label="nominal", zorder=1)
        for method, look in METHODS.items():
            some = [(value, row) for value, row in rows if (row.method, row.level) == (method, level)]
            if not some:
                continue
            x = np.array([value for value, _ in some]) + (shift if method == "minos" else -shift)
            y, low, high = (100 * np.array([getattr(row, f) for _, row in some]) for f in ("coverage", "low", "high"))
            axis.errorbar(x, y, [y - low, high - y], ls="none", lw=1.0, **look)
        axis.set_ylabel("coverage / %")
        axis.set_title(f"{name}, {percent(level)} intervals", loc="right", fontsize=8)
        axis.margins(y=0.18)
        axis.locator_params(axis="y", nbins=5)
    axes[-1, 0].set_xlabel(f"true {scanned}" if scanned else "")
    if len(points) == 1:
        axes[-1, 0].set(xticks=[points[0].value], xlim=(points[0].value - 1, points[0].value + 1))
    _legend(figure, axes)
    return figure


@chart
def coverage_summary_chart(point: Point) -> Any:
    """Coverage of every parameter at one truth, a panel for each level."""
    rows = [row for row in point.coverage.rows if row.n]
    names, levels = list(dict.fromkeys(row.name for row in rows)), sorted({row.level for row in rows})
    width = 1.0 + 2.0 * len(levels)
    figure, axes = new_figure(width, 1.1 + 0.3 * len(names), 1, len(levels), sharey=True)
    for axis, level in zip(axes[0], levels, strict=True):
        axis.axvline(100 * level, color="black", lw=0.8, ls="--", label="nominal", zorder=1)
        for method, look in METHODS.items():
            some = [row for row in rows if (row.method, row.level) == (method, level)]
            y = np.array([names.index(row.name) for row in some]) + (0.14 if method == "minos" else -0.14)
            x, low, high = (100 * np.array([getattr(row, f) for row in some]) for f in ("coverage", "low", "high"))
            if len(some):
                axis.errorbar(x, y, xerr=[x - low, high - x], ls="none", lw=1.0, **look)
        axis.set(xlabel="coverage / %", yticks=range(len(names)), yticklabels=names)
        axis.set_title(f"{percent(level)} intervals", fontsize=8)
        axis.set_ylim(len(names) - 0.5, -0.5)
        axis.margins(x=0.15)
        axis.locator_params(axis="x", nbins=4)
        axis.tick_params(axis="y", length=0)
    _legend(figure, axes)
    return figure


@chart
def profile_chart(curves: Sequence[Curves]) -> Any:
    """Profiles of some toys for each parameter, in units of the Hesse error, whose own profile is a parabola."""
    columns = min(3, len(curves))
    rows = -(-len(curves) // columns)
    figure, axes = new_figure(2.45 * max(columns, 2), 2.1 * rows + 0.3, rows, columns, sharey=True)
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis, curve in zip(axes.flat, curves, strict=False):
        for k, (z, rise) in enumerate(zip(curve.z, curve.rise, strict=True)):
            axis.plot(z, rise, color=BLUE, lw=0.8, label=None if k else "profiles of toys")
        grid = np.linspace(np.nanmin(curve.z), np.nanmax(curve.z), 101)
        axis.plot(grid, grid**2, color=ORANGE, ls="--", lw=1.5, label="parabola of the Hesse error")
        for level in (1, 4):
            axis.axhline(level, color=GREY, lw=0.6, zorder=0)
        axis.set(ylim=(0, 6), xlim=(grid[0], grid[-1]), xlabel=f"({curve.name} $-$ fitted) / error")
    for axis in axes[:, 0]:
        axis.set_ylabel(r"rise of $-2\,\log L$")
    _legend(figure, axes)
    return figure
