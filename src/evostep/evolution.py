"""Evolution: names, state and history of a run, and one call of `evolve`: see `phase`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from evostep.acceptance import Improves, Rule
from evostep.checksums import checksum
from evostep.compatibility import (
    FitnessLike,
    check_choices,
    check_fitness,
    check_precision,
    check_probe,
    check_processes,
    warn_of_guess,
    warn_of_lost,
)
from evostep.engines.auto import Findings
from evostep.engines.base import Engine
from evostep.engines.distributed import DIGESTS, Distributed
from evostep.errors import InputError, warn
from evostep.genome.anatomy import module_names
from evostep.genome.guides import add_guides, copy_guides
from evostep.genome.point import Genome, as_coordinates
from evostep.genome.slots import Slots, check_memory, renamed, slots_of, with_model
from evostep.interrupts import Undoing
from evostep.phase import Phase
from evostep.record import Record, warn_of_failures
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.fitness import Fitness
from evostep.scoring.head import with_head
from evostep.scoring.isolation import ModuleState, preserved_rng
from evostep.spaces.base import Space, check_numbers
from evostep.spaces.memory import Memory
from evostep.spaces.weights import AllWeights, guess_heads
from evostep.spaces.workspace import Workspace
from evostep.strategies.base import State, Strategy

_BETWEEN = (
    "the next generation starts from its own center and would undo it; do it between calls of "
    "evolve, e.g. evolve(fitness, 1), then the step"
)
FORMAT = 1  # of what `Evolution.state_dict` returns; states from before have no number


class Evolution:
    """Evolves the weights of a model in place, on any fitness; needs no optimizer.

    Args:
        target: a model, or a dictionary name -> floating-point tensor; or such tensors as `Slots`,
            with what is known of each (`Evolved` passes its optimizer's).
        strategy: how members are drawn and the center moved.
        space: which weights may move.
        accept: when a new center replaces its parent.
        seed: with the generation's number it determines all noise.
        engine: how members are scored: ``"auto"``, the fastest that can take them; or one of
            ``inplace``, ``vmap``, ``lowrank``, ``prefix``, ``racing``, by name or with settings
            of its own, such as ``evostep.engines.vmap.Vmap(chunk=32)``. Where it cannot take a
            model, a warning says why and members are scored in place. In a process group of
            several ranks these share the members: `evostep.engines.distributed.Distributed`.
        model: the model that holds the tensors, where the target is none: its modes and buffers
            are put back when the fitness is a bare callable.

    Raises:
        ValueError: nothing to evolve; a space that needs names or a model where there is none; an
            unknown engine.

    Example:
        >>> import torch
        >>> from evostep import Evolution, RandomMutation
        >>> w = torch.tensor([3.0, -2.0])
        >>> search = Evolution({"w": w}, RandomMutation(sigma=0.3, population=8, scale="absolute"))
        >>> records = search.evolve(lambda: -float(w.square().sum()), generations=50)
        >>> bool(w.norm() < 0.1)
        True
    """

    generation: int
    attempts: int
    sample_forwards: int
    _state: State | None
    _layout: int | None
    _memory: Memory
    _phase: Phase | None
    _saved_phase: dict[str, Any] | None
    _former: dict[str, Any] | None  # of a phase that was interrupted, or saved
    _guides: list[dict[str, Tensor]]
    _center: dict[str, Tensor]
    _findings: Findings

    def __init__(
        self,
        target: nn.Module | Mapping[str, Tensor] | Slots,
        strategy: Strategy,
        *,
        space: Space | None = None,
        accept: Rule | None = None,
        seed: int = 0,
        engine: str | Engine = "auto",
        model: nn.Module | None = None,
    ) -> None:
        space, accept = space or AllWeights(), accept or Improves()
        for value, kind, example in (
            (strategy, Strategy, "evostep.OpenAIES(sigma=0.02, lr=0.002)"),
            (space, Space, "evostep.AllWeights()"),
            (accept, Rule, "evostep.Improves()"),
        ):
            if not isinstance(value, kind):
                raise ValueError(
                    f"expected a {kind.__name__.lower()} such as {example}, got {value!r}"
                )
        self.strategy, self.space, self.accept = strategy, space, accept
        self.seed = int(seed)
        self.model = target if isinstance(target, nn.Module) else model
        self._whole = isinstance(target, nn.Module)  # whatever the model holds moves
        self._told: set[str] = set()  # warnings that are given once
        self.engine = engine
        self._choice = Distributed.of(engine)
        self.history: list[Record] = []
        self._unguided = False  # whether a warning said so
        self.reset()
        self.bind(slots_of(target))

    def bind(self, slots: Slots) -> None:
        """Take these as the tensors to move (again, when an optimizer's groups changed)."""
        if self.space.needs_names and not slots.named:
            why = "the model" if self.space.needs_model else "names"
            other = ", or make the optimizer from model.named_parameters()"
            raise ValueError(
                f"{self.space!r} needs {why}: pass model=, as in Evolved(..., model=model)"
                f"{'' if self.space.needs_model else other}"
            )
        check_memory(slots, self.space.touched(slots))
        before, self.slots = getattr(self, "slots", slots), slots
        if before.named and slots.named:
            self._forget_replaced(before)

    def look_at(self, fitness: FitnessLike | None) -> None:
        """Look at the model again before a phase: what was replaced, frozen, pruned or added.

        And, where the space asks for it, which layer makes the outputs that are scored.
        """
        check_processes(self.slots.live, fitness)
        scored = fitness.model if isinstance(fitness, Fitness) else self.model
        model = scored if self.model is None else self.model  # a compiled one has no truth value
        if model is None or scored is None:
            return
        own_forward = isinstance(fitness, Fitness) and fitness.has_own_forward
        slots, before = slots_of(model) if self._whole else self.slots, self.slots
        if not self._whole or scored is not model:
            slots = with_model(slots, model, [scored, model] if own_forward else [scored])
        if fitness is not None and self.space.needs_head:
            slots = with_head(slots, fitness)
            warn_of_guess(slots, guess_heads(slots), self._told)
        self.bind(slots)
        warn_of_lost(before, slots, scored, own_forward, self._told)

    def _forget_replaced(self, before: Slots) -> None:
        """Forget what was learned of tensors that are there no more."""
        old, new = before.tensors, self.slots.tensors
        if any(name in old and old[name].shape != new[name].shape for name in new):
            self._state = None  # the strategy begins anew
        if old.keys() == new.keys() and all(old[name] is new[name] for name in new):
            return
        if len(self._memory):
            other = next((n for n in (*new, *old) if new.get(n) is not old.get(n)), "")
            warn(
                f"{other!r} is a new parameter: the {len(self._memory)} checkpoints remembered "
                "before are forgotten; remember() the model as it is"
            )
            self._memory = Memory(self._memory.size)

    @property
    def guided(self) -> bool:
        """Whether there are guiding directions."""
        return bool(self._guides)

    def guide(self, *directions: Mapping[str, Tensor]) -> None:
        """Return a strategy that needs them the directions that are likely to matter.

        They hold until the next call and are part of `state_dict`. `Evolved` calls this itself.

        Args:
            *directions: each name -> a tensor of the weight's shape, of any length: a gradient, a
                momentum buffer. Copied. None at all: forget those that there were.

        Raises:
            ValueError: a name or a shape that the weights do not have.
        """
        self._guides = copy_guides(directions, self.slots.live)

    def evolve(
        self,
        fitness: FitnessLike,
        generations: int = 1,
        *,
        accept_on: FitnessLike | None = None,
        max_forwards: int | None = None,
        max_seconds: float | None = None,
        on_generation: Callable[[Record], object] | None = None,
        on_move: Callable[[], object] | None = None,
    ) -> list[Record]:
        """Evolve the weights for some generations.

        A rule that judges phases judges this call: at its end the center is compared with where
        it began, on `accept_on`, and stays or goes back there. The last record, handed on when
        that is done, has the `verdict`.

        A state saved in `on_generation` within the call goes on in the same phase: load it with
        the weights of the same moment, and call `evolve` for the generations that are left.

        Args:
            fitness: selects: a `Fitness`, or any callable that scores the model as it now stands.
            generations: how many, at least 0.
            accept_on: decides survival, where the rule asks for scores; None: `fitness` does.
                Examples that selection has not seen tell gains from luck.
            max_forwards: stop after the first generation with which the sample-forwards of this
                call, what judging the phase takes included, reach this number.
            max_seconds: stop after the first generation with which this call has lasted so long.
            on_generation: called with each record as soon as its generation is done; True stops.
            on_move: called before that whenever the center has come to stay at other weights:
                `Record.moved`.

        Returns:
            One record for each generation; they are appended to `history`, too.

        Raises:
            ValueError: a negative number of generations; a `Fitness` of another model.
            Exception: whatever the fitness raises for the center as it stands (for a member it is
                counted instead). Weights are the last center's then, as after Ctrl-C; or, where
                the rule judges phases, where the phase began.
        """
        if not hasattr(generations, "__index__"):
            raise ValueError(f"generations must be a whole number, got {generations!r}")
        if generations < 0:
            raise ValueError(f"generations must be >= 0, got {generations}")
        self.refuse_within("evolve")
        self.look_at(fitness)
        check_fitness(fitness, self.space, self.slots)
        check_probe(fitness, self.strategy)
        if accept_on is not None:
            check_fitness(accept_on, self.space, self.slots)
        self.accept.check(fitness if accept_on is None else accept_on)
        if generations == 0:
            return []
        check_numbers(self.space.touched(self.slots), self.slots)
        check_choices(fitness, accept_on, self.accept, self.space, self.slots, self.model)
        call = {"generations": generations, "forwards": max_forwards, "seconds": max_seconds}
        models = self._models(fitness, accept_on)
        self._choice.meet(
            partial(self._claims, models, call), partial(_buffers, models), self._told
        )
        began = time.perf_counter()
        records: list[Record] = []
        spent = 0

        def timed_out() -> bool:
            if max_seconds is None:
                return False
            left = time.perf_counter() - began < max_seconds
            return not phase.session.all_agree(left)

        with Undoing(), Undoing(self._close):
            with preserved_rng():
                phase = self._open(fitness, accept_on)
            for i in range(generations):
                with preserved_rng():  # each time anew: on_generation may save the streams
                    records.append(self._generation(phase, more=i + 1 < generations))
                    spent += records[-1].sample_forwards
                    last = i + 1 == generations or timed_out()
                    if max_forwards is not None:
                        due = phase.cost_of_verdict(records[-1].generation)
                        last = last or spent + due >= max_forwards
                    if last:
                        self._conclude(phase, records)
                warn_of_failures(records[-1])
                if records[-1].moved and on_move is not None:
                    self._hand(phase, on_move)
                stop = False
                if on_generation is not None:
                    stop = self._hand(phase, partial(on_generation, records[-1])) is True
                    stop = last or not phase.session.all_agree(not stop)
                if not last and (stop or timed_out()):
                    with preserved_rng():
                        self._conclude(phase, records)
                    if phase.by_phase and records[-1].moved and on_move is not None:
                        on_move()
                if last or phase.over:
                    break
        return records

    def _models(self, *scored: FitnessLike | None) -> list[nn.Module]:
        """Return the models that a phase has to do with, each once."""
        known = [one.model for one in scored if isinstance(one, Fitness)]
        known += [self.model] if self.model is not None else []
        return list({id(model): model for model in known}.values())

    def _claims(self, models: Iterable[nn.Module], call: Mapping[str, Any]) -> dict[str, object]:
        """Return what has to be the same on every rank."""
        weights = dict(self.slots.tensors)
        for model in models:
            weights |= dict(model.named_parameters())
        state = {**self.state_dict(), "center": self._center, "names": [*self.slots.live]}
        return {
            "the strategy": self.strategy,
            "the space": self.space,
            "the rule of acceptance": self.accept,
            "the engine": self._choice.over,
            "the call of evolve": call,
            "the seed": self.seed,
            "the generation": self.generation,
            "the kinds of devices": sorted({p.device.type for p in weights.values()}),
            **dict(zip(DIGESTS, map(checksum, (weights, state)), strict=True)),
        }

    def _close(self) -> None:
        if self._phase is not None:
            self._phase.close()
            self._former = self._phase.former()
        self._phase = None

    def _hand(self, phase: Phase, call: Callable[[], object]) -> object:
        """Call what the user gave; refuse what the next generation would undo."""
        result = call()
        if phase.center.disturbed():
            raise InputError(f"the weights were changed within evolve: {_BETWEEN}")
        phase.center.hold_attributes()
        return result

    def refuse_within(self, what: str) -> None:
        """Raise ValueError while `evolve` is under way, which would undo it."""
        if self._phase is not None:
            raise InputError(f"{what} within evolve, such as in on_generation: {_BETWEEN}")

    def evolving(self) -> dict[str, Tensor]:
        """Return name -> each parameter that moves: touched by the space, at a sigma above 0."""
        tensors, sigma = self.slots.tensors, self.slots.sigma
        touched = self.space.touched(self.slots)
        return {n: tensors[n] for n in touched if n in tensors and sigma.get(n) != 0}

    def _open(self, fitness: FitnessLike, accept_on: FitnessLike | None) -> Phase:
        """Begin a phase, or go on with a loaded one."""
        saved = self._saved_phase
        space = self.space.enter(self.slots, self._memory, saved["space"] if saved else None)
        genome = space.open(self.slots)
        self._go_on_from_center(genome)
        if self._state is None or self._layout != space.layout:
            self._state, self._layout = self.strategy.init(genome), space.layout
        if self.strategy.needs_guides and not add_guides(genome, self._guides):
            if not self._unguided:
                warn(
                    f"{type(self.strategy).__name__} has no guides, and evolves without: keep "
                    "gradients until evolve() (zero_grad afterwards), give the optimizer momentum, "
                    "or call Evolution.guide()"
                )
            self._unguided = True
        live = self.slots.live
        touched = space.touched(self.slots)
        workspace = Workspace(
            space, genome, {name: live[name] for name in touched}, self._shared(touched)
        )
        evaluator = self._evaluator(fitness)
        phase = Phase(
            self.strategy,
            self.accept,
            workspace,
            evaluator,
            self._evaluator(accept_on) if accept_on is not None else None,
            self._choice.open(workspace, evaluator, self._findings),
            seed=self.seed,
            generation=self.generation,
            attempts=self.attempts,
            saved=saved,
            former=self._former,
        )
        self._phase, self._saved_phase = phase, None
        if saved is None:
            phase.choose_start(self.generation)
        return phase

    def _go_on_from_center(self, genome: Genome) -> None:
        """Take up a finer center where the weights still are its rounding."""
        if not self.space.precise:
            return
        live = self.slots.live
        for name, z in genome.center.items():
            kept, weight = self._center.get(name), as_coordinates(live[name].detach())
            if kept is not None and kept.shape == z.shape:
                kept = kept.to(z)
                z.copy_(torch.where(kept.to(weight.dtype) == weight, kept, z))
        self._center = genome.center

    def _shared(self, touched: Iterable[str]) -> str | None:
        """Return which of the tensors that move lies on the memory of another one; None: none."""
        for name in touched:
            for other in sorted(self.slots.sharing.meets(name)):
                return f"{name!r} and {other!r} lie on one memory"
        return None

    def _evaluator(self, fitness: FitnessLike) -> Evaluator:
        model = fitness.model if isinstance(fitness, Fitness) else self.model
        live = self.slots.live
        # a buffer on the memory of a weight moves with it
        touched = set(self.space.touched(self.slots))
        touched |= {other for name in touched for other in self.slots.sharing.meets(name)}
        moving = {id(live[name]) for name in touched if name in live}
        return Evaluator(fitness, ModuleState(model, moving) if model is not None else None)

    def _generation(self, phase: Phase, *, more: bool) -> Record:
        assert self._state is not None, "_open() comes first"
        if "precision" not in self._told:
            self._told.add("precision")
            check_precision(self.strategy, phase.workspace, self._state, self.generation, self.seed)
        before, spent = len(self.history), self.sample_forwards

        def book(record: Record, state: State) -> None:
            self._state, self.generation = state, record.generation + 1
            self.attempts = phase.attempts
            self.sample_forwards = spent + record.sample_forwards
            self.history[before:] = [record]

        return phase.generation(self.generation, self._state, book, more=more)

    def _conclude(self, phase: Phase, records: list[Record]) -> None:
        """End a phase; the last record, here and in the history, gets the verdict."""
        spent = self.sample_forwards - records[-1].sample_forwards

        def book(record: Record) -> None:
            records[-1] = self.history[-1] = record
            self.attempts = phase.attempts
            self.sample_forwards = spent + record.sample_forwards

        phase.conclude(records[-1], book)

    def remember(self) -> None:
        """Take a checkpoint of the weights as they stand, for a space that mixes them: `Span`.

        Copies of all parameters, in host memory; the space's `memory` of them are kept, evenly
        spaced. They are part of `state_dict`.

        Raises:
            ValueError: a model that has changed since it was given, or since the last checkpoint;
                a phase under way.
        """
        if not self.space.memory:
            warn(
                f"remember() has no effect: {self.space!r} mixes no checkpoints; take Span()",
            )
            return
        if self._phase is not None or self._saved_phase is not None:
            raise ValueError("remember() in the middle of a phase: call it before evolve or after")
        if self._whole:
            self.look_at(None)
        known = module_names(self.model) if self.model is not None else None
        for name, tensor in self.slots.tensors.items():
            if known is not None and id(tensor) not in known and name not in self.slots.outside:
                raise ValueError(
                    f"the model has changed: {name!r} is not the parameter that evolves any more; "
                    "make a new optimizer and a new Evolution for the model as it is"
                )
        self._memory.add(self.slots.tensors)

    def reset(self) -> None:
        """Start anew: generation 0, the strategy's first state, no checkpoint remembered.

        History and weights stay.
        """
        self.generation = self.attempts = self.sample_forwards = 0
        self._state = self._layout = None
        self._memory = Memory(max(self.space.memory, 1))
        self._phase = self._saved_phase = self._former = None
        self._guides = []
        self._center = {}
        self._findings = Findings()

    def state_dict(self) -> dict[str, Any]:
        """Return what a later run needs to go on with the same bits, weights excepted.

        Plain tensors, numbers, strings, lists and dictionaries: loads with ``weights_only=True``.
        """
        return {
            "format": FORMAT,
            "seed": self.seed,
            "generation": self.generation,
            "attempts": self.attempts,
            "sample_forwards": self.sample_forwards,
            "names": list(self.slots.tensors) if self.slots.named else None,
            "strategy": type(self.strategy).__name__,
            "state": self._state,
            "engines": self._findings.state(),
            **({"guides": self._guides} if self.strategy.needs_guides else {}),
            **({"center": _copies(self._center)} if self.space.precise else {}),
            **self._phase_state(),
        }

    def _phase_state(self) -> dict[str, Any]:
        """Return what spaces with a memory, and rules that judge phases or nothing, add."""
        state: dict[str, Any] = {}
        if self.space.memory:
            state |= {"layout": self._layout, "memory": self._memory.state_dict()}
        if self._phase is None:
            parts = {"phase": self._saved_phase, "former": self._former}
        else:
            parts = {"phase": self._phase.state(), "former": self._phase.former()}
        return state | {key: part for key, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken; the weights are loaded elsewhere.

        Raises:
            ValueError: a state of another strategy or of other names; a key that is missing.
        """
        self.refuse_within("loading a state")
        if state.get("format", FORMAT) != FORMAT:
            raise ValueError(
                f"the state of an evolution has the format {state['format']!r}, this version of "
                f"evostep reads {FORMAT}: load it with the version that saved it"
            )
        may_lack = ("format", "phase", "former", "engines", "center")
        missing = [key for key in self.state_dict() if key not in state and key not in may_lack]
        if missing:
            raise ValueError(f"the state of an evolution lacks {', '.join(missing)}")
        own = type(self.strategy).__name__
        if state["strategy"] != own:
            raise ValueError(
                f"the state was saved by {state['strategy']}, this evolution has {own}: "
                "load it into one with the same strategy"
            )
        names, slots = state["names"], self.slots
        if names is not None and not slots.named:
            slots = renamed(slots, names)
        elif names is not None and list(slots.tensors) != names:
            ours = list(slots.tensors)
            other = next(
                (pair for pair in zip(ours, names, strict=False) if pair[0] != pair[1]),
                (f"{len(ours)} tensors", f"{len(names)}"),
            )
            raise ValueError(
                f"the state was saved with other names ({other[1]} where this evolution has "
                f"{other[0]}): noise depends on names, so it would not go on as it was"
            )
        # all is read before any of it is taken
        numbers = ("seed", "generation", "attempts", "sample_forwards")
        read = {key: int(state[key]) for key in numbers}
        memory, findings = Memory(max(self.space.memory, 1)), Findings()
        if self.space.memory:
            memory.load_state_dict(state["memory"])
        findings.warned = self._findings.warned
        findings.load(state.get("engines", {}))
        guides = list(state["guides"]) if self.strategy.needs_guides else []
        if slots is not self.slots:
            self.bind(slots)
        vars(self).update(read)
        self._memory, self._findings, self._guides = memory, findings, guides
        self._state, self._layout = state["state"], state.get("layout")
        self._phase, self._saved_phase = None, state.get("phase")
        self._former = state.get("former")
        self._center = _copies(state.get("center", {}))


def _buffers(models: Iterable[nn.Module]) -> list[Tensor]:
    """Return the buffers of models, each once."""
    return list({id(b): b for model in models for b in model.buffers()}.values())


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
