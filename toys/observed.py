"""Observed data from a file: csv, npy, HDF5, parquet or ROOT."""

import csv
import math
import re
import tokenize
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engine import ExtendedUnbinnedNLL, UnbinnedNLL
from engine.cost import Cost
from engine.leastsquares import LeastSquares
from engine.sums import SumCost, costs_of, observables_of
from toys import storage
from toys.files import StorageError
from toys.packing import POINTS

__all__ = ["InputError", "read_data", "read_observed"]


# what is shown of names and cells
_LONGEST, _MOST = 40, 20
# edges of a histogram may be rounded to float32, by so much of a bin
_SAME_EDGE = 1e-3
# the header of an array file is a Python literal, which may be damaged in any way
_BAD_HEADERS = (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError, MemoryError, RecursionError)


class InputError(Exception):
    """A wrong argument or input; the sentence names it and says what to do."""


def read_data(cost: Cost, paths: Sequence[str], columns: Sequence[str], observable: Any = None) -> Any:
    """Observed data as one toy, in the form that `fit_batch` takes.

    Unbinned data are a column of events (several columns for several observables), counts a column with one number for
    each bin, or a one-dimensional histogram of ROOT, points the columns x, y, yerror and, where the cost takes it,
    xerror. A sum takes one file for each cost that needs data, in order; its constraints keep their values.

    Parameters
    ----------
    cost : Cost
    paths : sequence of str
    columns : sequence of str
        For a single file its column of events or counts, for several files one column each; empty where files have one
        column only, or hold points.
    observable : optional
        Range in which events must lie, as of a `Study`.

    Raises
    ------
    InputError
    ValueError
        If there is not one range, or one for each cost.
    """
    parts = costs_of(cost)
    taking = [part for part in parts if part.takes_data]
    kinds = ", ".join(type(part).__name__ for part in taking)
    if not taking:
        raise InputError(f"a study of {type(parts[0]).__name__} alone takes no --data")
    if len(paths) != len(taking):
        raise InputError(
            f"the study takes {len(taking)} set{'s' if len(taking) > 1 else ''} of data ({kinds}), got {len(paths)}: "
            "repeat --data, one file for each in this order"
        )
    if len(taking) > 1 and columns and len(columns) != len(taking):
        raise InputError(f"got {len(columns)} --column for {len(taking)} sets of data ({kinds}): one for each, or none")
    own = [[column] for column in columns] if len(taking) > 1 and columns else [list(columns)] * len(taking)
    ranges = [each for part, each in zip(parts, observables_of(cost, observable), strict=True) if part.takes_data]
    read = iter([_read_part(*each) for each in zip(taking, paths, own, ranges, strict=True)])
    entries = tuple(next(read) if part.takes_data else None for part in parts)
    return entries if isinstance(cost, SumCost) else entries[0]


