import math
import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy import special
from numba import njit
from scipy.special import gammaln, polygamma, psi

from kernels import vectormath, vectorpower, vectortrig
from kernels.vectormath import COMPILE_ROW

# Below this `exp` counts as zero, and XLA flushes what lies below 2.2e-308.
ZERO = 3.2e-308
TINY = 5e-324
NORMAL = 2.2250738585072014e-308

SPECIAL = [np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, TINY, -TINY, NORMAL, -NORMAL, 1e-310, -1e-310]
SPECIAL += [2.225e-308, -2.225e-308, 0.5, np.sqrt(0.5), np.sqrt(2), 1.7976931348623157e308, -1.7976931348623157e308]
THRESHOLDS = [709.782712893384, 709.7827128933841, 709.79, 710.0, 1e5, -708.0, -708.04, -708.05, -708.3, -708.4, -708.5]
THRESHOLDS += [-709.0, -744.4, -745.2, -746.0, -1e5, 2.0**51, -(2.0**51), 2.0**60]


@njit(**COMPILE_ROW)
def each_row(x, out):
    for i in range(np.uint64(len(x))):
        out[0, i] = vectormath.exp(x[i])
        out[1, i] = vectormath.log(x[i])


@njit(**COMPILE_ROW)
def each_row_erf(x, out):
    for i in range(np.uint64(len(x))):
        out[0, i] = vectormath.erf(x[i])
        out[1, i] = vectormath.erfc(x[i])


@njit(**COMPILE_ROW)
def minus_log_sum(x, slope, offset):
    total = 0.0
    for i in range(np.uint64(len(x))):
        total -= vectormath.log(slope * x[i] + offset)
    return total


def evaluate(x, loop=each_row):
    out = np.empty((2, len(x)))
    loop(np.asarray(x, dtype=np.float64), out)
    return out


def ulps(found, exact):
    return np.abs(found.astype(np.longdouble) - exact) / np.spacing(np.abs(exact.astype(np.float64)))


extended = pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="longdouble is float64 here")


@extended
@pytest.mark.parametrize("low, high", [(-708.0, 709.78), (-40.0, 40.0), (-1.0, 1.0), (-1e-8, 1e-8)])
def test_exp_within_one_ulp(low, high):
    x = np.random.default_rng(1).uniform(low, high, 20_000)
    found = evaluate(x)[0]
    assert ulps(found, np.exp(x.astype(np.longdouble))).max() < 1


@extended
def test_exp_within_one_ulp_where_the_exponent_changes():
    # half-way between two multiples of ln 2 the series is longest
    half = (np.arange(-1020, 1023) + 0.5) * np.log(2)
    x = np.concatenate([np.nextafter(half, -np.inf), half, np.nextafter(half, np.inf)])
    assert ulps(evaluate(x)[0], np.exp(x.astype(np.longdouble))).max() < 1


@extended
def test_log_within_one_ulp_over_all_normal_numbers():
    bits = np.random.default_rng(2).integers(0x0010000000000000, 0x7FEFFFFFFFFFFFFF, 40_000)
    x = bits.view(np.float64)
    assert ulps(evaluate(x)[1], np.log(x.astype(np.longdouble))).max() < 1


@extended
@pytest.mark.parametrize("width", [0.5, 1e-3, 1e-8, 1e-14])
def test_log_within_one_ulp_around_one(width):
    x = 1 + np.random.default_rng(3).uniform(-width, width, 10_000)
    x = x[x != 1]
    assert ulps(evaluate(x)[1], np.log(x.astype(np.longdouble))).max() < 1


def test_exact_points():
    np.testing.assert_array_equal(evaluate([0.0, -0.0])[0], [1.0, 1.0])
    np.testing.assert_array_equal(evaluate([1.0])[1], [0.0])
    x = 2.0 ** np.arange(-1022, 1024)
    np.testing.assert_allclose(evaluate(x)[1], np.log(2) * np.arange(-1022, 1024), rtol=3e-16)


