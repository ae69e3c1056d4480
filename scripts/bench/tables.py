"""The report as tables: on the terminal, and as Markdown."""

from collections.abc import Sequence
from typing import Any

from bench.contest import AWAY
from bench.peers import PEERS
from rich import box
from rich.console import Console
from rich.table import Table

__all__ = ["markdown", "number", "show"]

WIDTH = 150  # where the output is no terminal


def show(report: dict) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print("\n".join(head(report)))
    for case in report["cases"]:
        console.print(f"\n[bold]{case['name']}[/]: {case['title']}, {case['n_params']} parameters")
        console.print(case_table(case, report["machine"]["cores"]))
        console.print("\n".join(remarks(case)), soft_wrap=True)
    if report["cases"]:
        console.print(
            "batchfit gives the exact covariance, the others no errors but where HESSE (strategy 1) is named.\n"
            "Hand-written: value and gradient in one numba loop; numba-stats: with iminuit's cost functions.\n"
            "Evaluations: of value, gradient and exact Hessian in batchfit, for templates without the Hessian but in\n"
            "the last; of the value and (+) of the gradient in iminuit and NextStat, of the value in pyhf; steps of\n"
            "everwillow. EDM: in units of errordef, with the exact Hessian where the fit ended. Good fits are\n"
            "counted: valid, EDM < 1e-2, value not above batchfit's.\n"
        )
    for title, columns, rows in plain_tables(report):
        console.print(table(title, columns, rows))


def head(report: dict) -> list[str]:
    """The machine, what is installed, when, and how."""
    machine, sizes = report["machine"], report["sizes"]
    devices = ", ".join(machine["jax_devices"])
    installed = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    load = machine["load_before_and_after"]
    when = report["date"] + (f", load {load[0]:.1f} before, {load[1]:.1f} after" if load else "")
    return [
        f"{machine['cpu']}, {machine['cores']} cores, {machine['system']}; JAX sees {devices}",
        installed + ("" if machine["svml"] else "; numba without SVML"),
        when,
        f"float64, start at the truth, median of {sizes['repeat']} turns of {sizes['seconds']} s, first call apart",
    ]


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    made.add_column(title, no_wrap=True)
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    return made


def case_table(case: dict, cores: int) -> Table:
    by_name: dict[str, dict[str, dict]] = {}
    for fit in case["fits"]:
        by_name.setdefault(fit["name"], {})[fit["where"]] = fit
    rows = [fit_row(places) for places in by_name.values()]
    if case["floor"]:
        floor, mine = case["floor"]["fits_per_second"], case["fits"][0]["fits_per_second"]
        gap = f"gap {floor / mine:.1f}" if mine else ""
        rows.append(["floor", number(floor), *[""] * 6, gap, ""])
    return table(
        "",
        ("1 core\nfits/s", f"{cores} cores\nfits/s", "GPU\nfits/s", "fits", "not\ngood", "evaluations",
         "EDM\nmedian, worst", "batchfit is\nfaster by", "first call\n[s]"),
        rows,
    )  # fmt: skip


def remarks(case: dict) -> list[str]:
    """What the floor is made of, lower minima that were found, and who is missing."""
    found = {fit["label"]: fit["found_a_lower_minimum"] for fit in case["fits"] if fit["where"] == "one core"}
    said = [f"floor: {case['floor']['in_words']}"] if case["floor"] else []
    said += [f"{label}: {n} fits ended in a lower minimum than batchfit's" for label, n in found.items() if n]
    return said + [f"{label}: {reason}" for label, reason in case["missing"].items()]


def fit_row(places: dict[str, dict]) -> list[str]:
    fit = next(iter(places.values()))
    one, many, gpu = (places.get(where, {}).get("fits_per_second") for where in ("one core", "all cores", "gpu"))
    edm = "-" if fit["worst_edm"] is None else f"{fit['median_edm']:.0e}, {fit['worst_edm']:.0e}"
    return [
        fit["label"],
        number(one),
        number(many),
        number(gpu),
        str(fit["n_fits"]),
        str(fit["said_to_have_failed"] + fit["ended_away"]),
        f"{fit['evaluations']:.1f}" + (f" + {fit['gradients']:.1f}" if fit["gradients"] else ""),
        edm,
        ratio(fit),
        f"{fit['first_seconds']:.1f}",
    ]


def ratio(fit: dict) -> str:
    """By how much batchfit is faster, or why that is not said."""
    faster = fit["batchfit_is_faster_by"]
    if faster:
        return f"{faster:.2f}" if faster < 10 else f"{faster:.0f}"
    return AWAY if fit["away"] else "-"


