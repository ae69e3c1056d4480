"""The run: its file holds what was thrown and fitted, whatever the chunks."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toys
from engine import ExtendedUnbinnedNLL, PoissonNLL, Status, UnbinnedNLL
from engine.fit import fit_batch
from engine.result import FitResult
from engine.xla import XlaDriver
from kernels import expon
from tests.toys.small_runs import CHUNK, N_TOYS, OPTIONS, assert_same_contents, decay, stop_after
from toys import memory, storage, validation
from toys import run as run_module
from toys.files import StorageError
from toys.options import shard_range
from toys.run import Options, run
from toys.sampling import Component, ExtendedMixture, Mixture
from toys.study import Study, generate
from toys.tally import calibration
from toys.writer import Writer

# --- what is in the file -----------------------------------------------------------------------------------


def test_file_holds_the_toys_and_their_fits(study, whole):
    path, report = whole
    data = generate(study, N_TOYS, seed=3)
    stored = toys.load_toys(path)["values"]
    np.testing.assert_array_equal(stored.offsets, data.offsets)
    np.testing.assert_array_equal(stored.values, data.values)
    fits = fit_batch(study.cost, data, study.start, limits=study.limits, backend="numba")
    for result in (toys.load(path), report.result):
        assert len(result) == N_TOYS and result.valid.all()
        for field in dataclasses.fields(FitResult):
            if field.name == "problem":
                continue  # not stored
            np.testing.assert_array_equal(getattr(result, field.name), getattr(fits, field.name), err_msg=field.name)
    np.testing.assert_array_equal(toys.load_toys(path, 4, 6)["values"][1], data[5])
    assert [file.name for file in path.parent.iterdir()] == ["toys.h5"]


def test_attributes_tell_how_the_file_was_made(study, whole):
    attributes = storage.read_attributes(whole[0])
    assert (attributes["model"], attributes["seed"], attributes["n_toys"]) == ("peak", 3, N_TOYS)
    assert json.loads(attributes["truth"]) == study.truth and study.truth["ns"] == 100.0
    assert json.loads(attributes["start"]) == study.truth
    assert json.loads(attributes["limits"]) == {name: [0.0, None] for name in ("ns", "nb", "sigma", "lam")}
    assert attributes["names"] == ["ns", "nb", "mu", "sigma", "lam"] and attributes["errordef"] == 0.5
    assert (attributes["backend"], attributes["device"], attributes["precision"]) == ("numba", "cpu", "float64")
    assert json.loads(attributes["versions"])["jax"] == jax.__version__


def test_intervals(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out, options = tmp_path / "toys.h5", dataclasses.replace(OPTIONS, minos=True)
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, options)
    with pytest.raises(StorageError, match="another run: minos was True and is now None"):
        run(study, out, dataclasses.replace(OPTIONS, resume=True))
    report = run(study, out, dataclasses.replace(options, resume=True))
    assert report.n_resumed == 2 * CHUNK
    assert_same_contents(out, whole[0])
    data = generate(study, N_TOYS, seed=3)
    expected = fit_batch(study.cost, data, study.start, limits=study.limits, backend="numba").minos()
    for found in (report.minos, toys.load_minos(out)):
        assert found.names == study.cost.names and found.valid.all()
        np.testing.assert_array_equal(found.lower, expected.lower)
        np.testing.assert_array_equal(found.upper, expected.upper)
    assert toys.load_minos(whole[0]) is None and whole[1].minos is None


def test_validation_rows(study, whole):
    path, report = whole
    stored = storage.read_validation(path)
    np.testing.assert_array_equal(stored["toy"], [0, 5, 10, 15, 21])
    for name, array in report.validation._asdict().items():
        np.testing.assert_array_equal(stored[name], array, err_msg=name)
    assert stored["valid"].all() and stored["agrees"].all()
    # MIGRAD was given these toys and not others: they agree far better than two toys do
    result = storage.load(path)[stored["toy"]]
    np.testing.assert_array_equal(stored["difference"], (result.values - stored["values"]) / result.errors)
    assert 0 < np.abs(stored["difference"]).max() == report.validation.worst < 1e-3
    np.testing.assert_allclose(stored["fval"], result.fval, rtol=1e-9)
    np.testing.assert_allclose(stored["errors"], result.errors, rtol=0.05)


@pytest.mark.parametrize("busy, told", [(True, [5]), (False, [0, 1, 1, 1, 1, 1])])
def test_migrad_fits_while_the_disk_is_busy(study, whole, monkeypatch, tmp_path, busy, told):
    monkeypatch.setattr(memory, "LARGEST_CHUNK", 4)  # 22 toys are 6 chunks, with toys 0, 5, 10, 15 and 21 of five
    monkeypatch.setattr(Writer, "busy", busy)
    monkeypatch.setattr(validation.Refits, "ready", property(lambda refits: bool(refits.waiting)))
    read, sample = [], validation._read
    monkeypatch.setattr(validation, "_read", lambda *given: read.append(given[-1].tolist()) or sample(*given))
    steps, events = [], []
    report = run(
        study,
        tmp_path / "toys.h5",
        dataclasses.replace(OPTIONS, validate=5),
        phase=lambda name, total: (events.append(name), steps.append([])),
        advance=lambda n: steps[-1].append(n),
    )
    np.testing.assert_array_equal(report.validation.toy, [0, 5, 10, 15, 21])
    for name, array in whole[1].validation._asdict().items():
        np.testing.assert_allclose(getattr(report.validation, name), array, atol=1e-9, err_msg=name)
    assert steps[events.index("validate")] == told
    assert read == ([] if busy else [[21]])  # as many wait as there are in a chunk


@pytest.fixture(scope="module")
def lifetime():
    """Exponential decays, extended: the estimates are the number of events and their mean."""
    names = ("n", "tau")
    return Study(
        cost=ExtendedUnbinnedNLL(decay),
        sampler=ExtendedMixture(names, (Component("n", expon.ppf, (0.0, "tau")),)),
        truth={"n": np.float32(50), "tau": 2},
        start={"n": 40, "tau": 1.5},
        limits={"n": (0, None), "tau": (np.float64(1e-3), None)},
    )


@pytest.mark.parametrize("backend, n_toys", [("numba", 64), ("jax", 8)])
def test_a_fit_with_a_closed_form(lifetime, tmp_path, backend, n_toys):
    options = dataclasses.replace(OPTIONS, n_toys=n_toys, validate=n_toys, backend=backend)
    report = run(lifetime, tmp_path / "toys.h5", options)
    assert report.result.backend == backend
    data = toys.load_toys(tmp_path / "toys.h5")["values"]
    same = generate(lifetime, n_toys, seed=3, backend="numba")
    np.testing.assert_array_equal(data.offsets, same.offsets)
    np.testing.assert_allclose(data.values, same.values, rtol=0, atol=1e-12)
    lengths, means = np.diff(data.offsets), np.array([data[k].mean() for k in range(n_toys)])
    expected, errors = np.transpose([lengths, means]), np.transpose([lengths**0.5, means / lengths**0.5])
    assert np.all(np.abs(report.result.values - expected) < 1e-6 * errors)
    np.testing.assert_allclose(report.result.errors, errors, rtol=1e-3)
    # 4 standard errors
    assert abs(lengths.mean() - 50.0) < 4 * np.sqrt(50 / n_toys)
    assert abs(data.values.mean() - 2.0) < 4 * 2.0 / np.sqrt(n_toys * 50)
    np.testing.assert_array_equal(report.validation.toy, np.arange(n_toys))
    assert report.validation.agrees.all()


def test_jax_gives_the_same_toys_as_numba(study, whole):
    mine, theirs = storage.load_toys(whole[0])["values"], generate(study, N_TOYS, seed=3, backend="jax")
    np.testing.assert_array_equal(mine.offsets, theirs.offsets)
    np.testing.assert_allclose(mine.values, theirs.values, rtol=0, atol=8e-12)  # 1e-12 of the range


# --- chunks ------------------------------------------------------------------------------------------------


def test_chunks_are_irrelevant(study, whole, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    # 400 events of 8 bytes: 4 toys in 16 kB
    monkeypatch.setattr(memory, "CHUNK_BYTES", 16_000)
    parts = []
    write_part = storage.write_part
    monkeypatch.setattr(storage, "write_part", lambda *arguments: parts.append(write_part(*arguments)))
    run(study, out, OPTIONS)
    assert [part.name[5:26] for part in sorted(parts)[:2]] == ["0000000000-0000000004", "0000000004-0000000008"]
    assert len(parts) == 6
    assert_same_contents(out, whole[0])


@pytest.mark.parametrize("bytes_per_toy, chunk", [(1, 8192), (2**20, 32), (124_000, 256), (2**26, 1), (2**30, 1)])
def test_a_chunk_is_a_power_of_two_of_32_mib(bytes_per_toy, chunk):
    assert run_module._chunk(bytes_per_toy) == chunk


def test_phases(study, chunks_of_8, tmp_path):
    told, done = [], []
    options = dataclasses.replace(OPTIONS, validate=2)

    def phase(name, total):
        told.append((name, total))
        done.append(0)

    def advance(n):
        done[-1] += n

    report = run(study, tmp_path / "toys.h5", options, phase=phase, advance=advance)
    assert told == [("compile", 1), ("fit", N_TOYS), ("validate", 2), ("join", 1)]
    assert done == [1, N_TOYS, 2, 1]
    assert {"compile", "generate", "fit", "write", "validate", "join"} <= report.times.keys()


# --- shards ------------------------------------------------------------------------------------------------


def test_shards_are_whole_chunks_of_the_run(study, whole, chunks_of_8, tmp_path):
    assert [shard_range(N_TOYS, CHUNK, i, 2) for i in (1, 2)] == [(0, 8), (8, 22)]
    assert [shard_range(100, 8, i, 5) for i in range(1, 6)] == [(0, 16), (16, 40), (40, 56), (56, 80), (80, 100)]
    with pytest.raises(ValueError, match="22 toys are 3 chunks of 8: ask for at most 3 shards, not 4"):
        shard_range(N_TOYS, CHUNK, 1, 4)
    with pytest.raises(ValueError, match="1 <= i <= n, got 3 of 2"):
        dataclasses.replace(OPTIONS, shard=(3, 2))
    files = []
    for i in (1, 2):
        out = tmp_path / f"{i}.h5"
        report = run(study, out, dataclasses.replace(OPTIONS, shard=(i, 2), validate=5))
        files.append((*shard_range(N_TOYS, CHUNK, i, 2), out))
        attributes = storage.read_attributes(out)
        assert (attributes["first"], attributes["stop"], attributes["shard"]) == (*files[-1][:2], f"{i}/2")
        assert report.tally.n_toys == files[-1][1] - files[-1][0]
        np.testing.assert_array_equal(report.validation.toy, [[0, 5], [10, 15, 21]][i - 1])
        again = run(study, out, dataclasses.replace(OPTIONS, shard=(i, 2), resume=True))
        assert again.n_resumed == report.tally.n_toys
    storage.join_files(tmp_path / "toys.h5", files, {})
    assert_same_contents(tmp_path / "toys.h5", whole[0])


def test_tally_of_blocks_is_that_of_all_toys(study, whole, monkeypatch):
    path, report = whole
    monkeypatch.setattr(storage, "BLOCK_TOYS", 5)
    tally = run(study, path, dataclasses.replace(OPTIONS, resume=True)).tally
    counts = report.result.summary()
    assert (tally.n_toys, tally.n_valid, tally.n_at_limit) == (N_TOYS, counts.n_valid, counts.n_at_limit)
    for mine, theirs in zip(tally.calibration, calibration(report.result, study.truth), strict=True):
        assert mine[:2] == theirs[:2]
        np.testing.assert_allclose(mine[2:], theirs[2:], rtol=1e-11)


@pytest.mark.parametrize("n_toys", [0, -1, 2**32 + 1])
def test_number_of_toys(study, tmp_path, n_toys):
    with pytest.raises(ValueError, match=f"must lie in 1 to 2\\^32, got {n_toys}"):
        run(study, tmp_path / "toys.h5", dataclasses.replace(OPTIONS, n_toys=n_toys))
    assert list(tmp_path.iterdir()) == []


def test_a_first_toy_that_cannot_be_fitted_stops_no_run(tmp_path):
    def sampler(key, theta):
        counts = jax.random.poisson(key, theta[0], (3,)).astype(float)
        return jnp.where(jax.random.uniform(key) < 0.5, jnp.nan, counts)

    cost = PoissonNLL(lambda mu: mu * jnp.ones(3))
    bad = Study(cost, sampler, {"mu": 30.0})
    is_bad = [cost.rows(generate(bad, 16, seed)).bad for seed in range(6)]
    seed = next(seed for seed in range(6) if is_bad[seed][0])
    report = run(bad, tmp_path / "toys.h5", Options(n_toys=16, seed=seed, backend="numba", device="cpu", validate=0))
    assert report.tally.failed == {Status.BAD_DATA: is_bad[seed].sum()} and report.tally.n_valid > 0


def test_a_run_steps_as_many_toys_together_as_its_first_fit(tmp_path, monkeypatch):
    def slow(x, lam):  # without a numba form
        return jax.lax.while_loop(lambda s: s[0] < 1, lambda s: (s[0] + 1, s[1]), (0, expon.pdf(x, 0.0, lam)))[1]

    cost, lanes = UnbinnedNLL(slow), []
    study = Study(cost, Mixture(("lam",), 40, (Component(None, expon.ppf, (0.0, "lam")),)), {"lam": 1.0})
    init = XlaDriver.__init__
    monkeypatch.setattr(
        XlaDriver, "__init__", lambda self, *args, **kwargs: (init(self, *args, **kwargs), lanes.append(self.lanes))[0]
    )
    with pytest.warns(UserWarning, match="no numba form"):
        run(study, tmp_path / "toys.h5", Options(n_toys=30, seed=1, device="cpu", validate=0))
    assert len(lanes) == 2 and lanes[0] == lanes[1] < 30


def test_stored_validation_stays_where_none_is_asked_for(study, tmp_path):
    out, options = tmp_path / "toys.h5", Options(n_toys=8, seed=5, validate=2, backend="numba", device="cpu")
    run(study, out, options)
    report = run(study, out, dataclasses.replace(options, n_toys=12, validate=0, extend=True))
    assert report.validation.agrees.all() and storage.read_validation(out)["toy"].tolist() == [0, 7]


def test_wrong_start_leaves_nothing_behind(study, tmp_path):
    wrong = study.at({}, {**study.start, "ns": -1.0})
    with pytest.raises(ValueError, match="the start ns = -1 of toy 0 is outside of its limits"):
        run(wrong, tmp_path / "toys.h5", OPTIONS)
    assert list(tmp_path.iterdir()) == []


def test_threads_take_turns_as_before_when_the_last_of_several_runs_has_ended():
    before, turns = sys.getswitchinterval(), run_module._QuickTurns()
    with turns:
        turns.__enter__()
        assert sys.getswitchinterval() == pytest.approx(run_module.SWITCH_INTERVAL)
    assert sys.getswitchinterval() == pytest.approx(run_module.SWITCH_INTERVAL)
    turns.__exit__()
    assert sys.getswitchinterval() == pytest.approx(before)
