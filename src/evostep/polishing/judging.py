"""The test and the verdict: whatever was evolved, it is judged by outputs that have not seen it."""

from __future__ import annotations

import torch
from torch import Tensor

from evostep.polishing.bootstrap import Interval, draw_values, draws_of, interval
from evostep.polishing.crossfit import CrossFit
from evostep.polishing.decision import make_decision
from evostep.polishing.objective import Objective
from evostep.polishing.problem import Problem
from evostep.polishing.result import BY_START, IMPROVED, NO_GAIN, Polished
from evostep.polishing.settings import Settings
from evostep.scoring.confusion import CONFUSION_METRICS
from evostep.scoring.outputs import OUTPUT_METRICS


def judge(problem: Problem, objective: Objective, found: CrossFit, settings: Settings) -> Polished:
    """Return the result of a procedure: values, contrasts, verdict.

    Args:
        problem: targets, weights and groups; the checkpoint's outputs.
        objective: what was maximised.
        found: outputs that have not seen the examples, and what they are of.
        settings: draws and seed of the bootstrap, and what is told of the rest.
    """
    several = problem.several
    decisions = torch.stack([problem.decided(outputs) for outputs in found.outputs])
    counts = problem.counts(decisions)
    values = objective.value(objective.look(problem, found.outputs), several=several)
    draws = settings.draws or draws_of(objective)
    drawn = draw_values(problem, objective, found.outputs, draws=draws, seed=settings.seed)
    sign = 1.0 if objective.higher_is_better else -1.0
    flattery = torch.cat([torch.zeros(1), found.overstated.clamp(min=0)]).double()
    reported = values - sign * flattery

    def contrast(a: int, b: int) -> Interval:
        return interval(
            sign * float(values[a] - values[b]),
            sign * (drawn[:, a] - drawn[:, b]),
            float(flattery[a] - flattery[b]),
        )

    gain, of_start, over_start = contrast(2, 0), contrast(1, 0), contrast(2, 1)
    verdict = verdict_of(gain, of_start, over_start)
    which = 1 if verdict == BY_START else 2  # of checkpoint, start, procedure
    biases = [problem.unchanged] * 2 if found.biases is None else found.biases
    applied = biases[which - 1] * (verdict != NO_GAIN)
    agree = problem.decided(found.final[which - 1]) == decisions[which]
    return Polished(
        verdict=verdict,
        metric=objective.text,
        higher_is_better=objective.higher_is_better,
        fraction=objective.fraction,
        n=len(problem),
        groups=problem.group_count,
        values=dict(zip(("checkpoint", "start", "polished"), reported.tolist(), strict=True)),
        gain=gain,
        gain_of_start=of_start,
        gain_over_start=over_start,
        start=found.start,
        prior="examples" if settings.prior is None else "given",
        chosen=found.chosen,
        chosen_by_fold=found.chosen_by_fold,
        agreement=float(agree.double().mean()),
        optimism=tuple((sign * flattery[1:]).tolist()),
        metrics=_shown(problem, found, counts),
        classes=tuple(map(tuple, problem.recalls(counts).T.tolist())),
        decision=make_decision(problem, applied, objective.text),
        proposed=biases[1],
        evaluations=found.evaluations,
        sample_forwards=0,
        settings=settings.as_dict(),
        decisions=decisions,
    )


def _shown(
    problem: Problem, found: CrossFit, counts: Tensor
) -> dict[str, tuple[float, float, float]]:
    """Return the metrics that have a name and need no number, of checkpoint, start, procedure."""
    values = {
        name: metric(counts, several=problem.several) for name, metric in CONFUSION_METRICS.items()
    }
    name = "expected-calibration-error"
    values[name] = problem.seen(found.outputs).measure(OUTPUT_METRICS[name])
    return {name: (float(row[0]), float(row[1]), float(row[2])) for name, row in values.items()}


def verdict_of(gain: Interval, of_start: Interval, over_start: Interval) -> str:
    """Return the verdict of the three contrasts.

    One test decides whether anything is changed: the whole procedure against the checkpoint.
    Where what evolution added to the start is not confirmed, the start is applied, the simpler of
    the two, if it is confirmed itself: nothing is applied whose printed interval reaches zero.

    Args:
        gain: procedure - checkpoint.
        of_start: start - checkpoint.
        over_start: procedure - start.

    Example:
        >>> sure, open = Interval(2.0, 1.0, 3.0, 0.01), Interval(1.0, -1.0, 3.0, 0.3)
        >>> verdict_of(sure, sure, open), verdict_of(sure, open, open)
        ('improved by the start', 'improved')
    """
    if not gain.confirmed:
        return NO_GAIN
    return BY_START if of_start.confirmed and not over_start.confirmed else IMPROVED
