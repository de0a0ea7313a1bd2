"""Safe mutations: a loop of autograd.grad as the twin, trained networks, models of all kinds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import evostep.strategies.safe as safe_mutation
from evostep import Evolution, Evolved, Fitness, Improves, Only, RandomMutation
from evostep.genome.slots import slots_of_module
from evostep.lab.models import build_model
from evostep.noise import LowRank, draw
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.isolation import ModuleState
from evostep.scoring.probe import Probe
from evostep.spaces.weights import AllWeights
from evostep.spaces.workspace import Workspace
from evostep.strategies.safe import Safe, floored, output_change, search_magnitude


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).div(16).unsqueeze(1)
    return images[:600], torch.tensor(data.target)[:600]


def train(name: str, digits: tuple[Tensor, Tensor], epochs: int) -> nn.Module:
    model = build_model(name, channels=1, classes=10, image_size=8, seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(epochs):
        for rows in torch.arange(500).chunk(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(digits[0][rows]), digits[1][rows]).backward()
            optimizer.step()
    return model


@pytest.fixture(scope="module")
def networks(digits: tuple[Tensor, Tensor]) -> dict[str, nn.Module]:
    return {"mlp": train("mlp", digits, 8), "small-cnn": train("small-cnn", digits, 3)}


def batches_of(digits: tuple[Tensor, Tensor], size: int = 40, count: int = 100) -> list[Any]:
    images, targets = digits
    return list(
        zip(images[500:][:count].split(size), targets[500:][:count].split(size), strict=True)
    )


def network_of(model: nn.Module, fitness: Fitness) -> Probe:
    slots = slots_of_module(model)
    genome = AllWeights(frozen=True).open(slots)
    evaluator = Evaluator(fitness, ModuleState(model))
    workspace = Workspace(AllWeights(), genome, slots.tensors)
    return Probe(workspace, evaluator, evaluator.round(0, 0))


def center_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def twin(model: nn.Module, apply: Callable[[int], Tensor], n: int, kind: str) -> dict[str, Tensor]:
    """One call of autograd.grad for each example and output."""
    parameters = dict(model.named_parameters())
    model.eval()
    jacobian = []
    for x in range(n):
        y = apply(x).flatten()
        rows = [
            torch.autograd.grad(y[o], parameters.values(), retain_graph=True, allow_unused=True)
            for o in range(len(y))
        ]
        jacobian.append(
            [
                [
                    torch.zeros_like(p) if g is None else g
                    for g, p in zip(row, parameters.values(), strict=True)
                ]
                for row in rows
            ]
        )
    result = {}
    for i, name in enumerate(parameters):
        J = torch.stack([torch.stack([row[i] for row in rows]) for rows in jacobian])  # (x, o, ...)
        inside = J.sum(0) if kind == "sum" else J.abs().mean(0)
        s = inside.square().sum(0).sqrt()
        s = torch.where(s == 0, torch.ones_like(s), s)
        result[name] = torch.where(s < 0.01, torch.full_like(s, 0.01), s)
    return result


class Everything(nn.Module):
    """BatchNorm, dropout, an embedding, tied weights, a layer that nothing reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)
        self.attend = nn.Linear(5, 5)
        self.out = nn.Linear(5, 7, bias=False)
        self.out.weight = self.embed.weight
        self.unused = nn.Linear(2, 2)

    def forward(self, tokens: Tensor, shift: Tensor) -> Tensor:
        x = self.norm(self.embed(tokens).mean(1)) + shift
        y: Tensor = self.out(self.drop(torch.relu(self.attend(x))))
        return y


# Sensitivities


