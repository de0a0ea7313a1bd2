"""Figure of what runs cost: sample-forwards and minutes, and how much of them evolution took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from evostep.lab.report.figures.drawing import (
    GRID,
    INK,
    Drawing,
    Look,
    add_legend,
    in_units,
    label_rows,
    number,
    of_arm,
    render,
)

Record = Mapping[str, Any]
SPENT = ("sample_forwards", "seconds")
FAINT = 0.4


def draw_spending(
    results: Record, history: Sequence[Record], look: Mapping[str, Look]
) -> Drawing | None:
    """Draw a bar for each arm: its mean over seeds, the part of generations faint, a dot a seed.

    Args:
        results: its runs say what they spent in all, their share of a trunk or start included.
        history: what was spent after each generation.
        look: of the arms, in their order.
    """
    runs = {label: [r for r in results["runs"] if r["arm"] == label] for label in look}
    labels = [label for label in look if runs[label]]
    totals = {
        key: {label: [number(run, key) for run in runs[label]] for label in labels} for key in SPENT
    }
    if not any(x is not None for of in totals.values() for values in of.values() for x in values):
        return None
    figure = Figure(figsize=(7.4, 1.4 + 0.32 * len(labels)))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key in zip(axes, SPENT, strict=True):
        most = max((x for of in totals[key].values() for x in of if x is not None), default=0.0)
        unit, title = in_units(most) if key == "sample_forwards" else (60.0, "minutes")
        for row, label in enumerate(labels):
            spent = [x / unit for x in totals[key][label] if x is not None]
            if not spent:
                continue
            evolved = min(fmean(spent), spent_by_evolution(history, label, key) / unit)
            rest, colour = fmean(spent) - evolved, look[label]["color"]
            axis.barh(row, rest, height=0.6, color=colour)
            axis.barh(row, evolved, left=rest, height=0.6, color=colour, alpha=FAINT)
            dots: dict[str, Any] = {"color": GRID, "edgecolors": INK, "linewidth": 0.7, "zorder": 3}
            axis.scatter(spent, [row] * len(spent), s=12, **dots)
        axis.set_xlabel(title)
    label_rows(axes[0], labels)
    keys = [Patch(color=INK, linewidth=0), Patch(color=INK, alpha=FAINT, linewidth=0)]
    add_legend(figure, keys, ["gradient steps and all else", "generations"])
    means = [
        f"{label} {fmean(known):,.0f}"
        for label in labels
        if (known := [x for x in totals["sample_forwards"][label] if x is not None])
    ]
    return render(
        figure,
        "spending",
        "Budget and time",
        "Bars of sample-forwards and minutes; means of sample-forwards: " + ", ".join(means),
        "Means over seeds, a dot for each. What an arm shares with others, a trunk or a start, is "
        "counted in each of them.",
    )


def spent_by_evolution(history: Sequence[Record], label: str, key: str) -> float:
    """Return what the generations of an arm took, the mean over its seeds; 0 where it has none.

    Records count up; a generation took what lies between it and the record before.

    Args:
        history: as in `draw_spending`.
        label: of an arm; what it shares with others, a trunk or a start, is part of it.
        key: `"sample_forwards"` or `"seconds"`.

    Example:
        >>> lines = [("epoch", 10), ("generation", 14), ("generation", 18), ("epoch", 30)]
        >>> history = [{"kind": k, "arm": "a", "seed": 0, "spent": s} for k, s in lines]
        >>> spent_by_evolution(history, "a", "spent")
        8.0
    """
    of_seeds: dict[int, float] = {}
    before: dict[int, float] = {}
    for record, value in of_arm(history, label, key):
        seed = record["seed"]
        took = value - before.get(seed, 0.0) if record["kind"] == "generation" else 0.0
        took = record.get("evolved", {}).get(key, took)  # of a history that was thinned
        of_seeds[seed] = of_seeds.get(seed, 0.0) + took
        before[seed] = value
    return fmean(of_seeds.values()) if of_seeds else 0.0
