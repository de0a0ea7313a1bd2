"""What scoring in place costs a member beside its forward: noise once a pair, and little else."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

from evostep import Always, Evolution, Fitness, OpenAIES, RandomMutation
from evostep.engines.inplace import InPlace, OneByOne
from evostep.genome import members
from evostep.genome.point import Coordinates
from evostep.genome.slots import slots_of_module
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.isolation import ModuleState
from evostep.spaces.weights import AllWeights
from evostep.spaces.workspace import Workspace
from evostep.strategies.base import Strategy

X = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 3
BATCHES = [(X[:12], Y[:12]), (X[12:], Y[12:])]


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Linear(40, 3)]
    return nn.Sequential(*layers).to(dtype)


def opened(
    model: nn.Module, strategy: Strategy, fitness: Any
) -> tuple[OneByOne, Round, list[Coordinates]]:
    slots = slots_of_module(model)
    genome = AllWeights().open(slots)
    workspace = Workspace(AllWeights(), genome, slots.tensors)
    evaluator = Evaluator(fitness, ModuleState(model))
    found = [strategy.member(genome, {}, 0, i, 9) for i in range(strategy.size)]
    return InPlace().open(workspace, evaluator), evaluator.round(0, 0), found


def scored(session: OneByOne, round: Round, members: list[Coordinates]) -> list[float]:
    found = session.score(round, members)
    assert not any(one.failed for one in found)
    return [one.value for one in found]


# Noise


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the draws of noise by the tensor's name."""
    calls: Counter[str] = Counter()
    draw_many = members.draw_many

    def counted(*args: Any, **options: Any) -> Tensor:
        calls[options["name"]] += len(options["members"])
        return draw_many(*args, **options)

    monkeypatch.setattr(members, "draw_many", counted)
    return calls


def test_noise_is_drawn_once_for_an_antithetic_pair(drawn: Counter[str]) -> None:
    model = network()
    given = opened(model, OpenAIES(0.1, population=10), Fitness(model, BATCHES))
    scored(*given)
    assert set(drawn.values()) == {5}
    assert len(drawn) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_members_are_written_to_the_bit(dtype: torch.dtype) -> None:
    """What the fitness sees is what `tensor()` gives, mirror images included."""
    model = network(dtype)
    seen: list[list[Tensor]] = []

    def fitness() -> float:
        seen.append([p.detach().clone() for p in model.parameters()])
        return 0.0

    session, round, found = opened(model, OpenAIES(0.1, population=6), fitness)
    session.score(round, found)
    for member, weights in zip(found, seen, strict=True):
        for name, weight in zip(session.workspace.live, weights, strict=True):
            assert torch.equal(weight, member.tensor(name).to(dtype)), name
    assert all(not torch.equal(a, b) for a, b in zip(seen[0], seen[1], strict=True))


def test_a_mirror_image_is_drawn_anew_where_the_fitness_has_changed_its_member(
    drawn: Counter[str],
) -> None:
    model = network()
    seen: list[Tensor] = []

    def fitness() -> float:
        seen.append(model[0].weight.detach().clone())  # type: ignore[union-attr,operator]
        with torch.no_grad():
            model[0].weight.add_(1.0)  # type: ignore[union-attr,operator]
        return 0.0

    session, round, found = opened(model, OpenAIES(0.1, population=6), fitness)
    before = model[0].weight.detach().clone()  # type: ignore[union-attr,operator]
    session.score(round, found)
    assert drawn["0.weight"] == 6
    for member, weight in zip(found, seen, strict=True):
        assert torch.equal(weight, member.tensor("0.weight"))
    assert torch.equal(model[0].weight, before)  # type: ignore[arg-type,union-attr]


@pytest.mark.parametrize("how", ["clamp", "replace"])
def test_so_it_is_where_the_weights_are_changed_behind_torchs_counter(how: str) -> None:
    model = network()
    weight = model[0].weight  # type: ignore[union-attr]
    assert isinstance(weight, nn.Parameter)
    seen: list[Tensor] = []

    def fitness() -> float:
        seen.append(weight.detach().clone())
        if how == "clamp":
            weight.data.clamp_(-0.1, 0.1)
        else:
            weight.data = torch.zeros_like(weight)
        return 0.0

    session, round, found = opened(model, OpenAIES(0.1, population=6), fitness)
    session.score(round, found)
    for member, written in zip(found, seen, strict=True):
        assert torch.equal(written, member.tensor("0.weight"))


