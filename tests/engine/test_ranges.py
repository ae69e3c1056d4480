"""Fit ranges: windows and sidebands, against models whose integral is known in closed form."""

import jax.numpy as jnp
import numpy as np
import pytest

from engine import ExtendedUnbinnedNLL, NormalConstraint, Ragged, Status, UnbinnedNLL, Weighted, fit_batch

WINDOWS = [(6.0, 9.0), (1.0, 4.0)]  # in no order, with a gap


def decay(x, lam):
    return 7.0 * jnp.exp(-x / lam)


def decay_count(x, n, lam):
    return n * jnp.exp(-x / lam) / lam


def mass(lam):
    """Integral of exp(-x / lam) / lam over the windows."""
    return sum(jnp.exp(-low / lam) - jnp.exp(-high / lam) for low, high in WINDOWS)


def normalised(x, lam):
    return jnp.exp(-x / lam) / lam / mass(lam)


def normalised_count(x, n, lam):
    return n * mass(lam), n * jnp.exp(-x / lam) / lam


@pytest.fixture(scope="module")
def toys():
    rng = np.random.default_rng(11)
    return [rng.exponential(4.0, n) for n in (30, 300, 1000, 2000, 500)]


def cut(toys):
    return [x[((x >= 1) & (x <= 4)) | ((x >= 6) & (x <= 9))] for x in toys]


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_sidebands_equal_the_closed_form(toys, backend):
    ranged = fit_batch(UnbinnedNLL(decay, fit_range=WINDOWS), toys, {"lam": 3}, backend=backend)
    closed = fit_batch(UnbinnedNLL(normalised), cut(toys), {"lam": 3})
    assert ranged.valid.all()
    np.testing.assert_allclose(ranged.values, closed.values, rtol=1e-10)
    np.testing.assert_allclose(ranged.errors, closed.errors, rtol=1e-8)
    # densities that differ by the factor 7 / (1 / lam): only their integral makes them equal
    np.testing.assert_allclose(ranged.fval, closed.fval, rtol=1e-10)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_extended_sidebands_equal_the_closed_form(toys, backend):
    start = {"n": 500, "lam": 3}
    ranged = fit_batch(ExtendedUnbinnedNLL(decay_count, fit_range=WINDOWS), toys, start, backend=backend)
    closed = fit_batch(ExtendedUnbinnedNLL(normalised_count), cut(toys), start)
    assert ranged.valid.all()
    np.testing.assert_allclose(ranged.values, closed.values, rtol=1e-9)
    np.testing.assert_allclose(ranged.covariance, closed.covariance, rtol=1e-7)
    np.testing.assert_allclose(ranged.fval, closed.fval, rtol=1e-10)


def test_integral_of_the_whole_range_is_not_used(toys):
    pair = lambda x, n, lam: (n, decay_count(x, n, lam))  # noqa: E731
    start = {"n": 500, "lam": 3}
    bare = fit_batch(ExtendedUnbinnedNLL(decay_count, fit_range=WINDOWS), toys, start)
    both = fit_batch(ExtendedUnbinnedNLL(pair, fit_range=WINDOWS), toys, start)
    np.testing.assert_array_equal(bare.values, both.values)


def test_logarithm_of_the_density(toys):
    log_decay = lambda x, lam: -x / lam  # noqa: E731
    logged = fit_batch(UnbinnedNLL(log_decay, log=True, fit_range=WINDOWS), toys, {"lam": 3})
    plain = fit_batch(UnbinnedNLL(decay, fit_range=WINDOWS), toys, {"lam": 3})
    np.testing.assert_allclose(logged.values, plain.values, rtol=1e-10)


def test_in_a_sum_with_a_constraint_and_shared_parameters(toys):
    terms = [UnbinnedNLL(decay, fit_range=WINDOWS), UnbinnedNLL(normalised), NormalConstraint("lam", 3.5, 0.2)]
    same = [UnbinnedNLL(normalised), UnbinnedNLL(normalised), NormalConstraint("lam", 3.5, 0.2)]
    ranged = fit_batch(terms[0] + terms[1] + terms[2], (toys, cut(toys), None), {"lam": 3})
    closed = fit_batch(same[0] + same[1] + same[2], (cut(toys), cut(toys), None), {"lam": 3})
    assert ranged.valid.all()
    np.testing.assert_allclose(ranged.values, closed.values, rtol=1e-10)
    np.testing.assert_allclose(ranged.fval, closed.fval, rtol=1e-10)


def test_events_outside_do_not_count_and_nan_does():
    toys = [np.array([1.5, 2.0, 7.0, 5.0, np.inf, -3.0]), np.array([1.5, 2.0, 7.0]), np.array([1.5, np.nan, 7.0])]
    result = fit_batch(UnbinnedNLL(decay, fit_range=WINDOWS), toys, {"lam": 3})
    np.testing.assert_array_equal(result.values[0], result.values[1])
    assert result.status[2] == Status.BAD_DATA


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e17])
def test_weights_of_one_toy_are_its_own_affair(toys, wrong):
    rng, cost = np.random.default_rng(3), UnbinnedNLL(decay, fit_range=WINDOWS)
    events = [toys[0], toys[1], np.zeros(0), toys[2], np.array([5.0])]  # none of the last is in the range
    weights = [rng.uniform(-0.3, 2.0, len(x)) for x in events]
    weights[0][events[0] < 4] = wrong
    together = cost.rows(Weighted(events, weights)).parts[1].aux[1:, 0]
    alone = [cost.rows(Weighted([x], [w])).parts[1].aux[0, 0] for x, w in zip(events[1:], weights[1:], strict=True)]
    assert together.tolist() == alone
    inside = np.concatenate(cut(events[3:4]))
    assert together[2] == pytest.approx(weights[3][np.isin(events[3], inside)].sum(), rel=1e-13)


