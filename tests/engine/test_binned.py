"""Histograms: closed forms, the printed numbers of iminuit's tutorial, iminuit's own costs, numba against JAX."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit
from iminuit import cost as minuit_cost
from scipy import stats

from engine import BinnedNLL, ExtendedBinnedNLL, Status, asimov, fit_batch
from engine.binned import _Binned
from engine.cpu import NumbaDriver
from engine.xla import XlaDriver
from kernels import norm, program
from toys import PoissonCounts

EDGES = np.linspace(-3.0, 3.0, 41)
LIMITS = {"amp": (0, None), "sigma": (0.01, None)}


def scaled(edge, amp, mu, sigma):
    return amp * norm.cdf(edge, mu, sigma)


def shape(edge, mu, sigma):
    return norm.cdf(edge, mu, sigma)


EXTENDED, FIXED_TOTAL = ExtendedBinnedNLL(scaled, EDGES), BinnedNLL(shape, EDGES)


@pytest.fixture(scope="module")
def toys():
    """200 histograms of about 300 events in 40 bins: some bins are empty."""
    expected = 300 * np.diff(stats.norm.cdf(EDGES, 0.2, 0.9))
    counts = np.random.default_rng(3).poisson(expected, (200, 40)).astype(float)
    assert (counts == 0).any()
    return counts


def tight(cost, start, limits=None):
    minuit = Minuit(cost, *start)
    minuit.strategy, minuit.tol = 2, 1e-6
    for name, pair in (limits or {}).items():
        minuit.limits[name] = pair
    minuit.migrad()
    return minuit


def numpy_scaled(edge, amp, mu, sigma):
    return amp * stats.norm.cdf(edge, mu, sigma)


def numpy_shape(edge, mu, sigma):
    low, high = stats.norm.cdf(EDGES[[0, -1]], mu, sigma)
    return (stats.norm.cdf(edge, mu, sigma) - low) / (high - low)


# MIGRAD's numerical gradient leaves it up to 1e-3 sigma away
@pytest.mark.parametrize(
    ("cost", "reference", "start"),
    [
        (EXTENDED, lambda n: minuit_cost.ExtendedBinnedNLL(n, EDGES, numpy_scaled), {"amp": 300, "mu": 0, "sigma": 1}),
        (FIXED_TOTAL, lambda n: minuit_cost.BinnedNLL(n, EDGES, numpy_shape), {"mu": 0, "sigma": 1}),
    ],
    ids=["extended", "fixed total"],
)
def test_against_minuit(toys, cost, reference, start):
    limits = {name: LIMITS[name] for name in start if name in LIMITS}
    result = fit_batch(cost, toys, start, limits=limits, backend="numba")
    assert result.valid.all()
    for k in range(0, 200, 20):
        minuit = tight(reference(toys[k]), start.values(), limits)
        assert np.max(np.abs(result.values[k] - minuit.values) / result.errors[k]) < 2e-3
        # iminuit doubles -log L; its errors come from finite differences
        assert result.fval[k] == pytest.approx(minuit.fval / 2, abs=1e-5)
        np.testing.assert_allclose(result.errors[k], np.sqrt(np.diag(minuit.covariance)), rtol=0.01)


@pytest.mark.parametrize("cost", [EXTENDED, FIXED_TOTAL], ids=["extended", "fixed total"])
def test_backends_agree(toys, cost):
    start = {"amp": 250.0, "mu": 0.1, "sigma": 1.1}
    start = {name: start[name] for name in cost.names}
    numba = fit_batch(cost, toys[:32], start, limits={"sigma": (0.01, None)}, backend="numba")
    jax = fit_batch(cost, toys[:32], start, limits={"sigma": (0.01, None)}, backend="jax")
    np.testing.assert_array_equal(numba.status, jax.status)
    assert np.max(np.abs(numba.values - jax.values) / numba.errors) < 1e-6
    np.testing.assert_allclose(numba.covariance, jax.covariance, rtol=1e-6, atol=1e-12)


def test_tutorial_histogram():
    """iminuit's JAX tutorial prints FCN 496.2 and the errors 100.0, 0.0100, 0.0071 for this histogram."""
    counts, edges = np.histogram(np.random.default_rng(seed=1).normal(size=10000), bins=1000)
    start = {"amp": 1.5 * counts.sum(), "mu": 1.0, "sigma": 2.0}
    result = fit_batch(ExtendedBinnedNLL(scaled, edges), counts[None], start, limits=LIMITS, backend="numba")
    assert result.valid.all()
    assert round(float(result.fval[0]), 1) == 496.2
    assert [f"{e:.{d}f}" for e, d in zip(result.errors[0], (1, 4, 4), strict=True)] == ["100.0", "0.0100", "0.0071"]


