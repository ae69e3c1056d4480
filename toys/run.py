"""The run: chunks of toys are thrown, fitted and written, one after the other, and then joined into one file.

Chunks are a fixed grid of toy indices. While one chunk is written, the next is thrown and fitted. Memory follows
the chunk, not the number of toys.
"""

import datetime
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from engine.drivers import Settings
from engine.fit import EDM_GOAL, MAX_STEPS, fit_batch, limit_arrays
from engine.minos import MinosResult
from engine.normalisation import check_integral
from engine.reference import Validation, validate
from engine.result import FitResult
from engine.status import Status
from kernels.graph import UntranslatableError
from toys import storage
from toys.files import StorageError, check_output, lock
from toys.packing import Arrays, bytes_per_toy, concatenate, describe, pack, unpack
from toys.study import Study, generate

__all__ = ["Options", "Report", "run"]

CHUNK_BYTES = 32 * 2**20
LARGEST_CHUNK = 8192
PACKAGES = ("batchfit", "jax", "jaxlib", "optax", "numpy", "iminuit", "numba", "h5py", "scipy")
# What decides about the numbers: a run is continued only if all of these are the same.
DECISIVE = (
    "model", "source", "seed", "n_toys", "truth", "start", "limits", "fixed", "optimizer", "backend", "minos", "chunk",
    "batchfit_version",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """How a study is run.

    Attributes
    ----------
    n_toys : int
    seed : int
    device, optimizer : str
        As for `fit_batch`.
    backend : {"auto", "numba", "jax"}
        Draws and fits the toys.
    validate : int
        How many toys MIGRAD refits.
    minos : bool
        Find the MINOS intervals of every toy.
    overwrite, resume : bool
        What to do with an output that is there.
    source : str
        Source text of the model, for the file.
    command_line : str
    """

    n_toys: int
    seed: int = 1
    device: str = "auto"
    backend: str = "auto"
    optimizer: str = "newton"
    validate: int = 100
    minos: bool = False
    overwrite: bool = False
    resume: bool = False
    source: str = ""
    command_line: str = ""


@dataclass
class Report:
    """What a run did. `times` are seconds of wall time; writing overlaps with the rest. `fitted` are costs and data."""

    result: FitResult
    validation: Validation | None
    times: dict[str, float] = field(default_factory=dict)
    n_resumed: int = 0
    fitted: str = ""
    minos: MinosResult | None = None


class _Compiled(NamedTuple):
    """What the first toy told: the backends of sampler and fit, the device, the bytes of a toy, and what is fitted."""

    sampled: str
    backend: str
    device: str
    bytes_per_toy: int
    fitted: str


class _Writer:
    """Writes one part at a time in a thread of its own; an error comes out at the next call."""

    def __init__(self, path: Path, attributes: Mapping[str, Any]) -> None:
        self.path, self.attributes = path, attributes
        self.seconds = 0.0
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self.pending: Future | None = None

    def _write(self, first: int, toys: Arrays, result: FitResult, minos: MinosResult | None) -> None:
        started = time.perf_counter()
        storage.write_part(self.path, first, toys.toys, result, self.attributes, toys.shared, minos)
        self.seconds += time.perf_counter() - started

    def put(self, first: int, toys: Arrays, result: FitResult, minos: MinosResult | None) -> None:
        """Write a part once the one before is on disk, so that no more than two are in memory."""
        self._wait()
        self.pending = self.pool.submit(self._write, first, toys, result, minos)

    def _wait(self) -> None:
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait until all parts are on disk."""
        try:
            self._wait()
        finally:
            self.pool.shutdown()


def run(
    study: Study,
    out: str | Path,
    options: Options,
    *,
    phase: Callable[[str, int], None] = lambda name, total: None,
    advance: Callable[[int], None] = lambda n: None,
) -> Report:
    """Throw and fit toys, validate some with MIGRAD, and store everything.

    Parameters
    ----------
    study : Study
    out : path
        The HDF5 file. While the run lasts, its parts lie in `<out>.parts`.
    options : Options
    phase, advance : callable
        Told of the beginning of a phase ("compile", "fit", "validate", "join") with its total, and of steps done.

    Raises
    ------
    StorageError
        If the output cannot be written, or belongs to another run. What is complete stays, for `resume`.
    ValueError
        If an option cannot be had.
    """
    if not 1 <= options.n_toys <= 2**32:
        raise ValueError(f"the number of toys must lie in 1 to 2^32, got {options.n_toys}")
    out = Path(out)
    check_output(out, overwrite=options.overwrite, resume=options.resume)
    times: dict[str, float] = {}
    with lock(out):
        phase("compile", 1)
        with _timed(times, "compile"):
            compiled = _compile(study, options)
        advance(1)
        chunk = _chunk(compiled.bytes_per_toy)
        attributes = _attributes(study, options, compiled.backend, compiled.device, chunk)
        if options.resume and out.exists():
            found = storage.read_attributes(out)
            # beside another run's file, parts are those of a run that was to overwrite it
            if not storage.same_run(found, attributes, DECISIVE) or not storage.complete_parts(out):
                _same(out, found, attributes)
                stored = storage.read_validation(out)
                validation = Validation(**stored) if stored else None
                report = _report(out, options, validation, times, options.n_toys, compiled.fitted)
                storage.remove_parts(out)
                return report
        if options.overwrite:
            storage.remove_parts(out)
        parts = storage.complete_parts(out)
        for _, _, part in parts:
            _same(part, storage.read_attributes(part), attributes)
        done = {first for first, _, _ in parts}
        n_resumed = sum(stop - first for first, stop, _ in parts)

        phase("fit", options.n_toys)
        advance(n_resumed)
        writer = _Writer(out, attributes)
        try:
            for first in range(0, options.n_toys, chunk):
                if first in done:
                    continue
                n_toys = min(chunk, options.n_toys - first)
                with _timed(times, "generate"):
                    data = generate(study, n_toys, options.seed, first, compiled.sampled)
                with _timed(times, "fit"):
                    result = _fit(study, data, options, compiled.backend, advance)
                minos = None
                if options.minos:
                    with _timed(times, "minos"):
                        minos = result.minos()
                        result = minos.result
                with _timed(times, "wait for the disk"):
                    writer.put(first, pack(study.cost, data), result, minos)
        finally:
            with _timed(times, "wait for the disk"):
                writer.close()
            times["write"] = writer.seconds

        validation = None
        if options.validate:
            n_validated = min(options.validate, options.n_toys)
            phase("validate", n_validated)
            with _timed(times, "validate"):
                validation = _validate(study, out, options.n_toys, n_validated, advance)
        phase("join", 1)
        with _timed(times, "join"):
            storage.join(out, attributes, options.n_toys, validation._asdict() if validation else None)
        advance(1)
        return _report(out, options, validation, times, n_resumed, compiled.fitted)


def _report(
    out: Path, options: Options, validation: Validation | None, times: dict[str, float], n_resumed: int, fitted: str
) -> Report:
    minos = storage.load_minos(out) if options.minos else None
    return Report(minos.result if minos else storage.load(out), validation, times, n_resumed, fitted, minos)


def _fit(study: Study, data: Any, options: Options, backend: str, advance: Callable | bool = False) -> FitResult:
    return fit_batch(
        study.cost,
        data,
        study.start,
        limits=study.limits,
        fixed=study.fixed,
        optimizer=options.optimizer,
        backend=backend,
        device=options.device,
        progress=advance,
    )


def _compile(study: Study, options: Options) -> _Compiled:
    """Throw and fit one toy, so that everything is compiled.

    Raises
    ------
    ValueError
        If the cost cannot take what the sampler throws, or the density of the model does not have its integral.
    """
    if study.observable is not None:
        for point in (study.truth, study.start):
            values = {**study.start, **{name: point[name] for name in study.cost.names if name in point}}
            check_integral(study.cost, [values[name] for name in study.cost.names], study.observable)
    sampled = "jax" if options.backend == "jax" else "numba"
    try:
        data = generate(study, 1, options.seed, 0, sampled)
    except UntranslatableError:
        sampled = "jax"
        data = generate(study, 1, options.seed, 0, sampled)
    result = _fit(study, data, options, options.backend)
    if options.minos:
        result.minos()
    if result.status[0] == Status.BAD_DATA:
        raise ValueError(
            "the sampler throws what the cost cannot take, such as NaN, negative counts or an error of zero: toy 0 "
            "is one of these; correct the sampler"
        )
    toys = pack(study.cost, data)
    return _Compiled(
        # on an accelerator the toys are thrown where they are fitted
        "jax" if result.backend == "jax" else sampled,
        result.backend,
        result.device,
        bytes_per_toy(toys, len(study.cost.names)),
        describe(study.cost, toys),
    )


def _chunk(bytes_per_toy: int) -> int:
    """Toys in a chunk: a power of two that fills about CHUNK_BYTES."""
    chunk = 1
    while chunk < LARGEST_CHUNK and 2 * chunk * bytes_per_toy <= CHUNK_BYTES:
        chunk *= 2
    return chunk


def _validate(study: Study, out: Path, n_toys: int, n_validated: int, advance: Callable) -> Validation:
    """MIGRAD on toys that are spread evenly over the run, from the same start."""
    names = study.cost.names
    toys = np.unique(np.linspace(0, n_toys - 1, n_validated).astype(np.int64))
    thrown, fits, shared = [], [], dict[str, np.ndarray]()
    for first, stop, part in storage.complete_parts(out):
        inside = toys[(toys >= first) & (toys < stop)] - first
        if not len(inside):
            continue
        fits.append(cast(FitResult, storage.load(part)[inside]))
        thrown += [storage.load_toys(part, toy, toy + 1) for toy in inside.tolist()]
        shared = storage.load_shared(part)
    lower, upper = limit_arrays(names, study.limits)
    free = np.array([name not in study.fixed for name in names])
    settings = Settings(lower, upper, free, study.cost.errordef, EDM_GOAL, MAX_STEPS["newton"])
    start = np.array([study.start[name] for name in names], dtype=np.float64)
    rows = study.cost.rows(unpack(Arrays(concatenate(thrown), shared), len(toys)))
    fitted = FitResult.concatenate(fits)
    checked = validate(study.cost, rows, fitted, np.arange(len(toys)), start, settings, advance)
    return checked._replace(toy=toys)


def _attributes(study: Study, options: Options, backend: str, device: str, chunk: int) -> dict[str, Any]:
    versions = {name: _version(name) for name in PACKAGES}
    fixed = {"fixed": list(study.fixed)} if study.fixed else {}
    minos = {"minos": True} if options.minos else {}
    return (
        fixed
        | minos
        | {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "model": study.name,
            "source": options.source,
            "names": list(study.cost.names),
            "errordef": study.cost.errordef,
            "n_toys": options.n_toys,
            "seed": options.seed if options.seed < 2**63 else str(options.seed),
            "truth": json.dumps(dict(study.truth)),
            "start": json.dumps(dict(study.start)),
            "limits": json.dumps({name: _numbers(pair) for name, pair in study.limits.items()}),
            "optimizer": options.optimizer,
            "backend": backend,
            "device": device,
            "precision": "float64",
            "random": "threefry2x32",
            "chunk": chunk,
            "batchfit_version": versions["batchfit"],
            "versions": json.dumps(versions),
            "jax_devices": ", ".join(sorted({d.device_kind for d in jax.devices()})),
            "command_line": options.command_line,
        }
    )


def _numbers(pair: tuple[float | None, float | None] | None) -> list[float | None] | None:
    return None if pair is None else [None if end is None else float(end) for end in pair]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        from toys import BATCHFIT

        return BATCHFIT if package == "batchfit" else "not installed"


def _same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = storage.same_run(found, wanted, DECISIVE)
    if different:
        told = "; ".join(
            f"{key} was {_short(found.get(key))} and is now {_short(wanted.get(key))}" for key in different
        )
        raise StorageError(f"{path} belongs to another run: {told}. Name another output, or pass --overwrite")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else "another text"


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        times[name] = times.get(name, 0.0) + time.perf_counter() - started
