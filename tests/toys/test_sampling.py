import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
from scipy import special, stats

from kernels import expon, norm, randombits, truncexpon, truncnorm, uniform
from toys.counts import CountTables, PoissonCounts, poisson_table
from toys.drawing import draw_toys
from toys.sampling import Component, ExtendedMixture, Mixture, Tables, numerical_ppf

NAMES = ("ns", "nb", "mu", "sigma", "lam")
SIGNAL = Component("ns", truncnorm.ppf, (1.0, 9.0, "mu", "sigma"))
BACKGROUND = Component("nb", truncexpon.ppf, (1.0, 9.0, 0.0, "lam"))
SPECTRUM = ExtendedMixture(NAMES, (SIGNAL, BACKGROUND))
SMALL = [20.0, 35.0, 5.0, 0.5, 4.0]
EPS = np.finfo(np.float64).eps


def keys_of(n_toys, seed):
    keys = np.empty((n_toys, 2), np.uint32)
    randombits.toy_keys(*randombits.key_words(seed), 0, keys)
    return keys


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
    # with the toys of a single bin
    counts = PoissonCounts(lambda mean: mean[None], ("mean",)).generate([1e8], n_toys=2000, seed=1)
    assert abs(counts.mean() - 1e8) < 4 * np.sqrt(1e8 / 2000)
    assert abs(counts.var() / 1e8 - 1.0) < 4 * np.sqrt(2 / 2000)


def test_no_events_at_mean_zero():
    least, table = poisson_table(0.0)
    assert least == 0 and len(table) == 0


def test_counts_are_poisson():
    means = np.array([3.7, 1500.0])
    theta = [*means, 5.0, 0.5, 4.0]
    counts = SPECTRUM._all_counts(SPECTRUM.prepare(theta), keys_of(20_000, 12)).astype(int)
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
    mixture = ExtendedMixture(("n",), (Component("n", uniform.ppf, (0.0, 1.0)),))
    counts = CountTables.of([np.array([0.5 * u, u, np.nextafter(u, 1.0), 2.0])], [0])
    tables = Tables(np.ones(1), counts, ((np.empty(0),),), (4,))
    assert mixture._all_counts(tables, keys_of(1, 1)) == 2
    assert int(mixture.draw(randombits.toy_key(1, 0), tables)[1]) == 2


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
    np.testing.assert_array_equal(drawn[0].offsets, drawn[1].offsets)
    np.testing.assert_allclose(drawn[0].values, drawn[1].values, rtol=4 * EPS)  # its rounding depends on the chunk
    assert_same_toys(drawn[1][20:30], draw_toys(SPECTRUM.draw, tables, n_toys=10, seed=7, first=23, chunk=7))


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


# --- a fixed number of events, several observables, densities without a quantile function --------------------

FIXED = Mixture(
    ("mu", "f", "lam"),
    50,
    (
        Component(None, truncnorm.ppf, (1.0, 9.0, "mu", 0.5)),
        Component(None, truncexpon.ppf, (1.0, 9.0, 0.0, "lam")),
        Component(None, uniform.ppf, (2.0, 7.0)),
    ),
    ("f", 0.3),
)


def gauss(x, mu, sigma):
    return jnp.exp(-0.5 * ((x - mu) / sigma) ** 2)


PLANE = ExtendedMixture(
    ("n", "m", "mu"),
    (
        Component("n", ((norm.ppf, ("mu", 0.5)), (expon.ppf, (0.0, 2.0)))),
        Component("m", ((uniform.ppf, (0.0, 1.0)), (numerical_ppf(gauss, 0.0, 8.0), ("mu", 0.3)))),
    ),
)


def test_a_fixed_number_of_events():
    n_toys = 4000
    toys = FIXED.generate([5.0, 0.2, 4.0], n_toys=n_toys, seed=2)
    np.testing.assert_array_equal(toys.offsets, 50 * np.arange(n_toys + 1))
    counts = FIXED._all_counts(FIXED.prepare([5.0, 0.2, 4.0]), keys_of(n_toys, 2))
    fractions = np.array([0.2, 0.3, 0.5])
    assert np.all(counts.sum(axis=1) == 50)
    expected = n_toys * stats.binom.pmf(np.arange(51), 50, 0.2)
    observed = np.bincount(counts[:, 0].astype(int), minlength=51)
    keep = expected > 5
    pooled = [np.append(a[keep], a[~keep].sum()) for a in (observed, expected)]
    assert stats.chisquare(*pooled).pvalue > 1e-3
    covariance = 50 * (np.diag(fractions) - np.outer(fractions, fractions))
    assert np.abs(np.cov(counts.T) - covariance).max() < 4.5 * 12.5 * np.sqrt(2 / n_toys)
    # and the events follow the density of the mixture
    parts = stats.truncnorm(-8, 8, 5.0, 0.5), stats.truncexpon(2.0, 1.0, 4.0), stats.uniform(2.0, 7.0)
    cdf = lambda x: sum(f * part.cdf(x) for f, part in zip(fractions, parts, strict=True))  # noqa: E731
    assert stats.kstest(toys.values, cdf).pvalue > 1e-3


