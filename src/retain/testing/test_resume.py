"""A run of any method, killed at any moment, resumes to the same numbers, bit for bit."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from transformers import Trainer

import retain.learner.learner
import retain.system.files
from retain import RetainError
from retain.errors import StoppedError
from retain.methods import METHODS
from retain.testing.runs import FIRST, KIND, SECOND, KilledError, Record, carry_on, content
from retain.testing.tiny import VARIANTS, make_backbone, make_learner


@dataclass
class Whole:
    """An uninterrupted run of two tasks: its files and its events."""

    method: str
    files: dict[str, bytes]
    events: list[str]

    @property
    def last_phase(self) -> str:
        """The label of the second task's last phase."""
        phases = [e for e in self.events if e.startswith(f"start {SECOND.name} · ")]
        return phases[-1].removeprefix("start ")

    @property
    def evaluation(self) -> str:
        """The first event of the evaluation after the second task."""
        later = self.events[self.events.index(f"finish {self.last_phase}") :]
        return next(event for event in later if event.startswith("start evaluates"))

    def interrupted(self, folder: Path, event: str) -> None:
        """The same run, killed at an event while it learns the second task."""
        record = Record()
        learner = make_learner(self.method, make_backbone(KIND), folder, record)
        learner.learn(FIRST)
        record.when = event.__eq__
        with pytest.raises(KilledError):
            learner.learn(SECOND)


FAST = ("sapt", "seekr")  # two phases; a memory, teacher outputs, files that replace older ones


@pytest.fixture(
    scope="module",
    params=[pytest.param(v, marks=() if v in FAST else pytest.mark.slow) for v in VARIANTS],
)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole") / "run"
    record = Record()
    learner = make_learner(request.param, make_backbone(KIND), folder, record)
    learner.learn(FIRST)
    learner.learn(SECOND)
    return Whole(request.param, content(folder), record.events)


def test_the_whole_run_leaves_no_checkpoints(whole: Whole) -> None:
    assert len(whole.files) > 10
    assert not [
        name for name in whole.files if "checkpoint" in name or name.endswith((".pt", ".pth"))
    ]


@pytest.mark.parametrize("step", [2, 3])
def test_killed_in_the_middle_of_a_phase(whole: Whole, tmp_path: Path, step: int) -> None:
    """Step 2 ends an epoch; at step 3 the checkpoint lies at the beginning of the next."""
    whole.interrupted(tmp_path / "run", f"{step} {whole.last_phase}")
    record = Record()
    carry_on(tmp_path / "run", record)
    assert content(tmp_path / "run") == whole.files
    steps = [event for event in record.events if event.endswith(f" {whole.last_phase}")]
    all_steps = [event for event in whole.events if event.endswith(f" {whole.last_phase}")]
    assert steps == [all_steps[0], *all_steps[step:]]  # the step that was cut off comes again


class Asked(Record):
    """Asks for an end at an event, as Ctrl-C does."""

    def _note(self, event: str) -> None:
        self.events.append(event)
        self.stopping = self.stopping or self.when(event)


@pytest.mark.parametrize("place", ["step", "phase", "evaluation"])
def test_asked_to_stop_it_stops_and_goes_on(whole: Whole, tmp_path: Path, place: str) -> None:
    asked = Asked()
    learner = make_learner(whole.method, make_backbone(KIND), tmp_path / "run", asked, save_steps=9)
    learner.learn(FIRST)
    event = {
        "step": f"1 {whole.last_phase}",  # known when the step is over
        "phase": f"finish {whole.last_phase}",
        "evaluation": whole.evaluation,
    }[place]
    asked.when = event.__eq__
    with pytest.raises(StoppedError, match="after step 2" if place == "step" else "answered"):
        learner.learn(SECOND)
    worked = [event for event in asked.events if not event.startswith("finish ")]
    assert worked[-1] == (f"2 {whole.last_phase}" if place == "step" else whole.evaluation)
    record = Record()
    carry_on(tmp_path / "run", record)
    assert content(tmp_path / "run") == whole.files
    assert not {f"1 {whole.last_phase}", f"2 {whole.last_phase}"} & {*record.events}


def test_killed_at_the_end_of_a_phase(whole: Whole, tmp_path: Path) -> None:
    """Its last checkpoint is written, its result is not."""
    whole.interrupted(tmp_path / "run", f"finish {whole.last_phase}")
    carry_on(tmp_path / "run")
    assert content(tmp_path / "run") == whole.files


