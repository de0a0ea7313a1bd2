""" "neg-loss" is minus the loss over all examples in one batch, whatever is ignored or weighted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Fitness

G = torch.Generator().manual_seed(0)
LOGITS, CLASSES = torch.randn(50, 3, generator=G), torch.randint(3, (50,), generator=G)
IGNORED = CLASSES.masked_fill(torch.rand(50, generator=G) < 0.4, -100)
PIXELS = torch.randn(20, 3, 4, 5, generator=G)
OF_PIXELS = torch.randint(3, (20, 4, 5), generator=G)
OF_PIXELS[torch.rand(20, 4, 5, generator=G) < torch.rand(20, 1, 1, generator=G)] = -100
SOFT = torch.rand(50, 3, generator=G).softmax(1)
REAL, OTHER = torch.randn(50, 4, generator=G), torch.randn(50, 4, generator=G)
BITS = (torch.rand(50, 4, generator=G) < 0.4).float()
WEIGHT = torch.tensor([1.0, 10.0, 100.0])

# name -> (a loss, outputs, targets)
LOSSES: dict[str, tuple[Callable[..., Any], Tensor, Tensor]] = {
    "cross-entropy": (nn.CrossEntropyLoss, LOGITS, CLASSES),
    "ignored": (nn.CrossEntropyLoss, LOGITS, IGNORED),
    "another mark": (partial(nn.CrossEntropyLoss, ignore_index=1), LOGITS, CLASSES),
    "weights": (partial(nn.CrossEntropyLoss, weight=WEIGHT), LOGITS, CLASSES),
    "weights, ignored": (partial(nn.CrossEntropyLoss, weight=WEIGHT), LOGITS, IGNORED),
    "weights, smoothing": (
        partial(nn.CrossEntropyLoss, weight=WEIGHT, label_smoothing=0.2),
        LOGITS,
        IGNORED,
    ),
    "soft": (partial(nn.CrossEntropyLoss, weight=WEIGHT), LOGITS, SOFT),
    "pixels": (partial(nn.CrossEntropyLoss, weight=WEIGHT), PIXELS, OF_PIXELS),
    "likelihood": (partial(nn.NLLLoss, weight=WEIGHT), LOGITS.log_softmax(1), IGNORED),
    "binary, logits": (
        partial(nn.BCEWithLogitsLoss, pos_weight=torch.arange(1.0, 5.0)),
        REAL,
        BITS,
    ),
    "binary": (nn.BCELoss, REAL.sigmoid(), BITS),
    "binary, weights": (partial(nn.BCELoss, weight=torch.arange(1.0, 5.0)), REAL.sigmoid(), BITS),
    "squares": (nn.MSELoss, REAL, OTHER),
    "absolute": (nn.L1Loss, REAL, OTHER),
    "smooth": (partial(nn.SmoothL1Loss, beta=0.3), REAL, OTHER),
    "huber": (nn.HuberLoss, REAL, OTHER),
    "divergence": (nn.KLDivLoss, LOGITS.log_softmax(1), SOFT),
    "soft margin": (nn.SoftMarginLoss, REAL, 2 * BITS - 1),
    "several labels": (nn.MultiLabelSoftMarginLoss, REAL, BITS),
    "poisson": (nn.PoissonNLLLoss, REAL, BITS),
}


def scored(loss: Any, outputs: Tensor, targets: Tensor, size: int = 7) -> tuple[float, Any]:
    batches = list(zip(outputs.split(size), targets.split(size), strict=True))
    fitness = Fitness(nn.Identity(), batches, "neg-loss", loss=loss)
    scores = fitness.score(fitness.examples())
    return scores.value, scores.per_example


@pytest.mark.filterwarnings("ignore:reduction. 'mean'")  # torch's, of nn.KLDivLoss
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_it_is_minus_the_loss(name: str, reduction: str) -> None:
    make, outputs, targets = LOSSES[name]
    # in float64 both are the same to the last digits, in float32 as torch's own sum rounds
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        loss = make(reduction=reduction).to(dtype)
        given = targets.to(dtype) if targets.is_floating_point() else targets
        whole = make(reduction="mean" if reduction == "none" else reduction).to(dtype)
        expected = -float(whole(outputs.to(dtype), given))
        value, per_example = scored(loss, outputs.to(dtype), given)
        assert value == pytest.approx(expected, rel=tolerance)
        assert float(per_example.mean()) == value
        assert loss.reduction == reduction


def test_a_divergence_by_batch() -> None:
    loss = nn.KLDivLoss(reduction="batchmean")
    outputs = LOGITS.log_softmax(1)
    assert scored(loss, outputs, SOFT)[0] == pytest.approx(-float(loss(outputs, SOFT)), rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        (F.cross_entropy, IGNORED),
        (partial(F.cross_entropy, weight=WEIGHT), IGNORED),
        (partial(F.cross_entropy, ignore_index=2, reduction="sum"), CLASSES),
        (partial(partial(F.cross_entropy, label_smoothing=0.1), weight=WEIGHT), IGNORED),
        (lambda o, t: F.cross_entropy(o, t, weight=WEIGHT), IGNORED),
        (partial(F.mse_loss, reduction="sum"), SOFT),
        (F.smooth_l1_loss, SOFT),
    ],
)
def test_functions(loss: Any, targets: Tensor) -> None:
    expected = -float(loss(LOGITS, targets))
    assert scored(loss, LOGITS, targets)[0] == pytest.approx(expected, rel=1e-6)


def test_a_column_is_not_broadcast() -> None:
    outputs, targets = REAL[:, :1], OTHER[:, 0]
    for loss in (F.mse_loss, nn.L1Loss()):
        expected = -float(loss(outputs[:, 0], targets))
        assert scored(loss, outputs, targets)[0] == pytest.approx(expected, rel=1e-6)
    expected = -float(F.binary_cross_entropy_with_logits(REAL[:, 0], BITS[:, 0]))
    found = scored(F.binary_cross_entropy_with_logits, REAL[:, :1], BITS[:, 0].long())[0]
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("metric", ["accuracy", "balanced-accuracy", "macro-f1", "neg-loss"])
def test_ragged_batches_weigh_by_the_targets_that_count(metric: str) -> None:
    torch.manual_seed(0)
    model = nn.Conv1d(4, 3, 1)
    xs = [torch.randn(2, 4, 4), torch.randn(2, 4, 100)]
    ys = [torch.randint(3, (2, 4)), torch.full((2, 100), -100)]
    ys[1][:, :2] = torch.randint(3, (2, 2))
    with torch.no_grad():
        logits = torch.cat([model(x).movedim(1, 2).flatten(0, 1) for x in xs])
    labels = torch.cat([y.flatten() for y in ys])
    logits, labels = logits[labels != -100], labels[labels != -100]
    flat = Fitness(nn.Identity(), [(logits, labels)], metric)
    found = Fitness(model, list(zip(xs, ys, strict=True)), metric)
    assert found() == pytest.approx(flat(), rel=1e-6)


def test_ragged_batches_of_a_regression_weigh_by_their_numbers() -> None:
    xs, ys = [torch.randn(2, 4), torch.randn(3, 50)], [torch.randn(2, 4), torch.randn(3, 50)]
    squares = torch.cat([(x - y).square().flatten() for x, y in zip(xs, ys, strict=True)])
    found = Fitness(nn.Identity(), list(zip(xs, ys, strict=True)), "neg-loss", loss=F.mse_loss)
    assert found() == pytest.approx(-float(squares.mean()), rel=1e-6)
