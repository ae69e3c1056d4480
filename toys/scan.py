"""Toys at several true values of one parameter: bias, pulls and coverage as a function of the truth."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from toys.coverage import Coverage, coverage, failures
from toys.pulls import Pulls, pulls
from toys.sample import Sample, is_one_sigma, throw
from toys.study import Study

__all__ = ["Point", "point_of", "scan"]


class Point(NamedTuple):
    """What came out at one true value.

    Attributes
    ----------
    value : float
        Of the parameter that is scanned.
    pulls : Pulls
    coverage : Coverage
    failures : dict
        Toys, how many failed and how: see `failures` in toys/coverage.py.
    """

    value: float
    pulls: Pulls
    coverage: Coverage
    failures: dict[str, int]


def scan(
    study: Study,
    name: str,
    values: Sequence[float],
    n_toys: int,
    *,
    levels: Sequence[float],
    minos: bool = True,
    interval: str = "wilson",
    seed: int = 1,
    backend: str = "auto",
    device: str = "auto",
    advance: Callable[[int], None] = lambda n: None,
    finished: Callable[[Point], None] = lambda point: None,
) -> list[Point]:
    """Throw toys at each true value; those of point k have the seed `seed + k`.

    Parameters
    ----------
    study : Study
    name : str
        A parameter of the sampler.
    values : sequence of float
    n_toys : int
        At each value.
    levels, minos, interval
        Of the coverage; whether MINOS is run at each level.
    seed, backend, device, advance
        As for `toys.sample.throw`.
    finished : callable
        Told of each point.

    Raises
    ------
    ValueError
        If there is no such parameter, or a point cannot be thrown or fitted.
    """
    points = []
    for k, value in enumerate(values):
        sample = throw(
            study.at({name: value}),
            n_toys,
            seed=seed + k,
            levels=levels if minos else (),
            backend=backend,
            device=device,
            advance=advance,
        )
        points.append(point_of(sample, value, levels, interval))
        finished(points[-1])
    return points


def point_of(sample: Sample, value: float, levels: Sequence[float], interval: str = "wilson") -> Point:
    """Pulls, coverage and failures of toys of one truth; MINOS pulls where a level is that of one sigma."""
    truth = {name: value for name, value in sample.study.truth.items() if name in sample.result.names}
    one_sigma = [found for level, found in sample.minos.items() if is_one_sigma(level)]
    return Point(
        value,
        pulls(sample.result, truth, one_sigma[0] if one_sigma else None),
        coverage(sample.result, truth, sample.minos, levels, interval=interval),
        failures(sample.result, np.zeros(len(sample.result), dtype=np.int64), 1)[0],
    )
