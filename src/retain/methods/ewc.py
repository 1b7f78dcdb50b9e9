"""EWC: elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796), in its online form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.methods.base import Footprint, Phase, Presets, TaskContext, Weighting
from retain.methods.shared.sequential import Sequential, SequentialConfig
from retain.methods.shared.weights import MODEL
from retain.system.files import read_weights, write_tensors
from retain.tasks import Task
from retain.training.phase import Unit

FISHER = "fisher.safetensors"
"""File of the Fisher information in the newest task's folder."""


WEIGHTS: Mapping[Weighting, float] = {"relative": 10.0, "published": 400.0}
"""λ where none is given. The published one is TRACE's, for its own kind of Fisher information."""


class EwcConfig(SequentialConfig):
    """Weight λ of the penalty, and the number of examples for a task's Fisher information.

    With `weighting: relative` λ is the penalty, in nats, of undoing all that training on one task
    has changed. Otherwise the penalty is in the units of the squared gradients, which depend on the
    backbone and on how far a task has converged.
    """

    presets: ClassVar[Presets] = {"paper": {"weighting": "published"}}

    weighting: Weighting = "published"
    weight: NonNegativeFloat | None = None
    fisher_examples: PositiveInt = 64


class Ewc(Sequential):
    """Cross-entropy + λ/2 Σ_k F_k (θ_k − θ*_k)².

    θ_k are the trainable weights and θ*_k their values after the latest task. F_k is the mean
    squared gradient of an example's loss, summed over tasks (online EWC, Schwarz et al., arXiv
    1805.06370, with γ = 1). So what is stored does not grow with the number of tasks.

    With `weighting: relative` a task's F is first divided by D/2, where D = Σ_k F_k (θ_k − θ°_k)²
    and θ°_k, θ_k are the weights before and after the task. D/2 is what the penalty with λ = 1
    would be for the model before the task.
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
        self._anchor: dict[str, Tensor] = {}  # weights before the task, while it is learned
        self._weight = WEIGHTS[config.weighting] if config.weight is None else config.weight

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """Yields one phase, with the current weights as the anchor θ*."""
        for phase in super().phases(task, context):
            if self._fisher or self.options.weighting == "relative":
                named = self.weights.named_parameters()
                self._anchor = {name: p.detach().clone() for name, p in named.items()}
            yield phase

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, and the penalty on moving away from the anchor."""
        parts = super().loss(batch)
        if self._fisher:
            parts["penalty"] = self._weight / 2 * self._distance(self._fisher)
        return parts

    def _distance(self, fisher: Mapping[str, Tensor]) -> Tensor:
        """Computes Σ_k F_k (θ_k − θ*_k)², the distance of the weights from the anchor."""
        named = self.weights.named_parameters()
        terms = [
            (fisher[name] * (named[name] - anchor).square()).sum()
            for name, anchor in self._anchor.items()
        ]
        return torch.stack(terms).sum()

    def finish(self, task: Task, context: TaskContext) -> None:
        """Adds the task's Fisher information to that of older tasks."""
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
        """Adds Fisher information and anchor to the estimate.

        On disk the old file stays until the new one is written.
        """
        size = self.weights.size()
        return super().footprint(task, batch_size) + Footprint(passing=2 * size, ram=2 * size)
