"""Draw the pictures of the pages: what is drawn is computed here, by the library or from data.

    python website/drawings.py --out docs/figures

They have a light ground of their own, so that they can be read on a dark page, and their letters
are outlines, so that they look the same everywhere.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import evostep
from evostep.strategies.base import Strategy

ROOT = Path(__file__).resolve().parents[1]
GRADIENT, EVOLUTION, QUIET, INK = "#2a6f97", "#c8553d", "#b8bdc4", "#22262b"
LOOK = {
    "svg.fonttype": "path",
    "svg.hashsalt": "evostep",  # the same file each time
    "font.size": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
}


def adjusted(factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return loss and worst-class recall of examples/scores.csv under logit adjustment.

    Args:
        factors: (k,) how much of the logarithm of the class frequencies is taken off.
    """
    with (ROOT / "examples/scores.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    labels = np.array([int(row["label"]) for row in rows])
    shares = [[float(row[f"score_{c}"]) for c in range(10)] for row in rows]
    logs = np.log(np.clip(np.array(shares), 1e-6, 1))
    prior = np.log(np.bincount(labels) / len(labels))
    losses, recalls = [], []
    for factor in factors:
        z = logs - factor * prior
        decided = z.argmax(1)
        recalls.append(min((decided[labels == c] == c).mean() for c in range(10)))
        z -= np.log(np.exp(z).sum(1, keepdims=True))
        losses.append(-z[np.arange(len(labels)), labels].mean())
    return np.array(losses), 100 * np.array(recalls)


def idea() -> Figure:
    """Draw a loss beside the metric that is reported: where each would have the network go."""
    x = np.linspace(-0.6, 2.6, 321)
    losses, recalls = adjusted(x)
    low, high = losses.argmin(), recalls.argmax()
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 5.2))
    above.plot(x, losses, color=GRADIENT, lw=2.5)
    above.plot(x[low], losses[low], "o", color=GRADIENT, ms=9)
    above.annotate(
        "gradients stop here", (x[low], losses[low]), (x[low], losses[low] + 0.07),
        ha="center", color=GRADIENT, arrowprops={"arrowstyle": "-", "color": GRADIENT},
    )  # fmt: skip
    above.set_ylabel("loss")
    above.set_ylim(losses.min() - 0.02, 0.5)
    below.step(x, recalls, color=EVOLUTION, lw=2.5, where="mid")
    members = np.random.default_rng(3).normal(x[low], 0.4, 14)
    of_members = adjusted(members)[1]
    below.plot(members, of_members, "o", mfc="white", mec=EVOLUTION, ms=7, mew=1.5)
    below.plot(x[low], recalls[low], "o", color=GRADIENT, ms=9)
    below.annotate(
        "evolution tries members around,\nand goes where the metric is better",
        (1.3, recalls.max() - 1.5), (0.85, 50), ha="left", color=EVOLUTION,
        arrowprops={"arrowstyle": "-", "color": EVOLUTION},
    )  # fmt: skip
    below.set_ylabel("worst class's recall (%)")
    below.set_xlabel("how far the decision favours rare classes")
    below.set_ylim(40, 90)
    below.axvline(x[high], color=QUIET, lw=1, ls=":")
    below.text(x[high] + 0.04, recalls[high] + 2, f"{recalls[high]:.0f}%", color=EVOLUTION)
    below.text(x[low] - 0.05, recalls[low] + 3, f"{recalls[low]:.0f}%", color=GRADIENT, ha="right")
    for axes in (above, below):
        axes.axvline(x[low], color=QUIET, lw=1, ls=":", zorder=0)
    return figure


def space() -> Figure:
    """Draw which weights move in each kind of space."""
    layers = ("conv 1", "norm", "conv 2", "norm", "head")
    kinds: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("AllWeights()", (0, 1, 2, 3, 4)),
        ('Only("norm")', (1, 3)),
        ('Only("head")', (4,)),
    )
    figure, panels = plt.subplots(1, 4, figsize=(8.4, 3.4))
    for axes, (title, moving) in zip(panels[:3], kinds, strict=True):
        for i, name in enumerate(layers):
            _box(axes, (0.1, 4 - i + 0.1), 0.8, 0.72, name, i in moving)
        axes.set(xlim=(0, 1), ylim=(-0.05, 5))
        axes.set_title(title, fontsize=12, family="monospace")
    axes = panels[3]
    for i, name in enumerate(("epoch 1", "epoch 2", "epoch 3")):
        _box(axes, (0.1, 4 - i + 0.1), 0.8, 0.72, name, False)
        axes.text(0.97, 4 - i + 0.46, f"w{i + 1}", color=EVOLUTION, va="center", ha="left")
    _box(axes, (0.1, 0.35), 0.8, 1.05, "mixture:\nw1, w2, w3\nmove", True)
    axes.set(xlim=(0, 1.25), ylim=(-0.05, 5))
    axes.set_title("Span()", fontsize=12, family="monospace")
    for axes in panels:
        axes.axis("off")
    return figure


def _box(
    axes: Axes, corner: tuple[float, float], width: float, height: float, name: str, moves: bool
) -> None:
    look = {"fc": EVOLUTION, "ec": EVOLUTION} if moves else {"fc": "white", "ec": QUIET}
    axes.add_patch(
        FancyBboxPatch(corner, width, height, boxstyle="round,pad=0,rounding_size=0.08", **look)
    )
    middle = (corner[0] + width / 2, corner[1] + height / 2)
    axes.text(*middle, name, ha="center", va="center", color="white" if moves else INK, fontsize=11)


