"""The usual filters: each changes an image, none its size, and grey stays grey."""

import importlib.util

import pytest
import torch

from evostep.lab.data.sources.text_lines import drawn
from evostep.lab.reading.filters import COLOURS, OPERATIONS, filtered, in_space

needs_opencv = pytest.mark.skipif(
    importlib.util.find_spec("cv2") is None,
    reason="OpenCV is not installed (the extra black-box)",
)


def test_no_filter_needs_no_package() -> None:
    images = torch.rand(2, 3, 8, 8)
    assert filtered(images, ["none", "none"]) is images
    assert in_space(images, "rgb") is images


@needs_opencv
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "none"])
def test_a_filter_changes_an_image_and_not_its_size(name: str) -> None:
    images = drawn(0, 2)[0].float() / 255
    grey = images[:, 2:].expand(-1, 3, -1, -1)
    for given in (images, grey):
        seen = filtered(given, [name])
        assert seen.shape == given.shape
        assert 0 <= float(seen.min()) <= float(seen.max()) <= 1
        assert not torch.allclose(seen, given, atol=0.01)
        assert torch.equal(seen[:1], filtered(given[:1], [name]))  # each image for itself
    assert torch.equal(seen[:, 0], seen[:, 1])
    assert torch.equal(seen[:, 0], seen[:, 2])


@needs_opencv
@pytest.mark.parametrize("space", sorted({colour.space for colour in COLOURS.values()}))
def test_colour_spaces_lie_in_the_unit_cube(space: str) -> None:
    seen = in_space(drawn(0, 2)[0].float() / 255, space)
    assert seen.shape == (2, 3, 48, 80)
    assert 0 <= float(seen.min()) <= float(seen.max()) <= 1


@needs_opencv
def test_filters_are_applied_in_their_order() -> None:
    images = drawn(0, 1)[0].float() / 255
    both = filtered(images, ["otsu", "wide gauss"])
    assert torch.allclose(both, filtered(filtered(images, ["otsu"]), ["wide gauss"]), atol=1e-6)
    assert not torch.allclose(both, filtered(images, ["wide gauss", "otsu"]), atol=0.1)
