"""Toys that are drawn from the nodes of a density: probabilities, numbers of events, both backends, calibration."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from engine import ExtendedUnbinnedNLL, UnbinnedNLL, fit_batch
from toys import Resampled, Study, generate

RNG = np.random.default_rng(8)
SAMPLE = RNG.uniform(-1, 1, (2, 4000))
TRUTH = {"a": 0.4, "b": 0.3}


def shape(x, a, b):
    return 1.0 + a * x[0] * x[1] + b * x[0] ** 2


def scaled(x, n, a, b):
    return n * shape(x, a, b) / (4.0 + b * 4.0 / 3.0)


COST = UnbinnedNLL(shape, nodes=SAMPLE)
EXTENDED = ExtendedUnbinnedNLL(scaled, nodes=(SAMPLE, np.full(4000, 4.0 / 4000)))


@pytest.mark.parametrize("sampler, theta", [(Resampled(COST, 37), [0.4, 0.3]), (Resampled(EXTENDED), [50.0, 0.4, 0.3])])
def test_both_backends_draw_the_same(sampler, theta):
    by_numba, by_jax = (sampler.generate(theta, n_toys=20, seed=3, backend=b) for b in ("numba", "jax"))
    np.testing.assert_array_equal(by_numba.offsets, by_jax.offsets)
    np.testing.assert_array_equal(by_numba.values, by_jax.values)
    later = sampler.generate(theta, n_toys=5, seed=3, first=15)
    np.testing.assert_array_equal(later.values, by_numba.values[:, by_numba.offsets[15] :])


def test_nodes_come_with_their_probabilities():
    x, weights = np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([1.0, 0.0, 2.0, 0.5, 1.0])
    cost = UnbinnedNLL(lambda x, a: jnp.where(x < 4, jnp.exp(-a * x), 0.0), nodes=(x, weights))
    drawn = Resampled(cost, 1000).generate([0.5], n_toys=100, seed=1).values
    probability = weights * np.exp(-0.5 * x) * (x < 4)
    counts = np.array([np.count_nonzero(drawn == each) for each in x])
    assert counts.sum() == len(drawn) == 100_000
    assert (counts[probability == 0.0] == 0).all()
    possible = probability > 0
    expected = 1e5 * probability[possible] / probability.sum()
    assert scipy.stats.chisquare(counts[possible], expected).pvalue > 1e-4


def test_the_number_of_events_has_a_poisson_distribution_about_the_sum():
    theta = np.array([30.0, 0.4, 0.3])
    counts = np.diff(Resampled(EXTENDED).generate(theta, n_toys=4000, seed=2).offsets)
    mean = np.mean(np.asarray(scaled(SAMPLE, *theta))) * 4.0
    assert abs(counts.mean() - mean) < 4 * np.sqrt(mean / 4000)
    assert abs(counts.var() / mean - 1.0) < 4 * np.sqrt(2 / 4000)


def test_fits_that_are_normalised_over_the_same_nodes_are_calibrated():
    study = Study(COST, Resampled(COST, 2000), truth=TRUTH)
    result = fit_batch(COST, generate(study, 1000, seed=4), TRUTH)
    pulls = (result.values - [0.4, 0.3]) / result.errors
    assert result.valid.all()
    assert np.all(np.abs(pulls.mean(axis=0)) < 4 / np.sqrt(1000) + 0.05)  # and a bias of the order 1 / sqrt(n)
    assert np.all(np.abs(pulls.std(axis=0) - 1.0) < 4 / np.sqrt(2000))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((UnbinnedNLL(shape), 10), r"nodes of UnbinnedNLL\(pdf, nodes=...\)"),
        ((UnbinnedNLL(lambda x, a: jnp.exp(a * x), fit_range=(0, 1)), 10), "nodes of UnbinnedNLL"),
        ((COST,), "n_events must be given"),
        ((EXTENDED, 10), "leave out n_events"),
        ((COST, -1), "n_events must lie in"),
    ],
)
def test_wrong_arguments(arguments, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        Resampled(*arguments)


@pytest.mark.parametrize(
    "theta, sentence",
    [
        ([9.0, 0.3], "must not be negative, got -.* at node"),
        ([np.nan, 0.3], "theta must be finite"),
        ([0.4], "shape"),
    ],
)
def test_wrong_parameters(theta, sentence):
    with pytest.raises(ValueError, match=sentence):
        Resampled(COST, 10).generate(theta, n_toys=1, seed=1)


def test_no_events_are_possible():
    cost = UnbinnedNLL(lambda x, a: 0.0 * a * x, nodes=np.linspace(0, 1, 9))
    with pytest.raises(ValueError, match="the sum over all nodes must be positive"):
        Resampled(cost, 10).generate([1.0], n_toys=1, seed=1)
