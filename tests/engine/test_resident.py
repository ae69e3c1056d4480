"""Toys that stay on an accelerator are those of the host for everybody, and their fits the same bit for bit."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from engine import Ragged, UnbinnedNLL, Weighted, fit_batch, lanes, xla
from engine import resident as module
from engine.data import Rows, lane_data
from engine.drivers import Settings
from engine.resident import Resident, ResidentRows
from kernels import norm


def drawn(n, *, d=None, garbage=np.nan, spare=2, seed=1):
    """(padded, host): toys of these numbers of events, behind which there is garbage, and rows of it."""
    shape = (len(n) + spare, max(n) + 5) if d is None else (len(n) + spare, d, max(n) + 5)
    padded = np.random.default_rng(seed).normal(3.0, 2.0, shape)
    toys = [padded[k, ..., :m].copy() for k, m in enumerate(n)]
    for k, m in enumerate(n):
        padded[k, ..., m:] = garbage
    padded[len(n) :] = garbage
    with jax.enable_x64(True):
        return jnp.asarray(padded), Ragged(np.concatenate(toys, axis=-1), np.concatenate([[0], np.cumsum(n)]))


@pytest.mark.parametrize("d", [None, 2])
def test_they_are_ragged_for_everybody_else(d, monkeypatch):
    monkeypatch.setattr(module, "BYTES_AT_ONCE", 200)  # two toys at once
    n = [3, 0, 7, 7, 1]
    padded, host = drawn(n, d=d)
    toys = Resident(padded, np.array(n))
    assert isinstance(toys, Ragged) and len(toys) == 5 and "values" not in vars(toys)
    for copied in (toys, host):
        some = copied.take([3, 1, 0])
        np.testing.assert_array_equal(some.values, np.concatenate([host[3], host[0]], axis=-1))
        np.testing.assert_array_equal(some.offsets, [0, 7, 7, 10])
        assert not np.shares_memory(some.values, host.values)
    assert "values" not in vars(toys)
    np.testing.assert_array_equal(toys.offsets, host.offsets)
    np.testing.assert_array_equal(toys.values, host.values)
    assert toys.values is toys.values and toys.values.dtype == np.float64
    np.testing.assert_array_equal(toys[2], host[2])
    assert type(toys[1:4]) is Ragged
    np.testing.assert_array_equal(toys[1:4].values, host[1:4].values)


@pytest.mark.parametrize("d", [None, 2])
def test_rows_in_lanes_are_those_of_the_host(d):
    n = [3, 0, 7, 7, 1]
    padded, host = drawn(n, d=d)
    ours = ResidentRows(Resident(padded, np.array(n)))
    theirs = UnbinnedNLL(norm.pdf).rows(host)
    assert ours.form == theirs.form and len(ours) == 5
    for toys in (np.arange(5), np.array([4, 2, 2, 1])):
        for width in (7, 10, 40):
            for a, b in zip(lane_data(ours, toys, width), lane_data(theirs, toys, width), strict=True):
                np.testing.assert_array_equal(a, b)
                assert a.dtype == b.dtype
    some = ours.only(np.array([0, 3]))
    assert some.form == theirs.form and len(some) == 5 and theirs.only(np.array([0, 3])) is theirs
    np.testing.assert_array_equal(some.columns, np.delete(theirs.columns, slice(3, 10), axis=1)[:, :10])
    np.testing.assert_array_equal(some.offsets, [0, 3, 3, 3, 10, 10])
    assert "columns" not in vars(ours) and "values" not in vars(ours.events)
    np.testing.assert_array_equal(ours.columns, theirs.columns)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_values_count_among_the_events_alone(bad):
    n = [3, 0, 7, 7, 1]
    for d in (None, 2):
        padded, host = drawn(n, d=d)
        assert not Resident(padded, np.array(n)).not_finite.any() and not host.not_finite.any()
        with jax.enable_x64(True):
            padded = padded.at[(2, 6) if d is None else (2, 1, 6)].set(bad)
        toys = Resident(padded, np.array(n))
        expected = [False, False, True, False, False]
        np.testing.assert_array_equal(toys.not_finite, expected)
        np.testing.assert_array_equal(Ragged(toys.values, toys.offsets).not_finite, expected)


class Watched:
    """NumPy, or JAX, that notes what goes from the device to the host, or from there to the device."""

    def __init__(self, original, noted):
        self.original, self.noted = original, noted

    def __getattr__(self, name):
        return getattr(self.original, name)

    def asarray(self, a, *args):
        self.noted.extend([a.shape] if isinstance(a, jax.Array) else [])
        return self.original.asarray(a, *args)

    def device_put(self, tree, *args):
        self.noted.extend(a.shape for a in jax.tree.leaves(tree) if isinstance(a, np.ndarray))
        return self.original.device_put(tree, *args)


def test_their_fits_are_those_of_the_host_without_a_copy(monkeypatch):
    monkeypatch.setitem(xla.FEW_ROWS, "cpu", 0)
    n = np.random.default_rng(3).integers(3, 30, 27).tolist()
    padded, host = drawn(n)
    with jax.enable_x64(True):
        padded = padded.at[4, 1].set(np.nan)
    host.values[host.offsets[4] + 1] = np.nan
    cost, start = UnbinnedNLL(norm.pdf), np.tile([3.0, 2.0], (27, 1))
    start[25:] = 30.0, 1.0  # they take longer: lanes are regrouped
    options = {"limits": {"scale": (1e-3, None)}, "backend": "jax", "retries": 0}
    toys = Resident(padded, np.array(n))
    fetched: list = []
    sent: list = []
    with monkeypatch.context() as patch:
        for place in (xla, lanes, module):
            patch.setattr(place, "np", Watched(np, fetched))
            patch.setattr(place, "jax", Watched(jax, sent))
        ours = fit_batch(cost, toys, start, batch_size=32, **options)
    # which toys are bad, and the first toys, to look at the model, once
    assert [fetched.pop(0), fetched.pop(0)] == [(29,), (27, max(n) + 5)]
    # after every call who has ended, and a line of numbers for each, in one array
    assert fetched[:2] == [(26,), (26, 6 + 2 + 2 + 4)]
    # whether two toys are left at the end is a matter of rounding
    assert {26, 8} <= {shape[0] for shape in fetched} <= {26, 8, 2}
    assert {shape[1:] for shape in fetched} == {(), (14,)}
    # numbers of events, and no measured values
    assert sent == [(26, 0), (26,)]
    assert "values" not in vars(toys)  # nor for the first fit of a cost, which looks at some events
    theirs = fit_batch(cost, host, start, batch_size=32, **options)
    for name in ("values", "covariance", "fval", "edm", "status", "nfev", "valid", "at_limit"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    assert ours.valid.sum() == 26 and not ours.valid[4]
    np.testing.assert_allclose(np.delete(ours.values[:, 0], 4), [np.mean(host[k]) for k in range(27) if k != 4])
    # on the host, and with what needs it
    there = fit_batch(cost, toys, start, backend="numba", limits=options["limits"])
    np.testing.assert_allclose(there.values[ours.valid], ours.values[ours.valid], rtol=1e-8)
    weights = np.ones(host.offsets[-1])
    np.testing.assert_array_equal(cost.rows(Weighted(toys, weights)).columns[0], host.values)
    array = weakref.ref(padded)
    del padded, toys, ours, there
    gc.collect()
    assert array() is None


@pytest.mark.parametrize("has_numba", [True, False])
def test_toys_that_fail_are_rescued_without_a_copy_of_the_others(has_numba):
    n = [20, 30, 30, 25]
    padded, host = drawn(n, spare=0)
    toys = Resident(padded, np.array(n))

    def tailed(x, loc, scale):  # 0 from afar
        if not has_numba:
            _, loc = jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, s[1]), (0, loc))
        return 0.9 * norm.pdf(x, loc, scale) + 0.1 * norm.pdf(x, loc, 2.0 * scale)

    cost, near = UnbinnedNLL(tailed), (3.0, 2.0)
    options = {"limits": {"scale": (0.1, None)}, "backend": "jax"}
    ours = fit_batch(cost, toys, np.array([near, (300.0, 2.0), near, (-200.0, 2.0)]), **options)
    assert ours.valid.all() and ours.backend == "jax" and ours.rescued.tolist() == [False, True, False, True]
    assert "values" not in vars(toys)
    theirs = fit_batch(cost, host, near, **options)
    assert not theirs.rescued.any()
    np.testing.assert_allclose(ours.values, theirs.values, rtol=1e-6)


@pytest.mark.parametrize("d", [None, 2])
def test_rows_that_are_sent_are_those_of_the_host(d, monkeypatch):
    monkeypatch.setattr(module, "SENT_AT_ONCE", 8)
    n = [3, 0, 7, 7, 1]  # 18 events, in parts of 8
    rows = UnbinnedNLL(norm.pdf).rows(drawn(n, d=d)[1])
    with jax.enable_x64(True):
        there = module.sent(rows, 10**9)
        assert there is not rows and there.form == rows.form and len(there) == 5
        for toys in (np.arange(5), np.array([4, 2, 2, 1])):
            for width in (7, 10, 40):
                for a, b in zip(lane_data(there, toys, width), lane_data(rows, toys, width), strict=True):
                    np.testing.assert_array_equal(a, b)
                    assert a.dtype == b.dtype
        # few, too many for the device, there already, or none at all
        assert module.sent(UnbinnedNLL(norm.pdf).rows([[1.0, 2.0]]), 10**9).columns.shape == (1, 2)
        assert module.sent(rows, 100) is rows
        resident = ResidentRows(Resident(*((drawn(n, d=d)[0]), np.array(n))))
        assert module.sent(resident, 10**9) is resident


def test_a_driver_sends_most_toys_at_once_and_few_one_by_one(monkeypatch):
    monkeypatch.setattr(module, "SENT_AT_ONCE", 64)
    rng = np.random.default_rng(3)
    cost = UnbinnedNLL(norm.pdf) + UnbinnedNLL(lambda x, loc, wide: norm.pdf(x, loc, wide))
    data = [rng.normal(3.0, 2.0, n) for n in rng.integers(0, 30, 40)], rng.normal(3.0, 4.0, (40, 3))
    kept = []
    monkeypatch.setattr(xla, "sent", lambda *args: kept.append(module.sent(*args)) or kept[-1])
    found = []
    for memory in (None, 2**30):
        monkeypatch.setattr(xla, "free_memory", lambda devices, memory=memory: memory)
        driver = xla.XlaDriver(cost, cost.rows(data), jax.devices("cpu"), batch_size=16)
        settings = Settings(np.array([-9.0, 0.1, 0.1]), np.full(3, 99.0), np.ones(3, dtype=bool), 0.5, 1e-13, 200)
        found.append(driver.fit(np.arange(40), np.tile([3.0, 2.0, 4.0], (40, 1)), settings))
        assert driver.sent == ()
        driver.fit(np.arange(3), np.tile([3.0, 2.0, 4.0], (3, 1)), settings)
    assert [type(rows) is not Rows for rows in kept] == [True, True]  # of both costs, once
    np.testing.assert_array_equal(found[0].values, found[1].values)
    np.testing.assert_array_equal(found[0].covariance, found[1].covariance)
