"""The run: its file holds what was thrown and fitted, whatever the chunks, stops and errors on the way."""

import dataclasses
import errno
import json
import os
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toys
from engine import BinnedNLL, ExtendedUnbinnedNLL, LeastSquares, NormalConstraint, PoissonNLL, UnbinnedNLL
from engine.data import Ragged
from engine.fit import fit_batch
from engine.result import FitResult
from kernels import expon, norm
from toys import joining, memory, provenance, storage, validation, writer
from toys import run as run_module
from toys.files import StorageError, parts_directory
from toys.models import peak
from toys.run import Options, run, shard_range
from toys.sampling import Component, ExtendedMixture
from toys.study import Study, generate
from toys.tally import calibration
from toys.writer import Writer

N_TOYS = 22
CHUNK = 8  # 22 toys are 3 chunks
OPTIONS = Options(n_toys=N_TOYS, seed=3, backend="numba", device="cpu", validate=0)


@pytest.fixture(scope="module")
def study():
    """The peak with 400 events per toy: quick to fit, and with the kernels that all tests share."""
    return peak().at({"ns": 100.0, "nb": 300.0})


@pytest.fixture
def chunks_of_8(monkeypatch):
    monkeypatch.setattr(memory, "LARGEST_CHUNK", CHUNK)


@pytest.fixture(scope="module")
def whole(study, tmp_path_factory):
    """An uninterrupted run in one chunk, with validation."""
    path = tmp_path_factory.mktemp("whole") / "toys.h5"
    report = run(study, path, dataclasses.replace(OPTIONS, validate=5))
    return path, report


def contents(path):
    """All arrays of a file by name."""
    file = storage.load_toys(path)["values"]
    arrays = {"toys/values": file.values, "toys/offsets": file.offsets}
    return arrays | {f"results/{k}": np.asarray(v) for k, v in vars(storage.load(path)).items()}


def assert_same_contents(left, right):
    left, right = contents(left), contents(right)
    assert left.keys() == right.keys()
    for name, array in left.items():
        np.testing.assert_array_equal(array, right[name], err_msg=name)
        assert array.dtype == right[name].dtype


def stop_after(monkeypatch, n_parts, error):
    """Let a run, which writes one part at a time, fail once it has written so many."""
    monkeypatch.setattr(writer, "AT_ONCE", 1)
    write_part = storage.write_part
    written = []

    def writing(*arguments):
        if len(written) == n_parts:
            raise error
        written.append(write_part(*arguments))

    monkeypatch.setattr(storage, "write_part", writing)


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


def decay(t, n, tau):
    return n, n * expon.pdf(t, 0.0, tau)


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


# --- stops and errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["advance", "write_part"])
def test_interrupted_and_resumed_run_equals_the_whole(study, whole, chunks_of_8, tmp_path, monkeypatch, place):
    out = tmp_path / "toys.h5"
    n_fitted = 0

    def interrupt(n):
        nonlocal n_fitted
        n_fitted += n
        if n_fitted > 2 * CHUNK + 1:  # 1 for the compilation
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if place == "write_part":
            stop_after(patch, 2, KeyboardInterrupt())
            interrupt = None
        with pytest.raises(KeyboardInterrupt):
            run(study, out, OPTIONS, advance=interrupt or (lambda n: None))
    assert not out.exists()
    assert [(first, stop) for first, stop, _ in storage.complete_parts(out)] == [(0, 8), (8, 16)]
    with pytest.raises(StorageError, match="unfinished run: pass --resume to continue it"):
        run(study, out, OPTIONS)
    before = {part: part.stat().st_mtime_ns for _, _, part in storage.complete_parts(out)}
    fitted = []
    monkeypatch.setattr(
        run_module, "generate", lambda *arguments: fitted.append(arguments[1:4]) or generate(*arguments)
    )
    report = run(study, out, dataclasses.replace(OPTIONS, resume=True, validate=5))
    assert len(before) == 2 and report.n_resumed == 2 * CHUNK
    # the toys that were missing, and no others
    assert fitted == [(6, 3, 16)]
    assert_same_contents(out, whole[0])
    for name, array in report.validation._asdict().items():
        np.testing.assert_array_equal(array, getattr(whole[1].validation, name), err_msg=name)
    assert [file.name for file in tmp_path.iterdir()] == ["toys.h5"]


