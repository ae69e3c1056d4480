"""The report of a study: a directory with figures, the numbers as JSON, and one HTML page that needs no other file.

The page holds its figures as `data:` addresses, has no script, and loads nothing: it opens without a network, and can
be mailed and printed.
"""

import dataclasses
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from engine.printing import Table
from toys.charts import data_uri, save
from toys.figures import FigureError
from toys.files import StorageError, writing

__all__ = ["Plate", "Report", "Section", "check_directory", "plate", "render", "write_report", "write_tables"]

PAGE, TABLES, FIGURES = "report.html", "tables.json", "figures"
TEMPORARY = ".tmp."  # between the name of a file that is written and the number of the process


@dataclasses.dataclass(frozen=True)
class Plate:
    """A figure with its caption.

    Attributes
    ----------
    stem : str
        Name of its files without the ending.
    caption : str
    figure : matplotlib Figure
    uri : str
        The figure as a `data:` address.
    """

    stem: str
    caption: str
    figure: Any
    uri: str

    @property
    def files(self) -> str:
        return f"{FIGURES}/{self.stem}.pdf"


def plate(stem: str, caption: str, figure: Any) -> Plate:
    """A plate, of which the stem may hold what no name of a file can, as names of parameters do."""
    return Plate(quote(stem, safe="=+").replace("%", "_"), caption, figure, data_uri(figure))


@dataclasses.dataclass(frozen=True)
class Section:
    title: str
    sentences: Sequence[str] = ()
    tables: Sequence[Table] = ()
    plates: Sequence[Plate] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes
    ----------
    title, subtitle : str
    sentences : sequence of str
        What was done.
    warnings : sequence of str
        What the reader must know first.
    sections : sequence of Section
    made : dict
        Command line, versions and the like.
    numbers : dict
        What goes to `tables.json`.
    """

    title: str
    subtitle: str
    sentences: Sequence[str]
    warnings: Sequence[str]
    sections: Sequence[Section]
    made: Mapping[str, str]
    numbers: Mapping[str, Any]


def render(report: Report) -> str:
    """The HTML page. Text is escaped: a name such as `<script>` stays text.

    Raises
    ------
    FigureError
        If jinja2 is missing.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise FigureError("the report needs jinja2: pip install 'batchfit[plot]'") from None
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    fields = {field.name: getattr(report, field.name) for field in dataclasses.fields(report)}
    return environment.from_string(template).render(fields)


def check_directory(out: str | Path, *, overwrite: bool = False) -> None:
    """Raise StorageError now if a report could not be written to the directory `out` later; nothing is changed.

    Raises
    ------
    StorageError
        If something is there and `overwrite` is not given, or is not a report, or nothing can be written there.
    """
    out = Path(out)
    with writing(out):
        if out.exists() and not out.is_dir():
            raise StorageError(f"{out} is a file: name a directory for the report")
        if out.is_dir() and any(out.iterdir()):
            if not overwrite:
                raise StorageError(f"{out} exists: pass --overwrite to replace it, or name another directory")
            names = {file.name.partition(TEMPORARY)[0] for file in out.iterdir()}
            strangers = sorted(names - {PAGE, TABLES, FIGURES})
            if strangers:
                raise StorageError(f"{out} holds {strangers[0]}, which is none of a report: name another directory")
        with tempfile.TemporaryFile(dir=out if out.is_dir() else out.parent):
            pass


def write_tables(out: str | Path, numbers: Mapping[str, Any]) -> Path:
    """Write the numbers to `out/tables.json`, complete or not at all; what is not finite becomes null.

    The page and figures of an earlier report, of which they are not, go before.

    Raises
    ------
    StorageError
    """
    out = Path(out)
    with writing(out):
        out.mkdir(exist_ok=True)
        (out / PAGE).unlink(missing_ok=True)
        shutil.rmtree(out / FIGURES, ignore_errors=True)
        for left in out.glob(f"*{TEMPORARY}*"):  # by a process that was killed
            left.unlink(missing_ok=True)
        _put(out / TABLES, json.dumps(_plain(numbers), indent=1, allow_nan=False) + "\n")
    return out / TABLES


def write_report(out: str | Path, report: Report) -> list[Path]:
    """Write `report.html`, `tables.json` and `figures/*.png, *.pdf` to the directory `out`; returns their paths.

    Raises
    ------
    StorageError, FigureError
        If they cannot be written, or a package is missing.
    """
    out = Path(out)
    page = render(report)
    files = [write_tables(out, report.numbers)]
    with writing(out):
        (out / FIGURES).mkdir()
        for section in report.sections:
            for each in section.plates:
                files += save(each.figure, out / FIGURES / each.stem)
        _put(out / PAGE, page)
    return [out / PAGE, *files]


def _put(path: Path, text: str) -> None:
    with _aside(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f"{path.name}{TEMPORARY}{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    return None if isinstance(value, float) and not math.isfinite(value) else value
