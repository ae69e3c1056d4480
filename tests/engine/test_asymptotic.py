import numpy as np
import pytest
from scipy.stats import chi2, norm

from engine.asymptotic import Asymptotic

SIGMA = 0.8
Z = np.random.default_rng(1).normal(size=400_000)


def statistic(test_stat, estimate, mu):
    """Of normal estimates of width 0.8, with log-likelihood (estimate - mu)^2 / 2 sigma^2."""
    t = (estimate - mu) ** 2 / SIGMA**2
    if test_stat in ("ttilde", "qtilde"):
        t -= np.minimum(estimate, 0.0) ** 2 / SIGMA**2
    if test_stat in ("q", "qtilde"):
        return np.where(estimate > mu, 0.0, t)
    return np.where(estimate < 0, 0.0, t) if test_stat == "q0" else t


@pytest.mark.parametrize("poi_true", [0.0, 1.2, None])
@pytest.mark.parametrize("test_stat", ["t", "ttilde", "q", "qtilde", "q0"])
def test_tails_of_a_normal_estimate(test_stat, poi_true):
    mu, alternative = (0.0, 1.5) if test_stat == "q0" else (1.2, 0.0)
    formula = Asymptotic(test_stat, mu, alternative, (mu - alternative) ** 2 / SIGMA**2)
    assert formula.sigma == pytest.approx(SIGMA)
    thrown = statistic(test_stat, (mu if poi_true is None else poi_true) + SIGMA * Z, mu)
    for q in (0.05, 0.5, 1.5, 2.25, 4.0, 9.0):
        p = formula.pvalue(q, poi_true)
        assert abs(np.mean(thrown >= q) - p) < 4.0 * np.sqrt(p * (1.0 - p) / len(Z)) + 1e-9


def test_closed_forms():
    q = np.array([0.1, 1.0, 3.84, 25.0])
    assert Asymptotic("t", 1.0, 0.0, 3.0).pvalue(q) == pytest.approx(chi2(1).sf(q), rel=1e-10)
    for test_stat, value, alternative in (("q", 1.0, 0.0), ("q0", 0.0, 1.0)):
        formula = Asymptotic(test_stat, value, alternative, 3.0)
        assert formula.pvalue(q) == pytest.approx(0.5 * chi2(1).sf(q), rel=1e-10)
        assert formula.significance(q) == pytest.approx(np.sqrt(q))
    # an estimate that must not be negative is only ever above 0
    assert Asymptotic("ttilde", 0.0, 1.0, 3.0).pvalue(q) == pytest.approx(0.5 * chi2(1).sf(q), rel=1e-10)


@pytest.mark.parametrize("test_stat", ["t", "ttilde", "q0", "q"])
def test_expected_band(test_stat):
    mu, alternative = (0.0, 1.5) if test_stat == "q0" else (1.5, 0.0)
    formula = Asymptotic(test_stat, mu, alternative, (mu - alternative) ** 2 / SIGMA**2)
    p, above = formula.expected()
    assert above == pytest.approx(norm.cdf([-2, -1, 0, 1, 2]))
    # the p-values of the quantiles of the statistic
    inside = slice(None, 4) if test_stat in ("t", "ttilde") else slice(None, 3)
    thrown = formula.pvalue(statistic(test_stat, alternative + SIGMA * Z, mu))
    np.testing.assert_allclose(np.quantile(thrown, above)[inside], p[inside], rtol=0.05)


def test_mistakes():
    with pytest.raises(ValueError, match="needs an alternative that can be told from the tested value"):
        Asymptotic("q", 1.0, 1.0, 0.0)
    with pytest.raises(ValueError, match="test_stat must be one of"):
        Asymptotic("x", 1.0, 0.0, 1.0)
