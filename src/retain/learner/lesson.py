"""One task learned: its phases in order, each from where an earlier process left it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback

from retain.backbone import Backbone
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
"""What is kept of a phase that has ended."""
FEW_REPLAYS = 5
"""Warn if the published replay schedule yields fewer replay steps than this."""
FULL_RATE = 1e-3
"""From this learning rate on, full fine-tuning is likely to lose more than it learns."""


@dataclass(frozen=True)
class Seeds:
    """The seeds of one task: what is drawn for it does not depend on what was drawn before.

    Attributes:
        run: the run's seed.
        task: the task's place in the stream, from 0.
    """

    run: int
    task: int

    def of(self, slot: int) -> int:
        """The task's seed of this slot: 0 between phases, 1 and on in them."""
        return (self.run * 1_000_003 + self.task * 1_009 + slot) % 2**31

    def set(self, slot: int) -> None:
        """Seeds torch, numpy and Python with it."""
        transformers.set_seed(self.of(slot))


@dataclass
class Lesson:
    """One task, learned by a method: its phases in order, then what the method keeps of it.

    Attributes:
        method: installed in `backbone`.
        backbone: is trained in place.
        config: the task's training settings.
        task: what is learned.
        context: the task's place in the run.
        seeds: the task's.
        progress: is told of each step.
        callbacks: of the user, for Trainer.
        log: of all steps, each with its phase.
        parameters: how many are trainable, in the phase with most of them.
        seconds: in phases, and in what the method does before and after them; of a phase that was
            interrupted, in the sitting that ended it.
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
        """Trains the method's phases; those that ended before a crash are restored instead."""
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
        """What the task's folder keeps of what learning it took."""
        return {"parameters": self.parameters, "seconds": round(self.seconds, 1)}

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Runs the method's own code, in training's precision, and adds its seconds."""
        began = time.monotonic()
        with as_trained(self.backbone, self.config):
            yield
        self.seconds += time.monotonic() - began

    def _learn_phase(self, phase: Phase, number: int) -> None:
        """Trains the task's phase `number`, from 1, or restores it where it has ended."""
        place = self.context.folder / UNFINISHED / f"{number}-{phase.name}"
        sizes = {g.name: sum(p.numel() for p in g.parameters) for g in phase.groups}
        self.parameters = max(self.parameters, sum(sizes.values()))
        result = _restored(phase, self.backbone, place)
        if result is None:
            label = f"{self.task.name} · {phase.name}"
            seed = self.seeds.of(phase.seed_slot)
            self.seeds.set(phase.seed_slot)
            steps = self._announce(phase, label, sizes, seed)
            self.progress.start(label, steps, "steps")
            try:
                result = self._fit(phase, place, seed)
            finally:
                self.progress.finish()
        self.log += [{"phase": phase.name, **row} for row in result["log"]]
        self.seconds += result["seconds"]

    def _announce(self, phase: Phase, label: str, sizes: Mapping[str, int], seed: int) -> int:
        """Says what is trained and what is unusual about it; returns the number of steps."""
        order = batches(self.config, phase, seed)
        trained = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        saves = f"saves every {self.config.save_steps} steps"
        if order.steps <= self.config.save_steps:
            saves = "saves at the end"
        self.progress.message(f"{label}: trains {trained} parameters, {saves}")
        for warning in unusual_settings(phase, order, self.config, self.backbone):
            self.progress.message(f"{label}: warning: {warning}")
        return order.steps

    def _fit(self, phase: Phase, place: Path, seed: int) -> dict[str, Any]:
        """Trains a phase and leaves its result beside `place`."""
        folder, model = self.context.folder, self.backbone.model
        tracked = TrackedPhase(folder.parents[1], f"{folder.name}/{place.name}")
        began = time.monotonic()
        log = fit(
            self.backbone,
            phase,
            self.config,
            place,
            seed,
            self.progress,
            tracked,
            self.callbacks,
        )
        result = {"log": log, "seconds": time.monotonic() - began}
        ended = _ended(place)
        write_json(ended / LOG, result)
        release(model, phase)
        write_tensors(ended / TENSORS, trained_tensors(model))
        if phase.state:
            write_tensors(ended / STATE, phase.state)
        model.requires_grad_(False)
        seal(ended)
        remove_folders(place)
        return result


def unusual_settings(
    phase: Phase, order: Batches, config: TrainingConfig, backbone: Backbone
) -> Iterator[str]:
    """Yields warnings about settings that are valid but probably unintended."""
    published = phase.replay is not None and phase.replay.every is None
    replays = order.steps // (order.every + 1)
    if order.every and replays < (FEW_REPLAYS if published else 1):
        yield (
            f"{replays or 'no'} replay: a step on old examples comes after every {order.every} "
            f"steps, and there are {order.steps}; set method.replay.every"
        )
    trainable = sum(p.numel() for group in phase.groups for p in group.parameters)
    if config.learning_rate >= FULL_RATE and 2 * trainable > backbone.model.num_parameters():
        yield (
            f"most of the model is trained at training.learning_rate {config.learning_rate:g}, a "
            "rate for LoRA; 1e-5 to 1e-4 is usual"
        )


def _restored(phase: Phase, backbone: Backbone, place: Path) -> dict[str, Any] | None:
    """Restores a phase that has ended; returns its log and its seconds, or None."""
    ended = _ended(place)
    if not processes.broadcast(is_sealed(ended)):
        return None
    release(backbone.model, phase)
    restore(backbone.model, read_tensors(ended / TENSORS), ended / TENSORS)
    phase.state.clear()
    if (ended / STATE).exists():
        stored = read_tensors(ended / STATE)
        phase.state.update({key: t.to(backbone.device) for key, t in stored.items()})
    backbone.model.requires_grad_(False)
    result: dict[str, Any] = read_json(ended / LOG)
    return result


def _ended(place: Path) -> Path:
    """Where the result of a phase lies that has ended."""
    return place.with_name(f"{place.name}.ended")
