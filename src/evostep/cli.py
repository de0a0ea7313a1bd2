"""The command line: ``evostep compare``, ``evostep train``, ``evostep report``."""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
import typing
import warnings
from pathlib import Path
from typing import Any, NoReturn

try:
    import yaml
    from jsonargparse import ArgumentParser, Namespace, set_loader
    from rich.console import Console
except ImportError as error:
    raise SystemExit(
        f"evostep: error: the command line needs {error.name}: pip install 'evostep[lab]'"
    ) from error

from evostep._version import __version__
from evostep.errors import InputError
from evostep.lab.arms.methods import METHODS, list_methods, strategy_settings
from evostep.lab.comparison.compare import check_directory, compare, describe_plan
from evostep.lab.comparison.plan import Plan, make_plan
from evostep.lab.options import Options, flag, kind_in_words
from evostep.lab.report.page import ReportPaths, write_report


class _Parser(ArgumentParser):
    """A parser whose errors are one line that names the option, the value and what is expected."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, parser_mode="evostep", **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(reword(" ".join(str(message).split())))


class _Yaml(yaml.SafeLoader):
    """YAML as of 1.2: 10:12 is text (a range of seeds), not 612 (seconds); 1e-3 is a number."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if not tag.endswith((":int", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789")
)
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)
_Yaml.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))
set_loader("evostep", lambda text: yaml.load(text, _Yaml), exceptions=(yaml.YAMLError,))


def reword(message: str) -> str:
    r"""Return what the parser says in the words of the command line.

    Example:
        >>> reword("Parser key \"evolve_from\": Expected a <class 'int'>. Got value: soon")
        "--evolve-from 'soon': expected a whole number"
    """
    if found := re.fullmatch(r'Parser key "([\w.]+)": .*(?:Got|Given) value: (.*)', message):
        kind = _kind_of(found[1])
        expected = f"expected {kind_in_words(kind)}" if kind else "it has the wrong type"
        return f"{flag(found[1])} {found[2]!r}: {expected}"
    if found := re.fullmatch(r"unrecognized arguments: (.*)", message):
        return f"unknown option {found[1]}{_near(found[1].split()[0].split('=')[0])}"
    if found := re.fullmatch(r"Subcommand '\w+' does not accept option '(.*)'", message):
        return f"unknown option {found[1]!r} in the configuration{_near(flag(found[1]))}"
    if found := re.fullmatch(r"the following arguments are required: \w+\.(\w+)", message):
        name = "DIRECTORY" if found[1] == "directory" else flag(found[1])
        return f"{name} is missing: say which directory"
    if found := re.fullmatch(r'Parser key "([\w.]+)": (.*)', message):
        return f"{flag(found[1])}: {found[2]}"
    if found := re.fullmatch(r"Problems parsing config: (.*)", message):
        return f"the configuration is not valid YAML: {found[1]}"
    if found := re.fullmatch(r"Unexpected config: (.*)", message):
        return f"the configuration {found[1]} is not a mapping of options: write `epochs: 30`"
    return message


def _near(name: str) -> str:
    flags = [
        flag(field.name) for field in dataclasses.fields(Options) if field.name != "strategies"
    ]
    flags += ["--out", "--dry-run", "--arm", "--seed", "--resume", "--config"]
    for method_name, method in METHODS.items():
        if method.strategy is not None:
            flags += [f"--{method_name}.{name}" for name in strategy_settings(method.strategy)]
    near = [other for other in difflib.get_close_matches(name, flags, cutoff=0.7) if other != name]
    return f": did you mean {' or '.join(near)}?" if near else ": --help lists those there are"


def _kind_of(key: str) -> Any:
    """The type of an option by the parser's key; None where it is not known."""
    name, _, setting = key.partition(".")
    method = METHODS.get(name.replace("_", "-"))
    if method is not None and method.strategy is not None:
        return strategy_settings(method.strategy).get(setting, (None, None))[0]
    known = {"seed": int, "resume": bool, "dry_run": bool, "out": Path}
    return {**typing.get_type_hints(Options), **known}.get(name)


