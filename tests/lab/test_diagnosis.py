"""What evostep finds on a machine, and of what it says what to do."""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from evostep.lab import diagnosis
from evostep.lab.data.sources import SOURCES, cifar10, fashion_mnist


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Make packages of a version, whose code is the text."""

    def make(requires: list[str], **packages: tuple[str, str]) -> None:
        for name, (version, code) in packages.items():
            (tmp_path / f"{name}.py").write_text(code)
            folder = tmp_path / f"{name}-{version}.dist-info"
            folder.mkdir()
            (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(importlib.metadata, "requires", lambda _: requires)

    return make


def test_packages_are_fine_missing_too_old_or_broken(installed: Any) -> None:
    installed(
        [
            "torch>=2.5",
            "k_fine>=1.9; extra == 'cma'",
            "k_fine>=1.9; extra == 'lab'",
            "k_old[x]>=2.10,<9; extra == 'metrics'",
            "k_broken>=1; python_version > '3' and extra == 'lab'",
            'k_missing; extra == "lab"',
            "k_tool>=1; extra == 'dev'",
        ],
        k_fine=("1.10.0+cu1", ""),
        k_old=("2.9.1", ""),
        k_broken=("3", "raise OSError('libx.so:\\n gone')"),
    )
    found = diagnosis.diagnose()
    states = {name: facts["state"] for name, facts in found["packages"].items()}
    assert states == {
        "torch": "fine",
        "k_fine": "fine",
        "k_old": "too old",
        "k_broken": "broken",
        "k_missing": "missing",
    }
    assert found["packages"]["k_fine"]["extras"] == ["cma", "lab"]
    assert found["packages"]["k_missing"]["cure"] == "pip install 'evostep[lab]'"
    assert found["problems"][:2] == [
        "k_old 2.9.1 is too old (2.10 is needed): pip install --upgrade 'k_old>=2.10'",
        "k_broken 3 is broken (OSError: libx.so: gone): pip install --force-reinstall 'k_broken'",
    ]
    assert found["usable"]
    assert found["devices"]["threads"] == torch.get_num_threads()


def test_without_torch_nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError
        return real(name)

    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: ["torch>=2.5"])
    found = diagnosis.diagnose()
    assert found["problems"] == ["torch  is missing: pip install 'torch>=2.5'"]
    assert not found["usable"]
    assert found["devices"] == {}


def test_more_threads_than_cores_and_a_lost_folder_are_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setenv("EVOSTEP_DATA", str(tmp_path / "gone"))
    lost, threads = (p for p in diagnosis.diagnose()["problems"] if "GPU" not in p)
    assert lost.endswith("gone, which is no folder: correct it, or unset it")
    assert threads == "torch takes 64 threads and may use 2 cores: give --threads 2"


def test_data_are_found_where_they_would_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EVOSTEP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("EVOSTEP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    data = diagnosis._data()
    assert list(data) == [name for name, reader in SOURCES.items() if reader.find is not None]
    assert {name for name, facts in data.items() if facts["found"]} == {
        "digits",
        "text-lines:SERIES",
    }
    assert all(bool(facts["cure"]) != bool(facts["found"]) for facts in data.values())
    for module, place, file in (
        (cifar10, tmp_path / "cache/torchvision", "cifar-10-batches-py"),
        (cifar10, tmp_path / "data/cifar10", "train.parquet"),
        (fashion_mnist, tmp_path / "cache/torchvision/FashionMNIST/raw", _IMAGES),
        (fashion_mnist, tmp_path / "debian", f"{_IMAGES}.gz"),
        (fashion_mnist, tmp_path / "data/fashion-mnist", _IMAGES),
    ):
        place.mkdir(parents=True)
        (place / file).write_text("")
        assert module.find() == place
    assert diagnosis._data()["cifar10"]["found"] == str(tmp_path / "data/cifar10")
    assert cifar10.find(tmp_path) is None


_IMAGES = "train-images-idx3-ubyte"
