"""Files of somebody else's: a pickle does not run, an import path is not followed, harm is told."""

from __future__ import annotations

import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evostep.cli import main
from evostep.cli.configuration import load as load_yaml
from evostep.cli.output import FAULT
from evostep.errors import InputError
from evostep.lab.checkpoints import load_checkpoint, save_checkpoint
from evostep.lab.data.images import load_data
from evostep.lab.models import build_model
from evostep.lab.options import Options
from evostep.lab.polish.files import read_columns, read_costs
from evostep.lab.polish.options import PolishOptions
from evostep.lab.polish.subject import make_subject
from evostep.lab.report.page import write_report
from evostep.lab.weights import load_weights, save_weights
from evostep.polishing.serving import load_decision


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> Any:
        return Path.write_text, (self.ran, "ran")


def as_torch(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def as_array(value: object, save: Any = np.save) -> bytes:
    file = io.BytesIO()
    array = np.array([value], dtype=object)
    save(file, array, allow_pickle=True) if save is np.save else save(file, label=array)
    return file.getvalue()


def read_batch(path: Path) -> object:
    folder = path.parent / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(path.read_bytes())
    return load_data("cifar10", path.parent)


READERS = {
    "checkpoint": (
        lambda bomb: as_torch({"model": bomb}),
        "x.pt",
        lambda p: load_checkpoint(p, CPU),
    ),
    "plain pickle": (pickle.dumps, "x.pt", lambda p: load_checkpoint(p, CPU)),
    "weights": (as_torch, "x.safetensors", lambda p: load_weights(torch.nn.Linear(1, 1), p, None)),
    "scores": (lambda bomb: as_array(bomb, np.savez), "x.npz", read_columns),
    "costs": (as_array, "x.npy", lambda p: read_costs(p, ("a", "b"))),
    "CIFAR-10 batch": (pickle.dumps, "x", read_batch),
}
CPU = torch.device("cpu")


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(
    name: str, tmp_path: Path
) -> None:
    make, file, read = READERS[name]
    ran, path = tmp_path / "ran", tmp_path / file
    path.write_bytes(make(Bomb(ran)))
    with pytest.raises(InputError, match=str(tmp_path)) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert not ran.exists()
    Bomb(ran).__reduce__()[0](ran, "ran")  # what it would have done
    assert ran.exists()


EVIL = "from pathlib import Path\nPath('ran').write_text('ran')\ndef net(*_): ...\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("evil_of_a_stranger", None)
    (tmp_path / "evil_of_a_stranger.py").write_text(EVIL)
    return tmp_path


@pytest.mark.parametrize("option", ["model", "data"])
def test_an_import_path_in_the_plan_of_a_run_is_not_followed(option: str, here: Path) -> None:
    weights = here / "runs" / "sgd-seed0" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    save_weights(weights, torch.nn.Linear(2, 2))
    path = "evil_of_a_stranger:net"
    told = {"model": "mlp", "data": "digits", option: path}
    (here / "plan.json").write_text(json.dumps({"options": told, "arms": {}}))
    network = Options(init_from=weights, given=frozenset({"init_from"}))
    with pytest.raises(InputError, match=f"an import path, which runs code: .* --{option} {path}$"):
        make_subject(PolishOptions(network=network, evaluates=True))
    assert not (here / "ran").exists()
    network = Options(init_from=weights, **{option: path}, given=frozenset({"init_from", option}))  # type: ignore[arg-type]
    with pytest.raises(InputError):  # it is typed now, so it runs, and makes nothing of use
        make_subject(PolishOptions(network=network, evaluates=True))
    assert (here / "ran").exists()


@pytest.mark.usefixtures("one_figure")
def test_an_import_path_in_results_is_not_followed(here: Path) -> None:
    path = "evil_of_a_stranger:net"
    config = {
        "metric": path,
        "model": path,
        "data": path,
        "arms": [{"label": "sgd", "method": path}],
    }
    run = {"arm": "sgd", "seed": 0, "test": {path: 0.5, "accuracy": 0.5}}
    (here / "results.json").write_text(json.dumps({"config": config, "runs": [run]}))
    assert path in write_report(here).page.read_text()
    assert not (here / "ran").exists()


def flips(content: bytes, step: int) -> list[bytes]:
    """The content with one byte changed, at every `step`-th place."""
    return [
        content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]
        for at in range(0, len(content), step)
    ]


