"""Figures of a comparison: curves, gaps, contrasts and evolution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import matplotlib.style
from matplotlib.figure import Figure

from evostep.lab.report import contrasts
from evostep.lab.report.curves import draw_curves
from evostep.lab.report.drawing import (
    INK,
    STYLE,
    Drawing,
    Look,
    finish,
    label_rows,
    looks,
    number,
    shortened,
)
from evostep.lab.report.generations import draw_generations
from evostep.lab.report.wording import FRACTIONS

__all__ = ["FIGURE_NAMES", "Drawing", "draw_figures"]

FIGURE_NAMES = ("accuracy", "loss", "gap", "contrasts", "evolution")


def draw_figures(results: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """All figures that the records allow, in the order of the report.

    Args:
        results: as written by `evostep compare`, with "contrasts" filled by `contrasts.finish`.
        history: the records of `history.jsonl`, in any order; later ones of the same epoch (a
            resumed run) replace earlier ones.

    Returns:
        Drawings named as in `FIGURE_NAMES`; one without data is left out.
    """
    look = looks(results)
    drawings: list[Drawing | None] = []
    with matplotlib.style.context(["default", STYLE]):
        for metric in ("accuracy", "loss"):
            drawings.append(draw_curves(results, history, look, metric))
        drawings.append(_draw_gap(results, look))
        drawings.append(_draw_contrasts(results, look))
        drawings.append(draw_generations(history, look, contrasts.main_metric(results)))
    return [drawing for drawing in drawings if drawing is not None]


def _draw_gap(results: Mapping[str, Any], look: Mapping[str, Look]) -> Drawing | None:
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
    return finish(
        figure,
        "gap",
        "Train-test gap",
        "Dot plot of train minus test accuracy; means: "
        + ", ".join(f"{label} {fmean(gaps[label]):.2f} points" for label in labels),
        "A dot per seed, a bar at the mean. A smaller gap is less overfitting, "
        "but a better model only where test accuracy is higher too.",
    )


def _draw_contrasts(results: Mapping[str, Any], look: Mapping[str, Look]) -> Drawing | None:
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
    factor, unit = (100.0, "points") if metric in FRACTIONS else (1.0, "in its own unit")
    figure = Figure(figsize=(9.2 if len(controls) > 1 else 7.4, 1.4 + 0.36 * len(labels)))
    axes = figure.subplots(1, len(controls), sharex=True, sharey=True, squeeze=False)[0]
    for axis, control in zip(axes, controls, strict=True):
        axis.axvline(0.0, color=INK, linewidth=1.0)
        for row in (row for row in rows if row["control"] == control):
            y, colour = labels.index(row["arm"]), look[row["arm"]]["color"]
            if row["ci95"] is not None:
                axis.plot([factor * x for x in row["ci95"]], [y, y], color=colour, linewidth=2)
            open_dot = {"markerfacecolor": "none"} if row["ci95"] is None else {}
            axis.plot(factor * row["mean"], y, marker="o", color=colour, **open_dot)
        axis.set_title(f"against {shortened(control)}")
        axis.set_xlabel(f"difference in test {metric} ({unit})")
    label_rows(axes[0], labels)
    side = "right" if contrasts.higher_is_better(metric) else "left"
    described = "; ".join(
        f"{row['arm']} against {row['control']} {factor * row['mean']:+.2f}" for row in rows
    )
    return finish(
        figure,
        "contrasts",
        "Paired contrasts",
        f"Differences in test {metric}, {unit}: {described}",
        f"Mean difference over paired seeds with its 95% interval; {side} of the line the arm is "
        "better. An interval that crosses the line shows no difference. A hollow dot has no "
        "interval (one seed, or the same difference on every seed).",
    )
