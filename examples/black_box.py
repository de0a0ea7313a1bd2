"""Evolve what stands before a model that nobody can look into: a frozen reader of text.

The reader is the recognition model of RapidOCR, run by onnxruntime: images in, texts out, and no
gradient. Before it stands an image front end of 20 numbers; CMA-ES moves them on 60 photographs of
labels, by how many are read without an error. Other photographs are read before and after.

    pip install 'evostep[black-box]'
    python examples/black_box.py [--examples 60] [--generations 10] [--picture black_box.png]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from evostep import CMAES, Always, Evolution, Fitness
from evostep.lab.data.sources.text_lines import drawn
from evostep.lab.reading.model import TextReader
from evostep.scoring.texts import decode


def main(examples: int, generations: int, others: int, picture: Path, seed: int) -> None:
    """Evolve, tell what is read before and after, and draw it."""
    images, texts = drawn(series=seed, lines=examples + others)
    images = images.float() / 255
    model = TextReader()
    model.choose("blue")  # where most of this ink is seen: the best single channel
    fitness = Fitness(model, [(images[:examples], texts[:examples])], "near-match")
    test = Fitness(model, [(images[examples:], texts[examples:])], "exact-match")

    began, before = time.perf_counter(), test()
    shown = slice(examples, examples + 6)
    views = [picture_of(model, images[shown])]
    print(f"{examples} examples to evolve on, {others} others to test: exact match {before:.1%}")

    strategy = CMAES(0.2, population=12, scale="absolute")
    search = Evolution(model, strategy, accept=Always(), engine="inplace")
    for record in search.evolve(fitness, generations):
        print(f"generation {record.generation}: fitness {record.parent:.3f}, best member "
              f"{max(record.scores):.3f}")  # fmt: skip
    after = test()
    views.append(picture_of(model, images[shown]))
    print(f"exact match on the others: {before:.1%} -> {after:.1%} "
          f"({time.perf_counter() - began:.0f} s)")  # fmt: skip
    draw(picture, images[shown], decode(texts[shown]), views)
    print(f"picture: {picture}")


@torch.no_grad()
def picture_of(model: TextReader, images: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Return what the reader sees of images, and what it reads."""
    return model.prepared(images), decode(model(images))


def draw(
    path: Path,
    images: torch.Tensor,
    texts: list[str],
    views: list[tuple[torch.Tensor, list[str]]],
) -> None:
    """Draw photographs, and what the reader saw and read of them before and after."""
    from matplotlib.figure import Figure

    rows = [("photograph", images, texts)]
    rows += [(name, *view) for name, view in zip(("before", "after"), views, strict=True)]
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axes, (name, row, read) in zip(figure.subplots(3, len(images)), rows, strict=True):
        for axis, image, text, true in zip(axes, row, read, texts, strict=True):
            axis.imshow(image.permute(1, 2, 0))
            axis.set_xticks([])
            axis.set_yticks([])
            wrong = text != true
            axis.set_title(
                text or "(nothing)", color="firebrick" if wrong else "black", fontsize=10
            )
        axes[0].set_ylabel(name)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", type=int, default=60)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--others", type=int, default=200)
    parser.add_argument("--picture", type=Path, default=Path("black_box.png"))
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    main(chosen.examples, chosen.generations, chosen.others, chosen.picture, chosen.seed)
