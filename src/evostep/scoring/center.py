"""The center: weights, and the BatchNorm statistics that belong to them, moved as a whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from evostep.genome.point import Coordinates, Tensors, as_coordinates, as_weights
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace


class Center:
    """Where a model stands within a phase, and where it may be put back.

    Moves are to be finished once they are begun (`evostep.interrupts.finish`): they come to the
    same when they are done again.

    Args:
        workspace: writes weights into the model.
        evaluator: whose fitness estimates statistics, and whose state puts buffers back.
        second: of another fitness on the same model, which puts them back, too.
    """

    def __init__(
        self, workspace: Workspace, evaluator: Evaluator, second: Evaluator | None = None
    ) -> None:
        self.workspace = workspace
        self._evaluator = evaluator
        self._states = [e.state for e in (evaluator, second) if e is not None and e.state]

    def copy(self) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Return copies of the coordinates and of the buffers."""
        state = self._evaluator.state
        coordinates = {name: z.clone() for name, z in self.workspace.genome.center.items()}
        return coordinates, state.values() if state is not None else []

    def try_out(
        self, coordinates: Coordinates, round: Round
    ) -> tuple[list[Tensor] | None, Scores | None]:
        """Write weights and estimate their statistics; return these, or why there are none."""
        self.workspace.write(coordinates)
        evaluator = self._evaluator
        if not evaluator.calibrates:
            return None, None
        try:
            evaluator.calibrate(round)
        except Exception as error:
            return None, Scores.failure(error)
        assert evaluator.state is not None, "a Fitness knows its model"
        return evaluator.state.values(), None

    def commit(self, settled: Coordinates, statistics: list[Tensor] | None) -> None:
        """Move to what was last written, and settled, with the statistics that belong to it."""
        self.workspace.accept(settled)
        if statistics is not None and self._evaluator.state is not None:
            self._evaluator.state.write(statistics)
            self._hold()

    def write(self, coordinates: Mapping[str, Tensor], buffers: list[Tensor]) -> None:
        """Write weights and buffers into the model, to be scored."""
        self.workspace.write(Tensors(coordinates))
        if self._evaluator.state is not None:
            self._evaluator.state.write(buffers)

    def move(self, coordinates: Mapping[str, Tensor], buffers: list[Tensor]) -> None:
        """Move to what `copy` returned."""
        self.write(coordinates, buffers)
        self.workspace.genome.move(Tensors(coordinates))
        self.workspace.restore()
        self._hold()

    def restore(self, *, buffers: bool = True) -> None:
        """Write the center back, bit for bit, if anything else was written since."""
        self.workspace.restore()
        for state in self._states if buffers else ():
            state.restore()

    @torch.no_grad()
    def lost(self) -> str | None:
        """Return which weights, as they stand, are NaN or infinite where the center's are not."""
        workspace, center = self.workspace, Tensors(self.workspace.genome.center)
        ends: dict[torch.device, list[Tensor]] = {}
        for tensor in workspace.live.values():
            if tensor.numel():
                found = as_coordinates(tensor).aminmax()
                ends.setdefault(tensor.device, []).extend(end.double() for end in found)
        if all(bool(torch.stack(some).isfinite().all()) for some in ends.values()):
            return None
        for name, tensor in workspace.live.items():
            before = as_weights(workspace.space.decode(center, name), tensor)
            if bool((before.isfinite() & ~tensor.isfinite()).any()):
                return name
        return None

    @torch.no_grad()
    def disturbed(self) -> bool:
        """Whether somebody else wrote to the weights; then the center is due to be restored."""
        workspace = self.workspace
        center = Tensors(workspace.genome.center)
        apart = [
            torch.any((there != tensor) & ~(there.isnan() & tensor.isnan()))
            for name, tensor in workspace.live.items()
            for there in [as_weights(workspace.space.decode(center, name), tensor)]
        ]
        if any(apart):
            workspace.disturbed()
            return True
        return False

    def derive_weights(self) -> None:
        """Make weights that hooks of the model derive (`weight_norm`, pruning) the center's."""
        for state in self._states:
            state.derive_weights()

    def hold_attributes(self) -> None:
        """Take what a callback of the user's set on modules as what scorings put back."""
        for state in self._states:
            state.hold_attributes()

    def _hold(self) -> None:
        for state in self._states:
            state.hold()


def fingerprint(tensors: Mapping[str, Tensor]) -> list[int]:
    """Return a checksum of each tensor's bits, which tells other weights from the same.

    Example:
        >>> w = torch.tensor([1.0, 2.0])
        >>> fingerprint({"w": w}) == fingerprint({"w": w.flip(0)})
        False
    """
    return [_checksum(tensor) for tensor in tensors.values()]


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def _checksum(tensor: Tensor) -> int:
    flat = as_coordinates(tensor.detach()).contiguous().flatten()
    bits = flat.view(_INTEGERS[flat.element_size()]).cpu()
    # sums of products wrap around; odd factors lose no bit
    return int((bits.long() * torch.arange(1, 2 * len(bits), 2)).sum())
