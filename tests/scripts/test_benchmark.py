"""The benchmark runs, says what is missing, and writes what it measured."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import benchmark

ROOT = Path(benchmark.__file__).parents[1]
cases, formula, minos, peers, race, tables = (
    importlib.import_module(f"bench.{name}") for name in ("cases", "formula", "minos", "peers", "race", "tables")
)
QUICK = ["--toys", "4", "--repeat", "1", "--seconds", "0.01", "--cores", "1", "--no-jax"]
COMPILING = ("everwillow", "pyhf")


@pytest.fixture
def few_peers(monkeypatch):
    """Without those that XLA compiles."""
    for name in COMPILING:
        absent = peers.PEERS[name]._replace(packages=(f"no_{name}",))
        monkeypatch.setitem(peers.PEERS, name, absent)


def test_cases_are_those_of_the_command_line():
    assert tuple(cases.CASES) == benchmark.CASES


def test_it_runs_and_writes_what_it_measured(tmp_path, capsys, few_peers):
    file, page = tmp_path / "speed.json", tmp_path / "speed.md"
    chosen = ["line", "peak-480", "evaluation", "generation"]
    options = [*QUICK, "--json", str(file), "--markdown", str(page), "--case", *chosen]
    assert benchmark.main(options) == benchmark.DONE
    report = json.loads(file.read_text())
    assert [case["name"] for case in report["cases"]] == ["peak-480", "line"]
    for case in report["cases"]:
        fits = {fit["name"]: fit for fit in case["fits"]}
        assert fits["batchfit"]["n_fits"] == 4 and fits["batchfit"]["worst_edm"] < 1e-12
        assert fits["hand"]["said_to_have_failed"] == 0 and fits["hand"]["batchfit_is_faster_by"] > 0
        assert "everwillow" in case["missing"] and "everwillow" not in fits
        assert case["floor"]["fits_per_second"] > 0
    assert report["command_line"].endswith("generation")
    assert report["versions"]["iminuit"] and report["machine"]["cpu"]
    assert report["generation"]["ns_per_uniform"] > 0 and report["evaluation"][0]["best_ns"] > 0
    printed = capsys.readouterr().out
    assert "hand-written" in printed and "no-everwillow is not installed" in printed
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0][2:] for row in rows[2:]] == [
        f"{case['title']}, {case['n_params']} parameters" for case in report["cases"]
    ]
    assert len({row.count("|") for row in rows}) == 1
    assert "everwillow: no-everwillow is not installed" in page.read_text()


def fit(name, faster, away=False, **other):
    numbers = dict.fromkeys(("fits_per_second", "first_seconds", "evaluations", "median_edm", "worst_edm"), 1.0)
    counts = dict.fromkeys(("n_fits", "said_to_have_failed", "ended_away", "found_a_lower_minimum"), 0)
    row = {"name": name, "label": name, "where": "one core", "gradients": 0.0, "batchfit_is_faster_by": faster}
    return {**row, **numbers, **counts, "away": away, **other}


def doctored(*fits, **parts):
    case = {"name": "line", "title": "a line", "n_params": 2, "rows": 30, "fits": [*fits], "missing": {}, "floor": None}
    machine = {"cpu": "a machine", "cores": 2, "system": "a system", "jax_devices": ["cpu: cpu"], "svml": True}
    return {
        "date": "2026-01-02T03:04:05+00:00",
        "command_line": "benchmark.py",
        "machine": {**machine, "load_before_and_after": None},
        "versions": {"numpy": "2"},
        "sizes": {"repeat": 1, "seconds": 1.0},
        "cases": [case],
        **parts,
    }


def test_who_ends_away_is_marked_in_both_tables(capsys):
    report = doctored(fit("batchfit", None, fits_per_second=200.0), fit("hand", 12.3), fit("nextstat", None, away=True))
    report["cases"][0]["floor"] = {"fits_per_second": 500.0, "in_words": "so many operations"}
    page = tables.markdown(report)
    assert "| a line, 2 parameters | 200 | - | 500 | 2.5 | 12 | away from the minimum |" in page
    tables.show(report)
    printed = capsys.readouterr().out
    assert "away from the minimum" in printed and "so many operations" in printed


def test_minos_is_a_row_of_the_page():
    ours = {"label": "batchfit", "ms_per_toy": 2.0, "batchfit_is_faster_by": None}
    theirs = {"label": peers.PEERS["hand"].label, "ms_per_toy": 20.0, "batchfit_is_faster_by": 10.0}
    page = tables.markdown(doctored(fit("batchfit", None), fit("hand", 3.0), minos=[ours, theirs]))
    assert "| MINOS of 5 parameters, 15 500 events | 500 | - | - | - | 10 |" in page


def test_other_measurements_have_tables(capsys):
    rows = [{"what": "toys", "size": "100", "unit": "toy", "ns per unit": 1234.5, "to the first": 1.0, "not valid": 0}]
    tables.show({**doctored(fit("batchfit", None), growth=rows), "cases": []})
    printed = capsys.readouterr().out
    assert "growth" in printed and "1234" in printed and "to the first" in printed


def test_minos_of_all_agree():
    rows = minos.time_minos(cases.make("peak-480", 1, 3), 2, 1)
    assert rows[0]["label"] == "batchfit" and rows[0]["n_toys"] == 3
    assert all(row["failed"] == 0 for row in rows)
    assert all(row["worst_difference"] < 1e-2 for row in rows[1:])


def test_all_ways_to_the_quadratic_formula_agree():
    ways = formula.time_formula(10_001, 1, 2)
    assert {way["label"] for way in ways} >= {"NumPy", "JAX", "batchfit's kernel"}
    # -b + sqrt(b^2 - 4 a c) loses 5 digits where c is small, of 16
    assert all(way["worst_relative_difference"] < 1e-9 for way in ways)


def test_a_peer_that_raises_is_said_to_have_raised(few_peers, monkeypatch):
    def broken(*given):
        raise RuntimeError("no such thing")

    monkeypatch.setitem(peers.PEERS, "hand", peers.PEERS["hand"]._replace(prepare=broken))
    conditions = race.Conditions(repeat=1, seconds=0.01, cores=1, with_jax=False)
    found = race.race(cases.make("line", 1, 4), conditions, lambda text: None)
    assert found["missing"][peers.PEERS["hand"].label] == "it raised RuntimeError: no such thing"
    assert {fit["name"] for fit in found["fits"]} >= {"batchfit"}


@pytest.mark.parametrize(
    "options",
    [
        ["--toys", "0"],
        ["--repeat", "x"],
        ["--cores", "3"],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
        ["--seconds", "0"],
        ["--case", "nothing"],
        ["--json", "nowhere/at/all"],
        ["--markdown", "nowhere/at/all"],
    ],
)
def test_a_wrong_argument_gives_exit_code_2(options, capsys):
    try:
        code = benchmark.main(options)
    except SystemExit as stop:  # argparse leaves so
        code = stop.code
    assert code == benchmark.WRONG_INPUT
    assert options[0] in capsys.readouterr().err


def test_list_names_all_cases(capsys):
    assert benchmark.main(["--list"]) == benchmark.DONE
    printed = capsys.readouterr().out.split()
    assert {*benchmark.CASES, *benchmark.PARTS} <= set(printed)


def test_help_needs_no_heavy_import():
    program = "import sys; from scripts import benchmark\ntry: benchmark.main(['--help'])\nexcept SystemExit: pass\n"
    program += "assert not {'jax', 'numba', 'iminuit', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=os.environ, capture_output=True)


def test_numbers_are_rounded_to_two_digits():
    assert [tables.number(x) for x in (None, 3.14, 99.94, 123.4, 25_432.0)] == ["-", "3.1", "99.9", "123", "25 000"]


def test_ctrl_c_ends_it_with_a_sentence(monkeypatch, capsys):
    def interrupted(args, say):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "measure", interrupted)
    assert benchmark.main(["--case", "line"]) == 130
    assert capsys.readouterr().err.endswith("stopped: nothing was written\n")
