import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from engine import BinnedNLL, ExtendedBinnedNLL, PoissonNLL, UnbinnedNLL
from kernels import norm
from kernels.randombits import entries_up_to
from toys.counts import CountTables, MultinomialCounts, PoissonCounts
from toys.drawing import draw_toys

EDGES = np.linspace(-3.0, 4.0, 15)
MEANS = np.array([0.0, 1e-3, 0.7, 0.0, 4.2, 35.0, 800.0, 0.0])


def means(scale):
    return scale * jnp.asarray(MEANS)


def scaled_cdf(x, n, mu, sigma):
    return n * norm.cdf(x, mu, sigma)


POISSON = PoissonCounts(means, ("scale",))
MULTINOMIAL = MultinomialCounts(means, ("scale",), 60)
BOTH = pytest.mark.parametrize("sampler", [POISSON, MULTINOMIAL], ids=["poisson", "multinomial"])


def assert_poisson(counts, mean):
    """Chi-square of the counts of one bin, with at least 5 expected in each class."""
    low, high = stats.poisson.ppf([0.003, 0.997], mean).astype(int)
    k = np.arange(low, high)
    expected = np.concatenate([[stats.poisson.cdf(low - 1, mean)], stats.poisson.pmf(k, mean)])
    expected = len(counts) * np.append(expected, 1.0 - expected.sum())
    observed = np.bincount(np.clip(counts - low + 1, 0, len(k) + 1).astype(int), minlength=len(k) + 2)
    keep = expected > 5
    expected, observed = (
        np.append(expected[keep], expected[~keep].sum()),
        np.append(observed[keep], observed[~keep].sum()),
    )
    chi2 = np.sum((observed - expected)[expected > 0] ** 2 / expected[expected > 0])
    assert stats.chi2.sf(chi2, max(1, np.count_nonzero(expected) - 1)) > 1e-3


def test_counts_are_independent_and_poisson():
    counts = POISSON.generate([1.0], n_toys=20_000, seed=4)
    assert counts.shape == (20_000, 8) and counts.dtype == np.float64
    assert not counts[:, MEANS == 0].any()
    for b in (2, 4, 5, 6):
        assert_poisson(counts[:, b], MEANS[b])
    # every count in the sum of a toy, too, and no correlation
    assert abs(counts.sum(axis=1).var() / MEANS.sum() - 1.0) < 4 * np.sqrt(2.0 / len(counts))
    correlation = np.corrcoef(counts[:, [2, 4, 5, 6]].T)
    assert np.abs(correlation - np.eye(4)).max() < 4.5 / np.sqrt(len(counts))


