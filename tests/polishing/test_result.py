"""What a result says."""

from dataclasses import replace

import pytest
import torch

from evostep.polishing.bootstrap import Interval
from evostep.polishing.decision import Decision
from evostep.polishing.result import BY_START, IMPROVED, NO_GAIN, Polished

RESULT = Polished(
    IMPROVED,
    "worst-class-recall",
    higher_is_better=True,
    fraction=True,
    n=1000,
    groups=None,
    values={"checkpoint": 0.581, "start": 0.637, "polished": 0.669},
    gain=Interval(0.088, 0.041, 0.13, 0.001),
    gain_of_start=Interval(0.056, 0.01, 0.1, 0.01),
    gain_over_start=Interval(0.032, -0.004, 0.069, 0.08),
    start="logit adjustment",
    prior="examples",
    chosen="",
    chosen_by_fold=(),
    agreement=1.0,
    optimism=(0.0, 0.0),
    metrics={},
    classes=(),
    decision=Decision("classes", torch.zeros(2), "worst-class-recall"),
    proposed=torch.zeros(2),
    evaluations=0,
    sample_forwards=0,
    settings={},
    decisions=torch.zeros(3, 1000),
)


def test_the_line_of_an_improvement() -> None:
    assert str(RESULT) == (
        "improved: worst-class-recall 58.1% -> 66.9% (+8.8, 95% CI +4.1 to +13.0); of these +3.2 "
        "(-0.4 to +6.9) over logit adjustment; about 1,266 examples would be needed to confirm "
        "evolution's part"
    )


def test_the_start_s_gain_is_told_as_its_own() -> None:
    text = str(replace(RESULT, verdict=BY_START))
    assert text.startswith(
        "improved by logit adjustment: worst-class-recall 58.1% -> 63.7% (+5.6, 95% CI +1.0 to "
        "+10.0); evolution added nothing confirmed: +3.2 (-0.4 to +6.9)"
    )


@pytest.mark.parametrize(
    ("gain", "needed"),
    [
        (Interval(0.04, -0.04, 0.12, 0.3), 4000),
        (Interval(-0.01, -0.04, 0.02, 0.5), None),
        (Interval(0.04, 0.0, 0.12, 0.3), 1001),  # more than there are, or it were confirmed
        (Interval(0.001, -0.04, 0.12, 0.3), None),
    ],
)
def test_how_many_examples_would_confirm_a_gain(gain: Interval, needed: int | None) -> None:
    result = replace(RESULT, verdict=NO_GAIN, gain=gain)
    assert result.needed == needed
    assert (f"about {needed or 0:,} examples" in str(result)) == (needed is not None)


def test_numbers_that_are_no_share_are_told_as_they_are() -> None:
    result = replace(
        RESULT,
        fraction=False,
        values={"checkpoint": 2.0, "start": 1.5, "polished": 1.25},
        gain=Interval(0.75, 0.5, 1.0, 0.001),
    )
    assert str(result).startswith(
        "improved: worst-class-recall 2 -> 1.25 (+0.75, 95% CI +0.5 to +1)"
    )


def test_no_end_above_zero_is_printed_as_zero_and_no_noise_as_a_change() -> None:
    near = replace(RESULT, gain=Interval(0.001, 0.0002, 0.002, 0.04))
    assert "(+0.1, 95% CI +0.02 to +0.2)" in str(near)
    near = replace(RESULT, gain=Interval(0.001, -1e-17, 0.002, 0.04))
    assert "(+0.1, 95% CI -0.0 to +0.2)" in str(near) or "CI +0.0 to" in str(near)
    alike = {"accuracy": (0.825, 0.825, 0.825 - 1e-16), "mcc": (0.5, 0.5, 0.5 - 1e-16)}
    assert replace(RESULT, metrics=alike, classes=((0.5, 0.5, 0.5 - 1e-16),)).fell == ()


def test_what_fell_is_told_in_its_own_direction_the_worst_first() -> None:
    result = replace(
        RESULT,
        metrics={
            "accuracy": (0.9, 0.95, 0.85),
            "expected-calibration-error": (0.05, 0.1, 0.08),
            "mcc": (0.5, 0.6, 0.7),
            "worst-class-recall": (0.6, 0.5, 0.5),  # of it the contrasts tell
        },
        classes=((0.9, 0.95, 0.7), (0.5, 0.4, 0.6)),
    )
    assert result.fell == (
        ("accuracy", "90.0%", "85.0%"),
        ("expected-calibration-error", "5.0%", "8.0%"),
        ("recall of class 0", "90.0%", "70.0%"),
    )
    assert "fell (folds pooled, not corrected for optimism): accuracy 90.0% -> 85.0%" in str(result)
    by_start = replace(result, verdict=BY_START)
    assert [name for name, *_ in by_start.fell] == [
        "expected-calibration-error",
        "recall of class 1",
    ]
    assert replace(result, verdict=NO_GAIN).fell == ()
