"""Curves by epoch and by generation, read back from the drawing."""

from __future__ import annotations

import re
from typing import Any

import matplotlib.style
import pytest

from evostep.lab.report.figures import FIGURES
from evostep.lab.report.figures.drawing import STYLE, Drawing, looks

LABELS = ("sgd", "mutation")

pytestmark = pytest.mark.usefixtures("without_pixels")


def draw(name: str, ends: dict[str, int], start: int, budget: int | None = 9000) -> Drawing:
    """Draw one figure of arms that branch at epoch `start` and end after so many epochs."""
    history: list[dict[str, Any]] = []

    def epoch(arm: str, number: int, **more: Any) -> None:
        value = {"accuracy": 0.1 + 0.001 * number, "loss": 2.0 - 0.01 * number}
        where = {"kind": "epoch", "arm": arm, "seed": 0, "epoch": number}
        history.append({**where, "train": value, "fitness": value, **more})

    for number in range(start):
        epoch("trunk:a", number, arms=list(ends))
    for arm, end in ends.items():
        for number in range(start, end):
            epoch(arm, number)
            if arm == "mutation":
                history.append({"kind": "generation", "arm": arm, "seed": 0, "epoch": number,
                                "generation": number - start, "scores": [0.5, 0.625],
                                "parent": 0.5, "candidate": 0.75, "accepted": True})  # fmt: skip
    arms = [{"label": arm, "method": arm} for arm in ends]
    results = {"config": {"arms": arms, "budget": budget}, "runs": []}
    with matplotlib.style.context(["default", STYLE]):
        drawing = FIGURES[name](results, history, looks(results))
    assert drawing is not None
    return drawing


def texts(drawing: Any) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def test_arms_that_end_early_are_enlarged_and_the_budget_explains_why() -> None:
    drawing = draw("accuracy", {"sgd": 143, "mutation": 9}, start=5)
    written = texts(drawing)
    assert "fitness examples" in written
    assert (
        "fitness examples: epochs 3 to 9" in written
    )  # the trunk's end, and no epoch of sgd alone
    assert written.count("epochs of gradient descent") == 4
    assert "A dot is the end of an arm. Budgets are equal in sample-forwards" in drawing.caption
    without = draw("accuracy", {"sgd": 143, "mutation": 9}, start=5, budget=None)
    assert "A dot is the end of an arm." in without.caption
    assert "Budgets" not in without.caption


def test_arms_of_one_length_get_no_dots_and_a_long_trunk_is_cut_off() -> None:
    drawing = draw("loss", {"sgd": 30, "mutation": 30}, start=20)
    assert "fitness examples: epochs 18 to 30" in texts(drawing)
    assert "dot" not in drawing.caption


def test_nothing_is_enlarged_where_evolution_is_all_there_is() -> None:
    for ends in ({"sgd": 6, "mutation": 6}, {"mutation": 1}):
        written = texts(draw("accuracy", ends, start=0))
        assert written.count("epochs of gradient descent") == 2
        assert not any(": epochs" in text for text in written)


def test_epochs_count_from_one_as_the_progress_does() -> None:
    written = texts(draw("accuracy", {"sgd": 4}, start=1))
    assert {"1", "2", "3", "4"} <= set(written)
    assert not {"0", "5"} & set(written)


def test_scores_are_percent_where_the_metric_is() -> None:
    drawing = draw("evolution", {"mutation": 3}, start=1)
    assert "accuracy (%)" in texts(drawing)
    assert "mutation 2 of 2" in drawing.caption


def test_the_legend_stays_within_the_figure() -> None:
    long = {f"an arm with a long name {i}": 9 for i in range(7)}
    svg = draw("accuracy", long, start=5).svg
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    starts = re.findall(r"<text[^>]*(?:x=\"|translate\()([\d.]+)[^>]*>(an arm[^<]*)<", svg)
    assert len(starts) >= 7
    for left, text in starts:
        assert float(left) + 5.5 * len(text) < width, text
