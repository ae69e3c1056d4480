"""Cost functions: values against closed forms, and one sentence for every model that cannot be fitted."""

import copy
import functools
import math
import pickle
import re
import warnings

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest
from scipy import stats

from engine import (
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    LeastSquares,
    NormalConstraint,
    PoissonNLL,
    Status,
    UnbinnedNLL,
    fit_batch,
)
from engine.cpu import NumbaDriver
from engine.reference import IndependentCost
from engine.xla import XlaDriver
from kernels import expon, norm

TOYS = [np.array([0.3, 1.7, 2.9]), np.array([0.1]), np.array([])]


def outputs(cost, data, theta, backend="numba"):
    """(value, sum of |term|, gradient..., packed Hessian...) of each toy."""
    rows = cost.rows(data)
    driver = NumbaDriver(cost, rows) if backend == "numba" else XlaDriver(cost, rows, jax.devices("cpu"), batch_size=2)
    return driver.evaluate(np.arange(len(rows)), np.asarray(theta, dtype=np.float64))


def normal(x, mu, sigma):
    return norm.pdf(x, mu, sigma)


def log_normal(x, mu, sigma):
    return norm.logpdf(x, mu, sigma)


def scaled_normal(x, n, mu, sigma):
    return n, n * norm.pdf(x, mu, sigma)


def log_scaled_normal(x, n, mu, sigma):
    return n, jnp.log(n) + norm.logpdf(x, mu, sigma)


