"""The fits that are timed. Every case throws its own toys and starts from the truth."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from bench.workspaces import search

from engine import ExtendedBinnedNLL, LeastSquares, NormalConstraint, PoissonNLL, UnbinnedNLL
from engine.cost import Cost
from kernels import truncexpon, truncnorm
from toys.counts import PoissonCounts
from toys.models import XMAX, XMIN, peak
from toys.points import NormalPoints
from toys.sampling import Component, Mixture, numerical_ppf
from toys.simultaneous import Simultaneous
from toys.study import Study, generate
from toys.workspace import read_workspace

__all__ = ["CASES", "KAON", "Case", "Convolution", "Templates", "make", "throw"]

KAON = 493.677  # MeV


@dataclass(frozen=True)
class Case:
    """A fit, and toys to be fitted.

    Attributes
    ----------
    name, title : str
    family : str
        What a peer must be able to express: "peak", "histogram", "templates", "workspace", "convolution" or "line".
    study : Study
    data
        The toys, as `fit_batch` takes them.
    n_toys : int
    rows : float
        Events, bins or points of a toy.
    seed : int
        Of the toys.
    detail
        What a peer needs to write the likelihood by hand: `Templates`, `Convolution`, the edges of a histogram, or a
        workspace.
    """

    name: str
    title: str
    family: str
    study: Study
    data: Any
    n_toys: int
    rows: float
    seed: int
    detail: Any = None

    @property
    def cost(self) -> Cost:
        return self.study.cost

    @property
    def start(self) -> Mapping[str, float]:
        return self.study.start

    @property
    def limits(self) -> Mapping:
        return self.study.limits

    @property
    def theta(self) -> np.ndarray:
        """(n_params,) true values, from which all fits start."""
        return self.study.theta

    @property
    def bounds(self) -> list:
        """Limits of each parameter, as iminuit takes them."""
        return [self.limits.get(name, (None, None)) for name in self.cost.names]

    def some(self, n_toys: int) -> Any:
        """The first toys."""
        if isinstance(self.data, tuple):
            x, y, *errors = self.data
            return (x, y[:n_toys], *errors)
        return self.data[:n_toys]

    def toy(self, k: int) -> np.ndarray:
        """Events, counts or y of one toy."""
        return np.array(self.data[1][k] if isinstance(self.data, tuple) else self.data[k])


class Templates(NamedTuple):
    """Expected events nu = mu S + sum_b kappa_b^alpha (B_b + alpha D_b), of which each nuisance parameter moves one b.

    This is the model of HistFactory with the interpolation codes 1 (normalisation) and 0 (shape), which here are
    smooth: upward and downward variations are symmetric, and codes 4 and 4p agree with them (4 to 1e-6 of nu).

    Attributes
    ----------
    signal : (n_bins,)
    backgrounds : (n_backgrounds, n_bins)
    log_kappa : (n_backgrounds, n_norm)
        Logarithm of the normalisation at +1 sigma, of the nuisance parameters that scale each background.
    shapes : (n_backgrounds, n_shape, n_bins)
        Events that one sigma of each other nuisance parameter adds.
    """

    signal: np.ndarray
    backgrounds: np.ndarray
    log_kappa: np.ndarray
    shapes: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """mu, then of each background its normalisations and its shapes."""
        n_norm, n_shape = self.log_kappa.shape[1], self.shapes.shape[1]
        each = [f"norm{k}" for k in range(n_norm)] + [f"shape{k}" for k in range(n_shape)]
        return ("mu", *(f"b{b}_{name}" for b in range(len(self.backgrounds)) for name in each))

    def expected(self, mu: Any, *alphas: Any) -> Any:
        """(n_bins,) events, in jax.numpy."""
        n_norm = self.log_kappa.shape[1]
        nu, alpha = mu * self.signal, jnp.stack(alphas).reshape(len(self.backgrounds), -1)
        for b, nominal in enumerate(self.backgrounds):
            events = nominal + alpha[b, n_norm:] @ self.shapes[b]
            nu += jnp.exp(alpha[b, :n_norm] @ self.log_kappa[b]) * events if n_norm else events
        return nu


def peak_case(n_events: float) -> tuple[str, Study, float, Any]:
    study = peak()
    scale = n_events / (study.truth["ns"] + study.truth["nb"])
    truth = {name: value * scale if name in ("ns", "nb") else value for name, value in study.truth.items()}
    return "peak", study.at(truth), n_events, None


def events_below(x, ns, nb, mu, sigma, lam):
    """Expected events below x of the spectrum of `toys.models.peak`."""
    return ns * truncnorm.cdf(x, XMIN, XMAX, mu, sigma) + nb * truncexpon.cdf(x, XMIN, XMAX, 0.0, lam)


def histogram_case(n_bins: int) -> tuple[str, Study, float, Any]:
    """The spectrum of `toys.models.peak` in bins."""
    of_events, edges = peak(), np.linspace(XMIN, XMAX, n_bins + 1)
    cost = ExtendedBinnedNLL(events_below, edges)
    study = Study(cost=cost, sampler=PoissonCounts.of(cost), truth=of_events.truth, limits=of_events.limits)
    return "histogram", study, n_bins, edges


def counting_case() -> tuple[str, Study, float, Any]:
    """Counts in a signal and a control region, nu = mu S + B + alpha D, with a standard normal constraint of alpha."""
    shapes = np.array([[[9.0, 30.0]]])
    return templates_study(
        Templates(np.array([40.0, 4.0]), np.array([[60.0, 200.0]]), np.zeros((1, 0)), shapes),
    )


def templates_case(n_nuisances: int, n_bins: int) -> tuple[str, Study, float, Any]:
    """A signal over 5 backgrounds, each with its share of the nuisance parameters: one fifth scale, the others bend."""
    n_each, x = n_nuisances // 5, (np.arange(n_bins) + 0.5) / n_bins
    n_norm = n_each // 5
    signal = np.exp(-0.5 * ((x - 0.6) / 0.08) ** 2)
    backgrounds = np.stack([np.exp(-x * slope) + 0.2 for slope in (0.5, 1.0, 2.0, 3.0, 5.0)])
    backgrounds *= 40.0 * n_bins / backgrounds.sum()
    size = 0.03 / math.sqrt(n_each)
    bends = np.stack([np.cos(math.pi * (k + 1) * x) for k in range(n_each - n_norm)])
    log_kappa = np.full((5, n_norm), math.log1p(0.1 / math.sqrt(n_norm)))
    shapes = size * bends * backgrounds[:, None, :]
    return templates_study(Templates(signal * 4.0 * n_bins / signal.sum(), backgrounds, log_kappa, shapes))


def templates_study(templates: Templates) -> tuple[str, Study, float, Any]:
    """Counts are thrown, the measured values of the constraints are 0 in every toy, which all peers can express."""
    names, n_alpha = templates.names, len(templates.names) - 1
    counts = PoissonNLL(templates.expected, name=names)
    cost = counts + NormalConstraint(names[1:], np.zeros(n_alpha), np.ones(n_alpha))
    study = Study(
        cost=cost,
        sampler=Simultaneous(cost, (PoissonCounts.of(counts), "fixed")),
        truth={"mu": 1.0, **dict.fromkeys(names[1:], 0.0)},
    )
    return "templates", study, len(templates.signal), templates


def workspace_case() -> tuple[str, Study, float, Any]:
    """As the other templates: the measured values of the constraints are the same in every toy."""
    workspace = search()
    study = read_workspace(workspace)
    sampler = Simultaneous(study.cost, (PoissonCounts.of(study.cost.leaves[0]), "fixed"))  # type: ignore[arg-type]
    return "workspace", replace(study, sampler=sampler), len(study.data[0][0]), workspace


class Convolution(NamedTuple):
    """phi(1020) -> K+ K-, seen with a resolution, between 1002 and 1050 MeV.

    The density is sum_j w_j B(m + s u_j), with Gauss-Hermite nodes u_j, and is normalised by Gauss-Legendre nodes.

    Attributes
    ----------
    nodes, weights : (12,)
        Of the convolution.
    points, point_weights : (256,)
        Of the norm.
    """

    nodes: np.ndarray
    weights: np.ndarray
    points: np.ndarray
    point_weights: np.ndarray

    def density(self, m: Any, mass: Any, width: Any, resolution: Any) -> Any:
        """Of one mass, in jax.numpy; B is the relativistic Breit-Wigner distribution of a p-wave."""
        m = m + resolution * self.nodes
        running = width * ((m**2 / 4 - KAON**2) / (mass**2 / 4 - KAON**2)) ** 1.5 * mass / m
        return jnp.sum(self.weights * m * mass * running / ((mass**2 - m**2) ** 2 + (mass * running) ** 2))


def convolution_case(n_events: int) -> tuple[str, Study, float, Any]:
    names, window = ("mass", "width", "resolution"), (1002.0, 1050.0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(12)
    points, point_weights = np.polynomial.legendre.leggauss(256)
    points = window[0] + 0.5 * (1.0 + points) * (window[1] - window[0])
    detail = Convolution(nodes, weights / weights.sum(), points, point_weights)
    study = Study(
        cost=UnbinnedNLL(detail.density, nodes=(points, point_weights)),
        sampler=Mixture(names, n_events, (Component(None, numerical_ppf(detail.density, *window), names),)),
        truth={"mass": 1019.46, "width": 4.25, "resolution": 1.5},
        limits={"width": (0.1, 50.0), "resolution": (0.1, 10.0)},
    )
    return "convolution", study, n_events, detail


def straight_line(x, a, b):
    return a + b * x


def line_case(n_points: int) -> tuple[str, Study, float, Any]:
    """A straight line through points with errors of y, as in iminuit's tutorial on cost functions."""
    sampler = NormalPoints(straight_line, ("a", "b"), np.linspace(0.0, 1.0, n_points), 0.1)
    study = Study(cost=LeastSquares(straight_line), sampler=sampler, truth={"a": 1.0, "b": 2.0})
    return "line", study, n_points, None


