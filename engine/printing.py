"""Tables of results, as text with box-drawing characters and as HTML for notebooks."""

from __future__ import annotations

import html
import math
import textwrap
from typing import TYPE_CHECKING, NamedTuple

from engine.status import Status

if TYPE_CHECKING:
    from engine.result import Fit, FitResult, Summary


def pdg_format(value: float, error: float) -> tuple[str, str]:
    """Value and error as text, rounded by the rule of the Particle Data Group.

    If the three leading digits of the error lie between 100 and 354, two digits of the error are kept; from
    355 to 949 one; from 950 on, the error is rounded up to 1000 and two digits are kept. The value gets the
    same last decimal. Without a finite positive error, the value is given with six significant digits.

    References
    ----------
    M. Tanabashi et al. (Particle Data Group), Phys. Rev. D 98 (2018) 030001, introduction; quoted in
    `iminuit.pdg_format`.
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.6g}", f"{error:.3g}"
    mantissa, exponent = _scientific(error)
    decimals = 1 - exponent if mantissa < 3.55 else -exponent
    if mantissa >= 9.5:
        error = float(f"1e{exponent + 1}")
    largest = max(abs(value), error)
    if exponent < -5 or largest >= 1e6:
        return _with_exponent(value, decimals), _with_exponent(error, decimals)
    return _with_decimals(value, decimals), _with_decimals(error, decimals)


def _scientific(number: float) -> tuple[float, int]:
    """Mantissa of three digits and power of ten."""
    mantissa, exponent = f"{number:.2e}".split("e")
    return float(mantissa), int(exponent)


def _with_decimals(number: float, decimals: int) -> str:
    return f"{round(number, decimals):.{max(decimals, 0)}f}"


def _with_exponent(number: float, decimals: int) -> str:
    if not math.isfinite(number):
        return f"{number:.0e}"
    # past 16 digits a float64 holds no information
    digits = min(max(_scientific(number)[1] + decimals, 0), 16)
    return f"{number:.{digits}e}"


class Table(NamedTuple):
    """Cells of text under a title; all rows, and the header if any, have the same number of cells."""

    title: list[str]
    header: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        lines = [self.header] * bool(self.header) + self.rows
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        inner = sum(widths) + 3 * (len(widths) - 1)
        title = [part for line in self.title for part in textwrap.wrap(line, max(inner, 90))]
        missing = max(map(len, title), default=0) - inner
        if missing > 0:
            widths[-1] += missing
            inner += missing

        def rule(left: str, middle: str, right: str) -> str:
            return left + middle.join("─" * (width + 2) for width in widths) + right

        def row(cells: list[str]) -> str:
            # numbers stand to the right under a header; the first column holds names
            padded = [
                cell.rjust(width) if self.header and i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
            ]
            return "│ " + " │ ".join(padded) + " │"

        out = [rule("┌", "┬", "┐")]
        if title:
            out = [rule("┌", "─", "┐"), *(f"│ {line.ljust(inner)} │" for line in title), rule("├", "┬", "┤")]
        if self.header:
            out += [row(self.header), rule("├", "┼", "┤")]
        return "\n".join([*out, *map(row, self.rows), rule("└", "┴", "┘")])

    def html(self) -> str:
        columns = len(self.header or self.rows[0])
        lines = [f'<tr><th colspan="{columns}">{html.escape(line)}</th></tr>' for line in self.title]
        if self.header:
            lines.append("<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in self.header) + "</tr>")
        lines += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self.rows]
        return "<table>\n" + "\n".join(lines) + "\n</table>"


def fit_tables(fit: Fit) -> list[Table]:
    """The state of one fit and its parameters, after iminuit's `Minuit.fmin` and `Minuit.params`."""
    title = f"{fit.status.name}: {fit.status.sentence if fit.valid else _failure(fit.status)}"
    head = [
        [f"FCN = {fit.fval:.10g}", f"Nfev = {fit.nfev}"],
        [f"EDM = {fit.edm:.3g}", f"errordef = {fit.errordef:g}"],
        [
            "Valid minimum" if fit.valid else "INVALID minimum",
            "SOME parameters at limit" if fit.at_limit.any() else "No parameters at limit",
        ],
        [
            "Covariance ok" if fit.has_posdef_covar else "Covariance NOT pos. def.",
            "Rescued by a retry" if fit.rescued else "Not rescued",
        ],
    ]
    rows = []
    for i, name in enumerate(fit.names):
        # an error of exactly 0 away from a limit is how a fixed parameter looks
        note = "at limit" if fit.at_limit[i] else "fixed" if fit.errors[i] == 0 else ""
        rows.append([name, *pdg_format(fit.values[i], fit.errors[i]), note])
    return [Table([title], [], head), Table([], ["Name", "Value", "Error", "Note"], rows)]


def summary_table(summary: Summary) -> Table:
    """Means of the valid toys, under the number of those that failed and why."""
    n_failed = summary.n_toys - summary.n_valid
    counts = f"{summary.n_toys} toys: {summary.n_valid} valid, {n_failed} failed; "
    flags = f"{summary.n_at_limit} with a parameter at a limit, {summary.n_rescued} rescued"
    causes = [f"{count} {status.name}: {_failure(status)}" for status, count in sorted(summary.failed.items())]
    rows = []
    columns = zip(summary.names, summary.mean, summary.std, summary.mean_error, strict=True)
    for name, mean, std, mean_error in columns:
        # the mean is known to std / sqrt(n_valid)
        mean_text, _ = pdg_format(mean, std / math.sqrt(max(summary.n_valid, 1)))
        rows.append([name, mean_text, f"{std:.4g}", f"{mean_error:.4g}"])
    return Table(
        [counts + flags, *causes],
        ["Name", f"Mean of {summary.n_valid} valid", "Std. dev.", "Mean error"],
        rows,
    )


def result_line(result: FitResult) -> str:
    """A result in one line, with failures by kind."""
    summary, names = result.summary(), result.names
    shown = ", ".join(names[:8]) + (f", ... ({len(names)} parameters)" if len(names) > 8 else "")
    causes = ", ".join(f"{count} {status.name}" for status, count in sorted(summary.failed.items()))
    n_failed = summary.n_toys - summary.n_valid
    return (
        f"<FitResult of {summary.n_toys} toys in {shown}: {summary.n_valid} valid, "
        f"{summary.n_at_limit} at a limit, {summary.n_rescued} rescued, "
        f"{n_failed} failed{f' ({causes})' if causes else ''}; {result.backend} on {result.device}>"
    )


def _failure(status: Status) -> str:
    """Why a toy of this status is not valid."""
    if status is not Status.CONVERGED:
        return status.sentence
    return "The iteration stopped, but the fit is not valid: look at its EDM and covariance."
