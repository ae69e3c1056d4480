"""A study: a cost, the sampler that throws its toys, and the parameters at which it does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.costs import Cost
from engine.fit import known
from toys.sampling import draw_toys

__all__ = ["Study", "generate"]


@dataclass(frozen=True)
class Study:
    """A model one can throw toys from.

    Attributes
    ----------
    cost : Cost
        Its names are the parameters.
    sampler : callable
        `sampler(key, theta)` draws one toy and can be traced by JAX; a toy with a random number of events is
        `(padded values, n)`. A sampler with a method `generate` (see `toys.sampling`) throws many at once.
    truth : dict
        Parameters of the toys.
    start : dict, optional
        Start values of the fits; the truth by default.
    limits : dict
        name -> (lower, upper) of the fits.
    observable : (lower, upper), optional
        Range of the observable, for the check of observed data.
    name, description : str

    Raises
    ------
    ValueError
        If truth or start do not name exactly the parameters of the cost.
    """

    cost: Cost
    sampler: Callable
    truth: Mapping[str, float]
    start: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    observable: tuple[float, float] | None = None
    name: str = "study"
    description: str = ""

    def __post_init__(self) -> None:
        if not self.start:
            object.__setattr__(self, "start", dict(self.truth))
        for what in ("truth", "start"):
            given = getattr(self, what)
            if not isinstance(given, Mapping) or set(given) != set(self.cost.names):
                raise ValueError(f"{what} must have a value for each of {', '.join(self.cost.names)}, got {given}")
            object.__setattr__(self, what, {name: float(value) for name, value in given.items()})

    @property
    def theta(self) -> np.ndarray:
        """The truth as (n_params,) float64, in the order of the cost's names."""
        return np.array([self.truth[name] for name in self.cost.names], dtype=np.float64)

    def at(self, truth: Mapping[str, float], start: Mapping[str, float] | None = None) -> "Study":
        """The same study at other true values, from which the fits then start."""
        known(self.cost.names, truth, "truth")
        values = {**self.truth, **truth}
        return replace(self, truth=values, start=start or values)


def generate(study: Study, n_toys: int, seed: int, first: int = 0, backend: str = "numba") -> Any:
    """Toys first to first + n_toys of a study, as data for `fit_batch`; toy k depends on (seed, k) alone.

    Parameters
    ----------
    study : Study
    n_toys, seed, first : int
    backend : {"numba", "jax"}
        Both give the same toys. A sampler of your own is always drawn with JAX.
    """
    if hasattr(study.sampler, "generate"):
        return study.sampler.generate(study.theta, n_toys=n_toys, seed=seed, first=first, backend=backend)
    return draw_toys(study.sampler, study.theta, n_toys=n_toys, seed=seed, first=first)