def test_uniform_model_in_closed_form():
    """A flat model of free height: the estimate is the total count, fval half of the Baker-Cousins chi-square."""
    cost = ExtendedBinnedNLL(lambda edge, total: total * edge, np.linspace(0.0, 1.0, 6))
    counts = np.array([[3.0, 0.0, 5.0, 2.5, 1.0], [0.0, 0.0, 1.0, 0.0, 0.0]])
    result = fit_batch(cost, counts, {"total": 7.0}, limits={"total": (0, None)}, backend="numba")
    np.testing.assert_allclose(result.values[:, 0], counts.sum(axis=1), rtol=1e-12)
    # the Hessian belongs to the last point but one, less than 1e-6 sigma away
    np.testing.assert_allclose(result.errors[:, 0], np.sqrt(counts.sum(axis=1)), rtol=1e-6)
    mu = counts.sum(axis=1, keepdims=True) / 5
    with np.errstate(divide="ignore", invalid="ignore"):
        chi2 = 2 * np.where(counts > 0, counts * np.log(counts / mu), 0).sum(axis=1)
    np.testing.assert_allclose(2 * result.fval, chi2, rtol=1e-10)


def test_empty_histogram_is_at_the_limit():
    result = fit_batch(EXTENDED, np.zeros((1, 40)), {"amp": 5.0, "mu": 0.0, "sigma": 1.0}, limits=LIMITS,
                       fixed=["mu", "sigma"], backend="numba")  # fmt: skip
    assert result.valid.all()
    assert result.values[0, 0] == 0.0
    assert result.at_limit[0].tolist() == [True, False, False]


def test_asimov_data_give_the_truth_and_zero():
    expected = 300 * np.diff(stats.norm.cdf(EDGES, 0.2, 0.9))
    result = fit_batch(
        EXTENDED, expected[None], {"amp": 250.0, "mu": 0.0, "sigma": 1.0}, limits=LIMITS, backend="numba"
    )
    np.testing.assert_allclose(result.values[0], [300.0, 0.2, 0.9], rtol=1e-9)
    assert abs(result.fval[0]) < 1e-12


def test_bad_counts_are_the_toys_own_fate(toys):
    counts = toys[:4].copy()
    counts[1, 3], counts[2, 0] = -1.0, np.nan
    start = {"amp": 300.0, "mu": 0.0, "sigma": 1.0}
    result = fit_batch(EXTENDED, counts, start, limits=LIMITS, backend="numba")
    assert result.status.tolist() == [Status.CONVERGED, Status.BAD_DATA, Status.BAD_DATA, Status.CONVERGED]
    alone = fit_batch(EXTENDED, toys[3:4], start, limits=LIMITS, backend="numba")
    np.testing.assert_array_equal(result.values[3], alone.values[0])


@pytest.mark.parametrize(
    ("edges", "sentence"),
    [
        ([0.0, 2.0, 1.0], "edges must increase, but edge 2 is 1 after 2"),
        ([0.0, 0.0, 1.0], "edges must increase, but edge 1 is 0 after 0"),
        ([0.0], "at least one bin"),
        ([0.0, np.inf], "edges must be finite"),
        ([[0.0, 1.0]], r"edges must have shape \(n_bins \+ 1,\) with at least one bin, got \(1, 2\)"),
    ],
)
def test_wrong_edges(edges, sentence):
    with pytest.raises(ValueError, match=sentence):
        BinnedNLL(shape, edges)


def test_edges_that_are_no_numbers():
    with pytest.raises(TypeError, match="edges must hold real numbers"):
        ExtendedBinnedNLL(scaled, ["a", "b"])


def test_wrong_counts():
    with pytest.raises(ValueError, match=r"counts must have shape .* got \(40,\): for one toy pass counts\[None\]"):
        fit_batch(FIXED_TOTAL, np.ones(40), {"mu": 0, "sigma": 1})
    with pytest.raises(TypeError, match="counts must hold real numbers"):
        fit_batch(FIXED_TOTAL, [["a"] * 40], {"mu": 0, "sigma": 1})


def test_model_of_a_wrong_shape():
    wrong = ExtendedBinnedNLL(lambda edge, a: jnp.stack([a, a]) * edge, EDGES)
    with pytest.raises(ValueError, match="must be a number, got shape"):
        fit_batch(wrong, np.ones((1, 40)), {"a": 1.0})


