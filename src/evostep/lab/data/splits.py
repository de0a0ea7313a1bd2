"""Train, fitness, accept and test parts: stratified, disjoint, made once per seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evostep.errors import InputError, warn
from evostep.lab.data.images import ImageData, are_texts

if TYPE_CHECKING:
    from evostep.lab.options import Options

_NAMED = 12  # classes that are told one by one
PARTS = ("train", "fitness", "accept", "test")

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Splits:
    """Which example serves what.

    Attributes:
        train: `(n,)` int64, sorted; feeds the gradients.
        fitness: likewise; scores members. May be empty.
        accept: likewise; decides survival. May be empty.
        test: likewise; read once at the end. Indices into `test_inputs` if `official_test`, else,
            like the other three, into `inputs`.
        official_test: whether `test` points into the data's own test set.
    """

    train: Tensor
    fitness: Tensor
    accept: Tensor
    test: Tensor
    official_test: bool

    def as_json(self) -> dict[str, dict[str, int | str]]:
        """Size and SHA-256 (of the indices as little-endian int64) of each part, by name."""
        return {
            part: {
                "n": len(indices),
                "sha256": hashlib.sha256(np.array(indices, dtype="<i8").tobytes()).hexdigest(),
            }
            for part, indices in self.indices().items()
        }

    def indices(self) -> dict[str, list[int]]:
        """Return the indices of each part as plain lists, by name."""
        return {part: getattr(self, part).tolist() for part in PARTS}


def splits_of(options: Options, data: ImageData, seed: int) -> Splits:
    """Cut data as the options say: see `make_splits`.

    Unless another number was asked for, of an official validation set all serves fitness, and of
    other data at most a third of what test and accept leave.
    """
    fitness_size: int | None = options.fitness_size
    if not options.chosen("fitness_size"):
        fitness_size = None if data.validation else _share(options, data)
    return make_splits(
        data,
        seed,
        train_size=options.train_size,
        fitness_size=fitness_size,
        accept_size=options.accept_size,
        test_size=options.test_size,
    )


def _share(options: Options, data: ImageData) -> int:
    if options.train_size is not None:
        return options.fitness_size
    left = len(data.targets) - options.accept_size
    if data.test_targets is None:
        test = options.test_size
        left -= round(len(data.targets) / 4) if test is None else test
    return max(min(options.fitness_size, left // 3), len(data.classes), 1)


def make_splits(
    data: ImageData,
    seed: int,
    *,
    train_size: int | None,
    fitness_size: int | None,
    accept_size: int,
    test_size: int | None,
) -> Splits:
    """Cut data into disjoint parts of exactly these sizes, each with the classes in proportion.

    A pure function of the arguments. Parts are drawn in the order test, fitness, accept, train,
    each from what those before it left and with randomness of its own: the test part depends on
    the seed and `test_size` alone, and no part on `train_size` but train itself. In each part a
    class has its proportional share of what was left, rounded down or up. Where there is an
    official validation set, fitness and accept are drawn from it, and train from the others.

    Args:
        data: the images; only `targets`, `test_targets`, `classes` and `validation` are read.
        seed: 0 or more; another seed gives another split.
        train_size: number of examples; None for all that are left.
        fitness_size: number of examples; 0 for none; None for all of the official validation set
            that accept leaves.
        accept_size: number of examples; 0 for none.
        test_size: number of examples; None for the whole official test set or, where there is
            none, a quarter of the data.

    Raises:
        InputError: a size is negative, below the number of classes (train and test may not be
            empty), or more than there is; or the seed is negative.

    Example:
        >>> from evostep.lab.data.images import load_data
        >>> splits = make_splits(
        ...     load_data("digits"),
        ...     0,
        ...     train_size=None,
        ...     fitness_size=200,
        ...     accept_size=100,
        ...     test_size=None,
        ... )
        >>> [len(part) for part in (splits.train, splits.fitness, splits.accept, splits.test)]
        [1048, 200, 100, 449]
    """
    if seed < 0:
        raise InputError(f"seed {seed} is negative: give 0 or more")
    targets = _strata(data.targets)
    classes, validation = max(1, len(data.classes)), data.validation
    own = len(targets) - validation
    official = data.test_targets is not None
    test_targets = targets if data.test_targets is None else _strata(data.test_targets)
    if test_size is None:
        test_size = len(test_targets) if official else round(own / 4)
    if fitness_size is None:
        fitness_size = max(validation - accept_size, classes)
    _check_size("test", test_size, classes, may_be_empty=False)
    _check_size("fitness", fitness_size, classes, may_be_empty=True)
    _check_size("accept", accept_size, classes, may_be_empty=True)
    if official and test_size > len(test_targets):
        raise InputError(
            f"test size {test_size} is more than the {len(test_targets)} images of "
            f"{data.name}'s test set: give at most {len(test_targets)}"
        )
    if validation and fitness_size + accept_size > validation:
        raise InputError(
            f"fitness {fitness_size} + accept {accept_size} = {fitness_size + accept_size} "
            f"examples, but {data.name} has {validation} for validation: give smaller sizes"
        )
    held_out = 0 if validation else fitness_size + accept_size
    held_out += 0 if official else test_size
    left = own - held_out
    if train_size is None:
        train_size = max(left, classes)
    _check_size("train", train_size, classes, may_be_empty=False)
    if train_size > left:
        own_test = "" if official else f" + test {test_size}"
        beside = "" if validation else f" + fitness {fitness_size} + accept {accept_size}"
        raise InputError(
            f"train {train_size}{beside}{own_test} = {train_size + held_out} examples, but "
            f"{data.name} has {own} to share: give smaller sizes (train needs {classes} or more)"
        )

    test_pool = np.arange(len(test_targets) if official else own, dtype=np.int64)
    test, test_rest = _draw(test_pool, test_targets, test_size, classes, (seed, 0))
    pool = np.arange(own, dtype=np.int64) if official else test_rest
    held = np.arange(own, len(targets), dtype=np.int64) if validation else pool
    fitness, held = _draw(held, targets, fitness_size, classes, (seed, 1))
    accept, held = _draw(held, targets, accept_size, classes, (seed, 2))
    train, _ = _draw(pool if validation else held, targets, train_size, classes, (seed, 3))
    return Splits(
        train=torch.from_numpy(train),
        fitness=torch.from_numpy(fitness),
        accept=torch.from_numpy(accept),
        test=torch.from_numpy(test),
        official_test=official,
    )


def describe_classes(data: ImageData, splits: Splits) -> str:
    """Return the classes, how many examples each has, and the fewest in a part of one seed.

    Returns:
        One line; empty where targets are texts.
    """
    if data.of_texts:
        return ""
    targets = data.targets
    if data.test_targets is not None:
        targets = torch.cat([targets, data.test_targets])
    counts = torch.bincount(targets, minlength=len(data.classes)).tolist()
    pairs = [f"{name} {n}" for name, n in zip(data.classes, counts, strict=True)]
    line = f"{len(counts)} classes: {', '.join(pairs)}"
    if len(pairs) > _NAMED:
        line = f"{len(counts)} classes of {min(counts)} to {max(counts)} examples"
    fewest: list[str] = []
    for part in PARTS:
        if len(getattr(splits, part)):
            of_part = _counts(data, splits, part)
            i = int(of_part.argmin())
            fewest.append(f"{part} {int(of_part[i])} ({data.classes[i]})")
    return f"{line}; fewest: {', '.join(fewest)}"


def _counts(data: ImageData, splits: Splits, part: str) -> Tensor:
    """Return how many examples of each class a part has."""
    indices: Tensor = getattr(splits, part)
    official = part == "test" and splits.official_test
    targets = data.test_targets if official else data.targets
    assert targets is not None, "an official test set has targets"
    return torch.bincount(targets[indices], minlength=len(data.classes))


def warn_of_absent_classes(data: ImageData, splits: Mapping[int, Splits]) -> None:
    """Warn of each class that some part of some seed has no example of."""
    absent: dict[tuple[str, str], list[int]] = {}
    if data.of_texts:
        return
    for seed, of_seed in splits.items():
        for part in PARTS:
            indices: Tensor = getattr(of_seed, part)
            counts = _counts(data, of_seed, part)
            for label in (counts == 0).nonzero().flatten().tolist() if len(indices) else ():
                absent.setdefault((part, str(data.classes[label])), []).append(seed)
    if absent:
        told = [
            f"{name!r} in {part} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"
            for (part, name), seeds in absent.items()
        ]
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        warn(
            f"{data.name} has no example of class {', '.join(told[:3])}{more}: add images of these "
            "classes, give larger sizes, or leave the classes out"
        )


def _strata(targets: Tensor) -> Indices:
    """Return what each part is to have in proportion, (n,): classes; texts are all of one kind."""
    if are_texts(targets):
        return np.zeros(len(targets), dtype=np.int64)
    classes: Indices = targets.numpy()
    return classes


def _check_size(part: str, size: int, classes: int, *, may_be_empty: bool) -> None:
    """Refuse a negative size, and one that cannot hold an example of each class."""
    if size < 0:
        raise InputError(f"{part} size {size} is negative: give {classes} or more")
    if size < classes and not (size == 0 and may_be_empty):
        or_none = f", or 0 for no {part} part" if may_be_empty else ""
        raise InputError(
            f"{part} size {size} is less than one example for each of the {classes} classes: "
            f"give {classes} or more{or_none}"
        )


def _draw(
    pool: Indices, targets: Indices, size: int, classes: int, stream: tuple[int, int]
) -> tuple[Indices, Indices]:
    """Draw `size` of `pool`, stratified; returns the drawn and the rest, both sorted."""
    if size == len(pool):
        return pool, pool[:0]
    rng = np.random.default_rng(stream)
    labels = targets[pool]
    counts = np.bincount(labels, minlength=classes)
    # Largest remainder in whole numbers, so that no rounding error can change a share: class c
    # gets floor(size * counts[c] / n), and the largest remainders one more, ties by lot.
    shares, remainders = np.divmod(size * counts, max(len(pool), 1))
    lots = rng.permutation(classes)
    largest_first = np.lexsort((lots, -remainders))
    shares[largest_first[: size - shares.sum()]] += 1
    drawn = np.zeros(len(pool), dtype=bool)
    for label, share in enumerate(shares):
        drawn[rng.permutation(np.flatnonzero(labels == label))[:share]] = True
    return pool[drawn], pool[~drawn]
