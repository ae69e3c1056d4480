"""Quasi-Newton steps before Newton's, where a gradient is much cheaper than a Hessian: they may not change a result."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import (
    GammaConstraint,
    LeastSquares,
    NormalConstraint,
    PoissonConstraint,
    PoissonNLL,
    Status,
    drivers,
    fit_batch,
)
from engine.arguments import limit_arrays
from engine.cpu import NumbaDriver
from kernels import program
from kernels.translate import memory_of

N_TOYS, N_BINS, N_SHAPES = 60, 14, 7
RNG = np.random.default_rng(31)
SIGNAL = 6.0 * np.exp(-0.5 * ((np.arange(N_BINS) - 8) / 1.5) ** 2)
BACKGROUNDS = RNG.uniform(10, 30, (2, N_BINS))
BENDS = 0.05 * RNG.normal(size=(2, N_SHAPES, N_BINS))
SHAPES = [f"a{k}" for k in range(N_SHAPES)]
NAMES = ["mu", *SHAPES, "g0", "g1"]
TRUTH = np.array([0.0, *np.zeros(N_SHAPES), 1.0, 1.0])
LIMITS = {"mu": (0, None), "g0": (0, None), "g1": (0, None)}


def expected(mu, *theta):
    shapes = jnp.stack(theta[:N_SHAPES])
    first, second = (theta[N_SHAPES + b] * BACKGROUNDS[b] * jnp.exp(shapes @ BENDS[b]) for b in range(2))
    return mu * SIGNAL + first + second


def control(mu, *theta):
    return 40.0 * theta[N_SHAPES] * jnp.ones(5) * (1.0 + 0.1 * theta[0]) + 1e-3 * mu


COUNTS = PoissonNLL(expected, name=NAMES)
SHAPE_CONSTRAINT = NormalConstraint(SHAPES, np.zeros(N_SHAPES), np.ones(N_SHAPES))
SCALES = PoissonConstraint("g0", 60.0, scale=60.0) + GammaConstraint("g1", 1.0, 0.1)
COST = COUNTS + SHAPE_CONSTRAINT + SCALES


@pytest.fixture(scope="module")
def toys():
    rng = np.random.default_rng(32)
    return rng.poisson(BACKGROUNDS.sum(axis=0), (N_TOYS, N_BINS)).astype(float)


def newton_alone(monkeypatch, cost, data, start, **options):
    with monkeypatch.context() as patch:
        patch.setattr(drivers, "FEWEST_STEPS", 10**9)
        return fit_batch(cost, data, start, backend="numba", **options)


def assert_same_minima(one, other, rtol=1e-9):
    for name in ("status", "valid", "at_limit", "has_posdef_covar"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    good = one.valid
    sigma = np.where(other.errors > 0, other.errors, 1e-6)
    assert np.max((np.abs(one.values - other.values) / sigma)[good]) < rtol
    # the last Hessian is taken at an EDM of 1e-13 errordef, 3e-7 sigma from the minimum
    np.testing.assert_allclose(one.covariance[good], other.covariance[good], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(one.fval[good], other.fval[good], rtol=1e-12, atol=1e-11)


def starts(kind):
    rng = np.random.default_rng(33)
    if kind == "one for each toy":
        return TRUTH * rng.uniform(0.5, 2.0, (N_TOYS, 1)) + 0.5 * np.abs(rng.normal(size=(N_TOYS, len(TRUTH))))
    return TRUTH + {"truth": 0.0, "poor": np.array([8.0, *rng.normal(size=N_SHAPES), 2.0, -0.7])}[kind]


@pytest.mark.parametrize("limits", [None, LIMITS, LIMITS | dict.fromkeys(SHAPES, (-0.4, 0.6))])
@pytest.mark.parametrize("kind", ["truth", "poor", "one for each toy"])
def test_minima_and_limits_are_those_of_newton(toys, monkeypatch, kind, limits):
    start = starts(kind)
    if limits is not None:
        start = np.clip(start, *limit_arrays(NAMES, limits))
    result = fit_batch(COST, (toys, None, None, None), start, limits=limits, backend="numba")
    alone = newton_alone(monkeypatch, COST, (toys, None, None, None), start, limits=limits)
    assert result.valid.all() and not result.rescued.any()
    assert_same_minima(result, alone)
    assert (result.nfev != alone.nfev).any()  # another way
    if limits is not None:
        assert 0.2 < result.at_limit[:, 0].mean() < 0.8


def test_the_backends_agree(toys):
    rng = np.random.default_rng(34)
    measured = (
        rng.normal(size=(N_TOYS, N_SHAPES)),
        rng.poisson(60.0, N_TOYS).astype(float),
        rng.gamma(100.0, 0.01, N_TOYS),
    )
    regions = COST + PoissonNLL(control, name=NAMES)
    data = (toys, *measured, rng.poisson(40.0, (N_TOYS, 5)).astype(float))
    numba, xla = (fit_batch(regions, data, TRUTH, limits=LIMITS, backend=backend) for backend in ("numba", "jax"))
    assert numba.valid.all()
    assert_same_minima(numba, xla)
    np.testing.assert_array_equal(numba.nfev, xla.nfev)


def test_both_backends_come_to_the_same_of_several_minima():
    """Two signs of a coefficient fit equally well, and starts lie between them and next to limits."""
    rng = np.random.default_rng(37)
    signal, slopes = rng.uniform(5, 10, 12), rng.normal(size=(8, 12))

    def model(mu, *theta):
        return signal * (2.0 + mu**2) + 3.0 * jnp.abs(jnp.stack(theta) @ slopes) ** 1.5 + 1.0

    names = ["mu", *(f"t{k}" for k in range(8))]
    cost = PoissonNLL(model, name=names) + NormalConstraint(names[1:], np.zeros(8), np.ones(8))
    counts = rng.poisson(signal * 3.0 + 5.0, (40, 12)).astype(float)
    start = np.concatenate([rng.uniform(-0.3, 0.3, (40, 1)), rng.normal(size=(40, 8))], axis=1)
    limits = {"mu": (-2, 2), "t0": (0, None), "t1": (-1, 1)}
    start[:, 1] = 10.0 ** rng.uniform(-17, -6, 40)
    start[:, 2] = np.clip(start[:, 2], -1, 1)
    numba, xla = (fit_batch(cost, counts, start, limits=limits, backend=backend) for backend in ("numba", "jax"))
    assert numba.valid.sum() > 30
    assert_same_minima(numba, xla)
    assert len(set(np.sign(numba.values[:, 0].round(3)))) > 1


def test_held_parameters(toys, monkeypatch):
    """A profile scan holds a parameter at another value for each toy."""
    for fixed in ({"mu": np.linspace(0.0, 3.0, N_TOYS)}, ["g0", "a1"]):
        options = {"limits": LIMITS, "fixed": fixed}
        result = fit_batch(COST, (toys, None, None, None), TRUTH, backend="numba", **options)
        assert result.valid.all()
        assert_same_minima(result, newton_alone(monkeypatch, COST, (toys, None, None, None), TRUTH, **options))


def test_weighted_histograms_have_an_expected_hessian_each(toys):
    rows = [COUNTS.rows(data) for data in (toys, np.stack([toys, toys], axis=-1))]
    assert [COUNTS.cheap_gradient(each) for each in rows] == [True, False]


def test_linear_least_squares_with_a_covariance(monkeypatch):
    """The expected Hessian is exact: one step, and the proof. The minimum is that of the normal equations."""
    rng = np.random.default_rng(35)
    x = np.linspace(0, 1, 30)
    design = np.cos(3.0 * np.arange(9) * x[:, None])
    covariance = 0.01 * np.exp(-np.abs(x[:, None] - x) / 0.1)
    y = design @ np.ones(9) + rng.multivariate_normal(np.zeros(30), covariance, 20)

    def model(x, *theta):
        return sum(t * jnp.cos(3.0 * k * x) for k, t in enumerate(theta))

    cost = LeastSquares(model, covariance=covariance, name=[f"p{k}" for k in range(9)])
    result = fit_batch(cost, (x, y), np.full(9, 20.0), backend="numba")
    weight = np.linalg.inv(covariance)
    exact = np.linalg.inv(design.T @ weight @ design)
    np.testing.assert_allclose(result.covariance, [exact] * 20, rtol=1e-6, atol=1e-8)
    best = (exact @ design.T @ weight @ y.T).T
    assert np.max(np.abs(result.values - best) / result.errors) < 1e-6
    assert result.valid.all() and result.nfev.max() <= 4


def test_a_fit_does_not_depend_on_its_neighbours(toys):
    """The expected Hessian is shared by neighbours with one start only, and is the same whoever makes it."""
    start = starts("one for each toy")
    start[:20] = start[0]
    options = {"limits": LIMITS, "backend": "numba"}
    whole = fit_batch(COST, (toys, None, None, None), start, **options)
    order = np.random.default_rng(36).permutation(N_TOYS)
    mixed = fit_batch(COST, (toys[order], None, None, None), start[order], **options)
    parts = fit_batch(COST, (toys, None, None, None), start, batch_size=3, **options)
    for name in ("values", "covariance", "fval", "edm", "nfev", "status"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name), err_msg=name)
        np.testing.assert_array_equal(getattr(mixed, name), getattr(whole, name)[order], err_msg=name)


def test_evaluations_are_counted_and_limited(toys):
    for steps in (1, 2, 3, 5, 9, 40, 45):
        result = fit_batch(COST, (toys, None, None, None), TRUTH, backend="numba", max_steps=steps, retries=0)
        assert result.nfev.max() <= steps
        np.testing.assert_array_equal(result.status[~result.valid], Status.MAX_STEPS)
    assert result.valid.all()


def test_a_toy_whose_gradient_is_none_keeps_its_status(toys):
    """An expectation that vanishes in a filled bin at the start."""

    def partly(mu, *theta):
        return jnp.where(jnp.arange(N_BINS) == 0, theta[-1] - 1.0, expected(mu, *theta))

    cost = PoissonNLL(partly, name=NAMES) + SHAPE_CONSTRAINT
    result = fit_batch(cost, toys, TRUTH, backend="numba", retries=0)
    np.testing.assert_array_equal(result.status, Status.NONFINITE)


@pytest.mark.parametrize("cost", [COUNTS, SHAPE_CONSTRAINT, SCALES, COST + PoissonNLL(control, name=NAMES)])
def test_orders_of_a_kernel(toys, cost):
    """FIRST has the gradient of SECOND; the Hessian of EXPECTED is that of SECOND on average over the data."""
    regions = (toys[:1], None, None, None, np.full((1, 5), 50.0))
    rows = cost.rows({COUNTS: toys[:1], SHAPE_CONSTRAINT: None, SCALES: (None, None)}.get(cost, regions))
    driver = NumbaDriver(cost, rows)
    n = len(cost.names)
    theta = np.linspace(0.7, 1.4, n)

    def outputs(order, columns=None, aux=None):
        """Of a second evaluation, after which nothing of the first may be left."""
        out = np.zeros(2 + n + n * (n + 1) // 2 + memory_of(driver.kernel))
        given = driver._arrays[0] if columns is None else columns, driver._arrays[1], driver._arrays[2][0]
        for at, which in ((theta + 0.1, program.SECOND), (theta, order)):
            driver.kernel(at, *(given if aux is None else (*given[:2], aux)), 0, driver._arrays[3][1], which, out)
        return out[: 2 + n + n * (n + 1) // 2].copy()

    first, second, on_average = (outputs(order) for order in (program.FIRST, program.SECOND, program.EXPECTED))
    for other in (first, on_average):  # LLVM may order a sum otherwise
        np.testing.assert_allclose(other[: 2 + n], second[: 2 + n], rtol=1e-14)
    assert cost.cheap_gradient(rows)
    if cost is COUNTS:  # linear in the counts: their average is that of counts like the expectation
        with jax.enable_x64(True):
            asimov = outputs(program.SECOND, np.array(expected(*theta))[None])
        np.testing.assert_allclose(on_average[2 + n :], asimov[2 + n :], rtol=1e-12, atol=1e-12)
    if cost is SCALES:
        measured = driver._arrays[2][0].copy()
        measured[2] = 60.0 * theta[0]
        measured[3] = theta[1]
        np.testing.assert_allclose(on_average[2 + n :], outputs(program.SECOND, aux=measured)[2 + n :], rtol=1e-12)
    assert not np.allclose(first[2 + n :], second[2 + n :]) or cost is SHAPE_CONSTRAINT