def test_counts_of_a_fixed_total_are_multinomial():
    p = np.array([0.0, 0.05, 0.15, 0.0, 0.5, 0.3, 0.0])
    sampler = MultinomialCounts(lambda scale: scale * jnp.asarray(p), ("scale",), 40)
    counts = sampler.generate([7.0], n_toys=20_000, seed=4)
    assert np.all(counts.sum(axis=1) == 40) and not counts[:, p == 0].any()
    k = np.arange(41)
    expected = len(counts) * stats.binom.pmf(k, 40, 0.15)
    observed = np.bincount(counts[:, 2].astype(int), minlength=41)
    keep = expected > 5
    pooled = [np.append(a[keep], a[~keep].sum()) for a in (observed, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-3
    covariance = 40 * (np.diag(p) - np.outer(p, p))
    # the largest standard error of an element is 40 p (1 - p) sqrt(2 / n)
    assert np.abs(np.cov(counts.T) - covariance).max() < 4 * 10.0 * np.sqrt(2.0 / len(counts))
    np.testing.assert_allclose(counts.mean(axis=0), 40 * p, atol=4 * np.sqrt(10.0 / len(counts)))


@BOTH
def test_backends_draw_the_same_counts(sampler):
    by_numba = sampler.generate([2.5], n_toys=700, seed=2**40 + 1, first=11)
    by_jax = sampler.generate([2.5], n_toys=700, seed=2**40 + 1, first=11, backend="jax")
    np.testing.assert_array_equal(by_numba, by_jax)
    assert by_jax.dtype == np.float64 and len(np.unique(by_numba[:, 6])) > 5


@BOTH
def test_a_toy_depends_on_its_index_alone(sampler):
    whole = sampler.generate([1.0], n_toys=40, seed=9, first=5)
    for begin, n in ((0, 1), (1, 30), (31, 9)):
        np.testing.assert_array_equal(sampler.generate([1.0], n_toys=n, seed=9, first=5 + begin), whole[begin:][:n])
    for chunk in (3, 64):
        tables = sampler.prepare([1.0])
        drawn = draw_toys(sampler.draw, tables, n_toys=40, seed=9, first=5, chunk=chunk, cost=PoissonNLL(means))
        np.testing.assert_array_equal(drawn, whole)
    key = jax.random.fold_in(jax.random.key(9, impl="threefry2x32"), 7)
    np.testing.assert_array_equal(jax.jit(lambda key: sampler(key, [1.0]))(key), whole[2])


def test_huge_means():
    sampler = PoissonCounts(lambda a, b: jnp.stack([a, b, 1e3 * b]), ("a", "b"))
    counts = sampler.generate([1e8, 3.0], n_toys=2000, seed=1)
    mean = np.array([1e8, 3.0, 3e3])
    assert np.all(np.abs(counts.mean(axis=0) - mean) < 4 * np.sqrt(mean / 2000))
    assert np.all(np.abs(counts.var(axis=0) / mean - 1.0) < 4 * np.sqrt((2.0 + 1.0 / mean) / 2000))
    np.testing.assert_array_equal(counts[:9], sampler.generate([1e8, 3.0], n_toys=9, seed=1, backend="jax"))


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_special_cases(backend):
    options = {"n_toys": 6, "seed": 2, "backend": backend}
    one = lambda n: jnp.stack([n])  # noqa: E731
    assert not PoissonCounts(one, ("n",)).generate([0.0], **options).any()
    assert np.all(MultinomialCounts(one, ("n",), 17).generate([3.0], **options) == 17.0)
    assert not MultinomialCounts(means, ("n",), 0).generate([3.0], **options).any()
    assert POISSON.generate([1.0], **{**options, "n_toys": 0}).shape == (0, 8)


def test_searches_on_both_sides_of_every_entry():
    tables = POISSON.prepare([1.0])
    entries = tables.tables[tables.offsets[6] : tables.offsets[7]]
    u = np.unique(np.concatenate([entries, np.nextafter(entries, 0), [2.0**-53, 1 - 2.0**-53]]))
    expected = np.searchsorted(entries, u, side="right")
    one = CountTables.of([entries], tables.least[6:7])
    with jax.enable_x64(True):
        found = jax.vmap(one.draw)(jnp.asarray(u)[:, None])[:, 0]
    np.testing.assert_array_equal(found, tables.least[6] + expected)
    counted = np.empty(len(u), np.int64)
    entries_up_to(tables.tables, *tables.offsets[6:8], u, counted)
    np.testing.assert_array_equal(counted, expected)


def test_of_a_cost():
    theta = [300.0, 0.5, 1.2]
    content = 300.0 * np.diff(stats.norm.cdf(EDGES, 0.5, 1.2))
    extended = ExtendedBinnedNLL(scaled_cdf, EDGES)
    sampler = PoissonCounts.of(extended)
    assert sampler.names == ("n", "mu", "sigma")
    counts = sampler.generate(theta, n_toys=4000, seed=3)
    assert np.abs((counts.mean(axis=0) - content) / np.sqrt(content / 4000)).max() < 4
    templates = PoissonCounts.of(
        PoissonNLL(lambda n, mu, sigma: jnp.diff(scaled_cdf(jnp.asarray(EDGES), n, mu, sigma)))
    )
    np.testing.assert_array_equal(templates.generate(theta, n_toys=50, seed=3), counts[:50])

    fixed = MultinomialCounts.of(BinnedNLL(scaled_cdf, EDGES), 100)
    counts = fixed.generate(theta, n_toys=4000, seed=3)
    expected = 100 * content / content.sum()
    assert np.abs((counts.mean(axis=0) - expected) / np.sqrt(expected / 4000)).max() < 4

    with pytest.raises(TypeError, match="not of BinnedNLL"):
        PoissonCounts.of(BinnedNLL(scaled_cdf, EDGES))
    with pytest.raises(TypeError, match="not of UnbinnedNLL"):
        MultinomialCounts.of(UnbinnedNLL(norm.pdf), 10)


@pytest.mark.parametrize(
    "sampler, theta, message",
    [
        (POISSON, [-1.0], r"expected counts must lie in \[0, 1e\+09\], got -0.001 in bin 1"),
        (POISSON, [1e8], "got 3500000000.0 in bin 5"),
        (POISSON, [np.nan], "theta must be finite"),
        (POISSON, [1.0, 2.0], r"shape \(1,\), got \(2,\)"),
        (MULTINOMIAL, [0.0], "no bin has a positive"),
        (MULTINOMIAL, [-1.0], "expected counts must lie in"),
        (PoissonCounts(lambda n: n, ("n",)), [1.0], r"shape \(n_bins,\), got \(\)"),
        (PoissonCounts(lambda n: n * jnp.ones(5000), ("n",)), [1e8], "exceed 1 GiB"),
    ],
)
def test_mistakes(sampler, theta, message):
    with pytest.raises(ValueError, match=message):
        sampler.generate(theta, n_toys=2, seed=1)


def test_number_of_events():
    with pytest.raises(ValueError, match=r"n_events must lie in \[0, 1e9\], got -1"):
        MultinomialCounts(means, ("scale",), -1)
    with pytest.raises(TypeError):
        MultinomialCounts(means, ("scale",), 2.5)
