"""Teacher signals: what a model said about an example, kept on disk and compared with later.

One safetensors file a row, written as it is computed and read when its row comes up, so that the
signals of all rows are never in memory together.
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
from retain.backbone.backbone import IGNORED
from retain.methods.base import Footprint, MethodConfig, Options, TaskContext, Traits
from retain.methods.shared.memory import MemoryMethod, ReplayConfig
from retain.methods.shared.sequential import Sequential
from retain.system.files import read_tensors, write_tensors
from retain.tasks import Task

TEACHER = "teacher"
"""Folder of the teacher's outputs on a task's kept examples."""
DTYPES = {"float16": torch.float16, "float32": torch.float32}
BATCH = 8


class TeacherConfig(Options):
    """How signals are kept.

    Of the logits the `top_k` largest with the mass of the rest, or, with null, all of them.
    """

    top_k: PositiveInt | None = 64
    dtype: Literal["float16", "float32"] = "float16"


@dataclass(frozen=True)
class TeacherLogits:
    """Logits at N labelled positions.

    Attributes:
        logits: the k largest, less the largest, (N, k), float32; or all V in their own order.
        largest: (N,), what was taken off.
        rest: log of the sum of exp of the others, less the largest, (N,); −∞ where there are none.
        index: their places in the vocabulary (N, k); None when all are kept.
    """

    logits: Tensor
    largest: Tensor
    rest: Tensor
    index: Tensor | None

    def to(self, device: torch.device) -> TeacherLogits:
        """The same on another device."""
        return TeacherLogits(
            self.logits.to(device),
            self.largest.to(device),
            self.rest.to(device),
            None if self.index is None else self.index.to(device),
        )


def compressed(logits: Tensor, config: TeacherConfig) -> dict[str, Tensor]:
    """What is written of logits (N, V). Taking the largest off first costs least in float16."""
    logits = logits.float()
    largest = logits.amax(1)
    centred = logits - largest[:, None]
    dtype = DTYPES[config.dtype]
    if config.top_k is None or config.top_k >= logits.shape[1]:
        return {"logits": centred.to(dtype), "largest": largest}
    top, index = centred.topk(config.top_k, dim=1)
    others = centred.scatter(1, index, float("-inf")).logsumexp(1)
    return {
        "logits": top.to(dtype),
        "largest": largest,
        "rest": others,
        "index": index.to(torch.int32),
    }


def file_of(folder: Path, number: int) -> Path:
    """The signals of a task's row `number`."""
    return folder / f"{number:04d}.safetensors"


def write_logits(
    method: Sequential,
    rows: Sequence[Features],
    folder: Path,
    config: TeacherConfig,
    temperature: float = 1.0,
) -> None:
    """Writes the method's logits where each row's answer is predicted, over `temperature`."""
    for start in range(0, len(rows), BATCH):
        batch = method.backbone.collate(rows[start : start + BATCH])
        method.route(batch)
        with torch.no_grad():
            every, targets = method.backbone.answer_logits(batch)
        for number, (logits, labels) in enumerate(zip(every, targets, strict=True), start):
            found = logits[labels != IGNORED] / temperature
            write_tensors(file_of(folder, number), compressed(found, config))


def stacked(files: Sequence[Mapping[str, Tensor]]) -> TeacherLogits:
    """The kept logits of a batch's rows, one after another."""
    logits = torch.cat([file["logits"].float() for file in files])
    largest = torch.cat([file["largest"] for file in files])
    if "index" not in files[0]:
        return TeacherLogits(logits, largest, torch.full_like(largest, float("-inf")), None)
    rest = torch.cat([file["rest"] for file in files])
    return TeacherLogits(logits, largest, rest, torch.cat([file["index"].long() for file in files]))


