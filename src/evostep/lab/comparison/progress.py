"""Progress: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column

from evostep.errors import printable, warn
from evostep.lab.arms.seed_run import Watch

PLAIN_EVERY_SECONDS = 10.0


@contextmanager
def show_progress(total: int, console: Console, *, every_step: bool = False) -> Iterator[Watch]:
    """Show progress over `total` sample-forwards until the context is left.

    A quiet console is told nothing; what a run warns of is a warning then.
    """
    if console.quiet:
        yield Watch(advance=lambda _: None, say=lambda _: None, warn=warn)
    elif console.is_terminal and not console.is_dumb_terminal:
        yield from _bar(total, console)
    else:
        yield from _lines(total, console, 0.0 if every_step else PLAIN_EVERY_SECONDS)


def _bar(total: int, console: Console) -> Iterator[Watch]:
    # what is being done has the room that is left: times and bar must not be pushed out
    columns = (
        BarColumn(bar_width=10),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("left"),
        TextColumn(
            "{task.description}", table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")
        ),
    )
    with Progress(*columns, console=console, expand=True, speed_estimate_period=120) as progress:
        task = progress.add_task("starting", total=total)
        yield Watch(
            advance=lambda forwards: progress.advance(task, forwards),
            say=lambda text: progress.update(task, description=escape(printable(text))),
            warn=lambda text: _print(progress.console, text),
        )
        progress.update(task, completed=total, description="done")


def _lines(total: int, console: Console, every: float) -> Iterator[Watch]:
    began = time.perf_counter()
    done = 0
    last = -every

    def advance(forwards: int) -> None:
        nonlocal done
        done += forwards

    def say(text: str) -> None:
        nonlocal last
        now = time.perf_counter() - began
        if now - last < every:
            return
        last = now
        show(text)

    def show(text: str) -> None:
        now = time.perf_counter() - began
        share = min(done / total, 1.0) if total else 1.0
        left = f", {_clock(now / share - now)} left" if share > 0 else ""
        _print(console, f"[{share:4.0%}{left}] {text}")

    yield Watch(advance=advance, say=say, warn=show)


def _print(console: Console, text: str) -> None:
    console.print(printable(text.replace("\n", " ")), markup=False, highlight=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