THETA = np.array([[0.5, 1.5], [0.2, 0.7], [0.0, 1.0]])
EXTENDED_THETA = np.insert(THETA, 0, [2.5, 1.5, 3.0], axis=1)


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("log", [False, True])
def test_values_are_those_of_scipy(log, backend):
    # rounding of three terms of size 1: some eps
    expected = [-stats.norm.logpdf(x, *theta).sum() for x, theta in zip(TOYS, THETA, strict=True)]
    cost = UnbinnedNLL(log_normal if log else normal, log=log)
    np.testing.assert_allclose(outputs(cost, TOYS, THETA, backend)[:, 0], expected, rtol=1e-14, atol=1e-15)

    expected = [e + t[0] - len(x) * np.log(t[0]) for e, t, x in zip(expected, EXTENDED_THETA, TOYS, strict=True)]
    cost = ExtendedUnbinnedNLL(log_scaled_normal if log else scaled_normal, log=log)
    np.testing.assert_allclose(outputs(cost, TOYS, EXTENDED_THETA, backend)[:, 0], expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_derivatives_are_the_closed_forms(backend):
    _, absolute, *derivatives = outputs(ExtendedUnbinnedNLL(scaled_normal), TOYS, EXTENDED_THETA, backend).T
    n, mu, sigma = EXTENDED_THETA.T
    count = np.array([len(x) for x in TOYS])
    d1 = np.array([np.sum(x - m) for x, m in zip(TOYS, mu, strict=True)])
    d2 = np.array([np.sum((x - m) ** 2) for x, m in zip(TOYS, mu, strict=True)])
    expected = [
        1 - count / n,
        -d1 / sigma**2,
        count / sigma - d2 / sigma**3,
        count / n**2,
        0 * n,
        count / sigma**2,
        0 * n,
        2 * d1 / sigma**3,
        3 * d2 / sigma**4 - count / sigma**2,
    ]
    # the sums cancel partly: eps times terms of size 50
    np.testing.assert_allclose(derivatives, expected, rtol=1e-13, atol=1e-14)
    terms = [
        np.abs(np.log(t[0]) + stats.norm.logpdf(x, *t[1:])).sum() for x, t in zip(TOYS, EXTENDED_THETA, strict=True)
    ]
    # the sum of |term|, with or without the integral: it is a scale for rounding, to be right to a factor
    assert np.all((absolute >= 0.99 * np.array(terms)) & (absolute <= 1.01 * (terms + n)))


def test_two_observables():
    def pdf(x, mu, lam):
        y, t = x[0], x[1]
        return norm.pdf(y, mu, 1.0) * expon.pdf(t, 0.0, lam)

    rng = np.random.default_rng(2)
    toys = [np.stack([rng.normal(3, 1, n), rng.exponential(2, n)]) for n in (20, 35)]
    result = fit_batch(UnbinnedNLL(pdf), toys, {"mu": 0.0, "lam": 1.0}, limits={"lam": (0, None)})
    assert result.valid.all()
    # the product separates: the means of the two observables; EDM 1e-13 leaves at most 1e-6 sigma, in practice less
    np.testing.assert_allclose(result.values, [toy.mean(axis=1) for toy in toys], rtol=1e-9)


def test_names():
    assert UnbinnedNLL(normal).names == ("mu", "sigma")
    assert UnbinnedNLL(normal, name=["m", "s"]).names == ("m", "s")
    assert ExtendedUnbinnedNLL(scaled_normal).names == ("n", "mu", "sigma")
    assert UnbinnedNLL(lambda x, a, b=2.0: a * b * x).names == ("a", "b")

    class Model:
        def __call__(self, x, slope):
            return slope * x

    assert UnbinnedNLL(Model()).names == ("slope",)
    assert UnbinnedNLL(functools.partial(scaled_normal, 1.0)).names == ("mu", "sigma")
    assert UnbinnedNLL(functools.partial(scaled_normal, sigma=1.0)).names == ("n", "mu")
    assert UnbinnedNLL(functools.partial(scaled_normal, 1.0, sigma=1.0)).names == ("mu",)
    assert UnbinnedNLL(lambda x, *par: par[0] * x, name=["a"]).names == ("a",)
    assert UnbinnedNLL(normal).errordef == 0.5 and ExtendedUnbinnedNLL(scaled_normal).errordef == 0.5


@pytest.mark.parametrize(
    ("model", "name", "error", "message"),
    [
        (3, None, TypeError, "the model must be a function, got int"),
        (lambda x, *par: x, None, ValueError, "the model '<lambda>' has *args or keywords: pass name=[...] for its"),
        (lambda x, a, *, b: x, None, ValueError, "the model '<lambda>' has *args or keywords: pass name=[...]"),
        (lambda x, **par: x, None, ValueError, "the model '<lambda>' has *args or keywords: pass name=[...]"),
        (lambda *args: args[0], None, ValueError, "the model '<lambda>' has *args or keywords: pass name=[...]"),
        (lambda x: x, None, ValueError, "the model '<lambda>' has no parameters after x"),
        (lambda: 1.0, None, ValueError, "the model '<lambda>' has no parameters after x"),
        (normal, [], ValueError, "the model 'normal' has no parameters after x"),
        (normal, ["a", "a"], ValueError, "parameter names must differ, got ('a', 'a')"),
        (normal, "ab", TypeError, "name must be a sequence of names, got 'ab'"),
        (normal, [1, 2], TypeError, "name must be a sequence of names, got [1, 2]"),
        (
            functools.partial(scaled_normal, mu=0.0),
            None,
            ValueError,
            "a partial leaves 'sigma' of the model 'scaled_normal' without a position: bind the last parameters, or",
        ),
        (functools.partial(lambda x, *par: x), None, ValueError, "the model '<lambda>' has *args or keywords: pass"),
        (functools.partial(normal, 1.0, 2.0), None, ValueError, "the model 'normal' has no parameters after x"),
        (math.hypot, None, ValueError, "the model 'hypot' does not tell its parameters: pass name=[...]"),
    ],
)
@pytest.mark.parametrize("cost", [UnbinnedNLL, ExtendedUnbinnedNLL])
def test_wrong_signature(cost, model, name, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}") as caught:
        cost(model, name=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_a_partial_is_the_model_with_a_parameter_bound(backend):
    toys = np.random.default_rng(7).normal(0.3, 1.2, (5, 50))
    free = fit_batch(UnbinnedNLL(normal), toys, {"mu": 0, "sigma": 1.2}, fixed=["sigma"], backend=backend)
    bound = fit_batch(UnbinnedNLL(functools.partial(normal, sigma=1.2)), toys, {"mu": 0}, backend=backend)
    np.testing.assert_allclose(bound.values[:, 0], free.values[:, 0], rtol=1e-9)
    assert bound.valid.all() and bound.names == ("mu",)


def indexes(x, mu):
    return norm.pdf(x[0], mu, 1.0)


def asks_length(x, mu):
    return norm.pdf(x, mu, 1.0) / len(x)


def calls_numpy(x, mu):
    return np.exp(-0.5 * (x - mu) ** 2)


def calls_math(x, mu):
    return math.exp(-0.5 * (x - mu) ** 2)


def branches(x, mu):
    return norm.pdf(x, mu, 1.0) if x > mu else 0.0


def loops(x, mu):
    return sum(norm.pdf(each, mu, 1.0) for each in x)


def fills(x, mu):
    density = np.zeros(3)
    density[0] = norm.pdf(x, mu, 1.0)
    return density[0]


def is_vector(x, mu):
    return norm.pdf(x, mu, jnp.array([1.0, 2.0]))


def gives_nothing(x, mu):
    norm.pdf(x, mu, 1.0)


def is_complex(x, mu):
    return norm.pdf(x, mu, 1.0) * 1j


def gives_text(x, mu):
    return "density"


def has_no_derivative(x, mu):
    return jax.scipy.special.betainc(mu, 2.0, x)


@numba.njit
def by_numba(x, mu):
    return np.exp(-0.5 * (x - mu) ** 2)


def calls_numba(x, mu):
    return by_numba(x, mu)


def forgets_arguments(x, mu):
    return norm.pdf(x, mu)


ELEMENTWISE = "it is called with one x at a time, so write it elementwise with jax.numpy, without indexing x"


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (indexes, TypeError, ELEMENTWISE),
        (asks_length, TypeError, ELEMENTWISE),
        (calls_numpy, TypeError, ELEMENTWISE),
        (calls_math, TypeError, ELEMENTWISE),
        (branches, TypeError, ELEMENTWISE),
        (loops, TypeError, ELEMENTWISE),
        (fills, TypeError, ELEMENTWISE),
        (by_numba, TypeError, f"one event (it is compiled by numba, or calls what is): {ELEMENTWISE}"),
        (calls_numba, TypeError, f"one event (it is compiled by numba, or calls what is): {ELEMENTWISE}"),
        (forgets_arguments, TypeError, "missing 1 required positional argument: 'scale'): call it with the arguments"),
        (is_vector, ValueError, "the density that the model 'is_vector' returns for one event must be a number, got "),
        (
            gives_nothing,
            TypeError,
            "the density that the model 'gives_nothing' returns must be a real number, got None",
        ),
        (
            is_complex,
            TypeError,
            "the density that the model 'is_complex' returns must be a real number, got complex128",
        ),
        (gives_text, TypeError, "the density that the model 'gives_text' returns must be a real number, got str"),
    ],
)
def test_model_that_cannot_be_evaluated(model, error, message, backend):
    with pytest.raises(error) as caught:
        fit_batch(UnbinnedNLL(model), TOYS, {"mu": 1.0}, backend=backend)
    text = str(caught.value)
    assert message in text and f"the model '{model.__name__}'" in text and "\n" not in text


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x, n: n * x, TypeError, "must return (integral, density), got one array"),
        (lambda x, n: (n, n * x, x), TypeError, "must return (integral, density), got tuple of 3"),
        (lambda x, n: None, TypeError, "must return (integral, density), got NoneType"),
        (lambda x, n: (n * x, n * x), ValueError, "the integral of the model depends on x: it must be a function of"),
        (lambda x, n: (n * jnp.ones(2), n * x), ValueError, "the integral that the model '<lambda>' returns for one"),
        (lambda x, n: (n, n * x[0]), TypeError, ELEMENTWISE),
        (lambda x, n: (None, n * x), TypeError, "the integral that the model '<lambda>' returns must be a real number"),
    ],
)
@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_model_without_its_pair(model, error, message, backend):
    with pytest.raises(error, match=re.escape(message)) as caught:
        fit_batch(ExtendedUnbinnedNLL(model), TOYS, {"n": 1.0}, backend=backend)
    assert "\n" not in str(caught.value)


