"""Toys around an observation: thrown at fitted values, with measured values of constraints that vary or do not."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from engine.arguments import one_of
from engine.cost import Cost
from engine.sums import SumCost, costs_of
from toys.counts import MultinomialCounts
from toys.memory import toys_per_chunk
from toys.packing import bytes_per_toy, pack
from toys.sampling import Mixture
from toys.simultaneous import Simultaneous
from toys.study import Study, generate, thrown_by

__all__ = ["Thrower", "check_n_events", "entries_of"]


class Thrower:
    """Throws the toys of a study around an observation.

    Parameters
    ----------
    study : Study
    data
        The observation, one toy as `fit_batch` takes it.
    auxiliary : {"redrawn", "fixed"}
        Whether each toy has its own measured values of the constraints, drawn around the parameters it is thrown at, or
        the observed ones.
    backend, device : str
        As for `fit_batch`, see `toys.study.thrown_by`.

    Attributes
    ----------
    chunk : int
        How many toys fill 32 MiB.
    sentence : str
        What becomes of the constraints, in words; empty if there are none.

    Raises
    ------
    ValueError
        If there is no such choice.
    """

    def __init__(
        self, study: Study, data: Any, *, auxiliary: str = "redrawn", backend: str = "auto", device: str = "auto"
    ) -> None:
        one_of("auxiliary", auxiliary, ("redrawn", "fixed"))
        if auxiliary == "redrawn" and isinstance(study.sampler, Simultaneous):
            study = replace(study, sampler=study.sampler.redrawn())
        self.study, self.auxiliary = study, auxiliary
        self.observed = entries_of(study.cost, data)
        size = bytes_per_toy(pack(study.cost, self.observed), len(study.cost.names))
        self.chunk = toys_per_chunk(size)
        n = sum(len(part.names) for part in costs_of(study.cost) if not part.takes_data)
        how = "redrawn for every toy" if auxiliary == "redrawn" else "the observed ones in every toy"
        of = f"the measured value{'s' if n > 1 else ''} of {n} constraint{'s' if n > 1 else ''}"
        self.sentence = f"{of} {how}" if n else ""
        self._backend = thrown_by(study, backend, device)

    def __call__(self, theta: Mapping[str, float], n_toys: int, *, seed: int, first: int = 0) -> Any:
        """Toys first to first + n_toys, as data for `fit_batch`; toy k depends on (seed, k) and theta alone.

        Parameters
        ----------
        theta : dict
            By the names of the sampler.

        Raises
        ------
        ValueError
            If nothing can be thrown there, or the sampler draws no measured values.
        """
        data = generate(replace(self.study, truth=theta), n_toys, seed, first, self._backend)
        if not isinstance(self.study.cost, SumCost):
            return data
        entries = []
        for part, entry, observed in zip(self.study.cost.costs, data, self.observed, strict=True):
            if not part.takes_data and self.auxiliary == "fixed":
                own = part.value if observed is None else np.ravel(observed)  # type: ignore[attr-defined]
                entry = np.tile(own, (n_toys, 1))
            elif not part.takes_data and entry is None:
                raise ValueError(
                    f"the sampler draws no measured values for the constraint on {', '.join(part.names)}: return them, "
                    "or pass auxiliary='fixed'"
                )
            entries.append(entry)
        return tuple(entries)


def entries_of(cost: Cost, data: Any) -> Any:
    """One toy of a sum as a tuple with one entry for each cost, also where it was given bare."""
    if not isinstance(cost, SumCost):
        return data
    return tuple(cost._entries(data, [k for k, part in enumerate(cost.costs) if part.takes_data]))


def check_n_events(study: Study, data: Any) -> None:
    """Raise ValueError where a sampler throws a fixed number of events, and another was observed."""
    parts = study.sampler.samplers if isinstance(study.sampler, Simultaneous) else (study.sampler,)
    entries = entries_of(study.cost, data) if len(parts) > 1 else (data,)
    for cost, sampler, entry in zip(costs_of(study.cost), parts, entries, strict=False):
        # within a fit range there may be fewer than were thrown
        if not isinstance(sampler, Mixture | MultinomialCounts) or getattr(cost, "integral", None) is not None:
            continue
        toys: dict[str, Any] = pack(cost, entry).toys
        # of weighted counts the sums of weights, without those of their squares
        n = toys["values"].offsets[1] if "values" in toys else np.atleast_3d(toys["counts"])[0, :, 0].sum()
        if np.isfinite(n) and round(n) != sampler.n_events:
            raise ValueError(
                f"the sampler throws toys of {sampler.n_events} events, but {n:.10g} were observed: give "
                f"{type(sampler).__name__} this number"
            )
