"""peft: LoRA's matrices alone move, and `save_pretrained` loads back with the same score."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep import Evolved, Fitness

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peft = pytest.importorskip("peft", reason="needs evostep[peft]")

pytestmark = pytest.mark.filterwarnings("ignore")


class Run:
    def __init__(self, base: nn.Module, strategy: Any, digits: Any) -> None:
        self.original = base
        torch.manual_seed(1)
        self.model = peft.get_peft_model(
            copy.deepcopy(base), peft.LoraConfig(r=2, target_modules=["0", "2"])
        )
        trained = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self.optimizer = Evolved(torch.optim.AdamW(trained, lr=0.01), strategy)
        self.digits = digits
        self.fitness = Fitness(self.model, [digits.other.tensors], "neg-loss")

    def steps(self, first: int, last: int) -> set[str]:
        inputs, targets = self.digits.train.tensors
        moved = set()
        for step in range(first, last):
            at = slice(step % 10 * 32, step % 10 * 32 + 32)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(inputs[at]), targets[at]).backward()
            self.optimizer.step()
            if step % 10 == 9:
                before = self.weights()
                self.optimizer.evolve(self.fitness, 3)
                moved |= {n for n, p in self.weights().items() if not torch.equal(p, before[n])}
        return moved

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}


def test_lora_alone_moves_and_what_is_saved_scores_the_same(
    make_network: Any, strategy: Any, digits: Any, tmp_path: Path
) -> None:
    run = Run(make_network(), strategy, digits)
    before = run.weights()
    moved = run.steps(0, 10)
    assert moved
    assert all("lora_" in name for name in moved)
    changed = {name for name, p in run.weights().items() if not torch.equal(p, before[name])}
    assert all("lora_" in name for name in changed)
    run.model.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(copy.deepcopy(run.original), tmp_path)
    assert Fitness(again, [digits.other.tensors], "neg-loss")() == run.fitness()
    merged = run.model.merge_and_unload()  # as it is deployed
    score = Fitness(merged, [digits.other.tensors], "neg-loss")()
    assert score == pytest.approx(run.fitness(), rel=1e-4)


def test_twenty_steps_and_twenty_are_forty(
    make_network: Any, strategy: Any, digits: Any, same: Any, tmp_path: Path
) -> None:
    base = make_network()
    whole, half, rest = (Run(base, strategy, digits) for _ in range(3))
    whole.steps(0, 40)
    half.steps(0, 20)
    half.model.save_pretrained(tmp_path)
    torch.save(half.optimizer.state_dict(), tmp_path / "optimizer.pt")
    weights = peft.utils.load_peft_weights(str(tmp_path))
    peft.set_peft_model_state_dict(rest.model, weights)
    rest.optimizer.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    rest.steps(20, 40)
    same(whole.weights(), rest.weights())
    same(whole.optimizer.state_dict(), rest.optimizer.state_dict())
