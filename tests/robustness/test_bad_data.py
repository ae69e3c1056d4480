"""Anything at all given to the library call: what comes out has a status, or is one clear sentence."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import (
    BinnedNLL,
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    GammaConstraint,
    LeastSquares,
    NormalConstraint,
    PoissonConstraint,
    PoissonNLL,
    UnbinnedNLL,
    Weighted,
    fit_batch,
)
from engine import test_statistic as statistic_of
from engine.data import Ragged
from engine.result import FitResult
from engine.status import Status
from kernels import norm
from toys import Component, ExtendedMixture, PoissonCounts, Study, generate

EDGES = [-2.0, -1.0, 0.0, 1.0, 2.0]


def peak(x, mu, sigma):
    return norm.pdf(x, mu, sigma)


def plane(x, mu, sigma):
    return norm.pdf(x[0], mu, sigma) * norm.pdf(x[1], mu, sigma)


COSTS = {
    "events": UnbinnedNLL(peak),
    "plane": UnbinnedNLL(plane),
    "histogram": ExtendedBinnedNLL(lambda x, mu, sigma: 50.0 * norm.cdf(x, mu, sigma), EDGES),
    "templates": PoissonNLL(lambda mu, sigma: jnp.stack([mu + sigma, 2.0 * mu, 3.0 * sigma, mu])),
    "points": LeastSquares(lambda x, mu, sigma: mu + sigma * x),
    "sum": UnbinnedNLL(peak) + NormalConstraint("mu", 0.0, 0.1),
}
GOOD = {
    "events": [[0.5, -0.5, 1.0], [0.1, 2.0, -1.0, -2.0]],
    "plane": [np.array([[0.5, -0.5, 1.0], [0.2, 0.3, -1.0]])] * 2,
    "histogram": [[3, 9, 8, 2], [0, 4, 5, 1]],
    "templates": [[3, 9, 8, 2], [4, 4, 5, 1]],
    "points": ([0.0, 1.0, 2.0], [[0.1, 1.0, 2.1], [0.0, 1.2, 1.9]], 0.1),
    "sum": ([[0.5, -0.5, 1.0], [0.1, 2.0, -1.0, -2.0]], None),
}
START = {"mu": 0.3, "sigma": 1.0}

# --- what is given -----------------------------------------------------------------------------------------

ODD = st.sampled_from(
    [0.0, -0.0, 1.0, 0.5, -1.5, 2.5, 3.0, np.nan, np.inf, -np.inf, 1e308, -1e308, 1e-308, 5e-324, 1e16, 2**63, -1, 0, 7]
)
SHAPES = st.sampled_from([(), (0,), (1,), (2,), (4,), (2, 0), (0, 4), (2, 2), (2, 4), (4, 2), (2, 2, 3), (2, 4, 2),
                          (1, 1, 1, 1), (30, 2)])  # fmt: skip
DTYPES = st.sampled_from([float, np.float32, np.float16, ">f8", np.longdouble, int, np.uint8, bool, complex, object,
                          str, "S3", "M8[s]", [("a", float)]])  # fmt: skip


@st.composite
def arrays(draw):
    shape, dtype = draw(SHAPES), np.dtype(draw(DTYPES))
    numbers = draw(st.lists(ODD, min_size=1, max_size=4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        filled = np.resize(np.array(numbers, dtype=float), shape)
        array = filled.astype(dtype) if dtype.kind not in "VM" else np.zeros(shape, dtype)
    if draw(st.sampled_from([False] * 5 + [True])):
        array = np.ma.masked_array(array, mask=np.resize([True, False], shape))
    return array


NOTHING = st.sampled_from(
    [None, True, "", "mu", "text", b"x", {}, (), [], set(), {"mu"}, object(), len, range(3), slice(2), 1j, np.float64]
)
LISTS = st.recursive(ODD, lambda inner: st.lists(inner, max_size=4), max_leaves=12)
RAGGED = st.lists(st.lists(ODD, max_size=6), max_size=4)
NAMED = st.dictionaries(st.sampled_from(["mu", "sigma", "mv", "", "x", 1, None]), LISTS | NOTHING, max_size=3)
SEVERAL = st.lists(arrays(), max_size=3) | st.tuples(LISTS, LISTS)
ANYTHING = st.one_of(ODD, NOTHING, LISTS, RAGGED, arrays(), NAMED, SEVERAL)


def mostly(good):
    """A good argument most of the time, else anything."""
    return st.one_of(st.just(good), st.just(good), st.just(good), ANYTHING)


LIMITS = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["mu", "sigma", "x"]), st.tuples(ODD | st.none(), ODD | st.none()), max_size=2),
    ANYTHING,
)
MANY = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def ends_well(fuzz):
    """What a call gives, or None where it was refused in one clear sentence."""

    def call(function, *args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", UserWarning)  # of the model, in a sentence of ours
            try:
                return function(*args, **kwargs)
            except (ValueError, TypeError) as error:
                assert type(error) in (ValueError, TypeError), repr(error)
                assert fuzz.clear(str(error)), str(error)
                return None

    return call


def check_result(result):
    assert isinstance(result, FitResult)
    assert np.isin(result.status, list(Status)).all()
    valid = result.valid
    assert (result.status[valid] == Status.CONVERGED).all()
    for array in (result.values, result.errors, result.covariance, result.fval, result.edm):
        assert np.isfinite(array[valid]).all()
    assert "toys" in str(result.summary()) or len(result) >= 0
    repr(result)


# --- fits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COSTS)
def test_any_data(name, ends_well):
    def fit(data, retries=0):
        return fit_batch(COSTS[name], data, START, backend="numba", device="cpu", retries=retries)

    good = fit(GOOD[name])
    assert good.valid.all()

    @settings(MANY, max_examples=120)
    @given(data=ANYTHING | st.tuples(ANYTHING, ANYTHING) | st.tuples(LISTS, RAGGED | arrays(), ODD))
    def any_data(data):
        result = ends_well(fit, data)
        if result is not None:
            check_result(result)

    any_data()

    @settings(MANY, max_examples=40)
    @given(values=st.lists(ODD, min_size=4, max_size=4), toy=st.integers(0, 1))
    def one_bad_toy(values, toy):
        """One toy's values never reach the other."""
        data = spoiled(name, GOOD[name], values, toy)
        result = ends_well(fit, data)
        assert result is not None and len(result) == 2
        check_result(result)
        assert result.valid[1 - toy]
        np.testing.assert_array_equal(result.values[1 - toy], good.values[1 - toy])

    one_bad_toy()


