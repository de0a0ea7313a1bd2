"""What the parser says, in the words of the command line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from evostep.lab.options import flag, kind_in_words

# Python's own words, but for quoted ones and for a sentence that begins with "None of"
_PYTHON = re.compile(r"(?<!['\w])(True|False|None)(?!['\w])(?! (?!or )[a-z])")
_SPELT = {"True": "true", "False": "false", "None": "null"}


def plain(text: str) -> str:
    r"""Return a message of the library in one line, and in the words of the command line.

    Example:
        >>> plain("use 6,\nor antithetic=False")
        'use 6, or antithetic=false'
    """
    return _PYTHON.sub(lambda found: _SPELT[found[0]], " ".join(text.split()))


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
    if message == "Unexpected config:":
        return "the configuration is empty: write options such as `epochs: 30`"
    if found := re.fullmatch(r"Unexpected config: (.*)", message):
        return f"the configuration {found[1]} is not a mapping of options: write `epochs: 30`"
    return message


def _near(name: str, flags: Mapping[str, Any]) -> str:
    near = [other for other in difflib.get_close_matches(name, flags, cutoff=0.7) if other != name]
    return f": did you mean {' or '.join(near)}?" if near else ": --help lists those there are"
