"""What tests of the lab share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.data.images import ImageData, load_data
from evostep.lab.data.parts import Parts, cut
from evostep.lab.data.splits import make_splits


@pytest.fixture(scope="session", autouse=True)
def _read_once(digits_read_once: None) -> None:
    """Nearly all of the lab's tests begin with the digits."""


@pytest.fixture
def without_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out PNG files, which take as long to draw as SVG: `test_page` looks at some."""
    from evostep.lab.report.figures import drawing

    savefig = drawing.Figure.savefig

    def without(self: Any, file: Any, *, format: str, **options: Any) -> None:
        if format != "png":
            savefig(self, file, format=format, **options)

    monkeypatch.setattr(drawing.Figure, "savefig", without)


@pytest.fixture
def refused() -> Callable[..., None]:
    """Check that loading fails in one line that matches."""

    def check(told: str, name: str, *args: Any, **options: Any) -> None:
        with pytest.raises(InputError, match=told) as caught:
            load_data(name, *args, **options)
        assert "\n" not in str(caught.value)

    return check


@pytest.fixture(scope="session")
def digits() -> ImageData:
    """Load the digits once."""
    return load_data("digits")


@pytest.fixture(scope="session")
def parts(digits: ImageData) -> Parts:
    """Cut a few of the digits into parts."""
    splits = make_splits(digits, 0, train_size=100, fitness_size=40, accept_size=20, test_size=50)
    return cut(digits, splits, torch.device("cpu"))
