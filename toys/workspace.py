"""Workspaces of HistFactory in JSON, as pyhf reads and writes them, as studies."""

import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine import NormalConstraint, PoissonConstraint
from engine.cost import Cost
from engine.data import shown
from engine.templates import TemplateNLL
from kernels.templates import Normalisation, Sample, Shape
from toys.counts import PoissonCounts
from toys.drawing import Sampler
from toys.simultaneous import Simultaneous
from toys.study import Study

__all__ = ["read_workspace"]


def read_workspace(source: str | Path | Mapping[str, Any], *, measurement: str | None = None) -> Study:
    """The study of a HistFactory workspace, with the likelihood and the parameter names that it has in pyhf.

    The channels stand in alphabetical order in the counts of a toy, as in pyhf. A parameter of bins has a name for
    each of them, `name[k]`; a bin without uncertainty has none, where pyhf holds one at 1. Toys are thrown at the start
    values of the measurement; the observations are the `data` of the study. The factor of a normsys far from 1 on both
    sides may be negative between them, which is no likelihood here.

    Parameters
    ----------
    source : path, or dict
        A JSON file, or what it holds.
    measurement : str, optional
        Which measurement tells start values, limits and constraints; the first by default.

    Returns
    -------
    Study
        Of a `PoissonNLL` of all bins and, where there are parameters for them, a `NormalConstraint` and a
        `PoissonConstraint`.

    Raises
    ------
    OSError
        If the file cannot be read.
    ValueError
        If it is no such workspace; the sentence names the place.

    References
    ----------
    Cranmer et al., CERN-OPEN-2012-016; Heinrich et al., JOSS 6 (2021) 2823; version 1.0.0 of the JSON schema.
    """
    whole = _loaded(source)
    if "version" in whole and whole["version"].text() != "1.0.0":
        raise ValueError(f"{whole['version'].place} must be '1.0.0', got {whole['version'].value!r}")
    config = _measurement(whole, measurement)["config"]
    channels = [channel for _, channel in sorted(whole["channels"].named().items())]
    reader = _Reader()
    samples = [reader.channel(channel) for channel in channels]
    counts = _observed(whole["observations"], channels, [len(of_channel[0].nominal) for of_channel in samples])
    parameters = reader.parameters()
    if not parameters:
        raise ValueError(f"{whole.place} has no modifiers, and so no parameters")
    for name, entry in config["parameters"].named(empty=True).items() if "parameters" in config else ():
        if name in parameters:  # others are of modifiers that were taken out
            parameters[name].configure(entry)
    for p in parameters.values():
        if any(np.isnan(values).any() for values in p.settings.values()):
            raise ValueError(f"{config.place} must have inits, bounds, auxdata and sigmas of the parameter {p.name!r}")
    poi = config["poi"].text()
    if poi and (poi not in parameters or parameters[poi].there.sum() != 1):
        raise ValueError(f"{config['poi'].place} must be the name of a parameter that is one number, got {poi!r}")

    # the parameter of interest before the others, and those of bins behind them
    ordered = sorted(parameters.values(), key=lambda p: (p.of_bins, p.name != poi))
    names = _names(ordered)
    positions = _positions(ordered)
    placed = [[_placed(sample, positions) for sample in part] for part in samples]
    fixed = [name for name, held in zip(names, _all(ordered, "fixed"), strict=True) if held]
    determined = {*fixed, *_names([p for p in ordered if "auxdata" in p.settings])}
    for name in [names[k] for k in _idle(placed, len(names)) if names[k] not in determined]:
        warnings.warn(f"{whole.place}: no events depend on {name!r}: hold it, or leave its modifier out", stacklevel=2)
    likelihood = TemplateNLL(names, placed)
    costs: list[Cost] = [likelihood]
    sampler: Sampler = PoissonCounts.of(likelihood)
    data: Any = counts[None]
    for constraint, width in ((NormalConstraint, "sigmas"), (PoissonConstraint, "factors")):
        some = [p for p in ordered if width in p.settings and p.there.any()]
        if some:
            costs.append(constraint(_names(some), _all(some, "auxdata"), _all(some, width)))
    cost = sum(costs[1:], costs[0])
    if len(costs) > 1:
        nothing = [None] * (len(costs) - 1)
        sampler, data = Simultaneous(cost, (sampler, *nothing)), (data, *nothing)
    stem = "workspace" if isinstance(source, Mapping) else Path(source).stem
    return Study(
        cost=cost,
        sampler=sampler,
        truth=dict(zip(names, _all(ordered, "inits"), strict=True)),
        limits={name: (low, high) for name, (low, high) in zip(names, _all(ordered, "bounds"), strict=True)},
        fixed=fixed,
        data=data,
        poi=_names([parameters[poi]])[0] if poi else "",
        name=f"{stem}:{measurement}" if measurement else stem,
        description=f"HistFactory: {len(channels)} channels, {len(counts)} bins, {len(names)} parameters",
    )


