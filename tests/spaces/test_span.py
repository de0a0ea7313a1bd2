"""Span: mixtures of a run's checkpoints."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

import evostep
from evostep import Always, Evolution, Evolved, Fitness, RandomMutation
from evostep.genome.point import Tensors
from evostep.genome.slots import slots_of_module
from evostep.scoring.calibration import Calibration
from evostep.spaces.base import Checkpoint
from evostep.spaces.memory import Memory
from evostep.spaces.span import Span, project
from evostep.strategies.cmaes import CMAES
from evostep.strategies.random_search import RandomSearch
from evostep.strategies.snes import SNES

N = 60


def data(seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, 5, generator=generator)
    return [(inputs, (inputs.sum(1) > 0).long())]


def network(seed: int = 0, *, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(seed)
    middle = nn.BatchNorm1d(4) if norm else nn.Tanh()
    return nn.Sequential(nn.Linear(5, 4), middle, nn.Linear(4, 2))


def weights(seed: int) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in network(seed).named_parameters()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def entered(span: Span, model: nn.Module, remembered: int = 3) -> Any:
    checkpoints = [Checkpoint(i, weights(10 + i)) for i in range(1, remembered + 1)]
    return span.enter(slots_of_module(model), checkpoints)


# Coordinates and weights.


@pytest.mark.parametrize("coefficients", ["affine", "convex"])
@pytest.mark.parametrize("groups", ["layer", "tensor", "all"])
def test_unit_vectors_are_the_checkpoints_to_the_bit(groups: Any, coefficients: Any) -> None:
    model = network()
    with torch.no_grad():
        model[0].bias.zero_().neg_()  # -0.0 must not become 0.0
    space = entered(Span(groups=groups, coefficients=coefficients), model)
    genome = space.open(slots_of_module(model))
    current = dict(model.named_parameters())
    for j, expected in enumerate([weights(11), weights(12), weights(13), current]):
        unit = torch.zeros(4, dtype=torch.float64)
        unit[j] = 1
        for name, tensor in expected.items():
            decoded = space.decode(Tensors(dict.fromkeys(genome.center, unit)), name)
            assert torch.equal(decoded.view(torch.int32), tensor.detach().view(torch.int32))
    for name, tensor in current.items():  # and that is where it opens
        assert torch.equal(space.decode(Tensors(genome.center), name), tensor)


@pytest.mark.parametrize("coefficients", ["affine", "convex"])
def test_the_uniform_start_is_the_mean(coefficients: Any) -> None:
    model = network()
    space = entered(Span(coefficients=coefficients), model)
    genome = space.open(slots_of_module(model))
    (start,) = space.starts(genome).values()
    for name, tensor in model.named_parameters():
        parts = [weights(11)[name], weights(12)[name], weights(13)[name], tensor.detach()]
        torch.testing.assert_close(space.decode(start, name), torch.stack(parts).mean(0))


@pytest.mark.parametrize("groups", ["layer", "tensor", "all"])
def test_decoding_agrees_with_a_loop(groups: Any) -> None:
    model = network()
    space = entered(Span(groups=groups), model)
    genome = space.open(slots_of_module(model))
    names = {
        "layer": ["0", "2"],
        "tensor": ["0.weight", "0.bias", "2.weight", "2.bias"],
        "all": ["all"],
    }
    assert list(genome.center) == names[groups]
    z = {name: torch.randn(4).double() for name in genome.center}
    for name, tensor in model.named_parameters():
        group = {"layer": name[0], "tensor": name, "all": "all"}[groups]
        total = sum(z[group].tolist())
        expected = torch.zeros_like(tensor)
        for j, basis in enumerate([weights(11), weights(12), weights(13), {name: tensor}]):
            expected += (float(z[group][j]) + (1 - total) / 4) * basis[name]
        torch.testing.assert_close(space.decode(Tensors(z), name), expected)


VECTORS = st.lists(st.floats(-5, 5), min_size=1, max_size=9)


@given(VECTORS)
def test_projection_is_the_nearest_point_of_the_simplex(values: list[float]) -> None:
    z = torch.tensor(values, dtype=torch.float64)
    c = project(z)
    assert float(c.min()) >= 0
    assert float(c.sum()) == pytest.approx(1)
    # the slow twin finds by bisection the shift after which what is positive sums to 1
    low, high = min(values) - 1, max(values)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(max(v - middle, 0) for v in values) > 1 else (low, middle)
    torch.testing.assert_close(c, (z - low).clamp_min(0), atol=1e-9, rtol=0)


@given(VECTORS)
def test_projection_keeps_what_is_on_the_simplex(values: list[float]) -> None:
    c = torch.tensor(values).double().softmax(0)
    torch.testing.assert_close(project(c), c)


def test_coordinates_that_are_not_finite_fail_instead_of_passing() -> None:
    model = network()
    space = entered(Span(coefficients="convex", groups="all"), model)
    z = torch.full((4,), torch.nan, dtype=torch.float64)
    assert space.decode(Tensors({"all": z}), "0.weight").isnan().all()


def test_half_precision_is_mixed_in_single() -> None:
    model = network().to(torch.bfloat16)
    space = entered(Span(groups="all"), model)
    (start,) = space.starts(space.open(slots_of_module(model))).values()
    assert space.decode(start, "0.weight").dtype == torch.float32


# Memory.


@given(st.integers(1, 12), st.integers(0, 150))
def test_memory_is_evenly_spaced(size: int, count: int) -> None:
    memory = Memory(size)
    for _ in range(count):
        memory.add({})
    numbers = [checkpoint.number for checkpoint in memory]
    assert len(numbers) == min(size, count)
    assert numbers == sorted(set(numbers))
    if count:
        assert numbers[-1] == count
    if count and size > 1:
        assert numbers[0] == 1
        gaps = [b - a for a, b in itertools.pairwise(numbers)]
        assert max(gaps, default=0) <= max(1, 2 * (count - 1) / (size - 1))


def test_memory_holds_copies_and_survives_saving(tmp_path: Path) -> None:
    w = torch.ones(3)
    memory = Memory(2)
    for k in range(3):
        memory.add({"w": w.fill_(k)})
    assert [float(c.weights["w"][0]) for c in memory] == [0, 2]
    torch.save(memory.state_dict(), tmp_path / "memory.pt")
    other = Memory(2)
    other.load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    assert [c.number for c in other] == [1, 3]
    other.add({"w": w})
    assert [c.number for c in other] == [1, 4]
    smaller = Memory(1)
    smaller.load_state_dict(memory.state_dict())
    assert [c.number for c in smaller] == [3]


# In a run.


def walk(model: nn.Module, search: Evolution | Evolved, steps: int = 3) -> None:
    """Wander off, remembering on the way."""
    for k in range(steps):
        search.remember()
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(k)) * 0.5)


def test_it_starts_at_the_average_where_that_scores_better() -> None:
    model = network()
    fitness = Fitness(model, data(), "neg-loss")
    search = Evolution(model, SNES(0.1, population=4), space=Span(groups="all"))
    walk(model, search)
    current = fitness()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    mean = {
        n: torch.stack([*(c.weights[n] for c in search._memory), p]).mean(0)
        for n, p in before.items()
    }
    twin = copy.deepcopy(model)
    twin.load_state_dict(mean)
    average = Fitness(twin, data(), "neg-loss")()
    first, second = search.evolve(fitness, generations=2)
    assert first.opened == ("average" if average > current else "current")
    assert first.parent == pytest.approx(max(average, current))
    assert second.opened is None
    assert first.sample_forwards == second.sample_forwards + 2 * N
    assert search.sample_forwards == first.sample_forwards + second.sample_forwards


@pytest.mark.parametrize("target", ["average", "current"])
def test_the_start_is_the_better_of_the_two(target: str) -> None:
    w = torch.tensor([0.0, 0.0])
    search = Evolution({"w": w}, SNES(1e-9, population=4), space=Span())
    search.remember()
    w.fill_(2.0)
    goal = 1.0 if target == "average" else 2.0
    (record,) = search.evolve(lambda: -float((w - goal).abs().sum()))
    assert record.opened == target
    torch.testing.assert_close(w, torch.full((2,), goal), atol=1e-6, rtol=0)


@pytest.mark.parametrize("coefficients", ["affine", "convex"])
@pytest.mark.parametrize(
    "strategy",
    [
        SNES(0.3, population=12, scale="absolute"),
        CMAES(0.3, population=8, scale="absolute"),
        CMAES(0.3, scale="absolute"),
        RandomMutation(0.2, population=12, scale="absolute"),
        RandomSearch(0.5, population=12, scale="absolute"),
    ],
)
def test_every_strategy_finds_the_mixture(strategy: Any, coefficients: Any) -> None:
    w = torch.tensor([0.0, 0.0, 0.0])
    space = Span(coefficients=coefficients)
    search = Evolution({"w": w}, strategy, space=space, accept=evostep.Improves())
    corners = torch.eye(3)
    for k in range(2):
        w.copy_(corners[k])
        search.remember()
    w.copy_(corners[2])
    goal = torch.tensor([0.2, 0.7, 0.1])
    start = float((torch.full((3,), 1 / 3) - goal).norm())
    search.evolve(lambda: -float((w - goal).norm()), generations=25)
    assert float((w - goal).norm()) < 0.5 * start
    assert float(w.sum()) == pytest.approx(1, abs=1e-5)
    if coefficients == "convex":
        assert float(w.min()) >= 0


def test_each_phase_opens_the_span_anew_and_new_checkpoints_restart_the_strategy() -> None:
    model = network()
    fitness = Fitness(model, data(), "neg-loss")
    search = Evolution(model, SNES(0.1, population=6), space=Span(groups="all"), accept=Always())
    walk(model, search, 2)
    search.evolve(fitness, 3)
    learned = search._state["log_sigma"]["all"].clone()  # type: ignore[index]
    assert learned.abs().max() > 0
    taken: list[Any] = []
    search.evolve(fitness, 1, on_generation=lambda r: taken.append(search._layout))
    assert taken[0] == search._layout  # the same checkpoints: learned scales stay
    walk(model, search, 1)
    search.evolve(fitness, 1)
    assert search._layout != taken[0]
    assert search._state["log_sigma"]["all"].shape == (4,)  # type: ignore[index]


def test_a_checkpoint_that_is_the_current_weights_counts_once() -> None:
    w = torch.tensor([0.0])
    search = Evolution({"w": w}, SNES(0.1, population=4), space=Span())
    search.remember()
    w.fill_(3.0)
    search.remember()
    search.evolve(lambda: -abs(float(w) - 1.5))
    assert search._state["log_sigma"]["w"].shape == (2,)  # type: ignore[index]


def test_weights_with_sigma_zero_are_not_mixed() -> None:
    model = network()
    groups = [
        {"params": list(model[0].parameters()), "sigma": 0},
        {"params": list(model[2].parameters())},
    ]
    strategy = RandomMutation(0.3, population=4, scale="absolute")
    optimizer = Evolved(
        torch.optim.SGD(groups, lr=0.1), strategy, space=Span(), accept=Always(), model=model
    )
    walk(model, optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.evolve(Fitness(model, data(), "neg-loss"), 2)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"2.weight", "2.bias"}


def test_batch_norm_statistics_belong_to_the_mixture() -> None:
    model = network(norm=True)
    fitness = Fitness(model, data(), "neg-loss", calibration=data(1))
    strategy = CMAES(0.2, population=6, scale="absolute")
    optimizer = Evolved(
        torch.optim.SGD(model.parameters(), 0.1), strategy, space=Span(), model=model
    )
    walk(model, optimizer)
    records = optimizer.evolve(fitness, 4)
    assert records[0].opened == "average" or any(r.accepted for r in records)
    twin = copy.deepcopy(model)
    Calibration(twin, data(1))(twin)
    assert same(dict(model.named_buffers()), dict(twin.named_buffers()))
    best = max([records[-1].parent, *(r.candidate for r in records if r.accepted)])  # type: ignore[type-var]
    assert fitness() == best


def test_without_a_calibration_batch_norm_is_a_warning() -> None:
    model = network(norm=True)
    search = Evolution(model, SNES(0.1, population=4), space=Span())
    walk(model, search)
    with pytest.warns(UserWarning, match=r"pass Fitness\(calibration=\)"):
        search.evolve(Fitness(model, data(), "neg-loss"))


def test_remembering_for_another_space_is_a_warning() -> None:
    search = Evolution(network(), SNES(0.1))
    with pytest.warns(UserWarning, match="remember.. has no effect: AllWeights"):
        search.remember()


def test_checkpoints_come_with_the_state(tmp_path: Path) -> None:
    model = network()
    make = lambda m: Evolved(  # noqa: E731
        torch.optim.SGD(m.parameters(), 0.1), SNES(0.1, population=4), space=Span(), model=m
    )
    optimizer = make(model)
    walk(model, optimizer)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "run.pt")
    other = network(7)
    resumed = make(other)
    loaded = torch.load(tmp_path / "run.pt", weights_only=True)
    other.load_state_dict(loaded[0])
    resumed.load_state_dict(loaded[1])
    one = optimizer.evolve(Fitness(model, data(), "neg-loss"), 3)
    two = resumed.evolve(Fitness(other, data(), "neg-loss"), 3)
    assert [r.scores for r in one] == [r.scores for r in two]
    assert same(model.state_dict(), other.state_dict())


# Checkpoints that a user gives.


@pytest.mark.parametrize("form", ["dictionary", "safetensors", "torch", "wrapped", "prefixed"])
def test_given_checkpoints(form: str, tmp_path: Path) -> None:
    given: Any = weights(5)
    if form == "safetensors":
        given = tmp_path / "w.safetensors"
        save_file(weights(5), given)
    elif form != "dictionary":
        state: Any = weights(5)
        if form == "prefixed":
            state = {f"module._orig_mod.{name}": w for name, w in state.items()}
        given = str(tmp_path / "w.pt")
        torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else state, given)
    model = network()
    space = Span(checkpoints=[given], groups="all").enter(slots_of_module(model), [])
    unit = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert torch.equal(space.decode(Tensors({"all": unit}), "2.weight"), weights(5)["2.weight"])


def test_a_given_checkpoint_is_copied() -> None:
    model = network()
    span = Span(checkpoints=[model.state_dict()])
    before = span.checkpoints[0]["0.bias"].clone()
    with torch.no_grad():
        model[0].bias.add_(1)
    assert torch.equal(span.checkpoints[0]["0.bias"], before)


# Errors: one line, weights untouched.


def broken_file(folder: Path) -> Path:
    (folder / "w.pt").write_bytes(b"not a checkpoint")
    return folder / "w.pt"


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "memory": (lambda _: Span(memory=0), "memory must be an integer >= 1, got 0"),
    "groups": (lambda _: Span(groups="row"), "groups must be one of layer, tensor, all, got 'row'"),  # type: ignore[arg-type]
    "coefficients": (lambda _: Span(coefficients="soft"), "one of affine, convex, got 'soft'"),  # type: ignore[arg-type]
    "no list": (lambda _: Span(checkpoints="w.pt"), "must be a list, got one str"),
    "no file": (lambda _: Span(checkpoints=["gone.pt"]), "there is no checkpoint 'gone.pt'"),
    "broken": (lambda f: Span(checkpoints=[broken_file(f)]), "cannot be read as a checkpoint"),
    "no state": (lambda _: Span(checkpoints=[{"epoch": 3}]), "checkpoint 0 must be a state"),  # type: ignore[dict-item]
    "shape": (
        lambda _: evolving(Span(checkpoints=[{**weights(1), "2.bias": torch.zeros(3)}])),
        r"checkpoint 0 has '2.bias' of shape \(3,\), the model of shape \(2,\)",
    ),
    "name": (
        lambda _: evolving(Span(checkpoints=[{"0.weight": torch.zeros(4, 5)}])),
        "checkpoint 0 has no '0.bias'",
    ),
    "empty": (lambda _: evolving(Span()).evolve(lambda: 0.0), "the Span is empty"),
    "only itself": (lambda _: remembered_once().evolve(lambda: 0.0), "the Span is empty"),
    "no names": (
        lambda _: Evolved(torch.optim.SGD(network().parameters(), 0.1), SNES(0.1), space=Span()),
        "needs names: pass model=",
    ),
    "suggest_sigma": (
        lambda _: evostep.suggest_sigma(network(), data(), space=Span()),
        "takes the checkpoints of an Evolution",
    ),
    "sigmas": (lambda _: two_sigmas().evolve(lambda: 0.0), "have the sigmas 0.1 and 0.2"),
}


def evolving(span: Span) -> Evolution:
    return Evolution(network(), SNES(0.1, population=4), space=span)


def remembered_once() -> Evolution:
    search = evolving(Span())
    search.remember()
    return search


def two_sigmas() -> Evolved:
    model = network()
    groups = [
        {"params": [p for n, p in model.named_parameters() if kind in n], "sigma": sigma}
        for kind, sigma in (("weight", 0.1), ("bias", 0.2))
    ]
    base = torch.optim.SGD(groups, lr=0.1)
    optimizer = Evolved(base, SNES(0.1, population=4), space=Span(), model=model)
    walk(model, optimizer)
    return optimizer


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_errors(make: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        make(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_layer_that_was_replaced_is_no_part_of_what_is_remembered() -> None:
    model = network()
    search = Evolution(model, SNES(0.1, population=4), space=Span())
    search.remember()
    model[2] = nn.Linear(4, 2)
    with pytest.warns(UserWarning, match=r"'2.weight' is a new parameter: the 1 checkpoints"):
        search.remember()
    assert len(search._memory) == 1
    assert torch.equal(search._memory[0].weights["2.weight"], model[2].weight)


def test_more_parameters_than_before_are_remembered_anew() -> None:
    model = network()
    base = torch.optim.SGD(model[0].parameters(), 0.1)
    optimizer = Evolved(base, SNES(0.1, population=4), space=Span(), model=model)
    optimizer.remember()
    with pytest.warns(UserWarning, match=r"'2.weight' is a new parameter"):
        optimizer.add_param_group({"params": list(model[2].parameters())})
    assert len(optimizer.evolution._memory) == 0
    optimizer.remember()
    assert len(optimizer.evolution._memory[0].weights) == 4


def test_remembering_in_the_middle_of_a_phase_is_refused() -> None:
    model = network()
    search = Evolution(model, SNES(0.1, population=4), space=Span())
    walk(model, search)
    with pytest.raises(ValueError, match="in the middle of a phase"):
        search.evolve(
            Fitness(model, data(), "neg-loss"), 2, on_generation=lambda r: search.remember()
        )
    search.remember()