def test_resume_fills_a_gap_in_the_middle(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "join", lambda *arguments, **options: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            run(study, out, OPTIONS)
    storage.complete_parts(out)[1][2].unlink()
    assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == N_TOYS - CHUNK
    assert_same_contents(out, whole[0])


def test_resume_with_nothing_there_starts(study, whole, tmp_path):
    out = tmp_path / "toys.h5"
    assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == 0
    assert_same_contents(out, whole[0])


def test_resume_of_a_complete_file_returns_it(study, whole, monkeypatch):
    path, report = whole
    before = path.read_bytes()
    parts_directory(path).mkdir()  # killed between its last two steps
    again = run(study, path, dataclasses.replace(OPTIONS, resume=True, command_line="another"))
    assert again.n_resumed == N_TOYS and path.read_bytes() == before
    np.testing.assert_array_equal(again.result.values, report.result.values)
    np.testing.assert_array_equal(again.validation.values, report.validation.values)
    assert again.validation.agrees.all()
    assert [file.name for file in path.parent.iterdir()] == ["toys.h5"]


OTHERS = [
    ({"seed": 4}, {}, r"seed was 3 and is now 4\. Name another output, or pass --overwrite"),
    ({"n_toys": 21}, {}, "n_toys was 22 and is now 21"),
    ({"source": "x = 1\n" * 20}, {}, "source differs"),
    ({}, {"name": "other"}, "model was peak and is now other"),
    ({}, {"limits": {}}, r"limits of ns was \[0.0, None\] and is now None; .*; 1 more of limits\. Name"),
    ({}, {"start": {"ns": 90.0, "nb": 300.0, "mu": 5.0, "sigma": 0.5, "lam": 4.0}}, r"start of ns was .*is now 90.0\."),
    # the same values in another order
    ({}, {"limits": dict(reversed(peak().limits.items()))}, "limits differs"),
]


@pytest.mark.parametrize("options, changes, words", OTHERS)
def test_another_run_is_not_continued(study, whole, options, changes, words):
    path, _ = whole
    before = path.read_bytes()
    other = dataclasses.replace(study, **changes)
    with pytest.raises(StorageError, match=f"toys.h5 belongs to another run: .*{words}"):
        run(other, path, dataclasses.replace(OPTIONS, resume=True, **options))
    assert path.read_bytes() == before


def test_parts_of_another_run_are_not_continued(study, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, OPTIONS)
    for options, words in [({"seed": 4}, "seed was 3 and is now 4"), ({"n_toys": 9}, "n_toys was 22 and is now 9")]:
        with pytest.raises(StorageError, match=f"toys_0000000000-0000000008.h5 belongs to another run: {words}"):
            run(study, out, dataclasses.replace(OPTIONS, resume=True, **options))
    monkeypatch.setattr(memory, "LARGEST_CHUNK", 4)
    with pytest.raises(StorageError, match="chunk was 8 and is now 4"):
        run(study, out, dataclasses.replace(OPTIONS, resume=True))
    assert [(first, stop) for first, stop, _ in storage.complete_parts(out)] == [(0, 8)]


def test_overwrite_replaces_at_the_end_and_can_be_resumed(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    run(study, out, dataclasses.replace(OPTIONS, n_toys=3))
    old = out.read_bytes()
    with pytest.raises(StorageError, match="exists: pass --overwrite to replace it"):
        run(study, out, OPTIONS)
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, dataclasses.replace(OPTIONS, overwrite=True))
    assert out.read_bytes() == old
    # the old file is complete itself, and whoever wants it gets it
    assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == CHUNK
    assert_same_contents(out, whole[0])
    run(study, out, dataclasses.replace(OPTIONS, overwrite=True, n_toys=3))
    assert len(storage.load(out)) == 3


def test_disk_that_fills_up_loses_nothing(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    with monkeypatch.context() as patch:
        stop_after(patch, 1, StorageError("its disk is full"))
        with pytest.raises(StorageError, match="its disk is full"):
            run(study, out, OPTIONS)
    assert [(first, stop) for first, stop, _ in storage.complete_parts(out)] == [(0, 8)]
    assert not out.exists() and not out.with_name("toys.h5.lock").exists()
    run(study, out, dataclasses.replace(OPTIONS, resume=True))
    assert_same_contents(out, whole[0])


def test_final_file_that_another_program_wrote_meanwhile_is_kept(study, whole, chunks_of_8, tmp_path):
    out = tmp_path / "toys.h5"
    with pytest.raises(StorageError, match="was changed by another program meanwhile: move it, then continue"):
        run(study, out, OPTIONS, phase=lambda name, total: out.write_bytes(b"mine") if name == "join" else None)
    assert out.read_bytes() == b"mine" and len(storage.complete_parts(out)) == 3
    out.unlink()
    assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == N_TOYS
    assert_same_contents(out, whole[0])


@pytest.mark.parametrize("what", ["directory", "parts"])
def test_directory_that_is_removed_meanwhile(study, whole, chunks_of_8, tmp_path, what):
    out = tmp_path / "here" / "toys.h5"
    out.parent.mkdir()

    def remove(name, total):
        if name == "join":
            shutil.rmtree(out.parent if what == "directory" else parts_directory(out))

    with pytest.raises(StorageError, match=r"toys 0 to 21 of .* are missing: continue with --resume"):
        run(study, out, OPTIONS, phase=remove)
    out.parent.mkdir(exist_ok=True)
    run(study, out, dataclasses.replace(OPTIONS, resume=True))
    assert_same_contents(out, whole[0])


def test_final_file_grows_while_the_run_lasts(study, whole, chunks_of_8, tmp_path, monkeypatch):
    """No part is read again, but for those that a stopped run left."""
    out, read = tmp_path / "toys.h5", []
    add_file = joining._Joined.add_file
    monkeypatch.setattr(joining, "join_files", None)
    monkeypatch.setattr(
        joining._Joined, "add_file", lambda *arguments: read.append(arguments[1:3]) or add_file(*arguments)
    )
    run(study, out, OPTIONS)
    assert_same_contents(out, whole[0])
    assert read == []
    out.unlink()
    with monkeypatch.context() as patch:
        stop_after(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, OPTIONS)
    storage.complete_parts(out)[0][2].unlink()
    run(study, out, dataclasses.replace(OPTIONS, resume=True))
    assert_same_contents(out, whole[0])
    assert read == [(8, 16)]


def test_final_file_that_could_not_grow_is_joined(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out, tried = tmp_path / "toys.h5", []

    def fail(joined, part, source):
        tried.append(part.first)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(joining._Joined, "add_part", fail)
    run(study, out, OPTIONS)
    assert tried == [0]
    assert_same_contents(out, whole[0])
    assert [file.name for file in tmp_path.iterdir()] == ["toys.h5"]


# --- extending ---------------------------------------------------------------------------------------------

EXTEND = dataclasses.replace(OPTIONS, extend=True, validate=5)


def never(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("n_before", [3, 8, 19])
def test_extended_run_equals_the_whole(study, whole, chunks_of_8, tmp_path, monkeypatch, n_before):
    out = tmp_path / "toys.h5"
    run(study, out, dataclasses.replace(OPTIONS, n_toys=n_before))
    before = out.read_bytes()
    with monkeypatch.context() as patch:  # stopped while it throws
        stop_after(patch, 1, KeyboardInterrupt())
        patch.setattr(storage, "join", never)
        with pytest.raises(KeyboardInterrupt):
            run(study, out, EXTEND)
    with monkeypatch.context() as patch:  # and while it joins
        patch.setattr(storage, "join", never)
        with pytest.raises(KeyboardInterrupt):
            run(study, out, EXTEND)
    assert out.read_bytes() == before
    report = run(study, out, EXTEND)
    assert report.n_resumed == N_TOYS and report.tally.n_toys == N_TOYS
    assert_same_contents(out, whole[0])
    for name, array in report.validation._asdict().items():
        np.testing.assert_array_equal(array, getattr(whole[1].validation, name), err_msg=name)
    assert storage.read_attributes(out)["n_toys"] == N_TOYS
    assert [file.name for file in tmp_path.iterdir()] == ["toys.h5"]


def test_extension_may_be_resumed_as_any_run(study, whole, chunks_of_8, tmp_path, monkeypatch):
    out = tmp_path / "toys.h5"
    run(study, out, dataclasses.replace(OPTIONS, n_toys=10))
    with monkeypatch.context() as patch:
        stop_after(patch, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            run(study, out, EXTEND)
    assert [part[:2] for part in storage.complete_parts(out)] == [(10, 16)]
    # once, not of each part
    other = provenance.versions() | {"numpy": "0.1"}
    monkeypatch.setattr(provenance, "versions", lambda: other)
    with pytest.warns(UserWarning, match=r"was made with numpy .* \(here 0.1\): toys may differ by rounding") as told:
        assert run(study, out, dataclasses.replace(OPTIONS, resume=True)).n_resumed == 16
    assert len(told) == 1
    assert json.loads(storage.read_attributes(out)["versions"])["numpy"] == np.__version__
    assert_same_contents(out, whole[0])


def test_nothing_to_add(study, whole):
    path, _ = whole
    before = path.read_bytes()
    for n_toys in (N_TOYS, 5):
        report = run(study, path, dataclasses.replace(EXTEND, n_toys=n_toys))
        assert report.nothing_to_add and report.tally.n_toys == N_TOYS and report.validation.agrees.all()
    assert path.read_bytes() == before


def test_what_cannot_be_extended(study, whole, tmp_path):
    path, _ = whole
    before = path.read_bytes()
    more = dataclasses.replace(EXTEND, n_toys=30)
    with pytest.raises(StorageError, match=r"another run: seed was 3 and is now 4\. Name"):
        run(study, path, dataclasses.replace(more, seed=4))
    with pytest.raises(StorageError, match=r"another run: minos was None and is now True\. Name"):
        run(study, path, dataclasses.replace(more, minos=True))
    with pytest.raises(StorageError, match="does not exist: leave out --extend"):
        run(study, tmp_path / "toys.h5", more)
    with pytest.raises(ValueError, match="overwrite and extend exclude each other"):
        run(study, path, dataclasses.replace(more, overwrite=True))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == []


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


# --- memory ------------------------------------------------------------------------------------------------


def out_of_memory(kind):
    return MemoryError() if kind == "host" else jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


@pytest.mark.parametrize("kind, minos", [("host", False), ("device", True)])
def test_smaller_batches_once_memory_has_run_out(study, whole, tmp_path, monkeypatch, kind, minos):
    sizes, done = [], []

    def hungry(cost, data, *arguments, **options):
        sizes.append(len(data))
        if len(data) > 6:
            options["progress"](len(data) // 2)
            raise out_of_memory(kind)
        return fit_batch(cost, data, *arguments, **options)

    monkeypatch.setattr("toys.study.fit_batch", hungry)
    options = dataclasses.replace(OPTIONS, chunk=16, minos=minos)
    with pytest.warns(UserWarning, match="memory ran out with 16 toys fitted together: the run goes on") as told:
        report = run(study, tmp_path / "toys.h5", options, advance=done.append)
    # the first toy, attempts with 16, 8 and 4 toys, and the last 6 toys in such pieces
    assert sizes == [1, 16, 8, *[4] * 4, 4, 2] and len(told) == 1
    # of the phases before and after, one each
    assert sum(done) == N_TOYS + 2
    assert_same_contents(tmp_path / "toys.h5", whole[0])
    if minos:
        data = generate(study, N_TOYS, seed=3)
        expected = fit_batch(study.cost, data, study.start, limits=study.limits, backend="numba").minos()
        np.testing.assert_array_equal(report.minos.lower, expected.lower)


def test_no_memory_for_a_single_toy(study, tmp_path, monkeypatch):
    def hungry(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr("toys.study.fit_batch", hungry)
    with pytest.raises(ValueError, match="no memory for the fit of a single toy"):
        run(study, tmp_path / "toys.h5", OPTIONS)


def test_memory_is_planned(study, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 300_000)
    with pytest.raises(ValueError, match=r"22 toys at once need .* kB of memory and 300 kB are free: pass --chunk 8"):
        run(study, tmp_path / "toys.h5", OPTIONS)
    assert list(tmp_path.iterdir()) == []
    run(study, tmp_path / "toys.h5", dataclasses.replace(OPTIONS, chunk=8))
    with pytest.raises(ValueError, match="not even one toy fits"):
        memory.check(4, 10**6, "cpu")
    monkeypatch.setattr(memory, "free_bytes", lambda: None)
    memory.check(10**6, 10**12, "cpu")


def test_limits_of_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    (tmp_path / "meminfo").write_text("MemTotal:       1000 kB\nMemAvailable:    600 kB\n")
    assert memory.free_bytes() == 600 * 1024
    for name, text in (("max", "500000"), ("current", "450000"), ("stat", "anon 1\ninactive_file 20000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    assert memory.free_bytes() == 70_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes() == 600 * 1024
    (tmp_path / "meminfo").unlink()
    assert memory.free_bytes() > 2**20


class Device:
    """An accelerator, of which the memory alone is known."""

    platform = "gpu"

    def memory_stats(self):
        return {"bytes_limit": 3000, "bytes_in_use": 1000}


def test_memory_of_an_accelerator(monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda platform: [Device()])
    memory.check(8, 2000, "gpu")
    with pytest.raises(ValueError, match=r"1 toys at once need 2.5 kB of memory of the gpu and 2 kB are free"):
        memory.check(8, 2500, "gpu")


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


def test_wrong_start_leaves_nothing_behind(study, tmp_path):
    wrong = study.at({}, {**study.start, "ns": -1.0})
    with pytest.raises(ValueError, match="the start ns = -1 of toy 0 is outside of its limits"):
        run(wrong, tmp_path / "toys.h5", OPTIONS)
    assert list(tmp_path.iterdir()) == []


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


def traced_sampler(key, theta):
    """The peak, badly: a uniform number of events without a background."""
    n_key, x_key = jax.random.split(key)
    n = jax.random.randint(n_key, (), 20, 40)
    return theta[2] + theta[3] * jax.random.truncated_normal(x_key, -4.0, 4.0, (40,), jnp.float64), n


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


def test_study_checks_its_parameters(study):
    with pytest.raises(ValueError, match=r"truth names 'sigm', .*: did you mean 'sigma'"):
        study.at({"sigm": 1.0})
    with pytest.raises(ValueError, match=r"start must have a value for each of ns, nb, mu, sigma, lam, got {'ns': 1}"):
        dataclasses.replace(study, start={"ns": 1})
    with pytest.raises(ValueError, match=r"truth must hold numbers, got {'n': 'many', 'tau': 1}"):
        Study(ExtendedUnbinnedNLL(decay), traced_sampler, {"n": "many", "tau": 1})
    for changes, words in [
        ({"limits": {"sigm": (0, 1)}}, "limits names 'sigm', .*: did you mean 'sigma'"),
        ({"fixed": ["lamb"]}, "fixed names 'lamb', .*: did you mean 'lam'"),
    ]:
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(study, **changes)
    with pytest.raises(TypeError, match=r"cost must be a cost such as ExtendedUnbinnedNLL\(model\), got function"):
        dataclasses.replace(study, cost=decay)
    with pytest.raises(TypeError, match=r"sampler must be a function sampler\(key, theta\), got NoneType"):
        dataclasses.replace(study, sampler=None)
    assert isinstance(generate(study, 0, seed=1), Ragged)


def test_toys_of_another_model(study):
    """The parameters of the sampler are not those of the fit."""
    other = ExtendedMixture(("mu", "n", "tau"), (Component("n", expon.ppf, ("mu", "tau")),))
    truth = {"n": 50.0, "tau": 2.0, "mu": 0.0}
    with pytest.raises(
        ValueError, match=r"start must be given: the truth .* has no value for ns, nb, sigma, lam of the"
    ):
        Study(study.cost, other, truth)
    with pytest.raises(ValueError, match="truth must have a value for each of mu, n, tau"):
        dataclasses.replace(study, sampler=other)
    bias = dataclasses.replace(study, sampler=other, truth=truth)
    np.testing.assert_array_equal(bias.theta, [0.0, 50.0, 2.0])
    assert bias.start == study.start
    moved = bias.at({"mu": 4.0, "tau": 3.0})
    # the fit starts at the new truth where it has the parameter
    assert moved.truth == truth | {"mu": 4.0, "tau": 3.0} and moved.start == study.start | {"mu": 4.0}
    # and nowhere else, nor where it holds it
    far = dataclasses.replace(study, start=study.start | {"nb": 900.0, "sigma": 0.6}, fixed=("sigma",))
    assert far.at({"ns": 50.0, "sigma": 0.4}).start == far.start | {"ns": 50.0}
    assert generate(moved, 3, seed=1).values.min() >= 4.0
    with pytest.raises(ValueError, match="truth names 'lam', but the parameters are mu, n, tau"):
        bias.at({"lam": 1.0})


def test_threads_take_turns_as_before_when_the_last_of_several_runs_has_ended():
    before, turns = sys.getswitchinterval(), run_module._QuickTurns()
    with turns:
        turns.__enter__()
        assert sys.getswitchinterval() == pytest.approx(run_module.SWITCH_INTERVAL)
    assert sys.getswitchinterval() == pytest.approx(run_module.SWITCH_INTERVAL)
    turns.__exit__()
    assert sys.getswitchinterval() == pytest.approx(before)
