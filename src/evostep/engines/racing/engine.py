"""Racing: a member that cannot win any more is not scored on the rest of the examples.

For strategies of which only the best member counts (`RandomMutation`, `RandomSearch`). All members
see the same examples, some at a time; after each time a bound on paired differences (`bounds`) says
who cannot win any more, and these are dropped. Where a candidate that does not beat the parent is
of no use, the parent competes, too, and nobody may be left.

Examples that are likely to change come first. A mutation changes a prediction where the parent was
in doubt: where mutations changed 3% of the predictions, about nine tenths of these were in the
tenth of the examples with the smallest margins (benchmarks/racing.py). So examples are sorted into
groups, by the parent's margin where the metric is accuracy and by the parent's score otherwise; the
first look sees as large a share of each, and later ones see more of those where scores differ more.
Within a group the order is random, and estimates weigh each group by its size, so that they hold
whatever the groups are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from evostep.engines.base import CannotScore, Engine
from evostep.engines.inplace import InPlace
from evostep.engines.racing.bounds import Strata, looks, quantile
from evostep.engines.racing.race import Race
from evostep.engines.racing.rows import Rows
from evostep.genome.point import Coordinates, Tensors
from evostep.noise import derive_seed, make_generator
from evostep.scoring.evaluator import Evaluator
from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Outcome
from evostep.spaces.workspace import Workspace

_GROUPS = 16  # of examples that are alike
_EACH = 8  # of a group at the first look, or there are fewer groups
_PAYS_FROM = 1000  # examples: of fewer, most members see nearly all
_LARGE = 2**30  # multiplications for a member without convolutions: see benchmarks/racing.py
_TOLERANCE = 1e-3  # of an example's score, when it is batched with others
_BEYOND = 0.005  # share of the examples that may lie farther: predictions at a tie


@dataclass(frozen=True)
class Racing(Engine):
    """Drops members as soon as they cannot win.

    Which member is proposed, and whether it is accepted, is as with full scoring in at least
    `confidence` of the generations. The best member is scored in full; what is told of one that
    was dropped is an estimate, below the best. An example's score must not depend on the examples
    with which it is batched: that is checked on the parent in each phase. Examples are copied into
    new batches, at most a quarter of them at a time.

    Args:
        confidence: in (0, 1).
        first: how much the first look sees: a share of the examples, or a number of them.
        over: how members are scored on some of the examples: in place, or by an engine that takes
            any examples, such as `Vmap` or `SharedProduct`.

    Raises:
        ValueError: a confidence or a share outside (0, 1), a number below 1.

    Example:
        >>> from evostep import Evolution, Fitness, RandomMutation
        >>> x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
        >>> model = torch.nn.Linear(4, 4, bias=False)
        >>> _ = torch.nn.init.eye_(model.weight)
        >>> fitness = Fitness(model, [(x, x.argmax(1))], "accuracy")
        >>> search = Evolution(model, RandomMutation(sigma=0.3, population=16), engine=Racing())
        >>> search.evolve(fitness)[0].sample_forwards < 17 * 2000 / 3
        True
    """

    confidence: float = 0.99
    first: float | int = 1 / 16
    over: Engine = field(default_factory=InPlace)
    name: ClassVar[str] = "racing"
    # the parent's margins in this generation, batch by batch
    _margins: list[Tensor | None] = field(
        default_factory=list, compare=False, repr=False, init=False
    )
    # holds one item once the parent was checked in this phase
    _checked: list[bool] = field(default_factory=list, compare=False, repr=False, init=False)

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        whole = isinstance(self.first, int)
        if isinstance(self.first, bool) or not (self.first >= 1 if whole else 0 < self.first < 1):
            raise ValueError(
                f"first must be a share between 0 and 1 or a number of examples, got {self.first!r}"
            )

    def refusal(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> str | None:
        """Return why members cannot race."""
        fitness = evaluator.fitness
        if evaluator.competition is None:
            return "the strategy learns from the score of every member: race RandomMutation"
        if not isinstance(fitness, Fitness):
            return "a bare callable has no examples: give an evostep.Fitness"
        if fitness.gives_per_example is False:
            return f"the metric {fitness.metric!r} has no score for each example"
        if evaluator.calibrates:
            return "calibration= would estimate BatchNorm statistics again at every look"
        if fitness.mode == "train":
            return "in mode='train' an example's score depends on the others in its batch"
        return self.over.refusal(members, workspace, evaluator)

    def pays(self, workspace: Workspace, evaluator: Evaluator) -> bool:
        """Return whether there are examples enough, and members cost more than writing them."""
        fitness = evaluator.fitness
        assert isinstance(fitness, Fitness), "refusal() comes first"
        if evaluator.cost < _PAYS_FROM:
            return False
        if any(isinstance(module, _ConvNd | nn.RNNBase) for module in fitness.model.modules()):
            return True
        matrices = sum(p.numel() for p in fitness.model.parameters() if p.dim() >= 2)
        return matrices * evaluator.cost >= _LARGE

    @contextmanager
    def around_parent(self, workspace: Workspace, evaluator: Evaluator) -> Iterator[None]:
        """Take note of the margins of the parent's predictions, where accuracy is the metric."""
        self._margins.clear()
        if _is_accuracy(evaluator):
            evaluator.watch = lambda outputs, _: self._margins.append(margin(outputs))
        try:
            with self.over.around_parent(workspace, evaluator):
                yield
        finally:
            evaluator.watch = None

    def score(
        self, members: Sequence[Coordinates], workspace: Workspace, evaluator: Evaluator
    ) -> list[Outcome]:
        """Race the members; the weights are the center's again afterwards, whatever is raised."""
        parent = evaluator.parent
        assert parent is not None, "the parent is scored first"
        assert evaluator.examples is not None, "refusal() comes first"
        n = len(evaluator.examples)
        stops = looks(n, self._first(n))
        if not stops or not math.isfinite(parent.value):  # nothing to compare with
            return self.over.score(members, workspace, evaluator)
        if parent.per_example is None or len(parent.per_example) != n:
            raise CannotScore("the metric has no score for each example")
        rows = Rows(evaluator.examples)
        if not self._checked:
            self._check(parent.per_example.cpu(), rows, stops[0], workspace, evaluator)
            self._checked.append(True)

        def score(some: Sequence[int], numbers: Tensor) -> tuple[list[Outcome], Tensor]:
            examples, order = rows.take(numbers)
            standing = [members[i] for i in some]
            return self.over.score(standing, workspace, evaluator.on(examples)), order

        # two comparisons at each look: with the leader, and with the parent
        level = (1 - self.confidence) / (2 * len(stops))
        race = Race(
            parent,
            self._strata(evaluator, parent.per_example),
            score,
            beats_parent=evaluator.competition is not None and evaluator.competition.beats_parent,
            within_one=_is_accuracy(evaluator),
            z=quantile(level),
        )
        return race.run(len(members), [*stops, n])

    def close(self) -> None:
        """Forget what was noted of the parent; it is checked again in the next phase."""
        self._margins.clear()
        self._checked.clear()
        self.over.close()

    def _first(self, n: int) -> int:
        """Return how many of n examples the first look sees."""
        first = self.first if isinstance(self.first, int) else math.ceil(self.first * n)
        return min(first, n)

    def _strata(self, evaluator: Evaluator, doubt: Tensor) -> Strata:
        """Group the examples by the parent's margins, or by its scores `doubt`, (n,)."""
        n = len(doubt)
        margins = [part for part in self._margins if part is not None]
        if sum(len(part) for part in margins) == n:
            doubt = torch.cat(margins)
        key = derive_seed(evaluator.seed, evaluator.generation, "order of examples")
        generator = make_generator(key)
        order = torch.randperm(n, generator=generator)  # equals stay in a random order
        order = order[doubt.cpu()[order].argsort(stable=True)]
        return Strata(order, max(1, min(_GROUPS, self._first(n) // _EACH)), generator)

    def _check(
        self, among: Tensor, rows: Rows, count: int, workspace: Workspace, evaluator: Evaluator
    ) -> None:
        """Score the parent on some examples, every k-th; `among` are its scores in one go.

        Raises:
            CannotScore: these examples score otherwise alone than among all.
        """
        some = torch.arange(0, len(among), max(1, len(among) // count))
        examples, numbers = rows.take(some)
        center = Tensors(workspace.genome.center)
        (outcome,) = self.over.score([center], workspace, evaluator.on(examples))
        alone = outcome.scores.per_example
        if alone is None or len(alone) != len(numbers):
            why = outcome.error or f"the metric gave {_count(alone)} scores for {len(numbers)}"
            raise CannotScore(f"some of the examples cannot be scored alone: {why}")
        expected = among[numbers]
        near = (alone.cpu() - expected).abs() <= _TOLERANCE * expected.abs().clamp(min=1.0)
        if int((~near).sum()) > max(1, math.ceil(_BEYOND * len(numbers))):
            raise CannotScore("the score of an example depends on the others in its batch")


def _is_accuracy(evaluator: Evaluator) -> bool:
    return isinstance(evaluator.fitness, Fitness) and evaluator.fitness.metric == "accuracy"


def _count(scores: Tensor | None) -> int:
    return 0 if scores is None else len(scores)


def margin(outputs: Any) -> Tensor | None:
    """Return how far each prediction is from another one, shape (n,); None for unknown outputs.

    Args:
        outputs: logits as for `evostep.scoring.metrics.predictions`: (n, classes, ...), or (n,) or
            (n, 1) for one binary label. The distance of the two highest, or from 0; the mean over
            positions.

    Example:
        >>> margin(torch.tensor([[1.0, 4.0, 2.0], [0.0, 0.0, 0.0]])).tolist()
        [2.0, 0.0]
        >>> margin(torch.tensor([[-3.0]])).tolist()
        [3.0]
    """
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.ndim == 0:
        return None
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        distance = outputs.abs()
    else:
        highest = outputs.topk(2, dim=1).values
        distance = highest[:, 0] - highest[:, 1]
    return distance.double().reshape(len(outputs), -1).mean(1)
