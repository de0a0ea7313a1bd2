"""Texts, numbers and objects, one for each example, are joined and counted as such."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics.text
from torch import nn
from torch.utils.data import DataLoader

from evostep import Evolution, Fitness, OpenAIES
from evostep.scoring.nests import batch_size, concatenate

X = torch.eye(4)
RIGHT = [f"answer {i}" for i in range(4)]


def model() -> nn.Linear:
    linear = nn.Linear(4, 4)
    nn.init.eye_(linear.weight), nn.init.zeros_(linear.bias)
    return linear


def answers(model: nn.Module, batch: Any) -> Any:
    return [f"answer {i}" for i in model(batch["x"]).argmax(1).tolist()], batch["answer"]


def exact(texts: list[str], targets: list[str]) -> float:
    return sum(t == a for t, a in zip(texts, targets, strict=True)) / len(targets)


@pytest.mark.parametrize(
    ("rows", "expected"), [(4, 0.5), (2, 4 / 6), (1, 4 / 5)], ids=["even", "ragged", "one"]
)
def test_exact_match(rows: int, expected: float) -> None:
    batches = [{"x": X, "answer": RIGHT}, {"x": X[:rows], "answer": ["?"] * rows}]
    fitness = Fitness(model(), batches, exact, forward=answers)
    assert fitness() == pytest.approx(expected)
    assert len(fitness.examples()) == 4 + rows


def test_the_tuples_that_a_loader_makes_of_texts() -> None:
    data = list(zip(X, RIGHT, strict=True))

    def forward(model: nn.Module, batch: Any) -> Any:
        return [f"answer {i}" for i in model(batch[0]).argmax(1).tolist()], batch[1]

    fitness = Fitness(model(), DataLoader(data, batch_size=3), exact, forward=forward)  # type: ignore[arg-type]
    assert fitness() == 1.0
    assert len(fitness.examples()) == 4


def test_texts_as_targets_of_a_model_that_gives_tensors() -> None:
    def metric(outputs: torch.Tensor, targets: list[str]) -> torch.Tensor:
        return torch.tensor([f"answer {i}" == t for i, t in zip(outputs.argmax(1), targets)])  # noqa: B905

    batches = [(X, RIGHT), (X[:1], ["?"])]
    assert Fitness(model(), batches, metric)() == pytest.approx(0.8)
    arrays = [(X.numpy(), np.array(RIGHT)), (X[:1].numpy(), np.array(["?"]))]
    assert Fitness(model(), arrays, metric)() == pytest.approx(0.8)


@pytest.mark.parametrize("metric", [torchmetrics.text.CharErrorRate, torchmetrics.text.BLEUScore])
def test_metrics_of_texts_over_ragged_batches(metric: Any) -> None:
    bleu = metric is torchmetrics.text.BLEUScore
    told = ["the cat is on the mat", "there is a cat on it", "no", "dogs run in the big park"]
    meant = ["the cat is on the mat", "there is a cat on the mat", "yes", "dogs run in the park"]
    wanted: list[Any] = [[t] for t in meant] if bleu else meant
    batches = [{"x": X[a:b], "i": list(range(a, b))} for a, b in ((0, 3), (3, 4))]

    def forward(_: nn.Module, batch: Any) -> Any:
        return [told[i] for i in batch["i"]], [wanted[i] for i in batch["i"]]

    expected = metric()
    expected.update(told, wanted)
    sign = 1 if bleu else -1
    found = Fitness(model(), batches, metric(), forward=forward)()
    assert found == pytest.approx(sign * float(expected.compute()))


def test_members_are_scored_on_texts() -> None:
    batches = [{"x": X, "answer": RIGHT}, {"x": X[:2], "answer": RIGHT[1:3]}]
    net = model()
    search = Evolution(net, OpenAIES(0.3, 0.1, population=8, scale="absolute"))
    records = search.evolve(Fitness(net, batches, exact, forward=answers), 2)
    assert len({score for record in records for score in record.scores}) > 1


def test_joined() -> None:
    assert concatenate([[1, 2], [3]]) == [1, 2, 3]
    assert concatenate([[["a", "b"]], [["c"], ["d"]]]) == [["a", "b"], ["c"], ["d"]]
    boxes = [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(1, 4)}]
    assert concatenate([boxes, boxes[:1]]) == [*boxes, boxes[0]]
    assert concatenate([None, None]) is None
    assert concatenate([np.zeros(2), np.ones(1)]).tolist() == [0, 0, 1]
    uneven = [torch.zeros(3), torch.zeros(5)]
    assert len(concatenate([uneven, uneven])) == 4
    assert batch_size({"x": "one text"}, None) == 1
    assert batch_size("text", ["a", "b"]) == 2
    assert batch_size({"q": ["a", "b", "c"]}, None) == 3


@pytest.mark.parametrize(
    ("targets", "words"),
    [({"a": torch.zeros(4), "b": torch.zeros(4)}, "keys a, b"), (RIGHT, "a list of str")],
    ids=["dictionary", "texts"],
)
def test_a_metric_with_a_name_says_what_it_takes(targets: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"'accuracy' takes targets.*{words}.*pass forward=") as e:
        Fitness(model(), [(X, targets)])()
    assert "\n" not in str(e.value)


def test_targets_that_hold_one_tensor_or_numbers_are_understood() -> None:
    for targets in ({"a": torch.arange(4)}, [torch.arange(4)], [0, 1, 2, 3], np.arange(4)):
        assert Fitness(model(), [(X, targets)])() == 1.0


def test_shapes_that_cannot_be_joined_are_named() -> None:
    ragged = [(torch.zeros(2, n), torch.zeros(2, n)) for n in (3, 5)]
    fitness = Fitness(nn.Identity(), ragged, lambda *_: 0.0)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 5\) cannot be joined.*pad"):
        fitness()
