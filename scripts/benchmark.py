#!/usr/bin/env python3
"""Time this engine beside what one would otherwise take: same toys, one run, medians, compile time apart.

All fit a Gaussian peak over an exponential (`toys.models.peak`, about 15 500 events, 5 parameters) from the true
values. The contenders take turns, so that a busy moment of the machine hits all of them. The peers stand here and
not in the packages, because they share nothing with them; they run one fit at a time, on all cores one process each.
"""

import argparse
import functools
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

DONE, WRONG_INPUT = 0, 2
XMIN, XMAX = 1.0, 9.0
PACKAGES = ("batchfit", "numpy", "numba", "llvmlite", "jax", "jaxlib", "optax", "iminuit", "numba-stats", "scipy")
JAX_TOYS = 20  # the JAX driver fits at most this many times --peers-toys on a CPU
FORMULA_ROWS = 5_000_000
KERNEL_ROUNDS = 50  # evaluations of each kernel per repetition


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmark.py", description=__doc__, epilog="Exit code 0: done; 2: a wrong argument."
    )
    parser.add_argument("--toys", type=positive, default=200, metavar="N", help="number of toys (default: 200)")
    parser.add_argument("--repeat", type=positive, default=5, metavar="R", help="runs of each (default: 5)")
    parser.add_argument(
        "--peers-toys", type=positive, default=10, metavar="M", help="toys that the slow peers fit (default: 10)"
    )
    parser.add_argument(
        "--cores", choices=("all", "1"), default="all", help="1 leaves out all-core runs (default: all)"
    )
    parser.add_argument("--seed", type=int, default=1, help="of the toys (default: 1)")
    parser.add_argument("--no-jax", action="store_true", help="leave out the JAX driver, which compiles for 10 s")
    parser.add_argument("--json", metavar="FILE", help="write everything that was measured to this file")
    return parser


def positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, got {text!r}") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


# ---------------------------------------------------------------------------------------------- the peers


class PeerFit(NamedTuple):
    """One fit by iminuit: values, MIGRAD's verdict, calls of the function and of its gradient."""

    values: Sequence[float]
    valid: bool
    nfcn: int
    ngrad: int


@functools.cache
def hand_written_nll(events_per_log: int) -> Callable:
    """The extended NLL of the spectrum and its gradient in one loop, as one would write it by hand for speed.

    Returns `nll(x, ns, nb, mu, sigma, lam, gradient) -> value`, which fills `gradient` (5,) float64, compiled with
    fast-math. With the densities s of the peak and b of the exponential, A and B their integrals over the range,

        d/d ns = 1 - sum s / f,          d/d mu = -ns sum (s / f) (z / sigma - A_mu / A),     z = (x - mu) / sigma,
        d/d nb = 1 - sum b / f,       d/d sigma = -ns sum (s / f) ((z^2 - 1) / sigma - A_sigma / A),
        f = ns s + nb b,                d/d lam = -nb sum (b / f) (x / lam^2 - 1 / lam - B_lam / B).

    Parameters
    ----------
    events_per_log : int
        The logarithm is taken of the product of so many densities. More than 1 saves time; but the product of
        densities below 1e-300 ** (1 / events_per_log), in a far tail, underflows.
    """
    import numba

    @numba.njit(fastmath=True, error_model="numpy")
    def nll(x, ns, nb, mu, sigma, lam, gradient):
        low, high = (XMIN - mu) / sigma, (XMAX - mu) / sigma
        root = math.sqrt(2.0 * math.pi)
        phi_low, phi_high = math.exp(-0.5 * low * low) / root, math.exp(-0.5 * high * high) / root
        peak = 0.5 * (math.erf(high / math.sqrt(2.0)) - math.erf(low / math.sqrt(2.0)))
        peak_mu = (phi_low - phi_high) / sigma
        peak_sigma = (low * phi_low - high * phi_high) / sigma
        exp_low, exp_high = math.exp(-XMIN / lam), math.exp(-XMAX / lam)
        tail = exp_low - exp_high
        tail_lam = (XMIN * exp_low - XMAX * exp_high) / (lam * lam)

        peak_height, tail_height = ns / (root * sigma * peak), nb / (lam * tail)
        per_sigma, per_lam = 1.0 / sigma, -1.0 / lam
        logs = s_0 = s_1 = s_2 = b_1 = 0.0
        product = 1.0
        for i in range(len(x)):
            z = (x[i] - mu) * per_sigma
            s = peak_height * math.exp(-0.5 * z * z)
            b = tail_height * math.exp(x[i] * per_lam)
            f = s + b
            product *= f
            if i % events_per_log == events_per_log - 1:
                logs += math.log(product)
                product = 1.0
            per_f = 1.0 / f
            s *= per_f
            s_0 += s
            s_1 += s * z
            s_2 += s * z * z
            b_1 += b * per_f * x[i]
        logs += math.log(product)
        b_0 = len(x) - s_0
        gradient[0] = 1.0 - s_0 / ns
        gradient[1] = 1.0 - b_0 / nb
        gradient[2] = -(s_1 / sigma - s_0 * peak_mu / peak)
        gradient[3] = -((s_2 - s_0) / sigma - s_0 * peak_sigma / peak)
        gradient[4] = -(b_1 / (lam * lam) - b_0 * (1.0 / lam + tail_lam / tail))
        return ns + nb - logs

    return nll


