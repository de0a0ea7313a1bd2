"""A network's outputs, and the decision put into its last layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError
from evostep.genome.anatomy import clean_names
from evostep.interrupts import Undoing
from evostep.polishing.decision import Folded, Moved
from evostep.polishing.problem import Problem
from evostep.polishing.result import Polished
from evostep.polishing.search import center_on_plateau, units
from evostep.scoring.batches import Forward
from evostep.scoring.fitness import Fitness
from evostep.scoring.forms import Form, Known, Reader, read_form
from evostep.scoring.head import find_head
from evostep.scoring.isolation import ModuleState, listening, preserved_rng
from evostep.scoring.nests import map_tensors
from evostep.scoring.splitting import unweighted, weights_of

_WHO = "polishing"
NOTHING_KNOWN = Known()
NEW_NAME = "the weights have a new name"  # begins the note of a layer that got a bias
_FLOOR = 1e-12  # a probability of zero has no logarithm


@dataclass(frozen=True)
class Given:
    """Outputs and targets of all examples, a row for each decision.

    Attributes:
        outputs: (N, C) logits, on the CPU.
        targets: (N,) or (N, L).
        examples: how many there are.
        unit: (N,) the example of each row; None: each is one row.
        weights: (N,) that came with the batches; None: none did.
        layer: makes the outputs; None: none is known.
        probabilities: whether outputs were such, so that decisions are about their logits.
        form: how outputs and targets were read.
    """

    outputs: Tensor
    targets: Tensor
    examples: int
    unit: Tensor | None = None
    weights: Tensor | None = None
    layer: nn.Module | None = None
    probabilities: bool = False
    form: Form | None = None


@dataclass
class Spent:
    """Sample-forwards, counted where they happen."""

    sample_forwards: int = 0


@dataclass(frozen=True)
class Subject:
    """A network, its examples, and what it gives for them.

    Attributes:
        model: the network.
        examples: as `evostep.polish` takes them.
        forward: as `evostep.polish` takes it.
        known: of outputs and targets.
        given: what the network gives.
        held: examples that are judged on beside the others, and what the network gives for them.
        spent: on looking what it gives after a change.
        changes: what was put into the network, or was about to be.
    """

    model: nn.Module
    examples: Iterable[Any]
    forward: Forward | None
    known: Known
    given: Given
    held: tuple[Any, Given] | None = None
    spent: Spent = field(default_factory=Spent)
    changes: list[Folded | Moved] = field(default_factory=list)

    def take_out(self) -> None:
        """Make the network what it was."""
        for change in reversed(self.changes):
            change.revert()


def given_outputs(
    model: nn.Module | None,
    examples: Any,
    forward: Forward | None = None,
    known: Known = NOTHING_KNOWN,
) -> Given:
    """Return what a network gives, or what a black box has given.

    Args:
        model: the network; None: `examples` is (outputs, targets), of a black box.
        examples: batches as `evostep.Fitness` takes them.
        forward: as in `evostep.Fitness`.
        known: beforehand of outputs and targets.

    Raises:
        InputError: what is not understood; there is no network, and the examples are not
            (outputs, targets).
    """
    if model is not None:
        return outputs_of(model, examples, forward, known)
    if not isinstance(examples, tuple | list) or len(examples) != 2:
        raise InputError("without a model, examples must be (outputs, targets)")
    pairs = [(torch.as_tensor(examples[0]), torch.as_tensor(examples[1]))]
    return _rows(pairs, read_form(pairs, known, _WHO))


def outputs_of(
    model: nn.Module, examples: Any, forward: Forward | None = None, known: Known = NOTHING_KNOWN
) -> Given:
    """Return a model's outputs for all examples, their targets, and the layer that makes them."""
    reader = Reader(known)
    pairs, layer = _pairs_of(model, examples, forward, reader)
    form = reader.settle([(own, unweighted(truth)) for own, truth in pairs], _WHO, of_loss=False)
    return replace(_rows(pairs, form), layer=layer)


def _pairs_of(
    model: nn.Module, examples: Any, forward: Forward | None, reader: Reader
) -> tuple[list[tuple[Any, Any]], nn.Module | None]:
    """Return outputs and targets of each batch as they are, and the layer that may make them.

    Args:
        model: the network.
        examples: batches.
        forward: as in `evostep.Fitness`.
        reader: takes note of the model and the targets.
    """
    fitness = Fitness(model, examples, "accuracy", forward=forward)
    everything = fitness.examples()
    pairs: list[tuple[Any, Any]] = []
    reader.meet(model, None if forward else [unweighted(truth) for _, truth in everything])
    with (
        Undoing(),
        preserved_rng(),
        listening(reader.note_output, model),
        Undoing(ModuleState(model).restore),
        torch.no_grad(),
        fitness.scoring(),
    ):
        for inputs, targets in everything:
            own, truth = fitness.apply(model, inputs, targets)
            pairs.append((_on_cpu(own), _on_cpu(truth)))
        first = everything.batches[0]
        head = find_head(model, lambda: fitness.apply(model, *first)[0])
    return pairs, head.layer if head is not None else None


