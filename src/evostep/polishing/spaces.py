"""Which weights of a finished network may move, by the names that `evostep.polish` takes."""

from __future__ import annotations

from torch import nn

from evostep.errors import InputError, unknown_name
from evostep.genome.slots import slots_of_module
from evostep.spaces.base import Space
from evostep.spaces.weights import Only

DECISION, AUTO = "decision", "auto"
NAMES = (DECISION, "head", "norm", "scales", AUTO)
# What scales of quantised layers are called, in torch.ao and elsewhere.
_SCALES = ("scale", "scales", "scale_factor", "zero_point", "zero_points", "log_scale")
_OBSERVING = "observer_enabled"  # of torch.ao's fake quantisation


def check_space(space: str | Space, model: nn.Module | None) -> None:
    """Raise an InputError for what is no space, or one that needs a network where there is none."""
    if isinstance(space, str) and space not in NAMES:
        raise unknown_name("space", space, NAMES)
    if not isinstance(space, str | Space):
        raise InputError(
            f"space must be one of {', '.join(NAMES)}, or a space such as evostep.Only('head'), "
            f"got {space!r}"
        )
    if model is None and space not in (DECISION, AUTO):
        raise InputError(
            f"space={space!r} needs a network: of a black box only the decision can be evolved, "
            "space='decision'"
        )


def spaces_of(space: str | Space, model: nn.Module) -> dict[str, Space]:
    """Return the spaces of weights that are asked for, by name; the decision is none of these.

    Those of ``"auto"`` are what there is of head, norm and scales. Weights with
    ``requires_grad=False`` move, too: it says how a network was trained.

    Raises:
        InputError: there is nothing of the kind in the model.
    """
    if isinstance(space, Space):
        try:
            space.touched(slots_of_module(model))
        except ValueError as error:
            raise InputError(f"space={space!r}: {error}") from error
        return {repr(space): space}
    found: dict[str, Space] = {}
    for name in NAMES[1:-1] if space == AUTO else (space,):
        try:
            found[name] = _named(name, model)
        except ValueError as error:
            if space != AUTO:
                raise InputError(
                    f"space={name!r}: the model has nothing of the kind ({error})"
                ) from error
    return found


def _named(name: str, model: nn.Module) -> Space:
    if name != "scales":
        space = Only(name, frozen=True)
        space.touched(slots_of_module(model))
        return space
    return Only(*scale_names(model), buffers=True, frozen=True)


def scale_names(model: nn.Module) -> list[str]:
    """Return the names of the tensors that scale: of quantised layers, and gains of norms.

    Raises:
        InputError: there is no scale of a quantised layer; observers would overwrite it.

    Example:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> layer.register_buffer("weight_scale", torch.ones(1))
        >>> scale_names(nn.Sequential(layer, nn.LayerNorm(2)))
        ['1.weight', '0.weight_scale']
    """
    watching = [
        path
        for path, module in model.named_modules()
        if getattr(module, _OBSERVING, None) is not None and bool(getattr(module, _OBSERVING).any())
    ]
    if watching:
        raise InputError(
            f"the observers of {len(watching)} layers ({watching[0]}, ...) are on and would "
            "overwrite their scales: model.apply(torch.ao.quantization.disable_observer) first"
        )
    slots = slots_of_module(model)
    places = {place.name: place for place in slots.places}

    def scales(name: str) -> bool:
        key = name.rpartition(".")[2].lower()
        return key in _SCALES or key.endswith(tuple(f"_{end}" for end in _SCALES))

    names = [*slots.tensors, *slots.buffers]
    found = [name for name in names if scales(name)]
    if not found:
        raise InputError(
            "no parameter or floating-point buffer is called scale, zero_point or weight_scale: "
            "take space='norm', or name them by space=evostep.Only(..., buffers=True)"
        )
    norms = Only("norm", frozen=True)
    try:
        gains = norms.touched(slots)
    except ValueError:
        gains = ()
    wanted = {*found, *(name for name in gains if places[name].path.endswith("weight"))}
    return [name for name in names if name in wanted]
