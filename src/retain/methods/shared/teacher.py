"""Teacher outputs: a model's logits on examples, kept on disk and used for distillation later.

There is one safetensors file per example. It is written as soon as it is computed and read when a
batch holds the example, so that the outputs on all examples are never in memory together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.backbone.losses import IGNORED, cross_entropy
from retain.methods.base import Footprint, MethodConfig, Options, TaskContext, Traits
from retain.methods.shared.memory import MemoryMethod, ReplayConfig
from retain.methods.shared.sequential import FEWER_TRAINABLE, Sequential
from retain.system.files import read_tensors, write_tensors
from retain.tasks import Task

TEACHER = "teacher"
"""Folder of the teacher outputs, in a task's folder."""
DTYPES = {"float16": torch.float16, "float32": torch.float32}
BATCH = 8
"""Examples per forward pass of the teacher."""
Positions = Literal["answer", "all"]
"""Where the teacher's logits are kept: where they predict the answer, or every token of a row."""


class TeacherConfig(Options):
    """How teacher outputs are stored.

    `top_k` is how many of the largest logits are stored, with the summed mass of the others; null
    stores all logits.
    """

    top_k: PositiveInt | None = 64
    dtype: Literal["float16", "float32"] = "float16"


@dataclass(frozen=True)
class TeacherLogits:
    """The teacher's logits at N labelled positions.

    Attributes:
        logits: the k largest logits minus the largest one, (N, k), float32; or all V logits minus
            the largest one, in the order of the vocabulary.
        largest: the largest logit of each position, (N,).
        rest: log Σ exp over the logits that were not kept, minus the largest one, (N,); −∞ if all
            were kept.
        index: the token ids of the k logits, (N, k); None if all were kept.
    """

    logits: Tensor
    largest: Tensor
    rest: Tensor
    index: Tensor | None

    def to(self, device: torch.device) -> TeacherLogits:
        """Returns a copy on a device."""
        return TeacherLogits(
            self.logits.to(device),
            self.largest.to(device),
            self.rest.to(device),
            None if self.index is None else self.index.to(device),
        )


def compressed(logits: Tensor, config: TeacherConfig) -> dict[str, Tensor]:
    """Returns the tensors to store for logits (N, V).

    The largest logit is subtracted first, which loses the least precision in float16.
    """
    logits = logits.float()
    largest = logits.amax(1)
    centred = logits - largest[:, None]
    dtype = DTYPES[config.dtype]
    if config.top_k is None or config.top_k >= logits.shape[1]:
        return {"logits": centred.to(dtype), "largest": largest}
    top, index = centred.topk(config.top_k, dim=1)  # (N, k) each
    rest = centred.scatter(1, index, float("-inf")).logsumexp(1)  # (N,)
    return {
        "logits": top.to(dtype),
        "largest": largest,
        "rest": rest,
        "index": index.to(torch.int32),
    }


def file_of(folder: Path, number: int) -> Path:
    """Returns the path of the teacher outputs on example `number` of a task."""
    return folder / f"{number:04d}.safetensors"


def write_logits(
    method: Sequential,
    examples: Sequence[Features],
    folder: Path,
    config: TeacherConfig,
    temperature: float = 1.0,
    positions: Positions = "answer",
) -> float:
    """Writes one file per example: the method's logits at the answer's or all positions.

    Args:
        method: the teacher, as it is now.
        examples: encoded prompts with answers.
        folder: where the files go, numbered in the order of `examples`.
        config: how logits are stored.
        temperature: the logits are divided by it.
        positions: which logits.

    Returns:
        The method's cross-entropy on the examples, in nats, the mean over their answers; 0 without
        examples, as where LFPT5 has written none.
    """
    losses = []
    for start in range(0, len(examples), BATCH):
        batch = method.backbone.collate(examples[start : start + BATCH])
        method.route(batch)
        with torch.no_grad():
            batch_logits, targets, kept = logits_at(method.backbone, batch, positions)
        for number, (logits, labels, keeps) in enumerate(
            zip(batch_logits, targets, kept, strict=True), start
        ):
            losses.append(float(cross_entropy(logits[None], labels[None])))
            chosen = logits[keeps] / temperature  # (N, V)
            write_tensors(file_of(folder, number), compressed(chosen, config))
    return fmean(losses) if losses else 0.0


