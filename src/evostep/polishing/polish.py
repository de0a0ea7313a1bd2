"""`evostep.polish`: from a trained network to a better metric, confirmed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError, warn
from evostep.interrupts import Undoing
from evostep.polishing.budget import Budget, parse_budget
from evostep.polishing.evolved import polish_weights
from evostep.polishing.folds import make_folds
from evostep.polishing.holdout import FOLDS, SHARE, hold_out
from evostep.polishing.judging import judge
from evostep.polishing.network import Given, Subject, fold_in, given_outputs
from evostep.polishing.problem import Problem, join
from evostep.polishing.procedure import cross_fit, fit_once
from evostep.polishing.reach import check_reach, with_scale
from evostep.polishing.result import NO_GAIN, Polished
from evostep.polishing.settings import Settings
from evostep.polishing.shift import other_frequencies
from evostep.polishing.spaces import AUTO, DECISION, check_space
from evostep.polishing.starts import check_prior, subset
from evostep.polishing.store import Nowhere, Store, number_in
from evostep.scoring.batches import Forward
from evostep.scoring.confusion import CONFUSION_METRICS
from evostep.scoring.forms import Known
from evostep.spaces.base import Space

NEAR_PERFECT = 0.995
_WITHOUT_PRIOR = (
    "if training had other class frequencies give these as prior, or evolution is credited with "
    "what logit adjustment does"
)


def polish(
    model: nn.Module | None,
    examples: Iterable[Any],
    metric: Any = "worst-class-recall",
    *,
    space: str | Space = DECISION,
    folds: int = 5,
    confirm: str | Iterable[Any] = FOLDS,
    share: float = SHARE,
    budget: Budget = None,
    population: int = 16,
    prior: Any = None,
    costs: Any = None,
    weights: Any = None,
    groups: Sequence[Any] | None = None,
    forward: Forward | None = None,
    draws: int | None = None,
    seed: int = 0,
    watch: Callable[[float, float], None] | None = None,
    store: Store | None = None,
    higher_is_better: bool | None = None,
    class_dim: int | None = None,
    ignore_index: int = Known.ignore_index,
    class_names: Sequence[str] = (),
) -> Polished:
    """Polish a trained network on the metric that is reported, and confirm the gain.

    **The examples must not be those that the network was trained on**: its outputs there are not
    what it will give on others, and what is chosen on them fails.

    What is evolved are the biases of the decision, one for each output, from logit adjustment on,
    and a scale of all outputs where the metric reads probabilities; where the gain over the
    checkpoint is confirmed they are folded into the last layer. Or weights of the network are, from
    the checkpoint on, under these biases. All that depends on data is chosen by cross-fitting: each
    example is judged by a decision that has not seen it, and the judged examples see one test.

    Args:
        model: the trained network, changed in place where a gain is confirmed; None: `examples` is
            (outputs, targets), of a black box.
        examples: batches as `Fitness` takes them; (outputs, targets) where there is no model. Of
            tokens, (n, T, C) and (n, T), and pixels, (n, C, H, W) and (n, H, W), each is decided,
            and a sentence or image is judged and drawn as a whole.
        metric: a metric by name, a sum, constraints, see `parse_objective`; or a torchmetrics
            metric, a function or scorer of scikit-learn's, a callable on (outputs, targets), see
            `evostep.polishing.own.own_metric`.
        space: ``"decision"``: biases of the outputs; ``"head"``, ``"norm"``: weights of the last
            layer, of the normalisation layers; ``"scales"``: scales of quantised layers, and gains
            of normalisation layers; any space of evostep's; ``"auto"``: the best of decision and of
            what there is of head, norm and scales, chosen on inner folds.
        folds: how many parts the examples are split in, at least 3.
        confirm: ``"folds"``: each fold is judged by what was chosen without it. ``"holdout"``: a
            part of the examples, `share`, is judged once, by the very network that is applied.
            Examples, as `examples`: these are.
        share: of the examples that is held out.
        budget: how many decisions may be scored (sample-forwards where weights evolve), at least
            those of one generation of all searches; None: 40 generations. ``"90s"``, ``"2m"``,
            ``"1h"``: as many as a timed probe says that such a time allows; the number is in
            ``result.settings["budget"]``, and with it a run gives the same bits again.
        population: members of a generation, an even number.
        prior: (C,) class frequencies in training, for logit adjustment; None: the examples'. Where
            these are others the adjustment is too weak, and evolution is credited with what it
            lacks: a note of the result tells where the model's probabilities say so.
        costs: (C, C) table of the metric ``cost``, rows are true classes.
        weights: (n,) what each example counts; None: what came with the batches, else 1.
        groups: n names; examples of a group (a patient, a sentence) are judged and drawn together.
        forward: ``forward(model, batch) -> (outputs, targets)`` for batches of another form.
        draws: of the bootstrap; None: 10,000, and 2,000 where outputs have to be measured.
        seed: of folds, noise and draws.
        watch: called as it goes on, with the share that is done and the gain so far, on the
            examples that are searched on.
        store: keeps what is finished, so that a run that was killed goes on with the same bits.
        higher_is_better: the direction of a metric that has no name and does not say it.
        class_dim: the dimension of the outputs where the classes are; None: found by shapes.
        ignore_index: marks targets that do not count.
        class_names: of the classes (both of a binary label) or labels, for the result to name them.

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
    check_space(space, model)
    store = Nowhere() if store is None else store
    if model is None and space == AUTO:
        space = DECISION
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
        space,
        confirm,
        share,
    )
    known = Known(class_dim=class_dim, ignore_index=ignore_index)
    given = given_outputs(model, examples, forward, known)
    problem = settings.problem(given.outputs, given.targets, given.unit, given.weights)
    searched, held, names = problem, None, tuple(map(str, class_names))
    known_as = problem.biases if problem.several else problem.classes
    if names and len(names) != known_as:
        raise InputError(f"class_names has {len(names)} names for {known_as} classes")
    if isinstance(confirm, str):
        parts = split(problem, settings)
    else:
        parts = make_folds(problem.strata, folds, seed, problem.groups)
        held = given_outputs(model, confirm, forward, known)
        others = _others(held, problem, settings)
        problem = join(problem, others)
        parts = torch.cat([parts, torch.full((len(others),), -1)])
    subject = None
    if model is not None:
        beside = None if held is None else (confirm, held)
        subject = Subject(model, examples, forward, known, given, beside)
    # until there is a result, nobody else can take out again what was put in
    undoing = Undoing() if subject is None else Undoing(subject.take_out)
    with Undoing(), undoing:
        if subject is not None and space != DECISION:
            check(problem, settings)
            result = polish_weights(subject, problem, parts, settings, store)
        else:
            result = polish_problems(problem, settings, parts, store=store)
        if subject is not None and result.verdict != NO_GAIN and result.folded is None:
            fold_in(result, searched, subject, exactly=settings.objective.of_outputs)
        if subject is not None:
            looks = given.examples + (0 if held is None else held.examples)
            result.sample_forwards += looks + subject.spent.sample_forwards
        if given.probabilities and not result.applied:
            result.notes += ("outputs are probabilities: the decision is about their logits",)
            result.decision = replace(result.decision, scores="probabilities")
        result.class_names = names
        result.decision = replace(result.decision, classes=names)
        if prior is None and (told := other_frequencies(problem, names)):
            result.notes += (f"{told}: {_WITHOUT_PRIOR}",)
        undoing.leave_it()
    return result


