import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from kernels import norm, truncnorm


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


frames = pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (10.0, 1e-3), (-5.0, 1e3)])


# x, a, b in standard deviations; log density and cdf by 800-digit arithmetic from the difference of two erfc
@pytest.mark.parametrize(
    ("z", "a", "b", "log_density", "below"),
    [
        (0.5, -1, 1, -0.66222338690254666951, 0.78045321259400155433),
        (9, 8, 12, -6.4055013732901228434, 0.99981858293546797897),
        (21, 20, 30, -17.501783162107408805, 0.99999999880910470067),
        (36.25, 36, 37, -5.4469609394062757505, 0.99988121077777073445),
        (39, 38, 45, -34.861722514384542645, 0.99999999999999998145),
        (200.5, 200, 201, -94.826657635014270649, 1.0),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_tails_against_many_digits(z, a, b, log_density, below, sign):
    theta = (a, b, 0.0, 1.0) if sign > 0 else (-b, -a, 0.0, 1.0)
    # z^2 / 2 is rounded once and subtracted from its counterpart at the edge
    error = 2.3e-16 * (10 + z * z)
    assert truncnorm.logpdf(sign * z, *theta) == pytest.approx(log_density, abs=error)
    assert truncnorm.pdf(sign * z, *theta) == pytest.approx(np.exp(log_density), rel=2 * error)
    expected = below if sign > 0 else 1.0 - below
    assert truncnorm.cdf(sign * z, *theta) == pytest.approx(expected, abs=2.3e-16)


# quantiles by bisection in up to 330 digits
@pytest.mark.parametrize(
    ("a", "b", "p", "z"),
    [
        (8, 12, 0.5, 8.0849110073915441),
        (8, 12, 1e-9, 8.00000000012313196),
        (20, 30, 0.999, 20.3416272909840018),
        (-10, 10, 1e-20, -9.26225878058543105),
        (-3, 4, 0.25, -0.671332066034723332),
        (-37, -36, 0.75, -36.0079841328670449),
        (-37, -36, 1e-12, -36.7589459306475149),
    ],
)
def test_ppf_against_many_digits(a, b, p, z):
    # 4 eps of z, in units of the range
    assert truncnorm.ppf(p, a, b, 0.0, 1.0) == pytest.approx(z, rel=9e-16)


@frames
@pytest.mark.parametrize(("a", "b"), [(8, 12), (20, 30), (-12, -8), (-30, -20), (-1, 1), (-6, 8), (2, 2.001)])
def test_ppf_inverts_independent_cdf(a, b, loc, scale):
    """The mass below ppf(p), by erfcx of scipy, is p."""
    p = np.concatenate([np.logspace(-12, -1, 30), np.linspace(0.1, 0.9, 30), 1.0 - np.logspace(-12, -1, 30)])
    xmin, xmax = loc + a * scale, loc + b * scale
    x = np.asarray(truncnorm.ppf(p, xmin, xmax, loc, scale))
    assert ((x >= xmin) & (x <= xmax)).all()
    t, edges = (x - loc) / scale, (np.array([xmin, xmax]) - loc) / scale
    density = np.asarray(truncnorm.pdf(x, xmin, xmax, loc, scale))
    below = independent_mass(edges[0], t) / independent_mass(edges[0], edges[1])
    # x is rounded at its own size, p and the integrals to a few eps relative to the tail they come from
    eps = np.finfo(float).eps
    allowed = 4 * eps / density + 1e-13 * scale * (b - a) + 2 * eps * (abs(loc) + np.abs(x))
    assert (np.abs(below - p) / density <= allowed).all()


def independent_mass(a, b):
    """Twice the probability in [a, b], up to a factor that depends on a in the upper tail (cancels in a ratio)."""
    q = lambda t: scipy.special.erfcx(t / np.sqrt(2))  # noqa: E731
    if np.all(a > 0):
        return q(a) - np.exp((a * a - b * b) / 2) * q(b)
    if np.all(b < 0):
        return np.exp(-b * b / 2) * q(-b) - np.exp(-a * a / 2) * q(-a)
    return scipy.special.erfc(a / np.sqrt(2)) - scipy.special.erfc(b / np.sqrt(2))


def test_ppf_is_nan_beyond_its_reach():
    assert np.isnan(truncnorm.ppf(np.array([0.0, 0.5, 1.0]), 37.5, 40.0, 0.0, 1.0)).all()
    assert np.isnan(truncnorm.ppf(np.array([0.0, 0.5, 1.0]), -40.0, -37.5, 0.0, 1.0)).all()
    assert 36.9 < truncnorm.ppf(0.5, 36.9, 40.0, 0.0, 1.0) < 37.0


def test_density_is_smooth_where_formulas_change():
    """The integral changes its form at 12 scale and where loc crosses an edge: the log density may not jump."""
    for middle in (0.0, 12.0):
        a = middle + np.linspace(-1e-6, 1e-6, 101)
        value = np.asarray(truncnorm.logpdf(a + 0.1, a, a + 2.0, 0.0, 1.0))
        # a parabola fits 2e-6 of a smooth curve to rounding of z^2 / 2
        residual = value - np.polyval(np.polyfit(a - middle, value, 2), a - middle)
        assert np.abs(residual).max() < 1e-13


def test_without_edges_it_is_the_normal_distribution():
    x = np.linspace(-8.0, 8.0, 50)
    theta = jnp.array([0.3, 1.2])
    for function in ("pdf", "cdf"):
        plain = lambda t: getattr(norm, function)(x, *t)  # noqa: B023, E731
        open_ended = lambda t: getattr(truncnorm, function)(x, -jnp.inf, jnp.inf, *t)  # noqa: B023, E731
        together = jax.jit(lambda t: [(f(t), jax.jacfwd(f)(t)) for f in (plain, open_ended)])  # noqa: B023
        truth, ours = together(theta)
        np.testing.assert_allclose(ours[0], truth[0], rtol=1e-13, atol=1e-16)
        # terms of z^2 = 40 cancel
        np.testing.assert_allclose(ours[1], truth[1], rtol=1e-12, atol=1e-14)
    p = np.linspace(0.0, 1.0, 11)
    np.testing.assert_allclose(truncnorm.ppf(p, -np.inf, np.inf, 0.3, 1.2), norm.ppf(p, 0.3, 1.2), rtol=1e-14)


def test_half_normal():
    x = np.linspace(0.0, 5.0, 30)
    np.testing.assert_allclose(truncnorm.pdf(x, 0.0, np.inf, 0.0, 1.0), 2.0 * norm.pdf(x, 0.0, 1.0), rtol=1e-14)


def test_far_tail_is_a_truncated_exponential():
    """At a >> 1 the density falls as exp(-a u - u^2 / 2) from the edge, with norm a (1 + 1 / a^2 - ...)."""
    a, u = 1e4, np.linspace(0.0, 1e-3, 20)
    expected = np.log(a) + 1.0 / a**2 - a * u - 0.5 * u * u
    # z^2 / 2 = 5e7 is rounded to 1e-8
    np.testing.assert_allclose(truncnorm.logpdf(a + u, a, np.inf, 0.0, 1.0), expected, atol=3e-8)
