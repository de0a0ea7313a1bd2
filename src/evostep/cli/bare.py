"""The commands that need no package beyond the standard library, where the parser's are missing.

``pip install evostep`` brings torch alone; ``evostep doctor`` then says what to install.
"""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from evostep._version import __version__
from evostep.cli.commands import COMMANDS
from evostep.cli.output import FLAGS, add_manner, fail
from evostep.cli.wording import reword

BARE = ("methods", "list", "doctor")


class Parsed(dict[str, Any]):
    """What was set, as the parser of the whole command line has it."""

    __getattr__ = dict.__getitem__


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        fail(reword(message, {}))


def parse_bare(arguments: list[str]) -> Parsed | None:
    """Return what was set for one of these commands; None where it is another command's."""
    if arguments[:1] == ["--version"]:
        print(f"evostep {__version__}")
        raise SystemExit(0)
    name, *others = [one for one in arguments if one not in FLAGS] or [""]
    if name not in BARE:
        return None
    others += [one for one in arguments if one in FLAGS]
    command = COMMANDS[name]
    parser = _Parser(prog=f"evostep {name}", description=command.DESCRIPTION, usage=command.USAGE)
    command.add_arguments(parser)
    add_manner(parser)
    return Parsed({"command": name, name: Parsed(vars(parser.parse_args(others)))})
