"""Options on the command line and in its files: which there are, and what was set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from evostep.cli.schema import kind_of, read_schema
from evostep.errors import InputError, unknown_name, warn_renamed
from evostep.lab.options import Options, check_type, flag, read_arms

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


def add_options(parser: ArgumentParser, skip: tuple[str, ...] = ()) -> None:
    """Add ``--config``, ``--out``, the options of a comparison, and each method's settings."""
    from argparse import SUPPRESS
    from pathlib import Path

    parser.add_argument("--config", action="config", help="YAML file with options")
    for name, option in read_schema()["options"].items():
        if name not in skip:
            kind, default, text = kind_of(option), option["default"], option["help"]
            # "--pretrained" alone means true
            alone: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
            parser.add_argument(flag(name), type=kind, default=default, help=text, **alone)
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    for name, method in read_schema()["methods"].items():
        # no defaults: a printed configuration would set them, and --sigma have no effect any more
        for setting, told in method["settings"].items():
            text = f"of {name} (default: {told['default']})"
            key = f"--{name}.{setting}"
            parser.add_argument(key, type=kind_of(told), default=SUPPRESS, help=text)
        for old, new in method["renamed"].items():
            kind = kind_of(method["settings"][new])
            parser.add_argument(f"--{name}.{old}", type=kind, default=SUPPRESS, help=SUPPRESS)


def make_options(parsed: Any, **fixed: Any) -> Options:
    """Make options from what was set on the command line and in its files, and nothing else.

    Raises:
        InputError: a name that no table has, or a value out of its range.
    """
    schema = read_schema()
    values = {name: _plain(parsed[name]) for name in schema["options"] if name in parsed}
    values |= {name: _plain(value) for name, value in fixed.items()}
    _check_names(values)
    strategies = {}
    for name, method in schema["methods"].items():
        if (key := name.replace("-", "_")) in parsed:
            settings = _plain(parsed[key])
            check_type(name, settings, dict)
            strategies[name] = _current_names(name, settings, method["renamed"])
    return Options(
        **values,
        strategies=strategies,
        given=frozenset(values),
        from_file=bool(parsed.get("config")),
    )


def _check_names(values: dict[str, Any]) -> None:
    """Refuse what is mistyped now: with the tables themselves torch would have to be imported."""
    schema = read_schema()
    if "arms" in values:
        read_arms(values["arms"], schema["methods"])
    for option, others in (("metric", ""), ("data", "folder:PATH, ")):
        name, known = values.get(option), schema["names"][option]
        if isinstance(name, str) and ":" not in name and name not in known:
            choices = f"{', '.join(known)}, {others}package.module:attribute"
            raise unknown_name(option, name, known, choices=choices)


def _current_names(
    method: str, settings: dict[str, Any], renamed: dict[str, str]
) -> dict[str, Any]:
    for old in renamed.keys() & settings.keys():
        name, new = f"--{method}.{old}", f"--{method}.{renamed[old]}"
        if renamed[old] in settings:
            raise InputError(f"{new} and {name}, its old name, are both given: leave {name} out")
        warn_renamed(name, new)
    return {renamed.get(name, name): value for name, value in settings.items()}


def _plain(value: Any) -> Any:
    """Return the parser's namespaces as dictionaries."""
    if hasattr(value, "as_dict"):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, list) else value
