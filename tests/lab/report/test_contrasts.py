"""Tables over seeds: arms, controls, contrasts."""

from __future__ import annotations

import copy
import json
import math

import pytest

from evostep.lab.arms.methods import METHODS
from evostep.lab.report.contrasts import (
    arm_table,
    contrast_table,
    control_labels,
    main_metric,
    strongest_control,
    with_statistics,
)
from evostep.lab.report.wording import contrast_cell, contrast_text


def run(arm: str, seed: int, accuracy: float | None, **more: float) -> dict:
    return {"arm": arm, "seed": seed, "test": {"accuracy": accuracy, **more}}


def test_arms_are_paired_by_seed_on_the_seeds_that_both_have() -> None:
    runs = [run("sgd", s, 0.5 + s / 10) for s in (0, 1, 2)]
    runs += [run("es", s, 0.5 + s / 10 + d) for s, d in ((2, 0.03), (1, 0.01), (7, 0.3))]
    (row,) = contrast_table(runs, "accuracy", ["sgd", "sgd-all"])
    assert (row["arm"], row["control"], row["n"]) == ("es", "sgd", 2)
    assert row["mean"] == pytest.approx(0.02)


def test_controls_are_compared_once_and_with_every_arm() -> None:
    runs = [
        run(a, s, 0.1 * s + x) for a, x in (("sgd", 0), ("all", 0.1), ("es", 0.2)) for s in (0, 1)
    ]
    rows = contrast_table(runs, "accuracy", ["sgd", "all"])
    assert [(r["arm"], r["control"]) for r in rows] == [
        ("all", "sgd"),
        ("es", "sgd"),
        ("es", "all"),
    ]


def test_a_diverged_run_is_left_out_of_numbers_and_counted() -> None:
    runs = [run("sgd", 0, 0.5), run("sgd", 1, 0.6), run("es", 0, 0.9), run("es", 1, math.nan)]
    rows = {row["arm"]: row for row in arm_table(runs, "accuracy")}
    assert (rows["es"]["mean"], rows["es"]["n"], rows["es"]["not_finite"]) == (0.9, 1, 1)
    assert "not_finite" not in rows["sgd"]
    (contrast,) = contrast_table(runs, "accuracy", ["sgd"])
    assert contrast["mean"] == pytest.approx(0.4)
    assert (contrast["p"], contrast["n"], contrast["not_finite"]) == (None, 1, 1)
    (row,) = arm_table([run("es", 0, math.nan), run("es", 1, None)], "accuracy")
    assert (row["mean"], row["sd"], row["ci95"], row["not_finite"]) == (None, None, None, 2)
    assert row["n"] == 0


# values by seed of arm and control, and what their row says: n, not_finite, whose runs diverged
DIVERGED = {
    "arm": ([0.9, None, 0.8], [0.5, 0.6, 0.7], (2, 1, "arm")),
    "control": ([0.9, 0.7, 0.8], [0.5, None, 0.7], (2, 1, "control")),
    "both, one seed": ([0.9, None, 0.8], [0.5, math.nan, 0.7], (2, 1, "both")),
    "both, two seeds": ([0.9, None, 0.8], [None, 0.6, 0.7], (1, 2, "both")),
    "control, all seeds": ([0.9, 0.7], [math.inf, None], (0, 2, "control")),
    "arm, one seed": ([None], [0.5], (0, 1, "arm")),
}


@pytest.mark.parametrize("case", DIVERGED)
def test_n_is_of_what_the_mean_is_and_the_row_says_whose_runs_diverged(case: str) -> None:
    arm, control, expected = DIVERGED[case]
    runs = [run("es", seed, value) for seed, value in enumerate(arm)]
    runs += [run("sgd", seed, value) for seed, value in enumerate(control)]
    (row,) = contrast_table(runs, "accuracy", ["sgd"])
    assert (row["n"], row["not_finite"], row["diverged"]) == expected
    assert (row["mean"] is None) == (expected[0] == 0)
    n, lost, whose = expected
    told = {"both": "arm or control"}.get(whose, whose)
    seeds = f"{n + lost} seed" + "s" * (n + lost > 1)
    assert contrast_text(row).endswith(f"n = {n}, {told} diverged on {lost} of {seeds}")
    if n:
        assert contrast_cell(row)["spread"].endswith(f"on {n} of {seeds}")


