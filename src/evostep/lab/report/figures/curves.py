"""Figures of the training: the metric over what it cost, a panel for each arm.

Small multiples: each arm beside the strongest control, for bands of many arms on one another turn
to mud. Over sample-forwards, not epochs: evolution spends them too, and hardly an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from evostep.lab.arms.methods import METHODS
from evostep.lab.report import contrasts
from evostep.lab.report.figures.drawing import (
    DASHES,
    INK,
    Drawing,
    Look,
    add_legend,
    in_units,
    lowest,
    number,
    of_arm,
    render,
    shortened,
)
from evostep.lab.report.wording import is_fraction

COLUMNS = 3
SETTLED = 0.25  # of the budget; what comes before would press all that matters into one line

Curve = tuple[list[float], list[float]]
"""Sample-forwards, and a value at each."""

Span = tuple[float, float]
Record = Mapping[str, Any]


def draw_curves(
    results: Record, history: Sequence[Record], look: Mapping[str, Look], name: str = "curves"
) -> Drawing | None:
    """Draw a metric on the fitness examples by sample-forwards, each arm beside the control.

    Args:
        results: its configuration tells the metric.
        history: its records count sample-forwards up; those of a trunk or start name the arms that
            share it.
        look: of the arms, in their order.
        name: `"loss"` for the loss, `"curves"` for the metric that decides.

    Returns:
        The drawing, or None where no epoch has a value.
    """
    metric = "loss" if name == "loss" else _metric(results, history)
    curves = {label: _curves(history, label, metric) for label in look}
    curves = {label: of_seeds for label, of_seeds in curves.items() if of_seeds}
    if not curves or (name == "curves" and metric == "loss"):
        return None
    trained = {label for label in curves if trained_on_fitness(results, label)}
    reference = _reference(results, [x for x in curves if x not in trained] or list(curves))
    unit, spent = in_units(max(x for of in curves.values() for xs, _ in of for x in xs))
    labels = [label for label in curves if label != reference] or [reference]
    columns = min(COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    figure = Figure(figsize=(max(5.2, 3.0 * columns), 0.8 + 2.1 * rows))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axis, label in zip(grid.flat, labels, strict=False):
        for low, high in _phases(history, label):
            axis.axvspan(low, high, color=INK, alpha=0.12, linewidth=0, zorder=0)
        if reference != label:
            style = {"color": INK, "linewidth": 1.2, "alpha": 0.55}
            axis.plot(*_mean(curves[reference]), **style)
        _plot_arm(axis, curves[label], look[label]["color"], _dash(label in trained))
        axis.set_title(shortened(label) + (" *" if label in trained else ""))
    grid[0][0].set_ylim(*_limits(list(curves.values())))
    scale = " (%)" if is_fraction(metric) else " (nats)" if metric == "loss" else ""
    for row in grid:
        row[0].set_ylabel(f"{shortened(metric)}{scale}")
    for axis in lowest(grid, len(labels)):
        axis.set_xlabel(spent)
        axis.xaxis.set_major_formatter(lambda x, _: f"{x / unit:g}")
    _legend(figure, reference if labels != [reference] else None, bool(trained))
    starred = ", ".join(label for label in curves if label in trained)
    return render(
        figure,
        name,
        f"{metric[:1].upper()}{metric[1:]} by sample-forwards",
        f"Line charts of {metric} on the fitness examples by sample-forwards, a panel for each of: "
        + ", ".join(labels),
        _caption(results, len({r["seed"] for r in history}), reference, starred),
    )


def _caption(results: Record, seeds: int, reference: str, starred: str) -> str:
    many = "One seed." if seeds == 1 else f"Thick: mean over {seeds} seeds; thin: each of them."
    sentences = [
        f"{many} On the fitness examples, after an epoch's gradient steps.",
        "Shaded: phases of evolution, where the arm spends without gradients; it selects on "
        "these examples, so a rise there proves nothing: only the test numbers count.",
    ]
    whose = ", the strongest control that did not train on them" if starred else ""
    if starred:
        sentences.append(
            f"* and dotted: its gradients saw these examples ({starred}), so its curve flatters it."
        )
    sentences.append(f"Grey: {reference}{whose}.")
    if results.get("config", {}).get("budget"):
        sentences.append("All arms end at one budget.")
    return " ".join(sentences)


def _metric(results: Record, history: Sequence[Record]) -> str:
    """Return the metric that decides, or accuracy where the history does not have it."""
    metric = contrasts.main_metric(results)
    epochs = (r for r in history if r["kind"] == "epoch")
    known = any(number(r.get("fitness"), metric) is not None for r in epochs)
    return metric if known else "accuracy"


def _reference(results: Record, labels: Sequence[str]) -> str:
    """Return the strongest control among these, or the first where there is none."""
    metric = contrasts.main_metric(results)
    controls = [label for label in contrasts.control_labels(results) if label in labels]
    strongest = contrasts.strongest_control(
        results["runs"], metric, controls, higher=contrasts.higher_is_better(metric)
    )
    return strongest or next(iter(controls), labels[0])


def trained_on_fitness(results: Record, label: str) -> bool:
    """Return whether gradients of an arm, or of one that it starts from, saw fitness examples.

    Example:
        >>> arms = [{"label": "sgd-all"}, {"label": "es", "start_from": "sgd-all"}]
        >>> [trained_on_fitness({"config": {"arms": arms}}, label) for label in ("es", "sgd")]
        [True, False]
    """
    arms = {arm["label"]: arm for arm in results.get("config", {}).get("arms") or []}
    seen: set[str] = set()
    while label not in seen:  # a file may say that an arm starts from itself
        seen.add(label)
        arm = arms.get(label, {})
        method = METHODS.get(arm.get("method", label))
        training = arm.get("training") or {}
        if training.get("all_data", method is not None and method.all_data):
            return True
        label = arm.get("start_from", label)
    return False


def _curves(history: Sequence[Record], label: str, metric: str) -> list[Curve]:
    """Return the curve of each seed, the arm's share of a trunk or start included."""
    factor = 100.0 if is_fraction(metric) else 1.0
    points: dict[int, dict[float, float]] = {}
    for record, spent in of_arm(history, label, "sample_forwards"):
        value = number(record.get("fitness"), metric)
        if record["kind"] == "epoch" and value is not None:
            points.setdefault(record["seed"], {})[spent] = factor * value
    return [(sorted(of), [of[x] for x in sorted(of)]) for of in points.values()]


