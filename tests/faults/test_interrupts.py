"""An interrupt at any line of ours: weights are a center's, all else is as before, and it goes on.

Every 37th line that one call executes is interrupted here; in the slow tests every one, on every
path that leads to it, in loops the first time and the last.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FrameType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import evostep
from evostep import (
    ESGD,
    Always,
    Evolution,
    Evolved,
    Fitness,
    LowRank,
    Only,
    OpenAIES,
    RandomMutation,
    suggest_sigma,
)
from evostep.acceptance import Improves, Ladder, PairedTest
from evostep.engines.racing import Racing
from evostep.polishing import optimism, weights
from evostep.polishing.decision import Decision, Moved
from evostep.spaces.span import Span
from evostep.spaces.weights import AllWeights
from evostep.strategies.cmaes import CMAES
from evostep.strategies.guided_es import GuidedES
from evostep.strategies.random_search import RandomSearch
from evostep.strategies.snes import SNES

OURS = str(Path(evostep.__file__).parent)
STEP = 37
X = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
BATCHES = [(X[:10], Y[:10]), (X[10:], Y[10:])]


Way = tuple[tuple[CodeType, int], ...]
Spot = tuple[Way, int]


class Line:
    """Within it, one line of ours that is executed raises; without a spot, lines are noted.

    A line is known by its path, itself and the lines of ours from which it was called, and how
    often it was executed on that path before: so only calls of its own function are watched.

    Args:
        spot: the path, and the number of the time, from 1.
        files: the beginnings of the names of those whose lines count.

    Attributes:
        where: it raised, in words; empty where it has not come there.
        spots: of all lines that were noted, in their order.
    """

    def __init__(
        self, spot: Spot | None = None, files: tuple[str, ...] = (OURS, contextlib.__file__)
    ) -> None:
        self.where = ""
        self.spots: list[Spot] = []
        self._spot, self._files = spot, files
        self._times: Counter[Way] = Counter()
        self._watched: dict[CodeType, bool] = {}

    def __enter__(self) -> Line:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        watched = self._watched.get(frame.f_code)
        if watched is None:
            ours = frame.f_code.co_filename.startswith(self._files)
            watched = ours and (self._spot is None or self._spot[0][0][0] is frame.f_code)
            self._watched[frame.f_code] = watched
        return self._line if watched else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and (self._spot is None or self._spot[0][0][1] == frame.f_lineno):
            path = self._path(frame)
            self._times[path] += 1
            spot = path, self._times[path]
            if self._spot is None:
                self.spots.append(spot)
            elif self._spot == spot:
                code = frame.f_code
                self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} ({code.co_name})"
                raise KeyboardInterrupt
        return self._line

    def _path(self, frame: FrameType | None) -> Way:
        path = []
        while frame is not None:
            if frame.f_code.co_filename.startswith(self._files):
                path.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        return tuple(path)

    def ends(self) -> list[Spot]:
        """Return the lines of each path, a loop's where it begins and where it ends."""
        last = dict(self.spots)
        return [(path, time) for path, time in self.spots if time in (1, last[path])]


@dataclass
class Case:
    """Something to interrupt.

    Attributes:
        run: evolves; each call goes on.
        models: whose weights and buffers are to be a center's.
        state: what moves with them: an optimizer's state.
        generation: how many generations there have been.
        by_phase: whether they are judged together, and begun anew after an interrupt. Otherwise
            each stands for itself: what comes after an interrupt would have come without it.
        files: the beginnings of the names of those whose lines count.
    """

    run: Callable[[], object]
    models: list[nn.Module]
    state: Callable[[], list[Any]] = list
    generation: Callable[[], int] | None = None
    by_phase: bool = False
    files: tuple[str, ...] = (OURS, contextlib.__file__)  # which lies between a `with` and ours

    def alone(self) -> int | None:
        """Return the generation where each stands for itself."""
        return None if self.generation is None or self.by_phase else self.generation()

    def bits(self) -> list[Any]:
        """Of each model, and of what moves with them."""
        states = [model.state_dict().values() for model in self.models]
        return [*([t.tolist() for t in state] for state in states), self.state()]

    def tensors(self) -> list[int]:
        """Of parameters and buffers, which objects they are."""
        modules = [module for model in self.models for module in model.modules()]
        return [id(t) for m in modules for t in (*m._parameters.values(), *m.buffers())]

    def surroundings(self) -> dict[str, Any]:
        modules = [module for model in self.models for module in model.modules()]
        parameters = [p for model in self.models for p in model.parameters()]
        return {
            "tensors": self.tensors(),
            "modes": [module.training for module in modules],
            "requires_grad": [p.requires_grad for p in parameters],
            "attributes": [sorted(vars(module)) for module in modules],
            "momenta": [getattr(module, "momentum", None) for module in modules],
            "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
            "torch": torch.get_rng_state().numpy().tobytes(),
            "python": random.getstate(),
            "numpy": np.random.get_state()[1].tobytes(),
            "grad mode": torch.is_grad_enabled(),
            "autocast": torch.is_autocast_enabled("cpu"),
            "modes of torch": torch._C._len_torch_function_stack(),
        }


