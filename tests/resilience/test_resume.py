"""Unfinished work is kept or refused, never lost; one process writes a run."""

from __future__ import annotations

import multiprocessing
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from retain import RetainError
from retain.learner.learner import Learner
from retain.runs import results
from retain.system.files import read_json, read_jsonl, write_json
from retain.system.progress import Progress
from retain.tasks import Task
from retain.testing.runs import FIRST, KIND, SECOND, KilledError, Record
from retain.testing.tiny import make_backbone, make_learner, make_task, read_files


@dataclass(frozen=True)
class Begun:
    """A run that was killed while it learned its second task."""

    run: Path

    @property
    def mark(self) -> Path:
        """What its unfinished work was begun with."""
        return self.run / "tasks" / f"02-{SECOND.name}" / "checkpoints" / "task.json"

    def goes_on(self, task: Task, progress: Progress | None = None) -> None:
        Learner.load(self.run, progress, make_backbone(KIND)).learn(task)

    def refuses(self, task: Task, says: str) -> None:
        """And deletes nothing; what it says to do, done, is a way on."""
        before = read_files(self.run)
        told = rf"02-constant: .*{says}.* delete this folder to learn the task again"
        with pytest.raises(RetainError, match=told):
            self.goes_on(task)
        assert read_files(self.run) == before
        shutil.rmtree(self.mark.parents[1])
        self.goes_on(task)


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    record = Record()
    learner = make_learner("seqlora", make_backbone(KIND), tmp_path / "run", record)
    learner.learn(FIRST)
    record.when = lambda event: event.startswith("2 ")
    with pytest.raises(KilledError):
        learner.learn(SECOND)
    return Begun(tmp_path / "run")


def test_unfinished_work_on_another_task_is_kept(begun: Begun) -> None:
    begun.refuses(make_task("letter"), "is not on 'letter'")


def test_unfinished_work_on_other_examples_is_kept(begun: Begun) -> None:
    begun.refuses(replace(SECOND, train=SECOND.train[2:]), "its examples have changed")


def test_unfinished_work_under_other_settings_is_kept(begun: Begun) -> None:
    begun.refuses(replace(SECOND, training={"learning_rate": 0.1}), "training {} is now {'learning")


def test_unfinished_work_of_other_processes_is_kept(begun: Begun) -> None:
    write_json(begun.mark, {**read_json(begun.mark), "processes": 2})
    begun.refuses(SECOND, "processes 2 is now 1")


@pytest.mark.parametrize("content", [b"", b'{"task": ', b"[]", b"{}"])
def test_unfinished_work_with_a_damaged_mark_is_kept(begun: Begun, content: bytes) -> None:
    begun.mark.write_bytes(content)
    begun.refuses(
        SECOND, "begun differently" if content == b"{}" else "damaged checkpoints/task.json"
    )


def test_a_task_that_the_manifest_does_not_list_is_kept(begun: Begun) -> None:
    """As when an older manifest was restored."""
    begun.mark.unlink()
    begun.refuses(SECOND, "manifest.json does not list; restore the manifest")


def begun_under(begun: Begun, version: str) -> None:
    """Says that the unfinished work was begun with another torch."""
    write_json(begun.mark, {**read_json(begun.mark), "torch": version})


def test_unfinished_work_goes_on_under_another_patch_of_a_library(begun: Begun) -> None:
    torch = read_json(begun.mark)["torch"]
    begun_under(begun, patched := ".".join([*torch.split(".")[:2], "99"]))
    told: list[str] = []
    record = Record()
    record.message = told.append
    begun.goes_on(SECOND, record)
    assert f"continues unfinished work on constant, although torch {patched} is now {torch}" in told
    assert record.events[1].startswith("2 ")  # and not from the first step


def test_unfinished_work_of_another_version_is_kept(begun: Begun) -> None:
    begun_under(begun, "1.13.1")
    begun.refuses(SECOND, r"torch 1\.13\.1 is now ")


