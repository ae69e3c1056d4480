import warnings
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binomtest, kstest, norm, poisson

from engine import ExtendedUnbinnedNLL, PoissonConstraint, PoissonNLL
from kernels import expon
from toys import Component, ExtendedMixture, PoissonCounts, Simultaneous, Study
from toys.hypotest import hypotest, quantiles, tail
from toys.pool import ToyPool

B = 5.0
COUNT = PoissonNLL(lambda mu: jnp.array([1.0]) * mu + B)
SIGNAL, BACKGROUND, UNCERTAINTY = np.array([12.0, 11.0]), np.array([50.0, 52.0]), np.array([3.0, 7.0])
FACTORS = (BACKGROUND / UNCERTAINTY) ** 2
BINS = PoissonNLL(lambda mu, g1, g2: mu * SIGNAL + BACKGROUND * jnp.stack([g1, g2]))
TWO_BINS = BINS + PoissonConstraint(("g1", "g2"), FACTORS, FACTORS)


def count(n, truth=3.0, **limits):
    return Study(COUNT, PoissonCounts.of(COUNT), {"mu": truth}, limits=limits, data=np.array([[float(n)]]))


def two_bins(observed=(51.0, 48.0), lower=0.0):
    """The counting experiment of pyhf's documentation."""
    sampler = Simultaneous(TWO_BINS, (PoissonCounts.of(BINS), None))
    limits = {"mu": (lower, 10.0), "g1": (1e-10, 10.0), "g2": (1e-10, 10.0)}
    truth = {"mu": 1.0, "g1": 1.0, "g2": 1.0}
    return Study(TWO_BINS, sampler, truth, limits=limits, data=np.array([observed]))


def in_pyhf(optimizer, **options):
    pyhf = pytest.importorskip("pyhf")
    pyhf.set_backend("numpy", getattr(pyhf.optimize, optimizer)(**options))
    model = pyhf.simplemodels.uncorrelated_background(
        signal=SIGNAL.tolist(), bkg=BACKGROUND.tolist(), bkg_uncertainty=UNCERTAINTY.tolist()
    )
    return pyhf.infer, model


