"""The report: one page that needs no other file, with the numbers in it, and figures that can be drawn."""

import dataclasses
import html.parser
import json
import shutil
import subprocess
import urllib.parse
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from engine.printing import Table
from engine.status import Status
from tests.toys.test_pulls import make_minos, make_result
from toys import charts
from toys.counts import PoissonCounts
from toys.files import StorageError
from toys.goodness_of_fit import GoodnessOfFit
from toys.hypotest import HypothesisTest, tail
from toys.hypothesis_report import _failed, hypothesis_report
from toys.limit_search import Point as LimitPoint
from toys.models import STUDIES, peak
from toys.report import Report, Section, check_directory, plate, render, write_report, write_tables
from toys.sample import Curves, Sample
from toys.scan import Point, point_of
from toys.simultaneous import Simultaneous
from toys.study_report import COVERAGE_TOLD, coverage_report, made_by, pull_report, thrown_sentences

EVIL = "<script>alert(1)</script> & \"quoted\" 'name'"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(html.parser.HTMLParser):
    """Tags, addresses and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.text, self.cells = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "action")]

    def handle_data(self, data):
        self.text.append(data)
        if self.tags[-1:] == ["td"]:
            self.cells.append(data)


def sample_of(n_toys=300, seed=1, failed=3):
    study = peak()
    rng = np.random.default_rng(seed)
    theta = np.array([study.truth[name] for name in study.cost.names])
    errors = np.tile([65.0, 120.0, 0.02, 0.017, 0.05], (n_toys, 1)) * rng.uniform(0.9, 1.1, (n_toys, 1))
    valid = np.arange(n_toys) >= failed
    values = theta + errors * rng.normal(size=(n_toys, 5))
    result = make_result(values, errors, valid, names=study.cost.names, status=np.where(valid, 0, 3))
    # the lower half of the toys has no interval for sigma
    good = np.ones((n_toys, 5), bool)
    good[: n_toys // 2, 3] = False
    good[~valid] = False
    sides = [np.where(good, factor * errors, np.nan) for factor in (-1.0, 1.1)]
    return Sample(study, result, {0.6827: make_minos(result, *sides, names=study.cost.names, valid=good)})


@pytest.fixture(scope="module")
def report():
    sample = sample_of()
    z = np.linspace(-2.5, 2.5, 31)
    curves = [Curves("ns", np.tile(z, (3, 1)), np.tile(z**2 * (1 + 0.05 * z), (3, 1)))]
    point = point_of(sample, 0.0, (0.6827, 0.9))
    made = made_by("pull_study.py --n 300", 7, sample.result, 1.5)
    return pull_report(sample, point, curves, origin="were thrown with the seed 7", made=made)


def test_page_needs_nothing_else(report):
    text = render(report)
    page = Page(text)
    assert page.addresses and all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style and "prefers-color-scheme: dark" in style
    assert "@media print" in style and '<meta name="viewport"' in text


def test_page_has_the_numbers(report):
    page = Page(render(report))
    told = " ".join(" ".join(page.text).split())
    assert "300 toys of the model peak were thrown with the seed 7." in told
    assert "297 fits are valid, 3 failed" in told and "3 HESSIAN_NOT_POSDEF" in told
    assert "pull_study.py --n 300" in told and "numpy " + np.__version__ in told
    rows = report.numbers["pulls"]
    assert {row.name for row in rows} == set(peak().cost.names)
    for row in rows:
        assert f"{row.pull_mean:+.3f} ± {row.pull_mean_error:.3f}" in page.cells
        assert f"{row.pull_width:.3f} ± {row.pull_width_error:.3f}" in page.cells
    for row in report.numbers["coverage"]:
        assert f"{100 * row.coverage:.2f} % [{100 * row.low:.2f}, {100 * row.high:.2f}]" in page.cells
    assert report.warnings == []
    half = next(row for row in report.numbers["coverage"] if (row.name, row.method) == ("sigma", "minos"))
    assert half.missing == {"no valid fit": 3, "no MINOS interval": 147}


def test_many_failures_cannot_be_overlooked():
    sample = sample_of(failed=30)
    report = pull_report(sample, point_of(sample, 0.0, (0.6827,)), [], origin="were thrown", made={})
    assert report.warnings == ["30 of 300 fits failed: what follows is of the others."]
    assert '<p class="warning">30 of 300 fits failed' in render(report)
    points = [point_of(sample_of(failed=300), value, (0.6827,)) for value in (500.0, 1000.0)]
    scan = coverage_report(peak(), points, "ns", origin="were thrown", made={})
    assert scan.warnings == ["600 of 600 fits failed: what follows is of the others."]
    assert [section.title for section in scan.sections] == ["Failures"]


def test_hypotheses_that_are_one_and_toys_that_all_failed():
    q, none = np.array([0.0, 1.0, 2.0]), np.full(3, np.nan)
    described = {"poi": "mu", "value": 0.0, "poi_alt": 0.0, "test_stat": "q0", "calctype": "toybased"}
    numbers = ["q_observed", "poi_hat", "CLsb", "CLsb_error", "CLb", "CLb_error", "CLs", "CLs_error"]
    test = HypothesisTest(
        **described,
        **dict.fromkeys(numbers, 0.5),
        expected=np.full(5, np.nan),
        asymptotic=None,
        null=tail(q, 0.5),
        alternative=tail(q[:0], 0.5),
        q_null=q,
        q_alternative=q[:0],
        sentence="",
    )
    goodness = GoodnessOfFit("ks", 0.5, none, np.nan, np.nan, 0, Counter({Status.NONFINITE: 3}), None, None, None, "")
    found = hypothesis_report(peak(), [test, goodness], "the data", {})
    assert [plate.stem for section in found.sections for plate in section.plates] == ["statistic_0"]
    assert found.warnings == ["Goodness of fit: 100.0 % of the toys failed and are left out."]


def test_failures_of_a_limit_are_a_share_of_all_its_toys():
    numbers = dict.fromkeys(("value", "p", "error", "CLb", "shared"), 0.5) | dict.fromkeys(
        ("expected", "expected_error"), np.full(5, 0.5)
    )
    point = LimitPoint(**numbers, n_toys=2000, n_background=8000, ties=0, failed=100)
    assert _failed(SimpleNamespace(points=[point, point])) == 0.01


def test_names_are_text():
    table = Table([EVIL], ["", EVIL], [["a", EVIL]])
    figure, _ = charts.new_figure(2, 2)
    section = Section(EVIL, [EVIL], [table], [plate("evil", EVIL, figure)])
    text = render(Report(EVIL, EVIL, [EVIL], [EVIL], [section], {EVIL: EVIL}, {}))
    page = Page(text)
    assert "script" not in page.tags and "<script" not in text
    assert EVIL in page.cells and "".join(page.text).count("alert(1)") >= 10


def test_files(report, tmp_path):
    out = tmp_path / "study"
    files = write_report(out, report)
    assert files[0] == out / "report.html" and all(file.stat().st_size > 300 for file in files)
    stems = {file.stem for file in files if file.parent.name == "figures"}
    assert stems == {"pulls", "errors", "coverage", "profiles"}
    for stem in stems:
        assert (out / "figures" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
        assert (out / "figures" / f"{stem}.pdf").read_bytes().startswith(b"%PDF")
    numbers = json.loads((out / "tables.json").read_text())
    assert numbers["pulls"][0] == {**report.numbers["pulls"][0]._asdict()}
    assert numbers["truth"]["ns"] == 2000.0
    # the same report is the same page
    assert (out / "report.html").read_text() == render(report)
    write_report(out, dataclasses.replace(report, sections=report.sections[2:3]))
    assert sorted(file.name for file in out.iterdir()) == ["figures", "report.html", "tables.json"]
    assert sorted(file.name for file in (out / "figures").iterdir()) == ["coverage.pdf", "coverage.png"]


def test_names_that_no_file_can_have(report, tmp_path):
    figure = report.sections[0].plates[0].figure
    plates = [plate(stem, "", figure) for stem in ("bias_a/b", "bias_a_b", "../x", "mu=1")]
    write_report(tmp_path, dataclasses.replace(report, sections=[Section("", plates=plates)]))
    names = sorted(file.name for file in (tmp_path / "figures").glob("*.pdf"))
    assert names == sorted(Path(each.files).name for each in plates)
    assert names == [".._2Fx.pdf", "bias_a_2Fb.pdf", "bias_a_b.pdf", "mu=1.pdf"]


def test_tables_are_beside_no_other_report(report, tmp_path):
    write_report(tmp_path, report)
    (tmp_path / "tables.json.tmp.123").write_text("{")
    check_directory(tmp_path, overwrite=True)
    write_tables(tmp_path, {"a": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["tables.json"]


def test_what_is_not_finite_is_null(tmp_path):
    path = write_tables(
        tmp_path, {"a": np.array([1.0, np.nan]), "b": float("inf"), "c": np.int64(3), "d": (True, None)}
    )
    assert json.loads(path.read_text()) == {"a": [1.0, None], "b": None, "c": 3, "d": [True, None]}


def test_directories_that_are_refused(tmp_path):
    out = tmp_path / "study"
    check_directory(out)
    out.mkdir()
    check_directory(out)  # an empty one is no report
    (out / "tables.json").write_text("{}")
    with pytest.raises(StorageError, match="study exists: pass --overwrite to replace it"):
        check_directory(out)
    check_directory(out, overwrite=True)
    (out / "thesis.tex").write_text("important")
    with pytest.raises(StorageError, match=r"study holds thesis.tex, which is none of a report"):
        check_directory(out, overwrite=True)
    with pytest.raises(StorageError, match=r"thesis.tex is a file: name a directory for the report"):
        check_directory(out / "thesis.tex")
    with pytest.raises(StorageError, match="does not exist: create it"):
        check_directory(tmp_path / "missing" / "study")
    assert (out / "thesis.tex").read_text() == "important"


def test_scan_of_the_truth(tmp_path):
    """Figures against the truth hold the numbers of the table: the axes say what they show."""
    study, points = peak(), []
    for k, value in enumerate((500.0, 1000.0, 1500.0)):
        points.append(point_of(sample_of(seed=k), value, (0.6827,)))
    made = {"seed": "1"}
    found = coverage_report(study, points, "ns", origin="were thrown", made=made)
    assert found.sections[0].title == "ns" and "at 3 true values of ns" in found.sentences[0]
    assert [row[0] for row in found.sections[0].tables[0].rows] == ["500", "500", "1000", "1000", "1500", "1500"]
    stems = [plate.stem for section in found.sections for plate in section.plates]
    assert stems[:2] == ["coverage_ns", "bias_ns"] and len(stems) == 10
    regional, missing = found.sections[-1].tables
    assert regional.header == ["true ns", "toys", "failed", "HESSIAN_NOT_POSDEF", "at a limit", "rescued"]
    assert [section.sentences for section in found.sections[:2]] == [[COVERAGE_TOLD], []]
    assert regional.rows[1] == ["1000", "300", "3", "3", "0", "0"] and ["1000", "sigma"] in [
        r[:2] for r in missing.rows
    ]
    figure = charts.coverage_chart(points, "ns", "sigma")
    axis = figure.axes[0]
    assert axis.get_xlabel() == "true ns" and axis.get_ylabel() == "coverage / %"
    drawn = axis.containers[0].lines[0].get_ydata()  # Hesse
    np.testing.assert_allclose(drawn, [100 * point.coverage.row("sigma", "hesse", 0.6827).coverage for point in points])
    figure = charts.residual_chart(points, "ns", "ns")
    drawn = figure.axes[0].containers[0].lines[0].get_ydata()
    np.testing.assert_allclose(drawn, [point.pulls.rows[0].bias for point in points])
    assert isinstance(points[0], Point)


def test_what_becomes_of_constraints_is_said():
    study = STUDIES["signal-strength"]()
    assert "The measured values of 7 constraints are redrawn for every toy." in thrown_sentences(
        study, 5, "were thrown"
    )
    held = Simultaneous(study.cost, (PoissonCounts.of(study.cost.costs[0]), "fixed"))
    told = thrown_sentences(dataclasses.replace(study, sampler=held), 12000, "were thrown", "mu")
    assert told[0] == "12 000 toys of the model signal-strength were thrown."
    assert told[1].startswith("True values: lumi = 0, ") and told[2].endswith(
        "7 constraints are the same in every toy."
    )
    assert len(thrown_sentences(peak(), 5, "were thrown")) == 2


def test_what_was_held_is_said():
    held = dataclasses.replace(peak(), fixed=("lam", "sigma"), start={**peak().truth, "sigma": 0.6})
    assert thrown_sentences(held, 5, "were thrown")[2] == "Held in the fits: lam = 4, sigma = 0.6."


def test_pulls_that_are_drawn_are_those_of_the_table():
    sample = sample_of(n_toys=2000)
    found = point_of(sample, 0.0, (0.6827,)).pulls
    (figure,) = charts.pull_charts(found)
    axis = figure.axes[0]
    heights = axis.patches[0].get_xy()  # the filled outline of the histogram
    assert heights[:, 1].max() == pytest.approx(0.4, abs=0.06)
    title = axis.get_title(loc="right")
    assert f"{found.rows[0].pull_mean:+.3f}" in title and f"{found.rows[0].pull_width:.3f}" in title
    fitted = axis.lines[0]
    assert fitted.get_xdata()[np.argmax(fitted.get_ydata())] == pytest.approx(found.rows[0].pull_mean, abs=0.02)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here that could open the page")
def test_a_browser_opens_it(report, tmp_path):
    write_report(tmp_path / "study", report)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --enable-logging=stderr --v=0"
    address = "file://" + urllib.parse.quote(str(tmp_path / "study" / "report.html"))
    command = [CHROMIUM, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", address]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0
    page = Page(ended.stdout)
    row = report.numbers["pulls"][0]
    assert f"{row.pull_mean:+.3f} ± {row.pull_mean_error:.3f}" in page.cells
    assert page.tags.count("table") == sum(len(section.tables) for section in report.sections)
    assert page.tags.count("img") == sum(len(section.plates) for section in report.sections)
    assert "CONSOLE" not in ended.stderr  # what a page complains of
