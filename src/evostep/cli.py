"""The command line: ``evostep compare``, ``evostep train``, ``evostep report``."""

from __future__ import annotations

import dataclasses
import sys
import typing
from pathlib import Path
from typing import Any, NoReturn

try:
    from jsonargparse import ArgumentParser, Namespace
    from rich.console import Console
except ImportError as error:
    raise SystemExit(
        f"evostep: error: the command line needs {error.name}: pip install 'evostep[lab]'"
    ) from error

from evostep._version import __version__
from evostep.errors import InputError
from evostep.lab.arms import METHODS
from evostep.lab.compare import check_directory, compare, describe_plan
from evostep.lab.options import Options, flag
from evostep.lab.plan import Plan, make_plan
from evostep.lab.report import ReportPaths, write_report


class _Parser(ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        fail(" ".join(str(message).split()))


def fail(message: str) -> NoReturn:
    """Say in one line what is wrong, and leave with exit code 2."""
    print(f"evostep: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def make_parser() -> ArgumentParser:
    """Make the parser of the whole command line."""
    parser = _Parser(
        prog="evostep",
        version=__version__,
        allow_abbrev=False,
        description="Gradient steps and evolution steps, compared on equal data and compute.",
    )
    commands = parser.add_subcommands(dest="command")
    comparison = _Parser(
        allow_abbrev=False,
        description="Compare arms on equal data and equal compute, over seeds. The same command "
        "on a directory with finished runs continues with the missing ones.",
    )
    _add_options(comparison, skip=())
    comparison.add_argument(
        "--dry-run", type=bool, nargs="?", const=True, default=False,
        help="print arms, budgets, expected hours and disk; run nothing",
    )
    commands.add_subcommand("compare", comparison, help="compare arms over seeds")
    training = _Parser(allow_abbrev=False, description="Train one arm with one seed.")
    _add_options(training, skip=("arms", "seeds"))
    training.add_argument("--arm", type=str | dict[str, Any], default="openai-es", help="method")
    training.add_argument("--seed", type=int, default=0, help="seed of the run")
    training.add_argument(
        "--resume", type=bool, nargs="?", const=True, default=False,
        help="go on from the last checkpoint in --out",
    )
    commands.add_subcommand("train", training, help="train one arm with one seed")
    report = _Parser(allow_abbrev=False, description="Build table, figures and page again.")
    report.add_argument("directory", type=Path, help="directory that compare or train wrote")
    commands.add_subcommand("report", report, help="build table, figures and page again")
    return parser


def _add_options(parser: ArgumentParser, skip: tuple[str, ...]) -> None:
    parser.add_argument("--config", action="config", help="YAML file with options")
    types = typing.get_type_hints(Options)
    for field in dataclasses.fields(Options):
        if field.name == "strategies" or field.name in skip:
            continue
        kind: dict[str, Any] = {"type": types[field.name]}
        if types[field.name] is bool:  # "--pretrained" alone means true
            kind |= {"nargs": "?", "const": True}
        parser.add_argument(
            flag(field.name), default=field.default, help=field.metadata["help"], **kind
        )
    parser.add_argument("--out", type=Path, required=True, help="directory for the results")
    for name, method in METHODS.items():
        if method.strategy is None:
            continue
        types = typing.get_type_hints(type(method.strategy))
        for field in dataclasses.fields(method.strategy):  # type: ignore[arg-type]
            parser.add_argument(
                f"--{name}.{field.name}",
                type=types[field.name],
                default=getattr(method.strategy, field.name),
                help=f"of {name}",
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
    try:
        if parsed.command == "report":
            _tell(write_report(parsed.report.directory), console)
        elif parsed.command == "compare":
            _compare(parsed.compare, console)
        else:
            _train(parsed.train, console)
    except InputError as error:
        fail(" ".join(str(error).split()))
    except KeyboardInterrupt:
        print(
            "evostep: stopped; the same command goes on from the last checkpoint", file=sys.stderr
        )
        return 130
    return 0


def _compare(parsed: Namespace, console: Console) -> None:
    plan = make_plan(make_options(parsed))
    check_directory(plan, parsed.out)
    if parsed.dry_run:
        describe_plan(plan, console)
        return
    _run(plan, parsed.out, console)


def _train(parsed: Namespace, console: Console) -> None:
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
