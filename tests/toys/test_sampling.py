import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
from scipy import special, stats

from kernels import expon, norm, randombits, truncexpon, truncnorm, uniform
from toys.sampling import Component, ExtendedMixture, Tables, draw_toys, poisson_table

NAMES = ("ns", "nb", "mu", "sigma", "lam")
SIGNAL = Component("ns", truncnorm.ppf, (1.0, 9.0, "mu", "sigma"))
BACKGROUND = Component("nb", truncexpon.ppf, (1.0, 9.0, 0.0, "lam"))
SPECTRUM = ExtendedMixture(NAMES, (SIGNAL, BACKGROUND))
SMALL = [20.0, 35.0, 5.0, 0.5, 4.0]
EPS = np.finfo(np.float64).eps


def assert_same_toys(a, b):
    np.testing.assert_array_equal(a.offsets, b.offsets)
    np.testing.assert_array_equal(a.values, b.values)


@pytest.mark.parametrize("mean", [1e-3, 0.3, 1.0, 5.5, 80.0, 13500.0])
def test_poisson_table_is_the_cdf(mean):
    least, table = poisson_table(mean)
    np.testing.assert_allclose(table, stats.poisson.cdf(least + np.arange(len(table)), mean), atol=1e-14)
    assert np.all(np.diff(table) >= 0)
    # what was left out is out of reach: the next entries are beyond all uniform numbers
    assert stats.poisson.cdf(least - 1, mean) <= 1.001 * randombits.SMALLEST_UNIFORM
    assert stats.poisson.sf(least + len(table), mean) <= 4 * EPS


def test_poisson_table_at_large_mean():
    least, table = poisson_table(1e8)
    k = least + np.arange(len(table))
    # SciPy's function holds within 4 standard deviations only
    near = np.abs(k - 1e8) < 4e4
    np.testing.assert_allclose(table[near], special.pdtr(k[near], 1e8), atol=1e-11)
    assert 0 < table[0] < 1e-15 and table[-1] < 1.0
    counts = np.empty((2000, 1), np.int64)
    randombits.table_counts(0, 1, 0, table.reshape(1, -1), np.array([least]), counts)
    assert abs(counts.mean() - 1e8) < 4 * np.sqrt(1e8 / 2000)
    assert abs(counts.var() / 1e8 - 1.0) < 4 * np.sqrt(2 / 2000)


def test_no_events_at_mean_zero():
    least, table = poisson_table(0.0)
    assert least == 0 and len(table) == 0


def test_counts_are_poisson():
    means = np.array([3.7, 1500.0])
    theta = [*means, 5.0, 0.5, 4.0]
    tables = SPECTRUM.prepare(theta)
    counts = np.empty((20_000, 2), np.int64)
    randombits.table_counts(0, 12, 0, tables.tables, tables.least, counts)
    k = np.arange(11)
    expected = len(counts) * np.append(stats.poisson.pmf(k, 3.7), stats.poisson.sf(10, 3.7))
    observed = np.bincount(np.minimum(counts[:, 0], 11), minlength=12)
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    # mean and variance of the large one within 4 standard errors; no correlation
    assert abs(counts[:, 1].mean() - 1500.0) < 4 * np.sqrt(1500.0 / len(counts))
    assert abs(counts[:, 1].var() / 1500.0 - 1.0) < 4 * np.sqrt(2.0 / len(counts))
    assert abs(np.corrcoef(counts.T)[0, 1]) < 4 / np.sqrt(len(counts))


