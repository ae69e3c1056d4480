"""What only one of the densities beyond the basic five can get wrong: limits, tails, branches, windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from kernels import cauchy, cruijff, crystalball, crystalball_ex, lognorm, norm, qgaussian, quadrature, t, voigt
from kernels.truncated import truncate, trunccauchy, trunccrystalball_ex
from tests.kernels.density_cases import INF, QUICKLY, compiled, of_numba_stats
from tests.kernels.textbook import ERF, SQRT2, gauss

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("q", [1.0, 1.0 + 1e-12, 1.0 + 1e-6])
def test_qgaussian_starts_from_the_normal_distribution(q):
    x = np.linspace(-5.0, 5.0, 21)
    z = (x - 0.3) / 1.2
    # first order in q - 1; the second is about z^6 / 12
    expected = norm.logpdf(x, 0.3, 1.2) + (q - 1.0) * (z**4 - 3.0) / 8.0
    error = 1e-14 + (q - 1.0) ** 2 * 500
    np.testing.assert_allclose(compiled(qgaussian, "logpdf")(x, q, 0.3, 1.2), expected, atol=20 * error)
    slope = jax.jit(jax.jacfwd(lambda q: qgaussian.logpdf(x, q, 0.3, 1.2)), compiler_options=QUICKLY)(q)
    np.testing.assert_allclose(slope, (z**4 - 3.0) / 8.0, atol=1e-12 + (q - 1.0) * 5000)
    # the change of the cdf is about 0.2 (q - 1)
    np.testing.assert_allclose(
        compiled(qgaussian, "cdf")(x, q, 0.3, 1.2), norm.cdf(x, 0.3, 1.2), rtol=1e-12, atol=q - 1.0
    )


@pytest.mark.parametrize("df", [1.0, 2.0, 30.0, 1e3, 1e6])
def test_t_cdf_has_both_tails(df):
    z = -(10.0 ** np.linspace(-3, 1, 60))
    below = scipy.stats.t.cdf(z, df)
    usable = below > 1e-290
    # 66 nodes leave 4e-13 at df = 1, and the density rounds by eps z^2 / 2
    np.testing.assert_allclose(np.asarray(compiled(t, "cdf")(z, df, 0.0, 1.0))[usable], below[usable], rtol=1e-12)
    # scipy's own error at df = 1, where the exact value is known to be ours
    np.testing.assert_allclose(compiled(t, "cdf")(-z, df, 0.0, 1.0), 1.0 - below, rtol=1e-13)


def test_faddeeva():
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-15.0, 15.0, 3000), 10.0 ** rng.uniform(-8.0, 2.0, 3000)
    y[:100] = 0.0
    # x on the nodes of the sum and half-way between, where Lorentz curves of width 0 would be infinite
    x[:50] = 0.5 * np.sqrt(np.pi / 12) * np.arange(-25, 25)
    # next to |z| = 7, where the formula changes
    angle = rng.uniform(0.0, np.pi, 500)
    x[500:1000], y[500:1000] = rng.uniform(6.99, 7.01, 500) * np.array([np.cos(angle), np.sin(angle)])
    exact = scipy.special.wofz(x + 1j * y)
    real, imag = map(np.asarray, jax.jit(voigt.faddeeva)(x, y))
    # wofz claims 1e-13; both parts of it, also where the real part is 1e-9 of the whole
    np.testing.assert_allclose(imag, exact.imag, rtol=2e-13, atol=1e-15)
    np.testing.assert_allclose(real, exact.real, rtol=2e-13, atol=1e-18)


def test_voigt_without_cauchy_part_is_normal():
    x = np.linspace(-4.0, 4.0, 41)
    np.testing.assert_allclose(compiled(voigt, "pdf")(x, 0.0, 0.3, 1.2), norm.pdf(x, 0.3, 1.2), rtol=1e-13)
    # far from the peak of a narrow resolution it is the Cauchy distribution; scale^2 / gamma^2 is below rounding
    np.testing.assert_allclose(compiled(voigt, "pdf")(x, 0.5, 0.3, 1e-9), cauchy.pdf(x, 0.3, 0.5), rtol=1e-13)


@pytest.mark.parametrize("gamma", [1e-3, 0.3, 2.0])
def test_voigt_is_normalised(gamma):
    """The window covers all but gamma / 200 pi or so on either side, where the density is nearly that of Cauchy."""
    lower = jnp.arange(-200.0, 200.0, 5.0)
    parts = jax.jit(lambda gamma: quadrature.integral(lambda x: voigt.pdf(x, gamma, 0.0, 1.0), lower, lower + 5.0, 40))
    inside = np.sum(parts(gamma))
    # the tails of a sum: corrections of relative order scale^2 / x^2 = 2.5e-5, three times
    outside = 2.0 * cauchy.cdf(-200.0, 0.0, gamma)
    np.testing.assert_allclose(inside, 1.0 - outside, atol=1e-4 * outside + 1e-12)


def test_crystalball_meets_itself():
    """With one set of parameters on both sides it is symmetric; with a far tail it is the normal distribution."""
    x = np.linspace(-8.0, 8.0, 33)
    both = (1.1, 2.7, 0.9)
    left, right = (crystalball_ex.pdf(0.3 + sign * x, *both, *both, 0.3) for sign in (-1.0, 1.0))
    np.testing.assert_allclose(left, right, rtol=1e-14)
    np.testing.assert_allclose(crystalball.pdf(x, 30.0, 2.0, 0.3, 1.2), norm.pdf(x, 0.3, 1.2), rtol=1e-13)
    theta = (1.1, 2.7, 0.9, 1.6, 3.4, 1.3, 0.3)
    window = trunccrystalball_ex.pdf(x, -5.0, 5.0, *theta)
    mass = crystalball_ex.cdf(5.0, *theta) - crystalball_ex.cdf(-5.0, *theta)
    np.testing.assert_allclose(
        window, np.where(np.abs(x) <= 5.0, crystalball_ex.pdf(x, *theta), 0.0) / mass, rtol=1e-14
    )


@pytest.mark.parametrize("edges", [(-INF, INF), (-INF, 2.0), (1.0, INF)])
def test_open_windows(edges):
    x, theta = 1.4, (0.3, 1.2)
    mass = cauchy.cdf(edges[1], *theta) - cauchy.cdf(edges[0], *theta)
    derivatives = jax.jacfwd(lambda theta: trunccauchy.pdf(x, *edges, *theta))(jnp.array(theta))
    np.testing.assert_allclose(trunccauchy.pdf(x, *edges, *theta), cauchy.pdf(x, *theta) / mass, rtol=1e-14)
    assert np.isfinite(derivatives).all()
    # any density that has a cdf
    inside = lognorm.cdf(4.0, 0.7, 0.3, 1.2) - lognorm.cdf(0.8, 0.7, 0.3, 1.2)
    expected = lognorm.pdf(1.4, 0.7, 0.3, 1.2) / inside
    np.testing.assert_allclose(truncate(lognorm).pdf(1.4, 0.8, 4.0, 0.7, 0.3, 1.2), expected, rtol=1e-14)


def test_cruijff_quadrature_is_good_enough():
    """The normal limit has a closed form; windows up to 100 widths."""
    for width in (1.0, 10.0, 100.0):
        value = cruijff.pdf(0.3, 0.3 - width, 0.3 + 0.5 * width, 0.0, 0.0, 0.3, 1.0, 1.0)
        mass = 0.5 * np.sqrt(2 * np.pi) * (ERF(width / SQRT2) + ERF(0.5 * width / SQRT2))
        np.testing.assert_allclose(value, 1.0 / mass, rtol=1e-12)


@pytest.mark.parametrize("loc", [-6.0, -4.0, 5.0, 7.0])
def test_cruijff_beside_its_window(loc):
    theta = (0.1, 0.2, loc, 0.9, 1.3)
    mass = gauss(lambda x: of_numba_stats("cruijff").density(x, *theta), -4.0, 5.0)
    np.testing.assert_allclose(
        cruijff.pdf(0.7, -4.0, 5.0, *theta), of_numba_stats("cruijff").density(np.array(0.7), *theta) / mass, rtol=1e-12
    )
