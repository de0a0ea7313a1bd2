"""`evostep.polish`: from a trained network to a better metric, confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError, warn
from evostep.polishing.bootstrap import DRAWS
from evostep.polishing.folds import make_folds
from evostep.polishing.judging import judge
from evostep.polishing.network import fold_in, given_outputs
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.polishing.procedure import cross_fit
from evostep.polishing.result import NO_GAIN, Polished
from evostep.polishing.settings import Settings
from evostep.polishing.starts import check_prior
from evostep.scoring.batches import Forward
from evostep.scoring.confusion import CONFUSION_METRICS

NEAR_PERFECT = 0.995


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
    found = cross_fit(
        problem, objective, parts, settings.search, prior=prior, problem_of=problem_of
    )
    return judge(problem, objective, found, settings)


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