@pytest.mark.parametrize(
    "theta",
    [
        SMALL,
        [0.4, 3.0, 5.0, 0.01, 50.0],
        [20.0, 35.0, 12.0, 0.5, 0.05],  # the peak is 6 sigma above the window; 160 decay lengths in it
        [20.0, 35.0, -3.0, 0.25, 1e4],  # 16 sigma below
    ],
)
def test_backends_draw_the_same_toys(theta):
    by_numba = SPECTRUM.generate(theta, n_toys=2000, seed=2**40 + 3, first=10)
    by_jax = SPECTRUM.generate(theta, n_toys=2000, seed=2**40 + 3, first=10, backend="jax")
    np.testing.assert_array_equal(by_numba.offsets, by_jax.offsets)
    x = by_numba.values
    assert x.min() >= 1.0 and x.max() <= 9.0
    with jax.enable_x64(True):
        _, _, mu, sigma, lam = theta
        densities = truncnorm.pdf(x, 1.0, 9.0, mu, sigma), truncexpon.pdf(x, 1.0, 9.0, 0.0, lam)
    rounding = 4 * EPS / np.maximum(np.minimum(*densities), 1e-300)
    assert np.all(np.abs(x - by_jax.values) <= np.maximum(8e-12, rounding))
    if theta is SMALL:  # far more than asked, where no tail is involved
        np.testing.assert_allclose(x, by_jax.values, rtol=0, atol=8e-14)


def test_backends_agree_on_a_tie():
    """A table entry that equals the uniform number counts."""
    stream = jax.random.fold_in(randombits.toy_key(1, 0), 0)
    u = float(randombits.uniform(stream, 1)[0])
    tables = np.array([[0.5 * u, u, np.nextafter(u, 1.0), 2.0]])
    counts = np.empty((1, 1), np.int64)
    randombits.table_counts(0, 1, 0, tables, np.zeros(1, np.int64), counts)
    assert counts[0, 0] == 2
    mixture = ExtendedMixture(("n",), (Component("n", uniform.ppf, (0.0, 1.0)),))
    _, n = mixture.draw(randombits.toy_key(1, 0), Tables(np.ones(1), tables, np.zeros(1, np.int64), (4,)))
    assert int(n) == 2


def test_every_density_draws_the_same_on_both_backends():
    mixture = ExtendedMixture(
        ("n",),
        (
            Component("n", norm.ppf, (1.0, 2.0)),
            Component("n", expon.ppf, (-1.0, 3.0)),
            Component("n", uniform.ppf, (2.0, 5.0)),
        ),
    )
    by_numba = mixture.generate([30.0], n_toys=200, seed=5)
    by_jax = mixture.generate([30.0], n_toys=200, seed=5, backend="jax")
    np.testing.assert_array_equal(by_numba.offsets, by_jax.offsets)
    np.testing.assert_allclose(by_numba.values, by_jax.values, rtol=1e-14, atol=1e-14)


def test_a_toy_does_not_depend_on_its_chunk():
    whole = SPECTRUM.generate(SMALL, n_toys=50, seed=7, first=3)
    for begin, n in ((0, 1), (1, 30), (31, 19)):
        part = SPECTRUM.generate(SMALL, n_toys=n, seed=7, first=3 + begin)
        assert_same_toys(part, whole[begin : begin + n])
    tables = SPECTRUM.prepare(SMALL)
    drawn = [draw_toys(SPECTRUM.draw, tables, n_toys=50, seed=7, first=3, chunk=chunk) for chunk in (64, 7)]
    assert_same_toys(*drawn)
    assert_same_toys(drawn[0][20:30], draw_toys(SPECTRUM.draw, tables, n_toys=10, seed=7, first=23, chunk=7))


def test_the_number_of_threads_changes_nothing():
    threads = numba.get_num_threads()
    many = SPECTRUM.generate(SMALL, n_toys=64, seed=9)
    try:
        numba.set_num_threads(1)
        one = SPECTRUM.generate(SMALL, n_toys=64, seed=9)
    finally:
        numba.set_num_threads(threads)
    assert_same_toys(many, one)


def test_another_component_leaves_the_others_as_they_are():
    three = ExtendedMixture(NAMES, (SIGNAL, BACKGROUND, Component("ns", truncexpon.ppf, (1.0, 9.0, 0.0, "lam"))))
    more = three.generate(SMALL, n_toys=20, seed=3)
    few = SPECTRUM.generate(SMALL, n_toys=20, seed=3)
    assert len(more.values) > len(few.values)
    for k in range(20):
        np.testing.assert_array_equal(more[k][: len(few[k])], few[k])


def test_other_seeds_and_toys_are_other_numbers():
    values = [SPECTRUM.generate(SMALL, n_toys=20, seed=seed).values for seed in (3, 4, 3 + 2**32)]
    assert len(np.unique(np.concatenate(values))) == sum(map(len, values))


