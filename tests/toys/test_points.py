import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from engine import LeastSquares, NormalConstraint, UnbinnedNLL
from engine.constraints import GammaConstraint, PoissonConstraint
from toys.points import ConstraintValues, NormalPoints

X = np.linspace(-2.0, 3.0, 7)
YERROR = np.linspace(0.1, 0.4, 7)
XERROR = np.linspace(0.3, 0.05, 7)
COVARIANCE = 0.04 * np.exp(-np.abs(X[:, None] - X) / 2.0)
THETA = [1.5, -0.7]
N_TOYS = 20_000


def line(x, a, b):
    return a + b * x


NAMES = ("a", "b")
PLAIN = NormalPoints(line, NAMES, X, YERROR)
WITH_X = NormalPoints(line, NAMES, X, YERROR, XERROR)
CORRELATED = NormalPoints(line, NAMES, X, None, covariance=COVARIANCE)
NORMAL = ConstraintValues(NormalConstraint(NAMES, [0.0, 0.0], [[0.09, -0.05], [-0.05, 0.25]]))
SAMPLERS = [PLAIN, WITH_X, CORRELATED, NORMAL]


def whole(data):
    return data if isinstance(data, tuple) else (data,)


def assert_normal(sample, mean, covariance):
    """Mean and covariance within 4.5 standard errors; each standardised column by Kolmogorov and Smirnov."""
    error = np.sqrt(np.diag(covariance))
    assert np.abs((sample.mean(axis=0) - mean) / error).max() < 4.5 / np.sqrt(len(sample))
    deviation = (np.cov(sample.T) - covariance) / error / error[:, None]
    assert np.abs(deviation).max() < 4.5 * np.sqrt(2.0 / len(sample))
    for k in range(sample.shape[1]):
        assert stats.kstest(sample[:, k], stats.norm(mean[k], error[k]).cdf).pvalue > 1e-4


def test_noise_of_y():
    x, y, yerror = PLAIN.generate(THETA, n_toys=N_TOYS, seed=5)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(yerror, YERROR)
    assert_normal(y, 1.5 - 0.7 * X, np.diag(YERROR**2))


def test_noise_of_x_and_y():
    x, y, _, xerror = WITH_X.generate(THETA, n_toys=N_TOYS, seed=5)
    np.testing.assert_array_equal(xerror, XERROR)
    # y is that of the true x: its noise does not know of that of x
    both = np.concatenate([x, y], axis=1)
    assert_normal(both, np.concatenate([X, 1.5 - 0.7 * X]), np.diag(np.concatenate([XERROR, YERROR]) ** 2))


def test_correlated_noise():
    x, y = CORRELATED.generate(THETA, n_toys=N_TOYS, seed=5)
    np.testing.assert_array_equal(x, X)
    assert_normal(y, 1.5 - 0.7 * X, COVARIANCE)


def test_values_of_a_normal_constraint():
    values = NORMAL.generate(THETA, n_toys=N_TOYS, seed=5)
    assert_normal(values, THETA, [[0.09, -0.05], [-0.05, 0.25]])
    alone = ConstraintValues(NormalConstraint(NAMES, [0.0, 0.0], [0.3, 0.5]))
    assert_normal(alone.generate(THETA, n_toys=N_TOYS, seed=6), THETA, np.diag([0.09, 0.25]))


def test_values_of_constraints_that_are_counts():
    scale = np.array([2.0, 30.0])
    counts = ConstraintValues(PoissonConstraint(NAMES, [1.0, 1.0], scale))
    values = counts.generate([1.5, 0.9], n_toys=N_TOYS, seed=5)
    mean = np.array([3.0, 27.0])
    np.testing.assert_array_equal(values, np.rint(values))
    assert np.all(np.abs(values.mean(axis=0) - mean) < 4 * np.sqrt(mean / N_TOYS))
    assert np.all(np.abs(values.var(axis=0) / mean - 1.0) < 4 * np.sqrt((2.0 + 1.0 / mean) / N_TOYS))
    # value / error^2 = 2 and 30: the same counts in units of the scale
    gamma = ConstraintValues(GammaConstraint(NAMES, [8.0, 1.2], [2.0, 0.2]))
    by_gamma = gamma.generate([1.5, 0.9], n_toys=50, seed=5)
    np.testing.assert_allclose(by_gamma * scale, values[:50], rtol=1e-13)
    by_jax = gamma.generate([1.5, 0.9], n_toys=50, seed=5, backend="jax")
    np.testing.assert_array_equal(by_gamma, by_jax)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=["y", "xy", "correlated", "constraint"])
