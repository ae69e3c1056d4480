"""Peers on all cores: one process for each, or one process with the peer's own threads."""

import functools
import multiprocessing
import os
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from bench.cases import Case, make
from bench.contest import Outcome
from bench.peers import PEERS, Fitter

__all__ = ["Task", "Team", "fit_share", "fit_together", "team"]

READY_WITHIN = 180  # seconds


class Task(NamedTuple):
    """What a process needs in order to fit: the toys of a case are thrown again."""

    case: str
    seed: int
    n_toys: int
    peer: str
    way: str


class Team(NamedTuple):
    """Warm processes."""

    pool: ProcessPoolExecutor
    task: Task
    processes: int


@contextmanager
def team(processes: int, cores: int, case: Case, peer: str, way: str) -> Iterator[Team]:
    """Warm processes, which end with the context."""
    context = multiprocessing.get_context("spawn")
    task = Task(case.name, case.seed, case.n_toys, peer, way)
    threads = cores // processes
    # the library reads it when it makes its threads, in the new process
    before = os.environ.get("RAYON_NUM_THREADS")
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    try:
        pool = ProcessPoolExecutor(
            processes, mp_context=context, initializer=warm, initargs=(task, context.Barrier(processes))
        )
        # a process is started for each task that finds none idle, and none is before all are warm
        for ready in [pool.submit(fit_share, task, [0]) for _ in range(processes)]:
            ready.result()
    finally:
        if before is None:
            del os.environ["RAYON_NUM_THREADS"]
        else:
            os.environ["RAYON_NUM_THREADS"] = before
    try:
        yield Team(pool, task, processes)
    finally:
        pool.shutdown(cancel_futures=True)


def warm(task: Task, barrier: Any) -> None:
    """Import and compile everything in this process, then wait for the others."""
    fit_share(task, [0])
    barrier.wait(timeout=READY_WITHIN)


@functools.cache
def fitter(task: Task) -> Fitter:
    case = make(task.case, task.seed, task.n_toys)
    with tempfile.TemporaryDirectory() as folder:
        return PEERS[task.peer].prepare(case, task.way, np.ones(len(case.theta)), folder)


def fit_share(task: Task, toys: Sequence[int]) -> Outcome:
    """Fit some toys with one peer, in this process."""
    return fitter(task).fit(toys)


def fit_together(team: Team, toys: Sequence[int]) -> Outcome:
    """Fit some toys, a tenth of a process's share at a time, in whichever process is free."""
    size = max(1, len(toys) // team.processes // (10 if team.processes > 1 else 1))
    shares = [toys[first : first + size] for first in range(0, len(toys), size)]
    found = list(team.pool.map(functools.partial(fit_share, team.task), shares))
    n = np.array([len(share) for share in shares])
    return Outcome(
        np.concatenate([each.values for each in found]),
        np.concatenate([each.valid for each in found]),
        float(np.average([each.evaluations for each in found], weights=n)),
        float(np.average([each.gradients for each in found], weights=n)),
    )
