#!/usr/bin/env python3
"""Tests of hypotheses by toys: p-values and CLs, upper limits, Feldman-Cousins intervals, goodness of fit."""

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
    number,
    refuse_with_file,
    study_to_throw,
)

STARTED = time.perf_counter()
N_TOYS = 2000


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="hypotest.py",
        description=__doc__,
        epilog="Exit code 0: done; 1: done, but many fits failed; 2: a wrong argument or input.",
    )
    parser.add_argument(
        "file",
        nargs="?",
        help="HDF5 file of run_toys.py, whose toys are the first ones at its truth; without it all are thrown",
    )
    add_study(parser, N_TOYS)
    parser.add_argument("--poi", metavar="NAME", help="the parameter of interest (default: that of the model)")
    parser.add_argument("--value", type=number, nargs="+", metavar="X", help="test these values (q0: always 0)")
    # None, so that what is given can be told
    parser.add_argument("--test-stat", choices=("qtilde", "q", "q0", "t", "ttilde"), help="default: qtilde")
    parser.add_argument("--asymptotics", action="store_true", help="asymptotic formulae, no toys")
    parser.add_argument("--upper-limit", action="store_true", help="find the upper limit, with CLs")
    parser.add_argument("--feldman-cousins", action="store_true", help="find the Feldman-Cousins interval")
    parser.add_argument(
        "--goodness-of-fit",
        nargs="?",
        const="saturated",
        choices=("saturated", "ks", "ad"),
        metavar="STATISTIC",
        help="does the fit describe the data? saturated (default), ks or ad",
    )
    parser.add_argument("--cl", type=level, help="confidence level of limit and interval (default: 0.95)")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="FILE",
        help="observed data, as for run_toys.py (default: those of the model, else Asimov data of its truth)",
    )
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME", help="column of the data, as for run_toys.py"
    )
    parser.add_argument(
        "--auxiliary",
        choices=("redrawn", "fixed"),
        default="redrawn",
        help="measured values of constraints: drawn for every toy, or as observed (default: redrawn)",
    )
    parser.add_argument(
        "--nuisance",
        choices=("profiled", "truth"),
        help="nuisance parameters of the toys: fitted to the data, or the truth (default: profiled; of a file: truth)",
    )
    add_output(parser, "hypotest")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    if args.test_stat == "q0" and args.value not in (None, [0.0]):
        parser.error("q0 tests the value 0: leave out --value")
    if args.upper_limit and args.test_stat not in (None, "qtilde", "q"):
        parser.error(f"--upper-limit takes --test-stat qtilde or q, got {args.test_stat}")
    if args.asymptotics and (args.feldman_cousins or args.goodness_of_fit):
        parser.error("--asymptotics throws no toys: leave it out for --feldman-cousins and --goodness-of-fit")
    if args.test_stat == "q0":
        args.value = [0.0]
    if not n_about_poi(args) and not args.goodness_of_fit:
        parser.error("nothing to do: pass --value, --upper-limit, --feldman-cousins or --goodness-of-fit")
    if args.test_stat and args.value is None and not args.upper_limit:
        parser.error("--test-stat goes with --value and --upper-limit")
    if args.cl and not (args.upper_limit or args.feldman_cousins):
        parser.error("--cl goes with --upper-limit and --feldman-cousins")
    if args.asymptotics and (args.n or args.seed is not None):
        parser.error("--asymptotics throws no toys: leave out --n and --seed")
    refuse_with_file(parser, args, ("truth", "start", "fixed"))
    if args.file and (args.nuisance == "profiled" or args.auxiliary == "fixed"):
        parser.error("the toys of a file have the nuisance parameters of its truth, and redrawn measured values")
    if args.column and not args.data:
        parser.error("--column goes with --data")
    return guarded(
        parser.prog, args, lambda: test(args, command_line(parser, argv)), lambda: f"{args.out} was not written"
    )


def n_about_poi(args: argparse.Namespace) -> int:
    """How many of the findings are about the parameter of interest."""
    return len(args.value or []) + args.upper_limit + args.feldman_cousins


