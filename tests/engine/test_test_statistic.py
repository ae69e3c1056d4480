import re
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import xlogy
from scipy.stats import chi2, kstest

from engine import LeastSquares, NormalConstraint, PoissonNLL
from engine.test_statistic import test_statistic as statistic_of

B = 5.0
COUNT = PoissonNLL(lambda mu: jnp.array([1.0]) * mu + B)
N = np.arange(1.0, 31.0)[:, None]  # without 0, whose estimate -5 is where the model ends
X = np.linspace(0.0, 3.0, 6)
LINE = LeastSquares(lambda x, a, b: a + b * x)


def poisson(n, test_stat, mu):
    """Closed forms of a count with mu + 5 expected events."""
    n = n[:, 0]
    estimate = n - B if test_stat in ("t", "q") else np.maximum(n - B, 0.0)
    nll = lambda mu: mu + B - xlogy(n, mu + B)  # noqa: E731
    t = 2.0 * (nll(mu) - nll(estimate))
    if test_stat in ("t", "ttilde"):
        return t
    return np.where(n - B > 0, t, 0.0) if test_stat == "q0" else np.where(n - B > mu, 0.0, t)


@pytest.mark.parametrize("test_stat", ["t", "ttilde", "q", "qtilde", "q0"])
def test_closed_forms_of_a_count(test_stat):
    mu = 0.0 if test_stat == "q0" else np.linspace(0.0, 12.0, len(N))
    made = statistic_of(COUNT, N, "mu", mu, test_stat=test_stat, start={"mu": 1.0}, backend="numba")
    assert made.valid.all() and made.test_stat == test_stat
    np.testing.assert_allclose(made.value, poisson(N, test_stat, mu), rtol=1e-9, atol=1e-12)
    estimate = N[:, 0] - B if test_stat in ("t", "q") else np.maximum(N[:, 0] - B, 0.0)
    np.testing.assert_allclose(made.poi_hat, estimate, atol=1e-6)
    np.testing.assert_array_equal(made.fixed.values[:, 0], made.tested)
    # what is zero is exactly so, but where the estimate is at the border between both sides
    aside = np.abs(N[:, 0] - B - mu) > 1e-9
    zero = poisson(N, test_stat, mu) == 0.0
    assert np.array_equal(made.value[aside] == 0.0, zero[aside]) or test_stat[0] == "t"


def test_no_events():
    bounded = statistic_of(COUNT, [[0.0]], "mu", 2.0, start={"mu": 1.0}, backend="numba")
    np.testing.assert_allclose(bounded.value, 2.0 * 2.0, rtol=1e-12)
    assert bounded.free.at_limit[0, 0] and bounded.poi_hat == 0.0
    # the likelihood has no minimum without a limit, which is that toy's fate alone
    free = statistic_of(COUNT, [[0.0], [7.0]], "mu", 2.0, test_stat="q", start={"mu": 1.0}, backend="numba")
    assert np.isnan(free.value[0]) and free.valid.tolist() == [False, True]
    discovery = statistic_of(COUNT, [[0.0]], "mu", 0.0, test_stat="q0", start={"mu": 1.0}, backend="numba")
    assert discovery.value == 0.0 and discovery.valid


def test_free_fits_are_shared_and_corrected_where_the_limits_differ():
    options = {"start": {"mu": 1.0}, "backend": "numba"}
    q = statistic_of(COUNT, N, "mu", 3.0, test_stat="q", **options)
    shared = statistic_of(COUNT, N, "mu", 6.0, test_stat="q", free=q.free, **options)
    assert shared.free is q.free
    np.testing.assert_allclose(shared.value, poisson(N, "q", 6.0), rtol=1e-9, atol=1e-12)
    bounded = statistic_of(COUNT, N, "mu", 6.0, test_stat="qtilde", free=q.free, **options)
    np.testing.assert_allclose(bounded.value, poisson(N, "qtilde", 6.0), rtol=1e-9, atol=1e-12)
    kept, below = N[:, 0] > B, N[:, 0] < B  # an estimate of 0 may be rounded to either side
    np.testing.assert_array_equal(bounded.free.values[kept], q.free.values[kept])
    assert (bounded.free.values[below] == 0.0).all() and bounded.free.at_limit[below].all()
    unbounded = statistic_of(COUNT, N, "mu", 6.0, test_stat="q", free=bounded.free, **options)
    np.testing.assert_allclose(unbounded.value, poisson(N, "q", 6.0), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="free must hold the fits of these 2 toys"):
        statistic_of(COUNT, N[:2], "mu", 6.0, free=q.free, **options)


def test_free_fits_of_other_toys_or_of_other_parameters_are_refused():
    rng, options = np.random.default_rng(3), {"start": {"a": 0.0, "b": 0.0}, "backend": "numba"}
    one, other = ((X, rng.normal(1.0 + 2.0 * X, 0.5, (20, len(X))), 0.5) for _ in range(2))
    made = statistic_of(LINE, one, "b", 2.0, test_stat="t", **options)
    with pytest.raises(ValueError, match="fits are not those of these data with this model: the cost of toy 0 is"):
        statistic_of(LINE, other, "b", 2.0, test_stat="t", free=made.free, **options)
    with pytest.raises(ValueError, match=r"it held nothing, got fixed=\['a'\]"):
        statistic_of(LINE, one, "b", 2.0, test_stat="t", fixed=["a"], free=made.free, **options)


