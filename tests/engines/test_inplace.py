"""The in-place engine: scores as the members are, and leaves no trace whatever happens."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from evostep import Always, Evolution, Fitness, Improves, LowRank, Only, OpenAIES, RandomMutation
from evostep.engines.inplace import InPlace
from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.genome.slots import slots_of_module
from evostep.interrupts import finish
from evostep.noise import draw
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.isolation import ModuleState, preserved_rng
from evostep.scoring.scores import Scores
from evostep.spaces.base import Checkpoint
from evostep.spaces.span import Span
from evostep.spaces.weights import AllWeights
from evostep.spaces.workspace import Workspace

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(24) % 3
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]
FLAT = RandomMutation(0.1, population=4)  # with a constant fitness nothing is ever accepted


class Shared(nn.Module):
    """One module in two places, one weight in two modules, and a submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.again = self.first
        self.tied = nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.drop(self.norm(self.tied(self.again(self.first(x))).relu())))
        return out


class Caching(nn.Module):
    """Replaces, fills in and adds buffers as it runs: what real stateful modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("cache", None)

    def forward(self, x: Tensor) -> Tensor:
        out = self.linear(x)
        self.average = 0.9 * self.average + 0.1 * out.detach().mean(0)  # another tensor
        self.cache = out.detach() if self.cache is None else self.cache
        if "late" not in self._buffers:
            self.register_buffer("late", out.detach().clone())
        return out + self.average + self.cache.mean(0)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def frozen() -> nn.Module:
    model = plain()
    for p in model[0].parameters():  # type: ignore[index]
        p.requires_grad_(False)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": plain,
    "tied and shared, dropout": Shared,
    "buffers that are replaced": Caching,
    "bfloat16": lambda: plain().bfloat16(),
    "float64": lambda: plain().double(),
    "frozen": frozen,
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3)
    ),
}


def make(name: str) -> nn.Module:
    torch.manual_seed(3)
    model = MODELS[name]().train()
    next(module for module in model.modules() if not list(module.children())).eval()
    return model


def run(model: nn.Module) -> Tensor:
    dtype = next(model.parameters()).dtype
    out: Tensor = model(X.to(dtype))
    return out


def trace(model: nn.Module) -> dict[str, Any]:
    """All that scoring must not change, bits and identities."""
    tensors = [*model.named_parameters(), *model.named_buffers(remove_duplicate=False)]
    return {
        "names": list(model.state_dict()),
        "values": {name: tensor.detach().clone() for name, tensor in tensors},
        "identities": {name: id(tensor) for name, tensor in tensors},
        "addresses": {name: tensor.data_ptr() for name, tensor in tensors},
        "requires_grad": {name: tensor.requires_grad for name, tensor in tensors},
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "modes": [module.training for module in model.modules()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
        "streams": (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("names", "identities", "addresses", "requires_grad", "grads", "modes", "hooks"):
        assert before[key] == after[key], key
    for name, value in before["values"].items():
        assert torch.equal(value, after["values"][name]), name
    assert torch.equal(before["streams"][0], after["streams"][0])
    assert before["streams"][1:] == after["streams"][1:]


def score(
    members: Sequence[Coordinates],
    workspace: Workspace,
    fitness: Any,
    state: ModuleState | None = None,
) -> list[Scores]:
    evaluator = Evaluator(fitness, state)
    return InPlace().open(workspace, evaluator).score(evaluator.round(0, 0), members)


class Hostile:
    """Scores a model in training mode and meddles with everything that scoring can reach."""

    def __init__(self, model: nn.Module, event: Callable[[int], None]) -> None:
        self.model, self.event, self.calls = model, event, 0

    def __call__(self) -> float:
        self.calls += 1
        self.model.train()
        run(self.model)
        torch.rand(3), random.random(), np.random.rand()
        for p in self.model.parameters():
            p.requires_grad_(False)
        self.event(self.calls)
        return 0.5


def nothing(call: int) -> None:
    pass


def raises_at(number: int, error: BaseException) -> Callable[[int], None]:
    def event(call: int) -> None:
        if call == number:
            raise error

    return event


EVENTS: dict[str, tuple[Callable[[int], None], type[BaseException] | None]] = {
    "nothing": (nothing, None),
    "parent raises": (raises_at(1, RuntimeError("no")), RuntimeError),
    "member raises": (raises_at(3, RuntimeError("no")), None),
    "last member raises": (raises_at(5, RuntimeError("no")), None),
    "second parent raises": (raises_at(6, RuntimeError("no")), RuntimeError),
    "interrupt at the parent": (raises_at(1, KeyboardInterrupt()), KeyboardInterrupt),
    "interrupt at a member": (raises_at(3, KeyboardInterrupt()), KeyboardInterrupt),
    "interrupt at the last": (raises_at(10, KeyboardInterrupt()), KeyboardInterrupt),
    "exit at a member": (raises_at(8, SystemExit()), SystemExit),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("happening", EVENTS)
def test_a_bare_callable_leaves_no_trace_in_the_model(name: str, happening: str) -> None:
    model = make(name)
    event, expected = EVENTS[happening]
    fitness = Hostile(model, event)
    before = trace(model)
    with pytest.raises(expected) if expected else nullcontext():
        Evolution(model, FLAT).evolve(fitness, generations=2)
    assert_same(before, trace(model))
    assert fitness.calls == (10 if expected is None else fitness.calls)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("bfloat16", "float64")])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_fitness_leaves_no_trace_in_the_model(name: str, mode: Any) -> None:
    model = make(name)
    before = trace(model)
    fitness = Fitness(model, BATCHES, lambda o, t: 0.5, mode=mode)
    Evolution(model, FLAT).evolve(fitness, generations=2, accept_on=fitness)
    assert_same(before, trace(model))


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("call", range(1, 12))
def test_whenever_it_stops_the_weights_are_a_center_that_was_accepted(
    error: BaseException, call: int
) -> None:
    """Improvements are accepted here, so the weights may be the start or a later whole center."""
    model = make("batch norm")
    seen: list[dict[str, Tensor]] = []  # what was scored, weights and all

    def fitness() -> float:
        seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
        if len(seen) == call:
            raise error
        return float(-sum(p.square().sum() for p in model.parameters()))

    search = Evolution(model, FLAT)
    with suppress(RuntimeError, KeyboardInterrupt):
        search.evolve(fitness, generations=3)
    centers = [seen[0]]
    for record in search.history:
        if record.accepted:
            first = record.generation * 5 + 1
            centers.append(seen[first + int(np.nanargmax(record.scores))])
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], value) for name, value in centers[-1].items())


@pytest.mark.parametrize("where", ["selection", "acceptance"])
def test_an_interrupt_at_the_candidate_leaves_the_parent(where: str) -> None:
    model = make("batch norm")
    before = trace(model)
    decides_by = Hostile(model, raises_at(6 if where == "selection" else 2, KeyboardInterrupt()))
    ranks = iter(range(99))
    options = {"accept_on": decides_by} if where == "acceptance" else {}
    first = (lambda: float(next(ranks))) if options else lambda: decides_by() + next(ranks)
    with pytest.raises(KeyboardInterrupt):
        Evolution(model, OpenAIES(0.1, population=4)).evolve(first, **options)
    assert_same(before, trace(model))


def test_an_interrupt_while_a_member_is_written_leaves_the_center() -> None:
    model = make("batch norm")
    slots = slots_of_module(model)
    space = AllWeights()
    workspace = Workspace(space, space.open(slots), slots.tensors)
    before = trace(model)

    class Torn:
        def tensor(self, name: str) -> Tensor:
            if name == "1.bias":
                raise KeyboardInterrupt
            return torch.full_like(slots.tensors[name], 7.0)

    with pytest.raises(KeyboardInterrupt):
        score([Torn()], workspace, lambda: 0.0)
    assert_same(before, trace(model))


def test_an_interrupt_while_a_center_is_accepted_leaves_a_whole_one() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    slots = slots_of_module(model)
    space = AllWeights()
    genome = space.open(slots)
    workspace = Workspace(space, genome, slots.tensors)
    new = Tensors({name: torch.full_like(t, 7.0) for name, t in slots.tensors.items()})
    workspace.write(new)

    real, calls = genome.move, []

    def interrupted(coordinates: Any) -> None:
        calls.append(None)
        if len(calls) == 1:
            genome.center["0.weight"].fill_(7.0)  # half way
            raise KeyboardInterrupt
        real(coordinates)

    genome.move = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        finish(lambda: workspace.accept(new))
    workspace.restore()
    for name, tensor in slots.tensors.items():
        assert bool((tensor == 7).all())
        assert torch.equal(genome.center[name], tensor)


# What members are


def test_each_member_is_scored_with_its_own_weights() -> None:
    model = make("tied and shared, dropout")
    slots = slots_of_module(model)
    genome = AllWeights().open(slots)
    workspace = Workspace(AllWeights(), genome, slots.tensors)
    members = [FLAT.member(genome, {}, 0, i, seed=5) for i in range(4)]
    seen: list[dict[str, Tensor]] = []

    def fitness() -> float:
        seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return float(len(seen))

    found = score(members, workspace, fitness)
    assert [one.value for one in found] == [1.0, 2.0, 3.0, 4.0]
    for member, weights in zip(members, seen, strict=True):
        for name, value in weights.items():
            assert torch.equal(value, member.tensor(name))
            assert not torch.equal(value, genome.center[name])


def test_bfloat16_weights_do_not_drift() -> None:
    """Adding the noise and taking it off again would (measured: 1.5e-3 after 64 members)."""
    model = make("bfloat16")
    before = trace(model)
    Evolution(model, RandomMutation(0.3, population=64)).evolve(lambda: 0.0, generations=2)
    assert_same(before, trace(model))


def test_frozen_parameters_evolve_where_it_is_asked_for_and_stay_frozen() -> None:
    model = make("frozen")
    weight = model[0].weight  # type: ignore[index]
    before = weight.clone()
    every = AllWeights(frozen=True)
    Evolution(model, FLAT, space=every, accept=Always()).evolve(lambda: float(weight.sum()))
    assert not torch.equal(weight, before)
    assert not weight.requires_grad


def test_tied_weights_stay_tied() -> None:
    model = Shared()
    Evolution(model, FLAT, accept=Always()).evolve(Fitness(model, BATCHES))
    assert model.tied.weight is model.first.weight is model.again.weight


# The same randomness for everyone


def test_parent_and_members_meet_the_same_randomness() -> None:
    seen: list[tuple[float, float, float]] = []

    def fitness() -> float:
        seen.append((float(torch.rand(())), random.random(), float(np.random.rand())))
        return 0.0

    w = torch.ones(3)
    Evolution({"w": w}, FLAT).evolve(fitness, generations=3)
    draws = [set(seen[5 * g : 5 * g + 5]) for g in range(3)]
    assert [len(d) for d in draws] == [1, 1, 1]
    assert len(set.union(*draws)) == 3, "and another in each generation"


@pytest.mark.parametrize("accept", [None, Improves(), Always()])
def test_noise_of_the_fitness_alone_is_no_improvement(accept: Any) -> None:
    """A fitness that is nothing but luck: with streams of their own, members would win by it."""
    w = torch.ones(3)
    es = OpenAIES(0.1, population=8)
    records = Evolution({"w": w}, es, accept=accept).evolve(lambda: float(torch.rand(())), 5)
    assert not any(record.accepted for record in records)
    assert torch.equal(w, torch.ones(3))


def test_dropout_is_the_same_for_parent_and_members() -> None:
    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.Linear(32, 3))
    masks: list[Tensor] = []
    model[1].register_forward_hook(lambda m, i, o: masks.append(o == 0))
    fitness = Fitness(model, [(X, Y)], mode="train")
    Evolution(model, RandomMutation(1e-6, population=3)).evolve(fitness)
    assert all(torch.equal(mask, masks[0]) for mask in masks[1:4])
    assert 0.3 < float(masks[0].double().mean()) < 0.7


def test_batch_norm_in_training_mode_scores_each_from_the_same_statistics() -> None:
    model = plain().train()
    seen: list[Tensor] = []

    def fitness() -> float:
        seen.append(model[1].running_mean.clone())  # type: ignore[index]
        return -float(F.cross_entropy(run(model), Y))

    Evolution(model, FLAT, accept=Always()).evolve(fitness, generations=2)
    assert all(torch.equal(mean, seen[0]) for mean in seen)


# Buffers that evolve


class Quantised(nn.Module):
    """Rounds by scales that no gradient reaches; the running mean is its own business."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("scale", torch.full((3,), 0.3))
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(torch.round(self.linear(x) / self.scale) * self.scale)
        return out