def plain_tables(report: dict) -> list[tuple[str, Sequence[str], list[list[str]]]]:
    """(title, columns, rows) of everything beside the fits."""
    tables: list[tuple[str, Sequence[str], list[list[str]]]] = []
    if report.get("minos"):
        rows = [
            [
                way["label"],
                f"{way['ms_per_toy']:.2f}",
                str(way["n_toys"]),
                str(way["failed"]),
                f"{way['evaluations']:.1f}",
                "-" if way["worst_difference"] is None else f"{way['worst_difference']:.0e}",
                "-" if way["batchfit_is_faster_by"] is None else f"{way['batchfit_is_faster_by']:.0f}",
            ]
            for way in report["minos"]
        ]
        columns = ("ms per toy", "toys", "failed", "evaluations\nper toy", "differs from batchfit\nworst [sigma]",
                   "batchfit is\nfaster by")  # fmt: skip
        tables.append(("MINOS of 5 parameters, 15 500 events, one core", columns, rows))
    if report.get("evaluation"):
        rows = [[way["label"], f"{way['best_ns']:.1f}", f"{way['median_ns']:.1f}"] for way in report["evaluation"]]
        tables.append(("one evaluation of 15 500 events, one core: ns per event", ("best", "median"), rows))
    if report.get("generation"):
        rows = [
            [made["where"], number(made["toys_per_second"]), f"{made['ns_per_event_and_core']:.1f}"]
            for made in report["generation"]["events"]
        ]
        rows.append(["one core, uniforms alone", "-", f"{report['generation']['ns_per_uniform']:.2f}"])
        tables.append(("throwing toys of 15 500 events", ("toys per second", "ns per event and core"), rows))
    if report.get("formula"):
        rows = [
            [f"{way['label']}, {way['where']}", f"{way['ns_per_row']:.2f}", f"{way['first_seconds']:.2f}"]
            for way in report["formula"]
        ]
        tables.append(("quadratic formula of 5 million rows", ("ns per row", "first call [s]"), rows))
    if report.get("growth"):
        kept = [name for name in report["growth"][0] if name != "what"]
        rows = [[str(row["what"]), *(cell(row[name]) for name in kept)] for row in report["growth"]]
        tables.append(("growth of the time", kept, rows))
    return tables


def markdown(report: dict) -> str:
    """The table of README: one row for each case, and by how much batchfit is faster per core than each peer."""
    machine, cores = report["machine"], report["machine"]["cores"]
    there = {fit["name"] for case in report["cases"] for fit in case["fits"]}
    labels = {name: peer.label for name, peer in PEERS.items() if name in there}
    absent = {label: reason for case in report["cases"] for label, reason in case["missing"].items()}
    lines = [
        f"`python scripts/{report['command_line']}`, {report['date'][:10]}, {machine['cpu']}, {cores} cores:",
        "",
        "| | " + " | ".join(["fits/s, 1 core", f"{cores} cores", "floor", "gap", *labels.values()]) + " |",
        "|" + " --- |" * (5 + len(labels)),
    ]
    for case in report["cases"]:
        fits = {(fit["name"], fit["where"]): fit for fit in case["fits"]}
        floor = case["floor"]
        one, many = (fits.get(("batchfit", where), {}).get("fits_per_second") for where in ("one core", "all cores"))
        limit = floor["fits_per_second"] if floor else None
        gap = f"{limit / one:.1f}" if limit and one else "-"
        theirs = [ratio(fits[name, "one core"]) if (name, "one core") in fits else "-" for name in labels]
        cells = [
            f"{case['title']}, {case['n_params']} parameters",
            number(one),
            number(many),
            number(limit),
            gap,
            *theirs,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for way in report.get("minos") or []:
        if way["label"] == "batchfit":
            one, by = 1e3 / way["ms_per_toy"], {each["label"]: each for each in report["minos"]}
            theirs = [f"{by[label]['batchfit_is_faster_by']:.0f}" if label in by else "-" for label in labels.values()]
            lines.append(
                "| " + " | ".join(["MINOS of 5 parameters, 15 500 events", number(one), "-", "-", "-", *theirs]) + " |"
            )
    lines += [""] + [f"{label}: {reason}." for label, reason in absent.items()]
    return "\n".join(lines).rstrip() + "\n"


def number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1000:
        return f"{round(value, 2 - len(str(int(value)))):,.0f}".replace(",", " ")
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
