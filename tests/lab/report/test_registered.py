"""The registered contrast: against every control, better and worse, in one sentence."""

import math
from typing import Any

import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from evostep.lab.report.contrasts import control_labels, with_statistics
from evostep.lab.report.registered import against_all, holm, registered_verdict
from evostep.lab.report.statistics import wilcoxon_p

SEEDS = list(range(6))
NOISE = [0.011, -0.007, 0.002, -0.004, 0.009, -0.011]


def by_seed(mean: float, scale: float = 1.0) -> dict[int, float | None]:
    return {s: mean + scale * NOISE[s] for s in SEEDS}


@pytest.mark.parametrize(
    "values",
    [[0.03], [0.01, 0.04, 0.03], [0.9, 0.8, 0.001], [0.02, 0.02, 0.02, 0.5], [0.0, 1.0, 0.013]],
)
def test_holm_is_that_of_statsmodels(values: list[float]) -> None:
    found = holm({str(i): p for i, p in enumerate(values)})
    assert list(found.values()) == pytest.approx(multipletests(values, method="holm")[1].tolist())


def test_a_claim_without_a_p_value_still_counts_among_the_claims() -> None:
    assert holm({"a": 0.01, "b": None, "c": 0.02}) == {"a": 0.03, "b": None, "c": 0.04}


def test_the_p_of_the_claim_is_the_largest_of_all_controls() -> None:
    arm = by_seed(0.70)
    controls = {"weak": by_seed(0.60, -1.0), "strong": by_seed(0.68, -1.0)}
    found = against_all(arm, controls, SEEDS)
    p = [stats.ttest_rel(list(arm.values()), list(c.values())).pvalue for c in controls.values()]
    assert p[0] < p[1]
    assert found["p"] == pytest.approx(p[1])
    assert [row["p"] for row in found["against"]] == pytest.approx(p)
    assert found["p_wilcoxon"] == pytest.approx(
        max(stats.wilcoxon(list(arm.values()), list(c.values())).pvalue for c in controls.values())
    )


@pytest.mark.parametrize(
    ("controls", "outcome", "beats"),
    [
        ({"a": 0.5, "b": 0.6}, "better", True),
        ({"a": 0.5, "b": 0.7}, "no difference shown", False),
        ({"a": 0.5, "b": 0.8}, "mixed", False),
        ({"a": 0.8, "b": 0.9}, "worse", False),
        ({"a": 0.7, "b": 0.701}, "no difference shown", False),
    ],
)
def test_it_beats_the_strongest_where_it_beats_every_one(
    controls: dict[str, float], outcome: str, beats: bool
) -> None:
    values = {name: by_seed(mean, -1.0) for name, mean in controls.items()}
    found = against_all(by_seed(0.7), values, SEEDS)
    assert (found["outcome"], found["beats"]) == (outcome, beats)
    if outcome in ("mixed", "worse"):  # a small p of a loss is no evidence of a gain
        assert found["p"] == found["p_wilcoxon"] == 1.0


def test_nothing_is_claimed_of_what_diverged_is_missing_or_has_no_spread() -> None:
    arm, control = by_seed(0.9), by_seed(0.5, -1.0)
    for changed in ({**arm, 2: None}, arm):
        lost = control if changed is not arm else {**control, 4: None}
        found = against_all(changed, {"a": lost, "b": control}, SEEDS)
        assert (found["outcome"], found["beats"]) == ("diverged", False)
    part = {s: control[s] for s in SEEDS[:4]}
    found = against_all(arm, {"a": control, "b": part}, SEEDS)
    assert (found["outcome"], found["beats"], found["pairs"]) == ("unfinished", False, 4)
    found = against_all(arm, {"a": by_seed(0.5)}, SEEDS)
    assert (found["outcome"], found["beats"], found["p"]) == ("no interval", False, None)
    found = against_all({}, {"a": control}, SEEDS)
    assert (found["outcome"], found["p"]) == ("unfinished", None)


def test_equal_differences_are_ties_however_they_are_rounded() -> None:
    ours, theirs = [0.53, 0.63, 0.73, 0.52], [0.52, 0.62, 0.72, 0.50]
    assert wilcoxon_p(ours, theirs) == pytest.approx(stats.wilcoxon([1, 1, 1, 2]).pvalue)
    assert wilcoxon_p([0.5, 0.6], [0.4, 0.5]) is None


def results_of(**means: float) -> dict[str, Any]:
    runs = [
        {"arm": label, "seed": s, "test": {"accuracy": value, "loss": 1 - value}}
        for label, mean in means.items()
        for s, value in by_seed(mean, 1.0 if label == "es" else -1.0).items()
    ]
    contrast = {
        "hypothesis": "it gains",
        "arm": "es",
        "controls": [label for label in means if label not in ("es", "other")],
        "metric": "accuracy",
        "seeds": SEEDS,
    }
    arms = [{"label": label, "method": "random-search", "control": False} for label in means]
    return {"config": {"arms": arms, "contrast": contrast, "metric": "accuracy"}, "runs": runs}


def test_the_contrast_that_was_written_down_is_marked() -> None:
    results = results_of(es=0.7, rs=0.6, sgd=0.65, other=0.5)
    assert sorted(control_labels(results)) == ["rs", "sgd"]  # whatever their methods are
    found = with_statistics(results)
    marked = {
        (row["arm"], row["control"], row["metric"])
        for row in found["contrasts"]
        if row.get("registered")
    }
    assert marked == {("es", "rs", "accuracy"), ("es", "sgd", "accuracy")}
    assert found["registered"]["registered"] is True
    assert found["registered"]["beats"] is True
    assert "registered" not in with_statistics({**results, "config": {}})


@pytest.mark.parametrize(
    ("means", "told"),
    [
        (
            {"es": 0.7, "a": 0.6, "b": 0.65},
            "Registered: in test accuracy es is better than a by 10.00 points (95% CI 8.14 to "
            "11.86) and b by 5.00 points (95% CI 3.14 to 6.86), so it beats the strongest control "
            "(p < 0.001, n = 6).",
        ),
        (
            {"es": 0.7, "a": 0.6, "b": 0.75, "c": 0.701},
            "Registered: in test accuracy es is better than a by 10.00 points (95% CI 8.14 to "
            "11.86), is worse than b by 5.00 points (95% CI 3.14 to 6.86), shows no difference "
            "from c (−0.10 points, 95% CI −1.96 to +1.76), so it does not beat the strongest "
            "control (p = 1.000, n = 6).",
        ),
    ],
)
def test_one_sentence_tells_better_and_worse(means: dict[str, float], told: str) -> None:
    results = results_of(**means)
    text = registered_verdict(results)
    assert text is not None
    assert text == told
    results["runs"] = [run for run in results["runs"] if run["seed"] < 4]
    assert registered_verdict(results) == (
        "Registered, and not yet decided: es and its controls have 4 of 6 pairs of runs."
    )
    results["runs"] = [
        {**run, "test": {"accuracy": math.nan}} for run in results_of(**means)["runs"]
    ]
    text = registered_verdict(results)
    assert text is not None
    assert "no verdict, since a run diverged" in text
    assert "nothing is shown about the strongest control (n = 6)" in text
