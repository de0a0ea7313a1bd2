"""Guiding directions: gradients and momentum, for a strategy that searches along them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from evostep.genome.point import Genome, as_coordinates

Guide = dict[str, Tensor]


def copy_guides(
    directions: Sequence[Mapping[str, Tensor]], live: Mapping[str, Tensor]
) -> list[Guide]:
    """Copy guides, each name -> a tensor of the weight's shape.

    Raises:
        ValueError: a name or a shape that the weights do not have.
    """
    for name, tensor in ((name, t) for one in directions for name, t in one.items()):
        if name not in live or live[name].shape != tensor.shape:
            has = f"has shape {tuple(live[name].shape)}" if name in live else "does not exist"
            raise ValueError(
                f"a guide of shape {tuple(tensor.shape)} is for {name!r}, which {has}: give "
                "each weight's own gradient"
            )
    return [
        {name: tensor.detach().to_dense().clone() for name, tensor in one.items()}
        for one in directions
    ]


def add_guides(genome: Genome, guides: Sequence[Guide]) -> bool:
    """Return a genome those parts of the guides that are directions in its coordinates.

    Returns:
        Whether any of them leads anywhere.
    """
    center = genome.center
    genome.guides = tuple(
        {
            name: genome.confined(name, as_coordinates(tensor).to(center[name].device))
            for name, tensor in one.items()
            if name in center and center[name].shape == as_coordinates(tensor).shape
        }
        for one in guides
    )
    moving = [name for name, sigma in genome.sigma.items() if sigma != 0]
    return any(bool((genome.gram[name].diagonal() > 0).any()) for name in moving)
