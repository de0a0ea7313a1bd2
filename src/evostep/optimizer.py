"""Evolved: any torch optimizer with an Evolution in it, and itself a torch optimizer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal
from weakref import ref

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from evostep.acceptance import Rule
from evostep.compatibility import FitnessLike
from evostep.distributed_checkpoint import asked_by_checkpoint, packed, unpacked
from evostep.engines.base import Engine
from evostep.errors import warn
from evostep.evolution import Evolution
from evostep.genome.anatomy import module_names
from evostep.genome.slots import movable_of_groups, sigmas_of_groups, slots_of_groups
from evostep.interrupts import Undoing, finish
from evostep.record import Record
from evostep.scoring.fitness import Fitness
from evostep.spaces.base import Space
from evostep.strategies.base import Strategy
from evostep.weight_copies import WeightCopies

MomentumPolicy = Literal["keep", "reset"] | float

_HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)
# First moments point to where the center was heading before it was moved; second moments measure
# the gradient's size, which a small move leaves as it is.
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")


class Evolved(Optimizer):
    """A torch optimizer that can also evolve the weights it trains.

    `step`, `zero_grad`, `param_groups`, `state` and `defaults` are the base optimizer's own, so
    that learning-rate schedulers, GradScaler and hooks work on it as on any other. Weights change
    in place only. Call `evolve` between steps, never between a forward and its backward.

    Args:
        optimizer: the base: SGD, Adam, AdamW or any other.
        strategy: how members are drawn and the center moved, e.g. ``OpenAIES(0.02, lr=0.002)``.
        space: which weights may move; a parameter group's own ``sigma`` replaces the strategy's
            there (0: not evolved).
        accept: when a new center replaces its parent.
        model: gives the parameters names (where the base was not made from `named_parameters`),
            and lets modes and buffers be guarded when the fitness is a bare callable.
        momentum: what an accepted move does to the base's momentum: ``"keep"``, ``"reset"``, or a
            factor in [0, 1] to damp it by.
        seed: determines all noise, together with the generation's number.
        engine: how members are scored: see `Evolution`.

    Raises:
        ValueError: no optimizer; a momentum policy of another kind; a space that needs names or a
            model where there is none; a parameter that `model` does not have.

    Example:
        >>> import torch, evostep
        >>> model = torch.nn.Linear(2, 2)
        >>> inputs, targets = torch.randn(64, 2), torch.randint(2, (64,))
        >>> optimizer = evostep.Evolved(
        ...     torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        ...     evostep.OpenAIES(sigma=0.02, lr=0.002, population=8),
        ... )
        >>> fitness = evostep.Fitness(model, [(inputs, targets)], "accuracy")
        >>> torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        >>> optimizer.step()
        >>> before = fitness()
        >>> records = optimizer.evolve(fitness, generations=3)
        >>> fitness() >= before
        True
    """

    def __init__(
        self,
        optimizer: Optimizer,
        strategy: Strategy,
        *,
        space: Space | None = None,
        accept: Rule | None = None,
        model: nn.Module | None = None,
        momentum: MomentumPolicy = "keep",
        seed: int = 0,
        engine: str | Engine = "auto",
    ) -> None:
        # Optimizer.__init__ would reset the base's state through the properties below
        if not isinstance(optimizer, Optimizer):
            raise ValueError(
                f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}"
            )
        if isinstance(optimizer, Evolved):
            raise ValueError("optimizer is an Evolved already: wrap its base")
        self.base = optimizer
        self._model = model
        self._damping = _damping(momentum)
        self._scored: ref[nn.Module] | None = None  # the model of the last fitness
        self._told: set[str] = set()  # of which optimizers a warning told
        self._make_hooks()
        slots = slots_of_groups(optimizer.param_groups, model)
        self.evolution = Evolution(
            slots, strategy, space=space, accept=accept, seed=seed, engine=engine, model=model
        )

    def _make_hooks(self) -> None:
        for name in _HOOKS:
            self.__dict__.setdefault(name, OrderedDict())

    # What is the base's stays the base's.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        self.base.param_groups = value

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:
        self.base.state = value

    @property
    def defaults(self) -> dict[str, Any]:
        """The base optimizer's defaults."""
        return self.base.defaults

    @defaults.setter
    def defaults(self, value: dict[str, Any]) -> None:
        self.base.defaults = value

    def __getattr__(self, name: str) -> Any:
        # e.g. `_step_supports_amp_scaling` of fused optimizers, `train()` of schedule-free ones
        if name == "base" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.base, name)

    def __setattr__(self, name: str, value: Any) -> None:
        # GradScaler hands these two to a fused optimizer as attributes
        if name in ("grad_scale", "found_inf"):
            setattr(self.base, name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name in ("grad_scale", "found_inf"):
            delattr(self.base, name)
        else:
            super().__delattr__(name)

    def __repr__(self) -> str:
        evolution = self.evolution
        told = f"Evolved({self.base!r}, {evolution.strategy!r}, {evolution.space!r})"
        shapes = {
            name: tuple(tensor.shape)
            for name, tensor in evolution.slots.tensors.items()
            if name in evolution.slots.outside
        }
        outside = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        return f"{told}\nnot evolved, since the model lacks it: {outside}" if shapes else told

    @property
    def history(self) -> list[Record]:
        """One record for each generation so far."""
        return self.evolution.history

    # Gradient steps.

    def step(self, closure: Callable[[], float] | None = None, **kwargs: Any) -> Any:
        """Take one step of the base optimizer; hooks of both are called, each once.

        Args:
            closure: evaluates the loss again, for bases that ask for it.
            **kwargs: of the base's own `step`.

        Raises:
            ValueError: within `evolve`, which would undo it.
        """
        self.evolution.refuse_within("a gradient step")
        args: tuple[Any, ...] = (self,) if closure is None else (self, closure)
        for pre_hook in self._optimizer_step_pre_hooks.values():
            replaced = pre_hook(self, args, kwargs)
            if replaced is not None:
                args, kwargs = replaced
        loss = self.base.step(*args[1:], **kwargs)
        if self.evolution.guided:
            self.evolution.guide()  # directions of before this step are of no use any more
        for post_hook in self._optimizer_step_post_hooks.values():
            post_hook(self, args, kwargs)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset the gradients of all parameters."""
        self.base.zero_grad(set_to_none=set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base; its parameters evolve, too. A refused one is not added.

        Args:
            param_group: its ``"params"`` with names or without, whichever the base has: names are
                left out, or taken from the model.
        """
        self.base.add_param_group(self._named_as_others(param_group))
        try:
            self._bind()
        except ValueError:
            self.base.param_groups.pop()
            raise

    def _named_as_others(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return a group whose parameters have names if those of the base's groups have."""
        groups, params = self.base.param_groups, group.get("params")
        if not isinstance(params, Iterable) or isinstance(params, set | str):
            return group  # torch tells what is wrong with it
        params = [params] if isinstance(params, Tensor) else list(params)
        named = [isinstance(p, tuple) for p in params]
        wanted = "param_names" in groups[0]
        if all(named) and not wanted:
            params = [p for _, p in params]
        elif wanted and not any(named):
            model = self._known_model(None)
            known = module_names(model) if model is not None else {}
            at = f"group{len(groups)}"
            params = [(known.get(id(p), f"{at}.{i}"), p) for i, p in enumerate(params)]
        return {**group, "params": params}

    def _known_model(self, scored: nn.Module | None) -> nn.Module | None:
        """Return the model that gives names: the user's, that of a fitness, or of the last one."""
        if self._model is not None or scored is not None:
            return scored if self._model is None else self._model
        return self._scored() if self._scored is not None else None

    # Evolution.

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
        """Evolve the weights for some generations: see `Evolution.evolve`.

        An accepted move treats the base's momentum as the `momentum` policy says. Copies of the
        weights in the base's state move with the weights (`evostep.weight_copies`).
        """
        self.evolution.refuse_within("evolve")
        self._bind(fitness.model if isinstance(fitness, Fitness) else None)
        if self.evolution.strategy.needs_guides and not self.evolution.guided:
            self.evolution.guide(*self._guides())

        self.evolution.look_at(fitness)  # what will move may hang on it
        tensors = self.evolution.evolving().values()
        undo = self.evolution.accept.every == "phase"
        copies = WeightCopies(self.base, tensors, self._told, undo=undo)

        def tell(record: Record) -> object:
            copies.follow()  # the state may be saved now
            return on_generation(record) if on_generation is not None else None

        damp = self._damper()
        hooks = getattr(self.base, "_optimizer_step_pre_hooks", {})  # some wrappers have none

        def leave() -> None:
            hooks.pop(self._refuse_step, None)
            copies.follow()
            damp()

        with Undoing(), Undoing(leave):
            hooks[self._refuse_step] = self._refuse_step
            return self.evolution.evolve(
                fitness,
                generations,
                accept_on=accept_on,
                max_forwards=max_forwards,
                max_seconds=max_seconds,
                on_generation=tell if on_generation is not None else None,
                on_move=damp,
            )

    def _refuse_step(self, *_: Any) -> None:
        self.evolution.refuse_within("a gradient step")

    def remember(self) -> None:
        """Take a checkpoint of the weights as they stand: see `Evolution.remember`."""
        self._bind()
        self.evolution.remember()

    def _bind(self, scored: nn.Module | None = None) -> None:
        """Look at the groups again: parameters may be others, sigmas be scheduled.

        Names are given once, by the model that is first known; new parameters get theirs.
        """
        slots, groups = self.evolution.slots, self.base.param_groups
        self._scored = ref(scored) if scored is not None else self._scored
        same = [*map(id, slots.tensors.values())] == [*map(id, movable_of_groups(groups))]
        if same and (slots.named or scored is None):
            slots.sigma.update(zip(slots.tensors, sigmas_of_groups(groups), strict=True))
            return
        self.evolution.bind(slots_of_groups(groups, self._known_model(scored)))
        if not slots.named:
            self._model = scored if self._model is None else self._model

    def _guides(self) -> list[dict[str, Tensor]]:
        """Return the last gradients and the momentum buffers, as far as there are any."""
        tensors = self.evolution.slots.tensors
        guides = [{name: p.grad for name, p in tensors.items() if p.grad is not None}]
        for key in _FIRST_MOMENTS:
            moments = {name: self.base.state.get(p, {}).get(key) for name, p in tensors.items()}
            guides.append({name: m for name, m in moments.items() if m is not None})
        return [guide for guide in guides if guide]

    def _damper(self) -> Callable[[], None]:
        """Return what damps the momentum for each move from now on, once, however interrupted."""
        since = len(self.history)
        waiting: list[Tensor] = []

        def settle(moment: Tensor, damped: Tensor, left: list[Tensor]) -> None:
            nonlocal waiting
            moment.copy_(damped)
            waiting = left

        @torch.no_grad()
        def damp() -> None:
            nonlocal since, waiting
            if self._damping == 1.0:
                return
            if any(record.moved for record in self.history[since:]):
                waiting, since = [*waiting, *self._moments()], len(self.history)
            while waiting:
                finish(partial(settle, waiting[0], waiting[0] * self._damping, waiting[1:]))

        return damp

    def _moments(self) -> list[Tensor]:
        """Return the first moments of what evolves."""
        states = [self.base.state.get(p, {}) for p in self.evolution.evolving().values()]
        held = [state.get(key) for state in states for key in _FIRST_MOMENTS]
        return [moment for moment in held if moment is not None]

    # Saving, loading, copying.

    def state_dict(self) -> dict[str, Any]:
        """Return the base's state dict plus ``"evolution"``; loads with ``weights_only=True``."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state = {**self.base.state_dict(), "evolution": self.evolution.state_dict()}
        if asked_by_checkpoint():
            state = packed(state)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            replaced = post_hook(self, state)
            if replaced is not None:
                state = replaced
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, or a state of the base alone: evolution starts anew.

        A group that has no ``sigma`` in the state keeps the one that it has here.

        Raises:
            ValueError: groups of other sizes; a state of another strategy, or of other names;
                within `evolve`. Nothing is changed then.
        """
        self.evolution.refuse_within("loading a state")
        state_dict = dict(state_dict)
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = pre_hook(self, state_dict)
            if replaced is not None:
                state_dict = dict(replaced)
        state_dict, evolution = unpacked(state_dict)
        if evolution is None and asked_by_checkpoint():
            warn(
                "torch.distributed.checkpoint hands over a state without evolution, which starts "
                "anew: leave flatten_optimizer_state_dict out, or save and load "
                "optimizer.evolution.state_dict() beside it"
            )
        with self._all_or_nothing():
            if evolution is None:
                self.evolution.reset()
            else:
                self.evolution.load_state_dict(evolution)
            sigmas = [group.get("sigma") for group in self.param_groups]
            self.base.load_state_dict(state_dict)
            for group, sigma in zip(self.param_groups, sigmas, strict=True):
                if sigma is not None and group.get("sigma") is None:
                    group["sigma"] = sigma
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Put evolution's state and the base's back where loading them fails."""
        kept = [(owner, dict(vars(owner))) for owner in (self.evolution, self.base)]
        try:
            yield
        except BaseException:
            for owner, before in kept:
                vars(owner).clear()
                vars(owner).update(before)
            raise

    def __getstate__(self) -> dict[str, Any]:
        # as in torch, hooks (and what a scheduler patched in) stay behind
        keep = ("base", "evolution", "_model", "_damping", "_told")
        return {key: self.__dict__[key] for key in keep}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"_told": set(), "_scored": None, **state})
        self._make_hooks()


def _damping(policy: MomentumPolicy) -> float:
    if policy == "keep":
        return 1.0
    if policy == "reset":
        return 0.0
    if not isinstance(policy, int | float) or not 0 <= policy <= 1:
        raise ValueError(f"momentum must be 'keep', 'reset' or a factor in [0, 1], got {policy!r}")
    return float(policy)