def test_so_it_is_where_a_forward_changes_them() -> None:
    seen: list[Tensor] = []

    class Clamping(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(self.weight.detach().clone())
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    model = Clamping(6, 3)
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    session, round, found = opened(model, OpenAIES(0.1, population=6), fitness)
    session.score(round, found)
    for member, written in zip(found, seen, strict=True):
        assert torch.equal(written, member.tensor("weight"))


def test_weights_made_in_inference_mode_are_refused_outside_of_it() -> None:
    with torch.inference_mode():
        model = nn.Linear(6, 3)
        fitness = Fitness(model, [(X, Y)], "neg-loss")
        (inside,) = Evolution(model, OpenAIES(0.1, population=4), accept=Always()).evolve(fitness)
    assert not inside.failed
    search = Evolution(model, OpenAIES(0.1, population=4), accept=Always())
    with pytest.raises(ValueError, match=r"'weight' was made in torch\.inference_mode"):
        search.evolve(Fitness(model, [(X, Y)], "neg-loss"))
    copied = copy.deepcopy(model)
    (outside,) = Evolution(copied, OpenAIES(0.1, population=4)).evolve(
        Fitness(copied, [(X, Y)], "neg-loss")
    )
    assert not outside.failed


# Memory and the device


class Operations(TorchDispatchMode):
    """Counts operations, and notes the sizes of what they make."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls[str(func)] += 1
        given = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
            self.largest = max(self.largest, result.untyped_storage().nbytes())
        return result


# what waits for a device: `.item()`, bool(), and what gives as many elements as there are
READS = ("aten._local_scalar_dense.default", "aten.nonzero.default", "aten.is_nonzero.default")


@pytest.mark.parametrize("metric", ["accuracy", "neg-loss"])
def test_scores_are_read_once_a_generation_however_many_members(metric: str) -> None:
    reads = []
    for population in (4, 32):
        model = network()
        given = opened(model, OpenAIES(0.1, population=population), Fitness(model, BATCHES, metric))
        with Operations() as operations:
            values = scored(*given)
        assert len(values) == population
        reads.append([operations.calls[read] for read in READS])
    assert reads[0] == reads[1]


def test_writing_a_member_makes_nothing_larger_than_the_largest_tensor() -> None:
    model = nn.Linear(2000, 500)  # noise is made in pieces of fixed size, which are smaller
    session, _, found = opened(model, OpenAIES(0.1, population=4), lambda: 0.0)
    workspace = session.workspace
    workspace.write(found[0])  # tables are made on first use
    with Operations() as operations:
        for member in found:
            workspace.write(member)
        workspace.restore()
    assert 0 < operations.largest <= model.weight.nbytes


# Mixed precision and compiled models


def test_weights_cast_by_the_users_own_autocast_are_not_kept_from_member_to_member() -> None:
    """Autocast keeps casts of parameters that require gradients until its block is left."""
    found = []
    for inside in (False, True):
        model = network()
        given = opened(
            model, RandomMutation(0.3, population=5), Fitness(model, BATCHES, "neg-loss")
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=True):
            if inside:
                model.eval()(X)  # casts the center's weights
            found.append(scored(*given))
    assert found[0] == found[1]
    assert len(set(found[0])) == 5


@pytest.mark.parametrize("bare", [True, False])
def test_nor_is_a_members_weight_kept_for_the_user(bare: bool) -> None:
    """In the same block a bare callable scores each member, and the user's model is the center."""
    model = network().eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        before = model(X)
        fitness: Any = Fitness(model, BATCHES, "neg-loss")
        if bare:
            fitness = lambda: float(model(X).square().mean())  # noqa: E731
        values = scored(*opened(model, RandomMutation(0.3, population=4), fitness))
        assert torch.equal(model(X), before)
    assert len(set(values)) == 4


def test_a_fitness_under_autocast_scores_the_same_inside_another_one() -> None:
    found = []
    for user in (False, True):
        model = network()
        fitness = Fitness(model, BATCHES, "neg-loss", autocast=torch.bfloat16)
        given = opened(model, RandomMutation(0.3, population=5), fitness)
        with torch.autocast("cpu", torch.bfloat16, enabled=user):
            found.append(scored(*given))
    assert found[0] == found[1]
    plain = network()
    given = opened(plain, RandomMutation(0.3, population=5), Fitness(plain, BATCHES, "neg-loss"))
    full = scored(*given)
    assert full != found[0]
    assert full == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize("whole", [True, False], ids=["model.compile", "torch.compile"])
def test_a_compiled_model_is_not_compiled_again_as_its_weights_change(whole: bool) -> None:
    counter = CompileCounter()
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    scored: Any = model
    if whole:
        model.compile(backend=counter, dynamic=False)
    else:
        scored = torch.compile(model, backend=counter, dynamic=False)
    fitness = Fitness(scored, [(X, Y)], "neg-loss")
    search = Evolution(scored, OpenAIES(0.1, population=4), accept=Always())
    (first,) = search.evolve(fitness, 1)
    frames = counter.frame_count
    assert frames > 0
    records = search.evolve(fitness, 3)
    assert counter.frame_count == frames
    assert len({record.parent for record in (first, *records)}) == 4
    torch._dynamo.reset()
