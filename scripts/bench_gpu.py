#!/usr/bin/env python3
"""Compare an accelerator with the CPU, first the numbers and then the speed, beside what the machine could do at best.

Every part is guarded: one that fails is told, and the next goes on. On a CPU it is tried with --device cpu --quick.
"""

import argparse
import functools
import gzip
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from arguments import DONE, DOUBTFUL, WRONG_INPUT, Parser, leave

# the whole command comes first: this process must not hold the memory of the device yet
PARTS = ("run", "fits", "batches", "goal", "trace", "toys", "sums", "rule", "cases", "lanes", "steps")
CASES = (
    "peak-480", "peak-2000", "peak-15500", "peak-200000", "histogram", "counting", "templates-50", "templates-200",
    "workspace", "line",
)  # fmt: skip
MAIN = "peak-15500"
TOYS = {"peak-200000": 1000, "templates-200": 2000}  # of a case, else N_TOYS
N_TOYS, N_QUICK = 10_000, 24
SECONDS = 100.0  # after which a part starts nothing new
MOST_KERNELS = 40  # of a trace that are listed
BYTES, MULTIPLY_ADDS = 4.3e12, 17e12  # each second, of an H200 in float64
# Multiply-adds of an operation of `bench.floors`, by the polynomials of libdevice; 1 for all others.
COSTS = {"exp": 20, "expm1": 25, "log": 25, "log1p": 30, "divide": 8, "sqrt": 10, "pow": 60, "erf": 40, "erfc": 50}


class Bench:
    """What all parts need: sizes, the devices, and how to time."""

    def __init__(self, device: str, quick: bool, seed: int, seconds: float) -> None:
        import jax
        from bench import cases

        self.jax, self.cases = jax, cases
        self.device, self.quick, self.seed = device, quick, seed
        self.turns = 2 if quick else 7
        self.seconds, self.end = seconds, 0.0

    @functools.cached_property
    def devices(self) -> list:
        """One device, which this starts; where there is none, this ends the script."""
        from engine.devices import find_devices

        try:
            return find_devices(self.device)[:1]
        except ValueError as error:
            print(f"bench_gpu.py: {error}", file=sys.stderr)
            raise SystemExit(WRONG_INPUT) from None

    def n_toys(self, name: str) -> int:
        return N_QUICK if self.quick else TOYS.get(name, N_TOYS)

    def sizes(self, sizes: list[int]) -> Iterator[int]:
        """As many as fit into the time of a part."""
        for size in sizes[:2] if self.quick else sizes:
            if time.monotonic() < self.end:
                yield size

    def timed(self, what: Callable[[], Any]) -> dict[str, float]:
        """Seconds of the first call above the others, which compiles, and the median of the others."""
        first = _seconds(what)
        warm = []
        while len(warm) < self.turns and (not warm or time.monotonic() < self.end):
            warm.append(_seconds(what))
        median = statistics.median(warm)
        return {"compile_s": max(first - median, 0.0), "warm_s": median, "turns": len(warm)}

    def problem(self, name: str, n_toys: int | None = None) -> tuple:
        """(case, a cost of its own, rows, (n_toys, n_params) start, settings)."""
        from engine.arguments import limit_arrays
        from engine.drivers import Settings
        from engine.fit import MAX_STEPS
        from engine.rules import EDM_GOAL

        case = self.cases.make(name, self.seed, n_toys or self.n_toys(name))
        rows = case.cost.rows(case.data)
        lower, upper = limit_arrays(case.cost.names, case.limits)
        free = np.ones(len(case.theta), dtype=bool)
        settings = Settings(lower, upper, free, case.cost.errordef, EDM_GOAL, MAX_STEPS["newton"])
        return case, case.cost, rows, np.tile(case.theta, (len(rows), 1)), settings

    @property
    def kernels(self) -> tuple[str, ...]:
        return ("xla", "pallas") if self.device == "gpu" else ("xla",)

    def together(self, what: Callable[[Any], Any], arguments: Iterable[Any]) -> list[Any]:
        """What takes most of its time to compile, all at once."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(what, arguments))

    def driver(self, cost: Any, rows: Any, **options: Any) -> Any:
        from engine.xla import XlaDriver

        return XlaDriver(cost, rows, self.devices, **options)


def _seconds(what: Callable[[], Any]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start


def toys(bench: Bench) -> dict:
    """The same toys on both: counts equal, events to 1e-12 of the range."""
    from toys.models import peak
    from toys.study import generate

    study, n = peak(), bench.n_toys(MAIN)
    on_cpu = generate(study, n, bench.seed)
    with bench.jax.default_device(bench.devices[0]):
        thrown: list = []
        times = bench.timed(lambda: thrown.append(generate(study, n, bench.seed, backend="jax")))
        on_device = thrown[-1]
    equal = np.array_equal(on_cpu.offsets, on_device.offsets)
    worst = float(np.abs(on_cpu.values - on_device.values).max() / 8.0) if equal else float("inf")
    return {"agree": equal and worst < 1e-12, "counts_equal": equal, "worst_event": worst, "n_toys": n} | times


def fits(bench: Bench) -> dict:
    """The fits of the device against numba's: statuses equal, values to 1e-6 sigma."""
    from engine.cpu import NumbaDriver

    def compared(name: str) -> dict[str, dict]:
        _, cost, rows, start, settings = bench.problem(name, 6 if bench.quick else 200)
        toys = np.arange(len(rows))
        theirs, each = NumbaDriver(cost, rows).fit(toys, start, settings), {}
        for kernel in bench.kernels:
            ours = bench.driver(cost, rows, kernel=kernel).fit(toys, start, settings)
            worst = _worst(ours, theirs)
            same = bool(np.array_equal(ours.status, theirs.status))
            each[f"{name}, {kernel}"] = {"agree": same and worst < 1e-6, "same_status": same, "worst_sigma": worst}
        return each

    return {key: one for each in bench.together(compared, CASES) for key, one in each.items()}


