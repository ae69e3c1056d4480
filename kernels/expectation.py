"""Costs whose expectation is a vector function of the parameters: a sum over rows of term(mu_k, row k), mu = mu(theta).

With J = d mu / d theta, and t', t'' the derivatives of the term by its mu, the gradient is sum_k t'_k J_k and the
Hessian sum_k t''_k J_k J_k^T + sum_k t'_k d^2 mu_k / d theta^2. This is written out here for any expectation and any
term, as a numba kernel, whose parts `kernels.arrays` translates, and as a JAX function.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from kernels.arrays import function_source
from kernels.buffers import Pool
from kernels.program import EXPECTED, FIRST, SECOND, n_outputs
from kernels.translate import KERNEL_SIGNATURE, import_source

__all__ = ["VectorKernel", "expectation_kernel", "expectation_outputs", "saturated", "term_derivatives"]


class VectorKernel(NamedTuple):
    """A cost whose expectation is a vector function of the parameters.

    Attributes
    ----------
    kernel : numba function
        Of type `kernels.translate.KERNEL_SIGNATURE`.
    shared : (1, n) float64
        The model's constants, to be passed to the kernel as the first row of `shared`.
    """

    kernel: Callable
    shared: np.ndarray


def saturated(mu: Array, n: Array) -> Array:
    """The Poisson -log L of counts less its smallest value, mu - n + n log(n / mu), and mu where n is 0.

    NaN where mu < 0 and where n is no count, infinite where mu = 0 in a filled bin.
    """
    filled = n > 0
    excess, counts = mu - n, jnp.where(filled, n, 1.0)
    beyond = jnp.where(filled, excess / counts, 0.0)
    # log(mu / n) would lose the digits in which mu and n agree, log1p those of a mu that is nothing beside n
    log_ratio = jnp.where(beyond < -0.5, jnp.log(mu / counts), jnp.log1p(beyond))
    return jnp.where(filled | ((n == 0) & (mu >= 0)), excess - n * log_ratio, jnp.nan)


def term_derivatives(term: Callable) -> Callable:
    """`f(mu, *columns) -> (term, first, second derivative by mu)`, all elementwise."""

    def derivatives(mu: Array, *columns: Array) -> tuple[Array, Array, Array]:
        along = jnp.ones_like(mu)
        first = lambda m: jax.jvp(lambda q: term(q, *columns), (m,), (along,))  # noqa: E731
        (value, slope), (_, curvature) = jax.jvp(first, (mu,), (along,))
        return value, slope, curvature

    return derivatives


_KERNEL = """

@lowered(forceinline=True, **COMPILE_ROW)
def weighted_products(jacobian, weights, hessian, scaled):
    # blocks of two rows and four columns: what is read is used eight times, and the sums fit the registers
    for i in range(ZERO, N_PARAMS, TWO):
        last = min(i + ONE, N_PARAMS - ONE)
        for k in range(N_BINS):
            scaled[k] = weights[k] * jacobian[i * N_BINS + k]
            scaled[N_BINS + k] = weights[k] * jacobian[last * N_BINS + k]
        row, below = i * (i + ONE) // TWO, last * (last + ONE) // TWO
        blocks = (i + ONE) // FOUR * FOUR
        for j in range(ZERO, blocks, FOUR):
            a0, a1, a2, a3 = 0.0, 0.0, 0.0, 0.0
            b0, b1, b2, b3 = 0.0, 0.0, 0.0, 0.0
            first = j * N_BINS
            for k in range(N_BINS):
                a, b = scaled[k], scaled[N_BINS + k]
                x0, x1 = jacobian[first + k], jacobian[first + N_BINS + k]
                x2, x3 = jacobian[first + TWO * N_BINS + k], jacobian[first + THREE * N_BINS + k]
                a0 += a * x0
                a1 += a * x1
                a2 += a * x2
                a3 += a * x3
                b0 += b * x0
                b1 += b * x1
                b2 += b * x2
                b3 += b * x3
            hessian[row + j], hessian[row + j + ONE] = a0, a1
            hessian[row + j + TWO], hessian[row + j + THREE] = a2, a3
            hessian[below + j], hessian[below + j + ONE] = b0, b1
            hessian[below + j + TWO], hessian[below + j + THREE] = b2, b3
        for j in range(blocks, last + ONE):
            a, b = 0.0, 0.0
            for k in range(N_BINS):
                a += scaled[k] * jacobian[j * N_BINS + k]
                b += scaled[N_BINS + k] * jacobian[j * N_BINS + k]
            if j <= i:
                hessian[row + j] = a
            hessian[below + j] = b


