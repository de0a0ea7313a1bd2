"""Batches: nests of tensors, walked, joined and counted."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from evostep.scoring.batches import Examples
from evostep.scoring.nests import batch_size, concatenate, leaves, map_leaves, map_tensors


class Pair(NamedTuple):
    left: Any
    right: Any


NEST: Any = {"x": torch.arange(3), "pair": Pair(torch.zeros(3, 2), ["a", (torch.ones(3), None)])}


def test_the_form_of_a_nest_is_kept() -> None:
    found = map_tensors(NEST, len)
    assert found == {"x": 3, "pair": Pair(3, ["a", (3, None)])}
    assert type(found["pair"]) is Pair
    assert type(found["pair"].right) is list
    assert type(found["pair"].right[1]) is tuple
    assert map_tensors(NEST, len, 0) == {"x": 3, "pair": Pair(3, [0, (3, 0)])}


def test_leaves_are_those_that_are_mapped_in_order() -> None:
    seen: list[Any] = []
    map_leaves(seen.append, NEST)
    assert [id(leaf) for leaf in leaves(NEST)] == [id(leaf) for leaf in seen]
    assert len(seen) == 5


def test_nests_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        map_leaves(lambda a, b: a, (1, 2), (1, 2, 3))


def test_batches_are_joined_along_their_examples() -> None:
    one, other = (
        {"x": torch.zeros(2, 3), "n": [torch.tensor(1)]},
        {
            "x": torch.ones(1, 3),
            "n": [torch.tensor(2)],
        },
    )
    found = concatenate([one, other])
    assert found["x"].tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]
    assert found["n"][0].tolist() == [1, 2], "numbers are stacked"
    assert concatenate([("a",), ("b",)]) == ["a", "b"], "texts are one for each example"


@pytest.mark.parametrize(
    ("inputs", "targets", "expected"),
    [
        (torch.zeros(3, 2), torch.zeros(4), 4),  # the targets say it
        (torch.zeros(3, 2), None, 3),
        (None, {"a": torch.zeros(5), "b": torch.zeros(2)}, 5),
        ((torch.zeros(3), torch.zeros(2)), None, 3),
        (torch.tensor(1.0), None, 1),
        ("text", None, 1),
        ([], None, 1),
    ],
    ids=str,
)
def test_examples_are_counted_by_the_first_tensor(inputs: Any, targets: Any, expected: int) -> None:
    assert batch_size(inputs, targets) == expected


def test_examples_of_several_batches_are_summed() -> None:
    batches: list[tuple[Tensor, Tensor]] = [(torch.zeros(n, 2), torch.zeros(n)) for n in (3, 1)]
    examples = Examples((), 0).with_batches(batches)
    assert len(examples) == 4
    assert [len(inputs) for inputs, _ in examples] == [3, 1]
