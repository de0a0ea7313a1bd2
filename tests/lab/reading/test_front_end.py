"""The front end: it begins as what it was told, and each number does what its name says."""

import pytest
import torch

from evostep.lab.reading.front_end import FrontEnd

IMAGES = torch.rand(3, 3, 12, 20, generator=torch.Generator().manual_seed(0)) * 0.6 + 0.2


def test_it_begins_as_nothing() -> None:
    assert torch.allclose(FrontEnd()(IMAGES), IMAGES, atol=1e-6)
    assert sum(parameter.numel() for parameter in FrontEnd().parameters()) == 20


@pytest.mark.parametrize(("weights", "offset"), [((0.2, 0.5, 0.3), 0.0), ((-0.5, 0.4, 0.1), 0.5)])
def test_it_begins_as_a_mixture_of_colours(
    weights: tuple[float, float, float], offset: float
) -> None:
    front_end = FrontEnd()
    front_end.gain.data.fill_(2.0)  # whatever was there before
    front_end.begin(weights, offset)
    mixed = torch.einsum("nchw,c->nhw", IMAGES, torch.tensor(weights)) + offset
    assert torch.allclose(front_end(IMAGES), mixed[:, None].expand(-1, 3, -1, -1), atol=1e-6)


@pytest.mark.parametrize("name", ["kernel", "stretch", "gain", "shade", "bend"])
def test_numbers_leave_the_brightness_alone(name: str) -> None:
    front_end = FrontEnd()
    front_end.begin((0.3, 0.3, 0.4))
    before = front_end(IMAGES)
    getattr(front_end, name).data.add_(0.2)
    after = front_end(IMAGES)
    assert not torch.allclose(after, before, atol=1e-3)
    assert (after.mean((1, 2, 3)) - before.mean((1, 2, 3))).abs().max() < 0.02


def test_a_kernel_takes_what_lies_beside_above_and_across() -> None:
    point = torch.full((1, 3, 5, 5), 0.5)
    point[0, 0, 2, 2] = 1.0
    front_end = FrontEnd()
    front_end.begin((0.0, 0.0, 0.0))
    front_end.level[0] = 1.0
    front_end.kernel.data[0] = torch.tensor([0.0, 0.8, 0.4, 0.2])
    seen = front_end(point)[0, 0]
    seen = (seen - seen[0, 0]) / 0.5
    assert torch.allclose(seen[2, 1:4], torch.tensor([0.4, 0.0, 0.4]), atol=1e-5)
    assert torch.allclose(seen[1:4, 2], torch.tensor([0.2, 0.0, 0.2]), atol=1e-5)
    assert seen[1, 1].item() == pytest.approx(0.05, abs=1e-5)


def test_stretched_in_full_all_images_have_one_contrast() -> None:
    front_end = FrontEnd()
    front_end.stretch.data.fill_(1.0)
    faint = torch.cat([IMAGES, 0.5 + 0.1 * (IMAGES - 0.5)])
    deviations = front_end(faint).flatten(1).std(1)
    assert deviations.std() / deviations.mean() < 0.02


def test_zoom_is_about_the_middle() -> None:
    image = torch.zeros(1, 3, 9, 9)
    image[..., 4, 4] = 1.0
    front_end = FrontEnd()
    front_end.zoom.data.fill_(1.0)
    seen = front_end(image)[0, 0]
    assert seen.argmax() == 40
    assert torch.allclose(seen, seen.flip(0), atol=1e-5)
    assert seen.sum() > 1.3  # it covers more
