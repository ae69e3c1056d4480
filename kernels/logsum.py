"""The kernel of aux[0] times the logarithm of a sum over rows: the normalisation of a density, once for all events."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from kernels.program import GRADIENT
from kernels.translate import KERNEL_SIGNATURE, import_source, memory_of

__all__ = ["compile_log", "log_outputs"]

_KERNEL = """
from {module} import row_sums as inner

MEMORY = {memory}


@njit({signature!r}, cache=True, **COMPILE_ROW)
def row_sums(theta, rows, shared, aux, begin, end, order, out):
    inner(theta, rows, shared, aux, begin, end, order, out)
    n, total, factor = len(theta), out[0], aux[0]
    out[0] = factor * math.log(total)
    out[1] = math.fabs(out[0])
    k = {gradient} + n
    for i in range(n):
        for j in range(i + 1):
            slopes = (out[{gradient} + i] / total) * (out[{gradient} + j] / total)
            out[k] = factor * (out[k] / total - slopes)
            k += 1
    for i in range(n):
        out[{gradient} + i] *= factor / total
"""


def compile_log(kernel: Callable) -> Callable:
    """The kernel of aux[0] * log(value), and its derivatives, of a compiled kernel whose value is positive."""
    module = kernel.py_func.__module__  # type: ignore[attr-defined]
    source = _KERNEL.format(module=module, signature=KERNEL_SIGNATURE, gradient=GRADIENT, memory=memory_of(kernel))
    return import_source(source.lstrip()).row_sums


def log_outputs(outputs: Array, factor: Array, n_params: int) -> Array:
    """The same in JAX, for the outputs of one toy; those of higher order may be missing."""
    total = outputs[0]
    value = factor * jnp.log(total)
    parts = [jnp.stack([value, jnp.abs(value)])]
    gradient = outputs[GRADIENT : GRADIENT + n_params] / total
    if gradient.size:
        parts.append(factor * gradient)
    packed = outputs[GRADIENT + n_params :]
    if packed.size:
        i, j = np.tril_indices(n_params)
        parts.append(factor * (packed / total - gradient[i] * gradient[j]))
    return jnp.concatenate(parts)
