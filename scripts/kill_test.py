#!/usr/bin/env python3
"""Kill runs at random moments, continue each until it is complete, and compare it with one that was never killed.

Runs with their toys, runs without them, and runs that extend a finished file take turns. After each `kill -9` every
part that was complete before must be there, unchanged, or the final file with all toys. Exit code 0: nothing was lost.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import DONE, DOUBTFUL, Parser, natural, positive

KINDS = ("toys", "no toys", "extended")
CHUNK = 64
# of all kills, those that come while the parts are written or joined; the others come at any time
WHILE_WRITING = 0.8
OF_A_RUN = ("created", "command_line")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="kill_test.py", description=__doc__)
    parser.add_argument("--kills", type=positive, default=100, metavar="N", help="how many kills (default: 100)")
    parser.add_argument("--seconds", type=positive, default=600, help="stop killing after this time (default: 600)")
    parser.add_argument("--n", type=positive, default=2000, metavar="N", help="toys of a run (default: 2000)")
    parser.add_argument("--model", default="polynomial", help="a ready-made model (default: polynomial)")
    parser.add_argument("--seed", type=natural, default=1, help="of the moments (default: 1)")
    return parser


def begin(model: str, out: Path, options: dict) -> tuple[int, int]:
    """Continue a run in a new process: (process, descriptor that tells of its phases).

    It is a fork, so that a kill costs no import of JAX: nothing in this process uses JAX before.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        process = os.fork()
    if process:
        os.close(writer)
        return process, reader
    code = 1
    try:
        from toys.finding import find_study
        from toys.run import Options, run
        from toys.xla_cache import use_compilation_cache

        use_compilation_cache()
        settings = Options(chunk=CHUNK, validate=0, backend="numba", device="cpu", resume=True, **options)
        run(find_study(model)[0], out, settings, phase=lambda name, total: os.write(writer, name[:1].encode()) and None)
        code = 0
    finally:
        os._exit(code)


def end(process: int, reader: int) -> int:
    """Wait for a process: its exit code, negative where a signal ended it."""
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def finish(model: str, out: Path, options: dict) -> float:
    """Let a run come to its end: seconds from its first toy on."""
    process, reader = begin(model, out, options)
    while os.read(reader, 1) not in (b"f", b""):
        pass
    started = time.monotonic()
    if end(process, reader):
        raise SystemExit(f"kill_test.py: the run of {out} failed")
    return time.monotonic() - started


def parts(out: Path) -> dict[str, tuple]:
    """The complete parts of a run, each with what would tell a change."""
    files = Path(f"{out}.parts").glob("toys_*-*.h5")
    return {
        file.name: (file.stat().st_ino, file.stat().st_mtime_ns, hashlib.sha256(file.read_bytes()).digest())
        for file in files
        if ".tmp." not in file.name
    }


def contents(path: Path) -> dict[str, bytes]:
    """All numbers of a file, and what it says of the run."""
    import numpy as np

    from toys import storage

    attributes = {name: value for name, value in storage.read_attributes(path).items() if name not in OF_A_RUN}
    arrays = {f"results/{k}": v for k, v in vars(storage.load(path)).items() if isinstance(v, np.ndarray)}
    arrays["checksums"] = storage.read_checksums(path)
    if attributes.get("save_toys", True):
        arrays |= {f"toys/{name}": np.asarray(array) for name, array in storage.load_toys(path).items()}
    told = {name: repr(value).encode() for name, value in attributes.items()}
    return told | {name: np.ascontiguousarray(array).tobytes() for name, array in arrays.items()}


def options_of(kind: str, n: int) -> dict:
    return {"n_toys": n, "save_toys": kind != "no toys", "extend": kind == "extended"}


def kill_once(
    model: str, out: Path, options: dict, seconds: float, moments: random.Random, kept: dict[str, tuple], n: int
) -> tuple[bool, list[str]]:
    """Continue a run and kill it: (whether it came to its end before, what is wrong now); `kept` gets the parts."""
    process, reader = begin(model, out, options)
    if moments.random() < WHILE_WRITING:
        while os.read(reader, 1) not in (b"f", b""):
            pass
        time.sleep(moments.uniform(0.0, 1.1 * seconds))
    else:
        time.sleep(moments.uniform(0.0, 2.0))
    os.kill(process, signal.SIGKILL)
    code = end(process, reader)
    if code not in (0, -signal.SIGKILL):
        return False, [f"the run ended with exit code {code}"]
    now = parts(out)
    complete = out.exists() and len(contents(out)["results/fval"]) == 8 * n
    wrong = [] if complete else [f"{name} was lost or changed" for name, told in kept.items() if now.get(name) != told]
    if options["extend"] and not out.exists():
        wrong.append("the finished file was lost")
    kept.clear()
    kept.update(now)
    return complete, wrong


def test(args: argparse.Namespace, directory: Path, say: Callable[[str], None]) -> int:
    moments = random.Random(args.seed)
    begun, whole, seconds = time.monotonic(), {}, {}
    finished = directory / "finished.h5"
    finish(args.model, finished, options_of("toys", args.n // 2))
    for kind in KINDS:
        out = directory / f"whole {kind}.h5"
        seconds[kind] = finish(args.model, out, options_of(kind, args.n) | {"extend": False})
        whole[kind] = contents(out)
    n_kills = n_runs = n_parts = 0
    wrong: list[str] = []
    started = time.monotonic()
    while n_kills < args.kills and time.monotonic() - started < args.seconds and not wrong:
        kind = KINDS[n_runs % len(KINDS)]
        out, options = directory / f"run {n_runs}.h5", options_of(kind, args.n)
        if kind == "extended":
            shutil.copy(finished, out)
        kept: dict[str, tuple] = {}
        complete = False
        while not complete and n_kills < args.kills and not wrong:
            before = len(kept)
            complete, wrong = kill_once(args.model, out, options, seconds[kind], moments, kept, args.n)
            n_kills += 1
            n_parts += max(0, len(kept) - before)
        if not wrong:
            finish(args.model, out, options)
            if contents(out) != whole[kind]:
                wrong.append("the resumed file differs from that of the uninterrupted run")
            left = [file.name for file in directory.iterdir() if file.name.startswith(f"{out.name}.")]
            wrong += [f"{name} was left" for name in left if not name.endswith(".lock")]
        wrong = [f"{out.name} ({kind}): {what}" for what in wrong]
        n_runs += 1
        out.unlink(missing_ok=True)
    say(
        f"{n_kills} kills of {n_runs} runs of {args.n} toys, {n_parts} parts that were complete: "
        + ("; ".join(wrong) if wrong else "none lost or changed, every resumed file equals the uninterrupted one")
        + f"; {time.monotonic() - begun:.0f} s"
    )
    return DOUBTFUL if wrong else DONE


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    # of the threads of numba, these survive a fork
    os.environ["NUMBA_THREADING_LAYER"] = "workqueue"
    import toys.run  # noqa: F401  # before the forks

    with tempfile.TemporaryDirectory(prefix="kill_test.") as directory:
        return test(args, Path(directory), print)


if __name__ == "__main__":
    sys.exit(main())