@pytest.mark.parametrize("kind", ["sum", "abs"])
@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
@pytest.mark.parametrize("chunk", [2**24, 1])
def test_equal_a_loop_of_autograd(
    kind: Any, name: str, chunk: int, networks: Any, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_mutation, "_CHUNK", chunk)
    model = networks[name]
    probe = network_of(model, Fitness(model, batches_of(digits)))
    batches = probe.inputs(6)
    assert [batch.count for batch in batches] == [2, 3, 1]  # of 40, 40 and 20
    x = torch.cat([batch.inputs for batch in batches])
    found = safe_mutation.measure_sensitivity(probe, center_of(model), batches, kind)
    expected = twin(model, lambda i: model(x[i : i + 1]), 6, kind)
    assert list(found) == list(expected)
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=2e-3, atol=1e-4)
    assert probe._evaluator.spent == 6 * (1 + 2 * 10)


@pytest.mark.parametrize("kind", ["sum", "abs"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_models_of_all_kinds(kind: Any, mode: Any) -> None:
    model = Everything()
    for _ in range(5):  # statistics that are not the first ones
        model(torch.randint(7, (20, 3)), torch.randn(20, 5))
    tokens, shift, targets = torch.randint(7, (12, 3)), torch.randn(12, 5), torch.zeros(12).long()
    fitness = Fitness(
        model,
        [(tokens[:8], shift[:8], targets[:8]), (tokens[8:], shift[8:], targets[8:])],
        mode=mode,
    )
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.norm.eval()
    modes = [module.training for module in model.modules()]
    probe = network_of(model, fitness)
    found = safe_mutation.measure_sensitivity(probe, center_of(model), probe.inputs(99), kind)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    expected = twin(model, lambda i: model(tokens[i : i + 1], shift[i : i + 1]), 12, kind)
    assert list(found) == list(expected)  # the tied weight once
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-5)
    assert bool((found["unused.weight"] == 1).all())
    assert bool((found["embed.weight"] != 1).all())


def test_batches_that_are_dictionaries_and_frozen_or_half_precision_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x: Tensor, note: str) -> dict[str, Tensor]:
            assert note == "a"
            return {"logits": self.fc(x.to(self.fc.weight.dtype))}

    model = Net().requires_grad_(False)
    x = torch.randn(4, 3)
    fitness = Fitness(model, [{"x": x, "note": "a", "labels": torch.zeros(4).long()}])
    for dtype in (torch.float32, torch.bfloat16):
        model.to(dtype)
        for kind, inside in (("sum", x.sum(0).abs()), ("abs", x.abs().mean(0))):
            probe = network_of(model, fitness)
            s = safe_mutation.measure_sensitivity(
                probe,
                center_of(model),
                probe.inputs(4),
                kind,  # type: ignore[arg-type]
            )["fc.weight"]
            assert s.dtype == torch.float32
            torch.testing.assert_close(s, inside.expand(2, 3), rtol=3e-2, atol=1e-2)
    assert not any(p.requires_grad for p in model.parameters())


def test_floors() -> None:
    assert floored(torch.tensor([0.0, 0.001, 0.01, 3.0])).tolist() == pytest.approx(
        [1, 0.01, 0.01, 3]
    )


def test_examples_are_evenly_spaced() -> None:
    model = nn.Linear(1, 1)
    x = torch.arange(10.0).unsqueeze(1)
    fitness = Fitness(
        model,
        list(zip(x.split(3), x.split(3), strict=True)),
        "neg-loss",
        loss=nn.functional.mse_loss,
    )
    for limit, expected in (
        (10, list(range(10))),
        (99, list(range(10))),
        (5, [1, 3, 5, 7, 9]),
        (1, [5]),
    ):
        batches = network_of(model, fitness).inputs(limit)
        assert [int(v) for batch in batches for v in batch.inputs] == expected
        assert all(batch.count == len(batch.inputs) for batch in batches)


# Mutations


def first_children(
    model: nn.Module, strategy: RandomMutation, fitness: Fitness
) -> list[dict[str, Tensor]]:
    """What the members' weights are, seen from inside the fitness."""
    seen: list[dict[str, Tensor]] = []

    def metric(outputs: Tensor, targets: Tensor) -> float:
        seen.append(center_of(model))
        return 0.0

    spying = Fitness(model, fitness.examples().batches, metric, higher_is_better=True)  # type: ignore[arg-type]
    Evolution(model, strategy, seed=4, engine="inplace").evolve(spying)
    return seen


