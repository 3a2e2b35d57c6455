"""What a long command shows on stderr while it works: a bar where its parts are counted, a line where they have names."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """What moves a bar on."""

    def __call__(self, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` parts are done."""


@contextmanager
def progress_bar(title: str) -> Iterator[Advance]:
    """A live bar on stderr with the time left, which is first shown when something is done: nothing is, of what is refused."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(compact=True),
    )
    bar = Progress(*columns, console=console)
    task = bar.add_task(title, total=None)

    def advance(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def status_line(title: str) -> Iterator[Callable[[str], None]]:
    """A function that says what is done now: on a terminal in one line, elsewhere in a line each, with the seconds so far."""
    from rich.console import Console

    console, began = Console(stderr=True, markup=False, highlight=False, soft_wrap=True), time.perf_counter()
    status = console.status(title)

    def tell(what: str) -> None:
        text = f"{title}: {what}, {time.perf_counter() - began:.0f} s"
        if console.is_terminal:
            status.update(text)
        else:
            console.print(text)

    if console.is_terminal:
        status.start()
    try:
        yield tell
    finally:
        status.stop()
