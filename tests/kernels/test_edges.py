"""Rows that share their edges: the same sums as row by row, with one evaluation for each edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels import truncexpon, truncnorm
from kernels.edges import LOWER, UPPER, split_at_edges
from kernels.nodes import LEAVES
from kernels.program import SECOND, build_program
from kernels.translate import compile_kernel


def spectrum(x, ns, nb, mu, sigma, lam):
    return ns * truncnorm.cdf(x, 1.0, 9.0, mu, sigma) + nb * truncexpon.cdf(x, 1.0, 9.0, 0.0, lam)


def of_bins(cdf, n_params):
    """-log L of Poisson counts, from (*theta, n, lower, upper)."""

    def term(*args):
        theta, (n, lower, upper) = args[:n_params], args[n_params:]
        mu = cdf(upper, *theta) - cdf(lower, *theta)
        return mu - n * jnp.log(mu)

    return term


# (term, number of parameters, parameters)
CASES = {
    "spectrum": (of_bins(spectrum, 5), 5, [2000.0, 13500.0, 5.0, 0.5, 4.0]),
    "polynomial": (of_bins(lambda x, a, b: a * x + b * x * x * x, 2), 2, [3.0, 0.2]),
    # edges as they are, parts of one edge that are summed, a maximum, whose arguments are ordered, and comparisons
    "others": (
        lambda a, b, n, lower, upper: (
            jnp.exp(a * upper)
            + n * (upper - lower) ** b
            + b * lower
            + jnp.maximum(upper, a)
            + jnp.where((lower > 10.0 * a) & (upper < 4.0 * b), n * b, 0.0)
        ),
        2,
        [0.3, 1.5],
    ),
    "upper edge alone": (lambda a, n, lower, upper: jnp.exp(-a * upper), 1, [0.7]),
    "neither": (lambda a, n, lower, upper: (n - a) ** 2, 1, [0.7]),
}


def program_of(name):
    term, n_params, _ = CASES[name]
    with jax.enable_x64(True):
        return build_program(term, None, n_params=n_params, n_columns=1, n_shared=2)


@pytest.mark.parametrize("name", CASES)
def test_sums_are_those_of_row_by_row(name):
    program = program_of(name)
    alone, adjacent = compile_kernel(program), compile_kernel(program, adjacent=True)
    rng = np.random.default_rng(3)
    theta = np.array(CASES[name][2])
    for n in (1, 7, 8, 127, 128, 129, 300, 0):
        edges = np.sort(rng.uniform(1.0, 9.0, n + 1))
        shared = np.stack([edges[:-1], edges[1:]])
        rows = rng.poisson(20.0, (1, n + 4)).astype(np.float64)
        found = np.full((2, len(program.rest)), np.nan)
        for kernel, out in zip((alone, adjacent), found, strict=True):
            kernel(theta, rows, shared, np.zeros(0), 3, 3 + n, SECOND, out)  # of the second toy
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[1], found[0], rtol=1e-12, atol=1e-12 * np.abs(found[0]).max())


def test_nothing_of_an_edge_is_evaluated_twice():
    program = program_of("spectrum")
    graph, edges = program.graph, split_at_edges(program)
    operations = [n for n in program.live if graph.on_row(n) and graph.nodes[n].op not in LEAVES]
    own = [n for n in edges.rest if n not in edges.read]
    assert len(edges.numbers) + len(own) < 0.6 * len(operations)
    assert not {"erf", "erfc", "exp"} & {graph.nodes[n].op for n in own}
    # F, and its derivatives by the parameters of the shapes, at both sides
    assert 10 < len(edges.stored) < 30 and {at for _, at in edges.read.values()} == {LOWER, UPPER}


def test_a_long_sum_is_written_out_for_edges_and_a_very_long_one_is_not():
    """Loops over tables take both edges of a row: worth it only where what is written out would be too long."""

    def program(n_nodes):
        nodes = np.linspace(-1.0, 1.0, n_nodes)
        below = lambda x, mu: jnp.sum(jnp.exp(-jnp.sqrt(1.0 + (x - mu - nodes) ** 2)))  # noqa: E731
        term = lambda mu, n, low, high: (n - below(high, mu) + below(low, mu)) ** 2  # noqa: E731
        return build_program(term, None, n_params=1, n_columns=1, n_shared=2, adjacent=True)

    short, long = program(20), program(400)
    assert split_at_edges(short) is not None and not short.graph.tables
    assert split_at_edges(long) is None and long.graph.tables
