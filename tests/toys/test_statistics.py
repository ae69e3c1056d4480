"""Bias, pulls and coverage against closed forms, and what a wrong error bar looks like."""

import numpy as np
import pytest
from scipy import stats

from engine.result import FitResult
from toys.statistics import ONE_SIGMA, fraction, known_pulls
from toys.tally import calibration


def make_result(values, errors, valid=None, names=("mu", "sigma")):
    values, errors = np.asarray(values, float), np.asarray(errors, float)
    n_toys, n_params = values.shape
    return FitResult(
        names=names[:n_params],
        values=values,
        errors=errors,
        covariance=np.zeros((n_toys, n_params, n_params)),
        fval=np.zeros(n_toys),
        edm=np.zeros(n_toys),
        valid=np.ones(n_toys, bool) if valid is None else np.asarray(valid),
        status=np.zeros(n_toys, int),
        nfev=np.ones(n_toys, int),
        at_limit=np.zeros((n_toys, n_params), bool),
        has_posdef_covar=np.ones(n_toys, bool),
        rescued=np.zeros(n_toys, bool),
        errordef=0.5,
        backend="numba",
        device="cpu",
    )


def test_closed_form():
    # pulls -2, -1, 0, 1, 4 of a parameter with truth 10 and error 3; one of 1 sigma is inside of the interval
    pulls = np.array([-2.0, -1.0, 0.0, 1.0, 4.0])
    (row,) = calibration(make_result(10.0 + 3.0 * pulls[:, None], np.full((5, 1), 3.0)), {"mu": 10.0})
    assert (row.name, row.n, row.truth) == ("mu", 5, 10.0)
    np.testing.assert_allclose([row.bias, row.pull_mean], [1.2, 0.4], rtol=1e-14)
    width = np.sqrt((4 + 1 + 0 + 1 + 16 - 5 * 0.16) / 4)
    np.testing.assert_allclose(
        [row.pull_width, row.pull_mean_error, row.bias_error, row.pull_width_error],
        [width, width / np.sqrt(5), 3 * width / np.sqrt(5), width / np.sqrt(8)],
        rtol=1e-14,
    )
    assert row.coverage == 3 / 5


@pytest.mark.parametrize("inside, n", [(0, 10), (7, 10), (10, 10), (683, 1000)])
def test_coverage_interval_is_wilsons(inside, n):
    pulls = np.where(np.arange(n) < inside, 0.5, 1.5)
    (row,) = calibration(make_result(pulls[:, None], np.ones((n, 1))), {"mu": 0.0})
    # Wilson, J. Am. Stat. Assoc. 22 (1927) 209: the p with |inside / n - p| = z sqrt(p (1 - p) / n) at z = 1
    f = inside / n
    centre, half = (f + 0.5 / n) / (1 + 1 / n), np.sqrt(f * (1 - f) / n + 0.25 / n**2) / (1 + 1 / n)
    np.testing.assert_allclose([row.coverage_low, row.coverage_high], [centre - half, centre + half], atol=1e-14)
    reference = stats.binomtest(inside, n).proportion_ci(ONE_SIGMA, "wilson")
    assert row.coverage == f
    np.testing.assert_allclose([row.coverage_low, row.coverage_high], reference, rtol=1e-13)


@pytest.mark.parametrize("interval, method", [("wilson", "wilson"), ("clopper-pearson", "exact")])
@pytest.mark.parametrize("k, n", [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (9_000, 10_000)])
def test_binomial_intervals_are_those_of_scipy(interval, method, k, n):
    reference = stats.binomtest(k, n).proportion_ci(0.9, method)
    np.testing.assert_allclose(fraction(k, n, interval, 0.9), [k / n, *reference], rtol=1e-9, atol=1e-12)


