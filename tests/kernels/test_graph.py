import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import lax
from jax.scipy import special, stats
from jax.scipy.linalg import solve_triangular

from kernels import voigt
from kernels.graph import trace
from kernels.kernel_source import kernel_source
from kernels.nodes import Graph, UntranslatableError
from kernels.operations import OPERATIONS
from kernels.program import SECOND, build_program
from kernels.translate import compile_kernel
from kernels.xla import row_sums, row_sums_untranslated
from tests.kernels.density_cases import value_and_derivatives

TABLE = np.array([0.5, -1.25, 2.0, 0.75])
POINT = np.array([0.7, 1.3])


COLUMN = np.array([0.5, -1.0, 1.5])
TRIANGULAR = [
    {"trans": trans, "lower": lower, "unit_diagonal": unit}
    for trans in (0, 1)
    for lower in (False, True)
    for unit in (False, True)
]


def square(a, b):
    return jnp.outer(COLUMN * a, jnp.flip(COLUMN)) + b * jnp.eye(3)


@jax.custom_jvp
def tripled_slope(x):
    return jnp.sin(x)


@tripled_slope.defjvp
def _(primals, tangents):
    return tripled_slope(primals[0]), 3 * jnp.cos(primals[0]) * tangents[0]


def turns(a, x):
    return lax.fori_loop(0, 4, lambda i, total: total * a + jnp.sin(x + i), 0.0)


def backward_scan(a, b, x):
    carry, each = lax.scan(lambda c, t: (c * a + t, c * t), b, jnp.stack([x, a, x * b]), reverse=True)
    return carry + each @ jnp.array([1.0, -2.0, 0.5])


def nested(a, b, x):
    inner = jax.jit(lambda u: jnp.exp(-u * b))
    return jax.jit(lambda u, v: inner(u) + inner(v) ** 2)(a * x, x)


