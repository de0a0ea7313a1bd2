"""`Only("head")` is the layer that makes the outputs: through ties, past auxiliary classifiers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from evostep import Always, Evolution, Evolved, Fitness, Only, OpenAIES, suggest_sigma
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


class Unsaid(nn.Module):
    """The head is defined first, and nothing says so."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.body(x)).log_softmax(1)
        return logits


class Functional(Unsaid):
    """No module makes the outputs, nor anything that is a layer by its type."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.body = nn.Parameter(torch.randn(4, 4))
        self.out = nn.ParameterDict({"w": torch.randn(3, 4), "b": torch.zeros(3)})

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear((x @ self.body).tanh(), self.out["w"], self.out["b"])


class Misnamed(Unsaid):
    """A hidden layer has the name of a head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.fc(x).tanh())
        return logits


class Lengthless(Unsaid):
    """Has no truth value, as a compiled model of modules without a length."""

    def __len__(self) -> int:
        raise TypeError("no length")


INPUTS = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3


def moved(model: nn.Module, evolve: Callable[[Fitness], object]) -> set[str]:
    """Return the names of what a phase has moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    evolve(Fitness(model, [(INPUTS, LABELS)], "neg-loss"))
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("momentum", ["keep", "reset"])
@pytest.mark.parametrize("kind", [Unsaid, Functional, Misnamed, Lengthless])
@pytest.mark.parametrize("way", ["model", "optimizer"])
def test_what_the_fitness_scores_tells_the_head(
    way: str, kind: type[nn.Module], momentum: Literal["keep", "reset"]
) -> None:
    model = kind()
    strategy = OpenAIES(0.05, lr=0.05, population=4)
    common: dict[str, Any] = {"space": Only("head"), "accept": Always()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if way == "model":
            evolve = Evolution(model, strategy, **common).evolve
            damped: set[str] = set()
        else:
            base = torch.optim.SGD(model.named_parameters(), lr=0.0, momentum=0.9)
            nn.functional.cross_entropy(model(INPUTS), LABELS).backward()
            base.step()
            evolve = Evolved(base, strategy, model=model, momentum=momentum, **common).evolve
        found = moved(model, evolve)
        if way == "optimizer" and momentum == "reset":
            names = {id(p): name for name, p in model.named_parameters()}
            damped = {
                names[id(p)]
                for p, state in base.state.items()
                if not state["momentum_buffer"].any()
            }
            assert damped & found == found
    head = {"out.weight", "out.bias"} if kind is not Functional else {"out.w", "out.b"}
    assert found == head


def test_the_same_head_for_sigma() -> None:
    torch.manual_seed(0)
    batches = [(INPUTS, LABELS)]
    by_forward = suggest_sigma(Unsaid(), batches, space=Only("head"))
    torch.manual_seed(0)
    assert by_forward.changed == suggest_sigma(Unsaid(), batches, space=Only("out")).changed


def test_a_bare_callable_tells_no_head_and_a_warning_says_so_once() -> None:
    model = Unsaid()
    search = Evolution(model, OpenAIES(0.05, population=4), space=Only("head"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            search.evolve(lambda: -float(model(INPUTS).square().sum()))
    (text,) = [str(one.message) for one in caught]
    assert "'head' is taken to be 'body.2', the last of 3 layers" in text
    assert "Only('body.2')" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(4, 3),
        lambda: nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 3), nn.Softmax(1))),
        Misnamed,
    ],
    ids=["one layer", "a sequence", "a name"],
)
def test_no_warning_where_the_model_says_it(make: Callable[[], nn.Module]) -> None:
    model = make()
    search = Evolution(model, OpenAIES(0.05, population=4), space=Only("head"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search.evolve(lambda: -float(model(INPUTS).square().sum()))


def test_a_head_that_was_replaced_is_looked_for_again() -> None:
    model = Unsaid()
    search = Evolution(model, OpenAIES(0.05, population=4), space=Only("head"), accept=Always())
    fitness = Fitness(model, [(INPUTS, LABELS)], "neg-loss")
    search.evolve(fitness)
    model.last = nn.Linear(3, 3)
    model.register_forward_hook(lambda _module, _inputs, outputs: model.last(outputs))
    before = model.last.weight.clone(), model.out.weight.clone()
    search.evolve(fitness)
    assert not torch.equal(before[0], model.last.weight)
    assert torch.equal(before[1], model.out.weight)