def test_a_free_fit_in_a_worse_minimum_is_done_again():
    options = {"start": {"mu": 1.0}, "backend": "numba", "test_stat": "t"}
    good = statistic_of(COUNT, N, "mu", 3.0, **options)
    fval, values = np.array(good.free.fval), np.array(good.free.values)
    fval[1::2] += 50.0
    values[1::2] += 20.0
    again = statistic_of(COUNT, N, "mu", 3.0, free=replace(good.free, fval=fval, values=values), **options)
    np.testing.assert_allclose(again.value, good.value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(again.poi_hat, N[:, 0] - B, atol=1e-6)


def test_linear_model_of_two_parameters():
    rng = np.random.default_rng(1)
    y = 1.0 + 2.0 * X + rng.normal(0.0, 0.5, (10_000, len(X)))
    data, options = (X, y, 0.5), {"start": {"a": 0.0, "b": 0.0}, "backend": "numba"}
    design = np.stack([np.ones_like(X), X]) / 0.5
    covariance = np.linalg.inv(design @ design.T)
    estimate = (y / 0.5) @ design.T @ covariance
    made = statistic_of(LINE, data, "b", 2.0, test_stat="t", **options)
    expected = (estimate[:, 1] - 2.0) ** 2 / covariance[1, 1]
    np.testing.assert_allclose(made.value, expected, rtol=1e-8, atol=1e-9)
    # of a parabola the start of the fixed fit is its minimum
    assert made.fixed.nfev.max() == 1
    assert kstest(made.value, chi2(1).cdf).pvalue > 1e-3
    # at b = 0 the estimate is as often negative as positive
    flat = (X, y - 2.0 * X, 0.5)
    q0 = statistic_of(LINE, flat, "b", 0.0, test_stat="q0", **options)
    zeros = int((q0.value == 0.0).sum())
    assert q0.valid.all() and abs(zeros - 5000) < 3.0 * np.sqrt(10_000 / 4.0)
    assert kstest(q0.value[q0.value > 0], chi2(1).cdf).pvalue > 1e-3
    # a held slope leaves nothing to profile
    held = statistic_of(LINE, flat, "a", 1.0, test_stat="t", fixed={"b": 0.0}, **options)
    np.testing.assert_allclose(held.value, (flat[1].mean(axis=1) - 1.0) ** 2 * len(X) / 0.25, rtol=1e-8, atol=1e-9)
    assert (held.free.values[:, 1] == 0.0).all() and (held.fixed.values[:, 1] == 0.0).all()


def on_off(mu, b):
    return jnp.stack([mu + b, 3.0 * b])


def test_batch_single_and_backends():
    cost = PoissonNLL(on_off) + NormalConstraint("b", 5.0, 2.0)
    data = np.random.default_rng(2).poisson([6.0, 15.0], (40, 2)).astype(float)
    data[7] = np.nan
    options = {"start": {"mu": 1.0, "b": 5.0}, "limits": {"b": (0.0, None)}}
    made = statistic_of(cost, data, "mu", 2.0, backend="numba", **options)
    assert np.flatnonzero(~made.valid).tolist() == [7] and np.isnan(made.value[7])
    for k in (0, 13):
        alone = statistic_of(cost, data[k : k + 1], "mu", 2.0, backend="numba", **options)
        assert alone.value[0] == made.value[k]
    by_jax = statistic_of(cost, data, "mu", 2.0, backend="jax", **options)
    np.testing.assert_array_equal(by_jax.valid, made.valid)
    np.testing.assert_allclose(by_jax.value, made.value, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "poi, value, options, sentence",
    [
        ("nu", 1.0, {}, "poi names 'nu', but the parameters are mu"),
        (["mu"], 1.0, {}, "poi must be the name of one parameter"),
        ("mu", 1.0, {"fixed": ["mu"]}, "the parameter of interest 'mu' is fixed"),
        ("mu", -1.0, {}, "the tested mu = -1 is outside of the limits"),
        ("mu", 9.0, {"limits": {"mu": (-5.0, 8.0)}, "test_stat": "t"}, "the tested mu = 9 is outside of the limits"),
        ("mu", 1.0, {"test_stat": "q0"}, "q0 tests mu = 0, got 1"),
        ("mu", [1.0, 2.0], {}, "value must be a number or have shape"),
        ("mu", np.nan, {}, "tested values must be finite"),
        ("mu", 1.0, {"test_stat": "chi2"}, "test_stat must be one of"),
        ("mu", 1.0, {"limits": [(0.0, 1.0)]}, "limits must be a dict name -> (lower, upper), got list"),
        ("mu", 1.0, {"limits": {"mu": 5}}, "limits['mu'] must be (lower, upper) with None for an open side, got 5"),
        ("mu", 1.0, {"limits": {"mu": (0,)}}, "limits['mu'] must be (lower, upper)"),
        ("mu", 1.0, {"limits": {"mu": ("x", None)}}, "limits['mu'] must be (lower, upper)"),
        ("mu", 9.0, {"limits": {"mu": np.array([-5.0, 8.0])}}, "the tested mu = 9 is outside of the limits (0, 8)"),
        ("mu", 1.0, {"fixed": 3}, "fixed must be names, or a dict name -> value, got int"),
        ("mu", 1.0, {"free": 3}, "free must be the FitResult of an earlier free fit, got int"),
    ],
)
def test_mistakes(poi, value, options, sentence):
    with pytest.raises((TypeError, ValueError), match=re.escape(sentence)):
        statistic_of(COUNT, N, poi, value, start={"mu": 1.0}, **options)
