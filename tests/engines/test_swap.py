"""Other tensors in a model's places, and its own back again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from evostep.engines.swap import places, swapped


class Held(nn.Module):
    """One module in two places, one weight in two modules, a buffer, a bias that is absent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3, bias=False)
        self.again = self.first
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.tied(self.again(self.first(x))) + self.shift
        return out


def names(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def objects(model: nn.Module) -> list[int]:
    return [
        id(tensor)
        for module in model.modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
    ]


def test_each_place_is_found_once_and_those_of_tied_weights_all() -> None:
    model = Held()
    found = places(model, names(model))
    assert found["first.weight"] == [(model.first, "weight"), (model.tied, "weight")]
    assert found["tied.bias"] == [(model.tied, "bias")]
    assert found["shift"] == [(model, "shift")]
    assert len(found) == 3


def test_what_the_model_does_not_hold_is_left_out() -> None:
    assert places(Held(), {"other": torch.ones(3)}) == {}


def test_a_forward_uses_the_other_tensors_everywhere() -> None:
    model, other = Held(), Held()
    with torch.no_grad():
        other.shift.fill_(5.0)
    x = torch.randn(4, 3)
    where = places(model, names(model))
    with swapped(where, names(other)):
        assert torch.equal(model(x), other(x))
    assert not torch.equal(model(x), other(x))


def test_other_names_keep_the_models_own() -> None:
    model = Held()
    where = places(model, names(model))
    with swapped(where, {"shift": torch.zeros(3)}):
        assert not model.shift.any()
        assert model.first.weight is model.tied.weight
        assert isinstance(model.first.weight, nn.Parameter)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_models_own_are_back_whatever_is_raised(error: type[BaseException]) -> None:
    model = Held()
    before = objects(model)
    where = places(model, names(model))
    inside: list[list[int]] = []

    def fail() -> None:
        with swapped(where, names(Held())):
            inside.append(objects(model))
            raise error

    with pytest.raises(error):
        fail()
    assert inside != [before]
    assert objects(model) == before


def test_an_unknown_name_changes_nothing() -> None:
    model = Held()
    before = objects(model)
    where = places(model, names(model))
    with (
        pytest.raises(KeyError, match="nowhere"),
        swapped(where, {"shift": torch.zeros(3), "nowhere": torch.zeros(3)}),
    ):
        pass
    assert objects(model) == before
