"""Random mutation: copies of the network with noise on their weights, the best one proposed.

Method 1 of "Spartan neural network training" (2020). With `Improves` as the acceptance rule it is
the (1 + lambda) evolution strategy: the parent survives unless a child is strictly better. The
article scores children only; here the parent is scored again on the same examples as its children.
With ``scale="safe"`` mutations are small where the outputs are sensitive: see `Safe`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from evostep.errors import renamed_argument
from evostep.genome.members import Perturbed, Spread
from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.strategies.base import NoiseStrategy, ScaleKind, State, Step
from evostep.strategies.safe import Safe, measure_sensitivity, output_change, search_magnitude

if TYPE_CHECKING:
    from evostep.scoring.probe import Probe

MutationScale = ScaleKind | Literal["safe"] | Safe


@renamed_argument("children", "population")
@dataclass(frozen=True)
class RandomMutation(NoiseStrategy):
    """Propose the best of `population` noisy copies of the center.

    Args:
        sigma: standard deviation of the mutations, in units of `scale`.
        population: copies in a generation, at least 1.
        scale: ``"rms"`` (relative to each tensor's root mean square), ``"absolute"``, ``"safe"``
            (relative to the inverse of each weight's sensitivity, as `Safe()` says) or a `Safe`;
            the last two need a `Fitness`, and measuring counts as sample-forwards.
        noise: ``"normal"``, ``"uniform"`` (on [-1, 1]) or ``LowRank(rank)``.

    Raises:
        ValueError: sigma <= 0, a population below 1, an unknown scale or noise.

    Example:
        >>> RandomMutation(sigma=0.02, population=16).size
        16
    """

    selects: ClassVar[bool] = True

    population: int = 16
    # wider than the base's, and the base only ever compares it
    scale: MutationScale = field(default="rms", kw_only=True)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population < 1:
            raise ValueError(f"population must be at least 1, got {self.population}")

    def check_scale(self) -> None:
        """Raise ValueError for a scale that is neither a name nor a `Safe`."""
        if self.safe is None and self.scale not in ("rms", "absolute"):
            raise ValueError(
                f"scale must be one of rms, absolute, got {self.scale!r}; or 'safe', or a Safe(...)"
            )

    @property
    def safe(self) -> Safe | None:
        """How mutations are kept safe, or None."""
        if isinstance(self.scale, Safe):
            return self.scale
        return Safe() if self.scale == "safe" else None

    @property
    def needs_probe(self) -> bool:
        """Whether mutations are safe, for which outputs are measured."""
        return self.safe is not None

    @property
    def spread(self) -> Spread:
        """How far members reach, sensitivities apart."""
        safe = self.safe
        return Spread(
            self.sigma, self.scale == "rms" or (safe is not None and safe.kind == "rescale")
        )

    @property
    def size(self) -> int:
        """The population."""
        return self.population

    def prepare(
        self, genome: Genome, state: State, generation: int, seed: int, probe: Probe | None
    ) -> State:
        """Measure sensitivities, and search each child's magnitude, where mutations are safe."""
        safe = self.safe
        moving = {
            name: center
            for name, center in genome.center.items()
            if self.sigma_of(genome, name) != 0
        }
        if safe is None or probe is None or not moving:
            return state
        batches = probe.inputs(safe.examples)
        sensitivity: Mapping[str, Tensor] = {}
        if safe.kind != "rescale":
            sensitivity = measure_sensitivity(probe, moving, batches, safe.kind)
        mutants = [
            _SafeMutant(genome, self.noise, self.spread, seed, generation, i, sensitivity)
            for i in range(self.population)
        ]
        if safe.target is not None:
            before = probe.outputs(Tensors(genome.center), batches)
            for i, mutant in enumerate(mutants):

                def change(magnitude: float, mutant: _SafeMutant = mutant) -> float:
                    after = probe.outputs(replace(mutant, magnitude=magnitude), batches)
                    return output_change(before, after)

                mutants[i] = replace(mutant, magnitude=search_magnitude(change, safe.target))
        return {**state, "mutants": mutants}

    def measuring_cost(self, examples: int, outputs: int) -> int:
        """Return what `Safe` measures at most, where mutations are safe: see `Safe.cost`."""
        return 0 if self.safe is None else self.safe.cost(examples, outputs, self.size)

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return child `i`: center + sigma * scale * eps_i."""
        if self.safe is not None and "mutants" in state:
            mutant: Coordinates = state["mutants"][i]
            return mutant
        return self.perturbed(genome, seed, generation, i)

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the child with the highest score, the first among equals."""
        after = {key: value for key, value in state.items() if key != "mutants"}
        finite = [i for i, score in enumerate(scores) if math.isfinite(score)]
        if not finite:
            return None, after
        best = max(finite, key=lambda i: scores[i])
        return Step(self.member(genome, state, generation, best, seed), scored=best), after


@dataclass(frozen=True)
class _SafeMutant(Perturbed):
    """Center + magnitude * sigma * scale * noise / sensitivity, one tensor at a time."""

    sensitivity: Mapping[str, Tensor] = field(default_factory=dict)
    magnitude: float = 1.0

    def _spread(self, noise: Tensor, name: str) -> Tensor:
        """Multiply noise by sigma, scale and magnitude, and divide it by the sensitivity."""
        if name in self.sensitivity:
            noise.div_(self.sensitivity[name])
        return super()._spread(noise.mul_(self.magnitude), name)

    def factors(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return None: divided by sensitivities noise is of low rank no longer."""
        return None
