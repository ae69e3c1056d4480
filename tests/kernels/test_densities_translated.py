"""The densities when they are translated to numba, against JAX."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from numba import njit

from kernels import (
    argus,
    bernstein,
    binom,
    cauchy,
    chebyshev,
    cruijff,
    crystalball,
    crystalball_ex,
    lognorm,
    poisson,
    qgaussian,
    t,
    vectormath,
    voigt,
    xla,
)
from kernels.kernel_source import kernel_source
from kernels.nodes import UntranslatableError
from kernels.program import GRADIENT, SECOND, build_program
from kernels.translate import compile_kernel, compile_map
from kernels.truncated import trunccauchy, trunccrystalball
from tests.kernels.density_cases import INF, QUICKLY, value_and_derivatives

pytestmark = pytest.mark.usefixtures("x64")


# each density at x with the parameters (a, loc, scale), as the same function on both drivers
DENSITIES = {
    "cauchy": (cauchy, lambda a, loc, scale: (loc, scale)),
    "lognorm": (lognorm, lambda a, loc, scale: (a, loc - 4.0, scale)),
    "crystalball": (crystalball, lambda a, loc, scale: (a, 2.0 + a, loc, scale)),
    "crystalball_ex": (crystalball_ex, lambda a, loc, scale: (a, 2.0 + a, scale, 2.0 * a, 3.0, 1.1 * scale, loc)),
    "t": (t, lambda a, loc, scale: (2.0 + a, loc, scale)),
    "qgaussian": (qgaussian, lambda a, loc, scale: (1.0 + 0.5 * a, loc, scale)),
    "argus": (argus, lambda a, loc, scale: (a, 7.0 * scale, 1.0 + loc)),
    "cruijff": (cruijff, lambda a, loc, scale: (-4.0, 4.0, 0.1 * a, 0.2, loc, scale, 1.3)),
    "trunccauchy": (trunccauchy, lambda a, loc, scale: (-4.0, 4.0, loc, scale)),
    "trunccrystalball": (trunccrystalball, lambda a, loc, scale: (-4.0, 4.0, a, 2.5, loc, scale)),
    "voigt": (voigt, lambda a, loc, scale: (a, loc, scale)),
}


def evaluate(name, function, a, loc, scale, x):
    density, arguments = DENSITIES[name]
    return getattr(density, function)(x + 4.0 if name == "argus" else x, *arguments(a, loc, scale))


THETA = np.array([0.8, 0.3, 1.2])


def rows():
    return np.random.default_rng(6).uniform(-3.0, 3.0, 50)


def run_source(program, theta, x, out):
    """The generated source as plain Python: the same text that numba compiles, at once."""
    names = vars(math) | {"math": math, "np": np, "exp": np.exp, "log": np.log}
    names["use_wide_vectors"] = lambda: None
    exec(kernel_source(program), names)
    with np.errstate(all="ignore"):
        names["row_sums"](theta, x[None], np.empty((0, len(x))), np.empty(0), 0, len(x), SECOND, out)


@pytest.mark.parametrize("function", ["pdf", "cdf"])
@pytest.mark.parametrize("name", DENSITIES)
def test_values_when_translated(name, function):
    if name == "voigt" and function == "cdf":
        return
    f = lambda x: evaluate(name, function, *THETA, x)  # noqa: E731
    x, out = rows(), np.empty(2)
    run_source(build_program(f, None, n_params=0, n_columns=1), np.empty(0), x, out)
    # the sum over rows of positive numbers
    np.testing.assert_allclose(out[0], np.sum(compiled_rows(f, x)), rtol=1e-13)


def compiled_rows(f, x):
    return jax.jit(jax.vmap(f))(jnp.asarray(x))


@pytest.mark.parametrize(
    "names",
    [("qgaussian",), ("crystalball_ex", "trunccrystalball"), ("argus",), ("voigt",), ("cruijff",)],
    ids="+".join,
)
def test_derivatives_when_translated(names):
    check_kernel(weighted(names), THETA[:2], rows()[:20], run=run_source)


def test_derivatives_when_translated_and_compiled():
    names = ("cauchy", "lognorm", "crystalball", "trunccauchy")
    check_kernel(weighted(names), THETA[:2], rows())


def weighted(names):
    """A sum of logarithms, each with a weight of its own, so that no two errors cancel."""

    def term(a, loc, x):
        each = (evaluate(name, "logpdf", a, loc, THETA[2], x) for name in names)
        return sum(weight * value for weight, value in enumerate(each, start=1))

    return term


def run_compiled(program, theta, x, out):
    compile_kernel(program)(theta, x[None].copy(), np.empty((0, len(x))), np.empty(0), 0, len(x), SECOND, out)


def check_kernel(term, theta, x, run=run_compiled):
    """Sums over rows of the value, gradient and Hessian, against JAX's own derivatives."""
    program = build_program(term, None, n_params=len(theta), n_columns=1)
    n_outputs = GRADIENT + len(theta) + len(theta) * (len(theta) + 1) // 2
    out = np.empty(n_outputs)
    run(program, theta, x, out)
    total = lambda theta: jnp.sum(jax.vmap(lambda x: term(*theta, x))(jnp.asarray(x)))  # noqa: E731
    value, gradient, hessian = jax.jit(value_and_derivatives(total), compiler_options=QUICKLY)(jnp.asarray(theta))
    expected = np.concatenate([[value], gradient, np.asarray(hessian)[np.tril_indices(len(theta))]])
    # eps times the largest of the terms that are summed, which share one scale here
    np.testing.assert_allclose(np.delete(out, 1), expected, rtol=1e-12, atol=1e-13 * np.abs(expected).max())


