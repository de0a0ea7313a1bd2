"""Several members at once: the bits of any number of workers, and nothing shared that moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from evostep import (
    CMAES,
    AllWeights,
    Evolution,
    Fitness,
    GuidedES,
    LowRank,
    Only,
    OpenAIES,
    RandomMutation,
)
from evostep.engines.base import Engine
from evostep.engines.inplace import InPlace
from evostep.engines.workers import Workers, twin
from evostep.spaces.base import Space
from evostep.strategies.base import Strategy

X = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(40) % 3
BATCHES = [(X[:16], Y[:16]), (X[16:], Y[16:])]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def convnet() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 3))


def evolved(
    engine: Engine,
    strategy: Strategy,
    space: Space | None = None,
    model: nn.Module | None = None,
    metric: str = "neg-loss",
) -> tuple[list[list[float]], list[Tensor], int]:
    model = model or convnet()
    fitness = Fitness(model, BATCHES, metric)
    search = Evolution(model, strategy, space=space or AllWeights(), engine=engine, seed=3)
    if isinstance(strategy, GuidedES):
        search.guide({name: torch.ones_like(p) for name, p in model.named_parameters()})
    records = search.evolve(fitness, generations=3)
    spent = sum(record.sample_forwards for record in records)
    weights = [p.detach().clone() for p in model.state_dict().values()]
    return [list(record.scores) for record in records], weights, spent


CASES: list[tuple[Strategy, Space]] = [
    (OpenAIES(0.1, population=6), AllWeights()),
    (OpenAIES(0.1, population=5, antithetic=False), Only("norm", buffers=True)),
    (OpenAIES(0.1, population=6, noise=LowRank(1)), AllWeights()),
    (RandomMutation(0.1, population=4), AllWeights()),
    (CMAES(0.1, population=4), Only("norm")),
    (GuidedES(0.1, population=4), Only("head")),
]


@pytest.mark.parametrize(("strategy", "space"), CASES, ids=str)
def test_any_number_of_workers_gives_the_bits_of_one_after_the_other(
    strategy: Strategy, space: Space
) -> None:
    expected = evolved(InPlace(), strategy, space)
    for n in (1, 2, 3, 9):
        scores, weights, spent = evolved(Workers(n), strategy, space)
        assert scores == expected[0], n
        assert all(map(torch.equal, weights, expected[1])), n
        assert spent == expected[2], n


def test_two_members_are_scored_at_the_same_time_and_each_on_one_thread() -> None:
    seen: set[int] = set()
    threads: set[int] = set()
    meeting = threading.Barrier(2, timeout=60)

    class Meets(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            seen.add(threading.get_ident())
            threads.add(torch.get_num_threads())
            Meets.calls += 1
            if Meets.calls > 4:  # after the parent's two batches, and the reader's look
                meeting.wait()  # would break where only one member is scored at a time
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), Meets(108, 3))
    fitness = Fitness(model, BATCHES[:1], "accuracy")
    Meets.calls = 3
    search = Evolution(model, RandomMutation(0.1, population=4), engine=Workers(2))
    torch.set_num_threads(3)
    search._findings.verified.add("workers")  # else one is scored alone, too, and waits for ever
    search.evolve(fitness)
    assert len(seen) == 2
    assert threads == {1, 3}, "the parent has all of them, each member one"
    assert torch.get_num_threads() == 3


def test_what_does_not_move_is_shared_and_what_moves_is_not() -> None:
    model = convnet()
    live = {"5.weight": model[5].weight}  # type: ignore[index]
    other, own = twin(model, live)
    for name, tensor in model.state_dict(keep_vars=True).items():
        copied = other.state_dict(keep_vars=True)[name]
        assert (copied is tensor) == (name != "5.weight"), name
    assert own["5.weight"] is other[5].weight  # type: ignore[index]
    tied = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    tied[1].weight = tied[0].weight
    other, own = twin(tied, {"w": tied[0].weight})
    assert other[0].weight is other[1].weight is own["w"]  # type: ignore[index]


class Draws(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0 * torch.rand(())


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(0.5)


class Locked(nn.Identity):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("layer", "told"),
    [
        (Draws(), "draws random numbers"),
        (Counts(), "writes into its buffers"),
        (Writes(), "writes into its buffers or its batch"),
        (Locked(), "cannot be copied"),
        (nn.Dropout(0.5), "forward hook"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.filterwarnings("ignore:.*writes into its batch")
def test_what_members_at_once_would_share_is_scored_in_place(layer: nn.Module, told: str) -> None:
    model = nn.Sequential(layer, convnet())
    if told == "forward hook":
        layer.register_forward_hook(lambda *_: None)
    expected = evolved(
        InPlace(), OpenAIES(0.1, population=4), model=nn.Sequential(layer, convnet())
    )
    with pytest.warns(UserWarning, match=f"engine 'workers' cannot score .*{told}"):
        scores, weights, spent = evolved(Workers(2), OpenAIES(0.1, population=4), model=model)
    assert (scores, spent) == (expected[0], expected[2])
    assert all(map(torch.equal, weights, expected[1]))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda model: lambda: 0.5, "a bare callable"),
        (lambda model: Fitness(model, BATCHES, mode="train"), "mode='train'"),
        (
            lambda model: Fitness(model, BATCHES, lambda o, t: float(o.mean())),
            "metric of one's own",
        ),
        (lambda model: Fitness(model, BATCHES, keep="stream"), "keep='stream'"),
        (lambda model: Fitness(model, BATCHES, calibration=BATCHES), "calibration="),
    ],
)
@pytest.mark.filterwarnings("ignore:.*score.*exactly", "ignore:.*higher_is_better")
def test_what_cannot_be_scored_at_once_is_told(
    make: Callable[[nn.Module], Callable[[], float]], told: str
) -> None:
    model = convnet()
    fitness = make(model)
    if isinstance(fitness, Fitness) and callable(fitness.metric):
        fitness = Fitness(model, BATCHES, fitness.metric, higher_is_better=True)
    search = Evolution(model, OpenAIES(0.1, population=4), engine=Workers(2))
    with pytest.warns(UserWarning, match=f"engine 'workers' cannot score .*{told}"):
        search.evolve(fitness)


def test_a_member_that_fails_fails_alone_and_an_interrupt_stops_all() -> None:
    calls = [0]

    class Fails(nn.Linear):
        error: BaseException = ValueError("member")

        def forward(self, x: Tensor) -> Tensor:
            calls[0] += 1
            if calls[0] == 4:
                raise Fails.error
            return super().forward(x)

    model = nn.Sequential(nn.Flatten(), Fails(108, 3))
    before = [p.detach().clone() for p in model.parameters()]
    fitness = Fitness(model, BATCHES[:1], "neg-loss")
    search = Evolution(model, OpenAIES(0.1, population=4), engine=Workers(2))
    (record,) = search.evolve(fitness)
    assert record.failed == 1
    calls[0], Fails.error = 0, KeyboardInterrupt()
    after = [p.detach().clone() for p in model.parameters()]
    assert not all(map(torch.equal, before, after))
    with pytest.raises(KeyboardInterrupt):
        search.evolve(fitness)
    assert all(map(torch.equal, after, model.parameters()))
    assert not any(thread.name.startswith("evostep") for thread in threading.enumerate())


@pytest.mark.parametrize("n", [0, -2])
def test_fewer_than_one_are_refused(n: int) -> None:
    with pytest.raises(ValueError, match=f"workers must be at least 1, got {n}"):
        Workers(n)


def test_they_pay_for_large_models_with_threads_to_share() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 3))
    search = Evolution(model, OpenAIES(0.1, population=4), engine="auto")
    torch.set_num_threads(2)
    search.evolve(Fitness(model, BATCHES, "accuracy"))
    assert "workers" not in search._findings.verified