def spoiled(name, data, values, toy):
    """The good data with other numbers in one of the toys."""
    if name == "sum":
        return (spoiled("events", data[0], values, toy), None)
    if name == "points":
        return (data[0], spoiled("events", data[1], values[:3], toy), data[2])
    spoilt = list(data)
    spoilt[toy] = np.array([values, values]) if name == "plane" else values
    return spoilt


def test_any_data_of_one_toy_with_retries(ends_well):
    @settings(MANY, max_examples=10)
    @given(values=st.lists(ODD, max_size=4))
    def retried(values):
        result = ends_well(fit_batch, COSTS["events"], [values, *GOOD["events"]], START, backend="numba", device="cpu")
        check_result(result)
        assert result.valid[1:].all()

    retried()


@settings(MANY, max_examples=400)
@given(
    start=mostly(START) | arrays(),
    limits=LIMITS,
    fixed=mostly(None) | NAMED,
    tol=mostly(None),
    max_steps=mostly(None),
    batch_size=mostly(None),
    retries=mostly(0),
    progress=mostly(False),
    backend=st.sampled_from(["numba", "numba", "numba", "cuda", None, 1]),
    device=st.sampled_from(["cpu", "cpu", "cpu", "gpu", "", None]),
    optimizer=st.sampled_from(["newton", "newton", "newton", "migrad", "adam", None, 3]),
)
def test_any_options(ends_well, **options):
    if callable(options["progress"]) or options["progress"] is True:  # a bar on the screen
        options["progress"] = False
    if isinstance(options["retries"], int):
        options["retries"] = min(options["retries"], 1)  # a rescue takes its time
    result = ends_well(fit_batch, COSTS["events"], GOOD["events"], **options)
    if result is not None:
        check_result(result)
        assert len(result) == 2