def network(*, norm: bool = False, seed: int = 3) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(3) if norm else nn.Tanh()
    # three tensors of weights: what a line more takes, it takes at every line
    model = nn.Sequential(nn.Linear(4, 3, bias=False), middle, nn.Linear(3, 2)).train()
    model[2].eval()
    return model


def safe() -> RandomMutation:
    return RandomMutation(0.3, population=2, scale="safe")


STRATEGIES: dict[str, Callable[[], Any]] = {
    "mutation": lambda: RandomMutation(0.3, population=2),
    "safe": safe,
    "openai-es": lambda: OpenAIES(0.2, lr=0.05, population=2, noise=LowRank(1)),
    "adam": lambda: OpenAIES(0.2, lr=0.05, population=2, optimizer=torch.optim.Adam),
    "snes": lambda: SNES(0.2, population=4),
    "cmaes": lambda: CMAES(0.2, population=4),
    "guided-es": lambda: GuidedES(0.2, lr=0.05, population=2),
    "random-search": lambda: RandomSearch(0.3, population=2),
}
SPACES: dict[str, Callable[[], Any]] = {
    "all": AllWeights,
    "head": lambda: Only("head"),
    "buffers": lambda: Only("*", buffers=True),
    "span": Span,
    "float32": lambda: AllWeights(precision="float32"),
}
RULES: dict[str, Callable[[], Any]] = {
    "always": Always,
    "improves": Improves,
    "paired": lambda: PairedTest(every="generation"),
    "ladder": lambda: Ladder(every="generation"),
    "improves-phase": lambda: Improves(every="phase"),
    "paired-phase": PairedTest,
    "ladder-phase": Ladder,
}


def evolution(
    strategy: str = "openai-es",
    space: str = "all",
    rule: str = "always",
    engine: Any = "inplace",
    *,
    norm: bool = False,
    second: bool = False,
    bare: bool = False,
    generations: int = 1,
) -> Case:
    model = network(norm=norm)
    search = Evolution(
        model, STRATEGIES[strategy](), space=SPACES[space](), accept=RULES[rule](), engine=engine
    )
    search.guide({"0.weight": torch.ones(3, 4)})
    for k in range(3 if space == "span" else 0):
        search.remember()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(k)))
    if space == "float32":
        model.bfloat16()
    batches = [(x.to(model[0].weight.dtype), y) for x, y in BATCHES]
    metric = "accuracy" if rule.startswith(("paired", "ladder")) else "neg-loss"
    fitness = Fitness(model, batches, metric, calibration=batches if norm else None)
    fitness()
    other = Fitness(model, batches[:1], metric) if second else None

    def run() -> object:
        scores: Any = (lambda: fitness()) if bare else fitness
        return search.evolve(scores, generations, accept_on=other)

    by_phase = search.accept.every == "phase"
    return Case(run, [model], generation=lambda: search.generation, by_phase=by_phase)


def put_back() -> Case:
    """A center whose score turns out not to be finite, with the one before to go back to."""
    model = network()
    search = Evolution(model, STRATEGIES["openai-es"](), accept=Always(), engine="inplace")
    fitness = Fitness(model, BATCHES, "neg-loss")

    def stop(record: evostep.Record) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        search.evolve(fitness, 2, on_generation=stop)
    broken = model[0].weight.detach().clone()

    def scores() -> float:
        return float("nan") if torch.equal(model[0].weight, broken) else fitness()

    return Case(lambda: search.evolve(scores), [model], generation=lambda: search.generation - 1)


def evolved(base: str = "sgd", rule: str = "always", generations: int = 1) -> Case:
    model = network()
    inner: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if base == "asgd":
        inner = torch.optim.ASGD(model.parameters(), lr=0.1, t0=0)
    optimizer = Evolved(
        inner, STRATEGIES["openai-es"](), accept=RULES[rule](), momentum=0.5, engine="inplace"
    )
    for _ in range(2):
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
    fitness = Fitness(model, BATCHES, "neg-loss")
    fitness()
    key, phase = {"sgd": "momentum_buffer", "asgd": "ax"}[base], rule.endswith("phase")

    def state() -> list[Any]:
        held: list[Any] = [inner.state[p][key].tolist() for p in model.parameters()]
        return [*held, len(inner._optimizer_step_pre_hooks)]

    def run() -> object:
        return optimizer.evolve(fitness, generations)

    return Case(run, [model], state, lambda: optimizer.evolution.generation, by_phase=phase)


