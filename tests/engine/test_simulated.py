"""Templates of simulated events: against iminuit, in the limit of large samples, and with what is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from iminuit import Minuit
from iminuit import cost as minuit_cost
from scipy.stats import nbinom
from scipy.stats import norm as scipy_norm

from engine import PoissonNLL, Template, asimov, fit_batch
from engine.cpu import NumbaDriver
from engine.reference import IndependentCost
from engine.test_statistic import test_statistic as statistic_of
from engine.xla import XlaDriver
from kernels import norm
from toys import PoissonCounts, Study, TemplateCounts, generate, goodness_of_fit
from toys.counts import poisson_table
from toys.figures import picture

EDGES = np.linspace(0.0, 2.0, 16)
RNG = np.random.default_rng(41)
SIGNAL = np.histogram(RNG.normal(1.0, 0.15, 300), EDGES)[0].astype(float)
MASSES, WEIGHTS = RNG.exponential(1.0, 800), RNG.uniform(0.3, 2.0, 800)
FALLING = np.histogram(MASSES, EDGES)[0].astype(float)
WEIGHTED = np.stack([np.histogram(MASSES, EDGES, weights=w)[0] for w in (WEIGHTS, WEIGHTS**2)], axis=1)
LIMITS = {"x0": (0, None), "x1": (0, None)}
N_TOYS = 60


@pytest.fixture(scope="module")
def toys():
    """The smaller half of the toys without a signal."""
    signal = np.where(np.arange(N_TOYS) < N_TOYS // 2, 0.0, 200.0)[:, None] * SIGNAL / SIGNAL.sum()
    return np.random.default_rng(42).poisson(signal + 400.0 * FALLING / FALLING.sum()).astype(float)


def scaled_cdf(x, n, mu, sigma):
    return n * norm.cdf(x, mu, sigma)


def minuit_of(toy, parts, start, method="da", name=None, mask=None):
    cost = minuit_cost.Template(toy, EDGES, parts, method=method, name=name)
    cost.mask = mask
    minuit = Minuit(cost, *start)
    minuit.limits, minuit.strategy, minuit.tol = (0, None), 2, 1e-6
    minuit.migrad()
    return minuit


@pytest.mark.parametrize("method", ["da", "jsc"])
@pytest.mark.parametrize("falling", [FALLING, WEIGHTED], ids=["counts", "weights"])
def test_against_minuit_on_both_backends(toys, method, falling):
    cost = Template(EDGES, (SIGNAL, falling), method=method)
    start = [150.0, 350.0]
    result = fit_batch(cost, toys, start, limits=LIMITS, backend="numba")
    assert result.valid.all() and result.errordef == 0.5 and 0.1 < result.at_limit[:, 0].mean() < 0.5
    if falling is FALLING:  # the weights are but other numbers in the same program
        xla = fit_batch(cost, toys, start, limits=LIMITS, backend="jax")
        scale = np.where(result.errors > 0, result.errors, 1e-6)
        assert np.abs((xla.values - result.values) / scale).max() < 1e-9
        np.testing.assert_array_equal(xla.status, result.status)
    for k in range(N_TOYS - 10, N_TOYS):
        minuit = minuit_of(toys[k], (SIGNAL, falling), start, method)
        np.testing.assert_allclose(result.fval[k], 0.5 * minuit.fval, rtol=1e-7)
        assert np.all(np.abs(result.values[k] - list(minuit.values)) < 1e-3 * result.errors[k])
        np.testing.assert_allclose(result.errors[k], list(minuit.errors), rtol=0.01)


@pytest.mark.parametrize("method", ["da", "jsc"])
def test_weighted_histograms_against_minuit(toys, method):
    rng = np.random.default_rng(45)
    some = toys[-6:]
    weighted = np.stack([0.7 * some, 0.7**2 * some * rng.uniform(1.0, 2.0, some.shape)], axis=2)
    cost = Template(EDGES, (SIGNAL, WEIGHTED), method=method)
    result = fit_batch(cost, weighted, [100.0, 200.0], limits=LIMITS, backend="numba")
    for k in range(6):
        minuit = minuit_of(weighted[k], (SIGNAL, WEIGHTED), [100.0, 200.0], method)
        assert np.all(np.abs(result.values[k] - list(minuit.values)) < 1e-3 * result.errors[k])
        np.testing.assert_allclose(result.fval[k], 0.5 * minuit.fval, rtol=1e-7)
        np.testing.assert_allclose(result.errors[k], list(minuit.errors), rtol=0.01)


def test_a_model_beside_a_template_with_a_mask(toys):
    parts, start = (scaled_cdf, FALLING), [150.0, 1.05, 0.2, 350.0]
    mask = EDGES[1:] < 1.8
    cost = Template(EDGES, parts, mask=mask)
    assert cost.names == ("x0_n", "x0_mu", "x0_sigma", "x1")
    some = np.where(mask, toys[-8:], np.nan)
    result = fit_batch(cost, some, start, limits={"x0_sigma": (0.01, 1)}, backend="numba")
    theirs = lambda x, n, mu, sigma: n * scipy_norm.cdf(x, mu, sigma)  # noqa: E731
    for k in range(8):
        minuit = minuit_of(toys[k - 8], (theirs, FALLING), start, mask=mask)
        assert result.valid[k] and minuit.valid
        np.testing.assert_allclose(result.fval[k], 0.5 * minuit.fval, rtol=1e-6)
        assert np.all(np.abs(result.values[k] - list(minuit.values)) < 3e-3 * result.errors[k])


@pytest.mark.parametrize("method", ["da", "jsc"])
def test_bins_where_next_to_nothing_is_expected(method):
    """By a model whose tail is 0 or rounding noise there, in bins without simulated events."""
    edges, rng = np.linspace(-20.0, 20.0, 41), np.random.default_rng(44)
    flat = np.histogram(rng.uniform(-5, 20, 3000), edges)[0].astype(float)
    toys = rng.poisson(200 * np.diff(scipy_norm.cdf(edges, 3.0, 0.7)) + flat / 3.0, (30, 40)).astype(float)
    cost, start = Template(edges, (scaled_cdf, flat), method=method), [200.0, 3.0, 0.7, 1000.0]
    limits = {"x0_n": (0, None), "x0_sigma": (0.01, None), "x1": (0, None)}
    result, xla = (fit_batch(cost, toys, start, limits=limits, backend=backend) for backend in ("numba", "jax"))
    assert result.valid.all() and np.abs((xla.values - result.values) / result.errors).max() < 1e-9
    theirs = lambda x, n, mu, sigma: n * scipy_norm.cdf(x, mu, sigma)  # noqa: E731
    for k in range(3 if method == "da" else 0):  # iminuit's "jsc" divides by zero there
        minuit = Minuit(minuit_cost.Template(toys[k], edges, (theirs, flat), method=method), *start)
        minuit.limits, minuit.strategy, minuit.tol = (0, None), 2, 1e-6
        minuit.migrad()
        assert np.all(np.abs(result.values[k] - list(minuit.values)) < 3e-3 * result.errors[k])
        np.testing.assert_allclose(result.fval[k], 0.5 * minuit.fval, rtol=1e-5)


def test_a_density_is_no_cdf():
    cost = Template(EDGES, (lambda x, n, mu: n * norm.pdf(x, mu, 0.2), FALLING))
    with pytest.warns(UserWarning, match="'<lambda>' falls from the edge .* it must be a cdf"):
        cost.check(np.array([100.0, 1.0, 300.0]))


@pytest.mark.parametrize("method", ["da", "jsc"])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e6, 1e13, 1e20])
def test_values_and_derivatives_far_from_the_minimum(method, size):
    """Of small and large samples: JAX's derivatives of the papers' formulae, and Poisson's where these are exact."""
    counts = np.array([[0.0, 3.0, 40.0, 7.0, 0.0]])
    shapes = np.array([[0.1, 0.2, 0.3, 0.4, 0.001], [0.5, 0.3, 0.1, 0.1, 0.002]])
    parts = [np.stack([size * shape, size * shape], axis=1) for shape in shapes]
    edges = np.arange(6.0)
    cost, theta = Template(edges, parts, method=method), np.array([[12.0, 30.0]])

    def papers(theta):
        fractions = shapes / shapes.sum(axis=1)[:, None]
        mu = theta @ fractions
        k = mu**2 / (theta**2 @ (fractions / (size * shapes.sum(axis=1)[:, None])))
        n = counts[0]
        poisson = lambda n, mu: mu - n + n * jnp.log(jnp.where(n > 0, n / jnp.where(n > 0, mu, 1.0), 1.0))  # noqa: E731
        if size >= 1e13:
            return jnp.sum(poisson(n, mu))
        if method == "da":
            beta = (n + k) / (mu + k)
            return jnp.sum(poisson(n, mu * beta) + poisson(k, k * beta))
        p = 0.5 - 0.5 * mu / k
        beta = p + jnp.sqrt(p**2 + n / k)
        return jnp.sum(poisson(n, mu * beta) + 0.5 * (beta - 1.0) ** 2 * k)

    with jax.enable_x64(True):
        wanted = papers(theta[0]), jax.grad(papers)(theta[0]), jax.hessian(papers)(theta[0])[np.tril_indices(2)]
    rows = cost.rows(counts)
    drivers = [NumbaDriver(cost, rows)] + [XlaDriver(cost, rows, jax.devices("cpu"))] * (size == 1.0)
    for driver in drivers:
        [out] = driver.evaluate(np.arange(1), theta)
        np.testing.assert_allclose(out[0], wanted[0], rtol=1e-9)
        np.testing.assert_allclose(out[2:4], wanted[1], rtol=1e-8, atol=1e-9)
        np.testing.assert_allclose(out[4:], wanted[2], rtol=1e-7, atol=1e-9)
    value, gradient = IndependentCost(cost, rows)(0, theta[0])
    np.testing.assert_allclose([value, *gradient], out[[0, 2, 3]], rtol=1e-10)


