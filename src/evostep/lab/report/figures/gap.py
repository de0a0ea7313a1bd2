"""Figure of overfitting: train minus test accuracy of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from evostep.lab.report.figures.drawing import Drawing, Look, label_rows, number, render


def draw_gap(
    results: Mapping[str, Any],
    _: Sequence[Mapping[str, Any]],
    look: Mapping[str, Look],
) -> Drawing | None:
    """Draw train minus test accuracy: a dot for each seed, a bar at the mean of each arm."""
    gaps: dict[str, list[float]] = {}
    for run in results["runs"]:
        train, test = (number(run.get(part), "accuracy") for part in ("train", "test"))
        if train is not None and test is not None:
            gaps.setdefault(run["arm"], []).append(100 * (train - test))
    labels = [label for label in look if label in gaps]
    if not labels:
        return None
    figure = Figure(figsize=(7.4, 1.1 + 0.36 * len(labels)))
    axis = figure.subplots()
    for row, label in enumerate(labels):
        colour = look[label]["color"]
        axis.scatter(gaps[label], [row] * len(gaps[label]), s=26, color=colour, alpha=0.6, lw=0)
        axis.scatter(fmean(gaps[label]), row, s=260, marker="|", color=colour, linewidth=2.4)
    label_rows(axis, labels)
    axis.set_xlabel("train accuracy − test accuracy (points)")
    return render(
        figure,
        "gap",
        "Train-test gap",
        "Dot plot of train minus test accuracy; means: "
        + ", ".join(f"{label} {fmean(gaps[label]):.2f} points" for label in labels),
        "A dot per seed, a bar at the mean. A smaller gap is less overfitting, "
        "but a better model only where test accuracy is higher too.",
    )
