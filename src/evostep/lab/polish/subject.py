"""What is polished: a network with examples that it was not trained on, or scores from a file."""

from __future__ import annotations

import dataclasses
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError, warn
from evostep.lab.comparison.plan import find_device
from evostep.lab.data.images import ImageData, load_data
from evostep.lab.data.parts import Part, cut
from evostep.lab.data.splits import Splits, splits_of
from evostep.lab.imports import runs_code
from evostep.lab.models import build_model
from evostep.lab.options import Options, flag
from evostep.lab.polish.folder import Classifier, has_biased_head, load_folder
from evostep.lab.polish.onnx import run_onnx
from evostep.lab.polish.options import PolishOptions
from evostep.lab.polish.scores import TARGET, read_scores, to_logits
from evostep.lab.polish.texts import read_texts
from evostep.lab.storage import read_json
from evostep.polishing.spaces import DECISION
from evostep.scoring.placing import move


@dataclass(frozen=True)
class Subject:
    """A network, or a black box, and its examples: what `evostep.polish` takes.

    Attributes:
        title: of the model, for people.
        data: of the examples, for people.
        model: None for a black box.
        examples: batches, or (outputs, targets).
        classes: their names.
        targets: (n,), or (n, L) of several labels.
        facts: where all of it is from.
        weights: (n,), or None.
        groups: n names, or None.
        prior: class frequencies in training, where they are known.
        unit: the example of each target, where an example has several; None: each has one.
        classifier: the folder that the model is from; None: from none.
        can_keep: whether a decision in the last layer can be saved.
    """

    title: str
    data: str
    model: nn.Module | None
    examples: Any
    classes: tuple[str, ...]
    targets: Tensor
    facts: dict[str, Any]
    weights: Tensor | None = None
    groups: list[Any] | None = None
    prior: list[float] | None = field(default=None)
    unit: Tensor | None = None
    classifier: Classifier | None = None
    can_keep: bool = True


def make_subject(options: PolishOptions) -> Subject:
    """Read model, weights and examples.

    Raises:
        InputError: whatever cannot be read, or does not fit.
    """
    if options.scores is not None:
        return _from_scores(options, options.scores)
    if options.folder is not None:
        return _from_folder(options, options.folder)
    return _from_network(options)


def _from_scores(options: PolishOptions, path: Path) -> Subject:
    table = read_scores(
        path,
        str(options.scores_are),
        target=options.target or TARGET,
        groups=options.groups,
        weights=options.weights,
    )
    facts = {"scores": str(path), "scores are": options.scores_are}
    return Subject(
        f"scores in {path.name}",
        path.name,
        None,
        (table.outputs, table.targets),
        table.classes,
        table.targets,
        facts,
        table.weights,
        table.groups,
    )


def _from_folder(options: PolishOptions, path: Path) -> Subject:
    classifier, device = load_folder(path), _device(options.network)
    texts = read_texts(
        options.network.data,
        classifier,
        text=options.text,
        target=options.target,
        groups=options.groups,
        weights=options.weights,
    )
    model = classifier.model.to(device)
    can_keep = has_biased_head(model, move(texts.batches[0], device))
    if not can_keep and options.space != DECISION and not options.evaluates:
        raise InputError(
            f"the last layer of {path} has no bias, and from_pretrained would load none: leave "
            f"--space {options.space} out"
        )
    facts = {
        "model": str(path),
        "task": classifier.task,
        "data": options.network.data,
        "texts": len(texts),
        **({"cut off": f"{texts.cut} at {classifier.longest} tokens"} if texts.cut else {}),
    }
    return Subject(
        classifier.title,
        Path(options.network.data).name,
        model,
        texts.batches,
        classifier.classes,
        texts.targets,
        facts,
        texts.weights,
        texts.groups,
        unit=texts.unit,
        classifier=classifier,
        can_keep=can_keep,
    )


