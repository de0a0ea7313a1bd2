"""Scores in every form of file; what is not what it is said to be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from evostep.errors import InputError
from evostep.lab.polish.scores import read_scores, to_logits

A, B = np.array([2.0, -1.0, 0.5, 3.0]), np.array([0.0, 1.0, -2.0, 0.25])


def write(path: Path, labels: object, names: tuple[str, str] = ("cat", "dog")) -> Path:
    columns = {f"score_{names[0]}": A, f"score_{names[1]}": B, "label": labels}
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("cat", "dog"), ["cat", "dog", "dog", "cat"]),
        (("cat", "dog"), pa.array(["cat", "dog", "dog", "cat"]).dictionary_encode()),
        (("cat", "dog"), [0, 1, 1, 0]),  # in the order of the columns
        (("0", "1"), [0, 1, 1, 0]),
        (("0", "1"), [0.0, 1.0, 1.0, 0.0]),
        (("3", "7"), [3, 7, 7, 3]),
        (("False", "True"), [False, True, True, False]),
        (("0", "1"), [False, True, True, False]),
    ],
)
def test_labels_are_names_or_numbers(
    names: tuple[str, str], labels: object, tmp_path: Path
) -> None:
    table = read_scores(write(tmp_path / "s.parquet", labels, names), "logits")
    assert table.targets.tolist() == [0, 1, 1, 0]
    assert table.classes == names
    assert torch.equal(table.outputs, torch.from_numpy(np.stack([A, B], 1)))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_of_any_delimiter(delimiter: str, tmp_path: Path) -> None:
    rows = [["", "score_cat", "label", "score_dog", "user", "w"]]
    rows += [[str(i), str(A[i]), "cat", str(B[i]), f"u{i % 2}", str(i)] for i in range(4)]
    rows[2][2] = "dog"
    path = tmp_path / "s.csv"
    path.write_text("\n".join(delimiter.join(row) for row in rows))
    table = read_scores(path, "logits", groups="user", weights="w")
    assert table.targets.tolist() == [0, 1, 0, 0]
    assert table.groups == ["u0", "u1", "u0", "u1"]
    assert table.weights is not None
    assert table.weights.tolist() == [0, 1, 2, 3]
    assert torch.equal(table.outputs[:, 1], torch.from_numpy(B))


@pytest.mark.parametrize("whole", [True, False])
def test_npz_holds_one_array_or_columns(whole: bool, tmp_path: Path) -> None:
    scores = {"scores": np.stack([A, B], 1), "classes": np.array(["cat", "dog"])}
    columns = {"score_cat": A, "score_dog": B}
    path = tmp_path / "s.npz"
    np.savez(path, label=np.array([1, 0, 0, 1]), **(scores if whole else columns))
    table = read_scores(path, "logits")
    assert table.classes == ("cat", "dog")
    assert table.targets.tolist() == [1, 0, 0, 1]
    assert torch.equal(table.outputs, torch.from_numpy(np.stack([A, B], 1)))


@pytest.mark.parametrize(
    ("column", "labels", "classes"),
    [
        ("score", [0, 1, 1, 0], ("0", "1")),
        ("score_sick", ["well", "sick", "sick", "well"], ("well", "sick")),
        ("score_sick", [0, 1, 1, 0], ("0", "1")),
        ("score", [False, True, True, False], ("0", "1")),
        ("score_1", [0, 1, 1, 0], ("0", "1")),
    ],
)
def test_one_column_is_a_binary_label(
    column: str, labels: list[object], classes: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({column: [0.1, 0.9, 0.6, 0.2], "label": labels}), path)
    table = read_scores(path, "probabilities")
    assert table.outputs.shape == (4, 1)
    assert torch.equal(table.outputs[:, 0] > 0, torch.tensor([False, True, True, False]))
    assert table.targets.tolist() == [0, 1, 1, 0]
    assert table.classes == classes


def test_several_labels_have_a_column_each(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    columns = {"score_sun": A, "score_rain": B}
    truth = {"label_rain": [0, 0, 1, 1], "label_sun": [1, 0, 1, 0]}
    pq.write_table(pa.table(columns | truth), path)
    table = read_scores(path, "logits")
    assert table.targets.tolist() == [[1, 0], [0, 0], [1, 1], [0, 1]]
    assert table.classes == ("sun", "rain")
    pq.write_table(pa.table(columns | truth | {"label_sun": [1, 0, 2, 0]}), path)
    with pytest.raises(InputError, match=r"label_sun is not 0 or 1 in 1 row \(2;"):
        read_scores(path, "logits")


def test_probabilities_become_logits_that_decide_alike() -> None:
    likely = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.4, 0.6]], dtype=torch.float64)
    logits = to_logits(likely, "probabilities", one_of_many=True)
    assert logits.isfinite().all()
    assert torch.allclose(logits.softmax(1), likely)
    one = torch.tensor([[0.0], [0.3], [1.0]], dtype=torch.float64)
    logits = to_logits(one, "probabilities", one_of_many=False)
    assert logits.isfinite().all()
    assert torch.allclose(logits.sigmoid(), one)


@pytest.mark.parametrize(
    ("scores", "scores_are", "one_of_many", "told"),
    [
        ([[0.7, 0.3]], "logits", True, "say --scores-are probabilities"),
        ([[0.7], [0.2]], "logits", False, "say --scores-are probabilities"),
        ([[1.7, -0.7]], "probabilities", True, "from -0.7 to 1.7"),
        ([[70.0, 30.0]], "probabilities", True, "divide percentages by 100"),
        ([[0.7, 0.3], [0.7, 0.7]], "probabilities", True, "row 1 .* sum to 1.4"),
    ],
)
def test_what_they_are_said_to_be_is_checked(
    scores: list[list[float]], scores_are: str, one_of_many: bool, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        to_logits(torch.tensor(scores), scores_are, one_of_many=one_of_many)


def test_logits_in_0_to_1_that_do_not_sum_to_1_are_logits() -> None:
    scores = torch.tensor([[0.9, 0.8], [0.1, 0.3]])
    assert torch.equal(to_logits(scores, "logits", one_of_many=True), scores)
