"""Image folders: their layouts, and those that are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from evostep.lab.data.images import load_data

Refused = Callable[..., None]


def draw(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (20, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for part, n in (("train", 3), ("test", 2)):
        for i in range(n):
            draw(tmp_path / "pets" / part / "cat" / f"{i}.png", (200, i, 0))
            draw(tmp_path / "pets" / part / "dog" / f"{i}.png", (0, i, 100), (8, 30))
    return tmp_path / "pets"


def test_image_folder(pictures: Path) -> None:
    data = load_data(f"folder:{pictures}", image_size=8)
    assert data.classes == ("cat", "dog")
    assert data.title == "pets"
    assert data.inputs.shape == (6, 3, 8, 8)
    assert data.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_targets is not None
    assert data.test_targets.tolist() == [0, 0, 1, 1]
    expected = torch.tensor([200, 1, 0]).view(3, 1, 1).expand(3, 8, 8)
    assert torch.equal(data.inputs[1], expected.to(torch.uint8))

    (pictures / "test").rename(pictures / "val")
    again = load_data(f"folder:{pictures}", image_size=8)
    assert again.test_inputs is not None
    assert torch.equal(again.inputs, data.inputs)

    alone = load_data(f"folder:{pictures / 'train'}", image_size=8)
    assert torch.equal(alone.inputs, data.inputs)
    assert alone.test_inputs is None


def test_images_are_cropped_to_a_square_not_squeezed(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 10), (255, 0, 0))
    image.paste((0, 255, 0), (10, 0, 20, 10))  # the middle square is green
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "x.png")
    inputs = load_data(f"folder:{tmp_path}", image_size=10).inputs
    assert inputs[0, :, :, :].flatten(1).unique(dim=1).flatten().tolist() == [0, 255, 0]


def test_bad_image_folders_are_refused(refused: Refused, pictures: Path, tmp_path: Path) -> None:
    name = f"folder:{pictures}"
    refused("needs an image size: give --image-size", name)
    refused("no folder .*nowhere", f"folder:{tmp_path / 'nowhere'}", image_size=8)
    (tmp_path / "bare").mkdir()
    refused("holds no folder of a class", f"folder:{tmp_path / 'bare'}", image_size=8)

    broken = pictures / "train" / "dog" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    refused(r"dog/1.png does not decode .*: replace or remove it", name, image_size=8)
    Image.new("I;16", (8, 8), 4000).save(broken)
    refused(r"dog/1.png has Pillow's mode 'I;16': convert it to 8 bits", name, image_size=8)
    broken.unlink()

    draw(pictures / "test" / "emu" / "0.png", (1, 2, 3))
    refused("train and test differ in the classes emu", name, image_size=8)
    (pictures / "train").rename(tmp_path / "elsewhere")
    refused("has test but no train folder: add it", name, image_size=8)
