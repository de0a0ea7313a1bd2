"""Small classifiers of Hugging Face's, trained a little on real text that Python carries."""

from __future__ import annotations

import builtins
import importlib.util
import inspect
import io
import json
import keyword
import textwrap
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

TAGS = ("O", "KEYWORD", "BUILTIN")


@dataclass(frozen=True)
class Trained:
    """A folder that `save_pretrained` wrote, and a table of texts that the network never saw."""

    folder: Path
    table: Path
    rows: list[dict[str, Any]]


def lines_of_code() -> list[dict[str, Any]]:
    """Return lines of a module of Python's own, each word of them with what kind it is."""
    found: dict[int, tuple[list[str], list[str]]] = {}
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(textwrap)).readline):
        if token.type in (tokenize.NAME, tokenize.OP, tokenize.NUMBER):
            words, tags = found.setdefault(token.start[0], ([], []))
            words.append(token.string)
            known = "KEYWORD" if keyword.iskeyword(token.string) else "O"
            tags.append("BUILTIN" if hasattr(builtins, token.string) and known == "O" else known)
    return [{"tokens": words, "tags": tags} for words, tags in found.values()]


@pytest.fixture(scope="session")
def example() -> Any:
    """Return the example that trains a classifier of texts."""
    _transformers()
    path = Path(__file__).parents[3] / "examples" / "polish_texts.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def sentences(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train a BERT to tell what a sentence is about."""
    folder = tmp_path_factory.mktemp("sentences")
    example.train_and_save(folder)
    rows = example.sentences()[example.TRAIN :]
    return Trained(folder / "my-classifier", folder / "held_out.jsonl", rows)


@pytest.fixture(scope="session")
def code(example: Any, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train a DistilBERT to tell what a word of Python is, and let it prefer a class."""
    transformers = _transformers()
    rows = lines_of_code()
    folder = tmp_path_factory.mktemp("code")
    tokenizer = example.make_tokenizer([" ".join(row["tokens"]) for row in rows])
    torch.manual_seed(0)
    small = {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 32, "pad_token_id": 0}
    small |= {"max_position_embeddings": 48, "vocab_size": 400}
    names = {name: i for i, name in enumerate(TAGS)}
    model = transformers.DistilBertForTokenClassification(
        transformers.DistilBertConfig(**small, label2id=names, id2label=dict(enumerate(TAGS)))
    )
    batches = []
    for start in range(0, 96, 16):
        some = rows[::2][start : start + 16]
        made = tokenizer(
            [row["tokens"] for row in some],
            is_split_into_words=True,
            padding=True,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        labels = torch.full(made["input_ids"].shape, -100)
        for i, row in enumerate(some):
            for t, word in enumerate(made.word_ids(i)):
                if word is not None:
                    labels[i, t] = TAGS.index(row["tags"][word])
        batches.append({**made, "labels": labels})
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in batches * 6:
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    with torch.no_grad():
        model.classifier.bias[0] += 2.0
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    held = rows[1::2]
    table = folder / "held_out.jsonl"
    table.write_text("".join(f"{json.dumps(row)}\n" for row in held))
    return Trained(folder / "model", table, held)


def _transformers() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("transformers", reason="needs evostep[transformers]")
