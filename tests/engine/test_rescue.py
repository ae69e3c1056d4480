"""The Gauss-Newton Hessian and the new starts of a retry."""

import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import (
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    LeastSquares,
    NormalConstraint,
    PoissonNLL,
    UnbinnedNLL,
    fit_batch,
)
from engine.cpu import NumbaDriver
from engine.data import lane_data
from engine.devices import cpu_seconds
from engine.drivers import Settings
from engine.rescue import MOST_SECONDS, N_STARTS, _on_cores, gauss_newton, new_starts
from kernels import expon, norm

RNG = np.random.default_rng(4)
X = np.linspace(0.1, 3.0, 20)
EDGES = np.linspace(0.0, 4.0, 13)
THETA = np.array([1.3, 0.7])


def curve(x, a, k):
    return a * jnp.exp(-k * x)


def peak(x, m, s):
    return norm.pdf(x, m, s)


def yields(x, n, tau):
    return n * n, n * n * expon.pdf(x, 0.0, tau)


def log_yields(x, n, tau):
    return n * n, jnp.log(n * n) + expon.logpdf(x, 0.0, tau)


def histogram(edge, a, s):
    return a * a * norm.cdf(edge, 2.0, s)


def counts(a, k):
    return 30.0 * a * a * jnp.exp(-k * jnp.asarray(X))


EVENTS = RNG.exponential(1.0, 25)
COUNTS = RNG.poisson(10.0, 12).astype(float)
DATA = {
    "chi-square": (LeastSquares(curve), (X, 2 * np.exp(-X)[None], 0.3)),
    "unbinned": (UnbinnedNLL(peak), EVENTS[None]),
    "unbinned, log": (UnbinnedNLL(lambda x, m, s: norm.logpdf(x, m, s), log=True, name=("a", "k")), EVENTS[None]),
    "extended": (ExtendedUnbinnedNLL(yields), EVENTS[None]),
    "extended, log": (ExtendedUnbinnedNLL(log_yields, log=True), EVENTS[None]),
    "in a range": (UnbinnedNLL(peak, fit_range=(0.0, 4.0), n_nodes=16), EVENTS[None]),
    "binned": (ExtendedBinnedNLL(histogram, EDGES), COUNTS[None]),
    "vector": (PoissonNLL(counts), RNG.poisson(20.0, (1, 20)).astype(float)),
    "sum": (LeastSquares(curve) + NormalConstraint("k", 0.5, 0.1), (X, 2 * np.exp(-X)[None], 0.3)),
}


def derivatives(cost, data):
    """Value, gradient and Hessian of the only toy, by JAX from the cost's own terms."""
    rows = cost.rows(data)
    with jax.enable_x64(True):
        lengths = [int(np.max(np.diff(leaf.offsets))) for leaf in rows.leaves]
        lanes = [lane_data(leaf, np.array([0]), n) for leaf, n in zip(rows.leaves, lengths, strict=True)]
        lane = jax.tree.map(lambda a: a[0], tuple(lanes))
        value = lambda theta: cost.reference(rows)(theta, lane, tuple(leaf.shared for leaf in rows.leaves))  # noqa: E731
        everything = jax.jit(lambda theta: (value(theta), jax.grad(value)(theta), jax.hessian(value)(theta)))
        return [np.asarray(a) for a in everything(THETA)]


@pytest.mark.parametrize("name", DATA)
def test_only_the_hessian_differs(name):
    cost, data = DATA[name]
    value, gradient, hessian = derivatives(cost, data)
    other = derivatives(gauss_newton(cost), data)
    np.testing.assert_allclose(other[0], value, rtol=1e-13)
    np.testing.assert_allclose(other[1], gradient, rtol=1e-11, atol=1e-11)
    assert np.abs(other[2] - hessian).max() > 1e-3 * np.abs(hessian).max()
    assert np.linalg.eigvalsh(other[2])[0] > -1e-12 * np.abs(other[2]).max()


def test_hessian_in_closed_form():
    # of a chi-square 2 J^T J / error^2; of -log p the products of the scores, if the model is p or its logarithm
    a, k = THETA
    jacobian = np.stack([np.exp(-k * X), -a * X * np.exp(-k * X)], axis=1)
    cost, data = DATA["chi-square"]
    np.testing.assert_allclose(derivatives(gauss_newton(cost), data)[2], 2 * jacobian.T @ jacobian / 0.09, rtol=1e-12)
    z = (EVENTS - a) / k
    scores = np.stack([z / k, (z * z - 1) / k], axis=1)
    for name in ("unbinned", "unbinned, log"):
        cost, data = DATA[name]
        np.testing.assert_allclose(derivatives(gauss_newton(cost), data)[2], scores.T @ scores, rtol=1e-12)


@pytest.mark.parametrize("name", ["in a range", "vector"])
def test_numba_form_is_the_same(name):
    cost, data = DATA[name]
    other = gauss_newton(cost)
    out = NumbaDriver(other, cost.rows(data)).evaluate(np.array([0]), THETA[None])[0]
    value, gradient, hessian = derivatives(other, data)
    np.testing.assert_allclose(out[[0, 2, 3]], [value, *gradient], rtol=1e-11)
    np.testing.assert_allclose(out[4:], hessian[np.tril_indices(2)], rtol=1e-11)


