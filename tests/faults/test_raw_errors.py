"""What once ended in another library's words scores right, or is one line that says what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn

import evostep
from evostep import Evolution, Fitness, OpenAIES

G = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=G)
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x


def metric_class() -> Any:
    from torchmetrics.classification import MulticlassAccuracy

    return MulticlassAccuracy


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a model that returns a tuple": (
        lambda: Fitness(Two(), [(X, Y)])(),
        "metric 'accuracy' .*tuple.*forward=",
    ),
    "a metric that returns nothing": (
        lambda: Fitness(network(), [(X, Y)], lambda outputs, targets: None)(),
        "must return one number, or one for each example, got None: is a `return` missing",
    ),
    "a fitness that returns nothing": (
        lambda: Evolution(network(), OpenAIES(0.02, population=4)).evolve(lambda: None),  # type: ignore[arg-type,return-value]
        "got None: is a `return` missing",
    ),
    "a metric's class": (
        lambda: Fitness(network(), [(X, Y)], metric_class())(),
        "MulticlassAccuracy",
    ),
    "a class out of range": (
        lambda: Fitness(network(), [(X, Y + 2)], "macro-f1")(),
        "metric 'macro-f1'.*2.*4",
    ),
    "two tensors of targets": (
        lambda: Fitness(network(), [(X, {"a": Y, "b": Y})])(),
        "metric 'accuracy' takes targets that are one tensor",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_the_correction_is_named_in_one_line(name: str) -> None:
    call, said = REFUSED[name]
    with pytest.raises(ValueError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_one_tensor_of_targets_in_a_dictionary_is_taken() -> None:
    plain = Fitness(network(), [(X, Y)])()
    assert Fitness(network(), [(X, {"a": Y})])() == plain


def test_a_numpy_array_is_a_value_for_each_example() -> None:
    fitness = Fitness(network(), [(X, Y)], lambda o, t: (o.argmax(1) == t).numpy())
    assert fitness() == evostep.Fitness(network(), [(X, Y)])()


@pytest.mark.parametrize("metric", ["macro-f1", "balanced-accuracy", "accuracy"])
def test_batches_of_other_lengths_are_scored(metric: str) -> None:
    torch.manual_seed(0)
    model = nn.Conv1d(4, 3, 1)
    batches = [(torch.randn(6, 4, t), torch.randint(3, (6, t))) for t in (5, 9)]
    value = Fitness(model, batches, metric)()
    guess = torch.cat([model(x).argmax(1).flatten() for x, _ in batches])
    true = torch.cat([y.flatten() for _, y in batches])
    if metric == "macro-f1":
        assert value == pytest.approx(f1_score(true, guess, average="macro"))
    elif metric == "accuracy":
        assert value == pytest.approx(float((guess == true).double().mean()))
    else:
        recall = torch.stack([(guess[true == c] == c).double().mean() for c in range(3)])
        assert value == pytest.approx(float(recall.mean()), abs=1e-6)
