#!/usr/bin/env python3
"""Draw one toy with its fit and the pulls of all, from a file of run_toys.py."""

import argparse
import sys
from typing import NoReturn

WRONG_INPUT = 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_INPUT, f"{self.prog}: {message}; --help shows all arguments\n")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="plot_toys.py", description=__doc__)
    parser.add_argument("file", help="HDF5 file of run_toys.py")
    parser.add_argument("--model", help="the study, where it is a file my_study.py (default: as in the file)")
    parser.add_argument("--toy", type=int, default=0, help="toy that is drawn (default: 0)")
    parser.add_argument("--out", default="toys.png", help="figure: .png, .pdf or .svg (default: toys.png)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    import json

    try:
        from toys.command import InputError, find_study
        from toys.figures import FigureError, plot_run
        from toys.files import StorageError
        from toys.models import STUDIES
        from toys.storage import read_attributes
    except ImportError as error:
        return fail(f"{error}: install the project first, with pip install -e . in its folder")

    try:
        attributes = read_attributes(args.file)
        if not {"model", "truth"} <= attributes.keys():
            return fail(f"{args.file} does not name its model and truth: name a file that run_toys.py wrote")
        if args.model is None and attributes["model"] not in STUDIES:
            return fail(f"{args.file} is of the model {attributes['model']!r}: pass its file with --model")
        study, _ = find_study(args.model or attributes["model"])
        plot_run(study.at(json.loads(attributes["truth"])), args.file, args.out, args.toy)
    except (InputError, FigureError, StorageError) as error:
        return fail(str(error))
    except OSError as error:
        return fail(f"{args.out} cannot be written: {error.strerror or error}")
    except ValueError as error:
        return fail(str(error))
    print(f"written: {args.out}")
    return 0


def fail(sentence: str) -> int:
    print(f"plot_toys.py: {sentence}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
