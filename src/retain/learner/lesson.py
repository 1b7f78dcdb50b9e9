"""Learning one task: its phases in order, each from where an earlier sitting left it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback

from retain.backbone import Backbone
from retain.methods import Method
from retain.runs.checkpoints import is_sealed, seal
from retain.system import processes
from retain.system.files import read_json, read_tensors, remove_folders, write_json, write_tensors
from retain.system.progress import Progress
from retain.tasks import Task
from retain.training.batches import Batches
from retain.training.config import TrainingConfig
from retain.training.fit import as_trained, batches, fit
from retain.training.parameters import release, restore, trained_tensors
from retain.training.phase import Phase
from retain.training.trackers import TrackedPhase

TENSORS, LOG = "trained.safetensors", "log.json"
"""What is kept of a phase that has ended."""
FEW_REPLAYS = 5
"""Under so many steps on old examples, the published rule of when they come is hardly meant."""
WHOLE_RATE = 1e-3
"""From this learning rate on, a whole model is likely to lose more than it learns."""


@dataclass
class Lesson:
    """What came of a task's phases.

    Attributes:
        log: of all steps, each with its phase.
        parameters: that learned, in the phase with most of them.
        seconds: in phases, and in what the method does before and after them; of a phase that was
            interrupted, in the sitting that ended it.
    """

    log: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Adds what the method does in here."""
        began = time.monotonic()
        yield
        self.seconds += time.monotonic() - began

    def cost(self) -> dict[str, float]:
        """As it is kept with the task."""
        return {"parameters": self.parameters, "seconds": round(self.seconds, 1)}


@dataclass(frozen=True)
class Seeds:
    """Seeds everything for one step of learning a task, whatever was drawn before.

    Attributes:
        run: the run's seed.
        task: the task's number in the stream, from 0.
    """

    run: int
    task: int

    def __call__(self, number: int) -> int:
        """Sets, and returns, the task's seed of this number."""
        seed = (self.run * 1_000_003 + self.task * 1_009 + number) % 2**31
        transformers.set_seed(seed)
        return seed


def learn_phases(
    method: Method,
    backbone: Backbone,
    config: TrainingConfig,
    task: Task,
    folder: Path,
    unfinished: Path,
    seeds: Seeds,
    progress: Progress,
    callbacks: Sequence[TrainerCallback] = (),
) -> Lesson:
    """Trains a method's phases of a task; those that ended before a crash are restored.

    Args:
        method: installed in `backbone`.
        backbone: is trained in place.
        config: the task's training settings.
        task: what is learned.
        folder: the task's, for what the method writes on the way.
        unfinished: the folder of what a later sitting would need.
        seeds: the task's.
        progress: is told of each step.
        callbacks: of the user, for Trainer.
    """
    lesson = Lesson()
    seeds(0)
    phases = method.phases(task, folder)
    number = 0
    while True:
        number += 1
        with lesson.timed(), as_trained(backbone, config):
            phase = next(phases, None)
        if phase is None:
            return lesson
        place = unfinished / f"{number}-{phase.name}"
        sizes = {g.name: sum(p.numel() for p in g.parameters) for g in phase.groups}
        lesson.parameters = max(lesson.parameters, sum(sizes.values()))
        ended = _ended(phase, backbone, place)
        if ended is None:
            label = f"{task.name} · {phase.name}"
            told = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
            # The phase that learns the task sees its rows in the same order in every method.
            seed = seeds(1 if phase.name == "learn" else 1 + number)
            order = batches(config, phase, seed)
            every = f"saves every {config.save_steps} steps"
            if order.steps <= config.save_steps:
                every = "saves at the end"
            progress.message(f"{label}: trains {told} parameters, {every}")
            for doubt in _doubts(phase, order, config, backbone):
                progress.message(f"{label}: warning: {doubt}")
            progress.start(label, order.steps, "steps")
            try:
                tracked = TrackedPhase(folder.parents[1], f"{folder.name}/{place.name}")
                ended = _fit(phase, backbone, config, place, seed, progress, tracked, callbacks)
            finally:
                progress.finish()
        lesson.log += [{"phase": phase.name, **row} for row in ended["log"]]
        lesson.seconds += ended["seconds"]
        seeds(0)


def _doubts(
    phase: Phase, order: Batches, config: TrainingConfig, backbone: Backbone
) -> Iterator[str]:
    """What of a phase's settings is allowed, and hardly meant."""
    published = phase.replay is not None and phase.replay.every is None
    replays = order.steps // (order.every + 1)
    if order.every and replays < (FEW_REPLAYS if published else 1):
        yield (
            f"{replays or 'no'} replay: a step on old examples comes after every {order.every} "
            f"steps, and there are {order.steps}; set method.replay.every"
        )
    learn = sum(p.numel() for group in phase.groups for p in group.parameters)
    if config.learning_rate >= WHOLE_RATE and 2 * learn > backbone.model.num_parameters():
        yield (
            f"most of the model learns at training.learning_rate {config.learning_rate:g}, a rate "
            "for LoRA; 1e-5 to 1e-4 is usual"
        )


def _ended(phase: Phase, backbone: Backbone, place: Path) -> dict[str, Any] | None:
    """Restores a phase that has ended; returns its log and its seconds, or None."""
    result = _result(place)
    if not processes.broadcast(is_sealed(result)):
        return None
    release(backbone.model, phase)
    restore(backbone.model, read_tensors(result / TENSORS), result / TENSORS)
    backbone.model.requires_grad_(False)
    ended: dict[str, Any] = read_json(result / LOG)
    return ended


def _result(place: Path) -> Path:
    return place.with_name(f"{place.name}.ended")


def _fit(
    phase: Phase,
    backbone: Backbone,
    config: TrainingConfig,
    place: Path,
    seed: int,
    progress: Progress,
    tracked: TrackedPhase,
    callbacks: Sequence[TrainerCallback],
) -> dict[str, Any]:
    """Trains a phase and leaves its result beside `place`."""
    began = time.monotonic()
    log = fit(backbone, phase, config, place, seed, progress, tracked, callbacks)
    ended = {"log": log, "seconds": time.monotonic() - began}
    result = _result(place)
    write_json(result / LOG, ended)
    release(backbone.model, phase)
    write_tensors(result / TENSORS, trained_tensors(backbone.model))
    backbone.model.requires_grad_(False)
    seal(result)
    remove_folders(place)
    return ended
