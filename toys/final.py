"""The tables at the end of a run."""

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from toys.run import Report
from toys.statistics import TOLERATED_FAILURES
from toys.study import Study
from toys.tally import Tally

__all__ = ["summary"]

MOST_NAMED = 5  # parameters in one sentence


def summary(study: Study, report: Report, out: str) -> tuple[str, bool]:
    """The final tables, and whether the run must be doubted: MIGRAD disagrees, or too many fits failed."""
    tally = report.tally
    n_failed = tally.n_toys - tally.n_valid
    doubts = []
    console = Console(width=125 if tally.intervals else 110, highlight=False, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(_calibration(study, tally))
        held = f", {', '.join(study.fixed)} held" if study.fixed else ""
        console.print(f"fitted (toy 0): {report.fitted}; {len(study.cost.names)} parameters{held}")
        console.print(
            f"{tally.n_valid} valid, {tally.n_at_limit} at a limit, {tally.n_rescued} rescued, {n_failed} failed"
        )
        for row in tally.calibration:
            if row.n < tally.n_valid:
                without = f"{tally.n_valid - row.n} valid toys, on a limit, have no Hesse error"
                console.print(f"{row.name}: {without} and are in neither pulls nor coverage")
        told = {row.name for row in tally.calibration} | set(study.fixed)
        if bare := [name for name in tally.names if name not in told]:
            more = f" and {len(bare) - MOST_NAMED} more" if len(bare) > MOST_NAMED else ""
            names = ", ".join(bare[:MOST_NAMED]) + more
            console.print(f"no pulls of {names}: fewer than two valid toys have a Hesse error")
        for status, n in tally.failed.items():
            console.print(f"  {n} {status.name}: {status.sentence}")
        if tally.intervals:
            special = (f", {n} {what}" for what, n in tally.intervals.items() if what != "all" and n)
            console.print(f"MINOS: all intervals of {tally.intervals['all']} toys" + "".join(special))
        if n_failed > TOLERATED_FAILURES * tally.n_toys:
            doubts.append(f"{n_failed} of {tally.n_toys} fits failed")
        checked = report.validation
        if checked is not None:
            n_bad = int((~checked.agrees).sum())
            console.print(
                f"MIGRAD on {len(checked.toy)} toys: {int(checked.valid.sum())} valid, "
                f"{int(checked.compared.sum())} in the same minimum, worst difference {checked.worst:.1e} sigma, "
                f"{n_bad} disagree"
            )
            if n_bad:
                doubts.append(
                    f"MIGRAD disagrees on {n_bad} toys ({', '.join(map(str, checked.toy[~checked.agrees][:5]))})"
                )
            elif not checked.compared.any():
                doubts.append("MIGRAD is in the same minimum for none of the toys: nothing was validated")
        if report.n_resumed:
            console.print(f"{report.n_resumed} toys were there from an earlier run")
        times = ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.times.items())
        console.print(f"{tally.backend} on {tally.device}; seconds: {times}")
        console.print(f"nothing to add: {out} is complete" if report.nothing_to_add else f"written: {out}")
        for doubt in doubts:
            console.print(f"WARNING: {doubt}")
    return capture.get(), bool(doubts)


def _calibration(study: Study, tally: Tally) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"{study.name}: {tally.n_toys} toys", title_justify="left")
    by_minos = tally.minos
    headings = ["parameter", "truth", "bias", "pull mean", "pull width", "coverage of 68.3 %"]
    for heading in [*headings, *(["of MINOS"] if by_minos else [])]:
        table.add_column(heading, justify="left" if heading == "parameter" else "right")
    for row in tally.calibration:
        if np.isnan(row.truth):  # the toys have no such parameter
            table.add_row(row.name, "not in toys")
            continue
        table.add_row(
            row.name,
            f"{row.truth:.6g}",
            f"{row.bias:+.2g} ± {row.bias_error:.1g}",
            f"{row.pull_mean:+.3f} ± {row.pull_mean_error:.3f}",
            f"{row.pull_width:.3f} ± {row.pull_width_error:.3f}",
            _coverage(row.coverage, row.coverage_low, row.coverage_high),
            *([_coverage(*by_minos[row.name])] if row.name in by_minos else []),
        )
    return table


def _coverage(inside: float, low: float, high: float) -> str:
    return f"{100 * inside:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
