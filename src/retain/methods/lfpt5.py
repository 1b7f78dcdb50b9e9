"""LFPT5: one soft prompt that answers tasks and generates pseudo-samples of them for replay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.backbone.losses import IGNORED, cross_entropy, cross_entropy_by_example
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
    """How pseudo-samples are sampled, and the weight λ_lm of the loss that trains the generator.

    `known_answers` keeps only pseudo-samples whose answer is one of the task's training answers,
    letter for letter, as published for classification.
    """

    weight: NonNegativeFloat = 0.25
    known_answers: bool = False


class PseudoConfig(MemoryConfig):
    """The number of pseudo-samples as a share of the examples, and how often they are replayed."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.02


class Lfpt5Config(MethodConfig):
    """Options of the prompt, its pseudo-samples and the distillation.

    `length` is the prompt's number of vectors, `rate` its learning rate as a multiple of
    training.learning_rate. `distillation` is the published λ_kl, the weight of a KL divergence that
    is summed over the positions of an answer. `preset: paper` has the published options for
    classification with an LM-adapted T5 v1.1, with `rate: 1`; share and schedule of the
    pseudo-samples are not among them.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            "length": 300,
            "rate": 1.0,
            "writing": {"weight": 0.25, "top_k": 64, "known_answers": True},
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
    """L_task + λ_lm L_lm; on pseudo-samples (1 − λ_kl)(L_task + λ_lm L_lm) + λ_kl KL.

    Qin and Joty, arXiv 2110.07298. L_lm is the loss of generating an input from a trigger that
    names its task. Right after a task the prompt generates inputs of it and answers them. These
    pseudo-samples replace its examples from then on; the teacher of the KL term is the model at
    that time. KL is summed over an answer's positions, as published, and averaged over examples,
    where the published code also sums over the two examples of a micro-batch. docs/methods.md
    lists further differences.
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
        self._generator_rows: list[Features] = []  # one per example of the task, in its order
        self._memory_generator_rows: list[Features] = []  # one per example in memory
        self._dropped = 0  # copies of training inputs among the task's pseudo-samples

    def make_weights(self, config: Any) -> PoolWeights:
        """Returns the soft prompt."""
        return PoolWeights(self.backbone, PromptPool(self.backbone, config.length))

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase; each example is trained with the row that generates its input."""
        for phase in super().phases(task, context):
            self._generator_rows = generator_rows(self.backbone, task.train, _trigger(task.name))
            prompt = [replace(group, rate=self.options.rate) for group in phase.groups]
            numbered = [{**row, "example_id": [i]} for i, row in enumerate(phase.data)]
            yield replace(phase, data=numbered, groups=prompt)

    def choose(self, task: Task, context: TaskContext) -> list[Example]:
        """Generates pseudo-samples: inputs, and the answers that the prompt gives to them.

        An input is left out if the chat template refuses it, or its answer is empty, does not fit
        in the window, or is new where only known answers count.
        """
        written = write_inputs(
            self.backbone,
            _trigger(task.name),
            self.weights.use,
            self.kept(task),
            self.options.writing,
            taught_inputs(self.backbone, self._generator_rows),
            "training.max_steps or method.writing.weight",
        )
        self._dropped = written.dropped
        limit = self.backbone.prompt.max_answer_tokens
        asked, rows = [], []
        for text in written.texts:
            with suppress(RetainError):  # what is drawn at random ends no run
                example = self._asked(text, task)
                row = self.backbone.encode(example, with_answer=False)
                if self.backbone.room_after(len(row["input_ids"])) >= limit + 1:
                    asked.append(example)
                    rows.append(row)
        answers = [""] * len(rows)
        for chosen in self.backbone.batches(rows, BATCH):
            batch = self.backbone.collate([rows[i] for i in chosen])
            self.route(batch)
            for i, text in zip(chosen, self.backbone.generate(batch, limit), strict=True):
                answers[i] = text
        answered = sum(map(bool, answers))
        if self.options.writing.known_answers:
            # As the tokenizer reads them back, since no answer can equal what it cannot represent.
            labels = [[i for i in row["labels"] if i != IGNORED] for row in self.encoded(task)]
            known = set(map(self.backbone.decode, labels))
            answers = [answer if answer in known else "" for answer in answers]
        pairs = zip(asked, answers, strict=True)
        samples = [replace(example, references=(answer,)) for example, answer in pairs if answer]
        if written.notice:
            self.notices.append(written.notice)
        elif not samples:
            cause = f"the prompt answers none of the {len(written.texts)} inputs that it wrote"
            advice = "a higher training.max_steps"
            if answered:
                cause = f"none of its {answered} answers is one of the task's training answers"
                advice += " or method.writing.known_answers=false"
            self.notices.append(
                f"warning: no pseudo-samples, because {cause}; this task is not replayed, which "
                f"{advice} would change"
            )
        return samples

    def _asked(self, text: str, task: Task) -> Example:
        """Returns a generated input as an example without answer, written as the task's are."""
        turns = ({"role": "user", "content": text},) if task.is_conversations else ()
        return Example(text, ("",), turns)

    def finish(self, task: Task, context: TaskContext) -> None:
        """Keeps pseudo-samples and the model's logits on them, and measures their quality."""
        super().finish(task, context)
        texts = [example.prompt for example in read_examples(context.folder)]
        taught = taught_inputs(self.backbone, self._generator_rows)
        write_quality(context.folder, self.backbone, texts, self._dropped, taught)
        self._add_generator_rows(context.folder, task.name)

    def load(self, context: TaskContext) -> None:
        """Restores the prompt after the task, and the task's pseudo-samples."""
        super().load(context)
        self._add_generator_rows(context.folder, context.name)

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """Returns the section on the pseudo-samples."""
        return pseudo_sample_diagnostics(run, MEMORY)

    def _add_generator_rows(self, folder: Path, name: str) -> None:
        examples = read_examples(folder)
        self._memory_generator_rows += generator_rows(self.backbone, examples, _trigger(name))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the losses of answering and of generating; on a replay batch also the KL."""
        is_replay = "is_replay" in batch
        rows = self._memory_generator_rows if is_replay else self._generator_rows
        numbers = batch["example_id"][:, 0].tolist()
        generator_batch = self.backbone.collate([rows[number] for number in numbers])
        self.route(generator_batch)
        by_example = cross_entropy_by_example(*self.backbone.answer_logits(generator_batch))
        writing = self.options.writing.weight * by_example.mean()
        self.route(batch)
        logits, targets = self.backbone.answer_logits(batch)  # (B, K, V), (B, K)
        if not is_replay:
            return {"task": cross_entropy(logits, targets), "writing": writing}
        labelled = targets != IGNORED
        soft = soft_cross_entropy(logits[labelled], stacked(self.read_teacher_outputs(batch)))
        positions = labelled.sum() / len(labelled)  # per example
        weight = self.options.distillation
        return {
            "replay": (1 - weight) * cross_entropy(logits, targets),
            "writing": (1 - weight) * writing,
            "distillation": weight * positions * soft,
        }


def _trigger(task: str) -> str:
    return f"Write an input of the task {task}:"
