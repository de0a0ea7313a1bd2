"""What Ctrl-C must not leave half done: it may come between any two lines.

What changes something for a while says so to a stack before it does (`Undoing`). Whoever leaves
puts back its own and whatever lies above it, which an interrupt has kept from being put back; so a
call that is `Undoing` as a whole, though it has nothing to put back itself, mends what an
interrupt did to any `with` within it. What is to be done as a whole is begun again where an
interrupt stops it (`finish`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class _Held(threading.local):
    """What is to be put back in this thread, the outermost first."""

    def __init__(self) -> None:
        self.stack: list[Undoing] = []


_held = _Held()


def _nothing() -> None:
    pass


class Undoing:
    """Puts something back on leaving, whatever is raised, and wherever an interrupt comes.

    Args:
        undo: puts back what was before, as often as it is called, and where nothing has changed
            yet. Left out: only what others within have not put back.

    Example:
        >>> switch = [False]
        >>> with Undoing(lambda: switch.__setitem__(0, False)):
        ...     switch[0] = True
        >>> switch
        [False]
    """

    def __init__(self, undo: Callable[[], object] = _nothing) -> None:
        self._undo = undo

    def __enter__(self) -> Undoing:
        _held.stack.append(self)
        return self

    def leave_it(self) -> None:
        """Take what has changed as it is to stay."""
        self._undo = _nothing

    def __exit__(self, *_: object) -> None:
        stack = _held.stack
        while self in stack:  # not where somebody further out has done it
            finish(stack[-1]._undo)
            stack.pop()


def finish(work: Callable[[], object]) -> None:
    """Do what must be done as a whole: an interrupt on the way finds it finished.

    Args:
        work: comes to the same if it is done again from the start.

    Example:
        >>> finish(lambda: print("done"))
        done
    """
    try:
        work()
    except BaseException:
        work()
        raise
