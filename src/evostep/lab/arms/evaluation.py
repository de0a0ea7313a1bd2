"""How a model is measured: the fitness of evolution, and the numbers of records and tables."""

from __future__ import annotations

import math

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
    if data.of_texts:
        return _evaluate_texts(model, part, data, options)
    outputs = Fitness(model, part.batches(data), "accuracy")
    logits = outputs.score(outputs.examples(), keep_outputs=True).outputs
    if logits is None or not bool(torch.isfinite(logits).all()):
        return dict.fromkeys(("accuracy", "loss", options.metric), math.nan)
    values = {
        "accuracy": float(accuracy(logits, part.targets).mean()),
        "loss": float(F.cross_entropy(logits, part.targets)),
    }
    if options.metric not in values:
        metric = make_metric(
            resolve_metric(options.metric), higher_is_better=options.higher_is_better
        )()
        metric.update(logits, part.targets)
        sign = 1 if is_to_be_large(options.metric) else -1
        values[options.metric] = sign * float(metric.compute()[0])
    return values


def _evaluate_texts(
    model: nn.Module, part: Part, data: ImageData, options: Options
) -> dict[str, float]:
    """Return, of texts, exact match as the accuracy, and as the loss the errors by character."""
    fitness = Fitness(model, part.batches(data), "exact-match")
    read = fitness.score(fitness.examples(), keep_outputs=True).outputs
    measure = {name: metric(read, part.targets) for name, metric in TEXT_METRICS.items()}
    found = {
        "accuracy": float(measure["exact-match"].mean()),
        "loss": 1 - float(measure["character-similarity"].mean()),
    }
    if options.metric in measure:
        return found | {options.metric: float(measure[options.metric].mean())}
    whole = make_metric(resolve_metric(options.metric), higher_is_better=options.higher_is_better)()
    whole.update(read, part.targets)
    return found | {options.metric: float(whole.compute()[0])}


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
