"""The study that a command line names: ready-made or of a file, at the values given or fitted to observed data."""

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from engine.arguments import known
from engine.devices import find_devices
from engine.minos import MinosResult
from engine.printing import Table
from toys.files import reading, refuse_directory
from toys.models import STUDIES
from toys.observed import InputError, read_data
from toys.packing import describe, pack
from toys.parts import Fitted
from toys.study import Study
from toys.throwing import check_n_events
from toys.workspace import read_workspace

__all__ = ["explain", "find_study", "list_studies", "prepare"]


def list_studies() -> str:
    """The ready-made studies, one line each."""
    studies = [make() for make in STUDIES.values()]
    width = max(len(study.name) for study in studies)
    return "\n".join(f"{study.name:{width}}  {study.description}" for study in studies)


def find_study(model: str) -> tuple[Study, str]:
    """(study, source text) of a ready-made model, a file that defines `study`, or a `workspace.json[:measurement]`.

    Raises
    ------
    InputError, StorageError, ValueError
        If there is none, or it cannot be read.
    """
    if model in STUDIES:
        make = STUDIES[model]
        return make(), inspect.getsource(sys.modules[make.__module__])
    # workspace.json or workspace.json:measurement, though a file may have a colon in its name
    stem, colon, name = model.partition(".json:")
    file, measurement = (f"{stem}.json", name) if colon and not Path(model).exists() else (model, None)
    if not file.endswith((".py", ".json")):
        raise InputError(
            f"no model named {model!r}: --list shows the ready-made ones, or give a file my_study.py or workspace.json"
        )
    path = Path(file)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    with reading(path):
        refuse_directory(path)
        text = path.read_bytes()
    if file.endswith(".json"):
        return read_workspace(path, measurement=measurement), text.decode()
    spec = importlib.util.spec_from_file_location(f"batchfit_study_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    if (beside := str(path.absolute().parent)) not in sys.path:  # modules of the user's own, as Python finds them
        sys.path.append(beside)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's own code: whatever it raises is the user's to see
        told = explain(error, model) or f"{path}: {_in_one_line(error)}"
        raise InputError(f"{told}: the file of a model must run without errors") from error
    study = getattr(module, "study", None)
    if not isinstance(study, Study):
        raise InputError(f"{path} must define a variable 'study' that is a toys.Study")
    return study, importlib.util.decode_source(text)


def explain(error: BaseException, model: str) -> str | None:
    """What went wrong and in which line of the user's own file, in one line; None for any other error.

    Parameters
    ----------
    error : exception
        Raised while the code of a study was run.
    model : str
        The file of the study, or the name of a ready-made one.
    """
    path = Path(model).absolute()
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == path]
    return f"{model}, line {lines[-1]}: {_in_one_line(error)}" if lines else None


def _in_one_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__


def prepare(
    model: str,
    *,
    data: Sequence[str],
    columns: Sequence[str],
    truth: Mapping[str, float],
    start: Mapping[str, float],
    fixed: Mapping[str, float | None],
    device: str,
    backend: str,
    say: Callable[[str], None],
    minos: bool = False,
) -> tuple[Study, str, Fitted | None]:
    """The study to run, the source text of its model and, of observed data, their fit, at whose values the study is.

    What is fixed is held at the value given, else at its start, which is by default the truth, in all fits.

    Raises
    ------
    InputError, ValueError
        If the model, the data or a parameter cannot be had, the sampler throws another number of events than the data
        have, or the fit of the data is not valid.
    """
    study, source = find_study(model)
    find_devices(device)
    if columns and not data:
        raise InputError("--column goes with --data")
    fitted_names = study.cost.names
    for what, given, names in (
        ("--truth", truth, study.names),
        ("--start", start, fitted_names),
        ("--fixed", fixed, fitted_names),
    ):
        known(names, given, what)
    at = {name: value for name, value in fixed.items() if value is not None}
    if twice := [name for name in at if name in start]:
        raise InputError(f"--start and --fixed both have a value of {twice[0]}: leave it out of one")
    if fixed:
        at = {name: {**study.start, **truth, **start, **at}[name] for name in fixed}
        study = replace(study, fixed=tuple(dict.fromkeys((*study.fixed, *fixed))), start={**study.start, **at})
    observed_fit = None
    if data:
        unknown = [name for name in study.names if name not in study.cost.names]
        if unknown:
            raise InputError(
                f"the fit of --data has no {', '.join(unknown)}, which the sampler of {study.name} needs: "
                "leave out --data, and give --truth"
            )
        observed = read_data(study.cost, data, columns, study.observable)
        check_n_events(study, observed)
        fits = study.fit(observed, {**study.start, **start}, device=device, backend=backend)
        intervals = fits.minos() if minos and fits.valid[0] else None
        fits = intervals.result if intervals else fits  # a lower minimum may have been found
        told = " and ".join(data)
        if not fits.valid[0]:
            (fit,) = fits
            raise InputError(f"the fit of {told} is not valid: {fit.status.sentence} Try other --start values")
        fitted_to = describe(study.cost, pack(study.cost, observed))
        say(f"fitted to {told}: {fitted_to}; the toys are thrown from these values")
        say(str(fits[0]))
        if intervals:
            say(_ends(intervals).text())
        observed_fit = Fitted(fits, intervals)
        fitted = dict(zip(study.cost.names, fits.values[0].tolist(), strict=True))
        study = study.at({name: fitted[name] for name in study.names})
    if truth:
        study = study.at(truth)
    if start:
        study = study.at({}, {**study.start, **start})
    return study, source, observed_fit


def _ends(minos: MinosResult) -> Table:
    """The intervals of one fit."""
    rows = []
    for name in minos.names:
        lower, upper, low, high = (
            getattr(minos, field)[name][0] for field in ("lower", "upper", "at_lower_limit", "at_upper_limit")
        )
        note = "at limit" if low or high else "" if minos.valid[name][0] else "not found"
        rows.append([name, f"{lower:.4g}", f"{upper:+.4g}", note])
    return Table([], ["Name", "MINOS -", "MINOS +", "Note"], rows)
