"""Files of scores, costs and frequencies, read with errors that say what to do."""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evostep.errors import InputError, reason
from evostep.unpacking import check_unpacked, size_of_zip

_UNPACKED = "write it as CSV, or leave out columns that are not needed"

Column = np.ndarray[Any, Any]
_OF_A_FOLDER = (".json", ".txt", ".model", ".safetensors")  # what a network is read from


def fingerprint(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files that a network is read from.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    if path.is_dir():
        parts = [file for file in sorted(path.iterdir()) if file.suffix in _OF_A_FOLDER]
        told = "".join(f"{file.name} {fingerprint(file)}\n" for file in parts if file.is_file())
        return f"sha256:{hashlib.sha256(told.encode()).hexdigest()}"
    try:
        with path.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): correct the path") from error


def read_columns(path: Path, texts: Sequence[str] = ()) -> dict[str, Column]:
    """Read a table: a column's name -> its values, (n,), or (n, C) of an npz file.

    Args:
        path: a CSV file with a header (comma, semicolon or tab), parquet, npz, or JSON: a row in
            each line (.jsonl), or a list of rows.
        texts: columns of a CSV file that are texts, whatever they look like.

    Raises:
        InputError: no such file, another kind, nothing in it, or columns of one name.
    """
    kinds: dict[str, Callable[[Path], dict[str, Column]]] = {
        ".csv": partial(_read_csv, texts=texts),
        ".tsv": partial(_read_csv, texts=texts),
        ".parquet": _read_parquet,
        ".jsonl": _read_json,
        ".json": _read_json,
        ".npz": _read_npz,
    }
    read = kinds.get(path.suffix.lower())
    if read is None:
        raise InputError(f"{path} is none of {', '.join(kinds)}: write it as one of these")
    if not path.is_file():
        raise InputError(f"no file {path}: correct the path")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty: write a header and a row for each example")
    try:
        columns = read(path)
    except (InputError, ImportError):
        raise
    except Exception as error:  # pyarrow and numpy raise a dozen kinds
        raise InputError(
            f"{path} cannot be read ({reason(error)}): write it again, as {path.suffix} files are"
        ) from error
    lengths = {len(values) for values in columns.values()}
    if not columns or not max(lengths):
        raise InputError(f"{path} holds no examples: write a row for each")
    if len(lengths) > 1:
        raise InputError(f"{path} has arrays of {sorted(lengths)} examples: write equally many")
    return columns


def _read_csv(path: Path, texts: Sequence[str]) -> dict[str, Column]:
    import pyarrow
    from pyarrow import csv as arrow

    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    delimiter = max(",;\t", key=header.count)  # the first of equals
    table = arrow.read_csv(
        path,
        parse_options=arrow.ParseOptions(delimiter=delimiter, newlines_in_values=bool(texts)),
        convert_options=arrow.ConvertOptions(column_types=dict.fromkeys(texts, pyarrow.string())),
    )
    return _columns(path, table)


def _read_parquet(path: Path) -> dict[str, Column]:
    from pyarrow import DictionaryArray, RecordBatch, Table, parquet

    with parquet.ParquetFile(path) as file:
        meta = file.metadata
        check_unpacked(path, 8 * meta.num_rows * meta.num_columns, _UNPACKED)
        parts, size = [], 0
        for part in file.iter_batches(batch_size=256):
            plain = [
                column.dictionary_decode() if isinstance(column, DictionaryArray) else column
                for column in part.columns  # one text may stand for many
            ]
            parts.append(RecordBatch.from_arrays(plain, part.schema.names))
            size += parts[-1].nbytes
            check_unpacked(path, size, _UNPACKED)
        return _columns(path, Table.from_batches(parts, None if parts else file.schema_arrow))


def _columns(path: Path, table: Any) -> dict[str, Column]:
    names = list(table.column_names)
    twice = sorted({name for name in names if name and names.count(name) > 1})
    if twice:
        raise InputError(f"{path} has more than one column {twice[0]!r}: give each its own name")
    return {
        name: as_column(column.to_pylist())
        if name[:6] != "score_" and name != "score"
        else column.to_numpy()
        for name, column in zip(names, table.columns, strict=True)
    }


def _read_json(path: Path) -> dict[str, Column]:
    text = path.read_text(encoding="utf-8-sig")
    lines = [line for line in text.splitlines() if line.strip()]
    whole = path.suffix.lower() == ".json" and text.lstrip()[:1] == "["
    return columns_of(json.loads(text) if whole else map(json.loads, lines))


