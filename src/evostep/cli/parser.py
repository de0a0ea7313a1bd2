"""The parser of the whole command line, whose errors are one line."""

from __future__ import annotations

import functools
import sys
from types import ModuleType
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader

from evostep._version import __version__
from evostep.cli import compare, evaluate, methods, polish, report, train
from evostep.cli.configuration import load
from evostep.cli.wording import reword

COMMANDS: dict[str, ModuleType] = {
    "polish": polish,
    "evaluate": evaluate,
    "compare": compare,
    "train": train,
    "report": report,
    "methods": methods,
}
set_loader("evostep", load, exceptions=(yaml.YAMLError,))


class _Parser(ArgumentParser):
    """A parser whose errors are one line that names the option, the value and what is expected."""

    def __init__(self, kinds: dict[str, Any], **settings: Any) -> None:
        self._kinds = kinds
        super().__init__(allow_abbrev=False, parser_mode="evostep", **settings)

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """Add an argument, and keep what an error has to know of it."""
        self._kinds.update({name: settings.get("type") for name in names if name[:2] == "--"})
        return super().add_argument(*names, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(reword(" ".join(str(message).split()), self._kinds))


def fail(message: str) -> NoReturn:
    """Print in one line what is wrong, and leave with exit code 2."""
    print(f"evostep: error: {message}", file=sys.stderr)
    raise SystemExit(2)


@functools.cache
def make_parser() -> ArgumentParser:
    """Make the parser."""
    kinds: dict[str, Any] = {}  # flag -> type of its value
    parser = _Parser(
        kinds,
        prog="evostep",
        version=__version__,
        description="Gradient steps and evolution steps, compared on equal data and compute.",
    )
    commands = parser.add_subcommands(dest="command")
    for name, command in COMMANDS.items():
        own = _Parser(kinds, description=command.DESCRIPTION)
        command.add_arguments(own)
        commands.add_subcommand(name, own, help=command.SUMMARY)
    return parser


def parse(arguments: list[str]) -> Namespace:
    """Return what was set, and nothing else: by the command line, else by the file.

    Only a configuration that is to be printed has the defaults, too.
    """
    shown = any(argument.startswith("--print_config") for argument in arguments)
    return make_parser().parse_args(_files_first(arguments), defaults=shown)


def _files_first(arguments: list[str]) -> list[str]:
    """Move each --config before the other options, which win over it wherever they stand."""
    files: list[str] = []
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config":
            files += [argument, *(value for value in [next(rest, None)] if value is not None)]
        else:
            (files if argument.startswith("--config=") else others).append(argument)
    return [*others[:1], *files, *others[1:]]
