"""Images of the lab: names, statistics and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from evostep.errors import InputError
from evostep.lab.data.images import augment, channel_statistics, load_data

Refused = Callable[..., None]


def test_digits_are_scikit_learns_scaled_to_bytes() -> None:
    from sklearn.datasets import load_digits

    digits, bunch = load_data("digits"), load_digits()
    assert digits.inputs.dtype == torch.uint8
    assert (digits.inputs.min(), digits.inputs.max()) == (0, 255)
    back = digits.inputs.squeeze(1).double() * 16 / 255
    assert np.abs(back.numpy() - bunch.images).max() < 0.05
    assert digits.targets.tolist() == bunch.target.tolist()
    assert digits.classes == tuple("0123456789")
    assert digits.test_inputs is None
    assert digits.test_targets is None


def test_normalised_training_images_have_mean_0_and_deviation_1() -> None:
    digits = load_data("digits")
    inputs = digits.inputs.clone()
    normal = digits.normalise(inputs)
    assert normal.dtype == torch.float32
    assert normal.mean().abs() < 1e-5
    assert abs(normal.std(correction=0).item() - 1) < 1e-5
    assert torch.equal(inputs, digits.inputs)
    with pytest.raises(InputError, match=r"cannot normalise torch.float32 .* uint8 originals"):
        digits.normalise(normal)


def test_channel_statistics_agree_with_numpy_and_survive_a_constant_channel() -> None:
    images = torch.randint(0, 256, (5000, 3, 4, 5), dtype=torch.uint8)
    images[:, 1] = 51
    mean, std = channel_statistics(images)
    plain = images.numpy() / 255.0
    np.testing.assert_allclose(mean, plain.mean((0, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(std[::2], plain.std((0, 2, 3))[::2], rtol=1e-10)
    assert std[1] == 1.0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digit", "unknown data 'digit': did you mean digits.*cifar10.*folder:PATH"),
        ("fashion_mnist", "did you mean fashion-mnist"),
        ("", "unknown data ''"),
        ("no_such_module:data", "cannot import 'no_such_module'"),
    ],
)
def test_unknown_names_are_refused(refused: Refused, name: str, told: str) -> None:
    refused(told, name)


def test_image_size_fits_or_is_refused(refused: Refused) -> None:
    assert load_data("digits", image_size=8).inputs.shape[-1] == 8
    refused("image size 32 does not fit digits, whose images are 8 pixels", "digits", image_size=32)
    refused("image size 0 is not positive", "digits", image_size=0)


def test_a_folder_without_effect_warns(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has no effect on 'digits'"):
        load_data("digits", tmp_path)


def twin(images: torch.Tensor, generator: torch.Generator, kind: str) -> torch.Tensor:
    """The slow and obvious way: one image at a time."""
    n, _, height, width = images.shape
    reach = height // 8
    down = torch.randint(2 * reach + 1, (n, 1), generator=generator)
    right = torch.randint(2 * reach + 1, (n, 1), generator=generator)
    flip = torch.zeros(n)
    if kind == "flip-shift":
        flip = torch.randint(2, (n, 1), generator=generator)
    made = []
    for i, image in enumerate(images):
        padded = torch.nn.functional.pad(image, (reach,) * 4)
        top, left = int(down[i]), int(right[i])
        crop = padded[:, top : top + height, left : left + width]
        made.append(crop.flip(2) if flip[i] else crop)
    return torch.stack(made)


@pytest.mark.parametrize("kind", ["shift", "flip-shift"])
@pytest.mark.parametrize("shape", [(40, 3, 32, 32), (40, 1, 8, 8), (40, 2, 16, 24), (5, 1, 4, 4)])
def test_augment_agrees_with_its_slow_twin(kind: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    kept = images.clone()
    before = torch.get_rng_state()
    made = augment(images, torch.Generator().manual_seed(3), kind=kind)
    assert torch.equal(made, twin(images, torch.Generator().manual_seed(3), kind))
    assert torch.equal(images, kept)
    assert torch.equal(before, torch.get_rng_state())
    another = augment(images, torch.Generator().manual_seed(4), kind=kind)
    if shape[2] >= 8 or kind == "flip-shift":
        assert not torch.equal(made, another)


def test_shifts_and_flips_are_uniform() -> None:
    images = torch.zeros(9000, 1, 8, 8)
    images[:, :, 3, 2] = 1
    made = augment(images, torch.Generator().manual_seed(0), kind="flip-shift")
    places = made.sum((0, 1))
    assert made.sum() == 9000
    # Three rows by two times three columns, each binomial: 9000 draws at 1/18, deviation 21.7.
    assert (places[2:5, [1, 2, 3, 4, 5, 6]] - 500).abs().max() < 5 * 21.7


def test_augment_none_draws_nothing_and_unknown_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    before, images = generator.get_state(), torch.rand(2, 1, 8, 8)
    assert augment(images, generator, kind="none") is images
    assert torch.equal(before, generator.get_state())
    with pytest.raises(InputError, match="unknown augmentation 'flip': did you mean flip-shift"):
        augment(images, generator, kind="flip")
