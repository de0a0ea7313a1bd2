"""`evostep polish` as a user meets it: what it writes, what it prints, what it refuses."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evostep import load_decision
from evostep.cli import main
from evostep.lab.models import build_model
from evostep.lab.polish.partial import Partial
from evostep.lab.weights import save_weights

CLASSES = ("cat", "dog", "owl")
QUICK = ["--folds", "3", "--budget", "1680", "--metric", "macro-f1"]  # five generations


def make_scores(n: int = 240) -> tuple[np.ndarray, np.ndarray]:
    """Return logits (n, 3) of a network that prefers the frequent class, and the classes."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [n // 2, n // 3, n - n // 2 - n // 3])
    logits = rng.normal(size=(n, 3))
    logits[np.arange(n), labels] += 1.5
    return logits + np.array([3.0, 0.0, -1.0]), labels


def write_csv(path: Path, scores: np.ndarray, labels: list[str], head: str = "") -> Path:
    rows = [head or ",".join([*(f"score_{name}" for name in CLASSES), "label"])]
    rows += [",".join([*map(str, row), label]) for row, label in zip(scores, labels, strict=True)]
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    logits, labels = make_scores()
    return write_csv(tmp_path / "scores.csv", logits, [CLASSES[label] for label in labels])


def polish(scores: Path, out: Path, *more: str) -> list[str]:
    return ["polish", f"--scores={scores}", "--scores-are=logits", *QUICK, f"--out={out}", *more]


@dataclass(frozen=True)
class Finished:
    """A directory that `evostep polish` has written, and what it printed."""

    scores: Path
    out: Path
    printed: str
    errors: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("finished")
    logits, labels = make_scores()
    path = write_csv(folder / "scores.csv", logits, [CLASSES[label] for label in labels])
    out = folder / "deep" / "out"
    with redirect_stdout(io.StringIO()) as printed, redirect_stderr(io.StringIO()) as errors:
        assert main(polish(path, out)) == 0
    return Finished(path, out, printed.getvalue(), errors.getvalue())


def test_everything_is_written_and_serves(finished: Finished) -> None:
    assert finished.errors == ""  # no progress where there is no terminal
    out, (first, _, *table) = finished.out, finished.printed.splitlines()
    assert first.startswith("improved")
    assert table.pop() == f"page: {out / 'report.html'}"
    assert max(map(len, table)) <= 80
    assert {path.name for path in out.iterdir()} == {
        *("decision.json", "results.json", "README.md", "report.html", "recall.png"),
    }
    assert {path.name for path in finished.scores.parent.iterdir()} == {"scores.csv", "deep"}
    record = json.loads((out / "results.json").read_text())
    assert record["summary"] == first
    assert record["verdict"] in ("improved", "improved by the start")
    assert record["n"] == 240
    assert record["budget"]["asked"] == 1680 >= record["budget"]["evaluations"] > 0
    assert record["class_names"] == list(CLASSES)
    assert {"command", "environment", "arguments", "contrasts"} <= record.keys()
    decision = json.loads((out / "decision.json").read_text())
    assert decision["classes"] == list(CLASSES)
    logits, labels = make_scores()
    decided = load_decision(out / "decision.json")(logits)
    assert (decided == labels).mean() > (logits.argmax(1) == labels).mean()


def test_the_same_command_again_prints_the_result_again(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.out.iterdir()}
    assert main(polish(finished.scores, finished.out, "--threads=1")) == 0
    told, _, again = capsys.readouterr().out.partition("\n")
    assert told == f"{finished.out} holds the result of this command:"
    assert again == finished.printed
    assert {path: path.stat().st_mtime_ns for path in finished.out.iterdir()} == before


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--seed=1"], "--seed was 0, now 1"),
        (["--metric=accuracy"], "--metric was macro-f1, now accuracy"),
        (["--budget=2000"], "--budget was 1680, now 2000"),
    ],
)
def test_other_arguments_on_a_finished_directory_are_refused(
    more: list[str], told: str, finished: Finished, refuse: Callable[..., None]
) -> None:
    refuse(polish(finished.scores, finished.out, *more), told)


def test_a_file_that_changed_is_refused(finished: Finished, refuse: Callable[..., None]) -> None:
    changed = finished.scores.with_name("changed.csv")
    changed.write_text(finished.scores.read_text().replace("owl", "dog", 1))
    refuse(polish(changed, finished.out), "the file of --scores has changed")
    changed.unlink()


