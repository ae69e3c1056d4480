"""Histograms fitted with templates of simulated events, which are uncertain themselves: `Template`."""

import copy
import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from engine.arguments import one_of
from engine.binned import bin_edges, checked_mask, difference, saturated_poisson, warn_of_density
from engine.cost import Cost, call_model, parameter_names
from engine.data import Rows, as_float64, counts_of, shown
from engine.rowwise import any_of_row

__all__ = ["Template"]


def dembinski_abdelmotteleb(n: Any, mu: Any, variance: Any) -> Any:
    """-log L of a count n, where mu has a variance of its own, profiled over the true expectation beta mu.

    The expectation is taken as a Poisson count of k = mu^2 / variance simulated events: with beta = (n + k) / (mu + k)
    this is n log(n / mu) - (n + k) log(beta), written so that it goes over into `saturated_poisson` for large k.
    """
    v, excess = _relative(variance, mu), n - mu
    beta, y = (1.0 + n * v) / (1.0 + mu * v), v * excess / (1.0 + mu * v)
    filled = n > 0
    log_ratio = jnp.log(jnp.where(filled, n / jnp.where(filled, mu, 1.0), 1.0))
    return jnp.where(mu < 0, jnp.nan, n * log_ratio - excess * beta * _log1p_ratio(y))


def conway(n: Any, mu: Any, variance: Any) -> Any:
    """The same with a normal constraint of beta to 1, of variance v = variance / mu^2, at its best value.

    That is the root of beta (beta - 1) = v (n - mu beta), whence (beta - 1)^2 / v without a division by v.
    """
    v = _relative(variance, mu)
    p = 0.5 - 0.5 * mu * v
    root = jnp.sqrt(p**2 + n * v)
    beta = jnp.where(p > 0, p + root, n * v / jnp.where(p > 0, 1.0, root - p))
    large = beta > 0.5
    pull = jnp.where(large, v * ((n - mu * beta) / jnp.where(large, beta, 1.0)) ** 2, 0.0)
    pull = jnp.where(large, pull, (beta - 1.0) ** 2 / jnp.where(large, 1.0, v))
    return jnp.where(mu < 0, jnp.nan, saturated_poisson(n, mu * beta) + 0.5 * pull)


def _relative(variance: Any, mu: Any) -> Any:
    """variance / mu^2; 0 in a bin in which next to nothing is expected, by a model alone: the variance is 0, too."""
    expected = mu > LEAST
    return jnp.where(expected, variance / jnp.where(expected, mu, 1.0) ** 2, 0.0)


def _log1p_ratio(y: Any) -> Any:
    """log(1 + y) / y, also in its derivatives at small y."""
    small = jnp.abs(y) < 1e-2
    near, far = jnp.where(small, y, 0.0), jnp.where(small, 1.0, y)
    series: Any = 0.0
    for k in reversed(range(9)):
        series = 1.0 / (k + 1) - near * series
    return jnp.where(small, series, jnp.log1p(far) / far)


LEAST = 1e-30  # events; the square of its fourth power, by which derivatives divide, is not 0
METHODS = {"da": dembinski_abdelmotteleb, "jsc": conway, "exact": lambda n, mu, variance: saturated_poisson(n, mu)}