@pytest.mark.parametrize("scale", ["safe", Safe("abs", examples=10)])
@pytest.mark.parametrize("noise", ["normal", "uniform", LowRank(1)])
def test_noise_is_divided_by_the_sensitivities(
    scale: Any, noise: Any, networks: Any, digits: Any
) -> None:
    model = networks["mlp"]
    fitness = Fitness(model, [(digits[0][500:540], digits[1][500:540])])
    kind, limit = ("sum", 64) if scale == "safe" else ("abs", 10)
    probe = network_of(model, fitness)
    (batch,) = probe.inputs(limit)
    s = twin(model, lambda i: model(batch.inputs[i : i + 1]), batch.count, kind)
    parent, *children = first_children(
        model, RandomMutation(0.05, population=3, scale=scale, noise=noise), fitness
    )
    assert len(children) == 3
    for i, child in enumerate(children):
        for name, center in parent.items():
            eps = draw(noise, center, seed=4, generation=0, member=i, name=name)
            torch.testing.assert_close(
                child[name], center + 0.05 * eps / s[name], rtol=1e-3, atol=1e-4
            )


@pytest.mark.parametrize("kind", ["rescale", "sum", "abs"])
@pytest.mark.parametrize("name", ["mlp", "small-cnn"])
@pytest.mark.parametrize("target", [0.05, 2.0])
def test_mutations_change_outputs_by_the_asked_magnitude(
    kind: Any, name: str, target: float, networks: Any, digits: Any
) -> None:
    """Measured apart, on a network that was trained; rescaled plain noise does so on examples that
    the search never saw, too. (Sensitivities send noise to weights that the measured examples do
    not use, so there the change on others can be twice as large.)"""
    model = networks[name].eval()
    fitness = Fitness(model, batches_of(digits, 50))
    strategy = RandomMutation(0.03, population=3, scale=Safe(kind, examples=32, target=target))
    parent, *children = first_children(model, strategy, fitness)
    used = torch.cat([batch.inputs for batch in network_of(model, fitness).inputs(32)])
    with torch.no_grad():
        for child in children:
            unseen = [(digits[0][:300], 0.4)] if kind == "rescale" else []
            for x, within in [(used, 0.2), *unseen]:
                y = torch.func.functional_call(model, child, (x,))
                change = float(
                    (y - torch.func.functional_call(model, parent, (x,))).norm(dim=1).mean()
                )
                assert change == pytest.approx(target, rel=within)
    again = center_of(model)
    assert all(torch.equal(parent[key], again[key]) for key in parent)


def test_costs_are_counted(networks: Any, digits: Any) -> None:
    model = networks["mlp"]
    fitness = Fitness(model, batches_of(digits))
    for safe in (
        Safe("sum", examples=20),
        Safe("abs", examples=500),
        Safe("sum", 20, 0.5),
        Safe("rescale", 20, 0.5),
    ):
        strategy = RandomMutation(0.02, population=4, scale=safe)
        record = Evolution(model, strategy).evolve(fitness)[0]
        measured = record.sample_forwards - 5 * 100
        bound = strategy.measuring_cost(100, 10)
        assert bound == safe.cost(100, 10, 4)
        if safe.target is None:
            assert measured == bound == min(safe.examples, 100) * 21
        else:
            gradients = 20 * 21 if safe.kind == "sum" else 0
            assert gradients + 20 * 5 <= measured <= bound
            assert (measured - gradients) % 20 == 0


