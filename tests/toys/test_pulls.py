"""Pulls against closed forms, with Hesse errors and with the MINOS error on the side of the truth."""

import numpy as np
import pytest
from scipy import stats

from engine.minos import MinosResult
from engine.result import FitResult
from toys.pulls import pulls
from toys.statistics import fraction, known_truth
from toys.tally import calibration


def make_result(values, errors, valid=None, at_limit=None, names=("mu", "sigma"), status=None):
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
        status=np.zeros(n_toys, int) if status is None else np.asarray(status),
        nfev=np.ones(n_toys, int),
        at_limit=np.zeros((n_toys, n_params), bool) if at_limit is None else np.asarray(at_limit),
        has_posdef_covar=np.ones(n_toys, bool),
        rescued=np.zeros(n_toys, bool),
        errordef=0.5,
        backend="numba",
        device="cpu",
    )


def make_minos(result, lower, upper, names=("mu",), **flags):
    lower, upper = np.asarray(lower, float), np.asarray(upper, float)
    no = np.zeros(lower.shape, bool)
    given = {"valid": ~no, "at_lower_limit": no, "at_upper_limit": no, "new_minimum": no} | flags
    return MinosResult(
        names=names,
        lower=lower,
        upper=upper,
        nfev=np.zeros(lower.shape, np.int64),
        result=result,
        **{name: np.asarray(flag) for name, flag in given.items()},
    )


def test_rows_are_those_of_the_calibration():
    """The two tables of the project are one computation, and its moments are NumPy's."""
    rng = np.random.default_rng(1)
    result = make_result(rng.normal([5.0, 0.5], [0.2, 0.1], (400, 2)), rng.uniform(0.1, 0.3, (400, 2)))
    truth = {"mu": 5.0, "sigma": 0.5}
    found = pulls(result, truth)
    for row, other, column in zip(found.rows, calibration(result, truth), found.by_method["hesse"].T, strict=True):
        for name in set(row._fields) & set(other._fields):
            assert getattr(row, name) == getattr(other, name)
        np.testing.assert_allclose([row.pull_mean, row.pull_width], stats.norm.fit(column), rtol=2e-3)  # n - 1
        low, median, high = np.quantile(column, [0.15865525, 0.5, 0.84134475])
        np.testing.assert_allclose([row.median, row.robust_width], [median, (high - low) / 2], rtol=1e-7)
        assert row.p_standard == stats.kstest(column, stats.norm.cdf).pvalue
        assert row.n == row.n_toys == 400 and row.missing == {}
    np.testing.assert_array_equal(found.of("sigma"), result.pulls(truth)[:, 1])
    assert "robust width" in str(found) and "<table>" in found._repr_html_()


def test_minos_pull_has_the_error_on_the_side_of_the_truth():
    values = [[4.0], [6.0], [5.0], [4.0], [6.0], [4.0]]
    result = make_result(values, np.ones((6, 1)))
    # the truth 5 lies above, below, at the estimate; above it where that side ends on a limit; below it where the
    # other side does; and where there is no interval
    minos = make_minos(
        result,
        [[-2.0], [-4.0], [-2.0], [-2.0], [-0.5], [np.nan]],
        [[0.5], [3.0], [3.0], [0.7], [1.0], [np.nan]],
        valid=np.array([[True]] * 5 + [[False]]),
        at_upper_limit=np.array([[False], [False], [False], [True], [True], [False]]),
    )
    found = pulls(result, {"mu": 5.0}, minos)
    np.testing.assert_allclose(found.by_method["minos"][:, 0], [-2.0, 0.25, 0.0, np.nan, 2.0, np.nan], rtol=1e-14)
    row = found.rows[1]
    assert (row.method, row.n, row.n_toys) == ("minos", 4, 6)
    assert row.missing == {"the interval ends on a limit": 1, "no MINOS interval": 1}
    np.testing.assert_allclose([row.bias, row.pull_mean], [np.mean([-1, 1, 0, 1]), np.mean([-2, 0.25, 0, 2])])


def test_minos_belongs_to_its_own_minimum():
    """Where MINOS found a lower minimum, the pull is from there."""
    first, second = make_result([[4.0], [4.5]], np.ones((2, 1))), make_result([[6.0], [4.5]], np.ones((2, 1)))
    minos = make_minos(second, [[-0.5], [-1.0]], [[1.0], [0.25]])
    np.testing.assert_allclose(pulls(first, {"mu": 5.0}, minos).by_method["minos"][:, 0], [2.0, -2.0])


def test_failures_are_counted():
    values, errors = [[1.0], [2.0], [np.nan], [3.0], [1.5]], [[1.0], [0.0], [np.nan], [1.0], [1.0]]
    result = make_result(values, errors, [True, True, False, True, True])
    (row,) = pulls(result, {"mu": 1.0}).rows
    assert (row.n_toys, row.n, row.missing) == (5, 3, {"no error: held, or at a limit": 1, "no valid fit": 1})
    assert pulls(make_result(values, np.zeros((5, 1))), {"mu": 1.0}).rows == []


def test_truth_of_each_toy():
    rng = np.random.default_rng(2)
    truth = rng.uniform(1, 9, 3000)
    result = make_result((truth + rng.normal(size=3000))[:, None], np.ones((3000, 1)))
    (row,) = pulls(result, {"mu": truth, "elsewhere": 3.0}).rows
    assert np.isnan(row.truth) and row.p_standard > 1e-3
    # 4 standard errors
    assert abs(row.pull_mean) < 4 / np.sqrt(3000) and abs(row.pull_width - 1) < 4 / np.sqrt(6000)
    (wrong,) = pulls(result, {"mu": truth + 0.3}).rows
    assert wrong.p_standard < 1e-3
    skewed = make_result(rng.exponential(size=(3000, 1)) - 1.0, np.ones((3000, 1)))
    assert pulls(skewed, {"mu": 0.0}).rows[0].p_normal < 1e-6 < row.p_normal


def test_wrong_truth():
    result = make_result(np.ones((3, 2)), np.ones((3, 2)))
    with pytest.raises(ValueError, match="truth must name parameters of the fit, which are mu, sigma"):
        pulls(result, {"tau": 1.0})
    for value in (np.nan, [1.0, 2.0], [1.0, np.inf, 2.0]):
        with pytest.raises(ValueError, match=r"truth\['mu'\] must be a finite number, or \(3,\) of them"):
            known_truth(result, {"mu": value})
    with pytest.raises(ValueError, match="minos must have an interval for each of 3 toys, got 2"):
        pulls(result, {"mu": 1.0}, make_minos(result, np.ones((2, 1)), np.ones((2, 1))))
    with pytest.raises(ValueError, match="minos has intervals of tau"):
        pulls(result, {"mu": 1.0}, make_minos(result, np.ones((3, 1)), np.ones((3, 1)), names=("tau",)))


@pytest.mark.parametrize("k, n", [(0, 20), (13, 20), (20, 20)])
def test_binomial_intervals(k, n):
    """Clopper and Pearson's ends are quantiles of beta distributions; Wilson's are tested with the calibration."""
    share, low, high = fraction(k, n, "clopper-pearson", 0.9)
    expected = [stats.beta.ppf(0.05, k, n - k + 1) if k else 0.0, stats.beta.ppf(0.95, k + 1, n - k) if k < n else 1.0]
    np.testing.assert_allclose([low, high], expected, rtol=1e-10)
    assert share == k / n
    assert np.isnan(fraction(0, 0)).all()
    with pytest.raises(ValueError, match="'wilson' or 'clopper-pearson', got 'wald'"):
        fraction(1, 2, "wald")