def _others(given: Given, problem: Problem, settings: Settings) -> Problem:
    """Return the problem of examples that are held out beside those of `problem`.

    Raises:
        InputError: weights or groups, which are of the others; outputs of another kind.
    """
    if settings.weights is not None or settings.groups is not None:
        raise InputError(
            "weights= and groups= name no examples of confirm=: leave these out, or take "
            "confirm='holdout'"
        )
    found = settings.problem(given.outputs, given.targets, given.unit, given.weights)
    if (found.kind, found.biases) != (problem.kind, problem.biases):
        raise InputError(
            f"the examples of confirm= have {found.biases} outputs ({found.kind}), the others "
            f"{problem.biases} ({problem.kind}): give examples of the same kind"
        )
    return found


def split(problem: Problem, settings: Settings) -> Tensor:
    """Return the fold of each example, (n,); -1: held out."""
    strata, groups, k, seed = problem.strata, problem.groups, settings.folds, settings.seed
    if not settings.once:
        return make_folds(strata, k, seed, groups)
    held = hold_out(strata, settings.share, k, seed, groups)
    folds = torch.full((len(problem),), -1)
    own = None if groups is None else groups[~held].unique(return_inverse=True)[1]
    folds[~held] = make_folds(strata[~held], k, seed, own)
    return folds


def polish_problems(
    problem: Problem,
    settings: Settings,
    parts: Tensor,
    problem_of: Callable[[int | None], Problem] | None = None,
    store: Store | None = None,
) -> Polished:
    """Run the procedure on outputs that are there, and judge it.

    Args:
        problem: outputs and targets.
        settings: what is asked for.
        parts: (n,) the fold of each example.
        problem_of: see `evostep.polishing.procedure.cross_fit`.
        store: keeps the number that a budget in time becomes.
    """
    objective = settings.objective
    posed = problem
    problem = with_scale(problem, objective)
    check(problem, settings)
    check_reach(problem, objective)
    asked = parse_budget(settings.budget)
    if isinstance(asked, float):
        found = number_in(store or Nowhere(), "budget", lambda: settings.decisions_in(asked, posed))
        settings = replace(settings, budget=found)
    fits: dict[int | None, Problem] = {None: problem}

    def fits_of(fold: int | None) -> Problem:
        if problem_of is not None and fold not in fits:
            fits[fold] = replace(problem_of(fold), scaled=problem.scaled)
        return fits.get(fold, problem)

    prior, search = check_prior(settings.prior, problem), settings.search
    if settings.once:
        fit = fit_once(problem, objective, parts, search, prior=prior)
        problem = subset(problem, parts < 0)
    else:
        fit = cross_fit(problem, objective, parts, search, prior=prior, problem_of=fits_of)
    return judge(problem, objective, fit, settings)


def check(problem: Problem, settings: Settings) -> None:
    """Raise an InputError for a constraint that the checkpoint breaks, or costs that do not fit."""
    objective = settings.objective
    problem.check_costs(settings.costs)
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
