"""The densities beyond the basic five: values, derivatives, quantiles and translation, each against another source.

References are the textbook formulas, continued to complex arguments, so that derivatives can be read off circles.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numba_stats.argus
import numba_stats.bernstein
import numba_stats.binom
import numba_stats.cruijff
import numba_stats.crystalball
import numba_stats.crystalball_ex
import numba_stats.lognorm
import numba_stats.poisson
import numba_stats.qgaussian
import numba_stats.t
import numba_stats.voigt
import numpy as np
import pytest
import scipy.interpolate
import scipy.special
import scipy.stats
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
    norm,
    poisson,
    qgaussian,
    quadrature,
    t,
    vectormath,
    voigt,
    xla,
)
from kernels.kernel_source import kernel_source
from kernels.nodes import UntranslatableError
from kernels.program import GRADIENT, SECOND, build_program
from kernels.translate import compile_kernel, compile_map
from kernels.truncated import truncate, trunccauchy, trunccrystalball, trunccrystalball_ex

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


class Case(NamedTuple):
    density: Any
    theta: tuple[float, ...]
    # of each parameter: "p" for a position, "w" for a width, "s" for a shape without a unit
    kinds: str
    lower: float
    upper: float
    # where derivatives are taken: one point on each branch, clear of kinks
    at: tuple[float, ...]
    functions: tuple[str, ...] = ("pdf", "logpdf", "cdf", "ppf")

    def moved(self, shift: float, scale: float) -> tuple[float, ...]:
        by = {"p": (scale, shift), "w": (scale, 0.0), "s": (1.0, 0.0)}
        return tuple(value * by[kind][0] + by[kind][1] for value, kind in zip(self.theta, self.kinds, strict=True))


INF = np.inf
NO_CDF = ("pdf", "logpdf")
DOUBLE = (1.1, 2.7, 0.9, 1.6, 3.4, 1.3, 0.3)
CASES = {
    "cauchy": Case(cauchy, (0.3, 1.2), "pw", -INF, INF, (-0.8, 30.0)),
    "lognorm": Case(lognorm, (0.7, 0.3, 1.2), "spw", 0.3, INF, (0.9, 4.0)),
    "crystalball": Case(crystalball, (1.1, 2.7, 0.3, 1.2), "sspw", -INF, INF, (-2.5, 0.9)),
    "crystalball_ex": Case(crystalball_ex, DOUBLE, "sswsswp", -INF, INF, (-2.5, -0.2, 1.3, 5.0)),
    "t": Case(t, (3.7, 0.3, 1.2), "spw", -INF, INF, (-9.0, 0.9, 3.5)),
    "qgaussian": Case(qgaussian, (1.4, 0.3, 1.2), "spw", -INF, INF, (-9.0, 0.9, 3.5)),
    "voigt": Case(voigt, (0.6, 0.3, 1.2), "wpw", -INF, INF, (0.9, 9.0, 30.0), NO_CDF),
    "voigt, narrow": Case(voigt, (0.02, 0.3, 1.2), "wpw", -INF, INF, (0.4, 6.0, 30.0), NO_CDF),
    "argus": Case(argus, (1.3, 2.1, 0.7), "sws", 0.0, 2.1, (0.4, 1.7)),
    "cruijff": Case(cruijff, (-4.0, 5.0, 0.1, 0.2, 0.3, 0.9, 1.3), "ppsspww", -4.0, 5.0, (-2.0, 2.0)),
    "trunccauchy": Case(trunccauchy, (-0.8, 2.1, 0.3, 1.2), "pppw", -0.8, 2.1, (0.9,)),
    "trunccrystalball": Case(trunccrystalball, (-3.0, 2.1, 1.1, 2.7, 0.3, 1.2), "ppsspw", -3.0, 2.1, (-2.3, 0.9)),
}
# qgaussian.ppf is that of t
INVERTIBLE = {name: case for name, case in CASES.items() if "ppf" in case.functions and name != "qgaussian"}
# a shift would move the lower edge of argus, which is 0
FRAMES = [(0.0, 1.0), (10.0, 1e-3), (-5.0, 1e3)]

each_case = pytest.mark.parametrize("name", CASES)
each_invertible = pytest.mark.parametrize("name", INVERTIBLE)


# each is called a few times: the compiler's effort would be most of the test
QUICKLY = {"xla_backend_optimization_level": 0}


@functools.cache
def compiled(density: Any, function: str):
    return jax.jit(getattr(density, function), compiler_options=QUICKLY)


@functools.cache
def compiled_derivatives(density: Any, function: str):
    """Value, gradient and Hessian in all arguments."""
    f = lambda arguments: getattr(density, function)(*arguments)  # noqa: E731
    everything = lambda arguments: (f(arguments), jax.jacfwd(f)(arguments), jax.jacfwd(jax.jacfwd(f))(arguments))  # noqa: E731
    return jax.jit(everything, compiler_options=QUICKLY)


def points(case: Case, n: int = 100) -> np.ndarray:
    """Random points within the support, tails included."""
    rng = np.random.default_rng(11)
    x = np.concatenate([rng.uniform(-6.0, 8.0, n), rng.uniform(-40.0, 40.0, n // 4)])
    return x[(x > case.lower + 1e-3) & (x < case.upper - 1e-3)]


# -- the same densities, written as their textbooks do, for complex arguments --------------------------------------

SQRT2 = np.sqrt(2.0)
ERF = scipy.special.erf


NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def gauss(f, lower, upper):
    half = 0.5 * (upper - lower)
    return half * np.sum(WEIGHTS * f(lower + half * (1.0 + NODES)))


def crystalball_shape(z, beta, m):
    if np.real(z) >= -np.real(beta):
        return np.exp(-0.5 * z * z)
    return (m / beta) ** m * np.exp(-0.5 * beta**2) * (m / beta - beta - z) ** -m


def crystalball_integral(z, beta, m):
    """From -inf to z."""
    edge = z if np.real(z) < -np.real(beta) else -beta
    below = (m / beta) ** m * np.exp(-0.5 * beta**2) * (m / beta - beta - edge) ** (1 - m) / (m - 1)
    return below + np.sqrt(np.pi / 2) * (ERF(z / SQRT2) - ERF(edge / SQRT2))


def kummer(a, s):
    """int_0^1 u^(a - 1) exp(-s u) du, as a series without cancellation."""
    term, total = 1.0 / a, 1.0 / a
    for k in range(1, 80):
        term = term * s / (a + k)
        total = total + term
    return np.exp(-s) * total


def q_exponential_log(x, q, mu, sigma):
    gamma = scipy.special.loggamma
    log_c = 0.5 * np.log(np.pi / (q - 1)) + gamma((3 - q) / (2 * (q - 1))) - gamma(1 / (q - 1))
    return -np.log(1 + (q - 1) * (x - mu) ** 2 / (2 * sigma**2)) / (q - 1) - log_c - np.log(SQRT2 * sigma)


def cruijff_shape(x, beta_left, beta_right, loc, scale_left, scale_right, left):
    z, beta = ((x - loc) / scale_left, beta_left) if left else ((x - loc) / scale_right, beta_right)
    return np.exp(-0.5 * z**2 / (1 + beta * z**2))


def cruijff_integral(lower, upper, theta):
    return gauss(lambda x: cruijff_shape(x, *theta, np.real(upper) <= np.real(theta[2])), lower, upper)


def t_log(x, df, loc, scale):
    gamma = scipy.special.loggamma
    z = (x - loc) / scale
    norm = gamma((df + 1) / 2) - gamma(df / 2) - 0.5 * np.log(df * np.pi) - np.log(scale)
    return norm - (df + 1) / 2 * np.log(1 + z * z / df)


def textbook_logpdf(name, x, *theta):
    if name.startswith("trunc"):
        base = name.removeprefix("trunc")
        xmin, xmax, *theta = theta
        mass = textbook_cdf(base, xmax, *theta) - textbook_cdf(base, xmin, *theta)
        return textbook_logpdf(base, x, *theta) - np.log(mass)
    match name.split(",")[0]:
        case "cauchy":
            loc, scale = theta
            return -np.log(np.pi * scale * (1 + ((x - loc) / scale) ** 2))
        case "lognorm":
            s, loc, scale = theta
            z = (x - loc) / scale
            return -0.5 * (np.log(z) / s) ** 2 - np.log(z * s * scale * np.sqrt(2 * np.pi))
        case "crystalball":
            beta, m, loc, scale = theta
            whole = crystalball_integral(-beta, beta, m) + np.sqrt(np.pi / 2) * (1 + ERF(beta / SQRT2))
            return np.log(crystalball_shape((x - loc) / scale, beta, m) / (scale * whole))
        case "crystalball_ex":
            *_, loc = theta
            left, right = theta[:3], theta[3:6]
            whole = sum(scale * crystalball_integral(0.0 * beta, beta, m) for beta, m, scale in (left, right))
            beta, m, scale = left if np.real(x) < np.real(loc) else right
            z = (x - loc) / scale if np.real(x) < np.real(loc) else (loc - x) / scale
            return np.log(crystalball_shape(z, beta, m) / whole)
        case "t":
            return t_log(x, *theta)
        case "qgaussian":
            return q_exponential_log(x, *theta)
        case "voigt":
            gamma, loc, scale = theta
            # the real part of w, as an analytic function of both of its arguments
            a, b = (x - loc) / (SQRT2 * scale), 1j * gamma / (SQRT2 * scale)
            real = 0.5 * (scipy.special.wofz(a + b) + scipy.special.wofz(b - a))
            return np.log(real / (scale * np.sqrt(2 * np.pi)))
        case "argus":
            chi, c, p = theta
            y = 1 - (x / c) ** 2
            return np.log(2 * x / c**2) + p * np.log(y) - chi**2 / 2 * y - np.log(kummer(p + 1, chi**2 / 2))
        case "cruijff":
            xmin, xmax, *shape = theta
            mass = cruijff_integral(xmin, shape[2], shape) + cruijff_integral(shape[2], xmax, shape)
            return np.log(cruijff_shape(x, *shape, np.real(x) < np.real(shape[2])) / mass)
    raise KeyError(name)


def textbook_cdf(name, x, *theta):
    if name.startswith("trunc"):
        base = name.removeprefix("trunc")
        xmin, xmax, *theta = theta
        below = textbook_cdf(base, xmin, *theta)
        return (textbook_cdf(base, x, *theta) - below) / (textbook_cdf(base, xmax, *theta) - below)
    match name.split(",")[0]:
        case "cauchy":
            loc, scale = theta
            return 0.5 + np.arctan((x - loc) / scale) / np.pi
        case "lognorm":
            s, loc, scale = theta
            return 0.5 * scipy.special.erfc(-np.log((x - loc) / scale) / (s * SQRT2))
        case "crystalball":
            beta, m, loc, scale = theta
            whole = crystalball_integral(-beta, beta, m) + np.sqrt(np.pi / 2) * (1 + ERF(beta / SQRT2))
            return crystalball_integral((x - loc) / scale, beta, m) / whole
        case "crystalball_ex":
            *_, loc = theta
            left, right = theta[:3], theta[3:6]
            halves = [scale * crystalball_integral(0.0 * beta, beta, m) for beta, m, scale in (left, right)]
            if np.real(x) < np.real(loc):
                return left[2] * crystalball_integral((x - loc) / left[2], *left[:2]) / sum(halves)
            return 1 - right[2] * crystalball_integral((loc - x) / right[2], *right[:2]) / sum(halves)
        case "t":
            return 0.5 + gauss(lambda u: np.exp(t_log(u, *theta)), theta[1], x)
        case "qgaussian":
            return 0.5 + gauss(lambda u: np.exp(q_exponential_log(u, *theta)), theta[1], x)
        case "argus":
            chi, c, p = theta
            y = 1 - (x / c) ** 2
            return 1 - y ** (p + 1) * kummer(p + 1, chi**2 / 2 * y) / kummer(p + 1, chi**2 / 2)
        case "cruijff":
            xmin, xmax, *shape = theta
            left, right = cruijff_integral(xmin, shape[2], shape), cruijff_integral(shape[2], xmax, shape)
            if np.real(x) < np.real(shape[2]):
                return cruijff_integral(xmin, x, shape) / (left + right)
            return (left + cruijff_integral(shape[2], x, shape)) / (left + right)
    raise KeyError(name)


@functools.cache
def textbook_values(name, function):
    """At the points of the unmoved case."""
    textbook = textbook_logpdf if function == "logpdf" else textbook_cdf
    return np.array([float(np.real(textbook(name, x, *CASES[name].theta))) for x in points(CASES[name])])


# -- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "scale"), FRAMES)
@each_case
def test_equal_to_the_textbook(name, shift, scale):
    case = CASES[name]
    shift = 0.0 if name == "argus" else shift
    theta = case.moved(shift, scale)
    # the map of x rounds by eps (shift / scale + |z|), and a density's slope in z is up to 30 here
    error = 1e-13 + 1e-14 * abs(shift) / scale
    x = scale * points(case) + shift
    log_density = textbook_values(name, "logpdf")
    np.testing.assert_allclose(
        np.asarray(compiled(case.density, "logpdf")(x, *theta)) + np.log(scale), log_density, rtol=error, atol=error
    )
    np.testing.assert_allclose(
        np.asarray(compiled(case.density, "pdf")(x, *theta)) * scale, np.exp(log_density), rtol=30 * error
    )
    if "cdf" in case.functions:
        below = textbook_values(name, "cdf")
        # the textbook subtracts from 1 and integrates the tails of t with 200 nodes
        np.testing.assert_allclose(compiled(case.density, "cdf")(x, *theta), below, rtol=error, atol=10 * error)


OTHERS = {
    "cauchy": scipy.stats.cauchy,
    "lognorm": numba_stats.lognorm,
    "crystalball": numba_stats.crystalball,
    "crystalball_ex": numba_stats.crystalball_ex,
    "t": numba_stats.t,
    "qgaussian": numba_stats.qgaussian,
    "argus": numba_stats.argus,
    "voigt": numba_stats.voigt,
    "voigt, narrow": numba_stats.voigt,
}


@pytest.mark.parametrize("name", OTHERS)
def test_equal_to_numba_stats(name):
    """Names and order of the arguments; values to what the other library has: wofz is good to 1e-13."""
    case, other = CASES[name], OTHERS[name]
    x = points(case)
    for function in case.functions:
        if not hasattr(other, function):
            continue
        arguments = np.random.default_rng(5).uniform(size=100) if function == "ppf" else x
        np.testing.assert_allclose(
            compiled(case.density, function)(arguments, *case.theta),
            getattr(other, function)(arguments, *case.theta),
            rtol=2e-12 if function == "ppf" else 3e-13,
            atol=1e-13,
        )


def test_cruijff_density_is_that_of_numba_stats():
    x = np.linspace(-6.0, 6.0, 50)
    theta = CASES["cruijff"].theta[2:]
    np.testing.assert_allclose(cruijff.density(x, *theta), numba_stats.cruijff.density(x, *theta), rtol=1e-14)


@each_case
def test_outside_of_the_support(name):
    case = CASES[name]
    for x, below in ((case.lower - 1e-9, 0.0), (-1e3, 0.0), (-INF, 0.0), (case.upper + 1e-9, 1.0), (INF, 1.0)):
        if case.lower < x < case.upper:
            continue
        assert compiled(case.density, "pdf")(x, *case.theta) == 0.0
        assert compiled(case.density, "logpdf")(x, *case.theta) == -INF
        if "cdf" in case.functions:
            assert compiled(case.density, "cdf")(x, *case.theta) == below
            assert compiled(case.density, "ppf")(below, *case.theta) == (case.upper if below else case.lower)
        if np.isfinite(x):
            for function in case.functions[1:3]:
                _, gradient, hessian = compiled_derivatives(case.density, function)(jnp.array([x, *case.theta]))
                assert np.all(np.asarray(gradient) == 0.0) and np.all(np.asarray(hessian) == 0.0)


@each_case
def test_nan_in_nan_out(name):
    case = CASES[name]
    for function in case.functions:
        for first in (0.5, -1e9, 1e9, 0.0, 1.0):
            arguments = (first, *case.theta)
            for position in range(len(arguments)):
                broken = (*arguments[:position], np.nan, *arguments[position + 1 :])
                assert np.isnan(compiled(case.density, function)(*broken)), (function, broken)


@each_case
def test_no_number_from_an_invalid_parameter(name):
    case = CASES[name]
    bad = [(k, width) for k, kind in enumerate(case.kinds) if kind == "w" for width in (0.0, -1.2)]
    # gamma = 0 is a normal distribution
    bad = [(k, width) for k, width in bad if case.density is not voigt or k > 0 or width < 0]
    bad += {
        "crystalball": [(0, 0.0), (0, -1.0), (1, 1.0), (1, 0.5)],
        "crystalball_ex": [(0, 0.0), (1, 1.0), (3, -1.0), (4, 0.9)],
        "lognorm": [(0, 0.0), (0, -0.7)],
        "t": [(0, 0.0), (0, -2.0)],
        "qgaussian": [(0, 0.99), (0, 3.0)],
        "argus": [(0, 0.0), (2, -1.0)],
        "cruijff": [(1, -4.0), (1, -5.0), (2, -0.1), (3, -0.1)],
        "trunccauchy": [(1, -0.8), (1, -1.0)],
    }.get(name, [])
    for position, value in bad:
        theta = (*case.theta[:position], value, *case.theta[position + 1 :])
        for function in case.functions:
            for first in (0.5, -1e9, 1e9, 0.0, 1.0):
                assert np.isnan(compiled(case.density, function)(first, *theta)), (function, first, theta)


@each_invertible
def test_ppf_inverts_cdf(name):
    case = INVERTIBLE[name]
    for p in (-1e-300, -1.0, 1.0 + 2.3e-16, INF, -INF):
        assert np.isnan(compiled(case.density, "ppf")(p, *case.theta))
    p = np.concatenate([np.random.default_rng(9).uniform(size=100), 10.0 ** np.arange(-12.0, -1.0), [0.5]])
    x = np.asarray(compiled(case.density, "ppf")(p, *case.theta))
    density = np.asarray(compiled(case.density, "pdf")(x, *case.theta))
    # x is rounded by eps |x| and eps of the parameters; cdf has 4e-13 at worst, but 1e-14 here
    rounding = 4e-16 * (np.abs(x) + 4.0) * density + 2e-14 * p
    # a difference of integrals, rounded to eps of the whole
    rounding += 1e-15 * (case.density in (argus, cruijff) or name.startswith("trunc"))
    assert np.all(np.abs(np.asarray(compiled(case.density, "cdf")(x, *case.theta)) - p) <= rounding)


# the numerical inversions, and two of the others
@pytest.mark.parametrize("name", ["t", "argus", "cruijff", "crystalball", "trunccauchy"])
def test_ppf_derivative(name):
    """ppf(p) moves by dp / pdf, and by -(d cdf) / pdf with the parameters."""
    case = INVERTIBLE[name]
    arguments = jnp.array([0.3, *case.theta])
    x = compiled(case.density, "ppf")(*arguments)
    ppf = lambda arguments: case.density.ppf(*arguments)  # noqa: E731
    slopes = jax.jit(jax.jacfwd(ppf), compiler_options=QUICKLY)(arguments)
    density, *moves = compiled_derivatives(case.density, "cdf")(jnp.array([x, *case.theta]))[1]
    expected = np.array([1.0, *(-move for move in moves)]) / density
    np.testing.assert_allclose(slopes, expected, rtol=1e-11, atol=1e-12)


# -- derivatives ---------------------------------------------------------------------------------------------------


def circle_derivatives(f, arguments, radius):
    """Gradient and Hessian of an analytic function, in units of the radius, by Cauchy's integral along circles.

    The trapezoidal rule on a circle converges geometrically, so 32 points leave rounding alone.
    """
    n = len(arguments)
    circle = np.exp(2j * np.pi * np.arange(32) / 32)

    def second(direction):
        values = np.array([f([a + radius * d * c for a, d in zip(arguments, direction, strict=True)]) for c in circle])
        return (values * circle**-1).mean().real, 2 * (values * circle**-2).mean().real

    unit = np.eye(n)
    gradient, hessian = np.empty(n), np.empty((n, n))
    for i in range(n):
        gradient[i], hessian[i, i] = second(unit[i])
    for i in range(n):
        for j in range(i):
            both = second(unit[i] + unit[j])[1]
            hessian[i, j] = hessian[j, i] = 0.5 * (both - hessian[i, i] - hessian[j, j])
    return gradient, hessian


@pytest.mark.parametrize("function", ["logpdf", "cdf"])
@each_case
def test_gradient_and_hessian(name, function):
    case = CASES[name]
    if function not in case.functions:
        return
    textbook = textbook_logpdf if function == "logpdf" else textbook_cdf
    radius = 0.01 if "narrow" in name else 0.05
    for x in case.at:
        arguments = [x, *case.theta]
        gradient, hessian = circle_derivatives(lambda values: textbook(name, *values), arguments, radius)
        value, ours, ours_second = map(np.asarray, compiled_derivatives(case.density, function)(jnp.array(arguments)))
        # the circle reads derivatives off values, which round to eps; wofz and loggamma are good to 1e-14
        rounding = (1e-13 if "voigt" in name else 2e-14) * max(1.0, abs(float(value)))
        np.testing.assert_allclose(ours * radius, gradient, rtol=1e-10, atol=rounding)
        np.testing.assert_allclose(ours_second * radius**2, hessian, rtol=1e-10, atol=4 * rounding)


# elsewhere pdf is exp(logpdf) as it stands
@pytest.mark.parametrize("name", ["cauchy", "lognorm", "voigt", "argus", "trunccauchy"])
def test_pdf_and_its_derivatives_follow_from_the_logarithm(name):
    case = CASES[name]
    arguments = jnp.array([case.at[0], *case.theta])
    value, gradient, hessian = map(np.asarray, compiled_derivatives(case.density, "pdf")(arguments))
    log_value, d, d2 = map(np.asarray, compiled_derivatives(case.density, "logpdf")(arguments))
    # the same numbers, multiplied in another order
    np.testing.assert_allclose(value, np.exp(log_value), rtol=1e-13)
    np.testing.assert_allclose(gradient, value * d, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(hessian, value * (d2 + np.outer(d, d)), rtol=1e-11, atol=1e-13)


@each_invertible
def test_slope_of_cdf_is_pdf(name):
    case = INVERTIBLE[name]
    x = jnp.asarray(points(case))
    slope = jax.jit(jax.vmap(jax.grad(lambda x: case.density.cdf(x, *case.theta))), compiler_options=QUICKLY)(x)
    # exp and log once in either
    np.testing.assert_allclose(slope, compiled(case.density, "pdf")(x, *case.theta), rtol=1e-12)


# -- what only one of them can get wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize("q", [1.0, 1.0 + 1e-12, 1.0 + 1e-6])
def test_qgaussian_starts_from_the_normal_distribution(q):
    x = np.linspace(-5.0, 5.0, 21)
    z = (x - 0.3) / 1.2
    # first order in q - 1; the second is about z^6 / 12
    expected = norm.logpdf(x, 0.3, 1.2) + (q - 1.0) * (z**4 - 3.0) / 8.0
    error = 1e-14 + (q - 1.0) ** 2 * 500
    np.testing.assert_allclose(compiled(qgaussian, "logpdf")(x, q, 0.3, 1.2), expected, atol=20 * error)
    slope = jax.jit(jax.jacfwd(lambda q: qgaussian.logpdf(x, q, 0.3, 1.2)), compiler_options=QUICKLY)(q)
    np.testing.assert_allclose(slope, (z**4 - 3.0) / 8.0, atol=1e-12 + (q - 1.0) * 5000)
    # the change of the cdf is about 0.2 (q - 1)
    np.testing.assert_allclose(
        compiled(qgaussian, "cdf")(x, q, 0.3, 1.2), norm.cdf(x, 0.3, 1.2), rtol=1e-12, atol=q - 1.0
    )


@pytest.mark.parametrize("df", [1.0, 2.0, 30.0, 1e3, 1e6])
def test_t_cdf_has_both_tails(df):
    z = -(10.0 ** np.linspace(-3, 1, 60))
    below = scipy.stats.t.cdf(z, df)
    usable = below > 1e-290
    # 66 nodes leave 4e-13 at df = 1, and the density rounds by eps z^2 / 2
    np.testing.assert_allclose(np.asarray(compiled(t, "cdf")(z, df, 0.0, 1.0))[usable], below[usable], rtol=1e-12)
    # scipy's own error at df = 1, where the exact value is known to be ours
    np.testing.assert_allclose(compiled(t, "cdf")(-z, df, 0.0, 1.0), 1.0 - below, rtol=1e-13)


def test_faddeeva():
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-15.0, 15.0, 3000), 10.0 ** rng.uniform(-8.0, 2.0, 3000)
    y[:100] = 0.0
    # x on the nodes of the sum and half-way between, where Lorentz curves of width 0 would be infinite
    x[:50] = 0.5 * np.sqrt(np.pi / 12) * np.arange(-25, 25)
    # next to |z| = 7, where the formula changes
    angle = rng.uniform(0.0, np.pi, 500)
    x[500:1000], y[500:1000] = rng.uniform(6.99, 7.01, 500) * np.array([np.cos(angle), np.sin(angle)])
    exact = scipy.special.wofz(x + 1j * y)
    real, imag = map(np.asarray, jax.jit(voigt.faddeeva)(x, y))
    # wofz claims 1e-13; both parts of it, also where the real part is 1e-9 of the whole
    np.testing.assert_allclose(imag, exact.imag, rtol=2e-13, atol=1e-15)
    np.testing.assert_allclose(real, exact.real, rtol=2e-13, atol=1e-18)


def test_voigt_without_cauchy_part_is_normal():
    x = np.linspace(-4.0, 4.0, 41)
    np.testing.assert_allclose(compiled(voigt, "pdf")(x, 0.0, 0.3, 1.2), norm.pdf(x, 0.3, 1.2), rtol=1e-13)
    # far from the peak of a narrow resolution it is the Cauchy distribution; scale^2 / gamma^2 is below rounding
    np.testing.assert_allclose(compiled(voigt, "pdf")(x, 0.5, 0.3, 1e-9), cauchy.pdf(x, 0.3, 0.5), rtol=1e-13)


@pytest.mark.parametrize("gamma", [1e-3, 0.3, 2.0])
def test_voigt_is_normalised(gamma):
    """The window covers all but gamma / 200 pi or so on either side, where the density is nearly that of Cauchy."""
    lower = jnp.arange(-200.0, 200.0, 5.0)
    parts = jax.jit(lambda gamma: quadrature.integral(lambda x: voigt.pdf(x, gamma, 0.0, 1.0), lower, lower + 5.0, 40))
    inside = np.sum(parts(gamma))
    # the tails of a sum: corrections of relative order scale^2 / x^2 = 2.5e-5, three times
    outside = 2.0 * cauchy.cdf(-200.0, 0.0, gamma)
    np.testing.assert_allclose(inside, 1.0 - outside, atol=1e-4 * outside + 1e-12)


def test_crystalball_meets_itself():
    """With one set of parameters on both sides it is symmetric; with a far tail it is the normal distribution."""
    x = np.linspace(-8.0, 8.0, 33)
    both = (1.1, 2.7, 0.9)
    left, right = (crystalball_ex.pdf(0.3 + sign * x, *both, *both, 0.3) for sign in (-1.0, 1.0))
    np.testing.assert_allclose(left, right, rtol=1e-14)
    np.testing.assert_allclose(crystalball.pdf(x, 30.0, 2.0, 0.3, 1.2), norm.pdf(x, 0.3, 1.2), rtol=1e-13)
    theta = (1.1, 2.7, 0.9, 1.6, 3.4, 1.3, 0.3)
    window = trunccrystalball_ex.pdf(x, -5.0, 5.0, *theta)
    mass = crystalball_ex.cdf(5.0, *theta) - crystalball_ex.cdf(-5.0, *theta)
    np.testing.assert_allclose(
        window, np.where(np.abs(x) <= 5.0, crystalball_ex.pdf(x, *theta), 0.0) / mass, rtol=1e-14
    )


@pytest.mark.parametrize("edges", [(-INF, INF), (-INF, 2.0), (1.0, INF)])
def test_open_windows(edges):
    x, theta = 1.4, (0.3, 1.2)
    mass = cauchy.cdf(edges[1], *theta) - cauchy.cdf(edges[0], *theta)
    derivatives = jax.jacfwd(lambda theta: trunccauchy.pdf(x, *edges, *theta))(jnp.array(theta))
    np.testing.assert_allclose(trunccauchy.pdf(x, *edges, *theta), cauchy.pdf(x, *theta) / mass, rtol=1e-14)
    assert np.isfinite(derivatives).all()
    # any density that has a cdf
    inside = lognorm.cdf(4.0, 0.7, 0.3, 1.2) - lognorm.cdf(0.8, 0.7, 0.3, 1.2)
    expected = lognorm.pdf(1.4, 0.7, 0.3, 1.2) / inside
    np.testing.assert_allclose(truncate(lognorm).pdf(1.4, 0.8, 4.0, 0.7, 0.3, 1.2), expected, rtol=1e-14)


# -- counts --------------------------------------------------------------------------------------------------------


def test_poisson():
    rng = np.random.default_rng(2)
    mu = 10.0 ** rng.uniform(-3.0, 3.0, 400)
    k = rng.poisson(mu) + rng.integers(0, 3, 400)
    exact = scipy.stats.poisson.logpmf(k, mu)
    # scipy subtracts terms of size k log k
    error = 4e-16 * (k + 1) * np.log(k + 3) + 1e-14
    assert np.all(np.abs(np.asarray(jax.jit(poisson.logpmf)(k, mu)) - exact) <= error + 1e-14 * np.abs(exact))
    some = np.arange(9.0)
    np.testing.assert_allclose(poisson.pmf(some, 2.3), numba_stats.poisson.pmf(some, 2.3), rtol=1e-13)
    np.testing.assert_allclose(jax.jit(poisson.cdf)(k, mu), scipy.stats.poisson.cdf(k, mu), rtol=1e-12)
    assert poisson.pmf(0, 0.0) == 1.0 and poisson.pmf(3, 0.0) == 0.0
    assert poisson.pmf(-1, 2.0) == 0.0 and poisson.logpmf(-1, 2.0) == -INF and poisson.cdf(-1, 2.0) == 0.0
    assert all(np.isnan(f(2, -1.0)) for f in (poisson.pmf, poisson.logpmf, poisson.cdf))
    assert all(np.isnan(f(*a)) for f in (poisson.pmf, poisson.cdf) for a in ((np.nan, 1.0), (1.0, np.nan)))


def test_poisson_keeps_its_accuracy_for_many_events():
    """Next to mu = k the logarithm is -log(2 pi k) / 2 - d^2 / 2 + ..., a difference of terms of 2e9."""
    k = 1e8
    d = np.array([-2.0, -0.5, 0.0, 1.0, 3.0])
    mu = k + np.round(d * np.sqrt(k))
    w = (mu - k) / k
    series = -(w**2) / 2 + w**3 / 3 - w**4 / 4 + w**5 / 5 - w**6 / 6
    expected = -0.5 * np.log(2 * np.pi * k) - 1 / (12 * k) + k * series
    np.testing.assert_allclose(poisson.logpmf(k, mu), expected, rtol=1e-14)


@jax.jit
def slopes_of_poisson(k, mu):
    slope = jax.grad(poisson.logpmf, argnums=1)
    return slope(k, mu), jax.grad(slope, argnums=1)(k, mu)


@pytest.mark.parametrize("k", [0.0, 3.0, 40.0, 4.7])
def test_poisson_derivatives(k):
    for mu in (0.7, 3.0, 39.9, 50.0):
        # the series about mu = k has to give the same
        slope, second = slopes_of_poisson(k, mu)
        np.testing.assert_allclose(slope, k / mu - 1.0, rtol=1e-13, atol=1e-14 * (1 + k))
        np.testing.assert_allclose(second, -k / mu**2, rtol=1e-12, atol=1e-14)
    step = jax.jit(jax.grad(poisson.cdf, argnums=1))(k, 3.0)
    np.testing.assert_allclose(step, -poisson.pmf(np.floor(k), 3.0), rtol=1e-12)


def test_binom():
    rng = np.random.default_rng(4)
    n = rng.integers(1, 2000, 300)
    p = rng.uniform(0.01, 0.99, 300)
    k = rng.binomial(n, p)
    k[:20], k[20:40] = 0, n[20:40]
    exact = scipy.stats.binom.logpmf(k, n, p)
    # numba_stats subtracts terms of size n log n
    np.testing.assert_allclose(jax.jit(binom.logpmf)(k, n, p), exact, rtol=1e-12, atol=1e-12)
    floats = [np.asarray(a, dtype=float) for a in (k, n)]
    np.testing.assert_allclose(
        binom.pmf(k[:5], n[0], 0.3), numba_stats.binom.pmf(floats[0][:5], np.full(5, float(n[0])), 0.3), rtol=1e-10
    )
    np.testing.assert_allclose(jax.jit(binom.cdf)(k, n, p), scipy.stats.binom.cdf(k, n, p), rtol=1e-10, atol=1e-300)
    slope = jax.jit(jax.grad(binom.logpmf, argnums=2))
    second = jax.jit(jax.grad(slope, argnums=2))
    for k, n, p in ((3.0, 10.0, 0.3), (0.0, 7.0, 0.2), (7.0, 7.0, 0.9), (50.0, 200.0, 0.9)):
        np.testing.assert_allclose(slope(k, n, p), k / p - (n - k) / (1 - p), rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(second(k, n, p), -k / p**2 - (n - k) / (1 - p) ** 2, rtol=1e-12)
    assert binom.pmf(0, 5, 0.0) == binom.pmf(5, 5, 1.0) == 1.0
    assert binom.pmf(2, 5, 0.0) == binom.pmf(6, 5, 0.4) == binom.pmf(-1, 5, 0.4) == 0.0
    assert binom.cdf(-1, 5, 0.4) == 0.0 and binom.cdf(5, 5, 0.4) == 1.0
    for arguments in ((2.0, 5.0, -0.1), (2.0, 5.0, 1.1), (2.0, np.nan, 0.3), (np.nan, 5.0, 0.3), (2.0, -1.0, 0.3)):
        assert np.isnan(binom.pmf(*arguments)) and np.isnan(binom.cdf(*arguments))


# -- polynomials ---------------------------------------------------------------------------------------------------

BETA = np.array([0.7, 2.0, 0.1, 1.3, 0.9])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_bernstein(n):
    beta, x = BETA[:n], np.linspace(-1.0, 3.0, 41)
    np.testing.assert_allclose(
        bernstein.density(x, beta, -1.0, 3.0), numba_stats.bernstein.density(x, beta, -1.0, 3.0), rtol=1e-14
    )
    np.testing.assert_allclose(
        bernstein.integral(x, beta, -1.0, 3.0), numba_stats.bernstein.integral(x, beta, -1.0, 3.0), rtol=2e-14
    )
    truth = scipy.interpolate.BPoly(beta[:, None], [-1.0, 3.0])
    for order, function in ((1, jax.grad(bernstein.density)), (2, jax.grad(jax.grad(bernstein.density)))):
        slopes = jax.vmap(lambda x: function(x, beta, -1.0, 3.0))(x)  # noqa: B023
        np.testing.assert_allclose(slopes, truth.derivative(order)(x) if order < n else 0.0 * x, atol=1e-13)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_chebyshev(n):
    beta, x = BETA[:n], np.linspace(-1.0, 3.0, 41)
    truth = np.polynomial.Chebyshev(beta, domain=[-1.0, 3.0])
    np.testing.assert_allclose(chebyshev.density(x, beta, -1.0, 3.0), truth(x), atol=1e-14)
    whole = truth.integ(lbnd=-1.0)
    np.testing.assert_allclose(chebyshev.integral(x, beta, -1.0, 3.0), whole(x), atol=1e-14)
    slopes = jax.vmap(lambda x: jax.grad(jax.grad(chebyshev.density))(x, beta, -1.0, 3.0))(x)
    np.testing.assert_allclose(slopes, truth.deriv(2)(x), atol=1e-13)


@pytest.mark.parametrize("module", [bernstein, chebyshev])
def test_polynomials_outside(module):
    assert module.density(-1.1, BETA, -1.0, 3.0) == module.density(3.1, BETA, -1.0, 3.0) == 0.0
    assert module.integral(-1.1, BETA, -1.0, 3.0) == 0.0
    assert module.integral(9.0, BETA, -1.0, 3.0) == module.integral(3.0, BETA, -1.0, 3.0)
    for function in (module.density, module.integral):
        assert np.isnan(function(0.0, BETA, 1.0, 1.0))
        assert np.isnan(function(np.nan, BETA, -1.0, 3.0))
        assert np.isnan(function(0.3, (0.7, np.nan), -1.0, 3.0))
        # a sequence of scalars, as a model has them
        assert function(0.3, tuple(BETA), -1.0, 3.0) == function(0.3, BETA, -1.0, 3.0)
        hessian = jax.hessian(lambda beta: function(0.3, beta, -1.0, 3.0))(BETA)  # noqa: B023
        assert np.all(hessian == 0.0)


# -- quadrature ----------------------------------------------------------------------------------------------------


def test_quadrature():
    # exact for a polynomial of degree 2 n - 1, and not one above
    value = quadrature.integral(lambda x: x**9, 1.0, 2.0, n=5)
    np.testing.assert_allclose(value, (2.0**10 - 1.0) / 10.0, rtol=1e-15)
    assert quadrature.error(lambda x: x**10, 1.0, 2.0, n=5) > 1e-8
    assert quadrature.integral(lambda x: x, 2.0, 1.0) == -quadrature.integral(lambda x: x, 1.0, 2.0)
    # any shapes, and the error that is reported is that of a peak which is too narrow for its window
    widths = jnp.array([[1.0], [0.1], [0.01]])
    peaks = lambda n: quadrature.integral(lambda x: norm.pdf(x, 0.1, widths), jnp.array([-9.0, -8.0]), 9.0, n)  # noqa: E731
    reported = quadrature.error(lambda x: norm.pdf(x, 0.1, widths), jnp.array([-9.0, -8.0]), 9.0, 64)
    assert peaks(64).shape == reported.shape == (3, 2)
    found = np.abs(np.asarray(peaks(64)) - 1.0)
    assert np.all(found[0] < 1e-13) and np.all(reported[0] < 1e-13)
    # in the second window no node of either rule sees the peak
    assert np.all(found[2] > 0.01) and reported[2, 0] > 0.01


def test_cruijff_quadrature_is_good_enough():
    """The normal limit has a closed form; windows up to 100 widths."""
    for width in (1.0, 10.0, 100.0):
        value = cruijff.pdf(0.3, 0.3 - width, 0.3 + 0.5 * width, 0.0, 0.0, 0.3, 1.0, 1.0)
        mass = 0.5 * np.sqrt(2 * np.pi) * (ERF(width / SQRT2) + ERF(0.5 * width / SQRT2))
        np.testing.assert_allclose(value, 1.0 / mass, rtol=1e-12)


@pytest.mark.parametrize("loc", [-6.0, -4.0, 5.0, 7.0])
def test_cruijff_beside_its_window(loc):
    theta = (0.1, 0.2, loc, 0.9, 1.3)
    mass = gauss(lambda x: numba_stats.cruijff.density(x, *theta), -4.0, 5.0)
    np.testing.assert_allclose(
        cruijff.pdf(0.7, -4.0, 5.0, *theta), numba_stats.cruijff.density(np.array(0.7), *theta) / mass, rtol=1e-12
    )


# -- translation ---------------------------------------------------------------------------------------------------


def each_density(function):
    """Every density at x with the parameters (a, loc, scale), as the same function on both drivers."""

    def of(density):
        return getattr(density, function)

    def terms(a, loc, scale, x):
        found = {
            "cauchy": of(cauchy)(x, loc, scale),
            "lognorm": of(lognorm)(x, a, loc - 4.0, scale),
            "crystalball": of(crystalball)(x, a, 2.0 + a, loc, scale),
            "crystalball_ex": of(crystalball_ex)(x, a, 2.0 + a, scale, 2.0 * a, 3.0, 1.1 * scale, loc),
            "t": of(t)(x, 2.0 + a, loc, scale),
            "qgaussian": of(qgaussian)(x, 1.0 + 0.5 * a, loc, scale),
            "argus": of(argus)(x + 4.0, a, 7.0 * scale, 1.0 + loc),
            "cruijff": of(cruijff)(x, -4.0, 4.0, 0.1 * a, 0.2, loc, scale, 1.3),
            "trunccauchy": of(trunccauchy)(x, -4.0, 4.0, loc, scale),
            "trunccrystalball": of(trunccrystalball)(x, -4.0, 4.0, a, 2.5, loc, scale),
        }
        if function != "cdf":
            found["voigt"] = of(voigt)(x, a, loc, scale)
        return found

    return terms


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
@pytest.mark.parametrize("name", each_density("pdf")(0.8, 0.3, 1.2, 0.1))
def test_values_when_translated(name, function):
    terms = each_density(function)
    if name == "voigt" and function == "cdf":
        return
    f = lambda x: terms(*THETA, x)[name]  # noqa: E731
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
    terms = each_density("logpdf")

    def term(a, loc, x):
        found = terms(a, loc, THETA[2], x)
        return sum(weight * found[name] for weight, name in enumerate(names, start=1))

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
    everything = lambda v: (total(v), jax.jacfwd(total)(v), jax.jacfwd(jax.jacfwd(total))(v))  # noqa: E731
    value, gradient, hessian = jax.jit(everything, compiler_options=QUICKLY)(jnp.asarray(theta))
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


@njit(["void(f8[::1], f8[:, ::1])"], **vectormath.COMPILE_ROW)
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
