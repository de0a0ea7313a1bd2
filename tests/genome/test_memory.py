"""Tensors on one memory are moved once, or named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import Always, Evolution, Evolved, Fitness, Only, OpenAIES, RandomMutation
from evostep.genome.memory import is_folded, sharing_of
from evostep.genome.slots import slots_of_module

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(60) % 4
ES = OpenAIES(0.05, lr=0.02, population=4)


class Two(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        if how == "data":
            self.b.weight.data = self.a.weight.data
        elif how == "transposed":
            self.b.weight = nn.Parameter(self.a.weight.data.T)
        elif how == "slice":
            self.b.weight = nn.Parameter(self.a.weight.data[:2])
        elif how == "buffer":
            self.register_buffer("seen", self.a.weight.data.view(-1))
        elif how == "expanded":
            self.b.weight = nn.Parameter(torch.ones(4, 1).expand(4, 4))
        elif how == "expanded buffer":
            self.register_buffer("gain", torch.ones(1).expand(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        x = x * self.gain if hasattr(self, "gain") else x
        x = torch.nn.functional.linear(x, self.b.weight)
        return x if x.shape[1] == 4 else torch.cat([x, x], 1)


def fitness_of(model: nn.Module) -> Fitness:
    return Fitness(model, [(X, Y)], "neg-loss")


@pytest.mark.parametrize("how", ["data", "transposed"])
@pytest.mark.parametrize("engine", ["inplace", "vmap", "prefix"])
def test_two_parameters_on_one_memory_move_once(how: str, engine: str) -> None:
    model = Two(how)
    search = Evolution(model, ES, accept=Always(), engine=engine)
    assert search.space.touched(search.slots) == ("a.weight",)
    if engine == "inplace":
        records = search.evolve(fitness_of(model), 2)
    else:
        with pytest.warns(UserWarning, match="'a.weight' and 'b.weight' lie on one memory"):
            records = search.evolve(fitness_of(model), 2)
    assert model.a.weight.data_ptr() == model.b.weight.data_ptr()
    twin = Two(how)
    expected = Evolution(twin, ES, accept=Always(), engine="inplace").evolve(fitness_of(twin), 2)
    assert [r.scores for r in records] == [r.scores for r in expected]
    assert records[-1].parent == expected[-1].parent


def test_a_twin_is_known_by_both_names_and_moves_where_one_is_free() -> None:
    model = Two("data")
    assert Only("b").touched(slots_of_module(model)) == ("a.weight",)
    model.a.weight.requires_grad_(False)
    assert Only("a").touched(slots_of_module(model)) == ("b.weight",)


def test_a_buffer_on_the_memory_of_a_weight_moves_with_it() -> None:
    model = Two("buffer")
    before = model.a.weight.clone()
    records = Evolution(model, ES, accept=Always()).evolve(fitness_of(model), 2)
    assert not torch.equal(before, model.a.weight)
    assert torch.equal(model.seen, model.a.weight.flatten())
    assert records[0].parent != records[1].parent


def test_an_expanded_buffer_is_put_back() -> None:
    model = Two("expanded buffer")
    records = Evolution(model, ES, accept=Always()).evolve(fitness_of(model))
    assert records[0].failed == 0
    assert torch.equal(model.gain, torch.ones(4))
    assert model.gain.stride() == (0,)


@pytest.mark.parametrize(
    ("how", "words"),
    [("slice", "'a.weight'.*'b.weight'.*share a part"), ("expanded", "'b.weight'.*expanded")],
)
@pytest.mark.parametrize("evolved", [False, True])
def test_what_cannot_move_alone_is_named_in_one_line(how: str, words: str, evolved: bool) -> None:
    model = Two(how)
    make: Any = (
        (lambda: Evolved(torch.optim.SGD(model.named_parameters(), lr=0.1), ES))
        if evolved
        else (lambda: Evolution(model, ES))
    )
    with pytest.raises(ValueError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)
    other = "a" if how == "expanded" else "b"
    Evolution(model, ES, space=Only(other)).evolve(fitness_of(model))  # alone it may


def test_memory_that_comes_to_be_shared_is_noticed_at_the_next_phase() -> None:
    model = Two("")
    search = Evolution(model, RandomMutation(0.1, population=2), accept=Always())
    search.evolve(fitness_of(model))
    model.b.weight.data = model.a.weight.data
    search.evolve(fitness_of(model))
    assert search.space.touched(search.slots) == ("a.weight",)


def test_neighbours_on_one_memory_are_no_twins() -> None:
    flat = torch.zeros(24)
    parts = {"a": flat[:12].view(3, 4), "b": flat[12:].view(4, 3), "c": torch.zeros(0)}
    columns = {"left": flat.view(4, 6)[:, :3], "right": flat.view(4, 6)[:, 3:]}
    for tensors in (parts, columns):
        found = sharing_of(tensors)
        assert not found.group
        assert not found.overlaps
        assert not found.folded


def test_folded_tensors() -> None:
    flat = torch.zeros(12)
    assert is_folded(flat.unfold(0, 3, 1))
    assert not is_folded(flat.unfold(0, 3, 3))
    assert not is_folded(flat.view(3, 4).T)
    assert not is_folded(torch.zeros(3).expand(1, 3))
