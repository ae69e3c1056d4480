"""Quantile functions of densities that have none, tabulated once for all events.

The density is cut into panels until a Legendre series through 16 Gauss nodes follows it in each; the integral of the
series is the cdf. It is inverted at the nodes of panels of the probability, p below 1/2 and 1 - p above, so that either
tail is inverted from its own side, and these panels are cut until a polynomial through 16 nodes follows x(p) in each.
What is left for an event is a search and one polynomial, the same in numba and in JAX.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from numba import njit
from numpy.polynomial import chebyshev, legendre

from kernels.randombits import SMALLEST_UNIFORM

__all__ = ["NumericalPpf", "map_quantiles", "numerical_ppf", "quantiles"]

_NODES = 16
_FIRST_PANELS = 64
_MOST_PANELS = 2**14
_PRECISION = 1e-13
_EPS = np.finfo(np.float64).eps

_GAUSS, _WEIGHTS = legendre.leggauss(_NODES)
_WITH_EDGES = np.concatenate([[-1.0], _GAUSS, [1.0]])
# values at the Gauss nodes -> Legendre coefficients -> those of the integral from -1
_TO_LEGENDRE = (np.arange(_NODES) + 0.5)[:, None] * _WEIGHTS * legendre.legvander(_GAUSS, _NODES - 1).T
_TO_INTEGRAL = legendre.legint(np.eye(_NODES), lbnd=-1)

_CHEBYSHEV = chebyshev.chebpts1(_NODES)
_BETWEEN = chebyshev.chebpts2(_NODES + 1)
# values at the Chebyshev nodes -> Chebyshev coefficients -> powers; in one step the powers would lose 4 digits
_TO_CHEBYSHEV = np.linalg.inv(chebyshev.chebvander(_CHEBYSHEV, _NODES - 1))
_TO_POWERS = np.array([np.pad(chebyshev.cheb2poly(c), (0, _NODES - 1 - k)) for k, c in enumerate(np.eye(_NODES))]).T


def numerical_ppf(pdf: Callable, xmin: float, xmax: float) -> "NumericalPpf":
    """The quantile function of any density on a finite range; see `NumericalPpf`.

    Examples
    --------
    >>> Component("ns", numerical_ppf(voigt.pdf, 0.0, 10.0), ("gamma", "mu", "sigma"))
    """
    return NumericalPpf(pdf, xmin, xmax)


@dataclass(frozen=True)
class NumericalPpf:
    """The inverse of the cdf of a density on [xmin, xmax], by integration and interpolation.

    The error of the cdf at a quantile of p is below 1e-12, or what a few roundings of x make of it. Steps and kinks of
    the density are found. So is a peak of any width at a value of one of the parameters; one that stands elsewhere is
    found where it is wider than 1e-4 of the range.

    Attributes
    ----------
    pdf : callable
        `pdf(x, *args) -> ()`, in jax.numpy, called with one x; need not be normalised.
    xmin, xmax : float

    Raises
    ------
    ValueError
        If the range is not finite or empty.
    """

    pdf: Callable
    xmin: float
    xmax: float

    def __post_init__(self) -> None:
        if not (np.isfinite(self.xmin) and np.isfinite(self.xmax) and self.xmin < self.xmax):
            raise ValueError(f"the range of a density must be finite, xmin < xmax, got {self.xmin} to {self.xmax}")

    def __call__(self, p: ArrayLike, *args: float) -> Array:
        """Quantiles of probabilities in (0, 1); NaN elsewhere. The parameters must be known numbers."""
        with jax.enable_x64(True):
            p = jnp.asarray(p, jnp.float64)
            return jnp.where((p > 0) & (p < 1), quantiles(jnp.asarray(self.table(*args)), p), jnp.nan)

    def table(self, *args: float) -> np.ndarray:
        """What `quantiles` and `map_quantiles` need, at known parameters.

        Raises
        ------
        ValueError
            If the density is negative or not finite somewhere, vanishes everywhere, or cannot be integrated.
        """
        return _quantile_table(_integrated(self, args), _called(self, args))


class _Cdf(NamedTuple):
    """A normalised density as Legendre series in panels of x."""

    lower: np.ndarray  # (n,)
    half: np.ndarray  # (n,), half of the widths
    pdf: np.ndarray  # (nodes, n), coefficients, times half
    integral: np.ndarray  # (nodes + 1, n), from the lower edge
    left: np.ndarray  # (n,), mass left of a panel
    right: np.ndarray  # (n,), mass right of it
    window: tuple[float, float]
    rounding: float  # of x

    def mass(self, x: np.ndarray, from_left: np.ndarray) -> np.ndarray:
        """Probability below x, or above it."""
        panel = np.clip(np.searchsorted(self.lower, x, side="right") - 1, 0, None)
        t = np.clip((x - self.lower[panel]) / self.half[panel] - 1.0, -1.0, 1.0)
        inside = legendre.legval(t, self.integral[:, panel], tensor=False)
        whole = self.integral[0, panel] + self.integral[1:, panel].sum(axis=0)
        return np.where(from_left, self.left[panel] + inside, self.right[panel] + (whole - inside))

    def solve(self, key: np.ndarray) -> np.ndarray:
        """Where the probability below x is `key` > 0, or that above it -`key` > 0: Newton's steps within a bracket."""
        from_left, last = key > 0, len(self.lower) - 1
        below = np.searchsorted(self.left, key, side="right") - 1
        above = last + 1 - np.searchsorted(self.right[::-1], -key, side="right")
        panel = np.clip(np.where(from_left, below, above), 0, last)
        pdf, integral = self.pdf[:, panel], self.integral[:, panel]
        whole = integral.sum(axis=0)
        target = np.where(from_left, key - self.left[panel], whole + (self.right[panel] + key))
        low, high = np.full(key.shape, -1.0), np.full(key.shape, 1.0)
        t = np.clip(2.0 * target / np.where(whole > 0, whole, 1.0) - 1.0, -1.0, 1.0)
        for _ in range(100):
            value = legendre.legval(t, integral, tensor=False) - target
            slope = legendre.legval(t, pdf, tensor=False)
            low, high = np.where(value > 0, low, t), np.where(value > 0, t, high)
            new = t - value / np.where(slope > 0, slope, 1.0)
            new = np.where((slope > 0) & (new >= low) & (new <= high), new, 0.5 * (low + high))
            moved, t = np.abs(new - t), new
            if np.all(moved <= 2 * _EPS):
                break
        return self.lower[panel] + self.half[panel] * (1.0 + t)


