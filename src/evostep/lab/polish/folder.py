"""A folder of Hugging Face's: a classifier of texts or of tokens, read and written back.

Weights are read from safetensors alone and code from the installed package alone: a folder runs
nothing, and nothing is downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError, needs_package, reason
from evostep.interrupts import Undoing
from evostep.lab.storage import sync
from evostep.scoring.head import find_head

CONFIG = "config.json"
_EXTRA = "evostep[lab,transformers]"
_ONLY_FILES = {"local_files_only": True, "trust_remote_code": False}
_TASKS = {"ForSequenceClassification": False, "ForTokenClassification": True}
_SEVERAL = "multi_label_classification"


@dataclass(frozen=True)
class Classifier:
    """A classifier as `save_pretrained` wrote it.

    Attributes:
        path: the folder.
        model: on the CPU, in evaluation mode.
        tokenizer: of the folder; None: it has none.
        classes: their names, as the config has them.
        of_tokens: whether each token is classified, or the text.
        several: whether a text has several labels.
    """

    path: Path
    model: nn.Module
    tokenizer: Any
    classes: tuple[str, ...]
    of_tokens: bool
    several: bool

    @property
    def title(self) -> str:
        """The folder's name, for people."""
        return self.path.resolve().name

    @property
    def task(self) -> str:
        """Return what the Hub calls it."""
        return "token-classification" if self.of_tokens else "text-classification"

    @property
    def takes(self) -> frozenset[str]:
        """Names of what the model's ``forward`` takes."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def longest(self) -> int | None:
        """How many tokens fit; None: any number."""
        config: Any = self.model.config
        told = [getattr(config, "max_position_embeddings", None)]
        told.append(getattr(self.tokenizer, "model_max_length", None))
        # a tokenizer that was never told says 10^30, relative positions -1
        there = [int(n) for n in told if isinstance(n, int | float) and 0 < n < 10**9]
        return min(there, default=None)


def load_folder(path: Path) -> Classifier:
    """Read a classifier and, where there is one, its tokenizer.

    Raises:
        InputError: no such folder; another kind of network; no safetensors; weights that are
            missing, or do not fit; the package is not installed.
    """
    config = _read_config(path)
    name = next(iter(getattr(config, "architectures", None) or [""]))
    of_tokens = next((kind for end, kind in _TASKS.items() if name.endswith(end)), None)
    if of_tokens is None:
        raise InputError(
            f"{path} holds a {name or config.model_type}: give a classifier of texts or tokens, "
            f"{' or '.join(f'...{end}' for end in _TASKS)}"
        )
    if config.num_labels < 2:
        raise InputError(f"{path} gives one number for a text: give a network that tells classes")
    if not any(path.glob("*.safetensors")):
        raise InputError(
            f"{path} holds no .safetensors file, and others may run code: write it again, by "
            "save_pretrained(..., safe_serialization=True)"
        )
    model = _load_model(path, of_tokens)
    several = not of_tokens and config.problem_type == _SEVERAL
    classes = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    if len(set(classes)) < len(classes):
        raise InputError(f"{path / CONFIG} gives two classes one name: correct id2label")
    return Classifier(path, model, _load_tokenizer(path), classes, of_tokens, several)


def _transformers(path: Path) -> Any:
    try:
        import transformers
    except ImportError as error:
        raise needs_package(str(path), "transformers", _EXTRA, error) from error
    return transformers


def _read_config(path: Path) -> Any:
    if not path.is_dir():
        raise InputError(f"no folder {path}: correct the path")
    if not (path / CONFIG).is_file():
        raise InputError(f"{path} holds no {CONFIG}: give a folder that save_pretrained wrote")
    transformers = _transformers(path)
    try:
        with _quiet():
            return transformers.AutoConfig.from_pretrained(path, **_ONLY_FILES)
    except Exception as error:  # a file may say anything
        raise InputError(f"{path / CONFIG} cannot be read ({reason(error)}): correct it") from error


def _load_model(path: Path, of_tokens: bool) -> nn.Module:
    transformers = _transformers(path)
    kind = "AutoModelForTokenClassification" if of_tokens else "AutoModelForSequenceClassification"
    try:
        with _quiet():
            model, found = getattr(transformers, kind).from_pretrained(
                path, **_ONLY_FILES, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # as above
        raise InputError(f"{path} cannot be loaded ({reason(error)}): save it again") from error
    for what in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if names := sorted(map(str, found.get(what) or ())):
            more = f" and {len(names) - 3} more" if names[3:] else ""
            raise InputError(
                f"the weights of {path} do not fit its {CONFIG}: {what.replace('_', ' ')} "
                f"{', '.join(names[:3])}{more}: save it again"
            )
    loaded: nn.Module = model.eval()
    return loaded


def _load_tokenizer(path: Path) -> Any:
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    try:
        with _quiet():
            return _transformers(path).AutoTokenizer.from_pretrained(path, **_ONLY_FILES)
    except Exception as error:  # as above
        raise InputError(
            f"the tokenizer of {path} cannot be loaded ({reason(error)}): save it again"
        ) from error


def has_biased_head(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Return whether the layer that makes a network's outputs has a bias, which can be saved.

    Args:
        model: the network.
        batch: of examples, on its device.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    head = find_head(model, lambda: model(**inputs).logits)
    return head is not None and getattr(head.layer, "bias", None) is not None


def save_folder(classifier: Classifier, folder: Path) -> None:
    """Write model, config and tokenizer, and see that the very same weights load again.

    Raises:
        InputError: they do not.
    """
    with _quiet():
        classifier.model.save_pretrained(folder, safe_serialization=True)  # type: ignore[operator]
        if classifier.tokenizer is not None:
            classifier.tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        sync(file)
    wanted = classifier.model.state_dict()
    found = _load_model(folder, classifier.of_tokens).state_dict()
    lost = [name for name, value in wanted.items() if not _same(value, found.get(name))]
    if lost:
        raise InputError(
            f"{classifier.path}: what save_pretrained writes loads with another {lost[0]}: give "
            "--scores in place of the network"
        )


def _same(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())


@contextmanager
def _quiet() -> Iterator[None]:
    """Let the package neither draw progress nor tell what the errors here say."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()

    def put_back() -> None:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()

    with Undoing(put_back):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
