"""LFPT5: one soft prompt that solves tasks and writes inputs of them, to be replayed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.backbone.backbone import IGNORED, cross_entropy
from retain.errors import RetainError
from retain.layers.soft_prompt import PromptPool
from retain.methods.base import MethodConfig, Phase, Presets, TaskContext
from retain.methods.shared.memory import MEMORY, MemoryConfig, read_examples
from retain.methods.shared.pseudo_diagnostics import pseudo_sample_diagnostics
from retain.methods.shared.pseudo_samples import (
    BATCH,
    DrawConfig,
    generator_rows,
    taught_inputs,
    write_inputs,
    write_quality,
)
from retain.methods.shared.teacher import TaughtMethod, TeacherConfig, soft_cross_entropy, stacked
from retain.methods.shared.weights import PoolWeights
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section
from retain.tasks import Example, Task
from retain.training.phase import Unit


class WritingConfig(DrawConfig):
    """λ_lm of learning to write inputs, and how pseudo-samples are drawn."""

    weight: NonNegativeFloat = 0.25


class PseudoConfig(MemoryConfig):
    """How many pseudo-samples are written for so many examples, and when they are replayed."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.02


class Lfpt5Config(MethodConfig):
    """Rows of the prompt, its rate (times training.learning_rate), and λ_kl of the distillation.

    λ_kl is the published one: of a KL that is summed over the positions of an answer.
    `preset: paper` has LFPT5's options for classification by an adapted T5 v1.1, at
    training.learning_rate itself; share and schedule of pseudo-samples stay retain's.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            "length": 300,
            "rate": 1.0,
            "writing": {"weight": 0.25, "top_k": 64},
            "distillation": 0.01,
        },
    }

    length: PositiveInt = 20
    rate: PositiveFloat = 30.0
    writing: WritingConfig = Field(default_factory=WritingConfig)
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.01
    replay: PseudoConfig = Field(default_factory=PseudoConfig)
    teacher: TeacherConfig = Field(default_factory=TeacherConfig)


class Lfpt5(TaughtMethod):
    """On the task L_task + λ_lm L_lm; on pseudo-samples (1 − λ_kl) times that, + λ_kl KL.

    Qin and Joty, arXiv 2110.07298. L_lm is the loss of writing an input from a trigger that names
    its task. Right after a task the prompt writes inputs of it and answers them; these stand in for
    its examples from then on, with the logits of then as the teacher. KL is a sum over an answer's
    positions, as published, and then a mean over rows, where the published code sums over the two
    rows of a micro-batch too. docs/methods.md says where else this differs from it.
    """

    Config = Lfpt5Config
    traits = replace(
        TaughtMethod.traits,
        idea="one soft prompt that solves tasks and writes inputs of older ones, to be replayed",
        stores="the soft prompt as it was after the task, pseudo-samples with their logits",
        needs_old_data=False,
        fixed_mixture=False,  # a soft prompt cannot be merged into weights
        latest_only=(),
    )
    units: ClassVar[Mapping[str, Unit]] = {"writing": "rows", "distillation": "rows"}

    def __init__(self, backbone: Backbone, config: Lfpt5Config) -> None:
        super().__init__(backbone, config)
        self.options = config
        self._writing: list[Features] = []  # of the task's rows
        self._writing_kept: list[Features] = []  # of the rows in memory
        self._dropped = 0  # copies of training inputs, when the task's pseudo-samples were drawn

    def make_weights(self, config: Any) -> PoolWeights:
        """The one prompt."""
        return PoolWeights(self.backbone, PromptPool(self.backbone, config.length))

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase; each row of the task is learned with the row that teaches to write it."""
        for phase in super().phases(task, context):
            self._writing = generator_rows(self.backbone, task.train, _trigger(task.name))
            prompt = [replace(group, rate=self.options.rate) for group in phase.groups]
            rows = [{**row, "example_id": [i]} for i, row in enumerate(phase.data)]
            yield replace(phase, data=rows, groups=prompt)

    def choose(self, task: Task, context: TaskContext) -> list[Example]:
        """Pseudo-samples: inputs that the prompt writes, with the answers that it gives them.

        An input without an answer is left out.

        Raises:
            RetainError: when all are.
        """
        written = write_inputs(
            self.backbone,
            _trigger(task.name),
            self.weights.use,
            self.kept(task),
            self.options.writing,
            taught_inputs(self.backbone, self._writing),
            "training.max_steps or method.writing.weight",
        )
        inputs, self._dropped = written.texts, written.dropped
        rows = [self.backbone.encode(Example(text, ("",)), with_answer=False) for text in inputs]
        limit = self.backbone.prompt.max_answer_tokens
        answers: list[str] = []
        for start in range(0, len(rows), BATCH):
            batch = self.backbone.collate(rows[start : start + BATCH])
            self.route(batch)
            answers += self.backbone.generate(batch, limit)
        pairs = zip(inputs, answers, strict=True)
        found = [Example(text, (answer,)) for text, answer in pairs if answer]
        if not found:
            raise RetainError(
                f"task '{task.name}': the prompt answers none of the {len(inputs)} inputs that it "
                "wrote; start again in another --output with a higher training.max_steps"
            )
        return found

    def finish(self, task: Task, context: TaskContext) -> None:
        """Keeps pseudo-samples with the model's logits on them, and measures them."""
        super().finish(task, context)
        texts = [example.prompt for example in read_examples(context.folder)]
        taught = taught_inputs(self.backbone, self._writing)
        write_quality(context.folder, self.backbone, texts, self._dropped, taught)
        self._keep_writing(context.folder, task.name)

    def load(self, context: TaskContext) -> None:
        """Takes over a later task's prompt, and adds the task's pseudo-samples."""
        super().load(context)
        self._keep_writing(context.folder, context.name)

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """The pseudo-samples."""
        return pseudo_sample_diagnostics(run, MEMORY)

    def _keep_writing(self, folder: Path, name: str) -> None:
        examples = read_examples(folder)
        self._writing_kept += generator_rows(self.backbone, examples, _trigger(name))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of answering and of writing; on a replay batch also the distillation."""
        is_replay = "is_replay" in batch
        rows = self._writing_kept if is_replay else self._writing
        to_write = self.backbone.collate([rows[i] for i in batch["example_id"][:, 0].tolist()])
        self.route(to_write)
        written = self.options.writing.weight * _mean_of_rows(
            *self.backbone.answer_logits(to_write)
        )
        self.route(batch)
        logits, targets = self.backbone.answer_logits(batch)
        if not is_replay:
            return {"task": cross_entropy(logits, targets), "writing": written}
        answered = targets != IGNORED
        soft = soft_cross_entropy(logits[answered], stacked(self.read_teacher_outputs(batch)))
        positions = answered.sum() / len(answered)  # of a row
        weight = self.options.distillation
        return {
            "replay": (1 - weight) * cross_entropy(logits, targets),
            "writing": (1 - weight) * written,
            "distillation": weight * positions * soft,
        }


def _mean_of_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits (B, K, V) over each row's own targets (B, K), then over rows."""
    each = F.cross_entropy(
        logits.transpose(1, 2).float(), targets, ignore_index=IGNORED, reduction="none"
    )
    return (each.sum(1) / (targets != IGNORED).sum(1)).mean()


def _trigger(task: str) -> str:
    return f"Write an input of the task {task}:"
