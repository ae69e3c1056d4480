"""Costs of many parameters: their Hessian is made of outer products of gradients."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from jax import lax

from kernels import norm, voigt
from kernels.kernel_source import kernel_source
from kernels.nodes import UntranslatableError
from kernels.program import SECOND, build_program
from kernels.secondorder import MAX_SINGLE
from kernels.translate import compile_kernel
from kernels.xla import row_sums, row_sums_untranslated
from tests.kernels.density_cases import value_and_derivatives

N = 16  # parameters, more than MAX_SINGLE
N_ROWS = 70  # more than one block
RNG = np.random.default_rng(2)
THETA = RNG.uniform(0.5, 1.5, N)
ROWS = np.stack([RNG.uniform(0.2, 2.0, N_ROWS), RNG.poisson(1.5, N_ROWS)])
AUX = np.array([1.1])
TABLE = RNG.uniform(0.5, 1.5, N)
PADDED = np.concatenate([ROWS, np.full((2, 35), np.nan)], axis=1)  # of three tiles, the last is padding


@jax.custom_jvp
def tripled_slope(x, y):
    return jnp.sin(x) * y


@tripled_slope.defjvp
def _(primals, tangents):
    x, y = primals
    return tripled_slope(x, y), 3 * jnp.cos(x) * y * tangents[0] + 3 * jnp.sin(x) * tangents[1]


def polynomial(theta, x):
    total = 0.0
    for k, t in enumerate(theta):
        total = total + t * (0.5 * x) ** k
    return total


def peaks(theta, x):
    return sum(theta[k] * norm.pdf(x, theta[k + 1], theta[k + 2]) for k in range(0, N - 1, 3)) + 0.1 * theta[-1] ** 2


def product(theta, x):
    total = 1.0
    for k, t in enumerate(theta):
        total = total * (1.0 + 0.1 * t * jnp.cos(k * x))
    return total


def fractions(theta, x):
    weights = [jnp.exp(t) for t in theta]
    return sum(w / sum(weights) * jnp.exp(-k * x) for k, w in enumerate(weights))


def poisson(n, mu):
    filled = n > 0
    return (mu - n) - jnp.where(filled, n * jnp.log(jnp.where(filled, mu / jnp.where(filled, n, 1.0), 1.0)), 0.0)


# term(theta, x, n, measured)
TERMS = {
    "sum of components": lambda t, x, n, m: -jnp.log(peaks(t, x)),
    "normalised density": lambda t, x, n, m: -jnp.log(polynomial(t, x) / polynomial(t / jnp.arange(1.0, N + 1), 2.0)),
    "chi-square": lambda t, x, n, m: (n - polynomial(t, x)) ** 2 / 0.7,
    "counts": lambda t, x, n, m: poisson(n, polynomial(t, x) * 0.3),
    "product of many": lambda t, x, n, m: -jnp.log(product(t, x)),
    "few times many": lambda t, x, n, m: -jnp.log(jax.nn.sigmoid(t[0] * x - t[1]) * polynomial(t, x) + t[2] * x),
    "fractions": lambda t, x, n, m: -jnp.log(fractions(t, x)),
    "powers of many": lambda t, x, n, m: polynomial(t, x) ** t[3] * jnp.arctan2(polynomial(t[::-1], x), m * t[5]),
    "choice": lambda t, x, n, m: jnp.where(x > 1.0, jnp.sqrt(polynomial(t, x)), jnp.exp(-0.1 * product(t, x)) * x),
    # the square root is that of a negative number, and of zero, where it is not taken
    "choice around a pole": lambda t, x, n, m: lax.cond(
        n > 0, lambda: jnp.sqrt(n * polynomial(t, x)) * t[1], lambda: jnp.sin(polynomial(t, x))
    ),
    "largest of many": lambda t, x, n, m: jnp.maximum(polynomial(t, x), 8 * t[2] * x) ** 2,
    "own rules": lambda t, x, n, m: (
        tripled_slope(t[0] * x, polynomial(t, x)) + lax.stop_gradient(polynomial(t, x)) * t[4] * t[5]
    ),
    "own rules on arrays": lambda t, x, n, m: jnp.sum(
        jnp.logaddexp(t * x, polynomial(t, x)) + tripled_slope(jnp.stack([x, t[3], t[3]]), t[5])[1]
    ),
    "own rule of one argument twice": lambda t, x, n, m: tripled_slope(t[3] * x, t[3] * x) * polynomial(t, x) ** 2,
    "own rules of many": lambda t, x, n, m: jnp.logaddexp(polynomial(t, x), product(t, x)),
    "voigt": lambda t, x, n, m: -jnp.log(0.1 * voigt.pdf(x, t[0], t[1], t[2]) + polynomial(t[3:], x)),
    "linear": lambda t, x, n, m: polynomial(t, x) * n,
    "no row": lambda t, x, n, m: jnp.log(jnp.sum(t * TABLE)) * m,
}
RESTS = {
    "linear": lambda t, x, n, m: jnp.sum(t * TABLE),
    "no row": lambda t, x, n, m: jnp.log(jnp.sum(t * TABLE)) * t[3] + (t[2] - m) ** 2,
}


def of_scalars(function):
    return function and (lambda *args: jnp.asarray(function(jnp.stack(args[:N]), *args[N:]), dtype=float))


def quickly(function, *args):
    """A jitted function at a point that comes once: compiling takes longer than running."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return function.lower(*args).compile(compiler_options=options)(*args)