def test_ragged_and_weighted(ends_well):
    @settings(MANY, max_examples=200)
    @given(first=ANYTHING, second=ANYTHING, weights=st.booleans())
    def constructed(first, second, weights):
        data = ends_well(Weighted if weights else Ragged, first, second)
        if data is not None:
            rows = ends_well(COSTS["events"].rows, data)
            assert rows is None or len(rows) == len(rows.bad)

    constructed()


# --- costs -------------------------------------------------------------------------------------------------


def line(x, a, b):
    return a + b * x


COST_CALLS = {
    "edges": lambda a, b: BinnedNLL(line, a, mask=b),
    "extended edges": lambda a, b: ExtendedBinnedNLL(line, EDGES, mask=a, name=b),
    "templates": lambda a, b: PoissonNLL(COSTS["templates"].model, mask=a, name=b),
    "covariance": lambda a, b: LeastSquares(line, covariance=a, mask=b),
    "fit range": lambda a, b: UnbinnedNLL(peak, fit_range=a, n_nodes=b),
    "model": lambda a, b: ExtendedUnbinnedNLL(a, name=b),
    "normal": lambda a, b: NormalConstraint("mu", a, b),
    "normals": lambda a, b: NormalConstraint(["mu", "sigma"], a, b),
    "names": lambda a, b: NormalConstraint(a, b, 1.0),
    "poisson": lambda a, b: PoissonConstraint("mu", a, b),
    "gamma": lambda a, b: GammaConstraint("mu", a, b),
}


@pytest.mark.parametrize("call", COST_CALLS.values(), ids=COST_CALLS.keys())
def test_any_argument_of_a_cost(call, ends_well):
    @settings(MANY, max_examples=100)
    @given(first=ANYTHING, second=ANYTHING | st.none())
    def constructed(first, second):
        ends_well(call, first, second)

    constructed()


def raises(x, mu):
    raise RuntimeError("the user's own mistake")


@pytest.mark.parametrize(
    "model",
    [
        lambda x, mu: None,
        lambda x, mu: "density",
        lambda x, mu: mu + 1j * x,
        lambda x, mu: jnp.stack([x, mu]),
        lambda x, mu: (x, mu),
        lambda x, mu: [x],
        lambda x, mu: np.exp(x - mu),
        lambda x, mu: float(mu),
        lambda x, mu: x if mu > 0 else mu,
        lambda x, mu: x[0] + mu,
        lambda x, mu: len(x) + mu,
        lambda x, mu: {"a": x},
        lambda x, mu: mu.missing(x),
        lambda x, mu: undefined_name,  # noqa: F821
        raises,
        lambda x: x,
        lambda *args: 1.0,
        3,
        None,
        "peak",
    ],
)
@pytest.mark.parametrize("backend", ["numba", "jax"])
def test_models_that_cannot_be_fitted(model, backend, ends_well):
    def fit():
        return fit_batch(UnbinnedNLL(model), [[0.5, 1.0]], {"mu": 1.0}, backend=backend, device="cpu", retries=0)

    if model is raises:
        with pytest.raises(RuntimeError, match="the user's own mistake"):
            fit()
    elif getattr(model, "__code__", None) and {"missing", "undefined_name"} & set(model.__code__.co_names):
        with pytest.raises((AttributeError, NameError, TypeError)):
            fit()
    else:
        assert ends_well(fit) is None


@pytest.mark.parametrize("model", [lambda x, mu: 1, lambda x, mu: jnp.nan, lambda x, mu: 0.0 * mu, lambda x, mu: -x])
def test_models_without_a_minimum(model, ends_well):
    result = ends_well(
        fit_batch, UnbinnedNLL(model), [[0.5, 1.0]], {"mu": 1.0}, backend="numba", device="cpu", retries=0
    )
    check_result(result)
    assert not result.valid.any()


# --- intervals, statistics, studies ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def result():
    return fit_batch(COSTS["events"], GOOD["events"], START, limits={"sigma": (0, None)}, backend="numba", device="cpu")


