"""Runs of two tiny tasks: simulated kills, resumption, and files to compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from retain.learner.learner import Learner
from retain.system.progress import Progress
from retain.testing.tiny import make_backbone, make_task, read_files

KIND = "llama"
FIRST, SECOND = make_task("copy"), make_task("constant")
UNEQUAL = {"config.yaml", "manifest.json", ".lock"}  # the first two name the folder


class KilledError(Exception):
    """Simulates that the process was killed."""


class Record(Progress):
    """Records every event and message; raises KilledError at the first event `when` accepts."""

    def __init__(self, when: Callable[[str], bool] = lambda event: False) -> None:
        self.when = when
        self.events: list[str] = []
        self.said: list[str] = []
        self._label = ""

    def _note(self, event: str) -> None:
        self.events.append(event)
        if self.when(event):
            raise KilledError(event)

    def message(self, text: str) -> None:
        self.said.append(text)

    def start(self, label: str, total: int, unit: str) -> None:
        self._label = label
        self._note(f"start {label}")

    def update(self, done: int, parts: Mapping[str, float] | None = None) -> None:
        self._note(f"{done} {self._label}")

    def finish(self) -> None:
        self._note(f"finish {self._label}")


def content(folder: Path) -> dict[str, bytes]:
    """Reads the files that must be equal bit for bit in two runs of the same experiment."""
    return {
        name: data
        for name, data in read_files(folder).items()
        if name not in UNEQUAL and not name.endswith("/cost.json")
    }


def carry_on(folder: Path, progress: Progress | None = None) -> Learner:
    """Continues a run as a user does after a crash: loads it, learns and scores the rest."""
    learner = Learner.load(folder, progress, make_backbone(KIND))
    known = [task.name for task in learner.tasks]
    for task in (FIRST, SECOND):
        if task.name not in known:
            learner.learn(task)
    learner.finish_evaluation()
    return learner
