"""Toys of a file thrown again: of a run that kept nothing but their seed and checksums, or as a proof of any other."""

import json
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from toys import storage
from toys.checksums import checksums
from toys.files import StorageError, reading
from toys.finding import find_study
from toys.models import STUDIES
from toys.observed import InputError
from toys.packing import unpack
from toys.provenance import changed_versions, versions, versions_of
from toys.redrawing import redraw
from toys.study import Study

__all__ = ["regenerate", "stored_toys"]

_WHOLE = ("first", "stop", "seed", "chunk", "n_toys")


def regenerate(path: str | Path, index: int | slice | Sequence[int], study: Study | str | Path | None = None) -> Any:
    """Throw toys of a file again, from its truth and seed, each verified by its checksum.

    Parameters
    ----------
    path : path
        A file of `run_toys.py`, with or without its toys.
    index : int, slice or sequence of int
        Numbers of toys: one toy is a batch of one. Negative ones count from the end.
    study : Study, name of a ready-made one, or file that defines `study`; optional
        By default the ready-made study that the file names. The source text in the file is never run.

    Returns
    -------
    The toys in the form that `fit_batch` takes.

    Raises
    ------
    StorageError
        If the file cannot be read or has no checksums, or what is thrown is not what was fitted; says why, as far as
        the file tells.
    InputError
        If the study must be given, or cannot be had.
    ValueError, IndexError
        If the parameters of the study are not those of the file, or it has no such toys.

    Examples
    --------
    >>> fit_batch(study.cost, regenerate("toys.h5", 17), study.start)
    """
    attributes = storage.read_attributes(path)
    if not {"model", "truth", "seed", "sampled"} <= attributes.keys():
        raise StorageError(f"{path} does not tell how its toys were thrown: read them with toys.load_data(file)")
    if study is None and attributes["model"] not in STUDIES:
        raise InputError(f"{path} is of the model {attributes['model']!r}: pass its study, or the file that defines it")
    source = None
    if not isinstance(study, Study):
        study, source = find_study(str(study or attributes["model"]))
    with reading(path):
        truth = json.loads(attributes["truth"])
        first, stop, seed, chunk, n_toys = (int(attributes[name]) for name in _WHOLE)
    toys = _numbers(path, index, first, stop)
    arrays = redraw(study.at(truth), toys, seed=seed, sampled=attributes["sampled"], chunk=chunk, n_toys=n_toys)
    with reading(path):
        stored = cast(np.ndarray, storage.read_checksums(path))[toys - first]  # as old as the attribute `sampled`
    different = np.flatnonzero(checksums(arrays.toys, len(toys)) != stored)
    if len(different):
        raise StorageError(
            f"toy {toys[different[0]]} of {path} is thrown otherwise here: {_cause(path, attributes, source)}"
        )
    return unpack(arrays, len(toys))


def stored_toys(study: Study, path: str | Path, first: int, stop: int) -> Any:
    """Rows of a file, whose toys are thrown again where it did not keep them."""
    attributes = storage.read_attributes(path, "first")
    if attributes.get("save_toys", True):
        return storage.load_data(path, first, stop)
    return regenerate(path, slice(attributes["first"] + first, attributes["first"] + stop), study)


def _numbers(path: str | Path, index: Any, first: int, stop: int) -> np.ndarray:
    """Numbers of toys, (n,) int64, n >= 1."""
    if isinstance(index, slice):
        begin, end, step = index.indices(stop)
        if step > 0 and begin < first:  # of a shard: the first that it has
            begin = first + (begin - first) % step
        numbers = np.arange(begin, end, step, dtype=np.int64)
    else:
        given = [operator.index(k) for k in (index if np.ndim(index) else [index])]  # type: ignore[union-attr,list-item]
        numbers = np.array([k + stop if k < 0 else k for k in given], dtype=np.int64)
    if not len(numbers) or numbers.min() < first or numbers.max() >= stop:
        raise IndexError(f"{path} has the toys {first} to {stop - 1}, got {index}")
    return numbers


def _cause(path: str | Path, attributes: Mapping[str, Any], source: str | None) -> str:
    """Why toys differ, as far as can be told."""
    if source is not None and source != attributes.get("source"):
        return "the source of its model has changed since; the file holds the former text in its attribute 'source'"
    if changed := changed_versions(versions_of(path, attributes), versions()):
        return f"it was made with {changed}: install these versions"
    return "the study is another one, or it was made on another kind of machine or backend"
