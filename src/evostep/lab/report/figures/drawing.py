"""How figures look, and how one becomes SVG, PNG and a part of the page.

Drawn with matplotlib on bare `Figure` objects (no pyplot, no display, no global state). The same
records give the same bytes. Colours are Okabe and Ito's, safe for colour-blind readers
(https://jfly.uni-koeln.de/color/), then others as light as they; plain SGD has the colour of the
text, and other controls are grey or brown.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evostep.errors import printable
from evostep.lab.report import contrasts
from evostep.lab.report.statistics import is_finite

INK, GRID = "#1b1b1a", "#d9d9d8"  # sentinels: the page replaces them by its own colours
PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#9A6AC6", "#8C8A2E", "#D2526B", "#3FA7A0", "#B0703A", "#6F7FD6", "#7FA650", "#C25BB8"),
)
CONTROL_COLOURS = (INK, "#8a8a8a", "#7d6a55", "#5f7c8a", "#a38f6f")
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
LABEL_WIDTH = 26

Look = Mapping[str, Any]
"""How the lines of an arm look: arguments of `Axes.plot`."""


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


def looks(results: Mapping[str, Any]) -> dict[str, Look]:
    """Return how each arm looks, in their order; dashes tell arms of one colour apart."""
    controls = contrasts.control_labels(results)
    others = [label for label in contrasts.arm_labels(results) if label not in controls]
    styles: dict[str, Look] = {}
    for group, colours in ((controls, CONTROL_COLOURS), (others, PALETTE)):
        for i, label in enumerate(group):
            dash = DASHES[(i // len(colours)) % len(DASHES)]
            colour = colours[i % len(colours)]
            styles[label] = {"color": colour, "linestyle": dash, "linewidth": 1.9}
    return {label: styles[label] for label in contrasts.arm_labels(results)}


def page_colours(results: Mapping[str, Any]) -> dict[str, str]:
    """Return the colour of each arm, as in all figures, for a page."""
    return {
        label: str(look["color"]).replace(INK, "currentColor")
        for label, look in looks(results).items()
    }


def label_rows(axis: Axes, labels: Sequence[str]) -> None:
    """Label a row for each arm, the first on top."""
    axis.set_yticks(range(len(labels)), [shortened(label) for label in labels])
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.grid(visible=False, axis="y")


def lowest(grid: Any, panels: int) -> list[Axes]:
    """Return the last panel of each column, which are to be labelled below, and hide empty ones.

    Args:
        grid: of axes, filled row by row.
        panels: how many of them are used.
    """
    columns = grid.shape[1]
    for axis in grid.flat[panels:]:
        axis.set_axis_off()
    found = []
    for column in range(min(columns, panels)):
        found.append(grid[(panels - 1 - column) // columns][column])
        found[-1].tick_params(labelbottom=True)
    return found


def in_units(most: float) -> tuple[float, str]:
    """Return the unit for sample-forwards up to so many, and what an axis says.

    >>> in_units(120_000), in_units(2_000_000)
    ((1000.0, 'sample-forwards (thousands)'), (1000000.0, 'sample-forwards (millions)'))
    """
    name, unit = ("millions", 1e6) if most >= 1e6 else ("thousands", 1e3)
    return unit, f"sample-forwards ({name})"


def add_legend(figure: Figure, handles: Sequence[Artist], labels: Sequence[str]) -> None:
    """Put a legend below the panels, in as many columns as the figure is wide enough for."""
    widest = 0.65 + 0.085 * max(map(len, labels))  # inches: the handle, and a letter of 10 points
    most = max(1, int(figure.get_figwidth() / widest))
    rows = math.ceil(len(labels) / most)
    columns = math.ceil(len(labels) / rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def render(figure: Figure, name: str, title: str, alt: str, caption: str) -> Drawing:
    """Turn a figure into bytes; the other arguments are attributes of `Drawing`."""
    title, alt, caption = map(printable, (title, alt, caption))
    svg, png = io.StringIO(), io.BytesIO()
    # No date and no version: the same records give the same file.
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    figure.savefig(png, format="png", metadata={"Software": None, "Title": title})
    text = svg.getvalue()
    return Drawing(name, title, alt, caption, text, png.getvalue(), _inline(text, name, title, alt))


def _inline(svg: str, name: str, title: str, alt: str) -> str:
    """Return the svg element alone, made to take the page's colours and to share it with others."""
    body = re.sub(r"<metadata>.*?</metadata>\s*|<title>.*?</title>\s*", "", svg, flags=re.DOTALL)
    body = body[body.index("<svg") :].strip()
    body = re.sub(r'(\sid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"(?<=fill: )#ffffff(?=\"| ?;)", "none", body)
    body = body.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    # The page decides how far to shrink it; the view box keeps the proportions.
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) width="([^"]*)"', r'\1 style="--drawn: \2"', body, count=1)
    labelled = f'role="img" aria-labelledby="{name}-title {name}-desc" '
    texts = (
        f'<title id="{name}-title">{html.escape(title)}</title>'
        f'<desc id="{name}-desc">{html.escape(alt)}</desc>'
    )
    body = body.replace("<svg ", f"<svg {labelled}", 1)
    return re.sub(r"(<svg[^>]*>)", lambda match: match[1] + texts, body, count=1)


def number(record: object, key: str) -> float | None:
    """Return a number of a record; None where it is missing or not finite."""
    value = record.get(key) if isinstance(record, Mapping) else None
    return float(value) if is_finite(value) else None


def of_arm(
    history: Sequence[Mapping[str, Any]], label: str, key: str
) -> list[tuple[Mapping[str, Any], float]]:
    """Return the records of an arm and what it had spent by each, seed by seed, in that order.

    Those of a trunk or start that it shares are among them: they name the arms.

    Args:
        history: in any order.
        label: of an arm.
        key: `"sample_forwards"` or `"seconds"`, which count up; records without are left out.
    """
    own = (r for r in history if label in (r.get("arms") or [r["arm"]]))
    found = [(r, x) for r in own if (x := number(r, key)) is not None]
    return sorted(found, key=lambda pair: (pair[0]["seed"], pair[1]))


def shortened(label: str) -> str:
    """Return a label without signs that no font has, cut where it would push panels aside."""
    label = printable(label)
    return label if len(label) <= LABEL_WIDTH else label[: LABEL_WIDTH - 1] + "…"