@dataclass
class _Parameter:
    """One parameter, or those of bins that share a name.

    Attributes
    ----------
    name : str
    of_bins : bool
    there : (n,) bool
        Which of the bins have a parameter.
    settings : dict
        Under the names of the JSON schema, with an entry for each of n: inits, bounds, fixed; where there is a normal
        constraint auxdata and sigmas, where there is a Poisson constraint auxdata and factors.
    """

    name: str
    of_bins: bool
    there: np.ndarray
    settings: dict[str, np.ndarray]

    @classmethod
    def of(
        cls, name: str, of_bins: bool, there: Any, inits: float, bounds: tuple[float, float], **constraint: Any
    ) -> "_Parameter":
        n = len(there)
        settings = {"inits": np.full(n, inits), "bounds": np.tile(bounds, (n, 1)), "fixed": np.zeros(n, bool)}
        settings |= {key: np.broadcast_to(value, n) for key, value in constraint.items()}
        return cls(name, of_bins, np.asarray(there, bool), settings)

    def configure(self, entry: "_Entry") -> None:
        """Take what a measurement says of the parameter."""
        for key in entry.value:
            if key == "name":
                continue
            if key not in self.settings:
                raise ValueError(f"{entry.place}: the parameter {self.name!r} has no {key}")
            shape = self.settings[key].shape
            self.settings[key] = entry[key].flags(*shape) if key == "fixed" else entry[key].numbers(*shape)
        inits, (lower, upper) = self.settings["inits"], self.settings["bounds"].T
        if not ((inits == 1.0) | self.there).all():
            raise ValueError(f"{entry.place}: a bin without uncertainty has no parameter, and its factor is 1")
        if not ((lower <= inits) & (inits <= upper) & (lower < upper))[self.there & ~np.isnan(inits)].all():
            raise ValueError(f"{entry.place}: inits of {self.name!r} must lie within its bounds, (lower, upper)")
        for key in ("sigmas", "factors"):
            if not (self.settings.get(key, np.ones(1)) > 0).all():
                raise ValueError(f"{entry.place}: {key} of {self.name!r} must be positive")
        if "factors" in self.settings and not (self.settings["auxdata"] >= 0).all():
            raise ValueError(f"{entry.place}: auxdata of {self.name!r} must not be negative")


def _names(parameters: Sequence[_Parameter]) -> list[str]:
    return [f"{p.name}[{k}]" if p.of_bins else p.name for p in parameters for k in np.flatnonzero(p.there).tolist()]


def _positions(parameters: Sequence[_Parameter]) -> dict[str, np.ndarray]:
    """Where the parameters of each name stand, -1 for a bin that has none."""
    first, positions = 0, {}
    for p in parameters:
        positions[p.name] = np.where(p.there, first + np.cumsum(p.there) - 1, -1)
        first += int(p.there.sum())
    return positions


def _all(parameters: Sequence[_Parameter], setting: str) -> list:
    return np.concatenate([p.settings[setting][p.there] for p in parameters]).tolist()


def _idle(channels: Sequence[Sequence[Sample]], n_params: int) -> np.ndarray:
    """Parameters that multiply nothing but zeros."""
    acts = np.zeros(n_params, bool)
    for sample in itertools.chain(*channels):
        events = (sample.nominal != 0) | np.any([(s.low != 0) | (s.high != 0) for s in sample.shapes], axis=0)
        whole = [n.parameter for n in sample.normalisations] + [s.parameter for s in sample.shapes]
        acts[[*sample.factors, *whole]] |= events.any()
        for positions in map(np.array, sample.of_bins):
            acts[positions[events & (positions >= 0)]] = True
    return np.flatnonzero(~acts)


def _placed(sample: Sample, positions: Mapping[str, np.ndarray]) -> Sample:
    """A sample with positions in place of names."""
    at = lambda name: int(positions[name][0])  # noqa: E731
    return Sample(
        sample.nominal,
        [at(name) for name in sample.factors],
        [n._replace(parameter=at(n.parameter)) for n in sample.normalisations],
        [s._replace(parameter=at(s.parameter)) for s in sample.shapes],
        [tuple(positions[name][bins].tolist()) for name, bins in sample.of_bins],
    )


