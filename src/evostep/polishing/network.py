"""A network's outputs, and the decision put into its last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from evostep.errors import InputError
from evostep.genome.anatomy import clean_names
from evostep.polishing.decision import Decision, Folded
from evostep.polishing.problem import Problem
from evostep.polishing.result import Polished
from evostep.polishing.search import center_on_plateau
from evostep.scoring.batches import Forward
from evostep.scoring.fitness import Fitness
from evostep.scoring.head import find_head
from evostep.scoring.isolation import ModuleState, preserved_rng
from evostep.scoring.nests import concatenate

Outputs = tuple[Any, Any, Any]


def given_outputs(model: nn.Module | None, examples: Any, forward: Forward | None) -> Outputs:
    """Return outputs, targets and last layer of a network, or what a black box has given.

    Raises:
        InputError: there is no network, and the examples are not (outputs, targets).
    """
    if model is not None:
        return outputs_of(model, examples, forward)
    if not isinstance(examples, tuple | list) or len(examples) != 2:
        raise InputError("without a model, examples must be (outputs, targets)")
    return examples[0], examples[1], None


def outputs_of(model: nn.Module, examples: Any, forward: Forward | None = None) -> Outputs:
    """Return a model's outputs for all examples, their targets, and the layer that makes them."""
    fitness = Fitness(model, examples, "accuracy", forward=forward)
    everything = fitness.examples()
    outputs, targets = [], []
    with preserved_rng():
        state = ModuleState(model)
        try:
            with torch.no_grad(), fitness.scoring():
                for batch in everything:
                    own, truth = fitness.apply(model, *batch)
                    outputs.append(own)
                    targets.append(truth)
                first = everything.batches[0]
                head = find_head(model, lambda: fitness.apply(model, *first)[0])
        finally:
            state.restore()
    layer = head.layer if head is not None and head.is_last else None
    return concatenate(outputs), concatenate(targets), layer


def fold_in(
    result: Polished,
    problem: Problem,
    layer: Any,
    model: nn.Module,
    examples: Any,
    forward: Forward | None = None,
) -> None:
    """Put the decision into the last layer, if the network then decides as the decision does.

    Args:
        result: gets the decision as it was put in, or a note of why it was not.
        problem: the network's outputs for the examples, as it is.
        layer: makes the outputs; None: none does.
        model: the network.
        examples: on which it must decide so.
        forward: as in `evostep.polish`.
    """
    if layer is None or len(layer.weight) != problem.biases:
        result.notes += (
            "nothing was changed: no last layer gives the outputs, use result.decision",
        )
        return
    bias = center_on_plateau(problem, result.decision.bias)
    folded = Folded(layer, bias)
    folded.apply()
    own = problem.of(outputs_of(model, examples, forward)[0])
    wanted = problem.decide(result.decision.bias)
    differ = int((own.decide(torch.zeros(problem.biases)) != wanted).sum())
    if differ:
        folded.revert()
        result.notes += (
            f"nothing was changed: in the last layer it would decide {differ} examples otherwise, "
            "use result.decision",
        )
        return
    result.decision = Decision(problem.kind, bias, result.metric)
    result.folded = folded
    if folded.is_new:
        path = next(path for path, module in model.named_modules() if module is layer)
        name = clean_names([f"{path}.bias" if path else "bias"])[0]
        result.notes += (
            f"the weights have a new name, {name!r}, since the last layer had no bias: load them "
            "into a model whose last layer has one",
        )