def by_pyhf(value, observed, *, test_stat, lower=0.0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        infer, model = in_pyhf("minuit_optimizer", tolerance=1e-8, strategy=2)
        bounds = [(lower, 10.0), *model.config.suggested_bounds()[1:]]
        options = {"test_stat": test_stat, "par_bounds": bounds}
        options |= {"return_expected_set": True, "return_tail_probs": True}
        return infer.hypotest(value, [*observed, *model.config.auxdata], model, **options)


@pytest.mark.parametrize("n", [2, 5, 8, 14])
def test_pvalues_of_a_count(n):
    pool = ToyPool(count(n), "mu", seed=4, backend="numba")
    options = {"poi": "mu", "n_toys": 20_000, "pool": pool}
    # with one count the statistic orders the toys as the count does
    discovery = hypotest(pool.study, 0.0, test_stat="q0", **options)
    p = poisson.sf(n - 1, B) if n > B else 1.0
    assert discovery.null.n == 20_000 and discovery.failed == 0
    assert binomtest(round(discovery.pvalue * 20_000), 20_000, p).pvalue > 1e-3
    assert discovery.pvalue_error == pytest.approx(np.sqrt(p * (1 - p) / 20_000), rel=0.2, abs=2e-4)
    tied = poisson.pmf(n, B) if n > B else poisson.cdf(B, B)
    assert abs(discovery.null.ties / 20_000 - tied) < 4.0 * np.sqrt(tied / 20_000)
    assert f"{discovery.ties} are within 1e-06 of the observation" in discovery.sentence
    limit = hypotest(pool.study, 6.0, test_stat="qtilde", **options)
    below = [poisson.cdf(n, mean) if n <= mean else 1.0 for mean in (6.0 + B, B)]
    if n > 6.0 + B:
        below = [1.0, 1.0]
    elif n > B:
        below[1] = poisson.cdf(n, B)
    for found, exact in ((limit.null, below[0]), (limit.alternative, below[1])):
        assert binomtest(round(found.p * 20_000), 20_000, exact).pvalue > 1e-3
    relative = np.hypot(limit.CLsb_error / limit.CLsb, limit.CLb_error / limit.CLb)
    assert limit.CLs_error == pytest.approx(limit.CLs * relative)
    ratio = below[0] / below[1]
    assert limit.CLs == limit.CLsb / limit.CLb and abs(limit.CLs - ratio) < 4.0 * limit.CLs_error


@pytest.mark.parametrize("test_stat, value, lower", [("qtilde", 1.0, 0.0), ("qtilde", 0.4, 0.0), ("q", 2.0, -3.0)])
def test_asymptotic_formulae_equal_pyhf(test_stat, value, lower):
    test = hypotest(
        two_bins(lower=lower), value, poi="mu", test_stat=test_stat, calctype="asymptotics", backend="numba"
    )
    cls, (clsb, clb), expected = by_pyhf(value, (51.0, 48.0), test_stat=test_stat, lower=lower)
    np.testing.assert_allclose([test.CLs, test.CLsb, test.CLb], [cls, clsb, clb], rtol=0, atol=1e-7)
    np.testing.assert_allclose(test.expected, expected, rtol=0, atol=1e-7)
    assert test.CLs_error == 0.0 and test.null is None and test.asymptotic.CLs == test.CLs


def test_discovery_equals_pyhf():
    study, observed = two_bins((61.0, 63.0)), (61.0, 63.0)
    test = hypotest(study, 0.0, poi="mu", test_stat="q0", calctype="asymptotics", backend="numba")
    p, _, expected = by_pyhf(0.0, observed, test_stat="q0")
    assert test.pvalue == pytest.approx(float(p), abs=1e-7) and np.isnan(test.CLs) and test.poi_alt == 1.0
    np.testing.assert_allclose(test.expected, expected, rtol=0, atol=1e-7)
    assert test.significance == pytest.approx(norm.isf(float(p)), abs=1e-6)


def test_a_discovery_that_no_toy_reaches_has_a_lower_limit_of_its_significance():
    study = two_bins((120.0, 130.0))
    test = hypotest(study, 0.0, poi="mu", test_stat="q0", n_toys=100, backend="numba")
    assert test.pvalue == 0.0 and test.significance == np.inf
    # of 100 toys none is as extreme with a probability of 5 % where p is 0.0295
    assert f"Z      > {norm.isf(0.029513):.3g} at 95 % CL, as none of 100 toys is as extreme" in str(test)


def test_toys_equal_those_of_pyhf():
    test = hypotest(two_bins(), 1.0, poi="mu", n_toys=20_000, backend="numba")
    n = 300
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other packages
        infer, model = in_pyhf("scipy_optimizer")
        np.random.seed(1)  # noqa: NPY002 the toys of pyhf
        data = [51.0, 48.0, *model.config.auxdata]
        calculator = infer.calculators.ToyCalculator(data, model, ntoys=n, track_progress=False)
        q = calculator.teststatistic(1.0)
        clsb, clb, cls = map(float, calculator.pvalues(q, *calculator.distributions(1.0)))
    assert test.q_observed == pytest.approx(float(q), abs=1e-5)
    assert abs(test.CLsb - clsb) < 3.5 * test.CLsb_error * np.sqrt(20_000 / n)
    assert abs(test.CLb - clb) < 3.5 * test.CLb_error * np.sqrt(20_000 / n)
    assert abs(test.CLs - cls) < 3.5 * test.CLs_error * np.sqrt(20_000 / n)
    assert abs(test.CLs - test.asymptotic.CLs) < 0.01
    np.testing.assert_allclose(test.expected[2:4], test.asymptotic.expected[2:4], rtol=0.1)
    assert test.failed == 0 and "20000 toys at mu = 1 and 20000 at 0" in test.sentence


def test_two_sided_statistic_of_many_events():
    many = PoissonNLL(lambda mu: mu * jnp.array([1e6]))
    study = Study(
        many, PoissonCounts.of(many), {"mu": 1.0}, limits={"mu": (0.1, None)}, data=np.array([[1e6 + 1500.0]])
    )
    test = hypotest(study, 1.0, poi="mu", poi_alt=1.002, test_stat="t", n_toys=10_000, seed=3, backend="numba")
    assert kstest(test.q_null, "chi2", args=(1,)).pvalue > 1e-3
    assert test.asymptotic.pvalue == pytest.approx(2.0 * norm.sf(1.5), rel=1e-2)
    assert abs(test.pvalue - test.asymptotic.pvalue) < 4.0 * test.pvalue_error + 1e-3
    np.testing.assert_allclose(test.expected[1:], test.asymptotic.expected[1:], rtol=0.15)


def test_failures_and_extremes_are_told():
    q = np.array([0.0, 1.0, 2.0, 2.0 + 5e-7, np.nan, 3.0])
    found = tail(q, 2.0)
    assert found.p == 3 / 5 and found.ties == 2 and found.failed == 1 and found.n == 5
    assert tail(q, 9.0).p == 0.0 and tail(q, 9.0).error > 0.0
    assert np.isnan(tail(np.empty(0), 1.0).p)
    # without a limit the toys without events have no minimum
    test = hypotest(count(4), 3.0, poi="mu", test_stat="q", n_toys=2000, backend="numba")
    assert test.alternative.failed > 3 and f"{test.failed} failed and are left out" in test.sentence
    assert test.null.n + test.null.failed == 2000
    assert "CLs" in str(test) and "asymptotic" in str(test)


def test_unbinned_events():
    """Signal and background of one shape are a count, whatever the events."""

    def events(x, mu, b):
        return mu + b, (mu + b) * expon.pdf(x, 0.0, 1.0)

    components = tuple(Component(name, expon.ppf, (0.0, 1.0)) for name in ("mu", "b"))
    sampler = ExtendedMixture(("mu", "b"), components)
    study = Study(ExtendedUnbinnedNLL(events), sampler, {"mu": 3.0, "b": B}, fixed=["b"])
    data = [np.linspace(0.1, 2.0, 3)]
    options = {"poi": "mu", "data": data, "n_toys": 5000, "backend": "numba"}
    test = hypotest(study, 4.0, **options)
    assert test.asymptotic is None  # the range of x is not known
    assert "There are no asymptotic values: the Asimov data of the model 'events' need the finite range" in repr(test)
    assert abs(test.CLs - poisson.cdf(3, 9.0) / poisson.cdf(3, 5.0)) < 4.0 * test.CLs_error
    with pytest.raises(ValueError, match="the Asimov data of the model 'events' need the finite range"):
        hypotest(study, 4.0, calctype="asymptotics", **options)


@pytest.mark.parametrize(
    "value, options, sentence",
    [
        (0.0, {}, "qtilde tests a value above its alternative"),
        (1.0, {"calctype": "toys"}, "calctype must be one of"),
        (1.0, {"poi": "nu"}, "poi names 'nu'"),
        (1.0, {"test_stat": "q0"}, "q0 tests mu = 0, got 1"),
        (-1.0, {"poi_alt": -2.0}, "the tested mu = -1 is outside of the limits"),
        (1.0, {"n_toys": 0}, "n_toys must be a whole number"),
        (1.0, {"n_toys_alt": 0}, "n_toys must be a whole number of at least 1, got 0"),
        (np.nan, {}, "a value of the parameter of interest must be finite, got nan"),
        (np.ones(2), {}, "a value of the parameter of interest must be a number, got array"),
    ],
)
def test_mistakes(value, options, sentence):
    with pytest.raises((TypeError, ValueError), match=sentence):
        hypotest(count(4), value, **{"poi": "mu", "backend": "numba", **options})


def test_a_pool_is_of_one_study():
    pool = ToyPool(count(4), "mu", backend="numba")
    for study, data in ((two_bins(), None), (pool.study, np.array([[3.0]]))):
        with pytest.raises(ValueError, match="the pool holds the toys of its own study, parameter 'mu' and data"):
            hypotest(study, 1.0, poi="mu", data=data, pool=pool)


def test_without_a_parameter_of_interest():
    with pytest.raises(ValueError, match="poi must name the parameter of interest, as the study has none"):
        hypotest(count(3), 1.0)
    with pytest.raises(ValueError, match="poi names 'nu'"):
        Study(COUNT, PoissonCounts.of(COUNT), {"mu": 1.0}, poi="nu")


@pytest.mark.parametrize("test_stat", ["qtilde", "t"])
def test_errors_of_what_is_expected_are_its_spread_over_seeds(test_stat):
    made = hypotest(count(4), 3.0, poi="mu", test_stat=test_stat, poi_alt=0.0, n_toys=100, backend="numba")
    assert made.expected_error.shape == (5,) and (made.expected_error > 0).all()
    assert " +- " in str(made).split("expected")[1]
    rng, spread, told = np.random.default_rng(5), [], []
    for _ in range(200):
        q_null, q_alternative = rng.normal(0.0, 1.0, 2000) ** 2, rng.normal(-1.5, 1.0, 2000) ** 2
        thrown = replace(made, q_null=q_null, q_alternative=q_alternative)
        spread.append(quantiles(q_null, q_alternative, ratio=test_stat == "qtilde"))
        told.append(thrown.expected_error)
    ratio = np.mean(told, axis=0) / np.std(spread, axis=0)
    np.testing.assert_allclose(ratio[1:], 1.0, atol=0.25)
    assert 1.0 < ratio[0] < 2.0  # of two toys in the tail, where none tells of more than 0
    asymptotic = hypotest(count(4), 3.0, poi="mu", test_stat=test_stat, poi_alt=0.0, calctype="asymptotics")
    assert (asymptotic.expected_error == 0).all()
