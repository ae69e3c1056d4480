"""The kernel of templates with modifiers against automatic differentiation of the model as one would write it down."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from engine.poisson import PoissonNLL
from engine.templates import TemplateNLL
from kernels.program import EXPECTED, FIRST, SECOND
from kernels.templates import Normalisation, Sample, Shape, normalisation_polynomials
from tests.kernels.density_cases import value_and_derivatives

NAMES = (
    "mu",
    "k",
    "lumi",
    "a",
    "b",
    "c",
    *(f"g[{i}]" for i in range(3)),
    *(f"h[{i}]" for i in range(5)),
    *(f"e[{i}]" for i in (0, 1, 3, 4)),
)
MU, K, LUMI, A, B, C = range(6)


def channels(rng=None):
    """Two channels of 3 and 5 bins: 2 and 3 samples, which share factors, alphas and parameters of bins."""
    rng = rng or np.random.default_rng(1)
    g, h, e = (6, 7, 8), (9, 10, 11, 12, 13), (14, 15, -1, 16, 17)
    signal, other = rng.uniform(2, 9, 3), rng.uniform(30, 90, 3)
    first, second, third = rng.uniform(2, 9, 5), rng.uniform(20, 60, 5), rng.uniform(5, 60, 5)
    second[1] = 0.0
    shape = lambda nominal, size, parameter: Shape(  # noqa: E731
        parameter, -size * nominal * rng.uniform(0.5, 1.5, len(nominal)), size * nominal * rng.uniform(0.5, 1.5)
    )
    return [
        [
            Sample(signal, [MU, LUMI], [Normalisation(A, 0.9, 1.2)], [shape(signal, 0.1, B)]),
            Sample(other, [LUMI], [Normalisation(A, 0.95, 1.02), Normalisation(B, 1.1, 0.8)], [], [g]),
        ],
        [
            Sample(first, [MU], [], [shape(first, 0.1, A), shape(first, 0.05, C)], [h]),
            Sample(second, [K, LUMI], [Normalisation(C, 0.7, 1.4)], [shape(second + 1.0, 0.02, C)], [h]),
            Sample(third, [], [Normalisation(A, 0.9, 1.2)], [], [h, e]),
        ],
    ]


def normalisation(low, high, x):
    (polynomial,) = normalisation_polynomials(np.array([low]), np.array([high])).T
    inside = 1.0 + sum(c * x ** (k + 1) for k, c in enumerate(polynomial))
    return jnp.where(x >= 1, high ** jnp.abs(x), jnp.where(x <= -1, low ** jnp.abs(x), inside))


def shape(low, high, x):
    inside = x * (0.5 * (high - low) + x * (high + low) / 16 * (15 + x * x * (3 * x * x - 10)))
    return jnp.where(x >= 1, x * high, jnp.where(x <= -1, -x * low, inside))


def expected(*theta):
    """The sum over samples, each with its modifiers one after the other."""
    parts = []
    for samples in channels():
        total = 0.0
        for sample in samples:
            events = sample.nominal + sum(shape(s.low, s.high, theta[s.parameter]) for s in sample.shapes)
            for parameter in sample.factors:
                events = events * theta[parameter]
            for n in sample.normalisations:
                events = events * normalisation(n.low, n.high, theta[n.parameter])
            for positions in sample.of_bins:
                events = events * jnp.stack([theta[p] if p >= 0 else jnp.ones(()) for p in positions])
            total += events
        parts.append(total)
    return jnp.concatenate(parts)


COST, PLAIN = TemplateNLL(NAMES, channels()), PoissonNLL(expected, name=NAMES)
TRUTH = np.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0, *[1.0] * 12])
POINTS = {
    "nominal": {},
    "within": {"mu": 1.3, "k": 0.8, "lumi": 1.02, "a": 0.4, "b": -0.7, "c": 0.9, "g[1]": 1.1, "h[2]": 0.8},
    "beyond": {"mu": 0.5, "a": 1.7, "b": -2.3, "c": -1.4, "h[4]": 1.3, "e[3]": 0.7},
    "at the seams": {"a": 1.0, "b": -1.0},
    "no signal": {"mu": 0.0, "a": 0.3},
    "nothing but one sample": {"mu": 0.0, "k": 0.0, "a": 0.2, "c": 0.5},
    "no events in a bin": {"mu": 0.0, "g[0]": 0.0, "h[2]": 0.0},
}
COUNTS = np.array([[40.0, 70.0, 55.0, 30.0, 20.0, 0.0, 66.0, 41.5]])


def by_kernel(theta, counts, order):
    n = len(theta)
    out = np.full(2 + n + n * (n + 1) // 2, np.nan)
    rows = COST.rows(np.array(counts))
    COST.kernel(rows)(
        theta, np.array(rows.columns), COST.kernel_shared(rows), np.empty(0), 0, counts.shape[1], order, out
    )
    return out


@jax.jit
def expectations(theta):
    return COST.model(*theta), expected(*theta)


@jax.jit
def exact(theta, counts):
    cost = lambda t: PLAIN.reference(PLAIN.rows(COUNTS))(t, ((counts, None, None),), ())  # noqa: E731
    return value_and_derivatives(cost, jax.grad)(theta)


@jax.jit
def by_xla(theta, counts):
    """The outputs of every order."""
    return [COST.outputs(COST.rows(COUNTS), 1, order)(theta, ((counts, None, 8),), ()) for order in range(4)]


def test_an_expectation_that_is_next_to_nothing():
    theta = TRUTH.copy()
    theta[[MU, NAMES.index("g[0]"), NAMES.index("h[2]")]] = 0.0, 1e-13, 1e-17
    with jax.enable_x64(True):
        mu = np.asarray(COST.model(*theta))
    terms = mu - COUNTS[0] - scipy.special.xlogy(COUNTS[0], mu / np.maximum(COUNTS[0], 1.0))
    assert mu.min() < 1e-14
    assert by_kernel(theta, COUNTS, FIRST)[0] == pytest.approx(terms.sum(), rel=1e-14)


@pytest.mark.parametrize("point", POINTS)
def test_derivatives_are_exact(point):
    theta = TRUTH + 0.0
    for name, value in POINTS[point].items():
        theta[NAMES.index(name)] = value
    n = len(theta)
    with jax.enable_x64(True):
        mu, written_down = map(np.asarray, expectations(theta))
        np.testing.assert_allclose(mu, written_down, rtol=1e-14)
        counts = np.where(mu > 0, COUNTS, 0.0)  # an empty bin with events has no likelihood
        value, gradient, hessian = map(np.asarray, exact(theta, counts))
        by_jax = [np.asarray(outputs) for outputs in by_xla(theta, counts)]
    out = by_kernel(theta, counts, SECOND)
    assert out[0] == pytest.approx(value, rel=1e-13)
    if np.isfinite(hessian).all():  # automatic differentiation divides by an expectation of zero
        np.testing.assert_allclose(out[2 : 2 + n], gradient, rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(out[2 + n :], hessian[np.tril_indices(n)], rtol=1e-11, atol=1e-10)
    else:
        assert point == "no events in a bin"
    for order in (FIRST, SECOND, EXPECTED):
        out = by_kernel(theta, counts, order)
        np.testing.assert_allclose(out[: len(by_jax[order])], by_jax[order], rtol=1e-12, atol=1e-11)
    np.testing.assert_array_equal(by_jax[0], by_jax[FIRST][:2])


def test_weighted_counts():
    """The scaled Poisson distribution, also of a negative sum of weights, against the general cost."""
    weighted = np.stack([COUNTS, COUNTS * np.linspace(0.5, 2.0, 8)], axis=-1)
    weighted[0, 3] = -4.0, 9.0
    rows = COST.rows(weighted)
    theta = TRUTH + 0.1
    with jax.enable_x64(True):
        both = jax.jit(
            lambda columns: [
                cost.outputs(cost.rows(weighted), 1, SECOND)(theta, ((columns, None, 8),), ()) for cost in (PLAIN, COST)
            ]
        )
        general, by_jax = map(np.asarray, both(rows.columns))
    np.testing.assert_allclose(by_kernel(theta, weighted, SECOND), general, rtol=1e-11, atol=1e-10)
    np.testing.assert_allclose(by_jax, general, rtol=1e-11, atol=1e-10)


def test_expected_is_the_mean_of_the_hessian():
    """With the expectation in place of counts both are the same, but for second derivatives that it multiplies by 0."""
    theta = TRUTH + 0.1
    with jax.enable_x64(True):
        mean = np.asarray(expectations(theta)[1])[None]
    np.testing.assert_allclose(
        by_kernel(theta, COUNTS, EXPECTED)[20:], by_kernel(theta, mean, SECOND)[20:], rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (0.5, 3.0), (1.2, 1.3)])
def test_normalisations_continue_smoothly(low, high):
    (polynomial,) = normalisation_polynomials(np.array([low]), np.array([high])).T
    p = np.polynomial.Polynomial([1.0, *polynomial])
    for x, base, sign in ((1.0, high, 1.0), (-1.0, low, -1.0)):
        for k in range(3):
            assert (p.deriv(k) if k else p)(x) == pytest.approx(base * (sign * math.log(base)) ** k, rel=1e-12)
