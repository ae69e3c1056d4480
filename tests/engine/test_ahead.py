"""The process that compiles the fit: started once where it is needed, waited for, and never missed."""

import sys

import numpy as np
import pytest

from engine import UnbinnedNLL, ahead, cpu, fit_batch
from kernels import norm


@pytest.fixture
def cold(tmp_path, monkeypatch):
    """A cache in which nothing is."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("BATCHFIT_CACHE", str(tmp_path))
    monkeypatch.setattr(ahead.numba, "get_num_threads", lambda: 2)
    return tmp_path


def fitted(monkeypatch, one):
    monkeypatch.setattr(cpu, "AHEAD", one)
    toys = np.random.default_rng(1).normal(3.0, 2.0, (5, 200))
    result = fit_batch(UnbinnedNLL(norm.pdf), toys, {"loc": 2.5, "scale": 1.5}, backend="numba")
    np.testing.assert_allclose(result.values[:, 0], toys.mean(axis=1), rtol=1e-9)


def test_it_runs_once_and_is_waited_for(cold, monkeypatch):
    one = ahead.Ahead()
    one.begin()
    process = one.process
    one.begin()
    assert process is not None and one.process is process
    assert not list(cold.glob("fit_*"))
    fitted(monkeypatch, one)
    assert process.returncode == 0 and one.process is None
    assert len(list(cold.glob("fit_*"))) == 1
    one.begin()  # it is on disk
    assert one.process is None


def test_it_may_fail(cold, monkeypatch):
    monkeypatch.setattr(ahead, "_PROGRAM", "raise SystemExit(3)")
    one = ahead.Ahead()
    one.begin()
    fitted(monkeypatch, one)
    assert not list(cold.glob("fit_*"))


def test_it_finds_this_package_first(cold, monkeypatch, tmp_path):
    other = tmp_path / "elsewhere"
    (other / "engine").mkdir(parents=True)
    (other / "engine" / "__init__.py").write_text("raise SystemExit(4)")
    monkeypatch.setenv("PYTHONPATH", str(other))
    monkeypatch.setattr(ahead, "_PROGRAM", "import engine.status")
    one = ahead.Ahead()
    one.begin()
    assert one.process.args[0] == sys.executable
    one.end()
    assert list(cold.glob("fit_*"))


def test_a_single_core_compiles_itself(cold, monkeypatch):
    monkeypatch.setattr(ahead.numba, "get_num_threads", lambda: 1)
    one = ahead.Ahead()
    one.begin()
    assert one.process is None
    fitted(monkeypatch, one)