def test_it_is_made_once_and_the_cost_is_left_as_it_was():
    cost, data = DATA["in a range"]
    model, before = cost.model, derivatives(cost, data)
    other = gauss_newton(cost)
    assert gauss_newton(cost) is other and other is not cost
    assert cost.model is model and cost.integral.nll is cost and other.integral.nll is other
    for mine, theirs in zip(before, derivatives(cost, data), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    constraint = NormalConstraint("k", 0.5, 0.1)
    assert gauss_newton(constraint) is constraint


def test_new_starts():
    lower, upper = np.array([0.0, -np.inf, -1.0, 2.0]), np.array([np.inf, np.inf, 1.0, 2.5])
    settings = Settings(lower, upper, np.array([True, True, True, False]), 0.5, 1e-13, 200)
    start = np.array([[3.0, -5.0, 0.0, 2.25], [0.0, 1e6, 1.0, 2.0]])
    points = new_starts(start, settings, 0)
    assert points.shape == (N_STARTS, 2, 4)
    assert np.all((points >= lower) & (points <= upper))
    assert np.all(points[..., 0] > 0) and np.all(np.abs(points[..., 2]) < 1)
    np.testing.assert_array_equal(points[..., 3], np.tile(start[:, 3], (N_STARTS, 1)))
    # near ones and far ones, on both sides
    ratio = points[:, 0, 0] / 3.0
    assert np.any(ratio < 1 / 3) and np.any(ratio > 3) and np.any(np.abs(ratio - 1) < 0.2)
    assert np.all(points[:, 0, 1] < 0) and np.all(points[:, 1, 1] > 0)
    # other numbers for another retry, the same for the same, whatever the other toys
    assert not np.any(new_starts(start, settings, 1)[..., 1] == points[..., 1])
    np.testing.assert_array_equal(new_starts(start[1:], settings, 0), points[:, 1:])


def test_a_minimum_that_another_point_excludes_is_refused(monkeypatch):
    """The fit ends at a wall beyond which there is no density; far above there is a hollow, where new starts lie."""
    monkeypatch.setattr("engine.rescue.new_starts", lambda start, *_: np.full((1, *start.shape), -4.7))

    def log_density(x, a):
        hollow = 10.0 * jnp.exp(-((a + 5.0) ** 2))
        return jnp.where(a > 2.0, jnp.nan, 3.0 * a + hollow) + 0.0 * x

    def fitted(n_events, start=1.0):
        cost = UnbinnedNLL(log_density, log=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fit_batch(cost, [np.zeros(n_events)], {"a": start}, backend="numba")

    at_wall, above = fitted(10), fitted(1)
    assert not at_wall.valid[0] and at_wall.values[0, 0] == pytest.approx(2.0, abs=0.1)
    # the wall is better by 10.6 for each event, 4.6 standard deviations of one
    assert above.rescued[0] and above.values[0, 0] == pytest.approx(-4.85, abs=0.1)
    in_hollow = fitted(10, start=-4.7)
    assert in_hollow.valid[0] and in_hollow.fval[0] - at_wall.fval[0] > 12.5


@pytest.mark.filterwarnings("ignore:the slope of the cost jumps")
def test_a_toy_that_ends_where_it_had_ended_has_no_other_starts():
    """The minimum of a double exponential lies in a kink, at the median."""
    toys = np.random.default_rng(9).laplace(3.0, 1.0, (6, 25))
    few, many = (
        fit_batch(UnbinnedNLL(lambda x, a: 0.5 * jnp.exp(-jnp.abs(x - a))), toys, {"a": 2.5}, retries=n) for n in (1, 6)
    )
    assert not many.valid.any()
    np.testing.assert_allclose(many.values[:, 0], np.median(toys, axis=1), atol=1e-3)
    np.testing.assert_array_equal(few.nfev, many.nfev)


def test_few_toys_of_an_accelerator_are_retried_on_the_cores():
    cost = UnbinnedNLL(peak)
    rows = cost.rows(np.zeros((1000, 5000)))
    assert cpu_seconds(rows, 2, 10) < MOST_SECONDS < cpu_seconds(rows, 2, 10**6)
    for device, n, stays in (("gpu", 10, False), ("gpu", 10**6, True), ("cpu", 10**6, False)):
        driver = SimpleNamespace(device=device)
        found, chosen = _on_cores(cost, rows, driver, np.arange(n))
        assert found is rows and (chosen is driver) == stays and (isinstance(chosen, NumbaDriver) or stays)


@pytest.mark.filterwarnings("ignore:the slope of the cost jumps")
def test_a_toy_without_a_minimum_keeps_the_lowest_point():
    """A template that changes by other amounts up and down: along its kink the cost has its lowest point."""
    signal, background = np.array([2.0, 5.0, 3.0]), np.array([20.0, 15.0, 10.0])
    up, down = np.array([3.0, 1.0, -1.0]), np.array([-1.0, -2.0, -2.0])
    expected = lambda mu, a: mu * signal + background + jnp.where(a >= 0.0, a * up, -a * down)  # noqa: E731
    counts = np.random.default_rng(1).poisson(background + signal, (100, 3)).astype(float)
    cost, start = PoissonNLL(expected) + NormalConstraint("a", 0.0, 1.0), {"mu": 1.0, "a": 0.0}
    fits = fit_batch(cost, counts, start)
    along = fit_batch(cost, counts, start, fixed={"a": 0.0})
    failed = ~fits.valid
    assert failed.sum() > 10 and along.valid.all()
    assert (np.abs(fits.values[failed, 1]) < 1e-6).all()
    np.testing.assert_allclose(fits.values[failed, 0], along.values[failed, 0], atol=1e-3)
    assert (fits.fval[failed] < along.fval[failed] + 1e-6).all()
