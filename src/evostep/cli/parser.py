"""The parser of the whole command line, whose errors are one line."""

from __future__ import annotations

import functools
import re
from argparse import Action
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace, set_loader

from evostep._version import __version__
from evostep.cli.commands import COMMANDS
from evostep.cli.configuration import load
from evostep.cli.options import default_out, is_switch
from evostep.cli.output import FLAGS, add_manner, fail
from evostep.cli.wording import reword

WITH_DEFAULT_OUT = ("polish", "compare", "train")
set_loader("evostep", load, exceptions=(yaml.YAMLError,))


class _Parser(ArgumentParser):
    """A parser whose errors are one line that names the option, the value and what is expected."""

    def __init__(self, kinds: dict[str, Any], **settings: Any) -> None:
        self.kinds = kinds
        super().__init__(allow_abbrev=False, parser_mode="evostep", **settings)

    def add_argument(self, *names: Any, **settings: Any) -> Any:
        """Add an argument, and keep what an error has to know of it."""
        self.kinds.update({name: settings.get("type") for name in names if name[:2] == "--"})
        return super().add_argument(*names, **settings)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(reword(message, self.kinds))


class _Formatter(DefaultHelpFormatter):
    """Help without the types as Python calls them: texts and metavars say them."""

    def _get_help_string(self, action: Action) -> str:
        return action.help or ""


@functools.cache
def make_parser(*, everything: bool = True) -> _Parser:
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
        add_manner(own)
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
        arguments = _without_no(_files_first(_command_first(arguments)), parser.kinds)
        parsed = parser.parse_args(arguments, defaults=shown)
    except UnicodeDecodeError as error:
        fail(f"the configuration is no text ({error}): give a YAML file in UTF-8")
    own = parsed[parsed.command]
    if parsed.command in WITH_DEFAULT_OUT:
        if "out" not in own:
            own.out = default_out(parsed.command, own)
        elif own.out is None:
            fail("--out must be a path, got null")
    return parsed


def _command_first(arguments: list[str]) -> list[str]:
    """Move what a command shares with all others behind its name: `evostep -v compare`."""
    n = next((i for i, argument in enumerate(arguments) if argument not in FLAGS), 0)
    return [*arguments[n : n + 1], *arguments[:n], *arguments[n + 1 :]]


def _without_no(arguments: list[str], kinds: dict[str, Any]) -> list[str]:
    """Write `--no-pretrained` as `--pretrained=false`, and so for all that is true or false."""
    found = []
    for argument in arguments:
        name, has_value, value = argument.partition("=")
        if re.match(r"--(?:[\w-]+\.)?no-", name) and is_switch(kinds.get(name)):
            name = name.replace("no-", "", 1)
            if has_value:
                fail(f"{argument} says no, and {value!r} besides: write {name}={value}")
            argument = f"{name}=false"
        found.append(argument)
    return found


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
