"""The model text-reader: by hand it finds the best of what it may try, in as few tries as said."""

from __future__ import annotations

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.models import build_model
from evostep.lab.reading import model as module
from evostep.lab.reading.model import TextReader
from evostep.scoring.texts import decode


def build(classes: int = 0, name: str = "text-reader") -> torch.nn.Module:
    return build_model(name, channels=3, classes=classes, image_size=80, seed=0)


def test_it_reads_what_its_front_end_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "recognise", lambda images: [f"{float(i.mean()):.2f}" for i in images]
    )
    model = build()
    images = torch.full((2, 3, 48, 80), 0.25)
    images[1] = 0.75
    assert decode(model(images)) == ["0.25", "0.75"]


def test_tuning_keeps_the_best_and_tries_no_more_than_it_says() -> None:
    model, tried = TextReader(), []
    worth = {"blue": 3.0, "red": 2.0, "gauss": 0.5, "median": 0.4, "otsu": -1.0}
    worth |= {"clahe 2": 0.3, "unsharp": 0.2, "none": 0.0}

    def score() -> float:
        tried.append(model.choice)
        return sum(worth.get(name, -0.5) for name in model.choice)

    model.tune(score)
    assert model.choice == ("blue", "gauss", "median")
    assert len(tried) == len(set(tried)) <= TextReader.tunings
    colours = {colour for colour, *operations in tried if operations != ["none", "none"]}
    assert colours == {"blue", "red"}


def test_what_was_chosen_is_saved_with_the_weights() -> None:
    model, other = TextReader(), TextReader()
    model.choose("a turned", "gauss", "clahe 2")
    other.load_state_dict(model.state_dict())
    assert other.choice == ("a turned", "gauss", "clahe 2")
    images = torch.rand(1, 3, 48, 80)
    assert torch.equal(other.front_end(images), model.front_end(images))


def test_texts_and_classes_are_not_mixed_up() -> None:
    with pytest.raises(InputError, match="text-reader reads texts, and these data have classes"):
        build(classes=10)
    with pytest.raises(InputError, match="mlp tells classes, and these data are texts"):
        build(name="mlp")