def test_events_follow_the_densities():
    toys = SPECTRUM.generate([30_000.0, 0.0, 3.0, 2.0, 4.0], n_toys=3, seed=11)
    assert stats.kstest(toys.values, stats.truncnorm(-1.0, 3.0, 3.0, 2.0).cdf).pvalue > 1e-3
    toys = SPECTRUM.generate([0.0, 30_000.0, 3.0, 2.0, 4.0], n_toys=3, seed=11)
    assert stats.kstest(toys.values, stats.truncexpon(2.0, 1.0, 4.0).cdf).pvalue > 1e-3


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_nothing_to_draw(backend):
    empty = SPECTRUM.generate([0.0, 0.0, 5.0, -1.0, 4.0], n_toys=5, seed=1, backend=backend)
    np.testing.assert_array_equal(empty.offsets, np.zeros(6))
    assert len(SPECTRUM.generate(SMALL, n_toys=0, seed=1, backend=backend)) == 0


@pytest.mark.parametrize("x64", [False, True])
def test_one_toy_is_one_call(x64):
    expected = SPECTRUM.generate(SMALL, n_toys=3, seed=2, first=40)
    with jax.enable_x64(x64):
        values, n = jax.jit(lambda key: SPECTRUM(key, SMALL))(randombits.toy_key(2, 41))
    assert values.dtype == np.float64 and int(n) == len(expected[1])
    np.testing.assert_allclose(values[: int(n)], expected[1], rtol=0, atol=8e-12)


def test_any_sampler_can_be_drawn():
    def sampler(key, theta):
        u = randombits.uniform(key, 4)
        return theta[0] * u, jnp.where(u[0] < 0.5, 2, 4)

    toys = draw_toys(sampler, np.array([10.0]), n_toys=40, seed=1, chunk=16)
    lengths = np.diff(toys.offsets)
    assert set(lengths) == {2, 4}
    for k, length in enumerate(lengths):
        u = randombits.uniform(randombits.toy_key(1, k), 4)
        np.testing.assert_array_equal(toys[k], 10.0 * np.asarray(u)[:length])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"theta": [20.0, -1.0, 5.0, 0.5, 4.0]}, r"the yield nb must lie in \[0, 1e9\], got -1.0"),
        ({"theta": [2e9, 1.0, 5.0, 0.5, 4.0]}, "the yield ns must lie"),
        ({"theta": [20.0, np.inf, 5.0, 0.5, 4.0]}, "theta must be finite"),
        ({"theta": [20.0, 1.0, 5.0, np.nan, 4.0]}, "theta must be finite"),
        ({"theta": [20.0, 1.0]}, r"shape \(5,\), got \(2,\)"),
        ({"theta": [20.0, 1.0, 5.0, -0.5, 4.0]}, "no density at"),
        ({"theta": [20.0, 1.0, 5.0, -0.5, 4.0], "backend": "jax"}, "no density at"),
        ({"n_toys": -1}, "n_toys = -1"),
        ({"first": -1}, "first = -1"),
        ({"first": 2**32 - 2}, r"k < 2\^32"),
        ({"seed": -1}, "seed must lie"),
        ({"seed": 2**64, "backend": "jax"}, "seed must lie"),
        ({"backend": "cuda"}, "'numba' or 'jax', got 'cuda'"),
    ],
)
def test_mistakes(change, message):
    arguments = {"theta": SMALL, "n_toys": 3, "seed": 1, **change}
    with pytest.raises(ValueError, match=message):
        SPECTRUM.generate(**arguments)


def test_mistakes_in_a_mixture():
    with pytest.raises(ValueError, match="'width'"):
        ExtendedMixture(NAMES, (Component("ns", truncnorm.ppf, (1.0, 9.0, "mu", "width")),))
    with pytest.raises(ValueError, match="'n'"):
        ExtendedMixture(NAMES, (Component("n", truncnorm.ppf, (1.0, 9.0, "mu", "sigma")),))
    with pytest.raises(ValueError, match="at least one"):
        ExtendedMixture(NAMES, ())