def run_minuit(minuit: Any, limits: Sequence, strategy: int, errors: bool) -> PeerFit:
    minuit.print_level = 0
    minuit.strategy = strategy
    minuit.limits = limits
    minuit.migrad()
    if errors:
        minuit.hesse()
    return PeerFit(tuple(minuit.values), bool(minuit.valid), minuit.nfcn, minuit.ngrad)


def fit_hand_written(
    x: Any, start: Sequence, limits: Sequence, *, events_per_log: int, strategy: int, errors: bool
) -> PeerFit:
    """MIGRAD with the hand-written value and gradient."""
    return run_minuit(hand_written_minuit(x, start, events_per_log), limits, strategy, errors)


def hand_written_minuit(x: Any, start: Sequence, events_per_log: int = 1) -> Any:
    """Minuit of the hand-written value and gradient; a point that it asks for twice is computed once."""
    import numpy as np
    from iminuit import Minuit

    nll = hand_written_nll(events_per_log)
    known, value, gradient = b"", 0.0, np.empty(5)

    def at(theta: Any) -> None:
        nonlocal known, value, gradient
        point = theta.tobytes()
        if point != known:
            gradient = np.empty(5)
            value = nll(x, *theta, gradient)
            known = point

    def function(theta: Any) -> float:
        at(theta)
        return value

    def derivative(theta: Any) -> Any:
        at(theta)
        return gradient

    minuit = Minuit(function, np.array(start), grad=derivative)
    minuit.errordef = Minuit.LIKELIHOOD
    return minuit


def numba_stats_cost(x: Any) -> Callable:
    """iminuit's cost function of the spectrum with the densities of numba-stats."""
    from iminuit.cost import ExtendedUnbinnedNLL
    from numba_stats import truncexpon, truncnorm

    def spectrum(x, ns, nb, mu, sigma, lam):
        density = ns * truncnorm.pdf(x, XMIN, XMAX, mu, sigma) + nb * truncexpon.pdf(x, XMIN, XMAX, 0.0, lam)
        return ns + nb, density

    return ExtendedUnbinnedNLL(x, spectrum)


def fit_numba_stats(x: Any, start: Sequence, limits: Sequence, *, strategy: int, errors: bool) -> PeerFit:
    from iminuit import Minuit

    return run_minuit(Minuit(numba_stats_cost(x), *start), limits, strategy, errors)


class Peer(NamedTuple):
    label: str
    fit: Callable
    slow: bool


