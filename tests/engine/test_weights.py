"""Weighted events and histograms: estimates and their covariance in closed form, and pulls."""

import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit, cost

from engine import (
    BinnedNLL,
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    NormalConstraint,
    PoissonNLL,
    Ragged,
    Status,
    UnbinnedNLL,
    Weighted,
    fit_batch,
)
from engine.data import counts_of
from engine.fit import refit
from engine.sandwich import sandwich
from kernels import norm

# a fit ends within 3e-7 of an error of its minimum, where the Hessian is another one
RTOL = 1e-6


def decay(x, lam):
    return jnp.exp(-x / lam) / lam


def decay_count(x, n, lam):
    return n, n * decay(x, lam)


@pytest.fixture(scope="module")
def toys():
    rng = np.random.default_rng(5)
    x = [rng.exponential(4.0, n) for n in (40, 300, 1000)]
    return x, [rng.uniform(-0.3, 2.0, len(each)) for each in x]


def closed_form(x, w):
    lam = np.array([np.sum(w * x) / np.sum(w) for x, w in zip(x, w, strict=True)])
    variance = [np.sum(w**2 * (x - lam) ** 2) / np.sum(w) ** 2 for x, w, lam in zip(x, w, lam, strict=True)]
    return lam, np.sqrt(variance)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_mean_lifetime_in_closed_form(toys, backend):
    x, w = toys
    result = fit_batch(UnbinnedNLL(decay), Weighted(x, w), {"lam": 3}, backend=backend)
    lam, error = closed_form(x, w)
    assert result.valid.all()
    np.testing.assert_allclose(result.values[:, 0], lam, rtol=1e-10)
    np.testing.assert_allclose(result.errors[:, 0], error, rtol=RTOL)
    order = np.array([2, 0, 1])
    again = refit(result.problem, order, result.values[order])
    np.testing.assert_allclose(again.covariance, result.covariance[order], rtol=RTOL)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_extended_yield_is_the_sum_of_weights(toys, backend):
    x, w = toys
    start = {"n": 500, "lam": 3}
    result = fit_batch(ExtendedUnbinnedNLL(decay_count), Weighted(x, w), start, backend=backend)
    lam, error = closed_form(x, w)
    np.testing.assert_allclose(result.values, np.stack([[np.sum(w) for w in w], lam], axis=1), rtol=1e-10)
    np.testing.assert_allclose(result.errors[:, 0], [np.sqrt(np.sum(w**2)) for w in w], rtol=RTOL)
    np.testing.assert_allclose(result.errors[:, 1], error, rtol=RTOL)


def test_forms_of_weights(toys):
    x, w = toys
    flat, offsets = np.concatenate(w), np.concatenate([[0], np.cumsum([len(each) for each in x])])
    ragged = Ragged(np.concatenate(x), offsets)
    expected = fit_batch(UnbinnedNLL(decay), Weighted(x, w), {"lam": 3}).values
    for weights in (flat, Ragged(flat, offsets), w):
        np.testing.assert_array_equal(
            fit_batch(UnbinnedNLL(decay), Weighted(ragged, weights), {"lam": 3}).values, expected
        )
    square = fit_batch(UnbinnedNLL(decay), Weighted(np.ones((2, 5)), np.ones((2, 5))), {"lam": 3})
    np.testing.assert_allclose(square.values, 1.0, rtol=1e-10)


def test_with_a_range_the_density_is_normalised_for_the_score_too(toys):
    x, w = toys
    window = (1.0, 7.0)
    inside = [(each >= 1) & (each <= 7) for each in x]
    cut = Weighted([a[i] for a, i in zip(x, inside, strict=True)], [a[i] for a, i in zip(w, inside, strict=True)])
    closed = lambda x, lam: decay(x, lam) / (jnp.exp(-1 / lam) - jnp.exp(-7 / lam))  # noqa: E731
    expected = fit_batch(UnbinnedNLL(closed), cut, {"lam": 3})
    cost = UnbinnedNLL(decay, fit_range=window)
    result = fit_batch(cost, Weighted(x, w), {"lam": 3})
    np.testing.assert_allclose(result.values, expected.values, rtol=1e-9)
    np.testing.assert_allclose(result.errors, expected.errors, rtol=RTOL)
    assert len(fit_batch(cost, Weighted([], []), {"lam": 3})) == 0


