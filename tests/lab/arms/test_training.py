"""Gradient descent for one epoch."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.lab.arms.arm import Training
from evostep.lab.arms.precedence import make_arms
from evostep.lab.arms.training import batches_of, make_optimizer, train_epoch
from evostep.lab.data.parts import Parts
from evostep.lab.models import build_model
from evostep.lab.options import Options


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
        parts.gradients(training.all_data),
        parts.data,
        training,
        seed=seed,
        epoch=epoch,
        max_forwards=None,
        on_step=steps.append,
    )
    return measured, forwards, steps


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


@pytest.mark.parametrize("sharp", [False, True])
def test_gradients_move_what_they_are_told_to_and_nothing_else(sharp: bool, parts: Parts) -> None:
    model = fresh("small-cnn")
    training = training_of(train_only="norm, head.bias", arms="sam" if sharp else "sgd")
    before = {name: p.clone() for name, p in model.named_parameters()}
    train_epoch(
        model,
        make_optimizer(training, model),
        parts.train,
        parts.data,
        training,
        seed=0,
        epoch=0,
        max_forwards=None,
        on_step=lambda _: None,
    )
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    norms = {f"norm{block}.{kind}" for block in (1, 2, 3) for kind in ("weight", "bias")}
    assert moved == norms | {"head.bias"}


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
