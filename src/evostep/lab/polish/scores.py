"""Scores of a black box from a file: columns `score_<class>` and `label`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evostep.errors import InputError, unknown_name
from evostep.lab.polish.files import Column, read_columns

TARGET = "label"  # the column of the true classes, unless told otherwise
_PREFIX = "score_"
_SMALLEST = 1e-12  # of a probability, whose logarithm must be finite


@dataclass(frozen=True)
class ScoreTable:
    """Scores and what is true.

    Attributes:
        outputs: (n, C) logits, float64; (n, 1) of one binary label.
        targets: (n,) classes, or zeros and ones; (n, L) of several labels.
        classes: names of the classes, two for a binary label; of the labels.
        weights: (n,), or None.
        groups: n names, or None.
    """

    outputs: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    weights: Tensor | None
    groups: list[Any] | None


def read_scores(
    path: Path,
    scores_are: str,
    *,
    target: str = TARGET,
    groups: str | None = None,
    weights: str | None = None,
) -> ScoreTable:
    """Read scores from a file.

    Args:
        path: CSV, parquet or npz with the columns ``score_<class>``, in the order of the classes,
            and one with the classes' names or numbers. One column ``score_<class>``, or
            ``score``, is a binary label's. Several labels have a column ``label_<name>`` of zeros
            and ones for each ``score_<name>``. An npz may hold ``scores`` (n, C) instead.
        scores_are: ``"logits"`` or ``"probabilities"``.
        target: the column of the classes, and the first word of those of labels.
        groups: column of names of groups.
        weights: column of what each example counts.

    Raises:
        InputError: what is missing, constant, not finite, or not what it is said to be.
    """
    columns = read_columns(path)
    found = _of_scores(path, columns)
    names = tuple(_as_name(name.removeprefix(_PREFIX)) for name in found)
    scores = torch.from_numpy(np.stack(numbers_of(path, columns, found), axis=1))
    for name, column in zip(found, scores.T, strict=True):
        if len(column) > 1 and bool((column == column[0]).all()):
            raise InputError(
                f"{path}: {name} is {float(column[0]):g} in every row: a score that never "
                "changes decides nothing, write the model's own"
            )
    of_labels = [f"{target}_{name}" for name in names]
    several = target not in columns and all(name in columns for name in of_labels)
    if several:
        bits = numbers_of(path, columns, of_labels, lambda x: (x == 0) | (x == 1), "0 or 1")
        targets = torch.from_numpy(np.stack(bits, axis=1)).long()
    else:
        values = column_of(path, columns, target, "--target")
        targets = number_labels(path, values, names if len(names) > 1 else (names[0],))
    outputs = to_logits(scores, scores_are, one_of_many=len(names) > 1 and not several)
    if len(names) == 1 and not several:
        names = _both(names[0], values)
    weight = None
    if weights is not None:
        column_of(path, columns, weights, "--weights")
        (column,) = numbers_of(path, columns, [weights], lambda x: x >= 0, "a number >= 0")
        weight = torch.from_numpy(column)
    group = None if groups is None else column_of(path, columns, groups, "--groups").tolist()
    return ScoreTable(outputs, targets, names, weight, group)


def score_columns(
    path: Path, columns: Mapping[str, Column], classes: Sequence[str], count: int
) -> tuple[list[str], Column]:
    """Return the columns of scores that a decision is about, their names and values (n, C).

    Args:
        path: for errors.
        columns: of the file.
        classes: the names of a decision's outputs; empty: as they stand in the file.
        count: how many outputs it has.

    Raises:
        InputError: columns of other classes, values that are no finite numbers.
    """
    found = _of_scores(path, columns)
    by_name = {_as_name(name.removeprefix(_PREFIX)): name for name in found}
    if classes and found != ["score"] and not (count == 1 and len(found) == 1):
        if set(by_name) != set(classes):
            raise InputError(
                f"{path} has scores of {listed(by_name)}, and the decision is about "
                f"{listed(classes)}: give one column score_<class> for each of these"
            )
        found = [by_name[name] for name in classes]
    if len(found) != count:
        raise InputError(
            f"{path} has {len(found)} columns of scores, and the decision is about {count}"
        )
    return found, np.stack(numbers_of(path, columns, found), axis=1)


def _of_scores(path: Path, columns: Mapping[str, Column]) -> list[str]:
    found = [name for name in columns if name.startswith(_PREFIX)] or [
        name for name in columns if name == "score"
    ]
    if not found:
        raise InputError(
            f"{path} has no column score_<class> (it has {listed(columns)}): name them "
            "score_cat, score_dog, ..."
        )
    return found


def to_logits(scores: Tensor, scores_are: str, *, one_of_many: bool) -> Tensor:
    """Return scores (n, C) as logits: of probabilities the logarithm, of a label's the logit.

    Args:
        scores: as they were read.
        scores_are: ``"logits"`` or ``"probabilities"``.
        one_of_many: whether an example has one of several classes, so that probabilities sum to 1.

    Raises:
        InputError: they are not what they are said to be.

    Example:
        >>> to_logits(torch.tensor([[0.5], [0.0]]), "probabilities", one_of_many=False).round()
        tensor([[  0.],
                [-28.]])
    """
    low, high = float(scores.min()), float(scores.max())
    within = low >= -1e-6 and high <= 1 + 1e-6
    sums = scores.sum(1)
    to_one = not one_of_many or bool((sums - 1).abs().max() < 1e-2)
    span = f"{low:.3g} to {high:.3g}"
    if scores_are == "logits":
        if within and to_one:
            also = ", and rows sum to 1" if one_of_many else ""
            raise InputError(
                f"the scores lie in [0, 1]{also} ({span}): these are probabilities, say "
                "--scores-are probabilities"
            )
        return scores
    if not within:
        raise InputError(
            f"the scores go from {span}, and probabilities lie in [0, 1]: say --scores-are "
            "logits, or divide percentages by 100"
        )
    if not to_one:
        worst = int((sums - 1).abs().argmax())
        raise InputError(
            f"probabilities of row {worst} (the first is 0) sum to {float(sums[worst]):.3g}, not "
            "to 1: say --scores-are logits, or write all classes"
        )
    likely = scores.clamp(_SMALLEST, 1 - (0 if one_of_many else _SMALLEST))
    return likely.log() if one_of_many else likely.logit()


def column_of(path: Path | str, columns: Mapping[str, Column], name: str, option: str) -> Column:
    """Return a column by its name, which an option tells."""
    if name not in columns:
        error = unknown_name("column", name, columns)
        raise InputError(f"{path}: {error}; name it by {option}")
    return columns[name]


def numbers_of(
    path: Path | str,
    columns: Mapping[str, Column],
    names: Sequence[str],
    allowed: Callable[[Column], Column] = np.isfinite,
    what: str = "a finite number",
) -> list[Column]:
    """Return columns as finite float64, or name the rows that are not, or are not allowed."""
    found = []
    for name in names:
        try:
            found.append(np.asarray(columns[name].astype(np.float64)))
        except (TypeError, ValueError) as error:
            raise InputError(f"{path}: {name} holds what is no number ({error})") from error
        if found[-1].ndim != 1:
            shape = found[-1].shape
            raise InputError(f"{path}: {name} has the shape {shape}: write one number a row")
    wrong = [~(np.isfinite(column) & allowed(column)) for column in found]
    if np.any(wrong):
        named = [name for name, rows in zip(names, wrong, strict=True) if rows.any()]
        raise InputError(
            f"{path}: {listed(named)} {'is' if len(named) == 1 else 'are'} not {what} in "
            f"{rows_told(np.flatnonzero(np.any(wrong, axis=0)))}: leave these out, or write them "
            "again"
        )
    return found


def number_labels(
    path: Path | str,
    values: Column,
    names: tuple[str, ...],
    named: str = "the columns score_<class> name them",
) -> Tensor:
    """Return the classes of labels that are names, or numbers in the order of these.

    Args:
        path: of what the labels are from.
        values: the labels, (n,).
        names: of the classes; of one alone it is a binary label's.
        named: where the names are from, for the error.
    """
    missing = np.array([value is None or value != value for value in values.tolist()])
    if missing.any():
        raise InputError(f"{path}: there is no label in {rows_told(np.flatnonzero(missing))}")
    labels = [_as_name(value) for value in values.tolist()]
    known = names if len(names) > 1 else _both(names[0], values)
    by_number = [str(i) for i in range(len(known))]
    if not set(labels) <= set(known) and set(labels) <= {*by_number, "False", "True"}:
        labels = [{"False": "0", "True": "1"}.get(label, label) for label in labels]
        if set(labels) <= set(known) or not set(known) & set(by_number):
            known = known if set(labels) <= set(known) else tuple(by_number)
    number = {name: i for i, name in enumerate(known)}
    bad = np.array([label not in number for label in labels])
    if bad.any():
        first = labels[int(bad.argmax())]
        raise InputError(
            f"{path}: label {first!r} is none of the classes {listed(known)}, in "
            f"{rows_told(np.flatnonzero(bad))}: {named}"
        )
    return torch.tensor([number[label] for label in labels])


def _both(positive: str, values: Column) -> tuple[str, str]:
    """Return the names of both classes of a binary label, whose one column names the second."""
    labels = {_as_name(value) for value in values.tolist()}
    if positive not in labels or labels <= {"0", "1"}:
        return "0", "1"
    others = sorted(labels - {positive})
    return (others[0] if len(others) == 1 else f"not {positive}"), positive


def _as_name(value: Any) -> str:
    """Return a class's name; 3, 3.0 and "3" are one.

    Example:
        >>> _as_name(3.0), _as_name(" cat")
        ('3', 'cat')
    """
    return re.sub(r"^(-?\d+)\.0+$", r"\1", str(value).strip())


def rows_told(rows: Column) -> str:
    """Return in words which rows these are, the first five of them."""
    shown = ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
    return f"{len(rows)} row{'s' * (len(rows) != 1)} ({shown}; the first is 0)"


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Return the first eight of some names as text."""
    shown = list(names)
    return ", ".join(shown[:8]) + (f", ... ({len(shown)} in all)" if len(shown) > 8 else "")
