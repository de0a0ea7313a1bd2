from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from evostep import Evolved, Fitness, Record
from evostep.integrations import Jsonl, TensorBoard, WandB, evolve
from evostep.integrations.trackers import scalars


@pytest.fixture
def make(make_network: Any, strategy: Any, digits: Any) -> Any:
    def begin() -> Any:
        model = make_network()
        optimizer = Evolved(torch.optim.SGD(model.named_parameters(), lr=0.1), strategy)
        return optimizer, Fitness(model, [digits.other.tensors], "accuracy"), model

    return begin


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: v for key, v in line.items() if key != "seconds"} for line in found]


def test_a_line_for_each_generation_with_all_of_its_record(make: Any, tmp_path: Path) -> None:
    optimizer, fitness, _ = make()
    tracker = Jsonl(tmp_path / "new" / "run.jsonl")
    tracker.begin(optimizer)
    records = evolve(optimizer, fitness, 2, trackers=[tracker], step=7)
    tracker.close()
    settings, first, second, phase = lines(tracker.path)
    assert settings["kind"] == "settings"
    assert settings["strategy"] == repr(optimizer.evolution.strategy)
    assert [first["scores"], second["scores"]] == [record.scores for record in records]
    moved = any(record.moved for record in records)
    assert phase == {"kind": "phase", "first": 0, "generation": 1, "step": 7, "moved": moved}


@pytest.mark.parametrize("torn", [False, True])
def test_a_resumed_run_goes_on_with_its_file(make: Any, tmp_path: Path, torn: bool) -> None:
    """Lines of generations after the checkpoint are written again, and stand there once."""
    whole, half = Jsonl(tmp_path / "whole"), Jsonl(tmp_path / "half")
    optimizer, fitness, _ = make()
    whole.begin(optimizer)
    for step in range(4):
        evolve(optimizer, fitness, 2, trackers=[whole], step=step)

    optimizer, fitness, model = make()
    half.begin(optimizer)
    for step in range(3):
        evolve(optimizer, fitness, 2, trackers=[half], step=step)
        if step == 1:
            torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "state")
    if torn:  # killed as it wrote
        half.path.write_text(half.path.read_text()[:-20])
    optimizer, fitness, model = make()
    state = torch.load(tmp_path / "state", weights_only=True)
    model.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    half.begin(optimizer)
    for step in (2, 3):
        evolve(optimizer, fitness, 2, trackers=[half], step=step)
    assert lines(half.path) == lines(whole.path)


def test_a_run_from_its_beginning_replaces_the_file(make: Any, tmp_path: Path) -> None:
    tracker = Jsonl(tmp_path / "run.jsonl")
    for _ in range(2):
        optimizer, fitness, _ = make()
        tracker.begin(optimizer)
        evolve(optimizer, fitness, 1, trackers=[tracker])
    assert [line["kind"] for line in lines(tracker.path)] == ["settings", "generation", "phase"]


def test_what_is_not_finite_is_null_in_json_and_is_not_drawn(tmp_path: Path) -> None:
    record = Record(0, [math.nan, 0.5, math.inf], math.nan, None, False, 1, "bad", 9, 0.1)
    tracker = Jsonl(tmp_path / "run.jsonl")
    tracker.generation(record)
    assert lines(tracker.path)[0]["scores"] == [None, 0.5, None]
    drawn = scalars(record)
    assert drawn["evolution/best_member"] == drawn["evolution/mean_member"] == 0.5
    assert not drawn.keys() & {"evolution/parent", "evolution/candidate"}


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_written(make: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs evostep[tensorboard]")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    optimizer, fitness, _ = make()
    tracker = TensorBoard(tmp_path)
    tracker.begin(optimizer)
    records = evolve(optimizer, fitness, 3, trackers=[tracker])
    tracker.close()
    read = EventAccumulator(str(tmp_path)).Reload()
    events = read.Scalars("evolution/parent")
    assert [event.step for event in events] == [0, 1, 2]
    assert [event.value for event in events] == pytest.approx([r.parent for r in records])
    # a resumed run: what it repeats is hidden
    optimizer.evolution.generation = 1
    tracker.begin(optimizer)
    evolve(optimizer, fitness, 1, trackers=[tracker])
    tracker.close()
    steps = [e.step for e in EventAccumulator(str(tmp_path)).Reload().Scalars("evolution/parent")]
    assert steps == [0, 1]


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_offline(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb", reason="needs evostep[wandb]")
    monkeypatch.chdir(tmp_path)
    optimizer, fitness, _ = make()
    tracker = WandB(mode="offline", dir=str(tmp_path), project="test")
    tracker.begin(optimizer)
    run = tracker.run
    records = evolve(optimizer, fitness, 3, trackers=[tracker])
    tracker.close()
    assert tracker.run is None
    assert wandb.run is None
    assert run is not None
    wandb.teardown()  # waits until the file is written
    (path,) = tmp_path.rglob("*.wandb")
    found = [row for row in read_offline(path) if "evolution/generation" in row]
    assert [row["evolution/generation"] for row in found] == [0, 1, 2]
    assert [row["evolution/parent"] for row in found] == [record.parent for record in records]


def read_offline(path: Path) -> list[dict[str, Any]]:
    """Read the history of a run that was not sent anywhere: LevelDB's log, after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, at, piece, rows = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 2**15 - at % 2**15
        if left < 7:  # the end of a block
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        piece += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(piece)
            piece, items = b"", record.history.item
            rows.append({i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items})
    return rows


@pytest.mark.parametrize(
    ("name", "make_tracker"),
    [("tensorboard", lambda folder: TensorBoard(folder)), ("wandb", lambda folder: WandB())],
)
def test_a_missing_package_is_told_with_its_extra(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, make_tracker: Any
) -> None:
    monkeypatch.setitem(__import__("sys").modules, name, None)
    with pytest.raises(ValueError, match=rf"needs the package {name}.*"):
        make_tracker(tmp_path).begin(make()[0])
