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
        The exit code: 0; 1 where a file or the output could not be written, memory did not
        suffice, or evostep itself is at fault; 130 after Ctrl-C, 143 after SIGTERM. Bad input
        leaves with 2 and one line that names it.
    """
    parsed = None
    given = sys.argv[1:] if arguments is None else arguments
    try:
        import warnings

        from evostep.cli.ranks import first_rank_speaks
        from evostep.cli.terminal import steady_streams, terminated_as_interrupted

        with (
            first_rank_speaks(),
            terminated_as_interrupted(),
            steady_streams() as (out, _),
            warnings.catch_warnings(),
        ):
            from evostep.cli.output import show_warning

            warnings.showwarning = show_warning  # type: ignore[assignment]
            try:
                parsed = _parse(given)
                _run(parsed)
            except KeyboardInterrupt as interrupt:
                return _stopped(parsed, interrupt)
            except Exception as error:
                _at_fault(error, verbose={"-v", "--verbose"} & set(given))
            out.flush()
            if out.error is not None:
                return _lost(out.error)
    except KeyboardInterrupt as interrupt:
        return _stopped(parsed, interrupt)
    return 0


def _parse(arguments: list[str]) -> Any:
    try:
        from evostep.cli.parser import parse
    except ImportError as error:
        from evostep.cli.bare import parse_bare
        from evostep.cli.output import fail

        parsed = parse_bare(arguments)
        return parsed or fail(f"{_lacking('the command line', error)}")
    return parse(arguments)


def _lacking(what: str, error: ImportError) -> Exception:
    """Return the error for a package of the command line's that cannot be imported."""
    from evostep.errors import needs_package

    package = (error.name or "evostep").partition(".")[0]
    return needs_package(what, package, "evostep[lab]", error)


def _run(parsed: Any) -> None:
    from evostep.cli.commands import COMMANDS
    from evostep.cli.output import speaking
    from evostep.cli.ranks import over_ranks
    from evostep.errors import InputError

    own = parsed[parsed.command]
    try:
        with speaking(own):
            try:
                with over_ranks(parsed.command, own):
                    COMMANDS[parsed.command].run(own)
            except (InputError, OSError, ImportError) as error:
                _refuse(parsed.command, error)
    except InputError as error:  # of how it is to speak
        _refuse(parsed.command, error)


def _refuse(command: str, error: Exception) -> None:
    from evostep.cli.output import fail
    from evostep.errors import InputError

    if isinstance(error, InputError):
        fail(str(error), error.exit_code)
    elif isinstance(error, OSError):  # most are told where they are met, with what to do
        where = f" ({error.filename!s:.80})" if error.filename else ""
        of_path = error.errno in (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.ELOOP)
        cure = "choose another path" if of_path else "free some space, or choose another --out"
        if error.errno == errno.EROFS:
            cure = "let the disk be written to, and the same command goes on"
        fail(f"{error.strerror or error}{where}: {cure}", 2 if of_path else 1)
    elif isinstance(error, ImportError):
        fail(str(_lacking(f"evostep {command}", error)))


def _at_fault(error: Exception, *, verbose: object) -> None:
    """Tell in one line what nobody foresaw: a user can do nothing with a traceback."""
    import traceback

    from evostep.cli.output import FAULT, fail
    from evostep.errors import is_out_of_memory, reason

    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    if is_out_of_memory(error):
        fail(f"memory does not suffice ({reason(error)}): give fewer or smaller examples", 1)
    fail(f"{FAULT} ({reason(error)}): --verbose tells where; please report it", 1)


def _stopped(parsed: Any, interrupt: KeyboardInterrupt) -> int:
    """Say after Ctrl-C or SIGTERM how to go on, where there is something to go on from."""
    out = parsed[parsed.command].get("out") if parsed is not None else None
    again = ""
    if out is not None and (out / "plan.json").exists():
        again = "; the same command goes on from the last checkpoint"
    if parsed is not None and parsed.command in ("polish", "evaluate"):
        again = "; nothing was written"
        if out is not None and (out / ".evostep-run" / "arguments.json").exists():
            again = "; the same command goes on from what is finished"
    print(f"evostep: stopped{again}", file=sys.stderr)
    return getattr(interrupt, "exit_code", 130)


def _lost(error: OSError) -> int:
    print(f"evostep: error: the output was cut off ({error.strerror})", file=sys.stderr)
    return 1
