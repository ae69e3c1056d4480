from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import ExtendedUnbinnedNLL, LeastSquares, NormalConstraint, PoissonNLL, Ragged
from engine.resident import Resident
from kernels import randombits
from toys import drawing
from toys.drawing import draw_toys, uses_key
from toys.models import peak
from toys.sampling import Component, ExtendedMixture
from toys.simultaneous import Simultaneous
from toys.study import generate, thrown_by

UNBINNED = ExtendedUnbinnedNLL(lambda x, n: (n, n))
BINNED = PoissonNLL(lambda n: jnp.stack([n, n, n]))
LINE = LeastSquares(lambda x, n: n * x)
WITH_X = LeastSquares(lambda x, n: n * x, xerror=True)
CORRELATED = LeastSquares(lambda x, n: n * x, covariance=np.eye(4))
CONSTRAINT = NormalConstraint("n", 1.0, 0.5)
SUM = UNBINNED + BINNED + CONSTRAINT
X = jnp.linspace(-3.0, 3.0, 4)
THETA = np.array([2.0])


def uniforms(k, n, seed=1):
    return np.asarray(randombits.uniform(randombits.toy_key(seed, k), n))


def drawn(sampler, cost, **options):
    return draw_toys(sampler, THETA, **{"n_toys": 5, "seed": 1, "chunk": 2, "cost": cost, **options})


def test_events_of_several_observables():
    def sampler(key, theta):
        u = randombits.uniform(key, 8)
        return theta[0] * u.reshape(2, 4), jnp.where(u[0] < 0.5, 1, 3)

    for cost in (UNBINNED, None):
        toys = drawn(sampler, cost, n_toys=20)
        assert toys.values.shape[0] == 2 and set(np.diff(toys.offsets)) == {1, 3}
        for k in range(20):
            np.testing.assert_array_equal(toys[k], 2.0 * uniforms(k, 8).reshape(2, 4)[:, : toys[k].shape[1]])
    assert drawn(sampler, UNBINNED, n_toys=0).values.shape == (2, 0)


def test_counts():
    counts = drawn(lambda key, theta: jnp.floor(theta[0] * randombits.uniform(key, 3)).astype(jnp.int32), BINNED)
    np.testing.assert_array_equal(counts, [np.floor(2.0 * uniforms(k, 3)) for k in range(5)])
    assert counts.dtype == np.float64
    assert drawn(lambda key, theta: theta[0] * X[:3], BINNED, n_toys=0).shape == (0, 3)


def test_points_whose_x_is_measured():
    """y = f(x + noise), reported with the x without the noise."""

    def sampler(key, theta):
        a, b = jax.random.split(key)
        x = jax.random.uniform(a, (4,), jnp.float64, -3.0, 3.0)
        return x, theta[0] * (x + 0.15 * jax.random.normal(b, (4,), jnp.float64)), 0.1

    x, y, yerror = drawn(sampler, LINE, n_toys=3000, chunk=1000)
    assert x.shape == y.shape == (3000, 4) and np.all(yerror == 0.1) and yerror.shape == y.shape
    noise = (y - 2.0 * x).ravel()
    assert abs(noise.std() / 0.3 - 1.0) < 4 / np.sqrt(2 * noise.size)
    assert abs(np.corrcoef(noise, x.ravel())[0, 1]) < 4 / np.sqrt(noise.size)
    assert len(LINE.rows((x, y, yerror))) == 3000
    with_x = drawn(lambda key, theta: (*sampler(key, theta), 0.3 * jnp.ones(4)), WITH_X)
    assert len(with_x) == 4 and len(WITH_X.rows(with_x)) == 5


def test_a_sum():
    def sampler(key, theta):
        u = randombits.uniform(key, 3)
        return (u, 2), u, theta + u[:1]

    events, counts, values = drawn(sampler, SUM)
    for k in range(5):
        u = uniforms(k, 3)
        np.testing.assert_array_equal(events[k], u[:2])
        np.testing.assert_array_equal(counts[k], u)
        np.testing.assert_array_equal(values[k], 2.0 + u[:1])
    events, counts, values = drawn(lambda key, theta: (*sampler(key, theta)[:2], None), SUM)
    assert values is None and len(SUM.rows((events, counts, values))) == 5


def test_chunks_change_nothing():
    sampler = lambda key, theta: (X, theta[0] * X + randombits.uniform(key, 4), jnp.ones(4))  # noqa: E731
    whole = drawn(sampler, LINE, n_toys=11, chunk=64)
    for chunk in (1, 4, 11):
        for a, b in zip(whole, drawn(sampler, LINE, n_toys=11, chunk=chunk), strict=True):
            np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(drawn(sampler, LINE, n_toys=3, first=6)[1], whole[1][6:9])


