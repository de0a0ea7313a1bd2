"""Parts of the data: which examples they hold, and how these are normalised."""

import dataclasses

import torch

from evostep.lab.data.images import ImageData, channel_statistics
from evostep.lab.data.parts import Parts, Sizes, cut, spare_of
from evostep.lab.data.splits import make_splits

CPU = torch.device("cpu")


def test_cut_takes_the_examples_that_the_splits_name(digits: ImageData) -> None:
    splits = make_splits(digits, 3, train_size=60, fitness_size=30, accept_size=10, test_size=20)
    parts = cut(digits, splits, CPU)
    for name in ("train", "fitness", "accept", "test"):
        part, indices = getattr(parts, name), getattr(splits, name)
        assert torch.equal(part.images, digits.inputs[indices]), name
        assert torch.equal(part.targets, digits.targets[indices]), name


def test_an_official_test_set_is_where_the_test_examples_come_from(digits: ImageData) -> None:
    with_test = dataclasses.replace(
        digits,
        inputs=digits.inputs[:1000],
        targets=digits.targets[:1000],
        test_inputs=digits.inputs[1000:],
        test_targets=digits.targets[1000:],
    )
    splits = make_splits(with_test, 0, train_size=60, fitness_size=30, accept_size=0, test_size=40)
    parts = cut(with_test, splits, CPU)
    assert torch.equal(parts.test.images, digits.inputs[1000:][splits.test])
    assert torch.equal(parts.test.targets, digits.targets[1000:][splits.test])


def test_images_are_normalised_by_the_training_part_alone(digits: ImageData) -> None:
    changed = dataclasses.replace(digits, inputs=digits.inputs.clone())
    splits = make_splits(digits, 0, train_size=60, fitness_size=30, accept_size=10, test_size=20)
    for part in (splits.fitness, splits.accept, splits.test):
        changed.inputs[part] = 255
    data = cut(changed, splits, CPU).data
    assert (data.mean, data.std) == channel_statistics(digits.inputs[splits.train])
    assert (data.mean, data.std) != (digits.mean, digits.std)


def test_all_data_is_fitness_and_accept_examples_too_but_never_the_test(parts: Parts) -> None:
    assert parts.gradients(all_data=False) is parts.train
    everything = parts.gradients(all_data=True)
    assert len(everything) == 160
    expected = torch.cat([parts.train.images, parts.fitness.images, parts.accept.images])
    assert torch.equal(everything.images, expected)
    expected = torch.cat([parts.train.targets, parts.fitness.targets, parts.accept.targets])
    assert torch.equal(everything.targets, expected)


def test_sizes_count_what_gradients_see(parts: Parts) -> None:
    sizes = Sizes(len(parts.train), len(parts.fitness), len(parts.accept), len(parts.test))
    for all_data in (False, True):
        assert sizes.gradients(all_data) == len(parts.gradients(all_data))


def test_spare_examples_are_in_no_part(digits: ImageData) -> None:
    splits = make_splits(digits, 3, train_size=60, fitness_size=30, accept_size=10, test_size=20)
    parts = cut(digits, splits, CPU)
    used = torch.cat([splits.train, splits.fitness, splits.accept, splits.test])
    everything = torch.cat([parts.spare, used])
    assert torch.equal(everything.sort().values, torch.arange(len(digits.targets)))
    some = parts.take(parts.spare[:5])
    assert torch.equal(some.images, digits.inputs[parts.spare[:5]])
    assert torch.equal(some.first(2).targets, digits.targets[parts.spare[:2]])


def test_spare_examples_are_none_of_the_official_test_and_validation_sets(
    digits: ImageData,
) -> None:
    official = dataclasses.replace(
        digits,
        inputs=digits.inputs[:1000],
        targets=digits.targets[:1000],
        test_inputs=digits.inputs[1000:],
        test_targets=digits.targets[1000:],
        validation=100,
    )
    splits = make_splits(official, 0, train_size=60, fitness_size=30, accept_size=0, test_size=40)
    spare = set(spare_of(official, splits).tolist())
    assert spare == set(range(900)) - set(splits.train.tolist())
