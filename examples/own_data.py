"""A source of data of one's own: by how much was the digit turned?

    python examples/own_data.py --out runs/own-data

Whatever has a length and gives (image, label) is a source: a function that returns a torch Dataset,
or a pair (train, test) of them, is named as `--data module:function`. Images are PIL images, uint8
tensors or float tensors in [0, 1]. A folder of images for each class needs no code at all:
`--data folder:PATH`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.utils.data import TensorDataset

from evostep.cli import main as evostep


def turned_digits() -> tuple[TensorDataset, TensorDataset]:
    """Return real digits, turned by 0 to 3 quarters; the label is the number of quarters."""
    pixels = torch.tensor(load_digits().images / 16, dtype=torch.float32)
    quarters = torch.randint(4, (len(pixels),), generator=torch.Generator().manual_seed(0))
    turned = [image.rot90(int(times)) for image, times in zip(pixels, quarters, strict=True)]
    images = torch.stack(turned)[:, None]  # (n, channels, height, width)
    return (
        TensorDataset(images[:1200], quarters[:1200]),
        TensorDataset(images[1200:], quarters[1200:]),
    )


def main() -> None:
    """Compare two arms on it, as `evostep compare` does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    args = parser.parse_args()
    options = "--model small-cnn --arms sgd,sgd-all,openai-es --seeds 2 --epochs 6 --evolve-from 4"
    sizes = "--train-size 400 --fitness-size 300 --generations 1 --threads 1"
    data = ["--data", "own_data:turned_digits", "--out", str(args.out)]
    raise SystemExit(evostep(["compare", *data, *options.split(), *sizes.split()]))


if __name__ == "__main__":
    main()
