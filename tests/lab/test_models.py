"""Models by name, their initial weights, and the weights that are loaded into them."""

from __future__ import annotations

import sys
import urllib.error
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from evostep.errors import InputError
from evostep.lab.imports import load_attribute
from evostep.lab.models import build_model, parameter_count

DIGITS: dict[str, Any] = {"channels": 1, "classes": 10, "image_size": 8, "seed": 0}
COLOUR: dict[str, Any] = {"channels": 3, "classes": 10, "image_size": 32, "seed": 0}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a module into the current directory; its import leaves no trace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, text: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(text)

    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize(
    ("name", "facts", "parameters"),
    [
        ("mlp", DIGITS, 64 * 32 + 32 + 32 * 10 + 10),
        ("mlp", COLOUR, 3072 * 32 + 32 + 330),
        ("small-cnn", DIGITS, 9 * (16 + 16 * 32 + 32 * 64) + 2 * (16 + 32 + 64) + 650),
        ("small-cnn", {**COLOUR, "channels": 5, "image_size": 28}, None),
        ("quantised-cnn-2", DIGITS, 9 * (4 + 32 + 128) + 6 * 28 - 56 + 160 + 3 * 10 + 4),
        ("quantised-cnn-4", {**COLOUR, "image_size": 28}, None),
        ("merged-cnn", DIGITS, 9 * (8 + 128 + 512) + 2 * 56 + 330 + 2 * 7),
        ("merged-cnn", {**COLOUR, "image_size": 28}, None),
        ("resnet18", COLOUR, 11_181_642),
        ("torchvision:squeezenet1_1", COLOUR, None),
        ("googlenet", COLOUR, None),
    ],
)
def test_logits_and_size(name: str, facts: dict[str, Any], parameters: int | None) -> None:
    model = build_model(name, **facts)
    assert all(module.training for module in model.modules())
    images = torch.rand(2, facts["channels"], facts["image_size"], facts["image_size"])
    assert model(images).shape == (2, facts["classes"])  # in training mode, too
    if parameters is not None:
        assert parameter_count(model) == parameters


def test_tied_weights_count_once() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    assert parameter_count(nn.Sequential(first, second)) == 16 + 4 + 4


def test_resnet18_is_torchvisions_own() -> None:
    torch.manual_seed(7)
    expected = torchvision.models.resnet18(num_classes=10)
    assert equal(weights(build_model("resnet18", **{**COLOUR, "seed": 7})), weights(expected))


@pytest.mark.parametrize(
    "name", ["mlp", "small-cnn", "quantised-cnn-2", "merged-cnn", "shufflenet_v2_x0_5"]
)
def test_weights_are_a_function_of_the_seed(name: str) -> None:
    facts = COLOUR
    before = torch.get_rng_state()
    first = weights(build_model(name, **facts))
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(10)  # another global state must make no difference
    assert equal(first, weights(build_model(name, **facts)))
    other = weights(build_model(name, **{**facts, "seed": 1}))
    assert not any(torch.equal(first[k], other[k]) for k in first if k.endswith("head.weight"))
    assert not equal(first, other)


@pytest.mark.parametrize(
    ("name", "facts", "told"),
    [
        ("mpl", DIGITS, "unknown model 'mpl': did you mean mlp"),
        ("resnet81", COLOUR, "unknown model 'resnet81': did you mean .*resnet18"),
        ("torchvision:resnet", COLOUR, "unknown model 'resnet'"),
        ("resnet18", DIGITS, "resnet18 takes 3-channel images, these have 1"),
        ("squeezenet1_1", {**COLOUR, "image_size": 16}, "squeezenet1_1 cannot take 3x16x16"),
        ("vit_b_16", {**COLOUR, "image_size": 20}, "vit_b_16"),
        ("small-cnn", {**DIGITS, "image_size": 3}, "3 is too small: use mlp"),
        ("no_such_module:Net", DIGITS, "cannot import 'no_such_module'"),
        ("torch:no_such_thing", DIGITS, "unknown attribute of torch 'no_such_thing'"),
        ("torch.nn:", DIGITS, "no import path: write package.module:attribute"),
        ("math:tau", DIGITS, "math:tau is a float"),
        ("torch.nn:Linear", DIGITS, "failed .TypeError"),
        ("torch.nn:Identity", DIGITS, r"gives \(1, 1, 8, 8\) .* logits \(1, 10\)"),
        ("builtins:dict", DIGITS, "gives a dict: return a torch.nn.Module"),
    ],
)
def test_bad_names_are_told_in_one_line(name: str, facts: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        build_model(name, **facts)
    assert "\n" not in str(caught.value)


def test_import_path_gets_the_keywords_it_accepts(module: Any) -> None:
    module(
        "own_models",
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, image_size, classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(image_size**2, classes))\n"
        "def all_of_them(**facts):\n"
        "    assert facts == {'channels': 1, 'classes': 10, 'image_size': 8}, facts\n"
        "    return Net(8, 10)\n"
        "instance = Net(8, 10)\n"
        "def broken():\n"
        "    raise RuntimeError('two\\nlines')\n",
    )
    assert parameter_count(build_model("own_models:Net", **DIGITS)) == 650
    assert parameter_count(build_model("own_models:all_of_them", **DIGITS)) == 650
    assert load_attribute("own_models:Net.__name__") == "Net"
    with pytest.raises(InputError, match="name a class or function"):
        build_model("own_models:instance", **DIGITS)
    with pytest.raises(InputError, match=r"failed .RuntimeError: two lines"):
        build_model("own_models:broken", **DIGITS)
    with pytest.raises(InputError, match="did you mean Net"):
        build_model("own_models:Nets", **DIGITS)


