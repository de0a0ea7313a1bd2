"""What poses a problem, and what is refused in one line."""

from typing import Any

import pytest
import torch

from evostep.errors import InputError
from evostep.polishing.problem import make_problem

Z = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 0.0]])
Y = torch.tensor([0, 1, 2, 1])


def test_a_decision_adds_a_bias_before_the_largest_is_taken() -> None:
    problem = make_problem(Z, Y)
    assert problem.decide(torch.zeros(3)).tolist() == [0, 1, 2, 0]
    assert problem.decide(torch.tensor([0.0, 1.5, 0.0])).tolist() == [0, 1, 2, 1]
    assert problem.decide(torch.stack([torch.zeros(3)] * 2)[:, None]).shape == (2, 4)


@pytest.mark.parametrize("outputs", [torch.tensor([-1.0, 2.0]), torch.tensor([[-1.0], [2.0]])])
def test_one_output_is_decided_at_zero(outputs: torch.Tensor) -> None:
    problem = make_problem(outputs, torch.tensor([[0.0], [1.0]]))
    assert problem.kind == "binary"
    assert problem.classes == 2
    assert problem.decide(torch.zeros(1)).tolist() == [0, 1]
    assert problem.decide(torch.tensor([1.5])).tolist() == [1, 1]


def test_several_labels_are_decided_one_by_one() -> None:
    problem = make_problem(torch.tensor([[-1.0, 2.0], [3.0, -1.0]]), torch.tensor([[0, 1], [1, 1]]))
    assert problem.kind == "labels"
    assert problem.decide(torch.tensor([0.0, 2.0])).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": Z.clone().index_fill_(0, torch.tensor([2]), torch.nan)}, r"first are \[2\]"),
        ({"outputs": Z[:3]}, "one row for each decision"),
        ({"outputs": Z[:0], "targets": Y[:0]}, "one row for each decision"),
        ({"targets": torch.tensor([0, 1, 2, 3])}, r"must lie in 0 \.\.\. 2, got 0 \.\.\. 3"),
        ({"targets": torch.tensor([-1, 1, 2, 0])}, r"got -1 \.\.\. 2"),
        ({"targets": torch.tensor([0.5, 1, 2, 0])}, "got fractions"),
        ({"targets": torch.ones(4)}, "all targets are 1"),
        ({"targets": torch.ones(4, 2)}, "do not fit outputs"),
        ({"weights": [1, 2, 3]}, "weights must be 4"),
        ({"weights": [1, 2, 3, -1]}, "weights must be 4"),
        ({"weights": [0, 0, 0, 0]}, "all weights are zero"),
        ({"groups": ["a", "b"]}, "of the 4 examples, got 2"),
        ({"groups": ["a"] * 4}, "of one group"),
    ],
)
def test_what_poses_no_problem_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_problem(**{"outputs": Z, "targets": Y, **change})
