"""Image folders: parts however spelled, images as a viewer shows them, classes that lack."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evostep.errors import InputError
from evostep.lab.data.images import ImageData, load_data
from evostep.lab.data.splits import make_splits, warn_of_absent_classes


def folder(
    root: Path, classes: tuple[str, ...] = ("a", "b"), parts: tuple[str, ...] = ("",), n: int = 4
) -> Path:
    rng = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def load(root: Path) -> ImageData:
    return load_data(f"folder:{root}", image_size=8)


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Train", "Test"),
        ("train", "valid"),
        ("train", "validation"),
        ("TRAIN", "dev"),
        ("train", "Val"),
        ("training", "TEST"),
    ],
)
def test_parts_are_found_however_they_are_spelled(train: str, test: str, tmp_path: Path) -> None:
    data = load(folder(tmp_path, parts=(train, test)))
    assert data.classes == ("a", "b")
    assert data.test_targets is not None
    assert data.test_targets.tolist() == [0] * 4 + [1] * 4


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    data = load(folder(tmp_path, classes=("bus", "car", "train")))
    assert data.classes == ("bus", "car", "train")
    assert data.test_inputs is None


def test_folders_that_are_ignored_are_named_and_hidden_ones_do_not_count(tmp_path: Path) -> None:
    root = folder(tmp_path, parts=("train", "val", "test", "extra"))
    (root / ".cache").mkdir()
    (root / "train" / ".thumbnails").mkdir()
    with pytest.warns(UserWarning, match=r"which are ignored: extra, val$"):
        assert load(root).classes == ("a", "b")
    folder(tmp_path, parts=("Train",))
    with pytest.raises(InputError, match="has both Train and train"):
        load(root)


def test_an_image_is_turned_as_its_exif_says(tmp_path: Path) -> None:
    root = folder(tmp_path)
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6  # a viewer shows the right half white
    image.save(root / "a" / "0.png", exif=exif)
    shown = load(root).inputs[0].float()
    assert shown[:, :, 0].mean() == 0
    assert shown[:, :, 7].mean() == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode: str, tmp_path: Path) -> None:
    root = folder(tmp_path)
    if mode == "P":
        Image.new("P", (8, 8), 0).save(root / "a" / "0.png", transparency=0)
    else:
        Image.new(mode, (8, 8), 0).save(root / "a" / "0.png")
    assert load(root).inputs[0].unique().tolist() == [255]


def test_one_class_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has one class alone \(a\): give two or more"):
        load(folder(tmp_path, classes=("a",)))


def test_a_class_without_test_examples_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path, n=20)
    for i in range(1, 20):
        (root / "b" / f"{i}.png").unlink()
    data = load(root)
    cut = make_splits(data, 0, train_size=None, fitness_size=0, accept_size=0, test_size=5)
    with pytest.warns(UserWarning, match=r"no example of class 'b' in test \(seed 0\)") as told:
        warn_of_absent_classes(data, {0: cut})
    assert len(told) == 1
