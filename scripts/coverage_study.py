#!/usr/bin/env python3
"""Coverage of Hesse and MINOS intervals, at one truth or as a function of a true parameter, with a report."""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import (
    DONE,
    DOUBTFUL,
    Parser,
    add_output,
    add_study,
    command_line,
    guarded,
    leave,
    level,
    refuse_with_file,
    scan,
    study_to_throw,
)

STARTED = time.perf_counter()
N_TOYS = 1000
LEVELS = [0.6827, 0.90, 0.9545]


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="coverage_study.py",
        description=__doc__,
        epilog="Exit code 0: done; 1: done, but many fits failed; 2: a wrong argument or input.",
    )
    parser.add_argument("file", nargs="?", help="HDF5 file of run_toys.py; without it toys are thrown")
    add_study(parser, N_TOYS)
    parser.add_argument(
        "--scan",
        type=scan,
        metavar="NAME=START:STOP:STEP",
        help="throw --n toys at each of these true values, both ends included; or NAME=A,B,C",
    )
    parser.add_argument(
        "--levels", nargs="+", type=level, default=LEVELS, metavar="CL", help="default: 0.6827 0.90 0.9545"
    )
    parser.add_argument(
        "--minos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="coverage of MINOS intervals (default: yes)",
    )
    parser.add_argument(
        "--interval",
        choices=("wilson", "clopper-pearson"),
        default="wilson",
        help="binomial interval of the coverage (default: wilson)",
    )
    add_output(parser, "coverage_study")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    refuse_with_file(parser, args, ("n", "seed", "truth", "start", "fixed", "scan"))
    if args.scan and args.scan[0] in dict(args.start):
        parser.error(f"fits of a scan start at each true value: leave out --start {args.scan[0]}")
    done: list = []

    def kept() -> str:
        if not done:
            return f"{args.out} was not written"
        told = f"{len(done)} of {len(args.scan[1])} true values"
        return f"the numbers of {told} are in {os.path.join(args.out, 'tables.json')}; there is no report"

    return guarded(parser.prog, args, lambda: study(args, command_line(parser, argv), done), kept)


def study(args: argparse.Namespace, command: str, done: list) -> int:
    from toys.report import check_directory, write_report, write_tables
    from toys.sample import first_curves, read, study_of, throw
    from toys.scan import point_of
    from toys.scan import scan as scan_truth
    from toys.screen import Screen
    from toys.storage import read_attributes
    from toys.study_report import coverage_numbers, coverage_report, made_by

    check_directory(args.out, overwrite=args.overwrite)
    screen, levels = Screen(quiet=args.quiet), tuple(args.levels)
    options = {"backend": args.backend, "device": args.device}
    wanted = {"levels": levels if args.minos else (), "advance": screen.advance, **options}
    seed, n = 1 if args.seed is None else args.seed, args.n or N_TOYS
    sample, curves, scanned = None, [], ""
    with screen:
        if args.file:
            model = study_of(args.file, args.model)
            attributes = read_attributes(args.file)
            seed = attributes.get("seed", "unknown")
            origin = f"were read from {args.file}, thrown there with the seed {seed}"
            screen.phase("fit", attributes.get("n_toys", 0))
            sample = read(model, args.file, **wanted)
            curves = first_curves(sample, path=args.file, **options)
        else:
            model = study_to_throw(args, screen.say)
            origin = f"were thrown with the seed {seed}"
        if args.scan:
            scanned, values = args.scan
            screen.phase("fit", n * len(values))
            made = made_by(command, seed, None, 0.0)

            def finished(point) -> None:
                done.append(point)
                write_tables(args.out, coverage_numbers(model, done, scanned, made))

            points = scan_truth(
                model,
                scanned,
                values,
                n,
                minos=args.minos,
                interval=args.interval,
                seed=seed,
                finished=finished,
                **{**wanted, "levels": levels},
            )
        else:
            if sample is None:
                screen.phase("fit", n)
                sample = throw(model, n, seed=seed, **wanted)
                curves = first_curves(sample, seed=seed, **options)
            points = [point_of(sample, 0.0, levels, args.interval)]
        made = made_by(command, seed, sample and sample.result, time.perf_counter() - STARTED)
        report = coverage_report(model, points, scanned, sample=sample, curves=curves, origin=origin, made=made)
        files = write_report(args.out, report)
    # of a scan only the coverage of the scanned parameter, if the fit has it free: the report has all
    free = set(model.cost.names) - set(model.fixed)
    others = free - {scanned} if scanned in free else set()
    tables = [table for section in report.sections if section.title not in others for table in section.tables]
    for text in (*report.sentences, *(table.text() for table in tables), *report.warnings, f"written: {files[0]}"):
        print(text)
    return DOUBTFUL if report.warnings else DONE


if __name__ == "__main__":
    leave(main())
