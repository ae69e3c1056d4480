"""An elementwise formula of many rows: what the translated kernel gains over NumPy, numba and JAX."""

import functools
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numba
import numpy as np

from kernels.translate import compile_map

__all__ = ["FORMULA_ROWS", "time_formula"]

FORMULA_ROWS = 5_000_000


def quadratic_formula(a: Any, b: Any, c: Any, sqrt: Callable) -> Any:
    """A root of a x^2 + b x + c: nine elementwise operations, for which NumPy passes over memory nine times."""
    return (-b + sqrt(b**2 - 4 * a * c)) / (2 * a)


def time_formula(n_rows: int, repeat: int, cores: int) -> list[dict]:
    """The quadratic formula on many rows: NumPy, numba's loop, JAX, and the translated kernel."""
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
