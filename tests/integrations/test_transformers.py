from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from evostep import Fitness

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers", reason="needs evostep[transformers]")
    pytest.importorskip("accelerate", reason="needs evostep[accelerate]")
    from evostep.integrations.transformers import Evolve, evolve_optimizer, metric_fitness

pytestmark = pytest.mark.filterwarnings("ignore")


class Network(nn.Module):
    """As the Trainer takes one: the loss where there are labels, and logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixels)
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def examples(part: Any) -> list[dict[str, Tensor]]:
    return [{"pixels": x, "labels": y} for x, y in part]


def worst_recall(found: Any) -> dict[str, float]:
    right = found.predictions.argmax(1) == found.label_ids
    return {"worst": min(float(right[found.label_ids == c].mean()) for c in range(10))}


@pytest.fixture
def make(make_network: Any, strategy: Any, digits: Any, tmp_path: Path) -> Any:
    def trainer(epochs: int, folder: str = "run", **options: Any) -> Any:
        settings = {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": 32,
            "per_device_eval_batch_size": 100,
            "learning_rate": 0.01,
            "lr_scheduler_type": "constant",
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "load_best_model_at_end": True,
            "metric_for_best_model": "worst",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            **options,
        }
        made = transformers.Trainer(
            Network(make_network()),
            transformers.TrainingArguments(str(tmp_path / folder), **settings),
            train_dataset=examples(digits.train),
            eval_dataset=examples(digits.valid),
            compute_metrics=worst_recall,
        )
        evolve_optimizer(made, strategy)
        return made

    return trainer


def weights(trainer: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_twenty_steps_and_twenty_are_forty(
    make: Any, digits: Any, watch: Any, same: Any, tmp_path: Path
) -> None:
    def run(epochs: int, folder: str, resume: Any = None, trackers: Any = ()) -> Any:
        trainer = make(epochs, folder, load_best_model_at_end=False)
        batches = [digits.other.tensors]
        callback = Evolve(
            lambda model: Fitness(model.net, batches, "neg-loss"), 3, trackers=trackers
        )
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = run(4, "whole", trackers=[watch])
    assert whole.state.global_step == 40
    assert watch.moved > 0
    assert watch.calls == ["begin", *(f"phase {n}" for n in (10, 20, 30, 40)), "close"]
    run(2, "half")
    rest = run(4, "half", str(tmp_path / "half" / "checkpoint-20"))
    same(weights(whole), weights(rest))
    same(whole.optimizer.state_dict(), rest.optimizer.state_dict())
    assert any("evolution/parent" in row for row in rest.state.log_history)


def test_it_evolves_the_metric_by_which_the_best_is_chosen(
    make: Any, digits: Any, watch: Any
) -> None:
    trainer = make(3)
    trainer.add_callback(
        Evolve(lambda _: metric_fitness(trainer, examples(digits.other)), 3, trackers=[watch])
    )
    trainer.train()
    assert watch.phases == 3
    # what was told when it was saved is what the loaded weights have
    assert trainer.evaluate()["eval_worst"] == pytest.approx(trainer.state.best_metric)
    fitness = metric_fitness(trainer, examples(digits.other))
    inputs, targets = digits.other.tensors
    with torch.no_grad():
        found = worst_recall(
            transformers.EvalPrediction(trainer.model.net(inputs).numpy(), targets.numpy())
        )
    assert fitness() == pytest.approx(found["worst"])


@pytest.mark.parametrize("own", [False, True])
def test_the_loss_is_what_the_trainer_evaluates(make: Any, digits: Any, own: bool) -> None:
    trainer = make(1, metric_for_best_model="eval_loss")
    if own:
        trainer.compute_loss_func = lambda outputs, labels, **_: nn.functional.multi_margin_loss(
            outputs["logits"], labels
        )
    fitness = metric_fitness(trainer, examples(digits.valid))
    assert fitness() == pytest.approx(-trainer.evaluate()["eval_loss"], rel=1e-5)


def test_a_metric_that_nobody_computes_is_named(make: Any, digits: Any) -> None:
    trainer = make(1, metric_for_best_model="f1")
    with pytest.raises(ValueError, match=r"is 'f1', and compute_metrics returns worst: name one"):
        metric_fitness(trainer, examples(digits.other))()
    trainer.compute_metrics = None
    with pytest.raises(ValueError, match=r"the Trainer has no compute_metrics"):
        metric_fitness(trainer, examples(digits.other))


def test_after_steps_where_epochs_are_broken_off(make: Any, digits: Any, watch: Any) -> None:
    batches = [digits.other.tensors]

    def run(**options: Any) -> None:
        trainer = make(1, max_steps=7, load_best_model_at_end=False)
        trainer.add_callback(
            Evolve(lambda model: Fitness(model.net, batches, "neg-loss"), 2, **options)
        )
        trainer.train()

    run(every_steps=3, trackers=[watch])
    assert watch.calls == ["begin", "phase 3", "phase 6", "close"]
    with pytest.warns(UserWarning, match="Evolve has evolved nothing.*after each epoch"):
        run()


def test_greater_is_better_as_the_arguments_say(make: Any, digits: Any) -> None:
    less = make(1, greater_is_better=False)
    more = make(1, greater_is_better=True)
    found = [metric_fitness(t, examples(digits.other))() for t in (less, more)]
    assert found[0] == -found[1]
    assert np.isfinite(found).all()
