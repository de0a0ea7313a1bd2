"""Options of polishing and evaluating: one frozen dataclass, which the command line is made of."""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from evostep.errors import InputError
from evostep.lab.options import Options, check_type, flag
from evostep.polishing.budget import parse_budget

# Of a comparison's options those that a network and its examples are read by.
NETWORK = (
    *("model", "init_from", "pretrained", "data", "data_dir", "image_size", "skip_bad"),
    *("train_size", "fitness_size", "accept_size", "test_size", "device", "threads"),
)
# What a finished directory may be asked for again with, whatever it was before.
FREE = ("data_dir", "skip_bad", "device", "threads")
# What `evaluate` has no use for.
ONLY_POLISH = ("space", "folds", "confirm", "share", "budget", "prior")

Part = Literal["test", "accept", "fitness", "all"]


@dataclass(frozen=True)
class PolishOptions:
    """What to polish, on which examples, by which metric.

    Attributes:
        network: model, weights and data, as `evostep train` reads them; not read with `scores`.
        evaluates: whether it is of `evostep evaluate`, which needs no metric and changes nothing.

    Raises:
        InputError: a value of the wrong type, or options that exclude each other.
    """

    metric: Annotated[
        str,
        "{metrics}, f-beta(2), cost; sums such as 0.7*macro-f1 + 0.3*mcc; constraints after "
        "'subject to', such as accuracy >= 0.99*parent; or package.module:attribute, a metric of "
        "torchmetrics', scikit-learn's or one's own, called with logits and targets",
    ] = "worst-class-recall"
    higher_is_better: Annotated[
        bool | None, "direction of a metric of one's own that does not say it"
    ] = None
    scores: Annotated[
        Path | None,
        "CSV, parquet, JSON or npz file with a column score_<class> for each class and a column "
        "label, instead of a model",
    ] = None
    scores_are: Annotated[
        Literal["logits", "probabilities"] | None,
        "what the scores are, or what an ONNX model gives (default there: logits)",
    ] = None
    text: Annotated[
        str | None,
        "column of the texts of --data, or two, as premise,hypothesis; default: text, and tokens "
        "for a classifier of tokens",
    ] = None
    target: Annotated[
        str | None, "column of the true classes; default: label, and tags of tokens"
    ] = None
    groups: Annotated[
        str | None, "column of names; examples of a group (a patient, a user) stay together"
    ] = None
    weights: Annotated[str | None, "column that tells what each example counts"] = None
    costs: Annotated[
        Path | None, "CSV, JSON or npy file of the metric cost: a row for each true class"
    ] = None
    prior: Annotated[
        str | None,
        "class frequencies in training, as a list 0.7,0.2,0.1 or a file; default: those of the "
        "training part of the run that made the weights, else the examples'",
    ] = None
    part: Annotated[
        Part,
        "part of the data that the network was not trained on: test; all, for a network that was "
        "trained elsewhere",
    ] = "test"
    split_seed: Annotated[
        int | None,
        "seed of the training run, which parts the data; default: told by the weights' folder, "
        "else 0",
    ] = None
    space: Annotated[
        Literal["decision", "head", "norm", "scales", "auto"],
        "what is evolved: decision, the biases of the outputs; or weights: head, norm, scales; "
        "auto chooses among them",
    ] = "decision"
    folds: Annotated[int, "parts in which the examples are split to confirm the gain"] = 5
    confirm: Annotated[
        Literal["folds", "holdout"],
        "what the gain is confirmed on: folds, each by what has not seen it; or a part that is "
        "held out, by the very network that is written",
    ] = "folds"
    share: Annotated[float, "of the examples that --confirm holdout holds out"] = 0.3
    budget: Annotated[
        int | str | None,
        "decisions that may be scored (forwards of an example where weights evolve), or a time "
        "such as 90s, 2m or 1h; default: 40 generations",
    ] = None
    seed: Annotated[int, "seed of folds, noise and bootstrap"] = 0
    network: Options = field(default_factory=Options)
    evaluates: bool = False

    def __post_init__(self) -> None:
        for name, kind in own_kinds().items():
            check_type(flag(name), getattr(self, name), kind)
        for name in ("seed", "split_seed"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"{flag(name)} must be at least 0, got {getattr(self, name)}")
        parse_budget(self.budget)
        of_network = sorted(self.network.given - {"device", "threads"})
        if self.scores is not None and of_network:
            raise InputError(
                f"--scores and {flag(of_network[0])} exclude each other: scores come without a "
                "network"
            )
        if self.scores is not None and self.scores_are is None:
            raise InputError("--scores-are is missing: say logits or probabilities")
        if self.scores is None and "model" not in self.network.given | self._from_weights:
            done = "evaluated" if self.evaluates else "polished"
            raise InputError(f"what is to be {done}? Give --model and --init-from, or --scores")
        if self.scores is None and self.folder is None:
            for name in ("text", "target", "groups", "weights"):
                if getattr(self, name) is not None:
                    raise InputError(
                        f"{flag(name)} names a column of --scores, or of texts: leave it out"
                    )
        if self.scores is not None and self.text is not None:
            raise InputError("--text names a column of texts, and --scores has none: leave it out")
        if self.scores is None and self.folder is not None:
            self._check_folder(self.folder)

    def _check_folder(self, folder: Path) -> None:
        if "data" not in self.network.given:
            raise InputError(f"--data is missing: give {folder} a table of texts and their labels")
        of_others = self.network.given - {"model", "data", "device", "threads"}
        if of_others:
            name = flag(min(of_others))
            raise InputError(f"--model {folder} is a folder, which {name} is not for: leave it out")
        if self.part not in ("test", "all"):
            raise InputError(f"--part {self.part}: texts are read as a whole, leave it out")
        for name in ("scores_are", "split_seed"):
            if getattr(self, name) is not None:
                raise InputError(f"{flag(name)} is not for a folder: leave it out")

    @property
    def _from_weights(self) -> set[str]:
        # weights in the directory of a run tell their model
        return {"model"} if self.network.init_from is not None else set()

    @property
    def onnx(self) -> Path | None:
        """The ONNX file that is the model; None: it is none."""
        model = self.network.model
        return Path(model) if model.lower().endswith(".onnx") else None

    @property
    def folder(self) -> Path | None:
        """The folder of Hugging Face's that is the model; None: it is none."""
        model = self.network.model
        named = self.onnx is None and not {"/", os.sep}.isdisjoint(model)
        return Path(model) if named or (Path(model) / "config.json").is_file() else None

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for two commands to have the same result, files by content."""
        from evostep.lab.polish.files import fingerprint

        unused = ONLY_POLISH if self.evaluates else ()
        own: Mapping[str, Any] = {
            name: getattr(self, name) for name in own_kinds() if name not in unused
        }
        if self.scores is None:
            kept = [name for name in NETWORK if name not in FREE]
            own = {**own, **{name: getattr(self.network, name) for name in kept}}
            if (file := self.onnx or self.folder) is not None:
                own = {**own, "model": file}
            if self.folder is not None and Path(self.network.data).is_file():
                own = {**own, "data": Path(self.network.data)}
        if self.prior is not None and Path(self.prior).is_file():
            own = {**own, "prior": Path(self.prior)}
        return {
            name: fingerprint(value) if isinstance(value, Path) else value
            for name, value in own.items()
        }


def own_kinds() -> dict[str, Any]:
    """Return the type of each option that is not a comparison's, by name."""
    kinds = typing.get_type_hints(PolishOptions)
    return {name: kind for name, kind in kinds.items() if name not in ("network", "evaluates")}


def own_help() -> dict[str, str]:
    """Return what the help says of each option of `own_kinds`."""
    told = typing.get_type_hints(PolishOptions, include_extras=True)
    return {name: typing.get_args(told[name])[1] for name in own_kinds()}
