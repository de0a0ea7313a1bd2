"""Which weights of a finished network may move."""

import copy

import pytest
import torch
from torch import nn
from torch.ao import quantization

import evostep
from evostep.errors import InputError
from evostep.genome.slots import slots_of_module
from evostep.polishing.spaces import check_space, scale_names, spaces_of


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


class Scaled(nn.Module):
    """A layer with scales of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("weight_scale", torch.ones(4, 1))
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.input_scale = nn.Parameter(torch.ones(1), requires_grad=False)


def test_names_and_spaces_are_what_there_is() -> None:
    assert set(spaces_of("auto", plain())) == {"head"}
    normed = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
    assert set(spaces_of("auto", normed)) == {"head", "norm"}
    own = evostep.Only("0.weight")
    assert spaces_of(own, normed) == {"Only('0.weight')": own}


def test_a_network_that_was_frozen_can_be_polished() -> None:
    model = plain().requires_grad_(False)
    (head,) = spaces_of("head", model).values()
    assert head.touched(slots_of_module(model)) == ("2.weight", "2.bias")


def test_scales_are_buffers_parameters_and_gains_of_norms() -> None:
    assert scale_names(Scaled()) == ["input_scale", "norm.weight", "weight_scale"]
    (space,) = spaces_of("scales", Scaled()).values()
    assert set(space.touched(slots_of_module(Scaled()))) == set(scale_names(Scaled()))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*reduce_range")  # torch's own
def test_fake_quantised_layers_once_their_observers_are_off() -> None:
    model = plain()
    model.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    model = quantization.prepare_qat(copy.deepcopy(model).train())
    model(torch.randn(8, 4))
    with pytest.raises(InputError, match=r"observers of . layers .*disable_observer"):
        scale_names(model)
    assert "scales" not in spaces_of("auto", model)
    model.apply(quantization.disable_observer)
    found = scale_names(model)
    assert {name.rpartition(".")[2] for name in found} == {"scale"}
    assert any(name.startswith("0.") for name in found)


@pytest.mark.parametrize(
    ("space", "told"),
    [
        ("norm", "space='norm': the model has nothing of the kind"),
        ("scales", "no parameter or floating-point buffer is called scale"),
    ],
)
def test_a_space_that_is_not_there_is_one_line(space: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        spaces_of(space, plain())
    assert "\n" not in str(error.value)


def test_what_is_no_space_is_refused() -> None:
    with pytest.raises(InputError, match="did you mean head"):
        check_space("haed", plain())
    with pytest.raises(InputError, match="or a space such as"):
        check_space(3, plain())  # type: ignore[arg-type]
    for space in ("head", evostep.Only("head")):
        with pytest.raises(InputError, match="needs a network"):
            check_space(space, None)
    check_space("auto", None)


def test_an_own_space_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match=r"space=Only\('layer9.*matches no parameter"):
        spaces_of(evostep.Only("layer9.*"), plain())