@pytest.mark.parametrize("content", ["", "nothing", "[1]"])
def test_a_zero_shot_score_that_was_cut_is_measured_again(tmp_path: Path, content: str) -> None:
    def learn(name: str, record: Record) -> Path:
        learner = make_learner("seqlora", make_backbone(KIND), tmp_path / name, record)
        evaluation = learner.experiment.evaluation.model_copy(update={"zero_shot": True})
        learner.experiment = learner.experiment.model_copy(update={"evaluation": evaluation})
        learner.learn(FIRST)
        return tmp_path / name / "tasks" / f"01-{FIRST.name}" / "zero_shot.json"

    whole = learn("whole", Record())
    with pytest.raises(KilledError):
        learn("run", Record(lambda event: event.startswith("2 copy")))
    kept = tmp_path / "run" / whole.relative_to(tmp_path / "whole")
    assert kept.read_bytes() == whole.read_bytes()
    kept.write_text(content)
    Learner.load(tmp_path / "run", backbone=make_backbone(KIND)).learn(FIRST)
    assert kept.read_bytes() == whole.read_bytes()


def test_a_folder_with_files_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    write_json(tmp_path / "tasks" / "01-mine" / "task.json", {})
    before = read_files(tmp_path)
    with pytest.raises(RetainError, match=r"has files but no manifest\.json"):
        make_learner("seqlora", make_backbone(KIND), tmp_path)
    assert read_files(tmp_path) == before


def test_the_log_says_what_a_kill_can_cost(tmp_path: Path) -> None:
    told: list[str] = []
    record = Record()
    record.message = told.append
    learner = make_learner("seqlora", make_backbone(KIND), tmp_path / "2", record, save_steps=2)
    learner.learn(FIRST)
    assert any(line.endswith(" parameters, saves every 2 steps") for line in told)
    learner = make_learner("seqlora", make_backbone(KIND), tmp_path / "9", record, save_steps=9)
    learner.learn(FIRST)
    assert told[-1].endswith(" parameters, saves at the end")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_learner("pertask", make_backbone(KIND), tmp_path / "run", max_steps=1).learn(FIRST)
    return tmp_path / "run"


def test_one_writer(run: Path) -> None:
    learner = Learner.load(run, backbone=make_backbone(KIND))
    before = read_files(run)
    with results.open_run(run).locked():
        for write in (lambda: learner.learn(SECOND), learner.finish_evaluation):
            with pytest.raises(RetainError, match="another process is writing"):
                write()
    assert read_files(run) == before


def test_a_killed_writer_frees_the_run(run: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def hold() -> None:
        with results.open_run(run).locked():
            theirs.send("locked")
            theirs.recv()

    process = fork.Process(target=hold, daemon=True)
    process.start()
    assert ours.recv() == "locked"
    learner = Learner.load(run, backbone=make_backbone(KIND))
    with pytest.raises(RetainError, match="another process is writing"):
        learner.learn(SECOND)
    process.kill()
    process.join()
    learner.finish_evaluation()


def test_a_learner_whose_run_went_on_elsewhere_does_not_write(run: Path) -> None:
    """It knows nothing of the task learned since, and would clear it away."""
    stale = Learner.load(run, backbone=make_backbone(KIND))
    Learner.load(run, backbone=make_backbone(KIND)).learn(SECOND)
    before = read_files(run)
    for _ in range(2):
        with pytest.raises(RetainError, match="changed since it was loaded"):
            stale.learn(make_task("letter"))
    assert read_files(run) == before


def test_a_limited_evaluation_limits_no_later_one(run: Path) -> None:
    learner = Learner.load(run, backbone=make_backbone(KIND))
    learner.evaluate(limit=1)
    learner.learn(SECOND)
    rows = read_jsonl(learner.run.learned()[-1] / "predictions" / "02.jsonl")
    assert len(rows) == len(SECOND.test)