class _Reader:
    """Collects samples and the parameters that they need.

    In these samples parameters are told by name, those of bins by (name, slice): positions come when all are known.
    """

    def __init__(self) -> None:
        self._parameters: dict[str, _Parameter] = {}
        self._families: dict[str, str] = {}
        # of staterror: events and squared errors, channel by channel
        self._statistics: dict[str, list[np.ndarray]] = {}

    def parameters(self) -> dict[str, _Parameter]:
        """All parameters by name, when all channels have been read."""
        for name, sums in self._statistics.items():
            events, squares = np.concatenate(sums, axis=1)
            there = (events > 0) & (squares > 0)
            error = np.sqrt(np.where(there, squares, 1.0)) / np.where(there, events, 1.0)
            self._parameters[name] = _Parameter.of(name, True, there, 1.0, _SMALL_TO_10, auxdata=1.0, sigmas=error)
        return self._parameters

    def channel(self, channel: "_Entry") -> list[Sample]:
        entries = channel["samples"].entries()
        n_bins = len(entries[0]["data"].entries())
        channel["samples"].named()
        samples = [Sample(entry["data"].numbers(n_bins)) for entry in entries]
        statistics: dict[str, np.ndarray] = {}
        for entry, sample in zip(entries, samples, strict=True):
            seen = set()
            for modifier in entry["modifiers"].entries(empty=True):
                kind, name = modifier["type"].text(), modifier["name"].text()
                if kind not in _FAMILIES:
                    raise ValueError(f"{modifier['type'].place} must be one of {', '.join(_FAMILIES)}, got {kind!r}")
                if (kind, name) in seen:
                    raise ValueError(f"{modifier.place}: the sample has a {kind} {name!r} already")
                seen.add((kind, name))
                if self._families.setdefault(name, _FAMILIES[kind]) != _FAMILIES[kind]:
                    raise ValueError(f"{modifier.place}: {name!r} is the name of modifiers of another type")
                if kind == "staterror":
                    error = modifier["data"].numbers(n_bins)
                    statistics[name] = statistics.get(name, 0.0) + np.stack([sample.nominal, error**2])
                    first = sum(part.shape[1] for part in self._statistics.get(name, []))
                    sample.of_bins.append((name, slice(first, first + n_bins)))
                else:
                    getattr(self, f"_{kind}")(name, modifier, sample)
        for name, sums in statistics.items():
            self._statistics.setdefault(name, []).append(sums)
        return samples

    def _one(self, name: str, inits: float, bounds: tuple[float, float], **constraint: float) -> None:
        self._parameters.setdefault(name, _Parameter.of(name, False, [True], inits, bounds, **constraint))

    def _normfactor(self, name: str, modifier: "_Entry", sample: Sample) -> None:
        self._one(name, 1.0, (0.0, 10.0))
        sample.factors.append(name)

    def _lumi(self, name: str, modifier: "_Entry", sample: Sample) -> None:
        self._one(name, np.nan, (np.nan, np.nan), auxdata=np.nan, sigmas=np.nan)
        sample.factors.append(name)

    def _normsys(self, name: str, modifier: "_Entry", sample: Sample) -> None:
        sides = [modifier["data"][side] for side in ("lo", "hi")]
        for side in sides:
            if not side.numbers() > 0:
                raise ValueError(f"{side.place} must be positive, got {side.value}")
        self._one(name, 0.0, (-5.0, 5.0), auxdata=0.0, sigmas=1.0)
        sample.normalisations.append(Normalisation(name, *(float(side.value) for side in sides)))

    def _histosys(self, name: str, modifier: "_Entry", sample: Sample) -> None:
        sides = [modifier["data"][side].numbers(len(sample.nominal)) for side in ("lo_data", "hi_data")]
        self._one(name, 0.0, (-5.0, 5.0), auxdata=0.0, sigmas=1.0)
        sample.shapes.append(Shape(name, *(side - sample.nominal for side in sides)))

    def _shapefactor(self, name: str, modifier: "_Entry", sample: Sample) -> None:
        n_bins = len(sample.nominal)
        known = self._parameters.setdefault(name, _Parameter.of(name, True, [True] * n_bins, 1.0, (0.0, 10.0)))
        if len(known.there) != n_bins:
            raise ValueError(f"{modifier.place}: {name!r} is the name of {len(known.there)} parameters, not {n_bins}")
        sample.of_bins.append((name, slice(0, n_bins)))

    def _shapesys(self, name: str, modifier: "_Entry", sample: Sample) -> None:
        if name in self._parameters:
            raise ValueError(f"{modifier.place}: another sample has a shapesys {name!r}")
        error = modifier["data"].numbers(len(sample.nominal))
        there = (sample.nominal > 0) & (error > 0)
        counts = (np.where(there, sample.nominal, 1.0) / np.where(there, error, 1.0)) ** 2
        self._parameters[name] = _Parameter.of(name, True, there, 1.0, _SMALL_TO_10, auxdata=counts, factors=counts)
        sample.of_bins.append((name, slice(0, len(error))))