def logits_at(
    backbone: Backbone, batch: Batch, positions: Positions
) -> tuple[Tensor, Tensor, Tensor]:
    """Computes logits (B, K, V), the answers' targets (B, K), and which logits are kept (B, K).

    `all` keeps every logit that predicts a token of a decoder-only model's row, prompt and answer.
    An encoder-decoder has logits at the answer's positions only.
    """
    if positions == "answer" or backbone.is_encoder_decoder:
        logits, targets = backbone.answer_logits(batch)
        return logits, targets, targets != IGNORED
    real = batch["attention_mask"].bool()  # (B, S)
    predicted = real & F.pad(real[:, :-1], (1, 0))  # all real tokens of a row but the first
    tokens = batch["input_ids"].masked_fill(~predicted, IGNORED)
    logits, targets = backbone.answer_logits({**batch, "labels": tokens})
    return logits, batch["labels"][:, -targets.shape[1] :], targets != IGNORED


def stacked(files: Sequence[Mapping[str, Tensor]]) -> TeacherLogits:
    """Concatenates the stored logits of a batch's examples over their positions."""
    logits = torch.cat([file["logits"].float() for file in files])
    largest = torch.cat([file["largest"] for file in files])
    if "index" not in files[0]:
        return TeacherLogits(logits, largest, torch.full_like(largest, float("-inf")), None)
    rest = torch.cat([file["rest"] for file in files])
    return TeacherLogits(logits, largest, rest, torch.cat([file["index"].long() for file in files]))


class _SoftCrossEntropy(torch.autograd.Function):
    """Cross-entropy with the teacher's probabilities, at each of N positions.

    p are the teacher's probabilities, q the student's. The gradient by the student's logits is
    q − p; the mass p_rest of the tokens that were not kept is distributed among them in proportion
    to q. Written by hand because autograd makes about twenty passes over the vocabulary.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, p: Tensor, p_rest: Tensor, index: Tensor) -> Tensor:
        """Computes (N,) from student (N, V), p and index (N, k), and p_rest (N,)."""
        largest = student.amax(1, keepdim=True)
        terms = (student - largest).exp_()  # (N, V)
        total = terms.sum(1, keepdim=True)  # (N, 1)
        q_kept = terms.gather(1, index) / total  # (N, k)
        rest = terms.scatter_(1, index, 0.0).sum(1, keepdim=True)  # (N, 1)
        rest.clamp_(min=torch.finfo(rest.dtype).tiny)  # its logarithm is taken
        ctx.save_for_backward(terms, 1 / total - p_rest[:, None] / rest, q_kept - p, index)
        kept = (p * student.gather(1, index)).sum(1)  # (N,)
        return (total.log() + largest - p_rest[:, None] * (rest.log() + largest))[:, 0] - kept

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Computes the gradient by `student`, (N, V), from that of the result, (N,)."""
        terms, scale, kept_gradient, index = ctx.saved_tensors
        student_gradient = terms * (scale * gradient[:, None])
        student_gradient.scatter_(1, index, kept_gradient * gradient[:, None])
        return student_gradient, None, None, None


def soft_cross_entropy(student: Tensor, teacher: TeacherLogits) -> Tensor:
    """Returns −Σ_v p_teacher log p_student, the mean over positions.

    All tokens whose teacher logits were not kept count as one token.

    Args:
        student: logits (N, V).
        teacher: the teacher's logits at the same positions.
    """
    teacher = teacher.to(student.device)
    if teacher.index is None:
        return F.cross_entropy(student.float(), teacher.logits.softmax(1))
    total = torch.logsumexp(torch.cat([teacher.logits, teacher.rest[:, None]], 1), 1)  # (N,)
    p = (teacher.logits - total[:, None]).exp()  # (N, k)
    p_rest = (teacher.rest - total).exp()  # (N,)
    per_position: Tensor = _SoftCrossEntropy.apply(student.float(), p, p_rest, teacher.index)
    return per_position.mean()


def reverse_divergence(student: Tensor, teacher: TeacherLogits) -> Tensor:
    """Returns KL(student ‖ teacher), the mean over positions.

    All tokens whose teacher logits were not kept count as one token.

    Args:
        student: logits (N, V).
        teacher: the teacher's logits at the same positions.
    """
    teacher = teacher.to(student.device)
    log_q = student.float().log_softmax(1)  # (N, V)
    if teacher.index is None:
        log_p = teacher.logits.log_softmax(1)
    else:
        log_p = torch.cat([teacher.logits, teacher.rest[:, None]], 1).log_softmax(1)  # (N, k + 1)
        rest = log_q.scatter(1, teacher.index, float("-inf")).logsumexp(1)  # (N,)
        log_q = torch.cat([log_q.gather(1, teacher.index), rest[:, None]], 1)  # (N, k + 1)
    return (log_q.exp() * (log_q - log_p)).sum(1).mean()


