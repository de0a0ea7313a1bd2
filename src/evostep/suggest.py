"""How large should sigma be? As large as changes some predictions, and few.

Below, members score the same and their ranks are luck; far above, every member is broken.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError, warn
from evostep.genome.slots import slots_of_module
from evostep.interrupts import Undoing
from evostep.noise import NoiseKind
from evostep.scoring.fitness import Fitness
from evostep.scoring.head import with_head
from evostep.scoring.isolation import ModuleState, preserved_rng, seed_everything
from evostep.scoring.metrics import predictions
from evostep.scoring.nests import concatenate
from evostep.scoring.splitting import as_numbers, unweighted
from evostep.spaces.base import Space, check_numbers
from evostep.spaces.weights import AllWeights
from evostep.spaces.workspace import Workspace
from evostep.strategies.base import ScaleKind
from evostep.strategies.random_mutation import RandomMutation

SIGMAS = tuple(10 ** (exponent / 4) for exponent in range(-16, 1))  # 0.0001 to 1


@dataclass(frozen=True)
class SigmaSuggestion:
    """What `suggest_sigma` found.

    Attributes:
        sigma: where the asked share of predictions changes, interpolated between `sigmas`; the
            first of them where even that changes more, the last where all change less. NaN where
            nothing changes at any.
        share: the share asked for.
        sigmas: the values tried, rising.
        changed: the mean share of changed predictions at each, in [0, 1]; where targets are
            numbers, how far outputs move (root mean square) in standard deviations of the targets.
        spread: the standard deviation of that share over draws.
        what: changes: ``"predictions"`` or ``"outputs"``.
    """

    sigma: float
    share: float
    sigmas: tuple[float, ...]
    changed: tuple[float, ...]
    spread: tuple[float, ...]
    what: str = "predictions"

    def __str__(self) -> str:
        rows = [
            f"{sigma:>10.4g}  {changed:>8.2%} ± {spread:.2%}"
            for sigma, changed, spread in zip(self.sigmas, self.changed, self.spread, strict=True)
        ]
        head = f"{'sigma':>10}  changed {self.what}"
        return "\n".join([head, *rows, self._conclusion()])

    def _conclusion(self) -> str:
        if self.reached:
            return f"{self.share:.0%} change at sigma = {self.sigma:.4g}"
        return (
            f"{self.share:.0%} change at no sigma up to {self.sigmas[-1]:.4g}, where "
            f"{self.changed[-1]:.2%} do: try larger sigmas=, and see that the model uses the "
            "weights of this space"
        )

    @property
    def reached(self) -> bool:
        """Whether the asked share changes at any sigma."""
        return max(self.changed) >= self.share


def suggest_sigma(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    share: float = 0.05,
    sigmas: Sequence[float] = SIGMAS,
    draws: int = 4,
    space: Space | None = None,
    scale: ScaleKind = "rms",
    noise: NoiseKind = "normal",
    seed: int = 0,
) -> SigmaSuggestion:
    """Measure the share of changed predictions as sigma grows, and where it is `share`.

    Args:
        model: a classifier, or one for regression, whose targets are numbers other than 0 and 1;
            its weights, buffers and modes are left as they were.
        batches: as for `Fitness`; targets tell how outputs are read, and the unit of regression.
        share: of predictions to change, in (0, 1).
        sigmas: values to try, rising, in units of `scale`. Stops after the first at which half
            of the predictions change.
        draws: noisy copies for each sigma.
        space: which weights are moved.
        scale: ``"rms"`` or ``"absolute"``, as the strategy to be used has it.
        noise: ``"normal"`` or ``"uniform"``.
        seed: of the noise.

    Warns where the share is reached at no sigma.

    Raises:
        ValueError: a share outside (0, 1), no sigmas, fewer than one draw; targets of a regression
            that are all the same.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))
        >>> batches = [(torch.randn(200, 4), torch.zeros(200, dtype=torch.long))]
        >>> found = suggest_sigma(model, batches)
        >>> 0.0001 < found.sigma < 1
        True
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if not sigmas or sorted(sigmas) != list(sigmas) or sigmas[0] <= 0:
        raise ValueError(f"sigmas must be positive and rising, got {list(sigmas)}")
    space = space or AllWeights()
    predict = _Predictions(model, batches)
    slots = slots_of_module(model)
    if space.needs_head:
        slots = with_head(slots, predict.fitness)
    tried, changed, spread = [], [], []
    with Undoing(), preserved_rng():
        check_numbers(space.touched(slots), slots)
        genome = space.open(slots)
        live = slots.live
        workspace = Workspace(space, genome, {name: live[name] for name in genome.center})
        with Undoing(workspace.restore):
            before = predict(seed)
            for sigma in sigmas:
                strategy = RandomMutation(sigma, population=draws, scale=scale, noise=noise)
                shares = []
                for i in range(draws):
                    workspace.write(strategy.member(genome, {}, 0, i, seed))
                    shares.append(predict.share_changed(before, predict(seed)))
                tried.append(float(sigma))
                changed.append(sum(shares) / draws)
                spread.append(float(torch.tensor(shares).std(correction=0)))
                if changed[-1] >= max(0.5, share):
                    break
    sigma = _interpolate(tried, changed, share)
    if not any(changed):
        sigma = math.nan
    found = SigmaSuggestion(sigma, share, tuple(tried), tuple(changed), tuple(spread), predict.what)
    if not found.reached:
        warn(found._conclusion())
    return found


def _nothing(*_: Any) -> float:
    return 0.0


class _Predictions:
    """The predicted classes (or numbers) of all examples, leaving no trace in the model."""

    def __init__(self, model: nn.Module, batches: Iterable[Any]) -> None:
        self.fitness = Fitness(model, batches, _nothing)
        self.model = model
        targets = [unweighted(targets) for _, targets in self.fitness.examples().batches]
        self.targets = as_numbers(concatenate(targets), "suggest_sigma")
        self.unit: float | None = None  # of a regression's outputs
        if self.targets.is_floating_point() and not bool(
            ((self.targets >= 0) & (self.targets <= 1)).all()
        ):
            self.unit = float(self.targets.double().std())
            if not self.unit > 0:
                raise InputError(
                    f"the targets are all {float(self.targets.reshape(-1)[0]):g}, so there is no "
                    "unit in which outputs change: give examples whose targets differ"
                )

    @property
    def what(self) -> str:
        """What is compared."""
        return "predictions" if self.unit is None else "outputs"

    def share_changed(self, before: Tensor, after: Tensor) -> float:
        """Return the share of predictions that differ, or how far outputs are apart."""
        if self.unit is None:
            return float((after != before).double().mean())
        return float((after.double() - before.double()).square().mean().sqrt()) / self.unit

    def __call__(self, seed: int) -> Tensor:
        seed_everything(seed)
        with Undoing(ModuleState(self.model).restore):
            examples = self.fitness.examples()
            outputs = self.fitness.score(examples, keep_outputs=True).outputs
        return predictions(outputs, self.targets) if self.unit is None else outputs


def _interpolate(sigmas: Sequence[float], changed: Sequence[float], share: float) -> float:
    """Find where `changed` crosses `share`, linear in log sigma."""
    if changed[0] >= share:
        return sigmas[0]
    pairs = list(zip(sigmas, changed, strict=True))
    for (low, below), (high, above) in pairwise(pairs):
        if below < share <= above:
            part = (share - below) / (above - below)
            return math.exp(math.log(low) + part * (math.log(high) - math.log(low)))
    return sigmas[-1]
