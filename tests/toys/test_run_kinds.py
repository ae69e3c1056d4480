"""Runs with every kind of toy and of sampler."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toys
from engine import BinnedNLL, ExtendedUnbinnedNLL, LeastSquares, NormalConstraint, PoissonNLL, UnbinnedNLL
from engine.data import Ragged
from engine.fit import fit_batch
from engine.result import FitResult
from kernels import norm
from tests.toys.small_runs import CHUNK, N_TOYS, OPTIONS, stop_after, traced_sampler
from toys import run as run_module
from toys import storage
from toys.files import StorageError
from toys.run import run
from toys.sampling import Component, ExtendedMixture
from toys.study import Study, generate

# --- every kind of toy -------------------------------------------------------------------------------------


class Recorded:
    """A sampler whose toys are known beforehand."""

    def __init__(self, names, data):
        self.names, self.data = names, data

    def __call__(self, key, theta):
        raise AssertionError("`generate` is there")

    def generate(self, theta, *, n_toys, seed, first, backend):
        return take(self.data, first, first + n_toys)


def take(data, first, stop):
    if isinstance(data, tuple):
        return tuple(take(entry, first, stop) for entry in data)
    return data if data is None or len(data) != N_TOYS else data[first:stop]


def expected(b):
    return b * jnp.arange(1.0, 7.0)


def line(x, a, b):
    return a + b * x


@pytest.fixture(scope="module")
def everything():
    """A study of a sum of all kinds: two sets of events of one mean, histograms, templates, points and a constraint."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(20, 30, (2, N_TOYS))
    events = [Ragged(rng.normal(1.0, 1.0, n.sum()), np.concatenate([[0], np.cumsum(n)])) for n in lengths]
    edges, x = np.linspace(-2.0, 4.0, 9), np.linspace(0.0, 1.0, 5)
    histograms = np.stack([np.histogram(rng.normal(1.0, 1.0, 50), edges)[0] for _ in range(N_TOYS)])
    counts = rng.poisson(2.0 * np.arange(1.0, 7.0), (N_TOYS, 6))
    y = line(x, 1.0, 2.0) + 0.5 * rng.normal(size=(N_TOYS, 5))
    cost = (
        UnbinnedNLL(lambda x, mu: norm.pdf(x, mu, 1.0))
        + BinnedNLL(lambda x, mu: norm.cdf(x, mu, 1.0), edges)
        + UnbinnedNLL(lambda x, mu: norm.pdf(x, mu, 1.0))
        + PoissonNLL(expected)
        + LeastSquares(line)
        + NormalConstraint("a", 1.0, 0.3)
        + NormalConstraint("b", 2.0, 0.5)
    )
    measured = rng.normal(1.0, 0.3, (N_TOYS, 1))
    data = (events[0], histograms, events[1], counts, (x, y, np.full(5, 0.5)), measured, None)
    truth = {"mu": 1.0, "b": 2.0, "a": 1.0}
    return Study(cost, Recorded(cost.names, data), truth, start={"mu": 0.5, "b": 1.0, "a": 0.0}, name="everything")


def test_a_sum_of_all_kinds(everything, chunks_of_8, tmp_path, monkeypatch):
    """Its file holds what was thrown, each array once, and refitting it gives the fits that it holds."""
    out = tmp_path / "toys.h5"
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(everything, out, OPTIONS)
    report = run(everything, out, dataclasses.replace(OPTIONS, resume=True, validate=5))
    assert report.n_resumed == CHUNK and report.validation.agrees.all() and report.result.valid.all()
    assert report.fitted.startswith("UnbinnedNLL of ") and report.fitted.endswith(
        "events + PoissonNLL of 6 bins + LeastSquares of 5 points + NormalConstraint of 1 value"
        " + NormalConstraint of 1 value"
    )
    thrown = everything.sampler.data
    fits = fit_batch(everything.cost, thrown, everything.start, backend="numba")
    stored = toys.load_data(out)
    again = fit_batch(everything.cost, stored, everything.start, backend="numba")
    for field in dataclasses.fields(FitResult):
        for result in (again, toys.load(out)) if field.name != "problem" else ():
            np.testing.assert_array_equal(getattr(result, field.name), getattr(fits, field.name), err_msg=field.name)
    for entry, events in ((stored[0], thrown[0]), (stored[2], thrown[2])):
        np.testing.assert_array_equal(entry.values, events.values)
        np.testing.assert_array_equal(entry.offsets, events.offsets)
    np.testing.assert_array_equal(stored[4][1], thrown[4][1])
    assert storage.load_shared(out).keys() == {"part4/x", "part4/yerror", "part6/measured"}
    some = toys.load_data(out, 9, 12)
    np.testing.assert_array_equal(some[2][1], thrown[2][10])
    np.testing.assert_array_equal(some[3], thrown[3][9:12])
    pulls = fits.pulls(everything.truth)
    # 4 standard errors, and 22 toys have none beyond 4 sigma
    assert np.all(np.abs(pulls.std(axis=0) - 1.0) < 4 / np.sqrt(2 * N_TOYS)) and np.abs(pulls).max() < 4.0