def test_a_module_that_fails_is_told_with_its_reason(module: Any) -> None:
    module("own_broken", "import torch\nraise OSError('no licence')\n")
    with pytest.raises(InputError, match=r"cannot import 'own_broken'.*OSError: no licence"):
        load_attribute("own_broken:Net")


def saved(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    return path


def test_init_from_restores_weights_and_buffers(tmp_path: Path) -> None:
    source = build_model("small-cnn", **{**DIGITS, "seed": 5})
    source(torch.rand(4, 1, 8, 8))  # moves the statistics of BatchNorm
    path = saved(tmp_path, weights(source))
    assert equal(weights(build_model("small-cnn", **DIGITS, init_from=path)), weights(source))


def test_init_from_leaves_a_head_of_other_classes_fresh(tmp_path: Path) -> None:
    source = weights(build_model("small-cnn", **{**DIGITS, "seed": 5, "classes": 7}))
    path = saved(tmp_path, source)
    with pytest.warns(UserWarning, match=r"head for other classes \(head.weight: \(7, 64\)"):
        loaded = weights(build_model("small-cnn", **DIGITS, init_from=path))
    fresh = weights(build_model("small-cnn", **DIGITS))
    for key in fresh:
        assert torch.equal(loaded[key], (fresh if key.startswith("head.") else source)[key])


def test_init_from_accepts_one_name_of_tied_weights(tmp_path: Path, module: Any) -> None:
    module(
        "own_tied",
        "from torch import nn\n"
        "def net():\n"
        "    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64),\n"
        "                          nn.Linear(64, 10))\n"
        "    model[2].weight = model[1].weight\n"
        "    return model\n",
    )
    source = weights(build_model("own_tied:net", **{**DIGITS, "seed": 3}))
    without = {key: value for key, value in source.items() if key != "2.weight"}
    path = saved(tmp_path, without)
    assert equal(weights(build_model("own_tied:net", **DIGITS, init_from=path)), source)


def test_init_from_lists_what_does_not_fit(tmp_path: Path) -> None:
    state = weights(build_model("mlp", **{**DIGITS, "image_size": 9}))
    state["extra.weight"] = state.pop("head.bias")
    with pytest.raises(InputError) as caught:
        build_model("mlp", **DIGITS, init_from=saved(tmp_path, state))
    told = str(caught.value)
    assert "missing head.bias" in told
    assert "unexpected extra.weight" in told
    assert "misshaped hidden.weight (32, 81) for (32, 64)" in told
    assert "\n" not in told


def test_init_from_needs_a_whole_file(tmp_path: Path) -> None:
    path = saved(tmp_path, weights(build_model("mlp", **DIGITS)))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"cannot read .*weights.safetensors .*: give a whole"):
        build_model("mlp", **DIGITS, init_from=path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="cannot read"):
        build_model("mlp", **DIGITS, init_from=path)
    with pytest.raises(InputError, match=r"no file .*missing"):
        build_model("mlp", **DIGITS, init_from=tmp_path / "missing.safetensors")
    with pytest.raises(InputError, match="no file"):
        build_model("mlp", **DIGITS, init_from=tmp_path)


@pytest.mark.parametrize("name", ["mlp", "small-cnn", "torch.nn:Identity"])
def test_pretrained_needs_torchvision(name: str) -> None:
    with pytest.raises(InputError, match="no pretrained weights: use --init-from"):
        build_model(name, **DIGITS, pretrained=True)


def test_pretrained_and_init_from_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give one"):
        build_model("resnet18", **COLOUR, pretrained=True, init_from=tmp_path / "a.safetensors")


def offer(monkeypatch: pytest.MonkeyPatch, name: str) -> dict[str, torch.Tensor]:
    """Let torchvision find weights for a model without a network; returns them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"transform_input": True} if name == "inception_v3" else {}
        state = weights(torchvision.models.get_model(name, num_classes=1000, **options))
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda *_, **__: state)
    return state


@pytest.mark.parametrize(
    ("name", "head", "size"), [("resnet18", "fc.", 32), ("squeezenet1_1", "classifier.1.", 32)]
)
def test_pretrained_keeps_the_body_and_replaces_the_head(
    monkeypatch: pytest.MonkeyPatch, name: str, head: str, size: int
) -> None:
    offered = offer(monkeypatch, name)
    facts = {**COLOUR, "image_size": size}
    model = build_model(name, **facts, pretrained=True)
    loaded = weights(model)
    assert loaded.keys() == offered.keys()
    for key, value in loaded.items():
        if key.startswith(head):
            assert value.shape[0] == 10
        else:
            assert torch.equal(value, offered[key])
    again = weights(build_model(name, **facts, pretrained=True))
    assert equal(loaded, again)
    whole = build_model(name, **{**facts, "classes": 1000}, pretrained=True)
    assert equal(weights(whole), offered)


@pytest.mark.slow
def test_pretrained_inception_gives_plain_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, "inception_v3")
    model = build_model("inception_v3", **{**COLOUR, "image_size": 96}, pretrained=True)
    assert model(torch.rand(2, 3, 96, 96)).shape == (2, 10)


@pytest.mark.parametrize(
    "error", [urllib.error.URLError("no route to host"), RuntimeError("invalid hash value")]
)
def test_a_failed_download_names_the_way_out(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(InputError, match=r"(no route|invalid hash).*use --init-from FILE.safet"):
        build_model("resnet18", **COLOUR, pretrained=True)