@lowered(forceinline=True, **COMPILE_ROW)
def weighted_sums(jacobian, weights, sums):
    blocks = N_PARAMS // FOUR * FOUR
    for i in range(ZERO, blocks, FOUR):
        a, b, c, d = 0.0, 0.0, 0.0, 0.0
        first = i * N_BINS
        for k in range(N_BINS):
            w = weights[k]
            a += w * jacobian[first + k]
            b += w * jacobian[first + N_BINS + k]
            c += w * jacobian[first + TWO * N_BINS + k]
            d += w * jacobian[first + THREE * N_BINS + k]
        sums[i], sums[i + ONE], sums[i + TWO], sums[i + THREE] = a, b, c, d
    for i in range(blocks, N_PARAMS):
        total = 0.0
        for k in range(N_BINS):
            total += weights[k] * jacobian[i * N_BINS + k]
        sums[i] = total


@lowered({signature!r}, cache=True, **COMPILE_ROW)
def row_sums(theta, rows, shared, aux, begin, end, order, out):
    constants = shared[0]
{views}
    expectation(constants, theta, {shared}mu, jacobian, w0)
    derivatives(constants, mu, {columns}terms, slope, curvature, w1)
    value = 0.0
    absolute = 0.0
    for k in range(N_BINS):
        value += terms[k]
        absolute += math.fabs(terms[k])
    out[0] = value
    out[1] = absolute
    weighted_sums(jacobian, slope, out[2:{hessian}])
    hessian = out[{hessian}:{memory}]
    if order == EXPECTED:
        derivatives(constants, mu, {expectations}terms, slope, curvature, w1)
    if order > FIRST:
        weighted_products(jacobian, curvature, hessian, scaled)
"""
_CURVED = """    if order == SECOND:
        bend(constants, theta, {shared}slope, second, w2)
        for r in range(len(BENT)):
            hessian[BENT[r, 0]] += second[BENT[r, 1]]
