"""Experts: networks fine-tuned apart from one start, each on classes of its own, then merged.

What merging papers begin with: see `evostep.lab.merging.model`. They train on images that no part
of the comparison holds, so that who merges them has the fitness examples alone to go by.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from evostep.lab.arms.arm import Arm
from evostep.lab.arms.procedures.standing import Untouched
from evostep.lab.arms.seed_run import Counters
from evostep.lab.arms.training import PER_GRADIENT_EXAMPLE, cosine, make_optimizer, train_epoch
from evostep.lab.data.parts import Part, Sizes
from evostep.noise import derive_seed, make_generator

EXAMPLES = 12_000  # at most, of all experts together
START_EXAMPLES, START_EPOCHS, EPOCHS = 3_000, 8, 5
_NEVER = -1e4  # the logit of a class that is no expert's: it takes no part in a softmax


class Experts(Untouched):
    """A start trained on all classes, experts from there on some each, and their uniform average.

    Rates fall along a cosine, for the start and for each expert.
    """

    merges: ClassVar[bool] = True

    @classmethod
    def finish_cost(cls, arm: Arm, sizes: Sizes) -> int:
        """Return what training the start and the experts takes: each example is one expert's."""
        examples = min(EXAMPLES, sizes.spare)
        epochs = START_EPOCHS * min(START_EXAMPLES, examples) + EPOCHS * examples
        return PER_GRADIENT_EXAMPLE * arm.training.passes * epochs

    def finish(self, counters: Counters) -> nn.Module:
        """Return the uniform average, in a model that can be merged otherwise."""
        seed_run, began = self.seed_run, time.perf_counter()
        model: Any = self.learner.model
        generator = make_generator(derive_seed(seed_run.seed, "experts"))
        spare = seed_run.parts.spare
        chosen = spare[torch.randperm(len(spare), generator=generator)][:EXAMPLES]
        part = seed_run.parts.take(chosen)
        first = part.first(START_EXAMPLES)
        self._fit(model.net, first, START_EPOCHS, "start", counters)
        start = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
        experts = []
        groups = torch.arange(seed_run.sizes.classes).tensor_split(model.experts)
        for k, classes in enumerate(groups):
            own = torch.isin(part.targets, classes.to(part.targets))
            network = Among(model.net, classes, seed_run.sizes.classes).to(part.targets.device)
            self._fit(
                network, Part(part.images[own], part.targets[own]), EPOCHS, f"expert {k}", counters
            )
            experts.append({name: t.clone() for name, t in model.net.state_dict().items()})
            model.net.load_state_dict(start)
        model.learn(experts)
        counters.seconds += time.perf_counter() - began
        return self.learner.model

    def _fit(
        self, network: nn.Module, part: Part, epochs: int, what: str, counters: Counters
    ) -> None:
        seed_run, training = self.seed_run, self.arm.training
        optimizer = make_optimizer(training, network)
        whole = PER_GRADIENT_EXAMPLE * training.passes * len(part)
        for epoch in range(epochs):
            running, forwards = train_epoch(
                network,
                optimizer,
                part,
                seed_run.parts.data,
                training,
                seed=derive_seed(seed_run.seed, what),
                epoch=epoch,
                max_forwards=None,
                on_step=seed_run.watch.advance,
                rate=lambda spent, epoch=epoch: cosine(  # type: ignore[misc]
                    training.lr, (epoch + spent / whole) / epochs
                ),
            )
            counters.forwards += forwards
        accuracy = f"{100 * running['accuracy']:.1f}% right in its last epoch"
        seed_run.watch.say(f"{self.arm.label} seed {seed_run.seed}: {what}, {accuracy}")


class Among(nn.Module):
    """A network that chooses among some of its classes alone."""

    others: Tensor

    def __init__(self, network: nn.Module, classes: Tensor, of: int) -> None:
        super().__init__()
        self.network = network
        others = torch.full((of,), _NEVER).index_fill(0, classes, 0.0)
        self.register_buffer("others", others)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, those of other classes far below."""
        outputs: Tensor = self.network(images) + self.others
        return outputs
