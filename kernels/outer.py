"""Sums over rows of outer products of vectors, as numba source: the part of a Hessian of many parameters."""

from collections.abc import Sequence

from kernels.program import GRADIENT, Outer

__all__ = ["BEYOND", "BLOCK", "add_outer", "outer_source", "tables"]

BLOCK = 64  # rows of which the products are taken at once
BEYOND = 3  # rows of `work` that may be read beyond the last vector
_SOURCE = """
ONE, TWO, THREE, FOUR = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4)
HESSIAN = np.uint64({hessian})


@lowered(**COMPILE_ROW)
def add_element(out, i, j, value, twice):
    if i < j:
        i, j = j, i
    out[HESSIAN + i * (i + ONE) // TWO + j] += value + value if twice and i == j else value


@lowered(**COMPILE_ROW)
def add_outer(work, n, stride, starts, index, gradient, hessian, out):
    # row k of `work` holds entry k of the vectors in n places, `stride` apart from the next; the weights follow
    use_wide_vectors()
    weights = starts[len(starts) - 1]
    scaled = np.empty(n)
    for t in range(len(gradient)):
        weight, v = (weights + gradient[t, 0]) * stride, gradient[t, 1]
        for k in range(starts[v], starts[v + ONE]):
            total = 0.0
            for b in range(n):
                total += work[weight + b] * work[k * stride + b]
            out[TWO + index[k]] += total
    for t in range(len(hessian)):
        weight, u, v = (weights + hessian[t, 0]) * stride, hessian[t, 1], hessian[t, 2]
        for k in range(starts[u], starts[u + ONE]):
            for b in range(n):
                scaled[b] = work[weight + b] * work[k * stride + b]
            end = k + ONE if u == v else starts[v + ONE]
            # four at a time; what is read beyond the end is not used
            for j in range(starts[v], end, FOUR):
                s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
                row = j * stride
                for b in range(n):
                    s = scaled[b]
                    s0 += s * work[row + b]
                    s1 += s * work[row + stride + b]
                    s2 += s * work[row + TWO * stride + b]
                    s3 += s * work[row + THREE * stride + b]
                add_element(out, index[k], index[j], s0, u != v)
                if j + ONE < end:
                    add_element(out, index[k], index[j + ONE], s1, u != v)
                if j + TWO < end:
                    add_element(out, index[k], index[j + TWO], s2, u != v)
                if j + THREE < end:
                    add_element(out, index[k], index[j + THREE], s3, u != v)
"""


def outer_source(n_params: int) -> str:
    """The text of the function `add_outer`."""
    return _SOURCE.format(hessian=GRADIENT + n_params)


def tables(outer: Outer, name: str) -> list[str]:
    """Lines that define what `add_outer` has to know."""
    index = [i for vector in outer.vectors for i in vector.params]
    lines = [
        f"{name}_{key} = np.array({v}, dtype=np.uint64)" for key, v in (("STARTS", outer.starts), ("INDEX", index))
    ]
    return [*lines, _table(f"{name}_GRADIENT", outer.gradient, 2), _table(f"{name}_HESSIAN", outer.hessian, 3)]


def _table(name: str, rows: Sequence[tuple], width: int) -> str:
    return f"{name} = np.array({[n for row in rows for n in row]}, dtype=np.uint64).reshape(-1, {width})"


def add_outer(name: str, work: str, n: str, stride: int) -> str:
    """The call that adds the products of n rows, whose entries are in `work`."""
    tables = ", ".join(f"{name}_{key}" for key in ("STARTS", "INDEX", "GRADIENT", "HESSIAN"))
    return f"add_outer({work}, {n}, np.uint64({stride}), {tables}, out)"
