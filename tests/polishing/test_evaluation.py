"""Every metric as it is, with an interval that covers."""

from __future__ import annotations

import pytest
import torch

from evostep.errors import InputError
from evostep.polishing import evaluate
from evostep.scoring.confusion import CONFUSION_METRICS


def draw(n: int, seed: int, right: float = 0.7) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs that are right with a probability, for two classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 2
    hit = torch.rand(n, generator=generator) < right
    decided = torch.where(hit, labels, 1 - labels)
    return torch.nn.functional.one_hot(decided, 2).float(), labels


def test_the_interval_of_accuracy_is_that_of_a_binomial() -> None:
    outputs, labels = draw(1000, 0)
    found = evaluate(None, (outputs, labels), draws=1000).metrics["accuracy"]
    assert found.value == float((outputs.argmax(1) == labels).double().mean())
    half = 1.96 * (found.value * (1 - found.value) / 1000) ** 0.5
    assert found.low == pytest.approx(found.value - half, abs=0.005)
    assert found.high == pytest.approx(found.value + half, abs=0.005)


def test_groups_widen_it() -> None:
    outputs, labels = draw(100, 1)
    outputs, labels = outputs.repeat(4, 1), labels.repeat(4)
    alone = evaluate(None, (outputs, labels), draws=500)
    grouped = evaluate(None, (outputs, labels), groups=list(range(100)) * 4, draws=500)
    assert grouped.groups == 100
    width = [one.metrics["accuracy"].high - one.metrics["accuracy"].low for one in (alone, grouped)]
    assert 1.6 < width[1] / width[0] < 2.4  # sqrt(4)


def test_every_metric_and_class_is_there_and_further_ones_by_name() -> None:
    outputs, labels = draw(100, 2)
    costs = [[0.0, 1.0], [5.0, 0.0]]
    found = evaluate(None, (outputs, labels), "f-beta(2)", costs=costs, draws=200)
    assert list(found.metrics) == [
        *("f-beta(2)", "cost", *CONFUSION_METRICS, "expected-calibration-error")
    ]
    assert not found.metrics["cost"].higher_is_better
    wrong = outputs.argmax(1) != labels
    cost = float((wrong * torch.tensor([1.0, 5.0])[labels]).mean())
    assert found.metrics["cost"].value == pytest.approx(cost)
    hit = [float((outputs.argmax(1) == labels)[labels == c].double().mean()) for c in (0, 1)]
    assert [one.value for one in found.classes] == hit
    assert found.as_dict()["classes"][0]["value"] == hit[0]
    with pytest.raises(InputError, match="costs has 3 rows for 2 classes"):
        evaluate(None, (outputs, labels), costs=torch.eye(3))


def test_several_labels_have_their_own_recall() -> None:
    targets = torch.tensor([[1, 0], [1, 1], [0, 1], [0, 0]] * 20)
    outputs = torch.where(targets.bool(), 1.0, -1.0)
    outputs[:, 1] = 1.0
    found = evaluate(None, (outputs, targets), draws=200)
    assert found.kind == "labels"
    assert [one.value for one in found.classes] == [1.0, 1.0]
    assert found.metrics["accuracy"].value == 0.75


def test_a_network_is_scored_and_left_as_it_is() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    outputs, labels = draw(50, 3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = evaluate(model, [(outputs, labels)], draws=100)
    with torch.no_grad():
        decided = model.eval()(outputs).argmax(1)
    assert found.metrics["accuracy"].value == float((decided == labels).double().mean())
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_a_recall_of_zero_is_not_certain() -> None:
    labels = torch.tensor([0] * 100 + [1] * 72)
    outputs = torch.tensor([2.0, 0.0]).repeat(172, 1)
    found = evaluate(None, (outputs, labels), draws=100)
    assert [one.value for one in found.classes] == [1.0, 0.0]
    assert found.classes[1].low == 0
    assert found.classes[1].high == pytest.approx(0.0507, abs=1e-4)  # Wilson's, 0 of 72
    assert found.classes[0].low == pytest.approx(0.9630, abs=1e-4)  # 100 of 100
    assert found.metrics["worst-class-recall"].high == found.classes[1].high
    groups = [0, 1] * 50 + [2, 3] * 36
    few = evaluate(None, (outputs, labels), groups=groups, draws=100)
    assert few.classes[1].high > 0.6  # two groups know little


def test_a_class_that_does_not_occur_has_no_interval() -> None:
    outputs = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]).repeat(5, 1)
    found = evaluate(None, (outputs, torch.arange(10) % 2), draws=50)
    assert found.classes[2].value != found.classes[2].value
    assert found.metrics["worst-class-recall"].low == found.classes[0].low < 1
