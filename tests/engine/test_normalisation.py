"""Integrals of densities are checked against what the model says, before anything is fitted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import BinnedNLL, ExtendedUnbinnedNLL, NormalConstraint, UnbinnedNLL, Weighted
from engine.normalisation import check_integral, excess
from kernels import argus, norm, truncexpon, truncnorm, voigt

INF = np.inf


def spectrum(x, ns, nb, mu, sigma, lam):
    density = ns * truncnorm.pdf(x, 1.0, 9.0, mu, sigma) + nb * truncexpon.pdf(x, 1.0, 9.0, 0.0, lam)
    return ns + nb, density


def decay(x, lam):
    return jnp.exp(-x / lam) / lam


def looped(x, lam):
    """As decay, but without a scalar form."""
    return jax.lax.while_loop(lambda state: state[0] < 3, lambda state: (state[0] + 1, state[1]), (0, decay(x, lam)))[1]


def plane(x, mu, sigma):
    return norm.pdf(x[0], mu, sigma) * norm.pdf(x[1], 0.0, 1.0)


GAUSS = UnbinnedNLL(norm.pdf, name=("mu", "sigma"))
PEAK = ExtendedUnbinnedNLL(spectrum)
AT = (2000.0, 13500.0, 5.0, 0.5, 4.0)


@pytest.mark.parametrize(
    "cost, theta, observable",
    [
        (PEAK, AT, (1.0, 9.0)),
        (PEAK, (2000.0, 13500.0, 5.0, 0.001, 4.0), (1.0, 9.0)),
        (PEAK, AT, (0, 10)),
        (GAUSS, (5.0, 2.0), (-INF, INF)),
        (GAUSS, (5.0, 0.1), (1.0, 9.0)),
        (UnbinnedNLL(decay), (5.0,), (0.0, INF)),
        (UnbinnedNLL(looped), (0.5,), (0.0, 20.0)),
        (UnbinnedNLL(lambda x, lam: -x / lam - jnp.log(lam), log=True), (5.0,), (0.0, INF)),
        (UnbinnedNLL(argus.pdf, name=("chi", "c", "p")), (1.0, 5.0, 0.5), (0.0, 5.0)),
        (UnbinnedNLL(voigt.pdf, name=("gamma", "mu", "sigma")), (0.01, 5.0, 0.5), (-INF, INF)),
        (UnbinnedNLL(plane), (0.3, 1.0), ((-9.0, 9.0), (-9.0, 9.0))),
        # no integral of their own to compare with
        (UnbinnedNLL(lambda x, lam: 7.0 * jnp.exp(-x / lam), fit_range=(1, 3)), (5.0,), (1.0, 3.0)),
        (BinnedNLL(norm.cdf, [0.0, 1.0, 2.0], name=("mu", "sigma")), (5.0, 2.0), (0.0, 2.0)),
        (NormalConstraint("mu", 1.0, 1.0), (1.0,), (0.0, 2.0)),
        (PEAK + GAUSS, (2000.0, 13500.0, 5.0, 0.5, 4.0), ((1.0, 9.0), None)),
    ],
)
def test_what_is_normalised_passes(cost, theta, observable):
    check_integral(cost, theta, observable)


@pytest.mark.parametrize(
    "cost, theta, observable, match",
    [
        (GAUSS, (5.0, 2.0), (1.0, 9.0), "'pdf' integrates to 0.9545 over 1 < x < 9, but it must integrate to 1: .*"),
        (PEAK, AT, (1.0, 8.0), "'spectrum' integrates to .* over 1 < x < 8, but the integral .* returns is 15500"),
        (UnbinnedNLL(looped), (5.0,), (0.0, 5.0), "integrates to 0.632121 over 0 < x < 5"),
        (UnbinnedNLL(plane), (0.0, 1.0), ((-9.0, 9.0), (0.0, 9.0)), r"0.5 over -9 < x\[0\] < 9 and 0 < x\[1\] < 9"),
        (GAUSS + NormalConstraint("mu", 5, 1), (5.0, 2.0), (1.0, 9.0), "integrates to 0.9545"),
        (PEAK + GAUSS, (2000.0, 13500.0, 5.0, 0.5, 4.0), ((1.0, 9.0), (5.0, 9.0)), "integrates to 0.5 over 5 < x < 9"),
        (UnbinnedNLL(lambda x, a: 0.5 + a * x), (2.0,), (-1.0, 1.0), "not finite or negative .* -1 < x < 1, at a = 2"),
        (UnbinnedNLL(lambda x, a: jnp.sqrt(x - a)), (0.0,), (-1.0, 1.0), "not finite or negative"),
        (PEAK + GAUSS, AT, ((1.0, 9.0), (1.0, 9.0), None), "one range, or one for each of 2 costs, got 3"),
    ],
)
def test_what_is_not_is_named(cost, theta, observable, match):
    with pytest.raises(ValueError, match=match):
        check_integral(cost, theta, observable)


def test_tolerance_is_a_thousandth():
    for factor, passes in ((1.0009, True), (1.0011, False)):
        cost = UnbinnedNLL(lambda x, mu, factor=factor: factor * norm.pdf(x, mu, 1.0), name=("mu",))
        if passes:
            check_integral(cost, (0.0,), (-INF, INF))
        else:
            with pytest.raises(ValueError, match=r"integrates to 1.0011"):
                check_integral(cost, (0.0,), (-INF, INF))


@pytest.fixture(scope="module")
def events():
    rng = np.random.default_rng(3)
    return [rng.uniform(1.0, 9.0, 2000), rng.uniform(1.0, 9.0, 3000)]


def found(cost, data, theta):
    return excess(cost, cost.rows(data), np.array(theta))


def test_a_density_that_is_negative_between_events_is_told():
    cost = UnbinnedNLL(lambda x, a: 1.0 + a * x)
    [sentence] = excess(cost, cost.rows(np.random.default_rng(1).normal(0.0, 2.0, (5, 200))), np.array([0.9]))
    assert "is negative somewhere in" in sentence and "where there are events, at a = 0.9" in sentence


def test_excess_over_the_range_of_the_events(events):
    assert found(PEAK, events, AT) == []
    assert found(GAUSS, events, (5.0, 0.1)) == []
    assert found(GAUSS, events, (5.0, 5.0)) == []  # too small: the events do not tell how far the range goes
    bell = UnbinnedNLL(lambda x, mu, sigma: jnp.exp(-0.5 * ((x - mu) / sigma) ** 2))
    (sentence,) = found(bell, events, (5.0, 2.0))
    assert "integrates to 4.7" in sentence and "must integrate to 1" in sentence
    less = ExtendedUnbinnedNLL(lambda x, n: (0.9 * n, n / 8.0))
    (sentence,) = found(less, Weighted(events, [np.ones(2000), np.ones(3000)]), (1000.0,))
    assert "the integral that it returns is 900" in sentence
    (sentence,) = found(NormalConstraint("mu", 5, 1) + GAUSS + bell, (None, events, events), (5.0, 2.0))
    assert "<lambda>" in sentence


def test_sidebands_and_few_events_are_no_excess(events):
    windows = [(1.0, 4.0), (6.0, 9.0)]
    mass = lambda lam: sum(jnp.exp(-low / lam) - jnp.exp(-high / lam) for low, high in windows)  # noqa: E731
    sidebands = UnbinnedNLL(lambda x, lam: decay(x, lam) / mass(lam))
    assert found(sidebands, [x[(x < 4.0) | (x > 6.0)] for x in events], (4.0,)) == []
    assert len(found(sidebands, events, (4.0,))) == 1
    assert found(sidebands, [np.array([2.0])], (4.0,)) == []
    assert found(sidebands, [np.array([2.0, np.nan])], (4.0,)) == []
    assert found(sidebands, [np.empty(0)], (4.0,)) == []
    assert found(UnbinnedNLL(plane), [np.ones((2, 50))], (4.0, 1.0)) == []
