"""EWC: elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796), in its online form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.methods.base import Footprint, Phase, TaskContext
from retain.methods.shared.sequential import Sequential, SequentialConfig
from retain.methods.shared.weights import MODEL
from retain.system.files import read_weights, write_tensors
from retain.tasks import Task
from retain.training.phase import Unit

FISHER = "fisher.safetensors"
"""File of the Fisher information in the newest task's folder."""


class EwcConfig(SequentialConfig):
    """Weight λ of the penalty, and the number of examples for a task's Fisher information."""

    weight: NonNegativeFloat = 400.0
    fisher_examples: PositiveInt = 64


class Ewc(Sequential):
    """Cross-entropy + λ/2 Σ_k F_k (θ_k − θ*_k)².

    θ_k are the trainable weights and θ*_k their values after the latest task. F_k is the mean
    squared gradient of an example's loss, summed over tasks (online EWC, Schwarz et al., arXiv
    1805.06370, with γ = 1). So what is stored does not grow with the number of tasks.
    """

    Config = EwcConfig
    traits = replace(
        Sequential.traits,
        idea="weights that mattered to older tasks are held in place by a quadratic penalty",
        stores="nothing; the newest weights of the backbone and one importance for each",
        latest_only=(MODEL, FISHER),
    )
    units: ClassVar[Mapping[str, Unit]] = {"penalty": "step"}

    def __init__(self, backbone: Backbone, config: EwcConfig) -> None:
        super().__init__(backbone, config)
        self.options = config
        self._fisher: dict[str, Tensor] = {}  # F by parameter name
        self._anchor: dict[str, Tensor] = {}  # θ* by parameter name, while a task is trained

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase, with the current weights as the anchor θ*."""
        for phase in super().phases(task, context):
            if self._fisher:
                named = self.weights.named_parameters()
                self._anchor = {name: p.detach().clone() for name, p in named.items()}
            yield phase
        self._anchor = {}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, and the penalty on moving away from the anchor."""
        parts = super().loss(batch)
        if self._anchor:
            named = self.weights.named_parameters()
            terms = [
                (self._fisher[name] * (named[name] - anchor).square()).sum()
                for name, anchor in self._anchor.items()
            ]
            parts["penalty"] = self.options.weight / 2 * torch.stack(terms).sum()
        return parts

    def finish(self, task: Task, context: TaskContext) -> None:
        """Adds the task's Fisher information to that of older tasks."""
        named = self.weights.named_parameters()
        fisher = self._fisher or {
            name: torch.zeros_like(p, dtype=torch.float32) for name, p in named.items()
        }
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
        self._fisher = fisher

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
        """Adds Fisher information and anchor to the estimate.

        On disk the old file stays until the new one is written.
        """
        size = self.weights.size()
        return super().footprint(task, batch_size) + Footprint(passing=2 * size, ram=2 * size)