def test_a_component_alone_and_no_events():
    alone = Mixture((), 30, (Component(None, uniform.ppf, (0.0, 1.0)),))
    for backend in ("numba", "jax"):
        toys = alone.generate([], n_toys=4, seed=1, backend=backend)
        stream = jax.random.fold_in(randombits.toy_key(1, 3), 1)
        np.testing.assert_array_equal(toys[3], randombits.uniform(stream, 30))
        empty = Mixture((), 0, alone.components).generate([], n_toys=4, seed=1, backend=backend)
        np.testing.assert_array_equal(empty.offsets, np.zeros(5))


@pytest.mark.parametrize("sampler, theta", [(FIXED, [5.0, 0.2, 4.0]), (PLANE, [20.0, 30.0, 4.0])])
def test_backends_chunks_and_single_toys(sampler, theta):
    by_numba = sampler.generate(theta, n_toys=64, seed=2**40, first=9)
    by_jax = sampler.generate(theta, n_toys=64, seed=2**40, first=9, backend="jax")
    np.testing.assert_array_equal(by_numba.offsets, by_jax.offsets)
    np.testing.assert_allclose(by_numba.values, by_jax.values, rtol=0, atol=8e-12)
    assert_same_toys(sampler.generate(theta, n_toys=5, seed=2**40, first=29), by_numba[20:25])
    values, n = jax.jit(lambda key: sampler(key, theta))(randombits.toy_key(2**40, 30))
    np.testing.assert_allclose(values[..., : int(n)], by_numba[21], rtol=0, atol=8e-12)


def test_several_observables():
    toys = PLANE.generate([20.0, 0.0, 4.0], n_toys=2000, seed=3)
    x, y = toys.values
    assert stats.kstest(x, stats.norm(4.0, 0.5).cdf).pvalue > 1e-3
    assert stats.kstest(y, stats.expon(scale=2.0).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(x, y).statistic) < 4 / np.sqrt(len(x))
    x, y = PLANE.generate([0.0, 30.0, 4.0], n_toys=1000, seed=3).values
    assert stats.kstest(x, "uniform").pvalue > 1e-3
    assert stats.kstest(y, stats.norm(4.0, 0.3).cdf).pvalue > 1e-3
    assert abs(stats.spearmanr(x, y).statistic) < 4 / np.sqrt(len(x))
    # a further observable leaves the first as it is
    line = ExtendedMixture(PLANE.names, (Component("n", norm.ppf, ("mu", 0.5)),))
    np.testing.assert_array_equal(line.generate([20.0, 0.0, 4.0], n_toys=2000, seed=3).values, toys.values[0])


def test_a_density_draws_what_its_quantile_function_draws():
    by_density = ExtendedMixture(NAMES, (Component("ns", numerical_ppf(gauss, 1.0, 9.0), ("mu", "sigma")), BACKGROUND))
    a, b = (s.generate(SMALL, n_toys=100, seed=4) for s in (by_density, SPECTRUM))
    np.testing.assert_array_equal(a.offsets, b.offsets)
    np.testing.assert_allclose(a.values, b.values, rtol=0, atol=8e-12)


@pytest.mark.parametrize(
    "theta, message",
    [
        ([5.0, -0.1, 4.0], r"fractions must not be negative, .*, got \[-0.1, 0.3\]"),
        ([5.0, 0.8, 4.0], "nor their sum larger than 1"),
        ([5.0, 0.2, -4.0], "no density at"),
    ],
)
def test_parameters_without_a_fixed_mixture(theta, message):
    with pytest.raises(ValueError, match=message):
        FIXED.generate(theta, n_toys=2, seed=1)


