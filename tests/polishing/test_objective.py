"""Objectives are read as they are written."""

import pytest
import torch

from evostep.errors import InputError
from evostep.polishing.objective import parse_objective
from evostep.scoring.confusion import CONFUSION_METRICS

COUNTS = torch.tensor([[6.0, 2.0], [3.0, 9.0]])


def named(name: str) -> float:
    return float(CONFUSION_METRICS[name](COUNTS, several=False))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("mcc", named("mcc")),
        (
            "0.7*macro-f1 + 0.3*worst-class-recall",
            0.7 * named("macro-f1") + 0.3 * named("worst-class-recall"),
        ),
        ("accuracy + 2 * mcc", named("accuracy") + 2 * named("mcc")),
        ("cost", (2 * 1 + 3 * 5) / 20),
        ("accuracy - 0.1*cost", 0.75 - 0.1 * 17 / 20),
    ],
)
def test_a_sum_is_the_sum_of_its_terms(text: str, value: float) -> None:
    objective = parse_objective(text, costs=torch.tensor([[0.0, 1.0], [5.0, 0.0]]))
    assert float(objective.value(COUNTS, several=False)) == pytest.approx(value)
    assert objective.higher_is_better == (text != "cost")


def test_a_cost_is_made_small() -> None:
    objective = parse_objective("cost", costs=torch.tensor([[0.0, 1.0], [5.0, 0.0]]))
    better = torch.tensor([[8.0, 0.0], [0.0, 12.0]])
    fitness = objective.fitness(torch.stack([COUNTS, better]), COUNTS, several=False)
    assert fitness[1] > fitness[0]


@pytest.mark.parametrize(
    ("condition", "broken"),
    [
        ("accuracy >= 0.75", False),
        ("accuracy >= 0.8", True),
        ("accuracy <= 0.7", True),
        ("accuracy >= parent", False),
        ("accuracy >= 1.01*parent", True),
        ("accuracy >= 0.5 and mcc >= 0.9", True),
        ("accuracy >= 0.5 and mcc >= 0.4", False),
    ],
)
def test_what_breaks_a_constraint_is_below_all_that_does_not(condition: str, broken: bool) -> None:
    objective = parse_objective(f"worst-class-recall subject to {condition}")
    fitness = float(objective.fitness(COUNTS, COUNTS, several=False))
    assert (fitness < -1000) == broken
    if not broken:
        assert fitness == pytest.approx(named("worst-class-recall"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("worst-clas-recall", "did you mean worst-class-recall"),
        ("accuracy ++ mcc", "cannot read"),
        ("accuracy subject to mcc > 0.5", "cannot read the constraint"),
        ("accuracy subject to nothing >= 1", "unknown metric 'nothing'"),
        ("-accuracy", "leave out the minus"),
        ("accuracy - mcc", "wrong way"),
        ("f-beta", "write f-beta"),
        ("f-beta(0)", "write f-beta"),
        ("cost", "needs a table"),
        ("roc-auc", "no decision changes"),
    ],
)
def test_what_cannot_be_read_is_named(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse_objective(text)
