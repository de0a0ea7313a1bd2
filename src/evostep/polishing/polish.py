"""`evostep.polish`: from a trained network to a better metric, confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError, warn
from evostep.polishing.bootstrap import DRAWS, Interval, interval, resample
from evostep.polishing.decision import Decision
from evostep.polishing.folds import make_folds
from evostep.polishing.network import fold_in, given_outputs
from evostep.polishing.objective import Objective, parse_objective
from evostep.polishing.optimism import HALVES, optimism
from evostep.polishing.problem import Problem, make_problem
from evostep.polishing.procedure import (
    PULLS,
    CrossFit,
    cross_fit,
    evaluations_a_generation,
)
from evostep.polishing.result import BY_START, IMPROVED, NO_GAIN, Polished
from evostep.polishing.search import Search, Watch
from evostep.polishing.starts import check_prior
from evostep.scoring.batches import Forward
from evostep.scoring.confusion import CONFUSION_METRICS

GENERATIONS = 40
NEAR_PERFECT = 0.995


@dataclass(frozen=True)
class Settings:
    """What polishing was asked for: see `polish`."""

    metric: str
    folds: int = 5
    budget: int | None = None
    population: int = 16
    prior: Any = None
    costs: Any = None
    weights: Any = None
    groups: Sequence[Any] | None = None
    draws: int = DRAWS
    seed: int = 0
    watch: Callable[[float, float], None] | None = None

    def __post_init__(self) -> None:
        if self.population < 2 or self.population % 2:
            raise InputError(
                f"population must be an even number of at least 2, got {self.population}"
            )
        if self.draws < 100:
            raise InputError(f"draws must be at least 100, got {self.draws}")

    @property
    def objective(self) -> Objective:
        """The metric, read."""
        return parse_objective(self.metric, costs=self.costs)

    @property
    def search(self) -> Search:
        """The settings of every search."""
        one = evaluations_a_generation(self.folds, self.population)
        generations = GENERATIONS
        if self.budget is not None:
            generations = self.budget // one
        if not generations:
            raise InputError(
                f"budget must be at least {one}, one generation of all searches, got {self.budget}"
            )
        watch = self._watched(generations * (one + HALVES * (self.folds + 1) * self.population))
        return Search(self.population, generations, seed=self.seed, watch=watch)

    def _watched(self, most: int) -> Watch | None:
        """Return who counts the decisions that are scored, of so many at most."""
        watch, done = self.watch, 0
        if watch is None:
            return None

        def count(scored: int, gain: float) -> None:
            nonlocal done
            done += scored
            watch(min(1.0, done / most), gain)

        return count

    def problem(self, outputs: Any, targets: Any) -> Problem:
        """Return the problem that outputs pose."""
        return make_problem(outputs, targets, weights=self.weights, groups=self.groups)

    def as_dict(self) -> dict[str, Any]:
        """Return what is told of them."""
        return {
            "space": "decision",
            "folds": self.folds,
            "generations": self.search.generations,
            "population": self.population,
            "pulls": list(PULLS),
            "draws": self.draws,
            "seed": self.seed,
        }


def polish(
    model: nn.Module | None,
    examples: Iterable[Any],
    metric: str = "worst-class-recall",
    *,
    space: str = "decision",
    folds: int = 5,
    budget: int | None = None,
    population: int = 16,
    prior: Any = None,
    costs: Any = None,
    weights: Any = None,
    groups: Sequence[Any] | None = None,
    forward: Forward | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    watch: Callable[[float, float], None] | None = None,
) -> Polished:
    """Polish a trained network on the metric that is reported, and confirm the gain.

    **The examples must not be those that the network was trained on**: its outputs there are not
    what it will give on others, and what is chosen on them fails.

    What is evolved are the biases of the decision, one for each output, from logit adjustment on;
    where the gain over the checkpoint is confirmed they are folded into the bias of the last
    layer. All that depends on data is chosen by cross-fitting: each example is judged by a decision
    that has not seen it, and the judged examples see one test.

    Args:
        model: the trained network, changed in place where a gain is confirmed; None: `examples` is
            (outputs, targets), of a black box.
        examples: batches as `Fitness` takes them; (outputs, targets) where there is no model.
        metric: see `parse_objective`: a metric of decisions, a sum, constraints.
        space: ``"decision"``.
        folds: how many parts the examples are split in, at least 3.
        budget: how many decisions may be scored, at least one generation of all searches; None: 40
            generations.
        population: members of a generation, an even number.
        prior: (C,) class frequencies in training, for logit adjustment; None: the examples'.
        costs: (C, C) table of the metric ``cost``, rows are true classes.
        weights: (n,) what each example counts.
        groups: n names; examples of a group (a patient, a sentence) are judged and drawn together.
        forward: ``forward(model, batch) -> (outputs, targets)`` for batches of another form.
        draws: of the bootstrap.
        seed: of folds, noise and draws.
        watch: called as it goes on, with the share that is done and the gain so far, on the
            examples that are searched on.

    Returns:
        The result: its verdict, both contrasts, the way back.

    Raises:
        InputError: labels outside the classes, one class only, fewer examples in a class than
            folds, outputs that are not finite, a metric that cannot be read or that no decision can
            change, a constraint that the checkpoint breaks, a budget below one generation.

    Example:
        >>> import torch
        >>> labels = torch.arange(400) % 2
        >>> outputs = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
        >>> outputs[labels == 1, 1] += 2.0
        >>> outputs[:, 0] += 3.0  # a network that prefers class 0
        >>> polish(None, (outputs, labels), "balanced-accuracy").verdict
        'improved'
    """
    if space != "decision":
        raise InputError(f"space must be 'decision', got {space!r}")
    settings = Settings(
        metric, folds, budget, population, prior, costs, weights, groups, draws, seed, watch
    )
    outputs, targets, layer = given_outputs(model, examples, forward)
    problem = settings.problem(outputs, targets)
    parts = make_folds(problem.strata, folds, seed, problem.groups)
    result = polish_problems(problem, settings, parts)
    if model is not None:
        result.sample_forwards = len(problem)
        if result.verdict != NO_GAIN:
            fold_in(result, problem, layer, model, examples, forward)
    return result


def polish_problems(
    problem: Problem,
    settings: Settings,
    parts: Tensor,
    problem_of: Callable[[int | None], Problem] | None = None,
) -> Polished:
    """Run the procedure on outputs that are there, and judge it.

    Args:
        problem: outputs and targets.
        settings: what is asked for.
        parts: (n,) the fold of each example.
        problem_of: see `evostep.polishing.procedure.cross_fit`.
    """
    objective = settings.objective
    _check(problem, objective, settings.costs)
    prior = check_prior(settings.prior, problem)
    search = settings.search  # one for all, so that it counts on
    found = cross_fit(problem, objective, parts, search, prior=prior, problem_of=problem_of)
    overstated = optimism(
        problem,
        objective,
        settings.folds,
        found.start_choice.start,
        found.choice.pull,
        replace(search, generations=found.choice.generations),
        prior=prior,
    )
    return _judge(problem, objective, found, overstated, settings)


def _check(problem: Problem, objective: Objective, costs: Any) -> None:
    problem.check_costs(costs)
    several = problem.several
    parent = problem.counts(problem.decide(torch.zeros(problem.biases)))
    for constraint in objective.constraints:
        if float(constraint.broken_by(parent, parent, several=several)) > 0:
            value = float(constraint.metric(parent, several=several))
            raise InputError(
                f"the checkpoint itself breaks the constraint on {constraint.name} "
                f"({value:.4g}): loosen it"
            )
    accuracy = float(CONFUSION_METRICS["accuracy"](parent, several=several))
    if accuracy > NEAR_PERFECT:
        warn(
            f"the network is right on {accuracy:.1%} of the examples: if it was trained on them, "
            "polish on others"
        )


def _judge(
    problem: Problem,
    objective: Objective,
    found: CrossFit,
    overstated: Tensor,
    settings: Settings,
) -> Polished:
    several = problem.several
    decisions = torch.stack([problem.decide(bias) for bias in found.out_of_fold])
    counts = problem.counts(decisions)
    values = objective.value(counts, several=several)
    drawn = resample(
        problem,
        decisions,
        lambda counts: objective.value(counts, several=several),
        draws=settings.draws,
        seed=settings.seed,
    )
    sign = 1.0 if objective.higher_is_better else -1.0
    flattery = torch.cat([torch.zeros(1), overstated]).clamp(min=0).double()  # alone is taken off

    def contrast(a: int, b: int) -> Interval:
        return interval(
            sign * float(values[a] - values[b]),
            sign * (drawn[:, a] - drawn[:, b]),
            float(flattery[a] - flattery[b]),
        )

    gain, of_start, over_start = contrast(2, 0), contrast(1, 0), contrast(2, 1)
    verdict = NO_GAIN
    if gain.confirmed:
        by_start = of_start.confirmed and not over_start.confirmed
        verdict = BY_START if by_start else IMPROVED
    bias = found.start if verdict == BY_START else found.bias
    final = problem.decide(bias)
    judged = decisions[1 if verdict == BY_START else 2]
    return Polished(
        verdict=verdict,
        metric=objective.text,
        higher_is_better=objective.higher_is_better,
        fraction=objective.fraction,
        n=len(problem),
        groups=problem.group_count,
        values=dict(
            zip(
                ("checkpoint", "start", "polished"),
                (values - sign * flattery).tolist(),
                strict=True,
            )
        ),
        gain=gain,
        gain_of_start=of_start,
        gain_over_start=over_start,
        start=str(found.start_choice),
        prior="examples" if settings.prior is None else "given",
        chosen=str(found.choice),
        chosen_by_fold=tuple(map(str, found.choices)),
        agreement=float((final == judged).double().mean()),
        optimism=tuple((sign * flattery[1:]).tolist()),
        metrics={
            name: tuple(metric(counts, several=several).tolist())
            for name, metric in CONFUSION_METRICS.items()
        },
        classes=tuple(map(tuple, problem.recalls(counts).T.tolist())),
        decision=Decision(problem.kind, bias * (verdict != NO_GAIN), objective.text),
        proposed=bias,
        evaluations=found.evaluations,
        sample_forwards=0,
        settings=settings.as_dict(),
        decisions=decisions,
    )
