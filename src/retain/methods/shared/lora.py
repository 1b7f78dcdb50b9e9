"""Options of methods with LoRA blocks, and the base class of those with one block per task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.layers.lora_pool import LoraPool
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
    """Rank, scale α, target modules and dropout of the LoRA blocks.

    `target_modules: null` takes peft's default for the backbone. `dropout` applies to the input of
    the trainable block, in training only.
    """

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    target_modules: list[str] | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class BlockPerTask(Method):
    """Base class of methods that train a new LoRA block per task. Subclasses define `route`."""

    Config: ClassVar[type[MethodConfig]] = LoraMethodConfig
    traits: ClassVar[Traits] = Traits(
        idea="", stores="one LoRA", lowers_disk="lower method.rank", lowers_ram="lower method.rank"
    )
    units: ClassVar[Mapping[str, Unit]] = {}
    """The `Phase.units` of the method's loss."""

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
        """Yields one phase that trains a new block."""
        self.pool.grow(task.name, context.seed)
        examples = self.encoded(task)
        groups = [ParamGroup("block", self.pool.parameters())]
        yield Phase("learn", examples, groups, self.loss, units=self.units)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy, with the batch routed to the newest task."""
        self.route(batch, self.pool.blocks[-1])
        return {"task": self.backbone.answer_loss(batch)}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the task's block to the estimate."""
        size = self.pool.block_size()
        return super().footprint(task, batch_size) + trainable(size, size)

    @property
    def exported_pool(self) -> LoraPool:
        """The pool of all blocks."""
        return self.pool

    def save(self, context: TaskContext) -> None:
        """Writes the newest block in peft's layout."""
        self.pool.save_block(context.folder, self.backbone.name)

    def load(self, context: TaskContext) -> None:
        """Loads the task's block into the pool."""
        self.pool.load_block(context.folder, context.name)
