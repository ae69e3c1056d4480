import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import ExtendedUnbinnedNLL, LeastSquares, NormalConstraint, PoissonNLL
from kernels import expon, randombits
from toys.counts import PoissonCounts
from toys.points import ConstraintValues, NormalPoints
from toys.sampling import Component, ExtendedMixture
from toys.simultaneous import Simultaneous

X = np.linspace(0.0, 1.0, 4)


def decay(x, n, tau):
    return n, n * expon.pdf(x, 0.0, tau)


def histogram(n, slope):
    return n * jnp.array([1.0, 2.0]) + slope


def line(x, slope):
    return slope * x


COST = ExtendedUnbinnedNLL(decay) + PoissonNLL(histogram) + LeastSquares(line) + NormalConstraint("tau", 2.0, 0.1)
EVENTS = ExtendedMixture(("tau", "n"), (Component("n", expon.ppf, (0.0, "tau")),))  # in an order of its own
COUNTS = PoissonCounts.of(COST.costs[1])
POINTS = NormalPoints(line, ("slope",), X, 0.1)
ALL = Simultaneous(COST, (EVENTS, COUNTS, POINTS, None))
THETA = [20.0, 2.0, 3.0]  # n, tau, slope


def of_part(key, theta):
    """A sampler of one's own for the decay: (n, tau)."""
    n = jnp.int64(3)
    return theta[1] * randombits.uniform(key, 5), n


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_parts_are_found_by_name(backend):
    assert ALL.names == ("n", "tau", "slope")
    events, counts, (x, y, _), values = ALL.generate(THETA, n_toys=3000, seed=2, backend=backend)
    n = np.diff(events.offsets)
    assert abs(n.mean() - 20.0) < 4 * np.sqrt(20.0 / 3000)
    assert abs(events.values.mean() - 2.0) < 4 * 2.0 / np.sqrt(len(events.values))
    assert np.all(np.abs(counts.mean(axis=0) - [23.0, 43.0]) < 4 * np.sqrt(np.array([23.0, 43.0]) / 3000))
    assert np.abs(y.mean(axis=0) - 3.0 * X).max() < 4 * 0.1 / np.sqrt(3000) and x is POINTS.x
    assert abs(values.mean() - 2.0) < 4 * 0.1 / np.sqrt(3000) and values.shape == (3000, 1)
    # streams of their own
    correlation = np.corrcoef(np.stack([n, counts[:, 0], y[:, 0], values[:, 0]]))
    assert np.abs(correlation - np.eye(4)).max() < 4.5 / np.sqrt(3000)


def test_backends_chunks_and_single_toys():
    by_numba = ALL.generate(THETA, n_toys=60, seed=2**50, first=9)
    by_jax = ALL.generate(THETA, n_toys=60, seed=2**50, first=9, backend="jax")
    part = ALL.generate(THETA, n_toys=10, seed=2**50, first=29)
    np.testing.assert_array_equal(by_numba[0].offsets, by_jax[0].offsets)
    np.testing.assert_allclose(by_numba[0].values, by_jax[0].values, rtol=1e-13)
    np.testing.assert_array_equal(by_numba[1], by_jax[1])
    np.testing.assert_allclose(by_numba[2][1], by_jax[2][1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(by_numba[3], by_jax[3], rtol=0, atol=1e-14)
    np.testing.assert_array_equal(part[0].values, by_numba[0][20:30].values)
    np.testing.assert_array_equal(part[1], by_numba[1][20:30])
    single = jax.jit(lambda key: ALL(key, THETA))
    (values, n), counts, (_, y, _), measured = single(randombits.toy_key(2**50, 31))
    np.testing.assert_allclose(values[:n], by_numba[0][22], rtol=1e-13)
    np.testing.assert_array_equal(counts, by_numba[1][22])
    np.testing.assert_allclose(y, by_numba[2][1][22], rtol=0, atol=1e-14)
    np.testing.assert_allclose(measured, by_numba[3][22], rtol=0, atol=1e-14)


def test_a_part_is_drawn_with_its_own_key():
    counts = ALL.generate(THETA, n_toys=3, seed=4)[1]
    key = jax.random.fold_in(randombits.toy_key(4, 2), 1)
    np.testing.assert_array_equal(COUNTS(key, [20.0, 3.0]), counts[2])


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_fixed_constraints_and_a_sampler_of_ones_own(backend):
    sampler = Simultaneous(COST, (of_part, COUNTS, POINTS, "fixed"))
    data = sampler.generate(THETA, n_toys=5, seed=6, backend=backend)
    assert data[3] is None
    for k in range(5):
        u = randombits.uniform(jax.random.fold_in(randombits.toy_key(6, k), 0), 5)
        np.testing.assert_array_equal(data[0][k], 2.0 * np.asarray(u)[:3])
    assert len(COST.rows(data)) == 5
    assert len(COST.rows(ALL.generate(THETA, n_toys=5, seed=6))) == 5


def test_nothing_to_draw():
    events, counts, (_, y, _), values = ALL.generate(THETA, n_toys=0, seed=1)
    assert len(events) == 0 and counts.shape == (0, 2) and y.shape == (0, 4) and values.shape == (0, 1)


@pytest.mark.parametrize(
    "samplers, message",
    [
        ((EVENTS, COUNTS, POINTS), "a sampler for each of 4 costs, got 3"),
        ((EVENTS, None, POINTS, None), "cost 1 of the sum needs a sampler, got None"),
        ((EVENTS, "fixed", POINTS, None), "cost 1 of the sum needs a sampler, got 'fixed'"),
        ((EVENTS, COUNTS, POINTS, "none"), r"samplers\[3\] must be a sampler, None or 'fixed', got 'none'"),
        (
            (EVENTS, COUNTS, POINTS, ConstraintValues(NormalConstraint("mu", 0.0, 1.0))),
            "samplers.3. has the parameter 'mu'",
        ),
    ],
)
def test_mistakes(samplers, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Simultaneous(COST, samplers)


def test_more_mistakes():
    with pytest.raises(TypeError, match="must be a sum of costs, got PoissonNLL"):
        Simultaneous(COST.costs[1], (COUNTS,))
    constraints = NormalConstraint("a", 0.0, 1.0) + NormalConstraint("b", 0.0, 1.0)
    with pytest.raises(ValueError, match="nothing varies"):
        Simultaneous(constraints, ("fixed", "fixed"))
    with pytest.raises(TypeError, match=r"must return \(padded values, n\)"):
        wrong = Simultaneous(COST, (lambda key, theta: randombits.uniform(key, 3), COUNTS, POINTS, None))
        wrong.generate(THETA, n_toys=1, seed=1)
