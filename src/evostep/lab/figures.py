"""Figures of a comparison, as SVG and PNG: curves, gaps, contrasts and evolution.

Drawn with matplotlib on bare `Figure` objects (no pyplot, no display, no global state). The same
records give the same bytes. Colours are Okabe and Ito's, safe for colour-blind readers
(https://jfly.uni-koeln.de/color/); plain SGD has the colour of the text.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeGuard

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from evostep.lab import statistics

__all__ = ["FRACTIONS", "Drawing", "draw_figures"]

FRACTIONS = ("accuracy", "balanced-accuracy", "macro-f1")
"""Metrics in [0, 1], shown as percent; their differences in (percentage) points."""

INK, GRID = "#1b1b1a", "#d9d9d8"  # sentinels: the page replaces them by its own colours
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CONTROL_COLOURS = (INK, "#8a8a8a")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.5)), (0, (5, 1.5, 1.5, 1.5)))
STYLE = {
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "font.size": 10,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: it can be searched, selected and read aloud
    "svg.hashsalt": "evostep",
    "text.color": INK,
    "text.parse_math": False,  # labels come from users: a `$` in one is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
}
SHOWN_SEEDS = 3
LABEL_WIDTH = 26

Curve = dict[float, list[float]]  # epoch -> one value per seed


@dataclass(frozen=True)
class Drawing:
    """One figure: `name` of its files, title, text for who cannot see it, caption, and bytes.

    `inline` is the SVG element for a page: the page's colours through `currentColor` and
    `var(--grid)`, ids unique to the figure, title and description for screen readers.
    """

    name: str
    title: str
    alt: str
    caption: str
    svg: str
    png: bytes
    inline: str


def draw_figures(results: Mapping[str, Any], history: Sequence[Mapping[str, Any]]) -> list[Drawing]:
    """All figures that the records allow, in the order of the report.

    Args:
        results: as written by `evostep compare`, with "contrasts" filled by `statistics.finish`.
        history: the records of `history.jsonl`, in any order; later ones of the same epoch (a
            resumed run) replace earlier ones.

    Returns:
        Drawings named accuracy, loss, gap, contrasts and evolution; one without data is left out.
    """
    look = _looks(results)
    drawings: list[Drawing | None] = []
    with matplotlib.style.context(["default", STYLE]):
        for metric in ("accuracy", "loss"):
            drawings.append(_draw_curves(history, look, metric))
        drawings.append(_draw_gap(results, look))
        drawings.append(_draw_contrasts(results, look))
        drawings.append(_draw_evolution(history, look))
    return [drawing for drawing in drawings if drawing is not None]


def _draw_curves(
    history: Sequence[Mapping[str, Any]], look: Mapping[str, dict[str, Any]], metric: str
) -> Drawing | None:
    """The whole run, and below it, on its own scale, the part where the arms differ."""
    epochs, spans = _epoch_records(history), _evolved_spans(history)
    first = min((r["epoch"] for r in epochs), default=0)
    since = [first]
    if spans and spans[0][0] - 1 > first:
        since.append(spans[0][0] - 1)
    figure = Figure(figsize=(9.2, 0.8 + 3.4 * len(since)))
    grid = figure.subplots(len(since), 2, sharex="row", squeeze=False)
    drawn: dict[str, Line2D] = {}
    for axes, start in zip(grid, since, strict=True):
        for axis, part in zip(axes, ("train", "fitness"), strict=True):
            # The first panel's lines are the legend's.
            drawn = _plot_part(axis, epochs, look, part, metric, start) | drawn
            for low, high in spans:
                axis.axvspan(low - 0.5, high + 0.5, color=INK, alpha=0.08, linewidth=0, zorder=0)
            title = "training examples, while training" if part == "train" else "fitness examples"
            axis.set_title(title if start == first else f"{title}: from epoch {start:g}")
            axis.set_ylabel("accuracy (%)" if metric == "accuracy" else "loss (nats)")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_xlabel("epoch")
    if not drawn:
        return None
    grid[0][1].sharey(grid[0][0])
    grid[0][0].autoscale(axis="y")
    names = [name for name in ("shared trunk", *look) if name in drawn]
    handles: list[Line2D | Patch] = [drawn[name] for name in names]
    handles += [Patch(color=INK, alpha=0.12, linewidth=0)] if spans else []
    texts = [*map(_short, names), "evolution phase"][: len(handles)]
    figure.legend(handles, texts, loc="outside lower center", ncols=4)
    seeds = len({r["seed"] for r in epochs})
    return _finish(
        figure,
        metric,
        f"{metric.capitalize()} by epoch",
        f"Line charts of {metric} by epoch, for training and for fitness examples; arms: "
        + ", ".join(name for name in names if name != "shared trunk"),
        f"Mean over {_count(seeds, 'seed')}"
        + ("" if seeds == 1 else "; bands run from the lowest seed to the highest")
        + ". Left: running values while training. Right: the model after an epoch's gradient steps "
        "and before its evolution. Evolution selects on the fitness examples, so a rise there "
        "proves nothing; only the test numbers count. Shaded: epochs with evolution."
        + (" Below: the same, enlarged." if len(since) > 1 else ""),
    )


def _plot_part(
    axis: Axes,
    epochs: Sequence[Mapping[str, Any]],
    look: Mapping[str, dict[str, Any]],
    part: str,
    metric: str,
    start: float,
) -> dict[str, Line2D]:
    """One panel, from epoch `start`: every arm, and each trunk that arms share, once."""
    factor = 100.0 if metric == "accuracy" else 1.0
    shared = sorted({r["arm"] for r in epochs if len(_sharers(r)) > 1})
    trunks = {
        trunk: _curve([r for r in epochs if r["arm"] == trunk], part, metric, factor)
        for trunk in shared
    }
    faint = 0.13 if len(look) <= 4 else 0.05  # many bands on one another would turn to mud
    drawn: dict[str, Line2D] = {}
    for label in look:
        own = [r for r in epochs if label in _sharers(r) and r["arm"] not in trunks]
        curve = _curve(own, part, metric, factor)
        for trunk in {r["arm"] for r in epochs if r["arm"] in trunks and label in _sharers(r)}:
            before = [epoch for epoch in trunks[trunk] if epoch < min(curve, default=-math.inf)]
            if before:  # start the branch where the trunk ended, so that the lines meet
                curve[max(before)] = trunks[trunk][max(before)]
        if line := _plot_band(axis, _since(curve, start), look[label], faint):
            drawn[label] = line
    style = {"color": INK, "linestyle": DASHES[2], "linewidth": 1.5, "zorder": 3}
    for curve in trunks.values():
        if line := _plot_band(axis, _since(curve, start), style, faint):
            drawn["shared trunk"] = line
    return drawn


def _since(curve: Curve, start: float) -> Curve:
    return {epoch: values for epoch, values in curve.items() if epoch >= start}


def _draw_gap(results: Mapping[str, Any], look: Mapping[str, dict[str, Any]]) -> Drawing | None:
    gaps: dict[str, list[float]] = {}
    for run in results["runs"]:
        train, test = (_number(run.get(part), "accuracy") for part in ("train", "test"))
        if train is not None and test is not None:
            gaps.setdefault(run["arm"], []).append(100 * (train - test))
    labels = [label for label in look if label in gaps]
    if not labels:
        return None
    figure = Figure(figsize=(7.4, 1.1 + 0.36 * len(labels)))
    axis = figure.subplots()
    for row, label in enumerate(labels):
        colour = look[label]["color"]
        axis.scatter(gaps[label], [row] * len(gaps[label]), s=26, color=colour, alpha=0.45, lw=0)
        axis.scatter(fmean(gaps[label]), row, s=260, marker="|", color=colour, linewidth=2.4)
    _rows(axis, labels)
    axis.set_xlabel("train accuracy − test accuracy (points)")
    return _finish(
        figure,
        "gap",
        "Train-test gap",
        "Dot plot of train minus test accuracy; means: "
        + ", ".join(f"{label} {fmean(gaps[label]):.2f} points" for label in labels),
        "A dot per seed, a bar at the mean. A smaller gap is less overfitting, "
        "but a better model only where test accuracy is higher too.",
    )


def _draw_contrasts(
    results: Mapping[str, Any], look: Mapping[str, dict[str, Any]]
) -> Drawing | None:
    metric = statistics.main_metric(results)
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
        axis.set_title(f"against {_short(control)}")
        axis.set_xlabel(f"difference in test {metric} ({unit})")
    _rows(axes[0], labels)
    side = "right" if statistics.higher_is_better(metric) else "left"
    described = "; ".join(
        f"{row['arm']} against {row['control']} {factor * row['mean']:+.2f}" for row in rows
    )
    return _finish(
        figure,
        "contrasts",
        "Paired contrasts",
        f"Differences in test {metric}, {unit}: {described}",
        f"Mean difference over paired seeds with its 95% interval; {side} of the line the arm is "
        "better. An interval that crosses the line shows no difference. A hollow dot has no "
        "interval (one seed, or the same difference on every seed).",
    )


def _draw_evolution(
    history: Sequence[Mapping[str, Any]],
    look: Mapping[str, dict[str, Any]],
) -> Drawing | None:
    records = _generation_records(history)
    labels = [label for label in look if any(r["arm"] == label for r in records)]
    seeds = sorted({r["seed"] for r in records})
    if not labels:
        return None
    shown = seeds[:SHOWN_SEEDS]
    figure = Figure(figsize=(max(5.6, 3.1 * len(shown)), 0.9 + 2.0 * len(labels)))
    grid = figure.subplots(len(labels), len(shown), sharex="row", sharey="row", squeeze=False)
    for row, label in enumerate(labels):
        for column, seed in enumerate(shown):
            own = [r for r in records if r["arm"] == label and r["seed"] == seed]
            _plot_generations(grid[row][column], own, look[label]["color"])
            grid[row][column].set_title(f"{_short(label)}, seed {seed}")
        grid[row][0].set_ylabel("score on fitness\nexamples (selection)", fontsize=9)
    for axis in grid[-1]:
        axis.set_xlabel("generation")
    key = [
        Line2D([], [], color=INK, linewidth=1.2),
        Line2D([], [], color=INK, marker="x", markersize=4, linestyle=""),
        Line2D([], [], color=INK, marker="o", markersize=6, linestyle=""),
        Line2D([], [], color=INK, marker="o", markersize=6, linestyle="", fillstyle="none"),
    ]
    names = ["parent", "best member", "candidate, accepted", "candidate, rejected"]
    figure.legend(key, names, loc="outside lower center", ncols=2 if len(shown) == 1 else 4)
    accepted = ", ".join(
        f"{label} {sum(bool(r.get('accepted')) for r in records if r['arm'] == label)} of "
        f"{sum(r['arm'] == label for r in records)}"
        for label in labels
    )
    left_out = f" Seeds shown: {len(shown)} of {len(seeds)}." if len(shown) < len(seeds) else ""
    return _finish(
        figure,
        "evolution",
        "Evolution, generation by generation",
        f"Scores of parent, best member and candidate by generation; accepted: {accepted}",
        "Scores on the examples that evolution selects on, higher is better; gradient steps lie "
        f"between phases. Accepted generations over all seeds: {accepted}.{left_out}",
    )


def _plot_generations(axis: Axes, records: Sequence[Mapping[str, Any]], colour: str) -> None:
    parents = [_number(r, "parent") for r in records]
    best = [max(filter(_finite, r.get("scores") or []), default=math.nan) for r in records]
    x = range(1, len(records) + 1)
    axis.plot(x, [math.nan if y is None else y for y in parents], color=INK, linewidth=1.2)
    axis.plot(x, best, color=colour, marker="x", markersize=4, linestyle="")
    for position, record in zip(x, records, strict=True):
        candidate = _number(record, "candidate")
        if candidate is not None:
            fill = "full" if record.get("accepted") else "none"
            axis.plot(position, candidate, color=colour, marker="o", markersize=6, fillstyle=fill)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _plot_band(axis: Axes, curve: Curve, style: Mapping[str, Any], faint: float) -> Line2D | None:
    if not curve:
        return None
    x = sorted(curve)
    low, high = [min(curve[e]) for e in x], [max(curve[e]) for e in x]
    axis.fill_between(x, low, high, color=style["color"], alpha=faint, linewidth=0)
    (line,) = axis.plot(x, [fmean(curve[e]) for e in x], **style)
    if len(x) == 1:  # a line of one point would not show
        line.set_marker("o")
    return line


def _curve(records: Sequence[Mapping[str, Any]], part: str, metric: str, factor: float) -> Curve:
    curve: Curve = {}
    for record in records:
        value = _number(record.get(part), metric)
        if value is not None:
            curve.setdefault(record["epoch"], []).append(factor * value)
    return curve


def _epoch_records(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({(r["arm"], r["seed"], r["epoch"]): r for r in _of_kind(history, "epoch")}.values())


def _generation_records(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    keyed = {
        (r["arm"], r["seed"], r["epoch"], r.get("generation", 0)): r
        for r in _of_kind(history, "generation")
    }
    return [keyed[key] for key in sorted(keyed)]


def _of_kind(history: Sequence[Mapping[str, Any]], kind: str) -> Iterator[Mapping[str, Any]]:
    return (r for r in history if r["kind"] == kind)


def _sharers(record: Mapping[str, Any]) -> Sequence[str]:
    return record.get("arms") or [record["arm"]]


def _evolved_spans(history: Sequence[Mapping[str, Any]]) -> list[tuple[float, float]]:
    """Runs of neighbouring epochs in which any arm evolved."""
    spans: list[tuple[float, float]] = []
    for epoch in sorted({r["epoch"] for r in _of_kind(history, "generation")}):
        if spans and epoch - spans[-1][1] <= 1:
            spans[-1] = (spans[-1][0], epoch)
        else:
            spans.append((epoch, epoch))
    return spans


def _looks(results: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{label: line style}, in the order of the arms; dashes tell arms of one colour apart."""
    controls = statistics.control_labels(results)
    others = [label for label in statistics.arm_labels(results) if label not in controls]
    styles = {}
    for group, colours in ((controls, CONTROL_COLOURS), (others, PALETTE)):
        for i, label in enumerate(group):
            dash = DASHES[(i // len(colours)) % len(DASHES)]
            colour = colours[i % len(colours)]
            styles[label] = {"color": colour, "linestyle": dash, "linewidth": 1.9}
    return {label: styles[label] for label in statistics.arm_labels(results)}


def _rows(axis: Axes, labels: Sequence[str]) -> None:
    axis.set_yticks(range(len(labels)), [_short(label) for label in labels])
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")


def _finish(figure: Figure, name: str, title: str, alt: str, caption: str) -> Drawing:
    svg, png = io.StringIO(), io.BytesIO()
    # No date and no version: the same records give the same file.
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    figure.savefig(png, format="png", metadata={"Software": None, "Title": title})
    text = svg.getvalue()
    return Drawing(name, title, alt, caption, text, png.getvalue(), _inline(text, name, title, alt))


def _inline(svg: str, name: str, title: str, alt: str) -> str:
    """The svg element alone, made to take the page's colours and to share it with others."""
    body = re.sub(r"<metadata>.*?</metadata>\s*|<title>.*?</title>\s*", "", svg, flags=re.DOTALL)
    body = body[body.index("<svg") :].strip()
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"(?<=fill: )#ffffff(?=\"| ?;)", "none", body)
    body = body.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    # Wide as drawn, narrower on a narrow page; the view box keeps the proportions.
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) width="([^"]*)"', r'\1 style="width: \2"', body, count=1)
    labelled = f'role="img" aria-labelledby="{name}-title {name}-desc" '
    texts = (
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(alt)}</desc>'
    )
    body = body.replace("<svg ", f"<svg {labelled}", 1)
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + texts, body, count=1)


def _number(record: object, key: str) -> float | None:
    value = record.get(key) if isinstance(record, Mapping) else None
    return float(value) if _finite(value) else None


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _short(label: str) -> str:
    return label if len(label) <= LABEL_WIDTH else label[: LABEL_WIDTH - 1] + "…"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