def test_a_checkpoint_with_a_flipped_byte_is_refused_or_what_it_was(tmp_path: Path) -> None:
    """Within a number, too, where torch's own reader would pass it on."""
    path, weights = tmp_path / "x.pt", torch.arange(300.0)
    save_checkpoint(path, {"model": weights, "epoch": 3})
    whole, refused = path.read_bytes(), 0
    with zipfile.ZipFile(path) as archive:
        numbers = next(one for one in archive.infolist() if one.filename.endswith("data/0"))
    for content in flips(whole, 37):
        path.write_bytes(content)
        try:
            state = load_checkpoint(path, CPU)
        except InputError:
            refused += 1
        else:
            assert torch.equal(state["model"], weights)
            assert state["epoch"] == 3
    assert refused >= numbers.file_size // 37


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_weights_with_a_flipped_byte_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    path, model = tmp_path / "x.safetensors", torch.nn.BatchNorm1d(8)
    model.weight = torch.nn.Parameter(torch.arange(8).to(dtype), requires_grad=False)
    save_weights(path, model)
    whole = path.read_bytes()
    load_weights(model, path, None)
    header = 8 + int.from_bytes(whole[:8], "little")
    for content in flips(whole, 7)[header // 7 + 1 :]:
        path.write_bytes(content)
        with pytest.raises(InputError, match="not those that were written"):
            load_weights(model, path, None)


def test_weights_whose_checksum_has_lost_its_name_are_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "x.safetensors", torch.nn.Linear(2, 2)
    save_weights(path, model)
    whole = bytearray(path.read_bytes().replace(b"checksum", b"cheaksum"))
    path.write_bytes(whole)
    load_weights(model, path, None)  # nothing is wrong with the numbers
    whole[-3] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputError, match="not those that were written"):
        load_weights(model, path, None)


def test_weights_of_others_have_no_checksum_and_are_read(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = build_model("mlp", channels=1, classes=10, image_size=8, seed=0)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    load_weights(model, tmp_path / "x.safetensors", None)


BILLION = "a0: &a0 [1, 1]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 11)
)
MERGED = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (BILLION, "stand for more than"),
        (MERGED, "stand for more than"),
        ("[" * 10_000, "nested more than"),
        ("- " * 3000, "nested too deeply"),
        ("a: &a [*a]", "refers to itself"),
        ("!!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("!!binary aGk=", "could not determine a constructor"),
        ("!!timestamp soon", "could not determine a constructor"),
        ("!!float soon", "not what it is tagged as"),
        ("!!bool soon", "not what it is tagged as"),
        ("9" * 5000, "not what it is tagged as"),
    ],
)
def test_yaml_that_would_run_fill_memory_or_break_is_refused(text: str, told: str) -> None:
    with pytest.raises(yaml.YAMLError, match=told):
        load_yaml(text)


def test_yaml_has_no_dates_and_keeps_references() -> None:
    assert load_yaml("a: 2001-99-99\nb: &b {x: 1}\nc: {<<: *b}") == {
        "a": "2001-99-99",
        "b": {"x": 1},
        "c": {"x": 1},
    }


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (KeyError("x"), f"{FAULT} (KeyError: 'x'): --verbose tells where; please report it"),
        (RecursionError("deep"), FAULT),
        (MemoryError(), "memory does not suffice (MemoryError): give fewer or smaller examples"),
        (RuntimeError("[enforce fail] can't allocate memory"), "memory does not suffice"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_1(
    error: Exception, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(_: object) -> None:
        raise error

    monkeypatch.setattr("evostep.cli.methods.run", fails)
    with pytest.raises(SystemExit, match="1"):
        main(["methods"])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"evostep: error: {told}")
    assert captured.err.count("\n") == 1
    with pytest.raises(SystemExit, match="1"):
        main(["methods", "--verbose"])
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    [
        f'{{"format": 1, "kind": "classes", "bias": [1{"0" * 400}, 0]}}',
        '{"format": 1, "kind": "classes", "bias": [NaN, 0]}',
        '{"format": 2, "kind": "binary", "bias": [1], "scale": Infinity}',
        "[" * 100_000,
    ],
)
def test_a_decision_of_no_numbers_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "decision.json").write_text(text)
    with pytest.raises(InputError, match="is no decision"):
        load_decision(tmp_path / "decision.json")


@pytest.mark.parametrize("key", ["seconds", "sample_forwards", "seed"])
def test_a_number_that_is_no_float_any_more_is_told(key: str, tmp_path: Path) -> None:
    run = {"arm": "sgd", "seed": 0, "test": {"accuracy": 0.5}, key: 10**400}
    (tmp_path / "results.json").write_text(json.dumps({"runs": [run]}))
    with pytest.raises(InputError, match=rf"runs\[0\].{key} is (10+, not|a number of 401)"):
        write_report(tmp_path)
