"""LoRA: the base stands still, and what save_pretrained writes is all that was gained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import Evolution, Evolved, Fitness, Only, OpenAIES

ES = OpenAIES(0.05, lr=0.02, population=8)


class LoRA(nn.Module):
    """A frozen layer with a correction of low rank, named as peft names it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, base.out_features, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(LoRA(nn.Linear(4, 8)), nn.Tanh(), LoRA(nn.Linear(8, 2)))


def fitness_of(model: nn.Module) -> Fitness:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    return Fitness(model, [(x, (x[:, 0] > 0).long())], "neg-loss")


def test_the_base_of_an_adapter_stands_still() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    Evolution(model, ES).evolve(fitness_of(model), 3)
    moved = {name for name, t in model.state_dict().items() if not torch.equal(t, before[name])}
    assert moved == {f"{i}.lora_{part}.default.weight" for i in (0, 2) for part in "AB"}


def test_a_frozen_backbone_handed_to_the_optimizer_stands_still() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    optimizer = Evolved(torch.optim.SGD(model.named_parameters(), lr=0.1), ES)
    optimizer.evolve(fitness_of(model), 3)
    assert torch.equal(before, model[0].weight)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("lora_A", {"0.lora_A.default.weight", "2.lora_A.default.weight"}),
        ("lora_?", {f"{i}.lora_{part}.default.weight" for i in "02" for part in "AB"}),
        ("lora_B.default", {"0.lora_B.default.weight", "2.lora_B.default.weight"}),
        ("0", {"0.lora_A.default.weight", "0.lora_B.default.weight"}),
    ],
)
def test_a_component_of_a_path_is_a_pattern(pattern: str, names: set[str]) -> None:
    search = Evolution(network(), ES, space=Only(pattern))
    assert set(search.space.touched(search.slots)) == names


def test_adapters_that_come_after_construction_evolve() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    search = Evolution(model, ES)
    fitness = fitness_of(model)
    search.evolve(fitness)
    model[0] = LoRA(model[0])  # type: ignore[arg-type]
    base, adapter = model[0].base_layer.weight.clone(), model[0].lora_A["default"].weight.clone()
    search.evolve(fitness)
    assert torch.equal(base, model[0].base_layer.weight)
    assert not torch.equal(adapter, model[0].lora_A["default"].weight)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # peft reads what is deprecated
def test_an_adapter_that_is_saved_and_loaded_scores_the_same(tmp_path: Path) -> None:
    transformers: Any = pytest.importorskip("transformers")
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
    )
    base = transformers.BertForSequenceClassification(config).eval()
    original = copy.deepcopy(base)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["query", "value"])
    model = peft.get_peft_model(base, lora)
    ids = torch.randint(4, 50, (64, 12))
    batch = {"input_ids": ids, "labels": ((ids < 27).sum(1) > 6).long()}
    fitness = Fitness(model, [batch], "neg-loss")
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    Evolution(model, OpenAIES(0.03, lr=0.02, population=8)).evolve(fitness, 3)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(original, tmp_path)
    assert Fitness(again, [batch], "neg-loss")() == pytest.approx(fitness(), abs=1e-6)
