"""Models by name: two small ones, torchvision's, or the user's own."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evostep.errors import InputError, reason, unknown_name
from evostep.lab.imports import load_attribute, runs_code
from evostep.lab.merging.model import merged_cnn
from evostep.lab.quantised import quantised_cnn
from evostep.lab.reading.model import TextReader
from evostep.lab.weights import load_weights
from evostep.scoring.head import find_head

MODELS = {
    "mlp": "one hidden layer of 32",
    "small-cnn": "three convolutions with BatchNorm",
    **{
        f"quantised-cnn-{bits}": f"three strided convolutions of {bits}-bit weights, a scale and "
        "an offset for each channel; int8 activations; gradients straight through"
        for bits in (2, 3, 4)
    },
    "merged-cnn": "two networks fine-tuned apart, merged by a coefficient for each layer",
    "text-reader": "20 numbers of an image front end before a frozen reader of text (RapidOCR)",
}
OTHER_MODELS = {
    "torchvision:NAME": "a torchvision classifier, such as resnet18; --pretrained for its weights",
    "package.module:name": "a class or function of one's own that makes a torch.nn.Module",
}


def build_model(
    name: str,
    *,
    channels: int,
    classes: int,
    image_size: int,
    seed: int,
    pretrained: bool = False,
    init_from: Path | None = None,
) -> nn.Module:
    """Build a classifier for square images.

    Args:
        name: `mlp` (one hidden layer of 32), `small-cnn` (three convolutions with BatchNorm),
            another of `MODELS`, a torchvision classification model, as `torchvision:resnet18` or
            `resnet18`, or `package.module:callable`, which is called with those of the keyword
            arguments `channels`, `classes` and `image_size` that it accepts.
        channels: of the images; torchvision's models take 3.
        classes: number of outputs; 0: they are texts.
        image_size: height and width in pixels.
        seed: the initial weights are a function of it; the global random state is left alone.
        pretrained: start from torchvision's default weights; the head is fresh unless the number
            of classes is theirs.
        init_from: a `.safetensors` file with the weights. Names and shapes must agree, but a head
            for another number of classes is left fresh, with a warning.

    Returns:
        The model, on the CPU, in training mode: `(n, channels, image_size, image_size)` float to
        `(n, classes)` logits.

    Raises:
        InputError: unknown name, a model that cannot take such images, weights that cannot be had
            or do not fit.

    Example:
        >>> model = build_model("mlp", channels=1, classes=10, image_size=8, seed=0)
        >>> parameter_count(model)
        2410
    """
    if not classes and name != "text-reader" and not runs_code(name):
        raise InputError(f"{name} tells classes, and these data are texts: use text-reader")
    if classes and name == "text-reader":
        raise InputError("text-reader reads texts, and these data have classes: use text-lines:0")
    if pretrained and init_from is not None:
        raise InputError(f"pretrained and init-from {init_from} exclude each other: give one")
    architecture = name.removeprefix("torchvision:")
    is_torchvision = architecture != name or (":" not in name and name not in MODELS)
    if pretrained and not is_torchvision:
        raise InputError(
            f"{name} has no pretrained weights: use --init-from FILE.safetensors, or a "
            f"torchvision model such as resnet18"
        )
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators, which nothing here puts back.
        torch.default_generator.manual_seed(seed)
        if name == "mlp":
            model: nn.Module = _mlp(channels, classes, image_size)
        elif name == "small-cnn":
            model = _small_cnn(channels, classes, image_size)
        elif name.startswith("quantised-cnn-") and name in MODELS:
            model = quantised_cnn(channels, classes, int(name.removeprefix("quantised-cnn-")))
        elif name == "merged-cnn":
            model = merged_cnn(channels, classes)
        elif name == "text-reader":
            model = TextReader()
        elif is_torchvision:
            model = _from_torchvision(architecture, channels, classes, image_size, pretrained)
        else:
            model = _from_import_path(
                name, channels=channels, classes=classes, image_size=image_size
            )
        if name not in MODELS and classes:
            _try_out(name, model, channels, classes, image_size)
        if init_from is not None:
            load_weights(model, Path(init_from), _head_of(model, channels, image_size))
    return model.train()


def parameter_count(model: nn.Module) -> int:
    """Return the number of parameters, frozen ones too; tied ones count once, buffers do not.

    Example:
        >>> parameter_count(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def _mlp(channels: int, classes: int, image_size: int) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden=nn.Linear(channels * image_size**2, 32),
            relu=nn.ReLU(),
            head=nn.Linear(32, classes),
        )
    )


