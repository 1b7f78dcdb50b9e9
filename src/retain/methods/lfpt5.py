"""LFPT5: one soft prompt that solves tasks and writes inputs of them, to be replayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.backbone.backbone import IGNORED, cross_entropy
from retain.methods.base import MethodConfig, Phase
from retain.methods.memory import ScheduleConfig
from retain.methods.pseudo import BATCH, generator_rows, write_inputs
from retain.methods.teacher import TaughtMethod, TeacherConfig, soft_cross_entropy, stacked
from retain.methods.weights import PromptWeights
from retain.phase import Unit
from retain.tasks import Example, Task


class WritingConfig(MethodConfig):
    """λ_lm of learning to write inputs, and how pseudo-samples are drawn."""

    weight: NonNegativeFloat = 0.25
    top_k: PositiveInt = 20
    max_new_tokens: PositiveInt = 128


class Lfpt5Config(MethodConfig):
    """Rows of the prompt and its rate (times training.learning_rate), λ_kl of the distillation.

    `replay.share` of a task's number of examples is written anew.
    """

    length: PositiveInt = 20
    rate: PositiveFloat = 30.0
    writing: WritingConfig = Field(default_factory=WritingConfig)
    distillation: NonNegativeFloat = 0.1
    replay: ScheduleConfig = Field(default_factory=lambda: ScheduleConfig(share=0.02))
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)


class Lfpt5(TaughtMethod):
    """L_task + λ_lm L_lm on the task; L_task + λ_kl KL on pseudo-samples (arXiv 2110.07298, eq. 6).

    L_lm is the loss of writing the task's inputs from a trigger that names it. Right after a task
    the prompt writes inputs of it and answers them; these stand in for its examples from then on,
    with the logits of then as the teacher. The paper writes input and answer in one go, anew before
    each task; a small model seldom keeps that form, and the longer ago a task was, the less.
    """

    Config = Lfpt5Config
    idea = "one soft prompt that solves tasks and writes inputs of older ones, which are replayed"
    stores = "the soft prompt as it was after the task, pseudo-samples with their logits"
    needs_old_data = False
    latest_only = ()
    over: ClassVar[Mapping[str, Unit]] = {"writing": "rows"}
    lowers_disk = "method.replay.share, or method.teacher.top_k"

    def __init__(self, backbone: Backbone, config: Lfpt5Config) -> None:
        super().__init__(backbone, config)
        self.options = config
        self._writing: list[Features] = []

    def make_weights(self, config: Any) -> PromptWeights:
        """The one prompt."""
        return PromptWeights(self.backbone, config.length)

    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """One phase; each row of the task is learned with the row that teaches to write it."""
        for phase in super().phases(task, folder):
            self._writing = generator_rows(self.backbone, task, _trigger(task))
            prompt = [replace(group, rate=self.options.rate) for group in phase.groups]
            # Numbers below zero tell the task's rows from those in memory.
            rows = [{**row, "number": [-1 - i]} for i, row in enumerate(phase.data)]
            yield replace(phase, data=rows, groups=prompt)

    def choose(self, task: Task) -> list[Example]:
        """Pseudo-samples: inputs that the prompt writes, with the answers that it gives them.

        An input without an answer is left out.
        """
        options = self.options.writing
        inputs = write_inputs(
            self.backbone,
            _trigger(task),
            self.weights.use,
            self.kept(task),
            options.max_new_tokens,
            options.top_k,
            "training.max_steps or method.writing.weight",
        )
        rows = [self.backbone.encode(Example(text, ("",)), with_answer=False) for text in inputs]
        limit = self.backbone.prompt.max_answer_tokens
        answers: list[str] = []
        for start in range(0, len(rows), BATCH):
            batch = self.backbone.collate(rows[start : start + BATCH])
            self.route(batch)
            answers += self.backbone.generate(batch, limit)
        pairs = zip(inputs, answers, strict=True)
        return [Example(text, (answer,)) for text, answer in pairs if answer]

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        self.route(batch)
        logits, targets = self.backbone.answer_logits(batch)
        numbers: list[int] = batch["number"][:, 0].tolist()
        if numbers[0] < 0:
            writing = self.backbone.collate([self._writing[-1 - number] for number in numbers])
            self.route(writing)
            return {
                "task": cross_entropy(logits, targets),
                "writing": self.options.writing.weight * self.backbone.answer_loss(writing),
            }
        teacher = stacked(self.read_signals(batch))
        student = logits[targets != IGNORED]
        return {
            "replay": cross_entropy(logits, targets),
            "distillation": self.options.distillation * soft_cross_entropy(student, teacher),
        }


def _trigger(task: Task) -> str:
    return f"Write an input of the task {task.name}:"
