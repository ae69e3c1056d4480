"""The densities beyond the basic five: values, derivatives and quantiles, each against another source."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from kernels import argus, cruijff, voigt
from tests.kernels.density_cases import (
    CASES,
    FRAMES,
    INF,
    INVERTIBLE,
    QUICKLY,
    compiled,
    compiled_derivatives,
    each_case,
    each_invertible,
    of_numba_stats,
    points,
)
from tests.kernels.textbook import textbook_cdf, textbook_logpdf

pytestmark = pytest.mark.usefixtures("x64")


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
        compiled(case.density, "logpdf")(x, *theta) + np.log(scale), log_density, rtol=error, atol=error
    )
    np.testing.assert_allclose(compiled(case.density, "pdf")(x, *theta) * scale, np.exp(log_density), rtol=30 * error)
    if "cdf" in case.functions:
        below = textbook_values(name, "cdf")
        # the textbook subtracts from 1 and integrates the tails of t with 200 nodes
        np.testing.assert_allclose(compiled(case.density, "cdf")(x, *theta), below, rtol=error, atol=10 * error)


OTHERS = ["cauchy", "lognorm", "crystalball", "crystalball_ex", "t", "qgaussian", "argus", "voigt", "voigt, narrow"]


@pytest.mark.parametrize("name", OTHERS)
def test_equal_to_numba_stats(name):
    """Names and order of the arguments; values to what the other library has: wofz is good to 1e-13."""
    case = CASES[name]
    other = scipy.stats.cauchy if name == "cauchy" else of_numba_stats(name.partition(",")[0])
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
    np.testing.assert_allclose(cruijff.density(x, *theta), of_numba_stats("cruijff").density(x, *theta), rtol=1e-14)


@each_case
def test_outside_of_the_support(name):
    case = CASES[name]
    x, below = np.array([(case.lower - 1e-9, 0), (-1e3, 0), (-INF, 0), (case.upper + 1e-9, 1), (INF, 1)]).T
    outside = ~((case.lower < x) & (x < case.upper))
    x, below = x[outside], below[outside]
    assert np.all(compiled(case.density, "pdf")(x, *case.theta) == 0.0)
    assert np.all(compiled(case.density, "logpdf")(x, *case.theta) == -INF)
    if "cdf" in case.functions:
        assert np.all(compiled(case.density, "cdf")(x, *case.theta) == below)
        ends = np.where(below, case.upper, case.lower)
        assert np.all(compiled(case.density, "ppf")(below, *case.theta) == ends)
    for function in case.functions[1:3]:
        for finite in x[np.isfinite(x)]:
            _, gradient, hessian = compiled_derivatives(case.density, function)(jnp.array([finite, *case.theta]))
            assert np.all(np.asarray(gradient) == 0.0) and np.all(np.asarray(hessian) == 0.0)


@each_case
def test_nan_in_nan_out(name):
    case = CASES[name]
    arguments = (np.array([0.5, -1e9, 1e9, 0.0, 1.0]), *case.theta)
    for function in case.functions:
        for position in range(len(arguments)):
            broken = (*arguments[:position], np.nan, *arguments[position + 1 :])
            assert np.isnan(compiled(case.density, function)(*broken)).all(), (function, broken)


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
            found = compiled(case.density, function)([0.5, -1e9, 1e9, 0.0, 1.0], *theta)
            assert np.isnan(found).all(), (function, found, theta)


@each_invertible
def test_ppf_inverts_cdf(name):
    case = INVERTIBLE[name]
    outside = (-1e-300, -1.0, 1.0 + 2.3e-16, INF, -INF)
    assert np.isnan(compiled(case.density, "ppf")(outside, *case.theta)).all()
    p = np.concatenate([np.random.default_rng(9).uniform(size=100), 10.0 ** np.arange(-12.0, -1.0), [0.5]])
    x = compiled(case.density, "ppf")(p, *case.theta)
    density = compiled(case.density, "pdf")(x, *case.theta)
    # x is rounded by eps |x| and eps of the parameters; cdf has 4e-13 at worst, but 1e-14 here
    rounding = 4e-16 * (np.abs(x) + 4.0) * density + 2e-14 * p
    # a difference of integrals, rounded to eps of the whole
    rounding += 1e-15 * (case.density in (argus, cruijff) or name.startswith("trunc"))
    assert np.all(np.abs(compiled(case.density, "cdf")(x, *case.theta) - p) <= rounding)


# the numerical inversions, and two of the others
@pytest.mark.parametrize("name", ["t", "argus", "cruijff", "crystalball", "trunccauchy"])
def test_ppf_derivative(name):
    """ppf(p) moves by dp / pdf, and by -(d cdf) / pdf with the parameters."""
    case = INVERTIBLE[name]
    arguments = jnp.array([0.3, *case.theta])
    x = compiled(case.density, "ppf")(*arguments)
    ppf = lambda arguments: case.density.ppf(*arguments)  # noqa: E731
    slope = jax.jit(lambda direction: jax.jvp(ppf, (arguments,), (direction,))[1], compiler_options=QUICKLY)
    slopes = [slope(direction) for direction in jnp.eye(len(arguments))]
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
    x = points(case)
    derivatives = compiled_derivatives(case.density, "cdf")
    slope = [derivatives(jnp.array([at, *case.theta]))[1][0] for at in x]
    # exp and log once in either
    np.testing.assert_allclose(slope, compiled(case.density, "pdf")(x, *case.theta), rtol=1e-12)
