"""Parts of a fit, alone: one evaluation of the likelihood, and throwing a toy."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from bench import minuit_costs
from bench.cases import Case
from bench.contest import pinned
from bench.hand import nll_of
from bench.peers import PEERS, missing

from engine.cpu import NumbaDriver
from kernels.program import SECOND
from kernels.randombits import uniforms
from toys.study import generate

__all__ = ["time_evaluations", "time_generation", "time_uniforms"]

ROUNDS = 50  # evaluations of each for a turn


def time_evaluations(case: Case, repeat: int) -> list[dict]:
    """ns per event of one evaluation of the main model at the truth, in one thread, by turns: best and median."""
    rows = case.cost.rows(case.data)
    driver = NumbaDriver(case.cost, rows)
    theta, shared, aux = case.theta, np.array(rows.shared), np.array(rows.aux)
    x = [case.toy(k) for k in range(min(case.n_toys, 10))]
    out, gradient = np.empty(2 + len(theta) + len(theta) * (len(theta) + 1) // 2), np.empty(len(theta))
    by_hand = nll_of(case)

    def ours(k: int) -> Any:
        driver.kernel(theta, rows.columns, shared, aux[k], rows.offsets[k], rows.offsets[k + 1], SECOND, out)

    evaluations: dict[str, Callable[[int], Any]] = {
        "batchfit: value, gradient and exact Hessian": ours,
        "hand-written: value and gradient": lambda k: by_hand(x[k], theta, gradient),
    }
    if missing(PEERS["numba-stats"]) is None:
        costs = [minuit_costs.cost_of(case, k) for k in range(len(x))]
        evaluations["numba-stats: value"] = lambda k: costs[k](*theta)
    seconds: dict[str, list[float]] = {label: [] for label in evaluations}
    with pinned(1):
        for turn in range(ROUNDS * repeat):
            k = turn % len(x)
            for label, evaluate in evaluations.items():
                begin = time.perf_counter()
                evaluate(k)
                seconds[label].append((time.perf_counter() - begin) / len(x[k]))
    return [
        {"label": label, "best_ns": 1e9 * min(times), "median_ns": 1e9 * statistics.median(times), "n": len(times)}
        for label, times in seconds.items()
    ]


def time_generation(case: Case, repeat: int, cores: int, seed: int) -> list[dict]:
    """Toys and ns per event of `toys.generate`, on one core and on all."""
    made = []
    for where, threads in [("one core", 1), ("all cores", cores)][: 1 if cores == 1 else 2]:
        numba.set_num_threads(threads)
        seconds = []
        with pinned(1 if threads == 1 else None):
            for _ in range(repeat + 1):
                begin = time.perf_counter()
                data = generate(case.study, case.n_toys, seed)
                seconds.append(time.perf_counter() - begin)
        median = statistics.median(seconds[1:])
        made.append(
            {
                "where": where,
                "toys_per_second": case.n_toys / median,
                "ns_per_event_and_core": 1e9 * median * threads / len(data.values),
                "seconds": seconds[1:],
                "first_seconds": seconds[0],
            }
        )
    return made


def time_uniforms(n: int, repeat: int) -> float:
    """ns of a uniform random number, on one core."""
    out, seconds = np.empty(n), []
    with pinned(1):
        for _ in range(repeat + 1):
            begin = time.perf_counter()
            uniforms(np.uint32(1), np.uint32(2), out)
            seconds.append(time.perf_counter() - begin)
    return 1e9 * statistics.median(seconds[1:]) / n
