"""The reader: what the package's own recogniser reads, it reads."""

import importlib.util

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.data.sources.text_lines import drawn
from evostep.lab.reading import reader
from evostep.lab.reading.reader import collapse, recognise

needs_reader = pytest.mark.skipif(
    importlib.util.find_spec("rapidocr_onnxruntime") is None,
    reason="rapidocr-onnxruntime is not installed (the extra black-box)",
)


def test_the_best_path_leaves_out_blanks_and_repetitions() -> None:
    alphabet = ["", "A", "B"]
    assert collapse([0, 1, 1, 0, 1, 2, 2, 0], alphabet) == "AAB"
    assert collapse([], alphabet) == collapse([0, 0], alphabet) == ""


def test_images_of_another_height_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(n, 3, 48, width\), got \(1, 3, 32, 80\)"):
        recognise(torch.zeros(1, 3, 32, 80))


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"rapidocr_onnxruntime.*pip install 'evostep\[black-box\]'"
    ):
        reader.model_file()


@needs_reader
def test_clean_text_is_read_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image, ImageDraw

    from evostep.lab.data.sources.text_lines import _font

    page = Image.new("RGB", (80, 48), "white")
    ImageDraw.Draw(page).text((6, 8), "K7PD", fill="black", font=_font("DejaVuSans", 26))
    clean = torch.tensor(list(page.tobytes())).view(1, 48, 80, 3).permute(0, 3, 1, 2) / 255
    assert recognise(clean) == ["K7PD"]
    images = drawn(0, 3)[0].float() / 255
    together = recognise(images)
    monkeypatch.setattr(reader, "AT_ONCE", 1)
    assert recognise(images) == together
