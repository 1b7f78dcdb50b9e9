"""EWC: elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796), in its online form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import ClassVar, Literal, Self

import torch
from pydantic import NonNegativeFloat, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from retain.backbone import Backbone, Batch
from retain.methods.base import Footprint, Phase, Presets, TaskContext, Weighting
from retain.methods.shared.sequential import Sequential, SequentialConfig
from retain.methods.shared.weights import MODEL
from retain.system import processes
from retain.system.files import read_weights, write_tensors
from retain.tasks import Task
from retain.training.phase import Unit
from retain.training.shard import own, own_part, total

FISHER = "fisher.safetensors"
"""File of the Fisher information in the newest task's folder."""


WEIGHTS: Mapping[Weighting, float] = {"relative": 10.0, "published": 400.0}
"""λ where none is given. The published one is TRACE's, for its own kind of Fisher information."""
TRACE_WEIGHT = 400 / 8**2
"""TRACE's λ for gradients that are not divided by its 8 micro-batches a step, as DeepSpeed does."""


class EwcConfig(SequentialConfig):
    """Weight λ of the penalty, and how a task's Fisher information is measured.

    `fisher: examples` is the mean squared gradient of `fisher_examples` single examples, after the
    task. `batches` adds up the squared gradients of all micro-batches while the task is trained.
    `preset: trace` is the EWC of the benchmark TRACE.

    With `weighting: relative` λ is the penalty, in nats, of undoing all that training on one task
    has changed. Otherwise the penalty is in the units of the squared gradients, which depend on the
    backbone and on how far a task has converged.
    """

    presets: ClassVar[Presets] = {
        "paper": {"weighting": "published", "fisher": "examples"},
        "trace": {"weighting": "published", "weight": TRACE_WEIGHT, "fisher": "batches"},
    }

    weighting: Weighting = "published"
    weight: NonNegativeFloat | None = None
    fisher: Literal["examples", "batches"] = "examples"
    fisher_examples: PositiveInt = 64

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if self.fisher == "batches" and self.weighting == "relative":
            raise ValueError(
                "fisher: batches holds weights while the task's information is still growing, so "
                "it has no weighting: relative; take fisher: examples"
            )
        return self