def test_more_mistakes_in_a_mixture():
    one, two = Component(None, uniform.ppf, (0.0, 1.0)), Component("n", uniform.ppf, (0.0, 1.0))
    pair = Component(None, ((uniform.ppf, (0.0, 1.0)), (uniform.ppf, (0.0, 1.0))))
    with pytest.raises(ValueError, match="2 components need 1 fractions"):
        Mixture(("f",), 3, (one, one))
    with pytest.raises(ValueError, match="has no yield: pass None"):
        Mixture(("n",), 3, (two,))
    with pytest.raises(ValueError, match="must have a yield"):
        ExtendedMixture(("n",), (one,))
    with pytest.raises(ValueError, match="'g', which is not one of"):
        Mixture(("f",), 3, (one, one), ("g",))
    with pytest.raises(ValueError, match="the same number of observables"):
        Mixture(("f",), 3, (one, pair), ("f",))
    with pytest.raises(TypeError, match="takes its arguments with each"):
        Component(None, ((uniform.ppf, (0.0, 1.0)),), (1.0,))
    with pytest.raises(TypeError, match="ppf must be a function"):
        Component(None, 5.0)
    for wrong in (True, ("n",), [1.0]):
        with pytest.raises(TypeError, match="yield_name must be the name of a parameter, a number or a function of"):
            Component(wrong, uniform.ppf, (0.0, 1.0))
        with pytest.raises(TypeError, match="each of args must be the name of a parameter, a number or a function of"):
            Component(None, uniform.ppf, (0.0, wrong))
        with pytest.raises(TypeError, match="each of fractions must be the name of a parameter, a number or a functi"):
            Mixture(("f",), 3, (one, one), (wrong,))
    with pytest.raises(ValueError, match="must have parameters of the fit as its arguments"):
        Component(lambda *n: n[0], uniform.ppf, (0.0, 1.0))
    with pytest.raises(ValueError, match="the parameter 'eff', which is not one of"):
        ExtendedMixture(("n",), (Component(lambda n, eff: n * eff, uniform.ppf, (0.0, 1.0)),))
    with pytest.raises(ValueError, match="the parameter 'eff', which is not one of"):
        ExtendedMixture(("n",), (Component("n", uniform.ppf, (0.0, lambda eff: eff)),))
    with pytest.raises(ValueError, match=r"the yield '<lambda>' must lie in \[0, 1e9\], got -3"):
        ExtendedMixture(("n",), (Component(lambda n: -n, uniform.ppf, (0.0, 1.0)),)).prepare([3.0])
    with pytest.raises(ValueError, match=r"the function '<lambda>' must give one number, got the shape \(2,\)"):
        ExtendedMixture(("n",), (Component(lambda n: jnp.stack([n, n]), uniform.ppf, (0.0, 1.0)),)).prepare([3.0])
    for wrong in ("x", None, 1j):
        with pytest.raises(TypeError, match="the function '<lambda>' must give a real number, got"):
            ExtendedMixture(("n",), (Component(lambda n, w=wrong: w, uniform.ppf, (0.0, 1.0)),)).prepare([3.0])
    with pytest.raises(TypeError, match="fractions must be a tuple of numbers, parameters and functions, got None"):
        Mixture(("f",), 3, (one, one), None)
    with pytest.raises(TypeError, match=r"the function '<lambda>' cannot be evaluated for numbers .* jax.numpy"):
        ExtendedMixture(("n",), (Component(lambda n: 1 / len(n), uniform.ppf, (0.0, 1.0)),)).prepare([3.0])
    with pytest.raises(ValueError, match="n_events must lie in"):
        Mixture((), -3, (one,))


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_quantities_that_are_functions_of_parameters(backend):
    """As if the parameters were what the functions give."""
    names = ("n", "asymmetry", "m", "shift", "sigma")
    theta = [60.0, 0.25, 5.0, -0.5, 0.5]
    plus = Component(lambda asymmetry, n: n * (1 + asymmetry) / 2, norm.ppf, (lambda m, shift: m + shift, "sigma"))
    by_table = numerical_ppf(norm.pdf, 0.0, 9.0)
    minus = Component(lambda n, asymmetry: n * (1 - asymmetry) / 2, by_table, ("m", lambda sigma: jnp.exp2(sigma)))
    toys = ExtendedMixture(names, (plus, minus, Component(20, uniform.ppf, (0.0, 9.0)))).generate(
        theta, n_toys=5, seed=3, backend=backend
    )
    flat = ("plus", "minus", "flat", "m", "moved", "sigma", "wide")
    given = [37.5, 22.5, 20.0, 5.0, 4.5, 0.5, np.exp2(0.5)]
    same = ExtendedMixture(
        flat,
        (
            Component("plus", norm.ppf, ("moved", "sigma")),
            Component("minus", by_table, ("m", "wide")),
            Component("flat", uniform.ppf, (0.0, 9.0)),
        ),
    ).generate(given, n_toys=5, seed=3)
    np.testing.assert_array_equal(toys.offsets, same.offsets)
    np.testing.assert_allclose(toys.values, same.values, rtol=1e-13)
    shares = Mixture(names, 50, (Component(None, norm.ppf, ("m", "sigma")),) * 2, lambda asymmetry: asymmetry / 2)
    same = Mixture(("f", "m", "sigma"), 50, (Component(None, norm.ppf, ("m", "sigma")),) * 2, ("f",))
    toys = shares.generate(theta, n_toys=5, seed=3, backend=backend)
    np.testing.assert_allclose(toys.values, same.generate([0.125, 5.0, 0.5], n_toys=5, seed=3).values, rtol=1e-13)


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("ppf", [stats.norm.ppf, lambda p, mu: mu, lambda p, mu, s: mu if p < 0.5 else s])
def test_a_ppf_that_cannot_be_evaluated(ppf, backend):
    sampler = ExtendedMixture(("n", "mu", "sigma"), (Component("n", ppf, ("mu", "sigma")),))
    with pytest.raises(TypeError, match=r"^the ppf '.*' cannot be evaluated for one p \(.*\): (write it|call it)"):
        sampler.generate([10.0, 1.0, 2.0], n_toys=2, seed=1, backend=backend)
