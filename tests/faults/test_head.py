"""`Only("head")` is the layer that makes the outputs: through ties, past auxiliary classifiers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from evostep import Evolution, Evolved, Fitness, Only, OpenAIES
from evostep.genome.slots import slots_of_groups, slots_of_module


class Language(nn.Module):
    """Embeddings tied to the layer that makes the outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(9, 4)
        self.mlp = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4))
        self.lm_head = nn.Linear(4, 9)
        self.lm_head.weight = self.wte.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.mlp(self.wte(x).mean(1)))


class Named(Language):
    """It says itself which layer that is, and it is not the last."""

    def __init__(self, method: str) -> None:
        super().__init__()
        self.value = nn.Linear(4, 1)
        setattr(self, method, lambda: self.lm_head)


class Raises(Language):
    def get_output_embeddings(self) -> nn.Module:
        raise NotImplementedError


class Segmentation(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3)
        self.classifier = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.add_module(name, nn.Sequential(nn.Conv2d(4, 4, 3), nn.Conv2d(4, 2, 1)))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 3)
        self.head = parametrizations.weight_norm(nn.Linear(3, 2))


TIED = {"wte.weight", "lm_head.bias"}
HEADS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "tied": (Language, TIED),
    "Hugging Face": (lambda: Named("get_output_embeddings"), TIED),
    "timm": (lambda: Named("get_classifier"), TIED),
    "raises": (Raises, TIED),
    "parallel": (lambda: nn.DataParallel(Named("get_classifier")), TIED),
    "auxiliary": (
        lambda: Segmentation("aux_classifier"),
        {"classifier.2.weight", "classifier.2.bias"},
    ),
    "AuxLogits": (lambda: Segmentation("AuxLogits"), {"classifier.2.weight", "classifier.2.bias"}),
    "parametrized": (
        Normed,
        {
            "head.bias",
            "head.parametrizations.weight.original0",
            "head.parametrizations.weight.original1",
        },
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_the_head_makes_the_outputs(name: str) -> None:
    make, expected = HEADS[name]
    assert set(Only("head").touched(slots_of_module(make()))) == expected


def test_the_order_of_the_optimizers_groups_does_not_matter() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    groups = [{"params": list(model[1].parameters())}, {"params": list(model[0].parameters())}]
    base = torch.optim.SGD(groups, lr=0.1)
    slots = slots_of_groups(base.param_groups, model)
    assert Only("head").touched(slots) == ("1.weight", "1.bias")


@pytest.mark.parametrize("pattern", ["lm_head", "lm_head.*", "*_head.weight", "wte", "Embedding"])
def test_a_tied_weight_is_known_by_each_of_its_names(pattern: str) -> None:
    assert "wte.weight" in Only(pattern).touched(slots_of_module(Language()))


def test_a_tied_head_evolves_in_the_optimizer_too() -> None:
    model = Language()
    tokens = torch.randint(9, (20, 3))
    fitness = Fitness(model, [(tokens, tokens[:, 0])], "neg-loss")
    optimizer = Evolved(
        torch.optim.SGD(model.parameters(), lr=0.1),
        OpenAIES(0.05, lr=0.05, population=8),
        space=Only("head"),
        model=model,
    )
    body, table = model.mlp[0].weight.clone(), model.wte.weight.clone()
    optimizer.evolve(fitness, 3)
    assert torch.equal(body, model.mlp[0].weight)
    assert not torch.equal(table, model.wte.weight)
    assert model.wte.weight is model.lm_head.weight


def test_a_frozen_head_is_named_with_the_keyword() -> None:
    model = Language()
    model.lm_head.requires_grad_(False)
    with pytest.raises(ValueError, match=r"Only\('head', frozen=True\)") as caught:
        Evolution(model, OpenAIES(0.05), space=Only("head"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["head", "classifier", "fc"])
def test_a_layer_called_so_is_the_head_wherever_it_was_defined(name: str) -> None:
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.Linear(5, 3))
            self.body = nn.Linear(5, 5)
            self.lora_A = nn.ModuleDict({"default": nn.Linear(5, 2)})

    touched = Only("head").touched(slots_of_module(First()))
    assert set(touched) == {f"{name}.weight", f"{name}.bias"}