def esgd(what: str) -> Case:
    models = [network(norm=True, seed=seed) for seed in (1, 2)]
    pairs = [(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)) for model in models]
    population = ESGD(
        pairs, Fitness(models[0], BATCHES, "neg-loss"), offspring=2, parents=2, elite=1, sigma=0.1
    )

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()
        return len(X)

    population.descend(train)

    def run() -> object:
        return population.evolve() if what == "evolve" else population.descend(train)

    counter = (lambda: population.generation) if what == "evolve" else None
    return Case(run, models, generation=counter)


def asking(what: str) -> Case:
    """Calls that leave the weights as they are."""
    model = network(norm=True)

    def run() -> object:
        if what == "fitness":
            return Fitness(model, BATCHES, "accuracy")()
        return suggest_sigma(model, BATCHES, sigmas=(0.1, 1.0), draws=1)

    return Case(run, [model])


def polishing(space: str) -> Case:
    """A whole polishing; of its lines those that change the network, or call who does.

    The searches in it are as short as they can be.
    """
    torch.manual_seed(0)
    inputs = torch.randn(90 if space == "decision" else 45, 4)
    labels = inputs[:, :3].argmax(1)
    model = nn.Sequential(nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.copy_(2 * torch.eye(3, 4))
        model[0].bias.copy_(torch.tensor([4.0, 0.0, 0.0]))
    options: dict[str, Any] = {"folds": 3, "population": 4, "draws": 100, "space": space}
    options["budget"] = 45 * 7 * (1 + 5) if space == "head" else 400

    def run() -> object:
        with (
            patch.object(optimism, "HALVES", 1),
            patch.object(weights, "SIGMAS", (0.3,)),
            patch.object(weights, "STOPS", 1),
        ):
            return evostep.polish(model, [(inputs, labels)], "balanced-accuracy", **options)

    names = ("decision", "network", "evolved", "polish", "weights")
    return Case(run, [model], files=tuple(f"{OURS}/polishing/{name}.py" for name in names))


def evolved_weights() -> Case:
    """Weights and a decision, put into a network and taken out again."""
    model = network()
    live = {"2.weight": model[2].weight, "2.bias": model[2].bias}
    before = {name: tensor.detach().clone() for name, tensor in live.items()}
    after = {name: tensor + 1.0 for name, tensor in before.items()}
    decision = Decision("classes", torch.tensor([0.5, -0.5]), "accuracy", 2.0)
    moved = Moved(live, before, after, model[2], decision)
    return Case(lambda: moved.revert() if moved.applied else moved.apply(), [model])


CASES: dict[str, Callable[[], Case]] = {
    **{name: partial(evolution, name) for name in STRATEGIES},
    **{name: partial(evolution, space=name) for name in SPACES if name != "all"},
    **{name: partial(evolution, rule=name) for name in RULES if name != "always"},
    "improves-phase": lambda: evolution(rule="improves-phase", generations=2),
    "second fitness": lambda: evolution(rule="improves", second=True),
    "second fitness in a phase": lambda: evolution(rule="improves-phase", second=True),
    "callable": lambda: evolution(rule="improves", bare=True),
    "calibration": lambda: evolution(rule="improves", norm=True),
    "calibration in a phase": lambda: evolution(rule="improves-phase", norm=True, second=True),
    "put back": put_back,
    "vmap": lambda: evolution(engine="vmap"),
    "lowrank": lambda: evolution(engine="lowrank"),
    "prefix": lambda: evolution(space="head", engine="prefix"),
    "racing": lambda: evolution("mutation", engine=Racing(first=6), rule="improves"),
    "Evolved": evolved,
    "Evolved of averages": lambda: evolved("asgd"),
    "Evolved in a phase": lambda: evolved(rule="improves-phase", generations=2),
    "Evolved of averages in a phase": lambda: evolved("asgd", rule="improves-phase"),
    "ESGD evolves": lambda: esgd("evolve"),
    "ESGD descends": lambda: esgd("descend"),
    "fitness": lambda: asking("fitness"),
    "suggest_sigma": lambda: asking("sigma"),
    "polish": lambda: polishing("decision"),
    "polish the head": lambda: polishing("head"),
    "evolved weights": evolved_weights,
}


class Trials:
    """Calls of a case that are interrupted, and what must hold afterwards.

    Args:
        make: a case, always the same.

    Attributes:
        lines: that the first call of a case executes.
    """

    def __init__(self, make: Callable[[], Case]) -> None:
        self.make = make
        make().run()  # what torch and we find out once in a process is known from here on
        sound = make()
        self._before, self._centers = sound.surroundings(), [sound.bits()]
        with Line(files=sound.files) as self.lines:
            sound.run()
        self._centers.append(sound.bits())
        sound.run()
        self._after_next = [self._centers[1], sound.bits()]

    def interrupt(self, case: Case, spot: Spot) -> tuple[Line, list[str]]:
        """Interrupt a call; return where, and what is wrong then."""
        tensors, line = case.tensors(), Line(spot, case.files)
        with contextlib.suppress(KeyboardInterrupt), line:
            case.run()
            return line, ["swallowed"] if line.where else []
        bits, now = case.bits(), case.surroundings()
        expected = {**self._before, "tensors": tensors}
        wrong = [key for key in expected if now[key] != expected[key]]
        # of a population each has a center of its own
        if any(one not in some for one, *some in zip(bits, *self._centers, strict=True)):
            wrong.append("weights are no center's")
        generation = case.alone()
        if generation is not None and bits != self._centers[generation]:
            wrong.append(f"weights of another generation than {generation}")
        return line, wrong

    def stands(self, case: Case) -> bool:
        """Return whether a case is where it began."""
        begun = case.generation is not None and case.generation()
        return not begun and case.bits() == self._centers[0]

    def go_on(self, case: Case) -> list[str]:
        """Call a case again that was interrupted; return what is wrong then."""
        wrong = []
        generation = case.alone()
        case.run()
        if generation is not None and case.bits() != self._after_next[generation]:
            wrong.append("another next generation")
        if not all(torch.isfinite(t).all() for m in case.models for t in m.state_dict().values()):
            wrong.append("the next is not finite")
        return wrong

    def single(self, spot: Spot) -> Iterator[str]:
        """Interrupt the first call of a case at one line, and go on."""
        for _ in range(5):  # addresses in memory decide some ways
            case = self.make()
            line, wrong = self.interrupt(case, spot)
            if line.where:
                break
        else:
            return
        if wrong := wrong + self.go_on(case):
            yield f"{line.where}, time {spot[1]}: {', '.join(wrong)}"


def faults(make: Callable[[], Case], step: int) -> Iterator[str]:
    """Interrupt the first call of a case at some lines, each time anew; tell what is wrong."""
    trials = Trials(make)
    for spot in trials.lines.spots[::step]:
        yield from trials.single(spot)


def faults_anywhere(make: Callable[[], Case], turns: int = 16) -> Iterator[str]:
    """Interrupt at all lines, those in loops the first time and the last; tell what is wrong.

    A call that was interrupted before executes some lines less, and those are looked at as
    `faults` does. All others are interrupted one after another in the same objects, so many in
    turn, as long as these stand where they began; then they go on.
    """
    trials = Trials(make)
    early = trials.lines.spots[len(trials.lines.spots) // 4]

    def interrupted() -> Case:
        case = make()
        with contextlib.suppress(KeyboardInterrupt), Line(early, case.files):
            case.run()
        return case

    case, again = interrupted(), Line(files=make().files)
    if trials.stands(case):
        with again:
            case.run()
    known = dict(again.spots)
    for spot in trials.lines.ends():
        if spot[0] not in known:
            yield from trials.single(spot)
    borne = 0
    for spot in again.ends():
        case = case if borne else interrupted()
        line, wrong = trials.interrupt(case, spot)
        if borne and not line.where:  # the one before has left another way
            case, borne = interrupted(), 0
            line, wrong = trials.interrupt(case, spot)
        borne += 1
        if not line.where:
            borne = 0
        elif wrong or borne == turns or not trials.stands(case):
            if wrong := wrong + trials.go_on(case):
                yield f"{line.where}, time {spot[1]}, {borne} in turn: {', '.join(wrong)}"
            borne = 0


# of each kind one is interrupted here, the others in the slow tests
QUICK = {
    *("mutation", "openai-es", "cmaes", "head", "span", "improves-phase", "second fitness"),
    *("calibration", "vmap", "prefix", "racing", "Evolved of averages", "ESGD descends", "polish"),
    *("fitness", "evolved weights"),
}
warns = pytest.mark.filterwarnings("ignore:.*:UserWarning")


@warns
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_an_interrupt_at_any_line_leaves_a_center_and_it_goes_on(name: str) -> None:
    assert list(faults(CASES[name], STEP)) == []


def test_an_interrupt_as_batches_are_read_first_leaves_random_streams() -> None:
    def reading() -> Case:
        model = network()
        return Case(lambda: Fitness(model, BATCHES, "neg-loss").examples(), [model])

    assert list(faults(reading, 11)) == []


@warns
@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", CASES)
def test_an_interrupt_at_every_line_leaves_a_center_and_it_goes_on(name: str) -> None:
    assert list(faults_anywhere(CASES[name])) == []
