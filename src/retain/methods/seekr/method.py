"""SEEKR: replay with distillation of the logits and of the most important attention heads.

For each task, first the attention on the examples to be kept is written to disk. Then the task is
trained, with replay batches in between. Then the heads are rated by how much the loss depends on
them and how far their attention moved. The model's logits and the chosen heads' attention are kept
with the examples, as teacher outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from retain.backbone import Backbone, Batch, Features
from retain.backbone.losses import IGNORED
from retain.errors import RetainError
from retain.layers.attention_capture import AttentionCapture, AttentionModule, Side, Wanted
from retain.methods.base import Footprint, Phase, TaskContext
from retain.methods.seekr.config import ATTENTION_WEIGHTS, SeekrConfig, budget
from retain.methods.seekr.diagnostics import HEADS, seekr_diagnostics
from retain.methods.seekr.distillation import (
    Sample,
    attention_loss,
    divergence,
    sample_of,
    wanted,
)
from retain.methods.seekr.heads import (
    forgettability,
    importance,
    normalised,
    real_tokens,
    select,
    sensitivity,
)
from retain.methods.shared.sequential import FEWER_TRAINABLE
from retain.methods.shared.teacher import (
    COPIES,
    DTYPES,
    TEACHER,
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

SCALE = "attention.json"
"""File of the kept examples' attention term for the model before the task."""
BEFORE = "before"
"""Folder of the attention before a task is trained; deleted when the task is learned."""