def test_special_values_are_those_of_xla():
    x = np.array(SPECIAL + THRESHOLDS)
    with jax.enable_x64(True):
        exp, log = np.asarray(jnp.exp(jnp.array(x))), np.asarray(jnp.log(jnp.array(x)))
    found_exp, found_log = evaluate(x)
    zeroed = lambda values: np.where(values < ZERO, 0.0, values)  # noqa: E731
    np.testing.assert_allclose(zeroed(found_exp), zeroed(exp), rtol=5e-16)
    np.testing.assert_allclose(found_log, log, rtol=5e-16)
    assert np.all(found_exp[x < -708.4] == 0) and np.all(found_exp[x > 709.79] == np.inf)


def test_scalar_calls_agree_with_the_loop():
    x = np.array(SPECIAL + THRESHOLDS)
    one_by_one = [[f(v) for v in x] for f in (vectormath.exp, vectormath.log)]
    np.testing.assert_allclose(evaluate(x), one_by_one, rtol=5e-16)


def test_position_in_the_loop_is_irrelevant():
    # the vector body and the scalar remainder of the loop
    for n in range(1, 20):
        x = np.full(n, 0.7)
        x[n // 2] = np.nan
        exp, log = evaluate(x)
        assert np.flatnonzero(np.isnan(exp)).tolist() == np.flatnonzero(np.isnan(log)).tolist() == [n // 2]


@pytest.mark.parametrize("low, high", [(-27.0, 26.5), (-6.0, 6.0), (0.4, 1.1), (-1e-3, 1e-3)])
def test_erf_and_erfc_against_libm(low, high):
    x = np.random.default_rng(4).uniform(low, high, 20_000)
    expected = [[f(v) for v in x] for f in (math.erf, math.erfc)]
    # libm is good to 1 ulp (2.2e-16), these to 3 or 4
    np.testing.assert_allclose(evaluate(x, each_row_erf), expected, rtol=1e-15)


def test_special_values_of_erf_are_those_of_xla():
    x = np.array([*SPECIAL, 26.5, 27.0, 27.5, 40.0, 1e155, -27.0, 5.9, 6.1])
    with jax.enable_x64(True):
        expected = np.stack([special.erf(jnp.array(x)), special.erfc(jnp.array(x))])
    found = np.where(np.abs(x) < NORMAL, [[0.0], [1.0]], evaluate(x, each_row_erf))
    expected = np.where(np.abs(x) < NORMAL, [[0.0], [1.0]], expected)
    np.testing.assert_allclose(found, expected, rtol=2e-14)  # XLA in the far tail
    np.testing.assert_array_equal(evaluate([0.0, -0.0, 5e-324, -5e-324], each_row_erf)[1], 1.0)
    assert np.all(found[1, x >= 27] == 0)


@pytest.mark.parametrize(
    "bad, expected", [(np.nan, np.nan), (-2.0, np.nan), (-1.0, np.inf), (-np.inf, np.nan), (np.inf, -np.inf)]
)
@pytest.mark.parametrize("place", [0, 5, 16])
def test_a_bad_density_shows_in_a_reassociated_sum(bad, expected, place):
    x = np.linspace(0.1, 2.0, 17)
    assert minus_log_sum(x, 1.0, 1.0) == pytest.approx(-np.log1p(x).sum(), rel=1e-14)
    x[place] = bad
    np.testing.assert_equal(minus_log_sum(x, 1.0, 1.0), expected)


def test_the_loop_is_vectorised():
    evaluate([1.0])
    [code] = each_row.inspect_llvm().values()
    assert re.search(r"fdiv contract <\d+ x double>", code)  # the one division of log
    assert re.search(r"@llvm.rint.v\d+f64", code)  # the rounding of exp
    evaluate([1.0], each_row_erf)
    [code] = each_row_erf.inspect_llvm().values()
    assert re.search(r"fdiv contract <\d+ x double>", code)
    assert not re.search(r"call[^\n]*@erfc?\(", code)


ONE = {
    "log1p": (vectorpower.log1p, np.log1p, [(-0.999, 3.0), (-1e-8, 1e-8), (1.0, 1e300)]),
    "expm1": (vectorpower.expm1, np.expm1, [(-3.0, 3.0), (-1e-8, 1e-8), (-50.0, 709.0)]),
    "cbrt": (vectorpower.cbrt, np.cbrt, [(-10.0, 10.0), (-1e-200, 1e200)]),
    "sin": (vectortrig.sin, np.sin, [(-10.0, 10.0), (-1e-3, 1e-3), (1e5, 1e9)]),
    "cos": (vectortrig.cos, np.cos, [(-10.0, 10.0), (-1e-3, 1e-3), (1e5, 1e9)]),
    "tan": (vectortrig.tan, np.tan, [(-10.0, 10.0), (-1e-3, 1e-3), (1e5, 1e9)]),
    "asin": (vectortrig.asin, np.arcsin, [(-1.0, 1.0), (-1e-3, 1e-3)]),
    "acos": (vectortrig.acos, np.arccos, [(-1.0, 1.0), (0.999, 1.0)]),
    "atan": (vectortrig.atan, np.arctan, [(-3.0, 3.0), (-1e-3, 1e-3), (3.0, 1e20)]),
    "sinh": (vectortrig.sinh, np.sinh, [(-3.0, 3.0), (-1e-3, 1e-3), (700.0, 710.4)]),
    "cosh": (vectortrig.cosh, np.cosh, [(-3.0, 3.0), (700.0, 710.4)]),
    "tanh": (vectortrig.tanh, np.tanh, [(-3.0, 3.0), (-1e-3, 1e-3), (10.0, 100.0)]),
    "asinh": (vectortrig.asinh, np.arcsinh, [(-3.0, 3.0), (-1e-3, 1e-3), (1e6, 1e10)]),
    "acosh": (vectortrig.acosh, np.arccosh, [(1.0, 3.0), (1.0, 1.001), (1e6, 1e10)]),
    "atanh": (vectortrig.atanh, np.arctanh, [(-0.999, 0.999), (-1e-3, 1e-3)]),
}
TWO = {
    "pow": (
        vectorpower.pow,
        np.power,
        [((0.7, 1.5), (-2000.0, 2000.0)), ((0.01, 10.0), (-200.0, 200.0)), ((1e-200, 1e200), (-1.0, 1.0))],
    ),
    "atan2": (vectortrig.atan2, np.arctan2, [((-3.0, 3.0), (-3.0, 3.0)), ((-1e-9, 1e-9), (-1e9, 1e9))]),
}


@cache
def loop_of(name):
    function = (ONE | TWO | GAMMA)[name][0]
    if name in TWO:

        @njit(["void(f8[::1], f8[::1], f8[::1])"], **COMPILE_ROW)
        def loop(x, y, out):
            for i in range(np.uint64(len(x))):
                out[i] = function(x[i], y[i])

    else:

        @njit(["void(f8[::1], f8[::1])"], **COMPILE_ROW)
        def loop(x, out):
            for i in range(np.uint64(len(x))):
                out[i] = function(x[i])

    return loop


def found(name, *arguments):
    out = np.empty(len(arguments[0]))
    loop_of(name)(*(np.asarray(a, np.float64) for a in arguments), out)
    return out


@extended
@pytest.mark.parametrize("name", ONE)
def test_function_against_long_double(name):
    _, reference, ranges = ONE[name]
    for low, high in ranges:
        x = np.random.default_rng(5).uniform(low, high, 5000)
        assert ulps(found(name, x), reference(x.astype(np.longdouble))).max() < 3, (low, high)


@extended
@pytest.mark.parametrize("name", TWO)
def test_function_of_two_against_long_double(name):
    _, reference, ranges = TWO[name]
    for low, high in ranges:
        x, y = np.random.default_rng(6).uniform(*np.transpose([low, high]), (5000, 2)).T.copy()
        expected = reference(x.astype(np.longdouble), y.astype(np.longdouble))
        inside = (np.abs(expected) > ZERO) & (np.abs(expected) < 1.7e308)
        assert ulps(found(name, x, y)[inside], expected[inside]).max() < 3, (low, high)


def same(left, right):
    """Equal but for 3 ulp, NaN and signed zeros included; what is below the smallest normal number is 0."""
    left, right = (np.where(np.abs(v) < ZERO, np.copysign(0.0, v), v) for v in (left, right))
    np.testing.assert_allclose(left, right, rtol=1e-15)
    np.testing.assert_array_equal(np.signbit(left)[right == 0], np.signbit(right)[right == 0])


EDGES = [v for v in SPECIAL if v == 0.0 or not abs(v) < NORMAL]


@pytest.mark.parametrize("name", ONE)
def test_special_values_are_those_of_ieee(name):
    x = np.array([*EDGES, 2.0, -2.0, 1e-20, -1e-20, 750.0, -750.0, 1.0 + 1e-15])
    if name in ("sin", "cos", "tan"):
        assert np.isnan(found(name, [2.0**50, -1e300])).all()  # where neighbouring numbers are 1/8 apart
        x = x[~(np.abs(x) > 1e15) | np.isinf(x)]
    with np.errstate(all="ignore"):
        same(found(name, x), ONE[name][1](x))


@pytest.mark.parametrize("name", TWO)
def test_special_values_of_two_arguments_are_those_of_ieee(name):
    values = [*EDGES, 2.0, -2.0, 3.0, -3.0, 0.3, 1e-9, 2.0**53 + 2]
    x, y = (part.ravel() for part in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        same(found(name, x, y), TWO[name][1](x, y))


GAMMA = {
    "lgamma": (vectormath.lgamma, gammaln),
    "digamma": (vectormath.digamma, psi),
    "trigamma": (vectormath.trigamma, lambda x: polygamma(1, x)),
}


@pytest.mark.parametrize("name", GAMMA)
def test_gamma_functions(name):
    generator = np.random.default_rng(7)
    x = np.concatenate([generator.uniform(0.01, 20.0, 20_000), 10.0 ** generator.uniform(-20, 20, 5000)])
    expected = GAMMA[name][1](x)
    floor = np.abs(expected) + (name != "trigamma")  # the others cross zero, where scipy is right to eps only
    assert np.max(np.abs(found(name, x) - expected) / floor) < 8 * np.finfo(float).eps


def test_lgamma_at_its_zeros_and_below_zero():
    np.testing.assert_array_equal(found("lgamma", [1.0, 2.0]), 0.0)
    # -gamma d and (1 - gamma) d to first order
    for zero, slope in ((1.0, -0.5772156649), (2.0, 0.4227843351)):
        x = zero + np.linspace(1e-11, 1e-10, 50)
        np.testing.assert_allclose(found("lgamma", x) / (x - zero), slope, rtol=1e-9)
    x = np.random.default_rng(8).uniform(-50.0, 0.0, 20_000)
    np.testing.assert_allclose(found("lgamma", x), gammaln(x), atol=1e-13, rtol=0)
    values = np.array([np.nan, np.inf, 0.0, -0.0, -1.0, -7.0, 1e306, 1e-300])
    np.testing.assert_allclose(found("lgamma", values), gammaln(values), rtol=1e-15)


@pytest.mark.parametrize("name", [*ONE, *TWO, *GAMMA])
def test_every_function_is_vectorised(name):
    [code] = loop_of(name).inspect_llvm().values()
    assert re.search(r"f(div|mul)[a-z ]* <\d+ x double>", code)
    assert not re.search(r"call[^\n]* @(?!llvm\.|sqrt\()\w+\(double", code)