def _on_cpu(value: Any) -> Any:
    return map_tensors(value, lambda tensor: tensor.cpu())


def _rows(pairs: Sequence[tuple[Any, Any]], form: Form) -> Given:
    """Return a row for each target that counts, in the order of the examples."""
    outputs, targets, units, weights = [], [], [], []
    examples = 0
    for own, given in pairs:
        logits, truth, counted = form.logits(own, unweighted(given))
        there = torch.ones_like(truth, dtype=torch.bool) if counted is None else counted
        unit = torch.arange(examples, examples + len(truth))
        examples += len(truth)
        each = weights_of(given)
        if form.kind == "labels":  # a row has all of its labels
            outputs.append(logits)
            targets.append(truth)
            units.append(unit)
            weights.append(each)
            continue
        if each is not None:
            each = form.each(each, truth, None)
            weights.append(None if each is None else each[there])
        outputs.append(logits[there] if form.kind == "classes" else logits[there][:, None])
        targets.append(truth[there])
        units.append(unit.view(-1, *[1] * (truth.ndim - 1)).expand(truth.shape)[there])
    rows = torch.cat(outputs)
    if form.probabilities:
        edge = -math.log(_FLOOR)
        rows = rows.clamp(-edge, edge)
    unit = torch.cat(units)
    weighed = [each for each in weights if each is not None]
    return Given(
        rows,
        torch.cat(targets),
        examples,
        None if len(unit) == examples and bool((unit.diff() == 1).all()) else unit,
        torch.cat(weighed) if weighed else None,
        probabilities=form.probabilities,
        form=form,
    )


def rows_of(outputs: Any, targets: Any, form: Form) -> Tensor:
    """Return outputs that are there as rows, (N, C): see `Given`."""
    return _rows([(_on_cpu(outputs), _on_cpu(targets))], form).outputs


def fold_in(result: Polished, problem: Problem, subject: Subject, *, exactly: bool = False) -> None:
    """Put the decision into the last layer, if the network then decides as the decision does.

    Args:
        result: gets the decision as it was put in, or a note of why it was not.
        problem: the network's outputs for the examples, as it is.
        subject: the network, and the examples on which it must decide so.
        exactly: leave the biases as they are, for the metric reads more than decisions.
    """
    layer: Any = subject.given.layer
    if layer is None or len(layer.weight) != problem.biases:
        result.notes += (
            "nothing was changed: no last layer gives the outputs, use result.decision",
        )
        return
    decision = result.decision
    if not exactly:
        decision = replace(decision, bias=center_on_plateau(problem, decision.bias))
    folded = Folded(layer, decision.bias, decision.scale)
    subject.changes.append(folded)
    folded.apply()
    own = problem.of(outputs_now(subject))
    wanted = result.decision.adjusted(problem.outputs)
    differ = int((problem.decided(own.outputs) != problem.decided(wanted)).sum())
    if differ or not _alike(own, decision.adjusted(problem.outputs), layer):
        folded.revert()
        what = f"decide {differ} examples otherwise" if differ else "have other probabilities"
        result.notes += (
            f"nothing was changed: in the last layer it would {what}, use result.decision",
        )
        return
    result.decision = decision
    result.folded = folded
    if folded.is_new:
        path = next(path for path, module in subject.model.named_modules() if module is layer)
        name = clean_names([f"{path}.bias" if path else "bias"])[0]
        result.notes += (
            f"{NEW_NAME}, {name!r}, since the last layer had no bias: load them "
            "into a model whose last layer has one",
        )


def takes_decisions(subject: Subject, problem: Problem) -> bool:
    """Return whether the last layer moves the outputs as a decision in it says: one is tried.

    It does not where outputs are scaled, or put together, after it.
    """
    layer: Any = subject.given.layer
    if layer is None or len(layer.weight) != problem.biases:
        return False
    bias = units(problem)[: problem.biases] * torch.linspace(1, -1, problem.biases).double()
    tried = Folded(layer, bias)
    with Undoing(tried.revert):
        tried.apply()
        own = problem.of(outputs_now(subject))
    return _alike(own, problem.outputs + bias.to(problem.outputs), layer)


def outputs_now(subject: Subject) -> Tensor:
    """Return what the network gives for the examples as it is now, a row for each decision."""
    given = outputs_of(subject.model, subject.examples, subject.forward, subject.known)
    subject.spent.sample_forwards += given.examples
    return given.outputs


def _alike(own: Problem, wanted: Tensor, layer: Any) -> bool:
    """Return whether probabilities are what they should be, as far as the layer's type tells."""
    difference = own.probabilities(own.outputs) - own.probabilities(wanted)
    tolerance: float = torch.finfo(layer.weight.dtype).eps ** 0.5
    return float(difference.abs().max()) <= tolerance
