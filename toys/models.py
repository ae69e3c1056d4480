"""Ready-made studies, by name: one for every kind of cost."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from engine import ExtendedBinnedNLL, ExtendedUnbinnedNLL, LeastSquares
from kernels import norm, truncexpon, truncnorm
from toys.counts import PoissonCounts
from toys.points import NormalPoints
from toys.sampling import Component, ExtendedMixture
from toys.signal_strength import signal_strength
from toys.study import Study

__all__ = ["STUDIES", "histogram", "parabola", "peak", "peak_bias", "polynomial", "signal_strength"]

XMIN, XMAX = 1.0, 9.0
N_SIGNAL, N_BACKGROUND = 2000.0, 20000.0


def spectrum(x, ns, nb, mu, sigma, lam):
    """A Gaussian peak over an exponential in 1 < x < 9: (expected events, density of events)."""
    density = ns * truncnorm.pdf(x, XMIN, XMAX, mu, sigma) + nb * truncexpon.pdf(x, XMIN, XMAX, 0.0, lam)
    return ns + nb, density


def peak() -> Study:
    """Gaussian peak over an exponential, extended and unbinned: the standard fit of particle physics.

    2000 signal events (mu 5, sigma 0.5) over 20 000 background events (scale 4), of which 13 468 fall into the range.
    The model of iminuit's tutorial on numba.
    """
    in_range = math.exp(-XMIN / 4.0) - math.exp(-XMAX / 4.0)
    names = ("ns", "nb", "mu", "sigma", "lam")
    return Study(
        cost=ExtendedUnbinnedNLL(spectrum),
        sampler=ExtendedMixture(
            names,
            (
                Component("ns", truncnorm.ppf, (XMIN, XMAX, "mu", "sigma")),
                Component("nb", truncexpon.ppf, (XMIN, XMAX, 0.0, "lam")),
            ),
        ),
        truth={"ns": N_SIGNAL, "nb": N_BACKGROUND * in_range, "mu": 5.0, "sigma": 0.5, "lam": 4.0},
        limits={"ns": (0.0, None), "nb": (0.0, None), "sigma": (0.0, None), "lam": (0.0, None)},
        observable=(XMIN, XMAX),
        name="peak",
        description="Gaussian peak over an exponential, extended unbinned, 5 parameters, 15 500 events",
    )


def peak_bias() -> Study:
    """The fit of `peak` where the background is no exponential: how far does a wrong background pull the signal?

    The background of the toys is the flank of a Gaussian, whose logarithm has the slope -1/4 of the exponential at the
    peak, and the curvature -1/100. The fit knows of no `centre` and `width`, the toys of no `lam`.
    """
    names = ("ns", "nb", "mu", "sigma", "centre", "width")
    exact = peak()
    return Study(
        cost=exact.cost,
        sampler=ExtendedMixture(
            names,
            (
                Component("ns", truncnorm.ppf, (XMIN, XMAX, "mu", "sigma")),
                Component("nb", truncnorm.ppf, (XMIN, XMAX, "centre", "width")),
            ),
        ),
        truth={"ns": N_SIGNAL, "nb": exact.truth["nb"], "mu": 5.0, "sigma": 0.5, "centre": -20.0, "width": 10.0},
        start=exact.truth,
        limits=exact.limits,
        observable=exact.observable,
        name="peak-bias",
        description="the fit of peak to toys whose background is curved: bias of the signal",
    )


def histogram() -> Study:
    """A Gaussian in a histogram of 1000 bins, with Poisson counts: the histogram of iminuit's tutorial on JAX.

    The observed data are 10 000 normal numbers, and the bins are those that NumPy makes of them. As there, the fit
    starts far away.
    """
    counts, edges = np.histogram(np.random.default_rng(seed=1).normal(size=10_000), bins=1000)
    cost = ExtendedBinnedNLL(gaussian_events, edges)
    return Study(
        cost=cost,
        sampler=PoissonCounts.of(cost),
        truth={"amp": 10_000.0, "mu": 0.0, "sigma": 1.0},
        start={"amp": 15_000.0, "mu": 1.0, "sigma": 2.0},
        limits={"amp": (0.0, None), "sigma": (0.0, None)},
        data=counts[None].astype(np.float64),
        name="histogram",
        description="Gaussian in 1000 bins, Poisson counts, 3 parameters, 10 000 events",
    )


def gaussian_events(x, amp, mu, sigma):
    """Expected events below x."""
    return amp * norm.cdf(x, mu, sigma)


def polynomial() -> Study:
    """A parabola through 30 points with errors in x and y: the points of iminuit's tutorial on JAX.

    The chi-square has the effective variance yerror^2 + (f'(x) xerror)^2, which depends on the parameters; its
    minimum is biased, and the study says by how much.
    """
    names = ("a", "b", "c")
    x_true, y_error, x_error = np.linspace(-4.0, 7.0, 30), 5.0, 0.5
    rng = np.random.default_rng(seed=1)
    x = x_true + rng.normal(0.0, x_error, 30)
    y = x_true**2 + 2.0 * x_true + 3.0 + rng.normal(0.0, y_error, 30)
    return Study(
        cost=LeastSquares(second_degree, xerror=True),
        sampler=NormalPoints(second_degree, names, x_true, y_error, x_error),
        truth={"a": 1.0, "b": 2.0, "c": 3.0},
        data=(x, y[None], np.full(30, y_error), np.full(30, x_error)),
        name="polynomial",
        description="parabola through 30 points with errors in x and y, 3 parameters",
    )


def second_degree(x, a, b, c):
    return (a * x + b) * x + c


N_POINTS = 128
NOISE = 0.15  # of x, which the fit takes for a noise of y


def parabola() -> Study:
    """y = b x^2 - 4 a x - b at 128 random x, with noise inside of the argument: the exercise of a lecture on JAX.

    The loss is the mean squared residual, fitted by Newton's method instead of 500 steps of gradient descent. It is a
    chi-square with the same error for all points, here the root mean square of the noise that reaches y at the truth.
    That noise grows with the slope, and its mean is not zero: pulls are no standard normals, and b is biased.
    """
    a, b = 0.2, 1.1
    spread = NOISE * math.sqrt(12.0 * b**2 + 16.0 * a**2)  # mean of f'(x)^2 over -3 < x < 3

    def sampler(key, theta):
        x, y = noisy_parabola(key, *theta)
        return x, y, jnp.full(N_POINTS, spread)

    return Study(
        cost=LeastSquares(bent),
        sampler=sampler,
        truth={"a": a, "b": b},
        name="parabola",
        description="b x^2 - 4 a x - b through 128 points with noise in x, mean squared loss, 2 parameters",
    )


def bent(x, a, b):
    return b * x**2 - 4.0 * a * x - b


def noisy_parabola(key, a, b):
    """128 points (x, y)."""
    x_key, noise_key = jax.random.split(key)
    x = jax.random.uniform(x_key, (N_POINTS,), minval=-3.0, maxval=3.0)
    return x, bent(x + NOISE * jax.random.normal(noise_key, (N_POINTS,)), a, b)


STUDIES: dict[str, Callable[[], Study]] = {
    "peak": peak,
    "peak-bias": peak_bias,
    "histogram": histogram,
    "polynomial": polynomial,
    "parabola": parabola,
    "signal-strength": signal_strength,
}
