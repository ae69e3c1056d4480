#!/usr/bin/env python3
"""Draw one toy with its fit and the pulls of all, from a file of run_toys.py."""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import DONE, Parser, guarded, leave


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="plot_toys.py", description=__doc__)
    parser.add_argument("file", help="HDF5 file of run_toys.py")
    parser.add_argument(
        "--model",
        help="the study, where it is a file my_study.py or workspace.json[:measurement] (default: as in the file)",
    )
    parser.add_argument("--toy", type=int, help="number of the toy that is drawn (default: the first of the file)")
    parser.add_argument("--out", default="toys.png", help="figure: .png, .pdf or .svg (default: toys.png)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    return guarded("plot_toys.py", args, lambda: plot(args), lambda: f"{args.out} was not written")


def plot(args: argparse.Namespace) -> int:
    from toys.run_chart import plot_run
    from toys.sample import study_of

    plot_run(study_of(args.file, args.model), args.file, args.out, args.toy)
    print(f"written: {args.out}")
    return DONE


if __name__ == "__main__":
    leave(main())