def _worst(ours: Any, theirs: Any) -> float:
    """Largest difference of values, in errors."""
    sigma = np.sqrt(np.diagonal(theirs.covariance, axis1=1, axis2=2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.nanmax(np.abs(ours.values - theirs.values) / sigma))


def batches(bench: Bench) -> dict:
    """A toy's fit in batches of other sizes, and in other lanes of one batch."""
    _, cost, rows, start, settings = bench.problem(MAIN, 16 if bench.quick else 2048)
    toys = np.arange(len(rows))

    def fitted(kernel: str, size: int) -> Any:
        return bench.driver(cost, rows, batch_size=size, kernel=kernel).fit(toys, start, settings)

    def of_kernel(kernel: str) -> tuple[str, dict]:
        first, *others = bench.together(lambda size: fitted(kernel, size), [8, 16] if bench.quick else [2048, 256, 16])
        lanes = bench.driver(cost, rows, batch_size=16, kernel=kernel).fit(
            np.zeros(16, dtype=int), start[:16], settings
        )
        return kernel, {
            "agree": all(_worst(other, first) < 1e-6 for other in others),
            "worst_sigma": [_worst(other, first) for other in others],
            "bitwise": [bool(np.array_equal(other.values, first.values)) for other in others],
            "lanes_bitwise": bool((lanes.values == lanes.values[0]).all()),
        }

    return dict(bench.together(of_kernel, bench.kernels))


def _main_model(bench: Bench) -> tuple[Callable[[], None], Callable[[], None], dict[str, Any]]:
    """What draws the toys of the main model, what fits them, and where they put both."""
    from engine import fit_batch
    from toys.models import peak
    from toys.study import generate

    study, made = peak(), dict[str, Any]()
    options: dict[str, Any] = {"limits": study.limits, "backend": "jax", "device": bench.device}

    def draw() -> None:
        made["toys"] = generate(study, bench.n_toys(MAIN), bench.seed, backend="jax")
        bench.jax.block_until_ready(getattr(made["toys"], "padded", None))

    def fit() -> None:
        made["fits"] = fit_batch(study.cost, made["toys"], study.start, **options)

    return draw, fit, made


def goal(bench: Bench) -> dict:
    """Toys of the main model drawn and fitted on the device, where their events stay there and through the host."""
    from engine import Ragged
    from engine.resident import Resident

    draw, fit, made = _main_model(bench)

    def copy() -> None:
        made["toys"] = Ragged(made["toys"].values, made["toys"].offsets)

    def whole() -> None:
        draw()
        fit()

    def to_host() -> None:
        draw()
        copy()

    def by_host() -> None:
        to_host()
        fit()

    with bench.jax.default_device(bench.devices[0]):
        found: dict[str, Any] = {"whole": bench.timed(whole), "draw": bench.timed(draw), "fit": bench.timed(fit)}
        there, fits = isinstance(made["toys"], Resident), made["fits"]
        copied = "values" in vars(made["toys"]) if there else None
        found["to the host"] = bench.timed(to_host)
        found["through the host"] = bench.timed(by_host)
    same = all(np.array_equal(getattr(made["fits"], name), getattr(fits, name)) for name in ("values", "covariance"))
    return {
        "agree": same,
        "n_toys": bench.n_toys(MAIN),
        "stays_on_device": there,
        "copied_to_host": copied,
        "not_valid": int((~fits.valid).sum()),
        "evaluations": float(fits.nfev.mean()),
    } | found


def trace(bench: Bench) -> dict:
    """Where the time of the toys and fits of `goal` goes: milliseconds and calls of each kernel, and of all."""
    (draw, fit, _), found = _main_model(bench), {}
    with bench.jax.default_device(bench.devices[0]):
        draw()
        fit()
        for name, what in (("draw", draw), ("fit", fit)):
            with tempfile.TemporaryDirectory() as folder:
                with bench.jax.profiler.trace(folder):
                    seconds = _seconds(what)
                (file,) = Path(folder).rglob("*.trace.json.gz")
                found[name] = {"traced_s": seconds} | _kernels(json.loads(gzip.decompress(file.read_bytes())))
    return found


def _kernels(traced: dict) -> dict:
    """Of a trace in Chrome's format."""
    events = traced["traceEvents"]
    named = [e for e in events if e.get("name") == "process_name"]
    devices = {e["pid"] for e in named if "/device:GPU" in e["args"]["name"]}
    streams = {
        (e["pid"], e["tid"])
        for e in events
        if e.get("name") == "thread_name" and e["pid"] in devices and e["args"]["name"].startswith("Stream")
    }
    each: dict[str, list] = {}
    for event in events:
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
            times = each.setdefault(event["name"], [0.0, 0])
            times[0] += event["dur"] / 1e3
            times[1] += 1
    longest = sorted(each.items(), key=lambda item: -item[1][0])[:MOST_KERNELS]
    copies = sum(n for name, (_, n) in each.items() if name.startswith("Memcpy"))
    return {
        "busy_ms": sum(t for t, _ in each.values()),
        "kernels": sum(n for _, n in each.values()) - copies,
        "copies": copies,
        "each": {name: [round(t, 4), n] for name, (t, n) in longest},
    }


def cases(bench: Bench) -> dict:
    """Every case: generated and fitted on the device, fitted by all cores, and the floors of the fits."""
    from engine.cpu import NumbaDriver

    found: dict[str, dict] = {}
    for name in CASES:
        if time.monotonic() > bench.end:
            break
        case, cost, rows, start, settings = bench.problem(name)
        toys, driver, cpu = np.arange(len(rows)), bench.driver(cost, rows), NumbaDriver(cost, rows)
        results = []
        times = bench.timed(lambda: results.append(driver.fit(toys, start, settings)))  # noqa: B023
        cores = bench.timed(lambda: cpu.fit(toys, start, settings))  # noqa: B023
        with bench.jax.default_device(bench.devices[0]):
            thrown = _seconds(lambda: bench.cases.generate(case.study, len(rows), bench.seed, backend="jax"))  # noqa: B023
        found[name] = {
            "n_toys": len(rows),
            "not_converged": int((results[-1].status != 0).sum()),
            "generate_first_s": thrown,
            "device": times,
            "all_cores_s": cores["warm_s"],
            "evaluations": float(results[-1].nfev.mean()),
            "send_s": _seconds(lambda: bench.jax.block_until_ready(bench.jax.device_put(rows.columns))),  # noqa: B023
        } | _floors(cost, rows, float(results[-1].nfev.sum()) / len(rows), times["warm_s"])
    return found


def _floors(cost: Any, rows: Any, evaluations: float, seconds: float) -> dict:
    """Seconds that reading the rows and their operations take at best, and the time in units of the larger one."""
    from bench.floors import count_cost

    from kernels.program import SECOND

    n_bytes = sum(8.0 * leaf.columns.size for leaf in rows.leaves)
    counted = count_cost(cost, rows, SECOND)
    operations = max(counted.pop("add", 0.0), counted.pop("multiply", 0.0))
    operations += sum(n * COSTS.get(op, 1) for op, n in counted.items())
    floors = {
        "bytes_s": n_bytes * evaluations / BYTES,
        "multiply_adds_s": len(rows) * operations * evaluations / MULTIPLY_ADDS,
    }
    return {"floors": floors, "gap": seconds / max(floors.values())}


def sums(bench: Bench) -> dict:
    """One evaluation of the main model, of data that are on the device: XLA, and the one-pass kernel's settings."""
    from kernels.pallas import row_sums_pallas
    from kernels.xla import row_sums

    jax = bench.jax
    _, cost, rows, start, _ = bench.problem(MAIN)
    driver, program = bench.driver(cost, rows), cost.program(rows)
    found: dict[str, Any] = {}
    with jax.enable_x64(True):
        ((columns, aux, n),) = jax.device_put(driver._lane_data(np.arange(len(rows))), bench.devices[0])
        theta, shared = jax.device_put((start, np.zeros((0, 0))), bench.devices[0])
        forms = {"xla": row_sums(program, driver.tile)}
        if bench.device == "gpu":
            for block in (128, 256, 512):
                for warps in (1, 2, 4, 8):
                    forms[f"pallas {block} x {warps}"] = row_sums_pallas(program, 2, block, warps)
        else:
            forms["pallas, interpreted"] = row_sums_pallas(program, 2, interpret=True)
        for name, form in forms.items():
            if time.monotonic() > bench.end:
                break
            run = jax.jit(jax.vmap(form, in_axes=(0, 0, None, 0, 0)))
            try:
                times = bench.timed(lambda: run(theta, columns, shared, aux, n).block_until_ready())  # noqa: B023
                found[name] = times | _floors(cost, rows, 1.0, times["warm_s"])
            except jax.errors.JaxRuntimeError as error:  # a setting that takes too many registers
                found[name] = {"refused": str(error).splitlines()[0]}
    return found


def lanes(bench: Bench) -> dict:
    """Fits of the main model with other numbers of lanes."""
    _, cost, rows, start, settings = bench.problem(MAIN)
    toys, found = np.arange(len(rows)), {}
    for size in bench.sizes([8, 16] if bench.quick else [1024, 2048, 4096, 8192, 16384]):
        driver = bench.driver(cost, rows, batch_size=size)
        found[str(size)] = bench.timed(lambda: driver.fit(toys, start, settings))  # noqa: B023
    return found


def steps(bench: Bench) -> dict:
    """Fits of the main model with other numbers of steps between two looks at who has finished."""
    from engine import lanes as engine_lanes

    found, usual = {}, engine_lanes.STEPS_PER_CALL
    for name in (MAIN, "counting"):
        for size in bench.sizes([1, 4, 8]):
            _, cost, rows, start, settings = bench.problem(name)
            driver, toys = bench.driver(cost, rows), np.arange(len(rows))
            engine_lanes.STEPS_PER_CALL = size
            try:
                found[f"{name}, {size}"] = bench.timed(lambda: driver.fit(toys, start, settings))  # noqa: B023
            finally:
                engine_lanes.STEPS_PER_CALL = usual
    return found


def rule(bench: Bench) -> dict:
    """From how many rows on the device wins over all cores, transfers included."""
    from engine.cpu import NumbaDriver

    found: dict[str, Any] = {}
    for name in ("peak-480", MAIN, "counting"):
        table, wins = [], None
        for n_toys in bench.sizes([16, 64, 256, 1024, 4096, 16384]):
            _, cost, rows, start, settings = bench.problem(name, n_toys)
            toys, driver, cpu = np.arange(n_toys), bench.driver(cost, rows), NumbaDriver(cost, rows)
            device = bench.timed(lambda: driver.fit(toys, start, settings))["warm_s"]  # noqa: B023
            cores = bench.timed(lambda: cpu.fit(toys, start, settings))["warm_s"]  # noqa: B023
            n_rows = int(rows.offsets[-1])
            wins = (wins or n_rows) if device < cores else None  # from there on, not here and there
            table.append({"n_toys": n_toys, "rows": n_rows, "device_s": device, "all_cores_s": cores})
        found[name] = {"wins_from_rows": wins, "sizes": table}
    return found


def run(bench: Bench) -> dict:
    """The whole command, in a process of its own: first with what is compiled, then from the cache."""
    command = [sys.executable, str(Path(__file__).with_name("run_toys.py")), "--device", bench.device]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("first", "second"):
            out = Path(folder) / f"{turn}.h5"
            start = time.perf_counter()
            arguments = ["--n", str(bench.n_toys(MAIN)), "--out", str(out), "--validate", "10"]
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False)
            found[turn] = {"seconds": time.perf_counter() - start, "code": done.returncode}
            # its own times, or what went wrong
            found[turn]["said"] = done.stderr[-500:] or " ".join(
                done.stdout.partition("seconds:")[2].partition("written:")[0].split()
            )
    return found


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="bench_gpu.py", description=__doc__, epilog="Exit code 0: all agree; 1: not; 2: an argument.")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help="what is compared (default: gpu)")
    parser.add_argument("--quick", action="store_true", help="a few toys, to try the script")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help="default: all")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which a part starts nothing new")
    parser.add_argument("--seed", type=int, default=1, help="of the toys (default: 1)")
    parser.add_argument("--json", metavar="FILE", help="write everything to this file, after every part")
    return parser


def main() -> int:
    args = arguments().parse_args()
    import jax
    import jaxlib

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
            report[name] = globals()[name](bench)
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
