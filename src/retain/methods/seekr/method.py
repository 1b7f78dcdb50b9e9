"""SEEKR: replay, with distillation of the logits and of the attention heads that matter most.

Per task: the attention on the examples that will be kept is written down, the task is learned with
replayed batches in between, then the heads are rated by how much the loss depends on them and how
far they moved, and the model's logits and chosen attention rows are kept with the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, NonNegativeFloat
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.backbone.backbone import IGNORED
from retain.layers.attention_capture import AttentionCapture, AttentionModule, Side, Wanted
from retain.methods.base import Footprint, Options, Phase, Presets, TaskContext
from retain.methods.seekr.diagnostics import HEADS, seekr_diagnostics
from retain.methods.seekr.distillation import Attention, Sample, attention_loss, wanted
from retain.methods.seekr.heads import (
    Measure,
    forgettability,
    importance,
    normalised,
    real_tokens,
    select,
    sensitivity,
)
from retain.methods.shared.teacher import (
    COPIES,
    DTYPES,
    TEACHER,
    TaughtConfig,
    TaughtMethod,
    TeacherLogits,
    compressed,
    file_of,
    soft_cross_entropy,
    stacked,
)
from retain.runs.directory import RunDirectory
from retain.runs.sections import Section
from retain.system.files import read_json, read_tensors, remove_folders, write_json, write_tensors
from retain.tasks import Task
from retain.training.phase import Unit

BEFORE = "before"
"""Folder of the attention before a task was learned; deleted when it is learned."""


def _count_or_share(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if whole or (isinstance(value, float) and 0 < value <= 1):
        return value
    raise ValueError("Input should be a whole number, 1 or more, or a share over 0, at most 1.0")


Budget = Annotated[int | float, BeforeValidator(_count_or_share)]
"""A count (a whole number) or a share (a fraction, or 1.0 for all)."""


class BudgetConfig(Options):
    """How much attention is distilled: attention modules, heads in all, queries of a sample.

    Each a count, or a share of what the model or the sample has.
    """

    layers: Budget = 0.75
    heads: Budget = 0.125
    queries: Budget = 100


class SeekrConfig(TaughtConfig):
    """SEEKR's options. `preset: paper` is what the published code does.

    `logit_weight` is 1 − λ1 and `attention_weight` λ2. `gradient` and `change` say whether a sample
    counts with its mean square or the root of it; `logit_positions`, whether logits are compared
    where they predict the answer's tokens or where these stand. `score` rates heads; all but
    importance are for ablation, and sensitivity chooses no layers, since it is 1 in each.
    """

    presets: ClassVar[Presets] = {
        "paper": {
            "gradient": "squares",
            "change": "squares",
            "accumulate": "sum_of_products",
            "logit_positions": "standing",
            "teacher": {"top_k": None, "dtype": "float32"},
        },
    }

    budget: BudgetConfig = Field(default_factory=BudgetConfig)
    logit_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    attention_weight: NonNegativeFloat = 1000.0
    score: Literal["importance", "sensitivity", "forgettability", "random"] = "importance"
    gradient: Measure = "norms"
    change: Measure = "norms"
    accumulate: Literal["sum_of_products", "product_of_sums"] = "product_of_sums"
    logit_positions: Literal["predicting", "standing"] = "predicting"


class Seekr(TaughtMethod):
    """λ1 replay + (1 − λ1) logits + λ2 attention on a replay batch (arXiv 2411.06171, eq. 13)."""

    Config = SeekrConfig
    traits = replace(
        TaughtMethod.traits,
        idea="replay, with distillation of the attention heads that matter and forget most",
        stores="a share of its examples with logits and attention; the newest weights",
        lowers_disk="method.replay.share, method.budget.heads or method.budget.queries",
        lowers_ram="training.per_device_train_batch_size, or method.budget",
    )
    units: ClassVar[Mapping[str, Unit]] = {"attention": "rows"}

    def __init__(self, backbone: Backbone, config: SeekrConfig) -> None:
        super().__init__(backbone, config)
        self.options = config
        self.capture = AttentionCapture(backbone.model)
        self.modules = self.capture.modules()
        self.sensitivities: list[Tensor] = []  # of each task, (layers, heads)
        self.forgettabilities: list[Tensor] = []

    # -- learning

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase; before it, the attention that it will move is written down."""
        self.capture.on()
        rows = [self.backbone.encode(example) for example in self.choose(task, context)]
        self.write_before(rows, context)
        yield from super().phases(task, context)
        self.capture.off()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task; on a replay batch the three parts of equation 13."""
        self.capture.wanted = {}
        if "is_replay" not in batch:
            return super().loss(batch)
        self.route(batch)
        files = self.read_teacher_outputs(batch)
        samples = [sample_of(file, self.modules) for file in files]
        return replay_losses(
            self.backbone, self.capture, self.modules, batch, stacked(files), samples, self.options
        )

    def write_before(self, rows: Sequence[Features], context: TaskContext) -> None:
        """Writes the attention of every head at the rows' queries, a layer at a time."""
        dtype = DTYPES[self.teacher.dtype]
        for number, row in enumerate(rows):

            def write(name: str, weights: Tensor, number: int = number) -> None:
                path = self._before(context, number, name)
                write_tensors(path, {"weights": weights.to(dtype)})

            self._look(row, context.generator(number), write)

    def _before(self, context: TaskContext, row: int, name: str) -> Path:
        folder = context.folder / BEFORE
        return folder / f"{row:04d}-{list(self.modules).index(name):03d}.safetensors"

    def _look(
        self, row: Features, generator: torch.Generator, consume: Callable[[str, Tensor], None]
    ) -> None:
        """Runs one forward and hands `consume` each layer's attention at the row's queries."""
        batch = self.backbone.collate([row])
        positions = self._positions(batch, generator)
        self.capture.wanted = {
            name: Wanted(torch.arange(module.heads), positions[module.queries][None])
            for name, module in self.modules.items()
        }
        self.capture.consume = consume
        self.route(batch)
        with torch.no_grad():
            self.backbone.answer_logits(batch)
        self.capture.consume = None
        self.capture.wanted = {}

    def _positions(self, batch: Batch, generator: torch.Generator) -> dict[Side, Tensor]:
        """Draws a row's queries, (Q,) of each side."""
        found: dict[Side, Tensor] = {}
        for side in dict.fromkeys(module.queries for module in self.modules.values()):
            length = int(real_tokens(batch, side).sum())
            count = budget(self.options.budget.queries, length)
            chosen = torch.randperm(length, generator=generator)[:count].sort().values
            found[side] = chosen.to(self.backbone.device)
        return found

    # -- what a task leaves

    def write_teacher_outputs(self, rows: Sequence[Features], context: TaskContext) -> None:
        """Chooses heads, and writes the teacher's logits and their attention."""
        self.capture.on()
        heads = self._choose_heads(rows, context)
        for number, row in enumerate(rows):
            path = file_of(context.folder / TEACHER, number)
            write_tensors(path, self._signals(row, context.generator(number), heads))
        self.capture.off()
        remove_folders(context.folder / BEFORE)

    def _choose_heads(self, rows: Sequence[Features], context: TaskContext) -> dict[str, Tensor]:
        """Rates the heads and writes `heads.json`; the indices of the chosen ones by module."""
        self.sensitivities.append(self._sensitivity(rows))
        self.forgettabilities.append(self._forgettability(rows, context))
        scores = self._scores(context)
        layers, heads = self.options.budget.layers, self.options.budget.heads
        if self.options.score == "sensitivity":  # is 1 in every layer: there is none to prefer
            layers = 1.0
        chosen = select(scores, budget(layers, len(scores)), budget(heads, scores.numel()))
        found = {
            "sensitivity": self.sensitivities[-1],
            "forgettability": self.forgettabilities[-1],
            "score": scores,
            "selected": chosen.int(),
        }
        lists = {key: tensor.tolist() for key, tensor in found.items()}
        write_json(context.folder / HEADS, {"modules": list(self.modules), **lists})
        return {
            name: row.nonzero()[:, 0]
            for name, row in zip(self.modules, chosen, strict=True)
            if row.any()
        }

    def _sensitivity(self, rows: Sequence[Features]) -> Tensor:
        found = []
        for row in rows:
            batch = self.backbone.collate([row])
            self.route(batch)
            found.append(
                sensitivity(self.backbone, self.capture, self.modules, batch, self.options.gradient)
            )
        return normalised(torch.stack(found).mean(0)).cpu()

    def _forgettability(self, rows: Sequence[Features], context: TaskContext) -> Tensor:
        changes: dict[str, list[Tensor]] = {name: [] for name in self.modules}
        dtype = DTYPES[self.teacher.dtype]
        for number, row in enumerate(rows):

            def compare(name: str, weights: Tensor, number: int = number) -> None:
                before = read_tensors(self._before(context, number, name))["weights"].to(weights)
                after = weights.to(dtype).float()  # rounded alike, or peaked heads seem to move
                real = torch.ones(1, weights.shape[3], device=weights.device)
                changes[name].append(forgettability(before, after, real, self.options.change))

            self._look(row, context.generator(number), compare)
        return torch.stack([torch.stack(found).mean(0) for found in changes.values()]).cpu()

    def _scores(self, context: TaskContext) -> Tensor:
        """What heads are chosen by, over the tasks so far, (layers, heads)."""
        s, f = self.sensitivities, self.forgettabilities
        if self.options.score == "sensitivity":
            return torch.stack(s).sum(0)
        if self.options.score == "forgettability":
            return torch.stack(f).sum(0)
        if self.options.score == "random":
            return torch.rand(s[0].shape, generator=context.generator())
        return importance(s, f, self.options.accumulate)

    def _signals(
        self, row: Features, generator: torch.Generator, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """What is written of one row: logits, queries, and of the chosen heads their attention."""
        batch = self.backbone.collate([row])
        positions = self._positions(batch, generator)
        self.capture.clear()
        self.capture.wanted = {
            name: Wanted(indices, positions[self.modules[name].queries][None])
            for name, indices in heads.items()
        }
        self.route(batch)
        with torch.no_grad():
            logits, targets = self.backbone.logits_and_targets(batch)
        compared = _compared(logits, targets, self.options)[targets != IGNORED]
        tensors = compressed(compared, self.teacher)
        tensors |= {f"positions.{side}": tensor for side, tensor in positions.items()}
        for index, name in enumerate(self.modules):
            if name in heads:
                tensors[f"heads.{index}"] = heads[name]
                weights = self.capture.weights[name][0]
                tensors[f"attention.{index}"] = weights.to(DTYPES[self.teacher.dtype])
        self.capture.wanted = {}
        self.capture.clear()
        return tensors

    def load(self, context: TaskContext) -> None:
        """Takes over a later task's weights, and adds its memory and its heads' ratings."""
        super().load(context)
        stored = read_json(context.folder / HEADS)
        self.sensitivities.append(torch.tensor(stored["sensitivity"]))
        self.forgettabilities.append(torch.tensor(stored["forgettability"]))

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """The chosen heads, and the size of the memory."""
        return seekr_diagnostics(run)

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Logits and chosen attention kept; the attention of all heads while a task is learned."""
        value, count = DTYPES[self.teacher.dtype].itemsize, self.kept(task)
        every = [self._entries(row) for row in self.encoded(task)]  # of all heads
        total = sum(module.heads for module in self.modules.values())
        share = budget(self.options.budget.heads, total) / total
        own = Footprint(
            kept=int(count * share * fmean(every) * value),
            passing=int(count * fmean(every) * value),
            ram=int(COPIES * batch_size * share * max(every) * 4),
        )
        return super().footprint(task, batch_size) + own

    def _entries(self, row: Features) -> int:
        """Attention weights that are looked at in a row: heads × queries × keys of all modules."""
        return sum(
            module.heads
            * budget(self.options.budget.queries, len(row[module.queries]))
            * len(row[module.keys])
            for module in self.modules.values()
        )


def budget(value: float, total: int) -> int:
    """A count within `total`: a whole number is one, a fraction is a share of it."""
    return min(total, value if isinstance(value, int) else max(1, round(value * total)))


def replay_losses(
    backbone: Backbone,
    capture: AttentionCapture,
    modules: Mapping[str, AttentionModule],
    batch: Batch,
    teacher: TeacherLogits,
    samples: Sequence[Sample],
    options: SeekrConfig,
) -> dict[str, Tensor]:
    """The three weighted parts of the loss of a replay batch.

    Args:
        backbone: the student.
        capture: switched on.
        modules: the student's attention modules.
        batch: replayed rows.
        teacher: logits at their labelled positions.
        samples: attention of the heads that each row's task chose.
        options: the weights λ1 and λ2, and where logits are compared.
    """
    capture.clear()
    capture.consume = None
    capture.wanted = wanted(samples, batch, modules)
    logits, targets = backbone.logits_and_targets(batch)
    labelled = targets != IGNORED
    predicting = logits[:, : targets.shape[1]][labelled]  # (N, V)
    same = options.logit_positions == "predicting"
    compared = predicting if same else _compared(logits, targets, options)[labelled]
    soft = soft_cross_entropy(compared, teacher)
    attention = attention_loss(capture.weights, samples, batch, modules, capture.wanted)
    capture.clear()
    # Gradient checkpointing computes the weights again during backward: they are not to be kept.
    capture.consume = lambda name, weights: None
    replay = F.cross_entropy(predicting.float(), targets[labelled])
    return {
        "replay": (1 - options.logit_weight) * replay,
        "logits": options.logit_weight * soft,
        "attention": options.attention_weight * attention,
    }


def _compared(logits: Tensor, targets: Tensor, options: SeekrConfig) -> Tensor:
    """Logits (B, K, V) where student and teacher are compared."""
    k = targets.shape[1]
    return logits[:, :k] if options.logit_positions == "predicting" else logits[:, -k:]


def sample_of(file: Mapping[str, Tensor], modules: Mapping[str, AttentionModule]) -> Sample:
    """The attention in a row's file of signals."""
    return {
        name: Attention(
            file[f"heads.{index}"],
            file[f"positions.{module.queries}"],
            file[f"attention.{index}"],
        )
        for index, (name, module) in enumerate(modules.items())
        if f"heads.{index}" in file
    }
