"""What gradients never move stands still: frozen parameters, padding rows, pruned weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from evostep import (
    CMAES,
    SNES,
    AllWeights,
    Always,
    Evolution,
    Evolved,
    Fitness,
    GuidedES,
    Only,
    OpenAIES,
    RandomMutation,
    RandomSearch,
    Span,
)
from evostep.genome.slots import slots_of_module
from evostep.noise import LowRank

X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()
TOKENS = torch.randint(9, (30, 3), generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(30) % 3
ES = OpenAIES(0.02, lr=0.004, population=4)


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


class Text(nn.Module):
    """An embedding with a padding row, and a layer half of whose weights are pruned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 4, padding_idx=0)
        self.hidden = nn.Linear(12, 5)
        self.head = nn.Linear(5, 3)
        prune.random_unstructured(self.hidden, "weight", 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(self.embedding(x).flatten(1))))


def text_fitness(model: nn.Module) -> Fitness:
    return Fitness(model, [(TOKENS, CLASSES)], "neg-loss")


decaying = functools.partial(torch.optim.AdamW, weight_decay=9.0)
STRATEGIES: dict[str, Callable[[], Any]] = {
    "openai": lambda: ES,
    "decay": lambda: OpenAIES(0.02, lr=0.01, population=4, optimizer=decaying),
    "low rank": lambda: OpenAIES(0.02, lr=0.004, population=4, noise=LowRank(1)),
    "snes": lambda: SNES(0.05, population=4),
    "guided": lambda: GuidedES(0.02, population=4),
    "search": lambda: RandomSearch(0.05, population=4),
    "mutation": lambda: RandomMutation(0.05, population=4),
    "safe": lambda: RandomMutation(0.05, population=4, scale="safe"),
    "uniform": lambda: RandomMutation(0.05, population=4, noise="uniform"),
    "cmaes": lambda: CMAES(0.05, population=4),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "engine"), [*((name, "vmap") for name in STRATEGIES), ("low rank", "lowrank")]
)
def test_masked_entries_stand_still_and_engines_agree(name: str, engine: str) -> None:
    if name == "cmaes":
        pytest.importorskip("cma")
    model = Text()
    mask = model.hidden.weight_mask.bool()
    pruned = model.hidden.weight_orig.detach().clone()
    model.embedding.weight.data[0] = 0.25  # a padding row need not be zero
    everything = {name: p.detach().clone() for name, p in model.named_parameters()}
    search = Evolution(model, STRATEGIES[name](), accept=Always(), engine=engine)
    search.guide({n: torch.ones_like(p) for n, p in model.named_parameters()})
    records = search.evolve(text_fitness(model), 2)
    assert model.embedding.weight[0].tolist() == [0.25] * 4
    assert torch.equal(model.hidden.weight_orig[~mask], pruned[~mask])
    if name not in ("search",):
        moved = [n for n, p in model.named_parameters() if not torch.equal(p, everything[n])]
        assert len(moved) == len(everything)
    other = Text()
    other.embedding.weight.data[0] = 0.25
    twin = Evolution(other, STRATEGIES[name](), accept=Always(), engine="inplace")
    twin.guide({n: torch.ones_like(p) for n, p in other.named_parameters()})
    again = twin.evolve(text_fitness(other), 2)
    for one, two in zip(records, again, strict=True):
        assert one.scores == pytest.approx(two.scores, abs=1e-5)


def test_noise_of_the_other_entries_is_what_it_was() -> None:
    """One row fixed: the noise of the rows that move is that of a table without padding."""

    def members(padding: int | None) -> Tensor:
        table = nn.Embedding(9, 4, padding_idx=padding)
        nn.init.ones_(table.weight)  # the same scale, whatever counts for it
        genome = AllWeights().open(slots_of_module(table))
        return RandomMutation(0.1).member(genome, {}, 0, 0, seed=3).tensor("weight")

    free, padded = members(None), members(-1)
    assert torch.equal(free[:8], padded[:8])
    assert torch.equal(padded[8], torch.ones(4))
    assert not torch.equal(free[8], padded[8])


def test_coordinates_are_counted_and_scaled_without_the_fixed_ones() -> None:
    table = nn.Embedding(9, 4, padding_idx=0)
    nn.init.ones_(table.weight)
    table.weight.data[0] = 0.0
    genome = AllWeights().open(slots_of_module(table))
    assert genome.sizes == {"weight": 32}
    assert genome.rms == {"weight": 1.0}
    assert CMAES(0.1).size_for(genome) == 4 + int(3 * 3.4657)


@pytest.mark.parametrize("kind", ["bag", "structured", "parametrization"])
def test_other_masks(kind: str) -> None:
    torch.manual_seed(0)
    layer: Any
    if kind == "bag":
        layer = nn.EmbeddingBag(9, 4, padding_idx=2)
        still, inputs = layer.weight, TOKENS
        fixed = torch.zeros(9, 4, dtype=torch.bool).index_fill(0, torch.tensor(2), True)
    else:
        layer, inputs = nn.Linear(4, 4), X[:30]
        if kind == "structured":
            prune.ln_structured(layer, "weight", 0.5, n=2, dim=1)
            still, fixed = layer.weight_orig, layer.weight_mask == 0
        else:
            sparse: Any = type("FakeSparsity", (nn.Module,), {"forward": lambda m, x: m.mask * x})()
            sparse.register_buffer("mask", torch.eye(4))
            parametrize.register_parametrization(layer, "weight", sparse)
            still, fixed = layer.parametrizations.weight.original, torch.eye(4) == 0
    model = nn.Sequential(layer, nn.Linear(4, 3))
    before = still.detach().clone()
    Evolution(model, ES, accept=Always()).evolve(Fitness(model, [(inputs, CLASSES)], "neg-loss"))
    assert torch.equal(still[fixed], before[fixed])
    assert not (still[~fixed] == before[~fixed]).any()


