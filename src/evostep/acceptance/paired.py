"""Paired tests: a candidate must be better, not luckier.

McNemar 1947, https://doi.org/10.1007/BF02295996 (exact, one-sided); Student's paired t; the paired
permutation test of Fisher and Pitman (Edgington & Onghena 2007), with the p value of Phipson &
Smyth 2010, https://doi.org/10.2202/1544-6115.1585, which is never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from evostep.acceptance.base import Every, Rule, check_every, gives_per_example
from evostep.acceptance.tails import binomial_tail, student_tail
from evostep.errors import InputError
from evostep.noise import derive_seed, make_generator
from evostep.scoring.fitness import Fitness
from evostep.scoring.nests import leaves, map_leaves
from evostep.scoring.scores import Scores

Kind = Literal["mcnemar", "t", "permutation"]
_CHUNK = 256  # permutations of per-example gains that are drawn at a time


@dataclass(frozen=True)
class PairedTest(Rule):
    """Accept if a one-sided test on the same examples says that the candidate is better.

    Family-wise: attempt k of a run is tested at the level alpha / (k (k + 1)), and these sum to
    alpha however many attempts there are, so the probability that a run ever accepts a candidate
    that is no better is at most alpha (Bonferroni; alpha spending), given examples that
    selection has not seen: pass `accept_on`. Each phase is one attempt; with
    ``every="generation"`` each generation is one, and the level soon is too low to be reached.

    Args:
        alpha: of the whole run, in (0, 1).
        kind: ``"mcnemar"``: examples put right against examples broken, exactly binomial; for
            scores of 0 and 1, such as accuracy. ``"t"``: on gains of the examples, for losses;
            approximate where they are few and skewed. ``"permutation"``: swaps parent's and
            candidate's outputs example by example and computes the metric again; for every
            metric of a `Fitness`, macro-F1 included. Where the metric is a mean over examples,
            swapping turns a gain's sign, which is fast.
        every: ``"phase"`` or ``"generation"``.
        permutations: at least so many are drawn, and as many as the attempt's level takes
            (2 / level); drawing stops as soon as the candidate cannot pass any more.
        seed: of the permutations, with the attempt's number.

    Raises:
        ValueError: alpha outside (0, 1), an unknown kind, no permutation; when asked, scores
            without per-example values for ``"mcnemar"`` and ``"t"`` or without outputs for
            ``"permutation"``, and values other than 0 and 1 for ``"mcnemar"``.

    Example:
        >>> parent = Scores(0.2, torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
        >>> candidate = Scores(1.0, torch.ones(8))
        >>> PairedTest().p_value(parent, candidate)
        0.0078125
        >>> PairedTest()(parent, candidate, attempts=1)  # 0.0078 <= 0.05 / 2
        True
        >>> PairedTest()(parent, candidate, attempts=3)  # 0.0078 > 0.05 / 12
        False
    """

    alpha: float = 0.05
    kind: Kind = "mcnemar"
    every: Every = field(default="phase", kw_only=True)
    permutations: int = field(default=999, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    needs_fresh = True

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1, got {self.alpha}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.permutations < 1:
            raise ValueError(f"permutations must be at least 1, got {self.permutations}")
        check_every(self.every)

    @property
    def needs_outputs(self) -> bool:  # type: ignore[override]
        """Whether outputs have to be kept: for permutations."""
        return self.kind == "permutation"

    def level(self, attempts: int) -> float:
        """Return the level at which attempt number `attempts` (from 1) is tested.

        Example:
            >>> PairedTest(alpha=0.06).level(2)
            0.01
        """
        return self.alpha / (attempts * (attempts + 1))

    def check(self, fitness: Fitness | Callable[[], float]) -> None:
        """Raise ValueError for a fitness that cannot give what this kind of test needs."""
        if self.kind == "permutation":
            if not isinstance(fitness, Fitness):
                raise InputError(
                    "PairedTest needs the outputs of each example, which a bare callable does not "
                    "give: make an evostep.Fitness, or use Improves"
                )
        elif gives_per_example(fitness) is False:
            raise self._nothing_per_example()

    def __call__(self, parent: Scores, candidate: Scores, attempts: int) -> bool:
        """Accept if the p value is at most the level of this attempt."""
        level = self.level(attempts)
        return self.p_value(parent, candidate, attempts, stop_above=level) <= level

    def p_value(
        self,
        parent: Scores,
        candidate: Scores,
        attempts: int = 1,
        *,
        stop_above: float = math.inf,
    ) -> float:
        """Return the one-sided p value of "the candidate is no better"; 1 where anything is NaN.

        Args:
            parent: scores of the parent.
            candidate: scores of the candidate, on the same examples.
            attempts: number of this attempt, from which permutations are drawn.
            stop_above: stop drawing once p must be above this; what is given then is a lower
                bound, and above it, too.
        """
        if math.isnan(parent.value) or math.isnan(candidate.value):
            return 1.0  # one that failed has no scores of its examples
        if self.kind == "permutation":
            return self._permuted(parent, candidate, attempts, stop_above)
        if parent.per_example is None or candidate.per_example is None:
            raise self._nothing_per_example()
        before, after = parent.per_example.double(), candidate.per_example.double()
        if not bool((before.isfinite() & after.isfinite()).all()):
            return 1.0
        return _mcnemar(before, after) if self.kind == "mcnemar" else _t(after - before)

    def _permuted(
        self, parent: Scores, candidate: Scores, attempts: int, stop_above: float
    ) -> float:
        if not (math.isfinite(parent.value) and math.isfinite(candidate.value)):
            return 1.0
        least = math.ceil(2 / self.level(attempts)) - 1
        total = max(self.permutations, least)
        generator = make_generator(derive_seed(self.seed, attempts, "permutation"))
        if parent.per_example is not None and candidate.per_example is not None:
            gains = candidate.per_example.double() - parent.per_example.double()
            if not bool(gains.isfinite().all()):
                return 1.0
            return _flipped(gains.cpu(), total, generator, stop_above)
        if parent.measure is None or parent.outputs is None or candidate.outputs is None:
            raise InputError(
                "PairedTest(kind='permutation') needs the outputs of each example: score with "
                "evostep.Fitness.score(..., keep_outputs=True)"
            )
        return _swapped(parent, candidate, total, generator, stop_above)

    def _nothing_per_example(self) -> InputError:
        return InputError(
            f"PairedTest(kind={self.kind!r}) compares the scores of each example, and this fitness "
            "has none: use kind='permutation'"
        )


def _mcnemar(before: Tensor, after: Tensor) -> float:
    for values in (before, after):
        odd = values[(values != 0) & (values != 1)]
        if len(odd):
            raise InputError(
                "PairedTest(kind='mcnemar') takes examples that are right (1) or wrong (0), got "
                f"{float(odd[0]):g}: use kind='t' or kind='permutation'"
            )
    fixed = int(((before == 0) & (after == 1)).sum())
    broken = int(((before == 1) & (after == 0)).sum())
    return binomial_tail(fixed, fixed + broken)


def _t(gains: Tensor) -> float:
    n = len(gains)
    if n < 2:
        return 1.0
    mean, error = float(gains.mean()), float(gains.std()) / math.sqrt(n)
    if error == 0:
        return 0.0 if mean > 0 else 1.0
    return student_tail(mean / error, n - 1)


def _flipped(gains: Tensor, total: int, generator: torch.Generator, stop_above: float) -> float:
    """The p value of the mean gain, when signs of gains are turned at random."""
    gains = gains[gains != 0]  # a sign turns nothing there
    # sums that differ by rounding alone are ties, and a tie counts against the candidate
    observed = float(gains.sum()) - 1e-12 * float(gains.abs().sum())
    reached = 0
    for start in range(0, total, _CHUNK):
        rows = min(_CHUNK, total - start)
        signs = torch.randint(2, (rows, len(gains)), generator=generator, dtype=torch.int8)
        sums = (2 * signs - 1).double() @ gains
        reached += int((sums >= observed).sum())
        if (1 + reached) / (total + 1) > stop_above:
            break
    return (1 + reached) / (total + 1)


def _swapped(
    parent: Scores,
    candidate: Scores,
    total: int,
    generator: torch.Generator,
    stop_above: float,
) -> float:
    """The p value of the metric's gain, when outputs of examples are swapped at random."""
    assert parent.measure is not None, "the caller looked"
    observed = candidate.value - parent.value
    n = len(next(leaves(parent.outputs)))
    reached = 0
    for _ in range(total):
        swap = torch.randint(2, (n,), generator=generator).bool()
        after = parent.measure(_choose(swap, parent.outputs, candidate.outputs), parent.targets)
        before = parent.measure(_choose(swap, candidate.outputs, parent.outputs), parent.targets)
        # not >=: a metric that is NaN somewhere speaks against the candidate; so does rounding
        reached += not (after - before < observed - 1e-9 * max(1.0, abs(observed)))
        if (1 + reached) / (total + 1) > stop_above:
            break
    return (1 + reached) / (total + 1)


def _choose(mask: Tensor, yes: Any, no: Any) -> Any:
    """Take each example from `yes` where `mask` is true, else from `no`."""

    def one(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(mask.to(a.device).view(-1, *[1] * (a.ndim - 1)), a, b)

    return map_leaves(one, yes, no)
