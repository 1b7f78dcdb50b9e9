"""LwF: learning without forgetting (Li and Hoiem, arXiv 1606.09282)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.backbone.backbone import IGNORED, cross_entropy
from retain.methods.base import Footprint, Phase, TaskContext
from retain.methods.shared.sequential import Sequential, SequentialConfig
from retain.methods.shared.teacher import (
    COPIES,
    TEACHER,
    TeacherConfig,
    bytes_of_logits,
    file_of,
    soft_cross_entropy,
    stacked,
    write_logits,
)
from retain.system.files import read_tensors, remove_folders
from retain.tasks import Task


class LwfConfig(SequentialConfig):
    """λ of the distillation, its temperature, and how the old model's logits are kept meanwhile."""

    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 2.0
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)


class Lwf(Sequential):
    """Cross-entropy + λ · soft cross-entropy with the old model's answers to the new task's inputs.

    The old model's logits are written before the task is learned, and deleted after it, so that
    there is one model in memory.
    """

    Config = LwfConfig
    traits = replace(
        Sequential.traits,
        idea="the old model's answers to the new task's inputs are kept in place by distillation",
        lowers_disk="method.teacher.top_k",
        lowers_ram="training.per_device_train_batch_size, or method.teacher.top_k",
    )

    def __init__(self, backbone: Backbone, config: LwfConfig) -> None:
        super().__init__(backbone, config)
        self.options = config
        self._learned = 0
        self._signals = Path()

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase, after the old model has answered its rows."""
        self._signals = context.folder / TEACHER
        for phase in super().phases(task, context):
            if self._learned:
                options = self.options
                write_logits(self, phase.data, self._signals, options.teacher, options.temperature)
                rows = [{**row, "example_id": [i]} for i, row in enumerate(phase.data)]
                phase = replace(phase, data=rows)
            yield phase

    def finish(self, task: Task, context: TaskContext) -> None:
        """Deletes the old model's answers."""
        remove_folders(context.folder / TEACHER)
        self._learned += 1

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task, and the distillation of the old model's answers."""
        if "example_id" not in batch:
            return super().loss(batch)
        self.route(batch)
        logits, targets = self.backbone.answer_logits(batch)
        paths = [file_of(self._signals, number) for number in batch["example_id"][:, 0].tolist()]
        teacher = stacked([read_tensors(path) for path in paths])
        softened = logits[targets != IGNORED] / self.options.temperature
        return {
            "task": cross_entropy(logits, targets),
            "distillation": self.options.weight * soft_cross_entropy(softened, teacher),
        }

    def load(self, context: TaskContext) -> None:
        """Takes over the weights of a later task."""
        super().load(context)
        self._learned += 1

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The old model's logits on all of the task's rows, and on a batch of the longest."""
        each = bytes_of_logits(self.backbone, self.encoded(task), self.options.teacher)
        own = Footprint(passing=sum(each), ram=COPIES * batch_size * max(each))
        return super().footprint(task, batch_size) + own
