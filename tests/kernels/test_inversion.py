import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from kernels import cauchy
from kernels.inversion import map_quantiles, numerical_ppf, quantiles

# the bulk, and both tails down to the smallest uniform number
U = np.concatenate(
    [np.random.default_rng(3).uniform(size=2000), 2.0 ** -np.arange(2, 54.0), 1.0 - 2.0 ** -np.arange(2, 54.0)]
)


def by_both(ppf, *args):
    table = ppf.table(*args)
    with jax.enable_x64(True):
        x = np.asarray(quantiles(jnp.asarray(table), jnp.asarray(U)))
    rows = U[None].copy()
    map_quantiles(table, rows, 0, len(U))
    np.testing.assert_allclose(rows[0], x, rtol=0, atol=1e-13 * (ppf.xmax - ppf.xmin))
    assert x.min() >= ppf.xmin and x.max() <= ppf.xmax
    return rows[0]


def gauss(x, loc, scale):  # not normalised
    return 3.0 * jnp.exp(-0.5 * ((x - loc) / scale) ** 2)


def two_peaks(x, a, b, scale):
    return gauss(x, a, scale) + gauss(x, b, scale)


def step(x, edge):
    return jnp.where(x < edge, 2.0, 1.0)


def triangle(x, top):
    return 1.0 - jnp.abs(x - top)


@pytest.mark.parametrize(
    "pdf, window, args, cdf",
    [
        (gauss, (1.0, 9.0), (5.0, 0.5), stats.truncnorm(-8, 8, 5.0, 0.5).cdf),
        (gauss, (0.0, 1.0), (5.0, 0.9), stats.truncnorm(-5 / 0.9, -4 / 0.9, 5.0, 0.9).cdf),
        (lambda x, lam: jnp.exp(-x / lam), (0.0, 30.0), (2.0,), stats.truncexpon(15, 0, 2.0).cdf),
        (lambda x: x**2, (0.0, 1.0), (), lambda x: x**3),
        (lambda x: jnp.ones_like(x), (-1.0, 3.0), (), lambda x: (x + 1) / 4),
        # nothing in between: 60 standard deviations from both peaks
        (two_peaks, (0.0, 10.0), (2.0, 8.0, 0.05), lambda x: stats.norm.cdf(x[..., None], [2, 8], 0.05).mean(axis=-1)),
        (step, (0.0, 1.0), (0.3,), lambda x: np.where(x < 0.3, 2 * x, 0.3 + x) / 1.3),
        (step, (0.0, 1.0), (np.pi / 9,), lambda x: np.where(x < np.pi / 9, 2 * x, np.pi / 9 + x) / (1 + np.pi / 9)),
        (triangle, (-0.7, 1.3), (0.3,), lambda x: np.where(x < 0.3, 0.5 * (x + 0.7) ** 2, 1 - 0.5 * (1.3 - x) ** 2)),
    ],
)
def test_the_cdf_of_a_quantile_is_its_probability(pdf, window, args, cdf):
    x = by_both(numerical_ppf(pdf, *window), *args)
    assert np.abs(cdf(x) - U).max() < 1e-12
    order = np.argsort(U)
    assert np.all(np.diff(x[order]) >= -1e-14 * (window[1] - window[0]))


def test_tails_are_inverted_from_their_own_side():
    x = by_both(numerical_ppf(gauss, -40.0, 40.0), 0.0, 1.0)
    lower = U < 0.5
    np.testing.assert_allclose(stats.norm.cdf(x[lower]), U[lower], rtol=1e-6)
    np.testing.assert_allclose(stats.norm.sf(x[~lower]), 1.0 - U[~lower], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1e-9])
def test_a_peak_much_narrower_than_the_range(scale):
    x = by_both(numerical_ppf(gauss, 0.0, 1.0), 0.123, scale)
    # a rounding of x is 2^-53 / scale standard deviations, of density up to 0.4
    assert np.abs(stats.norm.cdf((x - 0.123) / scale) - U).max() < 1e-12 + 2.0**-53 / scale
    x = by_both(numerical_ppf(cauchy.pdf, 0.0, 100.0), 91.0, scale)
    below, above = stats.cauchy.cdf([(0 - 91) / scale, 9 / scale])
    expected = (stats.cauchy.cdf((x - 91.0) / scale) - below) / (above - below)
    assert np.abs(expected - U).max() < 1e-12 + 4 * 2.0**-46 / scale


def test_a_narrow_peak_that_no_parameter_tells():
    x = by_both(numerical_ppf(lambda x: gauss(x, 0.1234567, 1e-4), 0.0, 1.0))
    assert np.abs(stats.norm.cdf((x - 0.1234567) / 1e-4) - U).max() < 2e-12


def test_an_integrable_infinity_is_right_to_the_rounding_of_x():
    x = by_both(numerical_ppf(lambda x: jnp.abs(x - 0.3) ** -0.5, 0.0, 1.0))
    root = lambda x: np.sign(x - 0.3) * np.sqrt(np.abs(x - 0.3))  # noqa: E731
    cdf = (root(x) - root(0.0)) / (root(1.0) - root(0.0))
    assert np.abs(cdf - U).max() < 3e-8  # sqrt(eps)


def test_as_a_function():
    ppf = numerical_ppf(gauss, 1.0, 9.0)
    p = np.array([[0.25, 0.75], [-0.1, 1.1]])
    x = ppf(p, 5.0, 0.5)
    np.testing.assert_allclose(x[0], stats.norm.ppf(p[0], 5.0, 0.5), rtol=1e-14)
    assert np.isnan(x[1]).all()
    assert ppf == numerical_ppf(gauss, 1.0, 9.0)


@pytest.mark.parametrize(
    "pdf, message",
    [
        (lambda x, m: x - m, r"finite and not negative, got -0.3 at x = 0"),
        (lambda x, m: jnp.log(x - m), "must be finite and not negative, got nan at x = 0"),
        (lambda x, m: 1.0 / jnp.abs(x - m), "got inf at x = 0.3"),
        (lambda x, m: 0.0 * x, r"with parameters \(0.3\) vanishes between 0 and 1"),
        (lambda x, m: jnp.sin(1e6 * x) ** 2, "is too rough to be integrated"),
        (lambda x, m: jnp.stack([x, m]), "must return a number for one x, got shape"),
    ],
)
def test_densities_that_are_none(pdf, message):
    with pytest.raises(ValueError, match=message):
        numerical_ppf(pdf, 0.0, 1.0).table(0.3)


@pytest.mark.parametrize("window", [(1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)])
def test_no_range(window):
    with pytest.raises(ValueError, match="range of a density must be finite"):
        numerical_ppf(gauss, *window)
