"""The command line: ``evostep polish``, ``evaluate``, ``compare``, ``train``, ...

Help, version, ``methods`` and mistyped names are answered from a schema of the tables
(`evostep.cli.schema`), without torch, which a command imports only when it really runs.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, or 130 after Ctrl-C. Bad input leaves with 2 and one line that names it.
    """
    try:
        from evostep.cli.parser import COMMANDS, fail, parse
    except ImportError as error:
        raise SystemExit(
            f"evostep: error: the command line needs {error.name}: pip install 'evostep[lab]'"
        ) from error
    from evostep.errors import InputError

    parsed = parse(sys.argv[1:] if arguments is None else arguments)
    command: str = parsed.command
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            COMMANDS[command].run(parsed[command])
        except InputError as error:
            fail(" ".join(str(error).split()))
        except KeyboardInterrupt:
            again = "train --resume" if command == "train" else "the same command"
            text = f"evostep: stopped; {again} goes on from the last checkpoint"
            if command in ("polish", "evaluate"):
                text = "evostep: stopped; nothing was written"
            print(text, file=sys.stderr)
            return 130
    return 0


def _show_warning(message: Warning | str, *_: Any) -> None:
    """Show a warning as one plain line, without the place in the source."""
    print(f"evostep: warning: {' '.join(str(message).split())}", file=sys.stderr)
