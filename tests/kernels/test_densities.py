"""What every density must do, one parametrised test each; what only one can get wrong stands in its own file."""

import functools
from types import ModuleType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from kernels import expon, norm, truncexpon, truncnorm, uniform
from tests.kernels.density_cases import of_numba_stats, value_and_derivatives

pytestmark = pytest.mark.usefixtures("x64")


class Case(NamedTuple):
    module: ModuleType
    theta: tuple[float, ...]
    # 1 for a position, which a shift moves, 0 for a width
    moves: tuple[int, ...]
    # support and its scale
    lower: float
    upper: float
    width: float

    def at(self, shift: float, scale: float) -> tuple[float, ...]:
        return tuple(scale * value + shift * moves for value, moves in zip(self.theta, self.moves, strict=True))


@functools.cache
def compiled(module: ModuleType, function: str):
    return jax.jit(getattr(module, function))


@functools.cache
def compiled_derivatives(module: ModuleType, function: str):
    """Value, gradient and Hessian in all arguments."""
    f = lambda arguments: getattr(module, function)(*arguments)  # noqa: E731
    return jax.jit(value_and_derivatives(f))


@functools.cache
def compiled_ppf_slopes(module: ModuleType):
    f = lambda arguments: module.ppf(*arguments)  # noqa: E731
    return jax.jit(lambda arguments: (f(arguments), jax.jacfwd(f)(arguments)))


@functools.cache
def compiled_reverse(module: ModuleType, function: str):
    return jax.jit(jax.grad(lambda arguments: getattr(module, function)(*arguments)))


INF = np.inf
CASES = {
    "norm": Case(norm, (0.3, 1.2), (1, 0), -INF, INF, 1.2),
    "expon": Case(expon, (0.3, 1.2), (1, 0), 0.3, INF, 1.2),
    "uniform": Case(uniform, (0.3, 1.2), (1, 0), 0.3, 1.5, 1.2),
    "truncnorm": Case(truncnorm, (-0.8, 2.1, 0.3, 1.2), (1, 1, 1, 0), -0.8, 2.1, 2.9),
    "truncnorm above": Case(truncnorm, (3.0, 5.0, 0.3, 1.2), (1, 1, 1, 0), 3.0, 5.0, 2.0),
    "truncnorm below": Case(truncnorm, (-5.0, -3.0, 0.3, 1.2), (1, 1, 1, 0), -5.0, -3.0, 2.0),
    "truncnorm open": Case(truncnorm, (-0.8, INF, 0.3, 1.2), (1, 1, 1, 0), -0.8, INF, 2.9),
    "truncexpon": Case(truncexpon, (0.8, 2.1, 0.3, 1.2), (1, 1, 1, 0), 0.8, 2.1, 1.3),
    "truncexpon from loc": Case(truncexpon, (-0.8, 2.1, 0.3, 1.2), (1, 1, 1, 0), 0.3, 2.1, 1.8),
    "truncexpon open": Case(truncexpon, (0.8, INF, 0.3, 1.2), (1, 1, 1, 0), 0.8, INF, 1.2),
}
# one of each distribution, for properties that do not depend on where the window is
ONE_EACH = ("norm", "expon", "uniform", "truncnorm", "truncexpon")
FUNCTIONS = ("pdf", "logpdf", "cdf", "ppf")

each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
one_each = pytest.mark.parametrize("case", [CASES[name] for name in ONE_EACH], ids=ONE_EACH)
each_frame = pytest.mark.parametrize(
    ("shift", "scale"), [(0.0, 1.0), (10.0, 1e-3), (-5.0, 1e3), (10.0, 1e3), (-5.0, 1e-3)]
)


def from_scipy(case: Case, theta: tuple[float, ...]):
    if case.module is truncnorm:
        xmin, xmax, loc, scale = theta
        return scipy.stats.truncnorm((xmin - loc) / scale, (xmax - loc) / scale, loc, scale)
    if case.module is truncexpon:
        xmin, xmax, loc, scale = theta
        lower = max(xmin, loc)
        return scipy.stats.truncexpon((xmax - lower) / scale, lower, scale)
    return {norm: scipy.stats.norm, expon: scipy.stats.expon, uniform: scipy.stats.uniform}[case.module](*theta)


def points(case: Case, shift: float, scale: float, n: int = 200) -> np.ndarray:
    """Random points within the support and around it, clear of the edges by more than rounding."""
    rng = np.random.default_rng(20240521)
    lower = max(case.lower, -6.0)
    upper = min(case.upper, lower + 10.0)
    x = rng.uniform(lower - 1.0, upper + 1.0, n)
    return scale * x + shift


