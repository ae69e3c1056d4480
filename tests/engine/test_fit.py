"""`fit_batch`: the true minimum, the same answer everywhere, and a fate for every toy."""

import warnings

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
from iminuit import Minuit
from scipy import special, stats

from engine import ExtendedUnbinnedNLL, LeastSquares, PoissonNLL, Ragged, Status, UnbinnedNLL, fit_batch
from engine.drivers import Settings
from engine.reference import validate
from kernels import expon
from tests.engine.normal_fits import BACKENDS, START, assert_close, assert_identical, closed_form, fit, normal_toys
from toys import generate
from toys.models import XMAX, XMIN, peak

# --- closed forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [False, True])
def test_lifetime_is_the_mean(log):
    rng = np.random.default_rng(4)
    toys = [rng.exponential(2.2, n) for n in rng.integers(5, 400, 64)]

    def model(t, tau):
        return expon.logpdf(t, 0.0, tau) if log else expon.pdf(t, 0.0, tau)

    result = fit_batch(UnbinnedNLL(model, log=log), toys, {"tau": 1.0}, limits={"tau": (0, None)})
    assert result.valid.all() and result.errordef == 0.5
    mean, n = np.array([x.mean() for x in toys]), np.array([len(x) for x in toys])
    # the last Newton step leaves an error of second order in sqrt(2 EDM) = 3e-7
    np.testing.assert_allclose(result.values[:, 0], mean, rtol=1e-9)
    np.testing.assert_allclose(result.errors[:, 0], mean / np.sqrt(n), rtol=1e-5)
    np.testing.assert_allclose(result.fval, n * (np.log(mean) + 1), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extended_normal_is_count_mean_and_standard_deviation(backend):
    toys = normal_toys()
    result = fit(toys, backend=backend)
    assert result.valid.all() and result.has_posdef_covar.all() and not result.rescued.any()
    assert result.backend == backend and result.device == "cpu" and result.names == ("n", "mu", "sigma")
    expected = closed_form(toys)
    n, _, sigma = expected.T
    np.testing.assert_allclose(result.values, expected, rtol=1e-9, atol=1e-9)
    errors = np.stack([np.sqrt(n), sigma / np.sqrt(n), sigma / np.sqrt(2 * n)], axis=1)
    # the Hessian is that of one step before: wrong by sqrt(2 EDM) at most
    np.testing.assert_allclose(result.errors, errors, rtol=1e-5)
    np.testing.assert_allclose(result.covariance, errors[:, :, None] ** 2 * np.eye(3), atol=1e-5 * n.max())
    fval = [len(x) - len(x) * np.log(len(x)) - stats.norm.logpdf(x, x.mean(), x.std()).sum() for x in toys]
    np.testing.assert_allclose(result.fval, fval, rtol=1e-12, atol=1e-11)
    assert np.all(result.edm <= 0.5e-13 + 8 * np.finfo(float).eps * 400)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, 10.0, -5.0])
def test_theta_hat_moves_with_the_data(shift, scale, backend):
    toys = normal_toys(8)
    here = fit(toys, backend=backend)
    start = {"n": 30.0, "mu": 0.3 * scale + shift, "sigma": 1.2 * scale}
    there = fit([scale * x + shift for x in toys], start, backend=backend)
    np.testing.assert_array_equal(there.nfev, here.nfev)
    moved = here.values * [1, scale, scale] + [0, shift, 0]
    # scale * x + shift itself is rounded to eps * shift
    assert np.max(np.abs(there.values - moved) / there.errors) < 1e-9
    np.testing.assert_allclose(there.errors, here.errors * [1, scale, scale], rtol=1e-8)


# --- the standard fit of particle physics against references -----------------------------------------------

N_TOYS = 80
N_SLOW = 40  # of them, by JAX and by MIGRAD


@pytest.fixture(scope="module")
def study():
    return peak()


@pytest.fixture(scope="module")
def toys(study):
    return generate(study, N_TOYS, seed=5)


@pytest.fixture(scope="module")
def by_numba(study, toys):
    return fit(toys, study.start, cost=study.cost, limits=study.limits)


@pytest.fixture(scope="module")
def by_jax(study, toys):
    return fit(toys[:N_SLOW], study.start, cost=study.cost, limits=study.limits, backend="jax")


@pytest.fixture(scope="module")
def by_migrad(study, toys, by_numba):
    lower, upper = np.array([0.0, 0.0, -np.inf, 0.0, 0.0]), np.full(5, np.inf)
    settings = Settings(lower, upper, np.ones(5, dtype=bool), 0.5, 1e-13, 200)
    return validate(study.cost, study.cost.rows(toys), by_numba, np.arange(N_SLOW), study.theta, settings)


