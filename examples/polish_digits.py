"""A network trained on unequal classes, polished on the geometric mean of their recalls.

    python examples/polish_digits.py --out demo-polish

Real digits, cut so that the rarest class has a sixth of the examples of the most frequent one. A
small network is trained by SGD, the biases of its decision are evolved on outputs of networks that
have not seen the examples (`evostep.out_of_fold`), and the verdict is written as it falls. At the
end the test examples are read once.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import evostep
from evostep.lab.polish.picture import draw_recalls

METRIC = "g-mean"  # of all recalls: the rarest class alone has too few examples to confirm anything


def unequal_digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """Return training and test examples; digit d keeps a share of 6 ** (-d / 9) in both."""
    pixels, labels = load_digits(return_X_y=True)
    generator = torch.Generator().manual_seed(seed)
    kept = torch.rand(len(labels), generator=generator) < 6.0 ** (-torch.as_tensor(labels) / 9)
    parts = train_test_split(
        pixels[kept], labels[kept], test_size=0.3, stratify=labels[kept], random_state=seed
    )
    train_x, test_x = (torch.as_tensor(part / 16, dtype=torch.float32) for part in parts[:2])
    train_y, test_y = (torch.as_tensor(part) for part in parts[2:])
    return TensorDataset(train_x, train_y), TensorDataset(test_x, test_y)


def make_model() -> nn.Module:
    """Return a small network."""
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def fit(model: nn.Module, part: Dataset[Any]) -> None:
    """Train by SGD with momentum, as one would."""
    loader = DataLoader(part, 32, shuffle=True, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(15):
        for inputs, targets in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(inputs), targets).backward()
            optimizer.step()


def recalls(model: nn.Module, data: TensorDataset) -> Tensor:
    """Return each class's share of right decisions."""
    inputs, targets = data.tensors
    with torch.no_grad():
        right = model(inputs).argmax(1) == targets
    return torch.stack([right[targets == c].double().mean() for c in range(10)])


def main() -> None:
    """Train, polish, test; write what was found, and a picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the bits of a sum depend on their number
    train, test = unequal_digits(args.seed)
    model, result = evostep.out_of_fold(make_model, fit, train, METRIC, seed=args.seed)
    result.revert()
    before = recalls(model, test)
    if result.verdict != "no confirmed gain":
        result.apply()
    after = recalls(model, test)
    print(result)
    ends = [float(values.log().mean().exp()) for values in (before, after)]
    print(f"{len(test)} test examples: {METRIC} {ends[0]:.1%} -> {ends[1]:.1%}")
    record = {
        **result.as_dict(),
        "summary": str(result),
        "fraction": True,
        "class_names": [str(digit) for digit in range(10)],
        "test": {"n": len(test), "before": before.tolist(), "after": after.tolist()},
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    picture = draw_recalls(record)
    (args.out / "recall.png").write_bytes(picture.png)
    print(f"the picture: {args.out / 'recall.png'}")


if __name__ == "__main__":
    main()
