"""A density within [xmin, xmax], made of any density that has a cdf.

f(x) = g(x) / (G(xmax) - G(xmin)) for xmin <= x <= xmax, with the density g and its cdf G.

    trunccauchy.pdf(x, xmin, xmax, loc, scale)
    truncate(lognorm).pdf(x, xmin, xmax, s, loc, scale)

The parameters of g follow the edges, which may be infinite. The mass is a difference of two cdfs: its relative error is
eps over the mass, so where a window lies far in the upper tail of a density that falls like a normal distribution, take
`kernels.truncnorm`. NaN comes out where g or G does or xmax <= xmin. The edges belong to the support.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array

from kernels import cauchy, crystalball, crystalball_ex
from kernels._special import clip, finite, positive, probability, zero_or_nan

__all__ = ["Truncated", "truncate", "trunccauchy", "trunccrystalball", "trunccrystalball_ex"]


class Truncated(NamedTuple):
    """The functions of a truncated density; each takes (x or p, xmin, xmax, *parameters)."""

    pdf: Callable[..., Array]
    logpdf: Callable[..., Array]
    cdf: Callable[..., Array]
    ppf: Callable[..., Array]


def truncate(density: ModuleType | Any) -> Truncated:
    """The density within a window.

    Parameters
    ----------
    density : module or object
        With `pdf`, `logpdf` and `cdf`, and with `ppf` if the result's `ppf` is to be called.

    Returns
    -------
    Truncated
    """

    def edges(xmin: Array | float, xmax: Array | float, theta: tuple) -> tuple[Array, Array]:
        """cdf at xmin, and mass."""
        below = density.cdf(finite(xmin), *theta)
        mass = density.cdf(finite(xmax), *theta) - below
        return below, positive(jnp.where(xmin < xmax, mass, jnp.nan))

    def pdf(x: Array | float, xmin: Array | float, xmax: Array | float, *theta: Array | float) -> Array:
        """Probability density in 1 / unit of x; 0 outside of [xmin, xmax]."""
        mass = edges(xmin, xmax, theta)[1]
        inside = density.pdf(clip(x, finite(xmin), finite(xmax)), *theta) * (1.0 / mass)
        return jnp.where((x < xmin) | (x > xmax), zero_or_nan(mass), inside)

    def logpdf(x: Array | float, xmin: Array | float, xmax: Array | float, *theta: Array | float) -> Array:
        """Logarithm of `pdf`; -inf outside of [xmin, xmax]."""
        mass = edges(xmin, xmax, theta)[1]
        inside = density.logpdf(clip(x, finite(xmin), finite(xmax)), *theta) - jnp.log(mass)
        return jnp.where((x < xmin) | (x > xmax), zero_or_nan(mass) - jnp.inf, inside)

    def cdf(x: Array | float, xmin: Array | float, xmax: Array | float, *theta: Array | float) -> Array:
        """Probability of a value below x: 0 up to xmin and 1 from xmax."""
        below, mass = edges(xmin, xmax, theta)
        inside = (density.cdf(clip(x, finite(xmin), finite(xmax)), *theta) - below) * (1.0 / mass)
        zero = zero_or_nan(mass)
        return jnp.where(x <= xmin, zero, jnp.where(x >= xmax, 1.0 + zero, inside))

    def ppf(p: Array | float, xmin: Array | float, xmax: Array | float, *theta: Array | float) -> Array:
        """Inverse of `cdf`: exactly an edge at p = 0 and p = 1, NaN for p outside of [0, 1]."""
        below, mass = edges(xmin, xmax, theta)
        p = probability(p)
        x = clip(density.ppf(clip(below + p * mass, 0.0, 1.0), *theta), xmin, xmax)
        zero = zero_or_nan(mass)
        return jnp.where(p <= 0, xmin + zero, jnp.where(p >= 1, xmax + zero, x))

    return Truncated(pdf, logpdf, cdf, ppf)


#: Breit-Wigner within a window.
trunccauchy = truncate(cauchy)
trunccrystalball = truncate(crystalball)
trunccrystalball_ex = truncate(crystalball_ex)