def test_buffers_evolve_where_asked_and_the_others_are_guarded() -> None:
    model = Quantised().train()
    before = trace(model)

    def fitness() -> float:
        run(model)  # in training mode: the running statistics move
        return -float(model.scale.square().sum())  # type: ignore[operator]

    space = Only("scale", buffers=True)
    records = Evolution(model, RandomMutation(0.2, 8), space=space).evolve(fitness, 5)
    after = trace(model)
    assert any(record.accepted for record in records)
    assert float(model.scale.norm()) < float(before["values"]["scale"].norm())  # type: ignore[operator]
    for values in (before["values"], after["values"]):
        values.pop("scale")
    assert_same(before, after)


def test_buffers_that_evolve_are_restored_where_nothing_is_accepted() -> None:
    model = Quantised()
    before = trace(model)
    space = Only("*", buffers=True)
    Evolution(model, FLAT, space=space).evolve(Hostile(model, nothing), generations=2)
    assert_same(before, trace(model))


@pytest.mark.parametrize(
    "replace", [lambda m: m.double(), lambda m: m.register_buffer("scale", m.scale * 1)]
)
def test_a_buffer_that_was_replaced_since_is_the_one_that_evolves(
    replace: Callable[[nn.Module], Any],
) -> None:
    model = Quantised()
    space = Only("scale", buffers=True)
    search = Evolution(model, RandomMutation(0.2, 8), space=space)
    replace(model)
    start = model.scale.clone()  # type: ignore[operator]
    record = search.evolve(lambda: -float(model.scale.square().sum()))[0]  # type: ignore[operator]
    assert len({*record.scores, record.parent}) == 9
    assert record.accepted
    assert not torch.equal(model.scale, start)  # type: ignore[arg-type]