def test_a_run_written_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="arm 'sgd' has seed 0 twice"):
        arm_table([run("sgd", 0, 0.5), run("sgd", 0, 0.6)], "accuracy")


def test_strongest_control_is_chosen_on_shared_seeds_and_by_direction() -> None:
    runs = [run("sgd", 0, 0.5, loss=1.0), run("sgd", 1, 0.9, loss=0.1)]
    runs += [run("all", 0, 0.6, loss=1.2)]  # seed 1 not finished: sgd's lucky 0.9 does not count
    assert strongest_control(runs, "accuracy", ["sgd", "all"]) == "all"
    assert strongest_control(runs, "loss", ["sgd", "all"], higher=False) == "sgd"
    assert strongest_control(runs, "accuracy", ["other"]) is None
    runs[2]["test"]["accuracy"] = None
    assert strongest_control(runs, "accuracy", ["all", "sgd"]) == "sgd"


def test_statistics_fills_arms_and_contrasts_and_changes_nothing_else() -> None:
    results = {
        "config": {
            "metric": "macro-f1",
            "arms": [
                {"label": "plain", "method": "sgd"},
                {"label": "es", "method": "openai-es"},
                {"label": "full", "method": "sgd-all"},
            ],
        },
        "runs": [
            run(arm, seed, 0.5 + 0.01 * seed, loss=1.0 + seed, **{"macro-f1": 0.4 + value * seed})
            for seed in (1, 0)
            for arm, value in (("full", 0.02), ("es", 0.03), ("plain", 0.01))
        ],
        "extra": 1,
    }
    before = copy.deepcopy(results)
    finished = with_statistics(results)
    assert results == before
    assert finished["extra"] == 1
    assert control_labels(results) == ["plain", "full"]
    assert main_metric(results) == "macro-f1"
    assert [r["arm"] for r in finished["arms"][:3]] == ["plain", "es", "full"]
    assert {r["metric"] for r in finished["arms"]} == {"accuracy", "loss", "macro-f1"}
    contrasts = {(r["arm"], r["control"], r["metric"]): r for r in finished["contrasts"]}
    assert contrasts["es", "plain", "macro-f1"]["mean"] == pytest.approx(0.01)
    assert contrasts["es", "plain", "accuracy"]["p"] is None
    assert json.loads(json.dumps(finished, allow_nan=False)) == finished
    assert with_statistics(finished) == finished


def test_metric_that_no_run_has_gives_way_to_accuracy() -> None:
    results = {"config": {"metric": "neg-loss"}, "runs": [run("sgd", 0, 0.5)]}
    assert main_metric(results) == "accuracy"


def test_the_metric_of_a_registered_contrast_decides() -> None:
    config = {"metric": "near-match", "contrast": {"metric": "accuracy"}}
    runs = [run("sgd", 0, 0.5, **{"near-match": 0.6})]
    assert main_metric({"config": config, "runs": runs}) == "accuracy"
    assert main_metric({"config": {**config, "contrast": None}, "runs": runs}) == "near-match"


def test_an_arm_says_itself_whether_it_is_a_control_and_the_table_where_it_does_not() -> None:
    arms = [
        {"label": "mean", "method": "swa"},
        {"label": "es", "method": "openai-es"},
        {"label": "later", "method": "not-yet-invented", "control": True},
        {"label": "plain", "method": "sgd", "control": True},
        {"label": "not", "method": "sgd-all", "control": False},
    ]
    results = {"config": {"arms": arms}, "runs": [run("sgd", 0, 0.5), run("other", 0, 0.5)]}
    assert control_labels(results) == ["plain", "sgd", "mean", "later"]


def test_controls_are_those_of_the_table_of_methods() -> None:
    results = {"runs": [run(name, 0, 0.5) for name in reversed(METHODS)]}
    plain = ["sgd", "sgd-all", "sgd-cosine", "sgd-all-cosine"]
    others = ["swa", "ema", "sam", "uniform-soup", "greedy-soup", "untouched"]
    others += ["calibrated", "tuned-by-hand", "experts"]
    assert control_labels(results) == [*plain, *others]