def test_any_argument_of_intervals(result, ends_well):
    calls = (
        lambda a, b: result.minos(a, cl=b),
        lambda a, b: result.profile(a, size=3, bound=b),
        lambda a, b: result.profile("mu", size=a, bound=b),
        lambda a, b: result.profile("mu", grid=a, subtract_min=bool(b is None)),
        lambda a, b: result.contour(a, "sigma", cl=b, size=4),
        lambda a, b: result.contour("mu", b, size=a if not isinstance(a, int) or a < 9 else 4),
        lambda a, b: result.pulls(a),
        lambda a, b: result.pulls({"mu": a, "sigma": b}),
    )

    @settings(MANY, max_examples=150)
    @given(call=st.sampled_from(calls), first=st.sampled_from(["mu", "mu", "sigma"]) | ANYTHING, second=ANYTHING)
    def asked(call, first, second):
        ends_well(call, first, second)

    asked()


def test_any_argument_of_a_test_statistic(ends_well):
    @settings(MANY, max_examples=80)
    @given(
        data=mostly(GOOD["events"]),
        poi=mostly("mu"),
        value=mostly(0.0),
        test_stat=mostly("q"),
        start=mostly(START),
    )
    def asked(data, poi, value, test_stat, start):
        options = {"backend": "numba", "device": "cpu", "retries": 0}
        ends_well(statistic_of, COSTS["events"], data, poi, value, test_stat=test_stat, start=start, **options)

    asked()


def test_any_study(ends_well):
    sampler = ExtendedMixture(("mu", "sigma"), (Component("mu", norm.ppf, (0.0, "sigma")),))

    @settings(MANY, max_examples=150)
    @given(
        cost=mostly(COSTS["events"]),
        sampler=mostly(sampler),
        truth=mostly({"mu": 3.0, "sigma": 1.0}),
        start=mostly({}),
        limits=LIMITS,
        fixed=mostly(()),
    )
    def made(**arguments):
        ends_well(Study, **arguments)

    made()

    @settings(MANY, max_examples=150)
    @given(names=mostly(("mu", "sigma")), size=mostly("mu"), ppf=mostly(norm.ppf), arguments=mostly((0.0, "sigma")))
    def sampled(names, size, ppf, arguments):
        ends_well(lambda: ExtendedMixture(names, (Component(size, ppf, arguments),)))

    sampled()
    study = Study(COSTS["templates"], PoissonCounts.of(COSTS["templates"]), {"mu": 3.0, "sigma": 1.0})

    @settings(MANY, max_examples=60)
    @given(n_toys=mostly(2), seed=mostly(1), first=mostly(0), backend=st.sampled_from(["numba", "numba", "", None]))
    def thrown(n_toys, seed, first, backend):
        if not isinstance(n_toys, int) or n_toys < 10:
            ends_well(generate, study, n_toys, seed, first, backend)

    thrown()


# --- frequent mistakes -------------------------------------------------------------------------------------


def fit(cost, data, start=START, **options):
    return fit_batch(cost, data, start, backend="numba", device="cpu", retries=0, **options)


def test_events_and_observables_in_the_wrong_order():
    events = np.random.default_rng(1).normal(size=(30, 2))
    for data in ([events, events], np.stack([events, events])):
        with pytest.raises(ValueError, match=r"2 events of 30 observables: the form is .* transpose"):
            fit(COSTS["plane"], data)
    few = UnbinnedNLL(plane)
    with pytest.warns(UserWarning, match=r"does not use x\[2\] of 3 observables: .* \(d, n\) for d observables"):
        fit(few, [np.array([[0.5, -0.5], [0.2, 0.3], [0.1, 0.9]])])


@pytest.mark.parametrize("backend", ["numba", "jax"])
@pytest.mark.parametrize("of_all", [jnp.max, jnp.mean, jnp.std, jnp.linalg.norm], ids=lambda f: f.__name__)
def test_a_model_that_means_all_x(of_all, backend):
    """One x is its own sum and maximum, so that such a model would fit, and wrongly."""
    x = np.linspace(-2.0, 2.0, 20)
    cost = LeastSquares(lambda x, a, b: a + b * x / (1.0 + of_all(jnp.abs(x))))
    with pytest.raises(ValueError, match=r"of a single number at .*: it is called with one x at a time, so compute"):
        fit_batch(cost, (x, np.ones((2, 20)), 0.1), {"a": 0.0, "b": 0.0}, backend=backend)