def test_an_evolving_buffer_that_the_forward_replaces_stays_the_models() -> None:
    model = Caching()
    own = model.average
    space = Only("average", buffers=True)
    fitness = Fitness(model, BATCHES, "neg-loss")
    with pytest.warns(
        UserWarning, match="cannot score these"
    ) as told:  # vmap first, and then the prefix
        Evolution(model, RandomMutation(0.3, 8), space=space).evolve(fitness, 3)
    assert all("cannot score these members" in str(one.message) for one in told)
    assert "in place it is" in str(told[0].message)
    assert model.average is own


# Memory


@pytest.mark.parametrize(
    ("make_strategy", "accept"),
    [
        (lambda n: OpenAIES(0.02, population=n), Improves()),
        (lambda n: OpenAIES(0.02, population=n, antithetic=False, shaping="z-score"), Always()),
        (lambda n: RandomMutation(0.02, population=n), Improves()),
    ],
    ids=["openai-es", "article", "mutation"],
)
def test_memory_is_a_copy_of_the_center_and_does_not_grow_with_the_population(
    make_strategy: Callable[[int], Any], accept: Any, new_ledger: Any
) -> None:
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(12)))
    parameters = sum(p.numel() * 4 for p in model.parameters())
    inputs, peaks = torch.randn(1, 256), []
    draw("normal", inputs, seed=0, generation=0, member=0, name="")  # its tables stay
    for population in (2, 8):
        search = Evolution(model, make_strategy(population), accept=accept)
        with new_ledger() as ledger:
            search.evolve(lambda: float(model(inputs).sum()), generations=2)
        # of the normal quantiles
        draws = ledger.calls[torch.ops.aten.index_select.out]
        assert draws >= population / 2 * 16, "every tensor was drawn before its eyes"
        peaks.append(ledger.peak / parameters)
    # what nobody asked to accept is held until its score turns out to be finite: one copy more
    most = 3.0 if isinstance(accept, Always) else 2.0
    assert 1.0 <= peaks[0] < most
    assert peaks[1] < peaks[0] + 0.1  # biases are drawn together, up to 256 KB