# sidebands: three windows, the last of a single bin
USED = (EDGES[:-1] < -0.9) | ((EDGES[1:] > 0.4) & (EDGES[1:] < 2.0))
USED[36] = True


@pytest.mark.parametrize(
    ("kind", "model", "numpy_model", "start"),
    [
        (ExtendedBinnedNLL, scaled, numpy_scaled, {"amp": 300, "mu": 0, "sigma": 1}),
        (BinnedNLL, shape, numpy_shape, {"mu": 0, "sigma": 1}),
    ],
    ids=["extended", "fixed total"],
)
def test_mask_against_minuit_and_between_backends(toys, kind, model, numpy_model, start):
    """50 toys whose other bins hold anything; the fixed total is that of the bins that are used."""
    cost = kind(model, EDGES, mask=USED)
    limits = {name: LIMITS[name] for name in start if name in LIMITS}
    counts = np.where(USED, toys[:50], np.nan)
    result = fit_batch(cost, counts, start, limits=limits, backend="numba")
    assert result.valid.all()
    for k in range(50):
        reference = getattr(minuit_cost, kind.__name__)(toys[k], EDGES, numpy_model)
        reference.mask = USED
        minuit = tight(reference, start.values(), limits)
        assert np.max(np.abs(result.values[k] - minuit.values) / result.errors[k]) < 1e-3
        assert result.fval[k] == pytest.approx(minuit.fval / 2, abs=1e-5)
        np.testing.assert_allclose(result.errors[k], np.sqrt(np.diag(minuit.covariance)), rtol=0.01)
        assert result.fval[k] == pytest.approx(reference(*result.values[k]) / 2, rel=1e-9)
    rows = cost.rows(counts)
    drivers = NumbaDriver(cost, rows), XlaDriver(cost, rows, jax.devices("cpu"))
    numba, xla = (driver.evaluate(np.arange(50), result.values * 1.1) for driver in drivers)
    np.testing.assert_allclose(numba, xla, rtol=1e-9, atol=1e-9)


def test_a_mask_of_everything_changes_nothing(toys):
    every = BinnedNLL(shape, EDGES, mask=np.ones(40, dtype=bool))
    start = {"mu": 0.0, "sigma": 1.0}
    masked, plain = (fit_batch(cost, toys[:5], start, backend="numba") for cost in (every, FIXED_TOTAL))
    np.testing.assert_array_equal(masked.values, plain.values)


def test_bins_without_a_gap_share_their_edges(toys):
    window = (np.arange(40) > 2) & (np.arange(40) < 33)
    masks = (None, np.ones(40, dtype=bool), window, np.arange(40) == 7, USED)
    costs = [ExtendedBinnedNLL(scaled, EDGES, mask=mask) for mask in masks]
    assert [cost.adjacent for cost in costs] == [True, True, True, True, False]
    theta = np.tile([300.0, 0.1, 1.2], (5, 1))
    for cost in costs:
        rows = cost.rows(toys[:5])
        drivers = NumbaDriver(cost, rows), XlaDriver(cost, rows, jax.devices("cpu"))
        numba, xla = (driver.evaluate(np.arange(5), theta) for driver in drivers)
        np.testing.assert_allclose(numba, xla, rtol=1e-9, atol=1e-9)


def test_a_bad_count_matters_only_where_it_is_used(toys):
    counts = toys[:3].copy()
    counts[0, 0], counts[1, 20] = np.nan, -1.0
    assert USED[0]
    assert not USED[20]
    cost = ExtendedBinnedNLL(scaled, EDGES, mask=USED)
    result = fit_batch(cost, counts, {"amp": 300.0, "mu": 0.0, "sigma": 1.0}, limits=LIMITS, backend="numba")
    assert result.status.tolist() == [Status.BAD_DATA, Status.CONVERGED, Status.CONVERGED]


@pytest.mark.parametrize("kind", [BinnedNLL, ExtendedBinnedNLL])
@pytest.mark.parametrize(
    ("mask", "error", "sentence"),
    [
        (np.ones(41, dtype=bool), ValueError, r"mask must have shape \(40,\), one value per entry, got \(41,\)"),
        (np.zeros(40, dtype=bool), ValueError, "mask leaves nothing to fit"),
        (np.arange(40), TypeError, "mask must hold True .* got an array of int64"),
    ],
)
def test_wrong_masks(kind, mask, error, sentence):
    with pytest.raises(error, match=sentence):
        kind(shape, EDGES, mask=mask)


