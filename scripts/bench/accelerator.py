"""What all comparisons of an accelerator with the CPU need: sizes, the device, and how to time."""

import functools
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from arguments import WRONG_INPUT
from bench.cases import make

from engine.arguments import limit_arrays
from engine.devices import find_devices
from engine.drivers import Settings
from engine.fit import MAX_STEPS
from engine.rules import EDM_GOAL
from engine.xla import XlaDriver

__all__ = ["MAIN", "Bench", "seconds_of"]

MAIN = "peak-15500"
TOYS = {"peak-200000": 1000, "templates-200": 2000}  # of a case, else N_TOYS
N_TOYS, N_QUICK = 10_000, 24


class Bench:
    """Sizes of a comparison, its device, and how to time."""

    def __init__(self, device: str, quick: bool, seed: int, seconds: float) -> None:
        self.device, self.quick, self.seed = device, quick, seed
        self.turns = 2 if quick else 7
        self.seconds, self.end = seconds, 0.0

    @functools.cached_property
    def devices(self) -> list:
        """One device, which this starts; where there is none, this ends the script."""
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
        first = seconds_of(what)
        warm = []
        while len(warm) < self.turns and (not warm or time.monotonic() < self.end):
            warm.append(seconds_of(what))
        median = statistics.median(warm)
        return {"compile_s": max(first - median, 0.0), "warm_s": median, "turns": len(warm)}

    def problem(self, name: str, n_toys: int | None = None) -> tuple:
        """(case, a cost of its own, rows, (n_toys, n_params) start, settings)."""
        case = make(name, self.seed, n_toys or self.n_toys(name))
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
        return XlaDriver(cost, rows, self.devices, **options)


def seconds_of(what: Callable[[], Any]) -> float:
    start = time.perf_counter()
    what()
    return time.perf_counter() - start
