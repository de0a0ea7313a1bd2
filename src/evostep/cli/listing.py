"""``evostep list``: the data, models, metrics and methods that have a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evostep.cli.output import answer, manner
from evostep.cli.schema import read_schema
from evostep.errors import unknown_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "list data, models, metrics and methods"
DESCRIPTION = "List what has a name: data, models, metrics and methods, or one of these."
USAGE = "evostep list [data | models | metrics | methods]"
KINDS = ("data", "models", "metrics", "methods")


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add the command's own arguments."""
    parser.add_argument("what", nargs="?", type=str, default=None, help=", ".join(KINDS))


def run(parsed: Any) -> None:
    """Run the command."""
    what = parsed.get("what")
    if what is not None and what not in KINDS:
        raise unknown_name("list", what, KINDS)
    kinds = KINDS if what is None else (what,)
    found = {kind: list_kind(kind) for kind in kinds}
    blocks = []
    for kind, entries in found.items():
        lines = [] if what else [f"{kind}:"]
        width = max(map(len, entries))
        for name, entry in entries.items():
            lines.append(f"{'' if what else '  '}{name:<{width}}  {entry['summary']}")
            if manner().verbose:
                more = {key: value for key, value in entry.items() if key != "summary"}
                lines += [f"      {key}: {value}" for key, value in more.items() if value]
        blocks.append("\n".join(lines))
    answer("\n\n".join(blocks), found)


def list_kind(kind: str) -> dict[str, dict[str, Any]]:
    """Return what is known of each name of a kind, ``"summary"`` first."""
    schema = read_schema()
    known: dict[str, dict[str, Any]] = schema["methods"] if kind == "methods" else schema[kind]
    return known
