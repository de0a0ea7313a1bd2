"""A classifier of texts from Hugging Face, polished by the command line and loaded back.

    python examples/polish_texts.py --out polished-texts

A small BERT learns what a sentence of Python's own reference is about, imports, strings or types;
the sentences come with Python. What is polished is the folder that `save_pretrained` wrote, on
sentences that it was not trained on.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from pydoc_data.topics import topics

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedTokenizerFast,
)

from evostep.cli import main as evostep

TOPICS = {"imports": "import", "strings": "string-methods", "types": "types"}
SPECIAL = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
TRAIN = 320
NAMES = dict(enumerate(TOPICS))


def sentences() -> list[dict[str, str]]:
    """Return lines of the reference in a random order, each with what it is about."""
    lines = [(about, line.strip()) for about, t in TOPICS.items() for line in topics[t].split("\n")]
    found = [{"text": line, "label": about} for about, line in lines if len(line) > 40]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    return [found[i] for i in order]


def make_tokenizer(texts: list[str], size: int = 400, longest: int = 48) -> PreTrainedTokenizerFast:
    """Return a tokenizer of word pieces that were learned from the texts."""
    made = Tokenizer(models.WordPiece(unk_token=SPECIAL["unk_token"]))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = list(SPECIAL.values())
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=size, special_tokens=names, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=longest, model_input_names=inputs, **SPECIAL
    )


def train_and_save(folder: Path) -> None:
    """Train a BERT of 30,000 weights; write `my-classifier`, and `held_out.jsonl` beside it."""
    rows = sentences()
    tokenizer = make_tokenizer([row["text"] for row in rows])
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    sizes = {"vocab_size": 400, "hidden_size": 32, "max_position_embeddings": 48}
    numbers = {name: i for i, name in NAMES.items()}
    model = BertForSequenceClassification(
        BertConfig(**layers, **sizes, id2label=NAMES, label2id=numbers)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for start in list(range(0, TRAIN, 32)) * 8:
        some = rows[start : start + 32]
        texts = [row["text"] for row in some]
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        optimizer.zero_grad()
        labels = torch.tensor([numbers[row["label"]] for row in some])
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
    model.save_pretrained(folder / "my-classifier")
    tokenizer.save_pretrained(folder / "my-classifier")
    lines = [f"{json.dumps(row)}\n" for row in rows[TRAIN:]]
    (folder / "held_out.jsonl").write_text("".join(lines))


def main() -> None:
    """Train, polish on the worst class's recall, load what was written."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    train_and_save(out)
    model, data, polished = (
        str(out / name) for name in ("my-classifier", "held_out.jsonl", "polished")
    )
    options = ["--metric", "worst-class-recall", "--out", polished]
    evostep(["polish", "--model", model, "--data", data, *options])
    if (out / "polished" / "model.safetensors").exists():  # a gain was confirmed
        before, after = (
            AutoModelForSequenceClassification.from_pretrained(folder).classifier.bias
            for folder in (model, polished)
        )
        moved = ", ".join(
            f"{name} {x:+.2f}" for name, x in zip(TOPICS, after - before, strict=True)
        )
        print(f"from_pretrained loads the classifier with its biases moved: {moved}")


if __name__ == "__main__":
    main()