def gauss(x, mu):
    return norm.pdf(x, mu, 1.0)


def test_constraint_enters_the_covariance(toys):
    rng = np.random.default_rng(1)
    x, w = rng.normal(0, 1, (50, 40)), rng.uniform(0, 3, (50, 40))
    cost = UnbinnedNLL(gauss) + NormalConstraint("mu", 0.3, 0.1)
    result = fit_batch(cost, (Weighted(x, w), None), {"mu": 0})
    precision = w.sum(axis=1) + 100.0
    mu = ((w * x).sum(axis=1) + 30.0) / precision
    spread = (w**2 * (x - mu[:, None]) ** 2).sum(axis=1) + 100.0
    np.testing.assert_allclose(result.values[:, 0], mu, rtol=1e-9)
    np.testing.assert_allclose(result.errors[:, 0], np.sqrt(spread) / precision, rtol=RTOL)


def test_pulls_are_normal():
    # the inverse Hessian would say 1 / sqrt(sum w), and the pulls would have a width of sqrt(sum w^2 / sum w) = 1.6
    rng = np.random.default_rng(3)
    x, w = rng.normal(0, 1, (4000, 200)), rng.exponential(1.3, (4000, 200))
    result = fit_batch(UnbinnedNLL(gauss), Weighted(x, w), {"mu": 0})
    pulls = result.values[:, 0] / result.errors[:, 0]
    assert abs(pulls.std() - 1.0) < 4 / np.sqrt(2 * 4000)
    assert abs(pulls.mean()) < 4 / np.sqrt(4000)


def test_fixed_and_failed_toys_keep_their_form(toys):
    x, w = toys
    w = [w[0], w[1] * np.nan, w[2]]
    result = fit_batch(ExtendedUnbinnedNLL(decay_count), Weighted(x, w), {"n": 9, "lam": 3}, fixed={"lam": 4.0})
    assert list(result.status) == [Status.CONVERGED, Status.BAD_DATA, Status.CONVERGED]
    assert (result.errors[[0, 2], 1] == 0).all()
    np.testing.assert_allclose(result.errors[0, 0], np.sqrt(np.sum(w[0] ** 2)))
    assert np.isnan(result.errors[1]).all()


def test_event_of_weight_zero_does_not_count():
    inside = lambda x, lam: jnp.where(x < 5, decay(x, lam), 0.0)  # noqa: E731
    data = Weighted([np.array([1.0, 2.0, 9.0])], [np.array([1.0, 1.0, 0.0])])
    result = fit_batch(UnbinnedNLL(inside), data, {"lam": 3})
    np.testing.assert_allclose(result.values, 1.5, rtol=1e-10)


def test_several_observables():
    rng = np.random.default_rng(4)
    x, w = rng.normal(0, 1, (3, 2, 60)), rng.uniform(0, 2, (3, 60))
    model = lambda x, a, b: norm.pdf(x[0], a, 1.0) * norm.pdf(x[1], b, 1.0)  # noqa: E731
    result = fit_batch(UnbinnedNLL(model), Weighted(x, w), {"a": 0, "b": 0})
    np.testing.assert_allclose(result.values, np.einsum("tdn,tn->td", x, w) / w.sum(axis=1)[:, None], rtol=1e-9)


def test_what_is_compiled_keeps_no_data(toys):
    histograms = weighted_histograms(2, 1)
    for cost_, data in (
        (UnbinnedNLL(decay, fit_range=(1.0, 7.0)), Weighted(*toys)),
        (BinnedNLL(decay_cdf, EDGES), histograms),
        (PoissonNLL(decay_events), histograms),
        (ExtendedBinnedNLL(decay_scaled, EDGES) + NormalConstraint("lam", 4.0, 1.0), (histograms, None)),
    ):
        rows = cost_.rows(data)
        leaves, kept = list(map(weakref.ref, rows.leaves)), (cost_.score_covariance(rows), cost_.reference(rows))
        del rows
        assert None not in kept and not any(leaf() for leaf in leaves)


