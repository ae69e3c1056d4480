"""Poisson distribution.

P(k) = mu^k exp(-mu) / k!, in the form exp(-deviance(k, mu) - log(k! e^k / k^k)), which does not lose what k log(mu) and
log(k!) have in common: relative error a few eps (1 + |deviance|) for any k.

Every function is elementwise and broadcasts. As in `numba_stats`, `pmf` continues to fractional k, for Asimov data;
below 0 it is 0. NaN comes out where an argument is NaN or mu < 0.

References
----------
Loader, "Fast and accurate computation of binomial probabilities" (2000), sections 2 and 3.
"""

import math

import jax.numpy as jnp
from jax import Array
from jax.scipy.special import gammaincc, gammaln

from kernels._special import _horner, zero_or_nan

# atanh(s) = s + s^3 (1/3 + s^2 / 5 + ...), highest power first
_ATANH = tuple(1.0 / (2 * j + 3) for j in range(14, -1, -1))
_LOG_2PI = math.log(2.0 * math.pi)
_STIRLING_FROM = 16.0
# log k! = (k + 1/2) log k - k + log(2 pi) / 2 + 1 / (12 k) - 1 / (360 k^3) + ...
_STIRLING = (-691.0 / 360360, 1.0 / 1188, -1.0 / 1680, 1.0 / 1260, -1.0 / 360, 1.0 / 12)


def pmf(k: Array | float, mu: Array | float) -> Array:
    """Probability of k events where mu are expected.

    Parameters
    ----------
    k, mu : any shapes that broadcast
        Observed and expected number.
    """
    return jnp.exp(logpmf(k, mu))


def logpmf(k: Array | float, mu: Array | float) -> Array:
    """Logarithm of `pmf`; -inf for k < 0."""
    mu = jnp.where(mu >= 0, mu, jnp.nan)
    below = k < 0
    k = jnp.where(below, 0.0, k)
    return jnp.where(below, zero_or_nan(mu) - jnp.inf, -deviance(k, mu) - log_factorial_excess(k))


def cdf(k: Array | float, mu: Array | float) -> Array:
    """Probability of at most k events, the incomplete gamma function Q(floor(k) + 1, mu); 0 for k < 0.

    On JAX only: this function has no translation to numba.
    """
    mu = jnp.where(mu >= 0, mu, jnp.nan)
    below = k < 0
    value = gammaincc(jnp.floor(jnp.where(below, 0.0, k)) + 1.0, mu)
    return jnp.where(below, zero_or_nan(mu), value)


def deviance(k: Array | float, mu: Array | float) -> Array:
    """k log(k / mu) + mu - k, half of the Poisson deviance, for k >= 0; mu at k = 0 and 0 at k = mu.

    Near k = mu it is a series in (mu - k) / (mu + k), so that it keeps its relative accuracy there.
    """
    filled = k > 0
    k = jnp.where(filled, k, zero_or_nan(k) + 1.0)
    w = (mu - k) * (1.0 / k)
    small = jnp.abs(w) < 0.5
    w_small = jnp.where(small, w, 0.0)
    s = w_small / (2.0 + w_small)
    square = s * s
    near = s * (w_small - 2.0 * square * _horner(_ATANH, square))
    far = w - jnp.log(jnp.where(small, 1.0, mu * (1.0 / k)))
    return jnp.where(filled, k * jnp.where(small, near, far), mu + zero_or_nan(k))


def log_factorial_excess(k: Array | float) -> Array:
    """log(k!) - k log(k) + k for k >= 0, which is about log(2 pi k) / 2; 0 at k = 0."""
    empty = k <= 0
    large = k >= _STIRLING_FROM
    k_large = jnp.where(large, k, _STIRLING_FROM)
    r = 1.0 / k_large
    series = 0.5 * (_LOG_2PI + jnp.log(k_large)) + r * _horner(_STIRLING, r * r)
    k_small = jnp.where(large | empty, 1.0, k)
    direct = gammaln(k_small + 1.0) - k_small * jnp.log(k_small) + k_small
    return jnp.where(empty, zero_or_nan(k), jnp.where(large, series, direct))