def inside(case: Case, n: int = 200) -> np.ndarray:
    lower = max(case.lower, -6.0)
    return np.random.default_rng(7).uniform(lower, min(case.upper, lower + 10.0), n)


@each_frame
@each_case
def test_equal_to_scipy(case, shift, scale):
    theta = case.at(shift, scale)
    x = points(case, shift, scale)
    truth = from_scipy(case, theta)
    # z^2 / 2 is at most 60 here, so exp has a relative error of 60 eps on either side; both subtract the same doubles
    np.testing.assert_allclose(compiled(case.module, "pdf")(x, *theta), truth.pdf(x), rtol=1e-13)
    np.testing.assert_allclose(compiled(case.module, "logpdf")(x, *theta), truth.logpdf(x), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(compiled(case.module, "cdf")(x, *theta), truth.cdf(x), rtol=1e-13, atol=1e-15)
    p = np.random.default_rng(3).uniform(size=200)
    # the result is rounded at the size of the shift
    atol = 1e-13 * case.width * scale + 4e-16 * abs(shift)
    np.testing.assert_allclose(compiled(case.module, "ppf")(p, *theta), truth.ppf(p), rtol=1e-13, atol=atol)


@each_frame
@one_each
def test_equal_to_numba_stats(case, shift, scale):
    theta = case.at(shift, scale)
    x = points(case, shift, scale)
    truth = of_numba_stats(case.module.__name__.rpartition(".")[2])
    np.testing.assert_allclose(
        compiled(case.module, "logpdf")(x, *theta), truth.logpdf(x, *theta), rtol=1e-13, atol=1e-13
    )
    np.testing.assert_allclose(compiled(case.module, "cdf")(x, *theta), truth.cdf(x, *theta), rtol=1e-13, atol=1e-15)


@each_case
def test_nothing_outside(case):
    outside = [x for x in (case.lower - 1e-9, case.lower - 1e3, -INF) if x < case.lower]
    outside += [x for x in (case.upper + 1e-9, case.upper + 1e3, INF) if x > case.upper]
    for x in outside:
        assert compiled(case.module, "pdf")(x, *case.theta) == 0.0
        assert compiled(case.module, "logpdf")(x, *case.theta) == -INF
        assert compiled(case.module, "cdf")(x, *case.theta) == (0.0 if x < case.lower else 1.0)
    # at infinity every density has ended, whether or not it has an edge
    for x, below in ((-INF, 0.0), (INF, 1.0)):
        assert compiled(case.module, "pdf")(x, *case.theta) == 0.0
        assert compiled(case.module, "logpdf")(x, *case.theta) == -INF
        assert compiled(case.module, "cdf")(x, *case.theta) == below


@each_case
def test_edges_belong_to_the_support(case):
    for edge, below in ((case.lower, 0.0), (case.upper, 1.0)):
        if np.isfinite(edge):
            assert compiled(case.module, "pdf")(edge, *case.theta) > 0.0
            assert compiled(case.module, "cdf")(edge, *case.theta) == below
        assert compiled(case.module, "ppf")(below, *case.theta) == edge


@pytest.mark.parametrize("function", FUNCTIONS)
@each_case
def test_nan_in_nan_out(case, function):
    f = compiled(case.module, function)
    for first in (0.5, case.lower, case.upper, -1e9, 1e9, 0.0, 1.0):
        arguments = (first, *case.theta)
        for position in range(len(arguments)):
            broken = (*arguments[:position], np.nan, *arguments[position + 1 :])
            assert np.isnan(f(*broken)), broken


@pytest.mark.parametrize("function", FUNCTIONS)
@each_case
def test_no_number_from_invalid_width(case, function):
    f = compiled(case.module, function)
    for first in (0.5, -1e9, 1e9, 0.0, 1.0):
        for width in (0.0, -0.0, -1.2):
            assert np.isnan(f(first, *case.theta[:-1], width))
        if len(case.theta) == 4:
            xmin, _, loc, scale = case.theta
            assert np.isnan(f(first, xmin, xmin, loc, scale))
            assert np.isnan(f(first, xmin, xmin - 1.0, loc, scale))


@each_case
def test_ppf_outside_of_unit_interval(case):
    for p in (-1e-300, -1.0, 1.0 + 2.3e-16, 2.0, INF, -INF):
        assert np.isnan(compiled(case.module, "ppf")(p, *case.theta))


@each_case
def test_ppf_inverts_cdf(case):
    x = inside(case)
    p = np.asarray(compiled(case.module, "cdf")(x, *case.theta))
    back = np.asarray(compiled(case.module, "ppf")(p, *case.theta))
    # p is rounded to eps p (and to eps / 2 near 1), which moves x by that over the density
    resolution = 4 * np.finfo(float).eps * np.maximum(p, 0.5 * (p > 0.5)) / compiled(case.module, "pdf")(x, *case.theta)
    assert (np.abs(back - x) <= resolution + 1e-14 * case.width).all()


@each_case
def test_cdf_integrates_pdf(case):
    lower = max(case.lower, case.theta[-2] - 12.0 * case.theta[-1] if case.module is norm else case.lower)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    x = inside(case)[:2]
    half = 0.5 * (x - lower)
    grid = lower + half[:, None] * (1.0 + nodes)
    density = np.asarray(compiled(case.module, "pdf")(grid.ravel(), *case.theta)).reshape(grid.shape)
    # 100 nodes over at most 20 scale are exact for these densities up to rounding
    np.testing.assert_allclose(case.module.cdf(x, *case.theta), half * (density @ weights), rtol=2e-13)


# -- derivatives ---------------------------------------------------------------------------------------------------


def analytic_logpdf(module, nominal, arguments):
    """The same density as an analytic function of complex arguments, by scipy's error functions.

    Branches follow the nominal point, so that one analytic expression is used all around it.
    """
    if module is uniform:
        return -np.log(arguments[2])
    x, *edges, loc, scale = arguments
    if module is norm:
        return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
    if module is expon:
        return -(x - loc) / scale - np.log(scale)
    xmin, xmax = edges
    if module is truncexpon:
        lower = loc if nominal[1] < nominal[3] else xmin
        return -(x - lower) / scale - np.log(scale) - np.log(-np.expm1(-(xmax - lower) / scale))
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - analytic_log_mass(nominal, xmin, xmax, loc, scale)


def analytic_log_mass(nominal, xmin, xmax, loc, scale):
    """log int_a^b exp(-t^2 / 2) dt, through erfcx on the side of the tail."""
    a, b = (xmin - loc) / scale / np.sqrt(2), (xmax - loc) / scale / np.sqrt(2)
    erfcx = scipy.special.erfcx
    if nominal[1] > nominal[3]:
        log_mass = np.log(erfcx(a) - np.exp(a * a - b * b) * erfcx(b)) - a * a
    elif nominal[2] < nominal[3]:
        log_mass = np.log(erfcx(-b) - np.exp(b * b - a * a) * erfcx(-a)) - b * b
    else:
        log_mass = np.log(scipy.special.erf(b) - scipy.special.erf(a))
    return log_mass + 0.5 * np.log(np.pi / 2)


def analytic_cdf(module, nominal, arguments):
    x, *edges, loc, scale = arguments
    if module is uniform:
        return (x - loc) / scale
    if module is norm:
        return 0.5 * scipy.special.erfc((loc - x) / scale / np.sqrt(2))
    if module is expon:
        return -np.expm1(-(x - loc) / scale)
    xmin, xmax = edges
    if module is truncexpon:
        lower = loc if nominal[1] < nominal[3] else xmin
        return np.expm1(-(x - lower) / scale) / np.expm1(-(xmax - lower) / scale)
    whole = analytic_log_mass(nominal, xmin, xmax, loc, scale)
    return np.exp(analytic_log_mass((0, nominal[1], nominal[0], nominal[3]), xmin, x, loc, scale) - whole)


def derivatives(f, arguments, radii):
    """Gradient and Hessian of an analytic function, by Cauchy's integral along circles in complex directions.

    The trapezoidal rule on a circle converges geometrically, so 32 points leave rounding alone.
    """
    n = len(arguments)
    circle = np.exp(2j * np.pi * np.arange(32) / 32)

    def second(direction):
        values = np.array([f([a + d * c for a, d in zip(arguments, direction, strict=True)]) for c in circle])
        return (values * circle**-1).mean().real, 2 * (values * circle**-2).mean().real

    unit = np.diag(radii)
    gradient = np.empty(n)
    hessian = np.empty((n, n))
    for i in range(n):
        gradient[i], hessian[i, i] = second(unit[i])
    for i in range(n):
        for j in range(i):
            both = second(unit[i] + unit[j])[1]
            hessian[i, j] = hessian[j, i] = 0.5 * (both - hessian[i, i] - hessian[j, j])
    # in units of the radii, where all elements are comparable
    return gradient, hessian


SMOOTH = {
    **{
        name: (case.module, (max(case.lower, 0.0) + 0.4 * min(case.width, 2.0), *case.theta))
        for name, case in CASES.items()
    },
    "truncnorm xmin = loc": (truncnorm, (0.9, 0.3, 2.0, 0.3, 1.2)),
    "truncnorm xmax = loc": (truncnorm, (-0.9, -2.0, 0.3, 0.3, 1.2)),
    "truncnorm 8 to 12": (truncnorm, (8.1, 8.0, 12.0, 0.0, 1.0)),
    "truncnorm -30 to -20": (truncnorm, (-20.03, -30.0, -20.0, 0.0, 1.0)),
    "truncnorm 45 to 50": (truncnorm, (45.01, 45.0, 50.0, 0.0, 1.0)),
    "truncnorm 10 sigma wide": (truncnorm, (1.3, -5.0, 5.0, 0.3, 1.0)),
    "truncnorm narrow": (truncnorm, (0.55, 0.5, 0.6, 0.3, 1.2)),
    "truncexpon wide": (truncexpon, (3.0, 0.8, 60.0, 0.3, 1.2)),
    "truncexpon flat": (truncexpon, (0.9, 0.8, 1.0, 0.3, 30.0)),
}
SMOOTH["truncnorm below"] = (truncnorm, (-3.2, -5.0, -3.0, 0.3, 1.2))


@pytest.mark.parametrize("function", ["pdf", "logpdf", "cdf"])
@pytest.mark.parametrize("name", SMOOTH)
def test_gradient_and_hessian(name, function):
    module, arguments = SMOOTH[name]
    finite = [k for k, value in enumerate(arguments) if np.isfinite(value)]
    # nothing is left beyond 800 scale
    arguments_of_truth = [a if np.isfinite(a) else 1e3 for a in arguments]

    def analytic(values):
        if function == "cdf":
            return analytic_cdf(module, arguments_of_truth, values)
        log_density = analytic_logpdf(module, arguments_of_truth, values)
        return log_density if function == "logpdf" else np.exp(log_density)

    # circles well within the distance on which the function varies by 1: the window if narrow, 1 / a in tails
    extent = 0.01 if "narrow" in name or "flat" in name else 0.3
    furthest = max(1.0, min(abs(arguments_of_truth[1] - arguments_of_truth[-2]), abs(arguments_of_truth[-1]) * 50))
    radii = np.full(len(arguments), extent / furthest)

    gradient, hessian = derivatives(analytic, arguments_of_truth, radii)
    value, ours, ours_second = map(np.asarray, compiled_derivatives(module, function)(jnp.array(arguments)))
    ours, ours_second = ours * radii, ours_second * np.outer(radii, radii)
    assert np.isfinite(ours[finite]).all()
    assert np.isfinite(ours_second[np.ix_(finite, finite)]).all()
    # the value rounds to eps times the exponent z^2 / 2 (1000 at 45 sigma), and the circle reads derivatives off values
    size = max(1.0, abs(float(value)))
    rounding = 1e-15 * size * max(10.0, ((arguments[0] - arguments[-2]) / arguments[-1]) ** 2)
    np.testing.assert_allclose(ours[finite], gradient[finite], rtol=1e-11, atol=4 * rounding)
    np.testing.assert_allclose(
        ours_second[np.ix_(finite, finite)], hessian[np.ix_(finite, finite)], rtol=1e-10, atol=8 * rounding
    )


@pytest.mark.parametrize("function", ["pdf", "logpdf", "cdf"])
@each_case
def test_derivatives_vanish_outside(case, function):
    for x in (case.lower - 100.0, case.upper + 100.0, -INF, INF):
        if case.lower <= x <= case.upper:
            continue
        arguments = jnp.array([x, *case.theta])
        finite = np.isfinite(arguments)
        _, gradient, hessian = map(np.asarray, compiled_derivatives(case.module, function)(arguments))
        assert (gradient[finite] == 0.0).all()
        assert (hessian[np.ix_(finite, finite)] == 0.0).all()
        assert (np.asarray(compiled_reverse(case.module, function)(arguments))[finite] == 0.0).all()


@pytest.mark.parametrize("function", ["pdf", "logpdf", "cdf"])
@each_case
def test_reverse_mode_agrees(case, function):
    arguments = jnp.array([inside(case)[0], *case.theta])
    finite = np.isfinite(arguments)
    gradient = compiled_derivatives(case.module, function)(arguments)[1]
    reverse = compiled_reverse(case.module, function)(arguments)
    # the same products in another order
    np.testing.assert_allclose(reverse[finite], gradient[finite], rtol=1e-13, atol=1e-14)


@each_case
def test_ppf_derivative(case):
    """ppf(p) moves by dp / pdf, and by -(d cdf) / pdf with the parameters."""
    p = 0.3
    finite = np.isfinite([p, *case.theta])
    x, slopes = compiled_ppf_slopes(case.module)(jnp.array([p, *case.theta]))
    density, *minus_ratio = compiled_derivatives(case.module, "cdf")(jnp.array([x, *case.theta]))[1]
    # the quantile is a rational approximation good to 1e-16, its derivative to about 100 times that
    expected = np.array([1.0, *(-slope for slope in minus_ratio)]) / density
    np.testing.assert_allclose(slopes[finite], expected[finite], rtol=1e-12, atol=1e-12)


# -- form ----------------------------------------------------------------------------------------------------------


def equations(jaxpr):
    """(primitive, inputs depend on the first argument) of every equation, nested calls opened."""

    def walk(jaxpr, inputs_depend):
        depends = dict(zip(jaxpr.invars, inputs_depend, strict=True))
        for equation in jaxpr.eqns:
            inputs = [depends.get(v, False) if not hasattr(v, "val") else False for v in equation.invars]
            inner = equation.params.get("jaxpr")
            if inner is None:
                found.append((equation.primitive.name, any(inputs)))
                outputs = [any(inputs)] * len(equation.outvars)
            else:
                outputs = walk(inner.jaxpr, inputs)
            depends.update(zip(equation.outvars, outputs, strict=True))
        return [depends.get(v, False) if not hasattr(v, "val") else False for v in jaxpr.outvars]

    found = []
    walk(jaxpr.jaxpr, [True] + [False] * (len(jaxpr.in_avals) - 1))
    return found


ELEMENTWISE = (
    "abs add and convert_element_type div eq erf erfc exp expm1 ge gt integer_pow le log lt max min mul ne neg not "
    "or select_n sqrt square sub"
)
COSTLY = {"exp", "expm1", "log", "log1p", "erf", "erfc", "sqrt", "div", "pow"}


@pytest.mark.parametrize("function", FUNCTIONS)
@one_each
def test_translatable(case, function):
    """No loops, no gathers, and no log1p, whose accuracy differs between compilers."""
    jaxpr = jax.make_jaxpr(getattr(case.module, function))(0.4, *case.theta)
    assert {name for name, _ in equations(jaxpr)} <= set(ELEMENTWISE.split())


@one_each
def test_cost_per_row(case):
    """A density costs one exponential per event; all else that is dear depends on parameters alone."""
    for function, allowed in (("pdf", ["exp"]), ("logpdf", [])):
        jaxpr = jax.make_jaxpr(getattr(case.module, function))(0.4, *case.theta)
        per_row = [name for name, row in equations(jaxpr) if row]
        assert [name for name in per_row if name in COSTLY] == (allowed if case.module is not uniform else [])
        assert len(per_row) <= 16


@pytest.mark.parametrize("function", FUNCTIONS)
@one_each
def test_batches_and_broadcasts(case, function):
    f = compiled(case.module, function)
    x = np.linspace(0.05, 0.95, 6)
    theta = np.array(case.theta) + 0.01 * np.arange(4)[:, None]
    columns = [theta[:, k, None] for k in range(theta.shape[1])]
    together = f(x[None, :], *columns)
    batched = jax.jit(jax.vmap(lambda t: jax.vmap(lambda x: f(x, *t))(x)))(theta)
    one_by_one = [[f(float(x), *map(float, t)) for x in x] for t in theta]
    assert together.shape == (4, 6)
    # vectorised and scalar exp differ by an ulp
    np.testing.assert_allclose(batched, together, rtol=1e-14)
    np.testing.assert_allclose(one_by_one, together, rtol=1e-14)


@pytest.mark.parametrize("function", FUNCTIONS)
@one_each
def test_float32_stays_float32(case, function):
    f = compiled(case.module, function)
    x = np.linspace(0.05, 0.95, 200)
    single = f(x.astype(np.float32), *(np.float32(value) for value in case.theta))
    assert single.dtype == np.float32
    # a density in single precision is good to eps times the exponent; edges move by their own rounding
    np.testing.assert_allclose(single, f(x, *case.theta), rtol=2e-5, atol=1e-6)
