"""Checkpoints: the last two are kept, and each knows whether it is whole."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evostep.checksums import checksum
from evostep.errors import InputError
from evostep.lab.checkpoints import (
    FORMAT,
    drop_checkpoint,
    has_checkpoint,
    load_checkpoint,
    save_checkpoint,
)

CPU = torch.device("cpu")
WEIGHTS = torch.arange(64.0)


def saved(tmp_path: Path) -> Path:
    """Return a path with two checkpoints of three."""
    path = tmp_path / "run" / "c.pt"
    for n in range(3):
        save_checkpoint(path, {"w": WEIGHTS, "n": n})
    return path


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.with_name("c.before.pt")
    assert sorted(path.parent.iterdir()) == [before, path]
    assert load_checkpoint(path, CPU)["n"] == 2
    assert load_checkpoint(before, CPU)["n"] == 1
    drop_checkpoint(path)
    assert not has_checkpoint(path)
    assert list(path.parent.iterdir()) == []
    drop_checkpoint(path)


def test_killed_between_the_two_renames_the_one_before_is_taken_silently(tmp_path: Path) -> None:
    path = saved(tmp_path)
    path.unlink()
    assert has_checkpoint(path)
    assert load_checkpoint(path, CPU)["n"] == 1
    assert [p.name for p in path.parent.iterdir()] == ["c.pt"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """Change one bit of the weights: torch reads the file without a word."""
    place = content.index(WEIGHTS.numpy().tobytes()) + 41
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def renamed(*names: bytes) -> Callable[[bytes], bytes]:
    """Return a damage to the names of entries, and to the weights, too."""

    def damage(content: bytes) -> bytes:
        for name in names:
            content = content.replace(name, name[:-1] + b"z")
        return flip(content)

    return damage


DAMAGES = {
    "cut off": cut,
    "empty": lambda _: b"",
    "zeros": lambda c: bytes(len(c)),
    "a bit": flip,
    "a bit, and no format": renamed(b"format"),
    "a bit, and no checksum": renamed(b"checksum"),
    "a bit, and neither": renamed(b"format", b"checksum"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_newest_one_falls_back_with_a_warning(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    path = saved(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(UserWarning, match=r"c.pt is corrupt .*: the one before is taken") as told:
        assert load_checkpoint(path, CPU)["n"] == 1
    assert "\n" not in str(told[0].message)
    assert load_checkpoint(path, CPU)["n"] == 1  # it is the newest now, and the other is gone
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"c.pt is corrupt .*: delete it"):
        load_checkpoint(path, CPU)


def test_formats_of_before_are_read_and_later_ones_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    torch.save({"w": WEIGHTS, "n": 3}, path)
    assert load_checkpoint(path, CPU)["n"] == 3
    torch.save({"w": WEIGHTS, "format": FORMAT + 1, "checksum": "of another kind"}, path)
    told = f"has the format {FORMAT + 1}, this version of evostep reads {FORMAT}: go on with the"
    with pytest.raises(InputError, match=told):
        load_checkpoint(path, CPU)
    assert path.exists()


def test_the_checksum_tells_everything_apart() -> None:
    states = [
        {"w": torch.zeros(4)},
        {"w": torch.zeros(4, dtype=torch.int32)},
        {"w": torch.zeros(2, 2)},
        {"w": -torch.zeros(4)},
        {"v": torch.zeros(4)},
        {"w": [0.0] * 4},
        {"w": [[0.0] * 2, [0.0] * 2]},
        {"w": [0] * 4},
        {"w": [False] * 4},
        {"w": ["0.0"] * 4},
        {"w": torch.zeros(4), "x": None},
        {"w": torch.zeros(4, dtype=torch.bfloat16)},
        {"w": torch.zeros(())},
        {"w": torch.zeros(0)},
    ]
    sums = [checksum(state) for state in states]
    assert len(set(sums)) == len(states)
    assert sums == [checksum(state) for state in states]
    assert checksum({"w": WEIGHTS.view(8, 8).T}) == checksum({"w": WEIGHTS.view(8, 8).T.clone()})


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs to know a descriptor's file")
def test_it_is_on_the_disk_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, synced, renamed, and the folder synced: what a power cut leaves is whole."""
    path, happened = saved(tmp_path), []

    def fsync(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        if name.is_file():
            load_checkpoint(name, CPU)
        happened.append(("synced", name.name))

    def replace(source: Path, target: Path) -> None:
        happened.append((Path(source).name, Path(target).name))
        Path(source).rename(target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save_checkpoint(path, {"w": WEIGHTS})
    assert happened == [
        ("synced", ".evostep-c.pt.part"),
        ("c.pt", "c.before.pt"),
        (".evostep-c.pt.part", "c.pt"),
        ("synced", "run"),
    ]