def test_a_function_without_a_derivative():
    told = (
        r"not supported.\): JAX has no derivative of it: write it with other functions, or keep that argument constant"
    )
    with pytest.raises(TypeError, match=told):
        fit_batch(UnbinnedNLL(has_no_derivative), TOYS, {"mu": 1.0}, backend="jax")


def test_errors_of_the_models_own_making_are_told():
    def model(x, mu):
        return undefined_name * x  # noqa: F821

    with pytest.raises(NameError, match="undefined_name"):
        fit_batch(UnbinnedNLL(model), TOYS, {"mu": 1.0})


def test_constant_integral_and_python_numbers():
    cost = ExtendedUnbinnedNLL(lambda x, mu: (3, norm.pdf(x, mu, 1.0)))
    result = fit_batch(cost, TOYS[:2], {"mu": 1.0})
    np.testing.assert_allclose(result.values[:, 0], [toy.mean() for toy in TOYS[:2]], rtol=1e-12)
    expected = [3 - stats.norm.logpdf(toy, toy.mean()).sum() for toy in TOYS[:2]]
    np.testing.assert_allclose(result.fval, expected, rtol=1e-13)


def test_float32_constants_are_noticed_once():
    # made without the scoped float64, as in a program with JAX's defaults
    table = jnp.asarray([1.0, 0.1])
    assert table.dtype == np.float32
    cost = UnbinnedNLL(lambda x, mu: norm.pdf(x, mu + table[1], 1.0))
    with pytest.warns(UserWarning, match="float32 constants, which are good to 7 digits only") as caught:
        fit_batch(cost, TOYS[:2], {"mu": 1.0})
    assert len(caught) == 1
    fit_batch(cost, TOYS[:1], {"mu": 1.0})  # a second warning would be an error
    clean = np.array([1.0, 0.1])
    fit_batch(UnbinnedNLL(lambda x, mu: norm.pdf(x, mu + clean[1], 1.0)), TOYS[:2], {"mu": 1.0})