def _mean(curves: Sequence[Curve]) -> Curve:
    """Return the mean over seeds, as far as all of them go; between their points they are lines."""
    end = min(xs[-1] for xs, _ in curves)
    start = max(xs[0] for xs, _ in curves)
    grid = sorted({x for xs, _ in curves for x in xs if start <= x <= end}) or [end]
    values = np.mean([np.interp(grid, xs, ys) for xs, ys in curves], axis=0)
    return grid, values.tolist()


def _phases(history: Sequence[Record], label: str) -> list[Span]:
    """Return from where to where an arm evolved, in sample-forwards of its first seed."""
    spans: list[Span] = []
    own = [(r["seed"], spent, r["kind"]) for r, spent in of_arm(history, label, "sample_forwards")]
    before, evolving = 0.0, False
    for seed, spent, kind in own:
        if seed != own[0][0]:
            break
        generation = kind == "generation"
        if generation and evolving:
            spans[-1] = (spans[-1][0], spent)
        elif generation:
            spans.append((before, spent))
        before, evolving = spent, generation
    return spans


def _plot_arm(axis: Axes, curves: Sequence[Curve], colour: str, dash: Any) -> None:
    for xs, ys in curves if len(curves) > 1 else ():
        axis.plot(xs, ys, color=colour, linewidth=0.6, alpha=0.35)
    xs, ys = _mean(curves)
    lone = "o" if len(xs) == 1 else ""  # a line of one point would not show
    axis.plot(xs, ys, color=colour, linewidth=1.9, linestyle=dash, marker=lone)


def _limits(of_arms: Sequence[Sequence[Curve]]) -> Span:
    """Return the range of values once training has settled, and a margin."""
    last = max(xs[-1] for curves in of_arms for xs, _ in curves)
    pairs = [pair for curves in of_arms for xs, ys in curves for pair in zip(xs, ys, strict=True)]
    settled = [y for x, y in pairs if x >= SETTLED * last] or [y for _, y in pairs]
    low, high = min(settled), max(settled)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _dash(trained: bool) -> Any:
    return DASHES[2] if trained else DASHES[0]


def _legend(figure: Figure, reference: str | None, trained: bool) -> None:
    keys: list[Any] = [Line2D([], [], color=INK, linewidth=1.9)]
    texts = ["the arm"]
    if reference is not None:
        keys.append(Line2D([], [], color=INK, linewidth=1.2, alpha=0.55))
        texts.append(shortened(reference))
    if trained:
        keys.append(Line2D([], [], color=INK, linewidth=1.5, linestyle=DASHES[2]))
        texts.append("* trained on these examples")
    keys.append(Patch(color=INK, alpha=0.12, linewidth=0))
    texts.append("evolution phase")
    add_legend(figure, keys, texts)
