#!/usr/bin/env python3
"""Draw the fitted spectrum of one toy and the pulls of all, from a file of run_toys.py."""

import argparse
import sys

WRONG_INPUT = 2


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="plot_toys.py", description=__doc__)
    parser.add_argument("file", help="HDF5 file of run_toys.py")
    parser.add_argument("--model", help="the study, where it is a file my_study.py (default: as in the file)")
    parser.add_argument("--toy", type=int, default=0, help="toy whose spectrum is drawn (default: 0)")
    parser.add_argument("--out", default="toys.png", help="figure: .png, .pdf or .svg (default: toys.png)")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    import json

    from toys.command import InputError, find_study
    from toys.figures import FigureError, plot_run
    from toys.storage import StorageError, read_attributes

    try:
        attributes = read_attributes(args.file)
        study, _ = find_study(args.model or attributes["model"])
        plot_run(study.at(json.loads(attributes["truth"])), args.file, args.out, args.toy)
    except (InputError, FigureError, StorageError, ValueError, OSError) as error:
        print(f"plot_toys.py: {error}", file=sys.stderr)
        return WRONG_INPUT
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
