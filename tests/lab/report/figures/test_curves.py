"""Curves by sample-forwards and by generation, read back from the drawing."""

from __future__ import annotations

import re
from typing import Any

import matplotlib.style
import pytest

from evostep.lab.report.figures import FIGURES
from evostep.lab.report.figures.curves import trained_on_fitness
from evostep.lab.report.figures.drawing import STYLE, Drawing, looks
from evostep.lab.report.figures.scores import best_by_luck
from evostep.lab.report.figures.spending import spent_by_evolution

pytestmark = pytest.mark.usefixtures("without_pixels")


def records(
    ends: dict[str, int], start: int, budget: int | None = 9000, metric: str = "accuracy"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Invent arms that branch at epoch `start` and end after so many epochs.

    An epoch costs 100 sample-forwards, a generation of "mutation" 50; two follow each epoch.
    """
    history: list[dict[str, Any]] = []

    def epoch(arm: str, number: int, spent: int, **more: Any) -> None:
        value = {"accuracy": 0.1 + 0.001 * number, "loss": 2.0 - 0.01 * number, metric: 0.3}
        where = {"kind": "epoch", "arm": arm, "seed": 0, "epoch": number}
        history.append({**where, "fitness": value, "sample_forwards": spent, **more})

    for number in range(start):
        epoch("trunk:a", number, 100 * (number + 1), arms=list(ends))
    for arm, end in ends.items():
        spent = 100 * start
        for number in range(start, end):
            spent += 100
            epoch(arm, number, spent)
            for generation in range(2 if arm == "mutation" else 0):
                spent += 50
                history.append({"kind": "generation", "arm": arm, "seed": 0, "epoch": number,
                                "generation": 2 * (number - start) + generation,
                                "scores": [0.5, 0.625], "parent": 0.5, "candidate": 0.75,
                                "accepted": True, "sample_forwards": spent})  # fmt: skip
    arms = [{"label": arm, "method": arm} for arm in ends]
    runs = [
        {"arm": arm, "seed": 0, "test": {"accuracy": 0.5, metric: 0.3}, "sample_forwards": 1000}
        for arm in ends
    ]
    return {"config": {"arms": arms, "budget": budget, "metric": metric}, "runs": runs}, history


def draw(name: str, results: dict[str, Any], history: list[dict[str, Any]]) -> Drawing:
    with matplotlib.style.context(["default", STYLE]):
        drawing = FIGURES[name](results, history, looks(results))
    assert drawing is not None
    return drawing


def texts(drawing: Drawing) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", drawing.svg)


def test_a_panel_for_each_arm_beside_the_strongest_control() -> None:
    written = texts(draw("curves", *records({"sgd": 12, "mutation": 9}, start=5)))
    assert "mutation" in written
    assert "accuracy (%)" in written
    assert "sample-forwards (thousands)" in written
    assert "1.2" in written  # thousands: what the arms end with, and no epoch
    assert "9" not in written
    assert "evolution phase" in written


def test_the_metric_that_decides_is_drawn_or_accuracy_where_it_was_not_recorded() -> None:
    results, history = records({"sgd": 8, "mutation": 7}, start=5, metric="macro-f1")
    assert draw("curves", results, history).title == "Macro-f1 by sample-forwards"
    for record in history:
        record.get("fitness", {}).pop("macro-f1", None)
    assert draw("curves", results, history).title == "Accuracy by sample-forwards"
    assert draw("loss", results, history).title == "Loss by sample-forwards"


def test_an_arm_that_trained_on_the_fitness_examples_is_marked_and_no_yardstick() -> None:
    results, history = records({"sgd": 8, "sgd-all": 8, "mutation": 7}, start=5)
    results["runs"][1]["test"]["accuracy"] = 0.9
    drawing = draw("curves", results, history)
    assert "sgd-all *" in texts(drawing)
    assert "its gradients saw these examples (sgd-all)" in drawing.caption
    assert "Grey: sgd, the strongest control that did not train on them." in drawing.caption
    del history[:]
    results, history = records({"sgd": 8, "mutation": 7}, start=5)
    assert "*" not in draw("curves", results, history).caption


def test_an_arm_that_starts_where_one_ended_that_saw_them_has_seen_them() -> None:
    arms = [
        {"label": "all", "method": "sgd", "training": {"all_data": True}},
        {"label": "es", "method": "snes-head", "start_from": "all", "training": {}},
        {"label": "next", "method": "snes-head", "start_from": "es"},
        {"label": "round", "method": "sgd", "start_from": "round"},
    ]
    found = [trained_on_fitness({"config": {"arms": arms}}, arm["label"]) for arm in arms]
    assert found == [True, True, True, False]


def test_phases_are_shaded_where_their_forwards_are_spent() -> None:
    results, history = records({"sgd": 8, "mutation": 7}, start=5)
    whole = draw("curves", results, history).svg
    assert whole.count("fill-opacity: 0.12") + whole.count("opacity: 0.12") >= 3  # 2 and the key
    history = [r for r in history if r["kind"] == "epoch"]
    alone = draw("curves", results, history).svg
    assert whole.count("opacity: 0.12") - alone.count("opacity: 0.12") == 2


def test_what_evolution_took_is_between_its_records_in_any_order() -> None:
    _, history = records({"sgd": 12, "mutation": 9}, start=5)
    for order in (history, history[::-1]):
        assert spent_by_evolution(order, "mutation", "sample_forwards") == 4 * 2 * 50
        assert spent_by_evolution(order, "sgd", "sample_forwards") == 0


def test_the_best_by_luck_is_parent_and_spread_alone() -> None:
    shifted = [best_by_luck({"parent": 0.5, "scores": [x, x + 0.1]}) for x in (0.1, 0.8)]
    assert shifted[0] == pytest.approx(shifted[1])
    assert shifted[0] == pytest.approx(0.5 + 0.1 / 2**0.5 * 0.5642, abs=1e-4)
    assert best_by_luck({"parent": 0.5, "scores": [0.4, None]}) is None
    assert best_by_luck({"parent": None, "scores": [0.4, 0.5]}) is None


def test_scores_are_percent_where_the_metric_is() -> None:
    drawing = draw("evolution", *records({"mutation": 3}, start=1))
    assert "accuracy (%)" in texts(drawing)
    assert "best by luck" in texts(drawing)
    assert "mutation 4 of 4" in drawing.caption


def test_the_legend_stays_within_the_figure() -> None:
    long = {"a control with quite a long name": 9, "another arm": 9}
    svg = draw("curves", *records(long, start=5)).svg
    width = float(re.search(r'viewBox="0 0 ([\d.]+)', svg)[1])
    starts = re.findall(r"<text[^>]*(?:x=\"|translate\()([\d.]+)[^>]*>([^<]*)<", svg)
    assert starts
    for left, text in starts:
        assert float(left) + 5.5 * len(text) < width + 40, text
