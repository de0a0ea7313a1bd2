"""Processes that are killed in earnest, at a write or at any moment: see benchmarks/soak.py."""

import errno
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if not hasattr(os, "fork"):
    pytest.skip("there is no fork", allow_module_level=True)
ROOT = Path(__file__).resolve().parents[2]


def load_soak() -> ModuleType:
    spec = importlib.util.spec_from_file_location("soak", ROOT / "benchmarks" / "soak.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def soak(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two commands and what they give whole, in a folder where this process stands."""
    module = load_soak()
    folder = tmp_path_factory.mktemp("soak")
    arms = {
        "compare": module.Arm(module.compare("mutation,esgd", augment="shift", epochs=2)),
        "train": module.Arm(module.compare("mutation", "train", epochs=2)),
        "polish-time": module.Arm(
            module.polish("head", "0.5s", "mlp", "--confirm=holdout"), timed=True
        ),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sklearn.datasets.load_digits", "evostep.lab.comparison.compare.write_report"):
            owner, _, attribute = name.rpartition(".")
            owner = importlib.import_module(owner)
            patch.setattr(owner, attribute, getattr(owner, attribute))  # put back afterwards
        patch.chdir(folder)
        made = module.Soak(folder, arms, seed=1)
        made.prepare()
        yield made


pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.mark.parametrize(
    ("arm", "kind"),
    [
        ("compare", "write"),
        ("compare", "rename"),
        ("compare", "random moment"),
        ("polish-time", "fsync"),
        ("polish-time", "rename"),
        ("polish-time", "random moment"),
    ],
)
def test_killed_and_started_again_it_gets_to_the_same_bits(soak: Any, arm: str, kind: str) -> None:
    before = sum(soak.kills.values())
    soak.trial(arm, kind)
    assert soak.failures == []
    assert sum(soak.kills.values()) > before or kind == "random moment"
    assert Path.cwd() == Path(os.path.realpath(soak._folder))


@pytest.mark.parametrize("arm", ["compare", "polish-time"])
def test_a_disk_that_is_full_is_told_in_one_line_and_loses_nothing(soak: Any, arm: str) -> None:
    soak.fill(arm)
    assert soak.failures == []


@pytest.mark.parametrize("arm", ["compare", "train", "polish-time"])
def test_a_disk_that_becomes_read_only_is_told_in_one_line_and_loses_nothing(
    soak: Any, arm: str
) -> None:
    before = soak.kills["read-only disk"]
    soak.fill(arm, errno.EROFS)
    assert soak.failures == []
    assert soak.kills["read-only disk"] > before or arm == "polish-time"  # done with less to write


def test_every_difference_is_seen(soak: Any, tmp_path: Path) -> None:
    module = sys.modules["soak"]
    whole = soak._whole["compare"]
    assert module.differences(whole, whole) == []
    assert {Path(name).suffix for name in whole} == {".json", ".jsonl", ".pt", ".safetensors"}
    for name, content in whole.items():
        assert content, name
        assert module.differences({**whole, name: "other"}, whole) == [name]
        assert module.differences({k: v for k, v in whole.items() if k != name}, whole) == [name]
    assert module.differences({**whole, ".evostep-x.part": None}, whole) == [".evostep-x.part"]
