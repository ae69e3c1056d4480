"""Ready-made studies, by name."""

import math
from collections.abc import Callable

from engine.costs import ExtendedUnbinnedNLL
from kernels import truncexpon, truncnorm
from toys.sampling import Component, ExtendedMixture
from toys.study import Study

__all__ = ["STUDIES", "peak"]

XMIN, XMAX = 1.0, 9.0


def spectrum(x, ns, nb, mu, sigma, lam):
    """A Gaussian peak over an exponential in 1 < x < 9: (expected events, density of events)."""
    density = ns * truncnorm.pdf(x, XMIN, XMAX, mu, sigma) + nb * truncexpon.pdf(x, XMIN, XMAX, 0.0, lam)
    return ns + nb, density


def peak() -> Study:
    """Gaussian peak over an exponential, extended and unbinned: the standard fit of particle physics.

    2000 signal events (mu 5, sigma 0.5) over 20 000 background events (scale 4), of which 13 468 fall into the range.
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
        truth={"ns": 2000.0, "nb": 20000.0 * in_range, "mu": 5.0, "sigma": 0.5, "lam": 4.0},
        limits={"ns": (0.0, None), "nb": (0.0, None), "sigma": (0.0, None), "lam": (0.0, None)},
        observable=(XMIN, XMAX),
        name="peak",
        description="Gaussian peak over an exponential, extended unbinned, 5 parameters, 15 500 events",
    )


STUDIES: dict[str, Callable[[], Study]] = {"peak": peak}
