"""What methods with LoRA blocks share: their options, and learning one block a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.layers.pooled_linear import LoraPool
from retain.methods.base import (
    Footprint,
    Method,
    MethodConfig,
    ParamGroup,
    Phase,
    TaskContext,
    Traits,
    trainable,
)
from retain.tasks import Task
from retain.training.phase import Unit


class LoraMethodConfig(MethodConfig):
    """Size and place of the blocks; `target_modules: null` is peft's default for the backbone.

    `dropout` is of the input of the trainable block, in training only.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    target_modules: list[str] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class BlockPerTask(Method):
    """A fresh block learns each task; `route` says which blocks count."""

    Config: ClassVar[type[MethodConfig]] = LoraMethodConfig
    traits: ClassVar[Traits] = Traits(
        idea="", stores="one LoRA", lowers_disk="method.rank", lowers_ram="method.rank"
    )
    units: ClassVar[Mapping[str, Unit]] = {}
    """As `Phase.units`."""

    def __init__(self, backbone: Backbone, config: LoraMethodConfig) -> None:
        self.backbone = backbone
        self.pool = LoraPool(
            backbone.model,
            config.target_modules,
            config.rank,
            config.alpha,
            old_block_gradient=True,
            dropout=config.dropout,
        )

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase on a fresh block."""
        self.pool.grow(task.name, context.seed)
        rows = self.encoded(task)
        groups = [ParamGroup("block", self.pool.parameters())]
        yield Phase("learn", rows, groups, self.loss, units=self.units)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task, with the newest block as `route` weighs it."""
        self.route(batch, self.pool.blocks[-1])
        return {"task": self.backbone.answer_loss(batch)}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The task's block."""
        size = self.pool.block_size()
        return super().footprint(task, batch_size) + trainable(size, size)

    @property
    def exported_pool(self) -> LoraPool:
        """The blocks."""
        return self.pool

    def save(self, context: TaskContext) -> None:
        """Writes the task's block."""
        self.pool.save_block(context.folder, self.backbone.name)

    def load(self, context: TaskContext) -> None:
        """Adds the task's block."""
        self.pool.load_block(context.folder, context.name)
