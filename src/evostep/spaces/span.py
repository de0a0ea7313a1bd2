"""Span: the weights that mixing a run's own checkpoints gives.

Searching mixtures instead of weights: averages of Izmailov et al. 2018 (SWA),
https://arxiv.org/abs/1803.05407, as a starting point, and coefficients to be learned as in Li et
al. 2022, "Trainable Weight Averaging", https://arxiv.org/abs/2205.13104, though by evolution on
the metric that is reported, and for each layer by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from evostep.errors import InputError, needs_package, reason
from evostep.genome.anatomy import clean_names
from evostep.genome.point import Coordinates, Genome, Tensors
from evostep.genome.slots import Slots
from evostep.noise import derive_seed
from evostep.spaces.base import Checkpoint, Space, State, check_movable
from evostep.unpacking import check_unpacked, size_of_zip

Groups = Literal["layer", "tensor", "all"]
Coefficients = Literal["affine", "convex"]


class Span(Space):
    """Mixtures of checkpoints, the current weights among them.

    Coordinates are, for each group of weights, a float64 vector z of shape (K,), one number for
    each checkpoint, oldest first, the weights as the phase finds them last. The weights are
    ``sum_j c_j(z) W_j`` with coefficients that sum to 1: a unit vector is a checkpoint, to the
    bit. Each phase opens the span anew, at the current weights or at the uniform average,
    whichever scores better on the selection examples (the current weights where they tie).

    Call `Evolution.remember` or `Evolved.remember` to fill it. A remembered checkpoint that equals
    the current weights is left out. A strategy starts anew where the checkpoints changed. Weights
    whose sigma is 0 are not mixed; elsewhere a parameter group's sigma is in units of coefficients.
    Buffers are not mixed: give `Fitness` a `calibration`, or BatchNorm statistics will not fit.

    Memory: `memory` copies of all parameters on the host, and one on the device in a phase;
    decoding a member reads them all once.

    Args:
        memory: how many of the run's checkpoints are kept, at least 1, thinned evenly.
        checkpoints: more of them: state dictionaries, or files (``.safetensors``, or what
            `torch.save` wrote of a state dictionary), read at once and kept.
        groups: weights that share their coefficients: ``"layer"`` (of one module), ``"tensor"``
            or ``"all"``.
        coefficients: ``"affine"``: c = z + (1 - sum z) / K, negative ones included; z counts up to
            that shift. ``"convex"``: c = the point nearest to z that is nowhere negative and
            sums to 1 (Duchi et al. 2008, https://doi.org/10.1145/1390156.1390191). Unlike a softmax
            it reaches the checkpoints themselves.
        frozen: whether parameters with ``requires_grad=False`` are mixed, too.

    Raises:
        ValueError: memory below 1, unknown groups or coefficients, a checkpoint that cannot be
            read or is of another shape; when a phase opens, nothing to mix.

    Example:
        >>> from evostep import Evolution, RandomMutation
        >>> w = torch.tensor([1.0, 5.0])
        >>> strategy = RandomMutation(0.3, scale="absolute")
        >>> search = Evolution({"w": w}, strategy, space=Span(memory=4))
        >>> search.remember()
        >>> _ = w.copy_(torch.tensor([5.0, 1.0]))  # gradient steps
        >>> records = search.evolve(lambda: -float(w.var()), generations=1)
        >>> w  # the average was better than both
        tensor([3., 3.])
    """

    needs_names = True

    def __init__(
        self,
        memory: int = 8,
        checkpoints: Sequence[str | Path | Mapping[str, Tensor]] = (),
        groups: Groups = "layer",
        coefficients: Coefficients = "affine",
        frozen: bool = False,
    ) -> None:
        if isinstance(memory, bool) or not isinstance(memory, int) or memory < 1:
            raise ValueError(f"memory must be an integer >= 1, got {memory!r}")
        for name, value, kinds in (
            ("groups", groups, get_args(Groups)),
            ("coefficients", coefficients, get_args(Coefficients)),
        ):
            if value not in kinds:
                raise ValueError(f"{name} must be one of {', '.join(kinds)}, got {value!r}")
        if isinstance(checkpoints, str | Path | Mapping):
            raise ValueError(
                f"checkpoints must be a list, got one {type(checkpoints).__name__}: put it in a "
                "list"
            )
        self.memory = memory
        self.groups: Groups = groups
        self.coefficients: Coefficients = coefficients
        self.frozen = frozen
        self.checkpoints = tuple(_read(i, given) for i, given in enumerate(checkpoints))

    def __repr__(self) -> str:
        given = f", {len(self.checkpoints)} checkpoints" if self.checkpoints else ""
        return (
            f"Span(memory={self.memory}{given}, groups={self.groups!r}, "
            f"coefficients={self.coefficients!r}{', frozen=True' if self.frozen else ''})"
        )

    def touched(self, slots: Slots) -> tuple[str, ...]:
        """Return the names of all parameters whose sigma is not 0."""
        movable = check_movable(slots.movable(frozen=self.frozen), slots, "Span(frozen=True)")
        names = tuple(name for name in movable if slots.sigma.get(name) != 0)
        if not names:
            raise ValueError("there is nothing to mix: no parameter with a sigma other than 0")
        wanted = {name: slots.tensors[name] for name in names}
        for i, checkpoint in enumerate(self.checkpoints):
            check_fits(checkpoint, wanted, f"checkpoint {i}")
        return names

    def enter(
        self, slots: Slots, remembered: Sequence[Checkpoint], saved: State | None = None
    ) -> Space:
        """Open the span: the checkpoints, and the weights as they stand."""
        return _Opened(self, slots, remembered, saved)

    def open(self, slots: Slots) -> Genome:
        """Refuse: without checkpoints there are no coordinates."""
        raise ValueError(f"{self!r} takes the checkpoints of an Evolution: call its evolve()")

    def decode(self, coordinates: Coordinates, name: str) -> Tensor:
        """Refuse, as `open` does."""
        raise ValueError(f"{self!r} takes the checkpoints of an Evolution: call its evolve()")


class _Opened(Space):
    """A span in one phase: its checkpoints are fixed."""

    needs_names = True

    def __init__(
        self,
        span: Span,
        slots: Slots,
        remembered: Sequence[Checkpoint],
        saved: State | None,
    ) -> None:
        self.span = span
        self._names = span.touched(slots)
        self._saved = saved
        self._group = {name: _group_of(name, span.groups) for name in self._names}
        self._sigma = _sigma_of_groups(self._group, slots)
        self._fixed = slots.fixed
        live = {name: slots.tensors[name].detach() for name in self._names}
        self._current = {
            name: saved["current"][name].to(tensor.device) if saved else tensor.clone()
            for name, tensor in live.items()
        }
        given = [Checkpoint(0, checkpoint) for checkpoint in span.checkpoints]
        for checkpoint in remembered:
            check_fits(checkpoint.weights, live, f"remembered checkpoint {checkpoint.number}")
        self._others = [c for c in (*given, *remembered) if not self._is_current(c.weights)]
        if not self._others:
            raise ValueError(
                "the Span is empty, there is no checkpoint but the current weights: call "
                "remember() as the run goes along, or pass checkpoints="
            )
        self._basis = [*(c.weights for c in self._others), self._current]

    def _is_current(self, weights: Mapping[str, Tensor]) -> bool:
        return all(
            torch.equal(weights[name].to(tensor), tensor) for name, tensor in self._current.items()
        )

    @property
    def layout(self) -> int:
        numbers = [checkpoint.number for checkpoint in self._others]
        names = [part for pair in self._group.items() for part in pair]
        return derive_seed(self.span.coefficients, *numbers, *names)

    def touched(self, slots: Slots) -> tuple[str, ...]:
        return self._names

    def open(self, slots: Slots) -> Genome:
        if self._saved is not None:
            center = {name: z.cpu().clone() for name, z in self._saved["coordinates"].items()}
        else:
            unit = torch.zeros(len(self._basis), dtype=torch.float64)
            unit[-1] = 1.0
            center = {group: unit.clone() for group in self._sigma}
        return Genome(center, self._sigma)

    def state(self, genome: Genome) -> State:
        return {
            "current": dict(self._current),
            "coordinates": {name: z.clone() for name, z in genome.center.items()},
        }

    def starts(self, genome: Genome) -> dict[str, Coordinates]:
        k = len(self._basis)
        even = torch.full((k,), 1.0 / k, dtype=torch.float64)
        return {"average": Tensors(dict.fromkeys(genome.center, even))}

    def decode(self, coordinates: Coordinates, name: str) -> Tensor:
        z = coordinates.tensor(self._group[name]).double().cpu()
        c = (_affine(z) if self.span.coefficients == "affine" else project(z)).tolist()
        used = [(weight, basis[name]) for weight, basis in zip(c, self._basis, strict=True)]
        used = [(weight, tensor) for weight, tensor in used if weight != 0]
        current = self._current[name]
        if len(used) == 1 and used[0][0] == 1:
            return self._confined(name, used[0][1])  # not even a zero loses its sign
        wide = torch.promote_types(current.dtype, torch.float32)
        mixed = torch.zeros_like(current, dtype=wide)
        for weight, tensor in used:
            mixed.add_(tensor.to(mixed), alpha=weight)
        return self._confined(name, mixed)

    def _confined(self, name: str, mixed: Tensor) -> Tensor:
        """Return a mixture but for the entries that stand still, which are the current ones."""
        fixed = self._fixed.get(name)
        if fixed is None:
            return mixed
        current = self._current[name]
        return torch.where(fixed, current, mixed.to(current.device))


def _affine(z: Tensor) -> Tensor:
    """Move z along the diagonal until it sums to 1."""
    return z + (1.0 - z.sum()) / len(z)


def project(z: Tensor) -> Tensor:
    """Return the point nearest to z, shape (K,), that is nowhere negative and sums to 1.

    Example:
        >>> project(torch.tensor([0.75, 0.75, -2.0])).tolist()
        [0.5, 0.5, 0.0]
    """
    falling = z.sort(descending=True).values
    excess = (falling.cumsum(0) - 1.0) / torch.arange(1, len(z) + 1, dtype=z.dtype)
    count = int((falling > excess).sum())
    # z that is not finite has no nearest point; weights that are NaN rank last
    return (z - excess[count - 1]).clamp_min(0.0) if count else torch.full_like(z, math.nan)


def check_fits(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError where a checkpoint lacks a parameter or has one of another shape."""
    for name, tensor in tensors.items():
        if name not in weights:
            raise InputError(
                f"{what} has no {name!r}, which the model has: take a checkpoint of this model"
            )
        if weights[name].shape != tensor.shape:
            raise InputError(
                f"{what} has {name!r} of shape {tuple(weights[name].shape)}, the model of shape "
                f"{tuple(tensor.shape)}: take a checkpoint of this model"
            )


def _group_of(name: str, groups: Groups) -> str:
    if groups == "all":
        return "all"
    return (name.rpartition(".")[0] or name) if groups == "layer" else name


def _sigma_of_groups(group_of: Mapping[str, str], slots: Slots) -> dict[str, float | None]:
    sigmas: dict[str, float | None] = {}
    for name, group in group_of.items():
        sigma = slots.sigma.get(name)
        if sigmas.setdefault(group, sigma) != sigma:
            raise InputError(
                f"weights that are mixed together ({group!r}) have the sigmas {sigmas[group]} and "
                f"{sigma}: give their parameter groups the same, or take Span(groups='tensor')"
            )
    return sigmas


def _read(i: int, given: Any) -> dict[str, Tensor]:
    """Return a user's checkpoint as clean name -> tensor, copied to host memory."""
    values: Any = given
    if isinstance(given, str | Path):
        values = _load(Path(given))
        for key in ("state_dict", "model"):  # as training scripts wrap it
            if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
                values = values[key]
    if not isinstance(values, Mapping) or not any(isinstance(v, Tensor) for v in values.values()):
        raise InputError(
            f"checkpoint {i} must be a state dictionary or a file of one, got "
            f"{given if isinstance(given, str | Path) else type(given).__name__}"
        )
    tensors = {str(name): v for name, v in values.items() if isinstance(v, Tensor)}
    cleaned = clean_names(list(tensors))
    pairs = zip(cleaned, tensors.values(), strict=True)
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in pairs}


def _load(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {str(path)!r}: give the path of a file")
    try:
        if path.suffix != ".safetensors":
            check_unpacked(
                path, size_of_zip(path), "save it by torch.save, which does not compress"
            )
            return torch.load(path, map_location="cpu", weights_only=True)
        from safetensors.torch import load_file

        return load_file(path)
    except InputError:
        raise
    except ImportError as error:
        raise needs_package(repr(str(path)), "safetensors", "evostep[lab]", error) from error
    except Exception as error:  # what a broken file raises depends on where it is broken
        raise InputError(
            f"{str(path)!r} cannot be read as a checkpoint ({reason(error)}): save a state "
            "dictionary by torch.save or safetensors"
        ) from error
