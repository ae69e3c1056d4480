"""A study: a cost, the sampler that throws its toys, and the parameters at which it does."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from engine.arguments import by_name, held_names, known, limit_arrays
from engine.cost import Cost
from engine.data import shown
from engine.fit import fit_batch
from engine.result import FitResult
from kernels.nodes import UntranslatableError
from toys.drawing import draw_toys

__all__ = ["Study", "generate", "thrown_by"]


@dataclass(frozen=True)
class Study:
    """A model one can throw toys from, and the fit of these toys.

    Both may have the same parameters, or the sampler others than the fit: a study of the bias of a fit whose model is
    not that of the data. Bias, pulls and coverage are those of the parameters that both have.

    Attributes
    ----------
    cost : Cost
        Its names are the parameters of the fits.
    sampler : callable
        `sampler(key, theta)` draws one toy and can be traced by JAX; what it returns for each cost stands in
        `toys.forms`. Its attribute `names`, by default the names of the cost, are the parameters in theta. A sampler
        with a method `generate` throws many at once.
    truth : dict
        Parameters of the toys, by the names of the sampler.
    start : dict, optional
        Start values of the fits; the truth by default.
    limits : dict
        name -> (lower, upper) of the fits.
    fixed : sequence of str, or dict
        Parameters that the fits hold, at their start values or at those of the dict, which become the start.
    observable : (lower, upper), optional
        Range of the observable, for checks of the model and of observed data, and for figures: d such pairs for d
        observables. Of a sum, one entry for each cost, None where there is no range; a single (lower, upper) may stand
        for all costs.
    data : optional
        Observed data, as one toy in the form that `fit_batch` takes.
    poi : str, optional
        The parameter of interest, of which tests and limits are where no other is named.
    name, description : str

    Raises
    ------
    ValueError
        If truth does not name exactly the parameters of the sampler, or start those of the cost.
    """

    cost: Cost
    sampler: Callable
    truth: Mapping[str, float]
    start: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    observable: Any = None
    name: str = "study"
    description: str = ""
    fixed: Sequence[str] | Mapping[str, float] = ()
    data: Any = None
    poi: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.cost, Cost):
            raise TypeError(f"cost must be a cost such as ExtendedUnbinnedNLL(model), got {type(self.cost).__name__}")
        if not callable(self.sampler):
            raise TypeError(f"sampler must be a function sampler(key, theta), got {type(self.sampler).__name__}")
        values = by_name(self.fixed)
        object.__setattr__(self, "fixed", held_names(self.cost.names, values))
        limit_arrays(self.cost.names, self.limits)
        known(self.cost.names, [self.poi] if self.poi else [], "poi")
        object.__setattr__(self, "truth", _values("truth", self.truth, self.names))
        if not self.start:
            missing = [name for name in self.cost.names if name not in self.truth]
            if missing:
                raise ValueError(
                    f"start must be given: the truth of the sampler has no value for {', '.join(missing)} of the fit"
                )
            object.__setattr__(self, "start", {name: self.truth[name] for name in self.cost.names})
        held_at = values if isinstance(values, Mapping) else {}
        object.__setattr__(self, "start", _values("start", {**self.start, **held_at}, self.cost.names))

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters of the sampler."""
        return tuple(getattr(self.sampler, "names", self.cost.names))

    @property
    def theta(self) -> np.ndarray:
        """The truth as (n_names,) float64, in the order of the sampler's names."""
        return np.array([self.truth[name] for name in self.names], dtype=np.float64)

    @property
    def conditions(self) -> dict[str, Any]:
        """What all its fits are told, as arguments of `fit_batch`, `minos` and `profile`: limits, and what is held."""
        return {"limits": self.limits, "fixed": self.fixed}

    def fit(self, data: Any, start: Any = None, **options: Any) -> FitResult:
        """The fits of toys by `fit_batch`.

        Parameters
        ----------
        data
            As `fit_batch` takes it.
        start : optional
            Instead of the study's; what is fixed is held at these values.
        **options
            Of `fit_batch`; limits and fixed are by default the study's.
        """
        return fit_batch(self.cost, data, self.start if start is None else start, **{**self.conditions, **options})

    def at(self, truth: Mapping[str, float], start: Mapping[str, float] | None = None) -> "Study":
        """The same study at other true values, from which its fits then start where they have the parameter free."""
        known(self.names, truth, "truth")
        same = {name: value for name, value in truth.items() if name in self.start and name not in self.fixed}
        return replace(self, truth={**self.truth, **truth}, start=start or {**self.start, **same})


def _values(what: str, given: Any, names: tuple[str, ...]) -> dict[str, float]:
    if not isinstance(given, Mapping) or set(given) != set(names):
        raise ValueError(f"{what} must have a value for each of {', '.join(names)}, got {shown(given)}")
    try:
        return {name: float(value) for name, value in given.items()}
    except (TypeError, ValueError):
        raise ValueError(f"{what} must hold numbers, got {shown(given)}") from None


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
    return draw_toys(study.sampler, study.theta, n_toys=n_toys, seed=seed, first=first, cost=study.cost)


def thrown_by(study: Study, backend: str, device: str) -> str:
    """Who throws the toys that are fitted on this backend and device, "numba" or "jax".

    Numba, unless the sampler has no form for it; JAX where it is asked for, and on an accelerator, where the toys then
    are when they are fitted. A sampler of your own is drawn with JAX whatever this is.
    """
    if backend == "jax" or device in ("gpu", "tpu"):
        return "jax"
    try:
        if hasattr(study.sampler, "generate"):
            generate(study, 1, 0)
    except UntranslatableError:
        return "jax"
    return "numba"
