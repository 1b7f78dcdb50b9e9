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


class EwcConfig(SequentialConfig):
    """λ of the penalty, and how many of a task's examples its Fisher information is taken over."""

    weight: NonNegativeFloat = 400.0
    fisher_examples: PositiveInt = 64


class Ewc(Sequential):
    """Cross-entropy + λ/2 Σ_k F_k (θ_k − θ*_k)².

    F_k sums over tasks the mean squared gradient of an example's loss, θ* are the weights after the
    latest task (Schwarz et al., arXiv 1805.06370, with γ = 1): what is stored does not grow.
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
        self._fisher: dict[str, Tensor] = {}
        self._anchor: dict[str, Tensor] = {}

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase; the weights as they are now are the anchor."""
        for phase in super().phases(task, context):
            if self._fisher:
                named = self.weights.named_parameters()
                self._anchor = {name: p.detach().clone() for name, p in named.items()}
            yield phase
        self._anchor = {}

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task, and the penalty on leaving the anchor."""
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
        """Adds the task's Fisher information to that of the older ones."""
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
        """Writes the weights and their importance."""
        write_tensors(context.folder / FISHER, self._fisher)
        super().save(context)

    def load(self, context: TaskContext) -> None:
        """Takes over a later task's weights and importance; an older one's are gone."""
        super().load(context)
        path = context.folder / FISHER
        if path.exists():
            device = self.backbone.device
            fisher = read_weights(path, self.weights.shapes())
            self._fisher = {name: tensor.to(device) for name, tensor in fisher.items()}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Importance on disk, the old until the new is there; importance and anchor in memory."""
        size = self.weights.size()
        return super().footprint(task, batch_size) + Footprint(passing=2 * size, ram=2 * size)
