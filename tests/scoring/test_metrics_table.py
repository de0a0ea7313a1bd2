"""Metrics x layouts x forms of targets: each against scikit-learn, on flat integer labels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Fitness

N, C = 24, 3
METRICS: dict[str, Callable[[Any, Any], float]] = {
    "accuracy": sk.accuracy_score,
    "balanced-accuracy": sk.balanced_accuracy_score,
    "macro-f1": functools.partial(sk.f1_score, average="macro"),
}

# name -> (positions of an example, where the classes are)
LAYOUTS: dict[str, tuple[tuple[int, ...], int]] = {
    "(n, C)": ((), 1),
    "(n, C, T)": ((5,), 1),
    "(n, T, C)": ((5,), -1),
    "(n, C, H, W)": ((4, 2), 1),
    "(n, H, W, C)": ((4, 2), -1),
    "(n, C, C), told": ((C,), 1),
    "(n, T=C, C), told": ((C,), -1),
    "(n, T=1, C)": ((1,), -1),
}


def one_hot(classes: Tensor, dim: int) -> Tensor:
    return F.one_hot(classes, C).movedim(-1, dim)


# name -> (classes (n, ...), where the classes are among the outputs) -> targets
TARGETS: dict[str, Callable[[Tensor, int], Tensor]] = {
    "int64": lambda y, _: y,
    "int32": lambda y, _: y.int(),
    "uint8": lambda y, _: y.to(torch.uint8),
    "float": lambda y, _: y.float(),
    "one-hot": lambda y, dim: one_hot(y, dim).float(),
    "one-hot, int64": one_hot,
    "smoothed": lambda y, dim: one_hot(y, dim) * 0.9 + 0.1 / C,
    "smoothed, of another sum": lambda y, dim: one_hot(y, dim) * 0.9 + 0.02,
    "mixed": lambda y, dim: one_hot(y, dim) * 0.7 + 0.3 * one_hot((y + 1) % C, dim),
}


def classes(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return logits (n, ..., C) and true classes (n, ...)."""
    generator = torch.Generator().manual_seed(0)
    true = torch.randint(C, (N, *shape), generator=generator)
    logits = torch.randn(N, *shape, C, generator=generator) + F.one_hot(true, C)
    return logits, true


def scored(outputs: Tensor, truth: Tensor, metric: str, **options: Any) -> float:
    """Score outputs that a model gives as they are, in two batches that are not alike."""
    batches = list(zip(outputs.split(19), truth.split(19), strict=True))
    fitness = Fitness(nn.Identity(), batches, metric, **options)
    value = fitness()
    again = fitness.score(fitness.examples())
    assert again.value == value, "how it is read does not change"
    if again.per_example is not None:
        assert float(again.per_example.mean()) == value
    return value


@pytest.mark.parametrize(
    ("metric", "layout", "form"), list(itertools.product(METRICS, LAYOUTS, TARGETS))
)
def test_classes(metric: str, layout: str, form: str) -> None:
    shape, dim = LAYOUTS[layout]
    logits, true = classes(shape)
    options = {"class_dim": dim} if "told" in layout else {}
    value = scored(logits.movedim(-1, dim), TARGETS[form](true, dim), metric, **options)
    guess = logits.argmax(-1).flatten()
    assert value == pytest.approx(METRICS[metric](true.flatten(), guess), abs=1e-6)


@pytest.mark.parametrize(("metric", "layout"), list(itertools.product(METRICS, LAYOUTS)))
def test_classes_of_which_some_do_not_count(metric: str, layout: str) -> None:
    shape, dim = LAYOUTS[layout]
    logits, true = classes(shape)
    counted = torch.rand(true.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    for mark in (-100, 255):
        options: dict[str, Any] = {"class_dim": dim} if "told" in layout else {}
        if mark != -100:
            options["loss"] = nn.CrossEntropyLoss(ignore_index=mark)
        targets = torch.where(counted, true, mark)
        value = scored(logits.movedim(-1, dim), targets, metric, **options)
        expected = METRICS[metric](true[counted], logits.argmax(-1)[counted])
        assert value == pytest.approx(expected, abs=1e-6)


BITS: dict[str, Callable[[Tensor], Tensor]] = {
    "int64": lambda b: b.long(),
    "bool": lambda b: b,
    "uint8": lambda b: b.to(torch.uint8),
    "float": lambda b: b.float(),
    "-1 and 1": lambda b: torch.where(b, 1, -1),
    "-1.0 and 1.0": lambda b: torch.where(b, 1.0, -1.0),
    "smoothed": lambda b: torch.where(b, 0.95, 0.05),
}
# name -> logits (n,) of 1 against 0 -> outputs
ONE_OUTPUT: dict[str, tuple[Callable[[Tensor], Tensor], dict[str, Any]]] = {
    "(n,)": (lambda o: o, {}),
    "(n, 1)": (lambda o: o[:, None], {}),
    "(n, 2)": (lambda o: torch.stack([-o, o], 1), {}),
    "probabilities, told by the loss": (torch.sigmoid, {"loss": nn.BCELoss()}),
    "log-probabilities": (lambda o: torch.stack([-o, o], 1).log_softmax(1), {}),
    "logits in [0, 1], told by the loss": (
        lambda o: o.sigmoid(),
        {"loss": F.binary_cross_entropy_with_logits},
    ),
}


@pytest.mark.parametrize(
    ("metric", "outputs", "form", "column"),
    list(itertools.product(METRICS, ONE_OUTPUT, BITS, [False, True])),
)
def test_one_binary_label(metric: str, outputs: str, form: str, column: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(N, generator=generator) < 0.4
    logits = torch.randn(N, generator=generator) + true
    give, options = ONE_OUTPUT[outputs]
    targets = BITS[form](true)
    if form == "smoothed" and outputs in ("(n, 2)", "log-probabilities"):
        pytest.skip("no numbers of classes, nor a number for each class")
    value = scored(give(logits), targets[:, None] if column else targets, metric, **options)
    guess = torch.ones(N) if "logits in" in outputs else logits > 0
    expected = METRICS[metric](true.long(), guess.long())
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("metric", "form"), list(itertools.product(METRICS, BITS)))
@pytest.mark.parametrize("one_each", [False, True])
def test_several_labels(metric: str, form: str, one_each: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    true = torch.rand(N, 4, generator=generator) < 0.4
    if one_each:  # looks one-hot
        true = F.one_hot(true.long().argmax(1), 4).bool()
    logits = torch.randn(N, 4, generator=generator) + true
    value = scored(logits, BITS[form](true), metric, targets="labels" if one_each else "auto")
    guess, truth = (logits > 0).long().numpy(), true.long().numpy()
    if metric == "accuracy":
        expected = 1 - sk.hamming_loss(truth, guess)
    elif metric == "macro-f1":
        expected = sk.f1_score(truth, guess, average="macro")
    else:
        columns = zip(truth.T, guess.T, strict=True)
        expected = np.mean([sk.balanced_accuracy_score(t, g) for t, g in columns])
    assert value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_binary_pixels(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    true = (torch.rand(N, 3, 4, generator=generator) < 0.4).long()
    logits = torch.randn(N, 1, 3, 4, generator=generator) + true[:, None]
    expected = METRICS[metric](true.flatten(), (logits > 0).long().flatten())
    for targets in (true, true[:, None], true.float()):
        assert scored(logits, targets, metric) == pytest.approx(expected, abs=1e-6)