def _small_cnn(channels: int, classes: int, image_size: int) -> nn.Module:
    if image_size < 4:
        raise InputError(f"small-cnn halves images twice, and {image_size} is too small: use mlp")
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for block, width in enumerate((16, 32, 64), start=1):
        # BatchNorm subtracts the mean, so a bias before it would do nothing.
        layers[f"conv{block}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers[f"norm{block}"] = nn.BatchNorm2d(width)
        layers[f"relu{block}"] = nn.ReLU()
        if block < 3:
            layers[f"pool{block}"] = nn.MaxPool2d(2)
        channels = width
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["head"] = nn.Linear(channels, classes)
    return nn.Sequential(layers)


def _from_torchvision(
    name: str, channels: int, classes: int, image_size: int, pretrained: bool
) -> nn.Module:
    """Return one of torchvision's classifiers, unmodified but for a pretrained one's head."""
    import torchvision

    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        choices = "mlp, small-cnn, a torchvision model such as resnet18, package.module:callable"
        raise unknown_name("model", name, (*MODELS, *known), choices=choices)
    if channels != 3:
        raise InputError(
            f"{name} takes 3-channel images, these have {channels}: use mlp, small-cnn, or "
            f"data with 3 channels"
        )
    options: dict[str, Any] = {"image_size": image_size} if name.startswith("vit_") else {}
    if not pretrained:
        if name in ("googlenet", "inception_v3"):
            # Their auxiliary heads would turn the output of training mode into a tuple.
            options |= {"aux_logits": False, "init_weights": True}
        return _torchvision_model(name, num_classes=classes, **options)
    try:
        model = _torchvision_model(name, weights="DEFAULT", progress=False, **options)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"cannot download the pretrained weights of {name} ({reason(error)}): "
            f"use --init-from FILE.safetensors"
        ) from error
    if name == "inception_v3":  # these weights come with the auxiliary head; see above
        model.__dict__["aux_logits"], model._modules["AuxLogits"] = False, None
    weights = torchvision.models.get_model_weights(name).DEFAULT
    pretrained_classes = len(weights.meta["categories"])
    if pretrained_classes != classes:
        _try_out(name, model, channels, pretrained_classes, image_size)
        _replace_head(model, _head_of(model, channels, image_size), classes)
    return model


def _torchvision_model(name: str, **options: Any) -> nn.Module:
    import torchvision

    try:
        model: nn.Module = torchvision.models.get_model(name, **options)
    except (ValueError, AssertionError) as error:  # a ViT asserts its image size
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise InputError(
            f"torchvision cannot build {name} with {given} ({reason(error)}): use another "
            f"model or image size"
        ) from error
    return model


def _head_of(model: nn.Module, channels: int, image_size: int) -> str | None:
    """Return the path of the layer that makes the outputs of an image; None where none does."""
    image = torch.zeros(1, channels, image_size, image_size)
    model.eval()
    head = find_head(model, lambda: model(image))
    layer = head.layer if head is not None else None
    return next((path for path, module in model.named_modules() if module is layer), None)


def _replace_head(model: nn.Module, name: str | None, classes: int) -> None:
    assert name is not None, "every torchvision classifier ends in a layer of its classes"
    old: Any = model.get_submodule(name)
    bias = old.bias is not None
    new: nn.Module
    if isinstance(old, nn.Linear):
        new = nn.Linear(old.in_features, classes, bias=bias)
    else:  # squeezenet classifies by a 1x1 convolution
        new = nn.Conv2d(old.in_channels, classes, kernel_size=1, bias=bias)
    model.set_submodule(name, new)


def _from_import_path(name: str, **facts: int) -> nn.Module:
    make: Callable[..., Any] = load_attribute(name)
    if not callable(make) or isinstance(make, nn.Module):
        raise InputError(
            f"{name} is a {type(make).__name__}: name a class or function that makes the model"
        )
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:  # a builtin without a signature
        parameters = dict[str, inspect.Parameter]().values()
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
    accepted = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}
    given = {key: value for key, value in facts.items() if takes_all or key in accepted}
    call = f"{name}({', '.join(f'{key}={value}' for key, value in given.items())})"
    try:
        model = make(**given)
    except Exception as error:  # a user's function may raise anything
        raise InputError(f"{call} failed ({reason(error)}): correct it") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{call} gives a {type(model).__name__}: return a torch.nn.Module")
    return model


def _try_out(name: str, model: nn.Module, channels: int, classes: int, image_size: int) -> None:
    """Refuse now what would fail in the first step: a forward pass on one empty image."""
    image = torch.zeros(1, channels, image_size, image_size)
    size = f"{channels}x{image_size}x{image_size}"
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(image)
    except Exception as error:  # a user's model may raise anything
        raise InputError(
            f"{name} cannot take {size} images ({reason(error)}): use another model or image size"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.shape != (1, classes):
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputError(
            f"{name} gives {shape} for one {size} image: it must give logits (1, {classes})"
        )
