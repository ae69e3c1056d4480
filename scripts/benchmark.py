#!/usr/bin/env python3
"""Time batchfit beside what one would otherwise take: same toys, one run, medians of turns, compile time apart.

Every case throws its toys and starts at the truth. All are asked for an EDM of 1e-6 errordef where they have such a
setting, batchfit stops at 1e-13 and gives the covariance; afterwards the exact gradient and Hessian say where each fit
ended. On one core everybody is held on one core. A peer that is not installed is said to be missing.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import (
    DONE,
    INTERRUPTED,
    WRONG_INPUT,
    Parser,
    command_line,
    leave,
    natural,
    number,
    positive,
    wrong_import,
)

CASES = (
    "peak-480", "peak-2000", "peak-15500", "peak-200000", "histogram", "counting", "templates-50", "templates-200",
    "workspace", "convolution", "line",
)  # fmt: skip
PARTS = ("minos", "evaluation", "generation", "formula", "growth")
MAIN = "peak-15500"
MINOS_TOYS = 10  # that iminuit takes
UNIFORMS = 2**20


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="benchmark.py", description=__doc__, epilog="Exit code 0: done; 2: a wrong argument; 130: ended by Ctrl-C."
    )
    parser.add_argument(
        "--case", nargs="+", choices=(*CASES, *PARTS), default=[*CASES, *PARTS], metavar="NAME", help="default: all"
    )
    parser.add_argument("--list", action="store_true", help="say what the cases are, and end")
    parser.add_argument("--repeat", type=positive, default=3, metavar="R", help="turns of each (default: 3)")
    parser.add_argument("--seconds", type=length, default=0.3, metavar="S", help="length of a turn (default: 0.3)")
    parser.add_argument("--toys", type=positive, metavar="N", help="toys of a case (default: as many as suit it)")
    parser.add_argument(
        "--cores", choices=("all", "1"), default="all", help="1 leaves out all-core runs (default: all)"
    )
    parser.add_argument("--seed", type=natural, default=1, help="of the toys (default: 1)")
    parser.add_argument("--no-jax", action="store_true", help="leave out the JAX driver on the CPU")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured to this file")
    parser.add_argument("--markdown", metavar="FILE", help="write the table of the fits to this file")
    return parser


def length(text: str) -> float:
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"must be positive, got {text}")
    return value


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """Everything that is printed and written, as a dict that JSON takes."""
    import jax
    import numba
    from bench import cases, contest, floors, formula, growth, machine, minos, race, rates, speed

    cores = 1 if args.cores == "1" else numba.config.NUMBA_NUM_THREADS
    conditions = race.Conditions(args.repeat, args.seconds, cores, not args.no_jax)
    before = machine.load_average()
    report: dict[str, Any] = {"cases": []}
    chosen = [name for name in CASES if name in args.case]
    try:
        if chosen:
            say("rates of the machine")
            numba.set_num_threads(1)
            with contest.pinned(1):
                of_machine = rates.measure_rates()
            report["rates"] = asdict(of_machine)
        for name in chosen:
            say(f"{name}: throwing toys")
            case = cases.make(name, args.seed, args.toys)
            report["cases"].append(race.race(case, conditions, say))
            evaluations = report["cases"][-1]["fits"][0]["evaluations"]  # batchfit's own
            report["cases"][-1]["floor"] = asdict(floors.floor_of(case, of_machine, evaluations))
        if {"minos", "evaluation", "generation"} & set(args.case):
            case = cases.make(MAIN, args.seed, args.toys)
        if "minos" in args.case:
            say("MINOS")
            report["minos"] = minos.time_minos(case, MINOS_TOYS, args.repeat)
        if "evaluation" in args.case:
            say("one evaluation")
            report["evaluation"] = speed.time_evaluations(case, args.repeat)
        if "generation" in args.case:
            say("throwing toys")
            events = speed.time_generation(case, args.repeat, cores, args.seed)
            report["generation"] = {"events": events, "ns_per_uniform": speed.time_uniforms(UNIFORMS, args.repeat)}
        numba.set_num_threads(cores)
        if "formula" in args.case:
            say("quadratic formula")
            report["formula"] = formula.time_formula(formula.FORMULA_ROWS, args.repeat, cores)
        if "growth" in args.case:
            report["growth"] = growth.grow(say)
    finally:
        numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": args.command_line,
        "machine": {
            "cpu": machine.cpu_name(),
            "cores": numba.config.NUMBA_NUM_THREADS,
            "system": f"{platform.system()} {platform.machine()}",
            "jax_devices": sorted({f"{device.platform}: {device.device_kind}" for device in jax.devices()}),
            "load_before_and_after": None if before is None else [before, machine.load_average()],
            "svml": bool(numba.config.USING_SVML),
        },
        "versions": machine.versions(),
        "sizes": {"repeat": args.repeat, "seconds": args.seconds, "toys": args.toys, "seed": args.seed},
        **report,
    }


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    args.command_line = command_line(parser, argv)
    if args.seed >= 2**64:
        return fail(f"--seed must be below 2^64, got {args.seed}")
    for option, file in (("--json", args.json), ("--markdown", args.markdown)):
        if file and not Path(file).absolute().parent.is_dir():
            return fail(f"{option}: there is no folder {Path(file).absolute().parent}")
    # linear algebra in one thread, before it is imported: the fits take all cores, and it must not compete with them
    for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    if wrong := wrong_import():
        return fail(wrong)
    if args.list:
        from bench import cases

        print("\n".join(f"{name:14}  {recipe.title}" for name, recipe in cases.CASES.items()))
        print("\n".join(PARTS))
        return DONE
    from bench.tables import markdown, show
    from rich.console import Console

    try:
        with Console(stderr=True).status("starting") as status:
            report = measure(args, status.update)
    except KeyboardInterrupt:
        print("\nstopped: nothing was written", file=sys.stderr)
        return INTERRUPTED
    show(report)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    if args.markdown:
        Path(args.markdown).write_text(markdown(report))
    return DONE


def fail(sentence: str) -> int:
    print(f"benchmark.py: {sentence}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    leave(main())
