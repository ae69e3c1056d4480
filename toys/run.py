"""The run: chunks of toys are thrown, fitted and written, one after the other, into one file.

Chunks are a fixed grid of toy indices. While some are written, each as a part that stays whatever happens and in the
final file, the next is thrown and fitted. Memory follows the chunk, not the number of toys.
"""

import dataclasses
import functools
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from engine.ahead import AHEAD
from engine.minos import MinosResult
from engine.reference import Validation
from engine.result import FitResult
from toys import memory, storage
from toys.files import check_output, identity, lock, reading
from toys.fitting import Compiled, Fitter, compile_study
from toys.joining import Growing
from toys.layout import refuse_foreign
from toys.options import Options, shard_range
from toys.packing import pack
from toys.parts import Fitted
from toys.provenance import DECISIVE, attributes_of, check_same, versions_of, warn_of_versions
from toys.study import Study, generate
from toys.tally import Tally
from toys.validation import Refits, validate_run
from toys.writer import Writer

__all__ = ["Options", "Report", "Workers", "fit_parts", "run"]

SWITCH_INTERVAL = 0.5e-3  # seconds; Python's own is 5e-3


@dataclasses.dataclass
class Report:
    """What a run did.

    Attributes
    ----------
    path : Path
        Its file.
    tally : Tally
        Of all toys of the file.
    validation : Validation or None
    times : dict
        Seconds of wall time; writing overlaps with the rest.
    n_resumed : int
        Toys that were there.
    fitted : str
        Costs and data.
    nothing_to_add : bool
        The file has all toys already.
    """

    path: Path
    tally: Tally
    validation: Validation | None
    times: dict[str, float]
    n_resumed: int = 0
    fitted: str = ""
    nothing_to_add: bool = False

    @functools.cached_property
    def minos(self) -> MinosResult | None:
        """The intervals of all toys, read from the file."""
        return storage.load_minos(self.path)

    @functools.cached_property
    def result(self) -> FitResult:
        """The fits of all toys, read from the file."""
        return storage.load(self.path)


class Workers(Protocol):
    """Other processes that do the work of a run, and write parts where this one reads them."""

    def compile(self, out: Path, options: Options) -> Compiled:
        """What the first toy tells."""

    def fit(
        self,
        out: Path,
        options: Options,
        compiled: Compiled,
        attributes: Mapping[str, Any],
        ranges: Sequence[range],
        advance: Callable[[int], None] = lambda n: None,
    ) -> None:
        """Write each of these ranges of toys as a part of `out`."""