def squared_error(student: Tensor, teacher: TeacherLogits) -> Tensor:
    """Returns the mean squared difference of the kept logits, as in DER++.

    Args:
        student: logits (N, V).
        teacher: the teacher's logits at the same positions.
    """
    teacher = teacher.to(student.device)
    target = teacher.logits + teacher.largest[:, None]  # (N, k), or (N, V)
    student = student if teacher.index is None else student.gather(1, teacher.index)
    return F.mse_loss(student.float(), target)


COPIES = 6
"""Copies of a batch's teacher outputs in memory: in float32, for the student, and intermediate."""


def bytes_of_logits(
    backbone: Backbone,
    examples: Sequence[Features],
    config: TeacherConfig,
    positions: Positions = "answer",
) -> list[int]:
    """Returns the bytes that each example's stored logits take on disk."""
    text = backbone.model.config.get_text_config(decoder=True)  # Gemma 3's is within another
    per_position = bytes_per_position(text.vocab_size, config)
    if positions == "all" and not backbone.is_encoder_decoder:
        return [per_position * (len(example["input_ids"]) - 1) for example in examples]
    return [per_position * sum(i != IGNORED for i in example["labels"]) for example in examples]


def bytes_per_position(vocabulary: int, config: TeacherConfig) -> int:
    """Returns the bytes that the stored logits at one position take on disk."""
    value = DTYPES[config.dtype].itemsize
    if config.top_k is None or config.top_k >= vocabulary:
        return vocabulary * value + 4
    return config.top_k * (value + 4) + 8


class TaughtConfig(ReplayConfig):
    """Options of methods that also keep teacher outputs on the examples in memory."""

    teacher: TeacherConfig = Field(default_factory=TeacherConfig)


class TaughtMethod(MemoryMethod):
    """Base class of methods that keep teacher outputs on the examples in memory.

    The teacher of an example is the model right after the example's task was learned.

    Attributes:
        teacher: how teacher outputs are stored.
        teacher_files: the file of each example in memory, in the order of `memory`.
    """

    Config: ClassVar[type[MethodConfig]] = TaughtConfig
    traits: ClassVar[Traits] = replace(
        MemoryMethod.traits,
        lowers_disk="lower method.replay.share, or method.teacher.top_k",
        lowers_ram=f"{FEWER_TRAINABLE}, lower method.teacher.top_k, or "
        "training.per_device_train_batch_size if above 1",
    )

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__(backbone, config)
        self.teacher: TeacherConfig = config.teacher
        self.teacher_files: list[Path] = []

    def finish(self, task: Task, context: TaskContext) -> None:
        """Keeps examples and writes the model's outputs on them."""
        old = len(self.memory)
        super().finish(task, context)
        self.write_teacher_outputs(self.memory[old:], context)
        self._add_teacher_files(context.folder)

    def write_teacher_outputs(self, examples: Sequence[Features], context: TaskContext) -> None:
        """Writes one file for each of a task's kept examples."""
        write_logits(self, examples, context.folder / TEACHER, self.teacher)

    def read_teacher_outputs(self, batch: Batch) -> list[dict[str, Tensor]]:
        """Reads the files of a replay batch's examples, in the order of the batch."""
        numbers = batch["example_id"][:, 0].tolist()
        return [read_tensors(self.teacher_files[number]) for number in numbers]

    def load(self, context: TaskContext) -> None:
        """Restores the task's weights, kept examples and teacher outputs."""
        super().load(context)
        self._add_teacher_files(context.folder)

    def _add_teacher_files(self, folder: Path) -> None:
        count = len(self.memory) - len(self.teacher_files)
        self.teacher_files += [file_of(folder / TEACHER, number) for number in range(count)]

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the kept examples' logits, and in memory those of a batch of the longest ones."""
        logits = bytes_of_logits(self.backbone, self.encoded(task), self.teacher)  # per example
        teacher = Footprint(
            kept=int(self.kept(task) * fmean(logits)), ram=COPIES * batch_size * max(logits)
        )
        return super().footprint(task, batch_size) + teacher