def test(args: argparse.Namespace, command: str) -> int:
    import dataclasses

    from toys.feldman_cousins import feldman_cousins
    from toys.goodness_of_fit import goodness_of_fit
    from toys.hypotest import hypotest
    from toys.hypothesis_report import hypothesis_report
    from toys.observed import InputError, read_data
    from toys.pool import ToyPool
    from toys.report import check_directory, write_report
    from toys.sample import study_of
    from toys.screen import Screen
    from toys.storage import read_attributes
    from toys.study_report import made_by
    from toys.upper_limit import upper_limit

    check_directory(args.out, overwrite=args.overwrite)
    screen = Screen(quiet=args.quiet)
    options = {"backend": args.backend, "device": args.device}
    seed, n = 1 if args.seed is None else args.seed, args.n or N_TOYS
    test_stat, cl = args.test_stat or "qtilde", args.cl or 0.95
    if args.file:
        study, held = study_of(args.file, args.model), read_attributes(args.file, "first", "stop")
        n = args.n or held["stop"] - held["first"]
    else:
        study = study_to_throw(args, screen.say)
    poi = args.poi or study.poi
    if n_about_poi(args) and not poi:
        raise InputError("name the parameter of interest with --poi")
    if n_about_poi(args) and poi in dict(args.fixed):
        raise InputError(f"the parameter of interest {poi!r} is held by --fixed: it must be free to be tested")
    observed = "that of the model" if study.data is not None else "the Asimov data of the model"
    if args.data:
        study = dataclasses.replace(study, data=read_data(study.cost, args.data, args.column, study.observable))
        observed = f"the data of {' and '.join(args.data)}"
    if args.goodness_of_fit and study.data is None:
        raise InputError(f"--goodness-of-fit needs observed data, which {study.name} does not have: pass --data")
    calctype = "asymptotics" if args.asymptotics else "toybased"
    thrown = {"seed": seed, "auxiliary": args.auxiliary}
    findings: list = []
    refused = []  # values; the others are tested all the same
    with screen:
        screen.phase("fit", n_about_poi(args) + bool(args.goodness_of_fit))
        pool = None
        if n_about_poi(args):
            nuisance = args.nuisance or ("truth" if args.file else "profiled")
            pool = ToyPool(study, poi, **thrown, nuisance=nuisance, stored=args.file, **options)
        for value in args.value or []:
            kind = {"poi": poi, "test_stat": test_stat, "calctype": calctype}
            try:
                findings.append(hypotest(study, value, **kind, n_toys=n, pool=pool))
            except ValueError as error:
                refused.append(f"{poi} = {value:g} was not tested: {error}")
                if len(refused) == len(args.value):
                    raise
            screen.advance(1)
        if args.upper_limit:
            kind = {"poi": poi, "test_stat": test_stat, "calctype": calctype}
            findings.append(upper_limit(study, **kind, cl=cl, n_toys=n, pool=pool))
            screen.advance(1)
        if args.feldman_cousins:
            findings.append(feldman_cousins(study, poi=poi, cl=cl, n_toys=n, pool=pool))
            screen.advance(1)
        if args.goodness_of_fit:
            findings.append(goodness_of_fit(study, statistic=args.goodness_of_fit, n_toys=n, **thrown, **options))
            screen.advance(1)
        made = made_by(command, seed, None, time.perf_counter() - STARTED)
        report = hypothesis_report(study, findings, observed, made)
        report = dataclasses.replace(report, warnings=[*report.warnings, *refused])
        files = write_report(args.out, report)
    tables = [table for section in report.sections for table in section.tables]
    told = [*report.sentences, *dict.fromkeys(finding.sentence for finding in findings)]
    for text in (*told, *(table.text() for table in tables), *report.warnings, f"written: {files[0]}"):
        print(text)
    return DOUBTFUL if report.warnings else DONE


if __name__ == "__main__":
    leave(main())
