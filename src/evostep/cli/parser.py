"""The parser of the whole command line, whose errors are one line."""

from __future__ import annotations

import functools
import sys
from argparse import Action
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_loader

from evostep._version import __version__
from evostep.cli import compare, evaluate, methods, polish, report, train
from evostep.cli.configuration import load
from evostep.cli.wording import plain, reword

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
        fail(reword(message, self._kinds))


class _Formatter(DefaultHelpFormatter):
    """Help without the types as Python calls them: texts and metavars say them."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""


def fail(message: str, exit_code: int = 2) -> NoReturn:
    """Print in one line what is wrong, and leave with an exit code: 2 for bad input."""
    print(f"evostep: error: {plain(message)}", file=sys.stderr)
    raise SystemExit(exit_code)


@functools.cache
def make_parser(*, everything: bool = True) -> ArgumentParser:
    """Make the parser, whose help tells everything, or what is needed every day."""
    kinds: dict[str, Any] = {}  # flag -> type of its value
    parser = _Parser(
        kinds,
        prog="evostep",
        version=__version__,
        description="Gradient steps and evolution steps, compared on equal data and compute.",
        formatter_class=_Formatter,
    )
    commands = parser.add_subcommands(dest="command")
    for name, command in COMMANDS.items():
        own = _Parser(kinds, description=command.DESCRIPTION, usage=command.USAGE)
        command.add_arguments(own, everything=everything)
        commands.add_subcommand(name, own, help=command.SUMMARY)
    return parser


def parse(arguments: list[str]) -> Namespace:
    """Return what was set, and nothing else: by the command line, else by the file.

    Only a configuration that is to be printed has the defaults, too.
    """
    shown = any(argument.startswith("--print_config") for argument in arguments)
    short = not shown and "--help-all" not in arguments
    try:
        parser = make_parser(everything=not short)
        return parser.parse_args(_files_first(arguments), defaults=shown)
    except UnicodeDecodeError as error:
        fail(f"the configuration is no text ({error}): give a YAML file in UTF-8")


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
    for file in files:
        _check_file(file.removeprefix("--config="))
    return [*others[:1], *files, *others[1:]]


def _check_file(name: str) -> None:
    """Refuse a file that holds no text now; whether there is one, the parser tells."""
    if not name:
        fail("--config names no file: give --config FILE.yaml")
    try:
        if not Path(name).exists():
            return
        if not Path(name).is_file():
            fail(f"--config {name} is no file: give a YAML file with options")
        Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        fail(f"--config {name} holds no text: give a YAML file with options")
    except OSError as error:
        fail(f"--config {name} cannot be read ({error.strerror}): give a YAML file with options")