def _from_network(options: PolishOptions) -> Subject:
    network, run_seed = _as_in_its_run(options.network)
    known_run = run_seed is not None
    seed = options.split_seed if options.split_seed is not None else run_seed or 0
    device = _device(network)
    own = runs_code(network.model)  # its function may load weights
    if not (own or options.onnx or network.init_from or network.pretrained):
        raise InputError(
            f"{network.model} without weights was never trained: give --init-from FILE"
        )
    data = load_data(
        network.data,
        network.data_dir,
        image_size=network.image_size,
        skip_bad=network.skip_bad,
    )
    splits = splits_of(network, data, seed)
    part, data = _part(options.part, data, splits, device)
    facts = {
        "model": network.model,
        "weights": None if network.init_from is None else str(network.init_from),
        "data": data.title,
        "part": options.part,
        "split seed": seed,
        "indices": splits.as_json().get(options.part),
        **({"skipped": list(data.skipped)} if data.skipped else {}),
    }
    model: nn.Module | None = None
    batches: Any = part.batches(data)
    if options.onnx is not None:
        outputs = run_onnx(options.onnx, [images.cpu() for images, _ in batches])
        _check_outputs(options.onnx, outputs, len(data.classes))
        scores_are = options.scores_are or "logits"
        outputs = to_logits(outputs, scores_are, one_of_many=outputs.shape[1] > 1)
        batches = (outputs, part.targets.cpu())
    else:
        model = _trained(network, data).to(device).eval()
    prior = None
    if known_run and options.part != "all":
        counts = data.targets[splits.train].bincount(minlength=len(data.classes))
        prior = None if (counts == 0).any() else (counts / counts.sum()).tolist()
    return Subject(
        options.onnx.name if options.onnx is not None else network.model,
        f"{data.title}, {options.part} part",
        model,
        batches,
        data.classes,
        part.targets.cpu(),
        facts,
        prior=prior,
    )


def _as_in_its_run(network: Options) -> tuple[Options, int | None]:
    """Return the options of the run in whose directory the weights lie, and its seed.

    What was given stays. Of a run on other data nothing is taken.
    """
    if network.init_from is None:
        return network, None
    folder = network.init_from.resolve().parent
    plan, found = folder.parent.parent / "plan.json", re.search(r"-seed(\d+)$", folder.name)
    if folder.parent.name not in ("runs", "trunks") or not found or not plan.is_file():
        if "model" not in network.given:
            raise InputError(
                f"{network.init_from} lies in no directory of a run, which would tell its model: "
                "give --model"
            )
        return network, None
    told = read_json(plan, {"options": {str: object}}, cure="give --model and --data")["options"]
    if "data" in network.given and network.data != told.get("data"):
        return network, None
    names = ("model", "data", "image_size", "train_size", "fitness_size", "accept_size")
    taken = {
        name: told[name]
        for name in (*names, "test_size")
        if name in told and name not in network.given
    }
    for name in ("model", "data"):
        if runs_code(str(taken.get(name, ""))):
            raise InputError(
                f"{plan} names the {name} {taken[name]!r}, an import path, which runs code: if you "
                f"trust it, give {flag(name)} {taken[name]}"
            )
    given = network.given | frozenset(taken)
    return dataclasses.replace(network, **taken, given=given), int(found[1])


def _part(
    name: str, data: ImageData, splits: Splits, device: torch.device
) -> tuple[Part, ImageData]:
    """Return examples, and the data with the statistics by which its images are normalised."""
    if name == "all":
        images, targets = [data.inputs], [data.targets]
        if data.test_inputs is not None and data.test_targets is not None:
            images.append(data.test_inputs)
            targets.append(data.test_targets)
        return Part(torch.cat(images), torch.cat(targets)).to(device), data
    parts = cut(data, splits, device)
    part: Part = getattr(parts, name)
    if not len(part):
        raise InputError(f"the {name} part is empty: give --{name}-size, or another --part")
    return part, parts.data


def _trained(network: Options, data: ImageData) -> nn.Module:
    """Build the model with its weights, which must all fit."""
    with warnings.catch_warnings():
        # a head of other classes is fine where training goes on, and nothing to polish
        warnings.filterwarnings("error", message=".* has a head for other classes")
        try:
            return build_model(
                network.model,
                channels=data.inputs.shape[1],
                classes=len(data.classes),
                image_size=data.inputs.shape[-1],
                seed=0,
                pretrained=network.pretrained,
                init_from=network.init_from,
            )
        except UserWarning as warning:
            told = str(warning).removesuffix(": left as initialised")
            raise InputError(f"{told}: give weights for these {len(data.classes)}") from warning


def _check_outputs(path: Path, outputs: Tensor, classes: int) -> None:
    if outputs.ndim != 2 or outputs.shape[1] not in ({classes, 1} if classes == 2 else {classes}):
        raise InputError(
            f"{path} gives outputs of shape {tuple(outputs.shape)} for {classes} classes: it must "
            f"give (n, {classes})"
        )


def _device(network: Options) -> torch.device:
    if network.threads is not None:
        torch.set_num_threads(network.threads)
    return find_device(network.device)


def warn_of_order(metric: str, classes: tuple[str, ...]) -> None:
    """Warn where a metric of ordered classes meets numbers that do not ascend."""
    if "kappa" in metric and all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in classes):
        numbers = [int(name) for name in classes]
        if numbers != sorted(numbers):
            warn(
                f"the order of the classes is that of the columns ({', '.join(classes[:5])}, "
                "...): for quadratic-kappa write them in ascending order"
            )
