"""``evostep methods``: every method that can be an arm, with its defaults and source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evostep.cli.listing import list_kind
from evostep.cli.output import answer

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "list every method that can be an arm"
DESCRIPTION = "List every method that can be an arm, with its defaults and source."
USAGE = "evostep methods"


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add nothing: the command has no arguments."""


def run(_: Any) -> None:
    """Run the command."""
    answer(list_methods(), list_kind("methods"))


def list_methods() -> str:
    """Return every method: one line, then its source and defaults."""
    lines = []
    for name, method in list_kind("methods").items():
        lines += [f"{name}: {method['summary']}", f"    source: {method['source']}"]
        defaults = []
        if method["strategy"]:
            settings = method["settings"].items()
            values = ", ".join(f"{key}={setting['default']}" for key, setting in settings)
            defaults.append(f"{method['strategy']}({values})")
            defaults.append(f"space {method['space'] or 'all'}, accept {method['accept']}")
        if method["gradient_noise"]:
            defaults.append(f"eta {method['gradient_noise']}")
        lines += [f"    defaults: {'; '.join(defaults)}"] if defaults else []
    return "\n".join(lines)
