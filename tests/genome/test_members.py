"""Members made many at a time are those made one by one, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from evostep import AllWeights, LowRank, OpenAIES, RandomMutation, RandomSearch
from evostep.genome.members import (
    Mirror,
    Perturbed,
    Spread,
    reflect_,
    stack_factors,
    stack_members,
    write_member,
)
from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.genome.slots import slots_of_module
from evostep.noise import Noise

NAMES = ("matrix", "vector", "still")
STRATEGY = OpenAIES(0.1, population=6)


class Layer(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(7, 5, generator=generator).to(dtype))
        self.vector = nn.Parameter(torch.randn(3, generator=generator).to(dtype))
        self.still = nn.Parameter(torch.randn(2, 2, generator=generator).to(dtype))


def genome_of(dtype: torch.dtype = torch.float32) -> Genome:
    slots = slots_of_module(Layer(dtype))
    slots.sigma["still"] = 0.0
    return AllWeights().open(slots)


def population(genome: Genome, noise: Noise = "normal") -> list[Coordinates]:
    strategy = OpenAIES(0.1, population=6, noise=noise)
    return [strategy.member(genome, {}, 3, i, 11) for i in range(6)]


def one_by_one(members: Sequence[Coordinates], name: str, like: Tensor) -> Tensor:
    return torch.stack([member.tensor(name).to(like.dtype) for member in members])


ORDERS = {
    "pairs": [0, 1, 2, 3, 4, 5],
    "some of the pairs": [2, 3, 4, 5],
    "an end and a beginning": [1, 2, 3, 4],
    "mirror images alone": [1, 3, 5],
    "no mirror image": [0, 2, 4],
    "backwards": [5, 4, 3, 2, 1, 0],
    "one twice": [0, 3, 0, 1],
    "one": [3],
}


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("order", ORDERS)
def test_many_at_once_are_those_made_one_by_one(order: str, dtype: torch.dtype) -> None:
    genome = genome_of(dtype)
    everyone = population(genome)
    members = [everyone[i] for i in ORDERS[order]]
    stacked = stack_members(members, NAMES)
    for name in NAMES:
        assert stacked[name].dtype == dtype
        assert torch.equal(stacked[name], one_by_one(members, name, genome.center[name])), name
    distinct = {tuple(row.flatten().tolist()) for row in stacked["matrix"]}
    assert len(distinct) == len(set(ORDERS[order]))


def test_what_does_not_move_is_the_center_in_every_member() -> None:
    genome = genome_of()
    stacked = stack_members(population(genome), ["still"])["still"]
    assert torch.equal(stacked, genome.center["still"].expand(6, 2, 2))


@pytest.mark.parametrize("strategy", [RandomMutation(0.1, population=4), RandomSearch(0.1, 4)])
def test_other_strategies_are_stacked_too(strategy: RandomMutation | RandomSearch) -> None:
    genome = genome_of()
    members = [strategy.member(genome, {}, 0, i, 5) for i in range(4)]
    for name, stacked in stack_members(members, NAMES).items():
        assert torch.equal(stacked, one_by_one(members, name, stacked)), name


def test_members_of_two_generations_and_tensors_are_stacked_one_by_one() -> None:
    genome = genome_of()
    members: list[Coordinates] = [
        STRATEGY.member(genome, {}, 0, 0, 5),
        STRATEGY.member(genome, {}, 1, 0, 5),
        Tensors(genome.center),
    ]
    for name, stacked in stack_members(members, NAMES).items():
        assert torch.equal(stacked, one_by_one(members, name, stacked)), name


@pytest.mark.parametrize("order", ORDERS)
def test_factors_of_many_are_those_of_each(order: str) -> None:
    genome = genome_of()
    everyone = population(genome, LowRank(2))
    members = [everyone[i] for i in ORDERS[order]]
    found = stack_factors(members, "matrix")
    assert found is not None
    A, B = found
    assert A.shape == (len(members), 7, 2)
    assert B.shape == (len(members), 5, 2)
    center = genome.center["matrix"]
    for i, member in enumerate(members):
        assert isinstance(member, Perturbed | Mirror)
        own = member.factors("matrix")
        assert own is not None
        assert torch.equal(A[i], own[0])
        assert torch.equal(B[i], own[1])
        dense = member.tensor("matrix")
        assert not torch.equal(dense, center)
        torch.testing.assert_close(center + A[i] @ B[i].T, dense)


@pytest.mark.parametrize("name", ["vector", "still"])
def test_there_are_no_factors_of_a_vector_or_of_what_does_not_move(name: str) -> None:
    assert stack_factors(population(genome_of(), LowRank(2)), name) is None


def test_there_are_no_factors_of_dense_noise_or_of_tensors() -> None:
    genome = genome_of()
    assert stack_factors(population(genome), "matrix") is None
    assert stack_factors([Tensors(genome.center)], "matrix") is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_pair_lies_opposite_and_its_image_is_made_of_the_member(dtype: torch.dtype) -> None:
    genome = genome_of(dtype)
    member, image, *_ = population(genome)
    for name in ("matrix", "vector"):
        center = genome.center[name]
        rounded = member.tensor(name).to(dtype)
        assert torch.equal(image.tensor(name), reflect_(rounded.clone(), center))
        middle = (rounded.double() + image.tensor(name).double()) / 2
        torch.testing.assert_close(middle, center.double(), rtol=torch.finfo(dtype).eps, atol=1e-2)


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("i", [0, 1])
def test_a_member_is_written_as_it_is(i: int, dtype: torch.dtype, contiguous: bool) -> None:
    genome = genome_of(dtype)
    member = population(genome)[i]
    for name in NAMES:
        out = torch.full_like(genome.center[name], 9.0)
        if not contiguous and out.dim() == 2:
            out = out.T.contiguous().T
        write_member(member, name, out)
        assert torch.equal(out, member.tensor(name).to(dtype)), name


def test_an_image_reflects_its_own_member_and_no_other() -> None:
    genome = genome_of()
    member, image, other = (STRATEGY.member(genome, {}, 3, i, 11) for i in range(3))
    assert isinstance(image, Mirror)
    assert image.reflects(member)
    assert image.reflects(STRATEGY.member(genome, {}, 3, 0, 11)), "the same recipe written anew"
    assert not image.reflects(other)
    assert not image.reflects(image)
    assert not image.reflects(Tensors(genome.center))
    assert not image.reflects(STRATEGY.member(genome_of(), {}, 3, 0, 11)), "another center"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_an_image_lies_opposite_to_within_one_rounding_of_its_distance_and_one_of_itself(
    dtype: torch.dtype,
) -> None:
    """The law of `reflect_`, whatever the sizes of center and member."""
    half = torch.finfo(dtype).eps / 2
    for size in (1e-2, 1.0, 30.0):
        center = torch.randn(4000).to(dtype)
        member = (center.float() + size * torch.randn(4000)).to(dtype)
        image = reflect_(member.clone(), center)
        assert image.dtype == dtype
        exact = 2 * center.double() - member.double()
        distance = (center.double() - member.double()).abs()
        assert not torch.equal(image, member)
        bound = half * (distance + image.double().abs()) * 1.01 + torch.finfo(dtype).tiny
        assert bool(((image.double() - exact).abs() <= bound).all())


def test_numbers_that_leave_room_are_reflected_exactly_and_back_again() -> None:
    center = torch.tensor([1.0, -2.0, 0.0, 0.5])
    member = torch.tensor([1.25, 3.0, -7.0, 0.5])
    image = reflect_(member.clone(), center)
    assert image.tolist() == [0.75, -7.0, 7.0, 0.5]
    assert torch.equal(reflect_(image, center), member)


def test_it_is_reflected_where_it_lies() -> None:
    tensor, center = torch.ones(3), torch.zeros(3)
    found = reflect_(tensor, center)
    assert found is tensor
    assert tensor.tolist() == [-1.0, -1.0, -1.0]
    assert center.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("part", ["noise", "spread", "seed", "generation", "direction"])
def test_an_image_of_another_recipe_reflects_no_member(part: str) -> None:
    genome = genome_of()
    member, image, *_ = population(genome)
    assert isinstance(member, Perturbed)
    assert isinstance(image, Mirror)
    others = {
        "noise": "uniform",
        "spread": Spread(0.2, relative=True),
        "seed": 12,
        "generation": 4,
        "direction": 1,
    }
    assert image.reflects(replace(member))
    assert not image.reflects(replace(member, **{part: others[part]}))


def test_members_of_two_seeds_centers_or_generations_are_stacked_each_as_it_is() -> None:
    genome, other = genome_of(), genome_of()
    for tensor in other.center.values():
        tensor.add_(1.0)
    members: list[Coordinates] = [
        STRATEGY.member(genome, {}, 0, 0, 5),
        STRATEGY.member(genome, {}, 0, 0, 6),
        STRATEGY.member(other, {}, 0, 1, 5),
        OpenAIES(0.3, population=6).member(genome, {}, 0, 1, 5),
        STRATEGY.member(genome, {}, 1, 0, 5),
    ]
    for other_one in members[1:]:
        some = [members[0], other_one]
        for name, stacked in stack_members(some, NAMES).items():
            assert torch.equal(stacked, one_by_one(some, name, stacked)), name
        assert not torch.equal(*stack_members(some, ["matrix"])["matrix"])
