"""Fitness: what it reads, how it scores, what it refuses, and that it leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torchmetrics
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from evostep import Fitness
from evostep.scoring.placing import move
from evostep.scoring.splitting import split_batch

X, Y = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 3
BATCHES = list(zip(X.split(8), Y.split(8), strict=True))
DATASET = TensorDataset(X, Y)


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


# The metrics, through a model


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("accuracy", sk.accuracy_score),
        ("balanced-accuracy", sk.balanced_accuracy_score),
        ("macro-f1", lambda y, p: sk.f1_score(y, p, average="macro")),
    ],
)
def test_named_metrics_agree_with_scikit_learn(
    name: str, expected: Callable[[Any, Any], float]
) -> None:
    model = network()
    assert Fitness(model, BATCHES, name)() == pytest.approx(
        expected(Y, model(X).argmax(1)), abs=1e-6
    )


def test_neg_loss_is_minus_the_cross_entropy() -> None:
    model = network()
    with torch.no_grad():
        expected = -float(F.cross_entropy(model(X), Y))
    assert Fitness(model, BATCHES, "neg-loss")() == pytest.approx(expected, rel=1e-5)


def test_regression() -> None:
    model, targets = nn.Linear(4, 1), X.sum(1, keepdim=True)
    fitness = Fitness(model, [(X, targets)], "neg-loss", loss=F.mse_loss)
    with torch.no_grad():
        assert fitness() == pytest.approx(-float(F.mse_loss(model(X), targets)), rel=1e-5)
    by_metric = Fitness(model, [(X, targets)], torchmetrics.MeanSquaredError())
    assert by_metric() == pytest.approx(fitness(), rel=1e-5)


def test_several_labels() -> None:
    model, targets = nn.Linear(4, 3), (X[:, :3] > 0.5).float()
    fitness = Fitness(model, [(X, targets)], "macro-f1")
    expected = sk.f1_score(targets, model(X) > 0, average="macro", zero_division=0)
    assert fitness() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["accuracy", "neg-loss"])
def test_scores_for_each_example_have_the_value_as_their_mean(name: str) -> None:
    fitness = Fitness(network(), BATCHES, name)
    scores = fitness.score(fitness.examples())
    assert scores.per_example is not None
    assert scores.per_example.shape == (30,)
    assert float(scores.per_example.mean()) == scores.value == fitness()
    assert scores.outputs is None


def test_outputs_are_kept_where_asked_for() -> None:
    model = network()
    fitness = Fitness(model, BATCHES)
    outputs = fitness.score(fitness.examples(), keep_outputs=True).outputs
    torch.testing.assert_close(outputs, model(X))
    assert not outputs.requires_grad


# Forms of batches


class Pair(NamedTuple):
    image: Tensor
    label: Tensor


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        out: Tensor = self.linear(a + 2 * b)
        return out


FORMS: dict[str, tuple[Callable[[], nn.Module], list[Any]]] = {
    "tuple": (lambda: nn.Linear(4, 3), [(X, Y)]),
    "list": (lambda: nn.Linear(4, 3), [[X, Y]]),
    "named tuple": (lambda: nn.Linear(4, 3), [Pair(X, Y)]),
    "dictionary": (lambda: nn.Linear(4, 3), [{"input": X, "labels": Y}]),
    "dictionary, y": (lambda: nn.Linear(4, 3), [{"y": Y, "input": X}]),
    "two inputs": (TwoInputs, [(X, X / 2, Y)]),
    "two inputs by name": (TwoInputs, [{"a": X, "label": Y, "b": X / 2}]),
    "a loader": (lambda: nn.Linear(4, 3), DataLoader(DATASET, batch_size=8)),  # type: ignore[dict-item]
    "a loader of one": (lambda: nn.Linear(4, 3), DataLoader(DATASET, batch_size=1)),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_usual_form(form: str) -> None:
    make, batches = FORMS[form]
    model = make()
    outputs = model(X, X / 2) if isinstance(model, TwoInputs) else model(X)
    fitness = Fitness(model, batches)
    assert fitness() == pytest.approx(sk.accuracy_score(Y, outputs.argmax(1)))
    assert len(fitness.examples()) == 30


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class HuggingFaceLike(nn.Module):
    def __init__(self, as_dictionary: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.as_dictionary = as_dictionary

    def forward(self, input_ids: Tensor) -> Any:
        logits = self.linear(input_ids)
        return {"logits": logits, "loss": None} if self.as_dictionary else Output(logits)


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_outputs_that_hold_logits(as_dictionary: bool) -> None:
    model = HuggingFaceLike(as_dictionary)
    expected = sk.accuracy_score(Y, model.linear(X).argmax(1))
    assert Fitness(model, [{"input_ids": X, "labels": Y}])() == pytest.approx(expected)


def test_a_forward_of_ones_own_reads_any_batch() -> None:
    model = nn.Linear(4, 3)
    fitness = Fitness(
        model,
        [{"pixels": x, "name": y} for x, y in BATCHES],
        forward=lambda m, batch: (m(batch["pixels"]), batch["name"]),
    )
    assert fitness() == pytest.approx(sk.accuracy_score(Y, model(X).argmax(1)))
    assert len(fitness.examples()) == 30


def test_batches_are_read_once() -> None:
    class Counting:
        reads = 0

        def __iter__(self) -> Iterator[Any]:
            self.reads += 1
            return iter(BATCHES)

    batches = Counting()
    fitness = Fitness(network(), batches)
    assert fitness() == fitness()
    fitness.examples(1, 2)
    assert batches.reads == 1


# Examples of a generation


def chosen(fitness: Fitness, seed: int, generation: int) -> list[float]:
    return [float(inputs[0, 0]) for inputs, _ in fitness.examples(seed, generation)]


def test_batches_per_generation_are_a_pure_function_of_seed_and_generation() -> None:
    batches = list(zip(X.split(1), Y.split(1), strict=True))
    fitness = Fitness(network(), batches, batches_per_generation=6)
    drawn = {(s, g): chosen(fitness, s, g) for s in range(3) for g in range(5)}
    assert len({tuple(value) for value in drawn.values()}) == len(drawn), "each draws anew"
    assert all(len(set(value)) == 6 for value in drawn.values()), "without replacement"
    torch.rand(7)
    again = Fitness(network(), batches, batches_per_generation=6)
    for key in reversed(drawn):
        assert chosen(again, *key) == drawn[key]
    state = torch.get_rng_state()
    fitness.examples(5, 6)
    assert torch.equal(torch.get_rng_state(), state)


def test_every_batch_has_its_turn() -> None:
    batches = list(zip(X.split(1), Y.split(1), strict=True))
    fitness = Fitness(network(), batches, batches_per_generation=6)
    seen = {value for g in range(40) for value in chosen(fitness, 0, g)}
    assert len(seen) == 30


@pytest.mark.parametrize("k", [None, 4, 9])
def test_asking_for_no_fewer_than_there_are_gives_all(k: int | None) -> None:
    examples = Fitness(network(), BATCHES, batches_per_generation=k).examples(0, 3)
    assert torch.cat([inputs for inputs, _ in examples]).equal(X)


def test_calling_it_scores_all_examples_whatever_a_generation_sees() -> None:
    model = network()
    whole = Fitness(model, BATCHES)
    assert Fitness(model, BATCHES, batches_per_generation=1)() == whole()


# Leaving no trace


def trace(model: nn.Module) -> tuple[Any, ...]:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, [module.training for module in model.modules()]


def same_trace(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[1] == b[1] and all(torch.equal(a[0][name], b[0][name]) for name in a[0])


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_calling_it_leaves_no_trace(mode: Any) -> None:
    model = network()
    model.append(nn.Dropout(0.5)).train()
    model[1].eval()  # a frozen normalisation within a model in training
    before = trace(model)
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    Fitness(model, DataLoader(DATASET, batch_size=8), "neg-loss", mode=mode)()
    assert same_trace(before, trace(model))
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]
    assert (np.random.get_state()[1] == streams[2]).all()
    assert all(p.grad is None for p in model.parameters())


def test_modes_are_put_back_where_scoring_raises() -> None:
    model = network().train()
    model[1].eval()
    before = trace(model)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Fitness(model, [(torch.zeros(3, 5), Y[:3])])()
    assert same_trace(before, trace(model))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_scoring_given_examples_puts_the_modes_back_too(mode: Any) -> None:
    model = network().train()
    model[1].eval()
    fitness = Fitness(model, BATCHES, mode=mode)
    fitness.score(fitness.examples())
    assert [module.training for module in model.modules()] == [True, True, False, True, True]


@pytest.mark.parametrize(("mode", "training"), [("eval", False), ("train", True)])
def test_the_model_is_scored_in_its_mode(mode: Any, training: bool) -> None:
    seen: list[bool] = []
    model = network().train(not training)
    model[1].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    Fitness(model, BATCHES, mode=mode)()
    assert seen == [training] * len(BATCHES)


def test_scoring_builds_no_graph() -> None:
    model = network()
    seen: list[bool] = []
    model.register_forward_hook(lambda *args: seen.append(args[2].requires_grad))
    Fitness(model, BATCHES)()
    assert seen == [False] * len(BATCHES)


def test_random_transforms_give_the_same_examples_in_a_resumed_run() -> None:
    class Noisy(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 10

        def __getitem__(self, i: int) -> Any:
            return X[i] + torch.randn(4) + random.random() + np.random.rand(), Y[i]

    def first_batch() -> Tensor:
        fitness = Fitness(network(), DataLoader(Noisy(), batch_size=10))
        inputs: Tensor = fitness.examples().batches[0][0]
        return inputs

    one = first_batch()
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    assert torch.equal(first_batch(), one)


# Devices


def test_batches_follow_the_model_to_its_device() -> None:
    model = nn.Linear(4, 3, device="meta")
    fitness = Fitness(model, [(X, {"deep": [Y]})], forward=lambda m, b: b)
    inputs, _ = fitness.examples().batches[0]
    assert inputs[0].device.type == "meta"
    assert inputs[1]["deep"][0].device.type == "meta"


def test_batches_follow_a_model_that_moves_later() -> None:
    model = nn.Linear(4, 3)
    fitness = Fitness(model, BATCHES)
    fitness()
    model.to("meta")
    assert all(x.device.type == y.device.type == "meta" for x, y in fitness.examples())


def test_moving_keeps_the_form() -> None:
    batch = Pair(X, Y)
    moved = move(batch, torch.device("cpu"))
    assert isinstance(moved, Pair)
    assert move({"text": "as it is", "x": [X]}, torch.device("cpu"))["text"] == "as it is"


def test_a_model_without_tensors_is_scored_on_the_cpu() -> None:
    assert Fitness(nn.Identity(), [(torch.eye(3), torch.arange(3))])() == 1.0


# What is refused


def shuffled(**options: Any) -> DataLoader[Any]:
    return DataLoader(DATASET, **options)


def one_shot() -> Iterator[Any]:
    yield from BATCHES


REFUSED: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "a generator": (one_shot, {}, "generator.*read only once.*pass a list"),
    "zip": (lambda: zip(X, Y, strict=True), {}, "a zip.*read only once"),
    "an iterator": (lambda: iter(BATCHES), {}, "iterator.*read only once"),
    "a number": (lambda: 3, {}, "iterable of batches, got int"),
    "shuffle": (lambda: shuffled(shuffle=True), {}, "shuffles.*shuffle=False"),
    "random subset": (
        lambda: shuffled(sampler=SubsetRandomSampler(range(9))),
        {},
        "shuffles.*shuffle=False",
    ),
    "weighted": (
        lambda: shuffled(sampler=WeightedRandomSampler([1.0] * 30, 9)),
        {},
        "shuffles",
    ),
    "random batches": (
        lambda: shuffled(batch_sampler=BatchSampler(RandomSampler(DATASET), 4, False)),
        {},
        "shuffles",
    ),
    "distributed": (
        lambda: shuffled(sampler=DistributedSampler(DATASET, num_replicas=2, rank=0)),
        {},
        "shuffles",
    ),
    "nothing": (lambda: [], {}, "batches is empty"),
    "mode": (lambda: BATCHES, {"mode": "test"}, "'eval' or 'train', got 'test'"),
    "k": (lambda: BATCHES, {"batches_per_generation": 0}, "batches_per_generation.*got 0"),
    "metric": (lambda: BATCHES, {"metric": "acc"}, "unknown metric 'acc'"),
    "direction": (
        lambda: BATCHES,
        {"metric": torchmetrics.MeanMetric()},
        "does not say whether higher is better",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_when_made(case: str) -> None:
    make, options, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        Fitness(network(), make(), **options)


ACCEPTED: dict[str, Callable[[], Any]] = {
    "in order": lambda: shuffled(shuffle=False),
    "batches in order": lambda: shuffled(
        batch_sampler=BatchSampler(SequentialSampler(DATASET), 4, False)
    ),
    "distributed in order": lambda: shuffled(
        sampler=DistributedSampler(DATASET, num_replicas=1, rank=0, shuffle=False)
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_loaders_that_keep_their_order_are_taken(case: str) -> None:
    model = network()
    assert Fitness(model, ACCEPTED[case]())() == pytest.approx(Fitness(model, BATCHES)())


def test_an_iterable_that_turns_out_empty_is_refused_each_time() -> None:
    class Empty:
        def __iter__(self) -> Iterator[Any]:
            return iter(())

    fitness = Fitness(network(), Empty())
    for _ in range(2):
        with pytest.raises(ValueError, match="batches is empty"):
            fitness()


def test_a_model_must_be_a_module() -> None:
    with pytest.raises(ValueError, match=r"torch.nn.Module, got function"):
        Fitness(lambda x: x, BATCHES)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ({"x": X, "z": Y}, "keys x, z has no targets.*labels.*forward="),
        (X, "must be .inputs, targets.*got Tensor.*forward="),
        ((X,), "must be .inputs, targets.*got tuple"),
    ],
)
def test_batches_of_another_form_are_refused(batch: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        split_batch(batch)