@pytest.mark.parametrize("kind", ["sum", "abs", "rescale"])
def test_what_is_counted_went_forward_or_twice_backward(
    kind: Any, networks: Any, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safe_mutation, "_CHUNK", 1)  # one gradient at a time, to be seen
    model, backward = copy.deepcopy(networks["mlp"]), 0
    forward: list[int] = []
    model.register_forward_pre_hook(lambda module, inputs: forward.append(len(inputs[0])))
    pull_of = safe_mutation._pull

    def pulling(*given: Any) -> Any:
        outputs, pull = pull_of(*given)

        def noting(cotangents: Tensor) -> Any:
            nonlocal backward
            backward += len(cotangents)
            return pull(cotangents)

        return outputs, noting

    monkeypatch.setattr(safe_mutation, "_pull", pulling)
    target = 0.5 if kind == "rescale" else None
    strategy = RandomMutation(0.02, population=4, scale=Safe(kind, 20, target))
    search = Evolution(model, strategy, engine="inplace")
    (record,) = search.evolve(Fitness(model, batches_of(digits)))
    assert backward == (0 if kind == "rescale" else 20 * 10)
    assert record.sample_forwards == sum(forward) + 2 * backward


def test_resumed_runs_have_the_same_bits_and_save_no_sensitivities(
    networks: Any, digits: Any
) -> None:
    def run(parts: list[int]) -> tuple[list[Tensor], list[int]]:
        model = build_model("mlp", channels=1, classes=10, image_size=8, seed=0)
        fitness = Fitness(model, batches_of(digits, 20), "neg-loss", batches_per_generation=2)
        strategy = RandomMutation(0.05, population=3, scale=Safe("abs", 10, 0.3))
        state, forwards = None, []
        for generations in parts:
            search = Evolution(model, strategy)
            if state is not None:
                search.load_state_dict(state)
            forwards += [r.sample_forwards for r in search.evolve(fitness, generations)]
            state = search.state_dict()
            assert state["state"] == {}
        return [p.detach() for p in model.parameters()], forwards

    (one, costs), (two, others) = run([4]), run([1, 3])
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert costs == others


def test_only_what_moves_is_measured_and_it_works_in_evolved(networks: Any, digits: Any) -> None:
    model = build_model("small-cnn", channels=1, classes=10, image_size=8, seed=0)
    fitness = Fitness(model, batches_of(digits), "neg-loss")
    optimizer = Evolved(
        torch.optim.SGD(model.parameters(), lr=0.1),
        RandomMutation(0.01, population=6, scale=Safe("sum", target=0.3)),
        space=Only("head"),
        accept=Improves(),
        model=model,
    )
    before = center_of(model)
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    score = fitness()
    records = optimizer.evolve(fitness, 4)
    assert fitness() > score
    assert any(record.accepted for record in records)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"head.weight", "head.bias"}
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())


def test_safe_mutants_break_less_than_plain_ones_of_the_same_length(
    networks: Any, digits: Any
) -> None:
    """The paper's claim, in small: for weights moved equally far, outputs change less."""
    model = networks["mlp"].eval()
    fitness = Fitness(model, batches_of(digits))
    x = digits[0][500:]
    parent, *children = first_children(
        model, RandomMutation(0.01, population=8, scale="safe"), fitness
    )
    genome = AllWeights().open(slots_of_module(model))
    plain_strategy = RandomMutation(0.01, scale="absolute")
    with torch.no_grad():
        y = model(x)
        changes = []
        for i, child in enumerate(children):
            delta = {name: child[name] - parent[name] for name in parent}
            plain = plain_strategy.perturbed(genome, 4, 0, i)
            other = {name: plain.tensor(name) - parent[name] for name in parent}
            length = lambda d: math.sqrt(sum(float(t.square().sum()) for t in d.values()))  # noqa: E731
            ratio = length(delta) / length(other)
            same = {name: parent[name] + ratio * other[name] for name in parent}
            safe, rough = (torch.func.functional_call(model, w, (x,)) for w in (child, same))
            changes.append(output_change(y, safe) / output_change(y, rough))
    assert max(changes) < 0.7


# The line search


@pytest.mark.parametrize("target", [1e-4, 0.3, 50.0])
@pytest.mark.parametrize(
    "change",
    [
        lambda m: 3 * m,
        lambda m: m**2,
        lambda m: m + 20 * m**3,
        lambda m: 60 * math.tanh(m),
        lambda m: 1e-6 * m,
        lambda m: 1e6 * m,
        lambda m: math.nan if m > 1e3 else m,
    ],
)
def test_the_search_finds_the_magnitude(target: float, change: Callable[[float], float]) -> None:
    calls = []
    found = search_magnitude(lambda m: calls.append(m) or change(m), target)  # type: ignore[func-returns-value]
    assert change(found) == pytest.approx(target, rel=0.11)
    assert len(calls) <= 16


