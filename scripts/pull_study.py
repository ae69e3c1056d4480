#!/usr/bin/env python3
"""Bias, pulls and errors of a fit: read a file of run_toys.py, or throw the toys, and write a report with figures."""

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
    refuse_with_file,
    study_to_throw,
)

STARTED = time.perf_counter()
N_TOYS = 2000


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="pull_study.py",
        description=__doc__,
        epilog="Exit code 0: done; 1: done, but many fits failed; 2: a wrong argument or input.",
    )
    parser.add_argument("file", nargs="?", help="HDF5 file of run_toys.py; without it toys are thrown")
    add_study(parser, N_TOYS)
    parser.add_argument(
        "--minos", action="store_true", help="also pulls with MINOS errors, found from the toys of a file"
    )
    add_output(parser, "pull_study")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    refuse_with_file(parser, args, ("n", "seed", "truth", "start", "fixed"))
    return guarded(
        parser.prog, args, lambda: study(args, command_line(parser, argv)), lambda: f"{args.out} was not written"
    )


def study(args: argparse.Namespace, command: str) -> int:
    from toys.report import check_directory, write_report
    from toys.sample import first_curves, read, study_of, throw
    from toys.scan import point_of
    from toys.screen import Screen
    from toys.statistics import ONE_SIGMA
    from toys.storage import read_attributes
    from toys.study_report import made_by, pull_report

    check_directory(args.out, overwrite=args.overwrite)
    screen, levels = Screen(quiet=args.quiet), (ONE_SIGMA,)
    options = {"backend": args.backend, "device": args.device}
    wanted = {"levels": levels if args.minos else (), "advance": screen.advance, **options}
    seed, n = 1 if args.seed is None else args.seed, args.n or N_TOYS
    with screen:
        if args.file:
            model = study_of(args.file, args.model)
            attributes = read_attributes(args.file)
            seed = attributes.get("seed", "unknown")
            screen.phase("fit", attributes.get("n_toys", 0))
            if attributes.get("minos"):  # they are there
                wanted["levels"] = levels
            sample = read(model, args.file, **wanted)
            curves = first_curves(sample, path=args.file, **options)
            origin = f"were read from {args.file}, thrown there with the seed {seed}"
        else:
            model = study_to_throw(args, screen.say)
            screen.phase("fit", n)
            sample = throw(model, n, seed=seed, **wanted)
            curves = first_curves(sample, seed=seed, **options)
            origin = f"were thrown with the seed {seed}"
        point = point_of(sample, 0.0, levels)
        made = made_by(command, seed, sample.result, time.perf_counter() - STARTED)
        report = pull_report(sample, point, curves, origin=origin, made=made)
        files = write_report(args.out, report)
    for text in (*report.sentences, point.pulls, sample.result.summary(), *report.warnings, f"written: {files[0]}"):
        print(text)
    return DOUBTFUL if report.warnings else DONE


if __name__ == "__main__":
    leave(main())
