"""Offspring as recipes: numbers of parents and noise, made tensor by tensor where needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from evostep.genome.point import root_mean_square
from evostep.genome.slots import slots_of_module
from evostep.interrupts import Undoing
from evostep.noise import draw
from evostep.population.individual import Individual, transplant, warn_of_followers
from evostep.population.scoring import Scorer
from evostep.population.selection import recombine
from evostep.scoring.attributes import derive_weights
from evostep.scoring.scores import Scores
from evostep.strategies.base import ScaleKind
from evostep.weight_copies import carry_over

Inherit = Literal["state", "fresh"]


@dataclass(frozen=True)
class Newborn:
    """An offspring that survived, ready to be written into its place."""

    place: int
    tensors: dict[str, Tensor]
    individual: Individual

    @torch.no_grad()
    def write(self) -> None:
        """Write it into its model; gradients of whoever lived there are dropped."""
        for name, tensor in self.individual.tensors().items():
            tensor.copy_(self.tensors[name])
            tensor.grad = None
        derive_weights(self.individual.model)


class Litter:
    """The offspring of one round: each the mean of some parents, plus noise.

    Parameters that need a gradient get the noise. Other parameters and floating-point buffers are
    the parents' mean, buffers of other types the first parent's.

    Args:
        individuals: the population that breeds; unchanged while the litter is in use.
        parents: of each offspring, the numbers of those that it comes from.
        sigma: standard deviation of the noise in this phase, in units of `scale`.
        scale: ``"absolute"``, or ``"rms"``: relative to the root mean square of each mean tensor.
        seed: of the run.
        generation: number of the round over the whole run.
    """

    def __init__(
        self,
        individuals: Sequence[Individual],
        parents: Sequence[tuple[int, ...]],
        *,
        sigma: float,
        scale: ScaleKind,
        seed: int,
        generation: int,
    ) -> None:
        self.individuals = individuals
        self.parents = parents
        self.sigma = sigma
        self.scale = scale
        self.seed = seed
        self.generation = generation
        self._mutable = [
            {name for name, tensor in one.parameters().items() if tensor.requires_grad}
            for one in individuals
        ]
        self._fixed = [slots_of_module(one.model).fixed for one in individuals]
        # what was estimated again for an offspring, by its number: it is kept as it was scored
        self._statistics: dict[int, dict[str, Tensor]] = {}

    @torch.no_grad()
    def score(self, scorer: Scorer, phase: int) -> list[Scores]:
        """Score all of them in the first model, one after the other, and put that back."""
        stage = self.individuals[0]
        live = stage.tensors()
        center = {name: tensor.detach().clone() for name, tensor in live.items()}
        sources = [center, *(one.tensors() for one in self.individuals[1:])]
        outcomes = []

        def put_back() -> None:
            for name, tensor in live.items():
                tensor.copy_(center[name])

        with Undoing(put_back):
            for i in range(len(self.parents)):
                for name, tensor in live.items():
                    tensor.copy_(self.tensor(i, name, sources))
                outcome, self._statistics[i] = scorer.propose(stage, phase)
                outcomes.append(outcome)
        return outcomes

    def tensor(self, i: int, name: str, sources: Sequence[Mapping[str, Tensor]]) -> Tensor:
        """Return the tensor called `name` of offspring `i`, its parents' being in `sources`."""
        parents = self.parents[i]
        theirs = [sources[parent][name] for parent in parents]
        if not theirs[0].is_floating_point():
            return theirs[0]
        mean = recombine(theirs)
        if name not in self._mutable[parents[0]]:
            return mean
        sigma = self.sigma
        if self.scale == "rms":
            sigma *= root_mean_square({name: mean})[name]
        noise = draw(
            "normal", mean, seed=self.seed, generation=self.generation, member=i, name=name
        )
        fixed = self._fixed[parents[0]].get(name)
        if fixed is not None:  # padding rows, pruned weights
            noise.masked_fill_(fixed, 0.0)
        return noise.mul_(sigma).add_(mean)

    @torch.no_grad()
    def bear(self, i: int, place: int, inherit: Inherit) -> Newborn:
        """Make offspring `i` for its place, with the very bits that were scored.

        Its optimizer is a copy of its first parent's.
        """
        sources = [one.tensors() for one in self.individuals]
        known = self._statistics[i]
        tensors = {
            # `to` alone would give a parent's own tensor, and parents are overwritten
            name: known[name]
            if name in known
            else self.tensor(i, name, sources).to(tensor.dtype, copy=True)
            for name, tensor in sources[place].items()
        }
        first, model = self.individuals[self.parents[i][0]], self.individuals[place].model
        warn_of_followers(first.optimizer, place)
        optimizer = transplant(first.optimizer, first.model, model, keep_state=inherit == "state")
        parent = sources[self.parents[i][0]]
        for name, tensor in self.individuals[place].parameters().items():
            carry_over(optimizer, tensor, parent[name], tensors[name])
        return Newborn(place, tensors, Individual(model, optimizer, first.founder))
