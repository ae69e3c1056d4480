"""What is drawn of a toy: its data, and the model in their units."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from engine import (
    BinnedNLL,
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    LeastSquares,
    NormalConstraint,
    PoissonNLL,
    Ragged,
    UnbinnedNLL,
    Weighted,
)
from kernels import norm, truncnorm
from toys.figures import FigureError, picture

RNG = np.random.default_rng(1)
X = RNG.normal(0.3, 1.2, 500).clip(-2.9, 2.9)
EVENTS = Ragged(X, [0, 500])
EDGES = np.linspace(-3.0, 3.0, 7)
P = np.diff(scipy.stats.norm.cdf(EDGES, 0.3, 1.2))


def drawn(cost, data, theta, observable=(-3.0, 3.0), bins=6):
    return picture(cost, data, np.array(theta), observable, bins)


def test_events():
    pdf = lambda x, mu, sigma: truncnorm.pdf(x, -3.0, 3.0, mu, sigma)  # noqa: E731
    counts, _ = np.histogram(X, EDGES)
    density = 500 * scipy.stats.norm.pdf(EDGES[:-1] + 0.5, 0.3, 1.2) / P.sum()
    for cost, theta in (
        (UnbinnedNLL(pdf), (0.3, 1.2)),
        (UnbinnedNLL(lambda x, mu, sigma: jnp.log(7.0 * pdf(x, mu, sigma)), log=True), (0.3, 1.2)),
        (ExtendedUnbinnedNLL(lambda x, n, mu, sigma: (n, n * pdf(x, mu, sigma))), (500.0, 0.3, 1.2)),
    ):
        seen = drawn(cost, EVENTS, theta)
        np.testing.assert_array_equal(seen.y, counts)
        np.testing.assert_array_equal(seen.error, np.sqrt(counts))
        np.testing.assert_allclose(seen.x, 0.5 * (EDGES[1:] + EDGES[:-1]))
        # what is not extended is drawn with as many events as there are
        scale = 1.0 if isinstance(cost, ExtendedUnbinnedNLL) else 500 / density.sum()
        np.testing.assert_allclose(seen.expected, scale * density, rtol=1e-6)
        assert seen.label == "events / 1" and np.trapezoid(seen.curve_y, seen.curve_x) == pytest.approx(500, rel=0.01)
    weights = 1.0 + X**2
    seen = drawn(UnbinnedNLL(pdf), Weighted(EVENTS, weights), (0.3, 1.2))
    np.testing.assert_allclose(seen.y, np.histogram(X, EDGES, weights=weights)[0])
    np.testing.assert_allclose(seen.error**2, np.histogram(X, EDGES, weights=weights**2)[0])


def test_histograms():
    counts = RNG.poisson(400 * P)[None].astype(float)
    cdf = lambda x, mu, sigma: 3.0 * norm.cdf(x, mu, sigma)  # noqa: E731
    scaled = lambda x, n, mu, sigma: n * norm.cdf(x, mu, sigma)  # noqa: E731
    for cost, theta, expected in (
        (BinnedNLL(cdf, EDGES), (0.3, 1.2), counts.sum() * P / P.sum()),
        (ExtendedBinnedNLL(scaled, EDGES), (400.0, 0.3, 1.2), 400 * P),
        (PoissonNLL(lambda n: n * jnp.asarray(P)), (400.0,), 400 * P),
    ):
        seen = drawn(cost, counts, theta, None)
        np.testing.assert_allclose(seen.expected, expected, rtol=1e-6)
        np.testing.assert_array_equal(seen.y, counts[0])
        np.testing.assert_allclose(seen.curve_y, np.repeat(expected, 2), rtol=1e-6)
        assert len(seen.curve_x) == 12 and np.all(seen.width == 1.0)
        np.testing.assert_array_equal(seen.error, np.sqrt(counts[0]))
    weighted = drawn(BinnedNLL(cdf, EDGES), np.stack([counts, 2.0 * counts], axis=2), (0.3, 1.2), None)
    np.testing.assert_array_equal(weighted.y, counts[0])
    np.testing.assert_array_equal(weighted.error, np.sqrt(2.0 * counts[0]))


def test_what_is_not_fitted_does_not_count():
    p = np.diff(scipy.stats.norm.cdf(EDGES, 0.3, 1.2))
    mask = np.array([True, True, False, False, True, True])
    counts = np.where(mask, 500.0 * p, 2000.0)[None]  # as a peak that is blinded
    seen = drawn(BinnedNLL(norm.cdf, EDGES, mask=mask), counts, (0.3, 1.2))
    np.testing.assert_allclose(seen.expected, 500.0 * p, rtol=1e-9)
    outside = np.concatenate([X[np.abs(X) > 1.0], RNG.uniform(-0.9, 0.9, 2000)])
    cost = UnbinnedNLL(norm.pdf, fit_range=[(-3.0, -1.0), (1.0, 3.0)])
    seen = drawn(cost, Ragged(outside, [0, len(outside)]), (0.3, 1.2))
    density = scipy.stats.norm.pdf(0.5 * (EDGES[1:] + EDGES[:-1]), 0.3, 1.2)
    np.testing.assert_allclose(seen.expected, (np.abs(X) > 1.0).sum() / p[[0, 1, 4, 5]].sum() * density, rtol=1e-6)


def test_points():
    x, y, error = np.linspace(0.0, 2.0, 5), np.arange(5.0)[None], np.full(5, 0.5)
    parabola = lambda x, a, b: a + b * x**2  # noqa: E731
    for cost, data, spread in (
        (LeastSquares(parabola), (x, y, error), error),
        (LeastSquares(parabola), (x[None], y, error[None]), error),
        (LeastSquares(parabola, xerror=True), (x, y, error, 0.3 * error), np.hypot(error, 4.0 * x * 0.15)),
        (LeastSquares(parabola, covariance=np.diag(error**2)), (x, y), error),
    ):
        seen = drawn(cost, data, (1.0, 2.0), None)
        np.testing.assert_allclose(seen.expected, 1.0 + 2.0 * x**2, rtol=1e-12)
        np.testing.assert_allclose(seen.error, spread, rtol=1e-12)
        np.testing.assert_allclose(seen.curve_y, 1.0 + 2.0 * seen.curve_x**2, rtol=1e-12)
        assert not seen.width.any() and seen.curve_x[[0, -1]].tolist() == [0.0, 2.0]


def test_of_a_sum_the_first_data_are_drawn():
    counts = RNG.poisson(400 * P)[None].astype(float)
    templates = PoissonNLL(lambda b, n: n * b * jnp.asarray(P))
    cost = NormalConstraint("a", 0.0, 1.0) + templates + UnbinnedNLL(lambda x, a: norm.pdf(x, a, 1.0))
    assert cost.names == ("a", "b", "n")
    seen = drawn(cost, (None, counts, EVENTS), (9.0, 2.0, 200.0))
    np.testing.assert_allclose(seen.expected, 400 * P, rtol=1e-12)
    # the range of each cost
    both = NormalConstraint("a", 0.0, 1.0) + UnbinnedNLL(lambda x, a: norm.pdf(x, a, 1.0))
    seen = drawn(both, (None, EVENTS), (0.3,), (None, (-2.0, 2.0)))
    assert seen.curve_x[[0, -1]].tolist() == [-2.0, 2.0]


@pytest.mark.parametrize(
    "cost, data, words",
    [
        (NormalConstraint("a", 0.0, 1.0), np.zeros((1, 1)), "constraints alone have no data that could be drawn"),
        (
            UnbinnedNLL(lambda x, a: norm.pdf(x[0], a, 1.0)),
            Ragged(np.zeros((2, 3)), [0, 3]),
            "unbinned toys can be drawn for one observable with a range only",
        ),
        (LeastSquares(lambda x, a: a * x[0]), (np.zeros((2, 3)), np.zeros((1, 3)), np.ones(3)), "one x only"),
    ],
)
def test_what_cannot_be_drawn(cost, data, words):
    with pytest.raises(FigureError, match=words):
        drawn(cost, data, (0.0,))
    with pytest.raises(FigureError, match="with a range only: give it to the study"):
        drawn(UnbinnedNLL(lambda x, a: norm.pdf(x, a, 1.0)), EVENTS, (0.0,), None)


def test_events_of_a_density_over_nodes():
    """The nodes bring an efficiency along: more of them on the right."""
    nodes = RNG.triangular(-3.0, 3.0, 3.0, 20_000)
    for cost in (
        UnbinnedNLL(lambda x, k: 5.0 * jnp.exp(-k * x), nodes=nodes),
        ExtendedUnbinnedNLL(lambda x, k: 5.0 * jnp.exp(-k * x), nodes=(nodes, np.full(20_000, 3e-4))),
    ):
        it = drawn(cost, EVENTS, (0.4,))
        expected, _ = np.histogram(nodes, EDGES, weights=5.0 * np.exp(-0.4 * nodes) * 3e-4)
        if isinstance(cost, UnbinnedNLL):
            expected *= 500 / expected.sum()
        np.testing.assert_allclose(it.expected, expected, rtol=1e-12)
        np.testing.assert_allclose(it.curve_y[::2], expected, rtol=1e-12)
    with pytest.raises(FigureError, match="over 20 nodes cannot be drawn in 6 bins: 60 would do"):
        drawn(UnbinnedNLL(lambda x, k: jnp.exp(-k * x), nodes=nodes[:20]), EVENTS, (0.4,))
