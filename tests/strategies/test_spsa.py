"""SPSA: the estimate is Spall's, and so are the gains."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from evostep import AllWeights, Always, Evolution
from evostep.genome.point import Genome
from evostep.genome.slots import slots_of_tensors
from evostep.strategies.spsa import ALPHA, GAMMA, SPSA


def genome(*values: float) -> Genome:
    return AllWeights().open(slots_of_tensors({"w": torch.tensor(values)}))


def rows(strategy: SPSA, center: Genome, state: dict[str, Any], n: int) -> torch.Tensor:
    return torch.stack([strategy.member(center, state, 0, i, 7).tensor("w") for i in range(n)])


def test_members_are_corners_of_a_cube_in_opposite_pairs_that_shrinks() -> None:
    center, spsa = genome(1.0, -2.0, 0.5), SPSA(0.3, population=4, scale="absolute")
    for k in (0, 9):
        delta = rows(spsa, center, {"k": k}, 4) - center.center["w"]
        assert delta.abs().sub(0.3 / (k + 1) ** GAMMA).abs().max() < 1e-6
        assert torch.allclose(delta[0::2], -delta[1::2], atol=1e-6)


def test_the_step_is_spalls() -> None:
    center, k = genome(1.0, -2.0, 0.5), 4
    spsa = SPSA(0.3, lr=0.2, population=4, stability=3.0, scale="absolute")
    delta = (rows(spsa, center, {"k": k}, 4) - center.center["w"])[0::2].sign()
    scores = [0.5, 0.1, 0.2, 0.3]
    step, told = spsa.tell(center, {"k": k}, 0, scores, 0.0, 7)
    c, a = 0.3 / (k + 1) ** GAMMA, 0.2 / (k + 1 + 3) ** ALPHA
    gradient = (0.4 * delta[0] - 0.1 * delta[1]) / (2 * c) / 2
    assert step is not None
    assert torch.allclose(step.center.tensor("w"), center.center["w"] + a * gradient, atol=1e-6)
    assert told == {"k": k + 1}


def test_the_estimate_is_unbiased_on_a_linear_function() -> None:
    center, slope = genome(0.0, 0.0, 0.0), torch.tensor([1.0, -0.5, 0.25])
    spsa = SPSA(0.1, lr=1.0, scale="absolute")
    steps = []
    for seed in range(2000):
        pair = [spsa.member(center, {}, 0, i, seed).tensor("w") for i in (0, 1)]
        step, _ = spsa.tell(center, {}, 0, [float(p @ slope) for p in pair], 0.0, seed)
        assert step is not None
        steps.append(step.center.tensor("w"))
    assert (torch.stack(steps).mean(0) - slope).abs().max() < 0.1  # 4 standard errors


def test_a_pair_of_which_one_failed_counts_for_nothing() -> None:
    center, spsa = genome(1.0, 2.0), SPSA(0.1, population=4, scale="absolute")
    one, _ = spsa.tell(center, {}, 0, [float("nan"), 5.0, 0.2, 0.1], 0.0, 7)
    other, _ = spsa.tell(center, {}, 0, [0.3, 0.3, 0.2, 0.1], 0.0, 7)
    assert one is not None
    assert other is not None
    assert torch.equal(one.center.tensor("w"), other.center.tensor("w"))


def test_it_goes_on_where_it_was_saved() -> None:
    def search(w: torch.Tensor) -> Evolution:
        return Evolution({"w": w}, SPSA(0.1, lr=0.2, scale="absolute"), accept=Always(), seed=3)

    whole, part = torch.tensor([3.0, -2.0]), torch.tensor([3.0, -2.0])
    search(whole).evolve(lambda: -float(whole.square().sum()), 6)
    first = search(part)
    first.evolve(lambda: -float(part.square().sum()), 3)
    second = search(part)
    second.load_state_dict(first.state_dict())
    second.evolve(lambda: -float(part.square().sum()), 3)
    assert torch.equal(part, whole)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lr": 0.0}, "lr must be"),
        ({"population": 3}, "even and at least 2, got 3"),
        ({"population": 0}, "even and at least 2, got 0"),
        ({"stability": -1.0}, "stability must be"),
        ({"noise": "uniform"}, "draws signs"),
        ({"sigma": 0.0}, "sigma must be"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SPSA(**{"sigma": 0.1, **given})
