"""Generated source: the same results, bit for bit, as numba's own compilation of the same text."""

import itertools
import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from kernels import lowering
from kernels.translate import import_source

SIGNATURE = "void(f8[::1], f8[:, ::1], i8, i8, f8[::1])"
PROLOGUE = """U3, SIZES = np.uint64(3), np.array([[1, 2], [3, 4]], dtype=np.uint64)


@njit(error_model="numpy")
def total_of(values, scaled):
    total = 0.0
    for k in range(len(values)):
        total += values[k]
    return total * 2.0 if scaled else total


@{compiler}({signature!r}, error_model="numpy")
def compute(x, table, begin, end, out):
{body}
"""
SPECIAL = [-math.inf, -2.5, -1.0, -0.0, 0.0, 0.3, 1.0, 7.0, math.inf, math.nan]
# of two numbers x
SCALARS = {
    "arithmetic": """
        a, b = x[0], x[1]
        out[0], out[1], out[2] = a + b, a - b, -a
        out[3] = a * b
        out[4] = a / b
        out[5] = 1.0 / a - 2
    """,
    "comparisons": """
        a, b = x[0], x[1]
        c, d = a < b, a != b
        out[0] = 1.0 if c else 0.0
        out[1] = 1.0 if d else 0.0
        out[2] = 1.0 if a == b else 0.0
        out[3] = 1.0 if not c & d else 0.0
        out[4] = 1.0 if a <= b or a > b else 0.0
        out[5] = 1.0 if a >= b and b >= 0.0 else 0.0
    """,
    "choices": """
        a, b = x[0], x[1]
        out[0] = a if a > b or a != a else b
        out[1] = min(a, b)
        out[2] = max(a, 0.5)
        out[3] = True if a > b else False
        out[4] = np.nan if a > 0.0 else -np.inf
    """,
    "functions": """
        a, b = x[0], x[1]
        out[0], out[1] = math.fabs(a), math.sqrt(b)
        out[2] = math.copysign(a, b)
        out[3] = np.floor(a) + np.ceil(b)
        out[4] = 1.0 if math.isfinite(a) else 0.0
        out[5] = exp(a)
    """,
}
ARRAYS = {
    "sum": """
        total = 0.0
        for i in range(begin, end):
            total += table[0, i] * table[1, i]
        out[0] = total
    """,
    "blocks": """
        n = np.uint64(0)
        for start in range(np.uint64(begin), np.uint64(end), U3):
            n = min(U3, np.uint64(end) - start)
            for b in range(n):
                out[b] += table[0, start + b]
        out[5] = n
    """,
    "branches": """
        for i in range(begin, end):
            if table[0, i] > 0.0:
                out[0] += table[0, i]
            elif table[0, i] < -0.5:
                out[1] -= 1.0
            else:
                pass
    """,
    "guarded element": """
        for i in range(begin, end):
            k = 1e12 * table[2, i]
            out[0] += x[np.uint64(k)] if k >= 0.0 and k <= 1.0 else 0.25
    """,
    "views": """
        out[0] = total_of(out[1:1], True)
        row = table[1]
        out[1] = total_of(row, False)
        part = table[0, begin:end]
        out[2] = total_of(part, True) + part[1]
        below = table[1:3]
        below[1, 2] = 5.0
        out[3], out[4] = below[0, 1] + table[2, 2], len(below)
    """,
    "memory": """
        work = np.zeros(8)
        more = np.empty(end)
        for k in range(8):
            work[k] += k
        for k in range(end):
            more[k] = work[k] * 0.5
        out[0] = total_of(work, False) + total_of(more, False)
    """,
    "one name for several loops": """
        for k in range(3):
            out[0] += k
        for r in range(2):
            k = np.uint64(SIZES[r, 1])
            out[1] += k
        for k in range(SIZES[1, 0]):
            out[2] += k
    """,
    "whole numbers": """
        k = 2 * U3 + 1
        out[0], out[1] = k, k // U3
        first = begin
        for _ in range(2):
            first = first + end
        out[2], out[3] = first, int(x[0]) + 1
    """,
    "swapped": """
        if begin < end:
            begin, end = end, begin
        out[0], out[1] = begin, end
        for i in range(end, begin):
            out[2] += 1.0
    """,
}


def compiled(body, compiler):
    body = textwrap.indent(textwrap.dedent(body), "    ")
    text = PROLOGUE.format(body=body, compiler=compiler, signature=SIGNATURE)
    return import_source(text).compute


def results(function, x):
    out = np.zeros(8)
    function(np.array(x), np.linspace(-1.0, 1.0, 15).reshape(3, 5).copy(), 1, 5, out)
    return out


@pytest.mark.parametrize("body", SCALARS.values(), ids=SCALARS.keys())
def test_scalars_equal_those_of_numba(body):
    ours, theirs = (compiled(body, compiler) for compiler in ("lowered", "njit"))
    for x in itertools.product(SPECIAL, repeat=2):
        np.testing.assert_array_equal(results(ours, x), results(theirs, x), str(x))


@pytest.mark.parametrize("body", ARRAYS.values(), ids=ARRAYS.keys())
def test_loops_and_arrays_equal_those_of_numba(body):
    ours, theirs = (results(compiled(body, compiler), [4.0, 0.5]) for compiler in ("lowered", "njit"))
    np.testing.assert_array_equal(ours, theirs)
    assert ours.any()


def test_an_element_that_may_not_exist_is_read_in_a_branch(monkeypatch):
    """LLVM often moves the read of a choice into a branch, so that no result would tell."""
    monkeypatch.setattr(lowering._Lowering, "select", None)
    compiled(ARRAYS["guarded element"] + "    # in a branch\n    ", "lowered")


PROGRAM = """
import sys
import numpy as np
from kernels import lowering
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "again":
    lowering._Lowering = None  # there is nothing to compile
import generated
x = np.ones(1)
generated.twice(x)
print(x[0])
"""


def test_machine_code_comes_from_the_disk(tmp_path):
    decorator = '@lowered("void(f8[::1])", cache=True)'
    text = f"from kernels.lowering import lowered\n\n{decorator}\ndef twice(x):\n    x[0] = x[0] * 2.0\n"
    (tmp_path / "generated.py").write_text(text)
    for run in ("first", "again"):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), run]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "2.0\n"