def fail(message: str) -> NoReturn:
    """Say in one line what is wrong, and leave with exit code 2."""
    print(f"evostep: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def make_parser() -> ArgumentParser:
    """Make the parser of the whole command line."""
    parser = _Parser(
        prog="evostep",
        version=__version__,
        description="Gradient steps and evolution steps, compared on equal data and compute.",
    )
    commands = parser.add_subcommands(dest="command")
    comparison = _Parser(
        description="Compare arms on equal data and equal compute, over seeds. The same command "
        "on a directory with finished runs continues with the missing ones.",
    )
    _add_options(comparison, skip=())
    comparison.add_argument(
        "--dry-run",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="print arms, budgets, expected hours and disk; run nothing",
    )
    commands.add_subcommand("compare", comparison, help="compare arms over seeds")
    training = _Parser(description="Train one arm with one seed.")
    _add_options(training, skip=("arms", "seeds"))
    training.add_argument("--arm", type=str | dict[str, Any], default="openai-es", help="method")
    training.add_argument("--seed", type=int, default=0, help="seed of the run")
    training.add_argument(
        "--resume",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="go on from the last checkpoint in --out",
    )
    commands.add_subcommand("train", training, help="train one arm with one seed")
    report = _Parser(description="Build table, figures and page again.")
    report.add_argument("directory", type=Path, help="directory that compare or train wrote")
    commands.add_subcommand("report", report, help="build table, figures and page again")
    commands.add_subcommand(
        "methods",
        _Parser(description="List every method that can be an arm, with its defaults and source."),
        help="list every method that can be an arm",
    )
    return parser


def _add_options(parser: ArgumentParser, skip: tuple[str, ...]) -> None:
    parser.add_argument("--config", action="config", help="YAML file with options")
    annotated = typing.get_type_hints(Options, include_extras=True)
    for field in dataclasses.fields(Options):
        if field.name == "strategies" or field.name in skip:
            continue
        kind, text = typing.get_args(annotated[field.name])
        # "--pretrained" alone means true
        alone: dict[str, Any] = {"nargs": "?", "const": True} if kind is bool else {}
        parser.add_argument(flag(field.name), type=kind, default=field.default, help=text, **alone)
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    for name, method in METHODS.items():
        if method.strategy is None:
            continue
        for setting, (kind, default) in strategy_settings(method.strategy).items():
            parser.add_argument(
                f"--{name}.{setting}", type=kind, default=default, help=f"of {name}"
            )


def make_options(parsed: Namespace, **fixed: Any) -> Options:
    """Make options from what was parsed."""
    values = {
        field.name: parsed.get(field.name)
        for field in dataclasses.fields(Options)
        if field.name != "strategies" and field.name not in fixed
    }
    values["arms"] = _plain(values["arms"]) if "arms" in values else None
    strategies = {
        name: vars(parsed[name.replace("-", "_")])
        for name, method in METHODS.items()
        if method.strategy is not None
    }
    return Options(**{**values, **fixed, "strategies": strategies})


def _plain(value: Any) -> Any:
    if isinstance(value, Namespace):
        return value.as_dict()
    return [_plain(item) for item in value] if isinstance(value, list) else value


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit code: 0, or 130 after Ctrl-C. Bad input leaves with 2 and one line that names it.
    """
    parsed = make_parser().parse_args(arguments)
    console = Console()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning  # type: ignore[assignment]
        try:
            if parsed.command == "report":
                _tell(write_report(parsed.report.directory), console)
            elif parsed.command == "compare":
                _compare(parsed.compare, console)
            elif parsed.command == "methods":
                console.print(list_methods(), markup=False, highlight=False, soft_wrap=True)
            else:
                _train(parsed.train, console)
        except InputError as error:
            fail(" ".join(str(error).split()))
        except KeyboardInterrupt:
            again = "train --resume" if parsed.command == "train" else "the same command"
            text = f"evostep: stopped; {again} goes on from the last checkpoint"
            print(text, file=sys.stderr)
            return 130
    return 0


def _show_warning(message: Warning | str, *_: Any) -> None:
    """Show a warning as one plain line, without the place in the source."""
    print(f"evostep: warning: {' '.join(str(message).split())}", file=sys.stderr)


def _compare(parsed: Namespace, console: Console) -> None:
    plan = make_plan(make_options(parsed))
    check_directory(plan, parsed.out)
    if parsed.dry_run:
        describe_plan(plan, console)
        return
    _run(plan, parsed.out, console)


def _train(parsed: Namespace, console: Console) -> None:
    if parsed.seed < 0:
        raise InputError(f"--seed must be at least 0, got {parsed.seed}")
    arm = _plain(parsed.arm)
    plan = make_plan(make_options(parsed, arms=[arm], seeds=[parsed.seed]))
    check_directory(plan, parsed.out)
    if (parsed.out / "plan.json").exists() and not parsed.resume:
        raise InputError(f"{parsed.out} holds a run already: add --resume, or choose another --out")
    if parsed.resume and not (parsed.out / "plan.json").exists():
        raise InputError(f"{parsed.out} holds no run to resume: leave --resume out")
    _run(plan, parsed.out, console)


def _run(plan: Plan, out: Path, console: Console) -> None:
    paths = compare(plan, out, console)
    console.print(paths.table.read_text(), markup=False, highlight=False, soft_wrap=True)
    _tell(paths, console)


def _tell(paths: ReportPaths, console: Console) -> None:
    console.print(f"table: {paths.table}\npage:  {paths.page}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    raise SystemExit(main())
