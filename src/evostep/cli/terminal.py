"""What is printed arrives: on a terminal of any code page, and in a pipe that is closed early."""

from __future__ import annotations

import codecs
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_PLAIN = {"−": "-", "–": "-", "—": "-", "±": "+-", "×": "x", "…": "...", "→": "->", "≥": ">="}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Return what stands for signs that an encoding lacks: their plain form, else "?"."""
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(_PLAIN.get(sign, "?") for sign in signs), error.end


codecs.register_error("evostep.plain", _plain)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which batch systems and containers send before they kill: taken as Ctrl-C is."""

    exit_code = 128 + signal.SIGTERM


def _terminate(*_: object) -> None:
    raise Terminated


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM raise within, where nobody else has said what it is to do."""
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Steady:
    """A text stream that never raises: it is what a run must not end by.

    Attributes:
        error: why something was lost; None: nothing was, or nobody wanted to read on.
        moving: whether it may be taken for a terminal, on which progress moves.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None: closed before the start, `>&-`
        self.error: OSError | None = None
        self.moving = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, in plain signs where the stream's encoding lacks those that it has."""
        if self._stream is not None:
            encoding = getattr(self._stream, "encoding", None) or "utf-8"
            shown = text.encode(encoding, "evostep.plain").decode(encoding)
            self._try(lambda stream: stream.write(shown))
        return len(text)

    def flush(self) -> None:
        """Write what is still held back."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return self.moving and self._stream is not None and self._stream.isatty()

    def _try(self, act: Any) -> None:
        if self._stream is None:
            return
        try:
            act(self._stream)
        except OSError as error:
            self.error = self.error or (None if isinstance(error, BrokenPipeError) else error)
            # what is still in the stream's buffer would fail again as Python ends
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123  # it has no path on Windows
                os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def steady_streams() -> Iterator[tuple[Steady, Steady]]:
    """Let all that is printed go through `Steady` streams, until the context is left."""
    before = sys.stdout, sys.stderr
    streams = Steady(sys.stdout), Steady(sys.stderr)
    sys.stdout, sys.stderr = streams
    try:
        yield streams
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before
