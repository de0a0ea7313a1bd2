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
USAGE = "evostep compare --out DIR [option ...]"


def add_arguments(parser: ArgumentParser, *, everything: bool = True) -> None:
    """Add the command's arguments."""
    add_options(parser, everything=everything)
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
    from evostep.lab.storage import check_writable

    check_writable(parsed.out)  # before data are read, which may take long
    if is_complete(options, parsed.out):
        from evostep.lab.report.page import write_report

        print(f"{parsed.out} holds every run of this comparison: nothing is run")
        if not parsed.get("dry_run"):
            show(write_report(parsed.out))
        return
    plan = make_plan(options)
    check_directory(plan, parsed.out)
    if parsed.get("dry_run"):
        describe_plan(plan, parsed.out, Console())
    else:
        run_plan(plan, parsed.out)


def run_plan(plan: Plan, out: Path) -> None:
    """Run what is missing of a plan, and print its table; progress goes to stderr."""
    from rich.console import Console

    from evostep.lab.comparison.compare import compare

    show(compare(plan, out, Console(stderr=True)))


def show(paths: ReportPaths) -> None:
    """Print the short table of a report, and where the whole is."""
    print(f"{paths.summary}\n\ntable: {paths.table}\npage:  {paths.page}")
