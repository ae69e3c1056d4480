"""The ready-made study of a signal strength: a binned discriminant with systematic uncertainties."""

import jax.numpy as jnp
import numpy as np

from engine import NormalConstraint, PoissonNLL
from toys.counts import PoissonCounts
from toys.simultaneous import Simultaneous
from toys.study import Study

__all__ = ["NORMALISATIONS", "SHAPES", "expected_events", "signal_strength", "templates"]

N_BINS = 20
#: Nuisance parameter -> process -> its events at +1 sigma, relative to nominal (log-normal).
NORMALISATIONS = {
    "lumi": {"signal": 1.02, "ww": 1.02, "top": 1.02, "dy": 1.02},
    "ww_norm": {"ww": 1.08},
    "top_norm": {"top": 1.10},
    "fake_norm": {"fakes": 1.30},
}
#: Nuisance parameter -> process -> relative change of the events at +1 and -1 sigma, at the discriminant 1; at 0 it is
#: the opposite. The two sides differ, as those of simulated variations do.
SHAPES = {
    "jes": {"signal": (0.05, -0.06), "ww": (0.04, -0.03), "top": (-0.10, 0.12)},
    "ww_shape": {"ww": (0.10, -0.08)},
    "dy_shape": {"dy": (0.20, -0.15)},
}
NUISANCES = (*NORMALISATIONS, *SHAPES)


def templates() -> dict[str, np.ndarray]:
    """Expected events of each process in 20 bins of the discriminant: the signal rises towards 1."""
    x = (np.arange(N_BINS) + 0.5) / N_BINS
    shapes = {
        "signal": (150.0, x**2.0),
        "ww": (1200.0, (1.0 - x) ** 0.7 * (0.2 + x)),
        "top": (900.0, (1.0 - x) ** 1.5 + 0.05),
        "dy": (300.0, (1.0 - x) ** 4.0 + 0.01),
        "fakes": (150.0, 1.0 - 0.8 * x),
    }
    return {process: total * shape / shape.sum() for process, (total, shape) in shapes.items()}


def expected_events(mu, *alphas):
    """Expected events of each bin, mu S + B, with all systematic variations.

    A normalisation multiplies a process with kappa^alpha; a shape multiplies bin k with
    exp(alpha (log u_k - log d_k) / 2 + alpha^2 (log u_k + log d_k) / 2), which is u_k and d_k at +1 and -1 sigma and 1
    at 0, smooth, and never negative.
    """
    alpha = dict(zip(NUISANCES, alphas, strict=True))
    tilt = 2.0 * (np.arange(N_BINS) + 0.5) / N_BINS - 1.0
    total = 0.0
    for process, nominal in templates().items():
        exponent = 0.0
        for name, kappas in NORMALISATIONS.items():
            if process in kappas:
                exponent += alpha[name] * np.log(kappas[process])
        for name, changes in SHAPES.items():
            if process in changes:
                up, down = (np.log1p(change * tilt) for change in changes[process])
                exponent += 0.5 * alpha[name] * (up - down) + 0.5 * alpha[name] ** 2 * (up + down)
        events = nominal * jnp.exp(exponent)
        total += mu * events if process == "signal" else events
    return total


def signal_strength() -> Study:
    """The strength mu of a signal in a discriminant, as in analyses of H -> WW -> 2l 2nu, with 7 nuisance parameters.

    The likelihood is a product of Poisson bins with nu = mu S + B and of unit Gaussians for the nuisance parameters.
    Each toy has its own counts, and its own outcomes of the measurements that constrain the nuisance parameters.
    """
    names = ("mu", *NUISANCES)
    counts = PoissonNLL(expected_events, name=names)
    cost = counts + NormalConstraint(NUISANCES, np.zeros(len(NUISANCES)), np.ones(len(NUISANCES)))
    return Study(
        cost=cost,
        sampler=Simultaneous(cost, (PoissonCounts.of(counts), None)),
        truth={"mu": 1.0, **dict.fromkeys(NUISANCES, 0.0)},
        poi="mu",
        name="signal-strength",
        description="mu S + B in 20 bins, 4 backgrounds, 7 constrained nuisance parameters",
    )
