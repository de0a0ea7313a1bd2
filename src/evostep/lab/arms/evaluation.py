"""How a model is measured: the fitness of evolution, and the numbers of records and tables."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.lab.data.images import ImageData
from evostep.lab.data.parts import Part, Parts
from evostep.lab.imports import resolve_metric
from evostep.lab.options import Options
from evostep.scoring.fitness import Fitness
from evostep.scoring.metrics import accuracy, is_to_be_large, make_metric
from evostep.scoring.texts import TEXT_METRICS


def make_fitness(
    model: nn.Module,
    part: Part,
    data: ImageData,
    options: Options,
    calibration: list[tuple[Tensor, Tensor]] | None = None,
) -> Fitness:
    """Return the fitness of a part of the data: the metric that is reported."""
    return Fitness(
        model,
        part.batches(data),
        resolve_metric(options.metric),
        higher_is_better=options.higher_is_better,
        calibration=calibration,
    )


def evaluate(model: nn.Module, part: Part, data: ImageData, options: Options) -> dict[str, float]:
    """Measure accuracy, cross-entropy and the chosen metric in eval mode.

    Returns:
        ``{"accuracy", "loss", <metric>}``; a metric of one's own of which less is better is
        negated, as evolution sees it, one with a name is not. All of them NaN where an output is
        not finite: what a network that has diverged votes for is no accuracy. Empty where the part
        is. Of texts accuracy is exact match, and the loss what character similarity lacks to 1.
    """
    if not len(part):
        return {}
    first = Fitness(model, part.batches(data), "exact-match" if data.of_texts else "accuracy")
    outputs = first.score(first.examples(), keep_outputs=True).outputs
    tensor = isinstance(outputs, Tensor)  # or texts
    if outputs is None or (tensor and not bool(torch.isfinite(outputs).all())):
        return dict.fromkeys(("accuracy", "loss", options.metric), math.nan)
    measure = _of_texts if data.of_texts else _of_classes
    values = measure(outputs, part.targets)
    if options.metric not in values:
        metric = make_metric(
            resolve_metric(options.metric), higher_is_better=options.higher_is_better
        )()
        metric.update(outputs, part.targets)
        sign = 1 if is_to_be_large(options.metric) else -1
        values[options.metric] = sign * float(metric.compute()[0])
    return values


def _of_classes(logits: Any, targets: Tensor) -> dict[str, float]:
    right, loss = accuracy(logits, targets), F.cross_entropy(logits, targets)
    return {"accuracy": float(right.mean()), "loss": float(loss)}


def _of_texts(read: Any, targets: Tensor) -> dict[str, float]:
    """Return exact match as the accuracy, and as the loss the errors by character."""
    exact, similar = (
        float(TEXT_METRICS[name](read, targets).mean())
        for name in ("exact-match", "character-similarity")
    )
    return {"accuracy": exact, "loss": 1 - similar}


def evaluate_at_the_end(
    model: nn.Module, parts: Parts, options: Options, *, all_data: bool
) -> dict[str, dict[str, float]]:
    """Measure a final model on every part: the only time that the test examples are read.

    Args:
        model: what a run ended with.
        parts: of the data.
        options: of the comparison.
        all_data: whether gradients have seen the fitness and accept examples, too.

    Returns:
        What `evaluate` returns, by the name of the part.
    """
    found = {"test": parts.test, "train": parts.gradients(all_data)}
    found |= {"fitness": parts.fitness, "accept": parts.accept}
    return {name: evaluate(model, part, parts.data, options) for name, part in found.items()}