class _Recipe(NamedTuple):
    title: str
    n_toys: int
    make: Callable[[], tuple[str, Study, float, Any]]


#: name -> what it is, toys of one turn, how it is made.
CASES: dict[str, _Recipe] = {
    f"peak-{n}": _Recipe(f"peak over an exponential, unbinned, {n} events", n_toys, functools.partial(peak_case, n))
    for n, n_toys in ((480, 2000), (2000, 1000), (15500, 200), (200000, 20))
} | {
    "histogram": _Recipe("the same spectrum in 1000 bins", 1000, functools.partial(histogram_case, 1000)),
    "counting": _Recipe("2 bins, signal strength and 1 nuisance parameter", 200000, counting_case),
    "templates-50": _Recipe(
        "50 bins, signal strength and 50 nuisance parameters", 2000, functools.partial(templates_case, 50, 50)
    ),
    "templates-200": _Recipe(
        "100 bins, signal strength and 200 nuisance parameters", 100, functools.partial(templates_case, 200, 100)
    ),
    "workspace": _Recipe("HistFactory workspace of 12 channels, 180 bins, 264 parameters", 100, workspace_case),
    "convolution": _Recipe(
        "resonance and resolution by 12 nodes, unbinned, 2000 events", 200, functools.partial(convolution_case, 2000)
    ),
    "line": _Recipe("straight line through 30 points", 200000, functools.partial(line_case, 30)),
}


def make(name: str, seed: int, n_toys: int | None = None) -> Case:
    """A case with its toys, thrown from the seed.

    Raises
    ------
    KeyError
        If there is no case of this name.
    """
    recipe = CASES[name]
    family, study, rows, detail = recipe.make()
    n = recipe.n_toys if n_toys is None else n_toys
    return Case(name, recipe.title, family, study, throw(study, n, seed), n, rows, seed, detail)


def throw(study: Study, n_toys: int, seed: int, backend: str = "numba") -> Any:
    """Toys as `fit_batch` takes them, without the entry of a constraint that has no data."""
    data = generate(study, n_toys, seed, backend=backend)
    return data[0] if isinstance(data, tuple) and data[-1] is None else data