# How members are written


PAIRS = OpenAIES(0.1, population=4)  # one strategy: a mirror image knows its member by it
MADE: dict[str, Callable[[], Any]] = {
    "pairs": lambda: OpenAIES(0.1, population=6),
    "pairs of low rank": lambda: OpenAIES(0.1, population=6, noise=LowRank(2)),
    "uniform, not relative": lambda: OpenAIES(0.1, 6, noise="uniform", scale="absolute"),
    "no pairs": lambda: OpenAIES(0.1, population=6, antithetic=False),
    "mutation": lambda: RandomMutation(0.1, population=6),
}
ORDERS = {
    "in order": [0, 1, 2, 3, 4, 5],
    "backwards": [5, 4, 3, 2, 1, 0],
    "partners apart": [0, 2, 1, 5, 4, 3],
    "one twice": [0, 0, 1, 1, 0, 3],
}


def open_up(model: nn.Module) -> tuple[Genome, Workspace]:
    slots = slots_of_module(model)
    genome = AllWeights().open(slots)
    return genome, Workspace(AllWeights(), genome, slots.tensors)


def twin_of(strategy: Any, genome: Genome, name: str, i: int, seed: int) -> Tensor:
    """The slow twin of member i of generation 0: center + sigma * scale * noise, or its mirror."""
    center = genome.center[name]
    antithetic = getattr(strategy, "antithetic", False)
    noise = draw(
        strategy.noise,
        center,
        seed=seed,
        generation=0,
        member=i // 2 if antithetic else i,
        name=name,
    )
    unit = genome.rms[name] if strategy.scale == "rms" else 1.0
    member = (center + noise * (strategy.sigma * unit)).to(center.dtype)
    return (center - member) + center if antithetic and i % 2 else member


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", MADE)
def test_what_is_written_is_center_plus_noise_to_the_bit(
    name: str, dtype: torch.dtype, order: str
) -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(dtype)
    genome, workspace = open_up(model)
    strategy = MADE[name]()
    written = []
    for i in ORDERS[order]:
        member = strategy.member(genome, {}, 0, i, 11)
        workspace.write(member)
        for key, weight in model.named_parameters():
            twin = twin_of(strategy, genome, key, i, 11)
            assert torch.equal(weight, twin), (i, key)
            assert torch.equal(weight, member.tensor(key).to(dtype)), (i, key)
        written.append(tuple(model[0].weight.flatten().tolist()))  # type: ignore[union-attr]
    assert len(set(written)) == len(set(ORDERS[order])), "members differ"


