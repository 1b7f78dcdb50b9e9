"""Sequential training: one set of weights learns every task in turn. The baselines that forget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator
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
from retain.methods.shared.lora import LoraMethodConfig
from retain.methods.shared.weights import MODEL, FullWeights, PoolWeights, Weights
from retain.tasks import Task
from retain.training.phase import Unit

FEWER = "the number of trainable weights, with method.tune: lora"
LORA = tuple(n for n in LoraMethodConfig.model_fields if n not in MethodConfig.model_fields)
"""Options of a LoRA."""


class SequentialConfig(LoraMethodConfig):
    """`tune: full` moves the whole backbone; `lora` one LoRA, which the other options shape."""

    tune: Literal["full", "lora"] = "full"

    @model_validator(mode="after")
    def _shape_of_nothing(self) -> Self:
        default = LoraMethodConfig()
        given = [key for key in LORA if getattr(self, key) != getattr(default, key)]
        if self.tune == "full" and given:
            raise ValueError(f"{given[0]} is of a LoRA; set tune: lora, or leave it out")
        return self


class Sequential(Method):
    """What the methods with one set of weights share: learning, routing, disk."""

    traits: ClassVar[Traits] = Traits(
        idea="",
        stores="nothing; the newest weights of the backbone",
        lowers_disk=FEWER,
        lowers_ram=FEWER,
        fixed_mixture=True,
        latest_only=(MODEL,),
    )
    units: ClassVar[Mapping[str, Unit]] = {}
    """As `Phase.units`."""

    def __init__(self, backbone: Backbone, config: Any) -> None:
        self.backbone = backbone
        self.weights = self.make_weights(config)

    def make_weights(self, config: Any) -> Weights:
        """What learns, as the options say."""
        if isinstance(config, SequentialConfig) and config.tune == "full":
            return FullWeights(self.backbone)
        pool = LoraPool(
            self.backbone.model,
            config.target_modules,
            config.rank,
            config.alpha,
            dropout=config.dropout,
        )
        return PoolWeights(self.backbone, pool)

    def phases(self, task: Task, context: TaskContext) -> Iterator[Phase]:
        """One phase on the task's own examples."""
        self.weights.begin(context.seed)
        weights = ParamGroup("weights", list(self.weights.named_parameters().values()))
        yield Phase("learn", self.encoded(task), [weights], self.loss, units=self.units)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy on the task."""
        self.route(batch)
        return {"task": self.backbone.answer_loss(batch)}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The weights that learn: every task's folder keeps a block, and the newest a model.

        The older model lies there until the newer one does.
        """
        size = self.weights.size()
        whole = isinstance(self.weights, FullWeights)
        own = trainable(size // 4, 0 if whole else size // 4)
        return super().footprint(task, batch_size) + own + Footprint(passing=size * whole)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """There is nothing to choose: the weights are always on."""
        self.weights.use(len(batch["input_ids"]))

    @property
    def exported_pool(self) -> LoraPool | None:
        """The one LoRA, where there is one."""
        pool = self.weights.pool if isinstance(self.weights, PoolWeights) else None
        return pool if isinstance(pool, LoraPool) else None

    def save(self, context: TaskContext) -> None:
        """Writes the weights as they are after this task."""
        self.weights.save(context.folder)

    def load(self, context: TaskContext) -> None:
        """Takes over the weights of a later task, where they are still kept."""
        if self.weights.saved(context.folder):
            self.weights.load(context.folder)