def scaled_pdf(x, amp, mu, sigma):
    return amp * norm.pdf(x, mu, sigma)


SIDEBANDS = np.abs(EDGES[1:] - 0.5) > 0.4


@pytest.mark.parametrize(("backend", "mask"), [("numba", None), ("numba", SIDEBANDS), ("jax", SIDEBANDS)])
def test_a_density_gives_the_fits_of_its_cdf(toys, backend, mask):
    """Six nodes in each bin integrate a Gaussian of 5 bins to 1e-13; BinnedNLL takes any norm."""
    start = {"amp": 300.0, "mu": 0.0, "sigma": 1.0}
    wanted = fit_batch(ExtendedBinnedNLL(EXTENDED.model, EDGES, mask=mask), toys, start, limits=LIMITS, backend="numba")
    cost = ExtendedBinnedNLL(scaled_pdf, EDGES, mask=mask, use_pdf="numerical")
    result = fit_batch(cost, toys, start, limits=LIMITS, backend=backend)
    assert wanted.valid.all()
    assert np.max(np.abs(result.values - wanted.values) / wanted.errors) < 1e-8
    np.testing.assert_allclose(result.fval, wanted.fval, rtol=1e-11)
    del start["amp"]
    some = {"sigma": LIMITS["sigma"]}
    wanted = fit_batch(BinnedNLL(FIXED_TOTAL.model, EDGES, mask=mask), toys, start, limits=some, backend="numba")
    cost = BinnedNLL(lambda x, mu, sigma: 7.0 * norm.pdf(x, mu, sigma), EDGES, mask=mask, use_pdf="numerical")
    result = fit_batch(cost, toys, start, limits=some, backend=backend)
    assert np.max(np.abs(result.values - wanted.values) / wanted.errors) < 1e-8
    np.testing.assert_allclose(result.fval, wanted.fval, rtol=1e-11)


@pytest.mark.parametrize(("extended", "weights"), [(False, True), (True, False)])
def test_a_long_density_is_taken_in_vectors(toys, monkeypatch, extended, weights):
    """Where its program is too long to be compiled for a bin at a time."""
    data = np.stack([1.5 * toys, 2.0 * toys], axis=2) if weights else toys

    def make():
        if extended:
            return ExtendedBinnedNLL(scaled_pdf, EDGES, mask=SIDEBANDS, use_pdf="numerical")
        return BinnedNLL(lambda x, mu, sigma: norm.pdf(x, mu, sigma), EDGES, mask=SIDEBANDS, use_pdf="numerical")

    start = {"amp": 300.0, "mu": 0.0, "sigma": 1.0} if extended else {"mu": 0.0, "sigma": 1.0}
    limits = {name: LIMITS[name] for name in start if name in LIMITS}
    cost = make()
    short = fit_batch(cost, data, start, limits=limits, backend="numba")
    assert not cost.in_vectors(cost.rows(data)) and short.valid.all()
    monkeypatch.setattr(program, "MAX_LENGTH", 10)
    cost = make()
    long = fit_batch(cost, data, start, limits=limits, backend="numba")
    assert cost.in_vectors(cost.rows(data))
    assert np.max(np.abs(long.values - short.values) / short.errors) < 1e-8
    np.testing.assert_allclose(long.covariance, short.covariance, rtol=1e-6)
    np.testing.assert_array_equal(long.status, short.status)


@pytest.mark.parametrize(("vectors", "weights"), [(False, False), (True, True)])
def test_an_empty_bin_does_not_draw_its_expectation_below_zero(monkeypatch, vectors, weights):
    edges = np.linspace(0.0, 1.0, 11)
    counts = np.array([[3.0, 2, 4, 0, 0, 0, 2, 2, 3, 2], [3, 2, 4, 3, 4, 5, 3, 2, 3, 2]])
    data = np.stack([counts, 2.0 * counts], axis=2) if weights else counts
    costs = [
        ExtendedBinnedNLL(lambda x, b, s: b + s * norm.pdf(x, 0.5, 0.1), edges, use_pdf="numerical"),
        BinnedNLL(lambda x, s: 1.0 + s * norm.pdf(x, 0.5, 0.1), edges, use_pdf="numerical"),
    ]
    if vectors:
        monkeypatch.setattr(_Binned, "in_vectors", lambda cost, rows: True)
    else:
        costs.append(ExtendedBinnedNLL(lambda x, b, s: b * x + s * norm.cdf(x, 0.5, 0.1), edges))
        costs.append(BinnedNLL(lambda x, s: x + s * norm.cdf(x, 0.5, 0.1), edges))
    for cost, backend in [*itertools.product(costs, ["numba"]), (costs[-1], "jax")]:
        start = {"b": 20.0, "s": 1.0} if "b" in cost.names else {"s": 0.1}
        fit = fit_batch(cost, data, start, backend=backend, retries=0)
        assert fit.valid.tolist() == [False, True]
        expected = np.asarray(cost.contents(*fit.values[0]))  # float32
        assert abs(expected.min()) < 1e-5 * expected.max()