@pytest.mark.parametrize("method", ["da", "jsc"])
def test_the_hessian_where_counts_are_the_expectation(method):
    """To the last digits, as with Asimov data: there the factors are 1, and differences are rounding noise."""
    cost, theta = Template(EDGES, (SIGNAL, FALLING), method=method), np.array([[200.0, 400.0]])
    rng = np.random.default_rng(43)
    counts = asimov(cost, theta[0]) * (1.0 + rng.normal(size=(200, 1)) * 10.0 ** rng.uniform(-17, -7, (200, 1)))
    out = NumbaDriver(cost, cost.rows(counts)).evaluate(np.arange(200), np.repeat(theta, 200, axis=0))
    np.testing.assert_allclose(out[:, 4:], np.broadcast_to(np.median(out[:, 4:], axis=0), (200, 3)), rtol=1e-5)


def test_a_template_without_events_in_some_bins(toys):
    """These bins are left out, as in iminuit, which does not say so."""
    narrow, flat = np.where(np.arange(15) < 12, FALLING, 0.0), np.where(np.arange(15) < 12, SIGNAL, 0.0)
    cost = Template(EDGES, (narrow, flat))
    with pytest.warns(UserWarning, match="60 of 60 toys have events in bins where no template has any: these are not"):
        result = fit_batch(cost, toys, [300.0, 100.0], limits=LIMITS, backend="numba")
    used = Template(EDGES, (narrow, flat), mask=np.arange(15) < 12)
    np.testing.assert_array_equal(fit_batch(used, toys, [300.0, 100.0], limits=LIMITS).values, result.values)
    minuit = minuit_of(toys[-1], (narrow, flat), [300.0, 100.0])
    assert np.all(np.abs(result.values[-1] - list(minuit.values)) < 1e-3 * result.errors[-1])


