"""The workspace: writes members into a model's own tensors, in place, and the center back."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from evostep.errors import InputError
from evostep.genome.members import Mirror, reflect_
from evostep.genome.point import Coordinates, Genome, Tensors, as_coordinates
from evostep.genome.slots import version
from evostep.spaces.base import Space


class Workspace:
    """The live tensors that a space moves, and the center from which they are restored.

    Args:
        space: which moves them.
        genome: of the space as it was opened.
        live: name -> the tensor itself.
        shared: which of them lies on the memory of another tensor of the model, in words: only
            weights that are written in place then reach both. None: none does.

    Raises:
        ValueError: a tensor made in `torch.inference_mode`, which nothing outside of it may change.
    """

    def __init__(
        self,
        space: Space,
        genome: Genome,
        live: Mapping[str, Tensor],
        shared: str | None = None,
    ) -> None:
        for name, tensor in live.items():
            if tensor.is_inference() and not torch.is_inference_mode_enabled():
                raise InputError(
                    f"{name!r} was made in torch.inference_mode() and cannot be changed outside of "
                    "it: make the model elsewhere, or evolve a copy.deepcopy of it"
                )
        self.space = space
        self.genome = genome
        self.live = live
        self.shared = shared
        self._dirty = False
        # what was written last, if nothing has touched it since: its mirror image is made of it
        self._standing: tuple[Coordinates, list[tuple[int, int]]] | None = None

    @torch.no_grad()
    def write(self, coordinates: Coordinates) -> None:
        """Write the weights at `coordinates` into the model, in place, tensor by tensor."""
        self._dirty = True
        torch.clear_autocast_cache()  # keeps weights that it has cast; these change under it
        mirrored = self._stands_opposite(coordinates)
        self._standing = None  # until all of it is written
        for name, tensor in self.live.items():
            if mirrored:
                reflect_(as_coordinates(tensor), self.genome.center[name])
            else:
                self.space.write(coordinates, name, tensor)
        self._standing = coordinates, self._versions()

    def disturbed(self) -> None:
        """Take note that somebody else wrote to the weights: `restore` writes the center back."""
        self._dirty, self._standing = True, None

    def touched(self) -> None:
        """Take note that the weights may have been written to, behind torch's counters."""
        self._standing = None

    def _stands_opposite(self, coordinates: Coordinates) -> bool:
        """Return whether the weights are, to the bit, the member that is to be mirrored."""
        if self._standing is None or not isinstance(coordinates, Mirror):
            return False
        written, versions = self._standing
        opposite = self.space.holds_weights and not self.space.precise
        opposite = opposite and coordinates.reflects(written)
        return opposite and versions == self._versions()

    def _versions(self) -> list[tuple[int, int]]:
        return [(version(tensor), tensor.data_ptr()) for tensor in self.live.values()]

    def restore(self) -> None:
        """Write the center back, bit for bit, if anything else was written since."""
        if self._dirty:
            self.write(Tensors(self.genome.center))
            self._dirty = False
            self._standing = None

    @property
    def dirty(self) -> bool:
        """Whether the weights may be others than the center's."""
        return self._dirty

    def settle(self, coordinates: Coordinates) -> Coordinates:
        """Return what was last written, at `coordinates`, as the center may be moved there."""
        return self.space.settle(coordinates, self.genome, self.live)

    def accept(self, settled: Coordinates) -> None:
        """Make what was last written, and then settled, the center; to be finished once begun."""
        self._standing = None  # recipes are relative to the center
        self.genome.move(settled)
        self._dirty = False
