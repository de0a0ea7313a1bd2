"""Evolution of LoRA's matrices alone, and what `save_pretrained` keeps of it.

python examples/with_peft.py
"""

from __future__ import annotations

import copy
import tempfile

import torch
from digits import parts, tell
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F
from torch.utils.data import DataLoader
from with_transformers import as_tokens, network

import evostep


def main() -> None:
    """Train a network, add LoRA, take gradient and evolution steps, save, load."""
    train, for_evolution, _ = parts()
    base = network()
    optimizer = torch.optim.AdamW(base.parameters(), lr=0.005)
    for _ in range(3):
        for batch in DataLoader(as_tokens(train), 32, shuffle=True):
            optimizer.zero_grad()
            base(**batch).loss.backward()
            optimizer.step()
    original = copy.deepcopy(base)

    model = get_peft_model(base, LoraConfig(r=4, target_modules=["query", "value", "dense"]))
    fitness = evostep.Fitness(model, DataLoader(as_tokens(for_evolution), 640), "macro-f1")
    optimizer = evostep.Evolved(
        torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.005),
        evostep.RandomMutation(sigma=0.1, population=8),
        model=model,
    )
    frozen = {name: p.clone() for name, p in model.named_parameters() if "lora" not in name}
    for batch in DataLoader(as_tokens(train), 32, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(input_ids=batch["input_ids"]).logits, batch["labels"]).backward()
        optimizer.step()
    optimizer.evolve(fitness, 8)

    folder = tempfile.mkdtemp()
    model.save_pretrained(folder)
    again = PeftModel.from_pretrained(original, folder)
    score = evostep.Fitness(again, DataLoader(as_tokens(for_evolution), 640), "macro-f1")()
    still = all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    print(f"all but LoRA's matrices {'stayed' if still else 'MOVED'}")
    print(f"macro-F1 here {fitness():.4f}, of what was saved and loaded {score:.4f}")
    tell(optimizer.history, "macro-F1")


if __name__ == "__main__":
    main()