def test_backends_and_chunks(sampler):
    by_numba = whole(sampler.generate(THETA, n_toys=900, seed=2**40, first=7))
    by_jax = whole(sampler.generate(THETA, n_toys=900, seed=2**40, first=7, backend="jax"))
    part = whole(sampler.generate(THETA, n_toys=13, seed=2**40, first=7 + 100))
    none = whole(sampler.generate(THETA, n_toys=0, seed=1))
    key = jax.random.fold_in(jax.random.wrap_key_data(np.array([2**8, 0], np.uint32), impl="threefry2x32"), 107)
    one = whole(jax.jit(lambda key: sampler(key, THETA))(key))
    for a, b, p, n, o in zip(by_numba, by_jax, part, none, one, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-14)
        if a.ndim == 1:  # shared
            np.testing.assert_array_equal(p, a)
        else:
            np.testing.assert_array_equal(p, a[100:113])
            np.testing.assert_allclose(o, a[100], rtol=0, atol=1e-14)
            assert n.shape == (0, *a.shape[1:])


def test_several_observables_and_one_error():
    grid = np.stack([X, X**2])
    sampler = NormalPoints(lambda x, a, b: a * x[0] + b * x[1], NAMES, grid, 1e-6)
    x, y, yerror = sampler.generate(THETA, n_toys=3, seed=1)
    # a shared x of shape (d, n) would look like one row for each of d toys
    np.testing.assert_array_equal(x, np.broadcast_to(grid, (3, 2, 7)))
    assert yerror.shape == (7,)
    np.testing.assert_allclose(y, np.tile(1.5 * X - 0.7 * X**2, (3, 1)), atol=1e-5)


def test_the_cost_takes_the_data():
    for sampler, cost in ((PLAIN, LeastSquares(line)), (WITH_X, LeastSquares(line, xerror=True))):
        assert len(cost.rows(sampler.generate(THETA, n_toys=4, seed=1))) == 4
    assert len(LeastSquares(line, covariance=COVARIANCE).rows(CORRELATED.generate(THETA, n_toys=4, seed=1))) == 4


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"yerror": None}, "pass yerror or covariance"),
        ({"covariance": COVARIANCE}, "pass yerror or covariance"),
        ({"yerror": None, "covariance": COVARIANCE, "xerror": 0.1}, "x errors go with y errors"),
        ({"yerror": None, "covariance": COVARIANCE[:3, :3]}, r"covariance must have shape \(7, 7\)"),
        ({"yerror": 0.0}, "yerror must be positive"),
        ({"yerror": [0.1, 0.2]}, "yerror must be 7 finite numbers"),
        ({"xerror": -0.1}, "xerror must be 7 finite numbers"),
        ({"x": np.full(7, np.inf)}, "x must be finite"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ValueError, match=message):
        NormalPoints(**{"model": line, "names": NAMES, "x": X, "yerror": 0.1, **arguments})


def test_models_that_are_none():
    with pytest.raises(ValueError, match="the model is nan at point 0"):
        NormalPoints(lambda x, a: jnp.log(x) + a, ("a",), X, 0.1).generate([0.0], n_toys=1, seed=1)
    with pytest.raises(ValueError, match="must return a number for one x, got shape"):
        NormalPoints(lambda x, a: jnp.stack([x, a]), ("a",), X, 0.1).generate([0.0], n_toys=1, seed=1)
    with pytest.raises(TypeError, match="measured values cannot be drawn for int"):
        ConstraintValues(5)
    with pytest.raises(TypeError, match="cannot be drawn for UnbinnedNLL"):
        ConstraintValues(UnbinnedNLL(line))
    with pytest.raises(ValueError, match=r"must lie in \[0, 1e\+09\], got -2.0"):
        ConstraintValues(PoissonConstraint("a", 1.0, 2.0)).generate([-1.0], n_toys=1, seed=1)