class _SoftCrossEntropy(torch.autograd.Function):
    """At each position, in few passes over the vocabulary: by itself autograd makes twenty.

    With q the student's probabilities the gradient is q − p, p of what was not kept being shared
    out as q shares it.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, p: Tensor, p_rest: Tensor, index: Tensor) -> Tensor:
        """student (N, V), p and index (N, k), p_rest (N,) → (N,)."""
        largest = student.amax(1, keepdim=True)
        terms = (student - largest).exp_()  # (N, V)
        whole = terms.sum(1, keepdim=True)
        kept = terms.gather(1, index) / whole  # q of what was kept, (N, k)
        rest = terms.scatter_(1, index, 0.0).sum(1, keepdim=True)
        rest.clamp_(min=torch.finfo(rest.dtype).tiny)  # its logarithm is taken
        ctx.save_for_backward(terms, 1 / whole - p_rest[:, None] / rest, kept - p, index)
        known = (p * student.gather(1, index)).sum(1)
        return (whole.log() + largest - p_rest[:, None] * (rest.log() + largest))[:, 0] - known

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        terms, scale, of_kept, index = ctx.saved_tensors
        found = terms * (scale * gradient[:, None])
        return found.scatter_(1, index, of_kept * gradient[:, None]), None, None, None


def soft_cross_entropy(student: Tensor, teacher: TeacherLogits) -> Tensor:
    """−Σ_v p_teacher log p_student, mean over positions; what was not kept counts as one word.

    Args:
        student: logits (N, V).
        teacher: of the same positions.
    """
    teacher = teacher.to(student.device)
    if teacher.index is None:
        return F.cross_entropy(student.float(), teacher.logits.softmax(1))
    whole = torch.logsumexp(torch.cat([teacher.logits, teacher.rest[:, None]], 1), 1)
    p = (teacher.logits - whole[:, None]).exp()
    p_rest = (teacher.rest - whole).exp()
    each: Tensor = _SoftCrossEntropy.apply(student.float(), p, p_rest, teacher.index)
    return each.mean()


def squared_error(student: Tensor, teacher: TeacherLogits) -> Tensor:
    """Mean squared difference of the kept logits (DER++; the rest's are not known)."""
    teacher = teacher.to(student.device)
    target = teacher.logits + teacher.largest[:, None]
    same = student if teacher.index is None else student.gather(1, teacher.index)
    return F.mse_loss(same.float(), target)


COPIES = 6
"""What a loss makes of the signals that it reads: in float32, beside the student's, and between."""


def bytes_of_logits(
    backbone: Backbone, rows: Sequence[Features], config: TeacherConfig
) -> list[int]:
    """What each row's logits take on disk."""
    each = bytes_per_position(backbone.model.config.vocab_size, config)
    return [each * sum(label != IGNORED for label in row["labels"]) for row in rows]


def bytes_per_position(vocabulary: int, config: TeacherConfig) -> int:
    """What the logits at one position take on disk."""
    value = DTYPES[config.dtype].itemsize
    if config.top_k is None or config.top_k >= vocabulary:
        return vocabulary * value + 4
    return config.top_k * (value + 4) + 8


class TaughtConfig(ReplayConfig):
    """Options of the methods that also keep what the model said about its kept examples."""

    teacher: TeacherConfig = Field(default_factory=TeacherConfig)


class TaughtMethod(MemoryMethod):
    """What the methods with teacher signals for their memory share.

    The teacher of an example is the model as it was right after the example's own task.
    """

    Config: ClassVar[type[MethodConfig]] = TaughtConfig
    traits: ClassVar[Traits] = replace(
        MemoryMethod.traits,
        lowers_disk="method.replay.share, or method.teacher.top_k",
        lowers_ram="training.per_device_train_batch_size, or method.teacher.top_k",
    )

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__(backbone, config)
        self.teacher: TeacherConfig = config.teacher
        self.signals: list[Path] = []  # of each row in memory

    def finish(self, task: Task, context: TaskContext) -> None:
        """Keeps examples, and the model's signals on them."""
        old = len(self.memory)
        super().finish(task, context)
        self.write_signals(self.memory[old:], context)
        self._add_signals(context.folder)

    def write_signals(self, rows: Sequence[Features], context: TaskContext) -> None:
        """Writes a file for each of a task's rows."""
        write_logits(self, rows, context.folder / TEACHER, self.teacher)

    def read_signals(self, batch: Batch) -> list[dict[str, Tensor]]:
        """The files of a replay batch's rows."""
        return [read_tensors(self.signals[number]) for number in batch["example_id"][:, 0].tolist()]

    def load(self, context: TaskContext) -> None:
        """Takes over a later task's weights, and adds what was kept of it."""
        super().load(context)
        self._add_signals(context.folder)

    def _add_signals(self, folder: Path) -> None:
        count = len(self.memory) - len(self.signals)
        self.signals += [file_of(folder / TEACHER, number) for number in range(count)]

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The logits of the examples that will be kept, and of a batch of the longest."""
        each = bytes_of_logits(self.backbone, self.encoded(task), self.teacher)
        own = Footprint(
            kept=int(self.kept(task) * fmean(each)), ram=COPIES * batch_size * max(each)
        )
        return super().footprint(task, batch_size) + own