"""


def expectation_kernel(
    expected: Callable,
    n_params: int,
    n_bins: int,
    *,
    term: Callable = saturated,
    n_columns: int = 1,
    n_shared: int = 0,
) -> VectorKernel:
    """A cost with a vector as expectation, compiled by numba; by default the Poisson likelihood of counts.

    Parameters
    ----------
    expected : callable
        `expected(*theta, *shared) -> (n_bins,)`, with shared columns of shape (n_bins,).
    n_params, n_bins : int
    term : callable
        `term(mu, *columns)`: what the rows add to the cost, elementwise on arrays (n_bins,). The first column is what
        is measured, and has the expectation mu.
    n_columns, n_shared : int
        Number of columns of each toy that the term takes, and of columns shared by all toys that `expected` takes.

    Returns
    -------
    VectorKernel
        A bin is a row, and the kernel must be given all n_bins of them; the shared columns stand below the constants.
        The second derivatives of a linear expectation are left out. See `kernels.program` for the outputs.

    Raises
    ------
    UntranslatableError
        If an operation has no form here; the message names it and the line of the model.
    ValueError
        If `expected` does not return n_bins values.
    """

    # a tuple of scalars, since the derivative of theta[k] by theta is a vector of zeros around a one
    def along(function, theta):
        """Value, and derivatives along each parameter as rows."""
        push = lambda direction: jax.jvp(function, tuple(theta), tuple(direction))  # noqa: E731
        return jax.vmap(push, out_axes=(None, 0))(jnp.eye(n_params))

    def expectation(theta, *shared):
        return along(lambda *t: expected(*t, *shared), theta)

    def bend(theta, *shared_and_slope):
        *shared, slope = shared_and_slope
        gradient = jax.grad(lambda *t: slope @ expected(*t, *shared), argnums=tuple(range(n_params)))
        return (along(lambda *t: jnp.stack(gradient(*t)), theta)[1],)

    column = (n_bins,)
    with jax.enable_x64(True):
        arguments = [()] * n_params + [column] * n_shared
        shape = jax.eval_shape(expected, *(jax.ShapeDtypeStruct(a, np.float64) for a in arguments)).shape
    if shape != column:
        raise ValueError(f"expected must return an array of shape ({n_bins},), one value per bin, got {shape}")
    pool, theta = Pool(), (n_params,)
    first, _, n0 = function_source(expectation, [theta, *[column] * n_shared], "expectation", pool)
    terms, _, n1 = function_source(term_derivatives(term), [column] * (1 + n_columns), "derivatives", pool)
    second, [bent], n2 = function_source(bend, [theta, *[column] * (n_shared + 1)], "bend", pool)
    linear, hessian = not bent.any(), 2 + n_params
    memory = n_outputs(n_params)
    lengths = dict.fromkeys(("mu", "terms", "slope", "curvature"), n_bins)
    lengths |= {"scaled": 2 * n_bins, "jacobian": n_params * n_bins}
    lengths |= {"w0": n0, "w1": n1} | ({} if linear else {"second": n_params**2, "w2": n2})
    ends = list(itertools.accumulate(lengths.values(), initial=memory))
    views = [f"    {name} = out[{a}:{b}]" for name, (a, b) in zip(lengths, itertools.pairwise(ends), strict=True)]
    sizes = {"ZERO": 0, "ONE": 1, "TWO": 2, "THREE": 3, "FOUR": 4, "N_PARAMS": n_params, "N_BINS": n_bins}
    below = np.argwhere(np.tril(bent))
    places = [[int(i * (i + 1) // 2 + j), int(i * n_params + j)] for i, j in below]
    text = "" if linear else f"BENT = np.array({places}, dtype=np.uint64)\n"
    text += f"MEMORY = {ends[-1] - memory}\n"
    text += "".join(f"{name} = np.uint64({value})\n" for name, value in sizes.items())
    text += "\n\n".join([first, terms] if linear else [first, terms, second])
    columns = [f"rows[{k}, begin:end], " for k in range(n_columns)]
    given = {
        "signature": KERNEL_SIGNATURE,
        "views": "\n".join(views),
        "hessian": hessian,
        "memory": memory,
        "shared": "".join(f"shared[{1 + k}], " for k in range(n_shared)),
        "columns": "".join(columns),
        "expectations": "".join(["mu, ", *columns[1:]]),
    }
    text += (_KERNEL if linear else _KERNEL + _CURVED).format(**given)
    return VectorKernel(import_source(text).row_sums, pool.flat()[None, :])


# of the Hessian of an expectation that JAX takes at once: of 201 parameters all together held 30 MB for each toy
COLUMNS = 64


def expectation_outputs(expected: Callable, n_params: int, order: int, *, term: Callable = saturated) -> Callable:
    """The same cost in JAX, for one toy: `f(theta, columns, shared) -> outputs`.

    Parameters
    ----------
    expected, n_params, term
        As of `expectation_kernel`.
    order : {0, FIRST, SECOND, EXPECTED}
        See `kernels.program`; the outputs of higher derivatives are left out.
    """
    derivatives, below = term_derivatives(term), np.tril_indices(n_params)
    n_blocks = -(-n_params // COLUMNS)
    size = -(-n_params // n_blocks)
    directions = np.eye(n_blocks * size, n_params).reshape(n_blocks, size, n_params)

    def outputs(theta: Array, columns: Sequence[Array], shared: Sequence[Array] = ()) -> Array:
        mean = lambda t: expected(*(t[i] for i in range(n_params)), *shared)  # noqa: E731
        mu = mean(theta)
        terms, slope, curvature = derivatives(mu, *columns)
        parts = [jnp.stack([jnp.sum(terms), jnp.sum(jnp.abs(terms))])]
        if order == FIRST:
            parts += jax.vjp(mean, theta)[1](slope)
        if order >= SECOND:
            jacobian = jax.jacfwd(mean)(theta)
            parts.append(slope @ jacobian)
        if order == SECOND:
            gradient = jax.grad(lambda t: jax.lax.stop_gradient(slope) @ mean(t))
            column = lambda direction: jax.jvp(gradient, (theta,), (direction,))[1]  # noqa: E731
            bend = jax.lax.map(jax.vmap(column), directions).reshape(-1, n_params)[:n_params]
            parts.append((jacobian.T @ (curvature[:, None] * jacobian) + bend)[below])
        if order == EXPECTED:
            _, _, curvature = derivatives(mu, mu, *columns[1:])
            parts.append((jacobian.T @ (curvature[:, None] * jacobian))[below])
        return jnp.concatenate(parts)

    return outputs
