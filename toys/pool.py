"""One pool of toys and fits, from which test statistics at many values are made."""

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from engine.arguments import limit_arrays, one_of
from engine.asimov import NoAsimovError, asimov
from engine.result import FitResult
from engine.status import Status
from engine.sums import SumCost
from engine.test_statistic import TEST_STATISTICS, TestStatistic, checked_poi, test_statistic
from toys import storage
from toys.files import reading
from toys.points import NormalPoints
from toys.regenerate import stored_toys
from toys.simultaneous import Simultaneous
from toys.study import Study, generate
from toys.throwing import Thrower, check_n_events, entries_of

__all__ = ["TIE", "NoFitError", "ToyPool", "number", "pool_for"]

TIE = 1e-6  # statistics this close are equal


class NoFitError(ValueError):
    """A fit of the observation failed; `status` tells how."""

    def __init__(self, sentence: str, status: Status) -> None:
        super().__init__(sentence)
        self.status = status


class ToyPool:
    """Toys thrown at values of one parameter, and their fits, kept for all that is asked of them.

    Toy k at a value depends on (seed, value, k) and the parameters there alone, so that asking for more toys throws and
    fits the new ones only. Toys of different values are independent. The free fits at a value are made once and shared
    by all tested values and test statistics.

    Data are thrown again where they are needed and never kept: memory follows the free fits, 8 (n_params + 3)^2 bytes
    per toy, and 9 bytes per toy and tested value.

    Parameters
    ----------
    study : Study
    poi : str
        The parameter of interest, a free parameter of the fits and one of the sampler.
    data : optional
        The observation, one toy as `fit_batch` takes it; by default the study's. Without any, the Asimov data of the
        study's truth stand for it.
    seed : int
    auxiliary : {"redrawn", "fixed"}
        Whether each toy has its own measured values of the constraints, drawn around the parameters it is thrown at, or
        the observed ones.
    nuisance : {"profiled", "truth"}
        The other parameters of the toys: those of the fit to the observation with the parameter of interest held at the
        value, or the study's truth. Those that the fit does not have are the study's truth.
    stored : path, optional
        A file of `run_toys.py` of this study and truth: its toys and fits are the first ones there, so that `nuisance`
        must be "truth" and `auxiliary` "redrawn", and no measured value "fixed" in the sampler.
    backend, device : str
        As for `fit_batch`.

    Raises
    ------
    TypeError, ValueError
        If an argument has the wrong form, toys cannot be thrown so, those of the file are thrown otherwise, or the
        sampler throws another number of events than were observed.
    StorageError
        If the file cannot be read.

    References
    ----------
    Chuang & Lai, Statistica Sinica 10 (2000) 1, for toys with profiled nuisance parameters.
    Cranmer, arXiv:1503.07622, sec. 4, for constraint measurements as global observables that are part of the data.
    """

    def __init__(
        self,
        study: Study,
        poi: str,
        data: Any = None,
        *,
        seed: int = 1,
        auxiliary: str = "redrawn",
        nuisance: str = "profiled",
        stored: str | Path | None = None,
        backend: str = "auto",
        device: str = "auto",
    ) -> None:
        if not isinstance(study, Study):
            raise TypeError(f"study must be a toys.Study, got {type(study).__name__}")
        one_of("auxiliary", auxiliary, ("redrawn", "fixed"))
        one_of("nuisance", nuisance, ("profiled", "truth"))
        if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise ValueError(f"seed must be a whole number in [0, 2^64), got {seed!r}")
        checked_poi(study.cost.names, poi, study.fixed)
        if poi not in study.names:
            raise ValueError(f"toys cannot be thrown at values of {poi!r}: the sampler has {', '.join(study.names)}")
        self.study = study
        self.poi, self.seed, self.auxiliary, self.nuisance = poi, int(seed), auxiliary, nuisance
        self.backend, self.device = backend, device
        given = study.data if data is None else data
        self.has_data = given is not None
        self.data = given if self.has_data else self._expected_data()
        rows = study.cost.rows(self.data)
        if len(rows) != 1:
            raise ValueError(f"data must be one toy, got {len(rows)}")
        if self.has_data and rows.weighted:
            raise ValueError(
                "the data are weighted, and toys are thrown without weights, so that they tell nothing of these data: "
                "pass data without weights"
            )
        if self.has_data:
            check_n_events(study, self.data)
        self._stored_path, self._stored = stored, None if stored is None else self._read(stored)
        self._throw = Thrower(study, self.data, auxiliary=auxiliary, backend=backend, device=device)
        self._conditional: dict[float, FitResult] = {}
        self._observed: dict[bool, FitResult] = {}
        self._asimov: dict[tuple[float, bool], tuple[Any, FitResult]] = {}
        self._free: dict[tuple[float, bool], FitResult] = {}
        self._values: dict[tuple[float, float, str], tuple[np.ndarray, np.ndarray]] = {}

    def _read(self, path: str | Path) -> FitResult:
        if (self.auxiliary, self.nuisance) != ("redrawn", "truth"):
            raise ValueError("toys of a file are those of its truth: pass nuisance='truth' and auxiliary='redrawn'")
        sampler = self.study.sampler
        if isinstance(sampler, Simultaneous) and any(sampler.fixed):
            raise ValueError(f"the toys of {path} have 'fixed' measured values, new ones do not: leave out the file")
        fits = storage.load(path)
        if fits.names != self.study.cost.names:
            raise ValueError(
                f"{path} has fits of {', '.join(fits.names)}, but the study of {', '.join(self.study.cost.names)}"
            )
        with reading(path):
            truth = json.loads(storage.read_attributes(path)["truth"])
        different = [f"{name} = {truth[name]:g}" for name in truth if truth[name] != self.study.truth.get(name)]
        if different:
            raise ValueError(
                f"the toys of {path} were thrown at {', '.join(different)}, not at the study's truth: pass the study "
                "at that truth, or leave out the file"
            )
        return fits

    def _n_stored(self, thrown_at: float) -> int:
        """How many toys of a value are in the file."""
        return len(self._stored) if self._stored is not None and thrown_at == self.study.truth[self.poi] else 0

    @property
    def _truth(self) -> dict[str, float]:
        """The study's truth as parameters of the fit; its start for those that the sampler does not have."""
        return {name: self.study.truth.get(name, self.study.start[name]) for name in self.study.cost.names}

    @property
    def sentence(self) -> str:
        """How the toys are thrown, in words."""
        others = [name for name in self.study.names if name != self.poi]
        if not others:
            parts = ["no nuisance parameters"]
        elif self.nuisance == "truth":
            parts = ["nuisance parameters at the truth of the study"]
        else:
            parts = ["nuisance parameters profiled to the data at each tested value"]
        if not self.has_data:
            parts.append("as nothing was observed, the Asimov data of the truth are the data")
        if self._throw.sentence:
            parts.append(self._throw.sentence)
        if self._stored is not None:
            truth = self.study.truth[self.poi]
            parts.append(f"the first {len(self._stored)} at {self.poi} = {truth:g} are those of {self._stored_path}")
        return "Toys: " + "; ".join(parts) + "."

    @property
    def limits(self) -> tuple[float, float]:
        """Limits of the parameter of interest, infinite where it has none."""
        i = self.study.cost.names.index(self.poi)
        lower, upper = limit_arrays(self.study.cost.names, self.study.limits)
        return float(lower[i]), float(upper[i])

    def _expected_data(self) -> Any:
        # where the density tells nothing of the number of events or of x, the sampler may
        sampler, cost = self.study.sampler, self.study.cost
        samplers = sampler.samplers if isinstance(sampler, Simultaneous) else (sampler,)
        telling = [hasattr(part, "n_events") or isinstance(part, NormalPoints) for part in samplers]
        like: Any = None
        if any(telling):
            toy = generate(self.study, 1, 0)
            entries = entries_of(cost, toy) if isinstance(cost, SumCost) else (toy,)
            like = tuple(entry if tells else None for entry, tells in zip(entries, telling, strict=True))
            like = like if isinstance(cost, SumCost) else like[0]
        try:
            return asimov(self.study.cost, self._truth, observable=self.study.observable, like=like)
        except NoAsimovError as reason:
            told = str(reason).removesuffix(": pass like=")
            raise ValueError(
                f"the study has no data, and nothing can stand for them ({told}): pass data, or --data to a script"
            ) from None

    def conditional(self, value: float) -> FitResult:
        """The fit of the observation with the parameter of interest held at a value.

        Raises
        ------
        NoFitError
            If it fails.
        ValueError
            If the value is outside of the limits.
        """
        value = number(value)
        if value not in self._conditional:
            self._check_within_limits(value)
            start, fixed = {**self.study.start, self.poi: value}, (*self.study.fixed, self.poi)
            fit = self.study.fit(self.data, start, fixed=fixed, backend=self.backend, device=self.device)
            if not fit.valid[0]:
                raise self._failed(value, fit, " or nuisance='truth'")
            self._conditional[value] = replace(fit, problem=None)
        return self._conditional[value]

    def _check_within_limits(self, value: float) -> None:
        lower, upper = self.limits
        if not lower <= value <= upper:
            raise ValueError(f"{self.poi} = {value:g} is outside of its limits ({lower:g}, {upper:g})")

    def fit_values_at(self, value: float) -> dict[str, float]:
        """Parameters of the fit at a value of the parameter of interest: profiled, or the truth."""
        if self.nuisance == "truth":
            return {**self._truth, self.poi: number(value)}
        fitted = set(self.study.cost.names) - {self.poi, *self.study.fixed}
        if not fitted:  # and the cost may be infinite
            self._check_within_limits(number(value))
            return {**self.study.start, self.poi: number(value)}
        names, values = self.study.cost.names, self.conditional(value).values[0].tolist()
        return dict(zip(names, values, strict=True))

    def theta_at(self, value: float) -> dict[str, float]:
        """Parameters at which the toys of a value are thrown, by the names of the sampler."""
        fitted = self.fit_values_at(value)
        return {name: fitted.get(name, self.study.truth[name]) for name in self.study.names}

    def asimov(self, value: float) -> Any:
        """The Asimov data of a value of the parameter of interest; see `engine.asimov`."""
        study = self.study
        return asimov(study.cost, self.fit_values_at(value), self.data, observable=study.observable)

    def asimov_statistic(self, value: float, *, poi_alt: float = 0.0, test_stat: str = "qtilde") -> float:
        """The test statistic of the Asimov data of an alternative; NaN where a fit fails.

        Raises
        ------
        NoAsimovError
            If the cost has no Asimov data.
        """
        value, key = number(value), (number(poi_alt), _bounded(test_stat))
        data, free = self._asimov.get(key, (None, None))
        if data is None:
            data = self.asimov(poi_alt)
        made = self._test(data, value, test_stat, {**self.fit_values_at(poi_alt)}, free)
        self._asimov[key] = data, replace(made.free, problem=None)
        return float(made.value[0])

    def observed(self, value: float, test_stat: str = "qtilde") -> TestStatistic:
        """The test statistic of the observation, one toy; its free fit is made once.

        Raises
        ------
        NoFitError
            If a fit fails.
        """
        bounded = _bounded(test_stat)
        free = self._observed.get(bounded, self._observed.get(not bounded))
        made = self._test(self.data, number(value), test_stat, self.study.start, free)
        if not made.valid[0]:
            raise self._failed(value, made.fixed if made.fixed and made.free.valid[0] else made.free)
        self._observed[bounded] = replace(made.free, problem=None)
        return made

    def statistic(self, value: float, *, thrown_at: float, n_toys: int, test_stat: str = "qtilde") -> TestStatistic:
        """The test statistic of the first toys thrown at a value.

        Parameters
        ----------
        value : float
            Tested value of the parameter of interest.
        thrown_at : float
            Its value in the toys.
        n_toys : int
        test_stat : str
            See `engine.test_statistic`.

        Returns
        -------
        TestStatistic
            Of n_toys toys; its `fixed` is None.
        """
        one_of("test_stat", test_stat, TEST_STATISTICS)
        if not isinstance(n_toys, int | np.integer) or n_toys < 1:
            raise ValueError(f"n_toys must be a whole number of at least 1, got {n_toys!r}")
        value, thrown_at, bounded = number(value), number(thrown_at), _bounded(test_stat)
        key = (value, thrown_at, test_stat)
        values, valid = self._values.get(key, (np.empty(0), np.empty(0, dtype=bool)))
        theta = self.theta_at(thrown_at) if len(values) < n_toys else {}
        while len(values) < n_toys:
            first, stop = len(values), min(len(values) + self._throw.chunk, n_toys)
            if first < self._n_stored(thrown_at):
                stop = min(stop, self._n_stored(thrown_at))
            free, toys = self._known_free(thrown_at, bounded, first, stop)
            data = self._thrown(theta, thrown_at, first, toys)
            start = {**self.study.start, **{name: x for name, x in theta.items() if name in self.study.cost.names}}
            made = self._test(data, value, test_stat, start, free)
            self._keep(thrown_at, bounded, first, made.free)
            values, valid = np.concatenate([values, made.value]), np.concatenate([valid, made.valid])
            self._values[key] = values, valid
        fits = cast(FitResult, self._free[thrown_at, bounded][:n_toys])
        poi_hat, tested = fits.values[:, fits.names.index(self.poi)], np.full(n_toys, value)
        return TestStatistic(test_stat, self.poi, tested, values[:n_toys], poi_hat, valid[:n_toys], fits, None)

    def _known_free(self, thrown_at: float, bounded: bool, first: int, stop: int) -> tuple[FitResult | None, int]:
        """Free fits of toys from `first` on and for how many they are; None and all up to stop where there are none."""
        stored = self._stored if self._n_stored(thrown_at) else None
        for held in (self._free.get((thrown_at, bounded)), self._free.get((thrown_at, not bounded)), stored):
            if held is not None and len(held) > first:
                stop = min(stop, len(held))
                return cast(FitResult, held[first:stop]), stop - first
        return None, stop - first

    def _keep(self, thrown_at: float, bounded: bool, first: int, free: FitResult) -> None:
        held = self._free.get((thrown_at, bounded))
        free = replace(free, problem=None)  # which holds the data
        if held is None:
            self._free[thrown_at, bounded] = free
        else:
            # a later test may have found a deeper minimum
            around = cast(FitResult, held[:first]), free, cast(FitResult, held[first + len(free) :])
            self._free[thrown_at, bounded] = FitResult.concatenate([part for part in around if len(part)])

    def _test(self, data: Any, value: float, test_stat: str, start: Any, free: FitResult | None) -> TestStatistic:
        study = self.study
        return test_statistic(
            study.cost,
            data,
            self.poi,
            value,
            test_stat=test_stat,
            start=start,
            limits=study.limits,
            fixed={name: study.start[name] for name in study.fixed},  # toys may start from other values
            free=free,
            backend=self.backend,
            device=self.device,
        )

    def _failed(self, value: float, fit: FitResult, or_else: str = "") -> NoFitError:
        status = Status(fit.status[0])
        return NoFitError(
            f"the fit of the observation at {self.poi} = {value:g} failed ({status.sentence}): pass other starts, or "
            f"hold parameters that have no meaning there by --fixed or Study(fixed=...){or_else}",
            status,
        )

    def _thrown(self, theta: dict[str, float], thrown_at: float, first: int, n_toys: int) -> Any:
        if first < self._n_stored(thrown_at) and self._stored_path is not None:
            return stored_toys(self.study, self._stored_path, first, first + n_toys)
        digest = hashlib.blake2b(struct.pack("<Qd", self.seed, thrown_at), digest_size=8).digest()
        return self._throw(theta, n_toys, seed=int.from_bytes(digest, "little"), first=first)


