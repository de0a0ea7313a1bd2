"""Figures of the paired contrasts: differences from controls, a dot for each seed, an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evostep.lab.report import contrasts
from evostep.lab.report.figures.drawing import (
    INK,
    Drawing,
    Look,
    label_rows,
    lowest,
    render,
    shortened,
)
from evostep.lab.report.wording import contrast_cell, contrast_text, is_fraction

NARROW = 5.2  # inches: what a phone shows without scrolling, with letters that can be read
PANELS = 3  # side by side

Record = Mapping[str, Any]


def draw_forest(results: Record, _: Sequence[Record], look: Mapping[str, Look]) -> Drawing | None:
    """Draw what the verdict is about: all others against the strongest control, the best on top.

    Where a contrast was registered it is that: the arm against each of its controls.
    """
    rows, title = _decisive(results)
    if not rows:
        return None
    metric = rows[0]["metric"]
    higher = contrasts.higher_is_better(metric)
    rows = sorted(rows, key=lambda row: row["mean"], reverse=higher)
    names = [row["name"] for row in rows]
    figure = Figure(figsize=(NARROW, 1.0 + 0.42 * len(rows)))
    axis = figure.subplots()
    for y, row in enumerate(rows):
        _plot_contrast(axis, y, row, results, look[row["name"]]["color"])
        cell = contrast_cell(row)
        text = f"{cell['mean']} ({cell['spread']})" if cell["spread"] else cell["mean"]
        axis.annotate(
            f"{shortened(names[y])}:  {text}",
            (0.0, y - 0.3),
            xycoords=("axes fraction", "data"),
            fontsize=9,
            va="center",
        )
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.set_ylim(len(rows) - 0.5, -0.7)
    _zero_line(axis)
    axis.set_xlabel(f"difference in test {shortened(metric)}{_unit(metric)}")
    axis.set_title(title)
    return render(
        figure,
        "forest",
        "The difference",
        f"Forest plot, {title}: "
        + "; ".join(f"{row['name']} {contrast_text(row)}" for row in rows),
        _caption(rows, metric, registered=bool(results.get("registered"))),
    )


def draw_intervals(
    results: Record, _: Sequence[Record], look: Mapping[str, Look]
) -> Drawing | None:
    """Draw the same for the other controls, a panel for each: dots, means and intervals."""
    shown = {(row["arm"], row["control"]) for row in _decisive(results)[0]}
    metric = contrasts.main_metric(results)
    rows = [
        row
        for row in results.get("contrasts", [])
        if row["metric"] == metric
        and row["mean"] is not None
        and (row["arm"], row["control"]) not in shown
    ]
    controls = list(dict.fromkeys(row["control"] for row in rows))
    labels = [label for label in look if any(row["arm"] == label for row in rows)]
    if not rows:
        return None
    columns = min(PANELS, len(controls))
    lines = math.ceil(len(controls) / columns)
    size = (7.4 if columns == 1 else 9.2, (1.4 + 0.36 * len(labels)) * lines)
    figure = Figure(figsize=size)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axis, control in zip(grid.flat, controls, strict=False):
        for row in (row for row in rows if row["control"] == control):
            colour = look[row["arm"]]["color"]
            _plot_contrast(axis, labels.index(row["arm"]), row, results, colour)
        _zero_line(axis)
        axis.set_title(f"against {shortened(control)}")
    for axis in lowest(grid, len(controls)):
        axis.set_xlabel(f"difference in test {shortened(metric)}{_unit(metric)}")
    label_rows(grid[0][0], labels)
    described = "; ".join(
        f"{row['arm']} against {row['control']} {_factor(metric) * row['mean']:+.2f}"
        for row in rows
    )
    return render(
        figure,
        "contrasts",
        "Against the other controls",
        f"Differences in test {metric}{_unit(metric)}: {described}",
        _caption(rows, metric),
    )


def _decisive(results: Record) -> tuple[list[dict[str, Any]], str]:
    """Return the contrasts to draw first, each with the name of its row, and a title."""
    registered = results.get("registered")
    if registered:
        metric = registered["metric"]
        marked = [row for row in results["contrasts"] if row.get("registered")]
        rows = [
            {**row, "name": row["control"], "p_holm": row["p"]}  # one claim, written down before
            for row in marked
            if row["mean"] is not None
        ]
        return rows, f"{shortened(registered['arm'])} against each control, registered"
    metric, controls = contrasts.main_metric(results), contrasts.control_labels(results)
    strongest = contrasts.strongest_control(
        results["runs"], metric, controls, higher=contrasts.higher_is_better(metric)
    )
    rows = [
        {**row, "name": row["arm"]}
        for row in results.get("contrasts", [])
        if row["metric"] == metric and row["control"] == strongest and row["mean"] is not None
    ]
    return rows, f"against the strongest control, {shortened(strongest or '')}"


def _plot_contrast(axis: Axes, y: int, row: Record, results: Record, colour: str) -> None:
    """Plot a row: seeds as faint dots, the mean, and its interval."""
    factor = _factor(row["metric"])
    seeds = contrasts.paired_differences(results["runs"], row["metric"], row["arm"], row["control"])
    values = [factor * x for x in seeds.values()]
    axis.scatter(values, [y + 0.16] * len(values), s=14, color=colour, alpha=0.45, linewidth=0)
    if row["ci95"] is not None:
        axis.plot([factor * x for x in row["ci95"]], [y, y], color=colour, linewidth=2)
    open_dot: dict[str, Any] = {"markerfacecolor": "none"} if row["ci95"] is None else {}
    marker = "x" if row.get("not_finite") else "o"
    axis.plot(factor * row["mean"], y, marker=marker, color=colour, **open_dot)


def _zero_line(axis: Axes) -> None:
    """Draw the line of no difference."""
    axis.axvline(0.0, color=INK, linewidth=1.0)
    axis.grid(visible=False, axis="y")


def _caption(rows: Sequence[Record], metric: str, *, registered: bool = False) -> str:
    corrected = "is that against this control; the claim's is the largest of them"
    if not registered:
        corrected = "is corrected by Holm for the number of arms; an interval is of its arm alone"
    side = "right" if contrasts.higher_is_better(metric) else "left"
    crosses = " A cross: on some seeds a run diverged, and they are left out."
    return (
        "A small dot for each seed; the large one is the mean of the paired differences, with its "
        f"95% interval. {side.capitalize()} of the line the arm is better. p {corrected}. An "
        "interval that crosses the line shows no difference. A hollow dot has no interval (one "
        "seed, or the same difference on every seed)."
        + (crosses if any(row.get("not_finite") for row in rows) else "")
    )


def _factor(metric: str) -> float:
    return 100.0 if is_fraction(metric) else 1.0


def _unit(metric: str) -> str:
    return " (points)" if is_fraction(metric) else " (in its own unit)"