@pytest.fixture(scope="module")
def programs():
    sizes = {"n_params": N, "n_columns": 2, "n_aux": 1}
    return {k: build_program(of_scalars(t), of_scalars(RESTS.get(k)), **sizes) for k, t in TERMS.items()}


@pytest.fixture(scope="module")
def truth():
    """Value, gradient and Hessian of every sum by JAX, and the scale of the Hessian's rows."""

    def row(name, x, n):
        f = lambda t: jnp.asarray(TERMS[name](t, x, n, AUX[0]), dtype=float)  # noqa: E731
        # forwards, since backwards a branch that is not taken is multiplied by 0, which may give NaN
        value, gradient, hessian = value_and_derivatives(f)(THETA)
        return hessian, gradient, value

    def rest(name):
        f = lambda t: RESTS[name](t, 0.0, 0.0, AUX[0])  # noqa: E731
        return jax.hessian(f)(THETA), jax.grad(f)(THETA), f(THETA)

    def everything():
        rows = {name: jax.vmap(lambda x, n, name=name: row(name, x, n))(*ROWS) for name in TERMS}
        return rows, {name: rest(name) for name in RESTS}

    with jax.enable_x64(True):
        rows, rests = jax.tree.map(np.asarray, quickly(jax.jit(everything)))
    found = {}
    for name, (hessian, gradient, value) in rows.items():
        h, g, v = rests.get(name, (0.0, 0.0, 0.0))
        outputs = [value.sum() + v, np.abs(value).sum() + abs(v), *(gradient.sum(axis=0) + g)]
        outputs += [*(hessian.sum(axis=0) + h)[np.tril_indices(N)]]
        scale = [np.abs(value).sum() + abs(v)] * 2 + [np.abs(gradient).sum(axis=0).max() + np.max(np.abs(g))] * N
        scale += [np.abs(hessian).sum(axis=0).max() + np.max(np.abs(h))] * (N * (N + 1) // 2)
        found[name] = np.array(outputs), np.array(scale)
    return found


def by_python(program):
    """The kernel's source run by Python, with libm's functions."""
    names = vars(math) | {"np": np, "math": math, "use_wide_vectors": lambda: None, "COMPILE_ROW": {}}
    names |= {"lowered": lambda **_: lambda f: f, "erf": math.erf, "digamma": scipy.special.digamma}
    exec(kernel_source(program), names)
    out = np.empty(len(program.combinations))
    with np.errstate(all="ignore"):
        names["row_sums"](THETA, ROWS, np.zeros((0, 0)), AUX, 0, N_ROWS, SECOND, out)
    return out


def assert_agrees(found, name, truth, rtol=1e-13):
    outputs, scale = (a[: len(found)] for a in truth[name])
    agrees = np.abs(found - outputs) <= rtol * scale + 1e-300
    assert agrees.all(), (name, np.flatnonzero(~agrees), found[~agrees], outputs[~agrees])


def test_there_are_many_parameters(programs):
    assert N > MAX_SINGLE
    for name, program in programs.items():
        assert program.outer.vectors, name
        assert bool(program.outer.hessian) is (name not in ("linear", "own rules")), name
    assert programs["no row"].outer_rest.hessian


# Python raises where C gives infinity: this one divides by zero in the branch that is not taken
@pytest.mark.parametrize("name", [name for name in TERMS if name != "choice around a pole"])
def test_source_against_jax(name, programs, truth):
    assert_agrees(by_python(programs[name]), name, truth)


IN_XLA = [
    "sum of components",
    "normalised density",
    "counts",
    "few times many",
    "fractions",
    "choice around a pole",
    "own rules",
]


@pytest.fixture(scope="module")
def by_xla(programs):
    def everything(theta, rows, n):
        args = (theta, rows, jnp.zeros((0, rows.shape[1])), jnp.array(AUX), n)
        found = {(name, 2): row_sums(programs[name], 35)(*args) for name in [*IN_XLA, *RESTS]}
        return found | {("no row", order): row_sums(programs["no row"], 35, order)(*args) for order in (0, 1)}

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, quickly(jax.jit(everything), THETA, PADDED, N_ROWS))


@pytest.mark.parametrize("name", [*IN_XLA, *RESTS])
def test_xla_against_jax(name, by_xla, truth):
    assert len(by_xla[name, 2]) == len(truth[name][0])
    assert_agrees(by_xla[name, 2], name, truth)


