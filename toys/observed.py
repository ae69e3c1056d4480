"""Observed data from a file: csv, npy, HDF5 or parquet."""

import csv
from pathlib import Path

import numpy as np

from toys import storage
from toys.files import StorageError

__all__ = ["InputError", "read_observed"]


class InputError(Exception):
    """A wrong argument or input; the sentence names it and says what to do."""


def read_observed(
    path: str | Path, column: str | None = None, observable: tuple[float, float] | None = None
) -> np.ndarray:
    """One column of numbers from a file.

    Parameters
    ----------
    path : path
        .csv (comma-separated, with or without a header), .npy, .h5 or .hdf5, .parquet.
    column : str, optional
        Name of the column (csv, parquet) or dataset (HDF5), where there are several.
    observable : (lower, upper), optional
        Range in which all data must lie.

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
    readers = {".csv": _csv, ".txt": _csv, ".npy": _npy, ".h5": _hdf5, ".hdf5": _hdf5, ".parquet": _parquet}
    try:
        if not path.exists():
            raise InputError(f"{path}: no such file")
        if path.is_dir():
            raise InputError(f"{path} is a directory, not a data file")
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise InputError(f"{path}: unknown kind of file {path.suffix!r}, known are {', '.join(readers)}")
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty")
        values = reader(path, column)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if values.ndim != 1:
        raise InputError(f"{path}: expected one column of numbers, got an array of shape {values.shape}")
    if values.dtype.kind not in "fiu":
        raise InputError(f"{path}: expected numbers, got {values.dtype}")
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
        raise InputError(f"{path} has the {what}s {', '.join(names)}: choose one with --column")
    if column not in names:
        raise InputError(f"{path} has no {what} {column!r}, only {', '.join(names)}")
    if names.count(column) > 1:
        raise InputError(f"{path} has {names.count(column)} {what}s called {column!r}: rename them")
    return column


def _csv(path: Path, column: str | None) -> np.ndarray:
    def number(text: str) -> float | None:
        try:
            return float(text)
        except ValueError:
            return None

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.reader(file)
            rows = [(lines.line_num, row) for row in lines if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path} is no comma-separated text in UTF-8") from None
    if not rows:
        raise InputError(f"{path} is empty")
    first = [cell.strip() for cell in rows[0][1]]
    has_header = all(number(cell) is None for cell in first)
    names = first if has_header else [str(k + 1) for k in range(len(first))]
    chosen = names.index(_choose(path, names, column, "column"))
    values = []
    for line, row in rows[has_header:]:
        value = number(row[chosen]) if chosen < len(row) else None
        if value is None:
            text = repr(row[chosen]) if chosen < len(row) else "nothing"
            raise InputError(f"{path}, line {line}: expected a number in column {names[chosen]!r}, got {text}")
        values.append(value)
    return np.array(values)


def _npy(path: Path, column: str | None) -> np.ndarray:
    if column is not None:
        raise InputError(f"{path} is a single array: leave out --column")
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError:
        raise InputError(f"{path} is no NumPy array file, or one of Python objects") from None


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
        return np.asarray(parquet.read_table(path, columns=[chosen]).column(0).to_numpy())
    except pyarrow.ArrowException:
        raise InputError(f"{path} is no parquet file that can be read") from None
