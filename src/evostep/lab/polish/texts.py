"""Texts and their labels for a classifier of Hugging Face's: from a table, or a Dataset."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evostep.errors import InputError, counted, reason, warn
from evostep.lab.imports import load_attribute, runs_code
from evostep.lab.polish.files import Column, columns_of, read_columns
from evostep.lab.polish.folder import CONFIG, Classifier
from evostep.lab.polish.scores import TARGET, column_of, listed, number_labels, numbers_of

BATCH = 32
NOT_COUNTED = -100  # what the loss of torch leaves out, and Hugging Face's collators write
_IDS = "input_ids"
Row = dict[str, list[int]]
Words = tuple[list[int | None], int]  # the word of each token, and how many words there are


@dataclass(frozen=True)
class Texts:
    """Examples, ready for the network.

    Attributes:
        batches: what its ``forward`` takes, and ``labels``.
        targets: a row for each decision, (N,); (n, L) of several labels.
        unit: (N,) the text of each token that counts; None: each text is one.
        weights: (n,) of the texts, or None.
        groups: n names, or None.
        cut: how many texts were longer than what the network takes.
    """

    batches: list[dict[str, Tensor]]
    targets: Tensor
    unit: Tensor | None
    weights: Tensor | None
    groups: list[Any] | None
    cut: int

    def __len__(self) -> int:
        return sum(len(batch["labels"]) for batch in self.batches)


def read_texts(
    data: str,
    classifier: Classifier,
    *,
    text: str | None = None,
    target: str | None = None,
    groups: str | None = None,
    weights: str | None = None,
) -> Texts:
    """Read examples, and make tokens of them.

    Args:
        data: a table, see `read_columns`, or ``package.module:attribute``: a Dataset of
            dictionaries, or a function without arguments that returns one. Texts and their labels;
            or ``input_ids`` and labels, where tokens were made before.
        classifier: whose tokenizer makes tokens, and whose config names the classes.
        text: column of the texts, or two, with a comma, of pairs; None: ``text``, and ``tokens``
            of a classifier of tokens, which are lists of words, or words with spaces between.
        target: column of the classes; None: ``label``, ``tags`` of a classifier of tokens;
            ``label_<name>`` for each of several labels.
        groups: column of names of groups.
        weights: column of what each text counts.

    Raises:
        InputError: a column that is missing; what is no text or no label of the network's.
    """
    columns = _read(data, classifier, text, target)
    n = len(next(iter(columns.values())))
    tokens_made = _IDS in columns
    if tokens_made:
        rows, words, cut = _rows_as_they_are(data, columns, classifier), None, 0
    else:
        rows, words, cut = _tokenised(data, columns, classifier, text)
    if classifier.of_tokens:
        labels: list[Any] = _tags(data, columns, classifier, target, rows, words)
        counted_ = [[tag for tag in tags if tag != NOT_COUNTED] for tags in labels]
        targets = torch.tensor([tag for tags in counted_ for tag in tags], dtype=torch.int64)
        unit = torch.tensor([i for i, tags in enumerate(counted_) for _ in tags])
    else:
        targets, unit = _labels(data, columns, classifier, target, by_number=tokens_made), None
        labels = list(targets.unbind())
    if cut:
        warn(
            f"{data}: {counted(cut, 'text')} of {n:,} longer than the {classifier.longest} tokens "
            "that the network takes: the rest was cut off"
        )
    weight = None
    if weights is not None:
        column_of(data, columns, weights, "--weights")
        (column,) = numbers_of(data, columns, [weights], lambda x: x >= 0, "a number >= 0")
        weight = torch.from_numpy(column)
    group = None if groups is None else column_of(data, columns, groups, "--groups").tolist()
    return Texts(_batches(rows, labels, classifier), targets, unit, weight, group, cut)


def _read(
    data: str, classifier: Classifier, text: str | None, target: str | None
) -> dict[str, Column]:
    if not runs_code(data) or Path(data).is_file():
        tags = [target or "tags"] if classifier.of_tokens else []
        return read_columns(Path(data), texts=[*_names(classifier, text), *tags])
    value = load_attribute(data)
    if callable(value) and not hasattr(value, "__getitem__"):
        try:
            value = value()
        except Exception as error:  # a user's function may raise anything
            raise InputError(f"{data}() failed ({reason(error)}): correct it") from error
    try:
        rows = [
            {key: _plain(item) for key, item in dict(value[i]).items()} for i in range(len(value))
        ]
    except Exception as error:  # as above
        raise InputError(
            f"{data} gives a {type(value).__name__} that cannot be read ({reason(error)}): give a "
            "Dataset of dictionaries with a length"
        ) from error
    if not rows:
        raise InputError(f"{data} holds no examples: give some")
    return columns_of(rows)


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _names(classifier: Classifier, text: str | None) -> list[str]:
    default = "tokens" if classifier.of_tokens else "text"
    return [name.strip() for name in (text or default).split(",")]


def _rows_as_they_are(
    data: str, columns: Mapping[str, Column], classifier: Classifier
) -> list[Row]:
    """Return what was made of the texts before: every column that the network takes."""
    names = [name for name in columns if name in classifier.takes and name != "labels"]
    rows = []
    for i in range(len(columns[_IDS])):
        row = {name: columns[name][i] for name in names}
        if not all(_are_numbers(value) for value in row.values()):
            raise InputError(
                f"{data}: {', '.join(names)} are not lists of whole numbers in row {i} (the first "
                "is 0): write those of the tokens"
            )
        if len({len(value) for value in row.values()}) > 1:
            raise InputError(
                f"{data}: {', '.join(names)} are not equally long in row {i} (the first is 0)"
            )
        rows.append({name: [int(x) for x in value] for name, value in row.items()})
    longest = classifier.longest
    too_long = max(len(row[_IDS]) for row in rows)
    if longest is not None and too_long > longest:
        raise InputError(
            f"{data} has {too_long} tokens in a row, and {classifier.path} takes {longest}: cut "
            "them off"
        )
    return rows


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(int(x) == x for x in value)


def _tokenised(
    data: str, columns: Mapping[str, Column], classifier: Classifier, text: str | None
) -> tuple[list[Row], list[Words] | None, int]:
    """Return the tokens of each text, their words, and how many texts were cut."""
    names = _names(classifier, text)
    tokenizer = classifier.tokenizer
    if tokenizer is None:
        raise InputError(
            f"{classifier.path} holds no tokenizer: save it there, or give --data with {_IDS}"
        )
    given = [column_of(data, columns, name, "--text") for name in names]
    if len(given) > (1 if classifier.of_tokens else 2):
        raise InputError(f"--text {text} names {len(given)} columns: name one, or two of pairs")
    if classifier.of_tokens:
        if not tokenizer.is_fast:
            raise InputError(
                f"the tokenizer of {classifier.path} does not tell words: give --data with {_IDS}"
            )
        texts: list[Any] = [[_words(data, names[0], i, cell) for i, cell in enumerate(given[0])]]
    else:
        texts = [
            [_text(data, name, i, cell) for i, cell in enumerate(column)]
            for name, column in zip(names, given, strict=True)
        ]
    made = tokenizer(
        *texts, is_split_into_words=classifier.of_tokens, truncation=False, verbose=False
    )
    lengths = [len(ids) for ids in made[_IDS]]
    longest = classifier.longest
    cut = 0 if longest is None else sum(length > longest for length in lengths)
    if cut:
        made = tokenizer(
            *texts,
            is_split_into_words=classifier.of_tokens,
            truncation=True,
            max_length=longest,
        )
    keys = [key for key in made if key in classifier.takes]
    rows = [{key: list(made[key][i]) for key in keys} for i in range(len(lengths))]
    words = None
    if classifier.of_tokens:
        words = [(made.word_ids(i), len(own)) for i, own in enumerate(texts[0])]
    return rows, words, cut


def _text(data: str, name: str, row: int, cell: Any) -> str:
    if cell is None or isinstance(cell, list | dict):
        raise InputError(f"{data}: {name} is no text in row {row} (the first is 0): write one")
    return str(cell)


def _words(data: str, name: str, row: int, cell: Any) -> list[str]:
    """Return the words of a list, of one that is written as text, or what spaces part."""
    if isinstance(cell, str) and cell.strip()[:1] == "[":
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):  # "[sic] he said"
            cell = ast.literal_eval(cell.strip())
    words = cell.split() if isinstance(cell, str) else cell
    if not isinstance(words, list | tuple) or not words:
        raise InputError(f"{data}: {name} holds no list in row {row} (the first is 0): write one")
    return [str(word) for word in words]


def _labels(
    data: str,
    columns: Mapping[str, Column],
    classifier: Classifier,
    target: str | None,
    *,
    by_number: bool,
) -> Tensor:
    """Return the classes of texts, (n,); zeros and ones (n, L) of several labels."""
    name = target or ("labels" if by_number and "labels" in columns else TARGET)
    if classifier.several:
        of_labels = [f"{name}_{one}" for one in classifier.classes]
        if name in columns:
            cells = [row if isinstance(row, list) else [row] for row in columns[name].tolist()]
            columns = columns_of(dict(zip(of_labels, row, strict=False)) for row in cells)
        missing = [one for one in of_labels if one not in columns]
        if missing:
            raise InputError(
                f"{data} has no column {name} of zeros and ones for {len(of_labels)} labels, nor "
                f"{listed(missing)}: write these"
            )
        bits = numbers_of(data, columns, of_labels, lambda x: (x == 0) | (x == 1), "0 or 1")
        return torch.from_numpy(np.stack(bits, axis=1))
    values = column_of(data, columns, name, "--target")
    if by_number and _are_numbers(values.tolist()):
        low, high = min(values), max(values)
        if low < 0 or high >= len(classifier.classes):
            raise InputError(
                f"{data}: {name} goes from {low} to {high}, and there are "
                f"{len(classifier.classes)} classes: number them from 0"
            )
        return torch.tensor([int(value) for value in values])
    return number_labels(data, values, classifier.classes, f"id2label in {CONFIG} names them")


def _tags(
    data: str,
    columns: Mapping[str, Column],
    classifier: Classifier,
    target: str | None,
    rows: Sequence[Row],
    words: Sequence[Words] | None,
) -> list[list[int]]:
    """Return the class of each token; a word's first has the word's, others do not count."""
    name = target or ("labels" if words is None and "labels" in columns else "tags")
    cells = column_of(data, columns, name, "--target").tolist()
    number: dict[str, int] = {one: i for i, one in enumerate(classifier.classes)}
    by_number = {str(i): i for i in range(len(number))}
    given = [_words(data, name, i, cell) for i, cell in enumerate(cells)]
    found = {tag for tags in given for tag in tags} - {str(NOT_COUNTED)}
    if words is None or not found <= number.keys():
        number = by_number if found <= by_number.keys() else number
    found_tags = []
    for i, (tags, row) in enumerate(zip(given, rows, strict=True)):
        n = len(row[_IDS]) if words is None else words[i][1]
        if len(tags) != n:
            raise InputError(
                f"{data}: {name} has {len(tags)} entries for {counted(n, 'token')} in row {i} (the "
                "first is 0): write one for each"
            )
        unknown = [tag for tag in tags if tag not in number and tag != str(NOT_COUNTED)]
        if unknown:
            raise InputError(
                f"{data}: {unknown[0]!r} in row {i} (the first is 0) of {name} is none of the "
                f"classes {listed(list(number))}: id2label in {CONFIG} names them"
            )
        numbers = [number.get(tag, NOT_COUNTED) for tag in tags]
        found_tags.append(numbers if words is None else _of_first(numbers, words[i][0]))
    return found_tags


def _of_first(tags: Sequence[int], words: Sequence[int | None]) -> list[int]:
    """Return the tag of each word for the first of its tokens; other tokens do not count.

    Example:
        >>> _of_first([5, 6], [None, 0, 0, 1, None])
        [-100, 5, -100, 6, -100]
    """
    before = (None, *words)
    return [
        NOT_COUNTED if word is None or word == last else tags[word]
        for word, last in zip(words, before, strict=False)
    ]


def _batches(
    rows: Sequence[Row], labels: Sequence[Any], classifier: Classifier
) -> list[dict[str, Tensor]]:
    """Return examples in their own order, filled up to the longest of a batch."""
    config: Any = classifier.model.config
    tokenizer = classifier.tokenizer
    id_ = getattr(config, "pad_token_id", None)
    if id_ is None and len({len(row[_IDS]) for row in rows}) > 1:
        raise InputError(
            f"{classifier.path / CONFIG} tells no pad_token_id, which texts of unequal length "
            "need: set it, and save the model again"
        )
    left = getattr(tokenizer, "padding_side", "right") == "left"
    fills = {_IDS: id_ or 0, "labels": NOT_COUNTED, "attention_mask": 0}
    fills["token_type_ids"] = getattr(tokenizer, "pad_token_type_id", 0)

    def filled(name: str, values: Sequence[list[int]]) -> Tensor:
        longest = max(map(len, values))
        more = [[fills.get(name, 0)] * (longest - len(value)) for value in values]
        both = zip(more, values, strict=True)
        return torch.tensor([m + list(v) if left else list(v) + m for m, v in both])

    batches = []
    for start in range(0, len(rows), BATCH):
        some, own = rows[start : start + BATCH], labels[start : start + BATCH]
        if "attention_mask" in classifier.takes:
            some = [{"attention_mask": [1] * len(row[_IDS]), **row} for row in some]
        batch = {name: filled(name, [row[name] for row in some]) for name in some[0]}
        batch["labels"] = filled("labels", own) if classifier.of_tokens else torch.stack([*own])
        batches.append(batch)
    return batches
