"""Image folders: their layouts, and those that are refused."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from evostep.errors import InputError
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


def test_squares_of_one_size_need_no_image_size_and_others_do(
    refused: Refused, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        draw(tmp_path / name / "0.png", (1, 2, 3), (10, 10))
        (tmp_path / name / "bad.png").write_bytes(b"")  # which is told by who reads it
    with pytest.warns(UserWarning, match="2 bad files left out"):
        same = load_data(f"folder:{tmp_path}", skip_bad=2).inputs
    assert same.shape == (2, 3, 10, 10)
    Image.new("RGB", (30, 10)).save(tmp_path / "a" / "0.png")
    refused("its images have .* to 30x10 pixels: give --image-size", f"folder:{tmp_path}")
    Image.new("RGB", (30, 10)).save(tmp_path / "b" / "0.png")
    refused("its images have 30x10 pixels: give --image-size", f"folder:{tmp_path}")
    for name in ("a", "b"):
        (tmp_path / name / "0.png").write_bytes(b"")
    refused("its images have no pixels: give --image-size", f"folder:{tmp_path}")


def test_a_folder_of_folders_of_classes_is_told(refused: Refused, tmp_path: Path) -> None:
    for name in ("photos/cat/0.png", "photos/dog/0.png", "old/cat/0.png"):
        draw(tmp_path / name, (1, 2, 3))
    with pytest.warns(UserWarning, match="no class holds images itself.* give folder:.*/old$"):
        assert load_data(f"folder:{tmp_path}", image_size=8).classes == ("old", "photos")
    draw(tmp_path / "old" / "0.png", (1, 2, 3))
    load_data(f"folder:{tmp_path}", image_size=8)  # of which a class has some of its own
    (tmp_path / "old" / "plan.json").write_text("{}")
    refused("old holds results of evostep, and is no class: move it", f"folder:{tmp_path}")
    (tmp_path / "old" / "run").mkdir()
    (tmp_path / "old" / "plan.json").rename(tmp_path / "old" / "run" / "plan.json")
    refused("old holds results of evostep, and is no class: move it", f"folder:{tmp_path}")


def test_bad_image_folders_are_refused(refused: Refused, pictures: Path, tmp_path: Path) -> None:
    name = f"folder:{pictures}"
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


def encoded(kind: str, mode: str = "RGB", **settings: object) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (12, 12)).save(file, kind, **settings)
    return file.getvalue()


def bomb() -> bytes:
    """A PNG of some hundred bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


