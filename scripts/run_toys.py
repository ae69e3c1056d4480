#!/usr/bin/env python3
"""Throw toys from a model, fit them all, validate some with MIGRAD, store everything, print what came out."""

import argparse
import contextlib
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import (
    DONE,
    DOUBTFUL,
    Parser,
    add_values,
    command_line,
    guarded,
    leave,
    natural,
    positive,
)

STARTED = time.perf_counter()


def shard(text: str) -> tuple[int, int]:
    i, slash, n = text.partition("/")
    if slash and i.isdecimal() and n.isdecimal() and 1 <= int(i) <= int(n):
        return int(i), int(n)
    raise argparse.ArgumentTypeError(f"must be I/N with 1 <= I <= N, got {text!r}")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="run_toys.py",
        description=__doc__,
        epilog="Exit code 0: done; 1: done, but MIGRAD disagrees or many fits failed; 2: a wrong argument or input, or "
        "a disk that cannot be written; 130, 143: ended by Ctrl-C, SIGTERM. --resume continues whatever ended a run.",
    )
    parser.add_argument("--n", type=positive, default=1000, metavar="N", help="number of toys (default: 1000)")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="default: auto")
    parser.add_argument("--backend", choices=("auto", "numba", "jax"), default="auto", help="default: auto")
    parser.add_argument(
        "--model",
        default="peak",
        help="a ready-made model, a file my_study.py or a HistFactory workspace.json[:measurement] (default: peak)",
    )
    parser.add_argument("--list", action="store_true", help="list the ready-made models")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="observed data (csv, npy, h5, parquet, root), fitted first: the toys are thrown from its fit; a column of "
        "events or counts, a TH1 of counts, or the columns x, y, yerror[, xerror] of points; for a sum of costs once "
        "for each, in order",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="column, dataset, TH1 or tree:branch of the data, where there are several; once for each file, or "
        "observable",
    )
    add_values(parser)
    parser.add_argument("--seed", type=natural, default=1, help="toy k depends on (seed, k) alone (default: 1)")
    parser.add_argument("--out", default="toys.h5", help="output file (default: toys.h5)")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument("--extend", action="store_true", help="add toys to a finished run, until it has N of them")
    parser.add_argument(
        "--no-save-toys",
        action="store_true",
        help="keep checksums of the toys alone: toys.regenerate throws any of them again",
    )
    parser.add_argument(
        "--chunk", type=positive, metavar="N", help="toys in memory at once, and in a part (default: 32 MiB of them)"
    )
    parser.add_argument(
        "--shard",
        type=shard,
        metavar="I/N",
        help="do the I-th of N equal shares alone, in a file toys.shard-I-of-N.h5; merge_toys.py joins them",
    )
    parser.add_argument(
        "--cluster",
        metavar="WHERE",
        help="let a Dask cluster do it: local:4 for 4 processes here, or tcp://host:8786 of a scheduler",
    )
    parser.add_argument(
        "--validate",
        type=natural,
        metavar="N",
        help="toys that MIGRAD refits (default: 100, fewer for more than 20 parameters)",
    )
    parser.add_argument("--minos", action="store_true", help="find the MINOS intervals of every toy, too")
    parser.add_argument("--optimizer", choices=("newton", "lbfgs", "adam"), default="newton", help="default: newton")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    if args.shard:
        stem, suffix = os.path.splitext(args.out)
        args.out = "{}.shard-{}-of-{}{}".format(stem, *args.shard, suffix)
    if args.cluster:  # this process must not hold the memory of its workers' GPUs
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    before = seen(args.out)

    def kept() -> str:
        file, parts = seen(args.out)
        if file != before[0] and parts is None:
            return f"{args.out} is complete"
        if parts != before[1] and parts is not None and not args.extend:
            how = " instead of --overwrite" if args.overwrite else ""
            return f"{args.out} is not complete; run the same command with --resume{how} to continue"
        return f"{args.out} {'is as it was' if file else 'is not there yet'}; run the same command again"

    return guarded(parser.prog, args, lambda: study_toys(args, command_line(parser, argv)), kept)


def seen(out: str) -> tuple[tuple[int, int] | None, list[str] | None]:
    """What a run would change: the file, and the names of its parts; None for what is not there."""
    file = parts = None
    with contextlib.suppress(OSError):
        found = os.stat(out)
        file = found.st_ino, found.st_mtime_ns
    with contextlib.suppress(OSError):
        parts = sorted(os.listdir(f"{out}.parts"))
    return file, parts


def study_toys(args: argparse.Namespace, command_line: str) -> int:
    from toys.files import refuse_inputs
    from toys.final import summary
    from toys.finding import list_studies, prepare
    from toys.options import validated
    from toys.run import Options, run
    from toys.screen import Screen

    if args.list:
        print(list_studies())
        return DONE
    refuse_inputs(args.out, [args.model, *args.data])
    screen = Screen(quiet=args.quiet)
    study, source, observed = prepare(
        args.model,
        data=args.data,
        columns=args.column,
        truth=dict(args.truth),
        start=dict(args.start),
        fixed=dict(args.fixed),
        device="auto" if args.cluster else args.device,  # the device of the workers need not be here
        backend=args.backend,
        say=screen.say,
        minos=args.minos,
    )
    options = Options(
        n_toys=args.n,
        seed=args.seed,
        device=args.device,
        backend=args.backend,
        optimizer=args.optimizer,
        validate=validated(len(study.cost.names) - len(study.fixed)) if args.validate is None else args.validate,
        minos=args.minos,
        overwrite=args.overwrite,
        resume=args.resume,
        extend=args.extend,
        save_toys=not args.no_save_toys,
        chunk=args.chunk,
        shard=args.shard,
        source=source,
        command_line=command_line,
    )
    start_seconds = time.perf_counter() - STARTED
    with contextlib.ExitStack() as stack:
        workers = None
        if args.cluster:
            from toys.cluster import connect

            workers = stack.enter_context(connect(args.cluster, args.model, source, study, device=args.device))
        stack.enter_context(screen)
        told = {"phase": screen.phase, "advance": screen.advance}
        report = run(study, args.out, options, **told, workers=workers, observed=observed)
    report.times = {"start": start_seconds, **report.times, "total": time.perf_counter() - STARTED}
    text, doubtful = summary(study, report, args.out)
    print(text)
    return DOUBTFUL if doubtful else DONE


if __name__ == "__main__":
    leave(main())
