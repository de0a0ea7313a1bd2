"""The first population, what it may consist of, and a saved one that comes back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from evostep.genome.anatomy import clean_names
from evostep.population.individual import Individual, transplant
from evostep.population.species import Species


def found(
    individuals: Sequence[tuple[nn.Module, Optimizer | Species]], seed: int
) -> list[Individual]:
    """Make the first population, once it is sure to be one; species draw their optimizers.

    Raises:
        ValueError: what is no pair; models of different architecture, or that share a tensor; an
            optimizer of another model. Nothing is touched then.
    """
    pairs = _pairs(individuals)
    check_population(pairs)
    return [
        Individual(
            model,
            optimizer.make(model, seed=seed, individual=i)
            if isinstance(optimizer, Species)
            else optimizer,
            i,
        )
        for i, (model, optimizer) in enumerate(pairs)
    ]


def revive(
    i: int,
    saved: Mapping[str, Any],
    individuals: Sequence[Individual],
    founders: Sequence[Optimizer],
) -> Individual:
    """Return the individual that `saved` is to be loaded into, once that is sure to work.

    Args:
        i: its place.
        saved: what `ESGD.state_dict` has for it.
        individuals: the population as it is now.
        founders: the optimizers of the first population, each for the model of its own place.

    Returns:
        The one in its place, with another optimizer where the species differs.

    Raises:
        ValueError: a model of another architecture, an optimizer of another species.
    """
    model = individuals[i].model
    ours = {name: tuple(tensor.shape) for name, tensor in _tensors_of(model.state_dict())}
    theirs = {name: tuple(tensor.shape) for name, tensor in _tensors_of(saved["model"])}
    if ours != theirs:
        name = sorted(set(ours.items()) ^ set(theirs.items()))[0][0]
        raise ValueError(
            f"the state's individual {i} has {name} as {theirs.get(name)}, this population's "
            f"as {ours.get(name)}: load it into one of the same architecture"
        )
    founder = saved["founder"]
    if not 0 <= founder < len(founders):
        raise ValueError(f"the state's individual {i} descends from {founder}, which is none")
    made = transplant(founders[founder], individuals[founder].model, model, keep_state=False)
    own = type(made).__name__
    if saved["optimizer_type"] != own:
        raise ValueError(
            f"the state's individual {i} trains by {saved['optimizer_type']}, but individual "
            f"{founder} here, from which it descends, by {own}: load it into one with the same "
            "optimizers in the same order"
        )
    try:
        made.load_state_dict(saved["optimizer"])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"the state's individual {i} has other parameter groups than this population's {own} "
            f"({error}): load it into one with the same optimizers"
        ) from error
    return individuals[i] if individuals[i].founder == founder else Individual(model, made, founder)


def layout(model: nn.Module) -> list[tuple[Any, ...]]:
    """Describe the architecture: what must agree for weights to be mixed name by name."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    names = clean_names([name for name, _ in tensors])
    rows: list[tuple[Any, ...]] = [
        (name, tuple(tensor.shape), tensor.dtype, tensor.device)
        for name, (_, tensor) in zip(names, tensors, strict=True)
    ]
    return rows + [(type(module).__name__,) for module in model.modules()]


def check_population(pairs: Sequence[tuple[nn.Module, Any]]) -> None:
    """Refuse models of different architecture, shared tensors and foreign optimizers.

    Args:
        pairs: (model, optimizer); what is no optimizer is left to the caller.

    Raises:
        ValueError: naming the individual and what is wrong with it.
    """
    first = layout(pairs[0][0])
    seen: dict[int, int] = {}
    for i, (model, optimizer) in enumerate(pairs):
        rows = layout(model)
        for ours, theirs in zip(rows, first, strict=False):
            if ours != theirs:
                raise ValueError(
                    f"individual {i} has {_row(ours)} where individual 0 has {_row(theirs)}: all "
                    "models must have the same architecture, type and device"
                )
        if len(rows) != len(first):
            raise ValueError(
                f"individual {i} has {len(rows)} tensors and modules, individual 0 has "
                f"{len(first)}: all models must have the same architecture"
            )
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if seen.setdefault(id(tensor), i) != i:
                raise ValueError(
                    f"individuals {seen[id(tensor)]} and {i} share the tensor {name}: give each a "
                    "model of its own"
                )
        own = {id(parameter) for parameter in model.parameters()}
        if isinstance(optimizer, Optimizer):
            for group in optimizer.param_groups:
                if any(id(parameter) not in own for parameter in group["params"]):
                    raise ValueError(
                        f"the optimizer of individual {i} trains a parameter that its model does "
                        "not have: make it from that model's parameters"
                    )


def _row(row: tuple[Any, ...]) -> str:
    if len(row) == 1:
        return f"a module {row[0]}"
    name, shape, dtype, device = row
    return f"{name} {list(shape)} {dtype} on {device}"


def _pairs(
    individuals: Sequence[tuple[nn.Module, Optimizer | Species]],
) -> list[tuple[nn.Module, Optimizer | Species]]:
    pairs = list(individuals)
    for i, pair in enumerate(pairs):
        if not (
            isinstance(pair, tuple | list)
            and len(pair) == 2
            and isinstance(pair[0], nn.Module)
            and isinstance(pair[1], Optimizer | Species)
        ):
            raise ValueError(
                f"individual {i} must be a pair of a model and an optimizer or evostep.Species, "
                f"got {type(pair).__name__}"
            )
    return pairs


def _tensors_of(state: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in state.items() if isinstance(value, Tensor)]
