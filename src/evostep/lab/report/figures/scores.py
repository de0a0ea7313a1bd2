"""Figure of the evolution: scores of parent, members and candidate, generation by generation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from evostep.lab.report import contrasts
from evostep.lab.report.figures.drawing import (
    DASHES,
    INK,
    Drawing,
    Look,
    add_legend,
    lowest,
    number,
    render,
    shortened,
)
from evostep.lab.report.history import generations_of
from evostep.lab.report.statistics import expected_largest, is_finite
from evostep.lab.report.wording import is_fraction

SHOWN_SEEDS = 3
MANY = 4  # more arms than these are shown by one seed each

Record = Mapping[str, Any]


def draw_scores(
    results: Record, history: Sequence[Record], look: Mapping[str, Look]
) -> Drawing | None:
    """Draw parent, best member and candidate of every generation, a panel for each arm and seed.

    Beside them what the best of as many members would show that are as good as the parent in truth.

    Args:
        results: its configuration tells the metric that evolution maximises.
        history: scores in it are of that metric, higher is better.
        look: of the arms, in their order.

    Returns:
        The drawing, or None where no generation has been recorded.
    """
    metric, records = contrasts.main_metric(results), _generation_records(history)
    labels = [label for label in look if any(r["arm"] == label for r in records)]
    seeds = sorted({r["seed"] for r in records})
    if not labels:
        return None
    shown = seeds[: SHOWN_SEEDS if len(labels) <= MANY else 1]
    panels = [(label, seed) for label in labels for seed in shown]
    columns = len(shown) if len(labels) <= MANY else SHOWN_SEEDS
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(max(5.6, 3.1 * columns), 0.9 + 2.0 * rows))
    shared: dict[str, Any] = dict.fromkeys(
        ("sharex", "sharey"), "row" if rows == len(labels) else False
    )
    grid = figure.subplots(rows, columns, squeeze=False, **shared)
    factor, unit = (100.0, " (%)") if is_fraction(metric) else (1.0, "")
    for axis, (label, seed) in zip(grid.flat, panels, strict=False):
        own = [r for r in records if r["arm"] == label and r["seed"] == seed]
        _plot_scores(axis, own, look[label]["color"], factor)
        axis.set_title(f"{shortened(label)}, seed {seed}")
    for row in grid:
        row[0].set_ylabel(f"{shortened(metric)}{unit}\non fitness examples", fontsize=9)
    for axis in lowest(grid, len(panels)):
        axis.set_xlabel("generation")
    dot: dict[str, Any] = {"color": INK, "marker": "o", "markersize": 6, "linestyle": ""}
    keys = [
        Line2D([], [], color=INK, linewidth=1.2),
        Line2D([], [], color=INK, linewidth=1.0, linestyle=DASHES[2]),
        Line2D([], [], color=INK, marker="x", markersize=4, linestyle=""),
        Line2D([], [], **dot),
        Line2D([], [], **dot, fillstyle="none"),
    ]
    add_legend(
        figure,
        keys,
        ["parent", "best by luck", "best member", "candidate, accepted", "candidate, rejected"],
    )
    counts = {label: [0, 0] for label in labels}
    # of a history that was thinned an epoch's record may stand for generations, too
    others = (r for r in history if r["kind"] != "generation" and r["arm"] in counts)
    for record in (*(r for r in records if r["arm"] in counts), *others):
        for i, n in enumerate(generations_of(record)):
            counts[record["arm"]][i] += n
    accepted = ", ".join(f"{label} {few} of {of}" for label, (of, few) in counts.items())
    left_out = f" Seeds shown: {len(shown)} of {len(seeds)}." if len(shown) < len(seeds) else ""
    if any("stands_for" in record for record in records):
        left_out += f" Generations shown: {len(records):,}, at even distances."
    return render(
        figure,
        "evolution",
        "Evolution, generation by generation",
        f"Scores of parent, best member and candidate by generation; accepted: {accepted}",
        "Scores on the examples that evolution selects on, higher is better; gradient steps lie "
        "between phases, where the parent's line is broken. Dotted: what the best would show if "
        "all members were as good as the parent and their scores differed, as much as they do, by "
        "luck alone; a best member below it is no evidence of a gain. Accepted generations over "
        f"all seeds: {accepted}.{left_out}",
    )


def _plot_scores(axis: Axes, records: Sequence[Record], colour: str, factor: float) -> None:
    def scaled(value: float | None) -> float:
        return math.nan if value is None else factor * value

    places: dict[Any, list[tuple[int, Record]]] = {}
    x = list(accumulate(max(1, generations_of(record)[0]) for record in records))
    for place, record in zip(x, records, strict=True):
        places.setdefault(record["epoch"], []).append((place, record))
    for phase in places.values():
        parents = [scaled(number(record, "parent")) for _, record in phase]
        lone = "_" if len(phase) == 1 else ""  # a line of one point would not show
        axis.plot([x for x, _ in phase], parents, color=INK, linewidth=1.2, marker=lone)
        luck = [scaled(best_by_luck(record)) for _, record in phase]
        dots: dict[str, Any] = {"linestyle": DASHES[2], "marker": lone}
        axis.plot([x for x, _ in phase], luck, color=INK, linewidth=1.0, **dots)
    best = [max(filter(is_finite, r.get("scores") or []), default=None) for r in records]
    axis.plot(x, [scaled(y) for y in best], color=colour, marker="x", markersize=4, linestyle="")
    for accepted, fill in ((True, "full"), (False, "none")):
        shown = [
            scaled(number(r, "candidate") if bool(r.get("accepted")) is accepted else None)
            for r in records
        ]
        style: dict[str, Any] = {"marker": "o", "markersize": 6, "linestyle": "", "fillstyle": fill}
        axis.plot(x, shown, color=colour, **style)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def best_by_luck(record: Record) -> float | None:
    """Return what the best member would score if all were as good as the parent.

    Their scores then differ by luck alone; how much they differ is measured on them, whatever
    their mean, so that what differs in truth only raises the line.

    Returns:
        parent + sd of the scores x mean of the largest of as many normal numbers; None without a
        parent's score, or with fewer than two members'.

    Example:
        >>> round(best_by_luck({"parent": 0.5, "scores": [0.4, 0.5, 0.6]}), 4)
        0.5846
    """
    parent, scores = number(record, "parent"), list(filter(is_finite, record.get("scores") or []))
    if parent is None or len(scores) < 2:
        return None
    return parent + stdev(scores) * expected_largest(len(scores))


def _generation_records(history: Sequence[Record]) -> list[Record]:
    keyed = {
        (r["arm"], r["seed"], r["epoch"], r.get("generation", 0)): r
        for r in history
        if r["kind"] == "generation"
    }
    return [keyed[key] for key in sorted(keyed)]