def test_toy_without_events_in_the_range_has_no_minimum():
    result = fit_batch(UnbinnedNLL(decay, fit_range=(1, 4)), [np.array([5.0, 6.0]), np.array([1.5, 2.0])], {"lam": 3})
    assert result.status[0] == Status.HESSIAN_NOT_POSDEF
    assert result.valid[1]


def peak(x, f, sigma):
    gauss = jnp.exp(-0.5 * ((x - 5.0) / sigma) ** 2) / sigma / np.sqrt(2 * np.pi)
    return f * gauss + (1 - f) / 10.0


def test_narrow_peak_is_said_to_need_more_nodes():
    rng = np.random.default_rng(2)
    sigma = 0.002
    toys = [np.concatenate([rng.normal(5, sigma, 100), rng.uniform(0, 10, 400)])]
    start = {"f": 0.2, "sigma": sigma}
    with pytest.warns(UserWarning, match="pass n_nodes=8192 instead of 256"):
        fit_batch(UnbinnedNLL(peak, fit_range=(0, 10)), toys, start)
    fine = fit_batch(UnbinnedNLL(peak, fit_range=(0, 10), n_nodes=8192), toys, start)
    plain = fit_batch(UnbinnedNLL(peak), toys, start)
    np.testing.assert_allclose(fine.values, plain.values, rtol=1e-6)


def test_a_pole_needs_another_observable():
    toys, power = [np.random.default_rng(2).random(50) ** 20], lambda x, a: (x + 1e-12) ** a
    with pytest.warns(UserWarning, match="let two windows meet there, or take another observable, such as log x"):
        fit_batch(UnbinnedNLL(power, fit_range=(0, 1)), toys, {"a": -0.95}, retries=0)


def peak_count(x, n, f, sigma):
    return n, n * peak(x, f, sigma)


@pytest.mark.parametrize(("cost", "model"), [(UnbinnedNLL, peak), (ExtendedUnbinnedNLL, peak_count)])
def test_a_fit_that_ends_at_a_narrow_peak_is_said_to_need_more_nodes(cost, model):
    """The start has enough of them; what is compared is the effect on values and errors, not that on the integral."""
    rng = np.random.default_rng(2)
    start = {"f": 0.2, "sigma": 0.3} | ({"n": 500} if model is peak_count else {})
    limits = {"f": (0, 1), "sigma": (1e-4, None)}

    def difference(sigma, n_nodes):
        toys = [np.concatenate([rng.normal(5, sigma, 100), rng.uniform(0, 10, 400)]) for _ in range(5)]
        ranged = cost(model, fit_range=(0, 10), n_nodes=n_nodes)
        found = fit_batch(ranged + NormalConstraint("f", 0.2, 1.0), (toys, None), start, limits=limits)
        exact = fit_batch(cost(model) + NormalConstraint("f", 0.2, 1.0), (toys, None), start, limits=limits)
        assert found.valid.all() and exact.valid.all()
        apart = np.abs(found.values - exact.values) / exact.errors
        return max(apart.max(), np.abs(found.errors / exact.errors - 1.0).max())

    assert difference(0.3, 256) < 1e-6  # no warning, which would be an error
    assert difference(0.05, 256) < 1e-3
    with pytest.warns(UserWarning, match=r"too few nodes: with 512 in place of 256 .* one error of 'sigma'") as caught:
        assert difference(0.01, 256) > 0.1
    assert len(caught) == 1
    assert difference(0.01, 4096) < 1e-3


@pytest.mark.parametrize(
    "fit_range", [(4, 1), (1, 1), (0, np.inf), [(1, 3), (2, 4)], 3.0, [(1, 2, 3)], [], "here", (np.nan, 1), (0, None)]
)
def test_wrong_ranges(fit_range):
    with pytest.raises((ValueError, TypeError), match="fit_range must"):
        UnbinnedNLL(decay, fit_range=fit_range)


def test_wrong_numbers_of_nodes_and_observables():
    with pytest.raises(ValueError, match="n_nodes must be a whole number of at least 32, got 20"):
        UnbinnedNLL(decay, fit_range=WINDOWS, n_nodes=20)
    with pytest.raises(ValueError, match="n_nodes must be at most"):
        UnbinnedNLL(decay, fit_range=WINDOWS, n_nodes=10**30)
    cost = UnbinnedNLL(decay, fit_range=WINDOWS)
    with pytest.raises(ValueError, match="for one observable, but the events have 2"):
        cost.rows(Ragged(np.ones((2, 4)), np.array([0, 4])))


def test_a_density_with_which_no_fit_can_begin():
    with pytest.warns(UserWarning, match="the density of the model 'decay' has the integral 0, which must be positive"):
        fit_batch(UnbinnedNLL(decay, fit_range=WINDOWS), [np.full(5, 2.0)], {"lam": 0.0}, retries=0)
