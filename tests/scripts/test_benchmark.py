"""The benchmark's peers compute the right thing, and the script runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.cpu import NumbaDriver
from scripts import benchmark
from toys.models import peak
from toys.study import generate

ROOT = Path(benchmark.__file__).parents[1]


@pytest.fixture(scope="module")
def study():
    return peak()


@pytest.fixture(scope="module")
def toy(study):
    return generate(study, 1, 3)


def random_parameters(study, n=8):
    return study.theta * np.random.default_rng(5).uniform(0.7, 1.3, (n, 5))


@pytest.mark.parametrize("events_per_log", [1, 8])
def test_hand_written_value_and_gradient_are_those_of_the_engine(study, toy, events_per_log):
    driver = NumbaDriver(study.cost, study.cost.rows(toy))
    nll, gradient = benchmark.hand_written_nll(events_per_log), np.empty(5)
    for theta in random_parameters(study):
        expected = driver.evaluate(np.array([0]), theta[None])[0]
        # 15 500 terms of order 10 and rounding 1e-16 each, summed in another order
        assert nll(toy[0].copy(), *theta, gradient) == pytest.approx(expected[0], rel=1e-12)
        np.testing.assert_allclose(gradient, expected[2:7], rtol=1e-9, atol=1e-9 * np.abs(expected[2:7] * theta).max())


def test_hand_written_gradient_is_the_slope_of_its_value(study, toy):
    nll, gradient, ignored = benchmark.hand_written_nll(1), np.empty(5), np.empty(5)
    x = toy[0].copy()
    for theta in random_parameters(study):
        nll(x, *theta, gradient)
        for i in range(5):
            step = np.zeros(5)
            step[i] = 1e-4 * theta[i]
            slope = (nll(x, *(theta + step), ignored) - nll(x, *(theta - step), ignored)) / (2 * step[i])
            # the central difference is wrong by step^2 f''' / 6, about 1e-8 of the value's scale
            assert slope * theta[i] == pytest.approx(gradient[i] * theta[i], rel=1e-5, abs=1e-2)


def test_numba_stats_cost_is_that_of_the_engine(study, toy):
    pytest.importorskip("numba_stats")
    driver = NumbaDriver(study.cost, study.cost.rows(toy))
    cost = benchmark.numba_stats_cost(toy[0].copy())
    for theta in random_parameters(study, 3):
        expected = driver.evaluate(np.array([0]), theta[None])[0, 0]
        assert 0.5 * cost(*theta) == pytest.approx(expected, rel=1e-12)  # iminuit.cost doubles an NLL


def test_it_runs_and_writes_what_it_measured(tmp_path, capsys):
    file = tmp_path / "speed.json"
    options = ["--toys", "2", "--repeat", "1", "--peers-toys", "1", "--cores", "1", "--no-jax"]
    assert benchmark.main([*options, "--json", str(file)]) == benchmark.DONE
    report = json.loads(file.read_text())
    fits = {fit["name"]: fit for fit in report["fits"]}
    assert set(fits) | set(report["missing"]) == {"batchfit", *benchmark.PEERS}
    assert fits["batchfit"]["n_fits"] == fits["hand"]["n_fits"] == 2
    assert fits["hand-errors"]["n_fits"] == 1
    assert all(fit["failed"] == 0 for fit in fits.values())
    # the engine's own distance is a Newton step with the hand-written gradient
    assert fits["batchfit"]["worst_distance"] < 1e-6
    # MIGRAD stops at an EDM of 1e-3 errordef or so: far closer than a sigma
    assert all(fit["worst_distance"] < 0.1 for fit in fits.values())
    minos = report["minos"]
    assert minos[0]["label"] == "batchfit" and all(way["failed"] == 0 for way in minos)
    assert all(way["worst_difference"] < 1e-2 for way in minos[1:])
    assert report["command_line"].endswith(str(file))
    assert report["sizes"]["n_toys"] == 2
    assert report["versions"]["iminuit"]
    assert {made["where"] for made in report["generation"]} == {"one core"}
    printed = capsys.readouterr().out
    assert "hand-written" in printed
    assert report["machine"]["cpu"] in printed


def test_a_missing_peer_is_said_to_be_missing(monkeypatch, capsys):
    found = benchmark.importlib.util.find_spec
    monkeypatch.setattr(
        benchmark.importlib.util, "find_spec", lambda name, *rest: None if name == "numba_stats" else found(name, *rest)
    )
    options = ["--toys", "1", "--repeat", "1", "--peers-toys", "1", "--cores", "1", "--no-jax"]
    assert benchmark.main(options) == benchmark.DONE
    assert "not installed" in capsys.readouterr().out


def test_all_cores_use_processes_of_their_own(tmp_path, study, toy):
    limits = [study.limits.get(name, (None, None)) for name in study.cost.names]
    benchmark.write_task(str(tmp_path), toy.values, toy.offsets, study.theta, limits)
    with benchmark.ExitStack() as stack:
        pool = benchmark.start_processes(stack, str(tmp_path), ["hand"], 2)
        fits = benchmark.fit_on_all_cores(pool, str(tmp_path), "hand", [0, 0, 0], 2)
    benchmark.read_task.cache_clear()
    assert fits == benchmark.fit_share(str(tmp_path), "hand", [0]) * 3
    benchmark.read_task.cache_clear()


@pytest.mark.parametrize(
    "options", [["--toys", "0"], ["--repeat", "x"], ["--cores", "3"], ["--seed", "-1"], ["--json", "nowhere/at/all"]]
)
def test_a_wrong_argument_gives_exit_code_2(options):
    try:
        code = benchmark.main(options)
    except SystemExit as stop:  # argparse leaves so
        code = stop.code
    assert code == benchmark.WRONG_INPUT


def test_help_needs_no_heavy_import():
    program = "import sys; from scripts import benchmark\ntry: benchmark.main(['--help'])\nexcept SystemExit: pass\n"
    program += "assert not {'jax', 'numba', 'iminuit', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=os.environ, capture_output=True)


def test_all_ways_to_the_quadratic_formula_agree():
    ways = benchmark.time_formula(10_001, 1, 2)
    assert {way["label"] for way in ways} >= {"NumPy", "JAX", "batchfit's kernel"}
    # -b + sqrt(b^2 - 4 a c) loses 5 digits where c is small, of 16
    assert all(way["worst_relative_difference"] < 1e-9 for way in ways)
