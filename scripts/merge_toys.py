#!/usr/bin/env python3
"""Join the shards of a run (run_toys.py --shard i/n) into the one file that a single process gives."""

import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # wherever this file is loaded from

from arguments import DONE, DOUBTFUL, Parser, guarded


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="merge_toys.py",
        description=__doc__,
        epilog="Exit code 0: done; 1: done, but MIGRAD disagrees or more than 1 % of the fits failed; 2: a file is "
        "missing, damaged or of another run, or toys are missing or there twice.",
    )
    parser.add_argument("out", metavar="OUT", help="output file")
    parser.add_argument("shards", nargs="+", metavar="SHARD", help="files of disjoint ranges of one run, in any order")
    parser.add_argument("--overwrite", action="store_true", help="replace an output that is there")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    args.model = None  # no code of the user is run
    return guarded("merge_toys.py", args, lambda: merge_shards(args), lambda: f"{args.out} was not written")


def merge_shards(args: argparse.Namespace) -> int:
    from toys.shards import merge
    from toys.statistics import TOLERATED_FAILURES

    merged = merge(args.out, args.shards, overwrite=args.overwrite)
    print(f"written: {args.out}, {merged.n_toys} toys of {len(args.shards)} file{'s' if len(args.shards) > 1 else ''}")
    if merged.n_validated:
        print(f"MIGRAD on {merged.n_validated} toys: {merged.n_disagree} disagree")
    if merged.n_failed:
        print(f"{merged.n_failed} of {merged.n_toys} fits failed")
    doubtful = merged.n_disagree or merged.n_failed > TOLERATED_FAILURES * merged.n_toys
    return DOUBTFUL if doubtful else DONE


if __name__ == "__main__":
    sys.exit(main())
