"""Sequential training: one set of weights is trained on every task in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator
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
from retain.methods.shared.lora import LoraMethodConfig
from retain.methods.shared.weights import MODEL, FullWeights, PoolWeights, Weights
from retain.tasks import Task
from retain.training.phase import Unit

FEWER_TRAINABLE = "train fewer weights (method.tune: lora)"
SMALLER_LORA = "lower method.rank"
LORA = tuple(n for n in LoraMethodConfig.model_fields if n not in MethodConfig.model_fields)
"""Names of the options of a LoRA."""


class SequentialConfig(LoraMethodConfig):
    """What is trained: `tune: full` is full fine-tuning, `lora` trains one LoRA.

    The other options are those of the LoRA.
    """

    tune: Literal["full", "lora"] = "full"

    @model_validator(mode="after")
    def _lora_options(self) -> Self:
        default = LoraMethodConfig()
        given = [key for key in LORA if getattr(self, key) != getattr(default, key)]
        if self.tune == "full" and given:
            raise ValueError(f"{given[0]} is an option of LoRA; set tune: lora, or leave it out")
        return self


class Sequential(Method):
    """Base class of methods that train one set of weights on every task in turn.

    With `Config = SequentialConfig` the option `tune` chooses full fine-tuning or one LoRA. With
    another subclass of `LoraMethodConfig` it is one LoRA.

    Attributes:
        weights: what is trained, full weights or one block.
    """

    traits: ClassVar[Traits] = Traits(
        idea="",
        stores="nothing; the newest weights of the backbone",
        lowers_disk=FEWER_TRAINABLE,
        lowers_ram=FEWER_TRAINABLE,
        fixed_mixture=True,
        latest_only=(MODEL,),
    )
    units: ClassVar[Mapping[str, Unit]] = {}
    """The `Phase.units` of the method's loss."""
    only_calls: ClassVar[bool] = False
    """Whether its loss reads the weights by calling the model only; see `Method.shares_out`."""

    def __init__(self, backbone: Backbone, config: Any) -> None:
        self.backbone = backbone
        self.weights = self.make_weights(config)

    @classmethod
    def trains_backbone(cls, options: Any) -> bool:
        """Says so of `tune: full`."""
        return isinstance(options, SequentialConfig) and options.tune == "full"

    @classmethod
    def shares_out(cls, options: Any) -> bool:
        """Says so of blocks, and of methods that say so by `only_calls`."""
        return cls.only_calls or not cls.trains_backbone(options)

    def lowers(self, what: Literal["disk", "ram"]) -> str:
        """Advises to train fewer weights: with a LoRA or, where there is one, a smaller one."""
        advice = super().lowers(what)
        if isinstance(self.weights, FullWeights):
            return advice
        return advice.replace(FEWER_TRAINABLE, SMALLER_LORA)

    def make_weights(self, config: Any) -> Weights:
        """Returns the trainable weights that the options ask for."""
        if self.trains_backbone(config):
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
        """Yields one phase on the task's examples."""
        self.weights.begin(context.seed)
        weights = ParamGroup("weights", list(self.weights.named_parameters().values()))
        yield Phase("learn", self.encoded(task), [weights], self.loss, units=self.units)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Returns the cross-entropy on the batch."""
        self.route(batch)
        return {"task": self.backbone.answer_loss(batch)}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """Adds the trainable weights to the estimate.

        Every task's folder keeps a block; only the newest keeps a full model, and the older model
        is deleted after the newer one is written.
        """
        size = self.weights.size()
        full = isinstance(self.weights, FullWeights)
        weights = trainable(size // 4, 0 if full else size // 4)
        return super().footprint(task, batch_size) + weights + Footprint(passing=size * full)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """Switches the weights on; they are the same for every prompt."""
        self.weights.use(len(batch["input_ids"]))

    @property
    def exported_pool(self) -> LoraPool | None:
        """The pool with the one LoRA; None for full fine-tuning or a soft prompt."""
        pool = self.weights.pool if isinstance(self.weights, PoolWeights) else None
        return pool if isinstance(pool, LoraPool) else None

    def save(self, context: TaskContext) -> None:
        """Writes the current weights."""
        self.weights.save(context.folder)

    def load(self, context: TaskContext) -> None:
        """Restores the task's weights, if its folder still has them."""
        if self.weights.saved(context.folder):
            self.weights.load(context.folder)
