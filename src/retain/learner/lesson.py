"""Training of one task: its phases in order, continued where an earlier process stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from retain.backbone import Backbone
from retain.learner.seeds import Seeds
from retain.methods.base import Method, TaskContext
from retain.runs.checkpoints import is_sealed, seal
from retain.runs.records import UNFINISHED
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

TENSORS, STATE, LOG = "trained.safetensors", "state.safetensors", "log.json"
"""Files of the result of a phase that has ended."""
FEW_REPLAYS = 5
"""Warn if the published replay schedule yields fewer replay steps than this."""
FULL_RATE = 1e-3
"""From this learning rate on, full fine-tuning is likely to lose more than it learns."""


@dataclass
class Lesson:
    """The training of one task by a method.

    Attributes:
        method: the method, installed in `backbone`.
        backbone: the backbone, trained in place.
        config: the task's training settings.
        task: the task to learn.
        context: the task's name, index, folder and seed, for the method.
        seeds: the task's seeds.
        progress: receives messages and each logged step.
        callbacks: the user's callbacks for Trainer.
        log: the logged steps of all phases, each with the phase's name.
        parameters: the number of trainable parameters, in the phase with the most.
        seconds: time spent in phases and in the method's code around them. Of an interrupted phase
            only the time since the last start counts.
    """

    method: Method
    backbone: Backbone
    config: TrainingConfig
    task: Task
    context: TaskContext
    seeds: Seeds
    progress: Progress
    callbacks: Sequence[TrainerCallback] = ()
    log: list[dict[str, Any]] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0

    def learn(self) -> None:
        """Trains the method's phases, or restores those that ended before a crash."""
        self.seeds.set(0)
        phases = self.method.phases(self.task, self.context)
        for number in count(1):
            with self._timed():
                phase = next(phases, None)
            if phase is None:
                break
            self._learn_phase(phase, number)
            self.seeds.set(0)
        with self._timed():
            self.method.finish(self.task, self.context)

    def cost(self) -> dict[str, float]:
        """Returns the training cost to store with the task: parameters and seconds."""
        return {"parameters": self.parameters, "seconds": round(self.seconds, 1)}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Runs the method's code between phases in the training precision, and adds its time."""
        began = time.monotonic()
        with as_trained(self.backbone, self.config):
            yield
        self.seconds += time.monotonic() - began
        for notice in self.method.notices:
            self.progress.message(f"{self.task.name}: {notice}")
        self.method.notices.clear()

    def _learn_phase(self, phase: Phase, number: int) -> None:
        """Trains phase `number` of the task (from 1), or restores it if it has ended."""
        folder = self.context.folder / UNFINISHED / f"{number}-{phase.name}"
        sizes = {group.name: sum(p.numel() for p in group.parameters) for group in phase.groups}
        self.parameters = max(self.parameters, sum(sizes.values()))
        result = _restored(phase, self.backbone, folder)
        if result is None:
            label = f"{self.task.name} · {phase.name}"
            seed = self.seeds.of(phase.seed_slot)
            self.seeds.set(phase.seed_slot)
            steps = self._announce(phase, label, sizes, seed)
            self.progress.start(label, steps, "steps")
            try:
                result = self._fit(phase, folder, seed)
            finally:
                self.progress.finish()
        self.log += [{"phase": phase.name, **row} for row in result["log"]]
        self.seconds += result["seconds"]

    def _announce(self, phase: Phase, label: str, sizes: Mapping[str, int], seed: int) -> int:
        """Reports what is trained, with warnings; returns the number of optimizer steps."""
        layout = batches(self.config, phase, seed)
        trained = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        saves = f"saves every {self.config.save_steps} steps"
        if layout.steps <= self.config.save_steps:
            saves = "saves at the end"
        self.progress.message(f"{label}: trains {trained} parameters, {saves}")
        for warning in unusual_settings(phase, layout, self.config, self.backbone):
            self.progress.message(f"{label}: warning: {warning}")
        return layout.steps

    def _fit(self, phase: Phase, folder: Path, seed: int) -> dict[str, Any]:
        """Trains a phase with checkpoints in `folder`, and replaces them by its result."""
        task_folder, model = self.context.folder, self.backbone.model
        tracked = TrackedPhase(task_folder.parents[1], f"{task_folder.name}/{folder.name}")
        began = time.monotonic()
        log = fit(
            self.backbone,
            phase,
            self.config,
            folder,
            seed,
            self.progress,
            tracked,
            self.callbacks,
        )
        result = {"log": log, "seconds": time.monotonic() - began}
        result_folder = _result_folder(folder)
        write_json(result_folder / LOG, result)
        release(model, phase)
        write_tensors(result_folder / TENSORS, trained_tensors(model))
        if phase.state:
            write_tensors(result_folder / STATE, phase.state)
        model.requires_grad_(False)
        seal(result_folder)
        remove_folders(folder)
        return result


def unusual_settings(
    phase: Phase, layout: Batches, config: TrainingConfig, backbone: Backbone
) -> Iterator[str]:
    """Yields warnings about settings that are valid but probably unintended."""
    published = phase.replay is not None and phase.replay.every == "reference"
    replays = layout.steps // (layout.every + 1)
    if layout.every and replays < (FEW_REPLAYS if published else 1):
        yield (
            f"{replays or 'no'} replay: a step on old examples comes after every {layout.every} "
            f"steps, and there are {layout.steps}; set method.replay.every"
        )
    trainable = sum(p.numel() for group in phase.groups for p in group.parameters)
    if config.learning_rate >= FULL_RATE and 2 * trainable > backbone.model.num_parameters():
        yield (
            f"most of the model is trained at training.learning_rate {config.learning_rate:g}, a "
            "rate for LoRA; 1e-5 to 1e-4 is usual"
        )


def _restored(phase: Phase, backbone: Backbone, folder: Path) -> dict[str, Any] | None:
    """Restores a phase that has ended; returns its log and seconds, or None if it has not."""
    result_folder = _result_folder(folder)
    if not processes.from_first(lambda: is_sealed(result_folder)):
        return None
    release(backbone.model, phase)
    path = result_folder / TENSORS
    restore(backbone.model, read_tensors(path), path)
    phase.state.clear()
    if (result_folder / STATE).exists():
        stored = read_tensors(result_folder / STATE)
        phase.state.update({key: t.to(backbone.device) for key, t in stored.items()})
    backbone.model.requires_grad_(False)
    result: dict[str, Any] = read_json(result_folder / LOG)
    return result


def _result_folder(folder: Path) -> Path:
    """Returns the folder for the result of the phase whose checkpoints are in `folder`."""
    return folder.with_name(f"{folder.name}.ended")
