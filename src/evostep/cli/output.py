"""What a command says: its answer, as text or as one JSON object, and how much besides."""

from __future__ import annotations

import json
import math
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from evostep.cli.terminal import Steady
from evostep.cli.wording import plain
from evostep.errors import InputError, printable

if TYPE_CHECKING:
    from argparse import ArgumentParser

    from rich.console import Console

_HELP = {
    ("-q", "--quiet"): "no progress and no notes: the answer, warnings and errors alone",
    ("-v", "--verbose"): "say more: every step, and where warnings and errors are from",
    ("--json",): "answer by one JSON object on stdout, and nothing else there",
}
FAULT = "this is a fault of evostep, not of yours"
FLAGS = {name for names in _HELP for name in names}


@dataclass(frozen=True)
class Manner:
    """How a command speaks.

    Attributes:
        quiet: whether progress is left out.
        verbose: whether more is said.
        answers: the stream of a JSON answer; None: answers are text, and are printed.
    """

    quiet: bool = False
    verbose: bool = False
    answers: TextIO | None = None


_MANNER: ContextVar[Manner] = ContextVar("manner")


def add_manner(parser: ArgumentParser) -> None:
    """Add ``--quiet``, ``--verbose`` and ``--json``."""
    from argparse import SUPPRESS

    for names, text in _HELP.items():
        # no defaults: they do not belong in a printed configuration
        parser.add_argument(*names, action="store_true", default=SUPPRESS, help=text)


@contextmanager
def speaking(own: Any) -> Iterator[None]:
    """Speak as a command's arguments ask for, until the context is left.

    Where the answer is JSON, whatever else is printed, be it by a metric of the user's, goes to
    stderr.

    Raises:
        InputError: to be both quiet and verbose.
    """
    quiet, verbose, as_json = (bool(own.get(name)) for name in ("quiet", "verbose", "json"))
    if quiet and verbose:
        raise InputError("--quiet and --verbose exclude each other: leave one out")
    if quiet and isinstance(sys.stderr, Steady):
        sys.stderr.moving = False
    token = _MANNER.set(Manner(quiet, verbose, sys.stdout if as_json else None))
    try:
        with redirect_stdout(sys.stderr if as_json else sys.stdout):
            yield
    finally:
        _MANNER.reset(token)


def manner() -> Manner:
    """Return how the command that runs is to speak."""
    return _MANNER.get(Manner())


def answer(text: str, facts: Mapping[str, Any]) -> None:
    """Print what a command found: the text, or the facts as one JSON object.

    Signs beyond ASCII are escaped in JSON, so that no code page spoils them; a number that is not
    finite is null.
    """
    stream = manner().answers
    shown = printable(text) if stream is None else json.dumps(_finite(facts), default=str)
    print(shown, file=stream)


def note(text: str) -> None:
    """Print what goes beyond the answer."""
    if not manner().quiet:
        print(printable(text), file=sys.stderr if manner().answers else None)


def progress_console() -> Console:
    """Return the console of progress: quiet as the command is, plain but on a terminal."""
    from rich.console import Console

    plain = None if sys.stderr.isatty() else False  # FORCE_COLOR does not make a terminal
    return Console(stderr=True, quiet=manner().quiet, force_terminal=plain)


def fail(message: str, exit_code: int = 2) -> NoReturn:
    """Print in one line what is wrong, and leave with an exit code: 2 for bad input."""
    if manner().verbose and (error := sys.exception()) is not None:
        traceback.print_exception(error, file=sys.stderr)
    print(f"evostep: error: {plain(message)}", file=sys.stderr)
    raise SystemExit(exit_code)


def show_warning(message: Warning | str, _: Any, file: str, line: int, *__: Any) -> None:
    """Show a warning as one plain line; the place in the source only where it is asked for."""
    place = f" ({file}:{line})" if manner().verbose else ""
    print(f"evostep: warning: {plain(str(message))}{place}", file=sys.stderr)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
