"""What methods with LoRA blocks share: their options, and learning one block a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.layers.pooled_linear import LoraPool
from retain.methods.base import Footprint, Method, MethodConfig, ParamGroup, Phase, learning
from retain.runs.records import TASK
from retain.system.files import read_json
from retain.tasks import Task
from retain.training.phase import Unit


class LoraMethodConfig(MethodConfig):
    """Size and place of the blocks; `target_modules: null` is peft's default for the backbone."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    target_modules: list[str] | None = None


class BlockPerTask(Method):
    """A fresh block learns each task; `route` says which blocks count."""

    Config: ClassVar[type[MethodConfig]] = LoraMethodConfig
    stores = "one LoRA"
    lowers_disk = lowers_ram = "method.rank"
    over: ClassVar[Mapping[str, Unit]] = {}
    """As `Phase.over`."""

    def __init__(self, backbone: Backbone, config: LoraMethodConfig) -> None:
        self.backbone = backbone
        self.pool = LoraPool(
            backbone.model,
            config.target_modules,
            config.rank,
            config.alpha,
            old_block_gradient=True,
        )

    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """One phase on a fresh block."""
        self.pool.grow(task.name)
        rows = self.encoded(task)
        groups = [ParamGroup("block", self.pool.parameters())]
        yield Phase("learn", rows, groups, self._loss, over=self.over)

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        self.route(batch, self.pool.blocks[-1])
        return {"task": self.backbone.answer_loss(batch)}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The task's block."""
        size = self.pool.block_size()
        return super().footprint(task, batch_size) + learning(size, size)

    def save(self, folder: Path) -> None:
        """Writes the task's block."""
        self.pool.save_block(folder, self.backbone.name)

    def load(self, folder: Path) -> None:
        """Adds the task's block."""
        self.pool.load_block(folder, read_json(folder / TASK)["name"])