def columns_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Column]:
    """Return rows as columns; what a row lacks is None.

    Raises:
        ValueError: a row is none.

    Example:
        >>> columns_of([{"text": "no", "label": 1}, {"text": "yes"}])["label"].tolist()
        [1, None]
    """
    found = list(rows)
    for number, row in enumerate(found):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {number} (the first is 0) is a {type(row).__name__}, no mapping")
    names = dict.fromkeys(str(name) for row in found for name in row)
    return {name: as_column([row.get(name) for row in found]) for name in names}


def as_column(values: Sequence[Any]) -> Column:
    """Return values as a column, (n,): lists stay one value each, be they of equal length."""
    column: Column = np.empty(len(values), dtype=object)
    for number, value in enumerate(values):
        column[number] = value
    return column


def _read_npz(path: Path) -> dict[str, Column]:
    check_unpacked(path, size_of_zip(path), "write it by numpy.savez, which does not compress")
    # numpy leaves a file open that it opened itself and cannot read
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    if "scores" in columns:  # all classes in one array (n, C), perhaps with their names
        scores = np.atleast_2d(columns.pop("scores"))
        names = columns.pop("classes", np.arange(scores.shape[1]))
        if len(names) != scores.shape[1]:
            raise InputError(
                f"{path}: classes has {len(names)} names for scores of shape {scores.shape}"
            )
        columns |= {f"score_{name}": scores[:, i] for i, name in enumerate(names)}
    return columns


def read_costs(path: Path, classes: Sequence[str]) -> Tensor:
    """Read a table of costs, (C, C) float64, rows are true classes.

    A header and a first column with the classes' names may stand in any order.

    Raises:
        InputError: it cannot be read, is not square, has other names, or what is not a number.
    """
    rows = _grid(path)
    n = len(classes)
    shape = f"{len(rows)} x {'/'.join(map(str, sorted({len(row) for row in rows})))}"
    header = rows.pop(0)[-n:] if len(rows) == n + 1 else None
    side = [row[0] for row in rows] if {len(row) for row in rows} == {n + 1} else None
    rows = rows if side is None else [row[1:] for row in rows]
    if len(rows) != n or any(len(row) != n for row in rows):
        raise InputError(f"{path} is a table of {shape} for {n} classes: write {n} x {n} costs")
    wrong = [cell for row in rows for cell in row if not _is_number(cell)]
    if wrong:
        raise InputError(f"{path} holds {wrong[0]!r} where a cost should stand: write a number")
    costs = torch.tensor([[float(cell) for cell in row] for row in rows], dtype=torch.float64)
    for axis, given in ((1, header), (0, side)):
        if given is None:
            continue
        if sorted(given) != sorted(classes):
            raise InputError(
                f"{path} names the classes {', '.join(given[:5])}, and they are "
                f"{', '.join(classes[:5])}: write these"
            )
        costs = costs.index_select(axis, torch.tensor([given.index(name) for name in classes]))
    return costs


def read_prior(text: str, classes: Sequence[str]) -> list[float]:
    """Read class frequencies: ``0.7,0.2,0.1``, or a file with numbers, or with names and numbers.

    Counts will do: who uses them divides by their sum.

    Raises:
        InputError: it is neither; names that are not the classes'; not as many as there are.
    """
    path = Path(text)
    if path.is_file():
        rows = _grid(path)
        cells = [cell for row in rows for cell in row]
        pairs = {row[0]: row[-1] for row in rows if len(row) == 2 and row[0] in classes}
        if len(pairs) == len(classes):
            cells = [pairs[name] for name in classes]
    else:
        cells = [cell.strip() for cell in text.split(",")]
        if not all(map(_is_number, cells)):
            raise InputError(f"--prior {text!r} is neither a list 0.7,0.2,0.1 nor a file")
    if len(cells) != len(classes) or not all(map(_is_number, cells)):
        raise InputError(
            f"--prior {text} holds {len(cells)} values for {len(classes)} classes: write one "
            "number for each"
        )
    return [float(cell) for cell in cells]


def _grid(path: Path) -> list[list[str]]:
    """Return the cells of a CSV, JSON or npy file as text."""
    try:
        if path.suffix.lower() == ".npy":
            return [[repr(float(x)) for x in np.atleast_1d(row)] for row in np.load(path)]
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            value = json.loads(text)
            pairs = value.items() if isinstance(value, dict) else value
            rows = [row if isinstance(row, list | tuple) else [row] for row in pairs]
        else:
            lines = text.strip().splitlines()
            delimiter = max(",;\t ", key=lines[0].count) if lines else ","
            rows = [list(row) for row in csv.reader(lines, delimiter=delimiter) if row]
    except Exception as error:  # numpy reads a header as Python does, and raises as many kinds
        raise InputError(
            f"{path} cannot be read ({reason(error)}): write a CSV, JSON or npy file of numbers"
        ) from error
    if not rows:
        raise InputError(f"{path} is empty: write a number for each class")
    return [[str(cell).strip() for cell in row] for row in rows]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False
