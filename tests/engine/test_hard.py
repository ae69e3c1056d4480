"""Hard problems from poor starts: solved wherever MIGRAD solves them, and where nothing can be found a status says why.

What is fitted has a solution in closed form, by scipy, or by MIGRAD from the same start.
"""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar, nnls

from engine import (
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    LeastSquares,
    NormalConstraint,
    Status,
    UnbinnedNLL,
    fit_batch,
)
from engine.arguments import limit_arrays
from engine.drivers import Settings
from engine.reference import IndependentCost, migrad
from kernels import expon, norm, truncexpon, truncnorm


def by_migrad(cost, data, starts, limits=None):
    """MIGRAD's fits from the same starts."""
    rows = cost.rows(data)
    lower, upper = limit_arrays(cost.names, limits)
    settings = Settings(lower, upper, np.ones(len(lower), bool), cost.errordef, 1e-13, 200)
    evaluate = IndependentCost(cost, rows)
    return [migrad(cost, rows, k, start, settings, evaluate) for k, start in enumerate(starts)]


# --- narrow valleys and bad scales: systems of equations as chi-squares ------------------------------------------


def rosenbrock(k, a, b):
    return jnp.where(k == 0, 10.0 * (b - a * a), a)


def brown(k, a, b):
    return jnp.where(k == 0, a, jnp.where(k == 1, b, a * b))


def beale(k, a, b):
    return a * (1.0 - b**k)


def powell(k, a, b):
    return jnp.where(k == 0, 1e4 * a * b, jnp.exp(-a) + jnp.exp(-b))