def _read_part(cost: Cost, path: str, columns: list[str], observable: Any) -> Any:
    if isinstance(cost, LeastSquares):
        if columns:
            raise InputError(f"{path}: points are read from the columns {', '.join(POINTS)}: leave out --column")
        if path.lower().endswith(".npy"):
            raise InputError(f"{path} is a single array: points need a file with the columns {', '.join(POINTS)}")
        # with a covariance matrix there are no errors to read
        n_names = 2 if getattr(cost, "covariance", None) is not None else 4 if cost.xerror else 3
        given = {name: read_observed(path, name) for name in POINTS[:n_names]}
        lengths = {name: len(array) for name, array in given.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{n} of {name}" for name, n in lengths.items())
            raise InputError(f"{path} holds {told}: all must have one number for each point")
        data: Any = tuple(array[None] if name == "y" else array for name, array in given.items())
    elif isinstance(cost, UnbinnedNLL | ExtendedUnbinnedNLL):
        d = np.ndim(observable) == 2 and len(observable)
        if d and len(columns) != d:
            raise InputError(f"{path}: the study has {d} observables: name a column for each with --column")
        if len(columns) < 2:
            return [read_observed(path, columns[0] if columns else None, observable)]
        ranges = observable if d else (None,) * len(columns)
        observables = [read_observed(path, *each) for each in zip(columns, ranges, strict=True)]
        if len({len(values) for values in observables}) > 1:
            raise InputError(f"{path}: the columns {', '.join(columns)} must have the same length")
        return [np.stack(observables)]
    else:
        if len(columns) > 1:
            raise InputError(f"{path}: counts are one column, got {len(columns)} --column")
        # with templates, bins have no edges
        edges = getattr(cost, "edges", np.empty(0))
        data = read_observed(path, columns[0] if columns else None, edges=edges)[None]
        negative = np.flatnonzero(data[0] < 0)
        if len(negative):
            k = negative[0]
            raise InputError(
                f"{path} holds {len(negative)} negative counts, the first in bin {k + 1} with {data[0, k]:g}"
            )
    try:
        cost.rows(data)
    except ValueError as error:
        raise InputError(f"{path} does not fit the study: {error}") from None
    return data


def read_observed(
    path: str | Path,
    column: str | None = None,
    observable: tuple[float, float] | None = None,
    *,
    edges: np.ndarray | None = None,
) -> np.ndarray:
    """One column of numbers from a file.

    Parameters
    ----------
    path : path
        .csv (comma-separated, with or without a header), .npy, .h5 or .hdf5, .parquet, .root.
    column : str, optional
        Name of the column (csv, parquet), dataset (HDF5) or branch (ROOT, as "tree:branch", "tree/branch", or "branch"
        where only one tree has it), where there are several.
    observable : (lower, upper), optional
        Range in which all data must lie.
    edges : (n_bins + 1,) array, optional
        Of counts, which a TH1 of a ROOT file with these edges holds, too; of any TH1 where there are none, (0,).

    Returns
    -------
    (n,) float64

    Raises
    ------
    InputError
        If the file is missing, empty, unreadable or of another kind, or holds text, NaN, infinity or events outside
        of the range.
    """
    path = Path(path)
    readers: dict[str, Callable[[Path, str | None], np.ndarray]] = {
        ".csv": _csv, ".txt": _csv, ".npy": _npy, ".h5": _hdf5, ".hdf5": _hdf5, ".parquet": _parquet,
        ".root": partial(_root, edges=edges),
    }  # fmt: skip
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if path.is_dir():
            raise InputError(f"{path} is a directory, not a data file")
        if not path.is_file():  # a pipe would be waited for, a device may have no end
            raise InputError(f"{path} is a pipe or device, not a data file: copy the data to a file")
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise InputError(f"{path}: unknown kind of file {path.suffix!r}, known are {', '.join(readers)}")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty")
        values = reader(path, column)
    except OSError as error:
        told = error.strerror or str(error).strip().split("\n")[0]
        raise InputError(f"{path} cannot be read: {told}") from None
    if values.ndim != 1:
        raise InputError(f"{path}: expected one column of numbers, got an array of shape {values.shape}")
    if values.dtype.kind not in "fiu":
        raise InputError(f"{path}: expected numbers, got {values.dtype}")
    with np.errstate(over="ignore"):  # of a long double: infinite, which is refused below
        values = values.astype(np.float64)
    if not len(values):
        raise InputError(f"{path} holds no events")
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InputError(
            f"{path} holds {len(wrong)} values that are NaN or infinite, the first is event {wrong[0] + 1}: remove them"
        )
    if observable is not None:
        low, high = observable
        outside = np.flatnonzero((values < low) | (values > high))
        if len(outside):
            raise InputError(
                f"{path} holds {len(outside)} of {len(values)} events outside of the range {low:g} to {high:g}, "
                f"the first is event {outside[0] + 1} with {values[outside[0]]:g}: cut the data to the range"
            )
    return values


def _choose(path: Path, names: list[str], column: str | None, what: str) -> str:
    if not names:
        raise InputError(f"{path} has no {what} of numbers")
    if column is None and len(names) == 1:
        return names[0]
    if column is None:
        several = f"{what}es" if what.endswith("h") else f"{what}s"
        raise InputError(f"{path} has the {several} {_listed(names)}: choose one with --column")
    if column not in names:
        raise InputError(f"{path} has no {what} {_short(column)!r}, only {_listed(names)}")
    if names.count(column) > 1:
        raise InputError(f"{path} has {names.count(column)} {what}s called {column!r}: rename them")
    return column


def _listed(names: list[str]) -> str:
    """Names in one line, whatever they hold and however many there are."""
    shown = [name if name.isprintable() and len(name) <= _LONGEST else repr(_short(name)) for name in names[:_MOST]]
    more = [f"and {len(names) - _MOST} more"] if len(names) > _MOST else []
    return ", ".join(shown + more)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _csv(path: Path, column: str | None) -> np.ndarray:
    def number(text: str) -> float | None:
        try:
            # Python takes 1_5 for 15
            return None if "_" in text else float(text)
        except ValueError:
            return None

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file, strict=True)
            # an empty cell is no empty line: pandas writes a NaN of a single column as ""
            rows = [(lines.line_num, row) for row in lines if row and not (len(row) == 1 and row[0].isspace())]
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path} is no comma-separated text in UTF-8") from None
    if not rows:
        raise InputError(f"{path} is empty")
    first = [cell.strip() for cell in rows[0][1]]
    has_header = any(first) and all(number(cell) is None for cell in first)
    names = first if has_header else [str(k + 1) for k in range(len(first))]
    if has_header and (almost := [cell for cell in first if re.match(r"[-+]?\.?\d", cell)]):
        if all(number(cell) is not None for cell in re.split(r"[\s;]+", almost[0])):
            raise InputError(f"{path}, line {rows[0][0]}: columns are separated by commas, got {_short(almost[0])!r}")
        raise InputError(
            f"{path}, line {rows[0][0]}: {_short(almost[0])!r} is neither a number nor the name of a column, which "
            "starts with a letter"
        )
    if not has_header and column is not None and column not in names:
        raise InputError(
            f"{path} has no header: its columns are called {_listed(names)}, not {_short(column)!r}; choose one of "
            "these with --column, or write the names into the first line"
        )
    # pandas has no name for the column of its rows
    chosen = names.index(_choose(path, [name for name in names if name], column, "column"))
    values = []
    for line, row in rows[has_header:]:
        value = number(row[chosen]) if chosen < len(row) else None
        if value is None:
            text = repr(_short(row[chosen])) if chosen < len(row) else "nothing"
            name = _short(names[chosen])
            raise InputError(f"{path}, line {line}: expected a number in column {name!r}, got {text}")
        if any(cell.strip() for cell in row[len(names) :]):
            # a decimal comma makes two cells of one number
            raise InputError(
                f"{path}, line {line}: has {len(row)} cells, line {rows[0][0]} has {len(names)}: cells are separated "
                "by commas, and decimals written with a point"
            )
        values.append(value)
    # pandas numbers columns without names
    nameless = not has_header and first[chosen] == str(chosen - (not first[0]))
    if nameless and len(rows) > 1 and not any(row[chosen].strip().lstrip("+-").isdecimal() for _, row in rows[1:]):
        raise InputError(
            f"{path}, line {rows[0][0]}: {first[chosen]} may be the first number or, as of pandas, the name of a "
            f"column: write {first[chosen]}.0, or a name that starts with a letter"
        )
    return np.array(values)


