"""The fits of one chunk of toys, and what the first toy tells of all."""

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from engine.data import first_fault
from engine.devices import preferred
from engine.minos import MinosResult
from engine.normalisation import check_integral
from engine.reference import IndependentCost
from engine.result import FitResult
from toys.drawing import uses_key
from toys.memory import is_used_up
from toys.options import Options
from toys.packing import Arrays, bytes_per_toy, describe, pack, unpack
from toys.study import Study, generate, thrown_by

__all__ = ["REFERENCE", "Compiled", "Fitter", "compile_study", "join_minos"]

FIRST_TOYS = 16  # if none of them can be fitted, the sampler is wrong
REFERENCE = "reference"  # the thread that compiles what validates the fits


class Compiled(NamedTuple):
    """What the first toy told.

    These are the backends of sampler and fit, the device, how many toys are stepped together (None: as many as can be),
    the bytes of a toy, and what is fitted.
    """

    sampled: str
    backend: str
    device: str
    batch_size: int | None
    bytes_per_toy: int
    fitted: str


def compile_study(study: Study, options: Options) -> Compiled:
    """Throw and fit one toy, so that everything is compiled.

    Raises
    ------
    ValueError
        If the cost cannot take what the sampler throws, the sampler does not use its key, or the density of the model
        does not have its integral.
    """
    if study.observable is not None:
        for point in (study.truth, study.start):
            values = {**study.start, **{name: point[name] for name in study.cost.names if name in point}}
            check_integral(study.cost, [values[name] for name in study.cost.names], study.observable)
    sampled = thrown_by(study, options.backend, options.device)
    data = generate(study, 1, options.seed, 0, sampled)
    if not (hasattr(study.sampler, "generate") or uses_key(study.sampler, study.theta)):
        raise ValueError(
            "the sampler does not use its key, so that all toys are the same: draw with jax.random and this key, not "
            "with numpy.random"
        )
    rows = study.cost.rows(data)
    if rows.bad[0]:
        bad = study.cost.rows(generate(study, FIRST_TOYS, options.seed, 0, sampled)).bad
        if bad.all():
            raise ValueError(
                "the sampler throws what the cost cannot take, such as NaN, negative counts or an error of zero: "
                f"{first_fault(rows)}; correct the sampler"
            )
        data = generate(study, 1, options.seed, int(np.argmin(bad)), sampled)
        rows = study.cost.rows(data)
    device = options.device
    if device == options.backend == "auto" and options.optimizer == "newton":
        device = preferred(rows, len(study.cost.names), options.n_toys)
    result, _ = Fitter(study, options, options.backend, device).fit(data, 1)
    toys = pack(study.cost, data)
    if options.validate:
        threading.Thread(target=_compile_reference, args=(study, toys), name=REFERENCE).start()
    return Compiled(
        # on an accelerator the toys are thrown where they are fitted
        "jax" if result.backend == "jax" else sampled,
        result.backend,
        result.device,
        result.problem.driver.batch_size if result.problem else None,
        bytes_per_toy(toys, len(study.cost.names)),
        describe(study.cost, toys),
    )


def _compile_reference(study: Study, toy: Arrays) -> None:
    """Compile what validates the fits, while there is other work; what goes wrong will do so again when it is used."""
    with contextlib.suppress(Exception):
        rows = study.cost.rows(unpack(toy, 1))
        start = np.array([study.start[name] for name in study.cost.names], dtype=np.float64)
        IndependentCost(study.cost, rows).prepare(start)


class Fitter:
    """Fits chunks of a study; once memory has run out, in pieces of half as many toys.

    Attributes
    ----------
    at_once : int or None
        How many toys are fitted together; None is a whole chunk.
    """

    def __init__(
        self, study: Study, options: Options, backend: str, device: str, batch_size: int | None = None
    ) -> None:
        self.study, self.options, self.backend, self.device = study, options, backend, device
        self.batch_size = batch_size
        self.at_once: int | None = None

    def fit(
        self, data: Any, n_toys: int, advance: Callable[[int], None] = lambda n: None
    ) -> tuple[FitResult, MinosResult | None]:
        """The fits of a chunk, and the intervals if they are asked for.

        Raises
        ------
        ValueError
            If there is no memory for a single toy.
        """
        while True:
            done = 0

            def told(n: int) -> None:
                nonlocal done
                done += n
                advance(n)

            try:
                return self._fit(data, n_toys, told)
            except Exception as error:
                if not is_used_up(error):
                    raise
            # not inside of the except clause, where the traceback keeps what was allocated
            advance(-done)
            self._halve(min(self.at_once or n_toys, n_toys))

    def _halve(self, at_once: int) -> None:
        if at_once == 1:
            raise ValueError("there is no memory for the fit of a single toy: free some, or use another device")
        if self.at_once is None:
            warnings.warn(
                f"memory ran out with {at_once} toys fitted together: the run goes on with fewer at once", stacklevel=3
            )
        self.at_once = (at_once + 1) // 2

    def _fit(self, data: Any, n_toys: int, advance: Callable[[int], None]) -> tuple[FitResult, MinosResult | None]:
        if self.at_once is None or self.at_once >= n_toys:
            return self._fit_together(data, advance)
        toys, shared = pack(self.study.cost, data)
        fits, intervals = [], []
        for first in range(0, n_toys, self.at_once):
            piece = slice(first, min(first + self.at_once, n_toys))
            some = Arrays({name: cast(Any, array)[piece] for name, array in toys.items()}, shared)
            result, minos = self._fit_together(unpack(some, piece.stop - piece.start), advance)
            fits.append(dataclasses.replace(result, problem=None))
            intervals.append(minos)
        result = FitResult.concatenate(fits)
        found = [minos for minos in intervals if minos is not None]
        return result, join_minos(found, result) if found else None

    def _fit_together(self, data: Any, advance: Callable[[int], None]) -> tuple[FitResult, MinosResult | None]:
        result = self.study.fit(
            data,
            optimizer=self.options.optimizer,
            backend=self.backend,
            device=self.device,
            batch_size=self.at_once or self.batch_size,
            progress=advance,
        )
        minos = result.minos() if self.options.minos else None
        return (minos.result if minos else result), minos


def join_minos(parts: Sequence[MinosResult], result: FitResult) -> MinosResult:
    """MINOS results of one chunk of toys after the other, as one of all their fits."""
    arrays = [f.name for f in dataclasses.fields(MinosResult) if f.name not in ("names", "result")]
    joined: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return dataclasses.replace(parts[0], **joined, result=result)