def test_weighted_histograms_of_a_density(toys):
    weighted = np.stack([1.5 * toys, 2.0 * toys], axis=2)
    start, some = {"mu": 0.0, "sigma": 1.0}, {"sigma": LIMITS["sigma"]}
    wanted = fit_batch(FIXED_TOTAL, weighted, start, limits=some, backend="numba")
    cost = BinnedNLL(lambda x, mu, sigma: norm.pdf(x, mu, sigma), EDGES, use_pdf="numerical")
    result = fit_batch(cost, weighted, start, limits=some, backend="numba")
    assert np.max(np.abs(result.values - wanted.values) / wanted.errors) < 1e-8
    np.testing.assert_allclose(result.covariance, wanted.covariance, rtol=1e-6)


def test_an_approximate_density_is_that_of_minuit(toys):
    numpy_pdf = lambda x, amp, mu, sigma: amp * stats.norm.pdf(x, mu, sigma)  # noqa: E731
    start = {"amp": 300.0, "mu": 0.0, "sigma": 1.0}
    cost = ExtendedBinnedNLL(scaled_pdf, EDGES, use_pdf="approximate")
    result = fit_batch(cost, toys[:4], start, limits=LIMITS, backend="numba")
    for k in range(4):
        reference = minuit_cost.ExtendedBinnedNLL(toys[k], EDGES, numpy_pdf, use_pdf="approximate")
        minuit = tight(reference, start.values(), LIMITS)
        assert np.max(np.abs(result.values[k] - minuit.values) / result.errors[k]) < 2e-3
        assert result.fval[k] == pytest.approx(minuit.fval / 2, abs=1e-5)


def test_toys_and_asimov_data_of_a_density():
    cost = ExtendedBinnedNLL(scaled_pdf, EDGES, use_pdf="numerical")
    theta = [300.0, 0.2, 0.9]
    expected = 300.0 * np.diff(stats.norm.cdf(EDGES, 0.2, 0.9))
    np.testing.assert_allclose(asimov(cost, theta)[0], expected, rtol=1e-9)
    np.testing.assert_array_equal(
        PoissonCounts.of(cost).generate(theta, n_toys=50, seed=1),
        PoissonCounts.of(EXTENDED).generate(theta, n_toys=50, seed=1),
    )


def test_what_a_density_needs(toys):
    start = {"amp": 300.0, "mu": 0.0, "sigma": 0.01}
    few = ExtendedBinnedNLL(scaled_pdf, EDGES, use_pdf="numerical")
    with pytest.warns(UserWarning, match="the density of .* changes too much from .* for 6 nodes, .* a larger n_nodes"):
        fit_batch(few, toys[:2], start, limits=LIMITS, retries=0)
    peaks = np.random.default_rng(4).poisson(300 * np.diff(stats.norm.cdf(EDGES, 0.21, 0.04)), (3, 40)).astype(float)
    few = ExtendedBinnedNLL(scaled_pdf, EDGES, use_pdf="numerical")
    with pytest.warns(UserWarning, match="the density of .* changes too much from .* for 6 nodes"):
        fit_batch(few, peaks, {"amp": 300.0, "mu": 0.2, "sigma": 0.5}, limits=LIMITS)
    with pytest.raises(ValueError, match="use_pdf must be one of '', 'numerical', 'approximate', got 'yes'"):
        BinnedNLL(scaled_pdf, EDGES, use_pdf="yes")
    with pytest.raises(ValueError, match="n_nodes must be a whole number of at least 1"):
        BinnedNLL(scaled_pdf, EDGES, use_pdf="numerical", n_nodes=0)
    pair = BinnedNLL(lambda x, mu: jnp.stack([x, mu]), EDGES, use_pdf="numerical")
    with pytest.raises(ValueError, match=r"the density that .* returns for one event must be a number, got shape"):
        fit_batch(pair, toys[:2], [0.0])