@pytest.mark.parametrize("backend", BACKENDS)
def test_minimum_is_that_of_migrad(backend, by_migrad, request):
    result = request.getfixturevalue(f"by_{backend}")[:N_SLOW]
    assert result.valid.all()
    assert by_migrad.valid.all()
    difference = np.abs(result.values - by_migrad.values) / result.errors
    assert difference.max() < 1e-3
    assert np.all(result.fval < by_migrad.fval + 1e-7)
    # two independent Hessians, MIGRAD's by finite differences
    np.testing.assert_allclose(result.errors, by_migrad.errors, rtol=0.01)


def spectrum_gradient(theta, x):
    """Gradient of the extended NLL of the peak over an exponential, by hand."""
    ns, nb, mu, sigma, lam = theta
    density = lambda z: np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi)  # noqa: E731
    z, low, high = ((edge - mu) / sigma for edge in (x, XMIN, XMAX))
    inside = special.ndtr(high) - special.ndtr(low)
    inside_mu = -(density(high) - density(low)) / sigma
    inside_sigma = -(high * density(high) - low * density(low)) / sigma
    signal = density(z) / sigma / inside
    signal_mu = signal * (z / sigma - inside_mu / inside)
    signal_sigma = signal * ((z * z - 1) / sigma - inside_sigma / inside)
    at_low, at_high = np.exp(-XMIN / lam), np.exp(-XMAX / lam)
    background = np.exp(-x / lam) / lam / (at_low - at_high)
    change = (XMIN * at_low - XMAX * at_high) / lam**2 / (at_low - at_high)
    background_lam = background * (x / lam**2 - 1 / lam - change)
    total = ns * signal + nb * background
    return np.array(
        [
            1 - np.sum(signal / total),
            1 - np.sum(background / total),
            -np.sum(ns * signal_mu / total),
            -np.sum(ns * signal_sigma / total),
            -np.sum(nb * background_lam / total),
        ]
    )


def test_errors_are_those_of_an_independent_hessian(toys, by_numba):
    for k in range(0, N_TOYS, 4):
        theta, errors = by_numba.values[k], by_numba.errors[k]
        # the gradient vanishes at the minimum: in units of 1 / error, below 1e-7 (rounding of 15 500 terms)
        assert np.max(np.abs(spectrum_gradient(theta, toys[k]) * errors)) < 1e-7
        steps = 1e-3 * np.diag(errors)
        columns = [
            (spectrum_gradient(theta + step, toys[k]) - spectrum_gradient(theta - step, toys[k])) / 2e-3 / error
            for step, error in zip(steps, errors, strict=True)
        ]
        covariance = np.linalg.inv(np.array(columns))
        # relative error of the difference: (1e-3)^2 times third derivatives, far below 1e-3
        np.testing.assert_allclose(errors, np.sqrt(np.diagonal(covariance)), rtol=1e-3)
        size = np.sqrt(np.outer(np.diagonal(covariance), np.diagonal(covariance)))
        np.testing.assert_array_less(np.abs(by_numba.covariance[k] - covariance) / size, 1e-3)


def test_backends_agree(by_numba, by_jax):
    by_numba = by_numba[:N_SLOW]
    assert_close(by_numba, by_jax, 1e-6)
    assert by_numba.valid.all()
    # 15 500 terms of size 5, each to eps
    np.testing.assert_allclose(by_jax.fval, by_numba.fval, rtol=1e-13)
    np.testing.assert_allclose(by_jax.errors, by_numba.errors, rtol=1e-9)


def test_backends_throw_equal_toys(study, toys):
    theirs = generate(study, 24, seed=5, backend="jax")
    np.testing.assert_array_equal(theirs.offsets, toys[:24].offsets)
    assert np.max(np.abs(theirs.values - toys[:24].values)) < 1e-12 * (XMAX - XMIN)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_numba_is_bit_identical_for_any_batch_size(batch_size, study, toys, by_numba):
    again = fit(toys, study.start, cost=study.cost, limits=study.limits, batch_size=batch_size)
    assert_identical(again, by_numba)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_numba_is_bit_identical_for_any_number_of_threads(n_threads, study, toys, by_numba):
    before = numba.get_num_threads()
    if n_threads > before:
        pytest.skip(f"numba has {before} threads here")
    numba.set_num_threads(n_threads)
    try:
        assert_identical(fit(toys, study.start, cost=study.cost, limits=study.limits), by_numba)
    finally:
        numba.set_num_threads(before)


def test_numba_is_bit_identical_for_any_order_of_the_toys(study, toys, by_numba):
    order = np.random.default_rng(6).permutation(N_TOYS)[:60]
    again = fit([toys[k] for k in order], study.start, cost=study.cost, limits=study.limits)
    assert_identical(again, by_numba[order])
    assert_identical(fit(toys[30:41], study.start, cost=study.cost, limits=study.limits), by_numba[30:41])


