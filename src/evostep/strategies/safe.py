"""Safe mutations: noise that is small where the network's outputs are sensitive.

Lehman, Chen, Clune, Stanley 2018, "Safe Mutations for Deep and Recurrent Neural Networks through
Output Gradients", https://arxiv.org/abs/1712.06563: SM-G-SUM and SM-G-ABS divide each weight's
noise by the sensitivity of the outputs to it, SM-R rescales a whole mutation until it changes the
outputs as much as is asked for. Floors and the measure of change are those of the authors' code.
What differs: the two can be combined (a target along with a sensitivity), and the line search is a
secant on logarithms inside a bracket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.func import vjp, vmap

from evostep.errors import InputError, reason, renamed_argument
from evostep.scoring.nests import map_leaves, map_tensors
from evostep.scoring.probe import Batch, Probe

SafeKind = Literal["sum", "abs", "rescale"]
SAFE_KINDS: tuple[str, ...] = get_args(SafeKind)
SENSITIVITY_FLOOR = 0.01
SEARCH_TRIES = 16
SEARCH_TOLERANCE = 0.1
# How many numbers of a Jacobian are held at once: 64 MB of float32.
_CHUNK = 2**24

Function = Callable[[Mapping[str, Tensor], Any], Tensor]


@dataclass(frozen=True)
class Safe:
    """How mutations are kept safe; the `scale` of a `RandomMutation`.

    With y_o(x) output o for example x, and w one weight:

    - ``"sum"`` (SM-G-SUM): s = sqrt(sum_o (sum_x dy_o/dw)^2): effects that cancel over examples
      do not count, and more examples make larger sensitivities.
    - ``"abs"`` (SM-G-ABS): s = sqrt(sum_o (mean_x |dy_o/dw|)^2).
    - ``"rescale"`` (SM-R): no sensitivities; the noise of ``scale="rms"``, rescaled to the target.

    Noise has standard deviation sigma / s, where s is at least 0.01, and 1 where it is zero. With a
    `target` each mutation is multiplied by the number with which it changes the outputs so much.

    On other examples the outputs can change more (measured: about twice, with 32 examples of the
    digits and ``"sum"``): weights that the measured ones do not use get the most noise. More
    examples narrow that.

    Sensitivities are measured anew for each generation, at its center and on its own examples (so
    that a resumed run has the same bits), in eval mode: with n examples and o outputs that costs
    n * (1 + 2 * o) sample-forwards. A line search costs n for the center and about 2 to 6 times n,
    at most 16, for each child. Memory: about three copies of the weights that move for
    sensitivities, and 64 MB or one more copy.

    Args:
        kind: ``"sum"``, ``"abs"`` or ``"rescale"``.
        examples: at most so many of the fitness's examples are used, evenly spaced.
        target: change of the outputs to be reached within 10%: the mean over examples of the
            Euclidean length of the outputs' difference, in the outputs' unit (for a classifier:
            logits). None: no line search.

    Raises:
        ValueError: an unknown kind, fewer than one example, a target <= 0, ``"rescale"`` without
            a target.

    Example:
        >>> from evostep import RandomMutation
        >>> safe = RandomMutation(0.02, population=8, scale=Safe("abs", target=0.5))
        >>> default = RandomMutation(0.02, scale="safe")  # the same as Safe()
    """

    kind: SafeKind = "sum"
    examples: int = 64
    target: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in SAFE_KINDS:
            raise ValueError(f"kind must be one of {', '.join(SAFE_KINDS)}, got {self.kind!r}")
        if self.examples < 1:
            raise ValueError(f"examples must be at least 1, got {self.examples}")
        if self.target is not None and not (self.target > 0 and math.isfinite(self.target)):
            raise ValueError(f"target must be a finite number > 0, got {self.target}")
        if self.kind == "rescale" and self.target is None:
            raise ValueError(
                "kind='rescale' needs a target, got None: say by how much a mutation should change "
                "the outputs, such as target=0.5"
            )

    @renamed_argument("children", "population")
    def cost(self, examples: int, outputs: int, population: int) -> int:
        """Return the most sample-forwards that one generation's measuring takes.

        Args:
            examples: of the fitness in one generation.
            outputs: of the network for each example.
            population: of the `RandomMutation`.

        Example:
            >>> Safe().cost(examples=1000, outputs=10, population=16)
            1344
        """
        n = min(self.examples, examples)
        gradients = 0 if self.kind == "rescale" else n * (1 + 2 * outputs)
        return gradients + (0 if self.target is None else n * (1 + SEARCH_TRIES * population))


def measure_sensitivity(
    probe: Probe, center: Mapping[str, Tensor], batches: Sequence[Batch], kind: SafeKind
) -> dict[str, Tensor]:
    """Return each weight's sensitivity, floored, for ``"sum"`` or ``"abs"``: see `Safe`.

    Args:
        probe: counts what this costs.
        center: name -> coordinates of what moves.
        batches: from `Probe.inputs`.
        kind: ``"sum"`` or ``"abs"``.

    Raises:
        ValueError: a model that torch.func cannot differentiate, whose outputs do not depend on
            the weights by differentiable operations, or whose gradients are not finite.
    """
    name = type(probe.model).__name__
    correction = "use scale='rms', or Safe('rescale', target=...), which needs no gradients"
    measure = sum_sensitivity if kind == "sum" else abs_sensitivity
    try:
        with probe.measuring(), torch.enable_grad():
            sensitivity, outputs = measure(probe.function, center, batches)
    except Exception as error:
        raise InputError(
            f"torch.func cannot differentiate the outputs of {name} ({reason(error)}): {correction}"
        ) from error
    n = sum(batch.count for batch in batches)
    probe.count(forward=n, backward=n * outputs)
    if not any(bool(s.any()) for s in sensitivity.values()):
        raise InputError(
            f"no output of {name} depends on what evolves as far as torch.func can tell: "
            f"{correction}"
        )
    if not all(bool(s.isfinite().all()) for s in sensitivity.values()):
        raise InputError(f"gradients of the outputs of {name} are not finite: {correction}")
    return {name: floored(s) for name, s in sensitivity.items()}


def floored(sensitivity: Tensor) -> Tensor:
    """Return 1 for a sensitivity of zero, and at least 0.01 for every other.

    Example:
        >>> floored(torch.tensor([0.0, 1e-6, 4.0])).tolist()
        [1.0, 0.009999999776482582, 4.0]
    """
    return torch.where(sensitivity == 0, 1.0, sensitivity.clamp(min=SENSITIVITY_FLOOR))


def sum_sensitivity(
    function: Function, center: Mapping[str, Tensor], batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], int]:
    """Return sqrt(sum_o (sum_x dy_o(x)/dw)^2) for each weight, not floored (SM-G-SUM).

    Args:
        function: (coordinates, inputs) -> outputs, (n, ...).
        center: name -> coordinates at which to differentiate.
        batches: whose inputs `function` takes; all with equally many outputs.

    Returns:
        Name -> sensitivities of the center's shape, float32 or wider; the number of outputs.
    """
    pulls: list[tuple[int, Callable[..., Any]]] = []
    widths, like = set(), torch.empty(0)
    for batch in batches:
        outputs, pull = _pull(function, center, batch.inputs)
        pulls.append((len(outputs), pull))
        widths.add(outputs.shape[1])
        like = outputs
    (width,) = widths
    chunk = _chunk(center, width)
    squares = _zeros(center)
    for start in range(0, width, chunk):
        stop = min(start + chunk, width)
        one_hot = torch.eye(width, dtype=like.dtype, device=like.device)[start:stop]
        jacobian: dict[str, Tensor] = {}
        for n, pull in pulls:
            (part,) = vmap(pull)(one_hot[:, None].expand(-1, n, -1))  # name -> (chunk, ...)
            for name, rows in part.items():
                rows = rows.to(squares[name].dtype)
                jacobian[name] = jacobian[name] + rows if name in jacobian else rows
        for name, rows in jacobian.items():
            squares[name] += rows.square().sum(0)
    return {name: total.sqrt_() for name, total in squares.items()}, width


def abs_sensitivity(
    function: Function, center: Mapping[str, Tensor], batches: Sequence[Batch]
) -> tuple[dict[str, Tensor], int]:
    """Return sqrt(sum_o (mean_x |dy_o(x)/dw|)^2) for each weight, not floored (SM-G-ABS).

    Arguments and result are those of `sum_sensitivity`. Each example is given weights of its own,
    all of them views of the center, whose gradients then are that example's.
    """
    count = sum(batch.count for batch in batches)
    pulls: list[tuple[int, Callable[..., Any]]] = []
    widths, like = set(), torch.empty(0)
    for inputs, n in _split(batches, _chunk(center, count)):
        own = {name: tensor.expand(n, *tensor.shape) for name, tensor in center.items()}
        outputs, pull = _pull(partial(_one_by_one, function, n), own, inputs)
        pulls.append((n, pull))
        widths.add(outputs.shape[1])
        like = outputs
    (width,) = widths
    squares = _zeros(center)
    for o in range(width):
        total = _zeros(center)
        for n, pull in pulls:
            one_hot = torch.zeros(n, width, dtype=like.dtype, device=like.device)
            one_hot[:, o] = 1.0
            (part,) = pull(one_hot)  # name -> (n, ...)
            for name, rows in part.items():
                total[name] += rows.abs().sum(0)
        for name in squares:
            squares[name] += (total[name] / count).square()
    return {name: total.sqrt_() for name, total in squares.items()}, width


def search_magnitude(
    change: Callable[[float], float],
    target: float,
    *,
    tolerance: float = SEARCH_TOLERANCE,
    tries: int = SEARCH_TRIES,
) -> float:
    """Find the factor by which to multiply a mutation for it to change the outputs by `target`.

    Begins at 1. The change is about proportional to a small mutation, so the next guess is in
    proportion; between a factor that is too small and one that is too large, their geometric mean
    takes its place every third time, and where proportion leads out of the bracket.

    Args:
        change: magnitude -> change of the outputs; what is not finite counts as too large.
        target: change to reach, > 0.
        tolerance: relative; the search stops where the change is within it.
        tries: how often `change` is called at most.

    Returns:
        The first magnitude within the tolerance; else the one whose change came nearest, in
        proportion; 1 where none had any effect.

    Example:
        >>> search_magnitude(lambda m: 5 * m, target=0.1)
        0.02
    """
    low, high = 0.0, math.inf
    best, nearest, magnitude = 1.0, math.inf, 1.0
    for i in range(tries):
        now = change(magnitude)
        effect = math.isfinite(now) and now > 0
        off = abs(math.log(now / target)) if effect else math.inf
        if off < nearest:
            best, nearest = magnitude, off
        if off <= math.log1p(tolerance):
            break
        small = math.isfinite(now) and now < target
        low, high = (magnitude, high) if small else (low, magnitude)
        factor = target / now if effect else (10.0 if small else 0.1)
        guess = magnitude * min(max(factor, 0.01), 100.0)
        if not low < guess < high or (i % 3 == 2 and low > 0 and high < math.inf):
            guess = math.sqrt(low * high) if low > 0 else high / 10
        magnitude = guess
    return best


def output_change(before: Tensor, after: Tensor) -> float:
    """Return the mean over examples of the Euclidean length of the outputs' difference.

    Args:
        before: (n, o).
        after: (n, o).

    Example:
        >>> output_change(torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        2.5
    """
    return float((after - before).double().norm(dim=1).mean())


def _pull(
    function: Function, center: Mapping[str, Tensor], inputs: Any
) -> tuple[Tensor, Callable[..., Any]]:
    """Return the outputs, (n, o), and what takes their cotangents back to the coordinates."""
    result: Any = vjp(lambda at: function(at, inputs).flatten(1), dict(center))
    outputs, pull = result
    return outputs, pull


def _one_by_one(function: Function, n: int, own: Mapping[str, Tensor], inputs: Any) -> Tensor:
    """Return the outputs of n examples, each with weights of its own, (n, outputs)."""

    def one(at: Mapping[str, Tensor], x: Any) -> Tensor:
        # an example that stands alone is a batch of one; what all share stays as it is
        return function(at, map_leaves(_in_front, x, dims)).flatten()

    def _in_front(value: Any, dim: int | None) -> Any:
        return value if dim is None else value.unsqueeze(dim)

    dims = map_tensors(inputs, lambda t: 0 if t.dim() and len(t) == n else None, None)
    per_name = dict.fromkeys(own, 0)
    rows: Tensor = vmap(one, in_dims=(per_name, dims), randomness="different")(dict(own), inputs)
    return rows


def _split(batches: Sequence[Batch], size: int) -> list[tuple[Any, int]]:
    """Cut batches into pieces of at most `size` examples."""
    pieces = []
    for batch in batches:
        for start in range(0, batch.count, size):
            stop = min(start + size, batch.count)

            def cut(t: Tensor, batch: Batch = batch, at: slice = slice(start, stop)) -> Tensor:
                return t[at] if t.dim() and len(t) == batch.count else t

            pieces.append((map_tensors(batch.inputs, cut), stop - start))
    return pieces


def _chunk(center: Mapping[str, Tensor], most: int) -> int:
    """Return how many gradients to hold at once, in [1, most]."""
    d = sum(tensor.numel() for tensor in center.values())
    return max(1, min(most, _CHUNK // max(d, 1)))


def _zeros(center: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: torch.zeros_like(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        for name, tensor in center.items()
    }