def test_points_with_a_covariance_have_one_x():
    sampler = lambda key, theta: (X, theta[0] * X + randombits.uniform(key, 4))  # noqa: E731
    for n_toys in (5, 0):
        x, y = drawn(sampler, CORRELATED, n_toys=n_toys)
        np.testing.assert_array_equal(x, X)
        np.testing.assert_allclose(y, np.reshape([2.0 * X + uniforms(k, 4) for k in range(n_toys)], (n_toys, 4)))
        assert len(CORRELATED.rows((x, y))) == n_toys
    assert np.isnan(drawn(lambda key, theta: (jnp.nan * X, X), CORRELATED, chunk=2)[0]).all()
    for chunk in (2, 1):
        with pytest.raises(ValueError, match="must return the same x in every toy, but it varies: return"):
            drawn(lambda key, theta: (randombits.uniform(key, 4), X), CORRELATED, chunk=chunk)


def test_events_stay_on_an_accelerator(monkeypatch):
    """In chunks of any size, with the values of the host."""

    def sampler(key, theta):
        u = randombits.uniform(key, 8)
        return theta[0] * u.reshape(2, 4), jnp.where(u[0] < 0.5, 1, 3)

    host = drawn(sampler, UNBINNED, n_toys=11)
    assert type(host) is Ragged
    monkeypatch.setattr(drawing, "_stays", lambda n_bytes: n_bytes == 11 * 2 * 4 * 8)
    for chunk in (1, 4, 11, 64):
        there = drawn(sampler, UNBINNED, n_toys=11, chunk=chunk)
        assert isinstance(there, Resident) and there.padded.dtype == np.float64
        np.testing.assert_array_equal(there.offsets, host.offsets)
        np.testing.assert_array_equal(there.values, host.values)
    assert type(drawn(sampler, UNBINNED, n_toys=12)) is Ragged
    monkeypatch.setattr(drawing, "_stays", lambda n_bytes: True)
    # nothing to keep, and what is small
    assert type(drawn(sampler, UNBINNED, n_toys=0)) is Ragged
    assert isinstance(drawn(lambda key, theta: theta * X[:3], BINNED), np.ndarray)


@pytest.mark.parametrize(("platform", "free", "most"), [("gpu", 400, 100), ("gpu", None, 10**15), ("cpu", None, -1)])
def test_events_stay_where_they_leave_memory_for_the_fits(platform, free, most, monkeypatch):
    monkeypatch.setattr(drawing, "_device", lambda: SimpleNamespace(platform=platform))
    monkeypatch.setattr(drawing, "free_memory", lambda devices: free)
    assert drawing._stays(most) == (most > 0) and drawing._stays(most + 1) == (free is None and platform == "gpu")


@pytest.mark.parametrize(("platform", "few"), [("cpu", 1), ("gpu", 256)])
def test_an_accelerator_draws_one_toy_as_it_does_the_rest_of_a_run(platform, few, monkeypatch):
    """So that neither has a program of its own to compile; a CPU draws no more than it is asked for."""
    shapes = []

    def drawn_by_jax(draw, tables, keys, form, chunk):
        shapes.append(chunk)

    monkeypatch.setattr(drawing, "_device", lambda: SimpleNamespace(platform=platform))
    monkeypatch.setattr(drawing, "drawn_by_jax", drawn_by_jax)
    sampler = peak().sampler
    tables = sampler.prepare(peak().theta)
    for n_toys in (1, 200, 256, 10_000):
        sampler.draw_all(tables, np.zeros((n_toys, 2), np.uint32))
    at_once = {"cpu": 2**22, "gpu": 2**26}[platform] // sampler.size(tables)
    assert shapes == [few, max(few, 208), min(256, at_once), at_once]


def test_toys_are_thrown_where_they_are_fitted():
    study = peak()
    assert thrown_by(study, "auto", "auto") == thrown_by(study, "numba", "cpu") == "numba"
    assert thrown_by(study, "auto", "gpu") == thrown_by(study, "jax", "auto") == "jax"

    def ppf(p, mu):
        return jax.lax.while_loop(lambda x: x < 0.0, lambda x: x + 1.0, p + mu)  # no scalar form

    sampler = ExtendedMixture(("ns", "mu"), (Component("ns", ppf, ("mu",)),))
    assert thrown_by(replace(study, sampler=sampler, truth={"ns": 3.0, "mu": 5.0}), "numba", "auto") == "jax"
    # JAX draws it anyway, and so it is not tried
    own = replace(study, sampler=lambda key, theta: pytest.fail("a toy was thrown"))
    assert thrown_by(own, "numba", "auto") == "numba"


