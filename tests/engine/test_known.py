"""Models that look up what depends on the data alone: numba takes them, and agrees with JAX and with closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import interpolate

from engine import ExtendedUnbinnedNLL, NormalConstraint, UnbinnedNLL, Weighted, fit_batch
from engine.cost import Cost
from engine.cpu import NumbaDriver
from engine.xla import XlaDriver
from kernels import expon, norm, truncexpon
from kernels.nodes import UntranslatableError

EDGES = np.linspace(0.0, 10.0, 21)
EFFICIENCY = 1.0 - 0.9 * np.exp(-EDGES)
HEIGHTS = np.random.default_rng(5).uniform(0.5, 1.5, 20)
SPLINE = interpolate.CubicSpline(EDGES, np.sin(EDGES) + 2.0)
TOYS = [np.random.default_rng(k).uniform(0.0, 10.0, n) for k, n in enumerate((40, 0, 700, 1, 2100))]


def efficiency(x):
    return jnp.interp(x, EDGES, EFFICIENCY)


def height(x):
    return jnp.asarray(HEIGHTS)[jnp.clip(jnp.floor(2.0 * x).astype(int), 0, 19)]


def spline(x):
    k = jnp.clip(jnp.searchsorted(jnp.asarray(EDGES), x, side="right") - 1, 0, 19)
    c, t = jnp.asarray(SPLINE.c)[:, k], x - jnp.asarray(EDGES)[k]
    return ((c[0] * t + c[1]) * t + c[2]) * t + c[3]


def turns(x):
    """The number of halvings until x is below 1, by a loop whose end depends on it."""
    return jax.lax.while_loop(lambda s: s[0] > 1.0, lambda s: (s[0] / 2.0, s[1] + 1.0), (x, 1.0))[1]


LOOKED_UP = {
    "interp": (efficiency, lambda x: np.interp(x, EDGES, EFFICIENCY)),
    "histogram": (height, lambda x: HEIGHTS[np.clip(np.floor(2.0 * x).astype(int), 0, 19)]),
    "spline": (spline, SPLINE),
    "while": (turns, lambda x: 1.0 + np.maximum(np.ceil(np.log2(x)), 0.0)),
}


def outputs(driver, theta):
    return driver.evaluate(np.arange(len(driver.rows)), np.tile(theta, (len(driver.rows), 1)))


@pytest.mark.parametrize("name", LOOKED_UP)
@pytest.mark.parametrize("weighted", [False, True])
def test_derivatives_are_those_of_jax_and_the_value_the_closed_form(name, weighted):
    of_jax, of_numpy = LOOKED_UP[name]
    cost = UnbinnedNLL(lambda x, f, tau: f * of_jax(x) + (1.0 - f) * truncexpon.pdf(x, 0.0, 10.0, 0.0, tau))
    weights = [np.linspace(0.5, 1.5, len(toy)) for toy in TOYS]
    rows = cost.rows(Weighted(TOYS, weights) if weighted else TOYS)
    ours, theirs = NumbaDriver(cost, rows), XlaDriver(cost, rows, jax.devices("cpu"), batch_size=2)
    assert ours.rows.n_columns > rows.n_columns and theirs.rows is rows
    for theta in ([0.3, 2.0], [0.9, 40.0]):
        found = outputs(ours, theta)
        np.testing.assert_allclose(found, outputs(theirs, theta), rtol=1e-10, atol=1e-12)
        f, tau = theta
        for k, x in enumerate(TOYS):
            e = np.exp(-x / tau) / (tau * -np.expm1(-10.0 / tau))
            terms = -np.log(f * of_numpy(x) + (1.0 - f) * e)
            assert abs(found[k, 0] - np.sum(weights[k] * terms if weighted else terms)) < 1e-10 * (1 + len(x))


def test_fits_of_sums_ranges_and_two_observables_are_those_of_jax():
    def accepted(x, tau):
        return efficiency(x) * jnp.exp(-x / tau)

    def plane(x, n, f, tau):
        shape = f * height(x[0]) / (0.5 * HEIGHTS.sum()) + (1.0 - f) * 0.1
        return n, n * shape * expon.pdf(x[1], 0.0, tau)

    rng = np.random.default_rng(7)
    toys = [rng.exponential(3.0, n) for n in (500, 300, 800)]
    ranged = UnbinnedNLL(accepted, fit_range=(0.0, 10.0), n_nodes=2**12) + NormalConstraint("tau", 3.0, 0.5)
    pairs = [np.stack([rng.uniform(0.0, 10.0, n), rng.exponential(2.0, n)]) for n in (400, 600)]
    for cost, data, start in (
        (ranged, (toys, None), {"tau": 2.0}),
        (ExtendedUnbinnedNLL(plane), pairs, {"n": 500.0, "f": 0.5, "tau": 1.5}),
    ):
        ours, theirs = (fit_batch(cost, data, start, backend=backend) for backend in ("auto", "jax"))
        assert (ours.backend, theirs.backend) == ("numba", "jax") and ours.valid.all()
        assert np.max(np.abs(ours.values - theirs.values) / theirs.errors) < 1e-8
        np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-8, atol=1e-14)
        # each toy as if it were alone
        alone = fit_batch(cost, ([toys[1]], None) if cost is ranged else pairs[1:], start)
        np.testing.assert_array_equal(alone.values[0], ours.values[1])


def test_the_fit_with_an_efficiency_finds_the_truth():
    """Pulls of a lifetime, of which an efficiency takes early decays: 300 toys, width 1 within four standard errors."""
    rng, toys = np.random.default_rng(11), []
    for _ in range(300):
        t = rng.exponential(2.0, 600)
        t = t[t < 10.0]
        toys.append(t[rng.uniform(size=len(t)) < np.interp(t, EDGES, EFFICIENCY)])
    cost = UnbinnedNLL(lambda t, tau: efficiency(t) * jnp.exp(-t / tau), fit_range=(0.0, 10.0), n_nodes=2**12)
    result = fit_batch(cost, toys, {"tau": 1.5}, limits={"tau": (0.1, None)})
    assert result.backend == "numba" and result.valid.all()
    pull = (result.values[:, 0] - 2.0) / result.errors[:, 0]
    assert abs(pull.mean()) < 4 / np.sqrt(300) and abs(pull.std() - 1.0) < 4 / np.sqrt(600)


def test_what_depends_on_a_parameter_or_is_a_condition_is_left_to_jax():
    def shifted(x, mu):
        return norm.pdf(x, 3.0, 1.0) * jnp.interp(x - mu, EDGES, EFFICIENCY)

    def chosen(x, a, b):
        return jnp.where(jax.lax.while_loop(lambda s: s[0] > 1.0, lambda s: (s[0] - 1.0, ~s[1]), (x, True))[1], a, b)

    for model, theta in ((shifted, [0.1]), (chosen, [0.1, 0.2])):
        cost = UnbinnedNLL(model)
        rows = cost.rows(TOYS)
        with pytest.raises(UntranslatableError, match=r"no scalar form|an index that depends"):
            NumbaDriver(cost, rows)
        assert np.isfinite(outputs(XlaDriver(cost, rows, jax.devices("cpu")), theta)).all()


def test_a_model_with_scalar_form_keeps_its_rows():
    cost = UnbinnedNLL(lambda x, f: f * norm.pdf(x, 3.0, 1.0) + (1.0 - f) * 0.1)
    rows = cost.rows(TOYS)
    assert NumbaDriver(cost, rows).rows is rows


@pytest.mark.parametrize("model", [lambda x, mu: norm.pdf(x, mu, 1.0), lambda x, mu: norm.pdf(x, mu, 1.0) * height(x)])
def test_a_model_is_translated_once(model, monkeypatch):
    built, build = [], Cost.built
    monkeypatch.setattr(Cost, "built", lambda cost, rows, **options: built.append(cost) or build(cost, rows, **options))
    cost = UnbinnedNLL(model)
    for _ in range(2):
        NumbaDriver(cost, cost.rows(TOYS))
    assert built == [cost]