class Ewc(Sequential):
    """Cross-entropy + λ/2 Σ_k F_k (θ_k − θ*_k)².

    θ_k are the trainable weights and θ*_k their values after the latest task. F_k is the mean
    squared gradient of an example's loss, summed over tasks (online EWC, Schwarz et al., arXiv
    1805.06370, with γ = 1). So what is stored does not grow with the number of tasks.

    With `weighting: relative` a task's F is first divided by D/2, where D = Σ_k F_k (θ_k − θ°_k)²
    and θ°_k, θ_k are the weights before and after the task. D/2 is what the penalty with λ = 1
    would be for the model before the task.

    With `fisher: batches` F_k is that of TRACE (Wang et al., arXiv 2310.06762, model/Regular/EWC.py
    in BeyonderXX/TRACE): the sum over epochs of the mean squared gradient of micro-batches, penalty
    included, which the penalty uses while it grows. See `BatchFisher`.
    """

    Config = EwcConfig
    traits = replace(
        Sequential.traits,
        idea="weights that mattered to older tasks are held in place by a quadratic penalty",
        stores="nothing; the newest weights of the backbone and one importance for each",
        latest_only=(MODEL, FISHER),
    )
    units: ClassVar[Mapping[str, Unit]] = {"penalty": "step"}

    @classmethod
    def shares_out(cls, options: EwcConfig) -> bool:
        """Says so of the penalty, but not of gradients of micro-batches, which no process has."""
        return options.fisher == "examples" or not cls.trains_backbone(options)

    def __init__(self, backbone: Backbone, config: EwcConfig) -> None:
        super().__init__(backbone, config)
        self.options = config
        self._fisher: dict[str, Tensor] = {}  # F by parameter name
        self._anchor: dict[str, Tensor] = {}  # weights before the task, while it is learned
        self._weight = WEIGHTS[config.weighting] if config.weight is None else config.weight
        self._batches: BatchFisher | None = None  # while a task is learned with fisher: batches

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase, with the current weights as the anchor θ*."""
        for phase in super().phases(task, context):
            if self._fisher or self.options.weighting == "relative":
                named = self.weights.named_parameters()
                self._anchor = {name: p.detach().clone() for name, p in named.items()}
            if self.options.fisher == "examples":
                yield phase
                continue
            self._batches = BatchFisher(
                self.weights.named_parameters(), self._fisher, len(phase.data)
            )
            # As a part of the same unit as the cross-entropy, the penalty has the same weight in
            # every micro-batch, so that a gradient can be told from its weight.
            yield replace(phase, state=self._fisher, before_step=self._batches.end_step, units={})
            self._batches.close()
            self._batches = None

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, and the penalty on moving away from the anchor."""
        parts = super().loss(batch)
        if self._fisher and self._anchor:
            parts["penalty"] = self._weight / 2 * self._distance(self._fisher)
        if self._batches is not None and torch.is_grad_enabled():
            self._batches.watch(parts["task"], len(batch["labels"]))
        return parts

    def _distance(self, fisher: Mapping[str, Tensor]) -> Tensor:
        """Computes Σ_k F_k (θ_k − θ*_k)², the distance of the weights from the anchor."""
        named = self.weights.named_parameters()
        terms = []
        for name, anchor in self._anchor.items():
            now = named[name]
            moved = own(now) - own_part(anchor, now)
            terms.append((now, (own_part(fisher[name], now) * moved.square()).sum()))
        return total(terms)

    def finish(self, task: Task, context: TaskContext) -> None:
        """Adds the task's Fisher information to that of older tasks."""
        if self.options.fisher == "batches":  # it is added already
            self._anchor = {}
            return
        fisher = self._information(task)
        if self.options.weighting == "relative":
            with torch.no_grad():
                half = self._distance(fisher) / 2
            scale = 1 / half if half > 0 else 0.0  # there is nothing to undo if nothing changed
            fisher = {name: scale * tensor for name, tensor in fisher.items()}
        for name, older in self._fisher.items():
            fisher[name] += older
        self._fisher, self._anchor = fisher, {}

    def _information(self, task: Task) -> dict[str, Tensor]:
        """Computes the task's Fisher information: mean squared gradients of examples' losses."""
        named = self.weights.named_parameters()
        fisher = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
        examples = task.train[: self.options.fisher_examples]
        parameters = list(named.values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        for example in examples:
            batch = self.backbone.collate([self.backbone.encode(example)])
            self.route(batch)
            with torch.enable_grad():
                loss = self.backbone.answer_loss(batch)
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            for name, gradient in zip(named, gradients, strict=True):
                if gradient is not None:
                    fisher[name] += gradient.float().square() / len(examples)
        for parameter in parameters:
            parameter.requires_grad_(False)
        return fisher

    def save(self, context: TaskContext) -> None:
        """Writes the weights and the Fisher information."""
        write_tensors(context.folder / FISHER, self._fisher)
        super().save(context)

    def load(self, context: TaskContext) -> None:
        """Restores weights and Fisher information, which only the newest full model still has."""
        super().load(context)
        path = context.folder / FISHER
        if path.exists():
            device = self.backbone.device
            fisher = read_weights(path, self.weights.shapes())
            self._fisher = {name: tensor.to(device) for name, tensor in fisher.items()}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds Fisher information, anchor, and what the penalty's backward keeps, θ − θ*.

        On disk the old file stays until the new one is written. With `fisher: batches` two
        checkpoints hold the information too, and memory a step's part of it.
        """
        size = self.weights.size()
        copies = Footprint(passing=2 * size, ram=3 * size)
        if self.options.fisher == "batches":
            copies += Footprint(passing=2 * size, ram=size)
        return super().footprint(task, batch_size) + copies


class BatchFisher:
    """Adds rows/N · g² of every micro-batch to the Fisher information, once per optimizer step.

    g is the gradient of a micro-batch's whole loss, without what Trainer multiplies it by for
    accumulation, and before clipping. N is the number of the task's examples. Over processes it is
    a sum, so the result does not depend on how many of them, or of micro-batches, make a step; it
    does depend on the rows in a micro-batch. TRACE has the same mean over the micro-batches of an
    epoch, but squares a gradient that is divided by the number of micro-batches in a step, adds at
    every micro-batch, and keeps a sum of its own, in the weights' precision, in every process.

    Args:
        named: the trainable parameters by name.
        fisher: the information by name, which grows; those that are missing start at 0.
        examples: N.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], fisher: dict[str, Tensor], examples: int
    ) -> None:
        self._named, self._fisher, self._examples = named, fisher, examples
        self._step = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()}
        for name, zeros in self._step.items():
            fisher.setdefault(name, zeros.clone())
        self._handles: list[RemovableHandle] = []
        self._rows = 0  # of the micro-batch
        self._weight = torch.ones(())  # of the micro-batch's loss in what is differentiated

    def watch(self, loss: Tensor, rows: int) -> None:
        """Collects the gradients of the coming backward pass.

        Args:
            loss: a part of the micro-batch's loss, by which its weight is seen.
            rows: the number of examples in the micro-batch.
        """
        if not self._handles:
            self._handles = [
                parameter.register_hook(partial(self._add, name))
                for name, parameter in self._named.items()
            ]
        self._rows = rows
        loss.register_hook(self._set_weight)

    def _set_weight(self, weight: Tensor) -> None:
        self._weight = weight.detach().float()

    def _add(self, name: str, gradient: Tensor) -> None:
        per_example = gradient.detach().float() / self._weight
        self._step[name].addcmul_(per_example, per_example, value=self._rows / self._examples)

    def end_step(self) -> None:
        """Adds the squares of a step's micro-batches, in all processes, to the information."""
        processes.add_up(self._step.values())
        for name, squares in self._step.items():
            self._fisher[name] += squares
            squares.zero_()

    def close(self) -> None:
        """Stops watching the parameters."""
        for handle in self._handles:
            handle.remove()
