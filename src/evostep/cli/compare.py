"""``evostep compare``: arms on equal data and equal compute, over seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.cli.options import add_options, make_options

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

    from evostep.lab.comparison.plan import Plan
    from evostep.lab.report.page import ReportPaths

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

    from evostep.lab.comparison.compare import describe_plan
    from evostep.lab.comparison.directory import check_directory, is_complete
    from evostep.lab.comparison.plan import make_plan

    if is_complete(options, parsed.out):
        from evostep.lab.report.page import write_report

        print(f"{parsed.out} holds every run of this comparison: nothing is run")
        if not parsed.get("dry_run"):
            _show(write_report(parsed.out))
        return
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

    _show(compare(plan, out, Console()))


def _show(paths: ReportPaths) -> None:
    print(f"{paths.table.read_text()}\ntable: {paths.table}\npage:  {paths.page}")
