"""Functions of scalars as NumPy functions of arrays, against JAX."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import truncexpon, truncnorm
from kernels.elementwise import elementwise
from kernels.nodes import UntranslatableError
from kernels.operations import OPERATIONS

BINARY = {"add", "sub", "mul", "atan2", "pow", "rem", "max", "min", "lt", "le", "gt", "ge", "eq", "ne"}
LOGICAL = {"and", "or", "not"}
VALUES = np.array([0.3, 1.7, 2.0, 25.0, -0.4, -3.2, 0.0, np.inf, -np.inf, np.nan])
POSITIVE_ONLY = {"lgamma", "digamma", "trigamma"}


@pytest.mark.parametrize("op", sorted(OPERATIONS))
def test_operations_equal_those_of_jax(op):
    x = VALUES[:4] if op in POSITIVE_ONLY else VALUES
    x, y = (a.ravel() for a in np.meshgrid(x, x))
    if op in LOGICAL:
        arguments = [x > 0.0] if op == "not" else [x > 0.0, y > 0.0]
    else:
        arguments = [x > 0.0, x, y] if op == "select" else [x, y] if op in BINARY else [x]
    with jax.enable_x64(True):
        expected = np.asarray(OPERATIONS[op].by_jax(*map(jnp.asarray, arguments)))
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(OPERATIONS[op].by_numpy(*arguments), expected, rtol=1e-13, atol=1e-15)


def spectrum(x, ns, nb, mu, sigma, lam):
    density = ns * truncnorm.pdf(x, 1.0, 9.0, mu, sigma) + nb * truncexpon.pdf(x, 1.0, 9.0, 0.0, lam)
    return jnp.log(density) + jnp.where(x > mu, 1.0, jnp.floor(x)) ** 2


def test_a_model_and_the_shapes_of_its_arguments():
    x, mu = np.linspace(0.0, 10.0, 21), np.array([[2.0], [5.0], [5.5]])
    found = elementwise(spectrum, 6)(x, 2000.0, 13500.0, mu, 0.5, 4.0)
    with jax.enable_x64(True):
        expected = jax.jit(spectrum)(x, 2000.0, 13500.0, mu, 0.5, 4.0)
    assert found.shape == (3, 21) and found.dtype == np.float64
    assert found[0, 0] == -np.inf  # outside of the range, without a warning
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_constants_arguments_and_what_has_no_form():
    np.testing.assert_array_equal(elementwise(lambda x, y: 3.0, 2)(np.ones(4), 2.0), np.full(4, 3.0))
    np.testing.assert_array_equal(elementwise(lambda x, y: y, 2)(np.ones(4), 2.0), np.full(4, 2.0))
    with pytest.raises(TypeError, match="takes 2 arrays, got 1"):
        elementwise(lambda x, y: x, 2)(np.ones(4))
    with pytest.raises(UntranslatableError, match="bessel"):
        elementwise(lambda x: jax.scipy.special.i0e(x), 1)
