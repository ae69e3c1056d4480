"""Goodness of fit by toys: how often is a toy of the fitted model described worse by its fit than the data by theirs?

As the parameters are fitted, no distribution of the statistic is known that holds for all models; so every toy is
thrown at the fitted values of the data, with constraint measurements of its own, and fitted as the data were.

References
----------
Baker & Cousins, NIM 221 (1984) 437-442, for the saturated likelihood ratio.
Lilliefors, J. Am. Stat. Assoc. 62 (1967) 399; Stute, Gonzalez Manteiga & Presedo Quindimil, Metrika 40 (1993) 243, for
distances whose distribution comes from refitted toys.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import chdtrc

from engine.arguments import one_of
from engine.binned import BinnedNLL
from engine.cost import Cost
from engine.data import Rows
from engine.leastsquares import LeastSquares
from engine.result import FitResult
from engine.status import Status
from engine.sums import SumCost, costs_of, observables_of
from engine.unbinned import ExtendedUnbinnedNLL, UnbinnedNLL
from toys.distances import DISTANCES, check_events, fitted_cdf, warn_of_error
from toys.hypotest import tail
from toys.study import Study
from toys.throwing import Thrower, check_n_events, entries_of

__all__ = ["GoodnessOfFit", "goodness_of_fit"]


@dataclass(frozen=True, eq=False)
class GoodnessOfFit:
    """The statistic of the data beside those of toys of the fitted model.

    Attributes
    ----------
    statistic : {"saturated", "ks", "ad"}
    observed : float
        Of the data.
    toys : (n_toys,) float64
        Of the toys, each with its own fit; NaN where that failed or there is nothing to compare.
    p_value, error : float
        Fraction of the toys that have one and are not better than the data, and its standard deviation; see
        `tail` in toys/hypotest.py.
    ties : int
        Toys equal to the data within 1e-6, which count as not better.
    failed : Counter, Status -> int
        Toys without a statistic; under CONVERGED those that have no events in the fit range.
    ndf : int or None
        Bins or points, and constraints, less the free parameters; None for distances, and for points with a loss.
    asymptotic : float or None
        p-value of the chi-square with `ndf` degrees of freedom: for "saturated", where ndf is positive.
    fit : FitResult
        Of the data, one row.
    sentence : str
        How the number came about.
    """

    statistic: str
    observed: float
    toys: np.ndarray
    p_value: float
    error: float
    ties: int
    failed: Counter[Status]
    ndf: int | None
    asymptotic: float | None
    fit: FitResult
    sentence: str

    @property
    def n_toys(self) -> int:
        return len(self.toys)

    def __repr__(self) -> str:
        return self.sentence


def goodness_of_fit(
    study: Study,
    *,
    data: Any = None,
    statistic: str = "saturated",
    n_toys: int = 1000,
    seed: int = 1,
    auxiliary: str = "redrawn",
    backend: str = "auto",
    device: str = "auto",
) -> GoodnessOfFit:
    """Whether the fitted model describes the data, from toys thrown at the fitted values and fitted themselves.

    | statistic | of | |
    | --- | --- | --- |
    | "saturated" | binned and least-squares costs, their sums | -2 log(L / L_saturated), or the chi-square |
    | "ks" | one unbinned cost of one observable | sup abs(F_n - F), Kolmogorov-Smirnov |
    | "ad" | the same | n int (F_n - F)^2 / (F (1 - F)) dF, Anderson-Darling |

    A constraint adds its own term to "saturated" and one to the degrees of freedom; "ks" and "ad" look at the events
    alone, and at their shape, not at their number.

    Parameters
    ----------
    study : Study
        Its sampler has no other parameters than the fit.
    data : optional
        One toy as `fit_batch` takes it; by default the study's.
    statistic : {"saturated", "ks", "ad"}
    n_toys, seed : int
        Toy k depends on (seed, k) and the fitted values alone.
    auxiliary : {"redrawn", "fixed"}
        Whether each toy has its own measured values of the constraints, drawn around the fitted values, or the
        observed ones.
    backend, device : str
        As for `fit_batch`.

    Returns
    -------
    GoodnessOfFit

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong form, there are no data, the cost has no such statistic, the sampler has other
        parameters than the fit or throws another number of events, or the fit of the data fails.
    """
    if not isinstance(study, Study):
        raise TypeError(f"study must be a toys.Study, got {type(study).__name__}")
    one_of("statistic", statistic, ("saturated", *DISTANCES))
    if not isinstance(n_toys, int | np.integer) or n_toys < 1:
        raise ValueError(f"n_toys must be a whole number of at least 1, got {n_toys!r}")
    data = study.data if data is None else data
    if data is None:
        raise ValueError("there are no observed data: pass data=, one toy as fit_batch takes it")
    other = [name for name in study.names if name not in study.cost.names]
    if other:
        raise ValueError(f"toys of the fitted model cannot be thrown: the fit has no parameter {other[0]!r}")
    rows = study.cost.rows(data)
    if len(rows) != 1:
        raise ValueError(f"data must be one toy, got {len(rows)}")
    n_free = len(set(study.cost.names) - set(study.fixed))
    number = _degrees_of_freedom(study.cost, rows) if statistic == "saturated" else None
    ndf = None if number is None else number - n_free
    if statistic != "saturated":
        _, cost, observable = _unbinned_part(study)
        check_events(cost, _unbinned_events(study, data), observable)
    fit = study.fit(data, backend=backend, device=device)
    if not fit.valid[0]:
        raise ValueError(f"the fit of the data failed ({Status(fit.status[0]).sentence}): pass other starts or limits")
    fitted = dict(zip(fit.names, fit.values[0].tolist(), strict=True))
    if statistic != "saturated":
        warn_of_error(cost, np.array([fitted[name] for name in cost.names]), observable)
    observed = float(_statistics(study, data, fit, statistic)[0])
    if not np.isfinite(observed):
        raise ValueError(f"the data have no {statistic!r} statistic at the fitted values, got {observed}")

    check_n_events(study, data)
    throw = Thrower(study, data, auxiliary=auxiliary, backend=backend, device=device)
    theta = {name: fitted[name] for name in study.names}
    values, status = np.empty(n_toys), np.empty(n_toys, dtype=np.int8)
    for first in range(0, n_toys, throw.chunk):
        stop = min(first + throw.chunk, n_toys)
        toys = throw(theta, stop - first, seed=seed, first=first)
        result = study.fit(toys, fitted, backend=backend, device=device)
        values[first:stop] = _statistics(study, toys, result, statistic)
        status[first:stop] = result.status
    return _compared(statistic, observed, values, status, ndf, replace(fit, problem=None), throw.sentence)


def _compared(
    statistic: str,
    observed: float,
    toys: np.ndarray,
    status: np.ndarray,
    ndf: int | None,
    fit: FitResult,
    constraints: str,
) -> GoodnessOfFit:
    found = tail(toys, observed)
    failed = Counter(Status(s) for s in status[~np.isfinite(toys)].tolist())
    asymptotic = float(chdtrc(ndf, observed)) if ndf is not None and ndf > 0 else None
    words = [
        f"{statistic} = {observed:.5g}: p = {found.p:.4g} +- {found.error:.2g} from {found.n} toys of the fitted model"
    ]
    words.append("each with its own fit")
    words += [constraints] if constraints else []
    words.append(f"{found.failed} toys failed, {found.ties} equal to the data")
    if asymptotic is not None:
        words.append(f"chi-square with {ndf} degrees of freedom: p = {asymptotic:.4g}")
    told = "; ".join(words) + "."
    return GoodnessOfFit(
        statistic, observed, toys, found.p, found.error, found.ties, failed, ndf, asymptotic, fit, told
    )


def _statistics(study: Study, data: Any, result: FitResult, statistic: str) -> np.ndarray:
    """The statistic of every toy, NaN where its fit is not valid."""
    if statistic == "saturated":
        values = result.fval / result.errordef  # errordef 0.5 is a likelihood: twice its logarithm
    else:
        _, cost, observable = _unbinned_part(study)
        theta = result.values[:, [result.names.index(name) for name in cost.names]]
        values = DISTANCES[statistic](*fitted_cdf(cost, _unbinned_events(study, data), theta, observable))
    return np.where(result.valid, values, np.nan)


def _degrees_of_freedom(cost: Cost, rows: Rows) -> int | None:
    """Bins or points that are used, and constraints, of a cost in saturated form; None where it is no chi-square.

    Raises
    ------
    ValueError
        If a cost has no saturated form.
    """
    number = 0
    if any(isinstance(part, LeastSquares) and part.loss != "linear" for part in cost.leaves):
        return None
    for part, leaf in zip(cost.leaves, rows.leaves, strict=True):
        if isinstance(part, UnbinnedNLL | ExtendedUnbinnedNLL):
            raise ValueError(
                f"{type(part).__name__} has no saturated form, its value tells nothing of the goodness of fit: pass "
                "statistic='ks' or 'ad' (--goodness-of-fit ks or ad)"
            )
        if "scale" in leaf.names:
            raise ValueError("weighted histograms have no saturated form: their value tells nothing")
        # of a BinnedNLL the total is that of the data
        number += int(leaf.offsets[1]) - isinstance(part, BinnedNLL) if part.takes_data else len(part.names)
    return number


def _unbinned_part(study: Study) -> tuple[int, Any, Any]:
    """Position and observable of the only cost that takes data, and the cost itself, which is unbinned.

    Raises
    ------
    ValueError
        If there is no such cost.
    """
    parts = costs_of(study.cost)
    taking = [k for k, part in enumerate(parts) if part.takes_data]
    if len(taking) != 1 or not isinstance(parts[taking[0]], UnbinnedNLL | ExtendedUnbinnedNLL):
        kinds = ", ".join(type(parts[k]).__name__ for k in taking)
        raise ValueError(f"'ks' and 'ad' are for one unbinned cost and its constraints, not for {kinds}")
    k = taking[0]
    return k, parts[k], observables_of(study.cost, study.observable)[k]


def _unbinned_events(study: Study, data: Any) -> Any:
    """The events, of the entries of a sum those of its unbinned cost."""
    return entries_of(study.cost, data)[_unbinned_part(study)[0]] if isinstance(study.cost, SumCost) else data