def test_a_sum_of_parameters_or_of_observables():
    x = np.random.default_rng(1).normal(size=(2, 2, 200))
    plane = UnbinnedNLL(lambda x, s: jnp.exp(-0.5 * jnp.sum(x**2) / jnp.max(s) ** 2) / (2.0 * jnp.pi * jnp.sum(s) ** 2))
    np.testing.assert_allclose(
        fit_batch(plane, x, {"s": 1.2}).values[:, 0], np.sqrt((x**2).mean(axis=(1, 2))), rtol=1e-6
    )


def test_an_observable_that_is_not_there():
    cost = UnbinnedNLL(lambda x, mu, sigma: norm.pdf(x[0], mu, sigma) * norm.pdf(x[3], mu, sigma))
    with pytest.raises(ValueError, match=r"index 3 is out of bounds for the 2 observables of x"):
        fit(cost, GOOD["plane"])


@pytest.mark.parametrize("by_index", [True, False])
def test_toys_of_several_observables_that_are_taken_for_toys_of_one(by_index):
    def unpacked(x, mu, sigma):
        x, y = x
        return plane(jnp.stack([x, y]), mu, sigma)

    with pytest.raises(TypeError, match=r"if there are d observables, pass a list of toys, each a \(d, n\)"):
        fit(UnbinnedNLL(plane if by_index else unpacked), GOOD["plane"][0])


@pytest.mark.parametrize("cls", [UnbinnedNLL, ExtendedUnbinnedNLL, BinnedNLL, ExtendedBinnedNLL, LeastSquares])
def test_data_where_iminuit_takes_them(cls):
    for data in ([np.ones(3)], [np.ones(3), np.ones(4)], [np.ones(3)] * 3):
        with pytest.raises(TypeError, match=f"^{cls.__name__} takes no data: pass it the model first"):
            cls(*data, peak)


def test_ragged_arrays_of_awkward():
    awkward = pytest.importorskip("awkward")
    expected = fit(COSTS["events"], GOOD["events"]).values
    np.testing.assert_array_equal(fit(COSTS["events"], awkward.Array(GOOD["events"])).values, expected)
    with pytest.raises(ValueError, match="one toy: pass"):
        fit(COSTS["events"], awkward.Array(GOOD["events"][0]))
    with pytest.raises(TypeError, match=r"data\[1\] must hold real numbers"):
        fit(COSTS["events"], awkward.Array([[0.5, 1.0], [None, 1.0]]))


@pytest.mark.parametrize("cls", [BinnedNLL, ExtendedBinnedNLL])
def test_a_density_instead_of_a_cdf(cls):
    cost = cls(lambda x, mu, sigma: norm.pdf(x, mu, sigma), EDGES)
    with pytest.warns(UserWarning, match="falls from the edge 0 to 1, .* it must be a cdf, or the density of a histo"):
        cost.check(np.array([0.0, 1.0]))
    for sign in (1.0, -1.0):  # a cdf, and a survival function, whose differences have one sign
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cls(lambda x, mu, s, sign=sign: sign * norm.cdf(x, mu, s), EDGES).check(np.array([0.0, 1.0]))


def test_what_the_sentences_say(result):
    with pytest.raises(ValueError, match=r"limits\['mu'\] leave 1 alone: use fixed=\{'mu': 1\}"):
        fit(COSTS["events"], GOOD["events"], limits={"mu": (1, 1)})
    with pytest.raises(ValueError, match=r"\(lower, upper\) with None for an open side, got '01'"):
        fit(COSTS["events"], GOOD["events"], limits={"mu": "01"})
    with pytest.raises(ValueError, match=r"truth names 'tau', but the parameters are mu, sigma"):
        result.pulls({**START, "tau": 1.0})
    with pytest.raises(ValueError, match=r"truth has no value for sigma$"):
        result.pulls({"mu": 1.0})
    events = np.array(GOOD["events"][0])
    for data in ((np.array([events, events]),), (GOOD["events"], None, None)):
        with pytest.raises((TypeError, ValueError), match="one entry for each, None for a constraint"):
            fit(COSTS["sum"], data)
    with pytest.raises(ValueError, match="start has no value for sigma"):
        fit(COSTS["events"], GOOD["events"], {"mu": 0.0})
