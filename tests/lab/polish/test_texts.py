"""Texts in the forms that people have them in, become the same tokens."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from pyarrow import parquet

from evostep.errors import InputError
from evostep.lab.polish.folder import load_folder
from evostep.lab.polish.texts import Texts, read_texts

pytest.importorskip("transformers", reason="needs evostep[transformers]")

SENTENCES = [
    {"text": 'An "import" statement, in two\nlines', "label": "imports", "who": "a", "w": 1},
    {"text": "2019", "label": "strings", "who": "a", "w": 2},
    {"text": "Return a copy; of the string", "label": "types", "who": "b", "w": 0.5},
]
WORDS = [
    {"tokens": ["def", "f", "(", "wordless", ")"], "tags": ["KEYWORD", "O", "O", "O", "O"]},
    {"tokens": ["print", "5"], "tags": ["BUILTIN", "O"]},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    else:
        with path.open("w", newline="") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
    return path


def assert_equal(one: Texts, other: Texts) -> None:
    assert torch.equal(one.targets, other.targets)
    assert (one.unit is None) == (other.unit is None)
    for a, b in zip(one.batches, other.batches, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("end", ["csv", "tsv", "parquet", "jsonl", "json"])
def test_every_kind_of_table_gives_the_same(end: str, sentences: Any, tmp_path: Path) -> None:
    classifier = load_folder(sentences.folder)
    path = write(tmp_path / f"t.{end}", SENTENCES)
    found = read_texts(str(path), classifier, groups="who", weights="w")
    assert found.targets.tolist() == [0, 1, 2]
    assert found.groups == ["a", "a", "b"]
    assert found.weights is not None
    assert found.weights.tolist() == [1, 2, 0.5]
    (batch,) = found.batches
    wanted = classifier.tokenizer([row["text"] for row in SENTENCES], padding=True)
    assert batch["input_ids"].tolist() == wanted["input_ids"]
    assert batch["attention_mask"].tolist() == wanted["attention_mask"]


@pytest.mark.parametrize("end", ["csv", "parquet", "jsonl"])
@pytest.mark.parametrize("form", [list, str, json.dumps, " ".join])
def test_words_are_a_list_in_every_spelling(end: str, form: Any, code: Any, tmp_path: Path) -> None:
    if end == "csv" and form is list:
        return  # a cell of it is text
    classifier = load_folder(code.folder)
    rows = [{name: form(cell) for name, cell in row.items()} for row in WORDS]
    found = read_texts(str(write(tmp_path / f"t.{end}", rows)), classifier)
    assert found.targets.tolist() == [1, 0, 0, 0, 0, 2, 0]
    assert found.unit is not None
    assert found.unit.tolist() == [0, 0, 0, 0, 0, 1, 1]
    (batch,) = found.batches
    assert "token_type_ids" not in batch  # DistilBERT's forward takes none
    counted = batch["labels"] != -100
    assert counted.sum(1).tolist() == [5, 2]
    first = [classifier.tokenizer(word)["input_ids"][1] for row in WORDS for word in row["tokens"]]
    assert batch["input_ids"][counted].tolist() == first  # a word's first piece has its tag
    assert batch["attention_mask"].sum(1).tolist() > counted.sum(1).tolist()


def test_one_word_a_row_that_is_a_number_is_a_word(code: Any, tmp_path: Path) -> None:
    rows = [{"tokens": 5, "tags": 0}, {"tokens": 7, "tags": 2}]
    found = read_texts(str(write(tmp_path / "t.csv", rows)), load_folder(code.folder))
    assert found.targets.tolist() == [0, 2]


def test_what_was_tokenised_before_is_taken_as_it_is(
    sentences: Any, code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for kind, rows in ((sentences, SENTENCES), (code, WORDS)):
        classifier = load_folder(kind.folder)
        plain = read_texts(str(write(tmp_path / "t.jsonl", rows)), classifier)
        (batch,) = plain.batches
        name = f"own_{kind.folder.parent.name.replace('-', '_')}"
        made = []
        for i, mask in enumerate(batch["attention_mask"].bool()):
            row = {key: value[i] for key, value in batch.items()}
            made.append({k: v[mask].tolist() if v.ndim else int(v) for k, v in row.items()})
        (tmp_path / f"{name}.py").write_text(
            f"import torch\nrows = {made!r}\n"
            "def tensors():\n"
            "    return [{k: torch.tensor(v) for k, v in row.items()} for row in rows]\n"
        )
        alone = replace(classifier, tokenizer=None)
        for attribute in ("rows", "tensors"):
            assert_equal(read_texts(f"{name}:{attribute}", alone), plain)
        table = write(tmp_path / "made.parquet", made)
        assert_equal(read_texts(str(table), alone), plain)


def test_pairs_have_two_columns(sentences: Any, tmp_path: Path) -> None:
    classifier = load_folder(sentences.folder)
    rows = [
        {"premise": "a b", "then": "c", "label": 2},
        {"premise": "d", "then": "e f", "label": 0},
    ]
    found = read_texts(
        str(write(tmp_path / "t.csv", rows)), classifier, text="premise,then", target="label"
    )
    assert found.targets.tolist() == [2, 0]
    wanted = classifier.tokenizer(["a b", "d"], ["c", "e f"], padding=True)
    assert found.batches[0]["input_ids"].tolist() == wanted["input_ids"]
    assert found.batches[0]["token_type_ids"].tolist() == wanted["token_type_ids"]


def test_several_labels_have_columns_or_lists(sentences: Any, tmp_path: Path) -> None:
    classifier = replace(load_folder(sentences.folder), several=True)
    bits = [[1, 0, 1], [0, 0, 0]]
    lists = [{"text": "a", "label": row} for row in bits]
    columns = [
        {"text": "a"}
        | {f"label_{name}": bit for name, bit in zip(classifier.classes, row, strict=True)}
        for row in bits
    ]
    for rows, end in ((lists, "jsonl"), (columns, "csv"), (columns, "parquet")):
        found = read_texts(str(write(tmp_path / f"t.{end}", rows)), classifier)
        assert found.targets.tolist() == bits
        assert found.batches[0]["labels"].tolist() == bits


def test_long_texts_are_cut_with_a_warning(sentences: Any, tmp_path: Path) -> None:
    classifier = load_folder(sentences.folder)
    rows = [{"text": "a b c " * 40, "label": 0}, {"text": "a", "label": 1}]
    path = write(tmp_path / "t.csv", rows)
    with pytest.warns(UserWarning, match="1 text of 2 longer than the 48 tokens"):
        found = read_texts(str(path), classifier)
    assert found.batches[0]["input_ids"].shape == (2, 48)
    assert found.cut == 1


def test_a_text_is_filled_up_on_the_side_of_its_tokenizer(sentences: Any, tmp_path: Path) -> None:
    classifier = load_folder(sentences.folder)
    classifier.tokenizer.padding_side = "left"
    path = write(tmp_path / "t.json", SENTENCES)
    (batch,) = read_texts(str(path), classifier).batches
    wanted = classifier.tokenizer([row["text"] for row in SENTENCES], padding=True)
    assert batch["input_ids"].tolist() == wanted["input_ids"]


BAD = {
    "unknown class": ("sentences", [{"text": "a", "label": "cow"}], "'cow' is none of the classes"),
    "no text": ("sentences", [{"text": None, "label": 0}], "text is no text in row 0"),
    "no label": ("sentences", [{"text": "a", "label": None}], "there is no label in 1 row"),
    "other columns": (
        "sentences",
        [{"sentence": "a", "label": 0}],
        "unknown column 'text'.*--text",
    ),
    "other target": ("sentences", [{"text": "a", "y": 0}], "unknown column 'label'.*--target"),
    "unknown tag": ("code", [{"tokens": ["a"], "tags": ["B-PER"]}], "'B-PER' in row 0 .* of tags"),
    "uneven": ("code", [{"tokens": ["a", "b"], "tags": ["O"]}], "1 entries for 2 tokens in row 0"),
    "no words": ("code", [{"tokens": [], "tags": []}], "tokens holds no list in row 0"),
    "numbers of nothing": (
        "sentences",
        [{"input_ids": "1 2", "labels": 0}],
        "input_ids are not lists of whole numbers in row 0",
    ),
    "a class too much": (
        "sentences",
        [{"input_ids": [1, 2], "labels": 3}],
        "labels goes from 3 to 3, and there are 3 classes",
    ),
    "too many tokens": (
        "sentences",
        [{"input_ids": [1] * 49, "labels": 0}],
        "has 49 tokens in a row, and .* takes 48",
    ),
    "masks of another length": (
        "sentences",
        [{"input_ids": [1, 2], "attention_mask": [1], "labels": 0}],
        "not equally long in row 0",
    ),
    "uneven labels": ("code", [{"input_ids": [1, 2], "labels": [0]}], "1 entries for 2 tokens"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_one_line(
    case: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    kind, rows, told = BAD[case]
    classifier = load_folder(request.getfixturevalue(kind).folder)
    path = write(tmp_path / "t.jsonl", rows)
    with pytest.raises(InputError, match=told) as caught:
        read_texts(str(path), classifier)
    assert "\n" not in str(caught.value)


def test_what_the_folder_lacks_is_told(sentences: Any, code: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", SENTENCES)
    classifier = load_folder(sentences.folder)
    with pytest.raises(InputError, match="holds no tokenizer"):
        read_texts(str(path), replace(classifier, tokenizer=None))
    classifier.model.config.pad_token_id = None
    with pytest.raises(InputError, match="tells no pad_token_id"):
        read_texts(str(path), classifier)
    with pytest.raises(InputError, match="names 3 columns"):
        read_texts(str(path), classifier, text="text,label,who")
    for name in ("nowhere_at_all:rows", "math:pi", "math:tau"):
        with pytest.raises(InputError, match=r"cannot import|cannot be read"):
            read_texts(name, classifier)
