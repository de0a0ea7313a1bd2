"""Tokens and pixels: each is decided, its sentence or image is judged as a whole."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import evostep
from evostep.polishing.network import (
    NOTHING_KNOWN,
    Subject,
    given_outputs,
    takes_decisions,
)
from evostep.polishing.problem import make_problem
from evostep.polishing.result import IMPROVED
from evostep.scoring.forms import Known

G = torch.Generator().manual_seed(0)
N, T, C = 40, 7, 3
TAGS = torch.randint(C, (N, T), generator=G)
SEEN = F.one_hot(TAGS, C) * 1.5 + torch.randn(N, T, C, generator=G)
TAGS[:, 5:] = torch.where(torch.rand(N, 2, generator=G) < 0.5, -100, TAGS[:, 5:])
COUNTED = TAGS != -100
FEW = {"budget": 1500, "population": 4, "draws": 500}


class Tagger(nn.Module):
    """Prefers tag 0; gives what Hugging Face's token models give."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(C, C)
        with torch.no_grad():
            self.classifier.weight.copy_(torch.eye(C))
            self.classifier.bias.copy_(torch.tensor([2.5, 0.0, 0.0]))

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.classifier(input_ids))


class Segmenter(nn.Module):
    """Prefers class 0; resizes what its last layer gives, as segmentation networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(C, C, 1)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(C)[..., None, None])
            self.head.bias.copy_(torch.tensor([2.5, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(x), scale_factor=2.0, mode="bilinear")


def tokens() -> list[dict[str, Tensor]]:
    parts = zip(SEEN.split(16), TAGS.split(16), strict=True)
    return [{"input_ids": seen, "labels": tags} for seen, tags in parts]


def test_each_token_that_counts_is_a_row_of_its_sentence() -> None:
    given = given_outputs(Tagger(), tokens())
    assert torch.equal(given.targets, TAGS[COUNTED])
    assert given.unit is not None
    assert torch.equal(given.unit, COUNTED.nonzero()[:, 0])
    assert given.examples == N


LAYOUTS = {
    "tokens": (SEEN, TAGS, {}),
    "classes first": (SEEN.movedim(-1, 1), TAGS, {"class_dim": 1}),
    "pixels": (SEEN.movedim(-1, 1)[..., None], TAGS[..., None], {}),
    "another mark": (SEEN, torch.where(COUNTED, TAGS, 255), {"ignore_index": 255}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_has_the_same_rows(name: str) -> None:
    outputs, targets, options = LAYOUTS[name]
    given = given_outputs(None, (outputs, targets), known=Known(**options))
    assert torch.equal(given.outputs, SEEN[COUNTED])
    assert torch.equal(given.targets, TAGS[COUNTED])


@pytest.mark.parametrize("soft", [0.0, 0.1])
def test_one_hot_and_smoothed_targets_are_classes(soft: float) -> None:
    hot = F.one_hot(TAGS[:, 0], C) * (1 - soft) + soft / C
    given = given_outputs(None, (SEEN[:, 0], hot))
    assert torch.equal(given.targets, TAGS[:, 0])
    assert given.unit is None


def test_probabilities_are_read_as_such() -> None:
    given = given_outputs(None, (SEEN[:, 0].softmax(1), TAGS[:, 0]))
    assert given.probabilities
    torch.testing.assert_close(given.outputs.softmax(1), SEEN[:, 0].double().softmax(1))


def test_a_tagger_is_polished_and_decides_every_token_as_the_decision_does() -> None:
    model = Tagger()
    before = model(SEEN).logits.detach()
    result = evostep.polish(model, tokens(), "balanced-accuracy", folds=3, **FEW)
    assert result.verdict == IMPROVED
    assert (result.n, result.groups) == (int(COUNTED.sum()), N)
    assert result.applied
    decided = result.decision.adjusted(before).argmax(-1)
    assert torch.equal(model(SEEN).logits.argmax(-1), decided)
    result.revert()
    assert torch.equal(model(SEEN).logits, before)


def test_what_resizes_the_last_layer_s_outputs_lets_a_bias_through() -> None:
    small = torch.randint(C, (30, 3, 3), generator=G)
    pixels = F.one_hot(small, C).movedim(-1, 1) * 2.0 + torch.randn(30, C, 3, 3, generator=G)
    truth = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    model = Segmenter()
    result = evostep.polish(model, [(pixels, truth)], "balanced-accuracy", folds=3, **FEW)
    assert result.groups == 30
    assert result.applied


def test_a_sentence_s_weight_and_group_are_those_of_its_tokens() -> None:
    weights, groups = torch.arange(1.0, N + 1), [i // 2 for i in range(N)]
    found = evostep.polish(
        None, (SEEN, TAGS), "accuracy", folds=3, weights=weights, groups=groups, **FEW
    )
    assert found.groups == N // 2
    right = (SEEN.argmax(-1) == TAGS)[COUNTED].double()
    each = weights[:, None].expand(N, T)[COUNTED]
    assert found.values["checkpoint"] == pytest.approx(float((right * each).sum() / each.sum()))


class Scaled(nn.Module):
    """Multiplies what its last layer gives, its bias, too; or takes differences of it."""

    def __init__(self, width: int = C, temperature: float = 1.0, *, likely: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(C, width)
        self.temperature, self.likely = temperature, likely

    def forward(self, x: Tensor) -> Tensor:
        outputs = self.layer(x) * self.temperature
        if self.likely:
            return outputs.softmax(1)
        return outputs if outputs.shape[1] <= C else outputs[:, :C] - outputs[:, C:]


@pytest.mark.parametrize(
    ("model", "takes"),
    [
        (Scaled(), True),
        (Scaled(likely=True), True),
        (Scaled().to(torch.bfloat16), True),
        (Scaled(temperature=10.0), False),
        (Scaled(temperature=-1.0), False),
        (Scaled(width=2 * C), False),
    ],
)
def test_whether_a_last_layer_takes_decisions_is_tried(model: nn.Module, takes: bool) -> None:
    inputs = torch.randn(30, C, generator=G).to(next(model.parameters()).dtype)
    batches = [(inputs, torch.arange(30) % C)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    given = given_outputs(model, batches)
    problem = make_problem(given.outputs, given.targets)
    subject = Subject(model, batches, None, NOTHING_KNOWN, given)
    assert takes_decisions(subject, problem) == takes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
