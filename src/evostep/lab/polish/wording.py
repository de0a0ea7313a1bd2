"""What a record says, in rows and in lines: the same for terminal, card and page."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from evostep.polishing.result import BY_START, NO_GAIN, change_text
from evostep.scoring.metrics import METRICS

WIDTH = 80
SHOWN = 5  # classes that got better, and worse, on a terminal
Record = Mapping[str, Any]
NOT_CORRECTED = (
    "But for the first row these are folds pooled, and not corrected for what that flatters."
)


@dataclass(frozen=True)
class Row:
    """A metric, or the recall of a class.

    Attributes:
        name: of it.
        values: before, of the start, after.
        change: in its own unit, or in points.
        better: by how much it is better, in its good direction.
    """

    name: str
    values: tuple[str, str, str]
    change: str
    better: float


def metric_rows(record: Record) -> list[Row]:
    """Return the metric that was polished, then every other that has a name."""
    values = record["values"]
    main = tuple(values[name] for name in ("checkpoint", "start", "polished"))
    rows = [_row(record, record["metric"], main, record["fraction"], record["higher_is_better"])]
    for name, found in record["metrics"].items():
        if name != record["metric"]:
            metric = METRICS.get(name)
            fraction = metric is None or metric.fraction
            higher = metric is None or metric.higher_is_better
            rows.append(_row(record, name, found, fraction, higher))
    return rows


def class_rows(record: Record) -> list[Row]:
    """Return the recall of every class that has examples."""
    named = zip(record["class_names"], record["classes"], strict=True)
    return [_row(record, name, found, True, True) for name, found in named if _is_there(found[0])]


def _row(record: Record, name: str, found: Any, fraction: bool, higher: bool) -> Row:
    values = tuple(float("nan") if value is None else float(value) for value in found)
    before, start, polished = values
    after = start if record["verdict"] == BY_START else polished
    shown = (before, start, after)
    texts = tuple(f"{100 * x:.1f}%" if fraction else f"{x:.3f}" for x in shown)
    gain = after - before
    change = f"{100 * gain:+.1f}" if fraction else f"{gain:+.3f}"
    label = name if higher else f"{name}, lower is better"
    better = (after - before) * (1 if higher else -1) * (texts[0] != texts[2])
    return Row(label, (texts[0], texts[1], texts[2]), change, better)


def contrast_texts(record: Record) -> list[tuple[str, str, str, str]]:
    """Return each contrast: its name, value, interval and p."""

    def one(value: float) -> str:
        return change_text(value, record["fraction"])

    return [
        (
            name,
            one(found["value"]),
            f"{one(found['low'])} to {one(found['high'])}",
            f"{found['p']:.3f}" if found["p"] >= 0.001 else "< 0.001",
        )
        for name, found in record["contrasts"].items()
    ]


def what_was_done(record: Record) -> str:
    """Return in one sentence what became of the model."""
    if record["verdict"] == NO_GAIN:
        stays = "the checkpoint stays as it is"
        if _of_scores(record):
            stays = "the largest score decides as before"
        return f"Nothing was changed: no gain was confirmed, and {stays}."
    if record["evolved"]:
        return (
            f"Weights of the network were changed by {record['chosen']}; they are in "
            "model.safetensors, and its outputs are decided as they are."
        )
    what = record["start"] if record["verdict"] == BY_START else record["chosen"]
    where = "decision.json holds them: the model behind the outputs was not changed"
    if _of_scores(record):
        where = "decision.json holds them, and evostep decide applies them to a file of scores"
    elif record["applied"]:
        where = "they are in the bias of the last layer (model.safetensors)"
    elif record["sample_forwards"]:
        where = "decision.json holds them: the network was not changed"
    return f"A bias was added to each output, chosen by {what}; {where}."


def _of_scores(record: Record) -> bool:
    """Return whether there is no network, but a file of scores."""
    return record["arguments"].get("scores") is not None


def summarise(record: Record) -> str:
    """Return the end of what `evostep polish` prints, at most 80 columns but for its first line."""
    rows, classes = metric_rows(record), class_rows(record)
    after = "polished" if record["verdict"] == NO_GAIN else "after"
    lines = [record["summary"], "", _line("", ("before", "start", after), "change")]
    lines += [_line(row.name, row.values, row.change) for row in rows]
    lines += textwrap.wrap(f"start: {record['start']}, the best that needs no search", WIDTH)
    moved = sorted((row for row in classes if row.better), key=lambda row: row.better)
    worse = [row for row in moved if row.better < 0][:SHOWN]
    better = [row for row in moved if row.better > 0][::-1][:SHOWN]
    for title, some in (("recall that got better", better), ("recall that got worse", worse)):
        lines += [f"{title}:" if some else f"{title}: none"]
        lines += [_line(f"  {row.name}", row.values, row.change) for row in some]
    if (left := len(moved) - len(better) - len(worse)) > 0:
        lines.append(f"and {left} more, in results.json")
    lines += textwrap.wrap(NOT_CORRECTED, WIDTH)
    lines += textwrap.wrap(what_was_done(record), WIDTH)
    return "\n".join(lines)


def summarise_evaluation(record: Record) -> str:
    """Return what `evostep evaluate` prints."""
    lines = [f"{'':<44}{'value':>10}  95% interval"]
    for name, found in record["metrics"].items():
        label = name if found["higher_is_better"] else f"{name}, lower is better"
        lines.append(_interval_line(label, found))
    lines.append("recall of")
    named = list(zip(record["class_names"], record["classes"], strict=True))
    known = [(name, found) for name, found in named if _is_there(found["value"])]
    shown = known if len(known) <= 20 else sorted(known, key=lambda one: one[1]["value"])[:20]
    lines += [_interval_line(f"  {name}", found) for name, found in shown]
    if len(shown) < len(known):
        lines.append(f"the worst {len(shown)} of {len(known)} classes are shown")
    groups = f", {record['groups']:,} groups" if record["groups"] else ""
    lines.append(f"n = {record['n']:,} examples{groups}; {record['data']}")
    return "\n".join(lines)


def _interval_line(name: str, found: Mapping[str, Any]) -> str:
    def one(value: float) -> str:
        if not _is_there(value):
            return "-"
        return f"{100 * value:.1f}%" if found["fraction"] else f"{value:.3f}"

    ends = f"{one(found['low'])} to {one(found['high'])}"
    return f"{_short(name, 44):<44}{one(found['value']):>10}  {ends}"


def _line(name: str, values: tuple[str, str, str], change: str) -> str:
    return f"{_short(name, 43):<44}" + "".join(f"{text:>9}" for text in (*values, change))


def _is_there(value: float | None) -> bool:
    """Return whether it is a number: JSON has null for what is none."""
    return value is not None and math.isfinite(value)


def _short(name: str, width: int) -> str:
    return name if len(name) <= width else name[: width - 3] + "..."
