"""The command line: ``evostep polish``, ``evaluate``, ``compare``, ``train``, ...

Help, version, ``methods`` and mistyped names are answered from a schema of the tables
(`evostep.cli.schema`), without torch, which a command imports only when it really runs.
"""

from __future__ import annotations

import errno
import sys
from typing import Any


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0; 1 where a file or the output could not be written; 130 after Ctrl-C. Bad
        input leaves with 2 and one line that names it.
    """
    parsed = None
    try:
        import warnings

        from evostep.cli.terminal import steady_streams

        with steady_streams() as (out, _), warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            try:
                parsed = _parse(arguments)
                _run(parsed)
            except KeyboardInterrupt:
                return _stopped(parsed)
            out.flush()
            if out.error is not None:
                return _lost(out.error)
    except KeyboardInterrupt:
        return _stopped(parsed)
    return 0


def _parse(arguments: list[str] | None) -> Any:
    try:
        from evostep.cli.parser import parse
    except ImportError as error:
        raise SystemExit(f"evostep: error: {_lacking('the command line', error)}") from error
    return parse(sys.argv[1:] if arguments is None else arguments)


def _lacking(what: str, error: ImportError) -> Exception:
    """Return the error for a package of the command line's that cannot be imported."""
    from evostep.errors import needs_package

    package = (error.name or "evostep").partition(".")[0]
    return needs_package(what, package, "evostep[lab]", error)


def _run(parsed: Any) -> None:
    from evostep.cli.parser import COMMANDS, fail
    from evostep.errors import InputError

    try:
        COMMANDS[parsed.command].run(parsed[parsed.command])
    except InputError as error:
        fail(str(error), error.exit_code)
    except OSError as error:  # most are told where they are met, with what to do
        where = f" ({error.filename!s:.80})" if error.filename else ""
        of_path = error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)
        cure = "choose another path" if of_path else "free some space, or choose another --out"
        fail(f"{error.strerror or error}{where}: {cure}", 2 if of_path else 1)
    except ImportError as error:
        fail(str(_lacking(f"evostep {parsed.command}", error)))


def _stopped(parsed: Any) -> int:
    """Say after Ctrl-C how to go on, where there is something to go on from."""
    out = parsed[parsed.command].get("out") if parsed is not None else None
    again = ""
    if out is not None and (out / "plan.json").exists():
        name = "train --resume" if parsed.command == "train" else "the same command"
        again = f"; {name} goes on from the last checkpoint"
    if parsed is not None and parsed.command in ("polish", "evaluate"):
        again = "; nothing was written"
        if out is not None and (out / ".evostep-run").exists():
            again = "; the same command goes on from what is finished"
    print(f"evostep: stopped{again}", file=sys.stderr)
    return 130


def _lost(error: OSError) -> int:
    print(f"evostep: error: the output was cut off ({error.strerror})", file=sys.stderr)
    return 1


def _show_warning(message: Warning | str, *_: Any) -> None:
    """Show a warning as one plain line, without the place in the source."""
    from evostep.cli.wording import plain

    print(f"evostep: warning: {plain(str(message))}", file=sys.stderr)
