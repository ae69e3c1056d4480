"""Sums over tables, against JAX's derivatives of the model as it stands and against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose

from kernels import norm
from kernels.known import separated
from kernels.pallas import has_kernel
from kernels.program import build_program, n_outputs
from kernels.translate import compile_kernel
from kernels.xla import n_intermediates, row_sums, row_sums_untranslated

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(21)  # with one node that is zero
WEIGHTS = WEIGHTS / WEIGHTS.sum()
GRID = np.linspace(0.4, 1.6, 41)
THETA = np.array([0.775, 0.15, 0.02])


def breit_wigner(x, m, g):
    return 1 / ((x * x - m * m) ** 2 + (m * g) ** 2)


def convolved(m, g, s, x):
    return jnp.sum(WEIGHTS * breit_wigner(x + s * NODES, m, g))


def convolution(m, g, s, x):
    return -jnp.log(convolved(m, g, s, x))


def python_loop(m, g, s, x):
    total = 0.0
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        total = total - weight * breit_wigner(x + s * node, m, g)
    return -jnp.log(-total)


def loop_of_jax(m, g, s, x):
    nodes, weights = jnp.asarray(NODES), jnp.asarray(WEIGHTS)
    add = lambda k, total: total + weights[k] * breit_wigner(x + s * nodes[k], m, g)  # noqa: E731
    return -jnp.log(jax.lax.fori_loop(0, len(NODES), add, 0.0 * x))


def grid_norm(m, g, s, x):
    return -jnp.log(breit_wigner(x, m, g) / jnp.trapezoid(breit_wigner(GRID, m, g + s), GRID))


def convolution_and_its_norm(m, g, s, x):
    on_grid = jax.vmap(lambda t: convolved(m, g, s, t))(GRID)
    return -jnp.log(convolved(m, g, s, x) / (jnp.sum(on_grid) * (GRID[1] - GRID[0])))


def convolution_and_its_trapezoids(m, g, s, x):
    """Every value but the first and the last one is in two terms of the outer sum."""
    on_grid = jax.vmap(lambda t: convolved(m, g, s, t))(GRID)
    return -jnp.log(convolved(m, g, s, x) / jnp.trapezoid(on_grid, GRID))


def variance_about_a_mean(m, g, s, x):
    """Sums that need others before: the weights their norm, the variance the mean."""
    weights = jnp.exp(-0.5 * ((GRID - m) / g) ** 2)
    weights = weights / jnp.sum(weights)
    mean = jnp.sum(weights * jnp.sin(GRID * s))
    variance = jnp.sum(weights * (jnp.sin(GRID * s) - mean) ** 2)
    return (x - mean) ** 2 / (1.0 + variance)


def sum_within_a_sum_of_rows(m, g, s, x):
    """The second sum over a table takes the first one of the same row."""
    first = jnp.sum(jnp.exp(-0.5 * ((x + NODES * s - m) / g) ** 2 - jnp.cos(NODES * x * g)))
    return jnp.sum(jnp.cos(NODES * m + x / first) ** 2 / (1 + (NODES * s * x) ** 2)) + first


@jax.custom_jvp
def softened(x):
    return jnp.sqrt(x * x + 0.01)


@softened.defjvp
def _softened_jvp(primals, tangents):
    # not the derivative, so that it is seen whether the rule is followed
    return softened(*primals), 2.0 * jnp.tanh(primals[0]) * tangents[0]


def own_rule(m, g, s, x):
    return jnp.sum(WEIGHTS * softened((x + s * NODES - m) / g) * jnp.exp(-g * NODES**2))


@jax.custom_jvp
def doubled_slope(x):
    return 1.0 * x


@doubled_slope.defjvp
def _doubled_slope_jvp(primals, tangents):
    return doubled_slope(*primals), 2.0 * tangents[0]


def derivative_without_the_table(m, g, s, x):
    """The slope by m is the same for all entries of the table."""
    return jnp.sum(doubled_slope(m * x + jnp.sin(NODES * s * x) * jnp.exp(-g * NODES**2) / (1 + x * NODES**2)))


def with_conditions(m, g, s, x):
    """Of the terms some lie outside for any x, and some change sign."""
    shifted = x + 20 * s * NODES
    inside = (shifted > m) & (NODES > -2.0)
    return jnp.sum(jnp.where(inside, WEIGHTS * jnp.log1p((shifted - m) * g) ** 2, 0.0)) - jnp.sum(
        jnp.abs(shifted) ** 1.5 * NODES / (1 + NODES**2 * g)
    )


def of_many_parameters(*args):
    """The Hessian of so many parameters is summed as products of vectors."""
    *theta, x = args
    background = sum(theta[3 + k] * jnp.cos(k * x) for k in range(12))
    return -jnp.log(convolved(*theta[:3], x) + jnp.exp(background))


MODELS = [convolution, python_loop, loop_of_jax, grid_norm, convolution_and_its_norm]
MODELS += [convolution_and_its_trapezoids, variance_about_a_mean]
MODELS += [sum_within_a_sum_of_rows, own_rule, derivative_without_the_table, with_conditions, of_many_parameters]


def truth_of(model):
    return THETA if model is not of_many_parameters else np.concatenate([THETA, np.linspace(-0.3, 0.4, 12)])


def by_jax(model, theta, x, *ends):
    """The sums over all rows, or those up to each of some ends."""
    found = quickly(row_sums_untranslated(model, None, len(theta), x.shape[1]), theta, x, *ends or x.shape[1:])
    return found if ends else found[0]


def quickly(sums, theta, x, *ends):
    """In one program: one for each operation would take gigabytes, and compiling well longer than running."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    with jax.enable_x64(True):
        compiled = jax.jit(sums, compiler_options=options)
        return [np.asarray(compiled(theta, x, np.zeros((0, x.shape[1])), np.zeros(0), n)) for n in ends]


