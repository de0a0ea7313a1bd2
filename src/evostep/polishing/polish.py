"""`evostep.polish`: from a trained network to a better metric, confirmed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from evostep.errors import InputError, warn
from evostep.polishing.folds import make_folds
from evostep.polishing.judging import judge
from evostep.polishing.network import fold_in, given_outputs
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.polishing.procedure import cross_fit
from evostep.polishing.reach import check_reach, with_scale
from evostep.polishing.result import NO_GAIN, Polished
from evostep.polishing.settings import Settings
from evostep.polishing.starts import check_prior
from evostep.scoring.batches import Forward
from evostep.scoring.confusion import CONFUSION_METRICS
from evostep.scoring.forms import Known

NEAR_PERFECT = 0.995


def polish(
    model: nn.Module | None,
    examples: Iterable[Any],
    metric: Any = "worst-class-recall",
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
    draws: int | None = None,
    seed: int = 0,
    watch: Callable[[float, float], None] | None = None,
    higher_is_better: bool | None = None,
    class_dim: int | None = None,
    ignore_index: int = Known.ignore_index,
) -> Polished:
    """Polish a trained network on the metric that is reported, and confirm the gain.

    **The examples must not be those that the network was trained on**: its outputs there are not
    what it will give on others, and what is chosen on them fails.

    What is evolved are the biases of the decision, one for each output, from logit adjustment on,
    and a scale of all outputs where the metric reads probabilities; where the gain over the
    checkpoint is confirmed they are folded into the last layer. All that depends on data is chosen
    by cross-fitting: each example is judged by a decision that has not seen it, and the judged
    examples see one test.

    Args:
        model: the trained network, changed in place where a gain is confirmed; None: `examples` is
            (outputs, targets), of a black box.
        examples: batches as `Fitness` takes them; (outputs, targets) where there is no model. Of
            tokens, (n, T, C) and (n, T), and pixels, (n, C, H, W) and (n, H, W), each is decided,
            and a sentence or image is judged and drawn as a whole.
        metric: a metric by name, a sum, constraints, see `parse_objective`; or a torchmetrics
            metric, a function or scorer of scikit-learn's, a callable on (outputs, targets), see
            `evostep.polishing.own.own_metric`.
        space: ``"decision"``.
        folds: how many parts the examples are split in, at least 3.
        budget: how many decisions may be scored, at least one generation of all searches; None: 40
            generations.
        population: members of a generation, an even number.
        prior: (C,) class frequencies in training, for logit adjustment; None: the examples'.
        costs: (C, C) table of the metric ``cost``, rows are true classes.
        weights: (n,) what each example counts; None: what came with the batches, else 1.
        groups: n names; examples of a group (a patient, a sentence) are judged and drawn together.
        forward: ``forward(model, batch) -> (outputs, targets)`` for batches of another form.
        draws: of the bootstrap; None: 10,000, and 2,000 where outputs have to be measured.
        seed: of folds, noise and draws.
        watch: called as it goes on, with the share that is done and the gain so far, on the
            examples that are searched on.
        higher_is_better: the direction of a metric that has no name and does not say it.
        class_dim: the dimension of the outputs where the classes are; None: found by shapes.
        ignore_index: marks targets that do not count.

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
        metric,
        folds,
        budget,
        population,
        prior,
        costs,
        weights,
        groups,
        draws,
        seed,
        watch,
        higher_is_better,
    )
    known = Known(class_dim=class_dim, ignore_index=ignore_index)
    given = given_outputs(model, examples, forward, known)
    problem = settings.problem(given.outputs, given.targets, given.unit, given.weights)
    parts = make_folds(problem.strata, folds, seed, problem.groups)
    result = polish_problems(problem, settings, parts)
    if model is not None:
        result.sample_forwards = given.examples
        if result.verdict != NO_GAIN:
            exactly = settings.objective.of_outputs
            fold_in(
                result,
                problem,
                given.layer,
                model,
                examples,
                forward,
                known=known,
                exactly=exactly,
            )
    if given.probabilities and not result.applied:
        result.notes += ("outputs are probabilities: the decision is about their logits",)
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
    problem = with_scale(problem, objective)
    _check(problem, objective, settings.costs)
    check_reach(problem, objective)
    fits: dict[int | None, Problem] = {None: problem}

    def fits_of(fold: int | None) -> Problem:
        if problem_of is not None and fold not in fits:
            fits[fold] = replace(problem_of(fold), scaled=problem.scaled)
        return fits.get(fold, problem)

    found = cross_fit(
        problem,
        objective,
        parts,
        settings.search,
        prior=check_prior(settings.prior, problem),
        problem_of=fits_of,
    )
    return judge(problem, objective, found, settings)


def _check(problem: Problem, objective: Objective, costs: Any) -> None:
    problem.check_costs(costs)
    several = problem.several
    parent = objective.look(problem, problem.outputs)
    for constraint in objective.constraints:
        if float(constraint.broken_by(parent, parent, several=several)) > 0:
            value = float(constraint.value(parent, several=several))
            raise InputError(
                f"the checkpoint itself breaks the constraint on {constraint.name} "
                f"({value:.4g}): loosen it"
            )
    value = float(objective.value(parent, several=several))
    if not math.isfinite(value):
        raise InputError(f"{objective.text} of the checkpoint is {value}: it cannot be maximised")
    counts = problem.counts(problem.decided(problem.outputs))
    accuracy = float(CONFUSION_METRICS["accuracy"](counts, several=several))
    if accuracy > NEAR_PERFECT:
        warn(
            f"the network is right on {accuracy:.1%} of the examples: if it was trained on them, "
            "polish on others"
        )
