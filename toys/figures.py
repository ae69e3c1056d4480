"""Figures of a run: the fitted spectrum of one toy, and the pulls of all."""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from engine.costs import ExtendedUnbinnedNLL
from toys import storage
from toys.statistics import calibration
from toys.study import Study

__all__ = ["FigureError", "plot_run"]


class FigureError(Exception):
    """A figure cannot be made; the sentence says why and what to do."""


def plot_run(study: Study, path: str | Path, out: str | Path, toy: int = 0, bins: int = 80) -> None:
    """Draw the fitted spectrum of one toy of a file and the pulls of all its fits.

    Parameters
    ----------
    study : Study
        Whose model and truth the file has; its data have one observable.
    path : path
        The HDF5 file of a run.
    out : path
        The figure; its ending chooses the format (.png, .pdf, .svg).
    toy : int
        Which toy.
    bins : int
        Bins of the spectrum.

    Raises
    ------
    FigureError, StorageError
        If matplotlib is missing, or the file has no such toy or cannot be read.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise FigureError("figures need matplotlib: pip install 'batchfit[plot]'") from None
    result = storage.load(path)
    if not 0 <= toy < len(result):
        raise FigureError(f"{path} has the toys 0 to {len(result) - 1}, not {toy}")
    cost = study.cost
    if study.observable is None or not isinstance(cost, ExtendedUnbinnedNLL):
        raise FigureError("the spectrum can be drawn for extended unbinned studies with a range only")
    events = np.asarray(storage.load_toys(path, toy, toy + 1)["values"][0])
    low, high = study.observable
    counts, edges = np.histogram(events, bins, study.observable)
    centres, width = 0.5 * (edges[1:] + edges[:-1]), (high - low) / bins
    x = np.linspace(low, high, 400)
    with jax.enable_x64(True):
        model = jax.vmap(lambda x: cost.model(x, *result.values[toy])[1])
        density = np.asarray(model(x))
        pull = (counts - np.asarray(model(centres)) * width) / np.sqrt(np.maximum(counts, 1))

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    spectrum, pulls = halves
    top, bottom = spectrum.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.errorbar(centres, counts, np.sqrt(counts), fmt="o", ms=3, lw=1, color="black", label=f"toy {toy}")
    top.plot(x, density * width, color="tab:red", label="fit")
    top.set(ylabel=f"events / {width:g}", ylim=(0, None), xlim=(low, high))
    top.legend(frameon=False)
    bottom.bar(centres, pull, width, color="tab:grey")
    bottom.axhline(0, color="tab:red", lw=1)
    bottom.set(xlabel="x", ylabel="pull", ylim=(-4.5, 4.5))

    table = calibration(result, study.truth)
    columns = 2
    axes = pulls.subplots(-(-len(table) // columns), columns, squeeze=False)
    grid = np.linspace(-4, 4, 200)
    values = result.pulls(study.truth)
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
    figure.savefig(out, dpi=110)
