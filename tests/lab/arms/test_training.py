"""Gradient descent for one epoch, and looking at a model."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.errors import InputError
from evostep.lab.arms.arm import Training, make_arms
from evostep.lab.arms.training import (
    Part,
    Parts,
    batches_of,
    cut,
    evaluate,
    make_fitness,
    make_optimizer,
    resolve_metric,
    train_epoch,
)
from evostep.lab.data.images import ImageData, channel_statistics, load_data
from evostep.lab.data.splits import make_splits
from evostep.lab.models import build_model
from evostep.lab.options import Options

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return load_data("digits")


@pytest.fixture(scope="module")
def parts(digits: ImageData) -> Parts:
    splits = make_splits(digits, 0, train_size=100, fitness_size=40, accept_size=20, test_size=50)
    return cut(digits, splits, CPU)


def training_of(**options: Any) -> Training:
    (arm,) = make_arms(Options(**{"arms": "sgd", **options}))
    return arm.training


def fresh(name: str = "mlp") -> nn.Module:
    return build_model(name, channels=1, classes=10, image_size=8, seed=0)


def run_epoch(
    model: nn.Module, parts: Parts, *, seed: int = 0, epoch: int = 0, **options: Any
) -> tuple[dict[str, float], int, list[int]]:
    training = training_of(**options)
    steps: list[int] = []
    measured, forwards = train_epoch(
        model,
        make_optimizer(training, model),
        parts.gradients(training),
        parts.data,
        training,
        seed=seed,
        epoch=epoch,
        max_forwards=None,
        on_step=steps.append,
    )
    return measured, forwards, steps


# Parts


def test_cut_takes_the_examples_that_the_splits_name(digits: ImageData) -> None:
    splits = make_splits(digits, 3, train_size=60, fitness_size=30, accept_size=10, test_size=20)
    parts = cut(digits, splits, CPU)
    for name in ("train", "fitness", "accept", "test"):
        part, indices = getattr(parts, name), getattr(splits, name)
        assert torch.equal(part.images, digits.inputs[indices]), name
        assert torch.equal(part.targets, digits.targets[indices]), name


def test_an_official_test_set_is_where_the_test_examples_come_from(digits: ImageData) -> None:
    with_test = dataclasses.replace(
        digits,
        inputs=digits.inputs[:1000],
        targets=digits.targets[:1000],
        test_inputs=digits.inputs[1000:],
        test_targets=digits.targets[1000:],
    )
    splits = make_splits(with_test, 0, train_size=60, fitness_size=30, accept_size=0, test_size=40)
    parts = cut(with_test, splits, CPU)
    assert torch.equal(parts.test.images, digits.inputs[1000:][splits.test])
    assert torch.equal(parts.test.targets, digits.targets[1000:][splits.test])


def test_images_are_normalised_by_the_training_part_alone(digits: ImageData) -> None:
    changed = dataclasses.replace(digits, inputs=digits.inputs.clone())
    splits = make_splits(digits, 0, train_size=60, fitness_size=30, accept_size=10, test_size=20)
    for part in (splits.fitness, splits.accept, splits.test):
        changed.inputs[part] = 255
    data = cut(changed, splits, CPU).data
    assert (data.mean, data.std) == channel_statistics(digits.inputs[splits.train])
    assert (data.mean, data.std) != (digits.mean, digits.std)


def test_sgd_all_sees_fitness_and_accept_examples_but_never_the_test(parts: Parts) -> None:
    assert parts.gradients(training_of()) is parts.train
    everything = parts.gradients(training_of(arms="sgd-all"))
    assert len(everything) == 160
    expected = torch.cat([parts.train.images, parts.fitness.images, parts.accept.images])
    assert torch.equal(everything.images, expected)
    expected = torch.cat([parts.train.targets, parts.fitness.targets, parts.accept.targets])
    assert torch.equal(everything.targets, expected)


# Optimizers and batches


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)],
)
def test_make_optimizer(name: str, kind: type) -> None:
    model = fresh()
    training = training_of(optimizer=name, lr=0.3, momentum=0.8, weight_decay=0.1)
    optimizer = make_optimizer(training, model)
    (group,) = optimizer.param_groups
    assert type(optimizer) is kind
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.1)
    assert group["momentum"] == 0.8 if name == "sgd" else group["betas"] == (0.8, 0.999)
    assert group["param_names"] == [name for name, _ in model.named_parameters()]


@given(n=st.integers(2, 60), size=st.integers(2, 20))
def test_each_example_is_in_one_batch_and_batches_are_as_equal_as_can_be(n: int, size: int) -> None:
    batches = list(batches_of(n, size, torch.Generator().manual_seed(n)))
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    sizes = [len(batch) for batch in batches]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2  # BatchNorm cannot normalise a batch of one
    assert max(sizes) <= size or size == 2


def test_there_is_no_small_batch_at_the_end_of_an_epoch() -> None:
    sizes = [len(batch) for batch in batches_of(5000, 64, torch.Generator())]
    assert len(sizes) == 79
    assert set(sizes) == {63, 64}


def test_the_order_is_the_generators() -> None:
    orders = [
        torch.cat(list(batches_of(50, 8, torch.Generator().manual_seed(seed)))).tolist()
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert orders[0] != list(range(50))


# An epoch


def test_an_epoch_is_the_plain_loop_in_the_order_of_its_seed(parts: Parts) -> None:
    """The slow, obvious twin: the batches that a spy saw, through autograd by hand."""
    model, twin = fresh(), fresh()
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    measured, forwards, steps = run_epoch(model, parts, lr=0.1, batch=32)
    assert [len(batch) for batch in seen] == [25, 25, 25, 25]
    assert steps == [75, 75, 75, 75]
    assert forwards == 300
    # each training example exactly once
    images = parts.data.normalise(parts.train.images).flatten(1)
    of_batch = [torch.cdist(batch.flatten(1), images).argmin(1) for batch in seen]
    assert sorted(torch.cat(of_batch).tolist()) == list(range(100))
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    lost = right = 0.0
    for batch, indices in zip(seen, of_batch, strict=True):
        targets = parts.train.targets[indices]
        loss = F.cross_entropy(twin(batch), targets)
        optimizer.zero_grad()
        lost += float(loss.detach()) * len(targets)
        right += float((twin(batch).argmax(1) == targets).sum())
        loss.backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert measured == pytest.approx({"accuracy": right / 100, "loss": lost / 100}, rel=1e-5)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def with_dropout() -> nn.Module:
    model = fresh()
    return nn.Sequential(model, nn.Dropout(0.5))


def test_an_epoch_depends_on_seed_and_epoch_and_not_on_the_global_streams(parts: Parts) -> None:
    def trained(seed: int, epoch: int, stream: int) -> Tensor:
        model = with_dropout()
        torch.manual_seed(stream)
        run_epoch(model, parts, seed=seed, epoch=epoch, lr=0.1, augment="shift")
        return weights(model)

    first = trained(0, 0, stream=1)
    assert torch.equal(first, trained(0, 0, stream=2))
    assert not torch.equal(first, trained(1, 0, stream=1))
    assert not torch.equal(first, trained(0, 1, stream=1))


def test_an_epoch_leaves_the_global_streams_alone(parts: Parts) -> None:
    before = torch.get_rng_state()
    run_epoch(with_dropout(), parts, augment="flip-shift")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("limit", [1, 95, 96, 97, 192, 299, 300, 1000])
def test_an_epoch_ends_at_the_first_step_that_reaches_the_limit(parts: Parts, limit: int) -> None:
    model, training = fresh(), training_of(batch=32)
    steps: list[int] = []
    _, forwards = train_epoch(
        model,
        make_optimizer(training, model),
        parts.train,
        parts.data,
        training,
        seed=0,
        epoch=0,
        max_forwards=limit,
        on_step=steps.append,
    )
    assert forwards == sum(steps)
    assert forwards >= min(limit, 300)
    assert forwards - steps[-1] < limit


def test_training_mode_is_on_whatever_it_was(parts: Parts) -> None:
    model = fresh("small-cnn").eval()
    before = [b.clone() for b in model.buffers()]
    run_epoch(model, parts)
    assert model.training
    assert not all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))


# Looking


def test_look_is_what_plain_evaluation_gives_and_leaves_no_trace(parts: Parts) -> None:
    model = fresh("small-cnn")
    run_epoch(model, parts, lr=0.1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    seen = evaluate(model, parts.test, parts.data, Options(metric="macro-f1"))
    assert model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    with torch.no_grad():
        logits = model.eval()(parts.data.normalise(parts.test.images))
    targets = parts.test.targets
    assert seen.keys() == {"accuracy", "loss", "macro-f1"}
    assert seen["accuracy"] == pytest.approx(float((logits.argmax(1) == targets).float().mean()))
    assert seen["loss"] == pytest.approx(float(F.cross_entropy(logits, targets)), rel=1e-5)
    from sklearn.metrics import f1_score

    labels = sorted({*targets.tolist(), *logits.argmax(1).tolist()})
    expected = f1_score(targets, logits.argmax(1), average="macro", labels=labels)
    assert seen["macro-f1"] == pytest.approx(expected, abs=1e-6)


def test_looking_in_batches_is_looking_at_once(parts: Parts, digits: ImageData) -> None:
    model = fresh("small-cnn").eval()
    part = Part(digits.inputs[:1100], digits.targets[:1100])  # three batches
    with torch.no_grad():
        logits = model(parts.data.normalise(part.images))
    expected = float((logits.argmax(1) == part.targets).double().mean())
    assert evaluate(model, part, parts.data, Options())["accuracy"] == expected


def test_looking_at_no_examples_gives_nothing(parts: Parts, digits: ImageData) -> None:
    empty = Part(digits.inputs[:0], digits.targets[:0])
    assert evaluate(fresh(), empty, parts.data, Options()) == {}


METRICS = """
import torch

