"""CMA-ES: evolution strategy that learns a full covariance matrix, for few coordinates.

Hansen & Ostermeier 2001, https://doi.org/10.1162/106365601750190398; Hansen 2016, "The CMA
Evolution Strategy: A Tutorial", https://arxiv.org/abs/1604.00772. The algorithm itself is the
package `cma` (https://github.com/CMA-ES/pycma), active covariance update included. What differs:
its normal numbers come from `evostep.noise`, so that a member is a function of (seed, generation,
member), no global stream is touched, and a saved search goes on with the same bits.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from evostep.errors import needs_package
from evostep.genome.point import Coordinates, Genome, Tensors, root_mean_square
from evostep.noise import draw
from evostep.strategies.base import NoiseStrategy, State, Step

MAX_COORDINATES = 2000  # the matrix has d^2 entries, and its eigenvectors take d^3 operations


@dataclass(frozen=True)
class CMAES(NoiseStrategy):
    """Search with a normal distribution whose covariance matrix is learned; needs ``evostep[cma]``.

    The center is the distribution's mean, and the mean is what is proposed, not the best member:
    it averages luck out. Judge it by phase where the rule can, since single steps are small. After
    a rejection the mean goes back to where it was (one generation, or where the search began), the
    learned covariance and step size stay. Where something else moved the weights (gradient steps,
    a space that was opened again), or sigma, scale or population changed, a new search begins.

    Members whose scores are equal are ranked in the order in which they were drawn, so a tie is
    decided by chance, but equal scores all over leave everything as it is. Scores that are not
    finite rank last.

    The saved state is where the search began and the log of its scores. Loading it replays the
    log, which takes as long as the search did, scoring excepted, and gives the same bits on the
    same machine with the same number of threads. Between generations the mean is kept in double
    precision; the center is its rounding to the weights' type.

    Args:
        sigma: standard deviation at the start, in units of `scale`: about a third of the distance
            to where the best is expected.
        population: members in a generation, the parent not counted; at least 3. None:
            4 + floor(3 ln d) for d coordinates, known when the search begins (`size_for`).
        scale: ``"rms"`` (relative to each tensor's root mean square when the search began) or
            ``"absolute"``.
        noise: ``"normal"``: the algorithm is that of a normal distribution.

    Raises:
        ValueError: sigma <= 0, a population below 3, an unknown scale, another noise; later, when
            it meets the weights, more than 2,000 coordinates, none, or no package `cma`.

    Example:
        >>> import torch
        >>> from evostep import Evolution, Always
        >>> w = torch.tensor([3.0, -2.0])
        >>> strategy = CMAES(sigma=1.0, population=6, scale="absolute")
        >>> search = Evolution({"w": w}, strategy, accept=Always())
        >>> records = search.evolve(lambda: -float(w.square().sum()), generations=60)
        >>> bool(w.norm() < 0.001)
        True
    """

    population: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.population is not None and self.population < 3:
            raise ValueError(f"population must be at least 3, or None, got {self.population}")
        if self.noise != "normal":
            raise ValueError(
                f"CMAES moves a normal distribution, so noise must be 'normal', got {self.noise!r}"
            )

    @cached_property
    def _running(self) -> _Running:
        return _Running()

    @property
    def size(self) -> int:
        """The population; raises ValueError where it depends on the coordinates."""
        if self.population is None:
            raise ValueError("population is None: size_for(genome) tells it, or pass a population")
        return self.population

    def size_for(self, genome: Genome) -> int:
        """The population, by default 4 + floor(3 ln d) for d coordinates."""
        if self.population is not None:
            return self.population
        d = sum(genome.sizes[name] for name in self._moving(genome))
        return 4 + int(3 * math.log(max(d, 1)))

    def init(self, genome: Genome) -> State:
        """Return ``{}``: the search begins at the first center that it meets."""
        d = sum(genome.sizes[name] for name in self._moving(genome))
        if d == 0:
            raise ValueError("CMAES has nothing to move: sigma is 0 for every parameter")
        if d > MAX_COORDINATES:
            raise ValueError(
                f"CMAES moves at most {MAX_COORDINATES:,} coordinates, got {d:,}: take a smaller "
                "space, such as Only('norm'), Only('head') or a Span of checkpoints, or SNES"
            )
        _import_cma()
        return {}

    def member(
        self, genome: Genome, state: State, generation: int, i: int, seed: int
    ) -> Coordinates:
        """Return member `i`: mean + sigma * C^(1/2) * eps_i."""
        search, _ = self._search(genome, state, generation, seed)
        return Tensors({**genome.center, **search.member(i)})

    def tell(
        self,
        genome: Genome,
        state: State,
        generation: int,
        scores: Sequence[float],
        parent: float,
        seed: int,
    ) -> tuple[Step | None, State]:
        """Propose the new mean; learn nothing where all scores are equal."""
        finite = [float(score) if math.isfinite(score) else -math.inf for score in scores]
        if len(set(finite)) < 2:
            return None, state
        search, told = self._search(genome, state, generation, seed)
        assert search.drawn is not None, "_search() draws"
        back = search.drawn[1]
        self._running.drop()  # an interrupt in the midst of an update leaves nothing half told
        search.tell(finite)
        told = {
            **told,
            "generations": [*told["generations"], generation],
            "back": [*told["back"], back],
            "scores": [*told["scores"], finite],
            "digest": _digest(told["digest"], repr((generation, back, finite))),
        }
        self._running.keep(search, told["digest"], seed)
        return Step(Tensors({**genome.center, **search.proposed})), told

    def _moving(self, genome: Genome) -> list[str]:
        return [name for name in genome.center if self.sigma_of(genome, name) != 0]

    def _search(
        self, genome: Genome, state: State, generation: int, seed: int
    ) -> tuple[_Search, State]:
        """Return the search with this generation drawn, and the state that leads to it."""
        sigma = {name: self.sigma_of(genome, name) for name in self._moving(genome)}
        back = None
        settings = {
            "sigma": sigma,
            "scale": self.scale,
            "population": self.size_for(genome),
            **_what_stands_still(genome, sigma),
        }
        if state and all(state.get(key) == settings.get(key) for key in (*settings, "fixed")):
            back = self._after(genome, state, seed).standing(genome)
        if back is None:
            state, back = self._begun(genome, sigma), _STAYED
        search = self._after(genome, state, seed)
        if not search.can_draw(back):
            self._running.drop()
            search = self._after(genome, state, seed)
        if search.drawn != (generation, back):
            self._running.drop()  # an interrupt in the midst of it leaves nothing half drawn
            search.draw(generation, back)
            self._running.keep(search, state["digest"], seed)
        return search, state

    def _after(self, genome: Genome, state: State, seed: int) -> _Search:
        """Return the search after the log that `state` holds: the one that runs, or a replayed."""
        search = self._running.get(state["digest"], seed)
        if search is None:
            unit = root_mean_square(state["start"], genome.fixed) if self.scale == "rms" else {}
            spread = {name: sigma * unit.get(name, 1.0) for name, sigma in state["sigma"].items()}
            search = _Search(state["start"], spread, self.size_for(genome), seed, genome.fixed)
            log = zip(state["generations"], state["back"], state["scores"], strict=True)
            for generation, back, scores in log:
                search.draw(generation, back)
                search.tell(scores)
            self._running.keep(search, state["digest"], seed)
        return search

    def _begun(self, genome: Genome, sigma: dict[str, float]) -> State:
        """Return the state of a search that begins at the genome's center."""
        start = {name: genome.center[name].detach().clone() for name in sigma}
        values = [start[name].double().cpu().numpy().tobytes() for name in sigma]
        kinds = [
            f"{name} {tensor.dtype} {self.scale} {sigma[name]!r}" for name, tensor in start.items()
        ]
        fixed = _what_stands_still(genome, sigma)
        return {
            "start": start,
            "sigma": sigma,
            "scale": self.scale,
            "population": self.size_for(genome),
            "generations": [],
            "back": [],
            "scores": [],
            **fixed,
            "digest": _digest(*kinds, *values, *fixed.values()),
        }


# Where a center stands that this search left behind, when the next generation begins.
_STAYED, _ONE_BACK, _AT_START = 0, 1, 2


class _Search:
    """One run of the package `cma`, in coordinates z: weights = start + spread * z.

    Args:
        start: name -> where z = 0.
        spread: name -> standard deviation at the start, in units of the weights.
        population: members of a generation.
        seed: of the noise.
        fixed: name -> which entries stand still: z has none for them.
    """

    def __init__(
        self,
        start: dict[str, Tensor],
        spread: dict[str, float],
        population: int,
        seed: int,
        fixed: Mapping[str, Tensor],
    ) -> None:
        self.start, self.spread, self.seed = start, spread, seed
        self._moving = {
            name: (~fixed[name]).expand_as(tensor).cpu().flatten().nonzero().squeeze(1)
            for name, tensor in start.items()
            if name in fixed
        }
        self.drawn: tuple[int, int] | None = None  # generation, back
        self.members: list[Any] = []
        d = sum(self._size(name) for name in start)
        options = {"popsize": population, "randn": self._randn, "verbose": -9}
        # NaN leaves NumPy's global stream alone; mirrors (below 6 members) belong to ask_and_eval
        options |= {"seed": math.nan, "CMA_mirrors": 0}
        cma = _import_cma()
        with _quiet():
            self.es = cma.CMAEvolutionStrategy([0.0] * d, 1.0, options)
        self.parent = self._mean()  # the mean before the last update
        self.proposed = self._tensors(self._mean())

    def _size(self, name: str) -> int:
        moving = self._moving.get(name)
        return self.start[name].numel() if moving is None else len(moving)

    def standing(self, genome: Genome) -> int | None:
        """Return which of this search's means the center is; None: something else moved it."""
        for back in (_STAYED, _ONE_BACK, _AT_START):
            if back == _STAYED:
                tensors = self.proposed
            else:
                tensors = self._tensors(self.parent) if back == _ONE_BACK else self.start
            if all(_equal(genome.center[name], tensors[name]) for name in self.start):
                return back
        return None

    def can_draw(self, back: int) -> bool:
        """Return whether `draw` does what a replayed search would: no other mean was taken up."""
        return self.drawn is None or self.drawn[1] == back

    def draw(self, generation: int, back: int) -> None:
        """Draw the members of a generation, from the mean at which the center stands."""
        assert self.can_draw(back), "the mean cannot go back twice"
        if self.drawn is None and back != _STAYED:
            z = self.parent if back == _ONE_BACK else 0.0 * self.parent
            self.es.mean = self.es.gp.geno(z)
        self.drawn = (generation, back)
        with _quiet():
            self.members = self.es.ask()

    def tell(self, scores: Sequence[float]) -> None:
        """Update the distribution; of equal scores the one drawn first ranks higher."""
        costs = [0.0] * len(scores)
        for rank, i in enumerate(sorted(range(len(scores)), key=lambda i: -scores[i])):
            costs[i] = float(rank)
        self.parent = self._mean()
        with _quiet():
            self.es.tell(self.members, costs)
        self.proposed = self._tensors(self._mean())
        self.drawn = None

    def member(self, i: int) -> dict[str, Tensor]:
        """Return member `i` of the generation drawn."""
        return self._tensors(self.members[i])

    def _mean(self) -> Any:
        return self.es.gp.pheno(self.es.mean)

    def _tensors(self, z: Any) -> dict[str, Tensor]:
        """Return the weights at z, in the weights' own type."""
        tensors, offset = {}, 0
        for name, start in self.start.items():
            size, moving = self._size(name), self._moving.get(name)
            part = torch.as_tensor(z[offset : offset + size], dtype=torch.float64)
            if moving is not None:
                part = torch.zeros(start.numel(), dtype=torch.float64).index_copy(0, moving, part)
            moved = part.reshape(start.shape) * self.spread[name] + start.cpu().double()
            tensors[name] = moved.to(start)
            offset += size
        return tensors

    def _randn(self, population: int, d: int) -> Any:
        """Return the standard normal numbers of the generation under way, one row per member."""
        assert self.drawn is not None, "draw() comes first"
        rows = []
        for i in range(population):
            parts = [
                draw(
                    "normal",
                    torch.empty(tensor.numel(), dtype=torch.float64),
                    seed=self.seed,
                    generation=self.drawn[0],
                    member=i,
                    name=name,
                )
                for name, tensor in self.start.items()
            ]
            parts = [
                part[self._moving[name]] if name in self._moving else part
                for name, part in zip(self.start, parts, strict=True)
            ]
            rows.append(torch.cat(parts))
        return torch.stack(rows).numpy()


class _Running:
    """The searches under way, found by what led to them; never saved and never copied.

    Two are kept, for the one that was left and the one that begins where something else moved the
    weights.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], _Search] = {}

    def get(self, digest: str, seed: int) -> _Search | None:
        """Return the search that this log led to, if it is at hand."""
        return self._kept.get((digest, seed))

    def keep(self, search: _Search, digest: str, seed: int) -> None:
        """Keep a search; the one before the last goes."""
        self._kept[digest, seed] = search
        while len(self._kept) > 2:
            del self._kept[next(iter(self._kept))]

    def drop(self) -> None:
        """Forget everything: it can be replayed."""
        self._kept.clear()

    def __reduce__(self) -> tuple[type[_Running], tuple[()]]:
        return _Running, ()


def _what_stands_still(genome: Genome, names: Iterable[str]) -> dict[str, str]:
    """Return a digest of the coordinates that stand still, under ``"fixed"``, if there are any."""
    masks = [
        part
        for name in names
        if name in genome.fixed
        for part in (name, genome.fixed[name].cpu().numpy().tobytes())
    ]
    return {"fixed": _digest(*masks)} if masks else {}


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _equal(center: Tensor, other: Tensor) -> bool:
    return torch.equal(center, other.to(center.device)) if center.dtype == other.dtype else False


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's warnings, and its changes to the filters of warnings, to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _import_cma() -> Any:
    try:
        with _quiet():
            import cma
    except ImportError as error:
        raise needs_package("CMAES", "cma", "evostep[cma]", error) from error
    return cma