class Template(Cost):
    """Negative log-likelihood of a histogram that is a sum of uncertain templates, and of models.

    A template is a histogram of simulated events; its parameter is its yield, in events of all bins. The simulated
    sample is finite: one factor for each bin, which is profiled, stands for what is not known of the sum of the
    templates. The errors of the fit contain it.

    Parameters
    ----------
    edges : (n_bins + 1,) array
        Bin edges, increasing.
    model_or_template : sequence of arrays and callables
        (n_bins,) counts of simulated events, or (n_bins, 2) sums of weights and of their squares, in any norm; or
        `scaled_cdf(edge, *parameters)` in events, in `jax.numpy`, which is not uncertain.
    mask : (n_bins,) bool, optional
        Bins that are used. Bins in which there is neither a simulated event nor a model are never used.
    method : {"da", "jsc"}
        How the factor is constrained: by a Poisson count of simulated events (Dembinski & Abdelmotteleb), or by a
        normal distribution (Conway).
    name : sequence of str, optional
        Names of all parameters. As in `iminuit.cost` they are by default x0 for the yield of the first template, x1_mu
        for the parameter mu of the model that is the second, and so on.

    Raises
    ------
    TypeError, ValueError
        If the edges do not increase, a template has another number of bins, is not finite or has no event, or names are
        not one for each parameter; if the mask leaves no bin.

    Notes
    -----
    `iminuit.cost` limits yields to positive values by itself; here it is `limits={"x0": (0, None), ...}`.

    A weighted histogram is scaled to Poisson counts in each bin, as `iminuit.cost` does; the errors are those of the
    curvature, which hold the uncertainty of the templates.

    Toys that vary the templates, too, are those of `toys.TemplateCounts`.

    References
    ----------
    Dembinski & Abdelmotteleb, Eur. Phys. J. C 82 (2022) 1043; Conway, PHYSTAT 2011, arXiv:1103.0354; Barlow & Beeston,
    Comput. Phys. Commun. 77 (1993) 219.
    """

    def __new__(cls, *arguments: Any, **options: Any) -> "Template":
        return object.__new__(cls)  # a model may come second

    def __init__(
        self,
        edges: Any,
        model_or_template: Sequence[Any],
        *,
        mask: Any = None,
        method: str = "da",
        name: Sequence[str] | None = None,
    ) -> None:
        one_of("method", method, ("da", "jsc"))
        self.edges, self.method = bin_edges(edges), method
        if isinstance(model_or_template, np.ndarray) and model_or_template.ndim > 1:
            model_or_template = list(model_or_template)
        if not isinstance(model_or_template, Sequence) or isinstance(model_or_template, str):
            raise TypeError(
                f"model_or_template must be a sequence of templates and models, got {shown(model_or_template)}: pass "
                "(template,) for a single one"
            )
        self.parts = [part if callable(part) else _normalised(part, len(self.edges) - 1) for part in model_or_template]
        if not self.parts:
            raise ValueError(f"model_or_template must hold at least one template, got {shown(model_or_template)}")
        each = [parameter_names(part, None) if callable(part) else () for part in self.parts]
        names = [[f"x{i}_{own}" for own in names] or [f"x{i}"] for i, names in enumerate(each)]
        self.n_own = [len(own) for own in names]
        self.names = tuple(own for several in names for own in several)
        if name is not None:
            given = parameter_names(lambda: None, name, skip=0)
            if len(given) != len(self.names):
                raise ValueError(f"name must have one entry for each of {', '.join(self.names)}, got {shown(name)}")
            self.names = given
        self.regular = not any(map(callable, self.parts))
        used = np.ones(len(self.edges) - 1, dtype=bool) if mask is None else checked_mask(mask, len(self.edges) - 1)
        empty = np.full(len(used), self.regular)
        for part in self.parts:
            empty &= True if callable(part) else part[0] <= 0.0
        for part in self.parts:
            if not callable(part):
                part[:, empty] = 0.0  # of negative weights, too: nothing is expected there
        self.mask, self.empty = used & ~empty, used & empty
        if not self.mask.any():
            raise ValueError("mask leaves nothing to fit: all templates are empty where it is True")

    def rows(self, data: Any) -> Rows:
        """Rows of histograms: every bin that is used is a row.

        Parameters
        ----------
        data : (n_toys, n_bins) counts, or (n_toys, n_bins, 2) sums of weights and of their squares
        """
        counts = as_float64(data, "counts")
        columns, bad = counts_of(counts, len(self.edges) - 1, self.mask)
        if len(columns) == 2:
            counts, bad = counts[..., 0], bad | any_of_row(columns[0] < 0)
        lost = int(np.count_nonzero((counts[:, self.empty] > 0).any(axis=1)))
        if lost and not vars(self).get("_warned"):
            self._warned = True
            warnings.warn(
                f"{lost} of {len(counts)} toys have events in bins where no template has any: these are not used",
                stacklevel=3,
            )
        shared = self._shared()
        _, n_toys, n_used = columns.shape
        return Rows(
            names=(*("n", "scale")[: len(columns)], *shared),
            columns=columns.reshape(len(columns), -1),
            offsets=np.arange(n_toys + 1, dtype=np.int64) * n_used,
            shared=np.stack([column[self.mask] for column in shared.values()]),
            aux=np.zeros((n_toys, 0)),
            bad=bad,
        )

    def _shared(self) -> dict[str, np.ndarray]:
        """What all toys share, (n_bins,) each: contents and variances of the templates, and edges for models."""
        columns = {} if self.regular else {"lower": self.edges[:-1], "upper": self.edges[1:]}
        for i, part in enumerate(self.parts):
            if not callable(part):
                columns |= {f"t{i}": part[0], f"v{i}": part[1]}
        return columns

    def term(self, theta: Sequence, row: dict, aux: Sequence) -> Any:
        (mu, variance), scale = self._prediction(theta, row), row.get("scale", 1.0)
        return METHODS[self.method](scale * row["n"], scale * mu, scale**2 * variance)

    def _prediction(self, theta: Sequence, row: dict) -> tuple[Any, Any]:
        """Expected events of one bin, and the variance that they have from the templates."""
        mu: Any = 0.0
        variance: Any = 0.0
        for i, (part, own) in enumerate(zip(self.parts, self._own(theta), strict=True)):
            if callable(part):
                events = difference(part, row["lower"], row["upper"], own)
                noise = 1e-15 * jnp.abs(call_model(part, row["upper"], own))
                mu = mu + jnp.where((events < 0) & (events > -noise), 0.0, events)
            else:
                mu, variance = mu + own[0] * row[f"t{i}"], variance + own[0] ** 2 * row[f"v{i}"]
        return mu, variance

    def model(self, *theta: Any) -> Array:
        """Expected events of all bins, (n_bins,)."""
        return self.prediction(theta)[0]

    def check(self, theta: np.ndarray) -> None:
        """Warn, once, of a model that falls and rises, as a density, and of a bin that expects less than nothing."""
        if vars(self).get("_checked"):
            return
        self._checked = True
        for part, own in zip(self.parts, self._own(theta), strict=True):
            if callable(part):
                warn_of_density(part, self.edges, own)
        if not any((part[0] < 0).any() for part in self.parts if not callable(part)):
            return
        with jax.enable_x64(True):
            mu = np.asarray(self.model(*theta))
        negative = np.flatnonzero(self.mask & (mu < 0))
        if len(negative):
            k = negative[0]
            warnings.warn(
                f"the templates, of which some are negative, expect {mu[k]:.3g} events in bin {k} at the start, where "
                "no fit can begin: mask such bins, or merge them with others",
                stacklevel=4,
            )

    def without_uncertainty(self, lift: float) -> "Template":
        """The same with templates that are exact, and with a part of all events more in each bin."""
        other, prediction, ends = copy.copy(self), self._prediction, (self.edges[0], self.edges[-1])

        def lifted(theta: Sequence, row: dict) -> tuple[Any, Any]:
            pairs = list(zip(self.parts, self._own(theta), strict=True))
            total = sum(difference(part, *ends, own) if callable(part) else own[0] for part, own in pairs)
            return prediction(theta, row)[0] + lift * total, 0.0

        other.method, other._prediction = "exact", lifted  # type: ignore[method-assign]
        return other

    def _own(self, theta: Any) -> list[Any]:
        """The parameters of each template or model."""
        ends = [0, *itertools.accumulate(self.n_own)]
        return [theta[first:last] for first, last in itertools.pairwise(ends)]

    def error(self, *theta: Any) -> Array:
        """The standard deviations that they have from the templates, (n_bins,)."""
        return self.prediction(theta)[1]

    def prediction(self, theta: Sequence) -> tuple[Array, Array]:
        """Expected events of all bins, and their standard deviations from the templates, (n_bins,) each."""
        mu, variance = jax.vmap(lambda row: self._prediction(theta, row))(self._shared())
        return mu, jnp.sqrt(variance)


def _normalised(template: Any, n_bins: int) -> np.ndarray:
    """Contents and variances of the bins of a template with the sum 1, (2, n_bins)."""
    given = as_float64(template, "a template")
    if given.shape not in ((n_bins,), (n_bins, 2)):
        raise ValueError(
            f"a template must have shape ({n_bins},), or ({n_bins}, 2) with the sums of weights and of their squares, "
            f"got {given.shape}"
        )
    contents, variance = given.T if given.ndim == 2 else (given, given)
    if not np.isfinite(given).all() or not (variance >= 0).all():
        raise ValueError("a template must be finite, and its sums of squared weights, or counts, not negative")
    total = contents.sum()
    if not total > 0:
        raise ValueError(f"a template must have events, got a sum of {total:g}")
    return np.stack([contents / total, variance / total**2])
