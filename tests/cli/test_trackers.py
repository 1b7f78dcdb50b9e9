"""Trackers get what training.jsonl gets, a run a phase; one that is missing is refused."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from retain.errors import RetainError
from retain.learner.learner import Learner
from retain.testing.tiny import make_backbone, make_learner, make_task, read_files
from retain.training.config import TrainingConfig
from tests.command import call, settings, write_settings, write_tasks


def scalars(folder: Path) -> dict[tuple[str, int], float]:
    """What the event files of one TensorBoard run hold: (tag, step) -> value."""
    found = {}
    for path in sorted(folder.glob("events.*")):
        for event in records(path.read_bytes()):
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found[value.tag, event.step] = value.simple_value
    return found


def records(content: bytes) -> Iterator[Event]:
    """TensorBoard's file: length, checksum, event, checksum."""
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def logged(folder: Path, phase: str) -> list[dict[str, Any]]:
    rows = map(json.loads, (folder / "training.jsonl").read_text().splitlines())
    return [row for row in rows if row["phase"] == phase]


def test_tensorboard_gets_the_log_a_run_a_phase(tmp_path: Path) -> None:
    run = tmp_path / "run"
    learner = make_learner("sapt", make_backbone("llama"), run, report_to="tensorboard")
    for name in ("copy", "letter"):
        learner.learn(make_task(name))
    phases = {
        f"{task}/{phase}"
        for task in ("01-copy", "02-letter")
        for phase in ("1-generator", "2-learn")
    }
    found = {p.parent.relative_to(run / "tensorboard").as_posix() for p in run.rglob("events.*")}
    assert found == phases
    for name in phases:
        task, phase = name.split("/")
        told = scalars(run / "tensorboard" / name)
        for row in logged(run / "tasks" / task, phase[2:]):
            for key in ("loss", "learning_rate", "grad_norm"):
                assert told[f"train/{key}", row["step"]] == pytest.approx(row[key], abs=1e-6)
            parts = [key for key in row if key.startswith("loss_")]
            assert parts
            for key in parts:
                assert told[f"train/{key}", row["step"]] == pytest.approx(row[key], abs=1e-6)
    assert call("verify", run).status == 0


def test_a_tracker_changes_no_number(tmp_path: Path) -> None:
    for name, tracker in (("with", "tensorboard"), ("without", "none")):
        folder = tmp_path / name
        make_learner("seqlora", make_backbone("llama"), folder, report_to=tracker).learn(
            make_task("copy")
        )
    one, other = (read_files(tmp_path / name / "tasks") for name in ("with", "without"))
    assert [n for n in one if one[n] != other.get(n) and not n.endswith("cost.json")] == []
    assert one.keys() == other.keys()
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_another_folder_for_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "all"))
    learner = make_learner(
        "seqlora", make_backbone("llama"), tmp_path / "mine", report_to=["tensorboard"]
    )
    learner.learn(make_task("copy"))
    assert scalars(tmp_path / "all" / "mine" / "01-copy" / "1-learn")
    assert not (tmp_path / "mine" / "tensorboard").exists()


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb", "mlflow"])
def test_a_missing_tracker_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = importlib.util.find_spec
    packages = (name, "tensorboardX") if name == "tensorboard" else (name,)
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *rest: None if n in packages else plain(n, *rest)
    )
    learner = make_learner("seqlora", make_backbone("llama"), tmp_path / "run", report_to=name)
    with pytest.raises(RetainError, match=f"report_to: {name} is not installed; .*pip install"):
        learner.learn(make_task("copy"))
    assert not (tmp_path / "run").exists()


def test_a_run_without_its_tracker_still_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = make_learner(
        "seqlora", make_backbone("llama"), tmp_path / "run", report_to="tensorboard"
    )
    learner.learn(make_task("copy"))
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda n, *rest: None if n.startswith("tensorboard") else plain(n, *rest),
    )
    loaded = Learner.load(tmp_path / "run", backbone=make_backbone("llama"))
    assert loaded.generate(["copy this word: ant"]) == learner.generate(["copy this word: ant"])


def test_the_setting() -> None:
    assert TrainingConfig().report_to == []
    assert TrainingConfig.model_validate({"report_to": "none"}).report_to == []
    assert TrainingConfig.model_validate({"report_to": "wandb"}).report_to == ["wandb"]
    both = ["tensorboard", "mlflow"]
    assert TrainingConfig.model_validate({"report_to": both}).report_to == both


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone_folder: Any) -> None:
    """An unknown tracker is refused; a run goes on with another one than it began with."""
    monkeypatch.chdir(tmp_path)
    write_tasks(tmp_path)
    config = write_settings(tmp_path / "e.yaml", settings(backbone_folder("llama"), "copy"))
    done = call("run", config, "--set", "training.report_to=tensorbord")
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith(
        "error: --set training.report_to=tensorbord: field 'training.report_to.0': Input should be"
    )
    assert call("run", config).status == 0
    config = write_settings(
        tmp_path / "e.yaml", settings(backbone_folder("llama"), "copy", "letter")
    )
    done = call("run", config, "--resume", "--set", "training.report_to=tensorboard")
    assert done.status == 0, done.err
    assert [path.name for path in (tmp_path / "out" / "tensorboard").iterdir()] == ["02-letter"]
