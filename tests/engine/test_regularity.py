"""Models that break the regularity conditions are named, and regular ones are left in peace."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import erfc

from engine import (
    BinnedNLL,
    ExtendedBinnedNLL,
    ExtendedUnbinnedNLL,
    LeastSquares,
    NormalConstraint,
    PoissonNLL,
    UnbinnedNLL,
    Weighted,
)
from engine.regularity import irregularities, warn_of_irregularities
from kernels import (
    argus,
    bernstein,
    cauchy,
    chebyshev,
    cruijff,
    crystalball,
    crystalball_ex,
    expon,
    lognorm,
    norm,
    qgaussian,
    t,
    truncexpon,
    truncnorm,
    uniform,
    voigt,
)
from kernels.truncated import truncate

N = 400
RNG = np.random.default_rng(5)
NORMAL, FLAT, LAPLACE, DECAY = RNG.normal(size=N), RNG.uniform(size=N), RNG.laplace(size=N), RNG.exponential(size=N)
HEAVY = RNG.standard_t(2, size=N)
INF = np.inf


def found(cost, data, theta, limits=None, fixed=()):
    """{(parameter, kind): sentence}."""
    lower, upper = (np.array([(limits or {}).get(n, (-INF, INF))[side] for n in cost.names]) for side in (0, 1))
    free = np.array([name not in fixed for name in cost.names])
    sentences = irregularities(cost, cost.rows(data), np.array(theta, dtype=float), lower, upper, free)
    starts = {"the cost does": "flat", "the support": "support", "the cost jumps": "jump", "the slope": "kink"}
    kind = lambda s: next(kind for start, kind in starts.items() if s.startswith(start))  # noqa: E731
    return {(s.split("'")[-2], kind(s)): s for s in sentences}


def kinds(*args, **kwargs):
    return sorted(f"{name} {kind}" for name, kind in found(*args, **kwargs))


def unbinned(pdf, names):
    return UnbinnedNLL(pdf, name=names.split())


def laplace(x, mu, b):
    return jnp.exp(-jnp.abs(x - mu) / b) / (2.0 * b)


def spectrum(x, ns, nb, mu, sigma, lam):
    density = ns * truncnorm.pdf(x, 1.0, 9.0, mu, sigma) + nb * truncexpon.pdf(x, 1.0, 9.0, 0.0, lam)
    return ns + nb, density


def series(module):
    def pdf(x, a, b):
        beta = jnp.stack([1.0, 1.0 + a, 1.0 + b]) if module is bernstein else jnp.stack([1.0, a, b])
        return module.density(x, beta, 0.0, 1.0) / module.integral(1.0, beta, 0.0, 1.0)

    return pdf


# -- regular models ------------------------------------------------------------------------------------------------

REGULAR = {
    "norm": (unbinned(norm.pdf, "mu sigma"), [NORMAL], [(0.0, 1.0), (0.5, 2.0), (-0.3, 0.4)]),
    # far below the lifetime its exponential overflows, where the other factor vanishes
    "lifetime and resolution": (
        unbinned(
            lambda x, tau: (
                0.5 / tau * jnp.exp(0.5 * (0.05 / tau) ** 2 - x / tau) * erfc((0.05 / tau - x / 0.05) / 2**0.5)
            ),
            "tau",
        ),
        [np.abs(HEAVY)],
        [(1.5,), (0.7,)],
    ),
    "cauchy": (unbinned(cauchy.pdf, "mu sigma"), [HEAVY], [(0.0, 1.0), (0.5, 0.2)]),
    "lognorm": (unbinned(lognorm.pdf, "s loc scale"), [np.exp(NORMAL)], [(1.0, -0.3, 1.0), (0.5, -1.0, 2.0)]),
    "t": (unbinned(t.pdf, "df mu sigma"), [HEAVY], [(2.0, 0.0, 1.0), (100.0, 0.5, 0.7)]),
    "qgaussian": (unbinned(qgaussian.pdf, "q mu sigma"), [HEAVY], [(1.01, 0.0, 1.0), (2.5, 0.5, 0.7)]),
    "voigt": (unbinned(voigt.pdf, "gamma mu sigma"), [HEAVY], [(0.5, 0.0, 1.0), (0.01, 0.3, 0.4)]),
    "argus": (unbinned(argus.pdf, "chi c p"), [5.0 * np.sqrt(1.0 - FLAT**0.4)], [(1.0, 5.05, 1.5), (3.0, 5.2, 3.0)]),
    "argus, edge known": (unbinned(lambda x, chi, p: argus.pdf(x, chi, 5.0, p), "chi p"), [5 * FLAT], [(1.0, 0.5)]),
    "cruijff": (
        unbinned(lambda x, *p: cruijff.pdf(x, -5.0, 5.0, *p), "al ar mu sl sr"),
        [NORMAL],
        [(0.1, 0.3, 0.1, 1.0, 0.8)],
    ),
    # its tail meets its core with a continuous slope
    "crystalball": (unbinned(crystalball.pdf, "a m mu s"), [HEAVY], [(1.0, 2.0, 0.0, 1.0), (0.4, 5.0, 0.3, 0.6)]),
    "truncated crystalball": (
        unbinned(lambda x, *p: truncate(crystalball).pdf(x, -3.0, 3.0, *p), "a m mu s"),
        [6.0 * FLAT - 3.0],
        [(1.0, 2.0, 0.0, 1.0)],
    ),
    "crystalball_ex": (
        unbinned(crystalball_ex.pdf, "a m s A M S mu"),
        [HEAVY],
        [(1.0, 2.0, 0.5, 1.5, 3.0, 0.6, 0.2)],
    ),
    "decay": (unbinned(lambda x, s: expon.pdf(x, 0.0, s), "s"), [DECAY], [(1.0,), (0.3,)]),
    "truncexpon": (
        unbinned(lambda x, s: truncexpon.pdf(x, 0.0, 20.0, 0.0, s), "s"),
        [DECAY],
        [(1.0,), (-3.0,), (1e4,)],
    ),
    "truncnorm": (
        unbinned(lambda x, m, s: truncnorm.pdf(x, 0.0, 1.0, m, s), "m s"),
        [FLAT],
        [(0.5, 1.0), (-1.0, 0.5), (0.5, 30.0)],
    ),
    "chebyshev": (unbinned(series(chebyshev), "a b"), [FLAT], [(0.1, -0.2)]),
    "bernstein": (unbinned(series(bernstein), "a b"), [FLAT], [(0.1, -0.2)]),
    "small peak": (
        unbinned(lambda x, f, m, s: f * norm.pdf(x, m, s) + (1.0 - f) / 10.0, "f m s"),
        [10 * FLAT],
        [(0.01, 5.0, 0.3)],
    ),
    "spectrum": (
        ExtendedUnbinnedNLL(spectrum),
        [np.concatenate([5.0 + 0.5 * NORMAL, 1.0 + 8.0 * FLAT])],
        [(400, 400, 5, 0.5, 4), (50, 800, 4, 1, 2), (400, 400, 1, 3, 40)],
    ),
    "absolute width": (
        unbinned(lambda x, m, s: norm.pdf(x, m, jnp.abs(s)), "m s"),
        [NORMAL],
        [(0.0, 1.0), (0.1, 0.7)],
    ),
    "square": (unbinned(lambda x, p: norm.pdf(x, p * p, 1.0), "p"), [NORMAL], [(0.0,), (0.5,)]),
    "smooth branches": (
        unbinned(lambda x, m: jax.lax.cond(x > m, lambda: norm.pdf(x, m, 1.0), lambda: norm.pdf(m, x, 1.0)), "m"),
        [NORMAL],
        [(0.1,)],
    ),
    "fit range": (
        UnbinnedNLL(lambda x, m, s: jnp.exp(-0.5 * ((x - m) / s) ** 2), fit_range=(-1, 1)),
        [NORMAL],
        [(0.1, 1.0)],
    ),
    "huge counts": (
        BinnedNLL(norm.cdf, np.linspace(-4, 4, 41), name=("m", "s")),
        1e6 * np.histogram(NORMAL, 40, (-4, 4))[0][None],
        [(0.1, 1.0)],
    ),
    "line": (
        LeastSquares(lambda x, a, b: a * jnp.exp(-x / b)),
        (np.linspace(0, 3, N), NORMAL[None], 1.0),
        [(1.0, 2.0), (0.1, 0.5)],
    ),
    "large numbers": (
        LeastSquares(lambda x, a: 1e6 * a * x),
        (np.linspace(1, 3, N), 1e7 + NORMAL[None], 1.0),
        [(5.0,)],
    ),
}


@pytest.mark.parametrize("name", REGULAR)
def test_regular_models_are_left_in_peace(name):
    cost, data, points = REGULAR[name]
    for theta in points:
        assert found(cost, data, theta) == {}


# -- irregular models ----------------------------------------------------------------------------------------------

POINTS = np.linspace(0.0, 3.0, 40)


def points(y):
    return (POINTS, y + 0.3 * NORMAL[None, :40], 0.3)


KNOTS, HEIGHTS = np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), np.array([0.05, 0.2, 0.4, 0.2, 0.05])
IRREGULAR = {
    "Laplace": (unbinned(laplace, "mu b"), [LAPLACE], (0.3, 0.7), ["mu kink"]),
    "Laplace with weights": (unbinned(laplace, "mu b"), Weighted([LAPLACE], [1 + FLAT]), (0.0, 1.0), ["mu kink"]),
    "moving knots": (
        unbinned(lambda x, m: jnp.interp(x - m, KNOTS, HEIGHTS) + 0.01, "m"),
        [0.7 * NORMAL],
        (0.1,),
        ["m kink"],
    ),
    "end": (
        unbinned(lambda x, theta: jnp.where(x < theta, 1.0 / theta, 0.0), "theta"),
        [FLAT],
        (1.2,),
        ["theta support"],
    ),
    "end, start below the data": (
        unbinned(lambda x, theta: jnp.where(x < theta, 1.0 / theta, 0.0), "theta"),
        [FLAT],
        (0.6,),
        ["theta support"],
    ),
    "uniform": (unbinned(uniform.pdf, "a w"), [FLAT], (-0.01, 1.02), ["a support", "w support"]),
    "beginning of a decay": (unbinned(expon.pdf, "loc scale"), [DECAY], (-0.1, 1.0), ["loc support"]),
    "edge of argus": (
        unbinned(argus.pdf, "chi c p"),
        [5.0 * np.sqrt(1.0 - FLAT ** (1 / 1.5))],
        (0.2, 5.0, 0.5),
        ["c support"],
    ),
    "end over background": (
        unbinned(lambda x, f, end: f * jnp.where(x < end, 1.0 / end, 0.0) + (1.0 - f) / 2.0, "f end"),
        [np.concatenate([FLAT, 2.0 * FLAT])],
        (0.5, 1.0),
        ["end jump"],
    ),
    "absolute value": (unbinned(lambda x, p: norm.pdf(x, jnp.abs(p), 1.0), "p"), [NORMAL], (0.3,), ["p kink"]),
    "positive part": (LeastSquares(lambda x, p: jnp.maximum(p, 0.0) * x), points(0.0), (0.05,), ["p kink"]),
    "break": (
        LeastSquares(lambda x, a, b, c: jnp.where(x < c, a * x, a * c + b * (x - c))),
        points(np.where(POINTS < 1.5, POINTS, 2.0 * POINTS - 1.5)),
        (1.0, 2.0, 1.45),
        ["c kink"],
    ),
    "step": (
        LeastSquares(lambda x, a, b, c: jnp.where(x < c, a, b)),
        points(np.where(POINTS < 1.5, 1.0, 2.0)),
        (1.0, 2.0, 1.45),
        ["c jump"],
    ),
    "correlated break": (
        LeastSquares(lambda x, a, c: a * jnp.maximum(x - c, 0.0), covariance=0.1 * np.eye(40) + 0.01),
        points(np.maximum(POINTS - 1.5, 0.0))[:2],
        (1.0, 1.45),
        ["c kink"],
    ),
    "step of many events": (  # by much more than an event tells
        PoissonNLL(lambda n, a: n * jnp.where(a > POINTS, 1.0, 3.0)),
        20.0 * np.where(POINTS < 1.5, 1.0, 3.0)[None],
        (20.0, 1.45),
        ["a jump"],
    ),
    "floor": (unbinned(lambda x, p: norm.pdf(x, jnp.floor(p), 1.0), "p"), [NORMAL], (0.3,), ["p jump"]),
    "rounding": (unbinned(lambda x, p: norm.pdf(x, p + jnp.round(p) / 9, 1.0), "p"), [NORMAL], (0.3,), ["p jump"]),
    "sign": (unbinned(lambda x, p: norm.pdf(x, p + jnp.sign(p) / 9, 1.0), "p"), [NORMAL], (0.3,), ["p jump"]),
    "histogram": (
        BinnedNLL(lambda x, w: uniform.cdf(x, 0.0, w), np.linspace(0, 1, 21)),
        np.histogram(0.9 * FLAT, 20, (0, 1))[0][None],
        (0.93,),
        ["w kink"],
    ),
    "two observables": (
        UnbinnedNLL(lambda x, m, r: norm.pdf(x[0], m, 1.0) * laplace(x[1], r, 1.0)),
        [np.stack([NORMAL, LAPLACE])],
        (0.1, 0.3),
        ["r kink"],
    ),
    "sum": (
        unbinned(laplace, "mu b") + unbinned(norm.pdf, "mu sigma"),
        ([LAPLACE], [NORMAL]),
        (0.1, 1.0, 2.0),
        ["mu kink"],
    ),
    "a parameter too many": (unbinned(lambda x, m, a: norm.pdf(x, m, 1.0), "m a"), [NORMAL], (0.1, 3.0), ["a flat"]),
    "one that cancels": (
        unbinned(lambda x, m, a: norm.pdf(x + a, m + a, 1.0), "m a"),
        [NORMAL],
        (0.1, 3.0),
        ["a flat"],
    ),
}


@pytest.mark.parametrize("name", IRREGULAR)
def test_irregular_models_are_named(name):
    cost, data, theta, expected = IRREGULAR[name]
    assert kinds(cost, data, theta) == expected


def test_sentences_tell_where_and_how_much():
    mu_kink = found(unbinned(laplace, "mu b"), [np.array([0.0, 1.0, 5.0])], (0.9, 2.0))["mu", "kink"]
    assert mu_kink.startswith("the slope of the cost jumps by 1 at mu = 1 (x = 1): errors from the Hessian do not hold")
    assert mu_kink.endswith("make the model smooth in 'mu', or take its interval from toys")
    end = found(IRREGULAR["end"][0], [np.array([0.25, 0.5, 1.0])], (0.6,))["theta", "support"]
    assert "moves with 'theta': x = 0.5 is possible for theta above 0.5 only" in end
    step = found(IRREGULAR["end over background"][0], [np.array([0.3, 0.7, 1.5])], (0.5, 0.75))["end", "jump"]
    ratio = np.log((0.5 / 0.7 + 0.25) / 0.25)
    assert f"the cost jumps by {ratio:.3g} at end = 0.7 (x = 0.7): a minimum may lie there" in step
    flat = found(IRREGULAR["a parameter too many"][0], [NORMAL], (0.1, 3.0))["a", "flat"]
    assert flat == "the cost does not depend on 'a' near 3: fix it or leave it out of the model"


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("shift", [0.0, 10.0, -5.0])
def test_nothing_depends_on_units(scale, shift):
    data = [scale * (LAPLACE + shift)]
    theta = (scale * (shift + 0.2), 0.8 * scale)
    assert kinds(unbinned(laplace, "mu b"), data, theta) == ["mu kink"]
    assert kinds(unbinned(norm.pdf, "mu b"), data, theta) == []


def test_a_parameter_may_be_idle_at_a_special_point():
    peak = unbinned(lambda x, f, m, s: f * norm.pdf(x, m, s) + (1.0 - f) / 10.0, "f m s")
    assert kinds(peak, [10 * FLAT], (0.0, 5.0, 0.3)) == []
    assert kinds(peak, [10 * FLAT], (0.0, 5.0, 0.3), fixed=["f"]) == ["m flat", "s flat"]
    twins = unbinned(lambda x, f, a, b: f * norm.pdf(x, a, 1.0) + (1.0 - f) * norm.pdf(x, b, 1.0), "f a b")
    assert kinds(twins, [NORMAL], (0.5, 1.0, 1.0)) == []
    assert kinds(twins, [NORMAL], (0.5, 1.0, 1.0), fixed=["a", "b"]) == ["f flat"]


def test_fixed_parameters_and_limits():
    cost = unbinned(laplace, "mu b")
    assert kinds(cost, [LAPLACE], (0.3, 0.7), fixed=["mu"]) == []
    signal = unbinned(lambda x, p: norm.pdf(x, jnp.abs(p), 1.0), "p")
    assert kinds(signal, [NORMAL], (0.3,), limits={"p": (0.0, INF)}) == []
    assert kinds(signal, [NORMAL], (0.3,), limits={"p": (-0.1, INF)}) == ["p kink"]
    # far away from the kink
    assert kinds(signal, [NORMAL + 9.0], (9.0,)) == []


def test_toys_that_cannot_be_looked_at():
    cost = unbinned(laplace, "mu b")
    bad = np.array([np.nan, 1.0])
    for data in ([], [np.empty(0)], [bad], [np.empty(0), bad], [np.ones(3)]):
        kinds(cost, data, (0.0, 1.0))
    assert kinds(cost, [bad, np.empty(0), LAPLACE, LAPLACE[:5]], (0.0, 1.0)) == ["mu kink"]
    # no event has a density at the start
    assert kinds(IRREGULAR["end"][0], [FLAT + 5.0], (1.0,)) == []
    assert kinds(NormalConstraint("a", 1.0, 1.0), None, (0.0,)) == []


def test_a_model_without_a_scalar_form():
    def looped(x, mu, b):
        turn = lambda state: (state[0] + 1, 0.5 * state[1] + 0.5 * laplace(x, mu, b))  # noqa: E731
        return jax.lax.while_loop(lambda state: state[0] < 3, turn, (0, laplace(x, mu, b)))[1]

    cost = unbinned(looped, "mu b")
    assert kinds(cost, [LAPLACE], (0.2, 1.0)) == ["mu kink"]
    assert kinds(cost, [LAPLACE], (0.2, 1.0), fixed=["mu"]) == []


# -- templates -----------------------------------------------------------------------------------------------------

SIGNAL, BACKGROUND = np.linspace(1.0, 20.0, 20), np.linspace(200.0, 50.0, 20)
UP, DOWN = 1.1 * BACKGROUND + np.sin(np.arange(20)), 0.93 * BACKGROUND
CONSTRAINTS = NormalConstraint(["shape", "norm"], [0, 0], [1, 1])
COUNTS = np.random.default_rng(8).poisson(SIGNAL + BACKGROUND)[None].astype(float)


def piecewise(mu, shape, norm):
    moved = BACKGROUND + jnp.where(shape > 0, shape * (UP - BACKGROUND), shape * (BACKGROUND - DOWN))
    return (mu * SIGNAL + moved) * (1.0 + 0.05 * norm)


def quadratic(mu, shape, norm):
    moved = BACKGROUND + 0.5 * shape * (UP - DOWN) + 0.5 * shape**2 * (UP + DOWN - 2.0 * BACKGROUND)
    return (mu * SIGNAL + moved) * (1.0 + 0.05 * norm)


def test_templates():
    """Interpolation by pieces has a kink where the nuisance parameter is 0, also if data equal expectation there."""
    cost, smooth = PoissonNLL(piecewise) + CONSTRAINTS, PoissonNLL(quadratic) + CONSTRAINTS
    for counts in (COUNTS, (SIGNAL + BACKGROUND)[None]):
        sentences = found(cost, (counts, None), (1.0, 0.0, 0.0))
        assert list(sentences) == [("shape", "kink")]
        assert "at shape = 0 (in the first toy)" in sentences["shape", "kink"]
        assert found(smooth, (counts, None), (1.0, 0.0, 0.0)) == {}
    # a constraint keeps a parameter from being idle
    idle = PoissonNLL(lambda mu, shape, norm: quadratic(mu, shape, 0.0))
    assert kinds(idle, COUNTS, (1.0, 0.0, 0.0)) == ["norm flat"]
    assert kinds(idle + CONSTRAINTS, (COUNTS, None), (1.0, 0.0, 0.0)) == []


def test_smooth_histogram_of_a_crystalball():
    edges = np.linspace(-4, 4, 41)
    cost = ExtendedBinnedNLL(lambda x, n, *p: n * crystalball.cdf(x, *p), edges, name=("n", "a", "m", "mu", "s"))
    assert kinds(cost, np.histogram(HEAVY, edges)[0][None], (N, 1.0, 2.0, 0.0, 1.0)) == []


def weighted_histograms(x, weights, edges):
    """(n_toys, n_bins, 2)."""
    sums = lambda w: [np.histogram(a, edges, weights=b)[0] for a, b in zip(x, w, strict=True)]  # noqa: E731
    return np.stack([sums(weights), sums(weights**2)], axis=-1)


WEIGHTS = {
    "uniform": lambda rng, size: rng.uniform(0.5, 1.5, size),
    "exponential": lambda rng, size: rng.exponential(size=size),
    "small": lambda rng, size: np.full(size, 0.3),
    "of both signs": lambda rng, size: np.where(rng.uniform(size=size) < 0.2, -1.0, 1.0),
}


@pytest.mark.parametrize("weights", WEIGHTS)
def test_tails_of_a_histogram_are_no_breaks(weights):
    """Where a bin expects 1e-16 of all events its expectation has steps of that size; the models are smooth."""
    rng = np.random.default_rng(1)
    edges, wide = np.linspace(0.0, 10.0, 31), np.linspace(-5.0, 5.0, 41)
    decay = ExtendedBinnedNLL(lambda x, n, s: n * expon.cdf(x, 0.0, s), edges)
    gauss = ExtendedBinnedNLL(lambda x, n, m, s: n * norm.cdf(x, m, s), wide)
    both = BinnedNLL(lambda x, f, m, s, r: f * norm.cdf(x, m, s) + (1.0 - f) * expon.cdf(x, 0.0, r), edges)
    for n in (30, 3000):
        x = rng.exponential(2.0, (2, n))
        data = weighted_histograms(x, WEIGHTS[weights](rng, x.shape), edges)
        z = rng.normal(size=(2, n))
        normal = weighted_histograms(z, WEIGHTS[weights](rng, z.shape), wide)
        for spread in (0.3, 0.947, 3.0):
            for start in (1.0, n, 10.0 * n):
                for form in (data, np.abs(data[..., 0])):
                    assert kinds(decay, form, (start, spread)) == []
                for form in (normal, np.abs(normal[..., 0])):
                    assert kinds(gauss, form, (start, -0.4, spread)) == []
            assert kinds(both, np.abs(data), (0.3, 4.0, spread, spread)) == []


@pytest.mark.parametrize("weights", WEIGHTS)
def test_breaks_of_a_weighted_histogram_are_named(weights):
    rng, edges = np.random.default_rng(2), np.linspace(0.0, 1.0, 21)
    x = 0.9 * rng.uniform(size=(2, 2000))
    data = weighted_histograms(x, WEIGHTS[weights](rng, x.shape), edges)
    cost = ExtendedBinnedNLL(lambda x, n, w: n * (0.9 * uniform.cdf(x, 0.0, w) + 0.1 * x), edges)
    start = (data[0, :, 0].sum(), 0.93)
    assert kinds(cost, data, start) == ["w kink"]
    assert kinds(cost, np.abs(data[..., 0]), start) == ["w kink"]


# -- warnings ------------------------------------------------------------------------------------------------------


def warned(cost, data, theta, fixed=()):
    open_side = np.full(len(cost.names), INF)
    free = np.array([name not in fixed for name in cost.names])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_irregularities(cost, cost.rows(data), np.array(theta, dtype=float), -open_side, open_side, free)
    return [str(each.message) for each in caught]


def test_warnings_come_once_and_in_order():
    cost = UnbinnedNLL(lambda x, mu, b: 7.0 * laplace(x, mu, b))
    integral, kink = warned(cost, [LAPLACE], (0.0, 1.0))
    assert "must integrate to 1" in integral and "the slope of the cost jumps" in kink
    assert warned(cost, [LAPLACE], (0.1, 1.0)) == []
    # other parameters, and the first data that fill the sample, are looked at
    assert len(warned(cost, [LAPLACE], (0.1, 1.0), fixed=["mu"])) == 1
    small = UnbinnedNLL(laplace)
    assert warned(small, [np.array([3.0])], (0.0, 0.1)) == []
    assert len(warned(small, [LAPLACE], (0.0, 1.0))) == 1