def strategy() -> Figure:
    """Draw what three strategies do on the same hill, as the library does it."""
    kinds: tuple[tuple[str, Strategy], ...] = (
        ("RandomMutation", evostep.RandomMutation(0.35, population=10, scale="absolute")),
        ("OpenAIES", evostep.OpenAIES(0.35, lr=0.35, population=10, scale="absolute")),
        ("SNES", evostep.SNES(0.35, population=10, scale="absolute")),
    )
    figure, panels = plt.subplots(1, 3, figsize=(8.4, 2.8), sharey=True)
    for axes, (title, kind) in zip(panels, kinds, strict=True):
        path, tried = walk(kind)
        u, v = np.meshgrid(np.linspace(-2.6, 0.9, 80), np.linspace(-1.3, 1.5, 80))
        levels = -(np.linspace(2.7, 0.1, 10) ** 2)
        height = -(u**2 + 3 * v**2 + 2 * u * v)
        axes.contour(u, v, height, levels, colors=QUIET, linewidths=0.8, linestyles="solid")
        axes.plot(*tried[0].T, "o", mfc="white", mec=EVOLUTION, ms=5)
        axes.plot(*path.T, "-o", color=GRADIENT, ms=4, lw=1.8)
        axes.plot(0, 0, "*", color=INK, ms=11)
        axes.set(xlim=(-2.6, 0.9), ylim=(-1.3, 1.5), xticks=[], yticks=[], aspect="equal")
        axes.set_title(title, fontsize=12, family="monospace")
    return figure


def walk(kind: Strategy, generations: int = 12) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return the centers (generations + 1, 2) of a run, and the members of each generation."""
    weights = torch.tensor([-1.9, 0.4])
    scored: list[list[float]] = []

    def height() -> float:
        u, v = weights.tolist()
        scored.append([u, v])
        return -(u**2 + 3 * v**2 + 2 * u * v)

    search = evostep.Evolution({"w": weights}, kind, seed=4)
    path, tried = [weights.clone()], []
    for _ in range(generations):
        scored.clear()
        search.evolve(height, generations=1)
        path.append(weights.clone())
        tried.append(np.array(scored[1 : kind.size + 1]))
    return torch.stack(path).numpy(), tried


def acceptance() -> Figure:
    """Draw the luck of the best of many children of which none is better than its parent."""
    draw = np.random.default_rng(0)
    n, changed, children, runs = 1000, 0.05, 100, 400
    # each child changes a share of the predictions, as often for the better as for the worse
    seen = draw.binomial(round(n * changed), 0.5, (runs, children)) * 2 - n * changed
    unseen = draw.binomial(round(n * changed), 0.5, runs) * 2 - n * changed
    best = seen.max(1) / n * 100
    figure, axes = plt.subplots(figsize=(7.2, 3.2))
    bins = np.arange(-2.9, 4.3, 0.4)
    axes.hist(unseen / n * 100, bins, color=GRADIENT, alpha=0.75)
    axes.hist(best, bins, color=EVOLUTION, alpha=0.75)
    axes.text(2.3, 190, "on the examples\nthat chose it", color=EVOLUTION)
    axes.text(0, 100, "on others", color=GRADIENT, ha="center")
    axes.set_xlabel("gain of the best of 100 children, in points of accuracy")
    axes.set_ylabel("runs")
    axes.set_ylim(0, 230)
    return figure


def schedule() -> Figure:
    """Draw when gradients and when evolution moves the weights."""
    plans: tuple[tuple[str, str], ...] = (
        ("after training", "g" * 16 + "e" * 4),
        ("in late epochs", "g" * 12 + "ge" * 4),
        ("Alternate(2, 1)", "gge" * 6 + "gg"),
        ("evolution alone", "e" * 20),
    )
    figure, axes = plt.subplots(figsize=(7.2, 2.6))
    for row, (name, plan) in enumerate(plans):
        for i, kind in enumerate(plan):
            color = GRADIENT if kind == "g" else EVOLUTION
            axes.barh(len(plans) - row, 0.9, left=i, height=0.6, color=color)
        axes.text(-0.4, len(plans) - row, name, ha="right", va="center")
    axes.text(0, 0.25, "gradient steps", color=GRADIENT, va="top")
    axes.text(7, 0.25, "evolution steps", color=EVOLUTION, va="top")
    axes.annotate("", (20, 0.1), (14, 0.1), arrowprops={"arrowstyle": "->", "color": INK})
    axes.text(17, -0.05, "time", ha="center", va="top")
    axes.set(xlim=(-6.5, 20.2), ylim=(-0.6, 4.6))
    axes.axis("off")
    return figure


DRAWINGS: dict[str, Callable[[], Figure]] = {
    "idea": idea,
    "space": space,
    "strategy": strategy,
    "acceptance": acceptance,
    "schedule": schedule,
}


def main() -> None:
    """Draw them all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(LOOK):
        for name, draw in DRAWINGS.items():
            figure = draw()
            figure.tight_layout()
            figure.savefig(args.out / f"{name}.svg", facecolor="#fbfbfc", metadata={"Date": None})
            plt.close(figure)


if __name__ == "__main__":
    main()