def test_points_in_closed_form(tmp_path, chunks_of_8):
    """Points with errors of their own in each toy, and a parameter that is held."""
    rng = np.random.default_rng(2)
    x, error = rng.random((N_TOYS, 5)), rng.random((N_TOYS, 5)) + 0.5
    y = line(x, 1.0, 2.0) + error * rng.normal(size=x.shape)
    study = Study(LeastSquares(line), Recorded(("a", "b"), (x, y, error)), {"a": 1.0, "b": 2.0}, fixed=["b"])
    report = run(study, tmp_path / "toys.h5", dataclasses.replace(OPTIONS, validate=N_TOYS))
    weight = error**-2
    np.testing.assert_allclose(
        report.result.values[:, 0], ((y - 2.0 * x) * weight).sum(axis=1) / weight.sum(axis=1), rtol=1e-10
    )
    np.testing.assert_array_equal(report.result.values[:, 1], 2.0)
    np.testing.assert_array_equal(report.result.errors[:, 1], 0.0)
    assert report.validation.agrees.all() and np.all(report.validation.difference[:, 1] == 0.0)
    for mine, theirs in zip(toys.load_data(tmp_path / "toys.h5"), (x, y, error), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert storage.read_attributes(tmp_path / "toys.h5")["fixed"] == ["b"]
    with pytest.raises(StorageError, match=r"fixed was .* and is now None"):
        run(dataclasses.replace(study, fixed=()), tmp_path / "toys.h5", dataclasses.replace(OPTIONS, resume=True))


@pytest.mark.parametrize("bad", [np.nan, -1.0])
def test_toys_that_the_cost_cannot_take(tmp_path, bad):
    study = Study(PoissonNLL(expected), Recorded(("b",), np.full((N_TOYS, 6), bad)), {"b": 2.0})
    with pytest.raises(ValueError, match="the sampler throws what the cost cannot take, such as NaN, negative counts"):
        run(study, tmp_path / "toys.h5", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_follows_the_bytes_of_a_toy(everything):
    """Counts, points, events and covariances alike, as far as they differ between toys."""
    compiled = run_module.compile_study(everything, OPTIONS)
    first = take(everything.sampler.data, 0, 1)
    n_numbers = sum(len(first[k][0]) for k in (0, 2)) + 8 + 6 + 5 + 1
    assert compiled.bytes_per_toy == 8 * (n_numbers + 3 * 3)


# --- samplers ----------------------------------------------------------------------------------------------


def test_a_density_without_its_integral_is_refused(tmp_path):
    def spectrum(x, ns, nb):  # norm.pdf reaches beyond the range
        return ns + nb, ns * norm.pdf(x, 2.0, 1.0) + nb / 8.0

    sampler = ExtendedMixture(("ns", "nb"), (Component("ns", norm.ppf, (2.0, 1.0)),))
    wrong = Study(ExtendedUnbinnedNLL(spectrum), sampler, {"ns": 50.0, "nb": 20.0}, observable=(1.0, 9.0))
    with pytest.raises(ValueError, match="integral"):
        run(wrong, tmp_path / "toys.h5", OPTIONS)
    assert not list(tmp_path.glob("toys.h5*"))


def test_sampler_of_your_own(study, tmp_path):
    own = dataclasses.replace(study, sampler=traced_sampler)
    report = run(own, tmp_path / "toys.h5", dataclasses.replace(OPTIONS, n_toys=5))
    data = toys.load_toys(tmp_path / "toys.h5")["values"]
    assert set(np.diff(data.offsets)) <= set(range(20, 40)) and report.result.backend == "numba"
    again = generate(own, 2, seed=3, first=3)
    np.testing.assert_array_equal(again.values, data[3:5].values)


def test_ppf_without_a_numba_form_is_drawn_with_jax(study, tmp_path):
    def ppf(p, mu, sigma):
        return mu + sigma * jnp.vectorize(loop)(p)

    def loop(p):
        return jax.lax.while_loop(lambda x: x > 1.0, lambda x: x - 1.0, 2.0 * p)

    sampler = ExtendedMixture(study.cost.names, (Component("nb", ppf, ("mu", "sigma")),))
    odd = dataclasses.replace(study, sampler=sampler)
    with pytest.raises(NotImplementedError):
        generate(odd, 1, seed=3)
    run(odd, tmp_path / "toys.h5", dataclasses.replace(OPTIONS, n_toys=3))
    data, expected = toys.load_toys(tmp_path / "toys.h5")["values"], generate(odd, 3, seed=3, backend="jax")
    np.testing.assert_array_equal(data.values, expected.values)


@pytest.mark.parametrize(
    "returned, got",
    [
        (lambda x: x, "DynamicJaxprTracer"),
        (lambda x: (x, x[0]), r"shapes \(3,\) and \(\) of float64 and float64"),
        (lambda x: (x[None], 1), r"shapes \(1, 3\) and \(\)"),
        (lambda x: (x, x, 1), "tuple"),
    ],
)
def test_sampler_that_returns_no_toy(study, returned, got):
    wrong = dataclasses.replace(study, sampler=lambda key, theta: returned(jnp.ones(3)))
    with pytest.raises(TypeError, match=rf"a sampler must return \(padded values, n\): .*, got {got}"):
        generate(wrong, 1, seed=3)


def test_sampler_that_does_not_use_its_key(study, tmp_path):
    rng = np.random.default_rng(1)
    wrong = dataclasses.replace(study, sampler=lambda key, theta: (rng.uniform(1.0, 9.0, 400), 400))
    with pytest.raises(ValueError, match=r"does not use its key, so that all toys are the same: draw with jax\.random"):
        run(wrong, tmp_path / "toys.h5", OPTIONS)
    assert not (tmp_path / "toys.h5").exists()