def _npy(path: Path, column: str | None) -> np.ndarray:
    if column is not None:
        raise InputError(f"{path} is a single array: leave out --column")
    read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with path.open("rb") as file:
            shape, _, dtype = read_header[np.lib.format.read_magic(file)](file)
            # a damaged header may ask for more memory than there is
            whole = math.prod(shape) * dtype.itemsize == path.stat().st_size - file.tell()
            if dtype.hasobject or not whole:
                raise ValueError
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except _BAD_HEADERS:
        raise InputError(f"{path} is no NumPy array file, or a damaged one, or one of Python objects") from None


def _hdf5(path: Path, column: str | None) -> np.ndarray:
    try:
        names = storage.dataset_names(path)
        column = None if column is None else column.strip("/")
        return storage.read_dataset(path, _choose(path, names, column, "dataset"))
    except StorageError as error:
        raise InputError(str(error)) from None


def _parquet(path: Path, column: str | None) -> np.ndarray:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise InputError(f"{path}: parquet files need pyarrow: pip install 'batchfit[data]'") from None
    try:
        chosen = _choose(path, parquet.read_schema(path).names, column, "column")
        table = parquet.read_table(path, columns=[chosen], page_checksum_verification=True)
        return np.asarray(table.column(0).to_numpy())
    except (pyarrow.ArrowException, OSError, KeyError, IndexError, OverflowError):  # it has no class for damage
        raise InputError(f"{path} is no parquet file that can be read") from None


def _root(path: Path, column: str | None, edges: np.ndarray | None) -> np.ndarray:
    try:
        import uproot
    except ImportError:
        raise InputError(f"{path}: ROOT files need uproot: pip install 'batchfit[data]'") from None
    try:
        with uproot.open(path) as file:
            found = file.keys(cycle=False, filter_classname=["TTree", "ROOT::RNTuple"])
            trees = {tree: file[tree].keys() for tree in found}
            names = [f"{tree}:{branch}" for tree, branches in trees.items() for branch in branches]
            # the tree may be left out where only one has such a branch, or stand before a slash
            alike = [name for name in names if column in (name.partition(":")[2], name.replace(":", "/"))]
            histograms = [] if edges is None else file.keys(cycle=False, filter_classname="TH1*")
            what = "object" if histograms else "branch"
            chosen = _choose(path, names + histograms, alike[0] if len(alike) == 1 else column, what)
            if edges is not None and chosen in histograms:
                return _contents(f"{path}: {_short(chosen)}", file[chosen], edges)
            tree, _, branch = chosen.partition(":")
            values = np.asarray(file[tree][branch].array(library="np"))
            if values.dtype == object and len(values) and np.ndim(values[0]):
                raise InputError(f"{path}: {_short(chosen)} is jagged, an array for each entry: write a flat branch")
            return values
    except InputError:
        raise
    except Exception as error:  # uproot has no class of its own for files that it cannot read
        raise InputError(f"{path} is no ROOT file that can be read ({type(error).__name__})") from None


def _contents(name: str, histogram: Any, edges: np.ndarray) -> np.ndarray:
    """The counts of a TH1, without those below and above its range."""
    found, counts = histogram.axis().edges(), histogram.values()
    width = np.diff(found).min()
    if len(edges) and not (len(found) == len(edges) and np.allclose(found, edges, rtol=0.0, atol=_SAME_EDGE * width)):
        told = (f"{len(each) - 1} bins from {each[0]:g} to {each[-1]:g}" for each in (found, edges))
        raise InputError("{} has {}, but the study {}: the edges must be the same".format(name, *told))
    if not np.allclose(histogram.variances(), counts):
        raise InputError(f"{name} is weighted, but the toys are counts: fill it without weights")
    return counts
