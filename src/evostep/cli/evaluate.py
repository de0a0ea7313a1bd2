"""``evostep evaluate``: every metric with its interval, nothing changed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.cli.output import answer
from evostep.cli.polish import add_subject, make_polish_options
from evostep.lab.polish.options import ONLY_POLISH

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "measure a trained network by every metric, with intervals"
DESCRIPTION = (
    "Measure a trained network, or scores from a file, by every metric with its bootstrap "
    "interval. Nothing is changed."
)
USAGE = "evostep evaluate (--model M [--init-from W] --data D | --scores FILE) [option ...]"


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add the command's arguments."""
    add_subject(parser, skip=ONLY_POLISH)
    parser.add_argument("--out", type=Path, default=None, help="directory for results.json")


def run(parsed: Any) -> None:
    """Run the command."""
    options = make_polish_options(parsed, evaluates=True)
    from evostep.lab.polish.run import run_evaluate
    from evostep.lab.polish.wording import summarise_evaluation

    record, _ = run_evaluate(options, parsed.get("out"))
    answer(summarise_evaluation(record), record)
