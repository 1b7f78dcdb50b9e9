"""Gradient projection: a LoRA whose steps stay orthogonal to the mean gradients of older tasks.

A method outside of the package that acts around the optimizer's step, for test_plugins.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retain.backbone import Backbone
from retain.methods import Phase, TaskContext, register
from retain.methods.shared.lora import LoraMethodConfig
from retain.methods.shared.sequential import Sequential
from retain.system.files import read_weights, write_tensors
from retain.tasks import Task

DIRECTION = "direction.safetensors"


@register("projected")
class Projected(Sequential):
    """Steps orthogonal to each older task's mean gradient; weights kept within a ball."""

    Config = LoraMethodConfig
    traits = replace(
        Sequential.traits,
        idea="one LoRA, learned in directions that older tasks did not take",
        stores="the LoRA as it was after the task, and its mean gradient",
        latest_only=(),
    )

    def __init__(self, backbone: Backbone, config: Any) -> None:
        super().__init__(backbone, config)
        self.directions: list[dict[str, Tensor]] = []  # of each older task, by parameter
        self.state: dict[str, Tensor] = {}  # the running sum of gradients, and their count

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """The one phase, with hooks around its steps."""
        for phase in super().phases(task, context):
            self.state = {}
            hooks = {"before_step": self._project, "after_step": self._shrink}
            yield replace(phase, **hooks, state=self.state)

    def _project(self) -> None:
        for name, parameter in self.weights.named_parameters().items():
            gradient = parameter.grad
            assert gradient is not None
            total = self.state.setdefault(name, torch.zeros_like(gradient))
            total += gradient
            for direction in self.directions:
                unit = direction[name].to(gradient)
                gradient -= (gradient * unit).sum() * unit
        self.state["steps"] = self.state.get("steps", torch.zeros(1)) + 1

    def _shrink(self) -> None:
        with torch.no_grad():
            for parameter in self.weights.named_parameters().values():
                parameter.clamp_(-1, 1)

    def save(self, context: TaskContext) -> None:
        """Writes the LoRA and the direction, which later tasks avoid."""
        steps = self.state["steps"]
        means = {name: t / steps.to(t) for name, t in self.state.items() if name != "steps"}
        write_tensors(
            context.folder / DIRECTION,
            {name: mean / mean.norm().clamp(min=1e-12) for name, mean in means.items()},
        )
        self._add_direction(context.folder)
        super().save(context)

    def load(self, context: TaskContext) -> None:
        """Takes over a later task's LoRA, and adds its direction."""
        super().load(context)
        self._add_direction(context.folder)

    def _add_direction(self, folder: Path) -> None:
        self.directions.append(read_weights(folder / DIRECTION, self.weights.shapes()))
