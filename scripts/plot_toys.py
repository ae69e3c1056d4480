#!/usr/bin/env python3
"""Draw one toy with its fit and the pulls of all, from a file of run_toys.py."""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import WRONG_INPUT, Parser, one_line


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="plot_toys.py", description=__doc__)
    parser.add_argument("file", help="HDF5 file of run_toys.py")
    parser.add_argument("--model", help="the study, where it is a file my_study.py (default: as in the file)")
    parser.add_argument("--toy", type=int, default=0, help="toy that is drawn (default: 0)")
    parser.add_argument("--out", default="toys.png", help="figure: .png, .pdf or .svg (default: toys.png)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    try:
        from toys.command import InputError
        from toys.figures import FigureError, plot_run
        from toys.files import StorageError
        from toys.sample import study_of
    except ImportError as error:
        return fail(f"{error}: install the project first, with pip install -e . in its folder")

    try:
        plot_run(study_of(args.file, args.model), args.file, args.out, args.toy)
    except (InputError, FigureError, StorageError) as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{args.out} cannot be written: {error.strerror or error}")
    except ValueError as error:
        return fail(str(error))
    print(f"written: {args.out}")
    return 0


def fail(sentence: str) -> int:
    print(f"plot_toys.py: {one_line(sentence)}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
