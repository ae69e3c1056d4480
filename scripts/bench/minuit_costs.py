"""iminuit with its own cost functions and the densities of numba-stats."""

from typing import Any

import numpy as np
from bench.cases import Case, Templates
from bench.hand import MinuitFit, run_minuit
from iminuit import Minuit
from iminuit.cost import ExtendedBinnedNLL, ExtendedUnbinnedNLL, LeastSquares, NormalConstraint

from toys.models import XMAX, XMIN

__all__ = ["cost_of", "fit", "minuit_of"]


def cost_of(case: Case, k: int) -> Any:
    """iminuit's cost function of one toy."""
    toy = case.toy(k)
    if case.family == "peak":
        return ExtendedUnbinnedNLL(toy, spectrum)
    if case.family == "histogram":
        return ExtendedBinnedNLL(toy, case.detail, spectrum_cdf)
    if case.family == "templates":
        return templates_cost(case.detail, toy)
    x, _, error = case.data
    return LeastSquares(x, toy, error, line)


def spectrum(x, ns, nb, mu, sigma, lam):
    from numba_stats import truncexpon, truncnorm

    density = ns * truncnorm.pdf(x, XMIN, XMAX, mu, sigma) + nb * truncexpon.pdf(x, XMIN, XMAX, 0.0, lam)
    return ns + nb, density


def spectrum_cdf(x, ns, nb, mu, sigma, lam):
    from numba_stats import truncexpon, truncnorm

    return ns * truncnorm.cdf(x, XMIN, XMAX, mu, sigma) + nb * truncexpon.cdf(x, XMIN, XMAX, 0.0, lam)


def line(x, a, b):
    return a + b * x


def templates_cost(templates: Templates, toy: np.ndarray) -> Any:
    """The expectation as a running sum over bins, whose differences iminuit takes."""
    signal, backgrounds, log_kappa, shapes = templates
    n_norm, names = log_kappa.shape[1], templates.names

    def running(edges: Any, *theta: float) -> Any:
        alpha = np.array(theta[1:]).reshape(len(backgrounds), -1)
        events = backgrounds + np.einsum("bj,bjk->bk", alpha[:, n_norm:], shapes)
        nu = theta[0] * signal + np.exp((alpha[:, :n_norm] * log_kappa).sum(axis=1)) @ events
        return np.concatenate([[0.0], np.cumsum(nu)])

    counts = ExtendedBinnedNLL(toy, np.arange(len(signal) + 1.0), running, name=names)
    return counts + NormalConstraint(names[1:], np.zeros(len(names) - 1), np.ones(len(names) - 1))


def minuit_of(case: Case, k: int) -> Minuit:
    return Minuit(cost_of(case, k), *case.theta)


def fit(case: Case, k: int, strategy: int = 0, errors: bool = False) -> MinuitFit:
    return run_minuit(minuit_of(case, k), case.bounds, strategy, errors)
