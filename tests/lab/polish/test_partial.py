"""What a run has finished so far, in its directory."""

from pathlib import Path

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.polish.directory import read_finished
from evostep.lab.polish.partial import FOLDER, Partial

IDENTITY = {"seed": 0, "metric": "accuracy"}


def test_tensors_come_back_and_go_with_the_run(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    first = Partial(out, IDENTITY)
    assert first.load("a") is None
    assert not out.exists()  # nothing was kept
    saved = {"x": torch.randn(3, 4).T, "n": torch.tensor(7)}
    first.save("a", saved)
    found = Partial(out, IDENTITY).load("a")
    assert found is not None
    assert all(torch.equal(found[key], saved[key]) for key in saved)
    assert read_finished(out, IDENTITY) is None
    first.drop()
    assert Partial(out, IDENTITY).load("a") is None


def test_other_arguments_and_broken_files_are_one_line(tmp_path: Path) -> None:
    Partial(tmp_path, IDENTITY).save("a", {"x": torch.ones(2)})
    with pytest.raises(InputError, match="--metric was accuracy, now mcc") as error:
        Partial(tmp_path, {**IDENTITY, "metric": "mcc"})
    assert "\n" not in str(error.value)
    path = tmp_path / FOLDER / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="delete it, and it is made again"):
        Partial(tmp_path, IDENTITY).load("a")