def test_a_padding_row_that_is_tied_to_the_outputs_has_a_gradient_and_moves() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4, padding_idx=0)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embedding(x).mean(1))

    model = Tied()
    nn.functional.cross_entropy(model(TOKENS), CLASSES).backward()
    assert bool(model.embedding.weight.grad[0].any())  # type: ignore[index]
    Evolution(model, ES, accept=Always()).evolve(text_fitness(model))
    assert bool(model.embedding.weight[0].any())


@pytest.mark.parametrize("how", ["model", "groups", "named", "only", "dictionary"])
def test_a_frozen_layer_stands_still(how: str) -> None:
    model = mlp()
    model[0].requires_grad_(False)
    before, head = model[0].weight.clone(), model[2].weight.clone()
    search: Any
    if how == "model":
        search = Evolution(model, ES, accept=Always())
    elif how == "groups":
        search = Evolved(torch.optim.SGD(model.parameters(), lr=0.1), ES, accept=Always())
    elif how == "named":
        search = Evolved(torch.optim.Adam(model.named_parameters()), ES, accept=Always())
    elif how == "only":
        search = Evolution(model, ES, space=Only("*.weight"), accept=Always())
    else:
        search = Evolution(dict(model.named_parameters()), ES, accept=Always())
    search.evolve(Fitness(model, [(X, Y)], "neg-loss"))
    assert torch.equal(before, model[0].weight)
    assert not torch.equal(head, model[2].weight)


def test_frozen_weights_move_on_request() -> None:
    for space in (AllWeights(frozen=True), Only("0", frozen=True)):
        model = mlp().requires_grad_(False)
        before = model[0].weight.clone()
        search = Evolution(model, ES, space=space, accept=Always())
        search.evolve(Fitness(model, [(X, Y)], "neg-loss"))
        assert not torch.equal(before, model[0].weight)
    assert repr(AllWeights()) == "AllWeights()"
    assert repr(Only("a", frozen=True)) == "Only('a', frozen=True)"


@pytest.mark.parametrize("space", [AllWeights(), Only("head"), Span()], ids=repr)
def test_where_all_is_frozen_one_line_names_the_keyword(space: Any) -> None:
    model = mlp().requires_grad_(False)
    with pytest.raises(ValueError, match=r"4 of 4 parameters.*frozen=True") as caught:
        Evolution(model, ES, space=space)
    assert "\n" not in str(caught.value)


def test_freezing_is_noticed_at_the_next_phase() -> None:
    model = mlp()
    search = Evolution(model, SNES(0.05, population=4), accept=Always())
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    search.evolve(fitness)
    for frozen, free in ((0, 2), (2, 0)):
        model[frozen].requires_grad_(False)
        model[free].requires_grad_(True)
        still, moving = model[frozen].weight.clone(), model[free].weight.clone()
        search.evolve(fitness)
        assert torch.equal(still, model[frozen].weight)
        assert not torch.equal(moving, model[free].weight)
    resumed = Evolution(model, SNES(0.05, population=4), accept=Always())
    resumed.load_state_dict(search.state_dict())


def test_trainable_names_what_has_requires_grad() -> None:
    model = mlp()
    model[0].weight.requires_grad_(False)
    names = Only("trainable", frozen=True).touched(slots_of_module(model))
    assert names == ("0.bias", "2.weight", "2.bias")


def test_pruning_between_two_phases_is_noticed() -> None:
    model = mlp()
    search = Evolution(model, SNES(0.05, population=4), accept=Always())
    fitness = Fitness(model, [(X, Y)], "neg-loss")
    search.evolve(fitness)
    prune.l1_unstructured(model[0], "weight", 0.5)
    original, mask = model[0].weight_orig.clone(), model[0].weight_mask.bool()
    search.evolve(fitness)
    assert torch.equal(model[0].weight_orig[~mask], original[~mask])
    assert not torch.equal(model[0].weight_orig[mask], original[mask])


def test_mixtures_of_checkpoints_leave_padding_and_frozen_weights_as_they_are() -> None:
    model = Text()
    model.head.requires_grad_(False)
    search = Evolution(model, RandomMutation(0.5, population=8), space=Span(), accept=Always())
    for value in (1.0, 2.0, 3.0):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
            model.embedding.weight[0] = value  # before it was a padding row
        search.remember()
    model.embedding.weight.data[0] = 0.7
    mask, pruned = model.hidden.weight_mask.bool(), model.hidden.weight_orig.clone()
    head, hidden = model.head.weight.clone(), model.hidden.weight_orig.clone()
    search.evolve(text_fitness(model), 3)
    assert model.embedding.weight[0].unique().tolist() == [torch.tensor(0.7).item()]
    assert torch.equal(model.hidden.weight_orig[~mask], pruned[~mask])
    assert torch.equal(model.head.weight, head)
    assert not torch.equal(model.hidden.weight_orig, hidden)
