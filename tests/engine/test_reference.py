"""The iminuit reference: it agrees where it must, and tells where it must not."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit
from scipy import stats

from engine import ExtendedUnbinnedNLL, NormalConstraint, PoissonNLL, fit_batch, reference
from engine.drivers import Settings
from engine.reference import AGREEMENT, IndependentCost, _inside, _padded, migrad, validate
from kernels import norm, truncexpon, truncnorm

N_TOYS = 12


def scaled_normal(x, n, mu, sigma):
    return n, n * norm.pdf(x, mu, sigma)


COST = ExtendedUnbinnedNLL(scaled_normal)
START = np.array([30.0, 0.3, 1.2])
INSIDE = np.array([30.0, 0.8, 1.2])


@pytest.fixture(scope="module")
def toys():
    rng = np.random.default_rng(1)
    return [rng.normal(0.2, 1.1, rng.poisson(40) + 5) for _ in range(N_TOYS)]


def settings(lower=(0.0, -np.inf, 0.0), free=(True, True, True)):
    return Settings(np.array(lower), np.full(3, np.inf), np.array(free), 0.5, 1e-13, 200)


def fit(toys, **options):
    return fit_batch(COST, toys, START, **({"limits": {"n": (0, None), "sigma": (0, None)}} | options))


def changed(result, **fields):
    return dataclasses.replace(result, **{name: np.array(value) for name, value in fields.items()})


def check(toys, result, which=None, task=None, **options):
    which = np.arange(len(toys)) if which is None else np.asarray(which)
    return validate(COST, COST.rows(toys), result, which, START, task or settings(), **options)


def test_independent_cost_is_the_closed_form(toys):
    evaluate = IndependentCost(COST, COST.rows(toys))
    theta = np.array([33.0, 0.4, 0.9])
    for k in (0, 5, 3, 5):
        x = toys[k]
        value, gradient = evaluate(k, theta)
        expected = 33.0 - len(x) * np.log(33.0) - stats.norm.logpdf(x, 0.4, 0.9).sum()
        assert value == pytest.approx(expected, rel=1e-13)
        d = x - 0.4
        slope = [1 - len(x) / 33.0, -d.sum() / 0.81, len(x) / 0.9 - (d * d).sum() / 0.729]
        np.testing.assert_allclose(gradient, slope, rtol=1e-12, atol=1e-12)


def test_migrad_finds_the_closed_form(toys):
    x = toys[0]
    found = migrad(COST, COST.rows(toys), 0, START, settings())
    expected = np.array([len(x), x.mean(), x.std()])
    errors = expected[[0, 2, 2]] / np.sqrt(len(x)) / [np.sqrt(1.0), 1.0, np.sqrt(2.0)]
    errors[0] = np.sqrt(len(x))
    assert found.valid and found.edm < 1e-8
    # EDM 1e-9 leaves sqrt(2 EDM) = 5e-5 sigma
    np.testing.assert_array_less(np.abs(found.values - expected), 1e-4 * errors)
    np.testing.assert_allclose(found.errors, errors, rtol=0.01)


def test_agreement(toys):
    result, counted = fit(toys), []
    checked = check(toys, result, progress=counted.append)
    assert counted == [1] * N_TOYS
    assert checked.agrees.all() and checked.valid.all() and checked.compared.all()
    assert 0.0 < checked.worst < 1e-4
    assert checked.values.shape == checked.errors.shape == checked.difference.shape == (N_TOYS, 3)
    np.testing.assert_array_equal(checked.toy, np.arange(N_TOYS))
    np.testing.assert_allclose(checked.fval, result.fval, atol=1e-7)


def test_a_planted_disagreement_is_found(toys):
    result = fit(toys)
    values = result.values.copy()
    values[4, 1] += 0.01 * result.errors[4, 1]
    values[7, 2] -= 0.002 * result.errors[7, 2]
    values[9, 0] += 0.0005 * result.errors[9, 0]  # below the tolerance
    which = [9, 4, 0, 7]
    checked = check(toys, changed(result, values=values), which)
    np.testing.assert_array_equal(checked.toy, which)
    np.testing.assert_array_equal(checked.agrees, [True, False, True, False])
    assert checked.difference[1, 1] == pytest.approx(0.01, abs=1e-4)
    assert checked.difference[3, 2] == pytest.approx(-0.002, abs=1e-4)
    assert checked.worst == pytest.approx(0.01, abs=1e-4) and checked.worst > AGREEMENT


def test_a_higher_minimum_of_ours_is_a_disagreement(toys):
    result = fit(toys)
    values = result.values.copy()
    values[2] += 3 * result.errors[2]
    checked = check(
        toys, changed(result, values=values, fval=result.fval + np.where(np.arange(N_TOYS) == 2, 9.0, 0)), [2]
    )
    assert not checked.agrees[0]


def test_a_wrong_fval_is_a_disagreement(toys):
    # below MIGRAD's, a wrong minimum would pass for a better one
    result = fit(toys)
    checked = check(toys, changed(result, values=result.values + 0.1 * result.errors, fval=result.fval - 1.0), [0, 1])
    assert not checked.agrees.any()
    assert not check(toys, changed(result, fval=result.fval - 1.0), [0]).agrees[0]


def test_a_lower_minimum_of_ours_is_an_agreement(toys):
    # MIGRAD stopped by a limit that this engine's fit did not have
    free = fit(toys)
    task = Settings(np.array([0.0, -np.inf, 1.5]), np.full(3, np.inf), np.ones(3, bool), 0.5, 1e-13, 200)
    start = np.array([30.0, 0.3, 2.2])
    checked = validate(COST, COST.rows(toys), free, np.arange(4), start, task)
    assert np.all(checked.fval > free.fval[:4] + 1e-3) and checked.agrees.all()
    # which is not a difference between two fits of one minimum
    assert checked.valid.any() and not checked.compared.any() and np.isnan(checked.worst)


def test_a_toy_that_failed_here_is_a_disagreement(toys):
    result = fit(toys)
    rows = np.arange(N_TOYS) == 3
    lost = changed(
        result,
        values=np.where(rows[:, None], np.nan, result.values),
        errors=np.where(rows[:, None], np.nan, result.errors),
        fval=np.where(rows, np.nan, result.fval),
        valid=~rows,
    )
    checked = check(toys, lost, [2, 3])
    np.testing.assert_array_equal(checked.agrees, [True, False])
    np.testing.assert_array_equal(checked.compared, [True, False])


def test_nothing_to_validate(toys):
    checked = check(toys, fit(toys), [])
    assert len(checked.toy) == 0 and checked.values.shape == (0, 3) and np.isnan(checked.worst)


def test_fixed_parameters(toys):
    result = fit(toys, fixed=["mu"])
    checked = check(toys, result, task=settings(free=(True, False, True)))
    assert checked.agrees.all() and checked.valid.all() and checked.compared.all()
    np.testing.assert_array_equal(checked.values[:, 1], START[1])
    np.testing.assert_array_equal(checked.difference[:, 1], 0.0)
    assert 0.0 < checked.worst < 1e-4
    values = result.values.copy()
    values[5, 2] += 0.01 * result.errors[5, 2]
    checked = check(toys, changed(result, values=values), task=settings(free=(True, False, True)))
    np.testing.assert_array_equal(np.flatnonzero(~checked.agrees), [5])


def test_toys_at_a_limit(toys):
    lower = float(np.median([x.mean() for x in toys]))
    result = fit_batch(COST, toys, INSIDE, limits={"n": (0, None), "mu": (lower, None), "sigma": (0, None)})
    n_at_limit = int(result.at_limit[:, 1].sum())
    assert n_at_limit == N_TOYS // 2
    task = settings(lower=(0.0, lower, 0.0))
    checked = validate(COST, COST.rows(toys), result, np.arange(N_TOYS), INSIDE, task)
    assert checked.agrees.all()
    np.testing.assert_array_equal(checked.difference[result.at_limit], 0.0)
    # one of ours that sits on the limit though its minimum is inside
    inside = np.flatnonzero(~result.at_limit[:, 1])
    k = inside[np.argmax(result.values[inside, 1])]
    values, errors, at_limit = result.values.copy(), result.errors.copy(), result.at_limit.copy()
    values[k, 1], errors[k, 1], at_limit[k, 1] = lower, 0.0, True
    fval = result.fval.copy()
    fval[k] += len(toys[k]) / 2 * np.log1p((toys[k].mean() - lower) ** 2 / toys[k].var())
    values[k, 2] = np.sqrt(np.mean((toys[k] - lower) ** 2))
    wrong = changed(result, values=values, errors=errors, at_limit=at_limit, fval=fval)
    checked = validate(COST, COST.rows(toys), wrong, np.array([k]), INSIDE, task)
    assert not checked.agrees[0]


def test_toys_of_about_one_length_share_what_is_compiled():
    lengths = np.arange(1, 40_000)
    padded = np.array([_padded(int(n)) for n in lengths])
    assert (padded >= lengths).all() and (np.diff(padded) >= 0).all()
    assert (padded <= np.maximum(256 * np.ceil(lengths / 256), 1.125 * lengths)).all()
    assert len(set(padded[(lengths > 15_370) & (lengths < 16_380)])) == 1


def test_minuit_is_silent_and_its_level_is_left_alone(monkeypatch, toys):
    levels, plain = [], Minuit.migrad

    def watched(minuit, **how):
        levels.append(minuit.print_level)
        return plain(minuit, **how)

    monkeypatch.setattr(Minuit, "migrad", watched)
    of_a_user = Minuit(lambda x: x * x, x=1.0)
    of_a_user.print_level = 1
    try:
        check(toys[:1], fit(toys[:1]))
        assert levels == [-1] and of_a_user.print_level == 1
    finally:
        of_a_user.print_level = 0


def test_a_start_on_a_limit():
    """There the parameter that Minuit sees has no slope, so that MIGRAD would stay, and call that a minimum."""
    cost = PoissonNLL(lambda s, b: jnp.array([1.0, 0.2]) * s + jnp.array([10.0, 20.0]) * b)
    counts = np.array([[14, 21], [8, 20], [13, 19], [9, 22], [17, 20]])
    for s, upper in ((0.0, np.inf), (0.0, 30.0), (30.0, 30.0)):
        task = Settings(np.zeros(2), np.array([upper, np.inf]), np.ones(2, dtype=bool), 0.5, 1e-13, 200)
        result = fit_batch(cost, counts, {"s": s, "b": 1.0}, limits={"s": (0, upper), "b": (0, None)})
        checked = validate(cost, cost.rows(counts), result, np.arange(5), np.array([s, 1.0]), task)
        assert checked.valid.all() and checked.compared.all() and checked.agrees.all()
        assert result.at_limit[:, 0].tolist() == [False, True, False, True, False]
        np.testing.assert_allclose(checked.values[:, 0], result.values[:, 0], atol=1e-3)


def test_both_on_the_limit_agree(monkeypatch):
    toy = [np.array([1.0, 1.5, 2.0])]
    result = fit_batch(COST, toy, {"n": 3.0, "mu": 1.0, "sigma": 2.0}, limits={"sigma": (2.0, None)})
    there = reference.ReferenceFit(result.values[0], np.array([1.0, 1.0, 0.0]), float(result.fval[0]), 0.0, True, 1)
    monkeypatch.setattr(reference, "migrad", lambda *_, **__: there)
    checked = validate(COST, COST.rows(toy), result, np.arange(1), result.values[0], settings())
    assert result.at_limit[0, 2] and checked.compared[0] and checked.agrees[0]


def test_a_toy_without_events():
    cost = ExtendedUnbinnedNLL(lambda x, n, tau: (n, n * truncexpon.pdf(x, 1.0, 9.0, 1.0, tau))) + NormalConstraint(
        "tau", 2.0, 0.1
    )
    rows = cost.rows(([np.zeros(0), np.array([2.0, 3.0])], None))
    value, gradient = IndependentCost(cost, rows)(0, np.array([5.0, 2.0]))
    assert value == 5.0
    np.testing.assert_allclose(gradient, [1.0, 0.0])


def test_a_start_on_a_limit_without_an_event_near():
    """The curvature of the yield is next to nothing there, and its error no measure: the slope is."""
    cost = ExtendedUnbinnedNLL(lambda x, s, b: (s + b, s * truncnorm.pdf(x, 0.0, 10.0, 5.0, 0.3) + b / 10.0))
    rows = cost.rows([np.array([9.5, 0.5, 1.0])])
    task = Settings(np.zeros(2), np.full(2, np.inf), np.ones(2, dtype=bool), 0.5, 1e-13, 200)
    start = np.array([0.0, 5.0])
    np.testing.assert_allclose(_inside(start, IndependentCost(cost, rows), 0, task), [0.005, 5.0])
    assert migrad(cost, rows, 0, start, task).values[0] < 1e-3
