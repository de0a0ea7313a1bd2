"""``evostep report``: table, figures and page again, from what is in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.cli.compare import show

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "build table, figures and page again"
DESCRIPTION = "Build table, figures and page again."
USAGE = "evostep report DIRECTORY"


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add the command's own arguments."""
    parser.add_argument("directory", type=Path, help="directory that compare or train wrote")


def run(parsed: Any) -> None:
    """Run the command."""
    from evostep.lab.report.page import write_report

    show(write_report(parsed.directory))