def pool_for(pool: ToyPool | None, study: Study, poi: str | None, data: Any, **options: Any) -> ToyPool:
    """The pool that was given, or a new one; ValueError if it is not one of this study and parameter."""
    poi = poi or (study.poi if pool is None else pool.poi)
    if not poi:
        raise ValueError("poi must name the parameter of interest, as the study has none: pass poi, or Study(poi=...)")
    if pool is None:
        return ToyPool(study, poi, data, **options)
    if pool.poi != poi or pool.study.cost is not study.cost or data is not None:
        raise ValueError(
            f"the pool holds the toys of its own study, parameter {pool.poi!r} and data: pass the same study and poi, "
            "and no data"
        )
    return pool


def _bounded(test_stat: str) -> bool:
    """Whether the free fit of a statistic keeps the parameter of interest from being negative."""
    one_of("test_stat", test_stat, TEST_STATISTICS)
    return test_stat in ("ttilde", "qtilde", "q0")


def number(value: Any) -> float:
    """A finite float, without the sign of zero."""
    try:
        number = float(value) + 0.0
    except (TypeError, ValueError):
        raise TypeError(f"a value of the parameter of interest must be a number, got {value!r}") from None
    if not np.isfinite(number):
        raise ValueError(f"a value of the parameter of interest must be finite, got {number}")
    return number