def clamp(model: nn.Module) -> None:
    with torch.no_grad():
        for p in model.parameters():
            p.clamp_(-0.05, 0.05)


def step(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.enable_grad():
        F.cross_entropy(run(model), Y).backward()
    optimizer.step()
    optimizer.zero_grad()


def load(model: nn.Module) -> None:
    model.load_state_dict({key: value * 2 for key, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [clamp, step, load])
def test_a_fitness_that_changes_the_weights_does_not_change_the_next_member(
    change: Callable[[nn.Module], None],
) -> None:
    model = nn.Linear(6, 3)
    genome, workspace = open_up(model)
    members = [PAIRS.member(genome, {}, 0, i, 11) for i in range(4)]
    before = trace(model)
    seen: list[dict[str, Tensor]] = []

    def fitness() -> float:
        seen.append({key: p.detach().clone() for key, p in model.named_parameters()})
        change(model)
        assert not torch.equal(model.weight, seen[-1]["weight"])
        return 0.0

    with preserved_rng():
        score(members, workspace, fitness)
    for member, weights in zip(members, seen, strict=True):
        for key, value in weights.items():
            assert torch.equal(value, member.tensor(key)), key
    assert_same(before, trace(model))


def test_a_mirror_image_is_of_the_center_where_it_is_now() -> None:
    """What stands in the model was made around the center before it moved there."""
    model = nn.Linear(6, 3)
    genome, workspace = open_up(model)
    member, image = (PAIRS.member(genome, {}, 0, i, 11) for i in range(2))
    workspace.write(member)
    workspace.accept(workspace.settle(member))
    workspace.write(image)
    assert torch.equal(model.weight, image.tensor("weight"))
    assert not torch.equal(model.weight, genome.center["weight"])


def test_where_coordinates_are_not_the_weights_a_mirror_image_is_decoded() -> None:
    """The weights would be reflected in the center's coordinates, which are others."""
    model = nn.Linear(6, 6, bias=False)
    slots = slots_of_module(model)
    checkpoints = [Checkpoint(i, {"weight": torch.randn(6, 6)}) for i in range(3)]
    span = Span(coefficients="convex").enter(slots, checkpoints)
    genome = span.open(slots)
    workspace = Workspace(span, genome, slots.tensors)
    strategy = OpenAIES(0.4, population=4, scale="absolute")
    for i in range(4):
        member = strategy.member(genome, {}, 0, i, 11)
        workspace.write(member)
        assert torch.equal(model.weight, span.decode(member, "weight"))


def test_after_the_center_is_back_a_mirror_image_is_drawn_anew() -> None:
    model = nn.Linear(6, 3)
    genome, workspace = open_up(model)
    member, image = (PAIRS.member(genome, {}, 0, i, 11) for i in range(2))
    workspace.write(member)
    workspace.restore()
    workspace.write(image)
    assert torch.equal(model.weight, image.tensor("weight"))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
def test_the_center_is_back_and_the_next_pair_right_after_an_interrupted_write(
    call: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it was drawing a member (calls 1 and 3) or reflecting it (2 and 4)."""
    model = nn.Linear(6, 3)
    genome, workspace = open_up(model)
    members = [PAIRS.member(genome, {}, 0, i, 11) for i in range(4)]
    before = trace(model)
    real = torch.Tensor.add_
    adding = []

    def interrupted(self: Tensor, *args: Any, **options: Any) -> Tensor:
        adding.append(None)  # the last step of each tensor: two tensors in a member
        if len(adding) == 2 * call:
            raise error
        return real(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "add_", interrupted)
        with pytest.raises(error), preserved_rng():
            score(members, workspace, lambda: 0.0)
    assert_same(before, trace(model))
    for member in members:
        workspace.write(member)
        assert torch.equal(model.weight, member.tensor("weight"))
        assert torch.equal(model.bias, member.tensor("bias"))


# Reads of the device


class Reads(TorchDispatchMode):
    """Counts how often a value goes from the device to Python, for which one waits."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in READING
        return func(*args, **(kwargs or {}))


READING = {
    torch.ops.aten._local_scalar_dense.default,  # item(), float(), bool(), int()
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,  # also an index that is a mask
}


def reads(model: nn.Module, fitness: Fitness, population: int) -> int:
    genome, workspace = open_up(model)
    assert genome.rms, "read once for each center"
    strategy = OpenAIES(0.1, population=population)
    members = [strategy.member(genome, {}, 0, i, 11) for i in range(population)]
    lists: list[None] = []
    real = torch.Tensor.tolist

    def listing(self: Tensor) -> Any:
        lists.append(None)  # on the CPU it passes no dispatcher
        return real(self)

    with pytest.MonkeyPatch.context() as patch, Reads() as seen:
        patch.setattr(torch.Tensor, "tolist", listing)
        found = score(members, workspace, fitness, ModuleState(model))
    assert not any(one.failed for one in found)
    return seen.count + len(lists)


@pytest.mark.parametrize("metric", ["accuracy", "neg-loss"])
def test_the_device_is_read_once_however_many_members_there_are(metric: str) -> None:
    model = plain()
    fitness = Fitness(model, BATCHES, metric)
    fitness()  # the first scoring finds how outputs and targets are read
    assert [reads(model, fitness, population) for population in (8, 32)] == [1, 1]


def test_reads_of_a_metric_that_gives_a_number_are_seen() -> None:
    """The count above would miss none."""
    model = plain()
    fitness = Fitness(model, BATCHES, lambda outputs, targets: float(outputs.sum()))
    assert reads(model, fitness, 8) >= 8


# Memory of one member


class Made(TorchDispatchMode):
    """Notes the bytes of each storage that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [*args, *(kwargs or {}).values()]
        old = {t.untyped_storage().data_ptr() for t in given if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in old:
            self.sizes.append(out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("noise", ["normal", "uniform", LowRank(2)])
def test_a_member_is_written_without_a_tensor_of_the_size_of_a_weight(noise: Any) -> None:
    """The rule: drawing takes at most 1 MB beside the weights, however large; a mirror nothing."""
    model = nn.Linear(1024, 512, bias=False)
    genome, workspace = open_up(model)
    strategy = OpenAIES(0.1, population=4, noise=noise)
    members = [strategy.member(genome, {}, 0, i, 11) for i in range(4)]
    workspace.write(members[0])  # its tables stay
    most = []
    for member in members[2:]:
        before = model.weight.detach().clone()
        with Made() as made:
            workspace.write(member)
        assert not torch.equal(before, model.weight)
        most.append(max(made.sizes, default=0))
    assert most[1] == 0
    assert 0 < most[0] <= 2**20 < model.weight.nbytes


# Autocast


def test_a_fitness_under_autocast_leaves_no_cast_weights_in_the_users_own_block() -> None:
    """Torch keeps what it has cast until the outermost block ends: a member's weights, here."""
    model = nn.Linear(6, 3)
    fitness = Fitness(model, BATCHES, lambda outputs, targets: 0.0, autocast=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        before = model(X)
        torch.clear_autocast_cache()
        Evolution(model, FLAT, engine="inplace").evolve(fitness)
        assert torch.equal(model(X), before)