def test_large_samples_give_the_fit_of_exact_templates(toys):
    exact = PoissonNLL(lambda x0, x1: x0 * SIGNAL / SIGNAL.sum() + x1 * FALLING / FALLING.sum())
    plain = fit_batch(exact, toys, [150.0, 350.0], limits=LIMITS, backend="numba")
    many = Template(EDGES, 1e12 * np.stack([SIGNAL, FALLING]))
    result = fit_batch(many, toys, [150.0, 350.0], limits=LIMITS, backend="numba")
    np.testing.assert_allclose(result.values, plain.values, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(result.errors, plain.errors, rtol=1e-7)
    few = fit_batch(Template(EDGES, (SIGNAL, FALLING)), toys, [150.0, 350.0], limits=LIMITS, backend="numba")
    assert np.all(few.errors[~few.at_limit] > plain.errors[~few.at_limit])


def test_study_asimov_and_picture():
    cost = Template(EDGES, (SIGNAL, FALLING), name=("ns", "nb"))
    truth = {"ns": 200.0, "nb": 400.0}
    study = Study(cost, TemplateCounts.of(cost), truth)
    data = generate(study, 2000, seed=1)
    np.testing.assert_array_equal(generate(study, 20, seed=1, backend="jax"), data[:20])
    result = fit_batch(cost, data, truth, backend="numba")
    assert result.valid.all()
    # 13 degrees of freedom, nearly: the counts of simulated events are not large
    pulls, chi2 = result.pulls(truth), 2.0 * result.fval
    assert np.all(np.abs(pulls.std(axis=0) - 1.0) < 4.0 / np.sqrt(4000))
    assert abs(chi2.mean() - 13.0) < 1.0 + 4.0 * np.sqrt(26 / 2000)
    found = goodness_of_fit(study, data=data[:1], n_toys=200, backend="numba")
    assert found.ndf == 13 and abs(found.p_value - found.asymptotic) < 0.1 + 4.0 * found.error
    # those that do not vary the templates have narrow pulls, as the errors contain what they are uncertain
    alone = PoissonCounts(cost.model, cost.names).generate(study.theta, n_toys=500, seed=1)
    assert np.all(fit_batch(cost, alone, truth, backend="numba").pulls(truth).std(axis=0) < 0.95)
    with pytest.raises(TypeError, match="not of Template, whose toys are TemplateCounts"):
        PoissonCounts.of(cost)
    with pytest.raises(TypeError, match="counts of uncertain templates are the toys of Template, not of PoissonNLL"):
        TemplateCounts.of(PoissonNLL(lambda n: n * jnp.ones(3)))
    expected = asimov(cost, truth)
    np.testing.assert_allclose(fit_batch(cost, expected, truth).values, [[200.0, 400.0]], rtol=1e-9)
    drawn = picture(cost, data[:1], np.array([200.0, 400.0]), None, 10)
    np.testing.assert_allclose(drawn.expected, expected[0], rtol=1e-12)
    np.testing.assert_allclose(drawn.width, np.diff(EDGES))
    mu, error = cost.prediction((200.0, 400.0))
    theirs = minuit_cost.Template(expected[0], EDGES, (SIGNAL, FALLING)).prediction((200.0, 400.0))
    np.testing.assert_allclose([mu, error], theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "sentence"),
    [
        ((EDGES, ()), {}, ValueError, "must hold at least one template"),
        ((EDGES, None), {}, TypeError, r"must be a sequence of templates and models, got None: pass \(template,\)"),
        ((EDGES, scaled_cdf), {}, TypeError, "must be a sequence of templates and models, got <function scaled_cdf"),
        ((EDGES, WEIGHTED), {}, ValueError, r"a template must have shape \(15,\), or \(15, 2\) .*, got \(2,\)"),
        ((EDGES, SIGNAL), {}, TypeError, r"must be a sequence of templates and models, got .* pass \(template,\)"),
        ((EDGES, (SIGNAL[:3],)), {}, ValueError, r"a template must have shape \(15,\), or \(15, 2\) .*, got \(3,\)"),
        ((EDGES, (np.zeros(15),)), {}, ValueError, "a template must have events, got a sum of 0"),
        ((EDGES, (-SIGNAL,)), {}, ValueError, "a template must be finite, and its sums of squared weights, or counts,"),
        ((EDGES, (np.where(SIGNAL > 0, np.nan, 1.0),)), {}, ValueError, "a template must be finite"),
        ((EDGES, ("signal",)), {}, TypeError, "a template must hold real numbers"),
        ((EDGES, (SIGNAL, FALLING)), {"name": ("a",)}, ValueError, "name must have one entry for each of x0, x1"),
        ((EDGES, (SIGNAL, FALLING)), {"name": ("a", "a")}, ValueError, "parameter names must differ"),
        ((EDGES, (SIGNAL,)), {"method": "asy"}, ValueError, "method must be one of 'da', 'jsc', got 'asy'"),
        ((EDGES, (SIGNAL,)), {"mask": SIGNAL == 0}, ValueError, "all templates are empty where it is True"),
        ((EDGES[::-1], (SIGNAL,)), {}, ValueError, "edges must increase"),
    ],
)
def test_what_is_no_template(arguments, options, kind, sentence):
    with pytest.raises(kind, match=sentence):
        Template(*arguments, **options)


