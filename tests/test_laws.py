"""Twelve mistakes found in comparable libraries, each a law and a test.

Here each law is tested once, whole, through the public names; the files that are named after the
modules go into the corners.
"""

from __future__ import annotations

import copy
import io
import math
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Always, Evolution, Evolved, Fitness, Improves, OpenAIES, RandomMutation, Scores
from evostep.acceptance import Rule
from evostep.noise import draw

X = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0.5).long()
BATCHES = [(X[:24], Y[:24]), (X[24:], Y[24:])]

STRATEGIES: dict[str, Any] = {
    "mutation": RandomMutation(0.1, population=6),
    "openai-es": OpenAIES(0.1, lr=0.02, population=6),
    "article": OpenAIES(0.05, 0.01, 6, antithetic=False, shaping="z-score", scale="absolute"),
}
each_strategy = pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)


def probe() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    for inputs, targets in BATCHES:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


@each_strategy
@pytest.mark.parametrize("error", [None, RuntimeError("no"), KeyboardInterrupt()])
def test_law_1_weights_and_buffers_are_the_same_bits_after_an_evaluation(
    strategy: Any, error: BaseException | None
) -> None:
    model = probe().train()
    before = bits(model)
    calls: list[None] = []

    def fitness() -> float:
        model(X)  # in training mode: batch norm moves its statistics
        calls.append(None)
        if error is not None and len(calls) == 4:
            raise error
        return 0.5

    search = Evolution(model, strategy)
    if isinstance(error, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            search.evolve(fitness)
    else:
        search.evolve(fitness)  # a member that raises is counted; nobody is better
    assert len(calls) >= 4
    assert equal(before, bits(model))


@each_strategy
@pytest.mark.parametrize("value", [0.0, 0.1, -3.7, 1e300])
def test_law_2_equal_scores_are_a_zero_step(strategy: Any, value: float) -> None:
    # under Always, (1, lambda) has to take one of its children; (1 + lambda) keeps the parent
    accept = Improves() if isinstance(strategy, RandomMutation) else Always()
    model = probe()
    before = bits(model)
    records = Evolution(model, strategy, accept=accept).evolve(lambda: value, 3)
    assert not any(record.accepted for record in records)
    assert equal(before, bits(model))


def noise_seen(seed: int, generation: int, order: tuple[str, ...]) -> dict[tuple[int, str], Tensor]:
    """Each member's move of each of three layers of one shape, as the fitness meets it."""
    tensors = {name: torch.zeros(30) for name in order}
    search = Evolution(tensors, RandomMutation(1.0, population=3, scale="absolute"), seed=seed)
    seen: list[dict[str, Tensor]] = []

    def fitness() -> float:
        torch.rand(5)
        seen.append({name: tensor.clone() for name, tensor in tensors.items()})
        return 0.0

    search.evolve(fitness, generation + 1)
    members = seen[4 * generation + 1 :]
    return {(i, name): move[name] for i, move in enumerate(members) for name in order}


def test_law_3_noise_follows_layer_member_generation_and_seed_and_nothing_else() -> None:
    draws = {
        (seed, generation, *key): value
        for seed in (0, 1)
        for generation in (0, 1)
        for key, value in noise_seen(seed, generation, ("a", "b", "c")).items()
    }
    assert len({tuple(value.tolist()) for value in draws.values()}) == len(draws) == 36
    correlation = torch.corrcoef(torch.stack(list(draws.values()))) - torch.eye(36)
    assert float(correlation.abs().max()) < 0.75  # of 30 numbers each
    torch.manual_seed(77), random.seed(77), np.random.seed(77)
    again = noise_seen(1, 1, ("c", "a", "b"))
    assert all(torch.equal(value, draws[1, 1, *key]) for key, value in again.items())


@pytest.mark.parametrize("sigma", [0.01, 1.0, pytest.param(0.1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["openai-es", "article"])
def test_law_4_the_expected_update_is_along_the_analytic_gradient(name: str, sigma: float) -> None:
    w = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    start, curvature = w.clone(), torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    options: dict[str, Any] = {"scale": "absolute"}
    if name == "article":
        options |= {"antithetic": False, "shaping": "z-score"}
    es = OpenAIES(sigma, lr=sigma, population=40, **options)
    search = Evolution({"w": w}, es, accept=Always())
    total = torch.zeros_like(w)
    for _ in range(30):
        search.evolve(lambda: -0.5 * float((curvature * w**2).sum()))
        total += w - start
        w.copy_(start)
    gradient = -curvature * start
    assert float(F.cosine_similarity(total, gradient, dim=0)) > 0.9


@each_strategy
def test_law_5_resuming_at_any_point_gives_the_bits_of_never_stopping(strategy: Any) -> None:
    def fresh() -> tuple[nn.Module, Evolved]:
        model = probe()
        base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return model, Evolved(base, strategy, momentum=0.5, seed=3)

    def save(model: nn.Module, optimizer: Evolved) -> bytes:
        buffer = io.BytesIO()
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),  # dropout in training draws from it
        }
        torch.save(state, buffer)
        return buffer.getvalue()

    def load(saved: bytes) -> tuple[nn.Module, Evolved]:
        torch.manual_seed(12345)
        model, optimizer = fresh()
        state = torch.load(io.BytesIO(saved), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        return model, optimizer

    def fitness_of(model: nn.Module) -> Fitness:
        return Fitness(model, BATCHES, "neg-loss", batches_per_generation=1, mode="train")

    model, optimizer = fresh()
    points: list[tuple[int, int, bytes]] = []  # after so many epochs and generations of the next
    for epoch in range(3):
        points.append((epoch, -1, save(model, optimizer)))
        train(model, optimizer)
        optimizer.evolve(
            fitness_of(model),
            3,
            on_generation=lambda r, e=epoch: points.append(  # type: ignore[misc]
                (e, r.generation % 3, save(model, optimizer))
            ),
        )
    end = bits(model)
    assert len(points) == 12
    for epoch, generation, saved in points:
        again, resumed = load(saved)
        if generation >= 0:
            resumed.evolve(fitness_of(again), 2 - generation)
        for _ in range(epoch + (generation >= 0), 3):
            train(again, resumed)
            resumed.evolve(fitness_of(again), 3)
        assert equal(end, bits(again)), f"stopped at {epoch}, {generation}"


@each_strategy
def test_law_6_modes_requires_grad_and_random_streams_are_untouched(strategy: Any) -> None:
    model = probe().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[0].bias.grad = torch.ones(8)
    streams = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    before = (
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
    )
    Evolution(model, strategy).evolve(Fitness(model, BATCHES, "neg-loss", mode="train"), 2)
    after = (
        [module.training for module in model.modules()],
        [(p.requires_grad, p.grad is None) for p in model.parameters()],
    )
    assert after == before
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]
    assert np.random.get_state()[1].tolist() == streams[2]


class Listening(Rule):
    def __init__(self) -> None:
        self.heard: list[tuple[Scores, Scores]] = []

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        self.heard.append((parent, candidate))
        return candidate.value > parent.value


@each_strategy
@pytest.mark.parametrize("on_other", [False, True])
def test_law_7_the_parent_is_scored_on_the_examples_of_its_children(
    strategy: Any, on_other: bool
) -> None:
    """Examples change with the generation, weights with acceptance: no score may be an old one."""
    model = probe()
    batches = list(zip(X.split(4), Y.split(4), strict=True))
    fitness = Fitness(model, batches, "neg-loss", batches_per_generation=3)
    other = Fitness(model, batches, "neg-loss", batches_per_generation=5) if on_other else None
    inputs: list[float] = []
    handle = model.register_forward_hook(lambda m, i, o: inputs.append(float(i[0].sum())))
    rule = Listening()
    search = Evolution(model, strategy, accept=rule, engine="inplace")
    for generation in range(4):
        inputs.clear()
        stale = Fitness(copy.deepcopy(model), batches, "neg-loss", batches_per_generation=3)
        record = search.evolve(fitness, accept_on=other)[0]
        n = strategy.size + 1
        seen = list(inputs)
        scorings = [tuple(seen[3 * i : 3 * i + 3]) for i in range(n)]
        assert len(set(scorings)) == 1, "parent and members, one set of batches"
        assert record.parent == stale.score(stale.examples(0, generation)).value
        heard_parent, heard_candidate = rule.heard[-1]
        rest = seen[3 * n :]
        if on_other:
            assert rest[:5] == rest[5:10]
            assert len(rest) == 10
        else:
            assert rest == (list(scorings[0]) if isinstance(strategy, OpenAIES) else [])
            assert heard_parent.value == record.parent
        assert heard_parent.per_example is not None
        assert heard_candidate.per_example is not None
        assert heard_parent.per_example.shape == heard_candidate.per_example.shape
    handle.remove()
    assert any(record.accepted for record in search.history)


@pytest.mark.parametrize("kind", [OpenAIES, RandomMutation])
def test_law_8_peak_memory_does_not_grow_with_the_population(kind: Any, new_ledger: Any) -> None:
    model = nn.Sequential(*(nn.Linear(256, 256) for _ in range(12)))
    draw("normal", torch.zeros(4), seed=0, generation=0, member=0, name="")  # its tables stay
    batches = [(torch.randn(4, 256), torch.zeros(4, dtype=torch.long))]
    peaks = []
    for population in (2, 8):
        strategy = kind(0.02, population=population)
        fitness = Fitness(model, batches, "neg-loss")
        with new_ledger() as ledger:
            Evolution(model, strategy, engine="inplace").evolve(fitness, 2)
        peaks.append(ledger.peak / sum(4 * p.numel() for p in model.parameters()))
    assert 1.0 <= peaks[0] < 2.0
    assert peaks[1] < peaks[0] + 0.1


@each_strategy
@pytest.mark.parametrize("broken", [math.nan, math.inf, ValueError("broken")])
def test_law_9_a_broken_fitness_ranks_last_is_counted_and_shown_and_moves_nothing(
    strategy: Any, broken: Any
) -> None:
    def search_with(broken_calls: set[int]) -> tuple[Tensor, Any]:
        w, calls = torch.tensor([2.0, -1.0]), [0]

        def fitness() -> float:
            calls[0] += 1
            if calls[0] - 2 in broken_calls:
                if isinstance(broken, Exception):
                    raise broken
                return float(broken)
            return -float(w.square().sum())

        search = Evolution({"w": w}, strategy, accept=Always())
        if len(broken_calls) == strategy.size:
            with pytest.warns(UserWarning, match=f"failed for all {strategy.size}"):
                return w, search.evolve(fitness)[0]
        return w, search.evolve(fitness)[0]

    _, sound = search_with(set())
    best = int(np.argmax(sound.scores))
    w, record = search_with({best})
    assert math.isnan(record.scores[best])
    assert record.failed == 1
    assert record.error is not None
    assert ("broken" if isinstance(broken, Exception) else str(broken)) in record.error
    assert bool(w.isfinite().all())
    if isinstance(strategy, RandomMutation):
        second = sorted(sound.scores)[-2]
        assert -float(w.square().sum()) == pytest.approx(second)
    w, record = search_with(set(range(strategy.size)))
    assert w.tolist() == [2.0, -1.0]
    assert (record.failed, record.accepted) == (strategy.size, False)


@each_strategy
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_law_10_scoring_never_mutates_batch_norms_buffers(strategy: Any, mode: Any) -> None:
    model = probe().train()
    train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    before = {name: value.clone() for name, value in model.named_buffers()}
    seen: list[Tensor] = []
    model[1].register_forward_pre_hook(lambda m, i: seen.append(m.running_mean.clone()))
    fitness = Fitness(model, BATCHES[:1], "neg-loss", mode=mode)
    fitness()
    records = Evolution(model, strategy, accept=Always()).evolve(fitness, 2)
    assert any(record.accepted for record in records)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(torch.equal(mean, before["1.running_mean"]) for mean in seen), "for everybody"


@each_strategy
def test_law_11_what_is_kept_is_what_was_scored(strategy: Any) -> None:
    model = probe()
    scored: dict[float, dict[str, Tensor]] = {}
    inner = Fitness(model, BATCHES, "neg-loss")

    def fitness() -> float:
        value = inner()
        scored[value] = bits(model)
        return value

    search = Evolution(model, strategy)
    for _ in range(6):
        record = search.evolve(fitness)[0]
        assert record.candidate is not None
        kept = record.candidate if record.accepted else record.parent
        assert equal(scored[kept], bits(model))
        assert inner() == kept
    assert any(record.accepted for record in search.history)


@pytest.mark.parametrize(("policy", "factor"), [("keep", 1.0), (0.5, 0.5), ("reset", 0.0)])
@pytest.mark.parametrize(
    ("base", "key"), [(torch.optim.SGD, "momentum_buffer"), (torch.optim.AdamW, "exp_avg")]
)
def test_law_12_momentum_is_kept_damped_or_reset_by_choice(
    base: Any, key: str, policy: Any, factor: float
) -> None:
    model = probe()
    options = {"momentum": 0.9} if base is torch.optim.SGD else {}
    optimizer = Evolved(
        base(model.parameters(), lr=0.01, **options),
        STRATEGIES["openai-es"],
        momentum=policy,
        accept=Always(),
    )
    train(model, optimizer)
    before = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in model.parameters()}
    optimizer.evolve(lambda: 0.0)  # ties: nothing is accepted, nothing is damped
    assert all(torch.equal(optimizer.state[p][key], before[p][key]) for p in before)
    assert optimizer.evolve(Fitness(model, BATCHES, "neg-loss"))[0].accepted
    for p, state in before.items():
        for name, value in state.items():
            expected = value * factor if name == key else value
            assert torch.equal(optimizer.state[p][name], expected), name