FASTEST = {"strategy": 0, "errors": False}
DEFAULT = {"strategy": 1, "errors": True}
PEERS = {
    "hand": Peer(
        "iminuit, hand-written numba NLL and gradient: strategy 0, no errors",
        functools.partial(fit_hand_written, events_per_log=1, **FASTEST),
        slow=False,
    ),
    "hand-log8": Peer(
        "the same with one log for 8 events, which fails in far tails",
        functools.partial(fit_hand_written, events_per_log=8, **FASTEST),
        slow=False,
    ),
    "hand-errors": Peer(
        "iminuit, hand-written numba NLL and gradient: strategy 1 and HESSE",
        functools.partial(fit_hand_written, events_per_log=1, **DEFAULT),
        slow=True,
    ),
    "numba-stats": Peer(
        "iminuit, ExtendedUnbinnedNLL and numba-stats: strategy 0, no errors",
        functools.partial(fit_numba_stats, **FASTEST),
        slow=True,
    ),
    "numba-stats-errors": Peer(
        "iminuit, ExtendedUnbinnedNLL and numba-stats: strategy 1 and HESSE",
        functools.partial(fit_numba_stats, **DEFAULT),
        slow=True,
    ),
}


# ------------------------------------------------------------------------------- the peers on all cores


@functools.cache
def read_task(folder: str) -> tuple:
    """(events of all toys, offsets, start, limits); the events are shared between the processes."""
    import numpy as np

    task = json.loads(Path(folder, "task.json").read_text())
    return np.load(Path(folder, "values.npy"), mmap_mode="r"), task["offsets"], task["start"], task["limits"]


def write_task(folder: str, values: Any, offsets: Any, start: Sequence, limits: Sequence) -> None:
    import numpy as np

    np.save(Path(folder, "values.npy"), values)
    task = {"offsets": [int(n) for n in offsets], "start": [float(v) for v in start], "limits": limits}
    Path(folder, "task.json").write_text(json.dumps(task))


def fit_share(folder: str, peer: str, toys: Sequence[int]) -> list[PeerFit]:
    """Fit some toys with one peer."""
    import numpy as np

    values, offsets, start, limits = read_task(folder)
    return [PEERS[peer].fit(np.array(values[offsets[k] : offsets[k + 1]]), start, limits) for k in toys]


def warm_up(folder: str, peers: Sequence[str], barrier: Any) -> None:
    """Import and compile everything in this process, then wait for the others."""
    for peer in peers:
        fit_share(folder, peer, [0])
    barrier.wait(timeout=180)


def ready() -> None:
    """A task that is done when all processes are warm."""