def test_what_are_no_data(toys):
    cost = Template(EDGES, (SIGNAL, FALLING))
    with pytest.raises(ValueError, match=r"counts must have shape \(n_toys, n_bins\) = \(n_toys, 15\)"):
        fit_batch(cost, toys[:, :3], [1.0, 1.0])
    weighted = np.stack([toys[:3], toys[:3]], axis=2)
    weighted[2, 4, 0] = -1.0
    assert fit_batch(cost, weighted, [150.0, 350.0], backend="numba").valid.tolist() == [True, True, False]
    bad = toys[:3].copy()
    bad[1, 4] = -1.0
    assert fit_batch(cost, bad, [150.0, 350.0], backend="numba").valid.tolist() == [True, False, True]


def test_a_template_is_where_its_yield_is_zero(toys):
    """Also in bins that nothing else fills: exact there, so that a fit may start, and end, at no event at all."""
    alone = np.where(np.arange(15) == 14, 4.0, 0.0)
    rest = np.where(np.arange(15) == 14, 0.0, FALLING)
    none = toys * (np.arange(15) < 14)
    for method in ("da", "jsc"):
        cost = Template(EDGES, (alone, rest), method=method)
        for start, fixed in (([10.0, 400.0], None), ([0.0, 400.0], None), ([0.0, 400.0], ["x0"])):
            result = fit_batch(cost, none, start, limits=LIMITS, fixed=fixed, backend="numba")
            assert result.valid.all() and (result.values[:, 0] == 0.0).all()
    q0 = statistic_of(cost, none[:5], "x0", 0.0, start=[10.0, 400.0], limits=LIMITS, test_stat="q0")
    np.testing.assert_allclose(q0.value, 0.0, atol=1e-9)


