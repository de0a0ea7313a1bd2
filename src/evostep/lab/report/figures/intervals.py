"""Figure of the paired contrasts: each arm's difference from each control, with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from evostep.lab.report import contrasts
from evostep.lab.report.figures.drawing import INK, Drawing, Look, label_rows, render, shortened
from evostep.lab.report.wording import is_fraction


def draw_intervals(
    results: Mapping[str, Any],
    _: Sequence[Mapping[str, Any]],
    look: Mapping[str, Look],
) -> Drawing | None:
    """Draw the mean differences with their intervals, a panel for each control."""
    metric = contrasts.main_metric(results)
    rows = [
        row
        for row in results.get("contrasts", [])
        if row["metric"] == metric and row["mean"] is not None
    ]
    controls = list(dict.fromkeys(row["control"] for row in rows))
    labels = [label for label in look if any(row["arm"] == label for row in rows)]
    if not rows:
        return None
    factor, unit = (100.0, "points") if is_fraction(metric) else (1.0, "in its own unit")
    figure = Figure(figsize=(9.2 if len(controls) > 1 else 7.4, 1.4 + 0.36 * len(labels)))
    axes = figure.subplots(1, len(controls), sharex=True, sharey=True, squeeze=False)[0]
    for axis, control in zip(axes, controls, strict=True):
        axis.axvline(0.0, color=INK, linewidth=1.0)
        for row in (row for row in rows if row["control"] == control):
            y, colour = labels.index(row["arm"]), look[row["arm"]]["color"]
            if row["ci95"] is not None:
                axis.plot([factor * x for x in row["ci95"]], [y, y], color=colour, linewidth=2)
            open_dot = {"markerfacecolor": "none"} if row["ci95"] is None else {}
            marker = "x" if row.get("not_finite") else "o"
            axis.plot(factor * row["mean"], y, marker=marker, color=colour, **open_dot)
        axis.set_title(f"against {shortened(control)}")
        axis.set_xlabel(f"difference in test {metric} ({unit})")
    label_rows(axes[0], labels)
    side = "right" if contrasts.higher_is_better(metric) else "left"
    described = "; ".join(
        f"{row['arm']} against {row['control']} {factor * row['mean']:+.2f}" for row in rows
    )
    crosses = " A cross: on some seeds a run diverged, and they are left out."
    return render(
        figure,
        "contrasts",
        "Paired contrasts",
        f"Differences in test {metric}, {unit}: {described}",
        f"Mean difference over paired seeds with its 95% interval; {side} of the line the arm is "
        "better. An interval that crosses the line shows no difference. A hollow dot has no "
        "interval (one seed, or the same difference on every seed)."
        + (crosses if any(row.get("not_finite") for row in rows) else ""),
    )
