"""Random search: the control for every space. Does following scores beat drawing blindly?

Samples come from one fixed distribution around an anchor, whatever was found before, and the best
is kept: pure random search (Brooks 1958, "A Discussion of Random Methods for Seeking Maxima",
https://doi.org/10.1287/opre.6.2.244; the control of Bergstra & Bengio 2012,
https://jmlr.org/papers/v13/bergstra12a.html). `RandomMutation` differs in that its children are
drawn around the best so far, so that it walks: that is the (1 + lambda) strategy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.strategies.base import NoiseStrategy, State, Step

if TYPE_CHECKING:
    from evostep.scoring.probe import Probe


@dataclass(frozen=True)
class RandomSearch(NoiseStrategy):
    """Draw around where the search opened, with a fixed radius; propose what beats the center.

    The anchor is where the weights stood when the search began, and begins anew wherever something
    else moved them since (gradient steps, a space that was opened again). A center that this
    search proposed, or to which a rejection went back, leaves the anchor where it is.

    A member is proposed where it scores strictly higher than the center, which is scored on the
    same examples: the best is kept under every rule of acceptance, `Always` included.

    Memory: after the first proposal one copy of the moving weights, the anchor, is in the state;
    the center itself belongs to the model.

    Args:
        sigma: standard deviation of the samples (half the width where they are uniform), in units
            of `scale`.
        population: samples in a generation, at least 1.
        scale: ``"rms"`` (relative to each tensor's root mean square at the anchor) or
            ``"absolute"``.
        noise: ``"normal"``, ``"uniform"`` (on [-1, 1], a box) or ``LowRank(rank)``.

    Raises:
        ValueError: sigma <= 0, fewer than one sample, an unknown scale or noise.

    Example:
        >>> RandomSearch(sigma=0.02, population=32, noise="uniform").size
        32
    """

    selects: ClassVar[bool] = True
    beats_parent: ClassVar[bool] = True

    population: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population < 1:
            raise ValueError(f"population must be at least 1, got {self.population}")

    @property
    def size(self) -> int:
        """The population."""
        return self.population

    def prepare(
        self, genome: Genome, state: State, generation: int, seed: int, probe: Probe | None
    ) -> State:
        """Find where the anchor is, which takes the noise of a sample: once for all members."""
        return {**state, "place": self._place(genome, state, seed)}

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return sample `i`: anchor + sigma * scale * eps_i."""
        opened = self._place(genome, state, seed).opened or genome
        return self.perturbed(opened, seed, generation, i)

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the best sample, the first among equals, if it scores higher than the center."""
        place = self._place(genome, state, seed)
        before = {key: value for key, value in state.items() if key != "place"}
        finite = [i for i, score in enumerate(scores) if math.isfinite(score)]
        best = max(finite, key=lambda i: scores[i], default=None)
        if best is None or scores[best] <= parent:
            return None, before
        if place.opened is None:  # the center is the anchor and may move away: its one copy
            anchor = {name: genome.center[name].clone() for name in self._moving(genome)}
        else:
            anchor = {name: place.opened.center[name] for name in self._moving(genome)}
        opened = genome.at({**genome.center, **anchor})
        proposed = [generation, best]
        sample = self.perturbed(opened, seed, generation, best)
        told = {"anchor": anchor, "here": place.here, "proposed": proposed}
        return Step(sample, scored=best), told

    def _moving(self, genome: Genome) -> list[str]:
        return [name for name in genome.center if self.sigma_of(genome, name) != 0]

    def _place(self, genome: Genome, state: State, seed: int) -> _Place:
        """Return where the anchor is, and which sample the center is."""
        if "place" in state:
            found: _Place = state["place"]
            return found
        moving = self._moving(genome)
        if state and set(moving) == set(state["anchor"]):
            anchor = {name: state["anchor"][name].to(genome.center[name].device) for name in moving}
            opened = genome.at({**genome.center, **anchor})
            for here in (state["proposed"], state["here"], None):
                spot: Coordinates = Tensors(anchor)
                if here is not None:
                    spot = self.perturbed(opened, seed, here[0], here[1])
                if all(_stands(genome.center[name], spot, name) for name in moving):
                    return _Place(opened, here)
        return _Place(None, None)  # nothing told yet, or moved by something else


def _stands(center: Tensor, spot: Coordinates, name: str) -> bool:
    """Return whether the center is what writing `spot` leaves there, to the bit."""
    there = spot.tensor(name)
    return there.shape == center.shape and torch.equal(center, there.to(center.dtype))


@dataclass(frozen=True)
class _Place:
    """Where a generation stands.

    Attributes:
        opened: the genome at the anchor; None where the search opens at the center itself.
        here: [generation, sample] that the center is; None where it is the anchor.
    """

    opened: Genome | None
    here: list[int] | None