def start_processes(stack: ExitStack, folder: str, peers: Sequence[str], cores: int) -> Any:
    """One warm process for each core, which end with the stack."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        cores, mp_context=context, initializer=warm_up, initargs=(folder, peers, context.Barrier(cores))
    )
    stack.callback(pool.shutdown, cancel_futures=True)
    # a process is started for each task that finds none idle, and none is before all are warm
    for task in [pool.submit(ready) for _ in range(cores)]:
        task.result()
    return pool


def fit_on_all_cores(pool: Any, folder: str, peer: str, toys: Sequence[int], size: int) -> list[PeerFit]:
    """Fit some toys, `size` of them at a time, in whichever process is free."""
    shares = [toys[k : k + size] for k in range(0, len(toys), size)]
    return [fit for share in pool.map(functools.partial(fit_share, folder, peer), shares) for fit in share]


# ------------------------------------------------------------------------------------------ measurement


@dataclass
class Timed:
    """Something that is run several times.

    Attributes
    ----------
    name, where : str
        Who, and on "one core", "all cores" or "gpu".
    run : callable
    toys : sequence of int
        Toys that one run handles.
    first_seconds : float
        Time of the first run, which compiles or reads compiled code from a cache.
    seconds : list of float
        Times of the others.
    outcome
        What the last run returned.
    """

    name: str
    where: str
    run: Callable[[], Any]
    toys: Sequence[int]
    first_seconds: float = 0.0
    seconds: list[float] = field(default_factory=list)
    outcome: Any = None

    def once(self) -> float:
        begin = time.perf_counter()
        self.outcome = self.run()
        return time.perf_counter() - begin


def take_turns(timed: Sequence[Timed], repeat: int, say: Callable[[str], None]) -> None:
    """Warm up all, then run A B C A B C ..."""
    for t in timed:
        say(f"warming up {t.name} ({t.where})")
        t.first_seconds = t.once()
    for r in range(repeat):
        for t in timed:
            say(f"run {r + 1} of {repeat}: {t.name} ({t.where})")
            t.seconds.append(t.once())


def measure(args: argparse.Namespace, say: Callable[[str], None]) -> dict:
    """Everything that is printed and written, as a dict that JSON takes."""
    import jax
    import numba
    import numpy as np

    from engine import fit_batch
    from toys.models import peak
    from toys.study import generate

    cores = numba.config.NUMBA_NUM_THREADS
    on_all = args.cores == "all" and cores > 1
    study = peak()
    limits = [study.limits.get(name, (None, None)) for name in study.cost.names]
    data = generate(study, args.toys, args.seed)
    missing = {}
    if importlib.util.find_spec("numba_stats") is None:
        missing = dict.fromkeys(("numba-stats", "numba-stats-errors"), "numba-stats is not installed: .[bench] has it")
    peers = [name for name in PEERS if name not in missing]
    every, some = range(args.toys), range(min(args.toys, args.peers_toys))
    load_before = os.getloadavg()[0] if hasattr(os, "getloadavg") else None

    def with_threads(n: int, function: Callable, *given: Any, **options: Any) -> Callable:
        def run() -> Any:
            numba.set_num_threads(n)
            return function(*given, **options)

        return run

    def ours(n_toys: int, **options: Any) -> Callable:
        return functools.partial(fit_batch, study.cost, data[:n_toys], study.start, limits=study.limits, **options)

    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        stack.callback(numba.set_num_threads, cores)
        write_task(folder, data.values, data.offsets, study.theta, limits)
        read_task.cache_clear()
        throw = functools.partial(generate, study, args.toys, args.seed)
        fit = ours(args.toys, backend="numba")
        timed = [
            Timed("generate", "one core", with_threads(1, throw), every),
            Timed("batchfit", "one core", with_threads(1, fit), every),
        ]
        if on_all:
            timed += [
                Timed("generate", "all cores", with_threads(cores, throw), every),
                Timed("batchfit", "all cores", with_threads(cores, fit), every),
            ]
        if not args.no_jax:
            n = min(args.toys, JAX_TOYS * args.peers_toys)
            timed.append(Timed("batchfit-jax", "all cores", ours(n, backend="jax", device="cpu"), range(n)))
            if any(device.platform == "gpu" for device in jax.devices()):
                timed.append(Timed("batchfit-jax", "gpu", ours(args.toys, backend="jax", device="gpu"), every))
        for name in peers:
            toys = some if PEERS[name].slow else every
            timed.append(Timed(name, "one core", functools.partial(fit_share, folder, name, toys), toys))
        if on_all:
            say("starting one process for each core")
            pool = start_processes(stack, folder, peers, cores)
            for name in peers:  # as many fits for each core as one core does alone
                toys = list(some if PEERS[name].slow else every) * cores
                size = max(1, len(toys) // cores // 10)
                share = functools.partial(fit_on_all_cores, pool, folder, name, toys, size)
                timed.append(Timed(name, "all cores", share, toys))
        take_turns(timed, args.repeat, say)
        numba.set_num_threads(1)
        say("kernels")
        kernels = time_kernels(study, data, args.repeat, "numba-stats" in peers)
        say("MINOS")
        n_peer = min(args.toys, args.peers_toys)
        minos = time_minos(study, data, limits, n_peer, args.repeat, "numba-stats" in peers)
        say("quadratic formula")
        numba.set_num_threads(cores)
        formula = time_formula(FORMULA_ROWS, args.repeat, cores)

    minimum, errors = minima(data, next(t.outcome for t in timed if t.name == "batchfit"))
    events = float(np.diff(data.offsets).mean())
    fits = [row(t, minimum, errors) for t in timed if t.name != "generate"]
    speed = {(fit["name"], fit["where"]): fit["fits_per_second"] for fit in fits}
    for fit in fits:
        mine, its = speed.get(("batchfit", fit["where"])), fit["fits_per_second"]
        fit["batchfit_is_faster_by"] = mine / its if mine and its and fit["name"] != "batchfit" else None
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command_line": args.command_line,
        "machine": {
            "cpu": cpu_name(),
            "cores": cores,
            "system": f"{platform.system()} {platform.machine()}",
            "jax_devices": sorted({f"{device.platform}: {device.device_kind}" for device in jax.devices()}),
            "load_before_and_after": [load_before, os.getloadavg()[0]] if load_before is not None else None,
            "svml": bool(numba.config.USING_SVML),
        },
        "versions": {"python": platform.python_version(), **versions()},
        "sizes": {
            "n_toys": args.toys,
            "events_per_toy": events,
            "n_params": len(study.cost.names),
            "repeat": args.repeat,
            "peers_toys": args.peers_toys,
            "seed": args.seed,
            "dtype": "float64",
        },
        "fits": fits,
        "missing": missing,
        "generation": [generation(t, len(data.values), cores) for t in timed if t.name == "generate"],
        "kernels": kernels,
        "minos": minos,
        "formula": formula,
    }


def time_kernels(study: Any, data: Any, repeat: int, has_numba_stats: bool) -> list[dict]:
    """ns per event of one evaluation at the truth, in one thread, by turns: best and median."""
    import numpy as np

    from engine.cpu import NumbaDriver

    rows = study.cost.rows(data)
    driver = NumbaDriver(study.cost, rows)
    theta = study.theta
    out, gradient = np.empty(2 + 5 + 15), np.empty(5)
    shared, aux = np.array(rows.shared), np.array(rows.aux)
    x = [data[k].copy() for k in range(min(len(data), 10))]
    evaluations: dict[str, Callable[[int], Any]] = {
        "batchfit: value, gradient and exact Hessian": lambda k: driver.kernel(
            theta, rows.columns, shared, aux[k], rows.offsets[k], rows.offsets[k + 1], out
        ),
        "hand-written: value and gradient": lambda k: hand_written_nll(1)(x[k], *theta, gradient),
        "hand-written, one log for 8 events: value and gradient": lambda k: hand_written_nll(8)(x[k], *theta, gradient),
    }
    if has_numba_stats:
        costs = [numba_stats_cost(events) for events in x]
        evaluations["numba-stats: value"] = lambda k: costs[k](*theta)
    seconds: dict[str, list[float]] = {label: [] for label in evaluations}
    for r in range(KERNEL_ROUNDS * repeat):
        k = r % len(x)
        for label, evaluate in evaluations.items():
            begin = time.perf_counter()
            evaluate(k)
            seconds[label].append((time.perf_counter() - begin) / len(x[k]))
    return [
        {"label": label, "best_ns": 1e9 * min(times), "median_ns": 1e9 * statistics.median(times), "n": len(times)}
        for label, times in seconds.items()
    ]


def time_minos(study: Any, data: Any, limits: Sequence, n_peer: int, repeat: int, has_numba_stats: bool) -> list[dict]:
    """MINOS of all 5 parameters of the same toys in one thread, by turns; the fits before it are not timed."""
    import numpy as np
    from iminuit import Minuit

    from engine import fit_batch

    result = fit_batch(study.cost, data, study.start, limits=study.limits, backend="numba")
    start = list(study.start.values())
    ways: dict[str, Callable[[Any], Any]] = {
        "iminuit, hand-written numba NLL and gradient": lambda x: hand_written_minuit(x, start)
    }
    if has_numba_stats:
        ways["iminuit, ExtendedUnbinnedNLL and numba-stats"] = lambda x: Minuit(numba_stats_cost(x), *start)

    def search(make: Callable[[Any], Any], x: Any) -> tuple[float, Any, float]:
        """(seconds, intervals (5, 2), evaluations and gradients) of one toy; NaN where MINOS has none."""
        minuit = make(x)
        run_minuit(minuit, limits, 1, False)
        before = minuit.nfcn + minuit.ngrad
        begin = time.perf_counter()
        minuit.minos()
        seconds = time.perf_counter() - begin
        ends = [
            (e.lower if e.lower_valid else np.nan, e.upper if e.upper_valid else np.nan)
            for e in minuit.merrors.values()
        ]
        return seconds, np.array(ends), minuit.nfcn + minuit.ngrad - before

    seconds: dict[str, list[float]] = {"batchfit": [], **{label: [] for label in ways}}
    found: dict[str, list] = {label: [] for label in ways}
    for r in range(repeat + 1):
        begin = time.perf_counter()
        intervals = result.minos()
        seconds["batchfit"].append((time.perf_counter() - begin) / len(data))
        for label, make in ways.items():
            found[label] = [search(make, data[k].copy()) for k in range(n_peer if r else 1)]
            seconds[label].append(sum(each[0] for each in found[label]) / len(found[label]))
    medians = {label: statistics.median(times[1:]) for label, times in seconds.items()}  # the first compiles
    ours = np.stack([intervals.lower, intervals.upper], axis=-1)
    rows = [
        {
            "label": "batchfit",
            "ms_per_toy": 1e3 * medians["batchfit"],
            "n_toys": len(data),
            "failed": int(np.sum(~intervals.valid.all(axis=1))),
            "evaluations": float(intervals.nfev.sum(axis=1).mean()),
            "worst_difference": None,
            "batchfit_is_faster_by": None,
        }
    ]
    for label, fits in found.items():
        theirs = np.array([each[1] for each in fits])
        difference = np.abs(theirs - ours[: len(fits)]) / result.errors[: len(fits), :, None]
        rows.append(
            {
                "label": label,
                "ms_per_toy": 1e3 * medians[label],
                "n_toys": len(fits),
                "failed": int(np.sum(np.isnan(theirs).any(axis=(1, 2)))),
                "evaluations": float(np.mean([each[2] for each in fits])),
                "worst_difference": float(np.nanmax(difference)),
                "batchfit_is_faster_by": medians[label] / medians["batchfit"],
            }
        )
    return rows


def quadratic_formula(a: Any, b: Any, c: Any, sqrt: Callable) -> Any:
    """A root of a x^2 + b x + c: nine elementwise operations, for which NumPy passes over memory nine times."""
    return (-b + sqrt(b**2 - 4 * a * c)) / (2 * a)


def time_formula(n_rows: int, repeat: int, cores: int) -> list[dict]:
    """The quadratic formula on many rows: NumPy, numba's loop, JAX, and the translated kernel."""
    import jax
    import jax.numpy as jnp
    import numba
    import numpy as np

    from kernels.translate import compile_map

    rng = np.random.default_rng(0)
    columns = np.stack([rng.uniform(5, 10, n_rows), rng.uniform(10, 20, n_rows), rng.uniform(-0.1, 0.1, n_rows)])
    a, b, c = columns
    expected = quadratic_formula(a, b, c, np.sqrt)
    in_jax = functools.partial(quadratic_formula, sqrt=jnp.sqrt)
    kernel = compile_map(in_jax, 0, n_columns=3)
    no_parameters, result = np.empty(0), np.empty(n_rows)

    def loop(a, b, c, out):
        for i in numba.prange(len(a)):
            out[i] = (-b[i] + np.sqrt(b[i] ** 2 - 4 * a[i] * c[i])) / (2 * a[i])

    one, many = numba.njit(loop), numba.njit(loop, parallel=True)
    ends = np.linspace(0, n_rows, cores + 1).astype(int)
    rows = np.empty_like(columns)

    def fill() -> None:
        rows[:] = columns  # the kernel writes over its first column

    with ThreadPoolExecutor(cores) as threads, jax.enable_x64(True):
        formula = jax.jit(in_jax)
        on_device = [jax.device_put(column) for column in columns]
        ways: list[tuple[str, str, Callable[[], Any], Callable[[], Any]]] = [
            ("NumPy", "one core", lambda: quadratic_formula(a, b, c, np.sqrt), lambda: None),
            ("numba, a loop by hand", "one core", lambda: one(a, b, c, result) or result, lambda: None),
            ("batchfit's kernel", "one core", lambda: kernel(no_parameters, rows, 0, n_rows) or rows[0], fill),
            ("numba, a parallel loop by hand", "all cores", lambda: many(a, b, c, result) or result, lambda: None),
            ("JAX", "all cores", lambda: formula(*on_device).block_until_ready(), lambda: None),
            (
                "batchfit's kernel",
                "all cores",
                lambda: (
                    list(threads.map(lambda k: kernel(no_parameters, rows, ends[k], ends[k + 1]), range(cores)))
                    and rows[0]
                ),
                fill,
            ),
        ]
        seconds: dict[tuple[str, str], list[float]] = {(label, where): [] for label, where, _, _ in ways}
        worst = dict.fromkeys(seconds, 0.0)
        for _ in range(repeat + 1):  # the first compiles
            for label, where, call, before in ways:
                before()
                started = time.perf_counter()
                found = call()
                seconds[label, where].append(time.perf_counter() - started)
                worst[label, where] = float(np.max(np.abs(np.asarray(found) / expected - 1.0)))
    return [
        {
            "label": label,
            "where": where,
            "first_seconds": each[0],
            "ns_per_row": 1e9 * statistics.median(each[1:]) / n_rows,
            "worst_relative_difference": worst[label, where],
        }
        for (label, where), each in seconds.items()
    ]