def test_wrong_weights():
    cost = UnbinnedNLL(decay)
    x = [np.ones(3), np.ones(4)]
    with pytest.raises(ValueError, match="toy 1 has 4 events, but 3 weights"):
        cost.rows(Weighted(x, [np.ones(3), np.ones(3)]))
    with pytest.raises(ValueError, match="there are 2 toys and 1 arrays"):
        cost.rows(Weighted(x, [np.ones(7)]))
    with pytest.raises(TypeError, match="once"):
        cost.rows(Weighted(Weighted(x, x), x))


# -- histograms ----------------------------------------------------------------------------------------------------

EDGES = np.linspace(0.0, 20.0, 16)


def weighted_histograms(n_toys, seed, negative=0.0):
    """Sums of weights and of their squares, (n_toys, n_bins, 2); of each tenth toy the last bins are empty."""
    rng = np.random.default_rng(seed)
    made = []
    for k in range(n_toys):
        x, w = rng.exponential(4.0, 400), rng.uniform(0.2, 3.0, 400)
        w[rng.uniform(size=400) < negative] *= -1
        x = x[x < 12] if k % 10 == 0 else x
        w = w[: len(x)]
        made.append(np.stack([np.histogram(x, EDGES, weights=w)[0], np.histogram(x, EDGES, weights=w**2)[0]], axis=-1))
    return np.array(made)


def decay_cdf(x, lam):
    return 1.0 - jnp.exp(-x / lam)


def decay_scaled(x, n, lam):
    return n * decay_cdf(x, lam)


def decay_events(n, lam):
    return n * jnp.diff(decay_cdf(EDGES, lam))


def fcn_of(kind):
    """iminuit's cost of a weighted histogram."""
    if kind == "total":
        in_range = lambda x, lam: (1 - np.exp(-x / lam)) / (1 - np.exp(-EDGES[-1] / lam))  # noqa: E731
        return lambda counts: cost.BinnedNLL(counts, EDGES, in_range)
    return lambda counts: cost.ExtendedBinnedNLL(counts, EDGES, lambda x, n, lam: n * (1 - np.exp(-x / lam)))


@pytest.mark.parametrize("negative", [0.0, 0.2])
@pytest.mark.parametrize("kind", ["total", "extended", "vector"])
def test_histograms_are_fitted_as_iminuit_does(kind, negative):
    counts = weighted_histograms(30, 8, negative)
    start = {"lam": 3.0} if kind == "total" else {"n": 500.0, "lam": 3.0}
    ours = {"total": BinnedNLL(decay_cdf, EDGES), "extended": ExtendedBinnedNLL(decay_scaled, EDGES)}
    ours = ours.get(kind) or PoissonNLL(decay_events)
    limits = {"lam": (0.1, None)}
    result = fit_batch(ours, counts, start, limits=limits)
    assert result.valid.all()
    for k in range(30):
        fcn = fcn_of(kind)(counts[k])
        minuit = Minuit(fcn, **start)
        minuit.limits["lam"] = (0.1, None)
        minuit.strategy, minuit.tol = 2, 1e-6
        minuit.migrad()
        assert result.fval[k] == pytest.approx(0.5 * fcn(*result.values[k]), rel=1e-9)
        np.testing.assert_array_less(np.abs(result.values[k] - minuit.values), 1e-3 * result.errors[k])
        # iminuit takes the inverse Hessian, which is the same for many events and no tail that the model has not
        if not negative and k % 10:
            np.testing.assert_allclose(result.errors[k], minuit.errors, rtol=0.25)


@pytest.mark.parametrize("cost_of", [lambda: ExtendedBinnedNLL(decay_scaled, EDGES), lambda: PoissonNLL(decay_events)])
def test_backends_agree_on_weighted_histograms(cost_of):
    counts, start, limits = weighted_histograms(20, 9, 0.1), {"n": 500.0, "lam": 3.0}, {"lam": (0.1, None)}
    numba, jax_ = (fit_batch(cost_of(), counts, start, limits=limits, backend=b) for b in ("numba", "jax"))
    assert numba.valid.all() and jax_.valid.all()
    np.testing.assert_array_less(np.abs(numba.values - jax_.values) / numba.errors, 1e-6)
    np.testing.assert_allclose(numba.errors, jax_.errors, rtol=1e-6)


