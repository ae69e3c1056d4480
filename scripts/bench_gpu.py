#!/usr/bin/env python3
"""Compare an accelerator with the CPU, first the numbers and then the speed, beside what the machine could do at best.

Every part is guarded: one that fails is told, and the next goes on. On a CPU it is tried with
--device cpu --quick, which takes ten minutes and more.
"""

import argparse
import json
import os
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from arguments import DONE, DOUBTFUL, Parser, leave

# the whole command comes first: this process must not hold the memory of the device yet
PARTS = ("run", "fits", "batches", "goal", "trace", "toys", "sums", "rule", "cases", "lanes", "steps")
SECONDS = 100.0  # after which a part starts nothing new


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="bench_gpu.py", description=__doc__, epilog="Exit code 0: all agree; 1: not; 2: an argument.")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="what is compared (default: gpu)")
    parser.add_argument("--quick", action="store_true", help="a few toys, to try the script")
    told = f"of {', '.join(PARTS)} (default: all)"
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=told)
    told = f"after which a part starts nothing new (default: {SECONDS:g})"
    parser.add_argument("--seconds", type=float, default=SECONDS, help=told)
    parser.add_argument("--seed", type=int, default=1, help="of the toys (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write everything to this file, after every part")
    return parser


def main() -> int:
    args = arguments().parse_args()
    import jax
    import jaxlib
    from bench.accelerator import Bench
    from bench.accelerator_floors import BYTES, MULTIPLY_ADDS
    from bench.agreement import batches, fits, toys
    from bench.all_cores import cases, rule
    from bench.end_to_end import goal, run, trace
    from bench.tuning import lanes, steps, sums

    parts = {part.__name__: part for part in (run, fits, batches, goal, trace, toys, sums, rule, cases, lanes, steps)}
    bench, whole = Bench(args.device, args.quick, args.seed, args.seconds), True
    report: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["bench_gpu.py", *sys.argv[1:]]),
        "device": args.device,
        "cores": os.cpu_count(),
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "jaxlib": jaxlib.__version__},
        "rates": {"bytes": BYTES, "multiply_adds": MULTIPLY_ADDS},
    }
    for name in (name for name in PARTS if name in args.part):
        bench.end = time.monotonic() + bench.seconds
        try:
            if name != "run":
                report["device"] = bench.devices[0].device_kind
            report[name] = parts[name](bench)
        except Exception as error:  # whatever a part meets, the next one goes on
            report[name] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
        whole &= _agrees(report[name])
        print(f"{name}: {json.dumps(report[name], indent=1)}", flush=True)
        if args.json:
            Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    return DONE if whole else DOUBTFUL


def _agrees(found: Any) -> bool:
    """Whether a part did not fail and nothing in it disagrees."""
    if not isinstance(found, dict):
        return True
    return found.get("agree", True) and "error" not in found and all(map(_agrees, found.values()))


if __name__ == "__main__":
    leave(main())