# types of modifiers, and what others may use the name of one
_FAMILIES = {"normfactor": "normfactor", "lumi": "lumi", "normsys": "alpha", "histosys": "alpha"}
_FAMILIES |= {kind: kind for kind in ("staterror", "shapesys", "shapefactor")}
_SMALL_TO_10 = (1e-10, 10.0)


class _Entry:
    """A value of a JSON file that knows its place, for sentences about it."""

    def __init__(self, value: Any, title: str, path: str = "") -> None:
        self.value, self.title, self.path = value, title, path

    @property
    def place(self) -> str:
        return f"{self.title}: {self.path}" if self.path else self.title

    def __contains__(self, key: str) -> bool:
        return isinstance(self.value, Mapping) and key in self.value

    def __getitem__(self, key: str) -> "_Entry":
        if not isinstance(self.value, Mapping):
            raise ValueError(f"{self.place} must be an object with {key!r}, got {shown(self.value)}")
        if key not in self.value:
            raise ValueError(f"{self.place} must have an entry {key!r}")
        return _Entry(self.value[key], self.title, f"{self.path}.{key}" if self.path else key)

    def entries(self, *, empty: bool = False) -> list["_Entry"]:
        if not isinstance(self.value, list) or not (self.value or empty):
            raise ValueError(
                f"{self.place} must be a list{'' if empty else ' of one or more'}, got {shown(self.value)}"
            )
        return [_Entry(value, self.title, f"{self.path}[{k}]") for k, value in enumerate(self.value)]

    def named(self, *, empty: bool = False) -> dict[str, "_Entry"]:
        """The entries by their names, which must differ."""
        found: dict[str, _Entry] = {}
        for entry in self.entries(empty=empty):
            name = entry["name"].text()
            if name in found:
                raise ValueError(f"{entry.place}: another entry has the name {name!r}")
            found[name] = entry
        return found

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise ValueError(f"{self.place} must be a text, got {shown(self.value)}")
        return self.value

    def numbers(self, *shape: int) -> np.ndarray:
        try:
            array = np.asarray(self.value)
        except ValueError:  # rows of different lengths
            array = np.empty(0)
        # neither texts nor truth values nor integers that no float holds
        if array.dtype.kind not in "iuf" or array.shape != shape or not np.isfinite(array).all():
            wanted = f"a list of {' x '.join(map(str, shape))} finite numbers" if shape else "a finite number"
            raise ValueError(f"{self.place} must be {wanted}, got {shown(self.value)}")
        return array.astype(np.float64)

    def flags(self, n: int) -> np.ndarray:
        """One truth value for all, or n."""
        given = self.value if isinstance(self.value, list) else [self.value] * n
        if len(given) != n or not all(isinstance(value, bool) for value in given):
            raise ValueError(f"{self.place} must be true or false, got {shown(self.value)}")
        return np.array(given)


def _loaded(source: Any) -> _Entry:
    if isinstance(source, Mapping):
        return _Entry(source, "workspace")
    try:
        return _Entry(json.loads(Path(source).read_text(encoding="utf-8-sig")), str(source))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{source} is no JSON file: {error}") from None


def _measurement(whole: _Entry, name: str | None) -> _Entry:
    found = whole["measurements"].named()
    if name is not None and name not in found:
        raise ValueError(f"measurement must be one of {', '.join(found)}, got {name!r}")
    return found[name] if name is not None else next(iter(found.values()))


def _observed(observations: _Entry, channels: Sequence[_Entry], n_bins: Sequence[int]) -> np.ndarray:
    """Counts of the bins of all channels."""
    found, counts = observations.named(), []
    for channel, n in zip(channels, n_bins, strict=True):
        name = channel["name"].text()
        if name not in found:
            raise ValueError(f"{observations.place} must have the channel {name!r}")
        counts.append(found[name]["data"].numbers(n))
        if (counts[-1] < 0).any():
            raise ValueError(
                f"{found[name]['data'].place} must not be negative, got {shown(found[name]['data'].value)}"
            )
    return np.concatenate(counts)