BAD = {
    "truncated": encoded("PNG")[:50],
    "truncated within": encoded("JPEG")[:-300],
    "zero bytes": b"",
    "text": b"no image at all",
    "bomb": bomb(),
    "16 bits": encoded("PNG", "I;16"),
    "PostScript, for which Pillow runs a program": encoded("EPS"),
    "PDF": b"%PDF-1.4",
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_named_and_left_out_where_that_is_asked_for(
    kind: str, refused: Refused, pictures: Path
) -> None:
    name, bad = f"folder:{pictures}", pictures / "train" / "dog" / "1.png"
    whole = load_data(name, image_size=8)
    bad.write_bytes(BAD[kind])
    refused(
        r"dog/1\.png (does not decode|has Pillow's mode).* by --skip-bad N$", name, image_size=8
    )
    with pytest.warns(UserWarning, match=r"1 bad file left out: .*dog/1\.png (does|has)") as told:
        data = load_data(name, image_size=8, skip_bad=1)
    assert len(told) == 1
    assert data.targets.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(data.inputs, whole.inputs[[0, 1, 2, 3, 5]])
    assert len(data.skipped) == 1


def test_no_more_files_are_left_out_than_may_be_bad(refused: Refused, pictures: Path) -> None:
    name = f"folder:{pictures}"
    (pictures / "train" / "cat" / "0.png").write_bytes(b"")
    (pictures / "test" / "dog" / "0.png").write_bytes(b"")
    refused(r"test/dog/0\.png .*\(1 bad file before it\): ", name, image_size=8, skip_bad=1)
    with pytest.warns(UserWarning, match=r"2 bad files left out: .*cat/0\.png.*; .*dog/0\.png"):
        data = load_data(name, image_size=8, skip_bad=2)
    assert (len(data.targets), len(data.skipped)) == (5, 2)
    (pictures / "test" / "dog" / "1.png").write_bytes(b"")
    refused(r"test/dog holds bad images alone", name, image_size=8, skip_bad=9)
    with pytest.warns(UserWarning, match=r"--skip-bad 1 has no effect on 'digits'"):
        load_data("digits", skip_bad=1)


@pytest.mark.parametrize(
    ("kind", "mode", "films"),
    [("PNG", "L", 0), ("JPEG", "CMYK", 0), ("PNG", "1", 0), ("GIF", "L", 1), ("PNG", "L", 1)],
)
def test_images_of_other_kinds_are_read(kind: str, mode: str, films: int, pictures: Path) -> None:
    """Of several images in a file the first one counts, which is told."""
    odd = pictures / "train" / "dog" / "1.png"
    colour = (0, 0, 0, 100) if mode == "CMYK" else 0
    further = {"save_all": True, "append_images": [Image.new(mode, (9, 9), 255)]} if films else {}
    file = io.BytesIO()
    Image.new(mode, (9, 9), colour).save(file, kind, **further)
    odd.write_bytes(file.getvalue())
    if not films:
        data = load_data(f"folder:{pictures}", image_size=8)
    else:
        with pytest.warns(UserWarning, match=r"1 file with several images, such as .*dog/1\.png"):
            data = load_data(f"folder:{pictures}", image_size=8)
    assert data.inputs[4].float().mean() < (160 if mode == "CMYK" else 1)


def test_links_are_followed_told_and_never_in_a_circle(
    refused: Refused, pictures: Path, tmp_path: Path
) -> None:
    name, elsewhere = f"folder:{pictures}", tmp_path / "elsewhere"
    draw(elsewhere / "far.png", (9, 9, 9))
    (pictures / "train" / "cat" / "twin.png").symlink_to(pictures / "train" / "cat" / "0.png")
    assert len(load_data(name, image_size=8).targets) == 7  # within, a link is like a copy
    (pictures / "train" / "cat" / "far.png").symlink_to(elsewhere / "far.png")
    (pictures / "train" / "emu").symlink_to(elsewhere)
    (pictures / "test" / "emu").symlink_to(elsewhere)
    with pytest.warns(UserWarning, match=r"3 links to what lies outside of it, such as .*far\.png"):
        assert len(load_data(name, image_size=8).targets) == 9
    for to in (pictures, pictures / "train" / "dog"):
        circle = pictures / "train" / "dog" / "circle"
        circle.symlink_to(to)
        refused(r"dog/circle links to a folder that it lies in", name, image_size=8)
        circle.unlink()
    (pictures / "train" / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    refused(r"dog/gone\.png does not decode \(FileNotFoundError", name, image_size=8)


def test_an_empty_class_is_named_and_one_image_is_enough(
    refused: Refused, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "train" / "emu").mkdir()
    (pictures / "train" / "emu" / "notes.txt").write_text("no image")
    refused(r"no image in emu", f"folder:{pictures}", image_size=8)
    for name in ("a", "b"):
        draw(tmp_path / "few" / name / "0.png", (1, 2, 3))
    assert load_data(f"folder:{tmp_path / 'few'}", image_size=8).targets.tolist() == [0, 1]


def test_a_folder_that_cannot_be_read_is_not_passed_over(
    monkeypatch: pytest.MonkeyPatch, pictures: Path
) -> None:
    def walk(place: Path, onerror: Callable[[OSError], None], **_: object) -> list[object]:
        onerror(PermissionError(13, "Permission denied", str(place / "closed")))
        return []

    monkeypatch.setattr("evostep.lab.data.sources.image_folder.os.walk", walk)
    with pytest.raises(InputError, match=r"closed cannot be read \(Permission denied\)"):
        load_data(f"folder:{pictures}", image_size=8)
