"""Polishing and evaluating from files: read, decide, write all of it or nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from evostep.errors import InputError, warn
from evostep.lab.comparison.environment import describe_environment
from evostep.lab.imports import resolve_metric
from evostep.lab.polish.directory import FORMAT, RESULTS, read_finished, staged
from evostep.lab.polish.files import read_costs, read_prior
from evostep.lab.polish.folder import save_folder
from evostep.lab.polish.options import PolishOptions
from evostep.lab.polish.page import write_page
from evostep.lab.polish.partial import Partial
from evostep.lab.polish.progress import show_search
from evostep.lab.polish.subject import Subject, make_subject, warn_of_order
from evostep.lab.storage import read_json, write_json
from evostep.lab.weights import save_weights
from evostep.polishing.evaluation import evaluate
from evostep.polishing.network import NEW_NAME
from evostep.polishing.objective import make_objective
from evostep.polishing.polish import polish
from evostep.polishing.result import Polished

Record = dict[str, Any]


def run_polish(options: PolishOptions, out: Path) -> tuple[Record, bool]:
    """Polish what the options name, and write weights, decision, results, card and page.

    Args:
        options: what to polish.
        out: the directory, which appears when all is done.

    Returns:
        The record that ``results.json`` holds, and whether it was there already.

    Raises:
        InputError: whatever is wrong with the input, in one line; nothing was written then.
    """
    identity = options.identity()
    finished = read_finished(out, identity)
    partial = Partial(out, identity)
    if finished is not None:
        partial.drop()  # killed between the last two steps
        return finished, True
    with staged(out) as folder:
        if (finished := read_finished(out, identity)) is not None:
            return finished, True  # another process has just done it
        subject = make_subject(options)
        _check_counts(subject, options.folds)
        names = subject.classes
        costs, prior = _costs(options, names), subject.prior
        if options.prior is not None:
            prior = read_prior(options.prior, names)
        warn_of_order(options.metric, names)
        metric = resolve_metric(options.metric)
        objective = make_objective(metric, costs=costs, higher_is_better=options.higher_is_better)
        with show_search(objective.fraction) as watch:
            result = polish(
                subject.model,
                subject.examples,
                metric,
                space=options.space,
                folds=options.folds,
                confirm=options.confirm,
                share=options.share,
                budget=options.budget,
                prior=prior,
                costs=costs,
                weights=subject.weights,
                groups=subject.groups,
                seed=options.seed,
                higher_is_better=options.higher_is_better,
                watch=watch,
                store=partial,
                class_names=names,
            )
        if options.scores_are == "probabilities":  # which were read as their logarithms
            result.decision = dataclasses.replace(result.decision, scores="probabilities")
        _write_weights(folder, subject, result)
        record = _record(options, subject, result, identity, partial.seconds)
        record = _write(folder, record, result)
        partial.mark()  # what moves in now is ours, should we be killed on the way
    return record, False


def run_evaluate(options: PolishOptions, out: Path | None) -> tuple[Record, bool]:
    """Measure what the options name; see `run_polish`. Without `out` nothing is written."""
    identity = options.identity()
    finished = None if out is None else read_finished(out, identity)
    if finished is not None:
        return finished, True
    if out is None:
        return _evaluated(options, identity), False
    with staged(out) as folder:
        record = _evaluated(options, identity)
        write_json(folder / RESULTS, record)
    return record, False


def _evaluated(options: PolishOptions, identity: Record) -> Record:
    subject = make_subject(options)
    _check_counts(subject)
    warn_of_order(options.metric, subject.classes)
    found = evaluate(
        subject.model,
        subject.examples,
        resolve_metric(options.metric),
        costs=_costs(options, subject.classes, only_cost=False),
        weights=subject.weights,
        groups=subject.groups,
        seed=options.seed,
        higher_is_better=options.higher_is_better,
    )
    return {
        "format": FORMAT,
        "metric": next(iter(found.metrics)),
        **found.as_dict(),
        **_about(subject, identity),
    }


def _record(
    options: PolishOptions,
    subject: Subject,
    result: Polished,
    identity: Record,
    seconds: float,
) -> Record:
    record: Record = {"format": FORMAT, "summary": str(result), **result.as_dict()}
    return {
        **record,
        "fraction": result.fraction,
        "prior": "training part of the run" if _of_run(options, subject) else result.prior,
        "budget": {
            "asked": options.budget,
            "is": result.settings["budget"],
            "evaluations": result.evaluations,
            "sample_forwards": result.sample_forwards,
        },
        **_about(subject, identity),
        "seconds": round(seconds, 2),
    }


def _of_run(options: PolishOptions, subject: Subject) -> bool:
    return options.prior is None and subject.prior is not None


def _about(subject: Subject, identity: Record) -> Record:
    device = torch.device("cpu")
    if subject.model is not None:
        device = next((tensor.device for tensor in subject.model.parameters()), device)
    environment = describe_environment(device)
    return {
        "model": subject.title,
        "data": subject.data,
        "class_names": list(subject.classes),
        "facts": subject.facts,
        "arguments": identity,
        "command": environment["command"],
        "environment": environment,
    }


def _write_weights(folder: Path, subject: Subject, result: Polished) -> None:
    """Write the network as it was changed, where it was, and can be loaded so."""
    if subject.model is None or not result.applied:
        return
    if subject.classifier is None:
        save_weights(folder / "model.safetensors", subject.model)
    elif subject.can_keep:
        save_folder(subject.classifier, folder)
    else:
        result.revert()
        kept = [note for note in result.notes if not note.startswith(NEW_NAME)]
        result.notes = (
            *kept,
            "no weights were written: the last layer has no bias, and from_pretrained would load "
            "none, use decision.json",
        )


def _write(folder: Path, record: Record, result: Polished) -> Record:
    """Write all but weights into the folder, and return the record as it can be read again."""
    if not result.evolved:  # else the network's outputs are decided as they are
        write_json(folder / "decision.json", record["decision"])
    write_json(folder / RESULTS, record)
    plain: Record = read_json(folder / RESULTS)
    write_page(folder, plain)
    return plain


def _costs(
    options: PolishOptions, classes: Sequence[str], *, only_cost: bool = True
) -> torch.Tensor | None:
    if options.costs is None:
        return None
    if only_cost and "cost" not in options.metric:
        warn(f"--costs has no effect on {options.metric}: the metric that reads it is cost")
    return read_costs(options.costs, classes)


def _check_counts(subject: Subject, folds: int = 0) -> None:
    """Refuse one class alone, and classes that cannot lie in every fold, by their names."""
    if subject.targets.ndim > 1:
        return
    counts = subject.targets.bincount(minlength=len(subject.classes)).tolist()
    present = [name for name, count in zip(subject.classes, counts, strict=True) if count]
    if len(present) == 1:
        raise InputError(
            f"all examples are of class {present[0]!r}, and nothing can be decided about one class "
            "alone: give examples of the others"
        )
    groups, what = subject.groups, "examples" if subject.groups is None else "groups"
    if subject.unit is not None:  # of what stays together each is a group
        groups = [i if groups is None else groups[i] for i in subject.unit.tolist()]
        what = "texts" if subject.groups is None else what
    if groups is not None:
        pairs = set(zip(subject.targets.tolist(), groups, strict=True))
        counts = [sum(one == number for one, _ in pairs) for number in range(len(counts))]
    few = [
        f"{name} {count}"
        for name, count in zip(subject.classes, counts, strict=True)
        if 0 < count < folds
    ]
    if few:
        raise InputError(
            f"fewer {what} than the {folds} folds in {len(few)} of {len(counts)} classes "
            f"({', '.join(few[:5])}): give more, or fewer --folds (3 at least)"
        )