def test_killed_between_phases(whole: Whole, tmp_path: Path) -> None:
    """Nothing of the earlier task or of an ended phase is trained again."""
    whole.interrupted(tmp_path / "run", f"start {whole.last_phase}")
    record = Record()
    carry_on(tmp_path / "run", record)
    assert content(tmp_path / "run") == whole.files
    began = whole.events.index(f"start {whole.last_phase}")
    assert record.events == whole.events[began:]


def test_killed_before_the_evaluation(whole: Whole, tmp_path: Path) -> None:
    """The task is learned, its row of scores is missing."""
    whole.interrupted(tmp_path / "run", whole.evaluation)
    record = Record()
    carry_on(tmp_path / "run", record)
    assert content(tmp_path / "run") == whole.files
    assert record.events == whole.events[-len(record.events) :]
    assert record.events[0] == whole.evaluation


def test_killed_in_the_middle_of_the_last_evaluation(whole: Whole, tmp_path: Path) -> None:
    """Cells that were measured before are not measured again; samples of others are."""
    whole.interrupted(tmp_path / "run", f"3 evaluates {SECOND.name}")
    record = Record()
    carry_on(tmp_path / "run", record)
    assert content(tmp_path / "run") == whole.files
    again = [event for event in record.events if event == f"start evaluates {FIRST.name}"]
    assert bool(again) != METHODS[VARIANTS[whole.method][0]].traits.forgets


def test_killed_at_any_write(whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its 1st write, resumed, killed before its 2nd from there, …, to the end."""
    folder, left = tmp_path / "run", 0
    replacing = retain.system.files.replacing

    def write(path: Path) -> AbstractContextManager[Path]:
        nonlocal left
        left -= 1
        if left < 0:
            raise KilledError(path)
        return replacing(path)

    monkeypatch.setattr(retain.system.files, "replacing", write)
    for kills in count():
        left = kills
        try:
            if not (folder / "manifest.json").exists():
                make_learner(whole.method, make_backbone(KIND), folder).learn(FIRST)
            carry_on(folder)
            break
        except KilledError:
            continue
    assert kills > 5
    assert content(folder) == whole.files


def test_killed_while_a_checkpoint_is_written(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The half-written checkpoint is not used."""
    with monkeypatch.context() as patch:
        record = Record()
        save = Trainer._save_rng_state

        def killed(self: Trainer, folder: str) -> None:
            if record.events[-1] == f"2 {whole.last_phase}":
                raise KilledError(folder)
            save(self, folder)

        patch.setattr(Trainer, "_save_rng_state", killed)
        learner = make_learner(whole.method, make_backbone(KIND), tmp_path / "run", record)
        learner.learn(FIRST)
        with pytest.raises(KilledError):
            learner.learn(SECOND)
    assert len(list((tmp_path / "run").rglob("checkpoint-*"))) == 2
    carry_on(tmp_path / "run")
    assert content(tmp_path / "run") == whole.files


def test_killed_before_the_checkpoints_are_deleted(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The task is committed; what was left of its training goes."""
    unfinished = tmp_path / "run" / "tasks" / f"02-{SECOND.name}" / "checkpoints"

    def remove_folders(*paths: Path) -> None:
        if unfinished in paths:
            raise KilledError(unfinished)
        retain.system.files.remove_folders(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(retain.learner.learner, "remove_folders", remove_folders)
        whole.interrupted(tmp_path / "run", "")
    assert unfinished.exists()
    carry_on(tmp_path / "run")
    assert content(tmp_path / "run") == whole.files


def test_the_learner_that_was_interrupted_does_not_go_on(whole: Whole, tmp_path: Path) -> None:
    """Its model is half trained: what it would learn or answer would be wrong."""
    record = Record(f"2 {whole.last_phase}".__eq__)
    learner = make_learner(whole.method, make_backbone(KIND), tmp_path / "run", record)
    learner.learn(FIRST)
    with pytest.raises(KilledError):
        learner.learn(SECOND)
    for use in (
        lambda: learner.learn(SECOND),
        lambda: learner.generate(["ant"], FIRST.name),
        learner.evaluate,
        learner.finish_evaluation,
    ):
        with pytest.raises(RetainError, match=r"interrupted.*Learner\.load"):
            use()
