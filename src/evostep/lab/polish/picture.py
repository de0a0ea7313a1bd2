"""The picture: recall of every class before, of the start and after, and the gains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from evostep.lab.report.figures.drawing import (
    GRID,
    INK,
    PALETTE,
    STYLE,
    Drawing,
    add_legend,
    label_rows,
    render,
    shortened,
)
from evostep.polishing.result import BY_START, NO_GAIN

MOST = 40  # classes that a picture has room for


def draw_recalls(record: Mapping[str, Any]) -> Drawing:
    """Draw a row for each class, and the three gains with their intervals.

    Args:
        record: as ``results.json`` holds it.
    """
    with matplotlib.style.context(["default", STYLE]):
        return _draw(record)


def _draw(record: Mapping[str, Any]) -> Drawing:
    rows = [
        (name, found)
        for name, found in zip(record["class_names"], record["classes"], strict=True)
        if found[0] is not None
    ]
    left_out = len(rows) - MOST
    if left_out > 0:  # those that moved most stay, in their own order
        moved = sorted(range(len(rows)), key=lambda i: -abs(rows[i][1][2] - rows[i][1][0]))
        rows = [rows[i] for i in sorted(moved[:MOST])]
    figure = Figure(figsize=(9.2, 1.9 + 0.27 * max(len(rows), 4)))
    axis, gains = figure.subplots(1, 2, width_ratios=(3, 2))
    columns: dict[int, tuple[str, dict[str, Any]]] = {
        0: ("before", {"marker": "o", "color": INK, "markerfacecolor": "none"}),
        1: (record["start"], {"marker": "D", "color": PALETTE[0], "markersize": 4.5}),
        2: (_after(record), {"marker": "o", "color": PALETTE[1]}),
    }
    if record["start"] == "checkpoint":  # it is what was before
        del columns[1]
    for y, (_, found) in enumerate(rows):
        axis.plot([100 * found[0], 100 * found[2]], [y, y], color=GRID, linewidth=3, zorder=1)
    handles = [
        axis.plot([100 * found[i] for _, found in rows], range(len(rows)), linestyle="", **look)[0]
        for i, (_, look) in columns.items()
    ]
    label_rows(axis, [name for name, _ in rows])
    axis.set_title("recall of every class")
    axis.set_xlabel("recall (%), of decisions that have not seen the example")
    _draw_gains(gains, record)
    add_legend(figure, handles, [shortened(name) for name, _ in columns.values()])
    others = f" The {MOST} classes that moved most, of {MOST + left_out}." if left_out > 0 else ""
    described = "; ".join(
        f"{name} {100 * found[0]:.0f}, {100 * found[2]:.0f}" for name, found in rows
    )
    return render(
        figure,
        "recall",
        "Recall of every class, and the gains",
        f"Recall before and after, percent: {described}",
        "Left: the share of each class that is decided rightly. Right: the gain in "
        f"{record['metric']} with its 95% interval; one that crosses the line is not confirmed."
        + others,
    )


def _after(record: Mapping[str, Any]) -> str:
    if record["verdict"] == NO_GAIN:
        return "polished (not applied)"
    return "evolution (not applied)" if record["verdict"] == BY_START else "polished"


def _draw_gains(axis: Any, record: Mapping[str, Any]) -> None:
    factor = 100.0 if record["fraction"] else 1.0
    axis.axvline(0.0, color=INK, linewidth=1.0)
    for y, found in enumerate(record["contrasts"].values()):
        confirmed = found["low"] > 0
        colour = PALETTE[1] if confirmed else "#8a8a8a"
        axis.plot([factor * found["low"], factor * found["high"]], [y, y], color=colour, lw=2)
        axis.plot(factor * found["value"], y, marker="o", color=colour)
    label_rows(axis, list(record["contrasts"]))
    axis.set_title("gain, 95% interval")
    axis.set_xlabel("points" if record["fraction"] else "in its own unit")
