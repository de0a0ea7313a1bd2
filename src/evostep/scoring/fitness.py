"""Fitness: what members are scored on. Higher is better, everywhere.

Any ``Callable[[], float]`` that scores the model as it now stands is a fitness. `Fitness` is the
one that knows its examples, which gives it scores for each example, caching, and speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.errors import warn
from evostep.interrupts import Undoing
from evostep.noise import derive_seed, make_generator
from evostep.scoring.accumulators import Stacked
from evostep.scoring.batches import Batches, Examples, Forward, Keep
from evostep.scoring.calibration import Calibration
from evostep.scoring.finite import NOT_FINITE, Finite
from evostep.scoring.forms import Reader, TargetKind
from evostep.scoring.isolation import (
    ModuleState,
    listening,
    modes_of,
    preserved_rng,
    set_modes,
)
from evostep.scoring.metrics import MetricLike, find_metric, known_of, make_metric
from evostep.scoring.nests import concatenate
from evostep.scoring.placing import model_device
from evostep.scoring.scores import Scores
from evostep.scoring.splitting import unweighted


class Fitness:
    """Scores a model on examples by a metric.

    The batches are read once, and copies are kept on the model's device, so that every member of
    every generation is scored on the same examples, and a resumed run on the same as the first one.
    A pickle of it carries the source of the batches, which is read again; a deep copy shares them.

    Args:
        model: the module to score. Scored in eval mode, without gradients; modes are put back.
        batches: a list, a DataLoader that does not shuffle, or any iterable that can be read
            again. A batch is ``(inputs, targets)``, ``(input1, input2, ..., targets)``, or a
            dictionary (or named tuple, or dataclass) with its targets under one of ``labels, label,
            targets, target, y`` and the model's arguments under the other names. Inputs that are a
            plain tuple, or the list that a DataLoader makes of one, are several arguments. A last
            part that is floating-point, (n,), and one more than the model's ``forward`` takes is
            the weights of the examples, as is ``sample_weight`` in a dictionary; one for each
            target is taken, too, where an example has several. NumPy arrays become tensors, those
            of texts lists; with `forward` they stay what they are.
        metric: ``"accuracy"``, ``"macro-f1"``, ``"worst-class-recall"``, ``"f-beta(2)"``,
            ``"neg-loss"`` or another name of docs/scores.md; a torchmetrics metric; a function or
            scorer of scikit-learn's; or a callable on (outputs, targets) that returns a number, or
            one for each example, shape (n,).
        loss: what ``"neg-loss"`` is minus of; any function or module on (outputs, targets).
        higher_is_better: the direction of the metric, where it does not say itself. The fitness of
            a metric that is to be small is minus the metric.
        mode: ``"eval"``, or ``"train"`` to score with dropout on and batch statistics.
        batches_per_generation: score each generation on so many batches only, drawn without
            replacement by (seed, generation). None: on all of them.
        forward: ``forward(model, batch) -> (outputs, targets)``, for batches of any other form.
            Outputs and targets may be lists with one thing for each example, such as texts.
        keep: ``"device"``: all batches on the model's device; ``"host"``: in host memory, moved
            batch by batch; ``"stream"``: read again for each scoring, where they fit nowhere. The
            source has to give the same batches in the same order then, which is checked.
        max_batches: read so many batches only. None: all; of a source that has no length, at most
            131,072 examples or 2 GiB, with a warning.
        autocast: ``torch.bfloat16`` or ``torch.float16``: score under `torch.autocast` of this
            type; parent, members and candidates alike. None: as the weights are.
        calibration: batches, as above, on which BatchNorm statistics are estimated again for
            weights that evolution proposes, before they are scored. The center is scored as it
            stands, and a center that is accepted keeps the statistics with which it was scored.
            Take training examples. Counted as forwards.
        targets: ``"classes"`` or ``"labels"``: whether 0/1 targets of the outputs' shape are one
            class, one-hot, or several labels. ``"auto"``: classes if each row sums to 1.
        costs: the table of ``metric="cost"``, (classes, classes): what each decision (column) costs
            where a class (row) is true. The fitness is minus the mean cost.
        class_dim: the dimension of the outputs where the classes are, such as 1 or -1. None: found
            by shapes, for ``(n, classes, ...)`` and ``(n, ..., classes)``.

    Raises:
        ValueError: batches that can be read only once, that shuffle, or that are none; an unknown
            metric or one of unknown direction, a loss among them; at the first scoring, targets
            that a metric with a name does not understand.

    Outputs that are NaN or infinite are a failure, whatever the metric: the value is NaN. Targets
    equal to the loss's ``ignore_index`` (-100) do not count, nor what the model gives for them.
    What each metric reads is told in docs/scores.md.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2)
        >>> _ = torch.nn.init.eye_(model.weight), torch.nn.init.zeros_(model.bias)
        >>> batches = [(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0]))]
        >>> Fitness(model, batches, "accuracy")()
        0.5
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        metric: MetricLike | Any = "accuracy",
        *,
        loss: Callable[..., Tensor] = F.cross_entropy,
        higher_is_better: bool | None = None,
        mode: Literal["eval", "train"] = "eval",
        batches_per_generation: int | None = None,
        forward: Forward | None = None,
        autocast: torch.dtype | None = None,
        calibration: Iterable[Any] | None = None,
        targets: TargetKind = "auto",
        class_dim: int | None = None,
        keep: Keep = "device",
        max_batches: int | None = None,
        costs: Any = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if mode not in ("eval", "train"):
            raise ValueError(f"mode must be 'eval' or 'train', got {mode!r}")
        if batches_per_generation is not None and batches_per_generation < 1:
            raise ValueError(f"batches_per_generation must be >= 1, got {batches_per_generation}")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(
                f"autocast must be torch.bfloat16, torch.float16 or None, got {autocast!r}"
            )
        self.model = model
        self.autocast = autocast
        self.metric = metric
        self.costs = costs
        self.mode = mode
        self.batches_per_generation = batches_per_generation
        self.reader = Reader(known_of(loss, targets=targets, class_dim=class_dim))
        self._metric_options: dict[str, Any] = {
            "loss": loss,
            "higher_is_better": higher_is_better,
            "reader": self.reader,
            "costs": costs,
        }
        self._make_accumulator = make_metric(metric, **self._metric_options)
        named = isinstance(metric, str) and (metric != "neg-loss" or _is_torchs(loss))
        self.batches = Batches(
            batches,
            forward,
            keep=keep,
            most=max_batches,
            metric=f"metric {metric!r}" if named and forward is None else None,
        )
        self.calibration: Calibration | None = None
        if calibration is not None:
            self.calibration = Calibration(model, calibration, forward=forward)

    def __copy__(self) -> Fitness:
        new = object.__new__(type(self))
        vars(new).update(vars(self))
        return new

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what the metric was made into."""
        return {name: value for name, value in vars(self).items() if name != "_make_accumulator"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make it again."""
        vars(self).update(state)
        self._make_accumulator = make_metric(self.metric, **self._metric_options)

    @property
    def gives_per_example(self) -> bool | None:
        """Whether the metric has a value for each example; None where only scoring will tell."""
        return self._make_accumulator().gives_per_example

    def measure(self, outputs: Any, targets: Any) -> float:
        """Return the metric of outputs that somebody has, higher is better."""
        accumulator = self._make_accumulator()
        accumulator.update(outputs, targets)
        return float(accumulator.compute()[0])

    def __call__(self) -> float:
        """Score the model as it stands, on all examples, leaving no trace in it."""
        with Undoing(), preserved_rng(), Undoing(ModuleState(self.model).restore):
            scores = self.score(self.batches.examples(self.model))
            value = scores.value
        if scores.failed:
            warn(f"the fitness is {value}: {scores.error}")
        return value

    def examples(self, seed: int = 0, generation: int = 0) -> Examples:
        """Return the examples of one generation: a pure function of (seed, generation)."""
        everything = self.batches.examples(self.model)
        k = self.batches_per_generation
        if k is None or k >= len(everything.batches):
            return everything
        generator = make_generator(derive_seed(seed, generation, "fitness batches"))
        order = torch.randperm(len(everything.batches), generator=generator)
        return everything.only(sorted(order[:k].tolist()))

    @torch.no_grad()
    def score(
        self,
        examples: Examples,
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Scores:
        """Score the model as it stands on `examples`, without waiting for the device.

        Modes of all submodules are put back afterwards, whatever is raised. Buffers are the
        engine's to guard.

        Args:
            examples: to score on.
            keep_outputs: whether the scores hold the outputs of all examples, and their targets.
            watch: is shown the outputs and the targets of each batch.
        """
        kept: list[tuple[Any, Any]] = []
        finite = Finite(self.reader)
        with self._first_look(), self.scoring():
            accumulator = self._make_accumulator()
            for inputs, targets in examples:
                outputs, targets = self.apply(self.model, inputs, targets)
                try:
                    accumulator.update(outputs, targets)
                except Exception:
                    finite.see(outputs, targets)
                    if finite.failed:
                        return Scores.failure(NOT_FINITE)
                    raise
                finite.see(outputs, targets)  # how a first batch is read is known by now
                if watch is not None:
                    watch(outputs, targets)
                if keep_outputs:
                    kept.append((outputs, targets))
        if accumulator.waits and finite.failed:
            return Scores.failure(NOT_FINITE)
        value, per_example = accumulator.compute()
        flags = finite.flags()
        if flags is not None and not accumulator.waits:
            value = torch.where(flags, value, torch.nan).squeeze()
            if per_example is not None:
                per_example = torch.where(flags, per_example, torch.nan)
        if not keep_outputs:
            return Scores(value, per_example, finite=flags)
        outputs, targets = (concatenate(column) for column in zip(*kept, strict=True))
        return Scores(value, per_example, outputs, targets, self.measure, finite=flags)

    @torch.no_grad()
    def score_stacked(
        self, forward: Callable[[Any], Any], n: int, examples: Examples
    ) -> list[Scores]:
        """Score n members whose outputs `forward` returns all at once.

        Args:
            forward: inputs of a batch -> outputs with a leading dimension of members, (n, ...).
            n: how many members.
            examples: on which they are scored.

        Returns:
            One for each member; a failure where its metric raised.

        Raises:
            ValueError: this fitness has a `forward` of its own.
        """
        if self.has_own_forward:
            raise ValueError("a fitness with a forward= of its own scores members one by one")
        stacked, finite = Stacked(self._make_accumulator, n), Finite(self.reader, n)
        with self.scoring():
            for inputs, targets in examples:
                outputs = forward(inputs)
                stacked.update(outputs, targets)
                finite.see(outputs, targets)
        flags = finite.flags()
        return [
            Scores.failure(found)
            if isinstance(found, Exception | str)
            else Scores(*found, finite=None if flags is None else flags[i])
            for i, found in enumerate(stacked.compute(flags))
        ]

    @contextmanager
    def _first_look(self) -> Iterator[None]:
        """Let the first scoring find out how outputs and targets are read."""
        if self.reader.met:
            yield
            return
        everything = None if self.has_own_forward else self.batches.examples(self.model)
        targets = None if everything is None else [unweighted(t) for _, t in everything]
        self.reader.meet(self.model, targets)
        with listening(self.reader.note_output, self.model):
            yield
        self.reader.met = True

    @property
    def has_own_forward(self) -> bool:
        """Whether batches go forward through a function of the user's."""
        return self.batches.forward is not None

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Set the modes of all submodules, and autocast, in which the model is scored."""
        modes = modes_of(self.model)
        # autocast keeps weights that it has cast; these change under it
        torch.clear_autocast_cache()
        device = model_device(self.model).type
        casting = (
            torch.autocast(device, self.autocast, cache_enabled=False)
            if self.autocast is not None
            else nullcontext()
        )
        with Undoing(partial(set_modes, modes)), casting:
            self.model.train(self.mode == "train")
            yield

    def apply(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """Send one batch forward through `model`; return (outputs, targets)."""
        return self.batches.apply(model, inputs, targets)


def _is_torchs(loss: Callable[..., Any]) -> bool:
    """Return whether a loss is one of torch's, which compare tensors."""
    return getattr(loss, "__module__", type(loss).__module__).partition(".")[0] == "torch"


def at_its_best(fitness: Any, value: float) -> bool:
    """Return whether a fitness has the highest value that its metric, by name, can have."""
    metric = getattr(fitness, "metric", None)
    return isinstance(metric, str) and value >= find_metric(metric, fitness.costs).best
