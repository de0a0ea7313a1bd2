"""Guided ES: evolution that looks more along directions which are likely to matter.

Maheswaranathan, Metz, Tucker, Choi, Sohl-Dickstein 2018, "Guided evolutionary strategies:
augmenting random search with surrogate gradients", https://arxiv.org/abs/1806.10230. The guiding
directions are free in a hybrid: the base optimizer's last gradients and its momentum buffers.

What differs: sigma is that of one coordinate, as everywhere in this library (the paper's is the
length of the whole perturbation, sqrt(n) times as much), so that ``alpha=1`` is antithetic
`OpenAIES`; scores may be ranked; several pairs make a step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from evostep.genome.members import Mirror
from evostep.genome.point import Coordinates, Genome
from evostep.noise import draw, weighted_sum
from evostep.strategies.base import NoiseStrategy, State, Step, check_pairs
from evostep.strategies.shaping import Shaping, shape_scores

GuidedShaping = Shaping | Literal["difference"]
_SHAPINGS: tuple[str, ...] = (*get_args(Shaping), "difference")
# A direction this close to the span of those before it (the square of the sine of the angle) is
# one of them as far as float32 can tell.
_NEW_DIRECTION = 1e-8


@dataclass(frozen=True)
class GuidedES(NoiseStrategy):
    """Estimate the gradient of fitness from pairs that spread along guiding directions.

    With Q an orthonormal basis of the k guides, n coordinates and standard normal z1, z2::

        eps = sigma * (sqrt(alpha) * z1 + sqrt(n * (1 - alpha) / k) * Q z2)
        step = lr / (2 * sigma^2 * pairs) * sum over pairs of (f(+eps) - f(-eps)) * eps

    Noise has the same expected length for each alpha: the share 1 - alpha of its square lies along
    the guides, and the rest everywhere. The expected step never points against the gradient of
    fitness, be the guides good or useless. Few directions carry much of the noise, so a sigma
    below that of `OpenAIES` may be wanted where the network is large.

    All of it holds in the coordinates in which noise is isotropic: weights divided by their scale
    (`scale="rms"`: each tensor's root mean square), and by a parameter group's own sigma over the
    strategy's; that sigma so scales noise and step alike. Guides are gradients, so they transform
    the other way round, which keeps the subspace that of the gradient in those coordinates.

    Guides are taken by `Evolved.evolve` after a gradient step: from each weight's ``grad`` (kept
    until then, not reset by ``zero_grad``) and ``momentum_buffer`` or ``exp_avg``. They stay until
    the next gradient step, are part of the saved state, and cost memory as two copies of the
    weights. Give an `Evolution` its own by `Evolution.guide`. Those that are zero, not finite or
    dependent on the others are left out; where none is left, the strategy is plain antithetic ES
    (alpha = 1), and `evolve` warns once.

    Args:
        sigma: standard deviation of the noise, in units of `scale`.
        lr: step size, in units of `scale` squared per unit of utility (see `OpenAIES`).
        population: members in a generation, two for each pair; even.
        alpha: share of the noise that is isotropic, in [0, 1]; 0: along the guides alone.
        shaping: ``"centered-rank"`` or ``"z-score"`` over all members; ``"difference"``: the
            scores as they are, which is the paper's. A member that failed counts as the worst.
        scale: ``"rms"`` (relative to each tensor's root mean square) or ``"absolute"``.
        noise: ``"normal"``.

    Raises:
        ValueError: sigma or lr <= 0, a population below 2 or odd, alpha outside [0, 1], an unknown
            shaping or scale, another noise.

    Example:
        >>> import torch
        >>> from evostep import Evolution
        >>> w = torch.linspace(-1, 1, 100)
        >>> strategy = GuidedES(0.05, lr=0.02, population=4, scale="absolute")
        >>> search = Evolution({"w": w}, strategy)
        >>> for _ in range(40):
        ...     search.guide({"w": w + 0.1})  # a gradient, somewhat wrong
        ...     records = search.evolve(lambda: -float(w.square().sum()))
        >>> bool(w.norm() < 3)  # it was 5.8
        True
    """

    needs_guides: ClassVar[bool] = True

    lr: float = 0.002
    population: int = 32
    alpha: float = 0.5
    shaping: GuidedShaping = "centered-rank"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr must be a finite number > 0, got {self.lr}")
        check_pairs(self.population)
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must lie in [0, 1], got {self.alpha}")
        if self.shaping not in _SHAPINGS:
            raise ValueError(f"shaping must be one of {', '.join(_SHAPINGS)}, got {self.shaping!r}")
        if self.noise != "normal":
            raise ValueError(f"GuidedES draws noise='normal' alone, got {self.noise!r}")

    @property
    def size(self) -> int:
        """The population."""
        return self.population

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return member `i`; member 2k + 1 is the mirror image of 2k, whose noise is k."""
        member = _moved(self, genome, seed, generation, {i // 2: 1.0}, self.sigma)
        return Mirror(member, genome) if i % 2 else member

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the step; stay where the scores of every pair are equal."""
        f = _finite(scores) if self.shaping == "difference" else shape_scores(scores, self.shaping)
        weights = {i: w for i, w in enumerate((f[0::2] - f[1::2]).tolist()) if w}
        if not weights:
            return None, state
        length = self.lr / (self.population * self.sigma)  # 2 * pairs = population
        return Step(_moved(self, genome, seed, generation, weights, length)), state

    def unit_of(self, genome: Genome, name: str) -> float:
        """Return the length of one isotropic unit of `name`, in units of the weights."""
        return self.scale_of(genome, name) * self.sigma_of(genome, name) / self.sigma


def orthonormal_rows(gram: Tensor) -> Tensor:
    """Orthonormalise vectors of which only the inner products are known.

    Gram-Schmidt, in the order of the vectors, carried out on coefficients: the vectors themselves
    (as large as the network) are read once, for the products. Vectors that are zero, not finite or
    dependent on those before them give no row.

    Args:
        gram: (k, k) float64, the inner products of v_1 ... v_k.

    Returns:
        (rank, k) float64 coefficients C, so that the rows of ``C @ [v_1 ... v_k]`` are orthonormal.

    Example:
        >>> v = torch.tensor([[2.0, 0.0], [4.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
        >>> (orthonormal_rows(v @ v.T) @ v).tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    k = len(gram)
    length = gram.diagonal().clamp(min=0).sqrt()
    usable = [i for i in range(k) if math.isfinite(length[i]) and length[i] > 0]
    # correlations: products of vectors of length 1, and nothing that is not finite among them
    unit = gram[usable][:, usable] / length[usable].outer(length[usable])
    rows: list[Tensor] = []
    for i in range(len(usable)):
        row = torch.zeros(len(usable), dtype=torch.float64)
        row[i] = 1.0
        for _ in range(2):  # the second pass takes away what rounding left
            for q in rows:
                row = row - (q @ unit @ row) * q
        rest = float(row @ unit @ row)
        if rest > _NEW_DIRECTION:
            rows.append(row / math.sqrt(rest))
    basis = torch.zeros(len(rows), k, dtype=torch.float64)
    for j, row in enumerate(rows):
        basis[j, usable] = row / length[usable]
    return basis


def _finite(scores: Sequence[float]) -> Tensor:
    """Return the scores, those that are not finite as the worst of the others (0 where none is)."""
    values = torch.as_tensor(scores, dtype=torch.float64)
    finite = values.isfinite()
    worst = values[finite].min() if finite.any() else torch.zeros((), dtype=torch.float64)
    return torch.where(finite, values, worst)


def _moved(
    strategy: GuidedES,
    genome: Genome,
    seed: int,
    generation: int,
    weights: Mapping[int, float],
    length: float,
) -> _Moved:
    """Return center + length * sum_i weights_i * eps_i / sigma."""
    moving = [name for name in genome.center if strategy.sigma_of(genome, name) != 0]
    units = torch.tensor([strategy.unit_of(genome, name) for name in moving], dtype=torch.float64)
    along: tuple[float, ...] = ()
    alpha = strategy.alpha
    if genome.guides and moving:
        products = torch.stack([genome.gram[name] for name in moving])  # (names, k, k)
        basis = orthonormal_rows((products * units[:, None, None].square()).sum(0))
        rank = len(basis)
        z2 = torch.zeros(rank, dtype=torch.float64)
        for i, weight in weights.items() if rank else ():
            z2 += weight * draw(
                "normal", z2, seed=seed, generation=generation, member=f"{i} of guides", name=""
            )
        if rank:
            n = sum(genome.sizes[name] for name in moving)
            along = tuple((math.sqrt(n * (1 - alpha) / rank) * (z2 @ basis)).tolist())
    # no direction to follow: all of the noise is isotropic
    everywhere = math.sqrt(alpha) if along else 1.0
    return _Moved(strategy, genome, seed, generation, weights, length, everywhere, along)


@dataclass(frozen=True)
class _Moved:
    """The center moved along a sum of directions; noise is drawn again, one tensor at a time.

    `everywhere` is the factor of the isotropic noise, `along` that of each guide.
    """

    strategy: GuidedES
    genome: Genome
    seed: int
    generation: int
    weights: Mapping[int, float]
    length: float
    everywhere: float
    along: tuple[float, ...]

    def tensor(self, name: str) -> Tensor:
        """Return the coordinates, float32 or the center's wider type."""
        es, center = self.strategy, self.genome.center[name]
        if es.sigma_of(self.genome, name) == 0:
            return center
        unit = es.unit_of(self.genome, name)
        total = weighted_sum(
            es.noise,
            center,
            {i: weight * self.everywhere for i, weight in self.weights.items()},
            seed=self.seed,
            generation=self.generation,
            name=name,
        )
        self.genome.confine_(name, total)
        for factor, guide in zip(self.along, self.genome.guides, strict=False):
            if factor and name in guide:
                total.add_(guide[name].to(total), alpha=factor * unit)
        return total.mul_(unit * self.length).add_(center)
