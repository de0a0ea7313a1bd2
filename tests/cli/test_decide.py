"""`evostep decide`: what was polished is applied to a file, by the names of classes."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import pytest

from evostep.cli import main
from evostep.polishing.serving import load_decision


def decision(folder: Path, **changed: Any) -> Path:
    told = {"format": 3, "kind": "classes", "bias": [0.0, 2.0], "metric": "mcc"}
    told |= {"scores": "probabilities", "classes": ["ham", "spam"], **changed}
    path = folder / "decision.json"
    path.write_text(json.dumps(told))
    return path


def table(path: Path, rows: list[list[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def decided(folder: Path, of: Path, scores: Path) -> list[list[str]]:
    out = folder / "decided.csv"
    assert main(["decide", str(of), str(scores), "--out", str(out)]) in (0, None)
    with out.open(newline="") as file:
        return list(csv.reader(file))


def test_columns_are_found_by_name_and_others_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["id", "score_spam", "score_ham"], ["a", 0.4, 0.6], ["b", 0.01, 0.99]]
    scores = table(tmp_path / "scores.csv", rows)
    found = decided(tmp_path, decision(tmp_path), scores)
    assert found == [["id", "decided"], ["a", "spam"], ["b", "ham"]]
    assert "2 rows decided: spam: 1, ham: 1" in capsys.readouterr().out
    assert load_decision(tmp_path / "decision.json").names([[0.6, 0.4]]) == ["spam"]


def test_without_names_numbers_in_the_order_of_the_file(tmp_path: Path) -> None:
    of = decision(tmp_path, classes=[], format=1, scores="logits")
    scores = table(tmp_path / "s.csv", [["score_x", "score_y"], [3, 2], [3, 0]])
    assert decided(tmp_path, of, scores) == [["decided"], ["1"], ["0"]]


def test_one_column_and_several_labels(tmp_path: Path) -> None:
    binary = decision(tmp_path, kind="binary", bias=[1.0])
    one = table(tmp_path / "one.csv", [["score_spam"], [0.4], [0.1]])
    assert decided(tmp_path, binary, one) == [["decided"], ["spam"], ["ham"]]
    labels = decision(tmp_path, kind="labels")
    two = table(tmp_path / "two.csv", [["score_ham", "score_spam"], [0.9, 0.9], [0.1, 0.01]])
    assert decided(tmp_path, labels, two) == [["decided"], ["ham spam"], [""]]


@pytest.mark.parametrize(
    ("rows", "out", "said"),
    [
        (
            [["score_ham", "score_eggs"], [0.5, 0.5]],
            "o.csv",
            "scores of ham, eggs, and .*ham, spam",
        ),
        ([["score_ham", "score_spam"], [0.5, 0.9]], "o.csv", "sum to 1.4"),
        ([["score_ham", "score_spam"], ["", 0.9]], "o.csv", "score_ham is not a finite number"),
        ([["score_ham", "score_spam"], [0.5, 0.5]], "o.txt", "ends in .csv"),
    ],
)
def test_what_does_not_fit_is_one_line(
    rows: list[list[Any]], out: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = table(tmp_path / "scores.csv", rows)
    of = decision(tmp_path)
    with pytest.raises(SystemExit) as left:
        main(["decide", str(of), str(scores), "--out", str(tmp_path / out)])
    assert left.value.code == 2
    told = capsys.readouterr().err.strip()
    assert "\n" not in told
    assert re.search(said, told), told
    assert not (tmp_path / out).exists()
