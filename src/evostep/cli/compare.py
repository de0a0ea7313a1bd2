"""``evostep compare``: arms on equal data and equal compute, over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.cli.options import add_options, make_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from evostep.lab.comparison.plan import Plan

SUMMARY = "compare arms over seeds"
DESCRIPTION = (
    "Compare arms on equal data and equal compute, over seeds. The same command on a directory "
    "with finished runs continues with the missing ones."
)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the command's arguments."""
    add_options(parser)
    parser.add_argument(
        "--dry-run",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="print arms, budgets, expected hours and disk; run nothing",
    )


def run(parsed: Any) -> None:
    """Run the command."""
    options = make_options(parsed)
    from rich.console import Console

    from evostep.lab.comparison.compare import check_directory, describe_plan
    from evostep.lab.comparison.plan import make_plan

    plan = make_plan(options)
    check_directory(plan, parsed.out)
    if parsed.get("dry_run"):
        describe_plan(plan, Console())
    else:
        run_plan(plan, parsed.out)


def run_plan(plan: Plan, out: Path) -> None:
    """Run what is missing of a plan, and print its table."""
    from rich.console import Console

    from evostep.lab.comparison.compare import compare

    paths = compare(plan, out, Console())
    print(f"{paths.table.read_text()}\ntable: {paths.table}\npage:  {paths.page}")