def test_a_jump_gives_the_nearest_and_no_effect_leaves_the_magnitude() -> None:
    assert search_magnitude(lambda m: 0.2 if m < 0.5 else 5.0, 1.0) in (
        pytest.approx(0.5, rel=1),
        pytest.approx(1.0),
    )
    stairs = search_magnitude(lambda m: 0.0 if m < 7 else 1.1 * m, 1.0)
    assert stairs == pytest.approx(7, rel=0.5)
    assert search_magnitude(lambda m: 0.0, 1.0) == 1.0
    assert search_magnitude(lambda m: math.nan, 1.0) == 1.0


# What is refused


class Opaque(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.fc, self.what = nn.Linear(2, 2), what

    def forward(self, x: Tensor) -> Any:
        y = self.fc(x)
        if self.what == "integers":
            return y.argmax(1)
        if self.what == "numpy":
            return torch.from_numpy(y.detach().numpy() + 0)
        if self.what == "rounded":
            return y.round()
        if self.what == "infinite":
            return (y - y.detach()).abs().sqrt() / 0.0
        return {"a": y}


@pytest.mark.parametrize("kind", ["sum", "abs"])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("integers", "torch.func cannot differentiate the outputs of Opaque .*use scale='rms'"),
        ("numpy", "outputs? of Opaque .*use scale='rms', or Safe\\('rescale'"),
        ("rounded", "no output of Opaque depends on what evolves .*use scale='rms'"),
        ("infinite", "gradients of the outputs of Opaque are not finite"),
        ("dictionary", "of Opaque must be one tensor .* got dict: pass Fitness\\(forward=...\\)"),
    ],
)
def test_models_that_cannot_be_differentiated_are_named(kind: Any, what: str, words: str) -> None:
    model = Opaque(what)
    before = center_of(model)
    fitness = Fitness(
        model,
        [(torch.randn(4, 2), torch.zeros(4).long())],
        lambda outputs, targets: 0.5,
        higher_is_better=True,
    )
    search = Evolution(model, RandomMutation(0.1, population=2, scale=Safe(kind)))
    with pytest.raises(ValueError, match=words) as caught:
        search.evolve(fitness)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert model.training


def test_rescaling_needs_no_gradients() -> None:
    model = Opaque("rounded")
    fitness = Fitness(model, [(10 * torch.randn(64, 2), torch.zeros(64).long())])
    strategy = RandomMutation(0.1, population=3, scale=Safe("rescale", target=2.0))
    parent, *children = first_children(model, strategy, fitness)
    (x, _) = fitness.examples().batches[0]
    for child in children:
        y = [torch.func.functional_call(model, w, (x,)).detach() for w in (parent, child)]
        assert output_change(*y) == pytest.approx(2.0, rel=0.2)


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Safe("mean"), "kind must be one of sum, abs, rescale, got 'mean'"),  # type: ignore[arg-type]
    (lambda: Safe(examples=0), "examples must be at least 1, got 0"),
    (lambda: Safe(target=0.0), "target must be a finite number > 0, got 0"),
    (lambda: Safe(target=math.inf), "target must be a finite number > 0, got inf"),
    (lambda: Safe("rescale"), "kind='rescale' needs a target, got None.*target=0.5"),
    (lambda: RandomMutation(0.1, scale="save"), "scale must be one of .*got 'save'; or 'safe'"),  # type: ignore[arg-type]
    (
        lambda: Evolution(nn.Linear(2, 2), RandomMutation(0.1, scale="safe")).evolve(lambda: 0.0),
        "give an evostep.Fitness, not a function, or use scale='rms'",
    ),
]


@pytest.mark.parametrize(("make", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_refused(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