# f(a, b, x, y): parameters 0.3 < a < 1.5 and 0.5 < b < 2, columns 0.2 < x < 3 and -1 < y < 1
CASES = {
    "add sub mul div": lambda a, b, x, y: (a + x) * (b - y) / (a * x + b),
    "neg abs sign": lambda a, b, x, y: jnp.abs(y * a - 0.1) * b - jnp.sign(y) * a * b,
    "exp": lambda a, b, x, y: jnp.exp(-0.5 * ((x - a) / b) ** 2) / b,
    "exp2": lambda a, b, x, y: jnp.exp2(a * y) * b,
    "log log1p expm1": lambda a, b, x, y: jnp.log(a * x + b) * jnp.log1p(a * x) * jnp.expm1(b * y),
    "sqrt rsqrt cbrt": lambda a, b, x, y: jnp.sqrt(a * x + b) + lax.rsqrt(b * x) + jnp.cbrt(a * y - 2),
    "sin cos tan": lambda a, b, x, y: jnp.sin(a * x) * jnp.cos(b * x) + jnp.tan(a * y / 2),
    "asin acos atan": lambda a, b, x, y: jnp.arcsin(0.5 * a * y) + jnp.arccos(0.4 * b * y) * jnp.arctan(a * x),
    "atan2": lambda a, b, x, y: jnp.arctan2(a * y, b - x),
    "sinh cosh tanh": lambda a, b, x, y: jnp.sinh(a * y) + jnp.cosh(b * y) * jnp.tanh(a * x),
    "asinh acosh atanh": lambda a, b, x, y: jnp.arcsinh(a * x) + jnp.arccosh(1.1 + b * x) + jnp.arctanh(0.5 * a * y),
    "erf erfc": lambda a, b, x, y: special.erf((x - a) / b) * special.erfc(a * y),
    "lgamma of a column": lambda a, b, x, y: a * x - special.gammaln(x + 2.5) * b,
    "lgamma of a parameter": lambda a, b, x, y: special.gammaln(2.0 + a * a * x) * b,
    "floor ceil": lambda a, b, x, y: jnp.floor(a * x) * b + jnp.ceil(b * y) * a,
    "pow": lambda a, b, x, y: x**a * jnp.power(b, 1 + y) + x**1.5 * (a * x) ** b,
    "rem": lambda a, b, x, y: lax.rem(b * x, a + 0.05) + lax.rem(x, 0.7) * a,
    "max min": lambda a, b, x, y: jnp.maximum(a * x, b) * jnp.minimum(b * y, a * x - 1),
    "clamp": lambda a, b, x, y: jnp.clip(a * x, 0.5, 1.5) * b + lax.clamp(0.1, b * y, a),
    "comparisons": lambda a, b, x, y: (
        jnp.where((x > a) & (y < 0.5), a * x, b) + jnp.where(~(x <= b) | (y >= a), b * x, a) + jnp.where(x == y, a, b)
    ),
    "ne is_finite": lambda a, b, x, y: jnp.where((x != y) & jnp.isfinite(x / a), a * b, x),
    "guarded log": lambda a, b, x, y: jnp.where(y > 0, a * jnp.log(jnp.where(y > 0, b * y, 1.0)), 0.0),
    "select of a sum": lambda a, b, x, y: jnp.exp(-a * x) * jnp.where(y > 0, jnp.sin(a * x) + jnp.cos(b * y), 0.0),
    "square, integer powers": lambda a, b, x, y: jnp.square(a * x) + (x + a) ** 7 / 50 + (x * b + a) ** -3 + y**0,
    "logistic": lambda a, b, x, y: jax.nn.sigmoid(a * x - b),
    "polyval": lambda a, b, x, y: jnp.polyval(jnp.stack([a, b, a * b, jnp.ones(())]), x),
    "polyval of constants": lambda a, b, x, y: jnp.polyval(TABLE, a * x) * b,
    "stack and dot": lambda a, b, x, y: jnp.dot(jnp.stack([a, b, x]), jnp.stack([x, y, a])),
    "matrix product": lambda a, b, x, y: jnp.sum(jnp.stack([a, x]) @ (TABLE.reshape(2, 2) * b)),
    "einsum": lambda a, b, x, y: jnp.einsum("i,ij,j", jnp.stack([a, x]), TABLE.reshape(2, 2), jnp.stack([b, y])),
    "sums and products": lambda a, b, x, y: (
        jnp.sum(TABLE * a * x) + jnp.prod(jnp.stack([a, b, x])) + jnp.mean(TABLE**2 + b)
    ),
    "largest and smallest": lambda a, b, x, y: jnp.max(jnp.stack([a * x, b, y])) * jnp.min(jnp.stack([a, b * x, b])),
    "all any": lambda a, b, x, y: jnp.where(jnp.any(jnp.stack([x, y]) > a) & jnp.all(b * x + 2 > TABLE), a * x, b),
    "count of conditions": lambda a, b, x, y: a * jnp.sum(x > jnp.array([0.5, 1.0, 2.0])) + b * jnp.sum(x < TABLE),
    "concatenate, slice": lambda a, b, x, y: jnp.concatenate([TABLE * a, jnp.stack([x, b])])[1:6:2] @ TABLE[:3],
    "index": lambda a, b, x, y: jnp.stack([a, b, x])[0] * jnp.stack([a * x, b * y])[-1] + TABLE[2] * a,
    "index by integer arithmetic": lambda a, b, x, y: jnp.sum(
        jnp.stack([a, b * x])[jnp.arange(6) // 3] * jnp.arange(6) ** 2 % 4
    ),
    "index by a remainder": lambda a, b, x, y: jnp.sum(jnp.stack([a, x, b])[-jnp.arange(5) % 3] * jnp.arange(5)),
    "take": lambda a, b, x, y: jnp.sum(
        jnp.take(jnp.stack([a, b * x]), jnp.array([0, 1, 7]), mode="fill", fill_value=2.5) ** 2
    ),
    "dynamic index": lambda a, b, x, y: jnp.sum(lax.dynamic_slice(jnp.stack([a, b * x, y]), (1,), (2,))) * b,
    "set": lambda a, b, x, y: jnp.sum(jnp.array(TABLE).at[1].set(a * x).at[2].set(b) ** 2),
    "pad flip tile": lambda a, b, x, y: (
        jnp.tile(jnp.flip(jnp.pad(jnp.stack([a, x]), 1, constant_values=3.0)), 2) @ jnp.arange(8.0) * b
    ),
    "split": lambda a, b, x, y: jnp.split(jnp.stack([a, x, b, y]), 2)[1] @ jnp.split(jnp.stack([x, b, a, x]), 2)[0],
    "transpose": lambda a, b, x, y: jnp.sum(jnp.outer(jnp.stack([a, b]), jnp.stack([x, y])).T * TABLE.reshape(2, 2)),
    "difference": lambda a, b, x, y: jnp.sum(jnp.diff(jnp.stack([a, b * x, y])) ** 2),
    "linspace": lambda a, b, x, y: jnp.sum(jnp.exp(-a * x * jnp.linspace(0.0, 1.0, 4))) * b,
    "quantile of constants": lambda a, b, x, y: a * jnp.sort(TABLE)[1] + b * x * special.ndtri(0.9),
    "cond": lambda a, b, x, y: lax.cond(y > 0.2, lambda u: jnp.sin(u) * b, lambda u: u**2, a * x),
    "cond around a pole": lambda a, b, x, y: lax.cond(y > 0, lambda: jnp.log(b * y), lambda: a * y),
    "cond of a constant": lambda a, b, x, y: lax.cond(jnp.asarray(TABLE[0] > 0), jnp.sin, jnp.cos, a * x) * b,
    "switch": lambda a, b, x, y: lax.switch(jnp.sum(x > TABLE[:3]), [jnp.sin, jnp.cos, jnp.tanh, jnp.exp], a * y) * b,
    "fori_loop": lambda a, b, x, y: turns(a, x) * b,
    "scan": lambda a, b, x, y: backward_scan(a, b, x),
    "nested jit": lambda a, b, x, y: nested(a, b, x),
    "checkpoint": lambda a, b, x, y: jax.checkpoint(lambda u: jnp.sin(u) * jnp.exp(u))(a * y) * b,
    "own custom_jvp": lambda a, b, x, y: tripled_slope(a * x) * b,
    "softplus relu": lambda a, b, x, y: jax.nn.softplus(a * x - b) + jax.nn.relu(a * y) * b,
    "logsumexp": lambda a, b, x, y: special.logsumexp(jnp.stack([a * x, b * y, jnp.zeros(())])),
    "logaddexp": lambda a, b, x, y: jnp.logaddexp(a * x, b * y),
    "xlogy": lambda a, b, x, y: special.xlogy(x, a * x + b),
    "norm.logpdf": lambda a, b, x, y: stats.norm.logpdf(x, a, b) + stats.norm.pdf(y, a, b),
    "norm.cdf": lambda a, b, x, y: jnp.log(stats.norm.cdf(x, a, b) + 0.1),
    "cumsum cumprod": lambda a, b, x, y: (
        jnp.cumsum(jnp.stack([a, x * b, y])) @ jnp.cumprod(jnp.stack([x, a, b]))
        + lax.cumsum(jnp.outer(jnp.stack([a, x]), TABLE), axis=1, reverse=True)[1] @ TABLE
    ),
    "multivariate_normal": lambda a, b, x, y: stats.multivariate_normal.logpdf(
        jnp.stack([x, y, x * y]), jnp.stack([a, b, a * b]), jnp.outer(COLUMN * a, COLUMN * a) + b * jnp.eye(3)
    ),
    "triangular solutions": lambda a, b, x, y: sum(
        jnp.sum(COLUMN * solve_triangular(jnp.tril(square(a, b)) if k & 1 else square(a, b), COLUMN * x + y, **options))
        for k, options in enumerate(TRIANGULAR)
    ),
    "stop_gradient": lambda a, b, x, y: a * lax.stop_gradient(b) * x,
    "no row": lambda a, b, x, y: jnp.exp(a * b),
    "no parameter": lambda a, b, x, y: jnp.exp(x * y),
    "constant": lambda a, b, x, y: jnp.asarray(2.5),
    "rational": lambda a, b, x, y: ((a * x) ** 2 + b) / ((a + x) ** 2 * (b - y * x / 4)) / -(a * x),
    "line in chi-square": lambda a, b, x, y: 0.5 * ((y - (a + b * x)) / 0.1) ** 2,
}


class Truth(NamedTuple):
    outputs: dict  # (7,) each: value, |value|, gradient, packed lower triangle of the Hessian
    scale: dict  # sum over the rows of the modulus of each


def quickly(function, *args):
    """A jitted function at a point that comes once: compiling takes longer than running."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return function.lower(*args).compile(compiler_options=options)(*args)


def make_rows(n=37, seed=5):
    rng = np.random.default_rng(seed)
    return np.stack([rng.uniform(0.2, 3, n), rng.uniform(-1, 1, n)])


@pytest.fixture(scope="module")
def programs():
    return {name: build_program(f, None, n_params=2, n_columns=2) for name, f in CASES.items()}


@pytest.fixture(scope="module")
def truth():
    """Every case by JAX alone: reverse mode for the gradient, forward over reverse for the Hessian."""

    def row(column, name):
        f = lambda theta: CASES[name](*theta, *column)  # noqa: E731
        value, gradient, hessian = value_and_derivatives(f, jax.grad)(POINT_X64)
        parts = [value, abs(value), *gradient, hessian[0, 0], hessian[1, 0], hessian[1, 1]]
        return jnp.stack([jnp.asarray(p, dtype=float) for p in parts])

    with jax.enable_x64(True):
        POINT_X64 = jnp.array(POINT)
        evaluate = jax.jit(jax.vmap(lambda c: {name: row(c, name) for name in CASES}, in_axes=1))
        each = {name: np.asarray(v) for name, v in quickly(evaluate, make_rows()).items()}
    return Truth({k: v.sum(axis=0) for k, v in each.items()}, {k: np.abs(v).sum(axis=0) for k, v in each.items()})


@pytest.fixture(scope="module")
def by_xla(programs):
    rows = make_rows()
    with jax.enable_x64(True):
        empty, n = jnp.zeros((0, rows.shape[1])), rows.shape[1]
        args = (jnp.array(POINT), jnp.array(rows), empty, jnp.zeros(0), n)
        evaluate = jax.jit(lambda *args: {name: row_sums(p, n)(*args) for name, p in programs.items()})
        return {name: np.asarray(v) for name, v in quickly(evaluate, *args).items()}


def by_python(program, rows, theta=POINT):
    """The kernel's source run by Python, with libm's functions."""
    names = vars(math) | {"np": np, "math": math, "use_wide_vectors": lambda: None}
    names |= {"digamma": scipy.special.digamma, "trigamma": lambda x: scipy.special.polygamma(1, x)}
    exec(kernel_source(program), names)
    out = np.empty(len(program.combinations))
    names["row_sums"](theta, rows, np.zeros((0, 0)), np.zeros(0), 0, rows.shape[1], SECOND, out)
    return out


def assert_agrees(found, name, truth, rtol=1e-13):
    # the scale, since rows may cancel; erf, lgamma and pow differ by a few eps between the libraries
    agrees = np.abs(found - truth.outputs[name]) <= rtol * truth.scale[name] + 1e-300
    assert agrees.all(), (name, found, truth.outputs[name])  # a NaN does not agree


# Python raises where C gives NaN: these meet the logarithm of a negative number in the branch that is not taken
NEEDS_IEEE = ["cond around a pole"]


@pytest.mark.parametrize("name", [name for name in CASES if name not in NEEDS_IEEE])
def test_source_of_the_kernel_against_jax(name, programs, truth):
    assert_agrees(by_python(programs[name], make_rows()), name, truth)


@pytest.mark.parametrize("name", CASES)
def test_xla_row_sums_against_jax(name, by_xla, truth):
    assert_agrees(by_xla[name], name, truth)


@pytest.mark.parametrize("group", range(3))
def test_compiled_kernel_against_jax(group, truth, tmp_path, monkeypatch):
    monkeypatch.setenv("BATCHFIT_CACHE", str(tmp_path))
    names = list(CASES)[group::3]
    weights = np.random.default_rng(group).uniform(0.5, 1.5, len(names)) / [max(truth.scale[n][0], 1) for n in names]
    kernel = compile_kernel(build(lambda *args: sum(w * CASES[n](*args) for w, n in zip(weights, names, strict=True))))
    rows = make_rows()
    out = np.empty(7)
    kernel(POINT, rows, np.zeros((0, 0)), np.zeros(0), 0, rows.shape[1], SECOND, out)
    linear = [0, 2, 3, 4, 5, 6]  # without the sum of moduli
    expected, scale = (sum(w * of[n] for w, n in zip(weights, names, strict=True))[linear] for of in truth)
    assert np.all(np.abs(out[linear] - expected) < 1e-13 * scale), (out[linear], expected)


def test_every_operation_is_covered(programs):
    used = {node.op for program in programs.values() for node in program.graph.nodes}
    assert set(OPERATIONS) <= used


@pytest.mark.parametrize(
    "name", ["exp", "guarded log", "max min", "cond around a pole", "line in chi-square", "norm.logpdf"]
)
def test_untranslated_sums_agree(name, truth):
    rows = make_rows()
    n = rows.shape[1]
    with jax.enable_x64(True):
        args = (jnp.array(POINT), jnp.array(rows), jnp.zeros((0, n)), jnp.zeros(0), n)
        found = np.asarray(jax.jit(row_sums_untranslated(CASES[name], None, 2, n))(*args))
    assert_agrees(found, name, truth)


def build(f, **more):
    return build_program(f, None, **({"n_params": 2, "n_columns": 2} | more))


def line_of(function):
    return f"test_graph.py:{inspect.getsourcelines(function)[1]}"


UNTRANSLATABLE = {
    "erf_inv": lambda a, b, x, y: special.erfinv(a * y / 2),
    "polygamma": lambda a, b, x, y: special.polygamma(2, a * x),
    "while": lambda a, b, x, y: lax.while_loop(lambda v: v < x, lambda v: v + 1, 0.5 * a),
    "sort": lambda a, b, x, y: jnp.sort(jnp.stack([a * x, b]))[0],
    "round": lambda a, b, x, y: jnp.round(a * x),
    "a matrix of shape": lambda a, b, x, y: jnp.linalg.cholesky(jnp.eye(7) * a)[0, 0],
    "an index that depends": lambda a, b, x, y: jnp.array(TABLE)[jnp.sum(x > TABLE)] * a,
    "a conversion from float64 to int": lambda a, b, x, y: jnp.array(TABLE)[jnp.floor(x).astype(int)] * a,
    "'rem' on integers": lambda a, b, x, y: jnp.fmod(jnp.sum(x > TABLE), 2) * a,
    "a search, as in jnp.interp": lambda a, b, x, y: jnp.interp(x - b, jnp.array(TABLE), jnp.array(TABLE)) * a,
    "a rule of its own by 40": lambda a, b, x, y: jnp.mean(voigt.pdf(x, a * np.arange(1.0, 21.0), b, y)),
    "a loop of 257 turns": lambda a, b, x, y: lax.fori_loop(0, 257, lambda i, v: v * a, x),
}


@pytest.mark.parametrize("what", UNTRANSLATABLE)
def test_what_cannot_be_translated_is_named_with_its_line(what):
    with pytest.raises(UntranslatableError, match=what) as error:
        build(UNTRANSLATABLE[what])
    assert line_of(UNTRANSLATABLE[what]) in str(error.value)


def test_the_line_is_that_of_the_operation_that_only_a_derivative_needs():
    def model(a, b, x, y):
        first = jnp.exp(a * x)
        return first + special.digamma(b * x)

    with pytest.raises(UntranslatableError, match="polygamma") as error:
        build(model)
    assert f"test_graph.py:{inspect.getsourcelines(model)[1] + 2}" in str(error.value)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_the_integral_must_not_depend_on_the_row(offset):
    term = lambda a, x: -jnp.log(a * x)  # noqa: E731
    with pytest.raises(ValueError, match="integral of the model depends on x"):
        build_program(term, lambda a, x: a**2 + offset * x + 0 * x, n_params=1, n_columns=1)
    build_program(term, lambda a, x: a**2, n_params=1, n_columns=1)


@pytest.mark.parametrize(
    "table, noticed",
    [
        (np.array([0.1, 0.2], dtype=np.float32), True),
        (np.array([1.0, 2.0], dtype=np.float32), False),  # the same numbers in float64
        (np.array([0.1, 0.2]), False),
        (np.array([1, 2]), False),
        (np.array([0.1]), False),
    ],
)
@pytest.mark.parametrize("by_jax", [False, True])
def test_float32_constants_are_noticed(table, noticed, by_jax):
    if by_jax and isinstance(table, np.ndarray):
        with jax.enable_x64(True):
            table = jnp.asarray(table)
    assert build(lambda a, b, x, y: jnp.sum(a * x * table)).graph.holds_float32 is noticed


def test_a_float32_scalar_is_noticed():
    number = jnp.asarray(np.float32(0.1))
    assert build(lambda a, b, x, y: a * x * number).graph.holds_float32


def test_tracing_leaves_the_global_precision_alone():
    before = jax.config.jax_enable_x64
    build(CASES["exp"])
    assert jax.config.jax_enable_x64 is before
    assert jnp.ones(1).dtype == (jnp.float64 if before else jnp.float32)


def test_an_expression_stands_once():
    graph = Graph()
    arguments = [("row", 0), ("theta", 0)]
    first, second = trace(lambda x, a: [jnp.exp(a * x) + jnp.sin(x), jnp.sin(x) + jnp.exp(x * a)], arguments, graph)
    assert first == second
    assert sum(node.op == "exp" for node in graph.nodes) == 1


def test_numbers_in_the_graph_are_exact():
    values = [0.0, 0.1, 1 / 3, 5e-324, 1e300, math.inf, -math.inf]
    graph = Graph()
    assert [graph.value(graph.const(v)) for v in values] == values
    assert math.isnan(graph.value(graph.const(math.nan)))
    assert graph.const(math.nan) == graph.const(math.nan)
    assert len({graph.const(v) for v in (1, 1.0, True)}) == 3


def test_a_factor_without_row_is_taken_out_of_the_loop():
    program = build(lambda a, b, x, y: jnp.exp(a * b) / b**2 * jnp.sin(x) * 3.0)
    for core in program.cores:
        assert not any(
            program.graph.nodes[k].op == "exp" and program.graph.on_row(k) for k in program.graph.live([core])
        )
    sines = [k for k, node in enumerate(program.graph.nodes) if node.op == "sin"]
    # the value, the gradient and the Hessian are multiples of one sum, the sum of moduli is the other
    assert len(program.cores) == 2 and sines[0] in program.cores


@pytest.mark.parametrize("level", [0.0, 1e6])
def test_residuals_are_not_multiplied_out(level):
    # (y - f)^2 as y^2 - 2 y f + f^2 is good to 1e12 eps = 2e-4 only
    rng = np.random.default_rng(3)
    x = rng.uniform(0, 1, 200)
    slope = level + 1.0
    y = level + slope * x + rng.normal(size=200)
    residual = y - (level + slope * x)
    chi_square = build(lambda a, b, y, x: 0.5 * (y - (a + b * x)) ** 2)
    found = by_python(chi_square, np.stack([y, x]), np.array([level, slope]))
    expected = [0.5 * residual @ residual] * 2 + [-residual.sum(), -residual @ x, 200, x.sum(), x @ x]
    # each residual is rounded at eps * level, in whatever order it is made
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=200 * 4e-16 * (level + 1) * 4)
