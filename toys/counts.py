"""Toys of histograms: Poisson counts, and counts of a fixed total.

A count is drawn by inversion: a uniform number, bit for bit the same on both backends, is looked up in a table of
cumulative probabilities that NumPy computes once.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.typing import ArrayLike

from engine.binned import BinnedNLL, ExtendedBinnedNLL
from engine.poisson import PoissonNLL
from engine.simulated import Template
from kernels import randombits
from toys.drawing import Row, Sampler, checked_theta, evaluated

__all__ = [
    "LARGEST_MEAN",
    "CountTables",
    "MultinomialCounts",
    "PoissonCounts",
    "TemplateCounts",
    "poisson_table",
    "poisson_tables",
]

LARGEST_MEAN = 1e9
_LARGEST_TABLES = 2**27  # numbers: 1 GiB


@partial(jax.tree_util.register_dataclass, data_fields=["tables", "offsets", "least"], meta_fields=["turns"])
@dataclass(frozen=True)
class CountTables:
    """Tables of several counts: count c of a uniform number u is least[c] plus the number of its entries <= u.

    Attributes
    ----------
    tables : (length,) float64
        One after the other, each increasing.
    offsets : (n + 1,) int64
        Table c is tables[offsets[c]:offsets[c + 1]].
    least : (n,) int64
    turns : int
        Bisections that the longest table takes.
    """

    tables: np.ndarray
    offsets: np.ndarray
    least: np.ndarray
    turns: int

    @classmethod
    def of(cls, tables: Sequence[np.ndarray], least: Sequence[int]) -> "CountTables":
        offsets = np.concatenate([[0], np.cumsum([len(table) for table in tables], dtype=np.int64)])
        longest = max((len(table) for table in tables), default=0)
        flat = np.concatenate([np.empty(0), *tables])
        # filled up, so that few shapes are compiled
        step = 1 << max(6, len(flat).bit_length() - 3)
        return cls(np.pad(flat, (0, step - len(flat) % step)), offsets, np.array(least, np.int64), longest.bit_length())

    def throw(self, function: Any, keys: np.ndarray) -> np.ndarray:
        """Counts of the toys of these keys, (n_toys, n) float64, with the numbers that the function takes."""
        counts = np.empty((len(keys), len(self.least)))
        randombits.table_counts(function, keys, self.tables, np.concatenate([self.offsets, self.least]), counts)
        return counts

    def draw(self, u: Array) -> Array:
        """Counts of uniform numbers, (n,) int64."""
        tables, offsets = jnp.asarray(self.tables), jnp.asarray(self.offsets)
        low, high = offsets[:-1], offsets[1:]

        def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bracket
            middle = (low + high) // 2
            up = (low < high) & (tables[middle] <= u)
            return jnp.where(up, middle + 1, low), jnp.where(up, high, middle)

        return lax.fori_loop(0, self.turns, halve, (low, high))[0] - offsets[:-1] + self.least


@dataclass(frozen=True)
class PoissonCounts(Sampler):
    """Independent Poisson counts in bins: pseudo-data of an extended binned fit.

    The count of bin b is drawn with number b of stream 0 of the toy's key.

    Attributes
    ----------
    expected : callable
        `expected(*theta) -> (n_bins,)` events, in jax.numpy; evaluated once, in float64.
    names : tuple of str
        Parameters, in the order of theta.

    Examples
    --------
    >>> PoissonCounts.of(ExtendedBinnedNLL(scaled_cdf, edges)).generate(theta, n_toys=1000, seed=1)
    """

    expected: Callable
    names: tuple[str, ...]
    form = Row()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))

    @classmethod
    def of(cls, cost: ExtendedBinnedNLL | PoissonNLL) -> "PoissonCounts":
        """The toys of a cost.

        Raises
        ------
        TypeError
            If the cost is not one of Poisson counts.
        """
        if isinstance(cost, PoissonNLL):
            return cls(cost.model, cost.names)
        if isinstance(cost, ExtendedBinnedNLL):
            return cls(cost.contents, cost.names)
        other = ", whose toys are TemplateCounts" if isinstance(cost, Template) else ""
        raise TypeError(f"Poisson counts are the toys of ExtendedBinnedNLL and PoissonNLL, not of {_kind(cost)}{other}")

    def prepare(self, theta: ArrayLike) -> CountTables:
        """Poisson tables of all bins.

        Raises
        ------
        ValueError
            If theta has the wrong length or is not finite; if an expected count is negative or larger than 1e9, or the
            tables of all bins do not fit into 1 GiB.
        """
        return poisson_tables(_contents(self.expected, checked_theta(theta, self.names), most=LARGEST_MEAN))

    def draw(self, key: Array, tables: CountTables) -> Array:
        u = randombits.uniform(jax.random.fold_in(key, 0), len(tables.least))
        return tables.draw(u).astype(jnp.float64)

    def throw(self, tables: CountTables, keys: np.ndarray) -> np.ndarray:
        return tables.throw(randombits.bin_counts, keys)

    def size(self, tables: CountTables) -> int:
        return len(tables.least)


@dataclass(frozen=True)
class TemplateCounts(PoissonCounts):
    """Counts whose expectation is as uncertain as the templates that it comes from: pseudo-data of `Template`.

    The templates of a fit are those that were simulated. Other simulations would give others, by which the fits differ:
    in place of them the true expectation varies here, around that of the templates. It is mu beta in a bin, with beta
    from a gamma distribution of mean 1 and variance v = (error / mu)^2, so that the count is negative binomial. Fits of
    such toys have pulls of width 1, and those of Poisson counts of mu less.

    Attributes
    ----------
    expected, names
        As of `PoissonCounts`.
    error : callable
        `error(*theta) -> (n_bins,)`: the standard deviations of the expected events.
    """

    error: Callable

    @classmethod
    def of(cls, cost: Template) -> "TemplateCounts":  # type: ignore[override]
        """The toys of a cost; TypeError if it is no `Template`."""
        if not isinstance(cost, Template):
            raise TypeError(f"counts of uncertain templates are the toys of Template, not of {_kind(cost)}")
        return cls(cost.model, cost.names, cost.error)

    def prepare(self, theta: ArrayLike) -> CountTables:
        """Tables of all bins; raises as `PoissonCounts.prepare`."""
        theta = checked_theta(theta, self.names)
        means = _contents(self.expected, theta, most=LARGEST_MEAN)
        error = evaluated(self.error, *theta)
        return poisson_tables(means, np.where(means > 0, error / np.where(means > 0, means, 1.0), 0.0) ** 2)


@dataclass(frozen=True)
class MultinomialCounts(Sampler):
    """Histograms of a fixed number of events: pseudo-data of `BinnedNLL`.

    Event i falls into the bin that number i of stream 0 of the toy's key tells.

    Attributes
    ----------
    expected : callable
        `expected(*theta) -> (n_bins,)` in jax.numpy, proportional to the probabilities; evaluated once, in float64.
    names : tuple of str
        Parameters, in the order of theta.
    n_events : int

    Raises
    ------
    ValueError
        If there are not 0 <= n_events <= 1e9.
    """

    expected: Callable
    names: tuple[str, ...]
    n_events: int
    form = Row()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "n_events", checked_number(self.n_events))

    @classmethod
    def of(cls, cost: BinnedNLL, n_events: int) -> "MultinomialCounts":
        """The toys of a cost.

        Raises
        ------
        TypeError
            If the cost is not a `BinnedNLL`.
        """
        if isinstance(cost, BinnedNLL):
            return cls(cost.contents, cost.names, n_events)
        raise TypeError(f"counts of a fixed total are the toys of BinnedNLL, not of {_kind(cost)}")

    def prepare(self, theta: ArrayLike) -> np.ndarray:
        """Probability to fall below the upper edge, of all bins but the last.

        Raises
        ------
        ValueError
            If theta has the wrong length or is not finite; if a probability is negative, or all are zero.
        """
        contents = _contents(self.expected, checked_theta(theta, self.names))
        if not contents.sum() > 0:
            raise ValueError("no bin has a positive expected count")
        return thresholds(contents)

    def draw(self, key: Array, table: Array) -> Array:
        return counted(key, table, self.n_events).astype(jnp.float64)

    def throw(self, table: np.ndarray, keys: np.ndarray) -> np.ndarray:
        return tallied(keys, table, self.n_events)

    def size(self, table: np.ndarray) -> int:
        return len(table) + 1 + self.n_events


def poisson_table(mean: float, spread: float = 0.0) -> tuple[int, np.ndarray]:
    """Cumulative Poisson probabilities as a table, for inversion.

    The count of a uniform number u is least + number of entries <= u. The probabilities are summed from the
    ratios p(k + 1) / p(k) = mean / (k + 1) in elementary operations of IEEE 754 and a fixed order, so that
    the table is the same on every machine. (scipy.special.pdtr is wrong by 1e-6 at a mean of 1e8.)

    Parameters
    ----------
    mean : float
    spread : float
        Variance, in units of the square of its mean, of a mean that is gamma distributed: the count is then negative
        binomial, and the ratio times (1 + k spread) / (1 + mean spread).

    Returns
    -------
    least : int
        Smallest count that a uniform number gives.
    table : (length,) float64
        P(N <= k) for k = least, least + 1, ..., without entries above or below all uniform numbers.
    """
    if mean == 0.0:
        return 0, np.empty(0)
    # beyond 10 standard deviations (and 40 events at small means) the probability is far below 2^-53
    width, wider = 10.0 * np.sqrt(mean * (1.0 + mean * spread)), 1.0 + mean * spread
    lowest = max(0, int(mean - width) - 10)
    highest = int(mean + width) + int(40 * wider)
    k = np.arange(lowest, highest + 1, dtype=np.float64)
    mode = int(mean) - lowest
    growth = mean * (1.0 + (k - 1.0) * spread) / wider  # times 1 / k: p(k) / p(k - 1)
    upward = np.cumprod(growth[mode + 1 :] / k[mode + 1 :])
    downward = np.cumprod(k[mode:0:-1] / growth[mode:0:-1])
    ratios = np.concatenate([downward[::-1], [1.0], upward])
    # each tail is summed from its own end
    below, above = np.cumsum(ratios), np.append(np.cumsum(ratios[:0:-1])[::-1], 0.0)
    total = below[mode] + above[mode]
    cdf = np.where(k < mode + lowest, below, total - above) / total
    reached = int(np.count_nonzero(cdf <= randombits.SMALLEST_UNIFORM))
    return lowest + reached, cdf[reached : np.count_nonzero(cdf <= randombits.LARGEST_UNIFORM)]


def poisson_tables(means: np.ndarray, spreads: np.ndarray | None = None) -> CountTables:
    """Tables of several means, and of what these vary; ValueError if they take more than 1 GiB."""
    spreads = np.zeros(len(means)) if spreads is None else spreads
    # a table covers about 17 standard deviations
    wider = 1.0 + means * spreads
    if np.sum(20.0 * np.sqrt(means * wider) + 60.0 * wider) > _LARGEST_TABLES:
        raise ValueError(f"the Poisson tables of {len(means)} bins with up to {means.max():g} events exceed 1 GiB")
    made = [poisson_table(mean, spread) for mean, spread in zip(means, spreads, strict=True)]
    return CountTables.of([table for _, table in made], [least for least, _ in made])


def thresholds(contents: np.ndarray) -> np.ndarray:
    """Where the uniform numbers of one bin end and those of the next begin, (n_bins - 1,)."""
    table = np.cumsum(contents)[:-1] / np.sum(contents)
    table[np.flatnonzero(contents)[-1] :] = 2.0  # no rounding gives events to empty bins at the end
    return table


def counted(key: Array, table: Array, n_events: int) -> Array:
    """How many of the first n_events numbers of stream 0 fall between the entries of a table, in JAX: (n + 1,)."""
    if not n_events:
        return jnp.zeros(table.shape[0] + 1, jnp.int64)
    u = randombits.uniform(jax.random.fold_in(key, 0), n_events)
    found = jnp.searchsorted(table, u, side="right")
    return jnp.zeros(table.shape[0] + 1, jnp.int64).at[found].add(1)


def tallied(keys: np.ndarray, table: np.ndarray, n_events: int) -> np.ndarray:
    """As `counted`, for the toys of these keys, by numba: (n_toys, n + 1) float64."""
    counts = np.empty((len(keys), len(table) + 1))
    randombits.table_counts(randombits.tally, keys, table, np.array([n_events]), counts)
    return counts


def checked_number(n_events: Any) -> int:
    """A number of events; ValueError or TypeError if it is none."""
    n = operator.index(n_events)
    if not 0 <= n <= LARGEST_MEAN:
        raise ValueError(f"n_events must lie in [0, 1e9], got {n}")
    return n


def _contents(expected: Callable, theta: np.ndarray, most: float = np.finfo(np.float64).max) -> np.ndarray:
    contents = evaluated(expected, *theta)
    if contents.ndim != 1 or not len(contents):
        raise ValueError(f"expected must return an array of shape (n_bins,), got {contents.shape}")
    wrong = np.flatnonzero(~((contents >= 0) & (contents <= most)))
    if len(wrong):
        raise ValueError(f"expected counts must lie in [0, {most:g}], got {contents[wrong[0]]} in bin {wrong[0]}")
    return contents


def _kind(cost: Any) -> str:
    return type(cost).__name__
