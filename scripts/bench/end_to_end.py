"""Toys of the main model drawn and fitted: by the whole command, in this process, and kernel by kernel."""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from bench.accelerator import MAIN, Bench, seconds_of

from engine import Ragged
from engine.resident import Resident
from toys.models import peak
from toys.study import generate

__all__ = ["goal", "run", "trace"]

TIMEOUT = 100.0  # seconds
MOST_KERNELS = 40  # of a trace that are listed


def run(bench: Bench) -> dict:
    """The whole command, in a process of its own: first with what is compiled, then from the cache."""
    command = [sys.executable, str(Path(__file__).parents[1] / "run_toys.py"), "--device", bench.device]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in ("first", "second"):
            out = Path(folder) / f"{turn}.h5"
            start = time.perf_counter()
            arguments = ["--n", str(bench.n_toys(MAIN)), "--out", str(out), "--validate", "10"]
            done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=TIMEOUT, check=False)
            found[turn] = {"seconds": time.perf_counter() - start, "code": done.returncode}
            # its own times, or what went wrong
            found[turn]["said"] = done.stderr[-500:] or " ".join(
                done.stdout.partition("seconds:")[2].partition("written:")[0].split()
            )
    return found


def _main_model(bench: Bench) -> tuple[Callable[[], None], Callable[[], None], dict[str, Any]]:
    """What draws the toys of the main model, what fits them, and where they put both."""
    study, made = peak(), dict[str, Any]()

    def draw() -> None:
        made["toys"] = generate(study, bench.n_toys(MAIN), bench.seed, backend="jax")
        jax.block_until_ready(getattr(made["toys"], "padded", None))

    def fit() -> None:
        made["fits"] = study.fit(made["toys"], backend="jax", device=bench.device)

    return draw, fit, made


def goal(bench: Bench) -> dict:
    """Toys of the main model drawn and fitted on the device, where their events stay there and through the host."""
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

    with jax.default_device(bench.devices[0]):
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
    with jax.default_device(bench.devices[0]):
        draw()
        fit()
        for name, what in (("draw", draw), ("fit", fit)):
            with tempfile.TemporaryDirectory() as folder:
                with jax.profiler.trace(folder):
                    seconds = seconds_of(what)
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
