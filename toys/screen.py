"""What a run shows while it lasts: progress bars, with fits per second."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Screen"]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = "fits" if task.description in ("fit", "validate") else ""
        return Text(f"{task.speed:,.0f} {unit}/s" if task.speed and unit else "")


class Screen:
    """Progress bars on a terminal; nothing of them where the output is a file."""

    def __init__(self, *, quiet: bool) -> None:
        self.console = Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.description:>8}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=self.console, disable=quiet or not self.console.is_terminal)
        self.task: TaskID | None = None

    def say(self, text: str) -> None:
        print(text)

    def phase(self, name: str, total: int) -> None:
        self.task = self.progress.add_task(name, total=total)

    def advance(self, n: int) -> None:
        if self.task is not None:
            self.progress.advance(self.task, n)

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()
