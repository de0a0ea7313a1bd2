"""``evostep decide``: a polished decision, applied to a file of scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from evostep.cli.output import answer

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

SUMMARY = "apply a polished decision to a file of scores"
DESCRIPTION = (
    "Decide each row of a file of scores by the decision that evostep polish wrote. The file has "
    "a column score_<class> for each class, of what was polished: logits or probabilities. Its "
    "other columns are kept, and a column decided holds the class."
)
USAGE = "evostep decide DECISION SCORES --out FILE.csv"


def add_arguments(parser: ArgumentParser, **_: Any) -> None:
    """Add the command's own arguments."""
    parser.add_argument("decision", type=Path, help="a decision.json")
    parser.add_argument("scores", type=Path, help="CSV, parquet or npz file")
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")


def run(parsed: Any) -> None:
    """Run the command."""
    from evostep.lab.polish.deciding import decide_file

    found = decide_file(parsed.decision, parsed.scores, parsed.out)
    rows = [f"{name or '(none)'}: {count:,}" for name, count in found["decided"].items()]
    shown = [*rows[:20], *([f"and {len(rows) - 20} more"] if len(rows) > 20 else [])]
    lines = [f"{found['n']:,} rows decided: {', '.join(shown)}", f"written: {parsed.out}"]
    answer("\n".join(lines), {"out": parsed.out, **found})