def test_without_a_confirmed_gain_the_decision_is_the_checkpoint_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1, 2], 40)
    logits = rng.normal(size=(120, 3))
    logits[np.arange(120), labels] += 1.5
    path = write_csv(tmp_path / "s.csv", logits, [CLASSES[label] for label in labels])
    assert main(polish(path, tmp_path / "out")) == 0
    assert "Nothing was changed" in " ".join(capsys.readouterr().out.split())
    decision = json.loads((tmp_path / "out" / "decision.json").read_text())
    assert decision["bias"] == [0.0, 0.0, 0.0]
    assert len(json.loads((tmp_path / "out" / "results.json").read_text())["proposed"]) == 3
    assert "the largest score decides as before" in (tmp_path / "out" / "README.md").read_text()


def test_a_killed_run_of_weights_goes_on_by_the_same_command(
    tmp_path: Path,
    refuse: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = build_model("mlp", channels=1, classes=10, image_size=8, seed=0)
    weights, out = tmp_path / "w.safetensors", tmp_path / "out"
    save_weights(weights, model)
    command = ["polish", "--model=mlp", f"--init-from={weights}", "--metric=accuracy"]
    command += ["--space=head", "--confirm=holdout", "--folds=3", f"--budget={4 * 2 * 40 * 300}"]
    save, kept = Partial.save, []

    def killed(self: Partial, name: str, tensors: Mapping[str, Any]) -> None:
        if len(kept) == 2:
            raise KeyboardInterrupt
        kept.append(name)
        save(self, name, tensors)

    assert main([*command, f"--out={tmp_path / 'whole'}"]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(Partial, "save", killed)
        capsys.readouterr()
        assert main([*command, f"--out={out}"]) == 130
        assert "the same command goes on" in capsys.readouterr().err
    assert not (out / "results.json").exists()
    refuse([*command, f"--out={out}", "--seed=1"], "not finished (--seed was 0, now 1)", "choose")
    again: list[str] = []
    load = Partial.load

    def loaded(self: Partial, name: str) -> Any:
        found = load(self, name)
        again.extend([name] if found is not None else [])
        return found

    monkeypatch.setattr(Partial, "load", loaded)
    assert main([*command, f"--out={out}"]) == 0
    assert again == kept
    first, second = (
        json.loads((folder / "results.json").read_text()) for folder in (tmp_path / "whole", out)
    )
    for key in ("values", "contrasts", "verdict", "settings", "chosen", "budget"):
        assert first[key] == second[key], key
    assert {path.name for path in out.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    told = (out / "README.md").read_text()
    assert "weights of the last layer were chosen on a part of the examples" in told
    assert "took no part in finding them" in told
    if second["evolved"]:
        assert not (out / "decision.json").exists()
        assert (out / "model.safetensors").is_file()


@pytest.fixture
def refuse(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Check that a command ends with code 2 and one line that holds what is told."""

    def check(arguments: list[str], *told: str) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        for text in told:
            assert text in printed.err

    return check


def changed_rows(change: Callable[[list[str]], list[str]]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return edit


def cells(row: int, column: int, text: str) -> Callable[[Path], None]:
    """Return an edit of one cell; row 0 is the header."""

    def change(lines: list[str]) -> list[str]:
        found = lines[row].split(",")
        found[column] = text
        return [*lines[:row], ",".join(found), *lines[row + 1 :]]

    return changed_rows(change)


def constant(lines: list[str]) -> list[str]:
    return [lines[0], *(f"0.5,{line.partition(',')[2]}" for line in lines[1:])]


def as_probabilities(path: Path) -> None:
    logits, labels = make_scores()
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    write_csv(path, likely, [CLASSES[label] for label in labels])


BAD_FILES = {
    "label outside": (cells(5, 3, "cow"), [], ["'cow'", "cat, dog, owl", "1 row (4; the first"]),
    "no label": (cells(7, 3, ""), [], ["1 row (6;"]),
    "one class": (
        changed_rows(lambda lines: [line for line in lines if line.endswith(("label", "cat"))]),
        [],
        ["class 'cat'", "one class"],
    ),
    "few examples": (
        changed_rows(lambda lines: lines[:-38]),
        ["--folds=4"],
        ["fewer examples than the 4 folds", "(owl 2)"],
    ),
    "NaN": (cells(3, 1, "nan"), [], ["score_dog", "1 row (2;"]),
    "NaN in two columns": (
        lambda path: (cells(3, 1, "nan")(path), cells(9, 0, "inf")(path)),
        [],
        ["score_cat, score_dog are not", "2 rows (2, 8;"],
    ),
    "no text": (lambda path: path.write_bytes(b"a,\xff\x1b[2J\n" * 9), [], ["utf-8", "cannot"]),
    "a sign that a terminal obeys": (cells(3, 3, "\x1b[2J"), [], ["label '"]),
    "negative weights": (
        changed_rows(lambda lines: [lines[0] + ",w", *(f"{one},-1" for one in lines[1:])]),
        ["--weights=w"],
        ["w is not a number >= 0 in", "rows (0, 1,"],
    ),
    "few groups": (
        changed_rows(
            lambda lines: [lines[0] + ",g", *(f"{one},{i % 3}" for i, one in enumerate(lines[1:]))]
        ),
        ["--groups=g", "--folds=4"],
        ["fewer groups than the 4 folds", "(cat 3,"],
    ),
    "missing score": (cells(3, 1, ""), [], ["score_dog", "1 row (2;"]),
    "text for a score": (cells(3, 1, "high"), [], ["score_dog", "no number"]),
    "probabilities as logits": (as_probabilities, [], ["--scores-are probabilities"]),
    "logits as probabilities": (
        lambda path: None,
        ["--scores-are=probabilities"],
        ["--scores-are logits"],
    ),
    "constant": (changed_rows(constant), [], ["score_cat is 0.5 in every row"]),
    "empty": (lambda path: path.write_text(""), [], ["is empty"]),
    "header alone": (changed_rows(lambda lines: lines[:1]), [], ["holds no examples"]),
    "missing": (lambda path: path.unlink(), [], ["scores.csv cannot be read"]),
    "no scores": (
        changed_rows(lambda lines: [line.replace("score_", "p_") for line in lines]),
        [],
        ["no column score_<class>", "p_cat, p_dog"],
    ),
    "no such column": (lambda path: None, ["--target=lable"], ["did you mean label", "--target"]),
    "no such group": (lambda path: None, ["--groups=user"], ["'user'", "--groups"]),
    "a column twice": (cells(0, 1, "score_cat"), [], ["more than one column 'score_cat'"]),
    "ragged": (changed_rows(lambda lines: [*lines, "1,2"]), [], ["cannot be read"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_one_line_and_nothing_is_written(
    case: str, scores: Path, tmp_path: Path, refuse: Callable[..., None]
) -> None:
    edit, more, told = BAD_FILES[case]
    edit(scores)
    there = set(tmp_path.rglob("*"))
    refuse(polish(scores, tmp_path / "deep" / "out", *more), *told)
    assert set(tmp_path.rglob("*")) == there


BAD_ARGUMENTS = {
    "unknown metric": (["--metric=worst-clas-recall"], ["did you mean worst-class-recall"]),
    "no direction": (["--metric=mymodule:metric"], ["cannot import 'mymodule'"]),
    "wrong way": (["--metric=macro-f1 - accuracy"], ["the wrong way"]),
    "cost alone": (["--metric=cost"], ["--costs FILE"]),
    "a broken constraint": (
        ["--metric=macro-f1 subject to accuracy >= 0.99"],
        ["the checkpoint itself breaks the constraint on accuracy"],
    ),
    "no time": (["--budget=2 minutes"], ["a time such as 90s, 2m or 1h, got '2 minutes'"]),
    "confirm": (["--confirm=hold"], ["--confirm", "holdout"]),
    "share": (["--confirm=holdout", "--share=1.5"], ["share must lie between 0 and 1, got 1.5"]),
    "budget": (["--budget=10"], ["budget must be at least 336"]),
    "folds": (["--folds=2"], ["folds must be at least 3"]),
    "seed": (["--seed=-1"], ["--seed must be at least 0"]),
    "prior": (["--prior=0.5,0.5"], ["holds 2 values for 3 classes"]),
    "prior file": (["--prior=frequencies.csv"], ["neither a list"]),
    "network, too": (["--model=mlp"], ["--scores and --model exclude each other"]),
    "space": (["--space=head"], ["space='head' needs a network"]),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_are_one_line_and_nothing_is_written(
    case: str, scores: Path, tmp_path: Path, refuse: Callable[..., None]
) -> None:
    more, told = BAD_ARGUMENTS[case]
    there = set(tmp_path.rglob("*"))
    refuse(polish(scores, tmp_path / "out", *more), *told)
    assert set(tmp_path.rglob("*")) == there


OWN = """
import torch

def owls(outputs, targets):
    return (outputs.argmax(1) == targets)[targets == 2].double().mean()

def surprise(outputs, targets):
    return torch.nn.functional.cross_entropy(outputs, targets)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"own_{tmp_path.name}"  # modules stay imported
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_metric_of_ones_own_is_named_by_its_import_path(own: str, scores: Path) -> None:
    out = Path("out")
    assert main([*polish(scores, out), f"--metric={own}:owls"]) == 0
    record = json.loads((out / "results.json").read_text())
    assert (record["metric"], record["verdict"]) == ("owls", "improved")
    assert "owls" in (out / "README.md").read_text()
    files = [f"--scores={scores}", "--scores-are=logits", f"--metric={own}:surprise"]
    assert main(["evaluate", *files, "--no-higher-is-better", "--out=found"]) == 0
    found = json.loads(Path("found/results.json").read_text())
    assert found["metric"] == "surprise"
    assert not found["metrics"]["surprise"]["higher_is_better"]


@pytest.mark.parametrize(
    ("metric", "more", "told"),
    [
        ("{own}:owl", (), "unknown attribute"),
        ("nowhere_at_all:owls", (), "cannot import 'nowhere_at_all'"),
        ("{own}:surprise(2)", (), "is no import path"),
        ("torch.nn.functional:cross_entropy", (), "looks like a loss"),
        ("sklearn.metrics:f1_score", (), "metric f1_score fails: ValueError: Target is multi"),
        ("torchmetrics:F1Score", (), "cannot be made without arguments"),
        ("macro-f1", ("--higher-is-better",), "leave higher_is_better out"),
    ],
)
def test_what_is_no_metric_of_ones_own_is_one_line(
    metric: str,
    more: tuple[str, ...],
    told: str,
    own: str,
    scores: Path,
    refuse: Callable[..., None],
) -> None:
    refuse([*polish(scores, Path("out")), f"--metric={metric.format(own=own)}", *more], told)
    assert not Path("out").exists()


def test_a_report_is_of_a_comparison(finished: Finished, refuse: Callable[..., None]) -> None:
    refuse(["report", str(finished.out)], "holds what `evostep polish` or `evaluate` wrote")


def test_one_class_alone_is_named_by_evaluate_too(
    scores: Path, refuse: Callable[..., None]
) -> None:
    BAD_FILES["one class"][0](scores)
    refuse(["evaluate", f"--scores={scores}", "--scores-are=logits"], "all examples are of class ")


def test_what_is_to_be_polished_must_be_said(refuse: Callable[..., None], tmp_path: Path) -> None:
    refuse(["polish", f"--out={tmp_path / 'o'}"], "Give --model and --init-from, or --scores")
    refuse(["polish", "--scores=s.csv", f"--out={tmp_path / 'o'}"], "--scores-are is missing")
    refuse(["polish", "--model=mlp", "--groups=user", f"--out={tmp_path / 'o'}"], "--groups names")
    refuse(["polish", "--model=mlp", f"--out={tmp_path / 'o'}"], "mlp without weights")
    assert not any(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_told_first(
    scores: Path, tmp_path: Path, refuse: Callable[..., None]
) -> None:
    refuse(polish(scores, scores), "is a file")
    refuse(polish(scores, scores / "out"), "cannot be made", "is a file")
    refuse(polish(scores, Path("/proc/out")), "/proc/out cannot be used (/proc may not be written")
    refuse(polish(scores, tmp_path / ("o" * 300)), "cannot be used (File name too long)")
    refuse(polish(scores, tmp_path), "is not empty and holds no results")
    assert list(tmp_path.iterdir()) == [scores]


@pytest.mark.parametrize("command", ["polish", "evaluate"])
def test_help_tells_metrics_and_models(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    for text in ("worst-class-recall", "--scores-are", "score_<class>", "--init-from", "ONNX"):
        assert text in told