@pytest.mark.parametrize("order, length", [(0, 2), (1, 2 + N)])
def test_lower_orders_are_the_same_numbers(order, length, by_xla, truth):
    assert len(by_xla["no row", order]) == length
    assert_agrees(by_xla["no row", order], "no row", truth)


@pytest.mark.parametrize("name, order", [("counts", 2), ("no row", 0), ("no row", 1), ("no row", 2)])
def test_untranslated_against_jax(name, order, truth):
    sums = row_sums_untranslated(of_scalars(TERMS[name]), of_scalars(RESTS.get(name)), N, 35, order)
    with jax.enable_x64(True):
        args = (THETA, PADDED, jnp.zeros((0, PADDED.shape[1])), jnp.array(AUX), N_ROWS)
        found = np.asarray(quickly(jax.jit(sums), *args))
    assert len(found) == (2, 2 + N, len(truth[name][0]))[order]
    assert_agrees(found, name, truth)


def test_compiled_kernel_against_jax(truth, tmp_path, monkeypatch):
    monkeypatch.setenv("BATCHFIT_CACHE", str(tmp_path))
    names = ["normalised density", "few times many", "choice around a pole", "counts"]
    term = lambda *args: sum(TERMS[name](*args) for name in names)  # noqa: E731
    rest = of_scalars(RESTS["no row"])
    program = build_program(of_scalars(term), rest, n_params=N, n_columns=2, n_aux=1)
    kernel, linear = compile_kernel(program), np.arange(len(program.rest)) != 1  # without the sum of moduli
    expected, scale = (sum(truth[name][k] for name in names)[linear] for k in (0, 1))
    found = np.empty((5, len(linear)))
    for part, (begin, end) in enumerate([(0, 0), (0, N_ROWS), (0, 64), (64, 67), (67, N_ROWS)]):
        kernel(THETA, ROWS, np.zeros((0, 0)), AUX, begin, end, SECOND, found[part])
    once, whole, *parts = found
    assert np.all(np.abs((whole - once)[linear] - expected) < 1e-13 * scale)
    np.testing.assert_allclose(sum(parts) - 3 * once, whole - once, rtol=1e-12, atol=1e-12 * scale.max())


def n_statements(model, n_params):
    program = build_program(lambda *args: -jnp.log(model(args[:-1], args[-1])), None, n_params=n_params, n_columns=1)
    return len(program.live)


@pytest.mark.parametrize("model", [polynomial, peaks])
def test_length_grows_with_the_number_of_parameters(model):
    of_peaks = lambda t, x: sum(t[k] * norm.pdf(x, t[k + 1], t[k + 2]) for k in range(0, len(t), 3))  # noqa: E731
    n = [n_statements(of_peaks if model is peaks else model, k) for k in (30, 60, 120)]
    assert n[2] - n[1] <= 2.1 * (n[1] - n[0])


def test_a_program_that_is_too_long_is_refused():
    nested = lambda a, x: functools.reduce(lambda y, k: jnp.sin(a * y + k), range(1500), x)  # noqa: E731
    with pytest.raises(UntranslatableError, match="the model and its derivatives make more than 8000 operations"):
        build_program(nested, None, n_params=1, n_columns=1)


def test_a_graph_that_grows_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr("kernels.nodes.MAX_NODES", 100)
    with pytest.raises(UntranslatableError, match="more than 100 operations"):
        build_program(lambda a, x: sum(jnp.sin(a * k * x) for k in range(200)), None, n_params=1, n_columns=1)


@pytest.mark.parametrize("index", [2, 5, -3])
def test_an_observable_that_is_not_there(index):
    term = lambda a, x, y: a * jnp.stack([x, y])[index]  # noqa: E731
    with pytest.raises(IndexError, match=rf"index {index} is out of bounds for the 2 observables of x at .*manyparams"):
        build_program(term, None, n_params=1, n_columns=2)
    for inside in (-2, -1, 0, 1):
        build_program(lambda a, x, y: a * jnp.stack([x, y])[inside], None, n_params=1, n_columns=2)  # noqa: B023


def test_own_rules_of_many_arguments_are_refused_unless_they_act_on_elements():
    mixed = jax.custom_jvp(lambda v: jnp.sum(v) * v)
    mixed.defjvp(lambda p, t: (mixed(*p), jnp.sum(p[0]) * t[0] + jnp.sum(t[0]) * p[0]))
    with pytest.raises(UntranslatableError, match="rule of its own by 16 arguments, more than 12"):
        build_program(lambda *args: jnp.sum(mixed(jnp.stack(args[:N]))), None, n_params=N, n_columns=1)
    build_program(lambda *args: jnp.sum(jax.nn.relu(jnp.stack(args[:N]))), None, n_params=N, n_columns=1)
