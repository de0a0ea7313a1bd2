"""Metrics of texts: lists of str and code points alike, through a fitness as by themselves."""

import pytest
import torch
from torch import nn

from evostep import Fitness
from evostep.errors import InputError
from evostep.scoring.metrics import METRICS
from evostep.scoring.texts import (
    TEXT_METRICS,
    character_similarity,
    decode,
    edit_distance,
    encode,
    near_match,
)

READ, TRUE = ["K7PD", "K1P", "", "ABCDE"], ["K7PD", "K7PD", "AB", "ABCD"]


def test_texts_are_read_back_as_they_were_written() -> None:
    assert decode(encode(["", "K7", "äß漢"], 5)) == ["", "K7", "äß漢"]
    assert decode(encode(["ABCDE"], 3)) == ["ABC"]


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("kitten", "sitting", 3), ("AB", "BA", 2), ("A", "", 1), ("", "AB", 2)],
)
def test_edit_distance(a: str, b: str, distance: int) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_the_nearer_of_two_that_are_wrong_wins_and_none_beats_what_is_right() -> None:
    scores = [near_match(read, "K7PD") for read in ("XXXX", "K1XX", "K1PD", "K7PDD", "K7PD")]
    assert scores == sorted(set(scores))
    assert scores[-1] == pytest.approx(1.1)
    assert scores[-2] < 0.1
    assert character_similarity("K7PDD", "K7PD") == pytest.approx(0.8)


@pytest.mark.parametrize("name", TEXT_METRICS)
def test_lists_and_code_points_are_one_and_the_same(name: str) -> None:
    measure = TEXT_METRICS[name]
    by_codes = measure(encode(READ, 9), encode(TRUE, 4))
    assert torch.equal(by_codes, measure(READ, TRUE))
    low, high = measure.span
    assert bool(((low <= by_codes) & (by_codes <= high)).all())
    assert METRICS[name].span == measure.span


class Reads(nn.Module):
    """Tells the texts whose numbers are its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        return encode([READ[i] for i in numbers.tolist()], 9)


def test_a_fitness_scores_texts_batch_by_batch_with_a_value_for_each_example() -> None:
    targets = encode(TRUE, 4)
    batches = [(torch.tensor([0, 1, 2]), targets[:3]), (torch.tensor([3]), targets[3:])]
    fitness = Fitness(Reads(), batches, "exact-match")
    assert fitness() == 0.25
    scores = fitness.score(fitness.examples())
    assert scores.per_example is not None
    assert scores.per_example.tolist() == [1, 0, 0, 0]
    assert Fitness(Reads(), batches, "near-match")() > 0.25


def test_weights_of_examples_count() -> None:
    weights = torch.tensor([3.0, 1.0, 0.0, 0.0])
    batches = [(torch.arange(4), encode(TRUE, 4), weights)]
    assert Fitness(Reads(), batches, "exact-match")() == 0.75


@pytest.mark.parametrize(
    ("outputs", "targets", "named"),
    [
        (torch.zeros(2, 4), encode(["A", "B"], 4), "outputs are no texts .*float32"),
        (["A"], [1], "targets are no texts"),
        (["A"], ["A", "B"], "1 texts were read of 2 examples"),
    ],
)
def test_what_is_no_text_is_named(outputs: object, targets: object, named: str) -> None:
    with pytest.raises(InputError, match=named):
        TEXT_METRICS["exact-match"](outputs, targets)
