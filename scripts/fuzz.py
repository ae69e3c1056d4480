#!/usr/bin/env python3
"""Damage valid files at random and read them: what comes out must be the same numbers, or one sentence.

Input k of a seed is always the same. The files are read in a process of its own, which is started anew where it dies;
it names each input before it reads it, so that a crash has a name.
"""

import argparse
import collections
import contextlib
import importlib
import io
import json
import os
import re
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import DONE, DOUBTFUL, Parser, natural, positive
from mutations import MODEL, OURS, VALUES, Input, draw, originals

# of one input; reading takes milliseconds, a figure some seconds
HANG_SECONDS = 20.0
START_SECONDS = 300.0  # of the valid files, for which a fit may have to be compiled
# what a process may allocate: none of the files holds a megabyte
MEMORY = 6 * 2**30
LONGEST = 1500
# words from the inside of a library, which tell a user nothing
INSIDE = (
    "Traceback", "jax.errors", "jax._src", "jaxlib", "Tracer", "operands could not", "broadcast", "unhashable", "LLVM",
    "'NoneType'", "object has no attribute", "not subscriptable", "positional argument", "list index", "codec can't",
    "index out of range", "invalid literal", "could not convert", "too many values", "not enough values",
    "Expecting value", "Unable to", "Can't", "errno", "truth value", "iteration over", "expected str", "must be str",
    "site-packages",
)  # fmt: skip


class Outcome(NamedTuple):
    """How an input ended: "ok", "sentence" or "BAD", and what was said."""

    kind: str
    told: str


def clear(text: str) -> bool:
    """Whether a text is one sentence for a user, rather than what some library says of itself."""
    # why a model cannot be evaluated is told in the words of whoever says so
    said = re.sub(r"(?<=cannot be evaluated for ).*?\)(?=: )", "", text)
    return bool(said.strip()) and "\n" not in said and len(said) < LONGEST and not any(word in said for word in INSIDE)


def judge(read: Callable[[Path], Mapping[str, Any]], path: Path, expected: Mapping[str, Any] | None) -> Outcome:
    """Read a file, and say how that ended.

    Parameters
    ----------
    read : callable
    path : Path
    expected : dict or None
        What may come out; None where the damage may be a change of the data, which nobody can see.
    """
    import numpy as np

    from toys.files import StorageError
    from toys.observed import InputError

    try:
        found = read(path)
    except (StorageError, InputError, ValueError) as error:
        own = isinstance(error, StorageError | InputError) or type(error) is ValueError
        kind = "sentence" if own and clear(str(error)) else "BAD"
        return Outcome(kind, f"{type(error).__name__}: {error}")
    except (Exception, SystemExit) as error:
        return Outcome("BAD", f"{type(error).__name__}: {error}")
    for name, array in found.items():
        if name == "observed" and not (np.ndim(array) == 1 and len(array) and np.isfinite(array).all()):
            return Outcome("BAD", f"observed data of shape {np.shape(array)}, which are not all finite")
    if expected is None:
        return Outcome("ok", "")
    if found.keys() != expected.keys():
        return Outcome("BAD", f"read {', '.join(found)} instead of {', '.join(expected)}")
    for name, array in found.items():
        same = np.array_equal(array, expected[name], equal_nan=np.asarray(array).dtype.kind == "f")
        if not same or np.asarray(array).dtype != np.asarray(expected[name]).dtype:
            return Outcome("BAD", f"silently wrong: {name}")
    return Outcome("ok", "")


# --- readers -----------------------------------------------------------------------------------------------


