"""Fitness: what members are scored on. Higher is better, everywhere.

Any ``Callable[[], float]`` that scores the model as it now stands is a fitness. `Fitness` is the
one that knows its examples, which gives it scores for each example, caching, and speed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from evostep.noise import derive_seed, make_generator
from evostep.scoring.batches import (
    Examples,
    concatenate,
    examples_of,
    model_device,
    move,
    split_batch,
)
from evostep.scoring.calibration import Calibration
from evostep.scoring.isolation import ModuleState, preserved_rng, seed_everything
from evostep.scoring.metrics import MetricLike, Stacked, make_metric
from evostep.scoring.scores import Pending, Scores

_RANDOM_SAMPLERS = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler)


class Fitness:
    """Scores a model on examples by a metric.

    The batches are read once and kept on the model's device, so that every member of every
    generation is scored on the same examples, and a resumed run on the same as the first one.

    Args:
        model: the module to score. Scored in eval mode, without gradients; modes are put back.
        batches: a list, a DataLoader that does not shuffle, or any iterable that can be read
            again. A batch is ``(inputs, targets)``, ``(input1, input2, ..., targets)``, or a
            dictionary with its targets under one of ``labels, label, targets, target, y`` and the
            model's keyword arguments under the other keys.
        metric: ``"accuracy"``, ``"balanced-accuracy"``, ``"macro-f1"``, ``"neg-loss"``, a
            torchmetrics metric, or a callable on (outputs, targets) that gives a number, or one
            for each example as a tensor of shape (n,).
        loss: what ``"neg-loss"`` is minus of; any function or module on (outputs, targets).
        higher_is_better: the direction of the metric, where it does not say itself. The fitness of
            a metric that is to be small is minus the metric.
        mode: ``"eval"``, or ``"train"`` to score with dropout on and batch statistics.
        batches_per_generation: score each generation on so many batches only, drawn without
            replacement by (seed, generation). None: on all of them.
        forward: ``forward(model, batch) -> (outputs, targets)``, for batches of any other form.
        autocast: ``torch.bfloat16`` or ``torch.float16``: score under `torch.autocast` of this
            type; parent, members and candidates alike. None: as the weights are.
        calibration: batches, as above, on which BatchNorm statistics are estimated again for
            weights that evolution proposes, before they are scored. The center is scored as it
            stands, and a center that is accepted keeps the statistics with which it was scored.
            Take training examples. Counted as forwards.

    Raises:
        ValueError: batches that can be read only once, that shuffle, or that are none; an unknown
            metric or one of unknown direction.

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
        forward: Callable[[nn.Module, Any], tuple[Any, Any]] | None = None,
        autocast: torch.dtype | None = None,
        calibration: Iterable[Any] | None = None,
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
        _refuse_unrepeatable(batches)
        self.model = model
        self.autocast = autocast
        self.metric = metric
        self.mode = mode
        self.batches_per_generation = batches_per_generation
        self._source = batches
        self._forward = forward
        self._make_accumulator = make_metric(metric, loss=loss, higher_is_better=higher_is_better)
        self._batches: list[tuple[Any, Any]] | None = None
        self._device = torch.device("cpu")
        self.calibration: Calibration | None = None
        if calibration is not None:
            self.calibration = Calibration(
                Fitness(model, calibration, forward=forward, autocast=autocast)
            )

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
        with preserved_rng():
            state = ModuleState(self.model)
            try:
                return self.score(self._all()).value
            finally:
                state.restore()

    def examples(self, seed: int = 0, generation: int = 0) -> Examples:
        """Return the examples of one generation: a pure function of (seed, generation)."""
        everything = self._all()
        k = self.batches_per_generation
        if k is None or k >= len(everything.batches):
            return everything
        generator = make_generator(derive_seed(seed, generation, "fitness batches"))
        order = torch.randperm(len(everything.batches), generator=generator)
        return examples_of([everything.batches[i] for i in sorted(order[:k].tolist())])

    def score(self, examples: Examples, *, keep_outputs: bool = False) -> Scores:
        """Score the model as it stands on `examples`.

        Modes of all submodules are put back afterwards, whatever is raised. Buffers are the
        engine's to guard.
        """
        return self.score_later(examples, keep_outputs=keep_outputs).scores()

    @torch.no_grad()
    def score_later(
        self,
        examples: Examples,
        *,
        keep_outputs: bool = False,
        watch: Callable[[Any, Any], object] | None = None,
    ) -> Pending:
        """Score the model as `score` does, without waiting for the device.

        Args:
            examples: to score on.
            keep_outputs: see `score`.
            watch: is shown the outputs and the targets of each batch.
        """
        accumulator = self._make_accumulator()
        kept: list[tuple[Any, Any]] = []
        with self.scoring():
            for inputs, targets in examples:
                outputs, targets = self.apply(self.model, inputs, targets)
                accumulator.update(outputs, targets)
                if watch is not None:
                    watch(outputs, targets)
                if keep_outputs:
                    kept.append((outputs, targets))
        value, per_example = accumulator.compute()
        if not keep_outputs:
            return Pending(value, per_example)
        outputs, targets = (concatenate(column) for column in zip(*kept, strict=True))
        return Pending(value, per_example, outputs, targets, self.measure)

    @torch.no_grad()
    def score_stacked(
        self, forward: Callable[[Any], Any], n: int, examples: Examples
    ) -> list[Pending | Exception]:
        """Score n members whose outputs `forward` gives all at once.

        Args:
            forward: inputs of a batch -> outputs with a leading dimension of members, (n, ...).
            n: how many members.
            examples: on which they are scored.

        Returns:
            One for each member, as `score_later` gives it, or what its metric raised.

        Raises:
            ValueError: this fitness has a `forward` of its own.
        """
        if self.has_own_forward:
            raise ValueError("a fitness with a forward= of its own scores members one by one")
        stacked = Stacked(self._make_accumulator, n)
        with self.scoring():
            for inputs, targets in examples:
                stacked.update(forward(inputs), targets)
        return [
            found if isinstance(found, Exception) else Pending(*found)
            for found in stacked.compute()
        ]

    @property
    def has_own_forward(self) -> bool:
        """Whether batches go forward through a function of the user's."""
        return self._forward is not None

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Set the modes of all submodules, and autocast, in which the model is scored."""
        modes = [(module, module.training) for module in self.model.modules()]
        # autocast keeps weights that it has cast; these change under it
        torch.clear_autocast_cache()
        device = model_device(self.model).type
        casting = (
            torch.autocast(device, self.autocast, cache_enabled=False)
            if self.autocast is not None
            else nullcontext()
        )
        try:
            self.model.train(self.mode == "train")
            with casting:
                yield
        finally:
            for module, training in modes:
                if module.training != training:  # setting an attribute of a module is slow
                    module.training = training

    def apply(self, model: nn.Module, inputs: Any, targets: Any) -> tuple[Any, Any]:
        """Send one batch forward through `model`; give (outputs, targets)."""
        if self._forward is not None:
            return self._forward(model, inputs)
        if isinstance(inputs, Mapping):
            outputs = model(**inputs)
        elif isinstance(inputs, tuple):
            outputs = model(*inputs)
        else:
            outputs = model(inputs)
        # Hugging Face models give an object or dictionary with `logits`
        if isinstance(outputs, Mapping) and "logits" in outputs:
            return outputs["logits"], targets
        return getattr(outputs, "logits", outputs), targets

    def _all(self) -> Examples:
        device = model_device(self.model)
        if self._batches is None:
            with preserved_rng():
                # a DataLoader draws from the global stream, and so may a transform
                seed_everything(derive_seed("fitness batches"))
                batches = [move(batch, device) for batch in self._source]
            if not batches:
                raise ValueError("batches is empty: a fitness needs at least one batch")
            split = self._forward is None
            self._batches = [split_batch(batch) if split else (batch, None) for batch in batches]
            self._device = device
        if device != self._device:  # the model has moved since
            self._batches = move(self._batches, device)
            self._device = device
        return examples_of(self._batches)


def _refuse_unrepeatable(batches: Any) -> None:
    if isinstance(batches, Iterator):
        raise ValueError(
            f"batches is a {type(batches).__name__}, which can be read only once: "
            "pass a list or a DataLoader"
        )
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    if isinstance(batches, Sized) and not isinstance(batches, DataLoader) and not len(batches):
        raise ValueError("batches is empty: a fitness needs at least one batch")
    if isinstance(batches, DataLoader) and _shuffles(batches):
        raise ValueError(
            "batches is a DataLoader that shuffles, so that members and a resumed run would see "
            "other examples: pass shuffle=False"
        )


def _shuffles(loader: DataLoader[Any]) -> bool:
    samplers = (loader.sampler, getattr(loader.batch_sampler, "sampler", None))
    return any(
        isinstance(sampler, _RANDOM_SAMPLERS)
        or (isinstance(sampler, DistributedSampler) and sampler.shuffle)
        for sampler in samplers
    )
