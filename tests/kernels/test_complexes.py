"""Complex numbers as pairs: the values and second derivatives that JAX finds with complex numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from engine import UnbinnedNLL, fit_batch
from kernels.complexes import real_program
from kernels.nodes import UntranslatableError

CONSTANTS = np.array([1.0 + 2.0j, -2.0 - 1.0j, 0.5j, -3.0 + 0.0j])
OPERATIONS = {
    "abs": lambda z, w: jnp.abs(z) ** 2 + jnp.abs(w),
    "arithmetic": lambda z, w: (z * w - 2.0j * z + 3.0) / (w + CONSTANTS[0]) - -z,
    "division by real numbers": lambda z, w: (z / 2.0 + w / jnp.real(w)) / 2.0j,
    "exp": lambda z, w: jnp.exp(z) + jnp.exp(1j * jnp.real(w)),
    "log": lambda z, w: jnp.log(z) * jnp.log(2.0 + 0j),
    "sqrt": lambda z, w: jnp.sqrt(z) + jnp.sqrt(-jnp.abs(w) + 0j),
    "powers": lambda z, w: z**3 + w**-2 + jnp.square(z) + z**0,
    "parts": lambda z, w: jnp.conj(z) * jnp.imag(w) + jnp.angle(z),
    "choices": lambda z, w: jnp.where(jnp.real(z) > 0.0, z, w) + jnp.where(z == w, 1.0, 2.0j),
    "arrays": lambda z, w: jnp.dot(jnp.stack([z, w, z, w]), CONSTANTS) + jnp.sum(jnp.abs(CONSTANTS * z) ** 2),
    "a resonance": lambda z, w: 1.0 / (2.0 - jnp.real(z) - 1j * 0.3 * jnp.sqrt(jnp.abs(w))) * jnp.exp(2j * jnp.real(z)),
    "sign": lambda z, w: jnp.sign(z),
    "constants alone": lambda z, w: jnp.real(z) * jnp.prod(jnp.abs(CONSTANTS)) + 1j * jnp.imag(CONSTANTS[1]),
}


def real_or_imaginary(part, operation):
    return lambda a, b, c, d: part(OPERATIONS[operation](a + 1j * b, lax.complex(c, d)) + 0j)


def without_complex_numbers(function):
    closed = real_program(function, *[jax.ShapeDtypeStruct((), np.float64)] * 4)
    assert "complex" not in str(closed) and "c128" not in str(closed)
    return lambda *point: jax.core.eval_jaxpr(closed.jaxpr, closed.consts, *point)


@pytest.mark.parametrize("part", [jnp.real, jnp.imag])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations_equal_those_of_jax(operation, part):
    function = real_or_imaginary(part, operation)
    hessian = lambda *point: jax.hessian(lambda t: function(*t))(jnp.stack(point))  # noqa: E731
    both = lambda *point: (function(*point), hessian(*point))  # noqa: E731
    with jax.enable_x64(True):
        ours, theirs = jax.jit(without_complex_numbers(both)), jax.jit(both)
        for point in (np.array([0.3, -0.7, 1.2, 0.4]), np.array([-2.0, 0.5, -0.1, -0.3])):
            (value, second), (expected, expected_second) = ours(*point), theirs(*point)
            np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
            np.testing.assert_allclose(second, expected_second, rtol=1e-10, atol=1e-12)


def test_a_program_without_complex_numbers_stays_what_it_is():
    struct = jax.ShapeDtypeStruct((), np.float32)
    function = lambda x: jnp.sin(x) * jnp.where(x > 0.0, x, 1.0)  # noqa: E731
    assert str(real_program(function, struct)) == str(jax.make_jaxpr(function)(struct))


def test_what_has_no_rule_is_named_with_its_line():
    struct = jax.ShapeDtypeStruct((), np.float64)
    with jax.enable_x64(True):
        with pytest.raises(UntranslatableError, match=r"operation 'tanh' on complex numbers at .*test_complexes"):
            real_program(lambda x: jnp.real(jnp.tanh(1j * x)), struct)
        with pytest.raises(UntranslatableError, match="a result that is complex"):
            real_program(lambda x: 1j * x, struct)


def test_interfering_amplitudes():
    """Two resonances with a free relative phase; the integral over [0, 3] is known in closed form."""
    masses, width = np.array([1.0, 1.9]), 0.3

    def amplitude(x, mass):
        return 1.0 / (mass - x - 0.5j * width)

    # 1 / ((m - x - ic) (n - x + ic)) has the primitive log((n - x + ic) / (m - x - ic)) / (n - m + 2ic)
    def overlap(m, n):
        logs = [np.log(n - x + 0.5j * width) - np.log(m - x - 0.5j * width) for x in (0.0, 3.0)]
        return (logs[0] - logs[1]) / (m - n - 1j * width)

    norms = np.array([[overlap(m, n) for n in masses] for m in masses])

    def pdf(x, size, phase):
        coupling = size * jnp.exp(1j * phase)
        total = jnp.abs(amplitude(x, masses[0]) + coupling * amplitude(x, masses[1])) ** 2
        interference = 2.0 * jnp.real(coupling * jnp.conj(norms[0, 1]))
        return total / (norms[0, 0].real + size**2 * norms[1, 1].real + interference)

    with jax.enable_x64(True):
        x = np.linspace(0.0, 3.0, 200_001)
        density = np.asarray(jax.vmap(lambda x: pdf(x, 0.8, 1.1))(x))
    cumulative = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(x))])
    assert cumulative[-1] == pytest.approx(1.0, abs=1e-8)
    toys = np.interp(np.random.default_rng(5).random((60, 4000)), cumulative / cumulative[-1], x)
    start = {"size": 0.8, "phase": 1.1}
    numba, by_jax = (fit_batch(UnbinnedNLL(pdf), toys, start, backend=backend) for backend in ("numba", "jax"))
    assert numba.backend == "numba" and numba.valid.all()
    np.testing.assert_allclose(numba.values, by_jax.values, atol=1e-9)
    np.testing.assert_allclose(numba.covariance, by_jax.covariance, rtol=1e-7)
    pulls = numba.pulls(start)
    assert np.all(np.abs(pulls.mean(axis=0)) < 4.0 / np.sqrt(60)) and np.all(np.abs(pulls.std(axis=0) - 1.0) < 0.4)
