"""Outputs that are NaN or infinite: the member failed, whatever the metric and the engine."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Always, Evolution, Fitness, LowRank, OpenAIES, PairedTest, RandomMutation
from evostep.scoring.evaluator import Evaluator

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
Y = torch.zeros(64, dtype=torch.long)

METRICS: dict[str, tuple[Any, dict[str, Any]]] = {
    "accuracy": ("accuracy", {}),
    "balanced-accuracy": ("balanced-accuracy", {}),
    "macro-f1": ("macro-f1", {}),
    "neg-loss": ("neg-loss", {}),
    "one's own": (lambda o, t: float((o.argmax(1) == t).float().mean()), {}),
    "of each example": (lambda o, t: o.argmax(1) == t, {}),
    "torchmetrics": (torchmetrics.Accuracy(task="multiclass", num_classes=3), {}),
    "scikit-learn": (sk.accuracy_score, {}),
}


def broken(value: float = math.nan) -> nn.Linear:
    model = nn.Linear(4, 3)
    nn.init.constant_(model.weight, value)
    return model


class Fragile(nn.Module):
    """Is right on all of `Y`, but the last example's outputs are infinite for a negative bias."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, 0.001)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        first, rest = out[:-1], out[-1:]
        return torch.cat([first, rest / (self.linear.bias[0].detach() > 0)])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_network_has_no_score(name: str, value: float) -> None:
    metric, options = METRICS[name]
    fitness = Fitness(broken(value), [(X[:32], Y[:32]), (X[32:], Y[32:])], metric, **options)
    with pytest.warns(UserWarning, match="fitness is nan: the model's outputs are NaN or inf"):
        assert math.isnan(fitness())


@pytest.mark.parametrize("name", METRICS)
def test_so_it_is_under_a_forward_of_ones_own(name: str) -> None:
    metric, options = METRICS[name]
    fitness = Fitness(
        broken(), [(X, Y)], metric, forward=lambda m, batch: (m(batch[0]), batch[1]), **options
    )
    scores = Evaluator(fitness).attempt(Evaluator(fitness).round(0, 0))
    assert scores.failed
    assert "outputs are NaN" in str(scores.error)


ENGINES: dict[str, Callable[[], Any]] = {
    "inplace": lambda: "inplace",
    "vmap": lambda: "vmap",
    "racing": lambda: "racing",
    "prefix": lambda: "prefix",
    "lowrank": lambda: "lowrank",
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("metric", ["accuracy", "macro-f1"])
def test_members_that_break_are_counted_as_failed(engine: str, metric: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    fitness = Fitness(model, [(X * 1e30, Y)], metric)
    noise: Any = LowRank(1) if engine == "lowrank" else "normal"
    strategy = RandomMutation(1e9, population=4, noise=noise)
    before = [p.clone() for p in model.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (record,) = Evolution(model, strategy, engine=ENGINES[engine]()).evolve(fitness)
    assert record.failed == 4
    assert all(math.isnan(score) for score in record.scores)
    assert "outputs are NaN" in str(record.error)
    assert not record.accepted
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_one_number_of_one_example_is_enough() -> None:
    torch.manual_seed(0)
    model = Fragile()
    strategy = RandomMutation(0.1, population=16, scale="absolute")
    (record,) = Evolution(model, strategy, accept=Always(), engine="inplace").evolve(
        Fitness(model, [(X, Y)])
    )
    assert 0 < record.failed < 16
    assert float(model.linear.bias[0].detach()) > 0


def test_a_network_of_half_precision_that_overflows_is_not_accepted() -> None:
    torch.manual_seed(1)
    y = (torch.rand(200) > 0.9).long()
    x = torch.randn(200, 4).half()
    model = nn.Sequential(
        nn.Linear(4, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 2),
        nn.LogSoftmax(1),
    ).half()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(25)
        model[4].bias.copy_(torch.tensor([-1e3, 1e3]))
    fitness = Fitness(model, [(x, y)])
    before = fitness()
    with pytest.warns(UserWarning, match="failed for all 8 members"):
        Evolution(model, RandomMutation(3.0, population=8)).evolve(fitness, 2)
    assert fitness() == before
    assert bool(model(x).isfinite().all())


def test_a_parent_that_breaks_is_told_and_nothing_is_better() -> None:
    model = broken()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (record,) = Evolution(model, OpenAIES(0.1, lr=0.1, population=4)).evolve(
            Fitness(model, [(X, Y)])
        )
    assert "as they stand is nan (the model's outputs are NaN" in str(told[0].message)
    assert math.isnan(record.parent)
    assert record.failed == 4, "the parent is no member"


def test_no_paired_test_compares_with_a_parent_that_broke() -> None:
    scores = []
    for model in (broken(), nn.Linear(4, 3)):
        fitness = Fitness(model, [(X, Y)])
        scores.append(fitness.score(fitness.examples()))
    assert PairedTest().p_value(*scores) == 1.0


def test_what_is_at_ignored_targets_may_be_anything() -> None:
    model = nn.Conv1d(4, 3, 1)
    x, y = torch.randn(6, 4, 10), torch.randint(3, (6, 10))
    x[:, :, 5:], y[:, 5:] = math.nan, -100
    with torch.no_grad():
        right = float((model(x).argmax(1) == y)[:, :5].double().mean())
    assert Fitness(model, [(x, y)])() == pytest.approx(right)
    own = Fitness(model, [(x, y)], lambda o, t: (o.argmax(1) == t)[:, :5].double().mean())
    assert own() == pytest.approx(right)
    y[0, 5] = 1
    with pytest.warns(UserWarning, match="outputs are NaN"):
        assert math.isnan(Fitness(model, [(x, y)])())


def test_outputs_that_are_no_floating_point_are_left_alone() -> None:
    def forward(model: nn.Module, batch: Any) -> Any:
        return {"class": model(batch[0]).argmax(1), "text": ["a"] * 64, "none": None}, batch[1]

    fitness = Fitness(nn.Linear(4, 3), [(X, Y)], lambda o, t: 0.5, forward=forward)
    assert fitness() == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_large_finite_numbers_are_finite(dtype: torch.dtype) -> None:
    outputs = torch.full((5, 3), torch.finfo(dtype).min, dtype=dtype)
    outputs[:, 0] = 0
    fitness = Fitness(nn.Identity(), [(outputs, torch.zeros(5).long())])
    assert fitness() == 1.0


def test_a_loss_that_refuses_nan_in_its_own_words_is_told_in_ours() -> None:
    model = nn.Sequential(broken(), nn.Sigmoid())
    targets = F.one_hot(Y, 3).float()
    fitness = Fitness(model, [(X, targets)], "neg-loss", loss=F.binary_cross_entropy)
    with pytest.warns(UserWarning, match="outputs are NaN"):
        assert math.isnan(fitness())
