"""The Poisson likelihood of counts whose expectation is a vector function of the parameters, as a numba kernel.

`kernels.arrays` translates the expectation with its Jacobian, and its second derivatives contracted with a vector;
what the likelihood adds to them is written out here once, for any model.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from kernels.arrays import _function_source
from kernels.loops import _Pool
from kernels.translate import _HEADER, KERNEL_SIGNATURE, import_source

__all__ = ["VectorKernel", "expectation_kernel"]


class VectorKernel(NamedTuple):
    """A cost whose expectation is a vector function of the parameters.

    Attributes
    ----------
    kernel : numba function
        Of type `kernels.translate.KERNEL_SIGNATURE`.
    shared : (1, n) float64
        The model's constants, to be passed to the kernel as `shared`.
    linear : bool
        Whether the second derivatives of the expectation vanish everywhere.
    """

    kernel: Callable
    shared: np.ndarray
    linear: bool


_POISSON = """

@njit(**COMPILE_HELPER)
def saturated(n, mu):
    # n log(n / mu) alone would lose the digits in which mu and n agree
    return (mu - n) - n * math.log1p((mu - n) / n)


@njit(**COMPILE_ROW)
def weighted_products(jacobian, weights, hessian, scaled):
    for i in range(N_PARAMS):
        for k in range(N_BINS):
            scaled[k] = weights[k] * jacobian[i * N_BINS + k]
        row = i * (i + ONE) // TWO
        blocks = (i + ONE) // FOUR * FOUR
        for j in range(ZERO, blocks, FOUR):
            a, b, c, d = 0.0, 0.0, 0.0, 0.0
            first = j * N_BINS
            for k in range(N_BINS):
                s = scaled[k]
                a += s * jacobian[first + k]
                b += s * jacobian[first + N_BINS + k]
                c += s * jacobian[first + TWO * N_BINS + k]
                d += s * jacobian[first + THREE * N_BINS + k]
            hessian[row + j] = a
            hessian[row + j + ONE] = b
            hessian[row + j + TWO] = c
            hessian[row + j + THREE] = d
        for j in range(blocks, i + ONE):
            a = 0.0
            for k in range(N_BINS):
                a += scaled[k] * jacobian[j * N_BINS + k]
            hessian[row + j] = a


@njit({signature!r}, cache=True, **COMPILE_ROW)
def row_sums(theta, rows, shared, aux, begin, end, out):
    constants = shared[0]
    mu = np.empty(N_BINS)
    jacobian = np.empty(N_PARAMS * N_BINS)
    slope = np.empty(N_BINS)
    curvature = np.empty(N_BINS)
    expectation(constants, theta, mu, jacobian)
    first = np.uint64(begin)
    value = 0.0
    absolute = 0.0
    for k in range(N_BINS):
        n = rows[0, first + k]
        m = mu[k]
        if n > 0.0:
            term = saturated(n, m)
            slope[k] = (m - n) / m
            curvature[k] = n / (m * m)
        else:
            term = m if n == 0.0 and m >= 0.0 else np.nan
            slope[k] = 1.0
            curvature[k] = 0.0
        value += term
        absolute += math.fabs(term)
    out[0] = value
    out[1] = absolute
    for i in range(N_PARAMS):
        total = 0.0
        for k in range(N_BINS):
            total += slope[k] * jacobian[i * N_BINS + k]
        out[TWO + i] = total
    hessian = out[2 + {n_params} :]
    weighted_products(jacobian, curvature, hessian, mu)
"""
_CURVED = """    second = jacobian
    if N_PARAMS > N_BINS:
        second = np.empty(N_PARAMS * N_PARAMS)
    bend(constants, theta, slope, second)
    for i in range(N_PARAMS):
        for j in range(i + ONE):
            hessian[i * (i + ONE) // TWO + j] += second[i * N_PARAMS + j]
"""


def expectation_kernel(expected: Callable, n_params: int, n_bins: int) -> VectorKernel:
    """The Poisson negative log-likelihood of counts whose expectation is a vector.

    In saturated form, sum_k mu_k - n_k + n_k log(n_k / mu_k) with mu = expected(*theta). With J = d mu / d theta, the
    gradient is sum_k (1 - n_k / mu_k) J_k and the Hessian
    sum_k n_k / mu_k^2 J_k J_k^T + sum_k (1 - n_k / mu_k) d^2 mu_k / d theta^2; the second sum is left out where the
    model is linear.

    Parameters
    ----------
    expected : callable
        `expected(*theta) -> (n_bins,)`, in events.
    n_params, n_bins : int

    Returns
    -------
    VectorKernel
        A bin is a row: row 0 holds the counts, and the kernel must be given all n_bins of them. The result is NaN
        where mu_k < 0, infinite where mu_k = 0 in a filled bin; see `kernels.program` for the outputs.

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

    def bend(theta, slope):
        gradient = jax.grad(lambda *t: slope @ expected(*t), argnums=tuple(range(n_params)))
        return (along(lambda *t: jnp.stack(gradient(*t)), theta)[1],)

    with jax.enable_x64(True):
        shape = jax.eval_shape(expected, *[jax.ShapeDtypeStruct((), np.float64)] * n_params).shape
    if shape != (n_bins,):
        raise ValueError(f"expected must return an array of shape ({n_bins},), one value per bin, got {shape}")
    pool = _Pool()
    first, _ = _function_source(lambda t: along(expected, t), [(n_params,)], "expectation", pool)
    second, [linear] = _function_source(bend, [(n_params,), (n_bins,)], "bend", pool)
    sizes = {"ZERO": 0, "ONE": 1, "TWO": 2, "THREE": 3, "FOUR": 4, "N_PARAMS": n_params, "N_BINS": n_bins}
    text = "".join(f"{name} = np.uint64({value})\n" for name, value in sizes.items())
    text += first + ("" if linear else "\n\n" + second)
    text += _POISSON.format(signature=KERNEL_SIGNATURE, n_params=n_params) + ("" if linear else _CURVED)
    return VectorKernel(import_source(_HEADER + text).row_sums, pool.flat()[None, :], linear)
