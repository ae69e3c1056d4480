"""Exact Feldman-Cousins intervals of a Poisson mean over a known background, by sums over the Poisson distribution.

A count n is ordered by the likelihood ratio R(n; mu) = P(n | mu + b) / P(n | mu_best + b) with mu_best = max(0, n - b),
which is t(n; mu) = -2 log R. An observed n0 is accepted at mu where the counts of larger R have a total probability
below cl, which is the same as

    p(n0; mu) = sum of P(n | mu + b) over all n with R(n; mu) <= R(n0; mu)  >  1 - cl,

the p-value of t. The interval is all mu that accept n0, from the smallest to the largest: because n is discrete, there
may be gaps between them.

References
----------
Feldman & Cousins, Phys. Rev. D57 (1998) 3873, sec. IV.
"""

from typing import Any

import numpy as np
from scipy.special import chdtri, gammaincinv, gammaln, xlogy

__all__ = ["TIE", "poisson_interval", "poisson_p_value", "poisson_statistic"]

TIE = 1e-6  # statistics that differ by less are equal
STEP = 0.005  # of mu, as in the tables of Feldman & Cousins
REACH = 5.0  # how much larger backgrounds the monotonic correction looks at,
WIDEST, NARROWEST = 0.04, 0.0005  # in intervals of these widths
BISECTIONS = 40
_AT_ONCE = 4096


def poisson_statistic(n: Any, mu: Any, background: Any) -> np.ndarray:
    """t = -2 log R(n; mu) for n events where mu + background are expected, mu >= 0.

    With s = mu + b and m = max(n, b), which is the best expectation, t = 2 (s - m + n log(m / s)).

    Parameters
    ----------
    n, mu, background : arrays of shapes that broadcast

    Returns
    -------
    Array of the common shape; infinite where events are seen and none is possible.
    """
    n, mu, background = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (n, mu, background)))
    expected, best = mu + background, np.maximum(n, background)
    with np.errstate(divide="ignore"):
        ratio = np.divide(best, expected, out=np.full(n.shape, np.inf), where=expected > 0)
        return np.maximum(2.0 * ((expected - best) + xlogy(n, ratio)), 0.0)


def poisson_p_value(n: Any, mu: Any, background: float) -> np.ndarray:
    """Probability of a count whose t at mu is at least that of n: the exact p-value of the construction.

    Counts whose t is smaller by less than 1e-6 count as well, so that ties do not depend on rounding.

    Parameters
    ----------
    n : (...) int
        Observed counts.
    mu : (...) float64
        Tested means, not negative; of a shape that broadcasts with n.
    background : float
    """
    n, mu = np.broadcast_arrays(np.asarray(n, dtype=np.float64), np.asarray(mu, dtype=np.float64))
    p = np.empty(n.shape)
    flat_n, flat_mu, flat_p = n.ravel(), mu.ravel(), p.ravel()
    for first in range(0, len(flat_n), _AT_ONCE):
        some = slice(first, first + _AT_ONCE)
        n_some, mu_some = flat_n[some, None], flat_mu[some, None]
        highest = mu_some.max() + background
        # the counts beyond have less than 1e-15 of the probability
        counts = np.arange(max(n_some.max(), highest + 9.0 * np.sqrt(highest) + 30.0) + 1.0)
        less = poisson_statistic(counts, mu_some, background) < poisson_statistic(n_some, mu_some, background) - TIE
        expected = mu_some + background
        pmf = np.exp(xlogy(counts, expected) - expected - gammaln(counts + 1.0))
        inside = np.sum(np.where(less, pmf, 0.0), axis=1)
        flat_p[some] = np.maximum(1.0 - inside, 0.0)
    return flat_p.reshape(n.shape)


def poisson_interval(n: int, background: float, *, cl: float = 0.9, monotonic: bool = False) -> tuple[float, float]:
    """The Feldman-Cousins interval of mu where n events were seen and mu + background are expected.

    Its ends are the outermost mu that accept n, found on a grid of 0.005 and then by bisection to rounding.

    Parameters
    ----------
    n : int
        Observed events.
    background : float
        Known, in events.
    cl : float
        Confidence level.
    monotonic : bool
        Whether the upper end is raised to the largest that any larger background would give, as in the published
        tables: the discreteness of n makes it rise here and there with the background, by which an experiment with
        more background would have the better limit. Backgrounds up to 5 events larger are looked at.

    Returns
    -------
    (lower, upper) : float

    Raises
    ------
    ValueError
        If n is no count, the background is negative or not finite, or cl does not lie between 0 and 1.

    References
    ----------
    Feldman & Cousins, Phys. Rev. D57 (1998) 3873, sec. IV B, tables II to IX.
    """
    if not float(n).is_integer() or n < 0:
        raise ValueError(f"n must be a number of events, 0 or more, got {n!r}")
    if not (np.isfinite(background) and background >= 0):
        raise ValueError(f"background must be finite and not negative, got {background!r}")
    if not 0.0 < cl < 1.0:
        raise ValueError(f"cl must lie between 0 and 1, got {cl!r}")
    # ten times the confidence on one side, and for n = 0 no background, which leaves the widest interval
    tail = 0.05 * (1.0 - cl)
    low = max(0.0, gammaincinv(n, tail) - background if n else 0.0)
    high = 0.5 * chdtri(2 * (n + 1), tail)
    mu = np.append(np.arange(low, high, STEP), high)
    accepted = np.flatnonzero(_accepts(n, mu, background, cl))
    first, last = accepted[0], accepted[-1]
    lower = mu[first] if mu[first] == 0.0 else _edge(n, mu[first - 1], mu[first], background, cl)
    upper = _edge(n, mu[last + 1], mu[last], background, cl)
    if monotonic:
        upper = _raised(n, upper, mu[-1], background, cl)
    return float(lower), float(upper)


def _accepts(n: int, mu: Any, background: float, cl: float) -> np.ndarray:
    return poisson_p_value(n, mu, background) > 1.0 - cl


def _edge(n: int, outside: float, inside: float, background: float, cl: float) -> float:
    """Where the acceptance of n begins, between a mu that does not accept it and one that does."""
    for _ in range(BISECTIONS):
        middle = 0.5 * (outside + inside)
        if _accepts(n, middle, background, cl):
            inside = middle
        else:
            outside = middle
    return inside


def _raised(n: int, upper: float, highest: float, background: float, cl: float) -> float:
    """The largest upper end at this or any larger background.

    With growing b the upper end jumps up, or falls with a slope of -1 at most, so that between two backgrounds it is
    below the one at the larger, plus their distance: intervals of b that can hold no larger end are dropped, and the
    others halved.
    """
    width, high, step = WIDEST, highest, STEP
    ends = background + width * np.arange(1.0, REACH / width + 1.0)
    while width > NARROWEST and len(ends):
        mu = np.append(np.arange(max(upper - width, 0.0), high, step), high)
        found = np.array([_largest(n, mu, b, cl) for b in ends])
        upper = max(upper, found.max())
        ends = ends[found + width > upper]
        width *= 0.5
        ends = np.concatenate([ends - width, ends])
        # the mu that are accepted become few where the upper end is largest
        high, step = min(highest, upper + 8.0 * width), 0.25 * width
    return upper


def _largest(n: int, mu: np.ndarray, background: float, cl: float) -> float:
    """The largest of increasing mu that accepts n, -inf if none does."""
    return float(np.max(mu, where=_accepts(n, mu, background, cl), initial=-np.inf))