def _integrated(ppf: NumericalPpf, args: tuple[float, ...]) -> _Cdf:
    """The density in panels that are halved until the edges and the last coefficients agree with the series."""
    rounding = _EPS * max(abs(ppf.xmin), abs(ppf.xmax))
    within = [float(a) for a in args if ppf.xmin < a < ppf.xmax]
    edges = np.unique(np.concatenate([np.linspace(ppf.xmin, ppf.xmax, _FIRST_PANELS + 1), within]))
    lower, upper = edges[:-1], edges[1:]
    made: list[tuple[np.ndarray, ...]] = []
    done, n_done = 0.0, 0
    while len(lower):
        if n_done + len(lower) > _MOST_PANELS:
            raise ValueError(f"{_called(ppf, args)} is too rough to be integrated, near x = {lower[0]:g}")
        half = 0.5 * (upper - lower)
        x = np.clip(lower[:, None] + half[:, None] * (1.0 + _WITH_EDGES), lower[:, None], upper[:, None])
        f = _evaluated(ppf, x, args) * half[:, None]
        series = f[:, 1:-1] @ _TO_LEGENDRE.T
        at_edges = np.abs(series @ legendre.legvander([-1.0, 1.0], _NODES - 1).T - f[:, [0, -1]]).max(axis=1)
        error = 2.0 * np.maximum(np.abs(series[:, -2:]).sum(axis=1), at_edges)
        mass = f[:, 1:-1] @ _WEIGHTS
        total = done + mass.sum()
        # the last is what one rounding of x makes of the density
        noise = 16 * rounding * np.ptp(f, axis=1) / half
        good = error <= np.maximum(np.maximum(_PRECISION * mass, 1e-17 * total), noise)
        made.append((lower[good], half[good], series[good]))
        done, n_done = done + mass[good].sum(), n_done + int(np.count_nonzero(good))
        middle = (lower + half)[~good]
        lower, upper = np.concatenate([lower[~good], middle]), np.concatenate([middle, upper[~good]])
    lower, half, series = (np.concatenate(parts) for parts in zip(*made, strict=True))
    order = np.argsort(lower)
    integral = _TO_INTEGRAL @ series[order].T
    mass = integral.sum(axis=0)
    total = mass.sum()
    if not total > 0:
        raise ValueError(f"{_called(ppf, args)} vanishes between {ppf.xmin:g} and {ppf.xmax:g}")
    left, right = np.cumsum(mass) - mass, np.cumsum(mass[::-1])[::-1] - mass
    series = series[order].T / total
    window = ppf.xmin, ppf.xmax
    return _Cdf(lower[order], half[order], series, integral / total, left / total, right / total, window, rounding)


