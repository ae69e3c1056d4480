"""What the rows and operations of a fit take at best on an accelerator."""

from typing import Any

from bench.floors import count_cost

from kernels.program import SECOND

__all__ = ["BYTES", "MULTIPLY_ADDS", "floors_of"]

BYTES, MULTIPLY_ADDS = 4.3e12, 17e12  # each second, of an H200 in float64
# Multiply-adds of an operation of `bench.floors`, by the polynomials of libdevice; 1 for all others.
COSTS = {"exp": 20, "expm1": 25, "log": 25, "log1p": 30, "divide": 8, "sqrt": 10, "pow": 60, "erf": 40, "erfc": 50}


def floors_of(cost: Any, rows: Any, evaluations: float, seconds: float) -> dict:
    """Seconds that reading the rows and their operations take at best, and the time in units of the larger one."""
    n_bytes = sum(8.0 * leaf.columns.size for leaf in rows.leaves)
    counted = count_cost(cost, rows, SECOND)
    operations = max(counted.pop("add", 0.0), counted.pop("multiply", 0.0))
    operations += sum(n * COSTS.get(op, 1) for op, n in counted.items())
    floors = {
        "bytes_s": n_bytes * evaluations / BYTES,
        "multiply_adds_s": len(rows) * operations * evaluations / MULTIPLY_ADDS,
    }
    return {"floors": floors, "gap": seconds / max(floors.values())}
