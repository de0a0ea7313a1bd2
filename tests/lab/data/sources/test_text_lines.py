"""Drawn lines of text: a pure function of series and number, of which every text can be told."""

from pathlib import Path

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.data.images import load_data
from evostep.lab.data.parts import cut
from evostep.lab.data.sources import text_lines
from evostep.lab.data.sources.text_lines import HEIGHT, LENGTH, LETTERS, WIDTH, drawn
from evostep.lab.data.splits import make_splits
from evostep.scoring.texts import decode


def test_a_line_is_a_function_of_series_and_number() -> None:
    images, targets = drawn(3, 4)
    again, same = drawn(3, 2)
    assert torch.equal(images[:2], again)
    assert torch.equal(targets[:2], same)
    other, _ = drawn(4, 2)
    assert not torch.equal(other, again)
    assert images.shape == (4, 3, HEIGHT, WIDTH)
    assert images.dtype == torch.uint8
    assert all(len(text) == LENGTH and set(text) <= set(LETTERS) for text in decode(targets))


def test_ink_is_where_blue_is_missing() -> None:
    """Text is dark in blue; a pen is dark in green and blue, and not in red."""
    red, green, blue = (c.flatten() for c in drawn(0, 8)[0].float().transpose(0, 1))
    assert blue.std() > green.std() > red.std()


@pytest.mark.parametrize(
    "name",
    ["text-lines", "text-lines:", "text-lines:-1", "text-lines:x", f"text-lines:{'9' * 5000}"],
)
def test_a_series_has_a_number(name: str) -> None:
    with pytest.raises(InputError, match="names no series: write text-lines:0"):
        load_data(name)


def test_parts_are_drawn_by_seed_and_images_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(text_lines, "LINES", 12)
    monkeypatch.setenv("EVOSTEP_CACHE", str(tmp_path))
    data = load_data("text-lines:5")
    assert torch.equal(load_data("text-lines:5").inputs, data.inputs)  # from the cache
    assert data.of_texts
    sizes = {"train_size": 1, "fitness_size": 4, "accept_size": 0, "test_size": 5}
    splits = [make_splits(data, seed, **sizes) for seed in (0, 1)]
    assert splits[0].test.tolist() != splits[1].test.tolist()
    parts = cut(data, splits[0], torch.device("cpu"))
    ((images, targets),) = parts.test.batches(parts.data)
    assert torch.equal(images, data.inputs[splits[0].test].float() / 255)
    assert torch.equal(targets, data.targets[splits[0].test])
