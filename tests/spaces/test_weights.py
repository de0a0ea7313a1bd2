"""Spaces: which weights may move, and genomes that are copies of them."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evostep import AllWeights, Only
from evostep.genome.point import RMS_FLOOR, Genome, Tensors, root_mean_square
from evostep.genome.slots import Slots, slots_of_groups, slots_of_module, slots_of_tensors
from evostep.spaces.base import Space


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.register_buffer("scale", torch.ones(3))
        self.register_buffer("counts", torch.zeros(3, dtype=torch.long))


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer1, self.layer10 = Block(), Block()
        self.ln = nn.LayerNorm(3)
        self.fc1, self.fc2 = nn.Linear(3, 5), nn.Linear(5, 2)


class RMSNormOfOnesOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))


class MyNorm(RMSNormOfOnesOwn):
    pass


def chosen(space: Space, model: nn.Module | None = None) -> set[str]:
    return set(space.touched(slots_of_module(model or Network())))


BLOCK = {"conv.weight", "conv.bias", "bn.weight", "bn.bias"}
LAYER1, LAYER10 = {f"layer1.{n}" for n in BLOCK}, {f"layer10.{n}" for n in BLOCK}
LN, FC1, FC2 = ({f"{m}.{n}" for n in ("weight", "bias")} for m in ("ln", "fc1", "fc2"))
BUFFERS = {"layer1.scale", "layer1.bn.running_mean", "layer1.bn.running_var"}
BN = {n for n in LAYER1 | LAYER10 if ".bn." in n}

CHOICES: list[tuple[Space, set[str]]] = [
    (AllWeights(), LAYER1 | LAYER10 | LN | FC1 | FC2),
    (Only("*"), LAYER1 | LAYER10 | LN | FC1 | FC2),
    (Only("layer1"), LAYER1),
    (Only("layer1.*"), LAYER1),
    (Only("layer1*"), LAYER1 | LAYER10),
    (Only("fc2.weight"), {"fc2.weight"}),
    (Only("*.bias", "ln"), {n for n in LAYER1 | LAYER10 | FC1 | FC2 if "bias" in n} | LN),
    (Only("fc?"), FC1 | FC2),
    (Only("head"), FC2),
    (Only("norm"), BN | LN),
    (Only("BatchNorm2d"), BN),
    (Only("*Norm*"), BN | LN),
    (Only(types=(nn.LayerNorm,)), LN),
    (Only(types=nn.LayerNorm), LN),  # type: ignore[arg-type]
    (Only("fc1", types=(nn.BatchNorm2d,)), BN | FC1),
    (Only("layer1", buffers=True), LAYER1 | BUFFERS),
    (Only("*.scale", buffers=True), {"layer1.scale", "layer10.scale"}),
]  # fmt: skip


def _ident(value: object) -> str:
    """A set in an order of its own: every worker must collect the same names."""
    return " ".join(sorted(value))[:40] if isinstance(value, set) else str(value)


@pytest.mark.parametrize(("space", "names"), CHOICES, ids=_ident)
def test_which_weights_move(space: Space, names: set[str]) -> None:
    assert chosen(space) == names


def test_names_come_in_the_models_order() -> None:
    names = Only("fc2", "layer1.conv").touched(slots_of_module(Network()))
    assert names == ("layer1.conv.weight", "layer1.conv.bias", "fc2.weight", "fc2.bias")


def test_the_head_of_a_fully_convolutional_network_is_its_last_convolution() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1), nn.ReLU())
    assert chosen(Only("head"), model) == {"2.weight", "2.bias"}


def test_a_norm_of_ones_own_is_known_by_the_name_of_its_type() -> None:
    assert chosen(Only("norm"), nn.Sequential(nn.Linear(3, 3), MyNorm())) == {"1.gain"}


def test_a_module_that_has_an_aliass_name_is_chosen_by_a_glob() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(2)
            self.head = nn.Linear(2, 2)
            self.other = nn.LayerNorm(2)
            self.last = nn.Linear(2, 2)

    assert chosen(Only("head.*"), Called()) == {"head.weight", "head.bias"}
    assert chosen(Only("head"), Called()) == {"head.weight", "head.bias"}
    assert chosen(Only("norm.*"), Called()) == {"norm.weight", "norm.bias"}
    assert len(chosen(Only("norm"), Called())) == 4


# Genomes


@pytest.mark.parametrize("space", [AllWeights(), Only("layer1", "head", buffers=True)])
def test_a_genome_is_a_detached_copy_that_decodes_to_the_weights(space: Space) -> None:
    slots = slots_of_module(Network())
    genome = space.open(slots)
    live = {**slots.buffers, **slots.tensors}
    assert tuple(genome.center) == space.touched(slots)
    for name, tensor in genome.center.items():
        assert torch.equal(tensor, live[name])
        assert tensor.data_ptr() != live[name].data_ptr()
        assert not tensor.requires_grad
        assert torch.equal(space.decode(Tensors(genome.center), name), live[name])


def test_a_groups_sigma_goes_into_the_genome() -> None:
    model = Network()
    groups = [
        {"params": model.fc1.parameters()},
        {"params": model.fc2.parameters(), "sigma": 0.0},
        {"params": model.ln.parameters(), "sigma": 0.125},
    ]
    slots = slots_of_groups(torch.optim.SGD(groups, lr=0.1).param_groups, model)
    sigma = AllWeights().open(slots).sigma
    assert [sigma[n] for n in ("fc1.weight", "fc2.bias", "ln.weight")] == [None, 0.0, 0.125]


def test_the_root_mean_square_has_a_floor() -> None:
    tensors = {
        "w": torch.tensor([3.0, 4.0]),
        "zero": torch.zeros(4),
        "tiny": torch.full((2,), 1e-9),
    }
    rms = root_mean_square(tensors)
    assert rms == pytest.approx({"w": 12.5**0.5, "zero": RMS_FLOOR, "tiny": RMS_FLOOR})
    assert root_mean_square({}) == {}


def test_the_root_mean_square_does_not_overflow_in_half_precision() -> None:
    assert root_mean_square({"w": torch.full((4,), 1000.0, dtype=torch.float16)})["w"] == 1000.0


def test_a_genome_that_moves_has_its_new_root_mean_square() -> None:
    center = {"w": torch.ones(3)}
    genome = Genome(center, {"w": None})
    assert genome.rms["w"] == 1.0
    tensor = center["w"]
    genome.move(Tensors({"w": torch.full((3,), 2.0)}))
    assert genome.rms["w"] == 2.0
    assert genome.center["w"] is tensor, "moved in place"


# What is refused


def modelless() -> Slots:
    return slots_of_tensors({"fc.weight": torch.zeros(2)})


REFUSED: list[tuple[Any, str]] = [
    (Only("layer5"), r"'layer5' matches no parameter; near it:.*layer1"),
    (Only("fc1", "fc3.weight"), r"'fc3.weight' matches no parameter; near it:.*fc[12].weight"),
    (Only("batchnorm2d"), r"'batchnorm2d' matches no parameter; near it: .*BatchNorm2d"),
    (Only("qqqqq"), r"'qqqqq' matches no parameter; there are layer1.conv.weight"),
    (Only("*.scale"), r"'\*.scale' matches no parameter"),  # a buffer, and buffers=False
    (Only("*.counts", buffers=True), r"'\*.counts' matches no parameter"),  # integers
    (Only(types=(nn.GroupNorm,)), r"no module of type GroupNorm.*BatchNorm2d.*Linear"),
]


@pytest.mark.parametrize(("space", "words"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_matches_nothing_is_refused(space: Space, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        chosen(space)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "space", [Only("head"), Only("norm"), Only(types=(nn.Linear,)), Only("*", buffers=True)]
)
def test_module_types_and_buffers_need_the_model(space: Space) -> None:
    with pytest.raises(ValueError, match=r"needs the model.*pass model="):
        space.touched(modelless())


def test_globs_need_no_model() -> None:
    assert Only("fc.*").touched(modelless()) == ("fc.weight",)


def test_choosing_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Only\(\) chooses nothing.*'head'"):
        Only()
    with pytest.raises(ValueError, match="nothing to evolve"):
        AllWeights().touched(slots_of_module(nn.ReLU()))


def test_spaces_show_how_they_were_made() -> None:
    space = Only("head", types=(nn.Linear,), buffers=True)
    assert repr(space) == "Only('head', types=(Linear,), buffers=True)"
    assert repr(AllWeights()) == "AllWeights()"


def test_all_weights_is_frozen() -> None:
    space: Any = AllWeights()
    with pytest.raises(FrozenInstanceError):
        space.extra = 1


def test_a_stepped_center_settles_to_what_was_written() -> None:
    class Recipe:
        def tensor(self, name: str) -> Tensor:
            raise AssertionError("the weights stand there already; noise need not be drawn again")

    live = {"w": torch.tensor([1.0])}
    genome = Genome({"w": torch.tensor([0.0])}, {"w": None})
    genome.move(AllWeights().settle(Recipe(), genome, live))
    assert genome.center["w"].tolist() == [1.0]