def test_toys_of_a_mixture_are_not_copied_to_the_host(monkeypatch):
    study = peak().at({"ns": 20.0, "nb": 50.0})
    host = generate(study, 6, 1, backend="jax")
    monkeypatch.setattr(drawing, "_stays", lambda n_bytes: True)
    there = generate(study, 6, 1, backend="jax")
    rows = study.cost.rows(there)
    study.cost.program(rows)
    assert "values" not in vars(there) and "columns" not in vars(rows) and not rows.bad.any()
    np.testing.assert_array_equal(there.values, host.values)
    with pytest.raises(ValueError, match="a component has no density at"):
        generate(study.at({"sigma": 0.0}), 2, 1, backend="jax")


@pytest.mark.parametrize(
    "cost, toy, message",
    [
        (None, lambda x: x[None], r"must return \(padded values, n\): .*, got"),
        (UNBINNED, lambda x: (x, x[0]), r"\(padded values, n\): .*, got shapes \(4,\) and \(\) of float64 and float64"),
        (UNBINNED, lambda x: (x[None], 2), r"got shapes \(1, 4\) and \(\)"),
        (BINNED, lambda x: (x, 4), r"must return counts \(n_bins,\), real numbers, got tuple"),
        (BINNED, lambda x: x[None], r"counts \(n_bins,\), a 1-D array, got shape \(1, 4\)"),
        (BINNED, lambda x: x > 0, r"counts \(n_bins,\), real numbers, got bool"),
        (LINE, lambda x: (x, x), r"must return \(x, y, yerror\), a tuple of arrays, got a tuple of 2"),
        (LINE, lambda x: x, r"must return \(x, y, yerror\), a tuple of arrays, got"),
        (WITH_X, lambda x: (x, x, 0.1), r"must return \(x, y, yerror, xerror\), a tuple of arrays, got a tuple of 3"),
        (LINE, lambda x: (x, x, x[:2]), r"the shape \(n,\) of y, got shapes \(4,\), \(4,\), \(2,\)"),
        (LINE, lambda x: (x, x[None], 0.1), r"got shapes \(4,\), \(1, 4\), \(\)"),
        (LINE, lambda x: (x, None, 0.1), r"must return \(x, y, yerror\), real numbers, got"),
        (CONSTRAINT, lambda x: x[0], r"must return measured values \(1,\), a 1-D array, got shape \(\)"),
        (SUM, lambda x: ((x, 4), x), "a sum of 3 costs must return a tuple with one entry for each, got a tuple of 2"),
        (SUM, lambda x: x, "a sum of 3 costs must return a tuple with one entry for each, got"),
        (SUM, lambda x: (None, x, x[:1]), r"entry 0 of the toy of a sum: a sampler must return \(padded values, n\)"),
        (SUM, lambda x: ((x, 4), (x,), x[:1]), r"entry 1 of the toy of a sum: a sampler must return counts"),
    ],
)
def test_what_is_no_toy(cost, toy, message):
    with pytest.raises(TypeError, match=message):
        drawn(lambda key, theta: toy(X.astype(jnp.float64)), cost, n_toys=1)


@pytest.mark.parametrize("of_a_sum", [False, True])
@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        (lambda key, theta: np.exp(theta), "__array__"),
        (lambda key, theta: jnp.ones(3) * float(theta[0]), "concrete value"),
        (lambda key, theta: theta["mu"] * jnp.ones(3), "string indexing"),
        (lambda key: jnp.ones(3), "takes 1 positional argument but 2 were given"),
    ],
)
def test_mistakes_in_a_sampler_are_told(sampler, message, of_a_sum):
    told = rf"'<lambda>' cannot be evaluated for one toy \(.*{message}.*\): it is called as sampler\(key, theta\)"
    with pytest.raises(TypeError, match=told):
        if of_a_sum:
            cost = UNBINNED + CONSTRAINT
            Simultaneous(cost, (sampler, None)).generate([1.0] * len(cost.names), n_toys=2, seed=1, backend="jax")
        else:
            drawn(sampler, UNBINNED, n_toys=2)


def test_whether_a_sampler_uses_its_key():
    rng = np.random.default_rng(1)
    assert uses_key(lambda key, theta: theta + jax.random.normal(key, (4,)), THETA)
    assert uses_key(lambda key, theta: (X, jnp.where(randombits.uniform(key, 1)[0] < 0.5, 1, 3)), THETA)
    assert not uses_key(lambda key, theta: theta * rng.normal(size=4), THETA)
    assert not uses_key(lambda key, theta: (theta[0] * X, 2 * len(jax.random.split(key))), THETA)


@pytest.mark.parametrize(("n", "stays"), [(5, False), (-1, False), (5, True)])
def test_more_events_than_values(monkeypatch, n, stays):
    monkeypatch.setattr(drawing, "_stays", lambda n_bytes: stays)
    with pytest.raises(ValueError, match=rf"with 0 <= n <= 4, the number of values, got {n}"):
        drawn(lambda key, theta: (X, n), UNBINNED)
