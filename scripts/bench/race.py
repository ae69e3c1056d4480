"""One case: batchfit and all peers that can express it, by turns."""

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import jax
import numba
import numpy as np
from bench import pool
from bench.cases import Case, throw
from bench.contest import Contender, Outcome, rank, report, take_turns, warm_up
from bench.peers import PEERS, Peer, missing

from engine import fit_batch
from engine.result import FitResult

__all__ = ["Conditions", "race"]

#: The case on which the peers that fit one toy at a time are given all cores; elsewhere they scale in the same way.
ON_ALL_CORES = "peak-15500"
ERRORS = "strategy 1 and HESSE"
JAX_BLOCK = 64


@dataclass(frozen=True)
class Conditions:
    """How the contest is held.

    Attributes
    ----------
    repeat : int
        Turns.
    seconds : float
        About the length of a turn.
    cores : int
        1: runs on all cores are left out.
    with_jax : bool
        Whether the JAX driver is timed on the CPU.
    """

    repeat: int
    seconds: float
    cores: int
    with_jax: bool


def race(case: Case, conditions: Conditions, say: Callable[[str], None]) -> dict:
    """What everybody did on a case, as JSON takes it."""
    begin = time.perf_counter()
    result = fit_batch(case.cost, case.data, case.start, limits=case.limits, backend="numba", device="cpu")
    compiled = time.perf_counter() - begin
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        stack.callback(numba.set_num_threads, numba.get_num_threads())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        contenders = ours(case, conditions)
        for contender in contenders:
            say(f"{case.name}: warming up {contender.label} ({contender.where})")
            warm_up(contender, conditions.seconds)
        contenders[0].first_seconds = compiled
        for name, peer in PEERS.items():
            if case.family not in peer.families:
                continue
            reason = missing(peer)
            if reason:
                absent[peer.label] = reason
                continue
            say(f"{case.name}: warming up {peer.label}")
            try:
                contenders += entries(name, peer, case, conditions, result, folder, stack)
            except Exception as error:  # whatever a peer does wrong must not end the contest of the others
                absent[peer.label] = f"it raised {type(error).__name__}: {error}".splitlines()[0]
        take_turns(contenders, conditions.repeat, lambda text: say(f"{case.name}: {text}"))
    return {
        "name": case.name,
        "title": case.title,
        "n_params": len(case.theta),
        "rows": case.rows,
        "fits": rank(contenders, case, result),
        "missing": absent,
    }


def ours(case: Case, conditions: Conditions) -> list[Contender]:
    """batchfit on one core, on all cores, with JAX, and on a GPU where there is one."""
    label = "batchfit"

    def contender(name: str, where: str, threads: int, **options: Any) -> Contender:
        fit = functools.partial(fit_ours, case, threads, **options)
        return Contender(name, label if name == "batchfit" else f"{label}, JAX", where, fit, case.n_toys, case.n_toys)

    numbered = {"backend": "numba", "device": "cpu"}
    made = [contender("batchfit", "one core", 1, **numbered)]
    if conditions.cores > 1:
        made.append(contender("batchfit", "all cores", conditions.cores, **numbered))
    if conditions.with_jax and case.name == ON_ALL_CORES:
        in_jax = contender("batchfit-jax", "all cores", conditions.cores, backend="jax", device="cpu")
        made.append(replace(in_jax, block=min(JAX_BLOCK, case.n_toys), most=min(JAX_BLOCK, case.n_toys)))
    if any(device.platform == "gpu" for device in jax.devices()):
        made.append(contender("batchfit-jax", "gpu", conditions.cores, backend="jax", device="gpu"))
        made.append(
            Contender(
                "thrown", f"{label}, JAX, toys thrown there", "gpu", throw_and_fit(case), case.n_toys, case.n_toys
            )
        )
    return made


def fit_ours(case: Case, threads: int, toys: Sequence[int], **options: Any) -> Outcome:
    numba.set_num_threads(threads)
    found = fit_batch(case.cost, case.some(len(toys)), case.start, limits=case.limits, **options)
    return Outcome(found.values, found.valid, float(found.nfev.mean()))


def throw_and_fit(case: Case) -> Callable[[Sequence[int]], Outcome]:
    """The same toys, thrown on the GPU before they are fitted there."""

    def run(toys: Sequence[int]) -> Outcome:
        data = throw(case.study, len(toys), case.seed, backend="jax")
        found = fit_batch(case.cost, data, case.start, limits=case.limits, backend="jax", device="gpu")
        return Outcome(found.values, found.valid, float(found.nfev.mean()))

    return run


def entries(
    name: str, peer: Peer, case: Case, conditions: Conditions, result: FitResult, folder: str, stack: ExitStack
) -> list[Contender]:
    """A peer, warm: in the fastest of its ways on one core, and on all cores where that is compared."""
    errors = result.errors[int(np.argmax(result.valid))]
    ways = []
    for way in peer.ways(case):
        fit, block = peer.prepare(case, way, errors, folder)
        label = f"{peer.label} ({way})" if way else peer.label
        ways.append(Contender(name, label, "one core", fit, block, case.n_toys, way=way))
        warm_up(ways[-1], conditions.seconds)
    made = [fastest(ways, case, result)]
    if case.name == ON_ALL_CORES and name == "hand":
        with_errors = peer.prepare(case, ERRORS, errors, folder)
        made.append(Contender("hand-errors", f"{peer.label}, HESSE", "one core", *with_errors, most=case.n_toys))
        warm_up(made[-1], conditions.seconds)
    if conditions.cores > 1 and (name == "nextstat" or (case.name == ON_ALL_CORES and name in ("hand", "numba-stats"))):
        alone = made[0]
        processes = 1 if name == "nextstat" else conditions.cores
        team = stack.enter_context(pool.team(processes, conditions.cores, case, name, alone.way))
        shared = functools.partial(pool.fit_together, team)
        together = Contender(name, alone.label, "all cores", shared, conditions.cores * alone.block, case.n_toys)
        together.first_seconds = together.timed(range(min(together.block, case.n_toys)))
        # as many fits for each core as one core does alone, as far as there are toys
        together.toys = range(min(conditions.cores * len(alone.toys), case.n_toys))
        made.append(together)
    return made


def fastest(ways: Sequence[Contender], case: Case, result: FitResult) -> Contender:
    """Of those that end at the minimum, the one that does more fits in a turn."""
    if len(ways) == 1:
        return ways[0]
    for way in ways:
        way.seconds.append(way.timed(way.toys))
    found = [report(way, case, result) for way in ways]
    best = max(range(len(ways)), key=lambda k: (not found[k]["away"], found[k]["fits_per_second"]))
    ways[best].seconds.clear()
    return ways[best]