class Seekr(TaughtMethod):
    """λ1 L_replay + (1 − λ1) L_logits + λ2 L_attention on a replay batch.

    This is equation 13 of arXiv 2411.06171. L_replay is the cross-entropy on kept examples,
    L_logits the soft cross-entropy with the teacher's logits, L_attention the KL divergence to the
    teacher's attention weights in the chosen heads. The teacher of an example is the model right
    after the example's task.
    """

    Config = SeekrConfig
    traits = replace(
        TaughtMethod.traits,
        idea="replay, with distillation of the attention heads that matter and forget most",
        stores="a share of its examples with logits and attention; the newest weights",
        lowers_disk="lower method.replay.share, method.budget.heads or method.budget.queries",
        lowers_ram=f"{FEWER_TRAINABLE}, lower method.budget.heads or method.budget.queries, or "
        "training.per_device_train_batch_size if above 1",
    )
    only_calls = True
    units: ClassVar[Mapping[str, Unit]] = {"attention": "rows"}

    def __init__(self, backbone: Backbone, config: SeekrConfig) -> None:
        super().__init__(backbone, config)
        self.options = config
        if backbone.sees_padding:
            raise RetainError(
                f"method: {type(backbone.model).__name__} does not mask padding, so the attention "
                "that SEEKR reads would depend on the batch; take another method, such as replay"
            )
        self.capture = AttentionCapture(backbone.model)
        self.modules = self.capture.modules()
        if not self.modules:
            raise RetainError(
                f"method: {type(backbone.model).__name__} has no attention heads that SEEKR could "
                "rate; take another method, such as replay"
            )
        self.sensitivities: list[Tensor] = []  # per task, (layers, heads)
        self.forgettabilities: list[Tensor] = []  # likewise
        self.scales: list[float] = []  # of the attention term, for each example in memory
        weight = config.attention_weight
        self._attention_weight = ATTENTION_WEIGHTS[config.weighting] if weight is None else weight

    # -- learning

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Writes the attention before the task, then yields one phase."""
        self.capture.on()
        examples = [self.backbone.encode(example) for example in self.choose(task, context)]
        self.write_before(examples, context)
        yield from super().phases(task, context)
        self.capture.off()

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy; on a replay batch the three parts of equation 13."""
        self.capture.wanted = {}
        if "is_replay" not in batch:
            return super().loss(batch)
        self.route(batch)
        files = self.read_teacher_outputs(batch)
        samples = [sample_of(file, self.modules) for file in files]
        losses = replay_losses(
            self.backbone,
            self.capture,
            self.modules,
            batch,
            stacked(files),
            samples,
            [self.scales[number] for number in batch["example_id"][:, 0].tolist()],
            self.options,
        )
        return {**losses, "attention": self._attention_weight * losses["attention"]}

    def write_before(self, examples: Sequence[Features], context: TaskContext) -> None:
        """Writes the attention of all heads at the examples' queries, one file per layer."""
        dtype = DTYPES[self.teacher.dtype]
        for number, example in enumerate(examples):

            def write(name: str, weights: Tensor, number: int = number) -> None:
                path = self._before(context, number, name)
                write_tensors(path, {"weights": weights.to(dtype)})

            self._capture_all(example, context.generator(number), write)

    def _before(self, context: TaskContext, number: int, name: str) -> Path:
        folder = context.folder / BEFORE
        return folder / f"{number:04d}-{list(self.modules).index(name):03d}.safetensors"

    def _capture_all(
        self, example: Features, generator: torch.Generator, consume: Callable[[str, Tensor], None]
    ) -> None:
        """Runs one forward and passes each layer's attention at the queries to `consume`."""
        batch = self.backbone.collate([example])
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
        """Draws the queries of a batch of one example, (Q,) for each side."""
        positions: dict[Side, Tensor] = {}
        for side in dict.fromkeys(module.queries for module in self.modules.values()):
            length = int(real_tokens(batch, side).sum())
            count = budget(self.options.budget.queries, length)
            chosen = torch.randperm(length, generator=generator)[:count].sort().values
            positions[side] = chosen.to(self.backbone.device)
        return positions

    # -- teacher outputs

    def write_teacher_outputs(self, examples: Sequence[Features], context: TaskContext) -> None:
        """Chooses heads, and writes the logits and the chosen heads' attention."""
        self.capture.on()
        heads = self._choose_heads(examples, context)
        changes = []
        for number, example in enumerate(examples):
            tensors = self._teacher_outputs(example, context.generator(number), heads)
            write_tensors(file_of(context.folder / TEACHER, number), tensors)
            changes.append(self._change(tensors, number, context))
        self.capture.off()
        change = fmean(changes)
        write_json(context.folder / SCALE, {"before": change, "examples": len(examples)})
        self.scales += [self._scale(change)] * len(examples)
        remove_folders(context.folder / BEFORE)

    def _change(self, tensors: Mapping[str, Tensor], number: int, context: TaskContext) -> float:
        """Computes the attention term of an example for the model before its task."""
        per_module = []
        for name, attention in sample_of(tensors, self.modules).items():
            before = read_tensors(self._before(context, number, name))["weights"][0].float()
            after = attention.weights.float().to(before)  # (h, Q, S)
            every_key = torch.tensor(True, device=before.device)
            student = before[attention.heads.to(before.device)]
            per_module.append(float(divergence(after, student, every_key).mean()))
        return fmean(per_module)

    def _scale(self, change: float) -> float:
        """Returns what the attention term is divided by; 1 if nothing changed."""
        return change if self.options.weighting == "relative" and change > 0 else 1.0

    def _choose_heads(
        self, examples: Sequence[Features], context: TaskContext
    ) -> dict[str, Tensor]:
        """Rates the heads and writes `heads.json`; returns the chosen heads' indices by module."""
        self.sensitivities.append(self._sensitivity(examples))
        self.forgettabilities.append(self._forgettability(examples, context))
        scores = self._scores(context)
        layers, heads = self.options.budget.layers, self.options.budget.heads
        if self.options.score == "sensitivity":  # sums to 1 in every layer, so none is better
            layers = 1.0
        chosen = select(scores, budget(layers, len(scores)), budget(heads, scores.numel()))
        ratings = {
            "sensitivity": self.sensitivities[-1],
            "forgettability": self.forgettabilities[-1],
            "score": scores,
            "selected": chosen.int(),
        }
        lists = {key: tensor.tolist() for key, tensor in ratings.items()}
        write_json(context.folder / HEADS, {"modules": list(self.modules), **lists})
        return {
            name: in_module.nonzero()[:, 0]
            for name, in_module in zip(self.modules, chosen, strict=True)
            if in_module.any()
        }

    def _sensitivity(self, examples: Sequence[Features]) -> Tensor:
        """Computes the normalised mean sensitivity over examples, (layers, heads)."""
        per_example = []
        for example in examples:
            batch = self.backbone.collate([example])
            self.route(batch)
            per_example.append(
                sensitivity(self.backbone, self.capture, self.modules, batch, self.options.gradient)
            )
        return normalised(torch.stack(per_example).mean(0)).cpu()

    def _forgettability(self, examples: Sequence[Features], context: TaskContext) -> Tensor:
        """Computes the mean forgettability over examples, (layers, heads)."""
        changes: dict[str, list[Tensor]] = {name: [] for name in self.modules}
        dtype = DTYPES[self.teacher.dtype]
        for number, example in enumerate(examples):

            def compare(name: str, weights: Tensor, number: int = number) -> None:
                before = read_tensors(self._before(context, number, name))["weights"].to(weights)
                after = weights.to(dtype).float()  # rounded like `before`, or heads seem to move
                real = torch.ones(1, weights.shape[3], device=weights.device)
                changes[name].append(forgettability(before, after, real, self.options.change))

            self._capture_all(example, context.generator(number), compare)
        means = [torch.stack(per_example).mean(0) for per_example in changes.values()]  # (H,) each
        return torch.stack(means).cpu()

    def _scores(self, context: TaskContext) -> Tensor:
        """Computes the scores that heads are chosen by, over the tasks so far, (layers, heads)."""
        s, f = self.sensitivities, self.forgettabilities
        if self.options.score == "sensitivity":
            return torch.stack(s).sum(0)
        if self.options.score == "forgettability":
            return torch.stack(f).sum(0)
        if self.options.score == "random":
            return torch.rand(s[0].shape, generator=context.generator())
        return importance(s, f, self.options.accumulate)

    def _teacher_outputs(
        self, example: Features, generator: torch.Generator, heads: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Computes the tensors to store for an example: logits, queries, chosen heads' attention.

        `heads` holds the indices of the chosen heads by module, (h,).
        """
        batch = self.backbone.collate([example])
        positions = self._positions(batch, generator)
        self.capture.clear()
        self.capture.wanted = {
            name: Wanted(indices, positions[self.modules[name].queries][None])
            for name, indices in heads.items()
        }
        self.route(batch)
        with torch.no_grad():
            logits, targets = self.backbone.logits_and_targets(batch)
        compared = _compared(logits, targets, self.options)[targets != IGNORED]  # (N, V)
        tensors = compressed(compared, self.teacher)
        tensors |= {f"positions.{side}": tensor for side, tensor in positions.items()}
        for index, name in enumerate(self.modules):
            if name in heads:
                tensors[f"heads.{index}"] = heads[name]
                weights = self.capture.weights[name][0]  # (h, Q, S)
                tensors[f"attention.{index}"] = weights.to(DTYPES[self.teacher.dtype])
        self.capture.wanted = {}
        self.capture.clear()
        return tensors

    def load(self, context: TaskContext) -> None:
        """Restores the task's weights, memory and ratings of heads."""
        super().load(context)
        stored = read_json(context.folder / HEADS)
        self.sensitivities.append(torch.tensor(stored["sensitivity"]))
        self.forgettabilities.append(torch.tensor(stored["forgettability"]))
        scale = read_json(context.folder / SCALE)
        self.scales += [self._scale(scale["before"])] * scale["examples"]

    @classmethod
    def diagnostics(cls, run: RunDirectory, task: str | None) -> list[Section]:
        """Returns the section on the chosen heads and the size of the memory."""
        return seekr_diagnostics(run)

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the kept attention, and that of all heads while the task is trained."""
        value, count = DTYPES[self.teacher.dtype].itemsize, self.kept(task)
        entries = [self._entries(example) for example in self.encoded(task)]  # of all heads
        total = sum(module.heads for module in self.modules.values())
        share = budget(self.options.budget.heads, total) / total
        attention = Footprint(
            kept=int(count * share * fmean(entries) * value),
            passing=int(count * fmean(entries) * value),
            ram=int(COPIES * batch_size * share * max(entries) * 4),
        )
        return super().footprint(task, batch_size) + attention

    def _entries(self, example: Features) -> int:
        """Counts an example's captured attention weights: heads × queries × keys, all modules."""
        return sum(
            module.heads
            * budget(self.options.budget.queries, len(example[module.queries]))
            * len(example[module.keys])
            for module in self.modules.values()
        )


def replay_losses(
    backbone: Backbone,
    capture: AttentionCapture,
    modules: Mapping[str, AttentionModule],
    batch: Batch,
    teacher: TeacherLogits,
    samples: Sequence[Sample],
    scales: Sequence[float],
    options: SeekrConfig,
) -> dict[str, Tensor]:
    """Computes the three parts of the loss on a replay batch, the first two weighted.

    Args:
        backbone: the student.
        capture: the student's capture, switched on.
        modules: the student's attention modules.
        batch: the replayed examples.
        teacher: the teacher's logits at the labelled positions.
        samples: the teacher's attention, in the heads that each example's task chose.
        scales: what each example's attention term is divided by.
        options: the weight λ1, and where logits are compared.
    """
    capture.clear()
    capture.consume = None
    capture.wanted = wanted(samples, batch, modules)
    logits, targets = backbone.logits_and_targets(batch)
    labelled = targets != IGNORED
    predicting = logits[:, : targets.shape[1]][labelled]  # (N, V)
    at_predicting = options.logit_positions == "predicting"
    compared = predicting if at_predicting else _compared(logits, targets, options)[labelled]
    soft = soft_cross_entropy(compared, teacher)
    attention = attention_loss(capture.weights, samples, batch, modules, capture.wanted, scales)
    capture.clear()
    # Gradient checkpointing computes the weights again in backward; do not keep these.
    capture.consume = lambda name, weights: None
    replay = F.cross_entropy(predicting.float(), targets[labelled])
    return {
        "replay": (1 - options.logit_weight) * replay,
        "logits": options.logit_weight * soft,
        "attention": attention,
    }


def _compared(logits: Tensor, targets: Tensor, options: SeekrConfig) -> Tensor:
    """Selects the logits (B, K, V) at the positions where student and teacher are compared."""
    k = targets.shape[1]
    return logits[:, :k] if options.logit_positions == "predicting" else logits[:, -k:]
