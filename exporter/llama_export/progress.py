"""Progress of long work, with rate and ETA, on stderr when it is a terminal; silent otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

Advance = Callable[[int], None]


@contextmanager
def byte_progress(title: str, total: int) -> Iterator[Advance]:
    """Show a bar for ``total`` bytes while the block runs; yields the function that advances it."""
    with _bar(title, total, DownloadColumn(), TransferSpeedColumn()) as advance:
        yield advance


@contextmanager
def item_progress(title: str, total: int) -> Iterator[Advance]:
    """The same for ``total`` things that are done one after the other."""
    with _bar(title, total, MofNCompleteColumn(), _ItemsPerSecond()) as advance:
        yield advance


class _ItemsPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.2f}/s")


@contextmanager
def _bar(title: str, total: int, *columns: ProgressColumn) -> Iterator[Advance]:
    shown = (TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*shown, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.advance(task, done)
