"""Evolution: the core. One generation is eight lines; a phase is some generations."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from evostep.acceptance import Improves, Rule
from evostep.engines.base import Judge, Outcome, Workspace
from evostep.engines.guard import ModuleState, preserved_rng
from evostep.engines.inplace import inplace
from evostep.fitness import Fitness
from evostep.naming import Slots, renamed, slots_of_module, slots_of_tensors, with_model
from evostep.spaces.base import Genome, Space
from evostep.spaces.weights import AllWeights
from evostep.strategies.base import State, Step, Strategy

FitnessLike = Fitness | Callable[[], float]


@dataclass(frozen=True)
class Record:
    """What one generation did.

    Attributes:
        generation: its number over the whole run, counted from 0.
        scores: of the members, higher is better; NaN for one that failed.
        parent: score of the center before, on the same examples.
        candidate: score of the proposed center on the examples on which it was judged; None where
            nothing was proposed or the rule asks for no score.
        accepted: whether the center moved.
        failed: members (and a candidate) whose fitness raised or was not finite.
        error: what the first of them failed by.
        sample_forwards: examples that went forward through the network, parent, members, candidate
            and acceptance counted; calls, where the fitness is a bare callable.
        seconds: wall-clock time.
    """

    generation: int
    scores: list[float]
    parent: float
    candidate: float | None
    accepted: bool
    failed: int
    error: str | None
    sample_forwards: int
    seconds: float


class Evolution:
    """Evolves the weights of a model in place, on any fitness; needs no optimizer.

    Args:
        target: a model, or a dictionary name -> floating-point tensor.
        strategy: how members are drawn and the center moved.
        space: which weights may move.
        accept: when a new center replaces its parent.
        seed: with the generation's number it determines all noise.

    Raises:
        ValueError: nothing to evolve; a space that needs names or a model where there is none.

    Example:
        >>> import torch
        >>> from evostep import Evolution, RandomMutation
        >>> w = torch.tensor([3.0, -2.0])
        >>> search = Evolution({"w": w}, RandomMutation(sigma=0.3, children=8, scale="absolute"))
        >>> records = search.evolve(lambda: -float(w.square().sum()), generations=50)
        >>> bool(w.norm() < 0.1)
        True
    """

    def __init__(
        self,
        target: nn.Module | Mapping[str, Tensor],
        strategy: Strategy,
        *,
        space: Space | None = None,
        accept: Rule | None = None,
        seed: int = 0,
    ) -> None:
        if isinstance(target, nn.Module):
            slots = slots_of_module(target)
        elif isinstance(target, Mapping):
            slots = slots_of_tensors(target)
        else:
            raise ValueError(
                f"target must be a torch.nn.Module or a dictionary of named tensors, "
                f"got {type(target).__name__}"
            )
        model = target if isinstance(target, nn.Module) else None
        self._setup(slots, model, strategy, space, accept, seed)

    @classmethod
    def of_slots(
        cls,
        slots: Slots,
        model: nn.Module | None,
        strategy: Strategy,
        *,
        space: Space | None = None,
        accept: Rule | None = None,
        seed: int = 0,
    ) -> Evolution:
        """Make an Evolution of tensors that are named already (`Evolved` does)."""
        self = cls.__new__(cls)
        self._setup(slots, model, strategy, space, accept, seed)
        return self

    def _setup(
        self,
        slots: Slots,
        model: nn.Module | None,
        strategy: Strategy,
        space: Space | None,
        accept: Rule | None,
        seed: int,
    ) -> None:
        for value, kind, example in (
            (strategy, Strategy, "evostep.OpenAIES(sigma=0.02, lr=0.002)"),
            (space or AllWeights(), Space, "evostep.AllWeights()"),
            (accept or Improves(), Rule, "evostep.Improves()"),
        ):
            if not isinstance(value, kind):
                raise ValueError(
                    f"expected a {kind.__name__.lower()} such as {example}, got {value!r}"
                )
        self.strategy = strategy
        self.space: Space = space or AllWeights()
        self.accept: Rule = accept or Improves()
        self.seed = int(seed)
        self.model = model
        self.history: list[Record] = []
        self._state: State | None
        self.reset()
        self.bind(slots)

    def bind(self, slots: Slots) -> None:
        """Take these as the tensors to move (again, when an optimizer's groups changed)."""
        if self.space.needs_names and not slots.named:
            raise ValueError(
                f"{self.space!r} needs names: pass model=, or make the optimizer from "
                "model.named_parameters()"
            )
        self.space.touched(slots)
        self.slots = slots

    def evolve(
        self,
        fitness: FitnessLike,
        generations: int = 1,
        *,
        accept_on: FitnessLike | None = None,
        max_forwards: int | None = None,
        max_seconds: float | None = None,
        on_generation: Callable[[Record], object] | None = None,
    ) -> list[Record]:
        """Evolve the weights for some generations.

        Args:
            fitness: selects: a `Fitness`, or any callable that scores the model as it now stands.
            generations: how many, at least 0.
            accept_on: decides survival, where the rule asks for scores; None: `fitness` does.
                Examples that selection has not seen tell gains from luck.
            max_forwards: stop after the first generation with which the sample-forwards of this
                call reach this number.
            max_seconds: stop after the first generation with which this call has lasted so long.
            on_generation: called with each record as soon as its generation is done; True stops.

        Returns:
            One record for each generation; they are appended to `history`, too.

        Raises:
            ValueError: a negative number of generations; a `Fitness` of another model.
            Exception: whatever the fitness raises for the center as it stands (for a member it is
                counted instead). Weights are the last center's then, as after Ctrl-C.
        """
        if generations < 0:
            raise ValueError(f"generations must be >= 0, got {generations}")
        self._check(fitness)
        if accept_on is not None:
            self._check(accept_on)
        if generations == 0:
            return []
        began = time.perf_counter()
        records: list[Record] = []
        with preserved_rng():
            genome, workspace = self._open()
        judge = self._judge(fitness)
        second = self._judge(accept_on) if accept_on is not None else None
        try:
            for _ in range(generations):
                with preserved_rng():  # each time anew: on_generation may save the streams
                    record = self._generation(genome, workspace, judge, second)
                records.append(record)
                self.history.append(record)
                _warn_of_failures(record)
                if on_generation is not None and on_generation(record) is True:
                    break
                spent = sum(r.sample_forwards for r in records)
                if max_forwards is not None and spent >= max_forwards:
                    break
                if max_seconds is not None and time.perf_counter() - began >= max_seconds:
                    break
        finally:
            workspace.restore()
        return records

    def _open(self) -> tuple[Genome, Workspace]:
        if self.space.moves_buffers and self.model is not None:
            # unlike parameters, buffers are replaced by model.to() and by some modules' forward
            self.slots = with_model(self.slots, self.model)
        genome = self.space.open(self.slots)
        live = {**self.slots.buffers, **self.slots.tensors}
        touched = {name: live[name] for name in self.space.touched(self.slots)}
        if self._state is None:
            self._state = self.strategy.init(genome)
        return genome, Workspace(self.space, genome, touched)

    def _judge(self, fitness: FitnessLike) -> Judge:
        model = fitness.model if isinstance(fitness, Fitness) else self.model
        touched = set(self.space.touched(self.slots)) if self.space.moves_buffers else set()
        moving = {id(tensor) for name, tensor in self.slots.buffers.items() if name in touched}
        state = ModuleState(model, moving) if model is not None else None
        return Judge(fitness, state, self.seed)

    def _generation(
        self, genome: Genome, workspace: Workspace, judge: Judge, second: Judge | None
    ) -> Record:
        began = time.perf_counter()
        strategy, generation = self.strategy, self.generation
        assert self._state is not None, "_open() comes first"
        judge.begin(generation)
        parent = judge()
        members = [
            strategy.member(genome, self._state, generation, i, self.seed)
            for i in range(strategy.size)
        ]
        outcomes = inplace(members, workspace, judge)
        scores = [outcome.scores.value for outcome in outcomes]
        step, state = strategy.tell(
            genome, self._state, generation, scores, parent.value, self.seed
        )
        forwards = (len(members) + 1) * judge.cost
        verdict = _Verdict()
        if step is not None:
            verdict = self._decide(step, outcomes, Outcome(parent), workspace, judge, second)
        self._state, self.generation = state, generation + 1
        self.sample_forwards += forwards + verdict.forwards
        errors = [o.error for o in (*outcomes, *verdict.outcome) if o.error is not None]
        return Record(
            generation=generation,
            scores=scores,
            parent=parent.value,
            candidate=verdict.outcome[0].scores.value if verdict.outcome else None,
            accepted=verdict.accepted,
            failed=len(errors),
            error=errors[0] if errors else None,
            sample_forwards=forwards + verdict.forwards,
            seconds=time.perf_counter() - began,
        )

    def _decide(
        self,
        step: Step,
        outcomes: list[Outcome],
        parent: Outcome,
        workspace: Workspace,
        judge: Judge,
        second: Judge | None,
    ) -> _Verdict:
        """Write the proposed center; keep it or write the parent back."""
        forwards = 0
        candidate: Outcome | None = None
        if self.accept.needs_scores:
            if second is not None:
                second.begin(self.generation)
                parent = Outcome(second())
                workspace.write(step.center)
                candidate = second.attempt()
                forwards = 2 * second.cost
            elif step.scored is not None:
                workspace.write(step.center)
                candidate = outcomes[step.scored]
            else:
                workspace.write(step.center)
                candidate = judge.attempt()
                forwards = judge.cost
            self.attempts += 1
            accepted = not candidate.failed and self.accept(
                parent.scores, candidate.scores, self.attempts
            )
        else:
            workspace.write(step.center)
            accepted = True
        if accepted:
            workspace.accept(step.center)
        else:
            workspace.restore()
        return _Verdict(accepted, forwards, () if candidate is None else (candidate,))

    def _check(self, fitness: FitnessLike) -> None:
        if not callable(fitness):
            raise ValueError(
                f"fitness must be an evostep.Fitness or a callable, got {type(fitness).__name__}"
            )
        if isinstance(fitness, Fitness):
            scored = {id(t) for t in (*fitness.model.parameters(), *fitness.model.buffers())}
            live = {**self.slots.buffers, **self.slots.tensors}
            if not any(id(live[name]) in scored for name in self.space.touched(self.slots)):
                raise ValueError(
                    "the fitness scores a model that holds none of the tensors that evolve: make "
                    "it with the model that is trained, not with a copy"
                )

    def reset(self) -> None:
        """Start anew: generation 0 and the strategy's first state; history and weights stay."""
        self.generation = self.attempts = self.sample_forwards = 0
        self._state = None

    def state_dict(self) -> dict[str, Any]:
        """Give what a later run needs to go on with the same bits, weights excepted.

        Plain tensors, numbers, strings, lists and dictionaries: loads with ``weights_only=True``.
        """
        return {
            "seed": self.seed,
            "generation": self.generation,
            "attempts": self.attempts,
            "sample_forwards": self.sample_forwards,
            "names": list(self.slots.tensors) if self.slots.named else None,
            "strategy": type(self.strategy).__name__,
            "state": self._state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the weights are loaded elsewhere.

        Raises:
            ValueError: a state of another strategy or of other names; a key that is missing.
        """
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            raise ValueError(f"the state of an evolution lacks {', '.join(missing)}")
        own = type(self.strategy).__name__
        if state["strategy"] != own:
            raise ValueError(
                f"the state was saved by {state['strategy']}, this evolution has {own}: "
                "load it into one with the same strategy"
            )
        names = state["names"]
        if names is not None and not self.slots.named:
            self.bind(renamed(self.slots, names))
        elif names is not None and list(self.slots.tensors) != names:
            ours = list(self.slots.tensors)
            other = next(
                (pair for pair in zip(ours, names, strict=False) if pair[0] != pair[1]),
                (f"{len(ours)} tensors", f"{len(names)}"),
            )
            raise ValueError(
                f"the state was saved with other names ({other[1]} where this evolution has "
                f"{other[0]}): noise depends on names, so it would not go on as it was"
            )
        self.seed = int(state["seed"])
        self.generation = int(state["generation"])
        self.attempts = int(state["attempts"])
        self.sample_forwards = int(state["sample_forwards"])
        self._state = state["state"]


@dataclass(frozen=True)
class _Verdict:
    accepted: bool = False
    forwards: int = 0
    outcome: tuple[Outcome, ...] = ()


def _warn_of_failures(record: Record) -> None:
    if record.failed and not any(math.isfinite(score) for score in record.scores):
        warnings.warn(
            f"generation {record.generation}: the fitness failed for all {len(record.scores)} "
            f"members, so the weights stay ({record.error})",
            stacklevel=3,
        )