# name: (model, y, starts, solution), after More, Garbow & Hillstrom, ACM TOMS 7 (1981) 17-41, problems 1, 4, 5 and 3
SYSTEMS = {
    "valley": (rosenbrock, [0.0, 1.0], [(-1.2, 1.0), (-50.0, 80.0), (100.0, -300.0)], (1.0, 1.0)),
    "1e6 beside 1e-6": (brown, [1e6, 2e-6, 2.0], [(1.0, 1.0), (10.0, 100.0), (3e6, 1e-6)], (1e6, 2e-6)),
    "curved": (beale, [0.0, 1.5, 2.25, 2.625], [(1.0, 1.0), (1.0, 0.1), (5.0, 0.8)], (3.0, 0.5)),
    "1e-5 beside 9": (powell, [1.0, 1.0001], [(0.0, 1.0), (1e-4, 5.0), (1e-3, 20.0)], (1.0981593297e-05, 9.1061467399)),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_systems_of_equations(name):
    model, y, starts, solution = SYSTEMS[name]
    x = np.arange(len(y), dtype=float)
    result = fit_batch(LeastSquares(model), (x, np.tile(y, (3, 1)), 1.0), np.array(starts), backend="numba")
    assert result.valid.all(), result.status
    # the solution of `powell` is quoted to 11 digits
    np.testing.assert_allclose(result.values, [solution] * 3, rtol=1e-9)
    assert result.fval.max() < 1e-18 * max(abs(np.array(y))) ** 2


def test_yields_beside_small_rates_do_not_depend_on_units():
    edges = np.linspace(0.0, 4.0, 21)
    expected = 1e6 * np.diff(1 - np.exp(-edges))
    counts = np.random.default_rng(1).poisson(expected, (5, 20)).astype(float)

    def decays(edge, n, rate):
        return n * (1.0 - jnp.exp(-rate * edge))

    # in seconds, and in units of 1e-6 s: rates of 1e-6 beside yields of 1e6
    natural = fit_batch(ExtendedBinnedNLL(decays, edges), counts, {"n": 3e5, "rate": 3.0}, backend="numba")
    small = fit_batch(ExtendedBinnedNLL(decays, 1e6 * edges), counts, {"n": 3e5, "rate": 3e-6}, backend="numba")
    assert natural.valid.all() and small.valid.all()
    np.testing.assert_array_equal(small.nfev, natural.nfev)
    np.testing.assert_allclose(small.values * [1.0, 1e6], natural.values, rtol=1e-10)
    np.testing.assert_allclose(small.errors * [1.0, 1e6], natural.errors, rtol=1e-8)
    assert np.all(np.abs(natural.pulls({"n": 1e6, "rate": 1.0})) < 4)


# --- limits --------------------------------------------------------------------------------------------------


def test_least_squares_with_nonnegative_parameters():
    """Linear models within limits: scipy's active set method finds the same, with several parameters at their limit."""
    x = np.linspace(-1.0, 1.0, 15)
    design = np.stack([np.ones_like(x), x, x**2, x**3], axis=1)
    y = np.random.default_rng(2).normal(0.0, 1.0, (60, 15))
    cost = LeastSquares(lambda x, a, b, c, d: a + b * x + c * x**2 + d * x**3)
    starts = np.where(np.arange(60)[:, None] % 3 == 0, 0.0, np.array([[5.0, 0.0, 1e3, 1e-3]]))
    limits = dict.fromkeys("abcd", (0, None))
    result = fit_batch(cost, (x, y, 1.0), starts, limits=limits, backend="numba")
    assert result.valid.all()
    expected = np.array([nnls(design, each)[0] for each in y])
    np.testing.assert_allclose(result.values, expected, atol=1e-9)
    assert set(result.at_limit.sum(axis=1)) == {1, 2, 3, 4}
    np.testing.assert_array_equal(result.at_limit, expected == 0)
    assert np.all(result.values[result.at_limit] == 0)


def test_an_empty_toy_has_its_minimum_on_the_limit():
    cost = ExtendedUnbinnedNLL(lambda x, n, tau: (n, n * expon.pdf(x, 0.0, tau)))
    toys = [np.zeros(0), np.array([1.0, 2.0])]
    start = {"n": 5.0, "tau": 1.0}
    result = fit_batch(cost, toys, start, limits={"n": (0.5, None)}, fixed=["tau"], backend="numba")
    assert result.valid.all()
    np.testing.assert_array_equal(result.at_limit[:, 0], [True, False])
    np.testing.assert_allclose(result.values[:, 0], [0.5, 2.0], rtol=1e-12)
    # without the limit the cost of the empty toy is n, and has no minimum
    open_ = fit_batch(cost, toys[:1], start, fixed=["tau"], backend="numba")
    assert open_.status[0] == Status.UNBOUNDED and not open_.valid[0]


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_no_event_near_a_peak(backend):
    """The curvature of the yield is next to nothing there, and no length of the step onto its limit in its units."""
    cost = ExtendedUnbinnedNLL(
        lambda x, s, b, mu: (s + b, s * truncnorm.pdf(x, 0.0, 10.0, mu, 0.3) + b / 10.0)
    ) + NormalConstraint("mu", 5.0, 0.1)
    toys = [np.array([9.5]), np.array([0.3, 1.0, 2.0, 8.0, 9.0])]
    limits = {"s": (0, None), "b": (0, None)}
    start = {"s": 1.0, "b": 5.0, "mu": 5.0}
    result = fit_batch(cost, (toys, [5.0, 5.1]), start, limits=limits, backend=backend, retries=0)
    assert result.valid.all() and result.at_limit[:, 0].all()
    np.testing.assert_allclose(result.values, [[0.0, 1.0, 5.0], [0.0, 5.0, 5.1]], atol=1e-9)


# --- regions without a finite cost -------------------------------------------------------------------------------


def test_negative_densities_beside_the_start():
    """The slope of a line, whose density is negative at an event as soon as |slope| exceeds 1 / |x|."""
    toys = np.random.default_rng(3).uniform(-1.0, 1.0, (40, 30))
    toys[:20] = np.sqrt(np.abs(toys[:20]))  # slopes near 1: the minimum is near the edge, too
    cost = UnbinnedNLL(lambda x, slope: 0.5 * (1.0 + slope * x))
    edge = np.stack([-1 / toys.max(axis=1), -1 / toys.min(axis=1)], axis=1)
    edge[:20] = np.stack([-1 / toys[:20].max(axis=1), np.full(20, np.inf)], axis=1)

    def nll(slope, x):
        return -np.sum(np.log(0.5 * (1 + slope * x)))

    inside = np.maximum(edge[:, 0] + 1e-6, -5.0)
    with pytest.warns(UserWarning, match=r"is negative somewhere in .* at slope = "):
        result = fit_batch(cost, toys, inside[:, None], backend="numba")
    # where all events are positive there is no minimum: the likelihood grows with the slope
    assert np.all(result.status[:20] != Status.CONVERGED) and not result.valid[:20].any()
    assert result.valid[20:].all() and not result.rescued[20:].any()
    for k in range(20, 40):
        best = minimize_scalar(nll, bounds=edge[k], args=(toys[k],), method="bounded", options={"xatol": 1e-10})
        assert abs(result.values[k, 0] - best.x) < 1e-5 * result.errors[k, 0]


@pytest.mark.parametrize("factor", [1 / 30, 1 / 10, 1 / 3, 3.0, 30.0])
def test_start_where_the_density_underflows(factor, monkeypatch):
    """Beyond 38.6 widths a normal density is 0, and its logarithm is not finite."""
    monkeypatch.setattr("engine.rescue.migrad", None)  # a new start is enough
    toys = np.random.default_rng(4).normal(5.0, 0.5, (30, 200))
    start = np.stack([toys.mean(axis=1) + 0.3, 0.5 * np.full(30, factor)], axis=1)
    # of a choice the logarithm is not that of the exponential alone
    cost = UnbinnedNLL(lambda x, mu, sigma: jnp.where(x > 0.0, norm.pdf(x, mu, sigma), 0.0))
    result = fit_batch(cost, toys, start, limits={"sigma": (0, None)}, backend="numba")
    assert result.valid.all()
    assert result.rescued.any() == (factor <= 0.1)
    np.testing.assert_allclose(result.values, np.stack([toys.mean(axis=1), toys.std(axis=1)], axis=1), rtol=1e-9)


def spectrum(x, ns, nb, mu, sigma, lam):
    return ns + nb, ns * truncnorm.pdf(x, 1.0, 9.0, mu, sigma) + nb * truncexpon.pdf(x, 1.0, 9.0, 0.0, lam)


POSITIVE = dict.fromkeys(("ns", "nb", "sigma", "lam"), (0, None))


SPECTRUM = ExtendedUnbinnedNLL(spectrum)


def spectra(rng, n_signal, n_background):
    """A toy for each pair of numbers of events."""
    toys = []
    for ns, nb in zip(n_signal, n_background, strict=True):
        tail = rng.exponential(4.0, 4000)
        toys.append(np.concatenate([rng.normal(5.0, 0.5, ns), tail[(tail > 1) & (tail < 9)][:nb]]))
    return toys


def test_poor_starts_of_a_spectrum():
    """Every parameter wrong by up to a factor of 3 (mu by 1); compared with MIGRAD from there and from the truth."""
    rng = np.random.default_rng(5)
    truth = np.array([150.0, 450.0, 5.0, 0.5, 4.0])
    toys = spectra(rng, rng.poisson(150, 100), rng.poisson(450, 100))
    starts = truth * np.exp(rng.uniform(-np.log(3.0), np.log(3.0), (100, 5)))
    starts[:, 2] = 5.0 + rng.uniform(-1.0, 1.0, 100)
    result = fit_batch(SPECTRUM, toys, starts, limits=POSITIVE, backend="numba")
    near = fit_batch(SPECTRUM, toys, truth, limits=POSITIVE, backend="numba")
    assert near.valid.all() and not near.rescued.any()
    assert result.valid.all()
    same = np.abs(result.values - near.values).max(axis=1) < 1e-6
    assert same.sum() >= 95
    for k, one in enumerate(by_migrad(SPECTRUM, toys[:10], starts[:10], POSITIVE)):
        assert not one.valid or result.fval[k] < one.fval + 1e-6, k


def test_a_small_peak_is_not_lost_on_the_way():
    """Limits are where other minima are: no events in the peak, or a peak of one event. MIGRAD does not go there."""
    rng = np.random.default_rng(11)
    truth = np.array([100.0, 1000.0, 5.0, 0.5, 4.0])
    toys = spectra(rng, [100] * 200, [1000] * 200)
    near = fit_batch(SPECTRUM, toys, truth, limits=POSITIVE, backend="numba")
    for factors, most in (([1.5, 1.5, 1, 1, 1], 0), ([3, 3, 1, 1, 1], 4), ([1, 1, 1.1, 1, 1], 0)):
        result = fit_batch(SPECTRUM, toys, truth * factors, limits=POSITIVE, backend="numba")
        assert result.valid.all() and np.sum(result.fval > near.fval + 0.01) <= most


# --- saddles, flat directions, no minimum -------------------------------------------------------------------


def mixture(x, f, a, b, sa, sb):
    return f * norm.pdf(x, a, sa) + (1.0 - f) * norm.pdf(x, b, sb)


MIXTURE = UnbinnedNLL(mixture)
MIXTURE_LIMITS = {"f": (0, 1), "sa": (0.05, None), "sb": (0.05, None)}


@pytest.fixture(scope="module")
def two_groups():
    rng = np.random.default_rng(6)
    return np.concatenate([rng.normal(1.0, 0.3, (60, 100)), rng.normal(4.0, 1.0, (60, 150))], axis=1)


def test_saddle_start(two_groups):
    """Two equal components: swapping them changes nothing, so the gradient shows no way apart."""
    equal = {"f": 0.5, "a": 2.8, "b": 2.8, "sa": 1.6, "sb": 1.6}
    result = fit_batch(MIXTURE, two_groups, equal, limits=MIXTURE_LIMITS, backend="numba")
    near = fit_batch(MIXTURE, two_groups, [0.4, 1.0, 4.0, 0.3, 1.0], limits=MIXTURE_LIMITS, backend="numba")
    # a way down that takes f onto a limit leaves one component, whose other is flat: a retry finds both
    assert near.valid.all() and result.valid.all() and result.rescued.mean() < 0.5
    # up to the names of the two; few of the ways down end in another minimum
    assert np.mean(np.abs(result.fval - near.fval) < 1e-7) > 0.95


def test_far_starts_of_a_mixture(two_groups):
    rng = np.random.default_rng(7)
    starts = np.array([0.4, 1.0, 4.0, 0.3, 1.0]) * np.exp(rng.uniform(-np.log(3.0), np.log(3.0), (60, 5)))
    starts[:, 0] = starts[:, 0].clip(0, 1)
    result = fit_batch(MIXTURE, two_groups, starts, limits=MIXTURE_LIMITS, backend="numba")
    first = fit_batch(MIXTURE, two_groups, starts, limits=MIXTURE_LIMITS, backend="numba", retries=0)
    assert result.valid.mean() > 0.97 and first.valid.mean() < 0.95
    np.testing.assert_array_equal(result.rescued, result.valid & ~first.valid)
    assert np.all(result.nfev[~first.valid] > first.nfev[~first.valid])
    for k, one in enumerate(by_migrad(MIXTURE, two_groups[:12], starts[:12], MIXTURE_LIMITS)):
        assert not one.valid or result.fval[k] < one.fval + 1e-6, k


def test_where_there_is_no_minimum_the_status_says_which_way():
    x = np.linspace(0.0, 3.0, 12)
    y = np.random.default_rng(8).normal(2.0, 0.1, (3, 12))
    flat = fit_batch(LeastSquares(lambda x, a, b: a + b), (x, y, 0.1), {"a": 0, "b": 0}, backend="numba")
    assert np.all(flat.status == Status.HESSIAN_NOT_POSDEF)
    # the valley floor was found: the sum of the two is the mean
    np.testing.assert_allclose(flat.values.sum(axis=1), y.mean(axis=1), rtol=1e-9)
    falling = fit_batch(
        LeastSquares(lambda x, a, b: jnp.exp(a) + b), (x, y - 2.0, 0.1), {"a": 0, "b": 1}, backend="numba"
    )
    for result in (flat, falling):
        assert not result.valid.any() and not result.rescued.any() and not result.has_posdef_covar.any()
        assert np.isfinite(result.values).all()
    never = fit_batch(LeastSquares(lambda x, a: jnp.log(-a * a) + x), (x, y, 0.1), {"a": 1.0}, backend="numba")
    assert np.all(never.status == Status.NONFINITE)
    endless = fit_batch(UnbinnedNLL(lambda x, a: a * a * x), y, {"a": 1.0}, backend="numba")
    assert not endless.valid.any() and np.all(endless.status == Status.UNBOUNDED), endless.status


# --- events where a density is too small for a float --------------------------------------------------------------


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("scale, shift", [(1.0, 1e6), (1e9, 0.0), (1e-9, 0.0)])
def test_a_peak_far_from_its_start(scale, shift, backend):
    """The logarithm of an exponential is its exponent, also where the exponential is 0."""
    cost = UnbinnedNLL(norm.pdf, name=["mu", "sigma"])
    toys = np.random.default_rng(4).normal(0.3, 1.0, (20, 100)) * scale + shift
    start = {"mu": 0.0, "sigma": 1.0}
    result = fit_batch(cost, toys, start, limits={"sigma": (0, None)}, backend=backend)
    assert result.valid.all() and not result.rescued.any()
    np.testing.assert_allclose(result.values[:, 0], toys.mean(axis=1), rtol=1e-7)
    np.testing.assert_allclose(result.values[:, 1], toys.std(axis=1), rtol=1e-6)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_a_negative_density_has_no_logarithm(backend):
    cost = UnbinnedNLL(lambda x, mu, f: f * jnp.exp(-0.5 * (x - mu) ** 2))
    result = fit_batch(cost, np.zeros((2, 5)), {"mu": 0.1, "f": -1.0}, fixed=["f"], backend=backend, retries=0)
    assert np.all(result.status == Status.NONFINITE)