def test_no_signal_ends_at_zero(study, toys):
    """Background alone: half of the toys want ns < 0 and end at 0 exactly."""
    none = study.at({"ns": 0.0})
    toys = generate(none, 12, seed=8)
    options = {"cost": study.cost, "limits": study.limits, "fixed": ["mu", "sigma"]}
    result = fit(toys, study.start | {"ns": 50.0}, **options)
    assert result.valid.all()
    at_zero = result.at_limit[:, 0]
    assert 0 < at_zero.sum() < 12
    assert np.all(result.values[at_zero, 0] == 0.0) and np.all(result.values[~at_zero, 0] > 0.0)
    # without the limit these have a negative yield, the others do not move
    free = fit(toys, study.start | {"ns": 50.0}, **(options | {"limits": None}))
    np.testing.assert_array_equal(free.values[:, 0] < 0, at_zero)
    assert_close(free[~at_zero], result[~at_zero], 1e-9)


# --- one toy does not see another ---------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_toys_together_agree_with_toys_alone(backend):
    toys = normal_toys()
    together = fit(toys, backend=backend)
    alone = [fit([x], backend=backend) for x in (toys if backend == "numba" else toys[:12])]
    for k, one in enumerate(alone):
        if backend == "numba":
            assert_identical(one, together[k : k + 1])
        else:
            assert_close(one, together[k : k + 1], 1e-9)
            np.testing.assert_array_equal(one.nfev, together.nfev[k : k + 1])


def test_jax_is_independent_of_the_batch_size():
    # 2 lanes are only refilled; 32 become 8 and 2 around the slow toys, which start far away
    toys = normal_toys(50)
    start = np.tile([30.0, 0.3, 1.2], (50, 1))
    slow = [33, 40, 41, 49]
    start[slow] = [[1e-3, 20.0, 2.0], [3.0, -10.0, 0.5], [1e4, 5.0, 40.0], [1e-4, 0.1, 300.0]]
    one, other = (fit(toys, start, backend="jax", batch_size=size) for size in (2, 32))
    assert one.valid.all() and one.nfev[slow].min() > 10 > np.delete(one.nfev, slow).max()
    assert_close(one, other, 1e-9)
    np.testing.assert_array_equal(one.nfev, other.nfev)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_toy_is_its_own_affair(backend, study, toys):
    clean = [toys[k][::10] for k in range(8)]
    spoilt = list(clean)
    spoilt[2] = np.where(np.arange(len(clean[2])) == 100, np.nan, clean[2])
    spoilt[4] = np.append(clean[4], 0.5)  # below the range of the model, where the density is 0
    spoilt[5] = np.array([])
    spoilt[7] = np.append(clean[7], np.inf)
    options = {"cost": study.cost, "limits": study.limits, "backend": backend}
    start = study.theta * [0.1, 0.1, 1, 1, 1] * np.random.default_rng(13).uniform(0.9, 1.1, (8, 5))
    before, after = fit(clean, start, **options), fit(spoilt, start, **options)
    rest = np.array([0, 1, 3, 6])
    assert before.valid.all()
    if backend == "numba":
        assert_identical(after[rest], before[rest])
    else:
        assert_close(after[rest], before[rest], 1e-9)
    assert after.status[2] == after.status[7] == Status.BAD_DATA
    assert after.status[4] == Status.NONFINITE
    # no event, no information on the shape: yields at 0, the rest flat
    assert after.status[5] in (Status.HESSIAN_NOT_POSDEF, Status.UNBOUNDED, Status.STALLED)
    bad = np.setdiff1d(np.arange(8), rest)
    assert not after.valid[bad].any() and not after.rescued.any()
    assert np.isnan(after.values[[2, 7]]).all() and np.isnan(after.covariance[bad]).all()
    assert len(after) == 8 and after.summary().failed.total() == 4


def test_no_toys():
    for backend in BACKENDS:
        result = fit([], backend=backend)
        assert len(result) == 0 and result.values.shape == (0, 3)


def test_all_toys_bad():
    for backend in BACKENDS:
        with pytest.warns(UserWarning, match="no toy can be fitted: toy 0 has nan in x0, row 1"):
            result = fit([[1.0, np.nan], [np.inf]], backend=backend)
        np.testing.assert_array_equal(result.status, Status.BAD_DATA)


