"""The figure of a run: the data of one toy with its fit, and the pulls of all."""

from pathlib import Path

import numpy as np

from toys import storage
from toys.charts import GREY, ORANGE, chart, empty_figure, pull_panels
from toys.figures import FigureError, picture
from toys.files import refuse_directory, refuse_inputs, writing
from toys.pulls import pulls
from toys.regenerate import stored_toys
from toys.study import Study

__all__ = ["plot_run"]

BINS = 80  # for unbinned data


@chart
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

    figure = empty_figure(11, 6.5)
    left, right = figure.subfigures(1, 2, width_ratios=(1.05, 1))
    top, bottom = left.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.errorbar(drawn.x, drawn.y, drawn.error, fmt="o", ms=3, lw=1, color="black", label=f"toy {toy}")
    top.plot(drawn.curve_x, drawn.curve_y, color=ORANGE, label="fit", zorder=3)
    top.set(ylabel=drawn.label)
    if drawn.width.any():
        top.set(ylim=(0, None) if drawn.y.min() >= 0 else None, xlim=(drawn.curve_x[0], drawn.curve_x[-1]))
        bottom.bar(drawn.x, pull, drawn.width, color=GREY)
    else:
        bottom.plot(drawn.x, pull, "o", ms=3, color=GREY)
    top.legend()
    bottom.axhline(0, color=ORANGE, lw=1)
    bottom.set(xlabel="x", ylabel="pull", ylim=(-4.5, 4.5))

    of_fits = pulls(result, study.truth)
    names = [row.name for row in of_fits.rows]
    columns = 2 if len(names) < 9 else 4
    pull_panels(right.subplots(max(1, -(-len(names) // columns)), columns, squeeze=False), of_fits, names)
    n = max((row.n for row in of_fits.rows), default=0)
    right.suptitle(f"pulls of {n} valid fits; dashed: the standard normal", fontsize=10)
    with writing(out):
        refuse_directory(Path(out))
        # of a name without an ending matplotlib would make another
        figure.savefig(out, dpi=110, format=Path(out).suffix[1:] or "png")