def minima(data: Any, result: Any) -> tuple:
    """(minima, errors) of all toys: this engine's, moved by a Newton step with the hand-written gradient."""
    import numpy as np

    gradient = np.empty(5)
    minimum = result.values.copy()
    for k in range(len(minimum)):
        hand_written_nll(1)(data[k].copy(), *minimum[k], gradient)
        minimum[k] -= result.covariance[k] @ gradient
    return minimum, result.errors


def row(timed: Timed, minimum: Any, errors: Any) -> dict:
    """What one contender did: speed, failures, evaluations, distance from the minimum in units of sigma."""
    import numpy as np

    outcome, toys = timed.outcome, np.array(timed.toys)
    if isinstance(outcome, list):
        values, valid = np.array([fit.values for fit in outcome]), np.array([fit.valid for fit in outcome])
        evaluations, gradients = (float(np.mean([getattr(f, n) for f in outcome])) for n in ("nfcn", "ngrad"))
        label = PEERS[timed.name].label
    else:
        values, valid = outcome.values, outcome.valid
        evaluations, gradients = float(outcome.nfev.mean()), 0.0
        driver = "numba" if timed.name == "batchfit" else "JAX"
        label = f"batchfit, {driver} driver: exact covariance, EDM below 1e-13"
    distance = np.max(np.abs(values - minimum[toys]) / errors[toys], axis=1)[valid & np.isfinite(errors[toys]).all(1)]
    seconds = statistics.median(timed.seconds)
    return {
        "name": timed.name,
        "where": timed.where,
        "label": label,
        "n_fits": len(toys),
        "failed": int(np.sum(~valid)),
        "fits_per_second": float(np.sum(valid)) / seconds,  # a failed fit takes time and is none
        "median_seconds": seconds,
        "seconds": timed.seconds,
        "first_seconds": timed.first_seconds,
        "evaluations": evaluations,
        "gradients": gradients,
        "median_distance": float(np.median(distance)) if len(distance) else None,
        "worst_distance": float(np.max(distance)) if len(distance) else None,
    }


