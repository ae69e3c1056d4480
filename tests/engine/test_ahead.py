"""The processes that compile the fit: started once where they are needed, waited for, and never missed."""

import sys

import numpy as np
import pytest

from engine import UnbinnedNLL, ahead, cpu, fit_batch, newton_numba
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


@pytest.fixture
def fresh(monkeypatch):
    """newton_numba as in a new process, and the functions that it hands to numba."""
    compiled, handed = newton_numba._compiled, []

    def counted(function, signature):
        machine_code = compiled(function, signature)
        handed.append(machine_code)
        return machine_code

    monkeypatch.setattr(newton_numba, "_compiled", counted)
    cached = newton_numba.loop_of_fit, newton_numba.around_the_loop, newton_numba.fit_toys
    for function in cached:
        function.cache_clear()
    yield handed
    for function in cached:
        function.cache_clear()


def test_both_halves_are_compiled_once_and_waited_for(cold, fresh, monkeypatch):
    one = ahead.Ahead()
    one.begin()
    processes = list(one.processes)
    one.begin()
    assert len(processes) == 2 and one.processes == processes
    assert not list(cold.glob("fit_*"))
    fitted(monkeypatch, one)
    assert [process.returncode for process in processes] == [0, 0] and not one.processes
    assert [sum(function.stats.cache_misses.values()) for function in fresh] == [0, 0]
    assert len(list(cold.glob("fit_*"))) == 1
    one.begin()  # it is on disk
    assert not one.processes


@pytest.mark.parametrize("programs", [["raise SystemExit(3)", "pass"], ["pass", "raise SystemExit(3)"]])
def test_they_may_fail(cold, programs, monkeypatch):
    monkeypatch.setattr(ahead, "_PROGRAMS", programs)
    one = ahead.Ahead()
    one.begin()
    fitted(monkeypatch, one)
    assert not list(cold.glob("fit_*"))


def test_they_find_this_package_first(cold, monkeypatch, tmp_path):
    other = tmp_path / "elsewhere"
    (other / "engine").mkdir(parents=True)
    (other / "engine" / "__init__.py").write_text("raise SystemExit(4)")
    monkeypatch.setenv("PYTHONPATH", str(other))
    monkeypatch.setattr(ahead, "_PROGRAMS", ["import engine.status"])
    one = ahead.Ahead()
    one.begin()
    assert one.processes[0].args[0] == sys.executable
    one.end()
    assert list(cold.glob("fit_*"))


def test_a_single_core_compiles_itself(cold, monkeypatch):
    monkeypatch.setattr(ahead.numba, "get_num_threads", lambda: 1)
    one = ahead.Ahead()
    one.begin()
    assert not one.processes
    fitted(monkeypatch, one)
