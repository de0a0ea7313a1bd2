"""What a run has finished so far, in its directory."""

from pathlib import Path

import pytest
import torch

from evostep.errors import InputError
from evostep.lab.polish.directory import FOLDER, read_finished
from evostep.lab.polish.partial import Partial
from evostep.polishing.store import number_in

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
    path = tmp_path / FOLDER / "a.pt"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.warns(UserWarning, match=r"a.pt is corrupt .*: it is made again"):
        assert Partial(tmp_path, IDENTITY).load("a") is None
    assert not path.exists()


def test_a_number_that_was_measured_survives_damage_to_it(tmp_path: Path) -> None:
    assert number_in(Partial(tmp_path, IDENTITY), "budget", lambda: 7) == 7
    path = tmp_path / FOLDER / "budget.pt"
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="budget.pt is corrupt"):
        assert number_in(Partial(tmp_path, IDENTITY), "budget", lambda: 8) == 7


def test_the_seconds_of_killed_runs_count(tmp_path: Path) -> None:
    first = Partial(tmp_path, IDENTITY)
    first._since -= 100
    first.save("a", {"x": torch.ones(1)})
    second = Partial(tmp_path, IDENTITY)
    assert second.seconds < 50
    second.load("a")
    assert second.seconds > 100
