"""The races of a phase, and what is noted of the parent for them.

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
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from evostep.engines.base import CannotScore, Engine, Session
from evostep.engines.racing.bounds import Strata, looks, quantile
from evostep.engines.racing.race import Race
from evostep.engines.racing.rows import Rows
from evostep.genome.point import Coordinates, Tensors
from evostep.noise import make_generator
from evostep.scoring.evaluator import Evaluator, Round
from evostep.scoring.fitness import Fitness
from evostep.scoring.scores import Scores
from evostep.spaces.workspace import Workspace

_GROUPS = 16  # of examples that are alike
_EACH = 8  # of a group at the first look, or there are fewer groups
_TOLERANCE = 1e-3  # of an example's score, when it is batched with others
_BEYOND = 0.005  # share of the examples that may lie farther: predictions at a tie


_PAYS_FROM = 1000  # examples: of fewer, most members see nearly all
_LARGE = 2**30  # multiplications for a member without convolutions: see benchmarks/racing.py


class Races(Session[Engine]):
    """Races the members of each generation of a phase.

    Args:
        engine: which opened it.
        workspace: see `Engine.open`.
        evaluator: see `Engine.open`.
        over: scores members on some of the examples.
        confidence: see `Racing`.
        first: see `Racing`.
    """

    def __init__(
        self,
        engine: Engine,
        workspace: Workspace,
        evaluator: Evaluator,
        over: Session[Any],
        confidence: float,
        first: float | int,
    ) -> None:
        super().__init__(engine, workspace, evaluator)
        self.over, self.confidence, self.first = over, confidence, first
        self._margins: list[Tensor | None] = []  # of this generation's parent, batch by batch
        self._checked = False  # whether the parent was, in this phase

    def refusal(self, round: Round, members: Sequence[Coordinates]) -> str | None:
        """Return why members cannot race."""
        fitness = self.evaluator.fitness
        if round.competition is None:
            return "the strategy learns from the score of every member: race RandomMutation"
        if not isinstance(fitness, Fitness):
            return "a bare callable has no examples: give an evostep.Fitness"
        if fitness.gives_per_example is False:
            return f"the metric {fitness.metric!r} has no score for each example"
        if self.evaluator.calibrates:
            return "calibration= would estimate BatchNorm statistics again at every look"
        assert round.examples is not None, "a Fitness has examples"
        if round.examples.streamed:
            return "keep='stream' reads the examples one batch after the other"
        if round.examples.weighted:
            return "examples have weights"
        if fitness.mode == "train":
            return "in mode='train' an example's score depends on the others in its batch"
        return self.over.refusal(round, members)

    def pays(self, round: Round) -> bool:
        """Return whether there are examples enough, and members cost more than writing them."""
        fitness = self.evaluator.fitness
        assert isinstance(fitness, Fitness), "refusal() comes first"
        if round.cost < _PAYS_FROM:
            return False
        if any(isinstance(module, _ConvNd | nn.RNNBase) for module in fitness.model.modules()):
            return True
        matrices = sum(p.numel() for p in fitness.model.parameters() if p.dim() >= 2)
        return matrices * round.cost >= _LARGE

    def parent(
        self,
        round: Round,
        members: Sequence[Coordinates],
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Scores:
        """Score the parent; take note of its predictions' margins, where accuracy is the metric."""
        self._margins.clear()
        if self._is_accuracy:
            watch = self._note_margin
        return self.over.parent(round, members, keep_outputs=keep_outputs, watch=watch)

    def score(self, round: Round, members: Sequence[Coordinates]) -> list[Scores]:
        """Race the members; the weights are the center's again afterwards, whatever is raised."""
        parent, examples = round.parent, round.examples
        assert parent is not None, "the parent is scored first"
        assert examples is not None, "refusal() comes first"
        n = len(examples)
        stops = looks(n, self._first(n))
        if not stops or not math.isfinite(parent.value):  # nothing to compare with
            return self.over.score(round, members)
        if parent.per_example is None or len(parent.per_example) != n:
            raise CannotScore("the metric has no score for each example")
        rows = Rows(examples)
        if not self._checked:
            self._check(round, parent.per_example.cpu(), rows, stops[0])
            self._checked = True

        def score(some: Sequence[int], numbers: Tensor) -> tuple[list[Scores], Tensor]:
            part, order = rows.take(numbers)
            standing = [members[i] for i in some]
            return self.over.score(replace(round, examples=part), standing), order

        # two comparisons at each look: with the leader, and with the parent
        level = (1 - self.confidence) / (2 * len(stops))
        race = Race(
            parent,
            self.strata(round, parent.per_example),
            score,
            beats_parent=round.competition is not None and round.competition.beats_parent,
            # an example weighs more where it has more targets that count
            within_one=self._is_accuracy and float(parent.per_example.max()) <= 1,
            z=quantile(level),
        )
        return race.run(len(members), [*stops, n])

    def close(self) -> None:
        """Forget what was noted of the parent."""
        self._margins.clear()
        self._checked = False
        self.over.close()

    @property
    def _is_accuracy(self) -> bool:
        fitness = self.evaluator.fitness
        return isinstance(fitness, Fitness) and fitness.metric == "accuracy"

    def _note_margin(self, outputs: Any, _: Any) -> None:
        self._margins.append(margin(outputs))

    def _first(self, n: int) -> int:
        """Return how many of n examples the first look sees."""
        first = self.first if isinstance(self.first, int) else math.ceil(self.first * n)
        return min(first, n)

    def strata(self, round: Round, doubt: Tensor) -> Strata:
        """Group the examples by the parent's margins, or by its scores `doubt`, (n,)."""
        n = len(doubt)
        margins = [part for part in self._margins if part is not None]
        if sum(len(part) for part in margins) == n:
            doubt = torch.cat(margins)
        generator = make_generator(round.seed_of("order of examples"))
        order = torch.randperm(n, generator=generator)  # equals stay in a random order
        order = order[doubt.cpu()[order].argsort(stable=True)]
        return Strata(order, max(1, min(_GROUPS, self._first(n) // _EACH)), generator)

    def _check(self, round: Round, among: Tensor, rows: Rows, count: int) -> None:
        """Score the parent on some examples, every k-th; `among` are its scores in one go.

        Raises:
            CannotScore: these examples score otherwise alone than among all.
        """
        some = torch.arange(0, len(among), max(1, len(among) // count))
        examples, numbers = rows.take(some)
        center = Tensors(self.workspace.genome.center)
        with self.evaluator.uncounted():
            (found,) = self.over.score(replace(round, examples=examples), [center])
        alone = found.per_example
        if alone is None or len(alone) != len(numbers):
            why = found.error or f"the metric gave {_count(alone)} scores for {len(numbers)}"
            raise CannotScore(f"some of the examples cannot be scored alone: {why}")
        expected = among[numbers]
        near = (alone.cpu() - expected).abs() <= _TOLERANCE * expected.abs().clamp(min=1.0)
        if int((~near).sum()) > max(1, math.ceil(_BEYOND * len(numbers))):
            raise CannotScore("the score of an example depends on the others in its batch")


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