@pytest.mark.parametrize(
    "cost, data, told",
    [
        (PoissonNLL(lambda a: a * jnp.ones(2)), [[1.0, -2.0]], "toy 0 has -2 in n, row 1"),
        (LeastSquares(lambda x, a: a * x), ([1.0, 2.0], [[1.0, 2.0]], [[1.0, 0.0]]), "toy 0 has 0 in yerror, row 1"),
    ],
)
def test_what_is_wrong_with_toys_that_are_all_bad_is_told(cost, data, told):
    with pytest.warns(UserWarning, match=told):
        fit_batch(cost, data, {"a": 1.0})


def test_what_jax_cannot_differentiate_is_told():
    model = lambda x, k: x ** (k - 1) * jnp.exp(-x) / jax.scipy.special.gammainc(k, 20.0)  # noqa: E731
    with pytest.raises(TypeError, match=r"JAX cannot differentiate or compile the model \(Differentiation rule for"):
        fit_batch(UnbinnedNLL(model), np.ones((1, 3)), {"k": 1.5}, backend="jax")
    with pytest.raises(TypeError, match="must be real numbers, got complex128"):
        fit_batch(PoissonNLL(lambda a: a * np.array([1.0 + 1j, 2.0])), [[3.0, 4.0]], {"a": 1.0})


# --- what is told -----------------------------------------------------------------------------------------


def test_a_kink_is_named_once_before_the_fit():
    toys = np.random.default_rng(4).laplace(0.3, 1.0, (3, 200))
    cost = UnbinnedNLL(lambda x, mu, b: jnp.exp(-jnp.abs(x - mu) / b) / (2 * b))
    start, limits = {"mu": 0.25, "b": 1.1}, {"b": (0.1, None)}
    with pytest.warns(UserWarning, match="kink") as told:
        fit_batch(cost, toys, start, limits=limits, retries=0)
    assert len(told) == 1 and "'mu'" in str(told[0].message)
    fit_batch(cost, toys, start, limits=limits, retries=0)  # a warning would be an error here
    # the width alone is regular
    fit_batch(cost, toys, start, limits=limits, fixed=["mu"])


def test_a_density_above_its_integral_is_named():
    toys = np.random.default_rng(5).uniform(1.0, 9.0, (3, 500))
    cost = ExtendedUnbinnedNLL(lambda x, n, tilt: (n, n * (1 + tilt * (x - 5.0))))  # it lacks the factor 1 / 8
    with pytest.warns(UserWarning, match="integral"):
        fit_batch(cost, toys, {"n": 500.0, "tilt": 0.0}, retries=0)


# --- models without a numba form ---------------------------------------------------------------------------


def series(x, tau):
    """An exponential whose normalisation needs a loop of unknown length."""
    _, rate = jax.lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1]), (0, 1.0 / tau))
    return rate * jnp.exp(-x * rate)


def test_untranslatable_model():
    rng = np.random.default_rng(10)
    toys = rng.exponential(2.0, (6, 40))
    cost = UnbinnedNLL(series)
    with pytest.warns(UserWarning, match=r"the model has no numba form \(.*while.*\); fitting with backend 'jax'"):
        result = fit_batch(cost, toys, {"tau": 1.0}, limits={"tau": (0, None)})
    assert result.backend == "jax" and result.valid.all()
    np.testing.assert_allclose(result.values[:, 0], toys.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(result.errors[:, 0], toys.mean(axis=1) / np.sqrt(40), rtol=1e-5)
    assert result.problem.driver.lanes == 16  # as few as have 512 events together
    with pytest.raises(
        ValueError, match=r"the model has no numba form \(.*while.*\): rewrite .* or pass backend='jax'$"
    ):
        fit_batch(cost, toys, {"tau": 1.0}, backend="numba")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # asked for, so nothing to say
        fit_batch(cost, toys, {"tau": 1.0}, limits={"tau": (0, None)}, backend="jax")


def test_minuit_finds_the_same_on_one_small_toy():
    # a user's own way to fit one toy, with nothing of ours but the result
    x = normal_toys(1)[0]
    minuit = Minuit(lambda n, mu, sigma: n - np.sum(np.log(n) + stats.norm.logpdf(x, mu, sigma)), **START)
    minuit.errordef = Minuit.LIKELIHOOD
    minuit.limits["n"] = minuit.limits["sigma"] = (0, None)
    minuit.strategy, minuit.tol = 2, 1e-6
    minuit.migrad()
    result = fit(Ragged(x, [0, len(x)]))[0]
    # without a gradient MIGRAD ends within about 1e-4 sigma
    np.testing.assert_array_less(np.abs(np.array(minuit.values) - result.values), 1e-3 * result.errors)
    np.testing.assert_allclose(result.errors, np.sqrt(np.diagonal(minuit.covariance)), rtol=0.01)
    np.testing.assert_allclose(result.fval, minuit.fval, atol=1e-7)
