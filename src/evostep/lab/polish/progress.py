"""One line of progress on a terminal's stderr; nothing elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

_BROKEN = 1e5  # a gain beyond it is that of a broken constraint, and no number for people


@contextmanager
def show_search(fraction: bool) -> Iterator[Callable[[float, float], None]]:
    """Show how far a search is, the gain so far and the time left, until the context is left.

    Args:
        fraction: whether the gain is told in points.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn("polishing"),
        BarColumn(bar_width=20),
        TaskProgressColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not sys.stderr.isatty()
    ) as progress:
        task = progress.add_task("", total=1.0)

        def watch(done: float, gain: float) -> None:
            text = ""
            if abs(gain) < _BROKEN:
                text = f"{100 * gain:+.1f}" if fraction else f"{gain:+.3g}"
                text = f"gain where it searches {text}"
            progress.update(task, completed=done, description=text)

        yield watch
