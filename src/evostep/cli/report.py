"""``evostep report``: table, figures and page again, from what is in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.cli.compare import show
from evostep.errors import InputError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

PAGE, RESULTS = Path("docs") / "results.md", Path("results")
SUMMARY = "build table, figures and page again"
DESCRIPTION = "Build table, figures and page again."
USAGE = "evostep report DIRECTORY | --docs"


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add the command's own arguments."""
    parser.add_argument(
        "directory", type=Path, nargs="?", help="directory that compare or train wrote"
    )
    parser.add_argument(
        "--docs",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help=f"write the generated parts of {PAGE} from the folders in {RESULTS}/, or in DIRECTORY",
    )


def run(parsed: Any) -> None:
    """Run the command."""
    directory = parsed.get("directory")
    if parsed.get("docs"):
        from evostep.lab.report.docs import write_docs

        print(f"page:  {write_docs(PAGE, directory or RESULTS)}")
        return
    if directory is None:
        raise InputError("no directory: give the one that `evostep compare --out` wrote, or --docs")
    from evostep.lab.report.page import write_report

    show(write_report(directory))
