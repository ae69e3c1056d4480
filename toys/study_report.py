"""What a pull study and a coverage study report: sentences, tables and figures."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.printing import Table
from engine.result import FitResult
from engine.status import Status
from engine.sums import SumCost
from toys import charts
from toys.coverage import COVERAGE_HEADER, percent, regions
from toys.coverage import failures as failures_in
from toys.provenance import versions
from toys.report import Plate, Report, Section, plate
from toys.sample import Curves, Sample
from toys.scan import Point
from toys.simultaneous import Simultaneous
from toys.statistics import TOLERATED_FAILURES
from toys.study import Study

__all__ = [
    "coverage_report",
    "failure_table",
    "fit_sentences",
    "held_sentences",
    "made_by",
    "pull_report",
    "thrown_sentences",
]

REGIONS = 5
MOST_FIGURES = 12  # parameters that are drawn against the truth
#: A bias or a coverage so many standard errors away from what it should be is no chance of one in ten thousand numbers.
STRIKING = 4.0
MOST_STRIKING = 8
PULLS_TOLD = (
    "The pull of a toy is (fitted - true) / error. If the estimate is unbiased and the error honest, pulls follow the "
    "standard normal distribution: mean 0, width 1. Mean and width are those of a normal distribution fitted "
    "to them, with n - 1; median and robust width, half the central 68.27 %, do not follow single pulls far out. The "
    "last column is the Kolmogorov-Smirnov p-value against the standard normal distribution."
)
COVERAGE_TOLD = (
    "The coverage is the fraction of toys whose interval holds the truth, with its binomial interval of 68.27 %. "
    "A MINOS side that ends on a limit of its parameter extends to it. Toys without an interval are counted in the "
    "last column and in no fraction."
)


def thrown_sentences(study: Study, n_toys: int, origin: str, scanned: str = "") -> list[str]:
    """What was thrown and from where, with what became of the measured values of constraints."""
    truth = ", ".join(f"{name} = {value:.6g}" for name, value in study.truth.items() if name != scanned)
    number = f"{n_toys:,}".replace(",", " ")
    told = [f"{number} toys of the model {study.name} {origin}."]
    told += [f"True values: {truth}."] if truth else []
    told += held_sentences(study)
    costs = study.cost.costs if isinstance(study.cost, SumCost) else ()
    constraints = [k for k, part in enumerate(costs) if not part.takes_data]
    if constraints and isinstance(study.sampler, Simultaneous):
        sizes = [len(costs[k].names) for k in constraints]
        held = sum(size for k, size in zip(constraints, sizes, strict=True) if study.sampler.fixed[k])
        n = sum(sizes)
        how = {0: "redrawn for every toy", n: "the same in every toy"}
        told.append(
            f"The measured value{'s' if n > 1 else ''} of {n} constraint{'s' if n > 1 else ''} "
            f"{'are' if n > 1 else 'is'} {how.get(held, f'redrawn for every toy, except for {held}')}."
        )
    return told


def held_sentences(study: Study) -> list[str]:
    """At what values parameters are held, if there are such."""
    held = ", ".join(f"{name} = {study.start[name]:.6g}" for name in study.fixed)
    return [f"Held in the fits: {held}."] if held else []


def fit_sentences(result: FitResult) -> list[str]:
    """How many fits are valid, at a limit, rescued, failed, and why."""
    counts = result.summary()
    n_failed = counts.n_toys - counts.n_valid
    told = f"{counts.n_valid} fits are valid, {n_failed} failed; {counts.n_at_limit} have a parameter at a limit, "
    told += f"{counts.n_rescued} needed a second attempt."
    return [told, *(f"{n} {status.name}: {status.sentence}" for status, n in sorted(counts.failed.items()))]


def failure_table(title: str, heading: str, labels: Sequence[str], counts: Sequence[Mapping[str, int]]) -> Table:
    """Failures by kind in each region: a row for each, a column for each kind that occurs."""
    kinds = list(dict.fromkeys(kind for row in counts for kind in row))
    order = {"toys": 0, "failed": 1, "at a limit": 3, "rescued": 4}
    kinds.sort(key=lambda kind: order.get(kind, 2))
    rows = [[label, *(str(row.get(kind, 0)) for kind in kinds)] for label, row in zip(labels, counts, strict=True)]
    return Table([title], [heading, *kinds], rows)


def made_by(command_line: str, seed: int | str, result: FitResult | None, seconds: float) -> dict[str, str]:
    """Command line, seed, versions: what is needed to make it again."""
    ran = {"fits": f"{result.backend} on {result.device}, float64"} if result is not None else {}
    told = {"command line": command_line, "seed": str(seed)} | ran | {"seconds": f"{seconds:.1f}"}
    return told | {"versions": ", ".join(f"{name} {version}" for name, version in versions().items())}


def _warnings(counts: Sequence[Mapping[str, int]]) -> list[str]:
    failed, n_toys = (sum(row[kind] for row in counts) for kind in ("failed", "toys"))
    if failed > TOLERATED_FAILURES * n_toys:
        return [f"{failed} of {n_toys} fits failed: what follows is of the others."]
    return []


def _by_region(sample: Sample) -> list[Table]:
    """Failures in quantiles of the fitted value of the first free parameter."""
    name = next((name for name in sample.result.names if name not in sample.study.fixed), None)
    if name is None:
        return []
    region, labels = regions(sample.result.values[:, sample.result.names.index(name)], REGIONS)
    return [
        failure_table(
            f"fits by the fitted value of {name}", name, labels, failures_in(sample.result, region, len(labels))
        )
    ]


def _status_sentences(counts: Sequence[Mapping[str, int]]) -> list[str]:
    kinds = {kind for row in counts for kind in row}
    return [f"{status.name}: {status.sentence}" for status in Status if status.name in kinds]


def pull_report(
    sample: Sample, point: Point, curves: Sequence[Curves], *, origin: str, made: Mapping[str, str]
) -> Report:
    """The report of a pull study.

    Parameters
    ----------
    sample : Sample
    point : Point
        Of this sample.
    curves : sequence of Curves
        Profiles of some toys; may be empty.
    origin : str
        Where the toys come from: "were thrown with the seed 1".
    made : dict
        As of `made_by`.
    """
    plates = [
        plate(
            f"pulls{'' if k == 0 else k + 1}",
            "Pulls of the valid fits, with the normal distribution fitted to those of the Hesse error, and the "
            "standard normal distribution. Pulls beyond the axis are in the outermost bins.",
            figure,
        )
        for k, figure in enumerate(charts.pull_charts(point.pulls))
        if point.pulls.rows
    ]
    told = (
        "Error against fitted value. Where they are correlated, pulls are skewed although the estimate is unbiased. "
        "The horizontal line is what the errors should be on average."
    )
    errors = [plate("errors", told, charts.error_chart(point.pulls))] if point.pulls.rows else []
    sections = [
        Section("Pulls", [PULLS_TOLD], [point.pulls.table()], plates),
        Section("Errors", [], [], errors),
        Section("Coverage", [COVERAGE_TOLD], [point.coverage.table()], _coverage_plates([point], "", "")),
        *_profile_sections(curves),
        Section("Failures", fit_sentences(sample.result), _by_region(sample)),
    ]
    striking = [
        f"The {what} of {row.name} ({row.method}) is {value:+.3f} ± {error:.3f}, not {should:g}."
        for row in point.pulls.rows
        for what, value, error, should in (
            ("pull mean", row.pull_mean, row.pull_mean_error, 0),
            ("pull width", row.pull_width, row.pull_width_error, 1),
        )
        if abs(value - should) > STRIKING * error
    ]
    return Report(
        title=f"Pull study of {sample.study.name}",
        subtitle=sample.study.description,
        sentences=thrown_sentences(sample.study, len(sample.result), origin) + striking,
        warnings=_warnings([point.failures]),
        sections=[section for section in sections if section.tables or section.plates],
        made=made,
        numbers={
            "kind": "pull study",
            "model": sample.study.name,
            "truth": sample.study.truth,
            "made": made,
            "pulls": point.pulls.rows,
            "coverage": point.coverage.rows,
            "failures": point.failures,
        },
    )


def coverage_report(
    study: Study,
    points: Sequence[Point],
    scanned: str,
    *,
    sample: Sample | None = None,
    curves: Sequence[Curves] = (),
    origin: str,
    made: Mapping[str, str],
) -> Report:
    """The report of a coverage study, at one truth or at several.

    Parameters
    ----------
    study : Study
    points : sequence of Point
    scanned : str
        Name of the parameter whose true value differs between the points; "" at one truth.
    sample : Sample, optional
        The toys, at one truth.
    curves, origin, made
        As for `pull_report`.
    """
    names = list(dict.fromkeys(row.name for point in points for row in point.coverage.rows))
    n_toys = sum(point.failures["toys"] for point in points)
    labels = [f"{point.value:.6g}" for point in points]
    counts = [point.failures for point in points]
    sections: list[Section] = []
    if scanned:
        names.sort(key=lambda name: name != scanned)
        for name in names[:MOST_FIGURES]:
            plates = _coverage_plates(points, scanned, name)
            told = (
                f"Above: mean of fitted - true of {name} with its error, in the band of the standard deviation of one "
            )
            told += "fit. Below: mean and width of the pulls with the Hesse error."
            plates.append(plate(f"bias_{name}", told, charts.residual_chart(points, scanned, name)))
            said = [] if sections else [COVERAGE_TOLD]
            sections.append(Section(name, said, [_scan_table(points, scanned, name)], plates))
        rest = names[MOST_FIGURES:]
        if rest:
            sections.append(Section("Other parameters", [], [_scan_table(points, scanned, name) for name in rest]))
        regional = [failure_table(f"fits by the true value of {scanned}", f"true {scanned}", labels, counts)]
        fitted = _status_sentences(counts)
    else:
        sections.append(
            Section("Coverage", [COVERAGE_TOLD], [points[0].coverage.table()], _coverage_plates(points, "", ""))
        )
        regional = _by_region(sample) if sample is not None else []
        fitted = fit_sentences(sample.result) if sample is not None else []
    missing = _missing_table(points, scanned)
    sections += [*_profile_sections(curves), Section("Failures", fitted, [*regional, *missing])]
    at = f" at {len(points)} true values of {scanned}" if scanned else ""
    return Report(
        title=f"Coverage study of {study.name}",
        subtitle=study.description,
        sentences=thrown_sentences(study, n_toys, f"{origin}{at}", scanned) + _striking(points, scanned),
        warnings=_warnings(counts),
        sections=sections,
        made=made,
        numbers=coverage_numbers(study, points, scanned, made),
    )


def coverage_numbers(study: Study, points: Sequence[Point], scanned: str, made: Mapping[str, str]) -> dict[str, Any]:
    """What `tables.json` holds of a coverage study."""
    return {
        "kind": "coverage study",
        "model": study.name,
        "truth": study.truth,
        "scan": scanned,
        "made": made,
        "points": [
            {
                "value": point.value,
                "failures": point.failures,
                "coverage": point.coverage.rows,
                "pulls": point.pulls.rows,
            }
            for point in points
        ],
    }


def _striking(points: Sequence[Point], scanned: str) -> list[str]:
    told = [
        f"The {row.method} intervals of {row.name}{f' at {scanned} = {point.value:g}' if scanned else ''} that should "
        f"cover {percent(row.level)} cover {100 * row.coverage:.2f} %, {row.distance:+.1f} standard errors away."
        for point in points
        for row in point.coverage.rows
        if abs(row.distance) > STRIKING
    ]
    rest = len(told) - MOST_STRIKING
    return told[:MOST_STRIKING] + (
        [f"There are {rest} more that are {STRIKING:g} standard errors away."] if rest > 0 else []
    )


def _coverage_plates(points: Sequence[Point], scanned: str, name: str) -> list[Plate]:
    told = "with its binomial interval of 68.27 %; the dashed line is the nominal coverage."
    if scanned:
        chart = charts.coverage_chart(points, scanned, name)
        return [
            plate(f"coverage_{name}", f"Coverage of the intervals of {name} against the true {scanned}, {told}", chart)
        ]
    if not any(row.n for row in points[0].coverage.rows):
        return []
    return [
        plate(
            "coverage", f"Coverage of the intervals of each parameter, {told}", charts.coverage_summary_chart(points[0])
        )
    ]


def _profile_sections(curves: Sequence[Curves]) -> list[Section]:
    if not curves:
        return []
    told = (
        "Profile likelihoods of some toys, in units of the Hesse error: where they leave the parabola, MINOS and Hesse "
    )
    told += "intervals differ. The lines at 1 and 4 are those of 68.27 % and 95.45 % intervals."
    return [Section("Profiles", [], [], [plate("profiles", told, charts.profile_chart(curves))])]


def _scan_table(points: Sequence[Point], scanned: str, name: str) -> Table:
    rows = [[f"{point.value:.6g}", *row.cells] for point in points for row in point.coverage.rows if row.name == name]
    return Table([f"coverage of the intervals of {name}"], [f"true {scanned}", *COVERAGE_HEADER], rows)


def _missing_table(points: Sequence[Point], scanned: str) -> list[Table]:
    """Toys without an interval, by kind; nothing if there are none."""
    rows = [
        [*([f"{point.value:.6g}"] if scanned else []), row.name, row.method, percent(row.level), kind, str(n)]
        for point in points
        for row in point.coverage.rows
        for kind, n in row.missing.items()
    ]
    heading = [*([f"true {scanned}"] if scanned else []), "parameter", "interval", "level", "why there is none", "toys"]
    return [Table(["toys without an interval"], heading, rows)] if rows else []
