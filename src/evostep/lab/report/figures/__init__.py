"""Figures of a comparison: one figure, one file, and a row in the table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import matplotlib.style

from evostep.lab.report.figures.curves import draw_curves
from evostep.lab.report.figures.drawing import STYLE, Drawing, Look, looks
from evostep.lab.report.figures.gap import draw_gap
from evostep.lab.report.figures.intervals import draw_forest, draw_intervals
from evostep.lab.report.figures.scores import draw_scores
from evostep.lab.report.figures.spending import draw_spending

__all__ = ["FIGURES", "Drawing", "draw_figures"]

Record = Mapping[str, Any]
Draw = Callable[[Record, Sequence[Record], Mapping[str, Look]], Drawing | None]

FIGURES: dict[str, Draw] = {
    "forest": draw_forest,
    "curves": draw_curves,
    "contrasts": draw_intervals,
    "loss": partial(draw_curves, name="loss"),
    "gap": draw_gap,
    "spending": draw_spending,
    "evolution": draw_scores,
}
OUTDATED = ("accuracy",)  # what earlier versions drew, and reports remove
"""Name of the files -> what draws the figure from results, history and how each arm looks."""


def draw_figures(results: Record, history: Sequence[Record]) -> list[Drawing]:
    """Draw all figures that the records allow, in the order of the report.

    Args:
        results: as written by `evostep compare`, with "contrasts" from
            `contrasts.with_statistics`.
        history: the records of `history.jsonl`, in any order; later ones of the same epoch (a
            resumed run) replace earlier ones.

    Returns:
        Drawings named as in `FIGURES`; one without data is left out.
    """
    look = looks(results)
    with matplotlib.style.context(["default", STYLE]):
        drawings = [draw(results, history, look) for draw in FIGURES.values()]
    return [drawing for drawing in drawings if drawing is not None]
