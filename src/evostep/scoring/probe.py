"""The probe: the network that a fitness scores, as a function of coordinates, to be measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from evostep.genome.point import Coordinates, Tensors, as_weights
from evostep.interrupts import Undoing
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.nests import batch_size, map_tensors
from evostep.spaces.workspace import Workspace


class Probe:
    """The outputs of the network at any coordinates, on the examples of one generation.

    Measured in eval mode, whatever the fitness's own mode: dropout is off, and BatchNorm takes its
    running statistics, so that outputs are a function of weights and example. Modes, buffers and
    weights are put back.

    Args:
        workspace: writes coordinates into the model.
        evaluator: of a `Fitness`; counts what measuring costs.
        round: of the generation, whose examples are used.
    """

    def __init__(self, workspace: Workspace, evaluator: Evaluator, round: Round) -> None:
        assert isinstance(evaluator.fitness, Fitness), "a bare callable has no model"
        assert round.examples is not None, "a Fitness has examples"
        self._workspace = workspace
        self._evaluator = evaluator
        self._round = round
        self._examples = round.examples
        self._applied = _Applied(evaluator.fitness)
        named = (*self._applied.named_parameters(), *self._applied.named_buffers())
        ids = {id(tensor): name for name, tensor in named}
        # the model's own name of each tensor that moves; what the model does not hold has none
        self._paths = {
            name: ids[id(tensor)] for name, tensor in workspace.live.items() if id(tensor) in ids
        }

    @property
    def model(self) -> nn.Module:
        """The fitness's model."""
        return self._applied.model

    def inputs(self, limit: int) -> list[Batch]:
        """Return at most `limit` of the generation's examples, evenly spaced among all of them."""
        count = len(self._examples)
        kept = min(limit, count)
        wanted = [(2 * i + 1) * count // (2 * kept) for i in range(kept)]
        batches, first = [], 0
        for inputs, targets in self._examples:
            size = batch_size(inputs, targets)
            rows = [i - first for i in wanted if first <= i < first + size]
            if rows:
                batches.append(Batch(_rows(inputs, rows, size), len(rows)))
            first += size
        return batches

    def function(self, coordinates: Mapping[str, Tensor], inputs: Any) -> Tensor:
        """Return the outputs, (n, ...), as a function that torch.func can differentiate.

        Args:
            coordinates: name -> tensor, of those that differ from the center.
            inputs: of a `Batch`.
        """
        workspace = self._workspace
        at = Tensors({**workspace.genome.center, **coordinates})
        weights = {
            path: as_weights(workspace.space.decode(at, name), workspace.live[name])
            for name, path in self._paths.items()
        }
        outputs: Tensor = torch.func.functional_call(self._applied, weights, (inputs,))
        return outputs

    @torch.no_grad()
    def outputs(self, coordinates: Coordinates, batches: list[Batch]) -> Tensor:
        """Return the outputs at `coordinates`, (n, outputs of an example), float32 or wider."""
        with Undoing(self._workspace.restore):
            self._workspace.write(coordinates)
            with self.measuring():
                rows = [self._applied(batch.inputs).flatten(1) for batch in batches]
        self.count(forward=sum(batch.count for batch in batches))
        return torch.cat(rows).to(torch.promote_types(rows[0].dtype, torch.float32))

    def count(self, *, forward: int = 0, backward: int = 0) -> None:
        """Count examples that went through the network; a backward is two more forwards."""
        self._evaluator.spent += forward + 2 * backward

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Set eval mode and the same random streams for everyone; leave no trace."""
        with self._evaluator.unchanged(self._round, "measuring"):
            self._applied.model.eval()
            yield


class Batch:
    """Inputs of some examples, as the fitness applies the model to them."""

    def __init__(self, inputs: Any, count: int) -> None:
        self.inputs = inputs
        self.count = count


class _Applied(nn.Module):
    """The model as the fitness applies it: inputs of any form in, a tensor of outputs out."""

    def __init__(self, fitness: Fitness) -> None:
        super().__init__()
        self.model: nn.Module = fitness.model
        self._fitness = fitness

    def forward(self, inputs: Any) -> Tensor:
        # the same rows are measured several times: a model may write into its input
        inputs = map_tensors(inputs, Tensor.clone)
        outputs, _ = self._fitness.apply(self.model, inputs, None)
        if not isinstance(outputs, Tensor) or outputs.dim() == 0:
            raise ValueError(
                f"the outputs of {type(self.model).__name__} must be one tensor with a row for "
                f"each example, got {type(outputs).__name__}: pass Fitness(forward=...)"
            )
        return outputs if outputs.dim() > 1 else outputs.unsqueeze(1)


def _rows(inputs: Any, rows: list[int], size: int) -> Any:
    def pick(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or len(tensor) != size:
            return tensor  # shared by all examples
        return tensor[torch.tensor(rows, device=tensor.device)]

    return map_tensors(inputs, pick)