def test_fits_without_an_error_are_left_out():
    values = [[1.0, 5.0], [2.0, 5.0], [np.nan, np.nan], [3.0, 5.0]]
    errors = [[1.0, 0.0], [0.0, 0.0], [np.nan, np.nan], [1.0, 0.0]]
    (row,) = calibration(make_result(values, errors, [True, True, False, True]), {"mu": 1.0, "sigma": 5.0})
    assert (row.name, row.n, row.pull_mean, row.bias) == ("mu", 2, 1.0, 1.0)
    assert calibration(make_result(values, errors, [False] * 4), {"mu": 1.0, "sigma": 5.0}) == []
    assert calibration(make_result(values[:1], errors[:1]), {"mu": 1.0, "sigma": 5.0}) == []


def test_parameters_that_the_toys_do_not_have():
    rng = np.random.default_rng(3)
    result = make_result(rng.normal(size=(50, 2)), np.ones((50, 2)), np.arange(50) > 9)
    both = calibration(result, {"mu": 0.0, "sigma": 0.0})
    mu, sigma = calibration(result, {"mu": 0.0, "tau": 5.0})
    assert mu == both[0]
    assert (sigma.name, sigma.n) == ("sigma", 40) and np.isnan(sigma[2:]).all()
    pulls = known_pulls(result, {"mu": 0.0, "tau": 5.0})
    np.testing.assert_array_equal(pulls[:, 0], result.pulls({"mu": 0.0, "sigma": 0.0})[:, 0])
    assert np.isnan(pulls[:, 1]).all()
    # held: neither a bias nor a row
    assert calibration(make_result(np.ones((5, 2)), np.zeros((5, 2))), {"mu": 1.0}) == []


def test_a_wrong_error_bar_is_seen():
    """4000 toys measure the width of the pull to 1.1 %: an error that is 5 % wrong is 4.5 of these away."""
    n_toys = 4000
    rng = np.random.default_rng(1)
    z = rng.normal(size=(n_toys, 2))
    honest, wrong = calibration(
        make_result([5.0, 0.5] + [0.1, 0.02] * z, np.tile([0.1, 0.02 / 1.05], (n_toys, 1))), {"mu": 5.0, "sigma": 0.5}
    )
    for row in (honest, wrong):
        np.testing.assert_allclose(row.pull_mean_error, row.pull_width / np.sqrt(n_toys), rtol=1e-12)
        assert abs(row.pull_mean) < 4 * row.pull_mean_error and abs(row.bias) < 4 * row.bias_error
    assert abs(honest.pull_width - 1.0) < 4 / np.sqrt(2 * n_toys)
    assert abs(honest.coverage - ONE_SIGMA) < 4 * np.sqrt(ONE_SIGMA * (1 - ONE_SIGMA) / n_toys)
    assert wrong.pull_width - 1.0 > 4 / np.sqrt(2 * n_toys)
    expected = 2 * stats.norm.cdf(1 / 1.05) - 1
    assert abs(wrong.coverage - expected) < 4 * np.sqrt(expected * (1 - expected) / n_toys)
    assert not wrong.coverage_low < ONE_SIGMA < wrong.coverage_high


def test_errors_of_the_calibration_are_honest():
    """Over 400 studies of 50 toys, each number scatters as its own error says."""
    rng = np.random.default_rng(2)
    rows = [calibration(make_result(rng.normal(size=(50, 1)), np.ones((50, 1))), {"mu": 0.0})[0] for _ in range(400)]
    for name, expected in [("pull_mean", 0.0), ("pull_width", 1.0)]:
        scaled = [(getattr(row, name) - expected) / getattr(row, f"{name}_error") for row in rows]
        # 4 standard errors of a width from 400, and 3 % because the errors scatter themselves
        assert abs(np.std(scaled) - 1.0) < 4 / np.sqrt(800) + 0.03
    covered = np.mean([row.coverage_low <= ONE_SIGMA <= row.coverage_high for row in rows])
    assert abs(covered - ONE_SIGMA) < 4 * np.sqrt(ONE_SIGMA * (1 - ONE_SIGMA) / 400) + 0.03