def _flat(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Ragged arrays as two."""
    flat: dict[str, Any] = {}
    for name, array in arrays.items():
        parts = {name: array} if not hasattr(array, "offsets") else {name: array.values, f"{name}/o": array.offsets}
        flat.update(parts)
    return flat


def read_results(path: Path) -> dict[str, Any]:
    import dataclasses

    from toys import storage

    result = storage.load(path)
    found = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name != "problem"}
    minos = storage.load_minos(path)
    return found | ({} if minos is None else {f"minos/{n}": getattr(minos, n) for n in ("names", "lower", "upper")})


def read_toys(path: Path) -> dict[str, Any]:
    from toys import storage

    return _flat({**storage.load_toys(path), **storage.load_shared(path)})


def read_some_data(path: Path) -> dict[str, Any]:
    from toys import storage

    data = storage.load_data(path, 1, 3)
    return _flat({str(k): part for k, part in enumerate(data if isinstance(data, tuple) else (data,))})


def read_rest(path: Path) -> dict[str, Any]:
    from toys import storage

    texts = {name: repr(value) for name, value in storage.read_attributes(path).items()}
    return texts | _flat(storage.read_validation(path))


def resume(path: Path) -> dict[str, Any]:
    """What a run gives that is continued from the parts beside this path."""
    from mutations import run_small

    run_small(path, resume=True)
    return read_results(path) | read_toys(path)


def merged(path: Path) -> dict[str, Any]:
    """A file as the only shard of its run."""
    from toys.shards import merge

    out = path.parent / "merged.h5"
    merge(out, [path], overwrite=True)
    return read_results(out) | read_toys(out)


def thrown_again(path: Path) -> dict[str, Any]:
    from toys.regenerate import regenerate

    data = regenerate(path, slice(1, 3), model_of(path, "counting.py" if path.stem == "counts" else MODEL))
    return _flat({str(k): part for k, part in enumerate(data if isinstance(data, tuple) else (data,))})


def model_of(path: Path, name: str) -> str:
    """The file of its model, which lies beside the valid files."""
    places = (path.parent / name, path.parent.parent / "originals" / name)
    return next(str(place) for place in places if place.exists())


def report(path: Path) -> dict[str, Any]:
    """Figure, report and test of a file, through the command lines."""
    model, quiet = model_of(path, MODEL), ("--overwrite", "--quiet")
    test = ("--poi", "n", "--value", "30", "--test-stat", "t")
    for script, out, *more in (
        ("plot_toys", "a.png"),
        ("pull_study", "report", *quiet),
        ("hypotest", "test", *quiet, *test),
    ):
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            arguments = [str(path), "--model", model, "--out", str(path.parent / out), *more]
            code = importlib.import_module(script).main(arguments)
        if code not in (0, 1):
            raise ValueError(told.getvalue().removesuffix("\n"))
    return {}


READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "load": read_results,
    "load_toys": read_toys,
    "load_data": read_some_data,
    "attributes": read_rest,
    "merge": merged,
    "regenerate": thrown_again,
    "report": report,
}


def observed(column: str | None) -> Callable[[Path], dict[str, Any]]:
    from toys.observed import read_observed

    return lambda path: {"observed": read_observed(path, column)}


# --- inputs ------------------------------------------------------------------------------------------------


class Fuzzer:
    """Valid files in a directory, what is read from them, and the inputs that are made of them."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.seed = seed
        self.files = originals(directory / "originals")
        self.place = directory / "input"
        self.expected: dict[tuple[str, str], Any] = {}

    def _truth(self, name: str, reader: str) -> Any:
        """What is read from the file as it was."""
        if (name, reader) not in self.expected:
            file = self.files[name]
            self.expected[name, reader] = (
                read_results(file) | read_toys(file) if reader == "resume" else READERS[reader](file)
            )
        return self.expected[name, reader]

    def input(self, k: int) -> Input:
        """Input k, written to disk."""
        shutil.rmtree(self.place, ignore_errors=True)
        self.place.mkdir()
        return draw(self.seed, k, self.files, self.place)

    def outcome(self, made: Input) -> Outcome:
        """The worst of all readers."""
        worst = Outcome("ok", "")
        for reader, read in self._readers(made):
            if made.name not in OURS:
                expected = {"observed": VALUES} if made.same else None
            else:
                expected = self._truth(made.name, reader) if made.same and reader != "report" else None
            found = judge(read, made.path, expected)
            if ("ok", "sentence", "BAD").index(found.kind) > ("ok", "sentence", "BAD").index(worst.kind):
                worst = Outcome(found.kind, f"{reader}: {found.told}")
        return worst

    def _readers(self, made: Input) -> Iterator[tuple[str, Callable]]:
        if made.name not in OURS:
            yield "observed", observed(made.column)
        elif made.name == "parts":
            yield "resume", resume
        else:
            readers = [*READERS][: len(READERS) - (not made.slow)]
            yield from ((reader, READERS[reader]) for reader in readers)


def work(directory: Path, seed: int, first: int, stop: int) -> None:
    """Try inputs, with a line before and after each."""
    import resource
    import warnings

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever the libraries print is none of ours
    fuzzer = Fuzzer(directory, seed)
    lines.write("ready\n")
    for k in range(first, stop):
        made = fuzzer.input(k)
        lines.write(json.dumps({"k": k, "input": made.told}) + "\n")
        lines.write(json.dumps({"k": k, "outcome": fuzzer.outcome(made)}) + "\n")


# --- the command line --------------------------------------------------------------------------------------


def lines_of(process: subprocess.Popen, until: float) -> Iterator[str]:
    """What a process says, line by line, until it ends, hangs, or the time is over."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        patience = START_SECONDS
        while time.monotonic() < until:
            if not waiting.select(patience):
                return
            line = process.stdout.readline()
            if not line:
                return
            if line == "ready\n":
                patience = HANG_SECONDS
            yield line


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="fuzz.py", description=__doc__, epilog="Exit code 1: an input ended badly, it is named.")
    parser.add_argument("--seconds", type=positive, default=60, help="for how long (default: 60)")
    parser.add_argument("--n", type=natural, default=0, metavar="N", help="number of inputs (default: as time allows)")
    parser.add_argument("--seed", type=natural, default=1, help="input k depends on (seed, k) alone (default: 1)")
    parser.add_argument("--first", type=natural, default=0, help="first input (default: 0)")
    parser.add_argument("--work", metavar="DIRECTORY", help=argparse.SUPPRESS)
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    stop = args.first + args.n if args.n else sys.maxsize
    if args.work:
        sys.path.insert(0, str(Path(__file__).absolute().parents[1]))
        work(Path(args.work), args.seed, args.first, stop)
        return DONE
    counts: collections.Counter[str] = collections.Counter()
    until, first, bad = time.monotonic() + (1e9 if args.n else args.seconds), args.first, 0
    while first < stop and time.monotonic() < until:
        with tempfile.TemporaryDirectory(prefix="batchfit-fuzz-") as directory:
            more = ["--n", str(stop - first)] if args.n else []
            command = [sys.executable, __file__, "--work", directory, "--seed", str(args.seed), "--first", str(first)]
            process = subprocess.Popen([*command, *more], stdout=subprocess.PIPE, text=True)
            tried, ready = None, False
            for line in lines_of(process, until):
                ready = ready or line == "ready\n"
                if not line.startswith("{"):
                    continue
                told = json.loads(line)
                if "input" in told:
                    tried = told
                    continue
                first, (kind, what) = told["k"] + 1, told["outcome"]
                counts[kind] += 1
                if kind == "BAD":
                    bad += 1
                    print(f"BAD {told['k']} {tried['input']}: {what}", flush=True)
                tried = None
            in_time = time.monotonic() < until
            ended = process.poll()
            process.kill()
            process.communicate()
            if tried is None and in_time and first < stop:
                print(f"fuzz.py: {'an input' if ready else 'a valid file'} cannot be made", file=sys.stderr)
                return DOUBTFUL
            if tried is not None and in_time:
                how = "hangs" if ended is None else f"brings the process down ({ended})"
                print(f"BAD {tried['k']} {tried['input']}: {how}", flush=True)
                counts["BAD"] += 1
                bad, first = bad + 1, tried["k"] + 1
    print(f"{sum(counts.values())} inputs: {counts['ok']} read, {counts['sentence']} refused, {counts['BAD']} BAD")
    return DOUBTFUL if bad else DONE


if __name__ == "__main__":
    sys.exit(main())
