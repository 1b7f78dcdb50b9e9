"""LwF: learning without forgetting (Li and Hoiem, arXiv 1606.09282)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.backbone.losses import cross_entropy
from retain.methods.base import Footprint, Phase, Presets, TaskContext, Weighting
from retain.methods.shared.sequential import FEWER_TRAINABLE, Sequential, SequentialConfig
from retain.methods.shared.teacher import (
    COPIES,
    TEACHER,
    Positions,
    TeacherConfig,
    bytes_of_logits,
    file_of,
    logits_at,
    reverse_divergence,
    soft_cross_entropy,
    stacked,
    write_logits,
)
from retain.system.files import read_tensors, remove_folders
from retain.tasks import Task
from retain.training.phase import Unit


class LwfConfig(SequentialConfig):
    """Weight λ and temperature of the distillation, and how the old model's logits are stored.

    With `weighting: relative` the distillation is divided by the old model's cross-entropy on the
    task: at λ = 1, moving the answers by as much as the task has to gain costs as much.

    `positions: all` compares the models at every token of a row, prompt and answer, as a sum over
    the row's tokens; at the answer's tokens it is a mean. `divergence: forward` is the soft
    cross-entropy of the student with the old model's probabilities, `reverse` KL(student ‖ old).
    `preset: trace` is the LwF of the benchmark TRACE.
    """

    presets: ClassVar[Presets] = {
        "paper": {"weighting": "published", "positions": "answer", "divergence": "forward"},
        "trace": {
            "weighting": "published",
            "weight": 1.0,
            "temperature": 2.0,
            "positions": "all",
            "divergence": "reverse",
        },
    }

    weighting: Weighting = "published"
    weight: NonNegativeFloat = 1.0
    temperature: PositiveFloat = 2.0
    positions: Positions = "answer"
    divergence: Literal["forward", "reverse"] = "forward"
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)

    @model_validator(mode="after")
    def _one_unit(self) -> LwfConfig:
        if self.positions == "all" and self.weighting == "relative":
            raise ValueError(
                "positions: all is a sum over a row's tokens, which no weighting: relative can "
                "compare with a mean over answers; take positions: answer"
            )
        return self


class Lwf(Sequential):
    """Cross-entropy + λ · soft cross-entropy with the old model's logits on the new task.

    The old model is the one before the task. Its logits on the task's examples are written to disk
    before training and deleted after it, so that only one model is in memory.

    `preset: trace` is what the code of TRACE (Wang et al., arXiv 2310.06762, model/Regular/LwF.py
    in BeyonderXX/TRACE) computes: KL(student ‖ old model) at temperature 2, summed over all
    positions and averaged over rows. It counts padding and a row's last position too, which predict
    nothing.
    """

    Config = LwfConfig
    traits = replace(
        Sequential.traits,
        idea="the old model's answers to the new task's inputs are kept in place by distillation",
        lowers_disk="lower method.teacher.top_k",
        lowers_ram=f"{FEWER_TRAINABLE}, lower method.teacher.top_k, or "
        "training.per_device_train_batch_size if above 1",
    )
    only_calls = True

    def __init__(self, backbone: Backbone, config: LwfConfig) -> None:
        super().__init__(backbone, config)
        self.options = config
        self._learned = 0  # number of tasks
        self._teacher_folder = Path()  # of the task that is being learned
        self._scale = 1.0  # of the distillation

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Writes the old model's logits on the task's examples, then yields one phase."""
        self._teacher_folder = context.folder / TEACHER
        for phase in super().phases(task, context):
            if self._learned:
                loss = write_logits(
                    self,
                    phase.data,
                    self._teacher_folder,
                    self.options.teacher,
                    self.options.temperature,
                    self.options.positions,
                )
                is_relative = self.options.weighting == "relative" and loss > 0
                self._scale = 1 / loss if is_relative else 1.0
                numbered = [{**row, "example_id": [i]} for i, row in enumerate(phase.data)]
                units: dict[str, Unit] = {}
                if self.options.positions == "all":
                    units["distillation"] = "rows"
                phase = replace(phase, data=numbered, units=units)
            yield phase

    def finish(self, task: Task, context: TaskContext) -> None:
        """Deletes the old model's logits."""
        remove_folders(context.folder / TEACHER)
        self._learned += 1

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, and the distillation of the old model's logits."""
        if "example_id" not in batch:
            return super().loss(batch)
        self.route(batch)
        logits, targets, compared = logits_at(self.backbone, batch, self.options.positions)
        numbers = batch["example_id"][:, 0].tolist()
        paths = [file_of(self._teacher_folder, number) for number in numbers]
        teacher = stacked([read_tensors(path) for path in paths])
        softened = logits[compared] / self.options.temperature  # (N, V)
        forward = self.options.divergence == "forward"
        distance = (soft_cross_entropy if forward else reverse_divergence)(softened, teacher)
        if self.options.positions == "all":
            distance = distance * len(softened) / len(logits)  # the sum of a row's positions
        return {
            "task": cross_entropy(logits, targets),
            "distillation": self.options.weight * self._scale * distance,
        }

    def load(self, context: TaskContext) -> None:
        """Restores the task's weights, if they are still kept."""
        super().load(context)
        self._learned += 1

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the old model's logits on all examples, and on a batch of the longest ones."""
        rows, options = self.encoded(task), self.options
        logits = bytes_of_logits(self.backbone, rows, options.teacher, options.positions)
        teacher = Footprint(passing=sum(logits), ram=COPIES * batch_size * max(logits))
        return super().footprint(task, batch_size) + teacher
