"""Options on the command line and in its files: which there are, and what was set."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args

from evostep.cli.schema import kind_of, read_schema
from evostep.errors import InputError, unknown_name, warn_renamed
from evostep.lab.options import Options, check_type, flag, read_arms, shown

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser


# What most comparisons set; the rest is told by --help-all
EVERYDAY = (
    *("data", "data_dir", "model", "arms", "seeds", "epochs", "evolve_from", "generations"),
    *("train_size", "fitness_size", "test_size", "lr", "metric", "sigma", "population", "space"),
    *("device", "threads"),
)
WHERE = ("executor", "jobs", "address", "num_cpus", "num_gpus")  # runs are done, and how
_EPILOG = (
    "These are the options of every day; --help-all tells the others, and the settings of each "
    "method, such as --openai-es.sigma 0.05. `evostep methods` lists the methods."
)
_METAVARS = {"integer": "N", "number": "X", "path": "PATH"}


def add_options(
    parser: ArgumentParser, skip: tuple[str, ...] = (), *, everything: bool = True
) -> None:
    """Add ``--config``, ``--out``, the options of a comparison, and each method's settings.

    Args:
        parser: of the command.
        skip: options that it does not have.
        everything: whether its help tells them all, or those of every day.
    """
    from argparse import SUPPRESS

    def told(text: str) -> str:
        return text if everything else SUPPRESS

    schema = read_schema()
    parser.epilog = None if everything else _EPILOG
    parser.add_argument(
        "--help-all", action="help", help="tell all options, settings of methods too"
    )
    add_out(parser)
    parser.add_argument("--config", action="config", metavar="FILE", help="YAML file with options")
    for action in parser._actions:  # jsonargparse adds it to --config, with a help of its own
        if "--print_config" in action.option_strings:
            action.help = told("print all options as YAML, and run nothing")
    order = [*EVERYDAY, *(name for name in schema["options"] if name not in EVERYDAY)]
    for name in order:
        if name not in skip:
            option = schema["options"][name]
            text = option["help"] + _default(option)
            text = text if name in EVERYDAY else told(text)
            add_option(parser, name, kind_of(option), option["default"], text, **_metavar(option))
    for name, method in schema["methods"].items():
        # no defaults: a printed configuration would set them, and --sigma have no effect any more
        for setting, described in method["settings"].items():
            add_option(
                parser,
                f"{name}.{setting}",
                kind_of(described),
                SUPPRESS,
                told(f"of {name}{_default(described)}"),
                **_metavar(described),
            )
        for old, new in method["renamed"].items():
            kind = kind_of(method["settings"][new])
            parser.add_argument(f"--{name}.{old}", type=kind, default=SUPPRESS, help=SUPPRESS)


def add_option(
    parser: ArgumentParser, name: str, kind: Any, default: Any, text: str, **settings: Any
) -> None:
    """Add an option by its name; one that is true or false may stand alone, or begin with no."""
    names = [flag(name)]
    if is_switch(kind):
        settings |= {"nargs": "?", "const": True, "metavar": "{true,false}"}
        *method, own = name.split(".")
        names.append(flag(".".join([*method, f"no-{own}"])))
    parser.add_argument(*names, type=kind, default=default, help=text, **settings)


def is_switch(kind: Any) -> bool:
    """Return whether a value is true or false, or null.

    Example:
        >>> is_switch(bool), is_switch(bool | None), is_switch(bool | str)
        (True, True, False)
    """
    return kind is bool or set(get_args(kind)) == {bool, NoneType}


def add_out(parser: ArgumentParser) -> None:
    """Add ``--out``, which `default_out` stands for where it is not given."""
    from argparse import SUPPRESS

    text = "for the results (default: a directory in runs/ that the options tell)"
    parser.add_argument("--out", type=Path, default=SUPPRESS, metavar="DIR", help=text)


def default_out(command: str, parsed: Any) -> Path:
    """Return where the results of a command go by default: the same place for the same options.

    Seeds, and what does not change a result, have no part in it: a comparison goes on there.

    Example:
        >>> default_out("compare", {"data": "cifar10", "seeds": 3}).name.rpartition("-")[0]
        'compare-cifar10'
    """
    free = ("config", "data_dir", "device", "threads", "seeds", "dry_run", "resume", *WHERE)
    given = {key: _plain(value) for key, value in dict(parsed).items() if key not in free}
    for key in ("quiet", "verbose", "json"):
        given.pop(key, None)
    digest = hashlib.sha256(json.dumps(given, sort_keys=True, default=str).encode())
    about = given.get("scores") or given.get("init_from") or given.get("data") or "digits"
    word = re.sub(r"[^\w.-]+", "-", Path(str(about)).stem).strip("-")[:40]
    return Path("runs") / f"{command}-{word}-{digest.hexdigest()[:8]}"


def _default(option: dict[str, Any]) -> str:
    default = option["default"]
    return "" if default is None or default is False else f" (default: {shown(default)})"


def _metavar(option: dict[str, Any]) -> dict[str, Any]:
    """Return what stands for a value in the help, where its name says less: N, X, a choice."""
    if "enum" in option:
        return {"metavar": "{" + ",".join(shown(value) for value in option["enum"]) + "}"}
    (first, *others) = option["type"]
    return {"metavar": _METAVARS[first]} if first in _METAVARS and others in ([], ["null"]) else {}


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
    for option in ("metric", "data"):
        name, known = values.get(option), schema["names"][option]
        bases = {one.partition("(")[0] for one in known if "(" in one}  # that take a number
        if isinstance(name, str) and name.partition("(")[0] in bases:
            continue
        if isinstance(name, str) and ":" not in name and name not in known:
            if option == "data" and Path(name).is_dir():
                raise InputError(f"unknown data {name!r}, a folder: did you mean folder:{name}?")
            choices = ", ".join(dict.fromkeys((*known, "package.module:attribute")))
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