def run(
    study: Study,
    out: str | Path,
    options: Options,
    *,
    phase: Callable[[str, int], None] = lambda name, total: None,
    advance: Callable[[int], None] = lambda n: None,
    workers: Workers | None = None,
    observed: Fitted | None = None,
) -> Report:
    """Throw and fit toys, validate some with MIGRAD, and store everything.

    Warns where a run is continued with other versions of the packages than it was begun with.

    Parameters
    ----------
    study : Study
    out : path
        The HDF5 file. While the run lasts, its parts lie in `<out>.parts`.
    options : Options
    phase, advance : callable
        Told of the beginning of a phase ("compile", "fit", "validate", "join") with its total, and of steps done.
    workers : Workers, optional
        Who throws and fits; by default this process.
    observed : Fitted, optional
        The fit of the observed data, for the file; by default that of the file that is continued.

    Raises
    ------
    StorageError
        If the output cannot be written, or belongs to another run. What is complete stays, for `resume`.
    ValueError
        If an option cannot be had, or a chunk does not fit into memory.
    """
    out = Path(out)
    check_output(out, overwrite=options.overwrite, resume=options.resume, extend=options.extend)
    if options.overwrite:
        refuse_foreign(out)
    times: dict[str, float] = {}
    with lock(out), _QUICK_TURNS:
        found = identity(out)
        phase("compile", 1)
        with _timed(times, "compile"):
            on_cpu = options.backend != "jax" and options.device not in ("gpu", "tpu")
            if on_cpu and not workers and options.optimizer == "newton":
                AHEAD.begin()
            compiled = workers.compile(out, options) if workers else compile_study(study, options)
        advance(1)
        chunk = options.chunk or _chunk(compiled.bytes_per_toy)
        if workers is None:
            memory.check(min(chunk, options.n_toys), compiled.bytes_per_toy, compiled.device)
        attributes = attributes_of(
            study,
            options,
            backend=compiled.backend,
            device=compiled.device,
            sampled=compiled.sampled,
            chunk=chunk,
        )
        report = Report(out, Tally(study.truth), None, times, fitted=compiled.fitted)
        if options.overwrite:
            storage.remove_parts(out)
        plan = _plan(out, options, attributes, compiled)
        if plan.is_complete:
            report.nothing_to_add = True
            report.validation = _stored_validation(out)
            storage.remove_parts(out)
            return _counted(report, plan.base)
        if plan.base:
            observed = observed or storage.read_fitted(out)
        warn_of_versions(plan.versions, versions_of(out, attributes))
        n_resumed = plan.stop - plan.first - sum(map(len, plan.ranges))
        n_validated = min(options.validate, options.n_toys)
        # of toys that are not kept, it is checked that they are thrown again as they were: at the end, from the file
        refits = Refits(study, options.n_toys, n_validated if options.save_toys else 0, chunk)
        begin = 0 if plan.base else plan.first
        growing = None if workers else Growing(out, range(begin, plan.stop), _files(out, plan.base), found, observed)
        with Writer(out, attributes, options.save_toys, growing) as writer:
            phase("fit", plan.stop - plan.first)
            advance(n_resumed)
            if workers:
                with _timed(times, "fit"):
                    workers.fit(out, options, compiled, attributes, plan.ranges, advance)
            else:
                _fit(study, options, compiled, plan.ranges, writer, advance, times, refits)

            if n_validated:
                phase("validate", n_validated)
                advance(len(refits.done))
                while refits.waiting:
                    with _timed(times, "validate"):
                        refits.next()
                    advance(1)
            if not workers:
                with _timed(times, "wait for the disk"):
                    writer.wait()
            if not n_validated and plan.base:
                report.validation = _stored_validation(out)
            elif n_validated:
                with _timed(times, "validate"):
                    files = _files(out, plan.base)
                    report.validation = validate_run(study, files, attributes, n_validated, advance, refits.done)
            phase("join", 1)
            with _timed(times, "join"):
                summary = report.validation._asdict() if report.validation else None
                # so that a later run still warns of the toys that were there
                oldest = next(filter(None, plan.versions.values()), versions_of(out, attributes))
                joined = {**attributes, "versions": json.dumps(oldest)}
                how: dict[str, Any] = {"first": plan.first, "base": plan.base, "found": found, "observed": observed}
                storage.join(out, joined, plan.stop, summary, **how, grown=writer.complete)
            if not workers:
                times["write"] = writer.seconds
        advance(1)
        return _counted(report, n_resumed)


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What is there of the toys from `first` to `stop`, and what is to be done.

    Attributes
    ----------
    first, stop : int
    base : int
        Toys in the file that is there, and is continued.
    ranges : list of range
        Toys to throw and fit: the others are in the file or in complete parts.
    versions : dict
        Of each file that is there, the versions of the packages that made it.
    """

    first: int
    stop: int
    base: int
    ranges: list[range]
    versions: Mapping[Path, Mapping[str, str]]

    @property
    def is_complete(self) -> bool:
        """Whether the file has all."""
        return self.base >= self.stop - self.first


def _plan(out: Path, options: Options, attributes: Mapping[str, Any], compiled: Compiled) -> _Plan:
    chunk = attributes["chunk"]
    first, stop = shard_range(options.n_toys, chunk, *options.shard) if options.shard else (0, options.n_toys)
    parts = storage.complete_parts(out)
    versions: dict[Path, Mapping[str, str]] = {}
    for _, _, part in parts:
        of_part = storage.read_attributes(part)
        check_same(part, of_part, attributes)
        versions[part] = versions_of(part, of_part)
    base = 0
    if out.exists() and not options.overwrite:
        base = _base(out, options, attributes, compiled, parts)
    if base:
        versions = {out: versions_of(out, storage.read_attributes(out)), **versions}
    done = [range(*part[:2]) for part in parts if part[0] >= base]
    return _Plan(first, stop, base, list(_missing(first, stop, chunk, base, done)), versions)


def _files(out: Path, base: int) -> list[tuple[int, int, Path]]:
    """The files that hold toys, each with its first and behind its last: the one that is continued, and the parts."""
    continued = [(0, base, out)] if base else []
    return continued + [part for part in storage.complete_parts(out) if part[0] >= base]


def fit_parts(
    study: Study,
    out: Path,
    options: Options,
    compiled: Compiled,
    attributes: Mapping[str, Any],
    ranges: Sequence[range],
) -> None:
    """Throw and fit ranges of toys, and write each as a part of `out`.

    Raises as `run` does.
    """
    with Writer(out, attributes, options.save_toys) as writer:
        _fit(study, options, compiled, ranges, writer, lambda n: None, {}, Refits(study, options.n_toys, 0, 0))


def _fit(
    study: Study,
    options: Options,
    compiled: Compiled,
    ranges: Sequence[range],
    writer: Writer,
    advance: Callable[[int], None],
    times: dict[str, float],
    refits: Refits,
) -> None:
    """Toys are refitted whenever the next part would have to wait for the disk."""
    fitter = Fitter(study, options, compiled.backend, compiled.device, compiled.batch_size)
    for toys in ranges:
        with _timed(times, "generate"):
            data = generate(study, len(toys), options.seed, toys.start, compiled.sampled)
        with _timed(times, "fit"):
            result, minos = fitter.fit(data, len(toys), advance)
        arrays = pack(study.cost, data)
        refits.keep(toys.start, arrays, result)
        while refits.ready and writer.busy:
            with _timed(times, "validate"):
                refits.next()
        with _timed(times, "wait for the disk"):
            writer.put(toys.start, arrays, result, minos)


def _base(
    out: Path,
    options: Options,
    attributes: Mapping[str, Any],
    compiled: Compiled,
    parts: Sequence[tuple[int, int, Path]],
) -> int:
    """How many toys of this run the file that is there has."""
    found = storage.read_attributes(out)
    with reading(out):
        n_found = found["stop"] - found["first"]
    different = storage.same_run(found, attributes, DECISIVE)
    if not different:
        return n_found
    if different == ["n_toys"] and options.extend and n_found >= options.n_toys:
        return n_found
    if different == ["n_toys"] and n_found < options.n_toys and (options.extend or parts):
        # the rounding of JAX depends on the size of a chunk
        as_it_is = compiled.backend == compiled.sampled == "numba"
        if as_it_is and not any(first < n_found < stop for first, stop, _ in parts):
            return n_found
        return n_found // attributes["chunk"] * attributes["chunk"]
    # beside another run's file, parts are those of a run that was to overwrite it
    if options.extend or not parts:
        check_same(out, found, attributes, but="n_toys" if options.extend else "")
    return 0


def _missing(first: int, stop: int, chunk: int, base: int, done: Sequence[range]) -> Iterator[range]:
    """The ranges of the grid of chunks that are not done, from toy `base` on."""
    begun = {toys.start for toys in done}
    for start in range(first, stop, chunk):
        toys = range(max(start, base), min(start + chunk, stop))
        if len(toys) and toys.start not in begun:
            yield toys


def _stored_validation(path: Path) -> Validation | None:
    stored = storage.read_validation(path)
    return Validation(**stored) if stored else None


def _counted(report: Report, n_resumed: int) -> Report:
    report.n_resumed = n_resumed
    for result, minos in storage.load_blocks(report.path, minos=True):
        report.tally.add(result, minos)
    return report


def _chunk(bytes_per_toy: int) -> int:
    """Toys in a chunk of the file: the largest power of two that `toys_per_chunk` allows."""
    return 1 << (memory.toys_per_chunk(bytes_per_toy).bit_length() - 1)


class _QuickTurns:
    """While runs last, threads that compile and write have the interpreter soon, though another computes in Python.

    They take and give it for every chunk and checksum: beside such a thread 32 MiB took 1.5 s to write, with Python's
    own interval, and 0.14 with this one.
    """

    def __init__(self) -> None:
        self.lock, self.n_runs, self.before = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self.lock:
            if not self.n_runs:
                self.before = sys.getswitchinterval()
                sys.setswitchinterval(min(self.before, SWITCH_INTERVAL))
            self.n_runs += 1

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.n_runs -= 1
            if not self.n_runs:
                sys.setswitchinterval(self.before)


_QUICK_TURNS = _QuickTurns()


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        times[name] = times.get(name, 0.0) + time.perf_counter() - started