def test_bins_whose_weights_are_negative_are_not_used():
    weights = np.stack([[-0.5, 1.0, 2.0, 3.0], [0.5, 1.0, 2.0, 3.0]], axis=1)
    cost = Template(np.arange(5.0), (weights,))
    assert cost.mask.tolist() == [False, True, True, True]
    assert asimov(cost, [10.0])[0, 0] == 0.0
    assert not TemplateCounts.of(cost).generate([10.0], n_toys=9, seed=1)[:, 0].any()
    # where a model might fill such a bin it is used, and told of
    cost = Template(np.arange(5.0), (weights, scaled_cdf))
    with pytest.warns(UserWarning, match="the templates, of which some are negative, expect -0.9.* in bin 0"):
        cost.check(np.array([10.0, 1.0, 3.5, 0.1]))


def test_models_beside_templates_bring_no_warning():
    """Of a moving support, where the model is negative far away; filterwarnings makes it an error."""
    edges = np.linspace(0.0, 10.0, 21)
    rng = np.random.default_rng(8)
    falling = rng.poisson(100 * np.exp(-edges[:-1] / 4)) + 1.0
    expected = 100 * np.diff(scipy_norm.cdf(edges, 5.0, 1.0)) + 500 * falling / falling.sum()
    data = rng.poisson(expected, (5, 20)).astype(float)
    result = fit_batch(Template(edges, (scaled_cdf, falling)), data, [100.0, 5.0, 1.0, 500.0], backend="numba")
    assert result.valid.all()
    edges = np.linspace(0.0, 100.0, 101)
    steep = np.where(edges[:-1] < 60.0, 1000.0 * np.exp(-edges[:-1] / 3.0), 0.0)
    expected = 500 * np.diff(scipy_norm.cdf(edges, 30.0, 1.0)) + steep / 3.0
    data = rng.poisson(expected, (6, 100)).astype(float)
    result = fit_batch(Template(edges, (scaled_cdf, steep)), data, [400.0, 31.0, 1.5, 900.0], backend="numba")
    assert result.valid.all()


@pytest.mark.parametrize(("mean", "spread"), [(3.7, 0.5), (200.0, 0.01), (0.02, 3.0), (1500.0, 1e-6), (40.0, 2.0)])
def test_table_of_a_varied_mean_is_negative_binomial(mean, spread):
    least, table = poisson_table(mean, spread)
    k = least + np.arange(len(table))
    np.testing.assert_allclose(table, nbinom.cdf(k, 1.0 / spread, 1.0 / (1.0 + mean * spread)), atol=1e-12)
    assert table[-1] > 1.0 - 1e-13 and nbinom.cdf(least - 1, 1.0 / spread, 1.0 / (1.0 + mean * spread)) < 1e-14
