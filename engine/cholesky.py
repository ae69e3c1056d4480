"""Small symmetric systems by Cholesky's factorisation, one for each toy.

Written out in scalars, the factorisation and all that stands around it go into few kernels of an accelerator, where
calls of a library cost several launches for each solution. A CPU takes as long for both, and compiles the calls sooner.
A step has many of them, and JAX traces each function once: that is half of the time before a program is compiled.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.linalg import solve_triangular

from engine.rules import PIVOT

__all__ = ["UNROLLED", "factorise", "solve", "solve_lower"]

UNROLLED = 8  # unknowns; beyond it the compilation takes longer than the library calls


@functools.partial(jax.jit, static_argnames="unrolled")
def factorise(a: Array, shift: Array | float, unrolled: bool = False) -> tuple[Any, Array]:
    """The lower triangular factor of a + shift, and whether that is positive definite; if not, that of the unit matrix.

    Parameters
    ----------
    a : (n, n) float64
        Of which the lower triangle is read.
    shift : () float64
        Added to the diagonal.
    unrolled : bool
        Whether up to `UNROLLED` unknowns are written out in scalars; the factor is then a list of its rows.
    """
    n = len(a)
    if not unrolled or n > UNROLLED:
        factor = jnp.linalg.cholesky(a + shift * jnp.eye(n), symmetrize_input=False)
        good = jnp.all(jnp.diagonal(factor) ** 2 > PIVOT * (1.0 + shift))
        return jnp.where(good, factor, jnp.eye(n)), good
    rows: list[list[Array]] = []
    good = jnp.asarray(True)
    for i in range(n):
        row: list[Array] = []
        for j in range(i):
            row.append((a[i, j] - _dot(row, rows[j])) / rows[j][j])
        pivot = a[i, i] + shift - _dot(row, row)
        above = pivot > PIVOT * (1.0 + shift)
        good &= above
        rows.append([*row, jnp.sqrt(jnp.where(above, pivot, 1.0))])
    return [[jnp.where(good, x, float(i == j)) for j, x in enumerate(row)] for i, row in enumerate(rows)], good


@jax.jit
def solve_lower(factor: Any, b: Array) -> Array:
    """x of L x = b."""
    if not isinstance(factor, list):
        return solve_triangular(factor, b, lower=True)
    x: list[Array] = []
    for i, row in enumerate(factor):
        x.append((b[i] - _dot(row, x)) / row[i])
    return jnp.stack(x)


@jax.jit
def solve(factor: Any, b: Array) -> Array:
    """x of L L^T x = b."""
    y = solve_lower(factor, b)
    if not isinstance(factor, list):
        return solve_triangular(factor, y, lower=True, trans=1)
    n = len(factor)
    x: list[Any] = [None] * n
    for i in reversed(range(n)):
        total = y[i]
        for k in range(i + 1, n):
            total = total - factor[k][i] * x[k]
        x[i] = total / factor[i][i]
    return jnp.stack(x)


def _dot(u: list[Array], v: list[Array]) -> Array | float:
    """The sum of the products of what both have."""
    total: Array | float = 0.0
    for a, b in zip(u, v, strict=False):
        total = total + a * b
    return total
