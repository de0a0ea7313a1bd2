"""What tells that training had other class frequencies: found where it had, silent where not."""

import pytest
import torch
from torch import Tensor

import evostep
from evostep.polishing.problem import Problem, make_problem
from evostep.polishing.shift import other_frequencies

PRIOR = torch.tensor([0.7, 0.25, 0.05])


def drawn(shares: Tensor, n: int, seed: int = 0, classes: int = 3) -> tuple[Tensor, Tensor]:
    """Return outputs that are right under PRIOR, and labels that have other shares."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.multinomial(shares, n, replacement=True, generator=g)
    x = torch.randn(n, classes, generator=g) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    return 1.5 * x + PRIOR.log(), labels


@pytest.mark.parametrize("n", [60, 300, 3000])
def test_right_probabilities_are_passed_over(n: int) -> None:
    told = [other_frequencies(make_problem(*drawn(PRIOR, n, seed))) for seed in range(100)]
    assert sum(text is not None for text in told) <= 1


def test_balanced_examples_of_an_unbalanced_training_are_noticed() -> None:
    even = torch.ones(3) / 3
    told = [other_frequencies(make_problem(*drawn(even, 200, seed))) for seed in range(50)]
    assert all(text is not None for text in told)
    assert "class 2" in str(told) or "class 0" in str(told)


def test_one_output_and_several_labels_are_read_too() -> None:
    outputs, labels = drawn(torch.ones(3) / 3, 600)
    rare = (labels == 2).long()
    margin = outputs[:, 2] - outputs[:, :2].logsumexp(1)
    assert "class 1" in str(other_frequencies(make_problem(margin, rare)))
    both = torch.stack((rare, 1 - rare), 1)
    several = make_problem(torch.stack((margin, -margin), 1), both)
    assert "label 0" in str(other_frequencies(several))


def test_weights_count_as_examples_do() -> None:
    outputs, labels = drawn(PRIOR, 2000)
    assert other_frequencies(make_problem(outputs, labels)) is None
    weights = 1 / PRIOR[labels]
    assert other_frequencies(make_problem(outputs, labels, weights=weights)) is not None


def test_copies_within_a_group_are_no_evidence() -> None:
    outputs, labels = drawn(torch.ones(3) / 3, 12)
    many, same = outputs.repeat(50, 1), labels.repeat(50)
    assert other_frequencies(make_problem(many, same)) is not None
    groups = list(range(12)) * 50
    assert other_frequencies(make_problem(many, same, groups=groups)) is None


def test_a_class_that_does_not_occur_is_none_where_few_were_expected() -> None:
    outputs = torch.tensor([3.0, 3.0, -4.0]).repeat(300, 1)
    labels = torch.arange(300) % 2
    assert other_frequencies(Problem(outputs, labels, "classes")) is None


def test_the_result_says_so_only_where_no_frequencies_are_given() -> None:
    outputs, labels = drawn(torch.ones(3) / 3, 400)
    quick = {"folds": 3, "budget": 1500, "draws": 200}

    def told(**prior: Tensor) -> str:
        return str(evostep.polish(None, (outputs, labels), "worst-class-recall", **quick, **prior))

    assert "give these as prior" in told()
    named = {"class_names": ["usual", "some", "rare"], **quick}
    text = str(evostep.polish(None, (outputs, labels), "worst-class-recall", **named))
    assert "% of rare, which" in text or "% of usual, which" in text
    assert "class 0" not in text
    with pytest.raises(ValueError, match="class_names has 2 names for 3 classes"):
        evostep.polish(None, (outputs, labels), class_names=["usual", "rare"])
    assert "give these as prior" not in told(prior=PRIOR)