def test_float32_templates_are_noticed_once():
    table = jnp.asarray([1.0, 0.1])
    cost = PoissonNLL(lambda mu: mu * table)
    with pytest.warns(UserWarning, match="float32 constants, which are good to 7 digits only") as caught:
        fit_batch(cost, np.ones((2, 2)), {"mu": 1.0})
    assert len(caught) == 1
    fit_batch(cost, np.ones((1, 2)), {"mu": 1.0})
    fit_batch(PoissonNLL(lambda mu: mu * jnp.asarray([1.0, 2.0])), np.ones((2, 2)), {"mu": 1.0})


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_what_is_infinite_or_whole_is_the_affair_of_its_toy(backend):
    line = LeastSquares(lambda x, a: a * jnp.exp(-((x / 0.0) ** 2)))
    points = np.arange(1.0, 4.0), np.ones((2, 3)), np.ones(3)
    counts = np.array([[3.0, 4.0, 0.0]])
    edges = [0.0, 1.0, 2.0, 3.0]
    whole, logical = (ExtendedBinnedNLL(cdf, edges) for cdf in (lambda x, a: (x > a).astype(int), lambda x, a: x > a))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of models that are flat, or jump
        for cost, data, retries in ((line, points, 3), (whole, counts, 3), (logical, counts, 0)):
            assert not fit_batch(cost, data, {"a": 0.5}, backend=backend, retries=retries).valid.any()


def test_two_models_with_one_text_are_two_models():
    def shifted(by):
        return UnbinnedNLL(lambda x, mu: norm.pdf(x, mu + by, 1.0))

    first, second = (fit_batch(shifted(by), TOYS[:2], {"mu": 1.0}).values[:, 0] for by in (0.0, 2.0))
    np.testing.assert_allclose(first - second, 2.0, rtol=1e-12)


def test_cost_that_is_none():
    for wrong in (None, normal, UnbinnedNLL):
        with pytest.raises(
            TypeError, match=r"^cost must be a cost function such as ExtendedUnbinnedNLL\(model\), got "
        ):
            fit_batch(wrong, TOYS, {"mu": 1.0})


def test_density_that_vanishes_is_a_status():
    # uniform between 0 and a: 0 where an event lies above
    cost = UnbinnedNLL(lambda x, a: jnp.where(x < a, 1.0 / a, 0.0))
    with pytest.warns(UserWarning, match="the support of the model moves with 'a'"):
        result = fit_batch(cost, TOYS[:2], {"a": 2.0}, retries=0)
    assert result.status[0] == Status.NONFINITE and not result.valid.any()


@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_a_cost_that_was_fitted_is_copied_and_pickled(backend):
    toys, start = np.random.default_rng(2).normal(3.0, 2.0, (3, 50)), [2.0, 1.0]
    cost = UnbinnedNLL(norm.pdf) + NormalConstraint("loc", 3.0, 1.0)
    data = (toys, None)
    first = fit_batch(cost, data, start, backend=backend)
    IndependentCost(cost, cost.rows(data))
    for copied in (copy.deepcopy(cost), pickle.loads(pickle.dumps(cost))):
        again = fit_batch(copied, data, start, backend=backend)
        np.testing.assert_array_equal(again.values, first.values)
        np.testing.assert_array_equal(again.covariance, first.covariance)
