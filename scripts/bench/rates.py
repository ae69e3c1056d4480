"""What one core of this machine does in a second, in loops that LLVM vectorises.

Each rate is the best of several runs: what else runs on the machine slows some of them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit

from kernels import vectormath, vectorpower
from kernels.randombits import uniforms
from kernels.vectormath import COMPILE_HELPER, COMPILE_ROW, use_wide_vectors

__all__ = ["Rates", "measure_rates"]

_IN_L1 = 1024  # numbers
_IN_L2 = 2**15
_IN_MEMORY = 2**25  # 256 MiB
_SECONDS = 0.005  # of one run
_RUNS = 10
# Without the flag "contract" a multiplication and an addition stay two instructions.
_APART = COMPILE_HELPER | {"fastmath": False}


@dataclass(frozen=True)
class Rates:
    """Operations on float64 and bytes, per second and core.

    Attributes
    ----------
    multiply_adds : float
        x y + z in one instruction; many independent ones.
    additions : float
        Additions and multiplications, each its own instruction.
    divisions, square_roots : float
    functions : dict of str to float
        Of `kernels.vectormath` and `kernels.vectorpower`.
    memory_bytes : float
        Read from an array of 256 MiB.
    l2_bytes : float
        Read from an array of 256 KiB.
    threefry_blocks : float
        Two random words of 32 bits each, made into one uniform number.
    """

    multiply_adds: float
    additions: float
    divisions: float
    square_roots: float
    functions: dict[str, float]
    memory_bytes: float
    l2_bytes: float
    threefry_blocks: float


def measure_rates() -> Rates:
    """The rates of this machine now; takes less than 5 s."""
    x, out = np.linspace(0.5, 1.5, _IN_L1), np.empty(_IN_L1)
    numbers = np.ones(_IN_MEMORY)
    key = np.uint32(1), np.uint32(2)
    functions = {
        "exp": vectormath.exp,
        "log": vectormath.log,
        "erf": vectormath.erf,
        "erfc": vectormath.erfc,
        "log1p": vectorpower.log1p,
    }
    each = lambda function: _IN_L1 / _seconds(_each(function), x, out)  # noqa: E731
    return Rates(
        multiply_adds=(64 + 14) * each(njit(**COMPILE_HELPER)(_chains)),
        additions=(2 * 64 + 14) * each(njit(**_APART)(_chains)),
        divisions=each(_reciprocal),
        square_roots=each(_square_root),
        functions={name: each(function) for name, function in functions.items()},
        memory_bytes=numbers.nbytes / _seconds(_total, numbers),
        l2_bytes=8 * _IN_L2 / _seconds(_total, numbers[:_IN_L2]),
        threefry_blocks=_IN_L1 / _seconds(uniforms, *key, out),
    )


def _seconds(function: Callable, *args: object) -> float:
    """The shortest time of one call, of several runs of as many calls as take `_SECONDS`."""
    best, calls = math.inf, 1
    runs = 0
    while runs < _RUNS:
        begin = time.perf_counter()
        for _ in range(calls):
            function(*args)
        seconds = time.perf_counter() - begin
        best = min(best, seconds / calls)
        if seconds < 0.5 * _SECONDS:
            calls = max(2 * calls, int(_SECONDS / max(best, 1e-9)))
        else:
            runs += 1
    return best


def _each(function: Callable) -> Callable:
    @njit(["void(f8[::1], f8[::1])"], **COMPILE_ROW)
    def loop(x, out):
        use_wide_vectors()
        for i in range(np.uint64(len(x))):
            out[i] = function(x[i])

    return loop


@njit(**COMPILE_HELPER)
def _reciprocal(x):
    return 1.0 / x


@njit(**COMPILE_HELPER)
def _square_root(x):
    return math.sqrt(x)


def _chains(x):
    # eight, each of eight multiply-adds: two of them start at every cycle, and each takes four
    a, b, c, d = x, x + 0.1, x + 0.2, x + 0.3
    e, f, g, h = x + 0.4, x + 0.5, x + 0.6, x + 0.7
    for _ in range(8):
        a, b, c, d = a * x + 0.5, b * x + 0.5, c * x + 0.5, d * x + 0.5
        e, f, g, h = e * x + 0.5, f * x + 0.5, g * x + 0.5, h * x + 0.5
    return ((a + b) + (c + d)) + ((e + f) + (g + h))


@njit(["f8(f8[::1])"], **COMPILE_ROW)
def _total(x):
    use_wide_vectors()
    total = 0.0
    for i in range(np.uint64(len(x))):
        total += x[i]
    return total