def by_kernel(kernel, theta, x, begin=0, end=None):
    out = np.full(n_outputs(len(theta)), np.nan)
    end = x.shape[1] if end is None else end
    kernel(theta, x, np.zeros((0, x.shape[1])), np.zeros(0), begin, end, 2, out)
    return out


@pytest.mark.parametrize("model", MODELS)
def test_against_derivatives_of_the_model_as_it_stands(model):
    theta = truth_of(model)
    program = build_program(model, None, n_params=len(theta), n_columns=1)
    assert program.graph.tables and len(program.live) < 5000
    kernel = compile_kernel(program)
    if model in (convolution_and_its_norm, convolution_and_its_trapezoids):
        assert len(NODES) * len(GRID) in program.graph.tables  # one table, not one for each point
    ends = 1, 70  # less than a block of rows, and more
    x = np.random.default_rng(70).uniform(0.5, 1.3, (1, 70))
    found = by_jax(model, theta, x, *ends), quickly(row_sums(program, 256), theta, x, *ends)
    for n, expected, by_xla in zip(ends, *found, strict=True):
        near = {"rtol": 1e-11, "atol": 1e-12 * np.abs(expected).max()}
        assert_allclose(by_kernel(kernel, theta, x[:, :n].copy()), expected, **near)
        assert_allclose(by_xla, expected, **near)


def test_an_own_rule_whose_argument_is_taken_apart():
    """Of (x - m) / g nothing is left in the square, though the derivative is by it."""
    model = lambda m, g, s, x: s * softened((x - m) / g)  # noqa: E731
    kernel = compile_kernel(build_program(model, None, n_params=3, n_columns=1))
    x = np.random.default_rng(4).uniform(0.5, 1.3, (1, 50))
    assert_allclose(by_kernel(kernel, THETA, x), by_jax(model, THETA, x), rtol=1e-11)


def test_rows_in_the_middle_of_all():
    kernel = compile_kernel(build_program(convolution, None, n_params=3, n_columns=1))
    x = np.random.default_rng(1).uniform(0.5, 1.3, (1, 300))
    assert_allclose(by_kernel(kernel, THETA, x, 70, 241), by_jax(convolution, THETA, x[:, 70:241]), rtol=1e-11)
    assert not by_kernel(kernel, THETA, x, 70, 70).any()


