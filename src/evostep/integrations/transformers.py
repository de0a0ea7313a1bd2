"""Evolution in the Trainer of Hugging Face, on the number that `metric_for_best_model` names.

A phase runs as an epoch (or a step) ends, before the Trainer evaluates and saves, so that a score
is that of the weights that are saved, and `load_best_model_at_end` loads the weights of the best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from evostep.errors import InputError, needs_package
from evostep.integrations.phases import Phases
from evostep.integrations.trackers import scalars
from evostep.optimizer import Evolved
from evostep.record import Record
from evostep.scoring.fitness import Fitness
from evostep.strategies.base import Strategy

try:
    from transformers import EvalPrediction, TrainerCallback
except ImportError as error:
    wanted = ("evostep.integrations.transformers", "transformers", "evostep[transformers]")
    raise ImportError(needs_package(*wanted, error)) from error


class Evolve(Phases, TrainerCallback):  # type: ignore[misc]
    """Evolves the weights of a Trainer's model after epochs or steps: see `evolve_optimizer`.

    What the last generation of a phase did is in the Trainer's log history, as ``evolution/...``.
    Checkpoints hold evolution's state in ``optimizer.pt``; `resume_from_checkpoint` goes on with
    the same bits.

    Args:
        fitness: an `evostep.Fitness`, or a function of the model that returns one, such as
            ``lambda model: metric_fitness(trainer, dataset)``.
        generations: see `Phases`, as is all else.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Find the optimizer."""
        self.begin([kwargs["optimizer"]], state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evolve, if a step was the last of `every_steps`."""
        _note(state, self.after_step(kwargs["model"], state.global_step))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evolve after a whole epoch; one that `max_steps` breaks off would end elsewhere later."""
        epochs = round(state.epoch)
        if abs(state.epoch - epochs) < 1e-6:
            _note(state, self.after_epoch(kwargs["model"], epochs - 1, state.global_step))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the trackers."""
        self.end()


def _note(state: Any, records: list[Record]) -> None:
    if records:
        told = {**scalars(records[-1]), "epoch": state.epoch, "step": state.global_step}
        state.log_history.append(told)


def evolve_optimizer(trainer: Any, strategy: Strategy, **options: Any) -> None:
    """Make whatever optimizer a Trainer creates by its arguments an `Evolved`.

    Args:
        trainer: before it trains.
        strategy: see `Evolved`.
        **options: of `Evolved`.
    """
    create: Callable[..., Any] = trainer.create_optimizer

    def create_optimizer(*args: Any, **kwargs: Any) -> Any:
        made = create(*args, **kwargs)
        if not isinstance(made, Evolved):
            trainer.optimizer = made = Evolved(made, strategy, model=trainer.model, **options)
        return made

    trainer.create_optimizer = create_optimizer


def metric_fitness(trainer: Any, dataset: Any, **options: Any) -> Fitness:
    """Return the fitness that a Trainer's `metric_for_best_model` is, on a dataset.

    Args:
        trainer: its model is scored, in batches as it makes them to evaluate, by its
            `compute_metrics`; or by the loss, where `metric_for_best_model` is that or None.
        dataset: examples for evolution, best others than those that the Trainer evaluates on.
        **options: of `evostep.Fitness`, such as ``autocast=torch.bfloat16``.

    Raises:
        ValueError: `metric_for_best_model` is none of what `compute_metrics` returns.
    """
    name = (trainer.args.metric_for_best_model or "loss").removeprefix("eval_")
    batches = trainer.get_eval_dataloader(dataset)
    if name == "loss":
        metric: Any = _mean
        options = {"forward": _Losses(trainer), **options}
    else:
        if trainer.compute_metrics is None:
            raise InputError(
                f"metric_for_best_model is {name!r}, and the Trainer has no compute_metrics: give "
                "it one that returns that, or take 'loss'"
            )
        metric = _Computed(trainer, name)
    greater = trainer.args.greater_is_better
    greater = not name.endswith("loss") if greater is None else greater
    return Fitness(trainer.model, batches, metric, higher_is_better=greater, **options)


def _mean(outputs: Tensor, _: Any) -> Tensor:
    return outputs.double().mean()


class _Losses:
    """Returns the Trainer's loss of a batch, once for each example, as it evaluates."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def __call__(self, model: Any, batch: Any) -> tuple[Tensor, Tensor]:
        n = next(len(value) for value in batch.values())
        loss = self.trainer.compute_loss(model, dict(batch)).detach().reshape(1).repeat(n)
        return loss, torch.zeros_like(loss)


class _Computed:
    """One of the numbers that a Trainer's `compute_metrics` returns."""

    def __init__(self, trainer: Any, name: str) -> None:
        self.trainer, self.name = trainer, name

    def __call__(self, outputs: Any, targets: Any) -> float:
        trainer = self.trainer
        if trainer.preprocess_logits_for_metrics is not None:
            outputs = trainer.preprocess_logits_for_metrics(outputs, targets)
        predictions, labels = (
            value.float().cpu().numpy() if value.is_floating_point() else value.cpu().numpy()
            for value in (outputs, targets)
        )
        found = trainer.compute_metrics(EvalPrediction(predictions=predictions, label_ids=labels))
        for name in (self.name, f"eval_{self.name}"):
            if name in found:
                return float(found[name])
        raise InputError(
            f"metric_for_best_model is {self.name!r}, and compute_metrics returns "
            f"{', '.join(sorted(found))}: name one of these"
        )