def test_counts_and_polynomials_when_translated():
    def term(a, b, x):
        k = jnp.floor(x + 4.0)
        polynomial = bernstein.density(x, (a, b, 0.4, 1.0 + a), -4.0, 4.0) + chebyshev.density(
            x, (1.0 + b, a, 0.1, 0.1 * b), -4.0, 4.0
        )
        areas = bernstein.integral(x, (a, b, 0.4), -4.0, 4.0) + chebyshev.integral(x, (1.0, a, b), -4.0, 4.0)
        counts = poisson.logpmf(k, 3.0 * a + b) + 2.0 * binom.logpmf(k, 9.0, 0.5 * a)
        return counts + jnp.log(polynomial) + jnp.log(1.0 + areas**2)

    check_kernel(term, np.array([0.8, 0.3]), rows(), run=run_source)


def test_outside_when_translated():
    """0 and -inf come out of the kernels as they do of JAX."""
    x = np.array([-9.0, -4.5, -4.0 - 1e-12, 4.0 + 1e-12, 9.0, INF, -INF, np.nan])
    for function, expected in ((trunccauchy.pdf, 0.0), (trunccauchy.logpdf, -INF)):
        found = x[None].copy()
        compile_map(function, 4)(np.array([-4.0, 4.0, 0.3, 1.2]), found, 0, len(x))
        np.testing.assert_array_equal(found[0], [expected] * 7 + [np.nan])


def test_without_translation():
    for function in (poisson.cdf, lambda k, mu: binom.cdf(k, 9.0, mu)):
        with pytest.raises(UntranslatableError):
            compile_map(function, 1)


# -- digamma -------------------------------------------------------------------------------------------------------


@njit(**vectormath.COMPILE_ROW)
def each_row(x, out):
    for i in range(np.uint64(len(x))):
        out[0, i] = vectormath.digamma(x[i])
        out[1, i] = vectormath.trigamma(x[i])


def test_digamma_and_trigamma():
    x = 10.0 ** np.random.default_rng(8).uniform(-6.0, 12.0, 3000)
    out = np.empty((2, len(x)))
    each_row(x, out)
    digamma = scipy.special.digamma(x)
    # 12 terms, the largest of the size of the result
    np.testing.assert_array_less(np.abs(out[0] - digamma), 3e-15 * (1 + np.abs(digamma)))
    np.testing.assert_allclose(out[1], scipy.special.polygamma(1, x), rtol=3e-15)
    special = np.array([0.0, -0.5, -3.0, np.nan, INF])
    out = np.empty((2, len(special)))
    each_row(special, out)
    np.testing.assert_array_equal(out, [[np.nan] * 4 + [INF], [np.nan] * 4 + [0.0]])


def test_derivatives_of_lgamma():
    """The gamma distribution with a free shape, on both drivers."""
    term = lambda a, b, x: a * jnp.log(b) - jax.scipy.special.gammaln(a) + (a - 1.0) * jnp.log(x) - b * x  # noqa: E731
    theta, x = np.array([2.3, 0.7]), np.linspace(0.3, 5.0, 40)
    check_kernel(term, theta, x)
    program = build_program(term, None, n_params=2, n_columns=1)
    sums = jax.jit(xla.row_sums(program, 64), static_argnums=4)(
        jnp.asarray(theta), jnp.asarray(x)[None], jnp.empty((0, 40)), jnp.empty(0), 40
    )
    np.testing.assert_allclose(sums[GRADIENT], np.sum(np.log(0.7 * x)) - 40 * scipy.special.digamma(2.3), rtol=1e-13)
    np.testing.assert_allclose(sums[GRADIENT + 2], -40 * scipy.special.polygamma(1, 2.3), rtol=1e-13)
    third = lambda x, a: jax.grad(jax.grad(jax.grad(jax.scipy.special.gammaln)))(a) * x  # noqa: E731
    with pytest.raises(UntranslatableError, match="polygamma"):
        compile_map(third, 1)