class Error:
    higher_is_better = False

    def __init__(self):
        self.reset()

    def reset(self):
        self.wrong = self.n = 0

    def update(self, outputs, targets):
        self.wrong += int((outputs.argmax(1) != targets).sum())
        self.n += len(targets)

    def compute(self):
        return self.wrong / self.n

    def to(self, device):
        return self

class Undirected(Error):
    higher_is_better = None

class Picky:
    def __init__(self, classes):
        pass

def worst_class(outputs, targets):
    right = (outputs.argmax(1) == targets).double()
    return min(float(right[targets == c].mean()) for c in targets.unique())

ready = Error()
"""


@pytest.fixture
def metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "metrics_of_training.py").write_text(METRICS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "metrics_of_training", raising=False)
    return "metrics_of_training"


def test_a_metric_of_ones_own_comes_so_that_higher_is_better(metrics: str, parts: Parts) -> None:
    model = fresh()
    for name in ("Error", "ready"):
        path = f"{metrics}:{name}"
        seen = evaluate(model, parts.test, parts.data, Options(metric=path))
        assert seen[path] == pytest.approx(seen["accuracy"] - 1)
        fitness = make_fitness(model, parts.test, parts.data, Options(metric=path))
        assert fitness() == pytest.approx(seen[path])


def test_a_function_is_a_metric(metrics: str, parts: Parts) -> None:
    path = f"{metrics}:worst_class"
    seen = evaluate(fresh(), parts.test, parts.data, Options(metric=path))
    assert 0 <= seen[path] <= seen["accuracy"]


def test_metrics_that_cannot_be_made_are_refused(metrics: str) -> None:
    assert resolve_metric("accuracy") == "accuracy"
    with pytest.raises(InputError, match=f"{metrics}:Picky cannot be made without arguments.*clas"):
        resolve_metric(f"{metrics}:Picky")
    with pytest.raises(InputError, match="did you mean worst_class"):
        resolve_metric(f"{metrics}:worst_clas")


def test_fitness_is_the_metric_on_its_own_examples(parts: Parts) -> None:
    model = fresh()
    for part in (parts.fitness, parts.accept):
        fitness = make_fitness(model, part, parts.data, Options())
        assert fitness() == evaluate(model, part, parts.data, Options())["accuracy"]
        assert len(fitness.examples(0, 0)) == len(part)