def generation(timed: Timed, n_events: int, cores: int) -> dict:
    seconds = statistics.median(timed.seconds)
    used = cores if timed.where == "all cores" else 1
    return {
        "where": timed.where,
        "toys_per_second": len(timed.toys) / seconds,
        "ns_per_event_and_core": 1e9 * seconds * used / n_events,
        "seconds": timed.seconds,
        "first_seconds": timed.first_seconds,
    }


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> dict[str, str | None]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


# --------------------------------------------------------------------------------------------- printing


def show(report: dict) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 150
    machine, sizes = report["machine"], report["sizes"]
    cores = machine["cores"]
    installed = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    console.print(f"{machine['cpu']}, {cores} cores, {machine['system']}; JAX sees {', '.join(machine['jax_devices'])}")
    console.print(installed + ("" if machine["svml"] else "; numba without SVML"))
    load = machine["load_before_and_after"]
    console.print(report["date"] + (f", load {load[0]:.1f} before, {load[1]:.1f} after" if load else ""))
    console.print(
        f"{sizes['n_toys']} toys of {sizes['events_per_toy']:.0f} events, {sizes['n_params']} parameters, float64, "
        f"start at the truth, median of {sizes['repeat']} runs after a warm-up"
    )

    by_name: dict[str, dict[str, dict]] = {}
    for fit in report["fits"]:
        by_name.setdefault(fit["name"] + ("-gpu" if fit["where"] == "gpu" else ""), {})[fit["where"]] = fit
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("fits per second", ratio=1)
    for title in (
        "1 core", f"{cores} cores", "fits", "failed", "evaluations\nper fit", "from the minimum\nmedian, worst [sigma]",
        "batchfit is faster\nper core by", "first\ncall [s]",
    ):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True)
    for places in by_name.values():
        fit = next(iter(places.values()))
        gradients = f" + {fit['gradients']:.1f} grad." if fit["gradients"] else ""
        label = fit["label"]
        distance = (
            "-" if fit["worst_distance"] is None else f"{fit['median_distance']:.0e}, {fit['worst_distance']:.0e}"
        )
        one, many = (places.get(where, {}).get("fits_per_second") for where in ("one core", "all cores"))
        faster = fit["batchfit_is_faster_by"]
        if fit["where"] == "gpu":
            many, label = fit["fits_per_second"], label + ", on the GPU"
        table.add_row(
            label,
            number(one),
            number(many),
            str(fit["n_fits"]),
            str(fit["failed"]),
            f"{fit['evaluations']:.1f}{gradients}",
            distance,
            f"{faster:.1f}" if faster else "-",
            f"{fit['first_seconds']:.1f}",
        )
    for name, reason in report["missing"].items():
        table.add_row(PEERS[name].label, reason)
    console.print(table)
    console.print(
        "An evaluation is value, gradient and exact Hessian in batchfit, value alone in iminuit; the hand-written one\n"
        "computes the gradient with it. Failed fits take time and are not counted. Strategy 0 gives no errors.\n"
    )

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for title in ("one evaluation, one core, ns per event", "best", "median"):
        table.add_column(title, justify="left" if title.startswith("one") else "right")
    for kernel in report["kernels"]:
        table.add_row(kernel["label"], f"{kernel['best_ns']:.1f}", f"{kernel['median_ns']:.1f}")
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for title in (
        "MINOS of 5 parameters, one core", "ms per toy", "toys", "failed", "evaluations\nper toy",
        "differs from batchfit\nworst [sigma]", "batchfit is\nfaster by",
    ):  # fmt: skip
        table.add_column(title, justify="left" if title.startswith("MINOS") else "right")
    for way in report["minos"]:
        worst, faster = way["worst_difference"], way["batchfit_is_faster_by"]
        table.add_row(
            way["label"],
            f"{way['ms_per_toy']:.2f}",
            str(way["n_toys"]),
            str(way["failed"]),
            f"{way['evaluations']:.1f}",
            f"{worst:.0e}" if worst is not None else "-",
            f"{faster:.0f}" if faster else "-",
        )
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for title in (f"quadratic formula, {FORMULA_ROWS:,} rows", "where", "ns per row", "first call [s]"):
        table.add_column(title, justify="left" if title.startswith(("quadratic", "where")) else "right")
    for way in report["formula"]:
        table.add_row(way["label"], way["where"], f"{way['ns_per_row']:.2f}", f"{way['first_seconds']:.2f}")
    console.print(table)
    for made in report["generation"]:
        console.print(
            f"generation, {made['where']}: {made['toys_per_second']:.0f} toys per second, "
            f"{made['ns_per_event_and_core']:.1f} ns per event and core"
        )


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    args.command_line = " ".join([parser.prog, *(sys.argv[1:] if argv is None else argv)])
    if not 0 <= args.seed < 2**64:
        return fail(f"--seed must lie in 0 <= seed < 2^64, got {args.seed}")
    if args.json and not Path(args.json).absolute().parent.is_dir():
        return fail(f"--json: there is no folder {Path(args.json).absolute().parent}")
    try:
        import toys
    except ImportError as error:
        return fail(f"{error}: install the project first, with pip install -e . in its folder")
    if getattr(toys, "BATCHFIT", None) is None:
        return fail(
            f"another package named 'toys' at {next(iter(toys.__path__))} hides batchfit's: use another environment"
        )
    from rich.console import Console

    with Console(stderr=True).status("starting") as status:
        report = measure(args, status.update)
    show(report)
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    return DONE


def fail(sentence: str) -> int:
    print(f"benchmark.py: {sentence}", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
