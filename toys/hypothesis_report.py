"""What a test of a hypothesis, a limit, an interval and a goodness of fit report."""

import math
from collections.abc import Mapping

import numpy as np

from engine.printing import Table
from toys import hypothesis_charts as charts
from toys.coverage import percent
from toys.feldman_cousins import Interval
from toys.goodness_of_fit import GoodnessOfFit
from toys.hypotest import HypothesisTest
from toys.report import Report, Section, plate
from toys.statistics import TOLERATED_FAILURES
from toys.study import Study
from toys.study_report import held_sentences
from toys.upper_limit import UpperLimit

__all__ = ["Finding", "hypothesis_report"]

Finding = HypothesisTest | UpperLimit | Interval | GoodnessOfFit


def hypothesis_report(study: Study, findings: list[Finding], observed: str, made: Mapping[str, str]) -> Report:
    """The report of all that was found of one observation.

    Parameters
    ----------
    study : Study
    findings : list
    observed : str
        What the observation is: "the data of counts.csv".
    made : dict
        As of `toys.study_report.made_by`.
    """
    sections = [_section(finding) for finding in findings]
    failed = [(_failed(finding), section.title) for finding, section in zip(findings, sections, strict=True)]
    return Report(
        title=f"Tests of hypotheses with {study.name}",
        subtitle=study.description,
        sentences=[
            f"The observation is {observed}.",
            *held_sentences(study),
            *(headline(finding) for finding in findings),
        ],
        warnings=[
            f"{title}: {100 * share:.1f} % of the toys failed and are left out."
            for share, title in failed
            if share > TOLERATED_FAILURES
        ],
        sections=sections,
        made=made,
        numbers={
            "kind": "tests of hypotheses",
            "model": study.name,
            "observation": observed,
            "made": made,
            "findings": [{"kind": type(finding).__name__, **_numbers(finding)} for finding in findings],
        },
    )


def headline(finding: Finding) -> str:
    """The result in a sentence."""
    if isinstance(finding, HypothesisTest):
        error = f" ± {finding.pvalue_error:.2g}" if finding.calctype == "toybased" else ""
        told = f"{finding.poi} = {finding.value:g} has the p-value {finding.pvalue:.4g}{error}"
        if math.isfinite(finding.CLs):
            told += f", CLs = {finding.CLs:.4g}" + (f" ± {finding.CLs_error:.2g}" if error else "")
        return f"{told} ({finding.test_stat} = {finding.q_observed:.5g})."
    if isinstance(finding, UpperLimit):
        error = f" ± {finding.error:.2g} by the number of toys" if finding.calctype == "toybased" else ""
        level = f"{percent(finding.cl)} confidence level, by {finding.inverted}"
        return f"{finding.poi} < {finding.limit:.5g}{error} at {level}."
    if isinstance(finding, Interval):
        ends = f"[{finding.lower:.5g}, {finding.upper:.5g}]"
        return f"The {percent(finding.cl)} Feldman-Cousins interval of {finding.poi} is {ends}."
    told = f"The fit describes the data with p = {finding.p_value:.4g} ± {finding.error:.2g}"
    return f"{told} ({finding.statistic} = {finding.observed:.5g})."


def _section(finding: Finding) -> Section:
    if isinstance(finding, HypothesisTest):
        return _of_test(finding)
    if isinstance(finding, UpperLimit):
        return _of_limit(finding)
    if isinstance(finding, Interval):
        return _of_interval(finding)
    return _of_goodness(finding)


def _of_test(test: HypothesisTest) -> Section:
    names = ("CLsb", "CLb", "CLs") if math.isfinite(test.CLs) else ("pvalue",)
    of_toys, beside = test.calctype == "toybased", test.asymptotic
    heading, rows = ["", "toys" if of_toys else "asymptotic"], [[name, f"{getattr(test, name):.5g}"] for name in names]
    errors = [f" ± {error:.1g}" if of_toys else "" for error in test.expected_error]
    expected = [f"{value:.4g}{error}" for value, error in zip(test.expected, errors, strict=True)]
    band = [[heading[1] if of_toys else "formulae", *expected]]
    if test.test_stat == "q0":
        rows.append(["Z", test.told_significance.removeprefix("= ")])
    if of_toys:
        heading += ["error", "asymptotic"]
        for row, name in zip(rows, names, strict=False):
            row += [f"{getattr(test, f'{name}_error'):.2g}", f"{getattr(beside, name):.5g}" if beside else ""]
        if test.test_stat == "q0":
            rows[-1] += ["", f"{beside.significance:.4g}" if beside else ""]
        if beside:
            band.append(["formulae", *(f"{value:.4g}" for value in beside.expected)])
    caption = (
        f"Distribution of {test.test_stat} at {test.poi} = {test.value:g} and at {test.poi_alt:g}, with the observed "
        "value and, dashed, the asymptotic formulae."
    )
    return Section(
        f"Test of {test.poi} = {test.value:g}",
        [headline(test), test.sentence],
        [
            Table([f"best fit {test.poi} = {test.poi_hat:.6g}"], heading, rows),
            Table([f"expected if {test.poi} = {test.poi_alt:g}"], ["", *(f"{n:+d} sigma" for n in range(-2, 3))], band),
        ],
        [plate(f"statistic_{test.value:.12g}", caption, charts.statistic_chart(test))] if len(test.q_null) else [],
    )


