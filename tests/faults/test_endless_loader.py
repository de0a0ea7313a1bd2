"""Batches without an end, and batches that do not fit: a limit, `keep=`, `max_batches=`."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from evostep import Evolution, Fitness, Only, OpenAIES, RandomMutation
from evostep.noise import LowRank
from evostep.scoring import batches as module

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
BATCHES = list(zip(X.split(8), Y.split(8), strict=True))


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(zip(X, Y, strict=True))


@pytest.mark.parametrize("limit", ["MOST_EXAMPLES", "MOST_BYTES"])
def test_an_endless_source_is_cut_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(module, limit, 100 if limit == "MOST_EXAMPLES" else 100 * (4 * 4 + 8))
    fitness = Fitness(network(), DataLoader(Endless(), batch_size=20))
    with pytest.warns(UserWarning, match=r"no length.*within 100 examples.*max_batches="):
        fitness()
    assert len(fitness.examples()) == 100


def test_how_many_can_be_said() -> None:
    fitness = Fitness(network(), DataLoader(Endless(), batch_size=20), max_batches=3)
    assert fitness() == pytest.approx(Fitness(network(), [(X, Y)])())
    assert len(Fitness(network(), BATCHES, max_batches=2).examples()) == 16
    with pytest.raises(ValueError, match="max_batches must be at least 1, got 0"):
        Fitness(network(), BATCHES, max_batches=0)
    with pytest.raises(ValueError, match=r"keep must be one of device, host, stream, got 'disk'"):
        Fitness(network(), BATCHES, keep="disk")  # type: ignore[arg-type]


def reusing() -> Iterator[Any]:
    place = torch.empty(20, 4)
    for part, y in itertools.cycle(zip(X.split(20), Y.split(20), strict=True)):
        yield place.copy_(part), y


ITERATORS: dict[str, Any] = {
    "a list's": lambda: iter(list(zip(X.split(20), Y.split(20), strict=True))),
    "endless": lambda: itertools.cycle(zip(X.split(20), Y.split(20), strict=True)),
    "a loader's": lambda: iter(DataLoader(Endless(), batch_size=20)),
    "of arrays": lambda: ((x.numpy(), y.numpy()) for x, y in zip(X.split(20), Y.split(20))),  # noqa: B905
    "that reuses its memory": reusing,
}


@pytest.mark.parametrize("kind", ITERATORS)
@pytest.mark.parametrize("keep", ["device", "host"])
def test_of_an_iterator_so_many_are_read_and_kept(kind: str, keep: Any) -> None:
    source, model = ITERATORS[kind](), network()
    state = torch.get_rng_state()
    fitness = Fitness(model, source, max_batches=3, keep=keep)
    assert torch.equal(torch.get_rng_state(), state)
    again = pickle.loads(pickle.dumps(fitness))
    expected = Fitness(network(), [(X, Y)])()
    assert [fitness(), fitness(), again()] == pytest.approx([expected] * 3)
    assert len(fitness.examples()) == 60
    if kind == "endless":
        assert next(source)[0] is not None, "no more was read than was asked for"
    fewer = Fitness(network(), ITERATORS["a list's"](), max_batches=9)
    assert len(fewer.examples()) == 60


def test_an_iterator_that_cannot_be_kept_is_refused() -> None:
    for options in ({}, {"keep": "stream", "max_batches": 3}):
        with pytest.raises(ValueError, match=r"read only once: pass a list .*max_batches=") as e:
            Fitness(network(), iter(BATCHES), **options)
        assert "\n" not in str(e.value)
    with pytest.raises(ValueError, match="batches is empty"):
        Fitness(network(), iter([]), max_batches=2)


def test_what_ends_is_read_to_its_end_in_silence() -> None:
    class Ends(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return iter(zip(X, Y, strict=True))

    assert len(Fitness(network(), DataLoader(Ends(), batch_size=8)).examples()) == 60


def test_a_set_too_large_to_keep_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "capacity", lambda _: 1000)
    with pytest.warns(UserWarning, match=r"8 batches of .* are to be kept.*pass keep='host'"):
        Fitness(network(), BATCHES)()
    Fitness(network(), BATCHES, keep="stream")()


ENGINES = {
    "inplace": (RandomMutation(0.1, 4), None),
    "vmap": (OpenAIES(0.1, 0.1, population=4), None),
    "lowrank": (OpenAIES(0.1, 0.1, population=4, noise=LowRank(1)), None),
    "prefix": (OpenAIES(0.1, 0.1, population=4), Only("2.*")),
    "racing": (RandomMutation(0.1, 4), None),
    "auto": (OpenAIES(0.1, 0.1, population=4), None),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.filterwarnings("ignore:engine .* cannot score")
def test_scores_are_the_same_wherever_batches_are_kept(engine: str) -> None:
    strategy, space = ENGINES[engine]

    def run(keep: Any, source: Any, some: int | None = None) -> list[float]:
        model = network()
        fitness = Fitness(model, source, "neg-loss", keep=keep, batches_per_generation=some)
        search = Evolution(model, strategy, space=space, engine=engine)
        records = search.evolve(fitness, 2)
        return [value for r in records for value in (r.parent, *r.scores, r.sample_forwards)]

    thirds = list(zip(X.split(20), Y.split(20), strict=True))
    loader = DataLoader(list(zip(X, Y, strict=True)), batch_size=20)  # type: ignore[arg-type]
    expected = run("device", thirds)
    assert run("host", thirds) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert run("stream", loader) == pytest.approx(expected, rel=1e-5, abs=1e-6)
    some = run("device", thirds, 2)
    assert run("stream", thirds, 2) == pytest.approx(some, rel=1e-5, abs=1e-6) != expected


def test_a_stream_draws_no_random_numbers_of_the_scoring_and_keeps_nothing() -> None:
    class Noisy(Dataset[Any]):
        def __len__(self) -> int:
            return 20

        def __getitem__(self, i: int) -> Any:
            return X[i] + torch.randn(4), Y[i]

    def scored(keep: Any) -> float:
        model = nn.Sequential(network(), nn.Dropout(0.5))
        loader = DataLoader(Noisy(), batch_size=8)
        fitness = Fitness(model, loader, "neg-loss", keep=keep, mode="train")
        records = Evolution(model, OpenAIES(0.1, population=2)).evolve(fitness)
        assert (keep == "stream") == all(x.is_meta for x, _ in fitness.examples().batches)
        return records[0].parent

    assert scored("stream") == scored("device")


@pytest.mark.parametrize("change", ["values", "shapes", "fewer", "more"])
def test_a_source_that_gives_others_the_second_time_is_named(change: str) -> None:
    class Changing:
        reads = 0

        def __iter__(self) -> Iterator[Any]:
            self.reads += 1
            if self.reads == 1:
                return iter(BATCHES)
            other = {"values": [(x + 1, y) for x, y in BATCHES], "fewer": BATCHES[:-1]}
            other["shapes"] = [(x[:3], y[:3]) for x, y in BATCHES]
            return iter(other.get(change, [BATCHES[0], *BATCHES]))

    fitness = Fitness(network(), Changing(), keep="stream")
    with pytest.raises(ValueError, match=r"(differs|ended after 7 of 8).*pass keep='host'"):
        fitness()
