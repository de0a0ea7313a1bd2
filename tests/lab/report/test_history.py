"""Histories of any length: read in bounded memory, with sums that stay exact."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from evostep.lab.report import history as module
from evostep.lab.report.figures.spending import spent_by_evolution
from evostep.lab.report.history import generations_of, read_history


def lines(
    generations: int, phase: int = 7, arm: str = "es", seed: int = 0
) -> Iterator[dict[str, Any]]:
    """Phases of generations, each 10 sample-forwards, between epochs of 100."""
    spent = 0
    for g in range(generations):
        where = {"arm": arm, "seed": seed, "epoch": g // phase}
        if g % phase == 0:
            spent += 100
            yield {"kind": "epoch", **where, "fitness": {"accuracy": 0.5}, "sample_forwards": spent}
        spent += 10
        facts = {"scores": [0.5, None], "parent": 0.5, "candidate": None, "accepted": g % 3 == 0}
        end = {"sample_forwards": spent, "seconds": spent / 10}
        yield {"kind": "generation", **where, "generation": g, **facts, **end}


def write(path: Path, records: Iterator[dict[str, Any]]) -> Path:
    with path.open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)
    return path


@pytest.mark.parametrize(("generations", "phase"), [(990, 7), (1000, 1), (777, 1000)])
def test_sums_of_a_thinned_history_are_those_of_the_whole(
    generations: int, phase: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write(tmp_path / "history.jsonl", lines(generations, phase))
    whole, _ = read_history(path)
    assert all("stands_for" not in record for record in whole)
    monkeypatch.setattr(module, "MOST", 100)
    monkeypatch.setattr(module, "LEAST", 16)
    thinned, skipped = read_history(path)
    assert skipped == 0
    assert len(thinned) <= 101 < len(whole)
    counts = [sum(pair) for pair in zip(*map(generations_of, thinned), strict=True)]
    assert counts == [generations, -(-generations // 3)]
    for key in ("sample_forwards", "seconds"):
        assert thinned[-1][key] == whole[-1][key]
    assert spent_by_evolution(thinned, "es", "sample_forwards") == 10 * generations
    assert spent_by_evolution(whole, "es", "sample_forwards") == 10 * generations
    numbers = [r["generation"] for r in thinned if r["kind"] == "generation"]
    assert numbers == sorted(numbers)
    assert max(b - a for a, b in pairwise(numbers)) <= 32  # even distances


def test_short_runs_stay_whole_beside_a_long_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "MOST", 100)
    monkeypatch.setattr(module, "LEAST", 16)
    path = tmp_path / "history.jsonl"
    many = (record for seed in range(30) for record in lines(10, seed=seed))
    write(path, (record for part in (lines(500, arm="long"), many) for record in part))
    found, _ = read_history(path)
    assert sum(record["arm"] == "es" for record in found) == 30 * 12
    assert sum(record["arm"] == "long" for record in found) < 100


def test_no_file_is_no_history(tmp_path: Path) -> None:
    assert read_history(tmp_path / "history.jsonl") == ([], 0)


@pytest.mark.parametrize(
    "change", [{"seed": True}, {"scores": ["x"]}, {"parent": "x"}, {"epoch": None}, {"arm": []}]
)
def test_a_line_of_wrong_types_is_passed_over(change: dict[str, Any], tmp_path: Path) -> None:
    (epoch, generation) = lines(1)
    path = tmp_path / "history.jsonl"
    write(path, iter([epoch, {**generation, **change}]))
    assert read_history(path) == ([epoch], 1)
