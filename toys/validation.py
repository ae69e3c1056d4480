"""MIGRAD on some toys of a run, spread evenly over it, whether the run keeps its toys or not."""

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from engine.data import Ragged
from engine.drivers import Settings
from engine.fit import EDM_GOAL, MAX_STEPS, limit_arrays
from engine.reference import Validation, validate
from engine.result import FitResult
from kernels.threads import cores
from toys import storage
from toys.checksums import checksums
from toys.files import StorageError
from toys.fitting import REFERENCE
from toys.packing import Arrays, concatenate, unpack
from toys.redrawing import redraw
from toys.study import Study
from toys.writer import AT_ONCE

__all__ = ["Refits", "validate_run"]


class _Sample(NamedTuple):
    """Toys of a run, by their numbers, and their fits."""

    toys: np.ndarray
    arrays: Arrays
    fits: FitResult


class Refits:
    """Toys that are refitted while a run lasts, whenever there is nothing else to do.

    Parameters
    ----------
    study : Study
    n_toys : int
        Of the run.
    n_validated : int
        Of all its toys.
    most : int
        So many toys may wait; those beyond are left out.

    Attributes
    ----------
    waiting : deque of toys
    done : list of Validation
    """

    def __init__(self, study: Study, n_toys: int, n_validated: int, most: int) -> None:
        self.study, self.chosen, self.most = study, _chosen(n_toys, n_validated), most
        self.waiting = deque[_Sample]()
        self.done: list[Validation] = []

    def keep(self, first: int, arrays: Arrays, fits: FitResult) -> None:
        """Keep copies of the chosen toys among toys first, first + 1, ..., which were fitted."""
        fits = replace(fits, problem=None)  # which holds the data of all of them
        for toy in self.chosen[(self.chosen >= first) & (self.chosen < first + len(fits))][: self.room]:
            k = [int(toy) - first]
            copies = {
                name: array.take(k) if isinstance(array, Ragged) else array[k] for name, array in arrays.toys.items()
            }
            self.waiting.append(_Sample(np.array([toy]), Arrays(copies, arrays.shared), cast(FitResult, fits[k])))

    @property
    def ready(self) -> bool:
        """Whether a toy waits, not for what is still compiled, and there are more cores than the writers need."""
        compiling = any(thread.name == REFERENCE for thread in threading.enumerate())
        return cores() > AT_ONCE and bool(self.waiting) and not compiling

    @property
    def room(self) -> int:
        return self.most - len(self.waiting)

    def next(self) -> None:
        """Refit one toy."""
        self.done.append(_refitted(self.study, self.waiting.popleft()))


def _chosen(n_toys: int, n_validated: int) -> np.ndarray:
    return np.unique(np.linspace(0, n_toys - 1, n_validated).astype(np.int64))


def validate_run(
    study: Study,
    files: Sequence[tuple[int, int, Path]],
    attributes: Mapping[str, Any],
    n_validated: int,
    advance: Callable[[int], None] = lambda n: None,
    done: Sequence[Validation] = (),
) -> Validation | None:
    """Refit toys from the same start; no more of them are held than a chunk.

    Parameters
    ----------
    study : Study
    files : sequence of (first, stop, path)
        Where toys first to stop - 1 lie, as rows from the first one on; in order.
    attributes : dict
        Of the run.
    n_validated : int
        Of all toys of the run; only those that are in the files are refitted.
    advance : callable
        Told of each of the others.
    done : sequence of Validation
        Of toys that were refitted before, and are not refitted again.

    Returns
    -------
    Validation of all these toys, in their order, or None if there are none.

    Raises
    ------
    StorageError
        If a file is damaged, or a toy that was not kept is thrown otherwise.
    """
    toys = _chosen(attributes["n_toys"], n_validated)
    toys = toys[(toys >= files[0][0]) & (toys < files[-1][1])]
    parts = list(done)
    toys = np.setdiff1d(toys, np.concatenate([part.toy for part in parts])) if parts else toys
    chunk = attributes["chunk"]
    for k in range(0, len(toys), chunk):
        parts.append(_refitted(study, _read(study, files, attributes, toys[k : k + chunk]), advance))
    if not parts:
        return None
    joined = Validation(*map(np.concatenate, zip(*parts, strict=True)))
    order = np.argsort(joined.toy)
    return Validation(*(array[order] for array in joined))


def _read(
    study: Study, files: Sequence[tuple[int, int, Path]], attributes: Mapping[str, Any], toys: np.ndarray
) -> _Sample:
    fits, thrown, shared = list[FitResult](), [], dict[str, np.ndarray]()
    for first, stop, path in files:
        inside = toys[(toys >= first) & (toys < stop)]
        if not len(inside):
            continue
        rows = inside - first
        # as many fits at once as there are in a chunk
        for some in np.split(rows, np.flatnonzero(np.diff(rows // attributes["chunk"])) + 1):
            fits.append(cast(FitResult, storage.load(path, int(some[0]), int(some[-1]) + 1)[some - some[0]]))
        if attributes.get("save_toys", True):
            thrown += storage.load_some(path, rows.tolist())
            shared = storage.load_shared(path)
        else:
            arrays = _thrown_again(study, attributes, inside, cast(np.ndarray, storage.read_checksums(path))[rows])
            thrown.append(arrays.toys)
            shared = arrays.shared
    return _Sample(toys, Arrays(concatenate(thrown), shared), FitResult.concatenate(fits))


def _refitted(study: Study, sample: _Sample, advance: Callable[[int], None] = lambda n: None) -> Validation:
    names = study.cost.names
    lower, upper = limit_arrays(names, study.limits)
    free = np.array([name not in study.fixed for name in names])
    settings = Settings(lower, upper, free, study.cost.errordef, EDM_GOAL, MAX_STEPS["newton"])
    start = np.array([study.start[name] for name in names], dtype=np.float64)
    n_toys = len(sample.toys)
    data = study.cost.rows(unpack(sample.arrays, n_toys))
    checked = validate(study.cost, data, sample.fits, np.arange(n_toys), start, settings, advance)
    return checked._replace(toy=sample.toys)


def _thrown_again(study: Study, attributes: Mapping[str, Any], toys: np.ndarray, stored: np.ndarray) -> Arrays:
    arrays = redraw(
        study,
        toys,
        seed=int(attributes["seed"]),
        sampled=attributes["sampled"],
        chunk=attributes["chunk"],
        n_toys=attributes["n_toys"],
    )
    different = toys[checksums(arrays.toys, len(toys)) != stored]
    if len(different):
        raise StorageError(
            f"toy {different[0]} is thrown otherwise than it was fitted: the sampler does not depend on its key alone, "
            "or the run began on another machine; start anew with --overwrite, without --no-save-toys"
        )
    return arrays
