#!/usr/bin/env python3
"""Throw toys from a model, fit them all, validate some with MIGRAD, store everything, print what came out."""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import DONE, DOUBTFUL, INTERRUPTED, WRONG_INPUT, Parser, assignment, natural, positive

STARTED = time.perf_counter()
# a run with more failed fits than this, or with any toy that MIGRAD contradicts, ends with exit code 1
TOLERATED_FAILURES = 0.01


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="run_toys.py",
        description=__doc__,
        epilog="Exit code 0: done; 1: done, but MIGRAD disagrees or many fits failed; 2: a wrong argument or input.",
    )
    parser.add_argument("--n", type=positive, default=1000, metavar="N", help="number of toys (default: 1000)")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu", "tpu"), default="auto", help="default: auto")
    parser.add_argument("--backend", choices=("auto", "numba", "jax"), default="auto", help="default: auto")
    parser.add_argument("--model", default="peak", help="a ready-made model, or a file my_study.py (default: peak)")
    parser.add_argument("--list", action="store_true", help="list the ready-made models")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="observed data (csv, npy, h5, parquet, root), fitted first: the toys are thrown from its fit; a column of "
        "events or counts, or the columns x, y, yerror[, xerror] of points; for a sum of costs once for each, in order",
    )
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="column, dataset or tree:branch of the data, where there are several; once for each file, or observable",
    )
    parser.add_argument(
        "--truth",
        nargs="+",
        action="extend",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help="true values of the toys",
    )
    parser.add_argument(
        "--start",
        nargs="+",
        action="extend",
        type=assignment,
        default=[],
        metavar="NAME=VALUE",
        help="start values of the fits (default: the truth)",
    )
    parser.add_argument("--seed", type=natural, default=1, help="toy k depends on (seed, k) alone (default: 1)")
    parser.add_argument("--out", default="toys.h5", help="output file (default: toys.h5)")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped")
    parser.add_argument(
        "--validate", type=natural, default=100, metavar="N", help="toys that MIGRAD refits (default: 100)"
    )
    parser.add_argument("--minos", action="store_true", help="find the MINOS intervals of every toy, too")
    parser.add_argument("--optimizer", choices=("newton", "lbfgs", "adam"), default="newton", help="default: newton")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        return study_toys(args, " ".join([os.path.basename(sys.argv[0]), *(sys.argv[1:] if argv is None else argv)]))
    except KeyboardInterrupt:
        print(
            f"\nstopped: {args.out} is not complete; run the same command with --resume"
            f"{' instead of --overwrite' if args.overwrite else ''} to continue",
            file=sys.stderr,
        )
        return INTERRUPTED


def study_toys(args: argparse.Namespace, command_line: str) -> int:
    try:
        import toys
    except ImportError as error:
        install = ": install the project first, with pip install -e . in its folder"
        return fail(f"{error}{install if isinstance(error, ModuleNotFoundError) else ''}")
    if getattr(toys, "BATCHFIT", None) is None:
        place = next(iter(getattr(toys, "__path__", [toys.__file__])))
        return fail(f"another package named 'toys' at {place} hides batchfit's: use another environment")

    from toys.command import InputError, Screen, explain, list_studies, prepare, summary, use_compilation_cache
    from toys.files import StorageError
    from toys.run import Options, run

    if args.list:
        print(list_studies())
        return DONE
    use_compilation_cache()
    screen = Screen(quiet=args.quiet)
    try:
        study, source = prepare(
            args.model,
            data=args.data,
            columns=args.column,
            truth=dict(args.truth),
            start=dict(args.start),
            device=args.device,
            backend=args.backend,
            say=screen.say,
        )
        options = Options(
            n_toys=args.n,
            seed=args.seed,
            device=args.device,
            backend=args.backend,
            optimizer=args.optimizer,
            validate=args.validate,
            minos=args.minos,
            overwrite=args.overwrite,
            resume=args.resume,
            source=source,
            command_line=command_line,
        )
        start_seconds = time.perf_counter() - STARTED
        with screen:
            report = run(study, args.out, options, phase=screen.phase, advance=screen.advance)
    except (InputError, StorageError) as error:
        return fail(str(error))
    except Exception as error:
        sentence = explain(error, args.model)
        if sentence is None and not isinstance(error, ValueError | TypeError | NotImplementedError | OSError):
            raise
        return fail(sentence or str(error))
    report.times = {"start": start_seconds, **report.times, "total": time.perf_counter() - STARTED}
    text, doubtful = summary(study, report, args.out, TOLERATED_FAILURES)
    print(text)
    return DOUBTFUL if doubtful else DONE


def fail(sentence: str) -> int:
    print(f"run_toys.py: {sentence}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
