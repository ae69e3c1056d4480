"""Figures of tests of hypotheses: distributions of the statistic, p-values against the tested value, limits."""

from typing import Any

import numpy as np
from scipy.stats import chi2

from toys.charts import BLUE, ORANGE, chart, new_figure
from toys.coverage import percent
from toys.feldman_cousins import Interval
from toys.goodness_of_fit import GoodnessOfFit
from toys.hypotest import HypothesisTest
from toys.upper_limit import UpperLimit

__all__ = ["goodness_chart", "interval_chart", "limit_chart", "statistic_chart"]

SYMBOLS = {"t": r"t_{%s}", "ttilde": r"\tilde{t}_{%s}", "q": r"q_{%s}", "qtilde": r"\tilde{q}_{%s}", "q0": "q_0"}
INNER, OUTER = "#5fae6a", "#f5d95f"  # of the expected band: the outer one is the brighter, also in grey
BINS = 50
BEYOND = 1e-3  # toys that the axis leaves out


def _symbol(test: HypothesisTest) -> str:
    return SYMBOLS[test.test_stat].replace("%s", f"{test.value:g}")


@chart
def statistic_chart(test: HypothesisTest) -> Any:
    """Distribution of the test statistic over the toys of both hypotheses, with the observation and the formulae."""
    figure, ((axis,),) = new_figure(4.8, 3.4)
    samples = [(test.q_null, test.value), (test.q_alternative, test.poi_alt)]
    fitted = np.concatenate([test.q_null, test.q_alternative, [test.q_observed]])
    fitted = fitted[np.isfinite(fitted)]
    edges = np.linspace(0.0, 1.05 * max(np.quantile(fitted, 1 - BEYOND), test.q_observed, 1.0), BINS + 1)
    looks: list[dict[str, Any]] = [
        {"histtype": "stepfilled", "color": "0.82", "edgecolor": "0.5", "linewidth": 0.6},
        {"histtype": "step", "color": BLUE, "linewidth": 1.1},
    ]
    dashes = [{"color": "black", "ls": "--", "lw": 1.0}, {"color": ORANGE, "ls": "-.", "lw": 1.2}]
    lowest = np.inf
    for (q, truth), look, dash in zip(samples, looks, dashes, strict=True):
        q = q[np.isfinite(q)]
        if not len(q):
            continue
        height = 1.0 / (len(q) * np.diff(edges)[0])
        axis.hist(q, edges, weights=np.full(len(q), height), label=f"toys at {test.poi} = {truth:g}", **look)
        lowest = min(lowest, height)
        if test.asymptotic is not None:
            grid = np.linspace(1e-3 * edges[-1], edges[-1], 600)
            survival = test.asymptotic.distribution.pvalue(grid, truth)
            axis.plot(grid, -np.gradient(survival, grid), label=f"asymptotic, {test.poi} = {truth:g}", **dash)
    axis.axvline(test.q_observed, color="black", lw=1.6, label=f"observed: {test.q_observed:.3g}")
    top = axis.get_ylim()[1]
    axis.set(yscale="log", xlim=(edges[0], edges[-1]), xlabel=f"${_symbol(test)}$")
    if np.isfinite(lowest):
        axis.set_ylim(0.5 * lowest, 3.0 * top)
    axis.set_ylabel(f"$f({_symbol(test)})$")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@chart
def limit_chart(limit: UpperLimit) -> Any:
    """CLs, or CLsb, from toys against the tested value, with what is expected without signal, and the limit."""
    figure, ((axis,),) = new_figure(4.8, 3.5)
    x = np.array([point.value for point in limit.points])
    expected = np.array([point.expected for point in limit.points])
    axis.fill_between(x, expected[:, 0], expected[:, 4], color=OUTER, lw=0, label=r"expected $\pm 2\sigma$")
    axis.fill_between(x, expected[:, 1], expected[:, 3], color=INNER, lw=0, label=r"expected $\pm 1\sigma$")
    axis.plot(x, expected[:, 2], color="black", ls="--", lw=1.0, label="expected median")
    p, error = (np.array([getattr(point, field) for point in limit.points]) for field in ("p", "error"))
    axis.errorbar(x, p, error, fmt="o-", ms=3.5, lw=1.0, color="black", label="observed")
    axis.axhline(1.0 - limit.cl, color=ORANGE, lw=1.0, label=f"{percent(1.0 - limit.cl)}")
    if np.isfinite(limit.limit):
        told = f"limit: {limit.limit:.4g}" + (f" ± {limit.error:.1g}" if limit.error > 0 else "")
        axis.axvline(limit.limit, color=BLUE, lw=1.0, label=told)
    if np.isfinite(limit.asymptotic):
        axis.axvline(limit.asymptotic, color=BLUE, lw=1.0, ls=":", label=f"asymptotic: {limit.asymptotic:.4g}")
    top = min(1.05, 1.25 * max(np.nanmax(expected[:, 4]), p.max()))
    axis.set(xlabel=limit.poi, ylabel=limit.inverted, xlim=(x.min(), x.max()), ylim=(0, max(top, 3 * (1 - limit.cl))))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


@chart
def interval_chart(interval: Interval) -> Any:
    """p-values of the Feldman-Cousins construction against the tested value, with the interval."""
    figure, ((axis,),) = new_figure(4.8, 3.3)
    x, p, error = (np.array([getattr(point, f) for point in interval.points]) for f in ("value", "p_value", "error"))
    told = f"{percent(interval.cl)} interval: {interval.lower:.4g} to {interval.upper:.4g}"
    axis.axvspan(interval.lower, interval.upper, color="0.9", lw=0, label=told)
    axis.errorbar(x, p, error, fmt="o", ms=3.5, lw=0.8, color=BLUE, label="toys")
    axis.axhline(1.0 - interval.cl, color=ORANGE, lw=1.0, label=percent(1.0 - interval.cl))
    axis.axvline(interval.best, color="black", lw=0.8, ls=":", label="best fit")
    top = 1.2 * max((p + error).max(), 2.0 * (1.0 - interval.cl))
    axis.set(xlabel=interval.poi, ylabel="p-value", ylim=(0, min(top, 1.05)))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


@chart
def goodness_chart(goodness: GoodnessOfFit) -> Any:
    """Distribution of the statistic over refitted toys, with that of the data, and the chi-square where it is one."""
    figure, ((axis,),) = new_figure(4.8, 3.1)
    toys = goodness.toys[np.isfinite(goodness.toys)]
    low, high = (min(toys.min(), goodness.observed), max(toys.max(), goodness.observed))
    edges = np.linspace(low, high + 1e-9 * (high - low or 1.0), BINS - 9)
    height, _, _ = axis.hist(
        toys, edges, density=True, histtype="stepfilled", color="0.82", edgecolor="0.5", label="toys"
    )
    if goodness.ndf:
        grid = np.linspace(edges[0], edges[-1], 400)
        axis.plot(grid, chi2.pdf(grid, goodness.ndf), color=ORANGE, ls="--", label=f"chi-square, {goodness.ndf} d.o.f.")
    axis.axvline(goodness.observed, color="black", lw=1.6, label=f"data: {goodness.observed:.4g}")
    # with one degree of freedom the chi-square has a pole at 0
    axis.set(xlabel=goodness.statistic, ylabel="density", xlim=(edges[0], edges[-1]), ylim=(0, 1.25 * height.max()))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
