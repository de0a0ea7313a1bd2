"""What a model's modules tell of its tensors: names, places, and entries that stand still.

Noise depends on names, so they must not depend on wrappers: ``_orig_mod.`` (torch.compile) and
``module.`` (data parallel) are stripped. Tied weights count once, under their first name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module")
_INNER = ("module", "_orig_mod")
_PARAMETRIZED = ".parametrizations."


def clean_names(names: Sequence[str]) -> list[str]:
    """Strip the prefixes of wrappers, unless two names would become one.

    Example:
        >>> clean_names(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"])
        ['fc.weight', 'fc.bias']
    """
    cleaned = [
        ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names
    ]
    while cleaned and all(name.startswith("module.") for name in cleaned):
        cleaned = [name.removeprefix("module.") for name in cleaned]
    return cleaned if len(set(cleaned)) == len(names) else list(names)


def module_names(model: nn.Module) -> dict[int, str]:
    """Return id(parameter) -> its clean name, tied parameters once."""
    pairs = list(model.named_parameters())
    cleaned = clean_names([name for name, _ in pairs])
    return {id(tensor): name for name, (_, tensor) in zip(cleaned, pairs, strict=True)}


@dataclass(frozen=True)
class Place:
    """Where a model holds a tensor; tied weights have several.

    Attributes:
        path: the tensor's name there, such as ``"decoder.weight"``.
        name: under which it evolves.
        owner: the module that holds it.
        kind: the module's type; of a parametrized tensor that of the module it belongs to.
        tensor: itself.
    """

    path: str
    name: str
    owner: nn.Module
    kind: type[nn.Module]
    tensor: Tensor

    @property
    def module(self) -> str:
        """The module's path."""
        path, parametrized, _ = self.path.rpartition(_PARAMETRIZED)
        return path if parametrized else self.path.rpartition(".")[0]


def places_of(model: nn.Module, names: Mapping[int, str]) -> tuple[Place, ...]:
    """Return where a model holds tensors, in its own order, tied ones every time.

    Args:
        model: whose modules are searched.
        names: id(tensor) -> name, of those to find.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = [
        (f"{path}.{key}" if path else key, module, tensor)
        for path, module in modules.items()
        for key, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None and id(tensor) in names
    ]
    places = []
    for cleaned, (path, owner, tensor) in zip(
        clean_names([path for path, _, _ in found]), found, strict=True
    ):
        whose = modules[path.rpartition(_PARAMETRIZED)[0]] if _PARAMETRIZED in path else owner
        kind = parametrize.type_before_parametrizations(whose)
        places.append(Place(cleaned, names[id(tensor)], owner, kind, tensor))
    return tuple(places)


def fixed_entries(places: Iterable[Place]) -> dict[str, Tensor]:
    """Return the entries that no gradient reaches: name -> bool, broadcastable to the tensor.

    The padding row of an embedding, and what `torch.nn.utils.prune` has masked; a weight that is
    tied stands still where it does so in each of its places.
    """
    masks: dict[str, list[Tensor | None]] = {}
    for place in places:
        masks.setdefault(place.name, []).append(_fixed(place))
    fixed: dict[str, Tensor] = {}
    for name, found in masks.items():
        known = [mask for mask in found if mask is not None]
        if not known or len(known) < len(found):
            continue
        fixed[name] = known[0]
        for mask in known[1:]:
            fixed[name] = fixed[name] & mask
    return fixed


def _fixed(place: Place) -> Tensor | None:
    """Return the entries that gradients do not reach in one place of a tensor; None: no such."""
    owner, tensor = place.owner, place.tensor
    key = place.path.rpartition(".")[2]
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and owner.padding_idx is not None:
        rows = torch.zeros(len(tensor), 1, dtype=torch.bool, device=tensor.device)
        rows[owner.padding_idx] = True
        return rows
    mask: Tensor | None = None
    if key.endswith("_orig"):  # torch.nn.utils.prune
        mask = owner._buffers.get(f"{key.removesuffix('_orig')}_mask")
    elif isinstance(owner, parametrize.ParametrizationList):
        # torch.ao.pruning, known by its name: to import it takes as long as torch
        sparse = (part for part in owner if type(part).__name__ == "FakeSparsity")
        mask = next((part._buffers.get("mask") for part in sparse), None)
    return mask == 0 if mask is not None and mask.shape == tensor.shape else None


def declared_head(model: nn.Module) -> set[int]:
    """Return the ids of the tensors of the layer that the model itself says makes its outputs.

    Hugging Face's models have ``get_output_embeddings()``, timm's ``get_classifier()``; others say
    it by a layer's name, wherever it was defined, or by being a sequence.
    """
    for one in (model, *(getattr(model, key, None) for key in _INNER)):
        if type(one) is nn.Sequential:
            return _last_of(one)
        for method in ("get_output_embeddings", "get_classifier"):
            try:
                found = getattr(one, method)()
            except Exception:  # whatever a model's own method raises: it does not say
                continue
            layers: Sequence[object] = found if isinstance(found, tuple | list) else [found]
            modules = [layer for layer in layers if isinstance(layer, nn.Module)]
            ids = {id(p) for module in modules for p in module.parameters()}
            if ids:
                return ids
        for name in _HEADS:
            layer = getattr(one, name, None)
            if isinstance(layer, _LAYERS):
                return {id(p) for p in layer.parameters()}
    return set()


def _last_of(sequence: nn.Sequential) -> set[int]:
    """Return the ids of the last layer's tensors; none where what comes last is no layer."""
    for module in reversed(sequence):
        if type(module) is nn.Sequential:
            found = _last_of(module)
            if found:
                return found
        elif any(True for _ in module.parameters()):
            plain = isinstance(module, _LAYERS)
            return {id(p) for p in module.parameters()} if plain else set()
    return set()


_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
# What a model's last layer is called by custom.
_HEADS = ("head", "lm_head", "classifier", "fc", "fc_out", "output_layer")
