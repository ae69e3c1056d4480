"""Memory: planned before a run, and what happens where it ends all the same."""

import dataclasses

import jax
import numpy as np
import pytest

from engine.fit import fit_batch
from tests.toys.small_runs import N_TOYS, OPTIONS, assert_same_contents
from toys import memory
from toys.run import run
from toys.study import generate


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
