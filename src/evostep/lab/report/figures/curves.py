"""Figures of the training: accuracy and loss by epoch, for every arm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evostep.lab.report.figures.drawing import (
    DASHES,
    INK,
    Drawing,
    Look,
    add_legend,
    number,
    render,
    shortened,
)
from evostep.lab.report.wording import is_fraction

TRUNK = "shared trunk"
TRUNK_LOOK: Look = {"color": INK, "linestyle": DASHES[2], "linewidth": 1.5, "zorder": 3}
BEFORE = 3  # epochs of the trunk that the enlarged panels show

Curve = dict[float, list[float]]
"""From the number of epochs of gradient descent to a value for each seed."""

Line = tuple[str, Curve]  # of an arm, or TRUNK
Span = tuple[float, float]  # from so many epochs to so many
Record = Mapping[str, Any]


def draw_curves(
    results: Record, history: Sequence[Record], look: Mapping[str, Look], metric: str
) -> Drawing | None:
    """Draw a metric by epoch: the whole run, and below it, enlarged, the part where arms evolve.

    Under one budget arms end after different numbers of epochs, those without evolution by far the
    last; the enlarged panels end where the last arm with evolution does.

    Args:
        results: its configuration tells whether there is a budget.
        history: counts epochs from 0; the figure shows how many are done.
        look: of the arms, in their order.
        metric: "accuracy" or "loss".

    Returns:
        The drawing, or None where no epoch has a value.
    """
    epochs, spans = _epoch_records(history), _evolved_spans(history)
    parts = {part: _lines(epochs, look, part, metric) for part in ("train", "fitness")}
    windows = _windows(history, parts, spans)
    if not windows:
        return None
    figure = Figure(figsize=(9.2, 0.8 + 3.4 * len(windows)))
    grid = figure.subplots(len(windows), 2, sharex="row", squeeze=False)
    handles: dict[str, Artist] = {}
    for axes, window in zip(grid, windows, strict=True):
        for axis, (part, lines) in zip(axes, parts.items(), strict=True):
            # The first panel's lines are the legend's.
            handles = _plot_lines(axis, lines, look, window) | handles
            title = "training examples, while training" if part == "train" else "fitness examples"
            enlarged = f": epochs {window[0]:g} to {window[1]:g}" if window != windows[0] else ""
            axis.set_title(title + enlarged)
            axis.set_ylabel("accuracy (%)" if metric == "accuracy" else "loss (nats)")
            _epoch_axis(axis, window, spans)
    grid[0][1].sharey(grid[0][0])
    grid[0][0].autoscale(axis="y")
    names = [name for name in (TRUNK, *look) if name in handles]
    keys = [handles[name] for name in names]
    texts = [shortened(name) for name in names]
    if spans:
        keys.append(Patch(color=INK, alpha=0.12, linewidth=0))
        texts.append("evolution phase")
    add_legend(figure, keys, texts)
    return render(
        figure,
        metric,
        f"{metric.capitalize()} by epoch",
        f"Line charts of {metric} by epochs of gradient descent, for training and for fitness "
        "examples; arms: " + ", ".join(name for name in names if name != TRUNK),
        _caption(results, len({r["seed"] for r in epochs}), len(windows) > 1, _ends(parts)),
    )


def _caption(results: Record, seeds: int, enlarged: bool, ends: Mapping[str, float]) -> str:
    sentences = [
        "One seed."
        if seeds == 1
        else f"Mean over {seeds} seeds; bands run from the lowest seed to the highest.",
        "Left: running values while training. Right: the model after an epoch's gradient steps and "
        "before its evolution.",
        "Evolution selects on the fitness examples, so a rise there proves nothing; only the test "
        "numbers count.",
        "Shaded: epochs with evolution.",
    ]
    if len(set(ends.values())) > 1:
        sentences.append("A dot is the end of an arm.")
        if results.get("config", {}).get("budget"):
            sentences.append(
                "Budgets are equal in sample-forwards, not in epochs: evolution spends them too, "
                "so arms with it end after fewer epochs."
            )
    if enlarged:
        sentences.append("Below: the part with evolution, enlarged.")
    return " ".join(sentences)


def _lines(
    epochs: Sequence[Record], look: Mapping[str, Look], part: str, metric: str
) -> list[Line]:
    """Return the curve of every arm, and of each trunk that arms share, once."""
    shared = sorted({r["arm"] for r in epochs if len(_sharers(r)) > 1})
    trunks = {
        trunk: _curve([r for r in epochs if r["arm"] == trunk], part, metric) for trunk in shared
    }
    lines = []
    for label in look:
        own = [r for r in epochs if label in _sharers(r)]
        curve = _curve([r for r in own if r["arm"] not in trunks], part, metric)
        for trunk in {r["arm"] for r in own if r["arm"] in trunks}:
            before = [x for x in trunks[trunk] if x < min(curve, default=-math.inf)]
            if before:  # start the branch where the trunk ended, so that the lines meet
                curve[max(before)] = trunks[trunk][max(before)]
        lines.append((label, curve))
    lines += [(TRUNK, curve) for curve in trunks.values()]
    return [(name, curve) for name, curve in lines if curve]


def _ends(parts: Mapping[str, Sequence[Line]]) -> dict[str, float]:
    """Return for each arm the epochs after which it ended."""
    lines = [line for part in parts.values() for line in part]
    return {name: max(curve) for name, curve in lines if name != TRUNK}


def _windows(
    history: Sequence[Record], parts: Mapping[str, Sequence[Line]], spans: Sequence[Span]
) -> list[Span]:
    """Return the whole run and, where it is much shorter, the part in which arms evolve."""
    seen = [x for part in parts.values() for _, curve in part for x in curve]
    if not seen:
        return []
    whole = (min(seen), max(seen))
    evolving = {r["arm"] for r in history if r["kind"] == "generation"}
    ends = [end for name, end in _ends(parts).items() if name in evolving]
    if not spans or not ends:
        return [whole]
    part = (max(whole[0], spans[0][0] - BEFORE), max(ends))
    shorter = part[1] - part[0] < 0.9 * (whole[1] - whole[0])
    return [whole, part] if shorter else [whole]


def _epoch_axis(axis: Axes, window: Span, spans: Sequence[Span]) -> None:
    margin = 0.5 + 0.02 * (window[1] - window[0])
    for low, high in spans:
        if low <= window[1]:
            axis.axvspan(low - 0.5, high + 0.5, color=INK, alpha=0.08, linewidth=0, zorder=0)
    axis.set_xlim(window[0] - margin, window[1] + margin)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axis.set_xlabel("epochs of gradient descent")


def _plot_lines(
    axis: Axes, lines: Sequence[Line], look: Mapping[str, Look], window: Span
) -> dict[str, Artist]:
    """Plot what lies in the window: means with bands, and a dot where an arm ends early or late."""
    faint = 0.13 if len(look) <= 4 else 0.05  # many bands on one another would turn to mud
    uneven = len({max(curve) for name, curve in lines if name != TRUNK}) > 1
    drawn: dict[str, Artist] = {}
    for name, curve in lines:
        style = look.get(name, TRUNK_LOOK)
        x = sorted(x for x in curve if window[0] <= x <= window[1])
        if not x:
            continue
        low, high = [min(curve[e]) for e in x], [max(curve[e]) for e in x]
        axis.fill_between(x, low, high, color=style["color"], alpha=faint, linewidth=0)
        (line,) = axis.plot(x, [fmean(curve[e]) for e in x], **style)
        if len(x) == 1 and name != TRUNK:  # a line of one point would not show
            line.set_marker("o")
        elif uneven and name != TRUNK and x[-1] == max(curve):
            axis.plot(x[-1], fmean(curve[x[-1]]), "o", color=style["color"], markersize=4.5)
        drawn[name] = line
    return drawn


def _curve(records: Sequence[Record], part: str, metric: str) -> Curve:
    factor = 100.0 if is_fraction(metric) else 1.0
    curve: Curve = {}
    for record in records:
        value = number(record.get(part), metric)
        if value is not None:
            curve.setdefault(record["epoch"] + 1, []).append(factor * value)
    return curve


def _epoch_records(history: Sequence[Record]) -> list[Record]:
    records = (r for r in history if r["kind"] == "epoch")
    return list({(r["arm"], r["seed"], r["epoch"]): r for r in records}.values())


def _sharers(record: Record) -> Sequence[str]:
    return record.get("arms") or [record["arm"]]


def _evolved_spans(history: Sequence[Record]) -> list[Span]:
    """Return runs of neighbouring epochs in which any arm evolved, counted by how many are done."""
    spans: list[Span] = []
    for epoch in sorted({r["epoch"] + 1 for r in history if r["kind"] == "generation"}):
        if spans and epoch - spans[-1][1] <= 1:
            spans[-1] = (spans[-1][0], epoch)
        else:
            spans.append((epoch, epoch))
    return spans
