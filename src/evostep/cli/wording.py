"""What the parser says, in the words of the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from evostep.errors import printable, unknown_name
from evostep.lab.options import flag, kind_in_words

# Python's own words, but for quoted ones and for a sentence that begins with "None of"
_PYTHON = re.compile(r"(?<!['\w])(True|False|None)(?!['\w])(?! (?!or )[a-z])")
LONGEST = 2_000  # signs of a message: names may have any length
_SPELT = {"True": "true", "False": "false", "None": "null"}


def plain(text: str) -> str:
    r"""Return a message of the library in one line, and in the words of the command line.

    Signs that a terminal would obey, such as those of a file that is no text, become "?"; of a
    message that quotes something endless the middle is left out.

    Example:
        >>> plain("use 6,\nor antithetic=False")
        'use 6, or antithetic=false'
    """
    shown = printable(" ".join(text.split()))
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]} ... {shown[-LONGEST // 2 :]}"
    return _PYTHON.sub(lambda found: _SPELT[found[0]], shown)


def reword(message: str, kinds: Mapping[str, Any]) -> str:
    r"""Return what the parser says in one line that names option, value and what is expected.

    Args:
        message: of the parser.
        kinds: flag -> type of its value, for every option of every command.

    Example:
        >>> message = "Parser key \"evolve_from\": Expected a <class 'int'>. Got value: soon"
        >>> reword(message, {"--evolve-from": int})
        "--evolve-from 'soon': expected a whole number"
    """
    message = " ".join(message.split())
    if found := re.fullmatch(r'Parser key "([\w.]+)": .*(?:Got|Given) value: ?(.*)', message):
        kind = kinds.get(flag(found[1]))
        expected = f"expected {kind_in_words(kind)}" if kind else "it has the wrong type"
        return f"{flag(found[1])} {_SPELT.get(found[2], found[2])!r}: {expected}"
    if found := re.fullmatch(r"unrecognized arguments: (.*)", message):
        return f"unknown option {found[1]}{_near(found[1].split()[0].split('=')[0], kinds)}"
    if found := re.fullmatch(r"Subcommand '\w+' does not accept option '(.*)'", message):
        return f"unknown option {found[1]!r} in the configuration{_near(flag(found[1]), kinds)}"
    if found := re.fullmatch(r"the following arguments are required: \w+\.(\w+)", message):
        name = "DIRECTORY" if found[1] == "directory" else flag(found[1])
        return f"{name} is missing: say which directory"
    if found := re.fullmatch(r'Parser key "([\w.]+)": (.*)', message):
        return f"{flag(found[1])}: {found[2]}"
    if found := re.fullmatch(r"Problems parsing config: (.*)", message):
        return f"the configuration is not valid YAML: {found[1]}"
    if found := re.fullmatch(r"argument (--[\w.-]+): expected one argument", message):
        return f"{found[1]} has no value: give one, as {found[1]}=-1 where it begins with a dash"
    if message == "Unexpected config:":
        return "the configuration is empty: write options such as `epochs: 30`"
    if found := re.fullmatch(r"Unexpected config: (.*)", message):
        return f"the configuration {found[1]:.60} is not a mapping of options: write `epochs: 30`"
    if found := re.fullmatch(
        r"argument command: invalid choice: '(.*)' \(choose from (.*)\)", message
    ):
        known = re.findall(r"[a-z]+", found[2])
        return str(unknown_name("command", found[1], known, choices=", ".join(known)))
    if message.startswith('expected "command" to be one of'):
        return "a command is missing: --help lists those there are"
    return message


def _near(name: str, flags: Mapping[str, Any]) -> str:
    near = [other for other in difflib.get_close_matches(name, flags, cutoff=0.7) if other != name]
    return f": did you mean {' or '.join(near)}?" if near else ": --help lists those there are"
