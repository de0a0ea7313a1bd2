"""What a terminal shows of a report: a short table that fits 80 columns, and the verdict."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from evostep.errors import counted
from evostep.lab.report.verdict import outcome_of
from evostep.lab.report.wording import ABSENT, contrast_cell

WIDTH = 80
_SHORTEST_LABEL = 12
_OUTCOMES = {"equal": "same on every seed"}


def summarise(
    results: Mapping[str, Any], context: Mapping[str, Any], controls: Sequence[str]
) -> str:
    """Return arm, test, difference to the strongest control and outcome, and the verdict below.

    Args:
        results: with "arms" and "contrasts" computed.
        context: of the templates of table and page.
        controls: labels of the arms that are controls.
    """
    metric = context["metric"]
    strongest = next((row["arm"] for row in context["rows"] if row["strongest"]), None)
    found = {
        row["arm"]: row
        for row in results["contrasts"]
        if row["metric"] == metric and row["control"] == strongest
    }
    rows = [("arm", f"test {metric}"[:16] + context["unit"], "difference (95% CI)", "outcome")]
    for row in context["rows"]:
        label, difference = row["arm"], found.get(row["arm"])
        cell = contrast_cell(difference)
        interval = cell["spread"].partition(";")[0]
        outcome = "a control" if label in controls else "no common seed"
        text = f"{cell['mean']} ({interval})" if interval else cell["mean"]
        if label == strongest:
            outcome = "strongest control"
        elif difference is not None:
            outcome = outcome_of(difference)
            if difference.get("not_finite"):  # what is left may be a choice of the luckiest seeds
                text = ABSENT
        score, _, diverged = row["score"].partition(" (")
        if diverged and outcome != "both diverged":
            outcome = diverged.removesuffix(")")
        rows.append((label, score, text, _OUTCOMES.get(outcome, outcome)))
    seeds = counted(context["seeds"], "seed")
    head = f"{context['title']}, {context['model']}, {seeds}"
    if context["missing"]:
        head += f", {context['missing']} of {context['expected']} runs not finished"
    if found:
        head += f"; differences to {strongest}" + (" in points" if context["fraction"] else "")
    verdict = textwrap.fill(context["verdict"]["headline"], WIDTH)
    return "\n\n".join([textwrap.fill(head, WIDTH), "\n".join(_aligned(rows)), verdict])


def _aligned(rows: list[tuple[str, str, str, str]]) -> list[str]:
    """Return rows as lines; where they are too wide labels are cut, then intervals left out."""

    def widths() -> list[int]:
        return [max(map(len, column)) for column in zip(*rows, strict=True)]

    def room() -> int:
        return WIDTH - sum(widths()[1:]) - 3 * 2

    if room() < min(_SHORTEST_LABEL, widths()[0]):
        rows = [(label, score, text.partition(" (")[0], end) for label, score, text, end in rows]
    most = max(room(), 1)
    rows = [(_cut(label, most), *others) for label, *others in rows]  # type: ignore[misc]
    label, score, text, _ = widths()
    return [f"{a:<{label}}  {b:>{score}}  {c:<{text}}  {d}".rstrip() for a, b, c, d in rows]


def _cut(label: str, most: int) -> str:
    """Return a label without its middle, where it is too long: labels differ at both ends."""
    if len(label) <= most:
        return label
    kept = most - 1
    return label[: kept - kept // 2] + "…" + label[len(label) - kept // 2 :]
