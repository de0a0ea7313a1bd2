"""Classifiers of Hugging Face's from their folder to a polished folder, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import f1_score

from evostep import load_decision
from evostep.errors import InputError
from evostep.lab.options import Options
from evostep.lab.polish.folder import load_folder
from evostep.lab.polish.options import PolishOptions
from evostep.lab.polish.run import run_evaluate, run_polish
from evostep.lab.polish.texts import Texts, read_texts

transformers = pytest.importorskip("transformers", reason="needs evostep[transformers]")

pytestmark = pytest.mark.filterwarnings("ignore:.* longer than the 48 tokens")


def options(folder: Path, table: Path, **more: Any) -> PolishOptions:
    given = frozenset({"model", "data"})
    network = Options(model=str(folder), data=str(table), given=given)
    return PolishOptions(network=network, **{"metric": "macro-f1", "folds": 3, **more})


def logits_of(model: Any, texts: Texts) -> torch.Tensor:
    """Return the outputs of all that counts, (N, C), by the package's own forward."""
    found = []
    with torch.no_grad():
        for batch in texts.batches:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            logits = model(**inputs).logits
            found.append(logits[batch["labels"] != -100] if logits.ndim == 3 else logits)
    return torch.cat(found)


@pytest.mark.parametrize("kind", ["sentences", "code"])
def test_what_is_written_loads_and_decides_as_was_decided(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    trained = request.getfixturevalue(kind)
    out = tmp_path / "out"
    record, _ = run_polish(options(trained.folder, trained.table, budget=2016), out)
    assert record["verdict"].startswith("improved")
    assert record["applied"]
    before = load_folder(trained.folder)
    texts = read_texts(str(trained.table), before)
    of = "TokenClassification" if kind == "code" else "SequenceClassification"
    loaded = getattr(transformers, f"AutoModelFor{of}").from_pretrained(out).eval()
    logits, now = logits_of(before.model, texts), logits_of(loaded, texts)
    assert now.argmax(1).tolist() == load_decision(out / "decision.json")(logits.numpy()).tolist()
    assert now.argmax(1).tolist() != logits.argmax(1).tolist()
    # the folder is a subject like any other, with the score that its decisions have
    score = f1_score(texts.targets, now.argmax(1), average="macro")
    again, _ = run_evaluate(options(out, trained.table, evaluates=True), None)
    assert again["metrics"]["macro-f1"]["value"] == pytest.approx(score, abs=1e-6)
    assert score > f1_score(texts.targets, logits.argmax(1), average="macro")
    assert again["n"] == len(texts.targets) == (len(texts) if kind == "sentences" else now.shape[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert tokenizer("a b")["input_ids"] == before.tokenizer("a b")["input_ids"]
    card = (out / "README.md").read_text()
    assert f"AutoModelFor{of}.from_pretrained(folder)" in card
    assert f"pipeline_tag: {before.task}" in card
    assert "library_name: transformers" in card


def test_tokens_of_a_text_stay_together_and_those_that_do_not_count_are_left_out(
    code: Any,
) -> None:
    found, _ = run_evaluate(options(code.folder, code.table, evaluates=True), None)
    tags = [tag for row in code.rows for tag in row["tags"]]
    assert found["n"] == len(tags)  # not one for each piece of a word, or for [CLS]
    assert found["groups"] == len(code.rows)


def test_a_head_without_a_bias_keeps_its_weights_and_the_card_says_so(
    sentences: Any, tmp_path: Path
) -> None:
    folder, out = tmp_path / "gpt", tmp_path / "out"
    names = dict(enumerate(("imports", "strings", "types")))
    torch.manual_seed(0)
    model = transformers.GPT2ForSequenceClassification(
        transformers.GPT2Config(
            **{"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 48, "vocab_size": 400},
            **{"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "id2label": names},
        )
    )
    assert model.score.bias is None
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(sentences.folder).save_pretrained(folder)
    record, _ = run_polish(options(folder, sentences.table, budget=2016), out)
    assert record["verdict"].startswith("improved")
    assert not record["applied"]
    assert {path.name for path in out.iterdir()} == {
        *("decision.json", "results.json", "README.md", "report.html", "recall.png")
    }
    assert any(json.loads((out / "decision.json").read_text())["bias"])
    card = (out / "README.md").read_text()
    assert any("no bias, and from_pretrained would load none" in x for x in record["notes"])
    assert "No weights were written: the last layer has no bias" in card
    assert "have a new name" not in card
    assert "from_pretrained(folder)" not in card
    with pytest.raises(InputError, match="leave --space head out"):
        run_polish(options(folder, sentences.table, space="head"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def edit_config(folder: Path, **values: Any) -> None:
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, **values}))


def as_pickle(folder: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    found = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in found.items() if "classifier" not in name}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


BAD_FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "no folder .*: correct the path"),
    "no config": (lambda f: (f / "config.json").unlink(), "holds no config.json"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "a pickle": (as_pickle, "no .safetensors file, and others may run code"),
    "another task": (
        lambda f: edit_config(f, architectures=["BertForMaskedLM"]),
        "holds a BertForMaskedLM: give a classifier",
    ),
    "no head": (without_head, "missing keys classifier.bias, classifier.weight"),
    "other classes": (
        lambda f: edit_config(f, id2label={str(i): str(i) for i in range(5)}, label2id=None),
        "cannot be loaded|mismatched keys",
    ),
    "a number": (
        lambda f: edit_config(f, id2label={"0": "score"}, problem_type="regression"),
        "gives one number for a text",
    ),
    "one name twice": (
        lambda f: edit_config(f, id2label={"0": "a", "1": "a", "2": "b"}),
        "gives two classes one name",
    ),
    "harmed": (
        lambda f: (f / "model.safetensors").write_bytes(b"no tensors"),
        "cannot be loaded",
    ),
    "code of its own": (
        lambda f: edit_config(f, model_type="own", auto_map={"AutoConfig": "own.OwnConfig"}),
        "config.json cannot be read",
    ),
    "a tokenizer that is none": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "the tokenizer of .* cannot be loaded",
    ),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_other_folders_are_refused_in_one_line(case: str, sentences: Any, tmp_path: Path) -> None:
    change, told = BAD_FOLDERS[case]
    folder = tmp_path / "model"
    shutil.copytree(sentences.folder, folder)
    change(folder)
    with pytest.raises(InputError, match=told) as caught:
        load_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"part": "fitness"}, "texts are read as a whole"),
        ({"scores_are": "logits"}, "--scores-are is not for a folder"),
        ({"text": "t", "scores": Path("s.csv")}, "exclude each other"),
    ],
)
def test_options_of_other_subjects_are_refused(
    more: dict[str, Any], told: str, sentences: Any
) -> None:
    with pytest.raises(InputError, match=told):
        options(sentences.folder, sentences.table, **more)


def test_what_a_folder_needs_and_does_not_is_told(sentences: Any) -> None:
    name = str(sentences.folder)
    with pytest.raises(InputError, match="--data is missing"):
        PolishOptions(network=Options(model=name, given=frozenset({"model"})))
    given = frozenset({"model", "data", "init_from"})
    network = Options(model=name, data="t.csv", init_from=Path("w"), given=given)
    with pytest.raises(InputError, match="which --init-from is not for"):
        PolishOptions(network=network)
    network = Options(model="mlp", given=frozenset({"model"}))
    with pytest.raises(InputError, match="--text names a column of --scores, or of texts"):
        PolishOptions(network=network, text="sentence")


def test_other_files_in_the_folder_are_another_run(sentences: Any, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(sentences.folder, folder)
    before = options(folder, sentences.table).identity()
    (folder / "notes.md").write_text("nothing that a network is read from")
    assert options(folder, sentences.table).identity() == before
    edit_config(folder, problem_type="single_label_classification")
    assert options(folder, sentences.table).identity()["model"] != before["model"]