def _quantile_table(cdf: _Cdf, called: str) -> np.ndarray:
    """x(key) in panels that are halved until the cdf of the polynomial is the key, or x right to rounding."""
    positive = 2.0 ** np.arange(np.log2(SMALLEST_UNIFORM), 0.0)
    edges = np.concatenate([-positive[::-1], positive])
    lower, upper = np.delete(edges[:-1], len(positive) - 1), np.delete(edges[1:], len(positive) - 1)
    made: list[tuple[np.ndarray, ...]] = []
    while len(lower):
        if sum(len(parts[0]) for parts in made) + len(lower) > _MOST_PANELS:
            raise ValueError(f"{called} has a cdf that is too rough to be inverted, near p = {lower[0] % 1.0:g}")
        centre, half = 0.5 * (lower + upper)[:, None], 0.5 * (upper - lower)[:, None]
        powers = cdf.solve(centre + half * _CHEBYSHEV) @ _TO_CHEBYSHEV.T @ _TO_POWERS.T
        key = centre + half * _BETWEEN
        x = powers @ np.vander(_BETWEEN, _NODES, increasing=True).T
        off = np.abs(cdf.mass(x, key > 0) - np.abs(key)) <= 1e-16 + _PRECISION * np.abs(key)
        good = np.all(off | (np.abs(x - cdf.solve(key)) <= 4 * cdf.rounding), axis=1) | (upper - lower <= _EPS)
        made.append((lower[good], centre[good, 0], 1.0 / half[good, 0], powers[good]))
        middle = centre[~good, 0]
        lower, upper = np.concatenate([lower[~good], middle]), np.concatenate([middle, upper[~good]])
    lower, centre, scale, powers = (np.concatenate(parts) for parts in zip(*made, strict=True))
    order = np.argsort(lower)
    # filled up to a multiple of 64 panels with such as are never reached, so that few shapes are compiled
    filled = [np.pad(a[order], (0, -len(order) % 64), constant_values=1.0) for a in (lower, centre, scale)]
    return np.concatenate([*filled, powers[order].ravel(), np.zeros((-len(order) % 64) * _NODES), cdf.window])


def quantiles(table: Array, u: Array) -> Array:
    """Quantiles of uniform numbers, in JAX.

    Parameters
    ----------
    table : (length,) float64
        Of `NumericalPpf.table`.
    u : (n,) float64
        From 2^-53 to 1 - 2^-53.
    """
    n = table.shape[0] // (_NODES + 3)
    key = jnp.where(u <= 0.5, u, u - 1.0)  # exact
    panel = jnp.clip(jnp.searchsorted(table[:n], key, side="right") - 1, 0)
    t = jnp.clip((key - table[n + panel]) * table[2 * n + panel], -1.0, 1.0)
    at = 3 * n + _NODES * panel
    x = table[at + _NODES - 1]
    for k in range(_NODES - 2, -1, -1):
        x = x * t + table[at + k]
    return jnp.clip(x, table[-2], table[-1])  # rounding must not bring an event to where its density is 0


@njit(error_model="numpy", nogil=True, cache=True)
def map_quantiles(theta, rows, begin, end):
    """`quantiles` of row 0 in place; theta is the table. For `randombits.map_uniforms`."""
    n = len(theta) // (_NODES + 3)
    for i in range(begin, end):
        u = rows[0, i]
        key = u if u <= 0.5 else u - 1.0
        low, left = 0, n - 1
        while left > 0:  # without branches that depend on u, which no processor can predict
            half = (left + 1) // 2
            low += half * np.int64(theta[low + half] <= key)
            left -= half
        t = min(max((key - theta[n + low]) * theta[2 * n + low], -1.0), 1.0)
        at = 3 * n + _NODES * low
        x = theta[at + _NODES - 1]
        for k in range(_NODES - 2, -1, -1):
            x = x * t + theta[at + k]
        rows[0, i] = min(max(x, theta[-2]), theta[-1])


def _evaluated(ppf: NumericalPpf, x: np.ndarray, args: tuple[float, ...]) -> np.ndarray:
    """The density at many points, in blocks of one size, so that it is compiled once."""
    block = _FIRST_PANELS * (_NODES + 2)
    points = np.pad(x.ravel(), (0, -x.size % block), mode="edge").reshape(-1, block)
    with jax.enable_x64(True), jax.ensure_compile_time_eval():
        numbers = [jnp.asarray(a, jnp.float64) for a in args]
        density = np.concatenate([_compiled(ppf.pdf)(jnp.asarray(row), *numbers) for row in points])
    if density.ndim != 1:
        raise ValueError(f"{_called(ppf, args)} must return a number for one x, got shape {density.shape[1:]}")
    density = density[: x.size].reshape(x.shape)
    wrong = ~(np.isfinite(density) & (density >= 0))
    if wrong.any():
        k = tuple(np.argwhere(wrong)[0])
        raise ValueError(f"{_called(ppf, args)} must be finite and not negative, got {density[k]} at x = {x[k]:g}")
    return density.astype(np.float64)


@lru_cache(maxsize=64)
def _compiled(pdf: Callable) -> Callable:
    return jax.jit(lambda x, *args: jax.vmap(lambda each: pdf(each, *args))(x))


def _called(ppf: NumericalPpf, args: tuple[float, ...]) -> str:
    name = getattr(ppf.pdf, "__name__", type(ppf.pdf).__name__)
    return f"the density '{name}' with parameters ({', '.join(f'{a:g}' for a in args)})"
