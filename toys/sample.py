"""Fits and MINOS intervals of toys, thrown anew or read from the file of a run, chunk after chunk.

Only what was fitted is kept, so that memory does not follow the data of the toys.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.minos import MinosResult, minos
from engine.profile import profile
from engine.result import FitResult
from toys import storage
from toys.coverage import SAME_LEVEL
from toys.files import reading
from toys.finding import find_study
from toys.fitting import join_minos
from toys.memory import toys_per_chunk
from toys.models import STUDIES
from toys.observed import InputError
from toys.packing import bytes_per_toy, pack
from toys.regenerate import stored_toys
from toys.statistics import ONE_SIGMA
from toys.study import Study, generate, thrown_by

__all__ = ["Curves", "Sample", "curves", "first_curves", "is_one_sigma", "read", "study_of", "throw"]

MOST_TOLD = 2048  # toys after which `advance` is told: MINOS at two levels takes some seconds for so many
CURVE_TOYS, CURVE_POINTS, CURVE_BOUND, MOST_CURVES = 5, 31, 2.5, 12


@dataclass(frozen=True)
class Sample:
    """Toys of one truth.

    Attributes
    ----------
    study : Study
        At the truth of these toys.
    result : FitResult
    minos : dict
        level -> MinosResult, for the levels that were asked for.
    """

    study: Study
    result: FitResult
    minos: dict[float, MinosResult]


def throw(
    study: Study,
    n_toys: int,
    *,
    seed: int = 1,
    levels: Sequence[float] = (),
    backend: str = "auto",
    device: str = "auto",
    advance: Callable[[int], None] = lambda n: None,
) -> Sample:
    """Throw and fit the toys 0 to n_toys - 1 of a seed, with MINOS intervals of all free parameters at some levels.

    Parameters
    ----------
    study : Study
    n_toys, seed : int
    levels : sequence of float
        As `cl` of `result.minos`; none by default.
    backend, device : str
        As for `fit_batch`.
    advance : callable
        Told of the number of toys done after each chunk.

    Raises
    ------
    ValueError
        As `fit_batch`.
    """
    fits, intervals = [], []
    thrown = thrown_by(study, backend, device)
    first = pack(study.cost, generate(study, 1, seed, 0, thrown))
    for start, stop in _chunks(n_toys, bytes_per_toy(first, len(study.cost.names))):
        result = study.fit(generate(study, stop - start, seed, start, thrown), backend=backend, device=device)
        intervals.append({level: _bare(result.minos(cl=level)) for level in levels})
        fits.append(_without_data(result))
        advance(stop - start)
    return _sample(study, fits, intervals, levels)


def study_of(path: str | Path, model: str | None = None) -> Study:
    """The study of a file of `run_toys.py`, at its truth and start, with what was held.

    Parameters
    ----------
    path : path
    model : str, optional
        A ready-made model, or a file that defines `study`; by default the one that the file names.

    Raises
    ------
    StorageError, InputError, ValueError
        If the file cannot be read, names no model, truth and start, or its model is another or must be given.
    """
    attributes = storage.read_attributes(path)
    if not {"model", "truth", "start"} <= attributes.keys():
        raise storage.StorageError(f"{path} does not name its model, truth and start: name a file of run_toys.py")
    if model is None and attributes["model"] not in STUDIES:
        raise InputError(f"{path} is of the model {attributes['model']!r}: pass its file with --model")
    study, _ = find_study(model or attributes["model"])
    # of one workspace; the file of a model may have another name now
    if study.name.partition(":")[2] != attributes["model"].partition(":")[2]:
        raise InputError(
            f"{path} is of the model {attributes['model']!r}, and {model} is {study.name!r}: name the measurement of "
            "the file, as in --model workspace.json:measurement"
        )
    with reading(path):
        truth, start = json.loads(attributes["truth"]), json.loads(attributes["start"])
    held = attributes.get("fixed", ())  # of the model, and of --fixed
    return dataclasses.replace(study.at(truth, {**study.start, **start}), fixed=held)


def read(
    study: Study,
    path: str | Path,
    *,
    levels: Sequence[float] = (),
    backend: str = "auto",
    device: str = "auto",
    advance: Callable[[int], None] = lambda n: None,
) -> Sample:
    """The fits of a file of `run_toys.py`, with MINOS intervals from the file where it has them, else from its toys.

    Parameters
    ----------
    study : Study
        As `study_of` the file.
    path : path
    levels, backend, device, advance
        As for `throw`.

    Raises
    ------
    StorageError
        If the file cannot be read.
    ValueError
        If the file is of another model.
    """
    result = storage.load(path)
    if result.names != study.cost.names:
        raise ValueError(
            f"{path} has fits of {', '.join(result.names)}, but the study of {', '.join(study.cost.names)}"
        )
    stored = storage.load_minos(path)
    ready = {level: stored for level in levels if stored is not None and is_one_sigma(level)}
    sought = [level for level in levels if level not in ready]
    chunks = []
    if sought:
        first = pack(study.cost, stored_toys(study, path, 0, 1))
        chunks = _chunks(len(result), bytes_per_toy(first, len(result.names)))
    intervals = []
    for start, stop in chunks:
        data = stored_toys(study, path, start, stop)
        some: Any = result[start:stop]
        options = {**study.conditions, "backend": backend, "device": device}
        intervals.append({level: _bare(minos(study.cost, data, some, cl=level, **options)) for level in sought})
        advance(stop - start)
    found = _sample(study, [result], intervals, sought)
    return dataclasses.replace(found, minos={level: {**ready, **found.minos}[level] for level in levels})


class Curves(NamedTuple):
    """Profiles of one parameter for some toys.

    Attributes
    ----------
    name : str
    z : (n_toys, n) float64
        (x - theta_hat) / error.
    rise : (n_toys, n) float64
        (F(x) - F_min) / errordef: 1 where a MINOS interval ends, z^2 for a parabola. NaN where there is no fit.
    """

    name: str
    z: np.ndarray
    rise: np.ndarray


def curves(study: Study, data: Any, result: FitResult, *, backend: str = "auto", device: str = "auto") -> list[Curves]:
    """Profiles of the first twelve free parameters from 2.5 errors below the minimum to 2.5 above it.

    Toys in which the parameter has no error are left out.

    Parameters
    ----------
    study : Study
    data
        Some toys, as `fit_batch` takes them.
    result : FitResult
        Their fits.
    backend, device : str
        As for `fit_batch`.
    """
    found: list[Curves] = []
    for i, name in enumerate(result.names):
        usable = result.valid & (result.errors[:, i] > 0)
        if name in study.fixed or not usable.any() or len(found) == MOST_CURVES:
            continue
        options = {**study.conditions, "backend": backend, "device": device}
        seen = profile(study.cost, data, result, name, size=CURVE_POINTS, bound=CURVE_BOUND, **options)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = (seen.x - result.values[:, i, None]) / result.errors[:, i, None]
        rise = (seen.fval - result.fval[:, None]) / result.errordef
        found.append(Curves(name, z[usable], np.where(seen.valid, rise, np.nan)[usable]))
    return found


def first_curves(
    sample: Sample, *, path: str | Path | None = None, seed: int = 1, backend: str = "auto", device: str = "auto"
) -> list[Curves]:
    """Profiles of the first toys of a sample, which lie in a file, or else are thrown again with their seed."""
    n = min(CURVE_TOYS, len(sample.result))
    study = sample.study
    if path is not None:
        data = stored_toys(study, path, 0, n)
    else:
        data = generate(study, n, seed, 0, thrown_by(study, backend, device))
    some: Any = sample.result[:n]
    return curves(study, data, some, backend=backend, device=device)


def is_one_sigma(level: float) -> bool:
    """Whether a level, as 0.683 or 1, is that of one standard deviation."""
    return level == 1 or abs(level - ONE_SIGMA) < SAME_LEVEL


def _chunks(n_toys: int, bytes_each: int) -> list[tuple[int, int]]:
    chunk = min(toys_per_chunk(bytes_each), MOST_TOLD)
    return [(first, min(first + chunk, n_toys)) for first in range(0, n_toys, chunk)]


def _sample(study: Study, fits: list[FitResult], intervals: list[dict], levels: Sequence[float]) -> Sample:
    joined = {}
    for level in levels:
        parts = [chunk[level] for chunk in intervals]
        joined[level] = join_minos(parts, FitResult.concatenate([part.result for part in parts]))
    return Sample(study, FitResult.concatenate(fits), joined)


def _without_data(result: FitResult) -> FitResult:
    return dataclasses.replace(result, problem=None)


def _bare(found: MinosResult) -> MinosResult:
    return dataclasses.replace(found, result=_without_data(found.result))
