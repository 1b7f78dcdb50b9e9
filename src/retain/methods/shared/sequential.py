"""Sequential training: one set of weights learns every task in turn. The baselines that forget."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import model_validator
from torch import Tensor

from retain.backbone import Backbone, Batch
from retain.layers.pooled_linear import LoraPool
from retain.methods.base import Footprint, Method, ParamGroup, Phase, learning
from retain.methods.shared.lora import LoraMethodConfig
from retain.methods.shared.weights import MODEL, FullWeights, PoolWeights, Weights
from retain.tasks import Task
from retain.training.phase import Unit

LORA = tuple(LoraMethodConfig.model_fields)


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

    lowers_disk = lowers_ram = "the number of weights that learn, with method.tune: lora"
    fixed_mixture = True
    latest_only: ClassVar[tuple[str, ...]] = (MODEL,)
    over: ClassVar[Mapping[str, Unit]] = {}
    """As `Phase.over`."""

    def __init__(self, backbone: Backbone, config: Any) -> None:
        self.backbone = backbone
        self.weights = self.make_weights(config)

    def make_weights(self, config: Any) -> Weights:
        """What learns, as the options say."""
        if isinstance(config, SequentialConfig) and config.tune == "full":
            return FullWeights(self.backbone)
        pool = LoraPool(self.backbone.model, config.target_modules, config.rank, config.alpha)
        return PoolWeights(self.backbone, pool)

    def phases(self, task: Task, folder: Path) -> Iterator[Phase]:
        """One phase on the task's own examples."""
        self.weights.begin()
        weights = ParamGroup("weights", list(self.weights.named_parameters().values()))
        yield Phase("learn", self.encoded(task), [weights], self._loss, over=self.over)

    def _loss(self, batch: Batch) -> dict[str, Tensor]:
        self.route(batch)
        return {"task": self.backbone.answer_loss(batch)}

    def footprint(self, task: Task, batch_size: int) -> Footprint:
        """The weights that learn: every task's folder keeps a block, and the newest a model.

        The older model lies there until the newer one does.
        """
        size = self.weights.size()
        whole = isinstance(self.weights, FullWeights)
        own = learning(size // 4, 0 if whole else size // 4)
        return super().footprint(task, batch_size) + own + Footprint(passing=size * whole)

    def route(self, batch: Batch, task: str | None = None) -> None:
        """There is nothing to choose: the weights are always on."""
        self.weights.use(len(batch["input_ids"]))

    def save(self, folder: Path) -> None:
        """Writes the weights as they are after this task."""
        self.weights.save(folder)

    def load(self, folder: Path) -> None:
        """Takes over the weights of a later task, where they are still kept."""
        if self.weights.saved(folder):
            self.weights.load(folder)
