"""Logits (n, tokens, classes) from a plain module: scored, or the ambiguity is named."""

import pytest
import torch
from torch import nn

from evostep import Fitness


def test_the_class_axis_is_found_by_the_shapes() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(50, 7, 4)
    assert Fitness(model, [(x, model(x).argmax(-1))])() == 1.0


def test_where_tokens_are_as_many_as_classes_it_must_be_told() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3), torch.randn(50, 3, 4)
    targets = model(x).argmax(-1)
    with pytest.raises(ValueError, match="class_dim="):
        Fitness(model, [(x, targets)])()
    assert Fitness(model, [(x, targets)], class_dim=-1)() == 1.0
    wrong = float((model(x).argmax(1) == targets).double().mean())
    assert Fitness(model, [(x, targets)], class_dim=1)() == pytest.approx(wrong)
