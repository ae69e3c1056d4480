"""Toys of sums of costs: simultaneous fits, and fits with constraints."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from engine.cost import Cost
from engine.sums import SumCost
from kernels import randombits
from toys.drawing import Form, Sampler, Together, checked_theta, drawn_by_jax, form_of, one_toy
from toys.points import ConstraintValues

__all__ = ["Simultaneous"]

FIXED = "fixed"


class Simultaneous(Sampler):
    """Toys of a sum of costs: independent parts, whose parameters are found by name.

    The key of part p is number p folded into the toy's key.

    Parameters
    ----------
    cost : SumCost
        `a + b`; its names are the parameters.
    samplers : sequence
        For each cost, in order, a sampler; or a function `sampler(key, theta)` of the parameters of that cost, which is
        drawn with JAX. For a constraint, None: its measured values are drawn around theta; or "fixed": they are the
        nominal ones in every toy, and its entry of the data is None.

    Attributes
    ----------
    samplers : tuple
        A sampler or function for each cost, or "fixed".

    Raises
    ------
    TypeError, ValueError
        If there is not one entry for each cost, one is none of these, or a sampler has a parameter that the sum lacks.

    Examples
    --------
    >>> cost = ExtendedBinnedNLL(scaled_cdf, edges) + NormalConstraint("nb", 100.0, 10.0)
    >>> Simultaneous(cost, (PoissonCounts.of(cost.costs[0]), None)).generate(theta, n_toys=1000, seed=1)
    """

    def __init__(self, cost: Cost, samplers: Sequence[Callable | str | None]) -> None:
        if not isinstance(cost, SumCost):
            raise TypeError(f"cost must be a sum of costs, got {type(cost).__name__}")
        if len(samplers) != len(cost.costs):
            raise ValueError(f"there must be a sampler for each of {len(cost.costs)} costs, got {len(samplers)}")
        self.cost = cost
        self.names = cost.names
        made: list[Callable | str] = []
        for k, (part, sampler) in enumerate(zip(cost.costs, samplers, strict=True)):
            if part.takes_data and not callable(sampler):
                raise TypeError(f"cost {k} of the sum needs a sampler, got {sampler!r}")
            if not callable(sampler) and sampler not in (None, FIXED):
                raise TypeError(f"samplers[{k}] must be a sampler, None or 'fixed', got {sampler!r}")
            made.append(ConstraintValues(part) if sampler is None else sampler)  # type: ignore[arg-type]
        self.samplers = tuple(made)
        if all(self.fixed):
            raise ValueError("nothing varies: every entry is 'fixed'")
        self.forms: tuple[Form, ...] = tuple(
            sampler.form if isinstance(sampler, Sampler) else form_of(part)
            for part, sampler in zip(cost.costs, made, strict=True)
        )
        self.form = Together(self.forms, tuple(self.fixed))
        self.indices = []
        for k, (part, sampler) in enumerate(zip(cost.costs, made, strict=True)):
            own = tuple(getattr(sampler, "names", part.names))
            missing = [name for name in own if name not in self.names]
            if missing:
                raise ValueError(f"samplers[{k}] has the parameter {missing[0]!r}, which is not one of {self.names}")
            self.indices.append([self.names.index(name) for name in own])

    @property
    def fixed(self) -> list[bool]:
        """Whether the measured values of a cost are the same in every toy."""
        return [sampler == FIXED for sampler in self.samplers]

    def redrawn(self) -> "Simultaneous":
        """The same toys, but with the measured values of all constraints drawn."""
        pairs = zip(self.samplers, self.fixed, strict=True)
        return Simultaneous(self.cost, [None if fixed else sampler for sampler, fixed in pairs])

    def prepare(self, theta: ArrayLike) -> tuple:
        """Tables of all parts."""
        theta = checked_theta(theta, self.names)
        pairs = zip(self.samplers, self.indices, strict=True)
        return tuple(s.prepare(theta[i]) if isinstance(s, Sampler) else theta[i] for s, i in pairs)

    def draw(self, key: Array, tables: tuple) -> tuple:
        parts = []
        for p, (sampler, own) in enumerate(zip(self.samplers, tables, strict=True)):
            draw = sampler.draw if isinstance(sampler, Sampler) else sampler
            parts.append(one_toy(draw, jax.random.fold_in(key, p), own) if callable(draw) else None)
        return tuple(parts)

    def draw_all(self, tables: tuple, keys: np.ndarray) -> tuple:
        return self._all(tables, keys, lambda sampler: sampler.draw_all)

    def throw(self, tables: tuple, keys: np.ndarray) -> tuple:
        return self._all(tables, keys, lambda sampler: sampler.throw)

    def _all(self, tables: tuple, keys: np.ndarray, method: Callable[[Sampler], Callable]) -> tuple:
        parts: list[Any] = []
        for p, (sampler, own) in enumerate(zip(self.samplers, tables, strict=True)):
            folded = np.empty_like(keys)
            randombits.fold_keys(keys, p, folded)
            if isinstance(sampler, Sampler):
                parts.append(method(sampler)(own, folded))
            else:
                parts.append(drawn_by_jax(sampler, own, folded, self.forms[p]) if callable(sampler) else None)
        return tuple(parts)

    def complete(self, tables: tuple, drawn: tuple) -> tuple:
        parts = zip(self.samplers, tables, drawn, strict=True)
        return tuple(s.complete(own, part) if isinstance(s, Sampler) else part for s, own, part in parts)