def test_constant_weights_scale_the_errors_of_a_yield():
    plain = weighted_histograms(5, 10)[..., 0].round()
    weighted = np.stack([3 * plain, 9 * plain], axis=-1)
    cost_, start = ExtendedBinnedNLL(decay_scaled, EDGES), {"n": 500.0, "lam": 3.0}
    one, three = fit_batch(cost_, plain, start), fit_batch(cost_, weighted, start)
    np.testing.assert_allclose(three.values, one.values * [3, 1], rtol=1e-8)
    np.testing.assert_allclose(three.fval, one.fval, rtol=1e-9)
    # the inverse Hessian and V C V differ by (1 - n / mu) d^2 mu, which fluctuates around 0
    np.testing.assert_allclose(three.errors[1:], one.errors[1:] * [3, 1], rtol=0.03)


@pytest.mark.parametrize("kind", ["total", "extended"])
def test_pulls_of_weighted_histograms_are_normal(kind):
    rng = np.random.default_rng(12)
    n_toys = 2000
    counts = np.empty((n_toys, 15, 2))
    for k in range(n_toys):
        x = rng.exponential(4.0, rng.poisson(1500))
        w = 1.0 + 3.0 * (x > 6)  # weights that depend on x, known to the model
        counts[k, :, 0], counts[k, :, 1] = (np.histogram(x, EDGES, weights=w**p)[0] for p in (1, 2))
    weighted = lambda x, lam: decay_cdf(x, lam) + 3 * jnp.maximum(decay_cdf(x, lam) - decay_cdf(6.0, lam), 0.0)  # noqa: E731
    if kind == "total":
        result = fit_batch(BinnedNLL(weighted, EDGES), counts, {"lam": 3.5})
    else:
        result = fit_batch(
            ExtendedBinnedNLL(lambda x, n, lam: n * weighted(x, lam), EDGES), counts, {"n": 1400.0, "lam": 3.5}
        )
    pulls = (result.values[:, -1] - 4.0) / result.errors[:, -1]
    assert result.valid.all()
    assert abs(pulls.std() - 1.0) < 4 / np.sqrt(2 * n_toys)


def test_bad_and_wrong_weighted_histograms():
    counts = weighted_histograms(3, 13)
    counts[1, 2] = 5.0, 0.0  # weights without squares
    counts[2, 4] = 5.0, np.nan
    result = fit_batch(BinnedNLL(decay_cdf, EDGES), counts, {"lam": 3.0})
    assert list(result.status) == [Status.CONVERGED, Status.BAD_DATA, Status.BAD_DATA]
    with pytest.raises(ValueError, match=r"sums of weights and of their squares, got \(3, 15, 3\)"):
        fit_batch(BinnedNLL(decay_cdf, EDGES), np.ones((3, 15, 3)), {"lam": 3.0})


def test_sums_of_weights_whose_scale_is_no_float_are_bad():
    data = np.tile([[4.0, 4.0], [1.0, 1.0]], (2, 1, 1))
    data[1, :, 1] = 5e-324
    _, bad = counts_of(data, 2)
    assert bad.tolist() == [False, True]


def test_a_variance_that_rounding_made_negative_is_no_error(monkeypatch):
    def rounded(*arguments):
        covariance = sandwich(*arguments)
        covariance[1, 0, 0] = -1e-12
        return covariance

    monkeypatch.setattr("engine.fit.sandwich", rounded)
    rng = np.random.default_rng(6)
    events = [rng.exponential(2.0, 100) for _ in range(3)]
    result = fit_batch(UnbinnedNLL(decay), Weighted(events, [np.ones(100)] * 3), {"lam": 1.5})
    np.testing.assert_array_equal(result.status, [Status.CONVERGED, Status.HESSIAN_NOT_POSDEF, Status.CONVERGED])
    np.testing.assert_array_equal(result.valid, [True, False, True])
    np.testing.assert_array_equal(np.isnan(result.errors[:, 0]), [False, True, False])