def _of_limit(limit: UpperLimit) -> Section:
    band = []
    if limit.points:
        found = zip([limit.limit, *limit.expected], [limit.error, *limit.expected_error], strict=True)
        band.append(["toys", *(f"{value:.4g} ± {error:.1g}" for value, error in found)])
    band.append(["formulae", f"{limit.asymptotic:.5g}", *(f"{value:.5g}" for value in limit.asymptotic_expected)])
    heading = ["", "observed", *(f"expected {n:+d} sigma" for n in range(-2, 3))]
    tables = [Table([f"upper limit of {limit.poi} at {percent(limit.cl)}"], heading, band)]
    plates = []
    if limit.points:
        rows = [
            [f"{p.value:.5g}", f"{p.p:.4g} ± {p.error:.1g}", *map(str, (p.n_toys, p.ties, p.failed))]
            for p in limit.points
        ]
        tables.append(Table(["tested values"], [limit.poi, limit.inverted, "toys", "ties", "failed"], rows))
        caption = (
            f"{limit.inverted} against {limit.poi} from toys, with the band that is expected without signal. The "
            f"limit is where {limit.inverted} falls to {percent(1 - limit.cl)}."
        )
        plates.append(plate("upper_limit", caption, charts.limit_chart(limit)))
    return Section(f"Upper limit of {limit.poi}", [headline(limit), limit.sentence], tables, plates)


def _of_interval(interval: Interval) -> Section:
    rows = [
        [
            *(f"{number:.5g}" for number in (p.value, p.t_observed, p.critical)),
            f"{p.p_value:.4g} ± {p.error:.1g}",
            *map(str, (p.n_toys, p.ties, p.failed)),
        ]
        for p in interval.points
    ]
    heading = [interval.poi, "t of the data", "critical t", "p", "toys", "ties", "failed"]
    ends = [
        ["lower", f"{interval.lower:.5g}", f"{interval.lower_error:.1g}", _end(interval, 0)],
        ["upper", f"{interval.upper:.5g}", f"{interval.upper_error:.1g}", _end(interval, 1)],
    ]
    caption = f"p-value of each value of {interval.poi}; those above {percent(1 - interval.cl)} are in the interval."
    return Section(
        f"Feldman-Cousins interval of {interval.poi}",
        [headline(interval), interval.sentence],
        [
            Table([f"best fit {interval.poi} = {interval.best:.6g}"], ["", "end", "error", ""], ends),
            Table(["tested values"], heading, rows),
        ],
        [plate("feldman_cousins", caption, charts.interval_chart(interval))],
    )


def _end(interval: Interval, side: int) -> str:
    return "at a limit" if interval.at_limit[side] else "beyond the tested values" if interval.beyond[side] else ""


def _of_goodness(goodness: GoodnessOfFit) -> Section:
    rows = [["toys", f"{goodness.p_value:.4g}", f"{goodness.error:.2g}"]]
    if goodness.asymptotic is not None:
        rows.append([f"chi-square, {goodness.ndf} degrees of freedom", f"{goodness.asymptotic:.4g}", ""])
    caption = f"The statistic {goodness.statistic} of refitted toys of the fitted model, and that of the data."
    return Section(
        "Goodness of fit",
        [headline(goodness), goodness.sentence],
        [Table([f"{goodness.statistic} = {goodness.observed:.6g}"], ["", "p-value", "error"], rows)],
        [plate(f"goodness_{goodness.statistic}", caption, charts.goodness_chart(goodness))]
        if np.isfinite(goodness.toys).any()
        else [],
    )


def _failed(finding: Finding) -> float:
    """Fraction of toys that failed."""
    if isinstance(finding, HypothesisTest):
        n = len(finding.q_null) + len(finding.q_alternative)
        return finding.failed / n if n else 0.0
    if isinstance(finding, GoodnessOfFit):
        return sum(finding.failed.values()) / finding.n_toys
    failed = sum(point.failed for point in finding.points)
    n = sum(point.n_toys + getattr(point, "n_background", 0) for point in finding.points)
    return failed / n if n else 0.0


def _numbers(finding: Finding) -> dict:
    """All that is found, without what every toy gave."""
    left_out = {"q_null", "q_alternative", "toys", "fit", "asymptotic", "failed"}
    fields = {name: value for name, value in vars(finding).items() if name not in left_out}
    if isinstance(finding, GoodnessOfFit):
        return fields | {
            "failed": {status.name: n for status, n in finding.failed.items()},
            "asymptotic": finding.asymptotic,
        }
    if isinstance(finding, UpperLimit):
        return fields | {"asymptotic": finding.asymptotic}
    if isinstance(finding, HypothesisTest):
        fields |= {"expected_error": finding.expected_error}
        return fields | ({"pvalue": finding.pvalue, "asymptotic": finding.asymptotic} if finding.asymptotic else {})
    return fields