def test_a_convolution_of_normal_distributions_is_normal():
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    weights = weights / weights.sum()
    model = lambda m, g, s, x: -jnp.log(jnp.sum(weights * norm.pdf(x + s * nodes, m, g)))  # noqa: E731
    closed = lambda m, g, s, x: -norm.logpdf(x, m, jnp.sqrt(g * g + s * s))  # noqa: E731
    theta, x = np.array([0.7, 0.15, 0.1]), np.linspace(0.4, 1.1, 77)[None]
    kernel = compile_kernel(build_program(model, None, n_params=3, n_columns=1))
    assert_allclose(by_kernel(kernel, theta, x), by_jax(closed, theta, x), rtol=1e-9)


@pytest.mark.parametrize("model", [convolution, grid_norm])
def test_the_length_does_not_grow_with_the_table(model, monkeypatch):
    lengths = []
    for n in (21, 81):
        nodes, weights = np.polynomial.hermite_e.hermegauss(n)
        monkeypatch.setattr(f"{__name__}.NODES", nodes)
        monkeypatch.setattr(f"{__name__}.WEIGHTS", weights)
        monkeypatch.setattr(f"{__name__}.GRID", np.linspace(0.4, 1.6, 5 * n))
        lengths.append(len(build_program(model, None, n_params=3, n_columns=1).live))
    assert lengths[0] == lengths[1]


def test_short_sums_and_those_of_different_terms_are_written_out():
    few = lambda a, b, x: jnp.sum(jnp.exp(-a * x * np.arange(1.0, 4.0)))  # noqa: E731
    different = lambda *args: sum(jnp.exp(-t * args[-1]) for t in args[:-1])  # noqa: E731
    assert not build_program(few, None, n_params=2, n_columns=1).graph.tables
    assert not build_program(different, None, n_params=12, n_columns=1).graph.tables


def test_terms_of_many_parameters_are_written_out():
    theta = lambda args: sum(args[k] * jnp.cos(k * args[-1]) for k in range(13))  # noqa: E731
    model = lambda *args: jnp.sum(jnp.exp(NODES * theta(args)))  # noqa: E731
    assert not build_program(model, None, n_params=13, n_columns=1).graph.tables


def test_what_is_known_of_the_data_within_a_sum():
    """An efficiency that is interpolated has no scalar form, and becomes a column."""
    at, of = np.linspace(0.0, 2.0, 9), np.sin(np.linspace(0.3, 1.2, 9))

    def model(m, g, s, x):
        efficiency = jnp.interp(x, at, of)
        return -jnp.log(jnp.sum(WEIGHTS * breit_wigner(x + s * NODES, m, g) * efficiency**NODES))

    program, known = separated(build_program(model, None, n_params=3, n_columns=1, opaque=True))
    x = np.random.default_rng(2).uniform(0.5, 1.3, (1, 90))
    columns = np.concatenate([x, known.compute(x)])
    assert known.n == 1 and program.graph.tables
    assert_allclose(by_kernel(compile_kernel(program), THETA, columns), by_jax(model, THETA, x), rtol=1e-11)


def test_a_sum_of_the_data_alone_that_needs_what_is_known():
    at, of = np.linspace(0.0, 2.0, 9), np.sin(np.linspace(0.3, 1.2, 9))

    def model(m, g, s, x):
        smeared = jnp.sum(jnp.exp(jnp.cos(NODES * jnp.interp(x, at, of)) - jnp.sqrt(1 + NODES**2 * x)))
        return (x - m) ** 2 / g * smeared + s * x

    program, known = separated(build_program(model, None, n_params=3, n_columns=1, opaque=True))
    x = np.random.default_rng(3).uniform(0.5, 1.3, (1, 90))
    columns = np.concatenate([x, known.compute(x)])
    assert_allclose(by_kernel(compile_kernel(program), THETA, columns), by_jax(model, THETA, x), rtol=1e-11)


def test_a_tile_of_rows_counts_the_entries_and_pallas_has_no_kernel():
    program = build_program(convolution, None, n_params=3, n_columns=1)
    assert n_intermediates(program) > 3 * len(NODES)
    assert not has_kernel(program)
