"""Image folders: parts however spelled, images as a viewer shows them, classes that lack."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evostep.errors import InputError
from evostep.lab.comparison.plan import make_plan
from evostep.lab.data.images import ImageData, load_data
from evostep.lab.data.splits import make_splits, splits_of, warn_of_absent_classes
from evostep.lab.options import Options


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
    with pytest.warns(UserWarning, match=r"which are ignored: extra$"):
        assert load(root).classes == ("a", "b")
    folder(tmp_path, parts=("Train",))
    with pytest.raises(InputError, match="has both Train and train"):
        load(root)


@pytest.mark.parametrize("name", ["val", "Valid", "VALIDATION", "dev"])
def test_a_validation_folder_beside_test_scores_members(name: str, tmp_path: Path) -> None:
    folder(tmp_path, parts=("train", "test"), n=4)
    data = load(folder(tmp_path, parts=(name,), n=6))
    assert (len(data.inputs), data.validation) == (8 + 12, 12)
    assert data.test_targets is not None
    assert len(data.test_targets) == 8

    def sizes(**options: int) -> list[int]:
        cut = splits_of(Options(**options), data, 0)  # type: ignore[arg-type]
        assert cut.train.max() < 8 <= min([*cut.fitness.tolist(), *cut.accept.tolist(), 99])
        assert not set(cut.fitness.tolist()) & set(cut.accept.tolist())
        return [len(part) for part in (cut.train, cut.fitness, cut.accept, cut.test)]

    assert sizes() == [8, 12, 0, 8]
    assert sizes(accept_size=4) == [8, 8, 4, 8]
    assert sizes(fitness_size=6, train_size=4) == [4, 6, 0, 8]
    assert sizes(fitness_size=0) == [8, 0, 0, 8]
    with pytest.raises(InputError, match=r"accept 4 = 16 examples, but .* 12 for validation: give"):
        sizes(fitness_size=12, accept_size=4)
    with pytest.raises(InputError, match=r"train 9 = 9 examples, but .* has 8 to share: give"):
        sizes(train_size=9)
    given = Options(fitness_size=300, given=frozenset({"fitness_size"}))  # be it the default
    with pytest.raises(InputError, match="fitness 300"):
        splits_of(given, data, 0)


def test_a_plan_tells_how_many_validation_images_there_are(tmp_path: Path) -> None:
    root = folder(tmp_path, parts=("train", "val", "test"), n=5)
    options = {"data": f"folder:{root}", "image_size": 8, "model": "mlp", "arms": "sgd,mutation"}
    plan = make_plan(Options(**options))  # type: ignore[arg-type]
    assert plan.identity()["options"]["fitness_size"] == plan.sizes.fitness == 10


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        (("train", "val", "valid"), "has both val and valid: leave one of them out"),
        (("train", "test", "dev", "Val"), "has both Val and dev: leave one of them out"),
        (("val", "test"), "has test, val but no train folder: add it"),
    ],
)
def test_parts_that_are_not_clear_are_refused(
    parts: tuple[str, ...], error: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=error):
        load(folder(tmp_path, parts=parts))


@pytest.mark.parametrize("inside", ["", ".hidden", "c"])
def test_an_empty_validation_folder_is_named(inside: str, tmp_path: Path) -> None:
    root = folder(tmp_path, parts=("train", "test"))
    (root / "val" / inside).mkdir(parents=True)
    with pytest.raises(InputError, match=r"val (holds no folder of a class|is no image folder)"):
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
